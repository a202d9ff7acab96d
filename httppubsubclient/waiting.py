"""Waiting with a limit that costs nothing when there is nothing to wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Generator
from typing import Any, Generic, TypeVar

__all__ = ["within"]

T = TypeVar("T")


async def within(seconds: float, awaitable: Awaitable[T]) -> T:
    """`await awaitable`, at most for so long. Raises `TimeoutError`.

    A server mostly has the body of a small request at hand when it is asked for it, and a timeout that is set up and
    taken down again would cost more than all the rest of reading it. So the first step is made without one.
    """
    steps = awaitable.__await__()
    try:
        waits_for = next(steps)
    except StopIteration as end:
        answer: T = end.value
        return answer
    async with asyncio.timeout(seconds):
        return await _Begun(steps, waits_for)


class _Begun(Generic[T]):
    """An awaitable whose first step was made already, and yielded `waits_for`."""

    def __init__(self, steps: Generator[Any, Any, T], waits_for: Any) -> None:
        self._steps = steps
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, T]:
        waits_for = self._waits_for
        while True:
            try:
                try:
                    sent = yield waits_for
                except BaseException as error:
                    waits_for = self._steps.throw(error)
                else:
                    waits_for = self._steps.send(sent)
            except StopIteration as end:
                answer: T = end.value
                return answer
