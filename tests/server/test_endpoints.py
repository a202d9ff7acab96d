"""What an endpoint's failures mean for what is sent there: pauses, probes, a slow start."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

import pytest

from httppubsubclient.protocol.circuit import CircuitRules
from httppubsubserver.delivery import endpoints as endpoints_module
from httppubsubserver.delivery.endpoints import Endpoint, Endpoints
from httppubsubserver.delivery.outbound import Answer
from tests.server.conftest import Post, ScriptedOutbound
from tests.server.durable import OTHER, START, URL, Bench, Clock, open_bench

OFTEN = (0.0, *[1.0] * 40)


def make(clock: Clock, *, limit: int = 8) -> Endpoints:
    return Endpoints(CircuitRules(limit=limit), clock=clock, random=lambda: 0.0)


def fail(endpoints: Endpoints, endpoint: Endpoint, times: int, retry_after: float | None = None) -> float | None:
    until = None
    for _ in range(times):
        until = endpoints.failed(endpoint, retry_after)
    return until


def test_an_endpoint_that_works_is_read_ahead() -> None:
    endpoints = make(Clock())
    endpoint = endpoints[URL]
    endpoint.in_flight, endpoint.reserved = 3, 2
    assert endpoints.limits() == {URL: 16 - 5}
    assert endpoints.may_reserve(endpoint)


def test_failures_end_the_trust_and_a_pause_is_kept_by_ourselves_until_the_store_knows_of_it() -> None:
    clock = Clock()
    endpoints = make(clock)
    endpoint = endpoints[URL]
    assert fail(endpoints, endpoint, 4) is None
    assert fail(endpoints, endpoint, 1) == START + 1
    assert endpoints.is_paused(endpoint)
    assert (endpoints.limits()[URL], endpoints.paused()) == (0, frozenset())
    endpoint.pause_is_written = True
    # What the store hands out now, somebody has let through.
    assert (endpoints.limits()[URL], endpoints.paused()) == (1, frozenset({URL}))
    assert not endpoints.may_begin(endpoint)
    endpoints.let_through(endpoint)
    assert endpoints.may_begin(endpoint)
    endpoint.in_flight = 1
    assert not endpoints.may_begin(endpoint)


def test_after_a_pause_one_probe_goes_out_and_then_twice_as_many_each_time() -> None:
    clock = Clock()
    endpoints = make(clock)
    endpoint = endpoints[URL]
    fail(endpoints, endpoint, 5)
    clock.now += 1
    assert endpoints.limits() == {URL: 1}
    for allowed in (2, 4):
        assert endpoints.succeeded(endpoint) is None
        assert endpoints.limits() == {URL: allowed}
    endpoints.succeeded(endpoint)
    endpoints.forget_idle(endpoint)
    assert endpoints.limits() == {}


def test_a_success_among_the_failures_of_a_pause_ends_it_for_the_store_too() -> None:
    clock = Clock()
    endpoints = make(clock)
    fail(endpoints, endpoints[URL], 5)
    assert endpoints.succeeded(endpoints[URL]) == clock.now


def test_what_an_endpoint_asked_for_is_kept_whatever_succeeds() -> None:
    clock = Clock()
    endpoints = make(clock)
    endpoint = endpoints[URL]
    assert fail(endpoints, endpoint, 1, 60.0) == START + 60
    assert endpoints.succeeded(endpoint) is None
    assert endpoints.is_paused(endpoint)
    assert fail(endpoints, endpoint, 1, 30.0) == START + 60
    assert fail(endpoints, endpoint, 1) is None


def test_the_one_that_is_new_is_never_the_one_that_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forgotten at once it would be counted where nobody looks."""
    monkeypatch.setattr(endpoints_module, "_MAX_REMEMBERED", 2)
    endpoints = make(Clock())
    for url in ("http://1.example/", "http://2.example/"):
        endpoints[url].in_flight = 1
    endpoint = endpoints[URL]
    endpoint.reserved = 1
    assert endpoints[URL] is endpoint


def test_the_oldest_that_fails_is_forgotten_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints_module, "_MAX_REMEMBERED", 2)
    endpoints = make(Clock())
    for url in ("http://1.example/", "http://2.example/", "http://3.example/"):
        endpoints.failed(endpoints[url], None)
    assert [each.url for each in endpoints.all()] == ["http://2.example/", "http://3.example/"]


# -- with an executor -------------------------------------------------------------------------------------------------


