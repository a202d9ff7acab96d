"""The egress proxy: what it is asked, and whose fault it is when there is no way through it."""

from __future__ import annotations

import asyncio
import logging
from base64 import b64encode
from contextlib import suppress

import httpx
import pytest

from httppubsubclient.protocol.addresses import AddressPolicy
from httppubsubclient.protocol.callback_urls import parse_callback_url
from httppubsubclient.protocol.errors import ConfigurationError
from httppubsubserver.delivery import proxy as proxy_module
from httppubsubserver.delivery.egress import Egress
from httppubsubserver.delivery.httpx_transport import FastTransport
from httppubsubserver.delivery.outbound import Answer
from httppubsubserver.delivery.proxy import Proxy, ProxyFailed, parse_proxy_url
from httppubsubserver.delivery.resolving import Resolver
from tests.server.peers import (
    LARGE,
    LOOP_FACTORIES,
    OK,
    Network,
    Peer,
    Temper,
    Wire,
    accept,
    answering,
    deaf_port,
    failed,
    spooled,
)

__all__ = ["LOOP_FACTORIES"]

HERE = AddressPolicy(("127.0.0.1/32",))
CLOSED_PORT = 1
"""Nobody listens there; a listener would have to be root's."""


def names(*addresses: str) -> Resolver:
    async def resolve(host: str, port: int) -> list[str]:
        return list(addresses)

    return resolve


