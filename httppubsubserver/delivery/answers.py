"""What the bytes of an answer mean (RFC 9112), without any I/O; and how an attempt can end.

Only four things of an answer matter here: its status, its Retry-After, the beginning of its body when it tells of a
failure, and whether the connection is good for another request afterwards. So a head is checked whole, by one regular
expression that is stricter than h11 (a test compares the two), and the rest is counted, not kept. Stricter where it
costs nothing: a rest in doubt costs its connection, not the answer, which was known before.

An answer of 2xx is told as soon as its head is there. Any other is held back until `MAX_EXCERPT_BYTES` of its body have
come, or its end; whoever does not want to wait so long asks for it (`interrupted`).

| refused, `BadAnswer`                                          | because                                             |
|---------------------------------------------------------------|-----------------------------------------------------|
| anything but `HTTP/1.0` and `HTTP/1.1`, no status line at all | HTTP/0.9 would make an answer of any garbage        |
| a lone CR or LF, NUL and other controls, folded lines         | programs disagree about where the line ends         |
| a space before the colon, a name that is no token             | likewise                                            |
| Content-Length twice, in a list, or not a number              | programs disagree about where the answer ends       |
| Content-Length beside Transfer-Encoding, any but `chunked`    | likewise                                            |
| 101; more than `MAX_INTERIM_ANSWERS` others of 1xx            | nobody asked for an upgrade; there is no end to it  |
| more than `MAX_HEAD_BYTES`, more than `MAX_HEADERS`           | memory                                              |

| costs the connection                                          | because                                             |
|---------------------------------------------------------------|-----------------------------------------------------|
| HTTP/1.0, `Connection: close`, no length                      | the peer closes it                                  |
| a body on 204 or 304, bytes after the answer                  | they would be read as the answer to the next request|
| a chunk that is not `hex[;extension]CRLF data CRLF`, trailers | where it ends is in doubt, or not worth knowing     |
| more than `max_bytes` of body                                 | reading on would serve nobody                       |
"""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

__all__ = [
    "CHUNKED",
    "FIELD_LINES",
    "FIRST_CHUNK",
    "MAX_CHUNK_LINE_BYTES",
    "MAX_EXCERPT_BYTES",
    "MAX_HEADERS",
    "MAX_HEAD_BYTES",
    "MAX_INTERIM_ANSWERS",
    "NEXT_CHUNK",
    "UNTIL_CLOSE",
    "Answer",
    "AnswerReader",
    "AttemptFailed",
    "BadAnswer",
    "Head",
    "Reading",
]

MAX_HEAD_BYTES: Final = 32 * 1024
MAX_HEADERS: Final = 100
MAX_INTERIM_ANSWERS: Final = 16
MAX_CHUNK_LINE_BYTES: Final = 256
MAX_EXCERPT_BYTES: Final = 1024

UNTIL_CLOSE: Final = -1
CHUNKED: Final = -2

# RFC 9112 section 4, RFC 9110 section 5.5. Possessive throughout, hence linear: no byte is looked at twice.
_TEXT: Final = rb"[\t\x20-\x7e\x80-\xff]*+"
FIELD_LINES: Final = rb"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]++:" + _TEXT + rb"\r\n){0,%d}+" % MAX_HEADERS
_HEAD: Final = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: " + _TEXT + rb")?\r\n" + FIELD_LINES + rb"\r\n")
_FIELDS: Final = re.compile(
    rb"\r\n(content-length|transfer-encoding|connection|retry-after):[\t ]*+([^\r]*+)", re.IGNORECASE
)
_START: Final = b"HTTP/1."
# What is wrong whatever follows, so that it is refused at once and not at the deadline.
_NEVER: Final = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r(?=[^\n])")
_LENGTH: Final = re.compile(rb"[0-9]{1,18}")
FIRST_CHUNK: Final = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;" + _TEXT + rb")?\r\n")
NEXT_CHUNK: Final = re.compile(rb"\r\n" + FIRST_CHUNK.pattern)


class BadAnswer(Exception):
    """This is not an answer in HTTP/1.1, or one that two programs could read differently."""


class AttemptFailed(Exception):
    """There was no answer. `again`: a quick second attempt makes sense; `hanging`: the time ran out."""

    def __init__(self, reason: str, *, again: bool, hanging: bool = False, cause: BaseException | None = None) -> None:
        super().__init__(reason)
        self.__cause__ = cause
        self.reason = reason
        self.again = again
        self.hanging = hanging

    @property
    def told(self) -> str:
        """The reason for people: of a `tls_error` also what is wrong, in the words of OpenSSL."""
        cause = self.__cause__
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"{self.reason}: {cause.verify_message.rstrip('.')}"
        if isinstance(cause, ssl.SSLError) and cause.reason:
            return f"{self.reason}: {cause.reason.lower().replace('_', ' ')}"
        return self.reason


