"""POSTs over real sockets, under both event loops: what is sent, what is kept, what is survived."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable

import pytest

from httppubsubclient.bodies import Body
from httppubsubclient.protocol.callback_urls import parse_callback_url
from httppubsubclient.protocol.errors import ConfigurationError
from httppubsubserver.delivery import connection as connection_module
from httppubsubserver.delivery import connections as connections_module
from httppubsubserver.delivery.outbound import Answer
from httppubsubserver.delivery.sending import Sending
from tests.server.peers import (
    HEAD,
    LARGE,
    LIMIT,
    LOOP_FACTORIES,
    OK,
    SMALL,
    Network,
    Outcome,
    Temper,
    Wire,
    accept,
    answering,
    failed,
    spooled,
)

__all__ = ["LOOP_FACTORIES"]

# -- requests and their connections -----------------------------------------------------------------------------------


async def test_a_request_is_written_as_it_should_be(network: Network) -> None:
    seen: asyncio.Future[tuple[str, bytes]] = asyncio.get_running_loop().create_future()

    async def temper(wire: Wire, number: int) -> None:
        seen.set_result(await wire.request())
        await wire.send(OK)

    peer, client = await network.peer(temper), await network.client()
    assert await client.post(peer.callback("/a%20b?c=d#e")) == Answer(200, None)
    head, body = await seen
    lines = head.split("\r\n")
    assert lines[0] == "POST /a%20b?c=d HTTP/1.1"
    assert lines[1] == f"host: 127.0.0.1:{peer.port}"
    assert lines[2].startswith("user-agent: httppubsub/")
    assert lines[3:] == [
        "accept: */*",
        "accept-encoding: identity",
        "x-one: 1",
        "content-type: a/b",
        "content-length: 5",
        "",
        "",
    ]
    assert body == b"hello"


async def test_a_connection_is_used_again(network: Network) -> None:
    peer, client = await network.peer(accept), await network.client()
    for _ in range(5):
        assert await client.post(peer.callback()) == Answer(200, None)
    assert peer.connections == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.1 500 x\r\ncontent-length: 0\r\n\r\n",
    ],
)
async def test_a_connection_is_used_again_after(answer: bytes, network: Network) -> None:
    peer, client = await network.peer(answering(answer, answer)), await network.client()
    for _ in range(2):
        assert isinstance(await client.post(peer.callback()), Answer)
    assert peer.connections == 1


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n", 200),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n", 200),
        (b"HTTP/1.1 204 No Content\r\n\r\nhello", 204),
        (b"HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\n", 204),
        (OK + OK, 200),
        (OK + b"junk", 200),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 10000000000\r\n\r\n" + b"x" * 1_000_000, 200),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 1_000_000, 200),
        (b"HTTP/1.1 500 x\r\ntransfer-encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 100_000, 500),
    ],
)
async def test_a_connection_is_closed_after(answer: bytes, status: int, network: Network) -> None:
    peer, client = await network.peer(answering(answer)), await network.client()
    for _ in range(2):
        outcome = await client.post(peer.callback())
        assert outcome == Answer(status, None, excerpt=b"x" * 1024 if status == 500 else b"")
    await peer.finished()
    assert peer.connections == 2


async def test_an_answer_that_ends_with_its_connection_counts(network: Network) -> None:
    async def temper(wire: Wire, number: int) -> None:
        await wire.request()
        await wire.send(b"HTTP/1.0 503 x\r\nRetry-After: 7\r\n\r\n")
        await wire.send(b"all of it")

    peer, client = await network.peer(temper), await network.client()
    assert await client.post(peer.callback()) == Answer(503, "7", excerpt=b"all of it")


async def test_the_connection_that_was_used_last_is_used_first(network: Network) -> None:
    both = asyncio.Barrier(2)
    turn = asyncio.Event()

    async def temper(wire: Wire, number: int) -> None:
        await wire.request()
        await both.wait()
        if number:
            await turn.wait()
        await wire.send(b"HTTP/1.1 %d OK\r\ncontent-length: 0\r\n\r\n" % (200 + number))
        await accept(wire, number)

    peer, client = await network.peer(temper), await network.client()
    _, first = client.start(peer.callback())
    _, second = client.start(peer.callback())
    done, _ = await asyncio.wait({first, second}, return_when=asyncio.FIRST_COMPLETED)
    assert {future.result() for future in done} == {Answer(200, None)}
    turn.set()
    await asyncio.wait({first, second})
    for _ in range(3):
        assert await client.post(peer.callback()) == Answer(201, None)
    assert peer.connections == 2


async def test_what_done_sends_goes_over_the_same_connection(network: Network) -> None:
    peer, client = await network.peer(accept), await network.client()
    loop = asyncio.get_running_loop()
    answers: list[Outcome] = []
    finished = asyncio.Event()

    def done(outcome: Outcome) -> None:
        answers.append(outcome)
        if len(answers) < 100:
            client.outbound.post(peer.callback(), HEAD, SMALL, deadline=loop.time() + LIMIT, done=done)
        else:
            finished.set()

    client.outbound.post(peer.callback(), HEAD, SMALL, deadline=loop.time() + LIMIT, done=done)
    await finished.wait()
    assert answers == [Answer(200, None)] * 100
    assert peer.connections == 1


async def test_an_error_in_done_hurts_nobody_else(network: Network, caplog: pytest.LogCaptureFixture) -> None:
    peer, client = await network.peer(accept), await network.client()
    called = asyncio.Event()

    def done(outcome: Outcome) -> None:
        called.set()
        raise ZeroDivisionError

    deadline = asyncio.get_running_loop().time() + LIMIT
    client.outbound.post(peer.callback(), HEAD, SMALL, deadline=deadline, done=done)
    await called.wait()
    assert await client.post(peer.callback()) == Answer(200, None)
    assert peer.connections == 1
    assert "ZeroDivisionError" in caplog.text


async def test_idle_connections_are_bounded_per_origin(network: Network) -> None:
    all_here = asyncio.Barrier(3)

    async def temper(wire: Wire, number: int) -> None:
        await wire.request()
        await all_here.wait()
        await wire.send(OK)
        await accept(wire, number)

    peer, client = await network.peer(temper), await network.client(connections_per_origin=1)
    await asyncio.gather(*(client.post(peer.callback()) for _ in range(3)))
    while sum(not task.done() for task in peer.tasks) > 1:
        await asyncio.wait([task for task in peer.tasks if not task.done()], return_when=asyncio.FIRST_COMPLETED)
    assert isinstance(await client.post(peer.callback()), Answer)
    assert peer.connections == 3


async def test_idle_connections_are_bounded_in_total(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections_module, "MAX_IDLE", 1)
    kept, closed, client = await network.peer(accept), await network.peer(accept), await network.client()
    assert await client.post(kept.callback()) == Answer(200, None)
    assert await client.post(closed.callback()) == Answer(200, None)
    await closed.finished()
    assert await client.post(kept.callback()) == Answer(200, None)


async def test_an_idle_connection_is_closed_after_a_while(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections_module, "IDLE_SECONDS", 0.0)
    peer, client = await network.peer(accept), await network.client()
    assert await client.post(peer.callback()) == Answer(200, None)
    await peer.finished()


async def test_an_answer_whose_rest_does_not_come_loses_its_connection(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "_REST_SECONDS", 0.0)
    peer = await network.peer(answering(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhell"))
    client = await network.client()
    assert await client.post(peer.callback()) == Answer(200, None)
    await peer.finished()


async def test_junk_on_an_idle_connection_closes_it(network: Network) -> None:
    speak = asyncio.Event()

    async def temper(wire: Wire, number: int) -> None:
        if not number:
            await wire.request()
            await wire.send(OK)
            await speak.wait()
            await wire.send(OK)
            await wire.closed()
        await accept(wire, number)

    peer, client = await network.peer(temper), await network.client()
    assert await client.post(peer.callback()) == Answer(200, None)
    speak.set()
    while not any(task.done() for task in peer.tasks):
        await asyncio.wait(peer.tasks)
    assert await client.post(peer.callback()) == Answer(201, None)


async def test_a_peer_that_speaks_first_is_refused(network: Network) -> None:
    async def temper(wire: Wire, number: int) -> None:
        await wire.send(b"220 mail.example.org ESMTP\r\n")
        await wire.closed()

    peer, client = await network.peer(temper), await network.client()
    failed(await client.post(peer.callback()), "bad_answer")


# -- connections that end ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("kind", ["small", "large", "file"])
async def test_a_request_that_meets_a_closed_idle_connection_is_sent_once_more(
    how: str, kind: str, network: Network
) -> None:
    bodies: list[bytes] = []

    async def temper(wire: Wire, number: int) -> None:
        await wire.request()
        await wire.send(OK)
        if number == 0:
            await wire.reader.readuntil(b"\r\n\r\n")
            if how == "reset":
                wire.reset()
            return
        await wire.closed()

    async def second(wire: Wire, number: int) -> None:
        if number == 0:
            await temper(wire, number)
        else:
            bodies.append((await wire.request())[1])
            await wire.send(b"HTTP/1.1 201 x\r\ncontent-length: 0\r\n\r\n")
            await wire.closed()

    peer, client = await network.peer(second), await network.client()
    with await spooled(LARGE.data or b"") as file:
        body = {"small": SMALL, "large": LARGE, "file": file}[kind]
        assert await client.post(peer.callback()) == Answer(200, None)
        assert await client.post(peer.callback(), body) == Answer(201, None)
    assert bodies == [SMALL.data if kind == "small" else LARGE.data]
    assert peer.connections == 2


def stale(heads: list[str]) -> Temper:
    """Answers on its first connection once, takes another request there and closes; answers on later ones."""

    async def temper(wire: Wire, number: int) -> None:
        heads.append((await wire.request())[0])
        await wire.send(OK)
        heads.append((await wire.request())[0])
        if number:
            await wire.send(OK)

    return temper


async def test_a_request_that_is_sent_once_more_has_lines_that_were_made_anew(network: Network) -> None:
    heads: list[str] = []
    peer, client = await network.peer(stale(heads)), await network.client()
    assert await client.post(peer.callback()) == Answer(200, None)
    _, answer = client.start(peer.callback(), head=b"nonce: 1\r\n", head_again=lambda: b"nonce: 2\r\n")
    assert await answer == Answer(200, None)
    assert [head.split("\r\n")[5] for head in heads[1:]] == ["nonce: 1", "nonce: 2"]
    assert heads[1].replace("nonce: 1", "nonce: 2") == heads[2]


async def test_a_request_that_cannot_be_signed_once_more_has_failed(network: Network) -> None:
    def head_again() -> bytes:
        raise ConfigurationError("every key has ended")

    peer, client = await network.peer(stale([])), await network.client()
    assert await client.post(peer.callback()) == Answer(200, None)
    failed(await client.start(peer.callback(), head_again=head_again)[1], ConfigurationError.code, again=False)
    await peer.finished()
    assert peer.connections == 1


async def test_a_request_is_sent_only_once_more(network: Network) -> None:
    async def temper(wire: Wire, number: int) -> None:
        if not number:
            await wire.request()
            await wire.send(OK)
        await wire.request()

    peer, client = await network.peer(temper), await network.client()
    assert await client.post(peer.callback()) == Answer(200, None)
    failed(await client.post(peer.callback()), "connection_lost")
    assert peer.connections == 2


@pytest.mark.parametrize("answer", [b"H", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"])
async def test_a_request_whose_answer_has_begun_is_not_sent_again(answer: bytes, network: Network) -> None:
    async def temper(wire: Wire, number: int) -> None:
        await wire.request()
        await wire.send(OK)
        await wire.request()
        await wire.send(answer)

    peer, client = await network.peer(temper), await network.client()
    assert await client.post(peer.callback()) == Answer(200, None)
    failed(await client.post(peer.callback()), "connection_lost")
    assert peer.connections == 1


async def at_once(wire: Wire) -> None:
    pass


async def after_the_head(wire: Wire) -> None:
    await wire.reader.readuntil(b"\r\n\r\n")


async def after_the_request(wire: Wire) -> None:
    await wire.request()


async def within_the_status_line(wire: Wire) -> None:
    await wire.request()
    await wire.send(b"HTTP/1.1 2")


async def within_the_headers(wire: Wire) -> None:
    await wire.request()
    await wire.send(b"HTTP/1.1 200 OK\r\ncontent-le")


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize(
    "when", [at_once, after_the_head, after_the_request, within_the_status_line, within_the_headers]
)
async def test_a_new_connection_that_ends_before_the_answer_has_failed(
    how: str, when: Callable[[Wire], Awaitable[None]], network: Network
) -> None:
    async def temper(wire: Wire, number: int) -> None:
        await when(wire)
        if how == "reset":
            wire.reset()

    peer, client = await network.peer(temper), await network.client()
    failed(await client.post(peer.callback()), "connection_lost")
    assert peer.connections == 1


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_an_answer_whose_connection_ends_within_the_body_counts(how: str, network: Network) -> None:
    answered = asyncio.Event()

    async def temper(wire: Wire, number: int) -> None:
        await wire.request()
        await wire.send(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhe")
        await answered.wait()
        if how == "reset":
            wire.reset()

    peer, client = await network.peer(temper), await network.client()
    assert await client.post(peer.callback()) == Answer(200, None)
    answered.set()
    await peer.finished()


async def test_nobody_listens(network: Network) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        client = await network.client()
        failed(await client.post(parse_callback_url(f"http://127.0.0.1:{port}/")), "connect_error")


# -- hostile answers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        b"\x00\xff this is not HTTP\r\n\r\n",
        b"HTTP/1.1 200 OK\nx: y\n\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 10_000,
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n",
    ],
)
async def test_a_bad_answer_closes_the_connection(answer: bytes, network: Network) -> None:
    peer, client = await network.peer(answering(answer)), await network.client()
    failed(await client.post(peer.callback()), "bad_answer")
    await peer.finished()


async def test_endless_interim_answers_are_cut(network: Network) -> None:
    async def temper(wire: Wire, number: int) -> None:
        while True:
            await wire.send(b"HTTP/1.1 100 Continue\r\n\r\n")

    peer, client = await network.peer(temper), await network.client()
    failed(await client.post(peer.callback()), "bad_answer")
    await peer.finished()


@pytest.mark.parametrize("chunked", [True, False])
async def test_an_endless_body_is_not_read(chunked: bool, network: Network) -> None:
    async def temper(wire: Wire, number: int) -> None:
        await wire.request()
        await wire.send(b"HTTP/1.1 200 OK\r\n" + (b"transfer-encoding: chunked\r\n" if chunked else b"") + b"\r\n")
        while True:
            await wire.send(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")

    peer, client = await network.peer(temper), await network.client()
    assert await client.post(peer.callback()) == Answer(200, None)
    await peer.finished()


async def test_a_redirect_is_an_answer_like_any_other(network: Network) -> None:
    elsewhere = await network.peer(accept)
    location = elsewhere.callback().request_url.encode()
    answers = [
        b"HTTP/1.1 %d x\r\nlocation: %b\r\nset-cookie: a=b\r\ncontent-length: 0\r\n\r\n" % (status, location)
        for status in (301, 302, 303, 307, 308)
    ]
    heads: list[str] = []

    async def temper(wire: Wire, number: int) -> None:
        for answer in answers:
            heads.append((await wire.request())[0])
            await wire.send(answer)

    peer, client = await network.peer(temper), await network.client()
    for status in (301, 302, 303, 307, 308):
        assert await client.post(peer.callback()) == Answer(status, None)
    assert elsewhere.connections == 0
    assert not any("cookie" in head for head in heads)


async def test_the_environment_takes_no_part(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy, peer = await network.peer(accept), await network.peer(accept)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, proxy.callback().request_url)
    client = await network.client()
    assert await client.post(peer.callback()) == Answer(200, None)
    assert proxy.connections == 0


# -- bodies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, 3_000_000])
@pytest.mark.parametrize("where", ["memory", "file"])
async def test_a_body_arrives_whole(size: int, where: str, network: Network) -> None:
    data = os.urandom(size)
    bodies: list[bytes] = []

    async def temper(wire: Wire, number: int) -> None:
        while True:
            bodies.append((await wire.request())[1])
            await wire.send(OK)

    peer, client = await network.peer(temper), await network.client()
    with await spooled(data) if where == "file" else Body.of(data) as body:
        for _ in range(2):
            assert await client.post(peer.callback(), body) == Answer(200, None)
    assert bodies == [data, data]
    assert peer.connections == 1


@pytest.mark.parametrize("where", ["memory", "file"])
@pytest.mark.parametrize("ending", ["close", "keep"])
async def test_an_early_answer_ends_the_sending(where: str, ending: str, network: Network) -> None:
    async def temper(wire: Wire, number: int) -> None:
        await wire.reader.readuntil(b"\r\n\r\n")
        await wire.send(b"HTTP/1.1 413 x\r\nconnection: %b\r\ncontent-length: 2\r\n\r\nno" % ending.encode())
        await wire.closed()

    peer, client = await network.peer(temper), await network.client()
    data = os.urandom(30_000_000)
    with await spooled(data) if where == "file" else Body.of(data) as body:
        assert await client.post(peer.callback(), body) == Answer(413, None, excerpt=b"no")
    await peer.finished()
    assert peer.connections == 1


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("where", ["memory", "file"])
async def test_a_slow_reader_holds_back_the_sender(
    where: str, tls: bool, network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = asyncio.Event()
    begun = asyncio.Event()
    sendings: list[Sending] = []

    def sending(body: Body, transport: asyncio.Transport) -> Sending:
        sendings.append(Sending(body, transport))
        return sendings[0]

    async def temper(wire: Wire, number: int) -> None:
        await wire.reader.readuntil(b"\r\n\r\n")
        begun.set()
        await read.wait()
        await wire.reader.readexactly(30_000_000)
        await wire.send(OK)

    monkeypatch.setattr(connection_module, "Sending", sending)
    peer = await network.peer(temper, tls=network.authority.server() if tls else None)
    client = await network.client()
    with await spooled(bytes(30_000_000)) if where == "file" else Body.of(bytes(30_000_000)) as body:
        _, answer = client.start(peer.callback(), body)
        await begun.wait()
        given = -1
        while given != sendings[0].given:
            given = sendings[0].given
            await asyncio.gather(*(asyncio.to_thread(int) for _ in range(20)))
        assert given < 20_000_000
        read.set()
        assert await answer == Answer(200, None)


async def test_a_body_that_cannot_be_read_has_failed(network: Network, caplog: pytest.LogCaptureFixture) -> None:
    peer, client = await network.peer(accept), await network.client()
    body = await spooled(bytes(100_000))
    body.close()
    failed(await client.post(peer.callback(), body), "body_unreadable", again=False)
    await peer.finished()
    assert "reading a body failed" in caplog.text


@pytest.mark.parametrize("left", [3_000_000, 50_000])
@pytest.mark.parametrize("tls", [False, True])
async def test_a_body_whose_file_is_too_short_has_failed(tls: bool, left: int, network: Network) -> None:
    peer = await network.peer(accept, tls=network.authority.server() if tls else None)
    client = await network.client()
    with await spooled(bytes(4_000_000)) as body:
        with body.descriptor() as file:
            os.truncate(file, left)
        failed(await client.post(peer.callback(), body), "body_unreadable", again=False)
    await peer.finished()


@pytest.mark.parametrize("tls", [False, True])
async def test_many_read_one_file_each_at_its_own_pace(tls: bool, network: Network) -> None:
    data = os.urandom(5_000_000)
    all_but_one = asyncio.Barrier(6)
    bodies: list[bytes] = []

    async def temper(wire: Wire, number: int) -> None:
        await wire.reader.readuntil(b"\r\n\r\n")
        if number == 0:
            await all_but_one.wait()
        bodies.append(await wire.reader.readexactly(len(data)))
        await wire.send(OK)
        if number:
            await all_but_one.wait()

    peer = await network.peer(temper, tls=network.authority.server() if tls else None)
    client = await network.client()
    with await spooled(data) as body:
        answers = await asyncio.gather(*(client.post(peer.callback(), body) for _ in range(6)))
    assert answers == [Answer(200, None)] * 6
    assert bodies == [data] * 6
