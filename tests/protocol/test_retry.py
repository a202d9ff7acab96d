"""What an answer means, and when the next attempt is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from httppubsubclient.protocol.errors import InvalidRequest
from httppubsubclient.protocol.retry import (
    DURABLE_SCHEDULE_SECONDS,
    MAX_RETRY_AFTER_SECONDS,
    MAX_SCHEDULE_WAIT_SECONDS,
    QUICK_RETRY_SECONDS,
    Verdict,
    backoff_delay,
    check_retry_schedule,
    durable_retry_delay,
    longest_durable_delay,
    quick_retry_delay,
    retry_after_seconds,
    slows_endpoint,
    tried_again_when_durable,
    verdict,
)

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "retry.json").read_text())
RANDOM = st.floats(0, 1, exclude_max=True)
WAITS = st.floats(0, MAX_SCHEDULE_WAIT_SECONDS, exclude_min=True)
SCHEDULES = st.builds(
    lambda first, others: (first, *others),
    st.floats(0, MAX_SCHEDULE_WAIT_SECONDS),
    st.lists(WAITS, max_size=63),
)


@pytest.mark.parametrize(("status", "meaning"), VECTORS["verdicts"].items())
def test_an_answer_has_one_meaning(status: str, meaning: str) -> None:
    assert verdict(int(status)) is Verdict(meaning)


@pytest.mark.parametrize(("header", "seconds"), VECTORS["retry_after"])
def test_retry_after_is_read_strictly_and_clamped(header: str | None, seconds: float | None) -> None:
    assert retry_after_seconds(header, VECTORS["now"]) == seconds


@given(st.text(max_size=70), st.integers(0, 2**32))
def test_a_random_retry_after_is_none_or_within_bounds(header: str, now: int) -> None:
    seconds = retry_after_seconds(header, now)
    assert seconds is None or 0 <= seconds <= MAX_RETRY_AFTER_SECONDS


@pytest.mark.parametrize(("attempt", "random", "retry_after", "seconds"), VECTORS["quick_retry"])
def test_best_effort_waits_so_long(
    attempt: int, random: float, retry_after: float | None, seconds: float | None
) -> None:
    assert quick_retry_delay(attempt, random, retry_after) == (None if seconds is None else pytest.approx(seconds))


@given(st.integers(1, len(QUICK_RETRY_SECONDS)), RANDOM, st.none() | st.floats(0, 10))
def test_a_quick_retry_never_comes_before_retry_after(attempt: int, random: float, retry_after: float | None) -> None:
    delay = quick_retry_delay(attempt, random, retry_after)
    assert delay is not None
    assert delay >= (retry_after or 0)
    assert delay >= QUICK_RETRY_SECONDS[attempt - 1] / 2


@pytest.mark.parametrize(("attempt", "random", "base", "maximum", "seconds"), VECTORS["backoff"])
def test_the_back_off_doubles_up_to_its_maximum(
    attempt: int, random: float, base: float, maximum: float, seconds: float
) -> None:
    assert backoff_delay(attempt, random, base_seconds=base, max_seconds=maximum) == pytest.approx(seconds)


@given(st.integers(), RANDOM, st.floats(0, 1e6), st.floats(0, 1e6))
def test_a_back_off_is_never_negative_nor_beyond_its_maximum(
    attempt: int, random: float, base: float, maximum: float
) -> None:
    assert 0 <= backoff_delay(attempt, random, base_seconds=base, max_seconds=maximum) <= maximum


# Durable


@pytest.mark.parametrize("meaning", list(Verdict))
def test_everything_but_accepted_and_gone_is_tried_again_when_durable(meaning: Verdict) -> None:
    assert tried_again_when_durable(meaning) is VECTORS["tried_again_when_durable"][meaning.value]


def test_two_statuses_speak_for_the_whole_endpoint() -> None:
    assert [status for status in range(1000) if slows_endpoint(status)] == VECTORS["slows_endpoint"]


def test_the_durable_schedule_is_that_of_standard_webhooks() -> None:
    assert list(DURABLE_SCHEDULE_SECONDS) == VECTORS["durable_schedule"]
    assert check_retry_schedule(DURABLE_SCHEDULE_SECONDS) == DURABLE_SCHEDULE_SECONDS


@pytest.mark.parametrize(("attempt", "schedule", "random", "retry_after", "seconds"), VECTORS["durable_retry"])
def test_durable_waits_so_long(
    attempt: int, schedule: list[float] | None, random: float, retry_after: float | None, seconds: float | None
) -> None:
    delay = durable_retry_delay(
        attempt, DURABLE_SCHEDULE_SECONDS if schedule is None else schedule, random, retry_after
    )
    assert delay == (None if seconds is None else pytest.approx(seconds))


@given(SCHEDULES, st.integers(-1, 70), RANDOM, st.none() | st.floats(0, 1e9))
def test_a_durable_wait_is_never_shorter_than_the_schedule_nor_without_an_end(
    schedule: tuple[float, ...], attempt: int, random: float, retry_after: float | None
) -> None:
    delay = durable_retry_delay(attempt, schedule, random, retry_after)
    if not 0 <= attempt < len(schedule):
        assert delay is None
        return
    assert delay is not None
    by_schedule = durable_retry_delay(attempt, schedule, random, None)
    assert by_schedule is not None
    assert schedule[attempt] * 0.8 <= by_schedule * (1 + 1e-9)
    assert by_schedule <= schedule[attempt] * 1.2 * (1 + 1e-9)
    assert delay >= max(by_schedule, min(retry_after or 0, MAX_RETRY_AFTER_SECONDS))
    assert delay <= longest_durable_delay(schedule) * (1 + 1e-9)


@given(SCHEDULES)
def test_a_schedule_that_is_taken_comes_back_as_it_was_from_json_too(schedule: tuple[float, ...]) -> None:
    assert check_retry_schedule(schedule) == schedule
    assert check_retry_schedule(json.loads(json.dumps(schedule))) == schedule


@pytest.mark.parametrize(
    "schedule", [*VECTORS["schedules_refused"], [float("nan")], [float("inf")], [0] * 65, [10**5000]]
)
def test_what_is_no_schedule_is_refused(schedule: Any) -> None:
    with pytest.raises(InvalidRequest, match="retry_schedule_seconds") as refused:
        check_retry_schedule(schedule)
    assert len(refused.value.detail) < 150


def test_the_refusal_names_the_entry_and_what_came() -> None:
    with pytest.raises(InvalidRequest, match=r"\[2\] is more than 0 and at most 2592000 \(30 days\); got 0$"):
        check_retry_schedule([0, 1, 0])
    with pytest.raises(InvalidRequest, match=r"\[1\] is a number; got str$"):
        check_retry_schedule([0, "1"])


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=8))
def test_a_random_schedule_is_taken_or_refused(schedule: Any) -> None:
    try:
        taken = check_retry_schedule(schedule)
    except InvalidRequest:
        return
    assert 1 <= len(taken) <= 64
    assert all(0 <= wait <= MAX_SCHEDULE_WAIT_SECONDS for wait in taken)
