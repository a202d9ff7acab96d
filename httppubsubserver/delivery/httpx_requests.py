"""A `httpx.Request` as the bytes that are sent: head, framing, body. No sockets.

The framing comes from the request's own headers, which httpx makes: Content-Length, or `Transfer-Encoding: chunked`
for a stream. What two programs could read differently is refused, `httpx.LocalProtocolError`: nothing that a caller
puts into a method, a target or a header may end a line or begin another request.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterable, Callable
from dataclasses import dataclass
from typing import Final

import httpx

from httppubsubclient.bodies import Body

__all__ = ["Head", "StreamedBody", "framed", "request_head"]

_TOKEN: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_HEAD: Final = re.compile(
    _TOKEN + rb" [!-~]++ HTTP/1\.1\r\n(?:" + _TOKEN + rb": [\t\x20-\x7e\x80-\xff]*+\r\n)*+\r\n",
)
_FIELDS: Final = re.compile(
    rb"\r\n(host|content-length|transfer-encoding|connection|upgrade):[\t ]*+([^\r]*+)", re.IGNORECASE
)
_LENGTH: Final = re.compile(rb"[0-9]{1,18}")


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a request and what it says."""

    data: bytes
    """From the request line to the empty line."""
    length: int
    """Of the body, when it is not `chunked`."""
    chunked: bool
    last: bool
    """It asks to close the connection after the answer."""


def request_head(request: httpx.Request) -> Head:
    """Raises `httpx.LocalProtocolError`, and `httpx.UnsupportedProtocol` for an upgrade."""
    fields = request.headers.raw
    target = request.extensions.get("target", request.url.raw_path)
    data = b"%b %b HTTP/1.1\r\n%b\r\n" % (
        request.method.encode("latin-1", "replace"),
        target,
        b"".join([b"%b: %b\r\n" % field for field in fields]),
    )
    # Counted, because the one thing that a pattern over all lines cannot see is a field that has become two.
    if not _HEAD.fullmatch(data) or data.count(b"\r\n") != len(fields) + 2:
        raise httpx.LocalProtocolError("the method, the target or a header of the request cannot be sent in HTTP/1.1")
    hosts, length, chunked, last = 0, None, False, False
    for name, padded in _FIELDS.findall(data):
        field, value = name.lower(), padded.rstrip(b"\t ").lower()
        if field == b"host":
            hosts += 1
        elif field == b"content-length":
            if length is not None or not _LENGTH.fullmatch(value):
                raise httpx.LocalProtocolError("Content-Length is not one number")
            length = int(value)
        elif field == b"transfer-encoding":
            if chunked or value != b"chunked":
                raise httpx.LocalProtocolError("Transfer-Encoding is not `chunked`, once")
            chunked = True
        elif field == b"upgrade":
            raise httpx.UnsupportedProtocol("this transport makes no upgrades (websockets, HTTP/2)")
        else:
            last = last or b"close" in [token.strip(b"\t ") for token in value.split(b",")]
    if hosts != 1:
        raise httpx.LocalProtocolError(f"a request has one Host header, not {hosts}")
    if chunked and length is not None:
        raise httpx.LocalProtocolError("Content-Length beside Transfer-Encoding")
    return Head(data, length or 0, chunked, last)


def framed(head: Head, data: bytes) -> Body:
    """A body that is in memory, as it is sent after `head`. Raises `httpx.LocalProtocolError`."""
    if head.chunked:
        data = b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data) if data else b"0\r\n\r\n"
    else:
        _check_length(head, len(data) == head.length)
    return Body(data, None, len(data), b"")


class StreamedBody(Body):
    """A body that is read, once, while it is sent after `head`. `failed` is told what goes wrong in reading it."""

    __slots__ = ("_failed", "_head", "_stream")

    def __init__(self, head: Head, stream: AsyncIterable[bytes], failed: Callable[[Exception], None]) -> None:
        super().__init__(None, None, head.length, b"")
        self._head = head
        self._stream = stream
        self._failed = failed

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The body with its framing. The stream is asked for more only when there is room for what it gave."""
        left = self._head.length
        pieces = aiter(self._stream)
        try:
            async for piece in pieces:
                if not piece:
                    continue  # as a chunk it would be the last
                if self._head.chunked:
                    yield b"%x\r\n%b\r\n" % (len(piece), piece)
                else:
                    left -= len(piece)
                    _check_length(self._head, left >= 0)
                    yield piece
            if self._head.chunked:
                yield b"0\r\n\r\n"
            else:
                _check_length(self._head, left == 0)
        except Exception as error:
            self._failed(error)
        finally:
            if isinstance(pieces, AsyncGenerator):
                await pieces.aclose()


def _check_length(head: Head, fits: bool) -> None:
    if not fits:
        raise httpx.LocalProtocolError(f"the body has not the {head.length} bytes that the headers announce")
