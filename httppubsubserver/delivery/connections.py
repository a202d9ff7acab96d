"""All connections of one process: the idle ones are kept for the next request, and none lasts longer than it may.

`send` takes the connection that became idle last. One timer looks at all connections a few times a second: each knows
until when what it does must be over, be it connecting, sending, waiting for an answer, reading its rest or lying idle.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Final

from httppubsubclient.protocol.errors import PubSubError
from httppubsubserver.delivery.answers import AnswerReader, AttemptFailed
from httppubsubserver.delivery.connection import Connection, Exchange
from httppubsubserver.delivery.egress import Egress, blocked
from httppubsubserver.delivery.tls_sessions import TlsSessions

__all__ = ["IDLE_SECONDS", "MAX_IDLE", "Connections"]

_LOG = logging.getLogger("httppubsub.server.outbound")

IDLE_SECONDS: Final = 30.0
"""A connection that nothing was sent over for this long is closed."""

MAX_IDLE: Final = 4096
"""Idle connections in total; one that becomes idle beyond it is closed instead."""

_SWEEP_SECONDS: Final = 0.05
"""How exactly deadlines are kept."""

_CLOSING_SECONDS: Final = 5.0
"""How long `aclose` waits for the event loop to confirm what it has closed."""


class Connections:
    """All connections of one process. `idle_per_origin`: how many of one origin are kept when nothing uses them.

    `egress`: by default one that allows everything.
    """

    def __init__(
        self,
        *,
        idle_per_origin: int,
        max_answer_bytes: int,
        tls: TlsSessions,
        step_seconds: float,
        egress: Egress | None = None,
    ) -> None:
        self.max_answer_bytes = max_answer_bytes
        self.step_seconds = step_seconds
        self.idle_seconds = IDLE_SECONDS
        self.tls = tls
        self.egress = Egress() if egress is None else egress
        self._own_egress = egress is None
        self._forget_egress = self.egress.on_change(self._review)
        self._unwelcome: set[Connection] = set()
        """Not to be used again: to where they are, none would be made now."""
        self.loop = asyncio.get_running_loop()
        self.now = self.loop.time()
        """The time of the last sweep: good enough for what lasts seconds."""
        self._idle_per_origin = idle_per_origin
        self._idle: dict[str, list[Connection]] = {}
        self._idle_count = 0
        self._all: set[Connection] = set()
        self.sending: set[Connection] = set()
        """Those that have a large body on its way."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._closed = False
        self._empty = asyncio.Event()

    def send(self, exchange: Exchange) -> None:
        """Send it over the connection that became idle last, or a new one."""
        if self._closed:
            raise RuntimeError("these connections are closed")
        idle = self._idle.get(exchange.callback.origin)
        if idle:
            self._idle_count -= 1
            idle.pop().begin(exchange)
        else:
            self._send_over_new(exchange)

    def send_again(self, exchange: Exchange) -> None:
        """The peer closed the idle connection that a request was sent over: once more, over a new one.

        Whether it took the request all the same cannot be known. So it gets lines that were made anew: to a peer that
        remembers nonces, the old ones would be a replay.
        """
        exchange.second = True
        if exchange.head_again is not None:
            try:
                exchange.lines = exchange.head_again()
            except PubSubError as error:
                exchange.end(AttemptFailed(error.code, again=False))
                return
        self._send_over_new(exchange)

    def make(self, exchange: Exchange) -> Connection:
        """A connection for it, to be dialled."""
        return Connection(self, exchange, AnswerReader(max_bytes=self.max_answer_bytes))

    def _send_over_new(self, exchange: Exchange) -> None:
        connection = self.make(exchange)
        self._all.add(connection)
        connection.dial(exchange)
        if self._sweeper is None:
            self.now = self.loop.time()
            self._sweeper = self.loop.call_later(_SWEEP_SECONDS, self._sweep)

    def release(self, connection: Connection) -> None:
        """Keep a connection for the next request, if there is room for it."""
        idle = self._idle.get(connection.origin)
        if idle is None:
            idle = self._idle[connection.origin] = []
        full = len(idle) >= self._idle_per_origin or self._idle_count >= MAX_IDLE
        if full or self._closed or (self._unwelcome and connection in self._unwelcome):
            connection.close()
            return
        self._idle_count += 1
        connection.until = self.now + self.idle_seconds
        idle.append(connection)

    def withdraw(self, connection: Connection) -> None:
        """Never send anything over it again."""
        idle = self._idle.get(connection.origin)
        if idle is not None:
            if connection in idle:
                idle.remove(connection)
                self._idle_count -= 1
            if not idle:
                del self._idle[connection.origin]

    def forget(self, connection: Connection) -> None:
        """It is gone."""
        self._all.discard(connection)
        self._unwelcome.discard(connection)
        if not self._all:
            self._empty.set()

    def spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Run it in a task that `aclose` waits for."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def aclose(self) -> None:
        """Close everything; what is still under way has failed."""
        self._closed = True
        self._forget_egress()
        if self._own_egress:
            self.egress.close()
        for connection in list(self._all):
            connection.fail(AttemptFailed("closed", again=False))
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        try:
            async with asyncio.timeout(_CLOSING_SECONDS):
                if self._tasks:
                    await asyncio.wait(set(self._tasks))
                while self._all:
                    self._empty.clear()
                    await self._empty.wait()
        except TimeoutError:
            _LOG.error("%d connections could not be closed", len(self._all))

    def _review(self) -> None:
        """The policy has changed. What is not connected yet, and to nowhere, asks it by itself."""
        for connection in list(self._all):
            if connection.address is None or self.egress.allows(connection.address, connection.port):
                self._unwelcome.discard(connection)
            elif connection.exchange is not None and connection.connected:
                self._unwelcome.add(connection)
            else:
                connection.fail(blocked())

    def _sweep(self) -> None:
        """End what has lasted too long. Runs while there are connections."""
        self.now = now = self.loop.time()
        try:
            for connection in list(self.sending):
                connection.look_after_sending()
            for connection in [connection for connection in self._all if connection.until <= now]:
                # Once more: the end of one may have begun the next request on another, an idle one of this list.
                if connection.until <= now:
                    connection.fail(connection.late())
        finally:
            self._sweeper = self.loop.call_later(_SWEEP_SECONDS, self._sweep) if self._all else None
