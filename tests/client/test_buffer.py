"""buffer.py: bounded, closable, and nothing is lost to a cancelled task."""

from __future__ import annotations

import asyncio

import pytest

from httppubsubclient.buffer import Buffer, Closed, Limits

LIMITS = Limits(messages=3, memory_bytes=100, spooled_bytes=1000, spool_bytes=50)


def buffer(limits: Limits = LIMITS) -> Buffer[bytes]:
    return Buffer(limits, size_of=len)


async def test_items_come_out_in_the_order_they_went_in() -> None:
    box = buffer()
    assert [box.put(item) for item in (b"1", b"2", b"3")] == [True] * 3
    assert [await box.get() for _ in range(3)] == [b"1", b"2", b"3"]


@pytest.mark.parametrize(
    ("sizes", "taken"),
    [
        ([1, 1, 1, 1], [True, True, True, False]),  # messages
        ([50, 50, 1], [True, True, False]),  # bytes in memory
        ([40, 600, 600, 40], [True, True, False, True]),  # bytes in files count apart
        ([5000, 1], [True, True]),  # an empty buffer takes any one item
        ([0, 5000], [True, False]),
    ],
)
async def test_it_is_full_by_messages_by_memory_and_by_spooled_bytes(sizes: list[int], taken: list[bool]) -> None:
    box = buffer()
    assert [box.put(bytes(size)) for size in sizes] == taken


async def test_taking_an_item_makes_room() -> None:
    box = buffer()
    for _ in range(3):
        box.put(b"x")
    assert not box.fits(1)
    await box.get()
    assert box.put(b"y")


async def test_a_waiting_get_is_given_the_next_item() -> None:
    box = buffer()
    waiting = asyncio.create_task(box.get())
    await asyncio.sleep(0)
    box.put(b"x")
    assert await waiting == b"x"


async def test_a_cancelled_get_takes_nothing_with_it() -> None:
    box = buffer()
    waiting = asyncio.create_task(box.get())
    await asyncio.sleep(0)
    box.put(b"x")
    waiting.cancel()  # after it was woken, before it ran
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await box.get() == b"x"


async def test_a_get_that_is_cancelled_when_woken_passes_the_item_on() -> None:
    box = buffer()
    first, second = (asyncio.create_task(box.get()) for _ in range(2))
    await asyncio.sleep(0)
    box.put(b"x")
    first.cancel()
    assert await second == b"x"


async def test_a_get_that_was_cancelled_before_the_item_came_is_passed_over() -> None:
    box = buffer()
    first, second = (asyncio.create_task(box.get()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    box.put(b"x")
    assert await second == b"x"
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_each_item_goes_to_one_of_many_takers_whoever_is_cancelled_meanwhile() -> None:
    box: Buffer[bytes] = buffer(Limits(messages=1000, memory_bytes=10**6, spooled_bytes=0, spool_bytes=10**6))
    got: list[bytes] = []

    async def take() -> None:
        while True:
            got.append(await box.get())

    tasks = [asyncio.create_task(take()) for _ in range(20)]
    for number in range(200):
        box.put(b"%d" % number)
        if number % 10 == 0:
            tasks[number // 10].cancel()
        if number % 3 == 0:
            await asyncio.sleep(0)
    rest = [await box.get() for _ in range(len(box))]
    assert sorted(got + rest) == sorted(b"%d" % number for number in range(200))
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_closing_ends_all_that_wait_and_all_that_come() -> None:
    box = buffer()
    waiting = [asyncio.create_task(box.get()) for _ in range(3)]
    await asyncio.sleep(0)
    box.close()
    for task in waiting:
        with pytest.raises(Closed):
            await task
    with pytest.raises(Closed):
        await box.get()
    assert not box.put(b"x")
    box.close()


async def test_closing_drops_what_waits() -> None:
    box = buffer()
    box.put(b"x")
    box.close()
    with pytest.raises(Closed):
        await box.get()
