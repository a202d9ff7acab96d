"""Taking connections: how many at once, who goes when there is no room, and what those hear who are not let in.

uvicorn takes every connection there is and knows nothing of one before its TLS handshake is over, so that strangers
who only connect could use up the open files and the memory of the process. Here each connection has a place from the
moment it is accepted. A place is *waiting* during the handshake, until a whole head has come, and between requests;
it is *working* while a request is being answered. When all places are taken, the one that has been waiting longest is
closed in favour of the new one, so that whoever holds connections without using them shuts nobody out; when all are
working, the new one is answered 503.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
from collections.abc import Callable, Generator
from typing import Any, Final, cast

import uvicorn

from httppubsubclient.protocol.errors import Unavailable
from httppubsubclient.request_heads import Watcher, whole_answer

__all__ = ["AdmittingServer"]

_LOG = logging.getLogger("httppubsub.admission")

_HANDSHAKE_SECONDS: Final = 10.0
_CLOSE_NOTIFY_SECONDS: Final = 1.0

_MAX_REFUSALS: Final = 64
"""Connections that are being told 503 at the same time; beyond it they are just closed."""
_REFUSAL_SECONDS: Final = 2.0
_RETRY_AFTER_SECONDS: Final = 1

_NO_ROOM: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_PAUSE_SECONDS: Final = 0.1
_SAY_AGAIN_SECONDS: Final = 60.0
_MAX_SAID_FAULTS: Final = 100

_TLS_FAULTS: Final = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it shows no certificate, and one is asked for (ssl_ca_certs)",
    "CERTIFICATE_VERIFY_FAILED": "its certificate leads to none of those in ssl_ca_certs, or is not valid",
    "HTTP_REQUEST": "it speaks http, not https",
    "TLSV1_ALERT_UNKNOWN_CA": "it does not trust our certificate",
}
"""What is meant, by what OpenSSL calls it."""

_FULL: Final = whole_answer(
    503,
    "Service Unavailable",
    Unavailable("there are as many connections as there may be; try again"),
    headers=f"retry-after: {_RETRY_AFTER_SECONDS}\r\n",
)


class AdmittingServer(uvicorn.Server):
    """uvicorn with this admission in place of its own; it serves only sockets that are given to `serve`.

    Signals are the affair of whoever runs it. uvicorn.Config needs `http=bounded_http_protocol()`.
    """

    def __init__(
        self, config: uvicorn.Config, *, max_connections: int, tls: Callable[[], ssl.SSLContext] | None = None
    ) -> None:
        """`tls` is asked for each connection, so that it may change."""
        super().__init__(config)
        self.ready = asyncio.Event()
        self._max_connections = max_connections
        self._tls = tls

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Signals are not ours: uvicorn would raise them again when it is done."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn.Server."""
        await super().startup(sockets=[])
        doors = _Doors(self._max_connections, self._protocol, self._tls)
        # uvicorn closes what is in this list, and waits for it.
        self.servers = [doors]  # type: ignore[list-item]
        for listening in sockets or []:
            doors.open(listening)
        self.ready.set()

    def _protocol(self, watcher: Watcher) -> asyncio.Protocol:
        made: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state, watcher=watcher
        )
        return made


class _Place:
    """One connection from being accepted to being gone; the `Watcher` of its protocol."""

    __slots__ = ("_doors", "begun", "connecting", "transport")

    def __init__(self, doors: _Doors) -> None:
        self._doors = doors
        self.connecting: asyncio.Task[None] | None = None
        self.begun = False
        """Its task has begun; one that is cancelled before that never does."""
        self.transport: asyncio.Transport | None = None

    def waiting(self) -> None:
        """See `Watcher`. Who waits again stands at the end of the queue."""
        queue = self._doors.waiting
        queue.pop(self, None)
        queue[self] = None

    def working(self) -> None:
        """See `Watcher`."""
        self._doors.waiting.pop(self, None)

    def lost(self) -> None:
        """See `Watcher`."""
        self._doors.waiting.pop(self, None)
        self._doors.taken.discard(self)

    def give_up(self) -> None:
        """Close it at once, written or not: nobody waits for an answer."""
        self.lost()
        if self.transport is not None:
            self.transport.abort()
        elif self.connecting is not None and self._doors.handshakes:
            self.connecting.cancel()  # without a handshake the task is about to end, and aborts


