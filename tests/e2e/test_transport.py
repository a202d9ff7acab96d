"""The client over `FastTransport`, beside the client over httpx's own transport."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
import pytest

from httppubsubclient.client import BroadcastersUnavailable, HttpPubSubClient
from httppubsubclient.config import HttpPubSubConfig
from httppubsubclient.protocol.credentials import Credentials
from httppubsubserver import FastTransport
from tests.e2e.conftest import open_client
from tests.e2e.processes import DEADLINE_SECONDS, Process, Site

LARGE = os.urandom(20_000_000)

TRANSPORTS: dict[str, Callable[[], httpx.AsyncBaseTransport | None]] = {"httpx": lambda: None, "fast": FastTransport}


@pytest.fixture(params=list(TRANSPORTS))
async def transport(request: pytest.FixtureRequest) -> AsyncIterator[httpx.AsyncBaseTransport | None]:
    """None for the client's own."""
    made = TRANSPORTS[request.param]()
    yield made
    if made is not None:
        await made.aclose()


async def test_notify_and_subscribe(
    site: Site, broadcaster: Process, transport: httpx.AsyncBaseTransport | None, tmp_path: Path
) -> None:
    url = await broadcaster.url()

    async def stream() -> AsyncIterator[bytes]:
        for at in range(0, len(LARGE), 1_000_000):
            yield LARGE[at : at + 1_000_000]

    (tmp_path / "large").write_bytes(LARGE)
    for _ in range(2):  # a transport outlives the clients that use it
        async with open_client(site, url, transport=transport) as client, client.subscribe_glob("foo/*") as foo:
            assert (await client.notify(topic=b"foo/small", data=b"hello")).notified == 1
            assert (await client.notify(topic=b"foo/nothing", data=b"")).notified == 1
            assert (await client.notify(topic=b"bar", data=LARGE)).matched == 0
            assert (await client.notify(topic=b"foo/stream", data=stream())).notified == 1
            with (tmp_path / "large").open("rb") as file:
                assert (await client.notify(topic=b"foo/file", sync_file=file)).notified == 1
            received = {message.topic: message.data.read() for message in [await anext(foo) for _ in range(4)]}
            assert received == {b"foo/small": b"hello", b"foo/nothing": b"", b"foo/stream": LARGE, b"foo/file": LARGE}
            async with client.subscribe_exact(b"bar"):
                assert (await client.notify(topic=b"bar", data=b"x")).notified == 1
            assert (await client.notify(topic=b"bar", data=b"x")).matched == 0


async def test_many_at_once(site: Site, broadcaster: Process) -> None:
    async with (
        FastTransport() as transport,
        open_client(site, await broadcaster.url(), transport=transport) as client,
        client.subscribe_glob("foo/*") as foo,
    ):
        bodies = {b"%d" % number for number in range(500)}
        results = await asyncio.gather(*(client.notify(topic=b"foo/bar", data=body) for body in bodies))
        assert {result.notified for result in results} == {1}
        async with asyncio.timeout(DEADLINE_SECONDS):
            assert {(await anext(foo)).data.read() for _ in bodies} == bodies


@asynccontextmanager
async def cutting_off(*, after_the_body: bool) -> AsyncIterator[str]:
    """A broadcaster that resets each connection, after the head of the request or after all of it; its URL."""
    tasks: set[asyncio.Task[None]] = set()

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await reader.readuntil(b"\r\n\r\n")
            if after_the_body:
                await reader.readexactly(len(LARGE))
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(meet, "127.0.0.1", 0)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(server.wait_closed)
        stack.callback(server.close)
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    if tasks:
        await asyncio.wait(tasks)


@pytest.mark.parametrize("after_the_body", [False, True])
async def test_a_call_that_was_cut_off_had_an_effect_only_if_it_was_sent_whole(
    transport: httpx.AsyncBaseTransport | None, after_the_body: bool
) -> None:
    credentials = Credentials.none()
    async with cutting_off(after_the_body=after_the_body) as url:
        config = HttpPubSubConfig(
            send_auth=credentials, receive_auth=credentials, broadcasters=[url], request_timeout_seconds=0.3
        )
        async with HttpPubSubClient(config, transport=transport) as client:
            with pytest.raises(BroadcastersUnavailable) as caught:
                await client.notify(topic=b"foo", data=LARGE)
    assert caught.value.maybe_processed is after_the_body
