"""Work that goes on when whoever asked for it has been answered, or has gone away."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["Background"]

T = TypeVar("T")


class Background:
    """Tasks that somebody has to wait for in the end."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._never_cancelled: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        """How many are under way."""
        return len(self._tasks)

    def spawn(self, work: Coroutine[Any, Any, T], *, cancelled_at_the_end: bool = True) -> asyncio.Task[T]:
        """Run `work`. What is short, and would leave something behind when it is cancelled, is waited for instead."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        if not cancelled_at_the_end:
            self._never_cancelled.add(task)
            task.add_done_callback(self._never_cancelled.discard)
        return task

    async def drained(self) -> None:
        """Wait for those that are under way now."""
        if self._tasks:
            await asyncio.wait(set(self._tasks))

    async def abort(self) -> None:
        """Cancel what may be, and wait for all."""
        for task in self._tasks - self._never_cancelled:
            task.cancel()
        await self.drained()
