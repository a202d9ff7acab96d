"""An attempt ends long before its deadline when one step of it hangs: connecting, sending a large body, the answer.

The deadlines here are far away: without an end of the step, a test would not end either. Where something must *not*
be ended, the clock is one that the test turns.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Any

import pytest

from httppubsubclient.bodies import Body
from httppubsubclient.protocol.callback_urls import parse_callback_url
from httppubsubserver.delivery.connections import Connections
from httppubsubserver.delivery.outbound import Answer, HttpOutbound
from tests.server.peers import LOOP_FACTORIES, OK, SMALL, Client, Network, Wire, accept, deaf_port, failed, spooled

__all__ = ["LOOP_FACTORIES"]

STEP = 0.1
NEVER = 1e9
SIZE = 30_000_000
"""More than the kernel takes for a receiver that does not read."""


async def large(where: str) -> Body:
    return await spooled(bytes(SIZE)) if where == "file" else Body.of(bytes(SIZE))


def context(network: Network, tls: bool) -> ssl.SSLContext | None:
    return network.authority.server() if tls else None


async def unread(wire: Wire, number: int) -> None:
    await asyncio.Event().wait()


async def unanswered(wire: Wire, number: int) -> None:
    await wire.closed()


async def test_connecting_has_no_longer_than_a_step(network: Network) -> None:
    client, quiet = await network.client(step_seconds=STEP), await network.peer(unanswered)
    async with deaf_port() as port:
        with await large("file") as body:
            outcomes = await asyncio.gather(
                client.post(parse_callback_url(f"http://127.0.0.1:{port}/"), body, seconds=NEVER),
                client.post(parse_callback_url(f"https://127.0.0.1:{port}/"), SMALL, seconds=NEVER),
                client.post(parse_callback_url(f"https://127.0.0.1:{quiet.port}/"), body, seconds=NEVER),
            )
    for outcome in outcomes:
        failed(outcome, "timeout", again=False, hanging=True)
    await quiet.finished()


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("where", ["memory", "file"])
@pytest.mark.parametrize("temper", [unread, unanswered])
async def test_who_does_not_read_or_does_not_answer_a_large_body_has_no_longer_than_a_step(
    temper: Callable[[Wire, int], Any], where: str, tls: bool, network: Network
) -> None:
    client, peer = await network.client(step_seconds=STEP), await network.peer(temper, tls=context(network, tls))
    with await large(where) as body:
        failed(await client.post(peer.callback(), body, seconds=NEVER), "timeout", again=False, hanging=True)


@pytest.mark.parametrize("where", ["memory", "file"])
async def test_an_answer_that_drips_does_not_stretch_the_last_step(where: str, network: Network) -> None:
    async def temper(wire: Wire, number: int) -> None:
        await wire.request()
        await wire.send(b"HTTP/1.1 200 OK\r\nx: ")
        while True:
            await wire.send(b"y")
            await asyncio.sleep(0.01)

    client, peer = await network.client(step_seconds=STEP), await network.peer(temper)
    with await large(where) as body:
        failed(await client.post(peer.callback(), body, seconds=NEVER), "timeout", again=False, hanging=True)


class TurnedClock:
    """An event loop whose time goes on only when a test says so."""

    def __init__(self, connections: Connections) -> None:
        self._loop = connections.loop
        self._connections = connections
        self.now = connections.loop.time()
        connections.loop = self  # type: ignore[assignment]

    def time(self) -> float:
        return self.now

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    async def nearly_a_step(self) -> None:
        """When it was noticed that the receiver has taken something just now, go on by less than a step.

        Not when the kernel has taken all for it: then an answer must come within a step.
        """
        sending = self._connections.sending
        while any(one.exchange and one.until < min(one.exchange.deadline, self.now + STEP) for one in sending):
            await asyncio.sleep(0)
        if sending:
            self.now += 0.9 * STEP
            while self._connections.now < self.now:
                await asyncio.sleep(0)


async def clocked(network: Network) -> tuple[Client, TurnedClock]:
    client = await network.client(step_seconds=STEP)
    assert isinstance(client.outbound, HttpOutbound)
    return client, TurnedClock(client.outbound.connections)


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("where", ["memory", "file"])
async def test_who_takes_a_little_in_every_step_is_given_its_time(where: str, tls: bool, network: Network) -> None:
    client, clock = await clocked(network)

    async def temper(wire: Wire, number: int) -> None:
        await wire.reader.readuntil(b"\r\n\r\n")
        for _ in range(10):
            await wire.reader.readexactly(SIZE // 10)
            await clock.nearly_a_step()
        await wire.send(OK)

    peer = await network.peer(temper, tls=context(network, tls))
    with await large(where) as body:
        assert await client.post(peer.callback(), body, seconds=NEVER) == Answer(200, None)


async def test_the_deadline_ends_whoever_takes_a_little_in_every_step(network: Network) -> None:
    client, clock = await clocked(network)

    async def temper(wire: Wire, number: int) -> None:
        await wire.reader.readuntil(b"\r\n\r\n")
        while True:  # until the connection is closed
            await wire.reader.readexactly(SIZE // 10)
            await clock.nearly_a_step()

    peer = await network.peer(temper)
    with await large("file") as body:
        left = clock.now + 2.5 * STEP - asyncio.get_running_loop().time()
        outcome = await client.post(peer.callback(), body, seconds=left)
    failed(outcome, "timeout", again=False, hanging=True)


async def test_a_slow_disk_of_ours_is_not_the_receiver_s_fault(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, clock = await clocked(network)
    peer = await network.peer(accept, tls=network.authority.server())
    with await spooled(bytes(1_000_000)) as body:
        chunks = body.chunks

        async def slow() -> Any:
            async for chunk in chunks():
                yield chunk
                for _ in range(5):
                    await clock.nearly_a_step()

        monkeypatch.setattr(Body, "chunks", lambda self: slow())
        assert await client.post(peer.callback(), body, seconds=NEVER) == Answer(200, None)
