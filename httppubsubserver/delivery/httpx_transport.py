"""`FastTransport`: what carries a broadcaster's deliveries, for `httpx.AsyncClient`.

    async with FastTransport() as transport, HttpPubSubClient(config, transport=transport) as client:
        ...

httpx's own pool looks at all requests in flight for each of them. Here a request takes the connection that became
idle last, and that is all. What this costs:

| it can                                              | it cannot, and says so (`httpx.UnsupportedProtocol`)         |
|-----------------------------------------------------|--------------------------------------------------------------|
| HTTP/1.1, plain and over TLS, any other method      | HTTP/2, upgrades, CONNECT and proxies, `sni_hostname`        |
| bodies in memory and streams, counted or in chunks  | answers over `max_answer_bytes`: they are read whole first   |
| `timeout`: connect, read, write and pool            | `trace` and `network_stream`, without saying so              |

As in httpx a timeout bounds a wait, not a whole: `connect` from the name to the end of the TLS handshake, `write` each
time in which the peer takes nothing of what there is to send, `read` each wait for bytes after the request was sent,
`pool` the wait until fewer than `max_requests` are under way. They are kept within 0.05 s. An answer that comes before
the whole request was sent ends it.

A GET, HEAD, OPTIONS, TRACE, PUT or DELETE with its body in memory is sent a second time, over a new connection, when
its peer closed an idle one just then; nothing else ever is.
"""

from __future__ import annotations

import asyncio
import math
import ssl
from typing import Final, cast

import httpx

from httppubsubclient.protocol.callback_urls import CallbackUrl, parse_callback_url
from httppubsubclient.protocol.errors import InvalidUrl
from httppubsubserver.delivery.answers import AttemptFailed
from httppubsubserver.delivery.connection import Connection, Exchange, Outcome, Step
from httppubsubserver.delivery.connections import Connections
from httppubsubserver.delivery.egress import BLOCKED, Egress
from httppubsubserver.delivery.httpx_requests import StreamedBody, framed, request_head
from httppubsubserver.delivery.proxy import ProxyFailed
from httppubsubserver.delivery.sending import Sending, StreamSending
from httppubsubserver.delivery.tls_sessions import TlsSessions
from httppubsubserver.delivery.whole_answers import AnswerTooLarge, WholeAnswer, WholeAnswerReader

__all__ = ["BlockedAddress", "FastTransport"]

_IDEMPOTENT: Final = frozenset(("GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"))

_MAX_ORIGINS: Final = 1000
"""How many origins are kept parsed."""


class BlockedAddress(httpx.ConnectError):
    """The policy does not allow what would have been dialled; says nothing about which address that was."""


