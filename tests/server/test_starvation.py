"""Endpoints that hang take no slots from those that answer, and the new ones among them get their turn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from httppubsubclient.protocol.circuit import CircuitRules
from httppubsubserver.delivery import shares as shares_module
from httppubsubserver.delivery.endpoints import Endpoints
from httppubsubserver.delivery.outbound import AttemptFailed
from httppubsubserver.stores.durable import Terms
from tests.server.conftest import Post, ScriptedOutbound
from tests.server.durable import OTHER, URL, Bench, Clock, open_bench

HANGING = [f"http://hanging.example/{number}" for number in range(40)]
BACKLOG = 3 * len(HANGING)
SHARE = 12
"""Of 16 slots; the last quarter is for proven endpoints."""


@pytest.fixture
async def bench(tmp_path: Path, outbound: ScriptedOutbound) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path, outbound, max_durable_in_flight=16, max_durable_in_flight_per_callback=4) as opened:
        yield opened
        opened.check_idle()
        for executor in opened.executors:
            shares = executor._endpoints.shares
            assert (shares.held, shares.in_flight) == (0, 0)


class Hanging:
    """What every attempt to the hanging endpoints waits for: one by one they time out, or all succeed."""

    def __init__(self, bench: Bench) -> None:
        self._waiting: list[asyncio.Future[int | AttemptFailed]] = []
        self._over = False
        for url in HANGING:
            bench.outbound.scripts[url] = self._attempt

    async def _attempt(self, _: Post) -> int | AttemptFailed:
        if self._over:
            return 200
        self._waiting.append(asyncio.get_running_loop().create_future())
        return await self._waiting[-1]

    def time_out(self) -> None:
        """The oldest one."""
        self._waiting.pop(0).set_result(AttemptFailed("timeout", again=False, hanging=True))

    def answer(self) -> None:
        """From now on they work."""
        self._over = True
        for each in self._waiting:
            each.set_result(200)


async def hang(bench: Bench) -> Hanging:
    """One proven endpoint, and a backlog of others that take what they may."""
    await bench.executor()
    await bench.subscribe(URL, topic=b"quick")
    await (await bench.publish(topic=b"quick")).finished()
    await bench.until_states(delivered=1)
    hanging = Hanging(bench)
    for url in HANGING:
        await bench.subscribe(url, topic=b"slow")
    for _ in range(3):
        await bench.publish(topic=b"slow")
    executor = bench.executors[0]
    await bench.until(lambda: bench.outbound.in_flight == SHARE and executor._endpoints.shares.pressure == 2)
    return hanging


async def test_what_an_endpoint_that_works_gets_begins_at_once(bench: Bench) -> None:
    hanging = await hang(bench)
    for _ in range(20):
        notify = await bench.publish(topic=b"quick")
        await notify.finished()
        assert notify.notified == 1
    assert bench.outbound.in_flight == SHARE
    hanging.answer()
    await bench.until_states(delivered=BACKLOG + 21)


async def test_the_backlog_of_one_that_works_is_claimed_past_those_that_hang(bench: Bench) -> None:
    hanging = await hang(bench)
    gate = asyncio.Event()
    bench.outbound.hangs(URL, gate)
    for _ in range(40):
        await bench.publish(topic=b"quick")
    assert bench.outbound.in_flight <= SHARE + 4
    gate.set()
    await bench.until(lambda: sum(post.url == URL for post in bench.outbound.posts) == 41)
    await bench.until(lambda: bench.outbound.in_flight == SHARE)
    hanging.answer()
    await bench.until_states(delivered=BACKLOG + 41)


async def test_while_nothing_may_be_claimed_the_store_is_left_alone(bench: Bench) -> None:
    hanging = await hang(bench)
    executor = bench.executors[0]
    await bench.until(lambda: executor._due_at is None or executor._due_at > bench.clock.moment)
    asked = bench.trouble.calls["claim"]
    await bench.subscribe(OTHER, topic=b"new")
    for _ in range(10):
        await bench.publish(topic=b"new")
    assert bench.trouble.calls["claim"] - asked <= 1  # at most that of every second
    hanging.answer()
    await bench.until_states(delivered=BACKLOG + 11)


async def test_a_new_endpoint_waits_for_its_turn_but_not_for_ever(bench: Bench) -> None:
    """Each one that hangs gives its slot up for good with its first attempt, so the new one is next before long."""
    hanging = await hang(bench)
    await bench.subscribe(OTHER, topic=b"new")
    notify = await bench.publish(topic=b"new")
    assert notify.pending == 1
    ended = 0
    while not any(post.url == OTHER for post in bench.outbound.posts):
        begun = len(bench.outbound.posts)
        hanging.time_out()
        ended += 1
        await bench.until(lambda begun=begun: len(bench.outbound.posts) > begun)  # type: ignore[misc]
    assert ended <= 2 * len(HANGING)
    hanging.answer()
    for _ in range(10):
        await bench.until(lambda: bench.executors[0]._attempts.held == 0)
        bench.pass_by(600)
    await bench.until_states(delivered=BACKLOG + 2)


async def test_a_new_endpoint_that_works_is_one_of_those_that_begin_at_once(bench: Bench) -> None:
    hanging = await hang(bench)
    await bench.subscribe(OTHER, topic=b"new")
    await bench.publish(topic=b"new")
    hanging.answer()
    await bench.until_states(delivered=BACKLOG + 2)
    assert OTHER in bench.executors[0]._endpoints.shares.proven


async def test_the_end_finds_those_that_wait_for_the_share(bench: Bench) -> None:
    await hang(bench)
    await bench.executors[0].close()
    assert await bench.states() == {"delivered": 1, "pending": BACKLOG}


async def test_a_claim_of_some_endpoints_only_is_not_stopped_by_what_stands_before_them(bench: Bench) -> None:
    first = await bench.executor()
    first.start_draining()
    for url in [*HANGING, URL]:
        await bench.subscribe(url, topic=url.encode())
        await bench.publish(topic=url.encode())
    now = bench.clock.moment
    terms = Terms("run_x", now + 30_000_000, 1, 0, {URL: 2})
    claims = await bench.store.claim(terms, now=now)
    assert [each.url for each in claims.deliveries] == [URL]
    assert claims.next_due_at == now + 30_000_000
    assert await bench.store.next_due({URL: 0}, per_endpoint=0) is None


# -- the numbers ------------------------------------------------------------------------------------------------------


def make(*, slots: int = 16) -> Endpoints:
    return Endpoints(CircuitRules(limit=8), clock=Clock(), random=lambda: 0.0, slots=slots)


def test_the_more_the_unproven_hold_the_less_one_of_them_may_have() -> None:
    endpoints = make()
    endpoints.succeeded(endpoints[URL])
    endpoints.forget_idle(endpoints[URL])
    limits = []
    for held in (7, 1, 15, 1):
        endpoints[OTHER].reserved += held
        endpoints.hold(endpoints[OTHER], held)
        limits.append((endpoints.shares.held, endpoints.limit_of_others, endpoints.limits().get(URL)))
    assert limits == [(7, 16, None), (8, 1, 16), (23, 1, 16), (24, 0, 16)]


def test_an_attempt_that_hangs_opens_the_circuit_only_when_others_wait_for_its_slot() -> None:
    endpoints = make()
    assert endpoints.failed(endpoints[URL], None, hanging=True) is None
    endpoints[OTHER].reserved = 8
    endpoints.hold(endpoints[OTHER], 8)
    assert endpoints.failed(endpoints[URL], None) is None
    assert endpoints.failed(endpoints[URL], None, hanging=True) is not None


def test_what_is_held_counts_by_what_the_last_answer_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares_module, "_MAX_PROVEN", 1)
    endpoints = make()
    for url in (URL, OTHER):
        endpoints[url].reserved = 2
        endpoints.hold(endpoints[url], 3)
        endpoints.count_in_flight(endpoints[url], 1)
    counts = []
    for step in ("succeeded", "failed", "succeeded", "other succeeded"):
        endpoint = endpoints[OTHER if "other" in step else URL]
        if step == "failed":
            endpoints.failed(endpoint, None)
        else:
            endpoints.succeeded(endpoint)
        counts.append((endpoints.shares.held, endpoints.shares.in_flight, list(endpoints.shares.proven)))
    assert counts == [(3, 1, [URL]), (6, 2, []), (3, 1, [URL]), (3, 1, [OTHER])]
    assert not endpoints[URL].proven
