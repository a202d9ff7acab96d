"""Which addresses are dialled: the one that was checked, for every connection, and nobody learns why not."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Sequence

import httpx
import pytest

from httppubsubclient.protocol.addresses import AddressPolicy
from httppubsubclient.protocol.callback_urls import parse_callback_url
from httppubsubserver.callback_policy import CallbackAddresses
from httppubsubserver.delivery.egress import Egress
from httppubsubserver.delivery.httpx_transport import BlockedAddress, FastTransport
from httppubsubserver.delivery.outbound import Answer, AttemptFailed
from tests.server.peers import LOOP_FACTORIES, OK, Network, Wire, accept, answering, failed

__all__ = ["LOOP_FACTORIES"]

ONLY_ONE = AddressPolicy(("127.0.0.1/32",))
PUBLIC = AddressPolicy(("public",))
EVERYWHERE = AddressPolicy(("loopback", "private", "public"))

REFUSED = {
    "loopback": ["127.0.0.1", "127.255.255.254", "::1", "::ffff:127.0.0.1", "::127.0.0.1"],
    "unspecified": ["0.0.0.0", "::", "::ffff:0.0.0.0"],
    "this network": ["0.1.2.3"],
    "private": ["10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.0.1", "fc00::1", "fd12::1", "::ffff:10.0.0.1"],
    "shared": ["100.64.0.1", "100.127.255.254"],
    "metadata": ["169.254.169.254", "169.254.170.2", "fd00:ec2::254", "168.63.129.16", "100.100.100.200"],
    "link-local": ["169.254.0.1", "fe80::1", "fe80::1%lo", "fec0::1"],
    "multicast": ["224.0.0.1", "239.255.255.255", "ff02::1", "ff02::1%lo"],
    "reserved": ["240.0.0.1", "255.255.255.255", "192.0.0.1", "198.18.0.1", "192.88.99.1", "100::1", "5f00::1"],
    "examples": ["192.0.2.1", "198.51.100.1", "203.0.113.1", "2001:db8::1", "3fff::1"],
    "translated": ["64:ff9b::10.0.0.1", "64:ff9b::169.254.169.254", "64:ff9b:1::1", "2002:7f00:1::", "2001::1"],
    "no address": ["", "localhost", "127.1", "2130706433", "0x7f000001", "127.0.0.1:80", "[::1]", "93.184.215.14\n"],
}
"""What `public` does not allow, whatever a name has beside it."""


class Names:
    """A resolver that gives one list of addresses after the other, then the last one for ever."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self._answers = [list(answer) for answer in answers]
        self.asked: list[tuple[str, int]] = []

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append((host, port))
        return self._answers.pop(0) if len(self._answers) > 1 else list(self._answers[0])


class Sockets:
    """Connecting to anything is refused, and written down."""

    def __init__(self) -> None:
        self.dialled: list[str] = []

    async def connected_to(self, address: str, port: int) -> socket.socket:
        self.dialled.append(address)
        raise ConnectionRefusedError(errno.ECONNREFUSED, "nobody is there")


@pytest.fixture
def sockets(monkeypatch: pytest.MonkeyPatch) -> Sockets:
    sockets = Sockets()
    monkeypatch.setattr("httppubsubserver.delivery.egress.connected_to", sockets.connected_to)
    return sockets


def blocked(outcome: Answer | AttemptFailed) -> None:
    """The one outcome of every block."""
    failed(outcome, "blocked_address", again=False)
    assert isinstance(outcome, AttemptFailed)
    assert outcome.__cause__ is None
    assert outcome.args == ("blocked_address",)


# -- what a name leads to ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beside", [[], ["93.184.215.14"]], ids=["alone", "beside a public one"])
@pytest.mark.parametrize("address", [address for addresses in REFUSED.values() for address in addresses])
async def test_a_name_with_an_address_that_is_not_allowed_is_never_dialled(
    address: str, beside: list[str], network: Network, sockets: Sockets
) -> None:
    for answer in ([address, *beside], [*beside, address]):
        client = await network.client(egress=Egress(PUBLIC, resolver=Names(answer)))
        blocked(await client.post(parse_callback_url("http://name.example:8080/")))
        blocked(await client.post(parse_callback_url("https://name.example/")))
    assert sockets.dialled == []