@dataclass(frozen=True, slots=True)
class Answer:
    """What the dispatcher needs of a subscriber's answer."""

    status: int
    retry_after: str | None
    excerpt: bytes = field(default=b"", kw_only=True)
    """The beginning of its body, as it came; of a 2xx nothing."""


@dataclass(frozen=True, slots=True)
class Head:
    """What a head says, of the answer and of its end."""

    answer: Answer
    body: int
    """How many bytes follow, or `UNTIL_CLOSE`, or `CHUNKED`; not what a HEAD request means for it."""
    keeps: bool
    """The connection may be used again when the body has been read."""
    data: bytes
    """All of it, with the empty line that ends it."""


class Reading(Enum):
    """Where a connection stands in what it reads."""

    IDLE = "idle"
    """Nothing was asked, or the answer was read to its very end: good for a request."""
    HEAD = "head"
    """A request was sent, its answer is not known yet."""
    BODY = "body"
    """The head of the answer is known, its rest is still coming."""
    SPENT = "spent"
    """The connection is of no more use."""


_MAX_KNOWN: Final = 512
_MAX_KNOWN_BYTES: Final = 1024
_known: dict[bytes, Head] = {}
"""Heads that were read lately. Most servers answer with the same bytes again, for a second at least (Date)."""


class AnswerReader:
    """Reads the answers that come over one connection, one at a time: `expect`, then `feed` until it is not HEAD."""

    __slots__ = (
        "_buffer",
        "_chunk",
        "_excerpt",
        "_held",
        "_interim",
        "_keeps",
        "_left",
        "_max_bytes",
        "_room",
        "state",
    )

    def __init__(self, *, max_bytes: int) -> None:
        self.state = Reading.IDLE
        self._max_bytes = max_bytes
        self._buffer = b""
        self._interim = 0
        self._keeps = True
        self._left = 0
        self._room = 0
        self._chunk: re.Pattern[bytes] | None = None
        self._held: Answer | None = None
        """What is not told yet, because the beginning of its body is wanted, too."""
        self._excerpt = bytearray()

    def expect(self) -> None:
        """A request is being sent; what comes now answers it."""
        self.state = Reading.HEAD

    @property
    def untouched(self) -> bool:
        """Not one byte of the expected answer has come yet."""
        return self.state is Reading.HEAD and not self._buffer and not self._interim

    def feed(self, data: bytes) -> Answer | None:
        """Take what arrived; returns the answer, once, as soon as it can be told. Raises `BadAnswer`."""
        if self.state is not Reading.HEAD:
            if self.state is Reading.BODY:
                self._read_body(data)
                if self._held is not None:
                    return self._told_when_enough()
            else:
                # Bytes that nobody asked for: they must not become the answer to the next request.
                self.state = Reading.SPENT
            return None
        seen = len(self._buffer)
        if seen:
            data = self._buffer + data
        while True:
            end = data.find(b"\r\n\r\n", max(0, seen - 3)) + 4
            if end == 3:
                self._keep(data, seen)
                return None
            head = _known.get(data[:end]) or self._read_head(data[:end])
            if head.answer.status >= 200:
                break
            self._interim += 1
            if head.answer.status == 101 or self._interim > MAX_INTERIM_ANSWERS:
                self.state = Reading.SPENT
                raise BadAnswer("an upgrade that nobody asked for, or one interim answer after the other")
            data = data[end:]
            seen = 0
        self._interim = 0
        self._buffer = b""
        self._begin(head, data[end:])
        return head.answer if self._held is None else self._told_when_enough()

    def interrupted(self) -> Answer | None:
        """The answer that is held back, with what has come of its body; None when there is none. It is told by this."""
        held, self._held = self._held, None
        if held is None:
            return None
        return Answer(held.status, held.retry_after, excerpt=bytes(self._excerpt))

    def _told_when_enough(self) -> Answer | None:
        if self.state is Reading.BODY and len(self._excerpt) < MAX_EXCERPT_BYTES:
            return None
        if self.state is Reading.BODY and self._left > self._room:
            # More is announced than may be read: there is no end to be waited for.
            self.state = Reading.SPENT
        return self.interrupted()

    def _keep(self, data: bytes, seen: int) -> None:
        """The head is not complete: keep it, unless it can never become one."""
        begins_well = data.startswith(_START) if len(data) >= len(_START) else _START.startswith(data)
        if not begins_well or len(data) > MAX_HEAD_BYTES or _NEVER.search(data, max(0, seen - 1)):
            self.state = Reading.SPENT
            raise BadAnswer("this does not begin like an answer in HTTP/1.1, or its head is too long")
        self._buffer = data

    def _read_head(self, data: bytes) -> Head:
        try:
            head = _parse_head(data)
        except BadAnswer:
            self.state = Reading.SPENT
            raise
        if len(data) <= _MAX_KNOWN_BYTES:
            if len(_known) >= _MAX_KNOWN:
                _known.clear()
            _known[data] = head
        return head

    def _begin(self, head: Head, data: bytes) -> None:
        self._keeps = head.keeps
        if head.body == 0:
            self.state = Reading.SPENT if data or not head.keeps else Reading.IDLE
            return
        if head.answer.status >= 300:
            self._held = head.answer
            self._excerpt = bytearray()
        if head.body > self._max_bytes and (self._held is None or self._max_bytes < MAX_EXCERPT_BYTES):
            self.state = Reading.SPENT
            if self._held is not None:
                self._keep_excerpt(data, 0, self._max_bytes)
        else:
            self.state = Reading.BODY
            self._room = self._max_bytes
            self._left = 0 if head.body == CHUNKED else head.body
            self._chunk = FIRST_CHUNK if head.body == CHUNKED else None
            self._read_body(data)

    def _keep_excerpt(self, data: bytes, begin: int, end: int) -> None:
        self._excerpt += data[begin : min(end, begin + MAX_EXCERPT_BYTES - len(self._excerpt))]

    def _read_body(self, data: bytes) -> None:
        self._room -= len(data)
        if self._held is not None and self._chunk is None:
            self._keep_excerpt(data, 0, len(data) if self._left == UNTIL_CLOSE else self._left)
        if self._chunk is not None:
            self._read_chunks(self._buffer + data, self._chunk)
        elif self._left > 0:
            self._left -= len(data)
            if self._left <= 0:
                self.state = Reading.IDLE if self._left == 0 and self._keeps else Reading.SPENT
        if self._room < 0 and self.state is Reading.BODY:
            self.state = Reading.SPENT

    def _read_chunks(self, data: bytes, line: re.Pattern[bytes]) -> None:
        """RFC 9112 section 7.1. The CRLF after a chunk's data is read as the beginning of the next chunk's line."""
        at = self._left
        self._left = 0
        self._buffer = b""
        if self._held is not None:
            self._keep_excerpt(data, 0, at)
        while at <= len(data):
            match = line.match(data, at)
            if match is None:
                self._buffer = data[at:]
                # A line that is complete, and still no chunk's, never will be one.
                complete = data.find(b"\n", at if line is FIRST_CHUNK else at + 2) >= 0
                if complete or len(self._buffer) > MAX_CHUNK_LINE_BYTES:
                    self.state = Reading.SPENT
                return
            size = int(match[1], 16)
            if size == 0:
                rest = data[match.end() :]
                if rest == b"\r\n":
                    self.state = Reading.IDLE if self._keeps else Reading.SPENT
                elif b"\r\n".startswith(rest):
                    self._buffer = data[at:]
                else:
                    self.state = Reading.SPENT
                return
            at = match.end() + size
            self._chunk = line = NEXT_CHUNK
            if self._held is not None:
                self._keep_excerpt(data, match.end(), at)
        self._left = at - len(data)


