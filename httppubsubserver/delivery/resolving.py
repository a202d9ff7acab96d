"""Names to addresses, as the system resolves them, in threads of their own: a name that hangs is nobody else's.

`getaddrinfo` cannot be interrupted, and takes half a minute when no server answers. Whoever names our callbacks decides
which servers are asked, so names compete for the threads as callbacks do for connections:

- one name is looked up once at a time, however many ask for it; nothing is remembered of the answer;
- a name that was answered promptly the last time is *prompt*, any other one a *stranger*; strangers leave half of the
  threads to the prompt;
- names that end in the same two labels have a bound of their own, so that one zone is not everybody's trouble;
- what waits does so in the order of zones, bounded in number; who does not wait any more leaves the line.

A thread that hangs ends with its lookup and keeps neither a stop nor the end of the process waiting.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Awaitable, Callable
from queue import SimpleQueue
from typing import Final, TypeAlias

__all__ = ["Resolver", "SystemResolver", "system_addresses"]

_LOG = logging.getLogger("httppubsub.server.outbound")

Resolver: TypeAlias = Callable[[str, int], Awaitable[list[str]]]
"""Host and port to the host's addresses as text, in the order in which they are to be tried. Raises `OSError`."""

MAX_THREADS: Final = 64
MAX_STRANGERS: Final = 32
"""Of the threads, with names that are not known to be answered promptly."""
MAX_STRANGERS_OF_ZONE: Final = 4
MAX_OF_ZONE: Final = 16
MAX_WAITING: Final = 10_000
"""Names that wait for a thread; one more has failed."""
MAX_PROMPT: Final = 10_000
"""Names known to be prompt; the one that was asked for least recently goes first."""
PROMPT_SECONDS: Final = 1.0


def system_addresses(host: str) -> list[str]:
    """What `getaddrinfo` says: hosts file, DNS, whatever the system is set to. Blocks. Raises `OSError`."""
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    except UnicodeError:
        # From the codec for names with other letters; a canonical host has none, a label may be too long all the same.
        raise socket.gaierror(socket.EAI_NONAME, "this is no host name") from None
    return list(dict.fromkeys(str(where[0]) for _, _, _, _, where in found))


class _Lookup:
    """One name that is waiting for a thread, or has one."""

    __slots__ = ("began_at", "host", "stranger", "waiters", "zone")

    def __init__(self, host: str, *, stranger: bool) -> None:
        self.host = host
        self.zone = ".".join(host.rsplit(".", 2)[-2:])
        self.stranger = stranger
        self.began_at = 0.0
        self.waiters: list[asyncio.Future[list[str]]] = []


