"""Answers with headers and body: tables of what is read and refused, and h11 as a witness."""

from __future__ import annotations

from dataclasses import dataclass

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from httppubsubserver.delivery.answers import MAX_HEAD_BYTES, BadAnswer, Reading
from httppubsubserver.delivery.whole_answers import AnswerTooLarge, WholeAnswer, WholeAnswerReader
from tests.server.test_answers import ANSWERS, BAD, NEARLY_GOOD, OK, TAKEN, single

MAX_BYTES = 1000
CHUNKED = OK + b"transfer-encoding: chunked\r\n\r\n"


@dataclass(frozen=True)
class Outcome:
    """How the reading of some bytes ended."""

    answer: WholeAnswer | None
    refused: type[BadAnswer] | None
    state: Reading


def read(
    *pieces: bytes, max_bytes: int = MAX_BYTES, of_head: bool = False, last: bool = False, closed: bool = False
) -> Outcome:
    """Feed the pieces to a reader that expects one answer, and perhaps the end of the connection."""
    reader = WholeAnswerReader(max_bytes=max_bytes)
    reader.expect(of_head=of_head, last=last)
    answer = None
    try:
        for piece in pieces:
            told = reader.feed(piece)
            assert told is None or answer is None, "an answer is told once"
            answer = answer or told
    except BadAnswer as refusal:
        assert reader.state is Reading.SPENT
        assert reader.ended() is None
        return Outcome(answer, type(refusal), reader.state)
    if closed:
        told = reader.ended()
        assert told is None or answer is None
        answer = answer or told
    assert reader.state is not Reading.BODY
    return Outcome(answer, None, reader.state)


def body_of(outcome: Outcome) -> bytes | None:
    assert outcome.refused is None
    return None if outcome.answer is None else outcome.answer.body


READ: list[tuple[str, bytes, bytes | None, Reading]] = [
    ("a length", OK + b"content-length: 5\r\n\r\nhello", b"hello", Reading.IDLE),
    ("nothing", OK + b"content-length: 0\r\n\r\n", b"", Reading.IDLE),
    ("part of it", OK + b"content-length: 5\r\n\r\nhell", None, Reading.HEAD),
    ("more than it", OK + b"content-length: 5\r\n\r\nhello!", b"hello", Reading.SPENT),
    ("close", OK + b"connection: close\r\ncontent-length: 5\r\n\r\nhello", b"hello", Reading.SPENT),
    ("HTTP/1.0", b"HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello", b"hello", Reading.SPENT),
    ("chunks", CHUNKED + b"5\r\nhello\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n", b"hello0123456789", Reading.IDLE),
    ("CR LF within a chunk", CHUNKED + b"4\r\n\r\n\r\n\r\n0\r\n\r\n", b"\r\n\r\n", Reading.IDLE),
    ("part of a chunk", CHUNKED + b"5\r\nhel", None, Reading.HEAD),
    ("no last chunk", CHUNKED + b"5\r\nhello\r\n", None, Reading.HEAD),
    ("no end of the last chunk", CHUNKED + b"0\r\n", None, Reading.HEAD),
    ("bytes after the last chunk", CHUNKED + b"0\r\n\r\nx", b"", Reading.SPENT),
    ("trailers", CHUNKED + b"1\r\nx\r\n0\r\nA: b\r\nc:\r\n\r\n", b"x", Reading.IDLE),
    ("bytes after trailers", CHUNKED + b"1\r\nx\r\n0\r\nA: b\r\n\r\n\r\n", b"x", Reading.SPENT),
    ("part of the trailers", CHUNKED + b"0\r\nA: b\r\n", None, Reading.HEAD),
    ("no content", b"HTTP/1.1 204 x\r\n\r\n", b"", Reading.IDLE),
    ("a body on 204", b"HTTP/1.1 204 x\r\ncontent-length: 5\r\n\r\nhello", b"", Reading.SPENT),
    ("not modified", b"HTTP/1.1 304 x\r\ncontent-length: 5\r\n\r\n", b"", Reading.SPENT),
    ("after interim answers", b"HTTP/1.1 103 x\r\na: b\r\n\r\n" * 3 + OK + b"content-length: 1\r\n\r\nx", b"x",
     Reading.IDLE),
    ("exactly the bound", OK + b"content-length: 1000\r\n\r\n" + b"x" * 1000, b"x" * 1000, Reading.IDLE),
    ("exactly the bound in chunks", CHUNKED + b"3e8\r\n" + b"x" * 1000 + b"\r\n0\r\n\r\n", b"x" * 1000, Reading.IDLE),
]  # fmt: skip


@pytest.mark.parametrize(("data", "body", "state"), [row[1:] for row in READ], ids=[row[0] for row in READ])
def test_a_body_is_read(data: bytes, body: bytes | None, state: Reading) -> None:
    for outcome in (read(data), read(*single(data))):
        assert (body_of(outcome), outcome.state) == (body, state)


