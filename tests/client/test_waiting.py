from __future__ import annotations

import asyncio

import pytest

from httppubsubclient.waiting import within


async def at_once() -> str:
    return "here"


async def later(event: asyncio.Event) -> str:
    await event.wait()
    await asyncio.sleep(0)
    return "there"


async def test_what_is_there_is_returned() -> None:
    assert await within(0, at_once()) == "here"


async def test_what_comes_in_time_is_returned() -> None:
    event = asyncio.Event()
    asyncio.get_running_loop().call_soon(event.set)
    assert await within(10, later(event)) == "there"


async def test_what_does_not_come_is_a_timeout_and_is_cancelled() -> None:
    cancelled = False

    async def never() -> None:
        nonlocal cancelled
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled = True
            raise

    with pytest.raises(TimeoutError):
        await within(0, never())
    assert cancelled


async def test_an_error_passes_through_before_and_after_the_first_step() -> None:
    async def fails(first: bool) -> None:
        if not first:
            await asyncio.sleep(0)
        raise KeyError("x")

    for first in (True, False):
        with pytest.raises(KeyError):
            await within(10, fails(first))


async def test_a_cancelled_caller_cancels_what_it_waits_for() -> None:
    event = asyncio.Event()
    task = asyncio.create_task(within(10, later(event)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_what_outlives_its_cancellation_is_still_waited_for() -> None:
    event = asyncio.Event()

    async def stubborn() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await event.wait()
        return "finished"

    task = asyncio.create_task(within(10, stubborn()))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    event.set()
    assert await task == "finished"
