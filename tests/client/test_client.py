"""client.py: entering and leaving, alone and inside an app."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI

from httppubsubclient.client import HttpPubSubClient
from httppubsubclient.config import HttpPubSubBindManualConfig
from httppubsubclient.protocol.errors import ConfigurationError
from httppubsubclient.protocol.patterns import Pattern
from tests.client.conftest import HOST, FakeBroadcaster, config

EXACT = Pattern.exact(b"foo/bar")


async def deliver(app: FastAPI, broadcaster: FakeBroadcaster, path: str) -> int:
    headers = broadcaster.delivery(broadcaster.id_of(EXACT), b"foo/bar", b"hello")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url=HOST) as http:
        return (await http.post(path, headers=headers, content=b"hello")).status_code


async def test_including_the_router_in_an_app_is_all_there_is_to_do(broadcaster: FakeBroadcaster) -> None:
    life: list[str] = []

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        life.append("started")
        yield
        life.append("stopped")

    client = HttpPubSubClient(config(host=f"{HOST}/pubsub"))
    got: list[bytes] = []
    client.on(b"foo/bar", lambda message: got.append(message.content))
    app = FastAPI(lifespan=lifespan)
    app.include_router(client.router, prefix="/pubsub")
    async with app.router.lifespan_context(app):
        assert life == ["started"]
        assert broadcaster.patterns(f"{HOST}/pubsub/v1/receive") == ["topic='foo/bar'"]
        assert await deliver(app, broadcaster, "/pubsub/v1/receive") == 200
        async with asyncio.timeout(5):
            while not got:
                await asyncio.sleep(0)
        assert got == [b"hello"]
    assert life == ["started", "stopped"]
    assert broadcaster.kept == {}


async def test_a_client_may_be_entered_several_times_at_once(broadcaster: FakeBroadcaster) -> None:
    client = HttpPubSubClient(config())
    async with client:
        subscription = client.subscribe_exact(b"foo/bar")
        async with client:
            await subscription.__aenter__()
        assert broadcaster.patterns() == ["topic='foo/bar'"]
        await client.notify(topic=b"foo", data=b"")
    assert broadcaster.patterns() == []
    with pytest.raises(RuntimeError):
        await client.notify(topic=b"foo", data=b"")


async def test_entering_may_happen_in_one_task_and_leaving_in_another(broadcaster: FakeBroadcaster) -> None:
    client = HttpPubSubClient(config())
    await asyncio.create_task(client.__aenter__())
    await asyncio.create_task(client.subscribe_exact(b"foo/bar").__aenter__())
    await asyncio.create_task(client.__aexit__(None, None, None))
    assert broadcaster.kept == {}


@pytest.mark.parametrize("kind", ["sync", "async", "context"])
async def test_bind_manual_hands_over_the_router(broadcaster: FakeBroadcaster, kind: str) -> None:
    app = FastAPI()
    seen: list[str] = []

    def mount(router: APIRouter) -> None:
        app.include_router(router)
        seen.append("mounted")

    async def mount_async(router: APIRouter) -> None:
        mount(router)

    @asynccontextmanager
    async def mounted(router: APIRouter) -> AsyncIterator[None]:
        mount(router)
        yield
        seen.append("unmounted")

    callback: Any = {"sync": mount, "async": mount_async, "context": mounted}[kind]
    settings = config(bind=HttpPubSubBindManualConfig(type="manual", callback=callback))
    async with HttpPubSubClient(settings) as client, client.subscribe_exact(b"foo/bar") as subscription:
        assert await deliver(app, broadcaster, "/v1/receive") == 200
        assert (await subscription.messages().__anext__()).content == b"hello"
    assert seen == (["mounted", "unmounted"] if kind == "context" else ["mounted"])


async def test_a_failure_while_entering_leaves_nothing_running(broadcaster: FakeBroadcaster) -> None:
    left: list[str] = []

    @asynccontextmanager
    async def mounted(_router: APIRouter) -> AsyncIterator[None]:
        left.append("entered")
        if left:
            raise OSError("no room")
        yield

    client = HttpPubSubClient(config(bind=HttpPubSubBindManualConfig(type="manual", callback=mounted)))
    before = asyncio.all_tasks()
    for _ in range(2):
        with pytest.raises(OSError, match="no room"):
            await client.__aenter__()
    assert asyncio.all_tasks() == before
    assert left == ["entered", "entered"]


async def test_no_task_is_left_after_leaving(broadcaster: FakeBroadcaster) -> None:
    before = asyncio.all_tasks()
    async with HttpPubSubClient(config()) as client:
        client.on("a/*", print)
        async with client.subscribe_exact(b"foo/bar"):
            await client.notify(topic=b"foo", data=b"")
    assert asyncio.all_tasks() == before


async def test_without_a_host_a_client_only_publishes(broadcaster: FakeBroadcaster) -> None:
    async with HttpPubSubClient(config(host=None)) as client:
        assert (await client.notify(topic=b"foo", data=b"")).notified == 2
        with pytest.raises(ConfigurationError, match="host="):
            async with client.subscribe_exact(b"foo"):
                pass


def test_a_client_is_made_of_a_configuration() -> None:
    with pytest.raises(ConfigurationError, match="HttpPubSubConfig"):
        HttpPubSubClient({"host": HOST})  # type: ignore[arg-type]


async def test_a_transport_that_was_given_is_used_and_stays_open(broadcaster: FakeBroadcaster) -> None:
    class Transport(httpx.AsyncBaseTransport):
        closed = False

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            await request.aread()
            answer = await broadcaster(request)
            return httpx.Response(answer.status_code, headers=answer.headers, stream=httpx.ByteStream(answer.content))

        async def aclose(self) -> None:
            self.closed = True

    transport = Transport()
    client = HttpPubSubClient(config(), transport=transport)
    broadcaster.network.stop()
    for _ in range(2):
        async with client, client.subscribe_exact(b"foo/bar"):
            await client.notify(topic=b"foo/bar", data=b"hello")
            assert broadcaster.requests[-1].extensions["timeout"]["connect"] == 3.0
    assert not transport.closed
    assert broadcaster.calls.count("POST /v1/notify") == 2
    assert broadcaster.kept == {}


def test_what_is_no_transport_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="AsyncBaseTransport"):
        HttpPubSubClient(config(), transport=httpx.HTTPTransport)  # type: ignore[arg-type]


def test_a_transport_brings_its_own_certificates() -> None:
    with pytest.raises(ConfigurationError, match="broadcaster_ca_file"):
        HttpPubSubClient(config(broadcaster_ca_file="ca.pem"), transport=httpx.AsyncHTTPTransport(verify=False))
