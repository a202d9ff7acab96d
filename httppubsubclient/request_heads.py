"""uvicorn's HTTP protocol with a bound on what comes before a request is handed over, and on how long that takes.

With httptools uvicorn reads a head of any size, waits for it for ever, and treats what follows an `Upgrade` that nobody
asked for as the next request. Both sides that serve use this; with h11 (no httptools installed) uvicorn has a bound of
its own.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

__all__ = ["HEAD_SECONDS", "MAX_HEAD_BYTES", "bounded_http_protocol"]

MAX_HEAD_BYTES: Final = 64 * 1024
"""A topic of 4096 bytes, each of them percent-encoded, and the headers of a signed request fit several times."""

HEAD_SECONDS: Final = 20.0
"""From the connection, or from the first byte of a later request, to the end of its head."""

_TOO_LARGE: Final = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
_TOO_SLOW: Final = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
_UPGRADE: Final = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-type: text/plain\r\n"
_UPGRADE_TEXT: Final = b"Upgrade is not supported here; send the request without it (curl --http1.1)\n"


def bounded_http_protocol() -> Any:
    """What uvicorn.Config takes as `http`: a protocol class, or "h11" where httptools is not installed."""
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    except ImportError:
        return "h11"

    class BoundedProtocol(HttpToolsProtocol):
        """Closes connections whose head is too large, too slow, or asks for another protocol."""

        _refused = False
        _head_bytes = 0
        _in_head = True
        _read_of_body = False
        """What was read last ended a body, so most of it is not the head that follows."""
        _head_began = 0.0
        _timer: asyncio.TimerHandle | None = None
        """One for the connection, not one for each request: it looks whether a head is under way, and since when."""

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._head_began = self.loop.time()
            self._timer = self.loop.call_later(HEAD_SECONDS, self._look)

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if not self._in_head and (self.cycle is None or self.cycle.response_complete):
                # Whatever comes now begins a head, an empty line before it too: it has its time, and no more.
                self._in_head = True
                self._head_bytes = 0
                self._head_began = self.loop.time()
            self._read_of_body = False
            super().data_received(data)
            if self._in_head and not self._read_of_body and not self.transport.is_closing():
                self._head_bytes += len(data)
                if self._head_bytes > MAX_HEAD_BYTES:
                    self._refuse(_TOO_LARGE)

        def on_message_begin(self) -> None:
            self._in_head = True
            self._head_bytes = 0
            self._head_began = self.loop.time()
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._in_head = False
            if self.parser.should_upgrade() and not self._should_upgrade():
                # The parser stops here: what follows would be read as a request of its own.
                length = b"content-length: %d\r\n\r\n" % len(_UPGRADE_TEXT)
                self._refuse(_UPGRADE + length + _UPGRADE_TEXT)
                return
            super().on_headers_complete()

        def on_body(self, body: bytes) -> None:
            self._read_of_body = True
            if not self._refused:
                super().on_body(body)

        def on_message_complete(self) -> None:
            if not self._refused:
                super().on_message_complete()

        def _refuse(self, answer: bytes) -> None:
            self._refused = True
            self._stop_timer()
            if not self.transport.is_closing():
                self.transport.write(answer)
                self.transport.close()

        def _look(self) -> None:
            left = HEAD_SECONDS
            if self._in_head:
                left = self._head_began + HEAD_SECONDS - self.loop.time()
                if left <= 0:
                    self._refuse(_TOO_SLOW)
                    return
            self._timer = self.loop.call_later(left, self._look)

        def _stop_timer(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return BoundedProtocol
