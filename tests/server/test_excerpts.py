"""The beginning of the body of an answer that tells of a failure: how much of it is kept, how long it is waited for."""

from __future__ import annotations

import asyncio
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from httppubsubclient.bodies import Body
from httppubsubserver.delivery import connection as connection_module
from httppubsubserver.delivery.answers import MAX_EXCERPT_BYTES, Answer, AnswerReader, Reading
from tests.server.peers import LOOP_FACTORIES, Network, Wire, answering

__all__ = ["LOOP_FACTORIES"]

ERROR = b"HTTP/1.1 500 x\r\n"
LONG = bytes(range(256)) * 8
MAX_BYTES = 4096
CHUNKED = ERROR + b"transfer-encoding: chunked\r\n\r\n"


def reader_of(*pieces: bytes, max_bytes: int = MAX_BYTES) -> tuple[AnswerReader, Answer | None]:
    """A reader after these pieces, and what it told."""
    reader = AnswerReader(max_bytes=max_bytes)
    reader.expect()
    answer = None
    for piece in pieces:
        told = reader.feed(piece)
        assert told is None or answer is None, "an answer is told once"
        answer = answer or told
    return reader, answer


def in_chunks(body: bytes, size: int) -> bytes:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)


def single(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


WHOLE: list[tuple[str, bytes, bytes, Reading]] = [
    ("no body", ERROR + b"content-length: 0\r\n\r\n", b"", Reading.IDLE),
    ("no body on 304", b"HTTP/1.1 304 x\r\n\r\n", b"", Reading.IDLE),
    ("a short body", ERROR + b"content-length: 5\r\n\r\nwrong", b"wrong", Reading.IDLE),
    ("a redirect", b"HTTP/1.1 302 x\r\ncontent-length: 5\r\n\r\nthere", b"there", Reading.IDLE),
    ("gone", b"HTTP/1.1 410 x\r\ncontent-length: 4\r\n\r\ngone", b"gone", Reading.IDLE),
    ("more than the body", ERROR + b"content-length: 5\r\n\r\nwrong!!", b"wrong", Reading.SPENT),
    ("exactly enough", ERROR + b"content-length: 1024\r\n\r\n" + LONG[:1024], LONG[:1024], Reading.IDLE),
    ("chunks", CHUNKED + in_chunks(b"it is wrong", 3) + b"0\r\n\r\n", b"it is wrong", Reading.IDLE),
    ("chunks and trailers", CHUNKED + in_chunks(b"wrong", 9) + b"0\r\na: b\r\n\r\n", b"wrong", Reading.SPENT),
    ("a bad chunk", CHUNKED + in_chunks(b"wrong", 9) + b"oops\r\n", b"wrong", Reading.SPENT),
]


@pytest.mark.parametrize(
    ("data", "excerpt", "state"), [row[1:] for row in WHOLE], ids=[row[0].replace(" ", "-") for row in WHOLE]
)
def test_a_body_that_has_come_is_told(data: bytes, excerpt: bytes, state: Reading) -> None:
    reader, answer = reader_of(data)
    assert answer is not None
    assert (answer.excerpt, reader.state) == (excerpt, state)
    if b"!!" not in data:  # by single bytes what comes after the end comes after the answer
        reader, answer = reader_of(*single(data))
        assert answer is not None
        assert (answer.excerpt, reader.state) == (excerpt, state)


@pytest.mark.parametrize("status", [200, 201, 204, 299])
def test_nothing_is_waited_for_or_kept_of_success(status: int) -> None:
    head = b"HTTP/1.1 %d x\r\ncontent-length: 5\r\n\r\n" % status
    assert reader_of(head)[1] == Answer(status, None)
    assert reader_of(head, b"he", b"llo")[1] == Answer(status, None)
    assert reader_of(head + b"hello")[1] == Answer(status, None)


BEGINNINGS = [
    ERROR + b"content-length: 2048\r\n\r\n" + LONG,
    ERROR + b"\r\n" + LONG,
    b"HTTP/1.0 500 x\r\n\r\n" + LONG,
    CHUNKED + in_chunks(LONG, 2048),
    CHUNKED + in_chunks(LONG, 7),
]


@pytest.mark.parametrize("data", BEGINNINGS)
def test_enough_is_told_before_the_end(data: bytes) -> None:
    for pieces in ([data], single(data), [data[:300], data[300:301], data[301:]]):
        _, answer = reader_of(*pieces)
        assert answer == Answer(500, None, excerpt=LONG[:MAX_EXCERPT_BYTES])


@given(st.data())
def test_however_it_arrives_it_is_the_same(data: st.DataObject) -> None:
    body = data.draw(st.binary(max_size=1500))
    framed = data.draw(
        st.sampled_from(
            [
                ERROR + b"content-length: %d\r\n\r\n%b" % (len(body), body),
                CHUNKED + in_chunks(body, data.draw(st.integers(1, 2000))) + b"0\r\n\r\n",
            ]
        )
    )
    cuts = sorted(data.draw(st.lists(st.integers(0, len(framed)), max_size=8)))
    pieces = [framed[a:b] for a, b in zip([0, *cuts], [*cuts, len(framed)], strict=True) if a < b]
    reader, answer = reader_of(*pieces, max_bytes=100_000)
    assert answer == Answer(500, None, excerpt=body[:MAX_EXCERPT_BYTES])
    assert reader.state is Reading.IDLE
    assert reader.interrupted() is None


def test_whoever_does_not_want_to_wait_gets_what_there_is_once() -> None:
    reader, answer = reader_of(b"HTTP/1.1 503 x\r\nretry-after: 7\r\n\r\nbu", b"sy")
    assert answer is None
    assert not reader.untouched
    assert reader.interrupted() == Answer(503, "7", excerpt=b"busy")
    assert reader.interrupted() is None
    assert reader.feed(b"!") is None


def test_a_body_that_is_not_read_to_its_end_costs_the_connection() -> None:
    reader, answer = reader_of(ERROR + b"content-length: 10000000000\r\n\r\n", b"x" * 1000)
    assert answer is None
    assert reader.feed(b"x" * 1000) == Answer(500, None, excerpt=b"x" * 1024)
    assert reader.state is Reading.SPENT


@pytest.mark.parametrize("max_bytes", [0, 3, 1023])
def test_no_more_is_kept_than_may_be_read(max_bytes: int) -> None:
    reader, answer = reader_of(ERROR + b"content-length: 5000\r\n\r\n" + b"x" * 1000, max_bytes=max_bytes)
    assert answer == Answer(500, None, excerpt=b"x" * min(max_bytes, 1000))
    assert reader.state is Reading.SPENT


async def test_the_body_comes_a_little_later(network: Network) -> None:
    async def temper(wire: Wire, number: int) -> None:
        for _ in range(2):
            await wire.request()
            for piece in (ERROR, b"content-length: 9\r\n", b"\r\n", b"very ", b"bad"):
                await wire.send(piece)
                await asyncio.sleep(0)
            await wire.send(b"!")

    peer, client = await network.peer(temper), await network.client()
    for _ in range(2):
        assert await client.post(peer.callback()) == Answer(500, None, excerpt=b"very bad!")
    assert peer.connections == 1, "the connection was kept"


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_connection_that_ends_within_the_body_takes_nothing_away(how: str, network: Network) -> None:
    async def temper(wire: Wire, number: int) -> None:
        await wire.request()
        await wire.send(ERROR + b"content-length: 50\r\n\r\nver")
        if how == "reset":
            wire.reset()

    peer, client = await network.peer(temper), await network.client()
    outcome = await client.post(peer.callback())
    if how == "close":
        assert outcome == Answer(500, None, excerpt=b"ver")
    await peer.finished()


@pytest.mark.parametrize("bound", ["rest", "deadline"])
async def test_a_body_that_does_not_come_is_not_waited_for(
    bound: str, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "_REST_SECONDS", 0.0 if bound == "rest" else 3600.0)
    peer = await network.peer(answering(ERROR + b"content-length: 5\r\n\r\nwro"))
    client = await network.client()
    outcome = await client.post(peer.callback(), seconds=3600.0 if bound == "rest" else 0.2)
    assert outcome == Answer(500, None, excerpt=b"wro")
    await peer.finished()


async def test_cancelling_while_the_body_is_waited_for(network: Network) -> None:
    sent = asyncio.Event()

    async def temper(wire: Wire, number: int) -> None:
        await wire.request()
        await wire.send(ERROR + b"content-length: 5\r\n\r\nwro")
        sent.set()
        await wire.closed()

    peer, client = await network.peer(temper), await network.client()
    post, future = client.start(peer.callback())
    await sent.wait()
    post.cancel()
    await peer.finished()
    assert not future.done()
    future.cancel()


async def test_a_body_that_is_still_being_sent_is_not_sent_on(network: Network) -> None:
    async def temper(wire: Wire, number: int) -> None:
        await wire.reader.readuntil(b"\r\n\r\n")
        await wire.send(b"HTTP/1.1 413 x\r\ncontent-length: 500\r\n\r\ntoo large")
        await wire.closed()

    peer, client = await network.peer(temper), await network.client()
    with Body.of(os.urandom(30_000_000)) as body:
        assert await client.post(peer.callback(), body) == Answer(413, None, excerpt=b"too large")
    await peer.finished()