class FastTransport(httpx.AsyncBaseTransport):
    """A transport for one event loop. Close it, or use it as a context manager: `httpx.AsyncClient` does so itself."""

    def __init__(
        self,
        *,
        tls: ssl.SSLContext | None = None,
        max_requests: int = 1000,
        idle_per_origin: int = 1000,
        idle_seconds: float = 2.0,
        max_answer_bytes: int = 64 * 1024 * 1024,
        egress: Egress | None = None,
    ) -> None:
        """`tls`: whom to trust, and a certificate to show; by default the certificates of certifi. It is set to ask
        for http/1.1 (ALPN), so it should not be shared with a client that speaks HTTP/2.

        `max_requests` at once, further ones wait. `idle_seconds`: shorter than what servers commonly allow (uvicorn:
        5 s), so that this side closes first: a POST that meets a connection just being closed has failed.

        `egress` says which addresses may be dialled, by default all; what it refuses raises `BlockedAddress`. Whoever
        gives one closes it.
        """
        # Without SSL_CERT_FILE and SSL_CERT_DIR.
        self._tls = httpx.create_ssl_context(trust_env=False) if tls is None else tls
        self._tls.set_alpn_protocols(["http/1.1"])
        self._free = asyncio.Semaphore(max_requests)
        self._idle_per_origin = idle_per_origin
        self._idle_seconds = idle_seconds
        self._max_answer_bytes = max_answer_bytes
        self._egress = egress
        self._origins: dict[tuple[str, bytes, int | None], CallbackUrl] = {}
        self._calls: _Calls | None = None
        self._closed = False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send it and read the whole answer. Raises what httpx's own transport raises."""
        calls = self._opened()
        call = _Call(request, self._origin(request), calls.loop)
        if self._free.locked():
            await self._turn(request.extensions.get("timeout", {}).get("pool"))
        else:
            await self._free.acquire()
        try:
            answer = await call.answered(calls)
        finally:
            self._free.release()
        return httpx.Response(
            answer.status,
            headers=answer.headers,
            stream=httpx.ByteStream(answer.body),
            extensions={"http_version": answer.version, "reason_phrase": answer.reason},
        )

    async def _turn(self, seconds: float | None) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._free.acquire()
        except TimeoutError:
            raise httpx.PoolTimeout("too many other requests are under way: max_requests") from None

    async def aclose(self) -> None:
        """Close all connections. What is still under way fails."""
        self._closed = True
        calls, self._calls = self._calls, None
        if calls is not None:
            await calls.aclose()

    def _opened(self) -> _Calls:
        """Made with the first request, because only then there is an event loop for certain."""
        if self._closed:
            raise RuntimeError("this transport is closed")
        if self._calls is None:
            self._calls = _Calls(
                idle_per_origin=self._idle_per_origin,
                idle_seconds=self._idle_seconds,
                max_answer_bytes=self._max_answer_bytes,
                tls=TlsSessions(self._tls),
                egress=self._egress,
            )
        elif self._calls.loop is not asyncio.get_running_loop():
            raise RuntimeError("this transport was used in another event loop before: make one for each")
        return self._calls

    def _origin(self, request: httpx.Request) -> CallbackUrl:
        if request.method == "CONNECT" or "sni_hostname" in request.extensions:
            raise httpx.UnsupportedProtocol("this transport makes no tunnels, and shows no other name in TLS")
        url = request.url
        key = (url.scheme, url.raw_host, url.port)
        known = self._origins.get(key)
        if known is None:
            host, port = url.raw_host.decode("ascii"), "" if url.port is None else f":{url.port}"
            try:
                known = parse_callback_url(f"{url.scheme}://{f'[{host}]' if ':' in host else host}{port}/")
            except InvalidUrl as error:
                detail = error.detail.replace("a callback URL", "the URL of a request")
                raise httpx.UnsupportedProtocol(f"this transport cannot reach {url}: {detail}") from None
            if len(self._origins) >= _MAX_ORIGINS:
                self._origins.clear()
            self._origins[key] = known
        return known


class _Call(Exchange):
    """One request under way; `answered` waits for it."""

    __slots__ = ("error", "future", "last", "of_head", "timeouts")

    def __init__(self, request: httpx.Request, origin: CallbackUrl, loop: asyncio.AbstractEventLoop) -> None:
        head, stream = request_head(request), request.stream
        in_memory = isinstance(stream, httpx.ByteStream)
        if isinstance(stream, httpx.ByteStream):
            body = framed(head, b"".join(stream))
        else:
            assert isinstance(stream, httpx.AsyncByteStream)
            body = StreamedBody(head, stream, self._unreadable)
        super().__init__(origin, head.data, b"", body, math.inf, self._done, None)
        self.second = not in_memory or request.method not in _IDEMPOTENT
        self.of_head = request.method == "HEAD"
        self.last = head.last
        self.timeouts: dict[str, float | None] = request.extensions.get("timeout", {})
        self.future: asyncio.Future[Outcome] = loop.create_future()
        self.error: httpx.TransportError | None = None
        """What the failure is to httpx."""

    def request(self, data: bytes = b"") -> bytes:
        """See `Exchange`; the framing is part of what httpx gave."""
        return self.start + data

    def make_sending(self, transport: asyncio.Transport) -> Sending:
        """See `Exchange`."""
        return (StreamSending if self.body.data is None else Sending)(self.body, transport)

    async def answered(self, calls: _Calls) -> WholeAnswer:
        """Send it. A caller that is cancelled costs the connection."""
        calls.send(self)
        try:
            outcome = await self.future
        except BaseException:
            self.cancel()
            raise
        if self.error is not None:
            raise self.error from cast(AttemptFailed, outcome)
        return cast(WholeAnswer, outcome)

    def _unreadable(self, error: Exception) -> None:
        """The body cannot be read to its end: the caller's own error is what the caller gets."""
        if not self.future.done():
            self.future.set_exception(error)
        self.cancel()

    def _done(self, outcome: Outcome) -> None:
        if not self.future.done():
            self.future.set_result(outcome)


