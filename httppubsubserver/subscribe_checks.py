"""May this key subscribe to that? Where it takes thought, it is thought about in a thread, and within a budget.

Whether a permitted glob contains the one that is asked for is mostly told in microseconds, but globs can be made for
which it takes a good part of a second, and 10,000 of them may be asked for at once (protocol/containment.py has the
bound of one). So nothing but exact topics is decided in the event loop; one thread decides for all, a moment for each
owner in turn. Each owner may have few requests in its line, and whoever has used up its time has to wait. What was
permitted is remembered, for renewals. Reading many patterns takes time, too: it is done in the event loop, one slice at
a time of all that is read, and on the same account.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from httppubsubclient.protocol.errors import QuotaExceeded, Unavailable
from httppubsubclient.protocol.messages import SubscribeRequest
from httppubsubclient.protocol.patterns import Pattern
from httppubsubclient.protocol.permissions import Permissions
from httppubsubclient.protocol.token_bucket import Rate
from httppubsubserver.auth import Principal
from httppubsubserver.quotas import Buckets, monotonic_microseconds
from httppubsubserver.turns import Turns

__all__ = ["SubscribeChecks"]

_INLINE_TOPICS: Final = 4
"""Exact topics up to this number are matched at once."""
_REMEMBERED: Final = 8192
_IN_LINE: Final = 32
_IN_LINE_PER_OWNER: Final = 4
_MAX_SECONDS: Final = 5.0
"""Of one request."""
_BUDGET: Final = Rate(per_second=250_000, burst=5_000_000)
"""Of one owner: microseconds of thought."""

_TURN_SECONDS: Final = 0.02
"""Of the thread, for one owner; a single pattern may take longer."""
_SLICE: Final = 1024
"""Characters that are read in one turn of the event loop; the worst patterns take 2 microseconds for each."""

_Thought = tuple[int, float, Exception | None]
"""How many patterns were looked at, the seconds that it took, and what is wrong."""
_Question = tuple[tuple[str, ...] | None, Pattern]


class SubscribeChecks:
    """Decides what keys may subscribe to. `seconds` is the clock of the thread's own work."""

    def __init__(
        self,
        *,
        clock: Callable[[], int] = monotonic_microseconds,
        seconds: Callable[[], float] = time.thread_time,
    ) -> None:
        self._seconds = seconds
        self._budgets = Buckets(clock)
        self._permitted: OrderedDict[_Question, None] = OrderedDict()
        self._in_line: dict[str, int] = {}
        self._thinking = Turns()
        self._deciding: set[asyncio.Task[None]] = set()
        self._abandoned: set[asyncio.Task[None] | None] = set()
        self._reading = Turns()
        self._thread: ThreadPoolExecutor | None = None

    async def check(self, principal: Principal, requests: Sequence[SubscribeRequest]) -> None:
        """Raises `Forbidden`, which names the first pattern that is too much, also for what shall last for ever;
        `QuotaExceeded` for an owner that asks for too much thought, `Unavailable` when too many do."""
        if any(request.lease_seconds == 0 for request in requests):
            principal.check_permanent()
        if principal.permissions.subscribe is not None:
            await self._check(principal.owner or "", principal.permissions, [request.pattern for request in requests])

    async def _check(self, owner: str, permissions: Permissions, patterns: Sequence[Pattern]) -> None:
        open_questions = [pattern for pattern in patterns if not self._is_permitted((permissions.subscribe, pattern))]
        if len(open_questions) <= _INLINE_TOPICS and all(pattern.kind == "exact" for pattern in open_questions):
            for pattern in open_questions:
                permissions.check_subscribe(pattern)
            return
        self._take_place(owner)
        # A task of its own: the thread cannot be interrupted when nobody waits for it any more.
        deciding = asyncio.create_task(self._decide(owner, permissions, open_questions))
        self._deciding.add(deciding)
        deciding.add_done_callback(self._decided)
        try:
            await asyncio.shield(deciding)
        except asyncio.CancelledError:
            self._abandoned.add(deciding)
            raise
        self._remember(permissions, open_questions)

    async def go_through(self, principal: Principal, steps: Iterator[int]) -> None:
        """Take all `steps`, each of which reads something and yields how many characters it had. Raises what they
        raise, and `QuotaExceeded` when the owner has used up its time."""
        if not self._read_slice(principal.owner, steps):
            return
        while True:
            async with self._reading.of(principal.owner or ""):
                if not self._read_slice(principal.owner, steps):
                    return
                await asyncio.sleep(0)  # within its turn: no other slice follows before others have done something

    def _read_slice(self, owner: str | None, steps: Iterator[int]) -> bool:
        """Whether there may be more."""
        if owner is not None:
            self._check_budget(owner)
        began, read = self._seconds(), 0
        try:
            for size in steps:
                read += size
                if read >= _SLICE:
                    return True
            return False
        finally:
            if owner is not None:
                self._charge(owner, self._seconds() - began)

    def close(self) -> None:
        """Let the thread end; what it is at is not waited for."""
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)
            self._thread = None

    def _spawn(
        self, permissions: Permissions, patterns: Sequence[Pattern], most_seconds: float
    ) -> asyncio.Future[_Thought]:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="permissions")
        return asyncio.get_running_loop().run_in_executor(
            self._thread, self._think, permissions, patterns, most_seconds
        )

    async def _decide(self, owner: str, permissions: Permissions, patterns: Sequence[Pattern]) -> None:
        """Turn by turn. Raises what is wrong with the patterns."""
        at, spent = 0, 0.0
        try:
            while at < len(patterns) and asyncio.current_task() not in self._abandoned:
                async with self._thinking.of(owner):
                    looked_at, seconds, fault = await self._spawn(permissions, patterns[at:], _MAX_SECONDS - spent)
                self._charge(owner, seconds)
                if fault is not None:
                    raise fault
                at += looked_at
                spent += seconds
        finally:
            self._in_line[owner] -= 1
            if not self._in_line[owner]:
                del self._in_line[owner]

    def _decided(self, deciding: asyncio.Task[None]) -> None:
        self._deciding.discard(deciding)
        self._abandoned.discard(deciding)
        if not deciding.cancelled():
            deciding.exception()  # seen, also when nobody waits for it any more

    def _think(self, permissions: Permissions, patterns: Sequence[Pattern], most_seconds: float) -> _Thought:
        """In the thread."""
        began = self._seconds()
        fault: Exception | None = None
        looked_at = 0
        try:
            for pattern in patterns:
                seconds = self._seconds() - began
                if seconds > most_seconds:
                    fault = QuotaExceeded(
                        "these patterns are too many, and too intricate, to be compared at once with what may be "
                        "subscribed to: ask for fewer at a time",
                        retry_after_seconds=_MAX_SECONDS,
                    )
                    break
                if looked_at and seconds > _TURN_SECONDS:
                    break
                permissions.check_subscribe(pattern)
                looked_at += 1
        except Exception as error:
            fault = error
        return looked_at, self._seconds() - began, fault

    def _take_place(self, owner: str) -> None:
        self._check_budget(owner)
        if self._in_line.get(owner, 0) >= _IN_LINE_PER_OWNER:
            raise QuotaExceeded("this key has enough requests under way whose patterns are compared")
        if sum(self._in_line.values()) >= _IN_LINE:
            raise Unavailable("too many patterns are being compared with permissions", retry_after_seconds=1)
        self._in_line[owner] = self._in_line.get(owner, 0) + 1

    def _check_budget(self, owner: str) -> None:
        asked = self._budgets.ask(owner, _BUDGET, 1)
        if not asked.allowed:
            seconds = asked.wait_microseconds / 1_000_000
            raise QuotaExceeded(
                "reading the patterns of this key, and comparing them with what it may subscribe to, has taken long; "
                f"fewer and simpler ones are quicker. Again in {seconds:.3g} s",
                retry_after_seconds=seconds,
            )

    def _charge(self, owner: str, seconds: float) -> None:
        self._budgets.charge(owner, _BUDGET, int(seconds * 1_000_000))

    def _is_permitted(self, question: _Question) -> bool:
        if question in self._permitted:
            self._permitted.move_to_end(question)
            return True
        return False

    def _remember(self, permissions: Permissions, patterns: Sequence[Pattern]) -> None:
        for pattern in patterns:
            if pattern.kind != "exact":
                self._permitted[permissions.subscribe, pattern] = None
        while len(self._permitted) > _REMEMBERED:
            self._permitted.popitem(last=False)
