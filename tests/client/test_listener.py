"""listener.py: a real uvicorn inside the loop; ready when entered, gone when left, nothing of the host is touched."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest

from httppubsubclient.client import HttpPubSubClient
from httppubsubclient.protocol.errors import ConfigurationError
from httppubsubclient.protocol.patterns import Pattern
from tests.client.conftest import FakeBroadcaster, config

EXACT = Pattern.exact(b"foo/bar")


def listening_config(**settings: Any) -> Any:
    return config(
        **{"bind": {"type": "uvicorn", "address": "127.0.0.1", "port": 0}, "host": "http://127.0.0.1:0", **settings}
    )


async def post(client: HttpPubSubClient, broadcaster: FakeBroadcaster, path: str = "/v1/receive") -> int:
    headers = broadcaster.delivery(broadcaster.id_of(EXACT), b"foo/bar", b"hello")
    origin = client.callback_url.partition("/v1/")[0].removesuffix("/pubsub")
    async with httpx.AsyncClient(trust_env=False) as http:
        return (await http.post(origin + path, headers=headers, content=b"hello")).status_code


@pytest.fixture
def network(broadcaster: FakeBroadcaster) -> FakeBroadcaster:
    """The broadcaster, with the real network beside it."""
    broadcaster.network.route(host="127.0.0.1").pass_through()
    return broadcaster


async def test_entering_means_that_deliveries_arrive_at_the_port_that_was_free(network: FakeBroadcaster) -> None:
    async with HttpPubSubClient(listening_config()) as client, client.subscribe_exact(b"foo/bar") as subscription:
        port = int(client.callback_url.split(":")[2].partition("/")[0])
        assert port > 0
        assert network.patterns(f"http://127.0.0.1:{port}/v1/receive") == ["topic='foo/bar'"]
        assert await post(client, network) == 200
        assert (await subscription.messages().__anext__()).content == b"hello"
    with socket.socket() as again:
        again.bind(("127.0.0.1", port))


async def test_a_path_in_the_host_is_served_whether_or_not_a_proxy_removes_it(network: FakeBroadcaster) -> None:
    settings = listening_config(host="http://127.0.0.1:0/pubsub")
    async with HttpPubSubClient(settings) as client, client.subscribe_exact(b"foo/bar"):
        assert await post(client, network, "/v1/receive") == 200
        assert await post(client, network, "/pubsub/v1/receive") == 200
        assert await post(client, network, "/elsewhere/v1/receive") == 404


async def test_a_port_that_is_taken_is_told(broadcaster: FakeBroadcaster) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = listening_config(bind={"type": "uvicorn", "address": "127.0.0.1", "port": port})
        with pytest.raises(ConfigurationError, match=f"port {port}: another process listens there"):
            async with HttpPubSubClient(settings):
                pass


async def test_an_address_of_another_machine_is_told(broadcaster: FakeBroadcaster) -> None:
    settings = listening_config(bind={"type": "uvicorn", "address": "192.0.2.1", "port": 0})
    with pytest.raises(ConfigurationError, match="not an address of this machine"):
        async with HttpPubSubClient(settings):
            pass


async def test_signals_and_logging_of_the_application_are_left_alone(broadcaster: FakeBroadcaster) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    access = logging.getLogger("uvicorn.access")
    was = (list(access.handlers), access.propagate, access.level, list(logging.getLogger().handlers))
    async with HttpPubSubClient(listening_config()):
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
        assert (list(access.handlers), access.propagate, access.level, list(logging.getLogger().handlers)) == was
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


async def test_leaving_does_not_wait_for_connections_that_are_idle(network: FakeBroadcaster) -> None:
    async with HttpPubSubClient(listening_config()) as client, client.subscribe_exact(b"foo/bar"):
        port = int(client.callback_url.split(":")[2].partition("/")[0])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    async with asyncio.timeout(5):
        assert await reader.read() == b""
    writer.close()


async def test_the_client_can_be_entered_again_after_it_was_left(network: FakeBroadcaster) -> None:
    client = HttpPubSubClient(listening_config())
    for _ in range(2):
        async with client, client.subscribe_exact(b"foo/bar"):
            assert await post(client, network) == 200


async def test_a_large_body_arrives_over_a_real_connection(network: FakeBroadcaster, tmp_path: Path) -> None:
    body = bytes(range(256)) * 8192
    settings = listening_config(spool_bytes=1000, spool_directory=tmp_path)
    async with HttpPubSubClient(settings) as client, client.subscribe_exact(b"foo/bar") as subscription:
        headers = network.delivery(network.id_of(EXACT), b"foo/bar", body)
        async with httpx.AsyncClient(trust_env=False) as http:
            answer = await http.post(client.callback_url, headers=headers, content=body)
        assert answer.status_code == 200
        message = await subscription.messages().__anext__()
        assert await message.read() == body
        assert list(tmp_path.iterdir()) == []


async def test_a_sender_that_waits_to_be_asked_for_its_body_is_asked_only_once_its_head_is_good(
    network: FakeBroadcaster,
) -> None:
    client = HttpPubSubClient(listening_config())
    async with client, client.subscribe_exact(b"foo/bar", secret="generate") as subscription:
        good = network.webhook(network.id_of(EXACT), b"foo/bar", b"hello")
        port = int(client.callback_url.split(":")[2].partition("/")[0])

        async def begun(headers: dict[str, str]) -> tuple[bytes, asyncio.StreamReader, asyncio.StreamWriter]:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            lines = [f"{name}: {value}" for name, value in headers.items()]
            head = ["POST /v1/receive HTTP/1.1", "Host: a", "Content-Length: 5", "Expect: 100-continue", *lines]
            writer.write("\r\n".join([*head, "", ""]).encode())
            return await reader.readuntil(b"\r\n"), reader, writer

        for changes, status in [
            ({"webhook-signature": "v1,x"}, b"401"),
            ({"webhook-timestamp": "1000000000"}, b"401"),
            ({"webhook-id": ""}, b"400"),
            ({"pubsub-subscription": "sub_9"}, b"410"),
            ({"pubsub-topic": "other"}, b"401"),
            ({"content-encoding": "gzip"}, b"415"),
        ]:
            line, _, writer = await begun({**good, **changes})
            assert line.startswith(b"HTTP/1.1 " + status)
            writer.close()
            await writer.wait_closed()
        line, reader, writer = await begun(good)
        assert line.startswith(b"HTTP/1.1 100")
        writer.write(b"hello")
        await reader.readuntil(b"\r\n")
        assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200")
        writer.close()
        await writer.wait_closed()
        assert (await anext(subscription)).content == b"hello"
