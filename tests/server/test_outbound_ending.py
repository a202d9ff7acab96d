"""An attempt ends in whatever phase it is: at its deadline, by a cancel, with everything else."""

from __future__ import annotations

import asyncio
import random

import pytest

from httppubsubclient.bodies import Body
from httppubsubclient.protocol.callback_urls import parse_callback_url
from httppubsubserver.delivery.outbound import Answer, AttemptFailed, Post, open_outbound
from tests.server.peers import (
    LARGE,
    LOOP_FACTORIES,
    OK,
    SMALL,
    Client,
    Network,
    Outcome,
    Temper,
    Wire,
    accept,
    answering,
    deaf_port,
    failed,
    spooled,
)

__all__ = ["LOOP_FACTORIES"]

SHORT = 0.1
"""A deadline that is meant to be missed."""


async def silent(wire: Wire, number: int) -> None:
    await wire.closed()


async def unread(wire: Wire, number: int) -> None:
    await asyncio.Event().wait()


async def drip(wire: Wire, number: int) -> None:
    await wire.request()
    await wire.send(b"HTTP/1.1 200 OK\r\nx: ")
    while True:
        await wire.send(b"y")
        await asyncio.sleep(0.01)


async def drip_interim(wire: Wire, number: int) -> None:
    while True:
        for byte in b"HTTP/1.1 100 Continue\r\n\r\n":
            await wire.send(bytes([byte]))
            await asyncio.sleep(0.01)


async def test_the_deadline_ends_an_attempt_in_every_phase(network: Network) -> None:
    client = await network.client()
    async with deaf_port() as port:
        with await spooled(LARGE.data or b"") as file:
            quiet, dull = await network.peer(silent), await network.peer(unread)
            in_tls = parse_callback_url(f"https://127.0.0.1:{quiet.port}/")
            outcomes = await asyncio.gather(
                client.post(parse_callback_url(f"http://127.0.0.1:{port}/"), seconds=SHORT),
                client.post(in_tls, seconds=SHORT),
                client.post(quiet.callback(), seconds=SHORT),
                client.post(quiet.callback(), seconds=-1),
                client.post(dull.callback(), LARGE, seconds=SHORT),
                client.post(dull.callback(), file, seconds=SHORT),
                client.post((await network.peer(drip)).callback(), seconds=SHORT),
                client.post((await network.peer(drip_interim)).callback(), seconds=SHORT),
            )
    for outcome in outcomes:
        failed(outcome, "timeout", again=False, hanging=True)
    await quiet.finished()


async def test_the_deadline_counts_on_a_used_connection_too(network: Network) -> None:
    peer, client = await network.peer(answering(OK)), await network.client()
    assert await client.post(peer.callback()) == Answer(200, None)
    failed(await client.post(peer.callback(), seconds=SHORT), "timeout", again=False, hanging=True)
    await peer.finished()
    assert peer.connections == 1


async def test_cancelling_ends_an_attempt_in_every_phase(network: Network) -> None:
    client = await network.client()
    async with deaf_port() as port:
        with await spooled(LARGE.data or b"") as file:
            reached: list[asyncio.Event] = []

            def temper() -> Temper:
                event = asyncio.Event()
                reached.append(event)

                async def temper(wire: Wire, number: int) -> None:
                    await wire.reader.read(1)
                    event.set()
                    await asyncio.sleep(0)
                    await wire.closed()

                return temper

            peers = [await network.peer(temper()) for _ in range(4)]
            in_tls = parse_callback_url(f"https://127.0.0.1:{peers[3].port}/")
            started = [
                client.start(peers[0].callback(), SMALL),
                client.start(peers[1].callback(), LARGE),
                client.start(peers[2].callback(), file),
                client.start(in_tls),
                client.start(parse_callback_url(f"http://127.0.0.1:{port}/")),
                client.start(parse_callback_url(f"http://127.0.0.1:{port}/")),
            ]
            started.pop()[0].cancel()  # before its task has begun
            for event in reached:
                await event.wait()
            for post, _ in started:
                post.cancel()
                post.cancel()
            for peer in peers:
                await peer.finished()
            assert not any(future.done() for _, future in started)


async def test_cancelling_what_is_over_does_nothing(network: Network) -> None:
    peer, client = await network.peer(accept), await network.client()
    post, answer = client.start(peer.callback())
    assert await answer == Answer(200, None)
    _, other = client.start(peer.callback())
    post.cancel()
    assert await other == Answer(200, None)
    assert peer.connections == 1


async def test_closing_ends_what_is_under_way(network: Network) -> None:
    peer = await network.peer(silent)
    async with open_outbound(connections_per_origin=1, max_answer_bytes=1, ca_file=None) as outbound:
        client = Client(outbound)
        started = [client.start(peer.callback())[1] for _ in range(3)]
        while peer.connections < 3:
            await asyncio.sleep(0)
    for future in started:
        failed(future.result(), "closed", again=False)
    with pytest.raises(RuntimeError, match="closed"):
        client.start(peer.callback())
    await peer.finished()


@pytest.mark.parametrize("kind", ["small", "large", "file"])
async def test_whatever_peers_do_each_post_has_one_outcome(
    kind: str, network: Network, caplog: pytest.LogCaptureFixture
) -> None:
    """`Client` sees to it that it is one, the network that nothing is left: 200 POSTs meet peers that throw dice."""
    dice = random.Random(0)
    large = Body.of(dice.randbytes(300_000))
    moves = [OK, OK[:9], OK[9:], b"\r\n\r\n", b"HTTP/1.1 100 x\r\n\r\n", b"\x00"]

    async def temper(wire: Wire, number: int) -> None:
        while True:
            if dice.random() < 0.8:
                await (wire.request() if dice.random() < 0.8 else wire.reader.readuntil(b"\r\n\r\n"))
            for move in [OK] if dice.random() < 0.7 else dice.choices(moves, k=dice.randrange(4)):
                await wire.send(move)
                if dice.random() < 0.1:
                    await asyncio.sleep(0)
            if dice.random() < 0.2:
                return wire.reset() if dice.random() < 0.5 else None

    def cancel(post: Post, future: asyncio.Future[Outcome]) -> None:
        post.cancel()
        future.cancel()  # a result would be an error from now on

    peers = [await network.peer(temper) for _ in range(3)]
    client = await network.client(connections_per_origin=4)
    futures: list[asyncio.Future[Outcome]] = []
    with await spooled(large.data or b"") as file:
        body = {"small": SMALL, "large": large, "file": file}[kind]
        for _ in range(5):
            for _ in range(40):
                post, future = client.start(dice.choice(peers).callback(), body, seconds=SHORT / 2)
                futures.append(future)
                if dice.random() < 0.1:
                    asyncio.get_running_loop().call_later(dice.random() / 100, cancel, post, future)
            await asyncio.wait(futures)
    outcomes = [future.result() for future in futures if not future.cancelled()]
    reasons = {outcome.reason for outcome in outcomes if isinstance(outcome, AttemptFailed)}
    assert reasons <= {"connection_lost", "bad_answer", "timeout"}
    assert any(isinstance(outcome, Answer) for outcome in outcomes)
    assert not caplog.records
