"""The end of an executor: bounded, and what it held is somebody else's at once."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from httppubsubclient.bodies import Body, BodyWriter
from httppubsubclient.protocol.messages import SubscribeRequest
from httppubsubclient.protocol.patterns import Pattern
from httppubsubserver.broadcaster import Broadcaster
from httppubsubserver.config import ServerConfig
from httppubsubserver.stores import open_store
from httppubsubserver.stores.durable import Selection
from tests.server.conftest import NO_AUTH, ScriptedOutbound
from tests.server.durable import URL, Bench, open_bench


@pytest.fixture
async def bench(tmp_path: Path, outbound: ScriptedOutbound) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path, outbound) as opened:
        yield opened


def open_files() -> int:
    """Of bodies: they have no name any more."""
    found = 0
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            found += os.readlink(f"/proc/self/fd/{number}").endswith(" (deleted)")
    return found


async def test_draining_sees_attempts_through_and_begins_no_others(bench: Bench) -> None:
    executor = await bench.executor()
    await bench.subscribe()
    gate = asyncio.Event()
    bench.outbound.hangs(URL, gate)
    for _ in range(40):
        await bench.publish()
    await bench.outbound.until(lambda: bench.outbound.in_flight == 32)
    executor.start_draining()
    drained = asyncio.create_task(executor.drained())
    await bench.until_states(leased=32, pending=8)
    assert not drained.done()
    gate.set()
    await drained
    assert await bench.states() == {"delivered": 32, "pending": 8}
    bench.check_idle()


async def test_what_is_given_up_at_the_end_is_claimed_at_once_by_the_next(bench: Bench) -> None:
    """Not when the lease ends: the clock stands still here."""
    executor = await bench.executor()
    await bench.subscribe()
    bench.outbound.hangs(URL)
    for _ in range(100):
        await bench.publish()
    await bench.outbound.until(lambda: bench.outbound.in_flight == 32)
    await executor.close()
    assert await bench.states() == {"pending": 100}
    bench.check_idle()
    bench.outbound.replies(URL, 200)
    await bench.executor()
    await bench.until_states(delivered=100)


async def test_the_end_waits_for_a_claim_that_is_under_way(bench: Bench) -> None:
    """Its answer names leases that nobody else would know of."""
    await bench.subscribe()
    first = await bench.executor()
    first.start_draining()
    await bench.publish(executor=first)
    bench.trouble.after["claim"] = asyncio.Event()
    second = await bench.executor()
    await bench.until_states(leased=1)
    second.start_draining()
    drained = asyncio.create_task(second.drained())
    closed = asyncio.create_task(second.close())
    await bench.executor()
    bench.trouble.after.pop("claim").set()
    await asyncio.gather(drained, closed)
    await bench.until_states(delivered=1)
    assert len(bench.outbound.posts) == 1


async def test_draining_alone_waits_for_a_claim_too(bench: Bench) -> None:
    await bench.subscribe()
    first = await bench.executor()
    first.start_draining()
    await bench.publish(executor=first)
    bench.trouble.after["claim"] = asyncio.Event()
    second = await bench.executor()
    await bench.until_states(leased=1)
    second.start_draining()
    drained = asyncio.create_task(second.drained())
    bench.trouble.after.pop("claim").set()
    await drained
    assert await bench.states() == {"pending": 1}


async def test_a_store_in_trouble_does_not_hold_up_the_end(bench: Bench) -> None:
    executor = await bench.executor()
    await bench.subscribe()
    bench.outbound.hangs(URL)
    await bench.publish()
    await bench.outbound.until(lambda: bench.outbound.in_flight == 1)
    bench.trouble.fail("settle", "claim", "release", "extend", "next_due")
    await executor.close()
    await executor.drained()
    assert await bench.states() == {"leased": 1}
    bench.check_idle()


async def test_the_end_may_come_twice(bench: Bench) -> None:
    executor = await bench.executor()
    await executor.close()
    await executor.close()
    await executor.drained()


async def test_no_file_stays_open_after_large_bodies(bench: Bench) -> None:
    executor = await bench.executor()
    await bench.subscribe(schedule=(0.0, 1.0))
    bench.outbound.replies(URL, 500, 200)
    before = open_files()
    with BodyWriter(spool_bytes=0, max_bytes=10**7) as writer:
        await writer.write(b"y" * 700_000)
        body = await writer.finish()
    await (await bench.publish(body)).finished()
    await bench.until_states(pending=1)
    bench.pass_by(2)
    await bench.until_states(delivered=1)
    assert [len(post.body) for post in bench.outbound.posts] == [700_000, 700_000]
    await executor.close()
    assert open_files() == before
    bench.check_idle()


async def test_an_attempt_that_is_being_prepared_is_given_back_with_its_files(bench: Bench) -> None:
    await bench.subscribe()
    first = await bench.executor()
    first.start_draining()
    before = open_files()
    await bench.publish(Body.of(b"z" * 700_000), executor=first)
    bench.trouble.before["read_chunk"] = asyncio.Event()
    second = await bench.executor()
    await bench.until(lambda: bench.trouble.calls["read_chunk"] == 1)
    await second.close()
    assert await bench.states() == {"pending": 1}
    assert open_files() == before
    bench.check_idle()


async def open_slow_broadcaster(
    directory: Path, outbound: ScriptedOutbound, monkeypatch: pytest.MonkeyPatch
) -> tuple[Broadcaster, asyncio.Event]:
    """One with a durable subscription, and the event that its first `accept` waits for with its answer."""
    config = ServerConfig(db=f"sqlite:///{directory}/durable.sqlite3", shutdown_timeout_seconds=0.05)
    broadcaster = Broadcaster(config, secrets=NO_AUTH, outbound=outbound, uniform=lambda: 0.0)
    await broadcaster.__aenter__()
    await broadcaster.subscribe(SubscribeRequest(URL, Pattern.exact(b"t"), 3600, "durable"))
    gate, accept = asyncio.Event(), broadcaster.store.accept

    async def slowly(*arguments: object, **named: object) -> object:
        accepted = await accept(*arguments, **named)  # type: ignore[arg-type]
        outbound.changed.set()
        await gate.wait()
        return accepted

    monkeypatch.setattr(broadcaster.store, "accept", slowly)
    return broadcaster, gate


async def test_a_broadcaster_that_ends_while_a_message_is_accepted_leaves_no_lease_behind(
    tmp_path: Path, outbound: ScriptedOutbound, monkeypatch: pytest.MonkeyPatch
) -> None:
    broadcaster, gate = await open_slow_broadcaster(tmp_path, outbound, monkeypatch)
    notify = asyncio.create_task(broadcaster.notify(b"t", b"x", idempotency_key="key"))
    store = broadcaster.store
    async with asyncio.timeout(10):
        while not (await store.deliveries(Selection(), cursor=None, limit=1)).deliveries:
            await outbound.changed.wait()
        ending = asyncio.create_task(broadcaster.__aexit__(None, None, None))
        # Its time to drain passes; then what is being accepted is all that it waits for.
        while not notify.done():
            await asyncio.wait({notify, ending}, return_when=asyncio.FIRST_COMPLETED)
        assert notify.cancelled()
        assert not ending.done()
        gate.set()
        await ending
    async with open_store(f"sqlite:///{tmp_path}/durable.sqlite3") as again:
        [owed] = (await again.deliveries(Selection(), cursor=None, limit=10)).deliveries
        assert (owed.state, owed.leased_until) == ("pending", None)