class _Calls(Connections):
    """Connections whose answers are kept."""

    def __init__(
        self,
        *,
        idle_per_origin: int,
        idle_seconds: float,
        max_answer_bytes: int,
        tls: TlsSessions,
        egress: Egress | None,
    ) -> None:
        super().__init__(
            idle_per_origin=idle_per_origin,
            max_answer_bytes=max_answer_bytes,
            tls=tls,
            step_seconds=math.inf,
            egress=egress,
        )
        self.idle_seconds = idle_seconds

    def make(self, exchange: Exchange) -> Connection:
        """See `Connections`."""
        return _CallConnection(self, exchange, WholeAnswerReader(max_bytes=self.max_answer_bytes))


class _CallConnection(Connection):
    """A connection that waits as httpx's timeouts say, and reads to the end."""

    __slots__ = ("_answers",)

    def __init__(self, connections: Connections, exchange: Exchange, reader: WholeAnswerReader) -> None:
        super().__init__(connections, exchange, reader)
        self._answers = reader

    def begin(self, exchange: Exchange) -> None:
        """See `Connection`."""
        super().begin(exchange)
        call = cast(_Call, exchange)
        self._answers.expect(of_head=call.of_head, last=call.last)
        self._await_bytes()

    def step_seconds(self, exchange: Exchange, step: Step) -> float:
        """See `Connection`. The steps have httpx's names for its timeouts."""
        seconds = cast(_Call, exchange).timeouts.get(step.value)
        return math.inf if seconds is None else seconds

    def data_received(self, data: bytes) -> None:
        """See `Connection`."""
        super().data_received(data)
        self._await_bytes()

    def _await_bytes(self) -> None:
        """The time for the next ones begins, if the request was sent; while it is being sent, that is what counts."""
        if self.exchange is not None and self.sending is None:
            self.step(self.exchange, Step.READ)

    def lost(self, exc: Exception | None) -> None:
        """See `Connection`; some answers end so."""
        answer = self._answers.ended() if exc is None else None
        exchange = self.exchange
        if answer is None or exchange is None:
            super().lost(exc)
        else:
            self.exchange = None
            self.close()
            exchange.end(answer)

    def fail(self, failure: AttemptFailed) -> None:
        """See `Connection`."""
        call = cast(_Call | None, self.exchange)
        if call is not None:
            call.error = _error(failure, connected=self.connected, sending=self.sending)
        super().fail(failure)


def _error(failure: AttemptFailed, *, connected: bool, sending: Sending | None) -> httpx.TransportError:
    """What httpx calls it."""
    cause = failure.__cause__
    if failure.hanging:
        if not connected:
            return httpx.ConnectTimeout("no connection within its time")
        return (
            httpx.ReadTimeout("the peer is silent") if sending is None else httpx.WriteTimeout("the peer reads nothing")
        )
    if isinstance(cause, AnswerTooLarge):
        return httpx.UnsupportedProtocol(f"{cause}: FastTransport(max_answer_bytes=...) sets the limit")
    if failure.reason == BLOCKED:
        return BlockedAddress("the policy does not allow the address of this host")
    if isinstance(failure, ProxyFailed):
        return httpx.ProxyError(failure.why)
    if failure.reason == "bad_answer":
        return httpx.RemoteProtocolError(str(cause))
    words = "the transport was closed" if failure.reason == "closed" else str(cause or failure.reason)
    if not connected:
        return httpx.ConnectError(words)
    if cause is None and failure.reason == "connection_lost":
        return httpx.RemoteProtocolError("the peer closed the connection without a complete answer")
    return (httpx.WriteError if sending is not None and sending.unsent else httpx.ReadError)(words)