class _Doors:
    """Accepts from any number of sockets; to uvicorn it looks like an asyncio.Server."""

    def __init__(
        self,
        room: int,
        protocol: Callable[[Watcher], asyncio.Protocol],
        tls: Callable[[], ssl.SSLContext] | None,
    ) -> None:
        self.taken: set[_Place] = set()
        self.waiting: dict[_Place, None] = {}
        """The one that has been waiting longest comes first."""
        self._room = room
        self._protocol = protocol
        self._tls = tls
        self._closed = False
        self._refusals = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._listening: dict[socket.socket, asyncio.TimerHandle | None] = {}
        """Accepted from, and when that goes on where it has a pause."""
        self._said_at: float | None = None
        self._said_faults: dict[str, float] = {}

    @property
    def handshakes(self) -> bool:
        """A connection that was accepted is not connected at once."""
        return self._tls is not None

    def open(self, listening: socket.socket) -> None:
        """Accept from now on."""
        # A descriptor of our own: the other one may be closed before the loop has stopped looking at it.
        mine = listening.dup()
        mine.setblocking(False)
        self._listening[mine] = None
        self._look_at(mine)

    def close(self) -> None:
        """Accept no more; who is still in a handshake is not let in."""
        loop = asyncio.get_running_loop()
        for listening, pause in self._listening.items():
            loop.remove_reader(listening)
            if pause is not None:
                pause.cancel()
            listening.close()
        self._listening.clear()
        self._closed = True
        # Without TLS the task is about to end, and then it sees `_closed`. Cancelled, uvloop would close the connection
        # without telling its protocol, and uvicorn would wait for it.
        for place in list(self.taken) if self.handshakes else ():
            if place.transport is None and place.connecting is not None:
                place.connecting.cancel()

    async def wait_closed(self) -> None:
        """Until nobody is being refused or in a handshake any more."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _look_at(self, listening: socket.socket) -> None:
        self._listening[listening] = None
        asyncio.get_running_loop().add_reader(listening, self._accept, listening)

    def _start(self, work: Any, name: str) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _accept(self, listening: socket.socket) -> None:
        """Take one connection. Not by `sock_accept`: one that is cancelled may drop the connection that it has got."""
        try:
            connected, _ = listening.accept()
        except (BlockingIOError, InterruptedError):
            return  # another process was faster
        except OSError as error:
            # Linux tells errors of the new connection here, too (accept(2)); the next one may be fine.
            if error.errno in _NO_ROOM:
                self._say("no room for another connection: %s", error.strerror)
                self._make_room()
            loop = asyncio.get_running_loop()
            loop.remove_reader(listening)
            self._listening[listening] = loop.call_later(_PAUSE_SECONDS, self._look_at, listening)
            return
        connected.setblocking(False)
        self._admit(connected)

    def _admit(self, connected: socket.socket) -> None:
        if len(self.taken) >= self._room:
            self._say("all connections (%d at most) are in use; the longest idle one goes, or the new one", self._room)
            if not self._make_room():
                self._turn_away(connected)
                return
        place = _Place(self)
        self.taken.add(place)
        place.waiting()
        place.connecting = self._start(self._connect(connected, place), "take a connection")
        place.connecting.add_done_callback(lambda _: None if place.begun else self._never_begun(connected, place))

    def _make_room(self) -> bool:
        longest = next(iter(self.waiting), None)
        if longest is None:
            return False
        longest.give_up()
        return True

    def _never_begun(self, connected: socket.socket, place: _Place) -> None:
        place.lost()
        connected.close()

    async def _connect(self, connected: socket.socket, place: _Place) -> None:
        place.begun = True
        made: list[asyncio.Protocol] = []
        connected_to = _peer_of(connected)

        def protocol() -> asyncio.Protocol:
            made.append(self._protocol(place))
            return made[0]

        try:
            place.transport = await self._connected(protocol, connected)
            if place not in self.taken or self._closed:
                place.transport.abort()  # given up in this very moment, or too late
        except BaseException as error:
            place.lost()
            if not made:
                connected.close()
            elif getattr(made[0], "transport", None) is not None:
                # It was connected in the moment of being cancelled: uvloop would not tell it that this is over.
                made[0].connection_lost(None)
            if not isinstance(error, (OSError, asyncio.CancelledError)):
                raise
            if isinstance(error, ssl.SSLError):
                self._tell_fault(connected_to, error)
            _LOG.debug("a connection did not come about: %s", error)

    async def _connected(self, protocol: Callable[[], asyncio.Protocol], connected: socket.socket) -> asyncio.Transport:
        loop = asyncio.get_running_loop()
        if connected.family in (socket.AF_INET, socket.AF_INET6):
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls is None:
            transport, _ = await loop.connect_accepted_socket(protocol, connected)
        else:
            transport, _ = await loop.connect_accepted_socket(
                protocol,
                connected,
                ssl=self._tls(),
                ssl_handshake_timeout=_HANDSHAKE_SECONDS,
                ssl_shutdown_timeout=_CLOSE_NOTIFY_SECONDS,
            )
        return transport

    def _turn_away(self, connected: socket.socket) -> None:
        if self._refusals >= _MAX_REFUSALS:
            connected.close()
            return
        self._refusals += 1
        begun: list[bool] = []
        telling = self._start(self._tell_full(connected, begun), "turn a connection away")
        telling.add_done_callback(lambda _: None if begun else self._never_told(connected))

    def _never_told(self, connected: socket.socket) -> None:
        self._refusals -= 1
        connected.close()

    async def _tell_full(self, connected: socket.socket, begun: list[bool]) -> None:
        begun.append(True)
        full: _Full | None = None

        def protocol() -> asyncio.Protocol:
            nonlocal full
            full = _Full()
            return full

        transport: asyncio.Transport | None = None
        try:
            async with asyncio.timeout(_REFUSAL_SECONDS):
                transport = await self._connected(protocol, connected)
                assert full is not None
                await full.gone.wait()
        except OSError:  # TimeoutError is one
            pass
        finally:
            self._refusals -= 1
            if transport is not None:
                transport.abort()
            elif full is None:
                connected.close()

    def _say(self, text: str, *arguments: object) -> None:
        now = asyncio.get_running_loop().time()
        if self._said_at is None or now - self._said_at >= _SAY_AGAIN_SECONDS:
            self._said_at = now
            _LOG.warning(text, *arguments)

    def _tell_fault(self, peer: str, error: ssl.SSLError) -> None:
        """Who sits in front of a client that is not let in looks here; each fault is told once a minute."""
        reason = error.reason or "unknown"
        now = asyncio.get_running_loop().time()
        if now < self._said_faults.get(reason, 0.0) or len(self._said_faults) > _MAX_SAID_FAULTS:
            return
        self._said_faults[reason] = now + _SAY_AGAIN_SECONDS
        _LOG.info("no TLS with %s: %s", peer, _TLS_FAULTS.get(reason, reason))


def _peer_of(connected: socket.socket) -> str:
    try:
        peer = connected.getpeername()
    except OSError:
        return "somebody who is gone"
    return str(peer[0]) if isinstance(peer, tuple) else "somebody at a local socket"


class _Full(asyncio.Protocol):
    """Answers the first bytes with 503, and lets the other side close: it may still be sending."""

    def __init__(self) -> None:
        self.gone = asyncio.Event()
        self._transport: asyncio.Transport | None = None
        self._answered = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if not self._answered and self._transport is not None:
            self._answered = True
            self._transport.write(_FULL)
            if self._transport.can_write_eof():
                self._transport.write_eof()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self.gone.set()
