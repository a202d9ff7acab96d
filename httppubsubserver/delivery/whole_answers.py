"""Answers with their headers and their body, for callers that want more than a status. No I/O either.

`WholeAnswerReader` reads as `AnswerReader` does and tells the answer when its body is complete. Its body decides
whether there is an answer at all, so what costs `AnswerReader` only its connection is refused here:

| refused, `BadAnswer`                                                  | because                                  |
|-----------------------------------------------------------------------|------------------------------------------|
| a chunk that is not `hex[;extension]CRLF data CRLF`, trailers that are no fields | where the body ends is in doubt |
| Transfer-Encoding in HTTP/1.0                                         | likewise (RFC 9112 section 6.1)          |
| a body of more than `max_bytes`, `AnswerTooLarge`                     | memory                                   |

Trailers are read and dropped. Bytes after the answer cost its connection, and so does a body on 204 or 304.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from httppubsubserver.delivery.answers import (
    CHUNKED,
    FIELD_LINES,
    FIRST_CHUNK,
    MAX_CHUNK_LINE_BYTES,
    MAX_HEAD_BYTES,
    NEXT_CHUNK,
    UNTIL_CLOSE,
    Answer,
    AnswerReader,
    BadAnswer,
    Head,
    Reading,
)

__all__ = ["AnswerTooLarge", "WholeAnswer", "WholeAnswerReader"]

_FIELD: Final = re.compile(rb"\r\n([^\r:]++):[\t ]*+([^\r]*+)")
_TRAILERS: Final = re.compile(FIELD_LINES + rb"\r\n")


class AnswerTooLarge(BadAnswer):
    """Its body has more bytes than may be kept."""


@dataclass(frozen=True, slots=True)
class WholeAnswer(Answer):
    """An answer as it came, but for the framing of its body."""

    version: bytes
    """`HTTP/1.0` or `HTTP/1.1`"""
    reason: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


class WholeAnswerReader(AnswerReader):
    """Reads the answers of one connection: `expect`, then `feed` until it is not HEAD, or `ended` says so.

    Its state is never BODY: an answer is not known before its end.
    """

    __slots__ = ("_body", "_head", "_last", "_of_head", "_trailers")

    def __init__(self, *, max_bytes: int) -> None:
        super().__init__(max_bytes=max_bytes)
        self._of_head = False
        self._last = False
        self._head: Head | None = None
        """Of the answer whose body is being read."""
        self._body = bytearray()
        self._trailers = False

    def expect(self, *, of_head: bool = False, last: bool = False) -> None:
        """A request is being sent. `of_head`: with the method HEAD; `last`: it asked to close after the answer."""
        self._of_head = of_head
        self._last = last
        super().expect()

    @property
    def untouched(self) -> bool:
        """Not one byte of the expected answer has come yet."""
        return self._head is None and super().untouched

    def feed(self, data: bytes) -> WholeAnswer | None:
        """Take what arrived; returns the answer, once, when it is complete. Raises `BadAnswer`."""
        try:
            if self._head is None:
                super().feed(data)  # calls `_begin`
            else:
                self._read_body(data)
            return self._answer() if self._head is not None and self.state is not Reading.HEAD else None
        except BadAnswer:
            self.state = Reading.SPENT
            raise

    def ended(self) -> WholeAnswer | None:
        """The peer has closed in good order: the answer, if that is what ends its body."""
        if self.state is Reading.HEAD and self._head is not None and self._head.body == UNTIL_CLOSE:
            self.state = Reading.SPENT
            return self._answer()
        return None

    def _begin(self, head: Head, data: bytes) -> None:
        self._head = head
        self._keeps = head.keeps and not self._last
        self._body = bytearray()
        if self._of_head or head.body == 0:
            self._complete(data)
            return
        if head.body > self._max_bytes:
            raise self._too_large()
        if head.body == UNTIL_CLOSE and any(name.lower() == b"transfer-encoding" for name, _ in _fields(head.data)):
            raise BadAnswer("Transfer-Encoding in HTTP/1.0")
        self._left = max(head.body, 0)
        self._chunk = FIRST_CHUNK if head.body == CHUNKED else None
        self._trailers = False
        self._read_body(data)

    def _complete(self, after: bytes) -> None:
        self.state = Reading.IDLE if self._keeps and not after else Reading.SPENT

    def _answer(self) -> WholeAnswer:
        head, body = self._head, bytes(self._body)
        assert head is not None
        self._head, self._body = None, bytearray()
        end = head.data.index(b"\r\n")
        return WholeAnswer(
            status=head.answer.status,
            retry_after=head.answer.retry_after,
            version=head.data[:8],
            reason=head.data[13:end],
            headers=_fields(head.data),
            body=body,
        )

    def _too_large(self) -> AnswerTooLarge:
        return AnswerTooLarge(f"the body of the answer has more than {self._max_bytes} bytes")

    def _read_body(self, data: bytes) -> None:
        if self._chunk is not None:
            self._read_chunks(self._buffer + data, self._chunk)
        elif self._head is not None and self._head.body == UNTIL_CLOSE:
            self._body += data
            if len(self._body) > self._max_bytes:
                raise self._too_large()
        else:
            self._body += data[: self._left]
            after = data[self._left :]
            self._left -= len(data) - len(after)
            if not self._left:
                self._complete(after)

    def _read_chunks(self, data: bytes, line: re.Pattern[bytes]) -> None:
        """RFC 9112 section 7.1. The CRLF after a chunk's data is read as the beginning of the next chunk's line."""
        self._buffer = b""
        at = 0
        while not self._trailers:
            if self._left:
                piece = data[at : at + self._left]
                self._body += piece
                at += len(piece)
                self._left -= len(piece)
                if self._left:
                    return
            match = line.match(data, at)
            if match is None:
                self._buffer = data[at:]
                # A line that is complete, and still no chunk's, never will be one.
                complete = data.find(b"\n", at if line is FIRST_CHUNK else at + 2) >= 0
                if complete or len(self._buffer) > MAX_CHUNK_LINE_BYTES:
                    raise BadAnswer("a chunk of the body has no size, or does not end where it should")
                return
            at = match.end()
            self._left = int(match[1], 16)
            self._trailers = self._left == 0
            if len(self._body) + self._left > self._max_bytes:
                raise self._too_large()
            self._chunk = line = NEXT_CHUNK
        self._read_trailers(data[at:])

    def _read_trailers(self, data: bytes) -> None:
        end = 2 if data[:2] == b"\r\n" else data.find(b"\r\n\r\n") + 4
        if end == 3:
            if len(data) > MAX_HEAD_BYTES:
                raise BadAnswer("the trailers of the answer are too long")
            self._buffer = data
        elif _TRAILERS.fullmatch(data[:end]):
            self._complete(data[end:])
        else:
            raise BadAnswer("the trailers of the answer are no header fields")


_MAX_KNOWN: Final = 256
_MAX_KNOWN_BYTES: Final = 1024
_known: dict[bytes, tuple[tuple[bytes, bytes], ...]] = {}


def _fields(head: bytes) -> tuple[tuple[bytes, bytes], ...]:
    """The header fields of a head that was checked. Servers repeat themselves for a second at least (Date)."""
    fields = _known.get(head)
    if fields is None:
        fields = tuple((name, value.rstrip(b"\t ")) for name, value in _FIELD.findall(head))
        if len(head) <= _MAX_KNOWN_BYTES:
            if len(_known) >= _MAX_KNOWN:
                _known.clear()
            _known[head] = fields
    return fields
