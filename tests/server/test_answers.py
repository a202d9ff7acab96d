"""What the bytes of an answer mean: tables of what is taken, refused and costs the connection, and h11 as a witness."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import h11
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from httppubsubserver.delivery.answers import (
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    MAX_INTERIM_ANSWERS,
    Answer,
    AnswerReader,
    BadAnswer,
    Reading,
)

MAX_BYTES = 1000
OK = b"HTTP/1.1 200 OK\r\n"


@dataclass(frozen=True)
class Outcome:
    """How the reading of some bytes ended."""

    answer: Answer | None
    refused: bool
    state: Reading


def read(*pieces: bytes, max_bytes: int = MAX_BYTES) -> Outcome:
    """Feed the pieces to a reader that expects one answer."""
    reader = AnswerReader(max_bytes=max_bytes)
    reader.expect()
    answer = None
    try:
        for piece in pieces:
            told = reader.feed(piece)
            assert told is None or answer is None, "an answer is told once"
            answer = answer or told
    except BadAnswer:
        assert reader.state is Reading.SPENT
        return Outcome(answer, True, reader.state)
    return Outcome(answer, False, reader.state)


def single(data: bytes) -> Iterable[bytes]:
    return (data[at : at + 1] for at in range(len(data)))


GOOD: list[tuple[str, bytes, int, str | None, Reading]] = [
    ("no content", b"HTTP/1.1 204 No Content\r\n\r\n", 204, None, Reading.IDLE),
    ("a length of zero", OK + b"content-length: 0\r\n\r\n", 200, None, Reading.IDLE),
    ("a length and its body", OK + b"Content-Length: 5\r\n\r\nhello", 200, None, Reading.IDLE),
    ("a body that is not complete", OK + b"Content-Length: 5\r\n\r\nhell", 200, None, Reading.BODY),
    ("leading zeros", OK + b"Content-Length: 0005\r\n\r\nhello", 200, None, Reading.IDLE),
    ("space around a value", OK + b"content-length: \t 5 \t\r\n\r\nhello", 200, None, Reading.IDLE),
    ("no space before a value", OK + b"content-length:5\r\n\r\nhello", 200, None, Reading.IDLE),
    ("an empty value", OK + b"x:\r\ncontent-length: 0\r\n\r\n", 200, None, Reading.IDLE),
    ("bytes beyond ASCII in a value", OK + b"x: \xff\xe4\r\ncontent-length: 0\r\n\r\n", 200, None, Reading.IDLE),
    ("an empty reason", b"HTTP/1.1 204 \r\n\r\n", 204, None, Reading.IDLE),
    ("no reason", b"HTTP/1.1 204\r\n\r\n", 204, None, Reading.IDLE),
    ("a status nobody knows", b"HTTP/1.1 799 What\r\ncontent-length: 0\r\n\r\n", 799, None, Reading.IDLE),
    ("retry-after", b"HTTP/1.1 503 x\r\nRetry-After:  120 \r\ncontent-length: 0\r\n\r\n", 503, "120", Reading.IDLE),
    ("the first of two", b"HTTP/1.1 503 x\r\nretry-after: 1\r\nretry-after: 2\r\ncontent-length: 0\r\n\r\n", 503, "1",
     Reading.IDLE),
    ("a name that ends the same", b"HTTP/1.1 503 x\r\nx-retry-after: 1\r\ncontent-length: 0\r\n\r\n", 503, None,
     Reading.IDLE),
    ("chunks", OK + b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\nA\r\n0123456789\r\n0\r\n\r\n", 200, None,
     Reading.IDLE),
    ("chunked in capitals", OK + b"Transfer-Encoding: Chunked\r\n\r\n0\r\n\r\n", 200, None, Reading.IDLE),
    ("an extension", OK + b"transfer-encoding: chunked\r\n\r\n1;a=\"b\"\r\nx\r\n0;c\r\n\r\n", 200, None, Reading.IDLE),
    ("a chunk that is not complete", OK + b"transfer-encoding: chunked\r\n\r\n5\r\nhel", 200, None, Reading.BODY),
    ("CR LF within a chunk", OK + b"transfer-encoding: chunked\r\n\r\n4\r\n\r\n\r\n\r\n0\r\n\r\n", 200, None,
     Reading.IDLE),
    ("an interim answer", b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 x\r\n\r\n", 204, None, Reading.IDLE),
    ("early hints", b"HTTP/1.1 103 x\r\nlink: </x>\r\nretry-after: 9\r\n\r\nHTTP/1.1 204 x\r\n\r\n", 204, None,
     Reading.IDLE),
    ("as many as are allowed", b"HTTP/1.1 102 x\r\n\r\n" * MAX_INTERIM_ANSWERS + b"HTTP/1.1 204 x\r\n\r\n", 204, None,
     Reading.IDLE),
    ("nothing yet", b"", 0, None, Reading.HEAD),
    ("half a head", b"HTTP/1.1 200 OK\r\nx: y\r\n\r", 0, None, Reading.HEAD),
    ("an interim answer alone", b"HTTP/1.1 100 Continue\r\n\r\n", 0, None, Reading.HEAD),
    ("as many headers as are allowed", b"HTTP/1.1 204 x\r\n" + b"a: b\r\n" * MAX_HEADERS + b"\r\n", 204, None,
     Reading.IDLE),
]  # fmt: skip


@pytest.mark.parametrize(
    ("data", "status", "retry_after", "state"), [row[1:] for row in GOOD], ids=[r[0] for r in GOOD]
)
def test_an_answer_is_read(data: bytes, status: int, retry_after: str | None, state: Reading) -> None:
    expected = Outcome(Answer(status, retry_after) if status else None, False, state)
    assert read(data) == expected
    assert read(*single(data)) == expected


ONCE: list[tuple[str, bytes]] = [
    ("HTTP/1.0", b"HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n"),
    ("HTTP/1.0 that would go on", b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 0\r\n\r\n"),
    ("close", OK + b"connection: close\r\ncontent-length: 0\r\n\r\n"),
    ("close in capitals", OK + b"Connection: Close\r\ncontent-length: 0\r\n\r\n"),
    ("close in a list", OK + b"connection: x-y ,\tclose , z\r\ncontent-length: 0\r\n\r\n"),
    ("close in a second header", OK + b"connection: keep-alive\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"),
    ("close with a body", OK + b"connection: close\r\ncontent-length: 2\r\n\r\nab"),
    ("close with chunks", OK + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("a body on 204", b"HTTP/1.1 204 x\r\n\r\nhello"),
    ("a length on 204", b"HTTP/1.1 204 x\r\ncontent-length: 5\r\n\r\n"),
    ("a length on 304", b"HTTP/1.1 304 x\r\ncontent-length: 5\r\n\r\n"),
    ("chunks on 204", b"HTTP/1.1 204 x\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("bytes after the body", OK + b"content-length: 2\r\n\r\nabc"),
    ("another answer after it", b"HTTP/1.1 204 x\r\n\r\nHTTP/1.1 204 x\r\n\r\n"),
    ("bytes after the chunks", OK + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\nx"),
    ("trailers", OK + b"transfer-encoding: chunked\r\n\r\n0\r\na: b\r\n\r\n"),
    ("10 GB", OK + b"content-length: 10000000000\r\n\r\n"),
    ("a length over the limit", OK + b"content-length: %d\r\n\r\n" % (MAX_BYTES + 1)),
    ("a body without a length over the limit", OK + b"\r\n" + b"x" * (MAX_BYTES + 1)),
    ("a chunk over the limit", OK + b"transfer-encoding: chunked\r\n\r\nfff\r\n" + b"x" * MAX_BYTES),
    ("chunks over the limit", OK + b"transfer-encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * MAX_BYTES),
    ("a chunk without a size", OK + b"transfer-encoding: chunked\r\n\r\n\r\n"),
    ("a size that is not hex", OK + b"transfer-encoding: chunked\r\n\r\ng\r\n"),
    ("a signed size", OK + b"transfer-encoding: chunked\r\n\r\n+1\r\nx\r\n0\r\n\r\n"),
    ("a negative size", OK + b"transfer-encoding: chunked\r\n\r\n-1\r\nx\r\n0\r\n\r\n"),
    ("a size in C", OK + b"transfer-encoding: chunked\r\n\r\n0x1\r\nx\r\n0\r\n\r\n"),
    ("a size with an underscore", OK + b"transfer-encoding: chunked\r\n\r\n1_0\r\n0123456789abcdef\r\n0\r\n\r\n"),
    ("space before a size", OK + b"transfer-encoding: chunked\r\n\r\n 1\r\nx\r\n0\r\n\r\n"),
    ("space after a size", OK + b"transfer-encoding: chunked\r\n\r\n1 \r\nx\r\n0\r\n\r\n"),
    ("a size beyond 64 bits", OK + b"transfer-encoding: chunked\r\n\r\n10000000000000001\r\nx\r\n0\r\n\r\n"),
    ("a bare LF after a size", OK + b"transfer-encoding: chunked\r\n\r\n1\nx\r\n0\r\n\r\n"),
    ("a bare LF after a chunk", OK + b"transfer-encoding: chunked\r\n\r\n1\r\nx\n0\r\n\r\n"),
    ("no CR LF after a chunk", OK + b"transfer-encoding: chunked\r\n\r\n1\r\nx0\r\n\r\n"),
    ("NUL in an extension", OK + b"transfer-encoding: chunked\r\n\r\n1;\x00\r\nx\r\n0\r\n\r\n"),
    ("an extension without end", OK + b"transfer-encoding: chunked\r\n\r\n1;" + b"x" * 500),
]


@pytest.mark.parametrize("data", [row[1] for row in ONCE], ids=[row[0] for row in ONCE])
def test_an_answer_counts_and_costs_its_connection(data: bytes) -> None:
    for outcome in (read(data), read(*single(data))):
        assert outcome.answer is not None
        assert outcome.answer.status in (200, 204, 304)
        assert (outcome.refused, outcome.state) == (False, Reading.SPENT)


def test_a_body_without_a_length_is_never_complete() -> None:
    assert read(OK + b"\r\nhello").state is Reading.BODY
    assert read(b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n").state is Reading.BODY


BAD: list[tuple[str, bytes]] = [
    ("garbage", b"\x00\xff this is not HTTP\r\n\r\n"),
    ("HTTP/0.9", b"<html>hello</html>"),
    ("an SSH server", b"SSH-2.0-OpenSSH_9.2\r\n"),
    ("a request", b"GET / HTTP/1.1\r\n\r\n"),
    ("an empty line first", b"\r\nHTTP/1.1 200 OK\r\n\r\n"),
    ("a space first", b" HTTP/1.1 200 OK\r\n\r\n"),
    ("HTTP/2", b"HTTP/2 200\r\n\r\n"),
    ("HTTP/2.0", b"HTTP/2.0 200 OK\r\n\r\n"),
    ("HTTP/1.2", b"HTTP/1.2 200 OK\r\n\r\n"),
    ("HTTP/1.10", b"HTTP/1.10 200 OK\r\n\r\n"),
    ("http/1.1", b"http/1.1 200 OK\r\n\r\n"),
    ("ICY", b"ICY 200 OK\r\n\r\n"),
    ("no status", b"HTTP/1.1\r\n\r\n"),
    ("two digits", b"HTTP/1.1 20 OK\r\n\r\n"),
    ("four digits", b"HTTP/1.1 2000 OK\r\n\r\n"),
    ("status 0", b"HTTP/1.1 000 OK\r\n\r\n"),
    ("a negative status", b"HTTP/1.1 -20 OK\r\n\r\n"),
    ("digits of another script", "HTTP/1.1 \N{FULLWIDTH DIGIT TWO}00 OK\r\n\r\n".encode()),
    ("two spaces", b"HTTP/1.1  200 OK\r\n\r\n"),
    ("a tab", b"HTTP/1.1\t200 OK\r\n\r\n"),
    ("NUL in the reason", b"HTTP/1.1 200 O\x00K\r\n\r\n"),
    ("escape in the reason", b"HTTP/1.1 200 \x1b[31m\r\n\r\n"),
    ("bare LFs", b"HTTP/1.1 200 OK\ncontent-length: 0\n\n"),
    ("a bare LF", OK + b"a: b\ncontent-length: 0\r\n\r\n"),
    ("a bare LF at the end", OK + b"content-length: 0\r\n\n"),
    ("a bare CR", OK + b"a: b\rcontent-length: 0\r\n\r\n"),
    ("a bare CR in a value", OK + b"a: b\r\r\ncontent-length: 0\r\n\r\n"),
    ("NUL in a value", OK + b"a: \x00\r\ncontent-length: 0\r\n\r\n"),
    ("DEL in a value", OK + b"a: \x7f\r\ncontent-length: 0\r\n\r\n"),
    ("a form feed in a value", OK + b"a: b\x0cc\r\ncontent-length: 0\r\n\r\n"),
    ("NUL in a name", OK + b"a\x00: b\r\ncontent-length: 0\r\n\r\n"),
    ("a folded line", OK + b"a: b\r\n c\r\ncontent-length: 0\r\n\r\n"),
    ("a folded first line", OK + b" a: b\r\ncontent-length: 0\r\n\r\n"),
    ("a space before the colon", OK + b"content-length : 0\r\n\r\n"),
    ("no name", OK + b": b\r\ncontent-length: 0\r\n\r\n"),
    ("no colon", OK + b"hello\r\ncontent-length: 0\r\n\r\n"),
    ("a name that is no token", OK + b"a(b): c\r\ncontent-length: 0\r\n\r\n"),
    ("a name beyond ASCII", OK + "ä: b\r\ncontent-length: 0\r\n\r\n".encode()),
    ("two lengths", OK + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello"),
    ("the same length twice", OK + b"content-length: 5\r\ncontent-length: 5\r\n\r\nhello"),
    ("a list of lengths", OK + b"content-length: 5, 5\r\n\r\nhello"),
    ("no length after all", OK + b"content-length:\r\n\r\n"),
    ("a negative length", OK + b"content-length: -1\r\n\r\n"),
    ("a signed length", OK + b"content-length: +5\r\n\r\nhello"),
    ("a length in hex", OK + b"content-length: 0x5\r\n\r\nhello"),
    ("a length with an underscore", OK + b"content-length: 1_0\r\n\r\n0123456789"),
    ("a fractional length", OK + b"content-length: 5.0\r\n\r\nhello"),
    ("a length beyond 64 bits", OK + b"content-length: 18446744073709551616\r\n\r\n"),
    ("a length and chunks", OK + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("chunks and a length", OK + b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n"),
    ("chunked twice", OK + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
    ("chunked in a list", OK + b"transfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n"),
    ("identity", OK + b"transfer-encoding: identity\r\n\r\n"),
    ("gzip, chunked", OK + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    ("xchunked", OK + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n"),
    ("no transfer-encoding after all", OK + b"transfer-encoding:\r\n\r\n"),
    ("an upgrade", b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\r\n"),
    ("one interim answer too many", b"HTTP/1.1 100 x\r\n\r\n" * (MAX_INTERIM_ANSWERS + 1)),
    ("a bad interim answer", b"HTTP/1.1 100 x\r\nno colon\r\n\r\nHTTP/1.1 204 x\r\n\r\n"),
    ("one header too many", b"HTTP/1.1 204 x\r\n" + b"a: b\r\n" * (MAX_HEADERS + 1) + b"\r\n"),
    ("a head that is too long", b"HTTP/1.1 204 x\r\na: " + b"b" * MAX_HEAD_BYTES + b"\r\n\r\n"),
    ("a head without end", b"HTTP/1.1 204 x\r\na: " + b"b" * MAX_HEAD_BYTES),
]


@pytest.mark.parametrize("data", [row[1] for row in BAD], ids=[row[0] for row in BAD])
def test_an_answer_is_refused(data: bytes) -> None:
    refused = Outcome(None, True, Reading.SPENT)
    assert read(data) == refused
    assert read(*single(data)) == refused


@pytest.mark.parametrize("data", [b"\x16\x03", b"HTTP/2", b"HTTP/1.1 200 OK\n", b"HTTP/1.1 200 OK\r\r", b"\n"])
def test_what_can_never_become_an_answer_is_not_waited_for(data: bytes) -> None:
    assert read(data).refused


def test_bytes_that_nobody_asked_for_spend_the_connection() -> None:
    reader = AnswerReader(max_bytes=MAX_BYTES)
    assert reader.feed(b"HTTP/1.1 204 x\r\n\r\n") is None
    assert reader.state is Reading.SPENT


def test_one_answer_after_the_other() -> None:
    reader = AnswerReader(max_bytes=MAX_BYTES)
    for data, status in [
        (OK + b"transfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n", 200),
        (b"HTTP/1.1 100 x\r\n\r\n" * MAX_INTERIM_ANSWERS + b"HTTP/1.1 503 x\r\ncontent-length: 3\r\n\r\nabc", 503),
        (b"HTTP/1.1 100 x\r\n\r\n" * MAX_INTERIM_ANSWERS + b"HTTP/1.1 204 x\r\n\r\n", 204),
    ]:
        assert reader.state is Reading.IDLE
        reader.expect()
        assert reader.feed(data[:1]) is None
        answer = reader.feed(data[1:])
        assert answer is not None
        assert answer.status == status


@pytest.mark.parametrize(("data", "untouched"), [(b"", True), (b"H", False), (b"HTTP/1.1 100 x\r\n\r\n", False)])
def test_a_reader_knows_whether_an_answer_has_begun(data: bytes, untouched: bool) -> None:
    reader = AnswerReader(max_bytes=MAX_BYTES)
    assert not reader.untouched
    reader.expect()
    reader.feed(data)
    assert reader.untouched is untouched


def test_many_tiny_chunks_are_read_in_linear_time() -> None:
    chunks = OK + b"transfer-encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 300_000
    assert read(chunks, max_bytes=10**7).state is Reading.BODY


# -- h11 as a witness -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Witness:
    """What h11 makes of the same bytes."""

    status: int | None
    retry_after: str | None
    refused_head: bool
    reusable: bool


def by_h11(data: bytes) -> Witness:
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
    connection.send(h11.Request(method="POST", target="/", headers=[("host", "x"), ("content-length", "0")]))
    connection.send(h11.EndOfMessage())
    if data:  # to h11, nothing means the end of the connection
        connection.receive_data(data)
    status, retry_after, complete = None, None, False
    try:
        while (event := connection.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
            if isinstance(event, h11.Response):
                status = event.status_code
                found = [value.decode("latin-1") for name, value in event.headers if name == b"retry-after"]
                retry_after = found[0] if found else None
            elif isinstance(event, h11.EndOfMessage):
                complete = True
    except h11.RemoteProtocolError:
        return Witness(status, retry_after, status is None, False)
    reusable = complete and connection.their_state is h11.DONE and not connection.trailing_data[0]
    return Witness(status, retry_after, False, reusable)


def agree(data: bytes) -> None:
    ours, theirs = read(data), by_h11(data)
    if theirs.refused_head:
        assert ours.refused, "whatever h11 refuses is refused"
    if ours.answer is not None and theirs.status is not None:
        assert (ours.answer.status, ours.answer.retry_after) == (theirs.status, theirs.retry_after)
    assert ours.answer is None or theirs.status is not None, "no answer that h11 does not see"
    if ours.state is Reading.IDLE:
        assert theirs.reusable, "no connection is used again that h11 would not use again"


TAKEN: list[tuple[str, bytes]] = [*((row[0], row[1]) for row in GOOD), *ONCE]


@pytest.mark.parametrize("data", [row[1] for row in [*TAKEN, *BAD]], ids=[row[0] for row in [*TAKEN, *BAD]])
def test_h11_agrees_on_the_tables(data: bytes) -> None:
    agree(data)


LINE_ENDS = st.sampled_from([b"\r\n"] * 12 + [b"\n", b"\r", b"\r\r\n", b"\r\n ", b"\r\n\t"])
STATUS_LINES = st.sampled_from([
    *[b"HTTP/1.1 200 OK"] * 6, b"HTTP/1.1 204 No Content", b"HTTP/1.1 304 x", b"HTTP/1.1 503", b"HTTP/1.1 410 ",
    b"HTTP/1.0 200 OK", b"HTTP/1.1 100 Continue", b"HTTP/1.1 101 x", b"HTTP/1.1 099 x", b"HTTP/1.1 999 x",
    b"HTTP/2.0 200 OK", b"HTTP/1.1", b"HTTP/1.1 200 \x00", b"HTTP/1.1 200 \xff", b"HTTP/1.1  200", b"HTTP/1.1 200\tOK",
    b"", b"HTTP/1.1 200 a\x0bb",
])  # fmt: skip
NAMES = st.sampled_from([
    *[b"content-length"] * 4, *[b"transfer-encoding"] * 3, b"Retry-After", b"retry-after", b"CONNECTION", b"connection",
    b"x", b"x-y", b"", b"a b", b"content-length ", b" content-length", b"a\x00", b"\xe4", b"a(", b"upgrade",
])  # fmt: skip
VALUES = st.sampled_from([
    b"0", b"5", b" 5", b"5 ", b"chunked", b"Chunked", b" chunked\t", b"close", b"keep-alive", b"a, close", b"5, 5",
    b"5,6", b"-1", b"+5", b"0x5", b"1_0", b"", b" ", b"9" * 19, b"9" * 30, b"\x00", b"\x7f", b"\x01", b"a\x0cb", b"120",
    b"Fri, 31 Dec 1999 23:59:59 GMT", b"\xff", b"a\tb", b"identity", b"gzip, chunked", b"chunked, chunked", b"xchunked",
])  # fmt: skip
FIELDS = st.tuples(NAMES, st.sampled_from([b":"] * 8 + [b": ", b"", b" :"]), VALUES, LINE_ENDS).map(b"".join)
HEADS = st.tuples(STATUS_LINES, LINE_ENDS, st.lists(FIELDS, max_size=4).map(b"".join), LINE_ENDS).map(b"".join)
CHUNK_PIECES = st.sampled_from([
    b"5\r\nhello\r\n", b"1\r\nx\r\n", b"0\r\n\r\n", b"0\r\n", b"\r\n", b"\n", b"1;a=b\r\nx\r\n", b"1 \r\nx\r\n",
    b" 1\r\nx\r\n", b"+1\r\nx\r\n", b"0x1\r\nx\r\n", b"g\r\n", b"f" * 15 + b"\r\n", b"f" * 21 + b"\r\n", b"1\nx\r\n",
    b"1\r\nx\n", b"1\r\nxy\r\n", b"1;\x00\r\nx\r\n", b"a: b\r\n\r\n", b"00\r\n\r\n", b"hello", b"1 ;x\r\ny\r\n",
])  # fmt: skip
BODIES = st.one_of(
    st.just(b""),
    st.just(b"hello"),
    st.lists(CHUNK_PIECES, max_size=4).map(b"".join),
    st.binary(max_size=12),
)
ANSWERS = st.tuples(st.lists(HEADS, min_size=1, max_size=3).map(b"".join), BODIES).map(b"".join)
NEARLY_GOOD = st.tuples(
    st.sampled_from([row[1] for row in TAKEN if len(row[1]) < 2000]),
    st.integers(0, 200),
    st.integers(0, 3),
    st.binary(max_size=2) | st.sampled_from([b"\r", b"\n", b"\r\n", b" ", b"\t", b":", b"\x00", b"5", b","]),
).map(lambda given: given[0][: given[1]] + given[3] + given[0][given[1] + given[2] :])


@settings(max_examples=400, deadline=None)
@given(ANSWERS | NEARLY_GOOD)
@example(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello")
def test_h11_never_refuses_what_is_taken_here(data: bytes) -> None:
    agree(data)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_where_the_bytes_are_split_makes_no_difference(data: st.DataObject) -> None:
    whole = data.draw(ANSWERS | NEARLY_GOOD)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=5)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True) if a < b]
    once, split = read(whole), read(*pieces)
    assert (once.answer, once.refused, once.state) == (split.answer, split.refused, split.state)
