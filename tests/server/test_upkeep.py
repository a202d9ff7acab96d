"""What a broadcaster does now and then: the clock, what was asked for at large, retention; and that it never ends."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import cast

import pytest

from httppubsubclient.protocol.errors import Unavailable
from httppubsubserver.stores.durable import DurableStore, Pruned
from httppubsubserver.upkeep import Periods, Retention, Upkeep

SECOND = 1_000_000
NOW = 1_800_000_000 * SECOND
NEVER = 3600.0
SOON = 0.001


class Store:
    """Counts what is asked of it; each call may have trouble."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.trouble: dict[str, Exception] = {}
        self.slices = 0
        self.moved = 0
        self.pruned: list[tuple[int, int, int, int | None]] = []
        self.changed = asyncio.Condition()

    async def notice_clock(self, *, now: int) -> int:
        await self._called("notice_clock")
        return self.moved

    async def work_off(self, *, now: int) -> int:
        await self._called("work_off")
        self.slices = max(self.slices - 1, -1)
        return 0 if self.slices < 0 else 500

    async def prune(self, *, now: int) -> int:
        await self._called("prune")
        return 0

    async def prune_messages(
        self, *, now: int, bodies_before: int, messages_before: int, max_bytes: int | None
    ) -> Pruned:
        self.pruned.append((now, bodies_before, messages_before, max_bytes))
        await self._called("prune_messages")
        return Pruned(1, 0)

    async def _called(self, name: str) -> None:
        async with self.changed:
            self.calls[name] += 1
            self.changed.notify_all()
        if name in self.trouble:
            raise self.trouble[name]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10), self.changed:
            await self.changed.wait_for(condition)


class Due:
    """Counts how often it was told."""

    def __init__(self) -> None:
        self.told = 0

    def __call__(self) -> None:
        self.told += 1


@asynccontextmanager
async def running(store: Store, periods: Periods, due: Callable[[], object] = lambda: None) -> AsyncIterator[Upkeep]:
    upkeep = Upkeep(
        cast(DurableStore, store),
        Retention(7, 30, 1000),
        now=lambda: NOW,
        uniform=lambda: 0.5,
        due=due,
        periods=periods,
    )
    task = asyncio.create_task(upkeep.run())
    try:
        yield upkeep
    finally:
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()


async def test_the_clock_is_read_at_once_and_again_and_again() -> None:
    store, due = Store(), Due()
    async with running(store, Periods(clock=SOON, work=NEVER, prune=NEVER), due):
        await store.until(lambda: store.calls["notice_clock"] >= 3)
    assert due.told == 0
    assert store.calls["prune"] == 0


async def test_a_clock_that_was_set_back_is_told(caplog: pytest.LogCaptureFixture) -> None:
    store, due = Store(), Due()
    store.moved = 7
    async with running(store, Periods(clock=SOON, work=NEVER, prune=NEVER), due):
        await store.until(lambda: store.calls["notice_clock"] >= 2)
    assert due.told >= 1
    assert "set back: 7 moments" in caplog.text


async def test_work_goes_on_at_once_until_none_is_left() -> None:
    store, due = Store(), Due()
    store.slices = 3
    async with running(store, Periods(clock=NEVER, work=NEVER, prune=NEVER), due):
        await store.until(lambda: store.calls["work_off"] == 4)
    assert due.told == 3, "each slice may have made something due"


async def test_work_is_looked_for_every_few_seconds() -> None:
    store = Store()
    async with running(store, Periods(clock=NEVER, work=SOON, prune=NEVER)):
        await store.until(lambda: store.calls["work_off"] >= 3)


async def test_waking_begins_at_once_and_a_wake_is_never_lost() -> None:
    store = Store()
    async with running(store, Periods(clock=NEVER, work=NEVER, prune=NEVER)) as upkeep:
        for rounds in range(1, 5):
            await store.until(lambda rounds=rounds: store.calls["work_off"] == rounds)  # type: ignore[misc]
            upkeep.wake()  # while the call of this round is still under way
        await store.until(lambda: store.calls["work_off"] == 5)


async def test_retention_is_told_what_the_settings_say() -> None:
    store = Store()
    async with running(store, Periods(clock=NEVER, work=NEVER, prune=SOON)):
        await store.until(lambda: store.calls["prune_messages"] >= 2)
    assert store.calls["prune"] >= 2
    assert set(store.pruned) == {(NOW, NOW - 7 * SECOND, NOW - 30 * SECOND, 1000)}


@pytest.mark.parametrize(
    ("trouble", "level"), [(Unavailable("the disk is full"), logging.WARNING), (ZeroDivisionError(), logging.ERROR)]
)
@pytest.mark.parametrize("name", ["notice_clock", "work_off", "prune", "prune_messages"])
async def test_trouble_is_logged_once_and_ends_nothing(
    name: str, trouble: Exception, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "httppubsub.server.upkeep")
    store = Store()
    store.trouble[name] = trouble
    async with running(store, Periods(SOON, SOON, SOON)):
        await store.until(lambda: min(store.calls[each] for each in ("notice_clock", "work_off", "prune")) >= 5)
        assert [record.levelno for record in caplog.records if record.levelno >= logging.WARNING] == [level]
        store.trouble.clear()
        after = store.calls[name] + 2
        await store.until(lambda: store.calls[name] >= after)
    assert [record.message.partition(" works")[2] for record in caplog.records].count(" again") == 1


async def test_a_slow_pruning_holds_nothing_up() -> None:
    class Slow(Store):
        async def prune_messages(
            self, *, now: int, bodies_before: int, messages_before: int, max_bytes: int | None
        ) -> Pruned:
            await self._called("prune_messages")
            await asyncio.Event().wait()
            raise AssertionError

    store = Slow()
    async with running(store, Periods(SOON, SOON, SOON)):
        await store.until(lambda: store.calls["prune_messages"] == 1)
        before = store.calls.copy()
        await store.until(lambda: all(store.calls[each] > before[each] + 2 for each in ("notice_clock", "work_off")))
