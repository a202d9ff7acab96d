"""What is sent for a `httpx.Request`, with h11 as the witness that it is one request and nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator

import h11
import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from httppubsubserver.delivery.httpx_requests import Head, StreamedBody, framed, request_head


def by_h11(data: bytes) -> tuple[bytes, bytes, list[tuple[bytes, bytes]], bytes]:
    """Method, target, headers and body of exactly one request."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    connection.receive_data(data)
    request = connection.next_event()
    assert isinstance(request, h11.Request)
    body = b""
    while isinstance(event := connection.next_event(), h11.Data):
        body += bytes(event.data)
    assert isinstance(event, h11.EndOfMessage)
    assert connection.trailing_data[0] == b""
    return request.method, request.target, list(request.headers), body


def content_of(request: httpx.Request) -> bytes:
    assert isinstance(request.stream, httpx.ByteStream)
    return b"".join(request.stream)


def test_a_request_is_sent_as_httpx_made_it() -> None:
    request = httpx.Request(
        "PATCH",
        "http://Example.test:80/a%20b/ä?q=1&x=%2F#part",
        content=b"hello",
        headers=[(b"X-A", b"1"), (b"x-a", "ü".encode())],
    )
    head = request_head(request)
    assert head.data == (
        b"PATCH /a%20b/%C3%A4?q=1&x=%2F HTTP/1.1\r\nHost: example.test\r\nX-A: 1\r\nx-a: \xc3\xbc\r\n"
        b"Content-Length: 5\r\n\r\n"
    )
    assert framed(head, b"hello").data == b"hello"


@pytest.mark.parametrize(
    ("arguments", "length", "chunked"),
    [
        ({"method": "GET"}, 0, False),
        ({"method": "POST"}, 0, False),
        ({"method": "POST", "content": b"hello"}, 5, False),
        ({"method": "POST", "json": {"a": 1}}, 7, False),
        (
            {
                "method": "POST",
                "stream": httpx.ByteStream(b"hello"),
                "headers": {"host": "x", "transfer-encoding": "Chunked"},
            },
            0,
            True,
        ),
    ],
)
def test_h11_reads_what_was_meant(arguments: dict[str, object], length: int, chunked: bool) -> None:
    request = httpx.Request(url="http://x/y", **arguments)  # type: ignore[arg-type]
    head = request_head(request)
    assert (head.length, head.chunked) == (length, chunked)
    content = content_of(request)
    method, target, _, body = by_h11(head.data + (framed(head, content).data or b""))
    assert (method.decode(), target, body) == (request.method, b"/y", content)


def test_an_empty_body_in_chunks_is_the_last_chunk() -> None:
    head = Head(b"", 0, chunked=True, last=False)
    assert framed(head, b"").data == b"0\r\n\r\n"


@pytest.mark.parametrize(
    ("value", "last"), [("close", True), ("a, CLOSE ,b", True), ("keep-alive", False), ("closed", False)]
)
def test_a_request_may_ask_to_close(value: str, last: bool) -> None:
    assert request_head(httpx.Request("GET", "http://x/", headers={"connection": value})).last is last


@pytest.mark.parametrize(
    "headers",
    [
        [("x", "a\r\ny: b")],
        [("x", "a\r\n\r\nGET / HTTP/1.1\r\nhost: x\r\n")],
        [("x", "a\ny: b")],
        [("x", "a\r")],
        [("x", "a\x00b")],
        [("x", "\x7f")],
        [("x: y\r\nz", "1")],
        [("x y", "1")],
        [("", "1")],
        [("x:", "1")],
        [("host", "x"), ("Host", "y")],
        [("content-length", "5"), ("content-length", "5")],
        [("content-length", "5, 5")],
        [("content-length", "-1")],
        [("content-length", "")],
        [("transfer-encoding", "gzip, chunked")],
        [("transfer-encoding", "identity")],
        [("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")],
        [("transfer-encoding", "chunked"), ("content-length", "5")],
    ],
)
def test_what_two_programs_could_read_differently_is_refused(headers: list[tuple[str, str]]) -> None:
    with pytest.raises(httpx.LocalProtocolError):
        request_head(httpx.Request("POST", "http://x/", headers=headers, stream=httpx.ByteStream(b"hello")))


@pytest.mark.parametrize("method", ["GET /x HTTP/1.1\r\nA:", "G T", "", "GÉT", "GET\r\n"])
def test_a_method_is_a_token(method: str) -> None:
    with pytest.raises(httpx.LocalProtocolError):
        request_head(httpx.Request(method, "http://x/"))