@pytest.fixture
async def bench(tmp_path: Path, outbound: ScriptedOutbound) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path, outbound) as opened:
        yield opened


async def test_an_endpoint_that_fails_gets_probes_until_one_succeeds_and_then_its_backlog(bench: Bench) -> None:
    await bench.executor()
    await bench.subscribe(schedule=OFTEN)
    bench.outbound.replies(URL, 500)
    for _ in range(5):
        await (await bench.publish()).finished()
    await bench.until_states(pending=5)
    for _ in range(95):
        await bench.publish()  # with a pause, not even the first attempt
    assert len(bench.outbound.posts) == 5
    pause = 1.0
    for probes in range(1, 5):
        bench.pass_by(pause)
        pause *= 2
        await bench.until(lambda probes=probes: len(bench.outbound.posts) == 5 + probes)  # type: ignore[misc]
        await bench.until_states(pending=100)
    bench.outbound.replies(URL, 200)
    bench.pass_by(pause)
    await bench.until_states(delivered=100)
    assert len(bench.outbound.posts) == 109
    bench.check_idle()


async def test_the_backlog_drains_at_a_rising_rate(bench: Bench) -> None:
    await bench.executor()
    await bench.subscribe(schedule=OFTEN)
    bench.outbound.replies(URL, 500)
    for _ in range(5):
        await (await bench.publish()).finished()
    for _ in range(60):
        await bench.publish()
    await bench.until_states(pending=65)
    gates = [asyncio.Event() for _ in range(65)]
    begun = 0

    async def one_by_one(_: Post) -> int:
        nonlocal begun
        begun += 1
        await gates[begun - 1].wait()
        return 200

    bench.outbound.scripts[URL] = one_by_one
    bench.pass_by(1)
    most = []
    for number, gate in enumerate(gates[:5]):
        await bench.until(lambda number=number: begun > number)  # type: ignore[misc]
        await bench.until(lambda: bench.executors[0]._attempts.held == bench.outbound.in_flight)
        most.append(bench.outbound.in_flight)
        gate.set()
        settled = number + 1
        await bench.until(lambda settled=settled: begun - bench.outbound.in_flight == settled)  # type: ignore[misc]
        window = min(2 ** (number + 1), 32)
        wanted = min(window, 65 - settled)
        await bench.until(lambda wanted=wanted: bench.outbound.in_flight == wanted)  # type: ignore[misc]
    assert most == [1, 2, 4, 8, 16]
    for gate in gates:
        gate.set()
    await bench.until_states(delivered=65)
    bench.check_idle()


@pytest.mark.parametrize("form", ["seconds", "date"])
async def test_a_subscriber_that_is_busy_is_left_alone_as_long_as_it_asks(bench: Bench, form: str) -> None:
    await bench.executor()
    await bench.subscribe(schedule=OFTEN)
    date = format_datetime(datetime.fromtimestamp(START + 600, UTC), usegmt=True)
    bench.outbound.replies(URL, Answer(503, "600" if form == "seconds" else date), 200)
    await (await bench.publish()).finished()
    await bench.publish()
    await bench.until(lambda: bench.executors[0]._endpoints[URL].pause_is_written)
    bench.pass_by(599)
    await bench.until_states(pending=2)
    assert len(bench.outbound.posts) == 1
    bench.pass_by(1)
    await bench.until_states(delivered=2)


async def test_a_delivery_that_was_leased_before_the_pause_was_written_does_not_end_it(bench: Bench) -> None:
    """Else each notify that is being accepted while the endpoint begins to fail would be one more probe."""
    await bench.executor()
    await bench.subscribe(schedule=OFTEN)
    bench.outbound.replies(URL, 500)
    for _ in range(4):
        await (await bench.publish()).finished()
    gate = asyncio.Event()

    async def fails_late(_: Post) -> int:
        await gate.wait()
        return 500

    bench.outbound.scripts[URL] = fails_late
    fifth = await bench.publish()
    await bench.outbound.until(lambda: bench.outbound.in_flight == 1)
    bench.trouble.after["accept"] = asyncio.Event()
    late = [asyncio.create_task(bench.publish()) for _ in range(10)]
    await bench.until_states(pending=4, leased=11)
    gate.set()
    await fifth.finished()
    posts = len(bench.outbound.posts)
    bench.trouble.after.pop("accept").set()
    await asyncio.gather(*late)
    await bench.until_states(pending=15)
    assert len(bench.outbound.posts) == posts
    bench.outbound.replies(URL, 200)
    bench.pass_by(2)
    await bench.until_states(delivered=15)
    bench.check_idle()