def _parse_head(data: bytes) -> Head:
    """A complete head, with the empty line that ends it. Raises `BadAnswer`."""
    match = _HEAD.fullmatch(data)
    if match is None or len(data) > MAX_HEAD_BYTES:
        raise BadAnswer("the head of the answer is not HTTP/1.1")
    status = int(match[2])
    keeps = match[1] == b"1"
    length: int | None = None
    chunked = False
    retry_after: str | None = None
    for name, padded in _FIELDS.findall(data):
        field, value = name.lower(), padded.rstrip(b"\t ")
        if field == b"content-length":
            if length is not None or not _LENGTH.fullmatch(value):
                raise BadAnswer("Content-Length is not one number")
            length = int(value)
        elif field == b"transfer-encoding":
            if chunked or value.lower() != b"chunked":
                raise BadAnswer("Transfer-Encoding is not `chunked`, once")
            chunked = True
        elif field == b"retry-after":
            retry_after = value.decode("latin-1") if retry_after is None else retry_after
        elif b"close" in [token.strip(b"\t ") for token in value.lower().split(b",")]:
            keeps = False
    if chunked and length is not None:
        raise BadAnswer("Content-Length beside Transfer-Encoding")
    if status in (204, 304) or status < 200:
        # RFC 9112 section 6.3: there is no body. Whoever announces one may send it, too.
        return Head(Answer(status, retry_after), 0, keeps and not chunked and not length, data)
    # RFC 9112 section 6.1: HTTP/1.0 knows no chunks, whoever sends them with it is at fault.
    body = CHUNKED if chunked and match[1] == b"1" else UNTIL_CLOSE if length is None else length
    return Head(Answer(status, retry_after), body, keeps, data)
