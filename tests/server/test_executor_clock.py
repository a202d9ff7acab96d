"""Clocks that are set while an executor works: neither a storm nor a standstill."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.server.conftest import ScriptedOutbound
from tests.server.durable import OTHER, URL, Bench, open_bench

HOUR = 3600.0


@pytest.fixture
async def bench(tmp_path: Path, outbound: ScriptedOutbound) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path, outbound) as opened:
        yield opened


@pytest.mark.parametrize("jump", [HOUR, -HOUR])
async def test_what_is_published_after_a_jump_goes_out_at_once(bench: Bench, jump: float) -> None:
    await bench.executor()
    await bench.subscribe()
    await (await bench.publish()).finished()
    await bench.until_states(delivered=1)
    bench.clock.now += jump
    await (await bench.publish()).finished()
    await bench.until_states(delivered=2)
    bench.check_idle()


async def test_an_attempt_under_way_when_the_clock_is_set_forward_is_not_made_twice(bench: Bench) -> None:
    """By the clock its lease is over, but the one who holds it is here and knows better."""
    executor = await bench.executor()
    await bench.subscribe()
    gate = asyncio.Event()
    bench.outbound.hangs(URL, gate)
    for _ in range(40):
        await bench.publish()
    await bench.outbound.until(lambda: bench.outbound.in_flight == 32)
    bench.clock.now += HOUR
    for _ in range(3):
        claims = bench.trouble.calls["claim"]
        executor.due()
        await bench.until(lambda claims=claims: bench.trouble.calls["claim"] > claims)  # type: ignore[misc]
    gate.set()
    await bench.until_states(delivered=40)
    assert len(bench.outbound.posts) == 40
    bench.check_idle()


async def test_retries_that_come_early_are_bounded_by_the_slots(tmp_path: Path, outbound: ScriptedOutbound) -> None:
    async with open_bench(tmp_path, outbound, max_durable_in_flight=4) as bench:
        await bench.executor()
        urls = [f"{URL}/{number}" for number in range(20)]
        for url in urls:
            await bench.subscribe(url)
            outbound.replies(url, 500, 200)
        await bench.publish()
        await bench.until(lambda: len(outbound.posts) == 20)
        await bench.until_states(pending=20)
        bench.pass_by(HOUR)
        await bench.until_states(delivered=20)
        assert len(outbound.posts) == 40
        assert outbound.most_in_flight <= 4


async def test_what_waits_goes_on_as_soon_as_the_store_has_noticed_that_the_clock_was_set_back(bench: Bench) -> None:
    executor = await bench.executor()
    await bench.subscribe()
    await bench.trouble.inner.notice_clock(now=bench.clock.moment)
    bench.outbound.replies(URL, 500, 200)
    await bench.publish()
    await bench.until_states(pending=1)
    bench.clock.now -= HOUR
    assert await bench.trouble.inner.notice_clock(now=bench.clock.moment) > 0
    executor.due()
    bench.pass_by(5)
    await bench.until_states(delivered=1)
    assert len(bench.outbound.posts) == 2


async def test_a_pause_that_was_written_by_a_clock_ahead_does_not_stop_the_endpoint(bench: Bench) -> None:
    executor = await bench.executor()
    await bench.subscribe(schedule=(0.0, *[1.0] * 10))
    await bench.trouble.inner.notice_clock(now=bench.clock.moment)
    bench.outbound.replies(URL, 500, 500, 500, 500, 500, 200)
    for _ in range(5):
        await bench.publish()
    await bench.until(lambda: executor._endpoints[URL].pause_is_written)
    await bench.until_states(pending=5)
    bench.clock.now -= HOUR
    assert await bench.trouble.inner.notice_clock(now=bench.clock.moment) > 0
    bench.pass_by(10)
    executor.due()
    await bench.until_states(delivered=5)
    bench.check_idle()


async def test_what_waits_for_a_slot_when_its_endpoint_is_paused_again_is_given_back(
    tmp_path: Path, outbound: ScriptedOutbound
) -> None:
    """The pause was over, the clock is set back, and the pause is not over: nothing that ends would bring its turn."""
    async with open_bench(tmp_path, outbound, max_durable_in_flight=1) as bench:
        executor = await bench.executor()
        await bench.subscribe(URL, topic=b"paused", schedule=(0.0, *[100.0] * 10))
        await bench.subscribe(OTHER, topic=b"slow")
        outbound.replies(URL, 500, 500, 500, 500, 500, 200)
        for _ in range(5):
            await (await bench.publish(topic=b"paused")).finished()
        await bench.until(lambda: bench.trouble.calls["block_endpoint"] == 1)
        await bench.until_states(pending=5)
        gate = asyncio.Event()
        outbound.hangs(OTHER, gate)
        await bench.publish(topic=b"slow")
        await outbound.until(lambda: outbound.in_flight == 1)
        bench.pass_by(100)
        await bench.until_states(leased=2, pending=4)
        bench.clock.now -= 99.5
        gate.set()
        await bench.until(lambda: executor._attempts.held == 0)
        bench.pass_by(200)
        await bench.until_states(delivered=6)
        bench.check_idle()
