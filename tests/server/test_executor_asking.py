"""When the store is asked for deliveries: not for what nobody may have yet, and for everything else before long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from httppubsubclient.bodies import Body
from httppubsubclient.protocol.messages import Notification
from httppubsubserver.stores.durable import Publication
from tests.server.conftest import ScriptedOutbound
from tests.server.durable import OTHER, URL, Bench, open_bench


@pytest.fixture
async def bench(tmp_path: Path, outbound: ScriptedOutbound) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path, outbound, max_durable_in_flight_per_callback=1) as opened:
        yield opened


async def paused(bench: Bench) -> None:
    """Let the circuit of the endpoint open, and the executor learn when it may ask again."""
    executor = await bench.executor()
    await bench.subscribe()
    bench.outbound.replies(URL, 500, 500, 500, 500, 500, 200)
    for _ in range(5):
        await (await bench.publish()).finished()
    await bench.until(lambda: bench.trouble.calls["block_endpoint"] == 1)
    await bench.until(lambda: not executor._errands and (executor._due_at or 0) > bench.clock.moment)
    await bench.until_states(pending=5)


async def test_nothing_is_asked_for_while_its_endpoint_is_paused(bench: Bench) -> None:
    await paused(bench)
    asked = bench.trouble.calls["claim"]
    for _ in range(20):
        notify = await bench.publish()
        assert notify.pending == 1
    await bench.until_states(pending=25)
    assert bench.trouble.calls["claim"] == asked
    assert len(bench.outbound.posts) == 5


async def test_when_the_pause_is_over_everything_goes_out(bench: Bench) -> None:
    await paused(bench)
    for _ in range(20):
        await bench.publish()
    bench.pass_by(60)
    await bench.until_states(delivered=25)
    bench.check_idle()


async def test_nothing_is_asked_for_while_its_endpoint_has_its_limit(bench: Bench) -> None:
    executor = await bench.executor()
    await bench.subscribe()
    release = asyncio.Event()
    bench.outbound.hangs(URL, release)
    await bench.publish()
    await bench.publish()  # claimed ahead
    await bench.until(lambda: executor._attempts.held == 2)
    asked = bench.trouble.calls["claim"]
    for _ in range(10):
        await bench.publish()
    assert (await bench.states())["pending"] == 10
    assert bench.trouble.calls["claim"] == asked
    release.set()
    await bench.until_states(delivered=12)
    bench.check_idle()


async def test_a_busy_endpoint_keeps_nobody_else_waiting(bench: Bench) -> None:
    await bench.executor()
    await bench.subscribe()
    await bench.subscribe(OTHER)
    release = asyncio.Event()
    bench.outbound.hangs(URL, release)
    for _ in range(10):
        await bench.publish()
    await bench.until(lambda: sum(post.url == OTHER for post in bench.outbound.posts) == 10)
    assert sum(post.url == URL for post in bench.outbound.posts) == 1
    release.set()
    await bench.until_states(delivered=20)
    bench.check_idle()


async def test_what_another_process_leaves_is_found_under_a_steady_load(bench: Bench) -> None:
    await bench.executor()
    await bench.until(lambda: bench.trouble.calls["claim"] == 1)  # of the start
    await bench.subscribe()
    subscription_id = await bench.subscribe(OTHER, topic=b"other")
    body = Body.of(b"left behind")
    notification = Notification("msg_left", b"other", "text/plain", body.sha256, body.size, None)
    publication = Publication(notification, b"left behind", [subscription_id])
    await bench.trouble.inner.accept(publication, now=bench.clock.moment)
    async with asyncio.timeout(20):
        while not any(post.url == OTHER for post in bench.outbound.posts):
            await (await bench.publish()).finished()