def test_an_answer_is_told_with_all_that_stands_in_it() -> None:
    head = (
        b"HTTP/1.1 418 I'm a teapot\r\nX-One:  1 \t\r\nset-cookie: a\r\nSet-Cookie: b\r\nempty:\r\nretry-after: 7\r\n"
    )
    expected = WholeAnswer(
        status=418,
        retry_after="7",
        version=b"HTTP/1.1",
        reason=b"I'm a teapot",
        headers=(
            (b"X-One", b"1"),
            (b"set-cookie", b"a"),
            (b"Set-Cookie", b"b"),
            (b"empty", b""),
            (b"retry-after", b"7"),
            (b"Content-Length", b"2"),
        ),
        body=b"ok",
    )
    for _ in range(2):  # the second time its fields are known
        assert read(head + b"Content-Length: 2\r\n\r\nok") == Outcome(expected, None, Reading.IDLE)


@pytest.mark.parametrize(
    ("line", "reason"), [(b"HTTP/1.1 204", b""), (b"HTTP/1.1 204 ", b""), (b"HTTP/1.1 204 A b", b"A b")]
)
def test_a_reason_may_be_missing(line: bytes, reason: bytes) -> None:
    answer = read(line + b"\r\n\r\n").answer
    assert answer is not None
    assert answer.reason == reason


@pytest.mark.parametrize("head", [OK, OK + b"connection: close\r\n", b"HTTP/1.0 200 OK\r\n"])
def test_without_a_length_the_end_of_the_connection_ends_the_body(head: bytes) -> None:
    data = head + b"\r\nhello"
    assert read(data) == Outcome(None, None, Reading.HEAD)
    for outcome in (read(data, closed=True), read(*single(data), closed=True)):
        assert (body_of(outcome), outcome.state) == (b"hello", Reading.SPENT)


@pytest.mark.parametrize(
    "data", [b"", b"HTTP/1.1 100 x\r\n\r\n", OK, OK + b"content-length: 2\r\n\r\nx", CHUNKED + b"1\r\nx\r\n"]
)
def test_an_answer_that_is_cut_off_is_none(data: bytes) -> None:
    assert read(data, closed=True).answer is None


@pytest.mark.parametrize(
    ("fields", "after", "state"),
    [
        (b"content-length: 5\r\n", b"", Reading.IDLE),
        (b"content-length: 5000\r\n", b"", Reading.IDLE),
        (b"transfer-encoding: chunked\r\n", b"", Reading.IDLE),
        (b"connection: close\r\n", b"", Reading.SPENT),
        (b"", b"", Reading.IDLE),
        (b"content-length: 5\r\n", b"hello", Reading.SPENT),
    ],
)
def test_the_answer_to_a_head_request_has_no_body(fields: bytes, after: bytes, state: Reading) -> None:
    outcome = read(OK + fields + b"\r\n" + after, of_head=True)
    assert (body_of(outcome), outcome.state) == (b"", state)


def test_a_connection_that_was_asked_to_close_is_not_used_again() -> None:
    assert read(OK + b"content-length: 0\r\n\r\n", last=True).state is Reading.SPENT
    assert read(OK + b"content-length: 2\r\n\r\nok", last=True).state is Reading.SPENT
    assert read(CHUNKED + b"0\r\n\r\n", last=True).state is Reading.SPENT


