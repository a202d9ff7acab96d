"""What the end of an attempt means: for the delivery, for its endpoint, for the log."""

from __future__ import annotations

import logging

import pytest

from httppubsubclient.bodies import Body
from httppubsubserver.delivery import outcomes as outcomes_module
from httppubsubserver.delivery.answers import Answer, AttemptFailed
from httppubsubserver.delivery.outcomes import Outcomes
from httppubsubserver.delivery.work import Work
from httppubsubserver.stores.durable import Attempt
from tests.server.durable import START, URL, Clock, claimed

NOW = int(START) * 1_000_000
SECOND = 1_000_000


def outcomes(clock: Clock | None = None) -> Outcomes:
    return Outcomes(clock=clock or Clock(), random=lambda: 0.5)


def work(attempt: int = 1, schedule: tuple[float, ...] | None = None, url: str = URL) -> Work:
    made = Work(claimed(attempt=attempt, schedule=schedule, url=url), Body.of(b"data"))
    made.began_at = NOW - SECOND
    return made


@pytest.mark.parametrize("status", [200, 202, 204, 299])
def test_2xx_is_delivered(status: int) -> None:
    settlement, endpoint, slowed = outcomes().decide(work(), Answer(status, None))
    assert (settlement.outcome, endpoint, slowed) == ("delivered", "works", None)
    assert settlement.attempt == Attempt(NOW - SECOND, NOW, status)


def test_410_is_about_the_subscription_as_it_was_claimed() -> None:
    settlement, endpoint, _ = outcomes().decide(work(), Answer(410, None))
    assert (settlement.outcome, endpoint) == ("gone", "unknown")
    assert settlement.subscribed_until == claimed().subscribed_until


@pytest.mark.parametrize("header", [None, "60"])
def test_409_is_tried_again_by_schedule_and_says_nothing_about_the_endpoint(header: str | None) -> None:
    settlement, endpoint, slowed = outcomes().decide(work(), Answer(409, header))
    assert (settlement.outcome, endpoint, slowed) == ("again", "unknown", None)
    assert settlement.due_at == NOW + (63 if header else 5) * SECOND
    assert outcomes().decide(work(2, (0.0, 1.0)), Answer(409, None)).settlement.outcome == "dead"


@pytest.mark.parametrize("status", [302, 400, 404, 500, 502, 504])
def test_any_other_answer_is_tried_again_by_schedule(status: int) -> None:
    settlement, endpoint, slowed = outcomes().decide(work(), Answer(status, None))
    assert (settlement.outcome, endpoint, slowed) == ("again", "fails", None)
    assert settlement.due_at == NOW + 5 * SECOND
    assert settlement.attempt.status == status


def test_no_answer_is_tried_again_too_and_says_why() -> None:
    settlement, endpoint, _ = outcomes().decide(work(), AttemptFailed("timeout", again=False))
    assert (settlement.outcome, endpoint, settlement.attempt.error) == ("again", "fails", "timeout")


def test_what_failed_here_says_nothing_about_the_endpoint() -> None:
    untried = work()
    untried.began_at = 0
    settlement, endpoint, _ = outcomes().decide(untried, AttemptFailed("configuration_error", again=True), ours=True)
    assert (settlement.outcome, endpoint) == ("again", "unknown")
    assert (settlement.attempt.began_at, settlement.attempt.ended_at) == (NOW, NOW)


@pytest.mark.parametrize(
    ("status", "header", "slowed", "wait"),
    [
        (503, "60", 60, 63),
        (429, "60", 60, 63),
        (503, None, None, 5),
        (503, "soon", None, 5),
        (500, "60", None, 63),  # speaks for this message only
        (503, "1", 1, 5),  # never sooner than the schedule
        (503, "99999999", 86_400, 86_400 * 1.05),
        (503, "Fri, 15 Jan 2027 08:01:00 GMT", 60, 63),
        (503, "Fri, 15 Jan 2027 07:00:00 GMT", 0, 5),
    ],
)
def test_retry_after(status: int, header: str | None, slowed: float | None, wait: float) -> None:
    decision = outcomes().decide(work(), Answer(status, header))
    assert decision.slowed_seconds == slowed
    assert decision.settlement.due_at == NOW + int(wait * SECOND)


def test_a_schedule_that_is_exhausted_is_the_end() -> None:
    settlement = outcomes().decide(work(3, (0.0, 1.0, 2.0)), Answer(500, None)).settlement
    assert (settlement.outcome, settlement.reason) == ("dead", "exhausted")
    assert outcomes().decide(work(2, (0.0, 1.0, 2.0)), Answer(500, None)).settlement.outcome == "again"


def test_a_subscriber_that_is_away_is_one_warning_until_it_takes_something(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    decides = outcomes()
    for attempt in (1, 2, 3):
        decides.decide(work(attempt), Answer(500, None))
    decides.decide(work(4), Answer(200, None))
    decides.decide(work(), Answer(200, None))
    decides.decide(work(), Answer(500, None))
    levels = [record.levelname for record in caplog.records]
    assert levels == ["WARNING", "INFO", "INFO", "INFO", "WARNING"]
    assert "succeed again" in caplog.records[3].getMessage()


def test_the_end_of_a_delivery_is_always_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    decides = outcomes()
    for attempt in (1, 2):
        decides.decide(work(attempt, (0.0, 1.0)), Answer(500, None))
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert "dead" in caplog.records[1].getMessage()


def test_what_is_remembered_of_failing_subscriptions_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcomes_module, "_MAX_REMEMBERED", 3)
    decides = outcomes()
    for number in range(10):
        failing = work()
        held = failing.claimed.held._replace(subscription_id=f"sub_{number}")
        failing.claimed = failing.claimed._replace(held=held)
        decides.decide(failing, Answer(500, None))
    assert list(decides._failing) == ["sub_7", "sub_8", "sub_9"]


def test_the_log_has_no_secret_of_a_url(caplog: pytest.LogCaptureFixture) -> None:
    outcomes().decide(work(url=f"{URL}?token=secret#secret"), Answer(500, None))
    assert "secret" not in caplog.text
