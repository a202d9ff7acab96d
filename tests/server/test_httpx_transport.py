"""`FastTransport` beside httpx's own transport, against the same real servers; and what only one of them does."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import os
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import h11
import httpx
import pytest

from httppubsubserver import FastTransport
from tests.server.peers import LIMIT, LOOP_FACTORIES, OK, Network, Peer, Wire, deaf_port

__all__ = ["LOOP_FACTORIES"]

SHORT = 0.1
"""A timeout that is meant to run out."""

BIG = os.urandom(3_000_000)
Make = Callable[[ssl.SSLContext], httpx.AsyncBaseTransport]
BOTH: list[Make] = [
    lambda tls: httpx.AsyncHTTPTransport(verify=tls, trust_env=False),
    lambda tls: FastTransport(tls=tls),
]


@asynccontextmanager
async def client(
    network: Network, make: Make | None = None, *, timeout: httpx.Timeout | float = LIMIT, **options: Any
) -> AsyncIterator[httpx.AsyncClient]:
    """By default over FastTransport with these options; it trusts the authority."""
    tls = ssl.create_default_context(cafile=network.authority.file)
    transport = FastTransport(tls=tls, **options) if make is None else make(tls)
    async with httpx.AsyncClient(transport=transport, trust_env=False, timeout=timeout) as http:
        yield http


async def request_of(wire: Wire) -> bytes:
    """The bytes of one request."""
    data = await wire.reader.readuntil(b"\r\n\r\n")
    fields = dict(line.split(b": ", 1) for line in data.lower().split(b"\r\n")[1:-2])
    if fields.get(b"transfer-encoding") == b"chunked":
        while not data.endswith(b"\r\n0\r\n\r\n"):
            data += await wire.reader.readuntil(b"\r\n")
        return data
    return data + await wire.reader.readexactly(int(fields.get(b"content-length", b"0")))


def ok(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


async def echo(wire: Wire, number: int) -> None:
    """Answers every request with its own bytes."""
    while True:
        await wire.send(ok(await request_of(wire)))


def url(peer: Peer, path: str = "/hook") -> str:
    return peer.callback(path).request_url


# -- the same as httpx's own ------------------------------------------------------------------------------------------

Seen = tuple[Any, ...]


async def seen(http: httpx.AsyncClient, method: str, target: str, **arguments: Any) -> Seen:
    """What a caller sees of an answer, or which error."""
    try:
        response = await http.request(method, target, **arguments)
    except (httpx.HTTPError, h11.LocalProtocolError) as error:  # httpx lets one of h11 through
        return type(error).__name__, bool(str(error))
    headers = [(name.lower(), value) for name, value in response.headers.raw]
    extensions = {name: value for name, value in response.extensions.items() if name != "network_stream"}
    return response.status_code, headers, response.content, extensions


CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
ANSWERS: dict[str, tuple[str, list[bytes]]] = {
    "a length": ("GET", [b"HTTP/1.1 200 OK\r\nX-Y: z\r\nContent-Length: 5\r\n\r\nhello"]),
    "nothing": ("GET", [ok(b"")]),
    "in pieces": ("GET", [b"HTTP/1.1 200 OK\r\nconte", b"nt-length: 5\r\n\r", b"\nhe", b"llo"]),
    "chunks": ("GET", [CHUNKED + b"5\r\nhello\r\n", b"6;x=y\r\n world\r\n0\r\n\r\n"]),
    "trailers": ("GET", [CHUNKED + b"5\r\nhello\r\n0\r\nx: y\r\n\r\n"]),
    "until close": ("GET", [b"HTTP/1.1 200 OK\r\n\r\nhello", b" world"]),
    "until close, nothing": ("GET", [b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n"]),
    "HTTP/1.0": ("GET", [b"HTTP/1.0 200 OK\r\n\r\nhello"]),
    "interim": ("GET", [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 x\r\nlink: </a>\r\n\r\n" + ok(b"x")]),
    "204": ("DELETE", [b"HTTP/1.1 204 No Content\r\n\r\n"]),
    "304": ("GET", [b"HTTP/1.1 304 Not Modified\r\netag: \"x\"\r\ncontent-length: 5\r\n\r\n"]),
    "HEAD": ("HEAD", [b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"]),
    "HEAD, chunks": ("HEAD", [CHUNKED]),
    "HEAD, no length": ("HEAD", [b"HTTP/1.1 404 Not Found\r\n\r\n"]),
    "a redirect": ("GET", [b"HTTP/1.1 302 Found\r\nlocation: /other\r\ncontent-length: 0\r\n\r\n"]),
    "headers twice": ("GET", [b"HTTP/1.1 200\r\nset-cookie: a\r\nset-cookie: b\r\nx:\r\ncontent-length: 0\r\n\r\n"]),
    "beyond ASCII": ("GET", [b"HTTP/1.1 299 \xc3\xa4\r\nx: \xff\xc3\xa4\r\ncontent-length: 0\r\n\r\n"]),
    "a problem": ("POST", [b"HTTP/1.1 503 Busy\r\nretry-after: 7\r\ncontent-type: a/b\r\ncontent-length: 2\r\n\r\n{}"]),
    "much": ("GET", [ok(BIG)]),
    "gzip": ("GET", [
        b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 25\r\n\r\n"
        + bytes.fromhex("1f8b08000000000002ffcb48cdc9c907008 6a6103605000000".replace(" ", ""))
    ]),
    "no answer": ("GET", []),
    "half a head": ("GET", [b"HTTP/1.1 200 OK\r\nx:"]),
    "half a body": ("GET", [b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhel"]),
    "no last chunk": ("GET", [CHUNKED + b"5\r\nhello\r\n"]),
    "an interim answer alone": ("GET", [b"HTTP/1.1 100 Continue\r\n\r\n"]),
    "garbage": ("GET", [b"\x00\xff this is not HTTP\r\n\r\n"]),
    "two lengths": ("GET", [b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello"]),
    "no chunk": ("GET", [CHUNKED + b"x\r\n"]),
    "a bad header": ("GET", [b"HTTP/1.1 200 OK\r\nx\x00: y\r\n\r\n"]),
}  # fmt: skip


@pytest.mark.parametrize("tls", [False, True])
async def test_answers_are_what_httpx_makes_of_them(network: Network, tls: bool) -> None:
    for name, (method, pieces) in ANSWERS.items():

        async def temper(wire: Wire, number: int, pieces: list[bytes] = pieces) -> None:
            await request_of(wire)
            for piece in pieces:
                await wire.send(piece)
            wire.writer.close()
            await wire.closed()

        peer = await network.peer(temper, tls=network.authority.server() if tls else None)
        results = []
        for make in BOTH:
            async with client(network, make) as http:
                results.append(await seen(http, method, url(peer)))
        assert results[0] == results[1], name


async def pieces_of(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


SENT: dict[str, Callable[[], dict[str, Any]]] = {
    "nothing": dict,
    "bytes": lambda: {"content": b"hello"},
    "many bytes": lambda: {"content": BIG},
    "a stream": lambda: {"content": pieces_of(b"he", b"", b"llo")},
    "a large stream": lambda: {"content": pieces_of(BIG[:1_000_000], BIG[1_000_000:])},
    "an empty stream": lambda: {"content": pieces_of()},
    "a counted stream": lambda: {"content": pieces_of(b"he", b"llo"), "headers": {"content-length": "5"}},
    "json": lambda: {"json": {"a": "ü"}},
    "a form": lambda: {"data": {"a": "b c"}},
    "files": lambda: {"files": {"a": ("b.txt", b"hello", "text/plain")}, "headers": {
        "content-type": "multipart/form-data; boundary=xyz"}},
    "headers": lambda: {"headers": {"X-Case": "Kept", "host": "other.test", "accept-encoding": "identity"}},
    "a query": lambda: {"params": {"a": "b c/?", "ü": "&"}},
    "a password": lambda: {"auth": ("user", "secret")},
    "too short": lambda: {"content": pieces_of(b"hell"), "headers": {"content-length": "5"}},
    "too long": lambda: {"content": pieces_of(b"hello!"), "headers": {"content-length": "5"}},
    "a bad header": lambda: {"headers": {"x": "a\r\nb: c"}},
}  # fmt: skip


async def test_requests_are_what_httpx_sends(network: Network) -> None:
    peer = await network.peer(echo)
    for (name, arguments), method in itertools.product(SENT.items(), ("POST", "GET", "OPTIONS")):
        results = []
        for make in BOTH:
            async with client(network, make) as http:
                results.append(await seen(http, method, url(peer, "/a%20b;c?d=%7e"), **arguments()))
        if name == "headers":  # h11 moves Host to the front
            results = [(*result[:2], sorted(result[2].split(b"\r\n")), *result[3:]) for result in results]
        assert results[0] == results[1], name


async def test_redirects_are_followed_with_their_body(network: Network) -> None:
    async def temper(wire: Wire, number: int) -> None:
        first = await request_of(wire)
        await wire.send(b"HTTP/1.1 307 x\r\nlocation: /other\r\ncontent-length: 0\r\n\r\n")
        await wire.send(ok(first + await request_of(wire)))
        await wire.closed()

    peer = await network.peer(temper)
    results = []
    for make in BOTH:
        async with client(network, make) as http:
            results.append(await seen(http, "POST", url(peer), content=b"hello", follow_redirects=True))
    assert results[0] == results[1]
    assert results[0][2].count(b"hello") == 2


async def silent(wire: Wire, number: int) -> None:
    await request_of(wire)
    await wire.closed()


async def reset(wire: Wire, number: int) -> None:
    await request_of(wire)
    await wire.send(b"HTTP/1.1 200 OK\r\n")
    wire.reset()


async def not_reading(wire: Wire, number: int) -> None:
    wire.writer.get_extra_info("socket")
    await asyncio.Event().wait()


async def not_http(wire: Wire, number: int) -> None:
    await wire.reader.read(1)
    await wire.send(b"220 ready\r\n")
    await wire.closed()


async def errors(network: Network, target: str, timeout: httpx.Timeout | float = LIMIT, **arguments: Any) -> set[str]:
    names = set()
    for make in BOTH:
        async with client(network, make, timeout=timeout) as http:
            name, has_words = await seen(http, "POST", target, **arguments)
            names.add(name)
    assert has_words, "ours say what happened"
    return names


async def test_errors_are_those_of_httpx(network: Network) -> None:
    plain = await network.peer(silent)
    assert await errors(network, url(plain), httpx.Timeout(LIMIT, read=SHORT)) == {"ReadTimeout"}
    assert await errors(network, url(plain), httpx.Timeout(LIMIT, read=SHORT), content=BIG) == {"ReadTimeout"}
    resetting = await network.peer(reset)
    assert await errors(network, url(resetting)) == {"ReadError"}
    stuck = await network.peer(not_reading)
    assert await errors(network, url(stuck), httpx.Timeout(LIMIT, write=SHORT), content=b"x" * 30_000_000) == {
        "WriteTimeout"
    }
    async with deaf_port() as port:
        target = f"http://127.0.0.1:{port}/"
        assert await errors(network, target, httpx.Timeout(LIMIT, connect=SHORT)) == {"ConnectTimeout"}
        target = f"https://127.0.0.1:{port}/"
        assert await errors(network, target, httpx.Timeout(LIMIT, connect=SHORT)) == {"ConnectTimeout"}
    assert await errors(network, f"http://127.0.0.1:{port}/") == {"ConnectError"}
    assert await errors(network, "http://no-such-name.invalid/") == {"ConnectError"}
    other = await network.peer(silent, tls=network.authority.server(self_signed=True))
    assert await errors(network, url(other)) == {"ConnectError"}
    speaking = await network.peer(not_http)
    assert await errors(network, url(speaking).replace("http:", "https:")) == {"ConnectError"}
    assert await errors(network, "ftp://127.0.0.1/") == {"UnsupportedProtocol"}


async def test_a_timeout_bounds_each_wait_and_not_the_whole(network: Network) -> None:
    """Ten pieces with a pause after each that is longer than a tenth of the timeout, and a slow stream."""
    quiet = await network.peer(silent)

    async def pause(http: httpx.AsyncClient) -> None:
        with pytest.raises(httpx.ReadTimeout):
            await http.get(url(quiet), timeout=SHORT)

    async with client(network) as clock, client(network, timeout=4 * SHORT) as http:

        async def slowly(wire: Wire, number: int) -> None:
            await request_of(wire)
            for byte in CHUNKED + b"1\r\nx\r\n0\r\n\r\n":
                await wire.send(bytes([byte]))
                if byte == ord("\n"):
                    await pause(clock)
            await wire.closed()

        async def stream() -> AsyncIterator[bytes]:
            for _ in range(6):
                await pause(clock)
                yield b"x"

        peer = await network.peer(slowly)
        assert (await http.post(url(peer), content=stream())).content == b"x"


async def test_a_stream_that_gives_nothing_is_not_the_peer_s_fault_and_the_peer_s_silence_after_it_is(
    network: Network,
) -> None:
    quiet, peer = await network.peer(silent), await network.peer(echo)
    for make in BOTH:
        async with client(network, make, timeout=httpx.Timeout(LIMIT, write=SHORT)) as http:

            async def stream(http: httpx.AsyncClient = http) -> AsyncIterator[bytes]:
                yield b"x"
                with pytest.raises(httpx.ReadTimeout):
                    await http.get(url(quiet), timeout=httpx.Timeout(LIMIT, read=3 * SHORT))
                yield b"y"

            assert (await http.post(url(peer), content=stream())).status_code == 200
            with pytest.raises(httpx.ReadTimeout):
                await http.post(url(quiet), content=pieces_of(BIG), timeout=httpx.Timeout(LIMIT, read=SHORT))


# -- what it does besides ---------------------------------------------------------------------------------------------


async def test_connections_are_kept_and_given_up(network: Network) -> None:
    peer = await network.peer(echo)
    async with client(network) as http:
        for _ in range(3):
            assert (await http.get(url(peer))).status_code == 200
        assert peer.connections == 1
        await http.get(url(peer), headers={"connection": "close"})
        await http.get(url(peer))
        assert peer.connections == 2


async def test_idle_connections_are_closed_after_a_while(network: Network) -> None:
    peer = await network.peer(echo)
    async with client(network, idle_seconds=0.0) as http:
        await http.get(url(peer))
        await peer.finished()
        await http.get(url(peer))
        assert peer.connections == 2


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "POST", "PATCH"])
async def test_only_what_may_be_repeated_is_sent_again_over_a_stale_connection(network: Network, method: str) -> None:
    async def temper(wire: Wire, number: int) -> None:
        await request_of(wire)
        await wire.send(OK)
        await wire.reader.read(1)

    peer = await network.peer(temper)
    async with client(network) as http:
        await http.get(url(peer))
        if method in ("POST", "PATCH"):
            with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
                await http.request(method, url(peer))
        else:
            assert (await http.request(method, url(peer))).status_code == 200
        if method == "PUT":
            with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
                await http.request(method, url(peer), content=pieces_of(b"x"))


async def test_256_at_once_each_get_their_own_answer(network: Network) -> None:
    peer = await network.peer(echo)
    async with client(network) as http:

        async def one(number: int) -> bool:
            body = b"%d " % number * 100
            content = pieces_of(body) if number % 2 else body
            response = await http.post(url(peer, f"/{number}"), content=content)
            return b"POST /%d HTTP" % number in response.content and body in response.content

        for _ in range(2):
            assert all(await asyncio.gather(*(one(number) for number in range(256))))
        assert peer.connections <= 256


async def test_max_requests_are_under_way_and_the_others_wait(network: Network) -> None:
    gate, both = asyncio.Event(), asyncio.Event()
    under_way, most = 0, 0

    async def temper(wire: Wire, number: int) -> None:
        nonlocal under_way, most
        while True:
            await request_of(wire)
            under_way += 1
            most = max(most, under_way)
            if under_way == 2:
                both.set()
            await gate.wait()
            under_way -= 1
            await wire.send(OK)

    peer = await network.peer(temper)
    async with client(network, max_requests=2) as http, asyncio.TaskGroup() as group:
        tasks = [group.create_task(http.get(url(peer))) for _ in range(10)]
        await both.wait()
        with pytest.raises(httpx.PoolTimeout):
            await http.get(url(peer), timeout=httpx.Timeout(LIMIT, pool=SHORT))
        waiting = asyncio.create_task(http.get(url(peer)))
        await asyncio.sleep(0)
        waiting.cancel()
        gate.set()
    assert [task.result().status_code for task in tasks] == [200] * 10
    assert most == 2


async def endless() -> AsyncIterator[bytes]:
    while True:
        yield b"x" * 65_536


async def test_a_cancelled_request_closes_its_connection(network: Network) -> None:
    arrived = asyncio.Semaphore(0)

    async def temper(wire: Wire, number: int) -> None:
        if number == 2:
            await echo(wire, number)
        await wire.reader.readuntil(b"\r\n\r\n")
        arrived.release()
        await wire.closed()

    peer = await network.peer(temper)
    async with client(network, max_requests=1) as http:
        for content in (b"hello", endless()):
            task = asyncio.create_task(http.post(url(peer), content=content))
            await arrived.acquire()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await peer.finished()
        assert (await http.post(url(peer), content=b"hello")).status_code == 200


async def test_an_early_answer_ends_the_request(network: Network) -> None:
    async def temper(wire: Wire, number: int) -> None:
        await wire.reader.readuntil(b"\r\n\r\n")
        await wire.send(b"HTTP/1.1 413 Too Large\r\ncontent-length: 2\r\n\r\nno")
        await wire.closed()

    peer = await network.peer(temper)
    async with client(network) as http:
        for content in (endless(), b"x" * 50_000_000):
            response = await http.post(url(peer), content=content)
            assert (response.status_code, response.content) == (413, b"no")
    await peer.finished()


async def test_a_stream_is_asked_only_when_there_is_room(network: Network) -> None:
    peer = await network.peer(not_reading)
    given = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal given
        while True:
            given += 1
            yield b"x" * 1_000_000

    async with client(network, timeout=httpx.Timeout(LIMIT, write=SHORT)) as http:
        with pytest.raises(httpx.WriteTimeout):
            await http.post(url(peer), content=endless())
    assert given < 50


async def test_what_goes_wrong_in_a_stream_reaches_the_caller(network: Network) -> None:
    class Fault(Exception):
        pass

    async def stream() -> AsyncIterator[bytes]:
        yield b"x"
        raise Fault

    peer = await network.peer(silent)
    async with client(network) as http:
        with pytest.raises(Fault):
            await http.post(url(peer), content=stream())
    await peer.finished()


async def test_large_bodies_arrive_whole_in_both_directions(network: Network) -> None:
    async def temper(wire: Wire, number: int) -> None:
        sent = await request_of(wire)
        body = hashlib.sha256(sent[-len(BIG) :]).hexdigest().encode() + BIG
        await wire.send(CHUNKED)
        for at in range(0, len(body), 99_991):
            piece = body[at : at + 99_991]
            await wire.send(b"%x\r\n%b\r\n" % (len(piece), piece))
        await wire.send(b"0\r\n\r\n")
        await wire.closed()

    peer = await network.peer(temper, tls=network.authority.server())
    async with client(network) as http:
        response = await http.post(url(peer), content=BIG)
    assert response.content == hashlib.sha256(BIG).hexdigest().encode() + BIG


async def test_an_answer_beyond_the_bound_is_refused_in_words(network: Network) -> None:
    peer = await network.peer(echo)
    async with client(network, max_answer_bytes=1000) as http:
        assert (await http.post(url(peer), content=b"x" * 500)).status_code == 200
        with pytest.raises(httpx.UnsupportedProtocol, match=r"more than 1000 bytes.*max_answer_bytes"):
            await http.post(url(peer), content=b"x" * 1000)
        assert (await http.post(url(peer), content=b"x" * 500)).status_code == 200


@pytest.mark.parametrize(
    ("method", "target", "arguments", "words"),
    [
        ("CONNECT", "http://127.0.0.1/", {}, "tunnel"),
        ("GET", "http://127.0.0.1/", {"headers": {"connection": "upgrade", "upgrade": "websocket"}}, "upgrade"),
        ("GET", "http://127.0.0.1/", {"extensions": {"sni_hostname": "other.test"}}, "name"),
        ("GET", "ftp://127.0.0.1/", {}, "http"),
        ("GET", "http://127.1/", {}, "IPv4"),
        ("GET", "http://[fe80::1%25eth0]/", {}, "zone|percent"),
    ],
)
async def test_what_it_cannot_do_it_says(
    network: Network, method: str, target: str, arguments: dict[str, Any], words: str
) -> None:
    async with client(network) as http:
        with pytest.raises((httpx.UnsupportedProtocol, httpx.InvalidURL), match=words):
            await http.request(method, target, **arguments)


async def test_tls_is_resumed(network: Network) -> None:
    resumed: list[bool] = []

    async def temper(wire: Wire, number: int) -> None:
        connected: ssl.SSLObject = wire.writer.get_extra_info("ssl_object")
        resumed.append(bool(connected.session_reused))
        assert connected.selected_alpn_protocol() == "http/1.1"
        await request_of(wire)
        await wire.send(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
        await wire.closed()

    peer = await network.peer(temper, tls=network.authority.server())
    async with client(network) as http:
        for _ in range(3):
            assert (await http.get(url(peer))).status_code == 200
    assert resumed == [False, True, True]


async def test_a_host_may_be_a_name_or_an_ipv6_address(network: Network) -> None:
    peer = await network.peer(echo)
    peers = [(peer, f"http://LOCALHOST:{peer.port}/")]
    with contextlib.suppress(OSError):
        other = await network.peer(echo, host="::1")
        peers.append((other, url(other, "/")))
    async with client(network) as http:
        for peer, target in peers:
            assert (await http.get(target)).status_code == 200
            assert peer.connections == 1


async def test_what_is_under_way_fails_when_it_is_closed(network: Network) -> None:
    arrived = asyncio.Event()

    async def temper(wire: Wire, number: int) -> None:
        await request_of(wire)
        arrived.set()
        await wire.closed()

    peer = await network.peer(temper)
    transport = FastTransport()
    task = asyncio.create_task(transport.handle_async_request(httpx.Request("GET", url(peer))))
    await arrived.wait()
    await transport.aclose()
    await transport.aclose()
    with pytest.raises(httpx.ReadError):
        await task
    with pytest.raises(RuntimeError, match="closed"):
        await transport.handle_async_request(httpx.Request("GET", url(peer)))


async def test_it_belongs_to_one_event_loop(network: Network) -> None:
    peer = await network.peer(echo)
    async with FastTransport() as transport:
        request = httpx.Request("GET", url(peer))
        assert (await transport.handle_async_request(request)).status_code == 200

        with pytest.raises(RuntimeError, match="event loop"):
            await asyncio.to_thread(asyncio.run, transport.handle_async_request(request))


def test_the_package_has_nothing_else_to_give() -> None:
    import httppubsubserver

    with pytest.raises(AttributeError):
        httppubsubserver.SlowTransport  # noqa: B018