REFUSED: list[tuple[str, bytes]] = [
    ("no size", CHUNKED + b"\r\n"),
    ("a size that is not hex", CHUNKED + b"g\r\n"),
    ("a signed size", CHUNKED + b"+1\r\nx\r\n"),
    ("a size with an underscore", CHUNKED + b"1_0\r\n0123456789abcdef\r\n"),
    ("space after a size", CHUNKED + b"1 \r\nx\r\n"),
    ("a bare LF after a size", CHUNKED + b"1\nx\r\n0\r\n\r\n"),
    ("a chunk that goes on", CHUNKED + b"1\r\nxy\r\n0\r\n\r\n"),
    ("an extension without end", CHUNKED + b"1;" + b"x" * 500),
    ("a size beyond 64 bits", CHUNKED + b"10000000000000001\r\n"),
    ("trailers that are no fields", CHUNKED + b"0\r\nhello\r\n\r\n"),
    ("a folded trailer", CHUNKED + b"0\r\na: b\r\n c\r\n\r\n"),
    ("trailers without end", CHUNKED + b"0\r\n" + b"a: b\r\n" * (MAX_HEAD_BYTES // 6 + 1)),
    ("chunks in HTTP/1.0", b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
    *BAD,
]


@pytest.mark.parametrize("data", [row[1] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_what_could_be_read_differently_is_refused(data: bytes) -> None:
    refused = Outcome(None, BadAnswer, Reading.SPENT)
    assert read(data) == refused
    assert read(*single(data)) == refused


@pytest.mark.parametrize(
    "data",
    [
        OK + b"content-length: 1001\r\n\r\n",
        OK + b"content-length: 99999999999\r\n\r\n",
        OK + b"\r\n" + b"x" * 1001,
        CHUNKED + b"3e9\r\n",
        CHUNKED + b"fffffffffffffff\r\n",
        CHUNKED + b"1\r\nx\r\n" * 1001,
    ],
)
def test_a_body_beyond_the_bound_is_refused(data: bytes) -> None:
    refused = Outcome(None, AnswerTooLarge, Reading.SPENT)
    assert read(data) == refused
    assert read(*single(data)) == refused


def test_the_bound_is_for_each_answer() -> None:
    reader = WholeAnswerReader(max_bytes=MAX_BYTES)
    for data in (
        b"content-length: 800\r\n\r\n" + b"x" * 800,
        b"transfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
    ) * 3:
        assert reader.state is Reading.IDLE
        untouched = [reader.untouched]
        reader.expect()
        untouched.append(reader.untouched)
        assert reader.feed(OK) is None
        assert reader.feed(data[:-1]) is None
        untouched.append(reader.untouched)
        assert untouched == [False, True, False]
        answer = reader.feed(data[-1:])
        assert answer is not None
        assert set(answer.body) == {ord("x")}


def test_what_nobody_asked_for_spends_the_connection() -> None:
    reader = WholeAnswerReader(max_bytes=MAX_BYTES)
    assert reader.feed(b"HTTP/1.1 204 x\r\n\r\n") is None
    assert reader.state is Reading.SPENT


def test_many_tiny_chunks_are_read_in_linear_time() -> None:
    data = CHUNKED + b"1\r\nx\r\n" * 300_000 + b"0\r\n\r\n"
    assert body_of(read(data, max_bytes=10**6)) == b"x" * 300_000


# -- h11 as a witness -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Witness:
    """What h11 makes of the same bytes."""

    answer: tuple[int, list[tuple[bytes, bytes]], bytes] | None
    reusable: bool


def by_h11(data: bytes, *, of_head: bool, closed: bool) -> Witness:
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
    method = "HEAD" if of_head else "POST"
    connection.send(h11.Request(method=method, target="/", headers=[("host", "x"), ("content-length", "0")]))
    connection.send(h11.EndOfMessage())
    status, headers, body, complete = 0, [], b"", False
    try:
        for piece in [data, b""] if closed else [data]:
            if not piece and not closed:
                continue  # to h11, nothing means the end of the connection
            connection.receive_data(piece)
            while (event := connection.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
                if isinstance(event, h11.Response):
                    status, headers = event.status_code, list(event.headers)
                elif isinstance(event, h11.Data):
                    body += bytes(event.data)
                elif isinstance(event, h11.EndOfMessage):
                    complete = True
                elif isinstance(event, h11.ConnectionClosed):
                    break
            if complete:
                break
    except h11.RemoteProtocolError:
        pass
    if not complete:
        return Witness(None, False)
    reusable = connection.their_state is h11.DONE and not connection.trailing_data[0]
    return Witness((status, headers, body), reusable)


def as_h11_has_them(headers: tuple[tuple[bytes, bytes], ...]) -> list[tuple[bytes, bytes]]:
    names = [(name.lower(), value) for name, value in headers]
    return [(name, value.lower() if name == b"transfer-encoding" else value) for name, value in names]


def agree(data: bytes) -> None:
    for of_head in (False, True):
        for closed in (False, True):
            ours = read(data, max_bytes=10**6, of_head=of_head, closed=closed)
            theirs = by_h11(data, of_head=of_head, closed=closed)
            if ours.answer is not None:
                assert theirs.answer == (ours.answer.status, as_h11_has_them(ours.answer.headers), ours.answer.body)
            elif theirs.answer is not None:
                assert ours.refused is not None, "what h11 reads to its end is read, or refused"
            if ours.state is Reading.IDLE:
                assert theirs.reusable, "no connection is used again that h11 would not use again"


TABLES = [*TAKEN, *((row[0], row[1]) for row in READ), *REFUSED]


@pytest.mark.parametrize("data", [row[1] for row in TABLES], ids=[row[0] for row in TABLES])
def test_h11_agrees_on_the_tables(data: bytes) -> None:
    agree(data)


@settings(max_examples=400, deadline=None)
@given(ANSWERS | NEARLY_GOOD)
def test_h11_agrees_on_what_is_read(data: bytes) -> None:
    agree(data)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_where_the_bytes_are_split_makes_no_difference(data: st.DataObject) -> None:
    whole = data.draw(ANSWERS | NEARLY_GOOD)
    of_head, closed = data.draw(st.booleans()), data.draw(st.booleans())
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=5)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True) if a < b]
    once, split = (read(*fed, of_head=of_head, closed=closed) for fed in ([whole], pieces))
    assert (once.answer, once.state) == (split.answer, split.state)
    assert (once.refused is None) == (split.refused is None)
