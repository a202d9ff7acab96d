"""request_heads.py: whatever comes instead of a request is answered, bounded and gone, with either parser."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn

from httppubsubclient import request_heads
from httppubsubclient.admission import AdmittingServer
from httppubsubclient.request_heads import MAX_HEAD_BYTES, MAX_HEADERS, bounded_http_protocol
from tests.server.peers import LOOP_FACTORIES

__all__ = ["LOOP_FACTORIES"]

PARSERS = ["httptools", "h11"]
LIMIT = 30.0
SOON = 0.3

HOST = b"host: x\r\n"


class App:
    """Notes what it is given, and answers 204 when it is told to."""

    def __init__(self) -> None:
        self.scopes: list[dict[str, Any]] = []
        self.bodies: list[bytes] = []
        self.disconnected = asyncio.Event()
        self.called = asyncio.Event()
        self.release = asyncio.Event()
        self.release.set()
        self.answer = b""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        self.called.set()
        body = b""
        while True:
            event = await receive()
            if event["type"] == "http.disconnect":
                self.disconnected.set()
                return
            body += event["body"]
            if not event.get("more_body"):
                break
        self.bodies.append(body)
        await self.release.wait()
        length = str(len(self.answer)).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
        await send({"type": "http.response.body", "body": self.answer})


Connect = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


class Served:
    """A server of one app, and the connections that the test has made to it."""

    def __init__(self, app: App, server: AdmittingServer, port: int) -> None:
        self.app = app
        self.server = server
        self.port = port
        self.writers: list[asyncio.StreamWriter] = []

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writers.append(writer)
        return reader, writer

    async def exchange(self, data: bytes) -> bytes:
        """Everything that is answered until the connection is closed."""
        reader, writer = await self.connect()
        writer.write(data)
        return await everything(reader)


async def everything(reader: asyncio.StreamReader) -> bytes:
    received = bytearray()
    try:
        async with asyncio.timeout(LIMIT):
            while chunk := await reader.read(65536):
                received += chunk
    except ConnectionError:
        pass
    return bytes(received)


@asynccontextmanager
async def serving(parser: str | None, *, max_connections: int = 100) -> AsyncIterator[Served]:
    app = App()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = AdmittingServer(
            uvicorn.Config(
                app, http=bounded_http_protocol(parser), lifespan="off", ws="none", log_config=None, access_log=False,
                timeout_graceful_shutdown=1,
            ),
            max_connections=max_connections,
        )  # fmt: skip
        task = asyncio.create_task(server.serve(sockets=[listening]))
        await server.ready.wait()
        served = Served(app, server, listening.getsockname()[1])
        try:
            yield served
        finally:
            for writer in served.writers:
                writer.close()
            app.release.set()
            server.should_exit = True
            await task


@pytest.fixture(params=PARSERS)
async def served(request: pytest.FixtureRequest) -> AsyncIterator[Served]:
    async with serving(request.param) as served:
        yield served


def refusal(answer: bytes) -> tuple[int, str]:
    """Status and code of what should be one whole problem document."""
    assert answer.count(b"HTTP/1.1 ") == 1, answer
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head
    assert b"connection: close" in head
    document = json.loads(body)
    assert f"content-length: {len(body)}".encode() in head
    assert document["status"] == int(head.split()[1])
    return document["status"], document["code"]


def head(*fields: bytes, target: bytes = b"/", method: bytes = b"GET", host: bytes = HOST) -> bytes:
    return b"%s %s HTTP/1.1\r\n%s%s\r\n" % (method, target, host, b"".join(field + b"\r\n" for field in fields))


# -- size -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent",
    [
        head(b"x: " + b"y" * 100_000),
        head(*(b"x-%d: " % number + b"y" * 1000 for number in range(80))),
        head(*(b"x: y" for _ in range(200))),
        head(*(b"x: y" for _ in range(MAX_HEADERS))),  # and Host
        b"GET / HTTP/1.1\r\nx: " + b"y" * (MAX_HEAD_BYTES + 100),  # without end
        b"GET / HTTP/1.1\r\n" + b"x" * (MAX_HEAD_BYTES + 100),  # a name without end
    ],
)
async def test_a_head_that_is_too_large_is_431(served: Served, sent: bytes) -> None:
    assert refusal(await served.exchange(sent)) == (431, "too_large")
    assert served.app.scopes == []


async def test_a_head_that_is_too_large_is_431_in_small_pieces_too(served: Served) -> None:
    reader, writer = await served.connect()
    answer = asyncio.create_task(everything(reader))
    writer.write(b"GET / HTTP/1.1\r\n" + HOST + b"x: ")
    try:
        for _ in range(MAX_HEAD_BYTES // 1000 + 1):
            writer.write(b"y" * 1000)
            await writer.drain()
    except ConnectionError:
        pass
    assert refusal(await answer) == (431, "too_large")


async def test_a_target_that_is_too_long_is_414(served: Served) -> None:
    assert refusal(await served.exchange(head(target=b"/" + b"a" * 20_000))) == (414, "too_large")
    assert served.app.scopes == []


async def test_what_is_just_small_enough_is_taken(served: Served) -> None:
    target = b"/?topic=" + b"%00" * 4096
    fields = [b"x-%d: y" % number for number in range(MAX_HEADERS - 2)]
    answer = await served.exchange(head(*fields, b"connection: close", target=target))
    assert answer.startswith(b"HTTP/1.1 200 ")
    answer = await served.exchange(head(b"x: " + b"y" * 60_000, b"connection: close"))
    assert answer.startswith(b"HTTP/1.1 200 ")


async def test_a_refusal_is_seen_by_a_sender_that_has_more_to_send(served: Served) -> None:
    """Closing at once would reset the connection, and take the answer back."""
    reader, writer = await served.connect()
    answer = asyncio.create_task(everything(reader))
    for _ in range(40):
        writer.write(b"x" * 100_000)
    assert refusal(await answer)[0] in (400, 431)


@pytest.mark.parametrize("endless", [b"x: y\r\n", b"y"])
async def test_a_trailer_is_bounded_and_adds_nothing_to_the_request(served: Served, endless: bytes) -> None:
    sent = head(b"transfer-encoding: chunked", method=b"POST") + b"2\r\nhi\r\n0\r\n"
    reader, writer = await served.connect()
    answer = asyncio.create_task(everything(reader))
    writer.write(sent + b"x: ")
    for _ in range(30):
        writer.write(endless * (9000 // len(endless)))
    assert refusal(await answer)[0] in (400, 431)
    reader, writer = await served.connect()
    writer.write(sent + b"authorization: Bearer x\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
    assert [name for name, _ in served.app.scopes[-1]["headers"]] == [b"host", b"transfer-encoding"]
    assert served.app.bodies == [b"hi"]


async def test_the_size_of_a_chunk_is_no_place_for_megabytes(served: Served) -> None:
    reader, writer = await served.connect()
    answer = asyncio.create_task(everything(reader))
    writer.write(head(b"transfer-encoding: chunked", method=b"POST") + b"2;")
    for _ in range(30):
        writer.write(b"y" * 9000)
    assert refusal(await answer)[0] in (400, 431)


# -- form -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # a TLS handshake
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x00" * 100,
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET\r\n\r\n",
        head(host=b""),
        head(b"host: y"),
        head(b"a b: c"),
        head(b"a\x00b: c"),
        head(b"a: b\x00c"),
        head(b"a: b\rc"),
        head(b": b"),
        head(b"content-length: -1"),
        head(b"content-length: 1", b"content-length: 2"),
        head(b"content-length: 1", b"transfer-encoding: chunked"),
        head(b"connection: upgrade", b"upgrade: h2c"),
        head(target=b"x:1", method=b"CONNECT"),
        head(b"transfer-encoding: chunked", method=b"POST") + b"zz\r\n",
        head(b"transfer-encoding: chunked", method=b"POST") + b"-1\r\n",
    ],
)
async def test_what_is_no_request_is_400(served: Served, sent: bytes) -> None:
    assert refusal(await served.exchange(sent)) == (400, "invalid_request")


@pytest.mark.parametrize("coding", [b"gzip, chunked", b"gzip", b"chunked, chunked", b"identity"])
async def test_another_transfer_encoding_is_refused(served: Served, coding: bytes) -> None:
    sent = head(b"transfer-encoding: " + coding, method=b"POST")
    assert refusal(await served.exchange(sent)) == (400, "invalid_request")
    assert served.app.scopes == []


async def test_an_upgrade_without_connection_upgrade_means_nothing(served: Served) -> None:
    answer = await served.exchange(head(b"upgrade: h2c", b"connection: close"))
    assert answer.startswith(b"HTTP/1.1 200 ")


async def test_what_strangers_send_is_not_in_the_log(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    await served.exchange(b"hello\r\n\r\n")
    assert caplog.text == ""


async def test_garbage_behind_a_request_never_stands_in_for_its_answer(served: Served) -> None:
    served.app.release.clear()
    reader, writer = await served.connect()
    writer.write(head() + b"\x00garbage\r\n\r\n")
    await asyncio.wait_for(served.app.called.wait(), LIMIT)
    served.app.release.set()
    answer = await everything(reader)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 200 ")


async def test_requests_that_are_sent_ahead_are_answered_in_order_and_bounded(served: Served) -> None:
    served.app.release.clear()
    reader, writer = await served.connect()
    writer.write(b"".join(head(target=b"/%d" % number) for number in range(5)))
    writer.write(head(b"connection: close", target=b"/last"))
    await asyncio.wait_for(served.app.called.wait(), LIMIT)
    served.app.release.set()
    assert (await everything(reader)).count(b"HTTP/1.1 200 ") == 6
    assert [scope["path"] for scope in served.app.scopes] == ["/0", "/1", "/2", "/3", "/4", "/last"]


async def test_thousands_of_requests_that_are_sent_ahead_do_not_lie_in_memory() -> None:
    async with serving("httptools") as served:
        served.app.release.clear()
        reader, writer = await served.connect()
        writer.write(head() * 3000)
        assert await everything(reader) == b""
        assert len(served.app.scopes) <= 1
        assert not served.server.server_state.connections


SEEDS = [
    head(b"x: y", b"content-length: 2", method=b"POST") + b"hi",
    head(b"transfer-encoding: chunked", method=b"POST") + b"2\r\nhi\r\n0\r\n\r\n",
    head(target=b"http://[::1]:3003/v1/notify?topic=%2f#x") + head(target=b"*", method=b"OPTIONS"),
]
PIECES = [
    b"\r\n", b"\n", b"\r", b"\x00", b":", b" ", b"\t", b"\xff", b"%", b"-1", b"99999999999999999999", b"HTTP/1.0",
    b"transfer-encoding: chunked\r\n", b"content-length: 5\r\n", b"expect: 100-continue\r\n", b"//", b"[", b"@",
    b";a=b", b"upgrade: websocket\r\nconnection: upgrade\r\n", b"host: y\r\n", b"CONNECT a:1", b"\x16\x03\x01",
    b"connection: close\r\n",
]  # fmt: skip


async def test_whatever_is_sent_is_answered_or_closed_and_nothing_breaks(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    drawn = random.Random(5)
    broken: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: broken.append(context))

    async def one() -> None:
        sent = bytearray(drawn.choice(SEEDS))
        for _ in range(drawn.randint(1, 4)):
            place = drawn.randrange(len(sent) + 1)
            sent[place : place + drawn.choice((0, 0, 1, 5))] = drawn.choice(PIECES)
        reader, writer = await served.connect()
        cut = drawn.randrange(len(sent) + 1)
        writer.write(bytes(sent[:cut]))
        await asyncio.sleep(0)
        writer.write(bytes(sent[cut:]))
        writer.write_eof()
        answer = await everything(reader)
        writer.close()
        assert answer == b"" or answer.startswith(b"HTTP/1.1 "), (bytes(sent), answer)

    for _ in range(20):
        await asyncio.gather(*(one() for _ in range(20)))
    assert broken == []
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


# -- time -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_heads, "HEAD_SECONDS", SOON)
    monkeypatch.setattr(request_heads, "STALL_SECONDS", SOON)


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("sent", [b"", b"G", b"GET / HTTP/1.1\r\nx: y\r\n", b"\r\n"])
async def test_a_head_that_does_not_come_is_408(served: Served, sent: bytes) -> None:
    # h11 takes no empty line before a request.
    assert refusal(await served.exchange(sent)) in ((408, "too_slow"), (400, "invalid_request"))


@pytest.mark.usefixtures("hurried")
async def test_a_head_that_drips_is_408_however_lively(served: Served) -> None:
    reader, writer = await served.connect()
    answer = asyncio.create_task(everything(reader))
    writer.write(b"GET / HTTP/1.1\r\n")
    try:
        while not answer.done():
            writer.write(b"x: y\r\n")
            await asyncio.wait({answer}, timeout=0.01)
    except ConnectionError:
        pass
    assert refusal(await answer)[0] in (408, 431)


@pytest.mark.usefixtures("hurried")
async def test_the_head_of_a_later_request_is_timed_too(served: Served) -> None:
    reader, writer = await served.connect()
    writer.write(head())
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    writer.write(b"GET / HT")
    assert refusal(await everything(reader)) == (408, "too_slow")


@pytest.mark.usefixtures("hurried")
async def test_an_answer_that_takes_long_is_waited_for(served: Served) -> None:
    served.app.release.clear()
    reader, writer = await served.connect()
    writer.write(head(b"connection: close"))
    await asyncio.wait_for(served.app.called.wait(), LIMIT)
    idle = await served.exchange(b"")  # as long as a head may take, and more
    assert refusal(idle)[0] == 408
    served.app.release.set()
    assert (await everything(reader)).startswith(b"HTTP/1.1 200 ")


@pytest.mark.usefixtures("hurried")
async def test_a_peer_that_does_not_read_its_answer_is_cut_off(served: Served) -> None:
    served.app.answer = b"x" * 30_000_000
    _, writer = await served.connect()
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(head())
    async with asyncio.timeout(LIMIT):
        await served.app.called.wait()
        while served.server.server_state.connections:
            await asyncio.sleep(0.01)


@pytest.mark.usefixtures("hurried")
async def test_a_peer_that_does_not_read_is_cut_off_when_its_connection_is_to_be_closed_too(served: Served) -> None:
    served.app.answer = b"x" * 30_000_000
    _, writer = await served.connect()
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    writer.write(head(b"connection: close"))
    async with asyncio.timeout(LIMIT):
        await served.app.called.wait()
        while served.server.server_state.connections:
            await asyncio.sleep(0.01)