class Tunnels:
    """A proxy that works; `asked` are the heads of the requests that it got."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answer = b"HTTP/1.1 200 Connection established\r\n\r\n"

    async def temper(self, wire: Wire, number: int) -> None:
        head = (await wire.reader.readuntil(b"\r\n\r\n")).decode()
        self.asked.append(head)
        authority = head.split(" ")[1]
        host, port = authority.rsplit(":", 1)
        try:
            reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        except OSError:
            await wire.send(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n")
            return
        await wire.send(self.answer)

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            with suppress(ConnectionError):
                while data := await source.read(65536):
                    sink.write(data)
                    await sink.drain()
                sink.close()

        try:
            await asyncio.gather(pump(wire.reader, writer), pump(reader, wire.writer))
        finally:
            writer.transport.abort()


def by_way_of(peer: Peer | int, *addresses: str, credentials: bytes | None = None) -> Egress:
    port = peer if isinstance(peer, int) else peer.port
    resolver = names(*addresses) if addresses else None
    return Egress(HERE, resolver=resolver, proxy=Proxy("127.0.0.1", port, credentials))


async def outcome_of(network: Network, temper: Temper, *, port: int = 8080, seconds: float = 10.0) -> ProxyFailed:
    """What a delivery comes to by way of a proxy that does this."""
    client = await network.client(egress=by_way_of(await network.peer(temper)))
    outcome = await client.post(parse_callback_url(f"http://127.0.0.1:{port}/"), seconds=seconds)
    failed(outcome, "proxy_error")
    assert isinstance(outcome, ProxyFailed)
    return outcome


# -- what it is asked -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tls", [False, True], ids=["http", "https"])
async def test_every_connection_goes_through_it_to_the_address_that_was_checked(tls: bool, network: Network) -> None:
    heads: list[str] = []

    async def temper(wire: Wire, number: int) -> None:
        while True:
            heads.append((await wire.request())[0])
            await wire.send(OK)

    tunnels = Tunnels()
    context = network.authority.server("name.example") if tls else None
    peer, proxy = await network.peer(temper, tls=context), await network.peer(tunnels.temper)
    client = await network.client(egress=by_way_of(proxy, "127.0.0.1"))
    with await spooled(LARGE.data or b"") as file:
        for body in (LARGE, file):
            assert await client.post(peer.callback(host="name.example"), body) == Answer(200, None)
    authority = f"127.0.0.1:{peer.port}"
    assert tunnels.asked == [f"CONNECT {authority} HTTP/1.1\r\nhost: {authority}\r\n\r\n"]
    assert [head.split("\r\n")[1] for head in heads] == [f"host: name.example:{peer.port}"] * 2
    assert peer.connections == 1


async def test_an_httpx_client_goes_the_same_way(network: Network) -> None:
    tunnels = Tunnels()
    peer, proxy = await network.peer(accept), await network.peer(tunnels.temper)
    transport = FastTransport(egress=by_way_of(proxy))
    async with httpx.AsyncClient(transport=transport, trust_env=False) as http:
        assert (await http.get(f"http://127.0.0.1:{peer.port}/")).status_code == 200
        await proxy.close()
        with pytest.raises(httpx.ProxyError):
            await http.get("http://127.0.0.1:8080/")
    assert len(tunnels.asked) == 1


@pytest.mark.parametrize(
    ("address", "written"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("::ffff:127.0.0.1", "127.0.0.1"),
        ("0:0:0:0:0:0:0:1", "[::1]"),
        ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", "[2606:2800:21f:cb07:6820:80da:af6b:8b2c]"),
    ],
)
async def test_how_an_address_is_written(address: str, written: str, network: Network) -> None:
    asked: list[str] = []

    async def temper(wire: Wire, number: int) -> None:
        asked.append((await wire.request())[0].split("\r\n")[0])

    proxy = await network.peer(temper)
    egress = Egress(
        AddressPolicy(("public", "loopback")), resolver=names(address), proxy=Proxy("127.0.0.1", proxy.port)
    )
    client = await network.client(egress=egress)
    failed(await client.post(parse_callback_url("http://name.example:8080/")), "proxy_error")
    assert asked == [f"CONNECT {written}:8080 HTTP/1.1"]


@pytest.mark.parametrize(
    "host", ["127.0.0.2", "169.254.169.254", "[::1]", "10.0.0.1", "mixed.example"], ids=lambda host: host.strip("[]")
)
async def test_it_is_not_asked_for_what_may_not_be_dialled(host: str, network: Network) -> None:
    tunnels = Tunnels()
    proxy = await network.peer(tunnels.temper)
    client = await network.client(egress=by_way_of(proxy, "127.0.0.1", "10.0.0.1"))
    failed(await client.post(parse_callback_url(f"http://{host}:8080/")), "blocked_address", again=False)
    assert proxy.connections == 0


async def test_its_own_address_need_not_be_one_that_may_be_called_back(network: Network) -> None:
    tunnels = Tunnels()
    peer, proxy = await network.peer(accept), await network.peer(tunnels.temper, host="127.0.0.2")
    egress = Egress(HERE, proxy=Proxy("127.0.0.2", proxy.port))
    client = await network.client(egress=egress)
    assert await client.post(peer.callback()) == Answer(200, None)


async def test_its_name_is_resolved(network: Network) -> None:
    tunnels = Tunnels()
    peer, proxy = await network.peer(accept), await network.peer(tunnels.temper)
    egress = Egress(HERE, resolver=names("127.0.0.3", "127.0.0.1"), proxy=Proxy("proxy.internal", proxy.port))
    client = await network.client(egress=egress)
    assert await client.post(peer.callback()) == Answer(200, None)


async def test_the_next_address_is_tried_through_it_too(network: Network) -> None:
    tunnels = Tunnels()
    peer, proxy = await network.peer(accept), await network.peer(tunnels.temper)
    egress = Egress(
        AddressPolicy(("loopback",)), resolver=names("127.0.0.9", "127.0.0.1"), proxy=Proxy("127.0.0.1", proxy.port)
    )
    client = await network.client(egress=egress)
    assert await client.post(peer.callback(host="name.example")) == Answer(200, None)
    assert [head.split(" ")[1] for head in tunnels.asked] == [f"127.0.0.{at}:{peer.port}" for at in (9, 1)]


async def test_credentials_are_sent_to_it_and_to_nobody_else(
    network: Network, caplog: pytest.LogCaptureFixture
) -> None:
    heads: list[str] = []

    async def temper(wire: Wire, number: int) -> None:
        heads.append((await wire.request())[0])
        await wire.send(OK)

    caplog.set_level(logging.DEBUG)
    tunnels = Tunnels()
    peer, proxy = await network.peer(temper), await network.peer(tunnels.temper)
    parsed = parse_proxy_url(f"http://partner:p%40ss%3Aw%C3%B6rd@127.0.0.1:{proxy.port}")
    client = await network.client(egress=Egress(HERE, proxy=parsed))
    assert await client.post(peer.callback()) == Answer(200, None)
    proof = b64encode("partner:p@ss:wörd".encode()).decode()
    assert f"\r\nproxy-authorization: Basic {proof}\r\n" in tunnels.asked[0]
    assert "proxy-authorization" not in heads[0]
    await proxy.close()
    outcome = await client.post(parse_callback_url("http://127.0.0.1:8080/"))
    for shown in (repr(parsed), repr(outcome), str(outcome), caplog.text):
        assert "p@ss" not in shown
        assert proof not in shown


# -- what goes wrong --------------------------------------------------------------------------------------------------


async def test_a_proxy_that_is_down(network: Network) -> None:
    client = await network.client(egress=by_way_of(CLOSED_PORT))
    outcome = await client.post(parse_callback_url("http://127.0.0.1:8080/"))
    failed(outcome, "proxy_error")
    assert isinstance(outcome, ProxyFailed)
    assert outcome.excused()


async def test_a_proxy_whose_name_is_unknown(network: Network) -> None:
    egress = Egress(HERE, resolver=names(), proxy=Proxy("proxy.example", 3128))
    client = await network.client(egress=egress)
    failed(await client.post(parse_callback_url("http://127.0.0.1:8080/")), "proxy_error")


async def test_a_proxy_that_takes_no_connection(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_module, "_CONNECT_SECONDS", 0.05)
    async with deaf_port() as port:
        client = await network.client(egress=by_way_of(port))
        failed(await client.post(parse_callback_url("http://127.0.0.1:8080/")), "proxy_error")


async def test_a_proxy_that_takes_no_connection_while_the_attempt_lasts(network: Network) -> None:
    async with deaf_port() as port:
        client = await network.client(egress=by_way_of(port))
        failed(await client.post(parse_callback_url("http://127.0.0.1:8080/"), seconds=0.1), "proxy_error")


@pytest.mark.parametrize("status", [100, 101, 302, 400, 403, 404, 407, 429, 500, 502, 503, 504])
async def test_an_answer_that_opens_no_tunnel(status: int, network: Network) -> None:
    outcome = await outcome_of(network, answering(f"HTTP/1.1 {status} No\r\ncontent-length: 2\r\n\r\nno".encode()))
    assert outcome.why == f"the egress proxy answered {status}"
    assert outcome.excused()


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"\x05\xff\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 10_000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        b"x" * 100_000,
    ],
    ids=["ssh", "h2", "status", "socks", "long", "more", "endless"],
)
async def test_a_proxy_that_does_not_speak_http(answer: bytes, network: Network) -> None:
    assert (await outcome_of(network, answering(answer))).excused()


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\n"])
@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_proxy_that_ends_the_connection(said: bytes, how: str, network: Network) -> None:
    async def temper(wire: Wire, number: int) -> None:
        await wire.reader.readuntil(b"\r\n\r\n")
        await wire.send(said)
        if how == "reset":
            wire.reset()

    assert (await outcome_of(network, temper)).excused()


async def test_a_proxy_that_does_not_answer(network: Network) -> None:
    async def temper(wire: Wire, number: int) -> None:
        await wire.closed()

    assert (await outcome_of(network, temper, seconds=0.1)).why == "the egress proxy does not answer"


async def test_what_hangs_behind_a_tunnel_is_the_receivers(network: Network) -> None:
    async def temper(wire: Wire, number: int) -> None:
        await wire.closed()

    tunnels = Tunnels()
    peer, proxy = await network.peer(temper), await network.peer(tunnels.temper)
    client = await network.client(egress=by_way_of(proxy))
    failed(await client.post(peer.callback(), seconds=0.2), "timeout", again=False, hanging=True)
    https = parse_callback_url(f"https://127.0.0.1:{peer.port}/")
    failed(await client.post(https, seconds=0.2), "timeout", again=False, hanging=True)


async def test_what_refuses_behind_a_tunnel_is_the_receivers(network: Network) -> None:
    tunnels = Tunnels()
    peer = await network.peer(accept, tls=network.authority.server(self_signed=True))
    client = await network.client(egress=by_way_of(await network.peer(tunnels.temper)))
    failed(await client.post(peer.callback()), "tls_error", again=False)


async def test_an_address_with_a_zone_is_nothing_for_a_proxy(network: Network) -> None:
    tunnels = Tunnels()
    proxy = await network.peer(tunnels.temper)
    egress = Egress(AddressPolicy(("fe80::/10",)), resolver=names("fe80::1%lo"), proxy=Proxy("127.0.0.1", proxy.port))
    client = await network.client(egress=egress)
    failed(await client.post(parse_callback_url("http://name.example:8080/")), "connect_error")
    assert proxy.connections == 0


# -- whose fault it was -----------------------------------------------------------------------------------------------


async def test_a_proxy_that_works_for_others_is_not_to_blame(network: Network) -> None:
    tunnels = Tunnels()
    peer, other = await network.peer(accept), await network.peer(accept)
    client = await network.client(egress=by_way_of(await network.peer(tunnels.temper)))
    dead = parse_callback_url(f"http://127.0.0.1:{CLOSED_PORT}/")
    outcome = await client.post(dead)
    assert isinstance(outcome, ProxyFailed)
    assert outcome.excused()
    for alive in (peer, other):
        assert await client.post(alive.callback()) == Answer(200, None)
        assert not outcome.excused()
    failed(outcome.of_receiver(), "connect_error")
    # What worked before says nothing about what comes then.
    later = await client.post(dead)
    assert isinstance(later, ProxyFailed)
    assert later.excused()


async def test_a_target_that_comes_back_proves_nothing_about_itself(network: Network) -> None:
    async def temper(wire: Wire, number: int) -> None:
        if number == 0:
            await answering(b"HTTP/1.1 503 Service Unavailable\r\n\r\n")(wire, number)
        else:
            await tunnels.temper(wire, number)

    tunnels = Tunnels()
    peer = await network.peer(accept)
    client = await network.client(egress=by_way_of(await network.peer(temper)))
    outcome = await client.post(peer.callback())
    assert isinstance(outcome, ProxyFailed)
    assert await client.post(peer.callback()) == Answer(200, None)
    assert outcome.excused()


async def test_a_proxy_that_wants_other_credentials_is_to_blame_whatever_else_works(network: Network) -> None:
    async def temper(wire: Wire, number: int) -> None:
        if number == 0:
            await answering(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")(wire, number)
        else:
            await tunnels.temper(wire, number)

    tunnels = Tunnels()
    peer = await network.peer(accept)
    client = await network.client(egress=by_way_of(await network.peer(temper)))
    outcome = await client.post(parse_callback_url("http://127.0.0.1:8080/"))
    assert isinstance(outcome, ProxyFailed)
    assert await client.post(peer.callback()) == Answer(200, None)
    assert outcome.excused()


async def test_the_log_says_once_that_it_fails_and_that_it_works_again(
    network: Network, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="httppubsub.server.outbound")
    tunnels = Tunnels()
    peer, proxy = await network.peer(accept), await network.peer(tunnels.temper)
    client = await network.client(egress=by_way_of(proxy))
    await proxy.close()
    for _ in range(3):
        failed(await client.post(peer.callback()), "proxy_error")
    await proxy.open(None)
    assert await client.post(peer.callback()) == Answer(200, None)
    told = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert [level for level, _ in told] == ["WARNING", "INFO", "INFO", "INFO"]
    assert told[0][1] == "no way out for a delivery: the egress proxy cannot be reached: Connection refused"
    assert told[-1][1] == "the egress proxy works again"


async def test_nothing_is_left_of_tunnels_that_were_given_up(network: Network) -> None:
    asked = asyncio.Event()

    async def temper(wire: Wire, number: int) -> None:
        await wire.reader.readuntil(b"\r\n\r\n")
        asked.set()
        await wire.closed()

    proxy = Proxy("127.0.0.1", (await network.peer(temper)).port)
    client = await network.client(egress=Egress(HERE, proxy=proxy))
    post, _ = client.start(parse_callback_url("http://127.0.0.1:8080/"))
    await asked.wait()
    assert len(proxy._opening) == 1
    post.cancel()
    async with asyncio.timeout(10):
        while proxy._opening:
            await asyncio.sleep(0)


# -- the setting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("http://proxy.internal:3128", "proxy.internal", 3128),
        ("http://proxy:3128/", "proxy", 3128),
        ("http://user:pw@10.0.0.1:8080", "10.0.0.1", 8080),
        ("http://user:p@w:@[::1]:8080", "::1", 8080),
        ("HTTP://Proxy", "proxy", 80),
    ],
)
def test_a_proxy_is_named_by_its_url(text: str, host: str, port: int) -> None:
    proxy = parse_proxy_url(text)
    assert (proxy.host, proxy.port) == (host, port)
    assert repr(proxy) == f"Proxy({host!r}, {port})"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "proxy:3128",
        "https://secret:secret@proxy:3128",
        "socks5://secret@proxy:1080",
        "http://secret@proxy:3128",
        "http://secret:%0d%0asecret@proxy:3128",
        "http://secret:secret@",
        "http://secret:secret@proxy:0",
        "http://secret:secret@proxy:3128/secret",
        "http://secret:secret@proxy:3128?secret",
        "http://secret:secret@proxy:3128#secret",
        "http://secret:secret@pro xy:3128",
        "http://secret:" + "secret" * 200 + "@proxy:3128",
    ],
)
def test_what_is_no_proxy_is_refused_without_saying_it(text: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        parse_proxy_url(text)
    assert "egress_proxy should be http://host:port" in refused.value.detail
    assert "secret" not in refused.value.detail