async def test_one_bad_address_behind_many_good_ones_is_found(network: Network, sockets: Sockets) -> None:
    addresses = [f"93.184.215.{at}" for at in range(200)]
    client = await network.client(egress=Egress(PUBLIC, resolver=Names([*addresses, "127.0.0.1"])))
    blocked(await client.post(parse_callback_url("http://name.example/")))
    assert sockets.dialled == []


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "[::1]", "0.0.0.0", "[::]", "10.0.0.1", "169.254.169.254", "[64:ff9b::a9fe:a9fe]", "[fe80::1]"],
)
async def test_a_literal_is_asked_about_too(host: str, network: Network, sockets: Sockets) -> None:
    client = await network.client(egress=Egress(PUBLIC))
    blocked(await client.post(parse_callback_url(f"http://{host}:8080/")))
    assert sockets.dialled == []


async def test_what_is_allowed_is_dialled_in_the_order_of_the_resolver(network: Network, sockets: Sockets) -> None:
    addresses = ["93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "93.184.215.15"]
    client = await network.client(egress=Egress(PUBLIC, resolver=Names(addresses)))
    failed(await client.post(parse_callback_url("http://name.example/")), "connect_error")
    assert sockets.dialled == addresses


@pytest.mark.parametrize("port", [1, 22, 25, 443, 8443, 65535])
async def test_a_port_that_is_not_allowed_is_blocked_like_an_address(
    port: int, network: Network, sockets: Sockets
) -> None:
    client = await network.client(egress=Egress(CallbackAddresses(["loopback"], ["80", "8000-8009"])))
    blocked(await client.post(parse_callback_url(f"http://127.0.0.1:{port}/")))
    assert sockets.dialled == []
    failed(await client.post(parse_callback_url("http://127.0.0.1:8009/")), "connect_error")
    assert sockets.dialled == ["127.0.0.1"]


async def test_a_policy_that_allows_nothing(network: Network, sockets: Sockets) -> None:
    client = await network.client(egress=Egress(AddressPolicy(())))
    for host in ("127.0.0.1", "[::1]", "93.184.215.14"):
        blocked(await client.post(parse_callback_url(f"http://{host}/")))
    assert sockets.dialled == []


async def test_what_a_resolver_gives_is_never_resolved_again(network: Network) -> None:
    # asyncio resolves whatever it is to connect to; without a policy it would be asked for "localhost" here.
    client = await network.client(egress=Egress(resolver=Names(["localhost"])))
    blocked(await client.post(parse_callback_url("http://name.example/")))


# -- one resolution serves the check and the connection ----------------------------------------------------------------


async def test_a_name_that_changes_its_address_in_between_is_resolved_once(network: Network) -> None:
    inside = await network.peer(accept, host="127.0.0.2")
    names = Names(["127.0.0.1"], ["127.0.0.2"])
    client = await network.client(egress=Egress(ONLY_ONE, resolver=names))
    # Whoever may listen at 127.0.0.1 with this port: a second question would lead to 127.0.0.2.
    await client.post(inside.callback(host="rebinding.example"))
    assert names.asked == [("rebinding.example", inside.port)]
    blocked(await client.post(inside.callback(host="rebinding.example")))
    assert inside.connections == 0


async def test_every_new_connection_asks_again(network: Network) -> None:
    peer = await network.peer(answering(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"))
    names = Names(["127.0.0.1"], ["127.0.0.1"], ["127.0.0.2"], ["127.0.0.1"])
    client = await network.client(egress=Egress(ONLY_ONE, resolver=names))
    callback = peer.callback(host="rebinding.example")
    assert await client.post(callback) == Answer(200, None)
    assert await client.post(callback) == Answer(200, None)
    blocked(await client.post(callback))
    assert await client.post(callback) == Answer(200, None)
    assert len(names.asked) == 4


async def test_a_second_try_over_a_new_connection_asks_again(network: Network) -> None:
    async def temper(wire: Wire, number: int) -> None:
        await wire.request()
        await wire.send(OK)
        await wire.request()  # and closes: the request is sent once more, over a new connection

    peer = await network.peer(temper)
    client = await network.client(egress=Egress(ONLY_ONE, resolver=Names(["127.0.0.1"], ["127.0.0.2"])))
    assert await client.post(peer.callback(host="rebinding.example")) == Answer(200, None)
    blocked(await client.post(peer.callback(host="rebinding.example")))
    assert peer.connections == 1


async def test_a_redirect_is_an_answer_and_its_target_hears_nothing(network: Network) -> None:
    inside = await network.peer(accept, host="127.0.0.2")
    for status in (301, 302, 303, 307, 308):
        location = f"http://127.0.0.2:{inside.port}/"
        answer = f"HTTP/1.1 {status} Go\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n".encode()
        peer = await network.peer(answering(answer))
        client = await network.client(egress=Egress(ONLY_ONE))
        assert await client.post(peer.callback()) == Answer(status, None)
    assert inside.connections == 0


async def test_the_host_and_the_name_in_tls_stay_the_name(network: Network) -> None:
    heads: list[str] = []

    async def temper(wire: Wire, number: int) -> None:
        heads.append((await wire.request())[0])
        await wire.send(OK)

    peer = await network.peer(temper, tls=network.authority.server("name.example"))
    client = await network.client(egress=Egress(ONLY_ONE, resolver=Names(["127.0.0.1"])))
    assert await client.post(peer.callback(host="name.example")) == Answer(200, None)
    assert f"\r\nhost: name.example:{peer.port}\r\n" in heads[0]
    failed(await client.post(peer.callback(host="other.example")), "tls_error", again=False)


# -- a policy that changes ---------------------------------------------------------------------------------------------


async def test_idle_connections_that_are_not_allowed_any_more_are_closed(network: Network) -> None:
    closed: list[int] = []

    async def temper(wire: Wire, number: int) -> None:
        await wire.request()
        await wire.send(OK)
        await wire.closed()
        closed.append(number)

    kept, dropped = await network.peer(accept), await network.peer(temper, host="127.0.0.2")
    egress = Egress(EVERYWHERE)
    client = await network.client(egress=egress)
    assert await client.post(kept.callback()) == Answer(200, None)
    assert await client.post(dropped.callback()) == Answer(200, None)
    egress.set_policy(ONLY_ONE)
    await dropped.finished()
    assert closed == [0]
    blocked(await client.post(dropped.callback()))
    assert await client.post(kept.callback()) == Answer(200, None)
    assert (kept.connections, dropped.connections) == (1, 1)


async def test_a_connection_in_use_ends_with_its_request(network: Network) -> None:
    asked, answer = asyncio.Event(), asyncio.Event()

    async def temper(wire: Wire, number: int) -> None:
        await wire.request()
        asked.set()
        await answer.wait()
        await wire.send(OK)
        await wire.closed()

    peer = await network.peer(temper)
    egress = Egress(EVERYWHERE)
    client = await network.client(egress=egress)
    _, outcome = client.start(peer.callback())
    await asked.wait()
    egress.set_policy(PUBLIC)
    answer.set()
    assert await outcome == Answer(200, None)
    await peer.finished()
    blocked(await client.post(peer.callback()))
    assert peer.connections == 1


async def test_a_policy_that_comes_back_forgives(network: Network) -> None:
    asked, answer = asyncio.Event(), asyncio.Event()

    async def temper(wire: Wire, number: int) -> None:
        await wire.request()
        asked.set()
        await answer.wait()
        await wire.send(OK)
        await wire.request()
        await wire.send(OK)
        await wire.closed()

    peer = await network.peer(temper)
    egress = Egress(EVERYWHERE)
    client = await network.client(egress=egress)
    _, outcome = client.start(peer.callback())
    await asked.wait()
    egress.set_policy(PUBLIC)
    egress.set_policy(EVERYWHERE)
    answer.set()
    assert await outcome == Answer(200, None)
    assert await client.post(peer.callback()) == Answer(200, None)
    assert peer.connections == 1


async def test_a_policy_that_changes_while_a_name_is_resolved(network: Network) -> None:
    peer = await network.peer(accept)

    async def resolve(host: str, port: int) -> list[str]:
        egress.set_policy(PUBLIC)
        return ["127.0.0.1"]

    egress = Egress(EVERYWHERE, resolver=resolve)
    client = await network.client(egress=egress)
    blocked(await client.post(peer.callback(host="name.example")))
    assert peer.connections == 0


async def test_a_policy_that_changes_while_connecting(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    async def connected_to(address: str, port: int) -> socket.socket:
        egress.set_policy(PUBLIC)
        return socket.socket()

    monkeypatch.setattr("httppubsubserver.delivery.egress.connected_to", connected_to)
    egress = Egress(EVERYWHERE)
    client = await network.client(egress=egress)
    blocked(await client.post(parse_callback_url("http://127.0.0.1:8080/")))


async def test_a_policy_that_changes_within_the_handshake(network: Network) -> None:
    begun = asyncio.Event()

    async def temper(wire: Wire, number: int) -> None:
        await wire.reader.read(1)
        begun.set()
        await wire.closed()

    peer = await network.peer(temper)
    egress = Egress(EVERYWHERE)
    client = await network.client(egress=egress)
    _, outcome = client.start(parse_callback_url(f"https://127.0.0.1:{peer.port}/"))
    await begun.wait()
    egress.set_policy(PUBLIC)
    blocked(await outcome)


async def test_connections_that_are_closed_are_not_told_of_changes(network: Network) -> None:
    egress = Egress(EVERYWHERE)
    async with FastTransport(egress=egress) as transport, httpx.AsyncClient(transport=transport) as http:
        with pytest.raises(httpx.ConnectError):
            await http.get("http://127.0.0.1:1/")
        assert len(egress._reviews) == 1
    assert egress._reviews == []


# -- who learns what ---------------------------------------------------------------------------------------------------


async def test_an_httpx_client_goes_the_same_way(network: Network) -> None:
    inside = await network.peer(accept)
    egress = Egress(PUBLIC, resolver=Names(["127.0.0.1"]))
    texts = set()
    async with httpx.AsyncClient(transport=FastTransport(egress=egress), trust_env=False) as http:
        for url in (f"http://name.example:{inside.port}/", f"http://127.0.0.1:{inside.port}/", "http://10.0.0.1/"):
            with pytest.raises(BlockedAddress) as refused:
                await http.get(url)
            texts.add(str(refused.value))
    assert len(texts) == 1
    assert inside.connections == 0


async def test_the_log_tells_the_operator_once(network: Network, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    client = await network.client(egress=Egress(PUBLIC, resolver=Names(["169.254.169.254"])))
    for _ in range(3):
        blocked(await client.post(parse_callback_url("http://name.example/")))
    [record] = caplog.records
    assert record.getMessage() == (
        "the policy for callbacks blocks name.example: port 80 at '169.254.169.254' (metadata)"
    )


async def test_what_a_resolver_gives_cannot_write_lines_into_the_log(
    network: Network, caplog: pytest.LogCaptureFixture
) -> None:
    client = await network.client(egress=Egress(PUBLIC, resolver=Names(["\n\x1b[31mforged " * 100])))
    blocked(await client.post(parse_callback_url("http://name.example/")))
    [record] = caplog.records
    assert record.getMessage().isprintable()
    assert len(record.getMessage()) < 200


async def test_verdicts_are_bounded_and_follow_the_policy() -> None:
    egress = Egress(PUBLIC)
    for at in range(10_000):
        assert egress.allows(f"93.184.{at // 256}.{at % 256}", 80)
    assert len(egress._verdicts) <= 4096
    egress.set_policy(ONLY_ONE)
    assert not egress.allows("93.184.0.1", 80)
    assert egress.allows("127.0.0.1", 80)


async def test_resolving_is_not_checking() -> None:
    egress = Egress(PUBLIC, resolver=Names(["127.0.0.1", "10.0.0.1"]))
    assert await egress.resolve("name.example", 80) == ["127.0.0.1", "10.0.0.1"]
    assert await egress.resolve("::1", 80) == ["::1"]
    with pytest.raises(AttemptFailed):
        await egress.addresses("name.example", 80)