async def test_a_pause_of_one_endpoint_is_seen_by_another_broadcaster(bench: Bench) -> None:
    first, second = await bench.executor(), await bench.executor()
    await bench.subscribe(schedule=OFTEN)
    bench.outbound.replies(URL, 500)
    for _ in range(5):
        await (await bench.publish(executor=first)).finished()
    await bench.until(lambda: first._endpoints[URL].pause_is_written)
    notify = await bench.publish(executor=second)
    await notify.finished()
    assert (notify.pending, len(bench.outbound.posts)) == (1, 5)


async def test_a_subscriber_that_came_back_at_another_broadcaster_is_let_through(bench: Bench) -> None:
    first, second = await bench.executor(), await bench.executor()
    subscription = await bench.subscribe()
    bench.outbound.replies(URL, Answer(503, "3600"), 200)
    await (await bench.publish(executor=first)).finished()
    await bench.until(lambda: first._endpoints[URL].pause_is_written)
    await bench.until_states(pending=1)
    second.start_draining()  # so that the first has to
    await second.resume(subscription, URL)
    first.due()
    await bench.until_states(delivered=1)
    bench.check_idle()


async def test_a_subscriber_that_is_back_again_and_again_gets_probes_and_loses_nothing(bench: Bench) -> None:
    """It dies at every start: as many starts as there are attempts in its schedule, and more."""
    executor = await bench.executor()
    subscription = await bench.subscribe(schedule=(0.0, 10.0, 10.0))
    bench.outbound.replies(URL, 500)
    for _ in range(5):
        await (await bench.publish()).finished()
    await bench.until(lambda: executor._endpoints[URL].pause_is_written)
    for resumes in range(1, 11):
        await executor.resume(subscription, URL)
        await bench.until(lambda resumes=resumes: len(bench.outbound.posts) == 5 + resumes)  # type: ignore[misc]
        await bench.until(lambda: executor._endpoints[URL].pause_is_written)
        await bench.until_states(pending=5)
        assert executor._endpoints[URL].circuit.pauses == 1 + resumes
    assert len(bench.outbound.posts) == 15
    assert {post.headers["pubsub-attempt"] for post in bench.outbound.posts} == {"1"}
    bench.outbound.replies(URL, 200)
    await executor.resume(subscription, URL)
    await bench.until_states(delivered=5)
    bench.check_idle()


async def test_a_storm_of_resumes_is_one_probe(bench: Bench) -> None:
    executor = await bench.executor()
    subscription = await bench.subscribe()
    bench.outbound.replies(URL, Answer(503, "3600"))
    for _ in range(5):
        await bench.publish()
    await bench.until(lambda: bool(bench.outbound.posts) and executor._endpoints[URL].pause_is_written)
    await bench.until_states(pending=5)
    begun = len(bench.outbound.posts)
    gate = asyncio.Event()
    bench.outbound.hangs(URL, gate)
    for _ in range(10):
        await executor.resume(subscription, URL)
    await bench.outbound.until(lambda: bench.outbound.in_flight == 1)
    await executor.resume(subscription, URL)
    await bench.until(lambda: not executor._claiming)
    assert len(bench.outbound.posts) <= begun + 1
    assert bench.outbound.in_flight == 1
    gate.set()
    await bench.until_states(delivered=5)
    bench.check_idle()


async def test_a_pattern_that_is_not_entered_does_not_starve_the_others_of_its_callback(bench: Bench) -> None:
    await bench.executor()
    await bench.subscribe(topic=b"left", schedule=OFTEN)
    await bench.subscribe()
    bench.outbound.replies(URL, 409)
    for _ in range(8):
        await (await bench.publish(topic=b"left")).finished()
    assert not bench.executors[0]._endpoints.all()
    bench.outbound.replies(URL, 200)
    await bench.publish()
    await bench.until_states(pending=8, delivered=1)
    bench.check_idle()


async def test_a_410_and_what_fails_here_say_nothing_about_the_endpoint(bench: Bench) -> None:
    await bench.executor()
    for _ in range(8):
        await bench.subscribe(OTHER)
        bench.outbound.replies(OTHER, 410)
        await (await bench.publish()).finished()
    assert not bench.executors[0]._endpoints.all()
