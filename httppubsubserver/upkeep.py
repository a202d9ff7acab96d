"""What a broadcaster does now and then: read the clock for the store, work off what was asked for at large, prune.

Three loops in one task, so that none waits for another: pruning a large database takes long. Each goes on by itself
after trouble with the database, and logs it once. Other processes of the same database do the same; the store sees to
it that they share the work.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final, NamedTuple

from httppubsubclient.protocol.errors import PubSubError
from httppubsubserver.stores.durable import DurableStore

__all__ = ["Periods", "Retention", "Upkeep"]

_LOG = logging.getLogger("httppubsub.server.upkeep")

_MICROSECONDS: Final = 1_000_000


class Retention(NamedTuple):
    """What is kept of messages that nobody is owed any more."""

    bodies_seconds: int
    """After its acceptance a message has its body for so long."""
    messages_seconds: int
    """And is known for so long, with its deliveries."""
    max_bytes: int | None
    """While the database uses more, less is kept; None: whatever it uses."""


class Periods(NamedTuple):
    """How often something is done, in seconds."""

    clock: float = 30.0
    work: float = 2.0
    prune: float = 30.0
    """On average: it is spread, so that several processes take turns."""


class Upkeep:
    """`now` gives microseconds since 1970, `uniform` random numbers in [0, 1).

    `due` is called when deliveries may have become due by this: after each slice of work, and when moments were moved.
    """

    def __init__(
        self,
        store: DurableStore,
        retention: Retention,
        *,
        now: Callable[[], int],
        uniform: Callable[[], float],
        due: Callable[[], object],
        periods: Periods | None = None,
    ) -> None:
        self._store = store
        self._retention = retention
        self._now = now
        self._uniform = uniform
        self._due = due
        self._periods = periods or Periods()
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Something was asked for at large: begin with it at once."""
        self._woken.set()

    async def run(self) -> None:
        """Until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._notice_clock())
            group.create_task(self._work_off())
            group.create_task(self._prune())

    async def _notice_clock(self) -> None:
        job = _Job("reading the clock for the database")
        while True:
            await job.run(self._notice_clock_once)
            await asyncio.sleep(self._periods.clock)

    async def _work_off(self) -> None:
        job = _Job("working off replays and ended subscriptions")
        while True:
            self._woken.clear()
            await job.run(self._work_off_all)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._periods.work):
                    await self._woken.wait()

    async def _prune(self) -> None:
        job = _Job("pruning")
        while True:
            await asyncio.sleep(self._periods.prune * (0.5 + self._uniform()))
            await job.run(self._prune_once)

    async def _notice_clock_once(self) -> None:
        now = self._now()
        if moved := await self._store.notice_clock(now=now):
            _LOG.warning("the clock was set back: %d moments in the database were moved with it", moved)
            self._due()

    async def _work_off_all(self) -> None:
        while await self._store.work_off(now=self._now()):
            self._due()

    async def _prune_once(self) -> None:
        now = self._now()
        retention = self._retention
        await self._store.prune(now=now)
        pruned = await self._store.prune_messages(
            now=now,
            bodies_before=now - retention.bodies_seconds * _MICROSECONDS,
            messages_before=now - retention.messages_seconds * _MICROSECONDS,
            max_bytes=retention.max_bytes,
        )
        if pruned.bodies or pruned.messages:
            _LOG.info("pruned %d bodies and %d messages", pruned.bodies, pruned.messages)


class _Job:
    """One thing that is tried again and again, whatever happens."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._failing = False

    async def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Once; trouble is logged when it begins and when it ends."""
        try:
            await work()
        except PubSubError as error:
            if not self._failing:
                _LOG.warning("%s fails, and is tried again and again: %s", self._name, error.detail)
            self._failing = True
        except Exception:
            # A fault of ours: without pruning the disk would fill up, so nothing of this may end.
            if not self._failing:
                _LOG.exception("%s fails in an unexpected way, and is tried again and again", self._name)
            self._failing = True
        else:
            if self._failing:
                _LOG.info("%s works again", self._name)
            self._failing = False
