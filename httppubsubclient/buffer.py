"""A bounded queue that can be closed: what waits between a delivery and its consumer.

It is bounded three ways (`Limits`) and never waits on the putting side: who offers is told at once whether there is
room. On the taking side a cancelled `get` takes nothing with it, and closing wakes everyone who waits.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["Buffer", "Closed", "Limits", "Room"]

T = TypeVar("T")


class Closed(Exception):
    """Nothing will come out of this buffer any more."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much may wait at once."""

    messages: int
    memory_bytes: int
    spooled_bytes: int
    spool_bytes: int
    """A body of more than this counts as spooled, any other as in memory."""


class Room:
    """Counts bodies against `Limits`. When empty it takes any one body, however large."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._messages = 0
        self._memory_bytes = 0
        self._spooled_bytes = 0

    def fits(self, size: int) -> bool:
        """Whether one more body of `size` bytes may come in."""
        limits = self._limits
        if self._messages == 0:
            return True
        if self._messages >= limits.messages:
            return False
        if size > limits.spool_bytes:
            return self._spooled_bytes + size <= limits.spooled_bytes
        return self._memory_bytes + size <= limits.memory_bytes

    def take(self, size: int) -> None:
        """Count one body in."""
        self._count(1, size)

    def give_back(self, size: int) -> None:
        """Count one body out."""
        self._count(-1, size)

    def _count(self, sign: int, size: int) -> None:
        self._messages += sign
        if size > self._limits.spool_bytes:
            self._spooled_bytes += sign * size
        else:
            self._memory_bytes += sign * size


class Buffer(Generic[T]):
    """First in, first out; any number of tasks may `get` at the same time, each item goes to one of them."""

    def __init__(self, limits: Limits, *, size_of: Callable[[T], int]) -> None:
        self._room = Room(limits)
        self._size_of = size_of
        self._items: deque[T] = deque()
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._closed = False

    def __len__(self) -> int:
        return len(self._items)

    def fits(self, size: int) -> bool:
        """Whether an item of `size` bytes would be taken now."""
        return not self._closed and self._room.fits(size)

    def put(self, item: T) -> bool:
        """Append; False, and nothing done, when it is full or closed."""
        size = self._size_of(item)
        if not self.fits(size):
            return False
        self._room.take(size)
        self._items.append(item)
        self._wake_one()
        return True

    async def get(self) -> T:
        """The oldest item, waiting for one if need be. Raises `Closed` once the buffer is closed."""
        while not self._items:
            if self._closed:
                raise Closed
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter.cancelled():
                    with contextlib.suppress(ValueError):
                        self._waiters.remove(waiter)
                elif self._items:
                    # Woken and cancelled at once: whoever waits next takes the item instead.
                    self._wake_one()
                raise
        item = self._items.popleft()
        self._room.give_back(self._size_of(item))
        return item

    def close(self) -> None:
        """Drop what waits and end every `get`, present and future. Idempotent."""
        self._closed = True
        self._items.clear()
        while self._waiters:
            self._wake_one()

    def _wake_one(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
