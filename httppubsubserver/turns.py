"""A lock for which owners stand in line, not requests: whoever asks for much waits behind his own."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

__all__ = ["Turns"]


class Turns:
    """One turn at a time; owners in rotation, and the turns of one owner in the order in which they were asked for.

    Work that is long takes many short turns. It is not bounded here how many wait.
    """

    def __init__(self) -> None:
        self._taken = False
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        """Of each owner that waits; the one whose turn is next stands first. None is empty."""

    @asynccontextmanager
    async def of(self, owner: str) -> AsyncIterator[None]:
        """A turn of this owner."""
        if self._taken:
            await self._wait(owner)
        self._taken = True
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, owner: str) -> None:
        called = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(owner, deque()).append(called)
        try:
            await called
        except asyncio.CancelledError:
            if called.done() and not called.cancelled():
                self._pass_on()  # it was called, and went away before it came
            else:
                self._leave(owner, called)
            raise

    def _leave(self, owner: str, called: asyncio.Future[None]) -> None:
        line = self._waiting[owner]
        line.remove(called)
        if not line:
            del self._waiting[owner]

    def _pass_on(self) -> None:
        for owner, line in self._waiting.items():
            # Whoever was cancelled is still in line until its task runs.
            called = next((each for each in line if not each.done()), None)
            if called is not None:
                self._waiting.move_to_end(owner)
                self._leave(owner, called)
                called.set_result(None)
                return
        self._taken = False