@pytest.mark.parametrize("target", [b"/a b", b"/\r\nx: y", b"", b"/\xff", b"/ HTTP/1.1\r\nhost: y\r\n\r\nGET /"])
def test_a_target_ends_no_line(target: bytes) -> None:
    with pytest.raises(httpx.LocalProtocolError):
        request_head(httpx.Request("GET", "http://x/", extensions={"target": target}))


def test_the_target_may_be_given() -> None:
    assert request_head(httpx.Request("OPTIONS", "http://x/y", extensions={"target": b"*"})).data[:11] == b"OPTIONS * H"


def test_a_request_without_a_host_is_refused() -> None:
    request = httpx.Request("GET", "http://x/")
    del request.headers["host"]
    with pytest.raises(httpx.LocalProtocolError, match="Host"):
        request_head(request)


def test_upgrades_are_refused() -> None:
    with pytest.raises(httpx.UnsupportedProtocol, match="upgrade"):
        request_head(httpx.Request("GET", "http://x/", headers={"Connection": "Upgrade", "Upgrade": "websocket"}))


ANY_TEXT = st.text(st.characters(max_codepoint=255), max_size=6)


@settings(max_examples=300, deadline=None)
@given(ANY_TEXT, ANY_TEXT, st.binary(max_size=6))
def test_whatever_is_given_it_is_one_request_or_none(name: str, value: str, target: bytes) -> None:
    request = httpx.Request(
        "POST",
        "http://x/",
        headers=[(name.encode("latin-1"), value.encode("latin-1"))],
        content=b"hello",
        extensions={"target": b"/" + target},
    )
    try:
        head = request_head(request)
        body = framed(head, b"hello").data or b""
    except (httpx.LocalProtocolError, httpx.UnsupportedProtocol):
        return
    method, seen, headers, content = by_h11(head.data + body)
    assert (method, seen, content) == (b"POST", b"/" + target, b"hello")
    assert len(headers) == len(request.headers.raw)


class Stream:
    """Pieces to be sent, and what became of it."""

    def __init__(self, *pieces: bytes | Exception) -> None:
        self.pieces = pieces
        self.closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            for piece in self.pieces:
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        finally:
            self.closed = True


async def sent(head: Head, stream: Stream) -> tuple[bytes, list[Exception]]:
    errors: list[Exception] = []
    data = b"".join([chunk async for chunk in StreamedBody(head, stream, errors.append).chunks()])
    assert stream.closed
    return data, errors


COUNTED, CHUNKED = Head(b"", 5, chunked=False, last=False), Head(b"", 0, chunked=True, last=False)


async def test_a_stream_is_counted_or_sent_in_chunks() -> None:
    assert await sent(COUNTED, Stream(b"he", b"", b"llo")) == (b"hello", [])
    assert await sent(CHUNKED, Stream(b"he", b"", b"llo" * 5)) == (
        b"2\r\nhe\r\nf\r\n" + b"llo" * 5 + b"\r\n0\r\n\r\n",
        [],
    )
    assert await sent(CHUNKED, Stream()) == (b"0\r\n\r\n", [])


@pytest.mark.parametrize("pieces", [(), (b"hell",), (b"hello", b"!"), (b"hello!",)])
async def test_a_stream_of_another_length_is_a_fault(pieces: tuple[bytes, ...]) -> None:
    data, errors = await sent(COUNTED, Stream(*pieces))
    assert len(data) <= 5, "what is too much must not be sent: it would be read as the next request"
    assert [type(error) for error in errors] == [httpx.LocalProtocolError]
    with pytest.raises(httpx.LocalProtocolError):
        framed(COUNTED, b"".join(pieces))


async def test_the_fault_of_a_stream_is_told_and_does_not_end_the_body() -> None:
    fault = ValueError("the disk is on fire")
    for head in (COUNTED, CHUNKED):
        data, errors = await sent(head, Stream(b"he", fault))
        assert errors == [fault]
        assert not data.endswith(b"0\r\n\r\n")


async def test_a_stream_that_is_given_up_is_closed() -> None:
    stream, errors = Stream(b"he", b"llo"), list[Exception]()
    chunks = StreamedBody(COUNTED, stream, errors.append).chunks()
    assert await anext(chunks) == b"he"
    await chunks.aclose()
    assert (stream.closed, errors) == (True, [])