class SystemResolver:
    """A `Resolver` for one event loop. `look_up` stands in for `system_addresses`; it is called in a thread."""

    def __init__(self, look_up: Callable[[str], list[str]] | None = None) -> None:
        self._look_up = look_up
        self._jobs: SimpleQueue[_Lookup | None] = SimpleQueue()
        self._threads = 0
        self._lookups: dict[str, _Lookup] = {}
        """Those that wait and those that run."""
        self._lines: dict[bool, OrderedDict[str, deque[_Lookup]]] = {False: OrderedDict(), True: OrderedDict()}
        """Strangers and others, by zone; the zone whose turn is next comes first."""
        self._waiting = 0
        self._running: Counter[tuple[str, bool]] = Counter()
        """By zone, strangers and others."""
        self._busy = 0
        self._strangers = 0
        self._prompt: OrderedDict[str, None] = OrderedDict()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    async def __call__(self, host: str, port: int) -> list[str]:
        """The addresses of a host; has no deadline of its own. Raises `OSError`."""
        if self._closed:
            raise OSError(errno.ESHUTDOWN, "name resolution has been closed")
        self._loop = asyncio.get_running_loop()
        lookup = self._lookups.get(host)
        if lookup is None:
            if self._waiting >= MAX_WAITING:
                raise OSError(errno.ENOBUFS, "too many names wait to be resolved")
            lookup = self._lookups[host] = _Lookup(host, stranger=host not in self._prompt)
            self._lines[lookup.stranger].setdefault(lookup.zone, deque()).append(lookup)
            self._waiting += 1
        waiter: asyncio.Future[list[str]] = self._loop.create_future()
        lookup.waiters.append(waiter)
        self._start()
        try:
            return await waiter
        finally:
            # Only one that was given up is still among them.
            if waiter in lookup.waiters:
                lookup.waiters.remove(waiter)

    def close(self) -> None:
        """Let the threads end; who still waits gets an error."""
        self._closed = True
        for lookup in self._lookups.values():
            self._tell(lookup, OSError(errno.ESHUTDOWN, "name resolution has been closed"))
        for _ in range(self._threads):
            self._jobs.put(None)

    def _start(self) -> None:
        while self._busy < MAX_THREADS and (lookup := self._next()) is not None:
            if self._busy == self._threads:
                try:
                    # Daemons: the interpreter does not wait for them at its end.
                    threading.Thread(target=self._work, name="resolving", daemon=True).start()
                except RuntimeError:  # this machine has no room for another one
                    if not self._threads:
                        del self._lookups[lookup.host]
                        self._tell(lookup, OSError(errno.ENOBUFS, "no thread can be started"))
                        continue
                else:
                    self._threads += 1
            assert self._loop is not None
            lookup.began_at = self._loop.time()
            self._running[lookup.zone, lookup.stranger] += 1
            self._busy += 1
            self._strangers += lookup.stranger
            self._jobs.put(lookup)

    def _next(self) -> _Lookup | None:
        """Whose turn it is, if any may have it."""
        return self._next_of(stranger=False) or (
            self._next_of(stranger=True) if self._strangers < MAX_STRANGERS else None
        )

    def _next_of(self, *, stranger: bool) -> _Lookup | None:
        line = self._lines[stranger]
        bound = MAX_STRANGERS_OF_ZONE if stranger else MAX_OF_ZONE
        # Zones at their bound are passed over; there are never more of them than threads.
        for zone in list(line):
            if self._running[zone, stranger] >= bound:
                continue
            waiting = line.pop(zone)
            while waiting:
                lookup = waiting.popleft()
                self._waiting -= 1
                if lookup.waiters:
                    if waiting:
                        line[zone] = waiting
                    return lookup
                del self._lookups[lookup.host]
        return None

    def _work(self) -> None:
        """A thread."""
        while (lookup := self._jobs.get()) is not None:
            outcome: list[str] | Exception
            try:
                outcome = (self._look_up or system_addresses)(lookup.host)
            except Exception as error:
                outcome = error
            loop = self._loop
            assert loop is not None
            try:
                loop.call_soon_threadsafe(self._ended, lookup, outcome)
            except RuntimeError:  # the event loop has been closed
                return

    def _ended(self, lookup: _Lookup, outcome: list[str] | Exception) -> None:
        assert self._loop is not None
        del self._lookups[lookup.host]
        key = (lookup.zone, lookup.stranger)
        self._running[key] -= 1
        if not self._running[key]:
            del self._running[key]
        self._busy -= 1
        self._strangers -= lookup.stranger
        self._prompt.pop(lookup.host, None)
        if not isinstance(outcome, Exception) and self._loop.time() - lookup.began_at < PROMPT_SECONDS:
            self._prompt[lookup.host] = None
            if len(self._prompt) > MAX_PROMPT:
                self._prompt.popitem(last=False)
        self._tell(lookup, outcome)
        if not self._closed:
            self._start()

    @staticmethod
    def _tell(lookup: _Lookup, outcome: list[str] | Exception) -> None:
        waiters, lookup.waiters = lookup.waiters, []
        for waiter in waiters:
            if waiter.done():
                continue
            if isinstance(outcome, OSError):
                # One of its own for each: whoever raises an exception hangs its traceback on it.
                waiter.set_exception(type(outcome)(*outcome.args))
            elif isinstance(outcome, Exception):
                waiter.set_exception(outcome)
            else:
                waiter.set_result(list(outcome))
