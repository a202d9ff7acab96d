"""Sessions of TLS: what is resumed, what is forgotten, and that nothing depends on it."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable

import pytest

from httppubsubserver.delivery.outbound import Answer
from httppubsubserver.delivery.tls_sessions import TlsSessions
from tests.server.peers import LIMIT, LOOP_FACTORIES, OK, Network, Wire, failed

__all__ = ["LOOP_FACTORIES"]

CLOSING = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class Noting:
    """Answers one request on each connection, and notes which of them were resumed."""

    def __init__(self, answer: bytes = CLOSING) -> None:
        self.answer = answer
        self.resumed: list[bool] = []
        self.protocols: list[str | None] = []

    async def __call__(self, wire: Wire, number: int) -> None:
        connected: ssl.SSLObject = wire.writer.get_extra_info("ssl_object")
        self.resumed.append(bool(connected.session_reused))
        self.protocols.append(connected.selected_alpn_protocol())
        await wire.request()
        await wire.send(self.answer)
        await wire.closed()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_the_second_connection_is_resumed(network: Network, version: ssl.TLSVersion) -> None:
    context = network.authority.server()
    context.minimum_version = context.maximum_version = version
    temper = Noting()
    peer, client = await network.peer(temper, tls=context), await network.client()
    for _ in range(4):
        assert await client.post(peer.callback()) == Answer(200, None)
    assert temper.resumed == [False, True, True, True]
    assert temper.protocols == ["http/1.1"] * 4


async def test_those_that_begin_together_resume_what_came_before(network: Network) -> None:
    temper = Noting()
    peer, client = await network.peer(temper, tls=network.authority.server()), await network.client()
    await client.post(peer.callback())
    async with asyncio.timeout(LIMIT):
        outcomes = await asyncio.gather(*(client.post(peer.callback()) for _ in range(8)))
    assert outcomes == [Answer(200, None)] * 8
    assert temper.resumed == [False, *[True] * 8]


async def test_each_origin_has_a_session_of_its_own(network: Network) -> None:
    tempers = Noting(), Noting()
    peers = [await network.peer(temper, tls=network.authority.server()) for temper in tempers]
    client = await network.client()
    for _ in range(3):
        for peer in peers:
            assert await client.post(peer.callback()) == Answer(200, None)
    assert [temper.resumed for temper in tempers] == [[False, True, True]] * 2


async def test_a_server_that_has_forgotten_the_session_makes_a_new_one(network: Network) -> None:
    """As after a restart: another context has other ticket keys."""
    temper = Noting()
    first = await network.peer(temper, tls=network.authority.server())
    client = await network.client()
    assert await client.post(first.callback()) == Answer(200, None)
    await network.restarted(first, network.authority.server())
    for _ in range(2):
        assert await client.post(first.callback()) == Answer(200, None)
    assert temper.resumed == [False, False, True]


async def test_a_certificate_of_somebody_else_is_refused_whatever_was_remembered(network: Network) -> None:
    temper = Noting()
    peer = await network.peer(temper, tls=network.authority.server())
    client = await network.client()
    assert await client.post(peer.callback()) == Answer(200, None)
    await network.restarted(peer, network.authority.server(self_signed=True))
    failed(await client.post(peer.callback()), "tls_error", again=False)
    await network.restarted(peer, network.authority.server())
    assert await client.post(peer.callback()) == Answer(200, None)
    assert temper.resumed == [False, False]


async def test_plain_connections_leave_nothing_behind(network: Network) -> None:
    def unlike_tls(wire: Wire, number: int) -> Awaitable[None]:
        return wire.send(OK)

    peer, client = await network.peer(unlike_tls), await network.client()
    assert await client.post(peer.callback()) == Answer(200, None)


class Link:
    """A client and a server of TLS in memory."""

    def __init__(self, server: ssl.SSLContext, client: ssl.SSLContext) -> None:
        to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.server = server.wrap_bio(to_server, to_client, server_side=True)
        self.client = client.wrap_bio(to_client, to_server, server_hostname="127.0.0.1")
        pending: list[Callable[[], None]] = [self.client.do_handshake, self.server.do_handshake]
        while pending:
            step = pending.pop(0)
            try:
                step()
            except ssl.SSLWantReadError:
                pending.append(step)
        self.server.write(b"x")
        assert self.client.read(1) == b"x"

    def get_extra_info(self, name: str) -> ssl.SSLObject:
        assert name == "ssl_object"
        return self.client


class Linked:
    """Sessions, used as connections use them."""

    def __init__(self, network: Network, *, max_origins: int = 10, verified_seconds: float = 100.0) -> None:
        context = ssl.create_default_context(cafile=network.authority.file)
        self.sessions = TlsSessions(context, max_origins=max_origins, verified_seconds=verified_seconds)
        self._server = network.authority.server()

    def resumed(self, origin: str) -> bool:
        """Connect once more: was it resumed?"""
        link = Link(self._server, self.sessions.context(origin))
        self.sessions.remember(origin, link)  # type: ignore[arg-type]
        return bool(link.client.session_reused)


async def test_what_was_used_least_recently_is_forgotten_first(network: Network) -> None:
    linked = Linked(network, max_origins=2)
    assert [linked.resumed(origin) for origin in "aabba"] == [False, True, False, True, True]
    assert not linked.resumed("c")
    assert linked.resumed("a")
    assert not linked.resumed("b")


async def test_what_failed_is_forgotten(network: Network) -> None:
    linked = Linked(network)
    assert not linked.resumed("a")
    linked.sessions.forget("a")
    linked.sessions.forget("never seen")
    assert [linked.resumed("a") for _ in range(2)] == [False, True]


async def test_a_certificate_is_looked_at_again_after_a_while(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("httppubsubserver.delivery.tls_sessions.time.monotonic", lambda: now)
    linked = Linked(network, verified_seconds=10.0)
    seen = []
    for now in (0.0, 4.0, 8.0, 12.0, 16.0):  # noqa: B007 - the clock reads it
        seen.append(linked.resumed("a"))
    assert seen == [False, True, True, False, True]


async def test_a_session_that_outlived_its_entry_begins_no_new_one(network: Network) -> None:
    linked = Linked(network)
    linked.resumed("a")
    link = Link(linked._server, linked.sessions.context("a"))
    linked.sessions.forget("a")
    linked.sessions.remember("a", link)  # type: ignore[arg-type]
    assert link.client.session_reused
    assert not linked.resumed("a")


async def test_a_late_answer_does_not_lengthen_what_an_old_verification_is_good_for(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    linked = Linked(network)
    linked.resumed("a")
    now = time.monotonic()
    late = Link(linked._server, linked.sessions.context("a"))
    assert late.client.session_reused
    monkeypatch.setattr("httppubsubserver.delivery.tls_sessions.time.monotonic", lambda: now + 3000)
    linked.sessions.forget("a")
    assert not linked.resumed("a")  # verified anew
    linked.sessions.remember("a", late)  # type: ignore[arg-type]
    monkeypatch.setattr("httppubsubserver.delivery.tls_sessions.time.monotonic", lambda: now + 3700)
    assert not linked.resumed("a")
