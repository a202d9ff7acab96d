"""Calls that arrive while others are under way are done together next: group commit, and shared reads.

There is never more than one batch under way. A call is only ever part of a batch that began after it was made, so
what it reads is not older than itself.
"""

from __future__ import annotations

import asyncio
import copy
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

from httppubsubclient.protocol.errors import Unavailable

__all__ = ["Batches", "Failed"]

Question = TypeVar("Question")
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Failed:
    """Stands among the answers of a batch for a call that went wrong by itself."""

    error: Exception
    """What its caller gets raised."""


class Batches(Generic[Question, Answer]):
    """`await batches(question)` gives the answer that `run(questions)` has at the same place.

    What `run` raises reaches every caller of that batch. A caller that is cancelled takes nobody along: its question
    is left out if its batch has not begun, else it is answered in vain. At most `batch_size` questions make a batch,
    at most `max_waiting` wait for one; more raise `Unavailable`.
    """

    def __init__(
        self,
        run: Callable[[list[Question]], Awaitable[Sequence[Answer | Failed]]],
        *,
        batch_size: int,
        max_waiting: int,
    ) -> None:
        self._run = run
        self._batch_size = batch_size
        self._max_waiting = max_waiting
        self._waiting: deque[tuple[Question, asyncio.Future[Answer]]] = deque()
        self._draining: asyncio.Task[None] | None = None
        self._closed = False

    async def __call__(self, question: Question) -> Answer:
        if self._closed:
            raise Unavailable("the store is closed")
        if len(self._waiting) >= self._max_waiting:
            raise Unavailable("too many calls are waiting for the database", retry_after_seconds=1)
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[Answer] = loop.create_future()
        self._waiting.append((question, answered))
        if self._draining is None:
            self._draining = loop.create_task(self._drain())
        return await answered

    async def close(self) -> None:
        """Take no more calls and answer those that are waiting."""
        self._closed = True
        if self._draining is not None:
            await asyncio.wait({self._draining})

    async def _drain(self) -> None:
        try:
            while self._waiting:
                taken = list(islice(self._waiting, self._batch_size))
                for _ in taken:
                    self._waiting.popleft()
                await self._answer([call for call in taken if not call[1].done()])
        finally:
            self._draining = None
            # Nothing waits here unless this task was cancelled, which only the end of its event loop does.
            for _, answered in self._waiting:
                answered.cancel()
            self._waiting.clear()

    async def _answer(self, calls: list[tuple[Question, asyncio.Future[Answer]]]) -> None:
        if not calls:
            return
        try:
            answers = await self._run([question for question, _ in calls])
        except Exception as error:
            # Each caller raises its own copy: a traceback grows with every frame that an exception passes through.
            answers = [Failed(copy.copy(error)) for _ in calls]
        except BaseException:
            for _, answered in calls:
                answered.cancel()
            raise
        for (_, answered), answer in zip(calls, answers, strict=True):
            if answered.done():
                continue
            if isinstance(answer, Failed):
                answered.set_exception(answer.error)
            else:
                answered.set_result(answer)
