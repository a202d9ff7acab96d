"""Large bodies come back from the store whole, once for all who ask, and leave no file behind."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from httppubsubclient.bodies import Body
from httppubsubclient.protocol.errors import NotFound, PubSubError, Unavailable
from httppubsubclient.protocol.messages import Notification
from httppubsubserver.delivery.stored_bodies import StoredBodies
from tests.server.conftest import ScriptedOutbound
from tests.server.durable import TOPIC, Bench, open_bench

SIZE = 600_000


@pytest.fixture
async def bench(tmp_path: Path, outbound: ScriptedOutbound) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path, outbound) as opened:
        yield opened


@pytest.fixture
def bodies(bench: Bench, tmp_path: Path) -> StoredBodies:
    return StoredBodies(bench.store, directory=str(tmp_path))


async def kept(bench: Bench, number: int = 1) -> Notification:
    """A large message that was accepted."""
    body = Body.of(bytes([number]) * SIZE)
    message_id = f"large_{number}"
    if not await bench.targets():
        await bench.subscribe()
        executor = await bench.executor()
        executor.start_draining()
    await bench.publish(body, message_id=message_id)
    return Notification(message_id, TOPIC, "text/plain", body.sha256, SIZE, None)


async def read(body: Body) -> bytes:
    with body:
        return b"".join([chunk async for chunk in body.chunks()])


def files() -> int:
    return sum(" (deleted)" in os.readlink(f"/proc/self/fd/{number}") for number in numbers())


def numbers() -> list[str]:
    return [number for number in os.listdir("/proc/self/fd") if os.path.islink(f"/proc/self/fd/{number}")]


async def test_it_is_read_once_for_all_who_ask_at_the_same_time(bench: Bench, bodies: StoredBodies) -> None:
    notification = await kept(bench)
    opened = await asyncio.gather(*(bodies.open(notification) for _ in range(10)))
    assert bench.trouble.calls["read_chunk"] == 3
    for body in opened:
        assert await read(body) == b"\x01" * SIZE
    bodies.close()


async def test_what_was_given_out_stays_good_when_it_is_kept_no_more(bench: Bench, bodies: StoredBodies) -> None:
    body = await bodies.open(await kept(bench))
    bodies.close()
    assert await read(body) == b"\x01" * SIZE


async def test_only_a_few_files_are_kept(bench: Bench, bodies: StoredBodies) -> None:
    before = files()
    for number in range(1, 8):
        (await bodies.open(await kept(bench, number))).close()
    assert files() == before + 4
    bodies.close()
    assert files() == before


async def test_trouble_of_the_store_leaves_nothing_behind_and_passes(bench: Bench, bodies: StoredBodies) -> None:
    notification = await kept(bench)
    before = files()
    bench.trouble.fail("read_chunk")
    ended = await asyncio.gather(*(bodies.open(notification) for _ in range(3)), return_exceptions=True)
    assert all(isinstance(each, Unavailable) for each in ended)
    assert files() == before
    assert not bodies._reading
    bench.trouble.heal()
    assert await read(await bodies.open(notification)) == b"\x01" * SIZE
    bodies.close()


async def test_one_that_is_cancelled_takes_nobody_along(bench: Bench, bodies: StoredBodies) -> None:
    notification = await kept(bench)
    gate = bench.trouble.before["read_chunk"] = asyncio.Event()
    first = asyncio.create_task(bodies.open(notification))
    await bench.until(lambda: bench.trouble.calls["read_chunk"] == 1)
    second = asyncio.create_task(bodies.open(notification))
    first.cancel()
    await asyncio.wait({first})
    gate.set()
    assert await read(await second) == b"\x01" * SIZE
    assert not bodies._reading
    bodies.close()


@pytest.mark.parametrize("change", ["gone", "another", "longer"])
async def test_a_body_that_is_not_the_one_that_was_accepted_is_never_sent(
    bench: Bench, bodies: StoredBodies, change: str
) -> None:
    notification = await kept(bench)
    if change == "gone":
        notification = notification._replace(message_id="unknown")
    elif change == "another":
        notification = notification._replace(sha256=bytes(32))
    else:
        notification = notification._replace(size=SIZE - 1)
    before = files()
    with pytest.raises(NotFound if change != "longer" else PubSubError):
        await bodies.open(notification)
    assert files() == before
