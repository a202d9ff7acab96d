"""One connection that POSTs, one request at a time, and what it carries: an `Exchange`.

Nothing here is a task or a future for a request on an idle connection: `begin` writes it, `data_received` reads the
answer and calls `done`. The deadline of an exchange bounds all of it; `step_seconds` bound connecting, and with a
large body every time in which its receiver takes nothing, and the wait for the answer after the last byte. `until` says
when what it does now must be over; `Connections` sees to that.

`FastTransport` extends both: what an exchange sends, how long each `Step` may take, what reads the answer.

A connection serves the next request only if the answer was read to its very end, nothing came after it, and the
request was sent whole. Everything else closes it, at once and without a goodbye (`abort`): nothing may linger.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Final, cast

from httppubsubclient.bodies import Body
from httppubsubclient.protocol.callback_urls import CallbackUrl
from httppubsubserver.delivery.answers import Answer, AnswerReader, AttemptFailed, BadAnswer, Reading
from httppubsubserver.delivery.dialing import dial, reason_of
from httppubsubserver.delivery.sending import Sending

if TYPE_CHECKING:
    from httppubsubserver.delivery.connections import Connections

__all__ = ["Connection", "Exchange", "Outcome", "Step"]

_LOG = logging.getLogger("httppubsub.server.outbound")

_REST_SECONDS: Final = 1.0
"""How long the rest of an answer may take before its connection is given up; the status is known by then. So long one
that tells of a failure is held back for the beginning of its body."""

_ONE_WRITE_BYTES: Final = 64 * 1024
"""A body up to this is copied into one write with its head; a larger one follows by pieces, when there is room."""

Outcome = Answer | AttemptFailed
_HEAD, _IDLE, _SPENT = Reading.HEAD, Reading.IDLE, Reading.SPENT
"""Names that are looked up once for every answer."""


class Step(Enum):
    """What a connection waits for."""

    CONNECT = "connect"
    """To be connected, with TLS if that was asked for."""
    WRITE = "write"
    """The peer, to take some of a large body."""
    READ = "read"
    """The answer, when all of a large body was taken."""


class Exchange:
    """One POST under way, and the handle to give it up. Over as soon as `done` was called."""

    __slots__ = ("body", "callback", "connection", "deadline", "done", "head_again", "lines", "second", "start")

    def __init__(
        self,
        callback: CallbackUrl,
        start: bytes,
        lines: bytes,
        body: Body,
        deadline: float,
        done: Callable[[Outcome], None],
        head_again: Callable[[], bytes] | None,
    ) -> None:
        self.callback = callback
        self.start = start
        """The head as far as it is the same for every request to this callback: request line, Host and so on."""
        self.lines = lines
        """The header lines of this request, without Content-Length."""
        self.body = body
        self.deadline = deadline
        self.done = done
        self.head_again = head_again
        """Gives the lines for the second try."""
        self.connection: Connection | None = None
        """None when it is over."""
        self.second = False
        """The first try met a connection that its peer had closed while it was idle."""

    def request(self, data: bytes = b"") -> bytes:
        """The whole head, and `data` behind it."""
        return b"%b%bcontent-length: %d\r\n\r\n%b" % (self.start, self.lines, self.body.size, data)

    def make_sending(self, transport: asyncio.Transport) -> Sending:
        """How its body is sent when it is large."""
        return Sending(self.body, transport)

    def cancel(self) -> None:
        """Give up: `done` is not called any more, and the connection is closed."""
        connection = self.connection
        if connection is not None:
            self.connection = connection.exchange = None
            connection.close()

    def end(self, outcome: Outcome) -> None:
        """Say what became of it."""
        self.connection = None
        try:
            self.done(outcome)
        except Exception:
            _LOG.exception("what was to be done after a POST failed")


class Connection(asyncio.Protocol):
    """One connection, from dialling on."""

    __slots__ = (
        "_connections",
        "_dialling",
        "_reader",
        "_transport",
        "_used",
        "address",
        "exchange",
        "origin",
        "port",
        "sending",
        "until",
    )

    def __init__(self, connections: Connections, exchange: Exchange, reader: AnswerReader) -> None:
        self._connections = connections
        self.origin = exchange.callback.origin
        self.address: str | None = None
        """Where it goes; None while that is not known yet."""
        self.port = exchange.callback.port
        self.exchange: Exchange | None = exchange
        exchange.connection = self
        self.until = math.inf
        """When what it does now must be over, in event loop time."""
        self._dialling: asyncio.Task[None] | None = None
        self._transport: asyncio.Transport | None = None
        self._reader = reader
        self._used = False
        """It has brought an answer: its peer may close it at any moment, and a request on its way meets nobody."""
        self.sending: Sending | None = None
        """The large body that is on its way."""

    @property
    def connected(self) -> bool:
        """It stands: what fails now does not fail in connecting."""
        return self._transport is not None

    # -- life -----------------------------------------------------------------------------------------------------

    def dial(self, exchange: Exchange) -> None:
        """Begin to connect; `connection_made` sends the request."""
        self.step(exchange, Step.CONNECT)
        self._dialling = self._connections.spawn(self._dial(exchange.callback))
        # Not at the end of `_dial`: a task that is cancelled before its first step never gets there.
        self._dialling.add_done_callback(self._dialled)

    async def _dial(self, callback: CallbackUrl) -> None:
        try:
            await dial(callback, self, self._connections.tls, self._connections.egress, self._dialled_at)
        except AttemptFailed as failure:
            self.fail(failure)
        except Exception:
            _LOG.exception("connecting to %s failed in an unexpected way", self.origin)
            self.fail(AttemptFailed("connect_error", again=False))

    def _dialled_at(self, address: str) -> None:
        self.address = address

    def _dialled(self, dialling: asyncio.Task[None]) -> None:
        self._dialling = None
        # uvloop has a gap: cancelled between `connection_made` and the end of `create_connection`, it closes the
        # transport and never calls `connection_lost`.
        if self._transport is None or dialling.cancelled():
            self._transport = None
            self._connections.forget(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection stands, with TLS if that was asked for."""
        # uvloop's transports are no asyncio.Transport by inheritance.
        self._transport = cast(asyncio.Transport, transport)
        if self.exchange is None:
            self.close()
        else:
            self.begin(self.exchange)

    def eof_received(self) -> None:
        """No answer can come any more, be it the first byte or the rest."""
        self.lost(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """The last call of the event loop; a handshake that failed brings it, too, and `_dial` is told as well."""
        if self._transport is not None:
            self.lost(exc)
            self._transport = None
            self._connections.forget(self)

    def close(self) -> None:
        """Close at once, whatever is still unsent or unread. Idempotent."""
        self.until = math.inf
        self._reader.state = Reading.SPENT
        self._end_sending()
        self._connections.withdraw(self)
        if self._transport is not None:
            self._transport.abort()
        elif self._dialling is not None:
            self._dialling.cancel()

    def late(self) -> AttemptFailed:
        """What it has come to when what it does is not over in time."""
        if self.connected:
            return AttemptFailed("timeout", again=False, hanging=True)
        return self._connections.egress.late(self)

    def fail(self, failure: AttemptFailed) -> None:
        """Close, and tell whoever waits for an answer; if one is there that only misses some of its body, that."""
        exchange, self.exchange = self.exchange, None
        answer = self._reader.interrupted()
        self.close()
        if exchange is not None:
            exchange.end(answer or failure)

    def lost(self, exc: Exception | None) -> None:
        """The peer has gone."""
        exchange = self.exchange
        if exchange is not None and self._used and not exchange.second and self._reader.untouched:
            self.exchange = None
            self.close()
            self._connections.send_again(exchange)
        else:
            reason = reason_of(exc, otherwise="connection_lost")
            if not self._used:
                # With TLS 1.3 a server may refuse a client only after the client's side of the handshake is over.
                self._connections.tls.forget(self.origin)
            self.fail(AttemptFailed(reason, again=reason != "tls_error", cause=exc))

    # -- request --------------------------------------------------------------------------------------------------

    def begin(self, exchange: Exchange) -> None:
        """Send a request over this connection, which is idle."""
        transport = self._transport
        assert transport is not None
        self.exchange = exchange
        exchange.connection = self
        self._reader.expect()
        data = exchange.body.data
        if data is not None and len(data) <= _ONE_WRITE_BYTES:
            self.until = exchange.deadline
            transport.write(exchange.request(data))
        else:
            self._begin_sending(exchange, transport)

    def _begin_sending(self, exchange: Exchange, transport: asyncio.Transport) -> None:
        self.step(exchange, Step.WRITE)
        self.sending = sending = exchange.make_sending(transport)
        self._connections.sending.add(self)
        sending.start(
            exchange.request(),
            in_clear=exchange.callback.scheme == "http",
            spawn=self._connections.spawn,
            failed=lambda: self.fail(AttemptFailed("body_unreadable", again=False)),
        )

    def look_after_sending(self) -> None:
        """Whoever takes something gets the time for a step once more, and for the answer when it has taken all."""
        assert self.sending is not None
        assert self.exchange is not None
        if self.sending.progressed():
            self.step(self.exchange, Step.READ if self.sending.over else Step.WRITE)
            if self.sending.over:
                self._end_sending()

    def _end_sending(self) -> None:
        sending, self.sending = self.sending, None
        if sending is not None:
            sending.stop()
            self._connections.sending.discard(self)

    def step(self, exchange: Exchange, step: Step) -> None:
        """Something begins that must not take longer than `step_seconds`."""
        self.until = min(exchange.deadline, self._connections.loop.time() + self.step_seconds(exchange, step))

    def step_seconds(self, exchange: Exchange, step: Step) -> float:
        """How long this step of this exchange may take. A delivery has the same for all."""
        return self._connections.step_seconds

    def pause_writing(self) -> None:
        """The transport holds enough."""
        if self.sending is not None:
            self.sending.pause()

    def resume_writing(self) -> None:
        """There is room again."""
        if self.sending is not None:
            self.sending.resume()

    # -- answer ---------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Tell the answer once it is known; then see to it that the connection is kept, drained or closed."""
        reader, transport = self._reader, self._transport
        assert transport is not None
        try:
            answer = reader.feed(data)
        except BadAnswer as error:
            self.fail(AttemptFailed("bad_answer", again=True, cause=error))
            return
        state = reader.state
        if state is _HEAD:
            return
        if not self._used:
            self._used = True
            self._connections.tls.remember(self.origin, transport)
        sending = self.sending
        unsent = sending is not None and sending.unsent
        if sending is not None:
            self._end_sending()
        if answer is None and self.exchange is not None:
            # It is held back for the beginning of its body, unless we are still sending: that ends the connection.
            if not unsent:
                self.until = min(self.until, self._connections.now + _REST_SECONDS)
                return
            answer = reader.interrupted()
        exchange, self.exchange = self.exchange, None
        if unsent or state is _SPENT or (state is _IDLE and transport.get_write_buffer_size()):
            # Unsent: the peer has decided without reading all, and what it would read now as a request is the body.
            self.close()
        elif state is _IDLE:
            self._connections.release(self)
        else:
            self.until = min(self.until, self._connections.now + _REST_SECONDS)
        # Last, because it may well bring the next request for this very connection.
        if exchange is not None and answer is not None:
            exchange.end(answer)
