"""uvicorn's HTTP protocol with bounds on everything that comes before, between and around the requests it hands over.

uvicorn has two of them, for the parsers httptools and h11. As they are, one or the other reads a head of any size and
waits for it for ever, hands over any number of headers, takes the trailer of a body for headers of its request, queues
whatever is sent ahead, and waits for ever for a peer that does not read its answers. Both sides that serve use what is
made here:

    what comes                                    what it gets
    a head beyond MAX_HEAD_BYTES or MAX_HEADERS   431
    a target beyond MAX_TARGET_BYTES              414
    a head that takes longer than HEAD_SECONDS    408
    what is not HTTP/1.1, two Hosts, an Upgrade,
    a Transfer-Encoding other than chunked        400
    more than MAX_PIPELINED requests ahead        the connection is closed
    answers that are not read for STALL_SECONDS   the connection is reset

Each answer is a problem document. Behind it what is still on its way is read and thrown away for a moment: closing on
a sender in mid-sentence resets the connection, and it would never see why.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from typing import TYPE_CHECKING, Any, Final, Protocol

from httppubsubclient.protocol.errors import (
    PROBLEM_CONTENT_TYPE,
    InvalidRequest,
    PubSubError,
    TooLarge,
    TooSlow,
    problem,
)

if TYPE_CHECKING:
    import h11

__all__ = [
    "HEAD_SECONDS",
    "MAX_HEADERS",
    "MAX_HEAD_BYTES",
    "MAX_PIPELINED",
    "MAX_TARGET_BYTES",
    "STALL_SECONDS",
    "Watcher",
    "bounded_http_protocol",
    "whole_answer",
]

MAX_HEAD_BYTES: Final = 64 * 1024
MAX_HEADERS: Final = 100
"""The fields of a trailer are counted, too."""

MAX_TARGET_BYTES: Final = 16 * 1024
"""A topic of 4096 bytes, each of them percent-encoded, fits."""

HEAD_SECONDS: Final = 20.0
"""From the connection, or from the first byte of a later request, to the end of its head."""

MAX_PIPELINED: Final = 16
"""Requests that may wait on one connection for the answer to an earlier one: each costs memory, whoever sent it."""

STALL_SECONDS: Final = 60.0
"""How long a peer may take nothing of an answer, and how long a connection that is closed may take to be gone."""

_LINGER_SECONDS: Final = 2.0

# Strangers decide how often uvicorn has something to say about their requests; they get to read it, the log does not.
_LOG = logging.getLogger("uvicorn.error.requests")
_LOG.setLevel(logging.ERROR)


class Watcher(Protocol):
    """Who is told what a connection is busy with."""

    def waiting(self) -> None:
        """It has no request at present, or not yet a whole head of one."""

    def working(self) -> None:
        """A request has been handed over."""

    def lost(self) -> None:
        """It is gone."""


def whole_answer(status: int, phrase: str, error: PubSubError, *, headers: str = "") -> bytes:
    """A complete HTTP answer with the problem document of `error`; the connection ends with it.

    `headers`: further complete lines, each ended by CRLF.
    """
    body = json.dumps(problem(error) | {"status": status}).encode()
    head = (
        f"HTTP/1.1 {status} {phrase}\r\nconnection: close\r\ncontent-type: {PROBLEM_CONTENT_TYPE}\r\n"
        f"content-length: {len(body)}\r\n{headers}\r\n"
    )
    return head.encode("ascii") + body


_TOO_LARGE: Final = whole_answer(
    431,
    "Request Header Fields Too Large",
    TooLarge(f"the head of a request has at most {MAX_HEAD_BYTES} bytes and {MAX_HEADERS} header fields"),
)
_TOO_LONG: Final = whole_answer(
    414, "URI Too Long", TooLarge(f"the target of a request has at most {MAX_TARGET_BYTES} bytes")
)
_TOO_SLOW: Final = whole_answer(
    408, "Request Timeout", TooSlow(f"the head of a request arrives within {HEAD_SECONDS:g} seconds")
)
_MALFORMED: Final = whole_answer(400, "Bad Request", InvalidRequest("this is not a request of HTTP/1.1"))
_NO_HOST: Final = whole_answer(
    400, "Bad Request", InvalidRequest("a request has exactly one Host (RFC 9112 section 3.2)")
)
_UPGRADE: Final = whole_answer(
    400,
    "Bad Request",
    InvalidRequest("Upgrade is not supported here; send the request without it (curl --http1.1)"),
)
_ENCODING: Final = whole_answer(
    400, "Bad Request", InvalidRequest("the only Transfer-Encoding that is taken here is chunked")
)
_BY_STATUS: Final = {431: _TOO_LARGE, 414: _TOO_LONG, 501: _ENCODING}
"""What h11 says about a request that it refuses; anything else is malformed."""


class _RefusedError(Exception):
    """Raised inside of a parser, to stop it; the answer is given already."""


class _Bounded(asyncio.Protocol):
    """What the two have in common. Stands before uvicorn's class, whose attributes these are:"""

    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    flow: Any
    cycle: Any
    """The request that was handed over last, None before the first one."""

    _watcher: Watcher | None = None
    _refused = False
    _in_head = True
    _in_body = False
    """Of the request in `cycle` something is still to come."""
    _head_began = 0.0
    _stalled_since: float | None = None
    """Since when the peer has not taken what was written, or since when a look has found the connection closing."""
    _timer: asyncio.TimerHandle | None = None
    """One for the connection, not one for each request: it looks what is under way, and since when."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._head_began = self.loop.time()
        self._timer = self.loop.call_later(HEAD_SECONDS, self._look)
        if self._watcher is not None:
            self._watcher.waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        if self._watcher is not None:
            self._watcher.lost()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        self._stalled_since = self.loop.time()
        super().pause_writing()

    def resume_writing(self) -> None:
        self._stalled_since = None
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """uvicorn's way out, called while it handles what the parser raised."""
        if not self._refused:
            hint = getattr(sys.exc_info()[1], "error_status_hint", None)
            self._refuse(_BY_STATUS.get(hint, _MALFORMED) if isinstance(hint, int) else _MALFORMED)

    def _begin_head(self) -> None:
        self._in_head = True
        self._head_began = self.loop.time()

    def _begin_request(self) -> None:
        self._in_head = False
        self._in_body = True
        if self._watcher is not None:
            self._watcher.working()

    def _is_between_requests(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _answered(self) -> None:
        if self._watcher is not None and self._is_between_requests():
            self._watcher.waiting()

    def _refuse(self, answer: bytes) -> None:
        """Answer, if it is this request's turn, and be done with the connection."""
        self._refused = True
        self._stop_timer()
        if self.transport.is_closing():
            return
        if not self._is_between_requests():
            # The answer may only be given in place of that to the request that is to blame.
            if not self._in_body or self._has_waiting_requests() or self.cycle.response_started:
                self.transport.close()
                self._look_again_when_closed()
                return
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.write(answer)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self._timer = self.loop.call_later(_LINGER_SECONDS, self._end)

    def _has_waiting_requests(self) -> bool:
        return False

    def _end(self) -> None:
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()
            self._look_again_when_closed()

    def _look_again_when_closed(self) -> None:
        self._timer = self.loop.call_later(_LINGER_SECONDS, self.transport.abort)

    def _look(self) -> None:
        now = self.loop.time()
        left = HEAD_SECONDS
        if self.transport.is_closing() and self._stalled_since is None:
            self._stalled_since = now
        if self._stalled_since is not None and now - self._stalled_since >= STALL_SECONDS:
            # Closing would wait until everything is written, which is for ever.
            self._timer = None
            self.transport.abort()
            return
        if self._in_head and not self.transport.is_closing():
            if self.flow.read_paused:
                self._head_began = now  # we keep it waiting: an earlier request has not been answered yet
            left = self._head_began + HEAD_SECONDS - now
            if left <= 0:
                self._refuse(_TOO_SLOW)
                return
        self._timer = self.loop.call_later(left, self._look)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def bounded_http_protocol(parser: str | None = None) -> Any:
    """A class in place of uvicorn's, made with `watcher=` beside what uvicorn gives.

    `parser`: "httptools" or "h11"; the former by default, where it is installed.
    """
    if parser != "h11":
        try:
            return _with_httptools()
        except ImportError:
            if parser is not None:
                raise
    return _with_h11()


def _with_httptools() -> Any:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

    class BoundedHttpToolsProtocol(_Bounded, HttpToolsProtocol):
        _head_bytes = 0
        """What has come since a head began, or since the last piece of a body: chunks may be all size and trailer."""
        _field_bytes = 0
        _fields = 0
        _read_of_body = False
        """What was read last had something of a body in it, so most of it is not the head that follows."""

        def __init__(self, *arguments: Any, watcher: Watcher | None = None, **named: Any) -> None:
            super().__init__(*arguments, **named)
            self._watcher = watcher
            self.logger = _LOG

        def data_received(self, data: bytes) -> None:
            if self._refused:
                return
            if not self._in_head and self._is_between_requests():
                # Whatever comes now begins a head, an empty line before it too: it has its time, and no more.
                self._head_bytes = 0
                self._begin_head()
            self._read_of_body = False
            super().data_received(data)
            if self._refused or self._read_of_body or not (self._in_head or self._in_body):
                return
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(_TOO_LARGE)

        def on_message_begin(self) -> None:
            self._head_bytes = self._field_bytes = self._fields = 0
            self._begin_head()
            super().on_message_begin()

        def on_url(self, url: bytes) -> None:
            super().on_url(url)
            if len(self.url) > MAX_TARGET_BYTES:
                self._refuse_now(_TOO_LONG)

        def on_header(self, name: bytes, value: bytes) -> None:
            self._fields += 1
            self._field_bytes += len(name) + len(value) + 4
            if self._fields > MAX_HEADERS or self._field_bytes > MAX_HEAD_BYTES:
                self._refuse_now(_TOO_LARGE)
            # Those of a trailer were not there when the request was judged by its head: nobody may find them later.
            if self._in_head:
                super().on_header(name, value)

        def on_headers_complete(self) -> None:
            if self.parser.should_upgrade() and not self._should_upgrade():
                # The parser stops here: what follows would be read as a request of its own.
                self._refuse_now(_UPGRADE)
            hosts = 0
            for name, value in self.headers:
                if name == b"host":
                    hosts += 1
                elif name == b"transfer-encoding" and value.lower() != b"chunked":
                    self._refuse_now(_ENCODING)
            if hosts > 1 or (hosts == 0 and self.parser.get_http_version() != "1.0"):
                self._refuse_now(_NO_HOST)
            if len(self.pipeline) >= MAX_PIPELINED:
                self._refuse_now(_MALFORMED)
            super().on_headers_complete()
            self._begin_request()

        def on_body(self, body: bytes) -> None:
            self._read_of_body = True
            self._head_bytes = 0
            super().on_body(body)

        def on_message_complete(self) -> None:
            self._in_body = False
            super().on_message_complete()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._answered()

        def _has_waiting_requests(self) -> bool:
            return bool(self.pipeline)

        def _refuse_now(self, answer: bytes) -> None:
            self._refuse(answer)
            raise _RefusedError

    return BoundedHttpToolsProtocol


def _with_h11() -> Any:
    import h11
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Checked(h11.Connection):
        """h11, which bounds what is incomplete and knows its RFC, with a bound on what is complete as well."""

        def __init__(self, begun: Any) -> None:
            super().__init__(h11.SERVER, MAX_HEAD_BYTES)
            self._begun = begun

        def next_event(self) -> Any:
            event = super().next_event()
            if type(event) is h11.Request:
                _check(event)
                self._begun()
            return event

    def _check(request: h11.Request) -> None:
        fields = request.headers.raw_items()
        size = sum(len(name) + len(value) + 4 for name, value in fields)
        if len(fields) > MAX_HEADERS or size > MAX_HEAD_BYTES:
            raise h11.RemoteProtocolError("too large", error_status_hint=431)
        if request.http_version not in (b"1.0", b"1.1"):
            raise h11.RemoteProtocolError("another version")
        if len(request.target) > MAX_TARGET_BYTES:
            raise h11.RemoteProtocolError("too long", error_status_hint=414)
        named = {name: value.lower() for name, value in request.headers}
        if b"content-length" in named and b"transfer-encoding" in named:
            raise h11.RemoteProtocolError("two lengths")  # it would choose one; who stands before us, maybe the other
        if request.method == b"CONNECT" or (b"upgrade" in named and b"upgrade" in named.get(b"connection", b"")):
            raise h11.RemoteProtocolError(_UPGRADE_FAULT)

    class BoundedH11Protocol(_Bounded, H11Protocol):
        def __init__(self, *arguments: Any, watcher: Watcher | None = None, **named: Any) -> None:
            super().__init__(*arguments, **named)
            self._watcher = watcher
            self.logger = _LOG
            self.conn = Checked(self._begin_request)

        def data_received(self, data: bytes) -> None:
            if self._refused:
                return
            if not self._in_head and self._is_between_requests():
                self._begin_head()
            super().data_received(data)

        def send_400_response(self, msg: str) -> None:
            if not self._refused and str(sys.exc_info()[1]) == _UPGRADE_FAULT:
                self._refuse(_UPGRADE)
            else:
                super().send_400_response(msg)

        def on_response_complete(self) -> None:
            # It goes on to the next request by itself, if that has come already.
            answered = self.cycle
            super().on_response_complete()
            if self.cycle is answered:
                self._in_body = False
                if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
                    self._begin_head()
            self._answered()

    return BoundedH11Protocol


_UPGRADE_FAULT: Final = "an upgrade"
