"""Restarts, stops, and two broadcasters on one file."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack
from pathlib import Path

import httpx

from httppubsubclient.client import HttpPubSubClient
from httppubsubclient.config import HttpPubSubConfig, get_auth_config_from_file
from tests.e2e.conftest import open_client
from tests.e2e.processes import Process, Site, until


async def test_subscriptions_survive_a_broadcaster_that_is_killed(site: Site) -> None:
    async with AsyncExitStack() as broadcasters:
        first = await broadcasters.enter_async_context(site.serve())
        url = await first.url()
        port = url.rsplit(":", 1)[1]
        async with open_client(site, url) as client, client.subscribe_glob("foo/*") as subscription:
            first.signal(signal.SIGKILL)
            await first.ended()
            second = await broadcasters.enter_async_context(site.serve("--port", port))
            await second.url()
            assert (await client.notify(topic=b"foo/bar", data=b"x")).notified == 1
            assert (await anext(subscription)).data.read() == b"x"


async def test_what_one_process_answered_the_other_sees_200_times(site: Site) -> None:
    async with site.serve() as one, site.serve() as other:
        first, second = await one.url(), await other.url()
        async with open_client(site, first) as subscriber, open_client(site, second) as publisher:
            for number in range(200):
                topic = f"topic/{number}".encode()
                async with subscriber.subscribe_exact(topic) as subscription:
                    result = await publisher.notify(topic=topic, data=b"x")
                    assert (result.matched, result.notified) == (1, 1), number
                    assert (await anext(subscription)).topic == topic


async def test_a_rolling_restart_with_the_same_host_keeps_the_subscription(site: Site, broadcaster: Process) -> None:
    url = await broadcaster.url()
    async with AsyncExitStack() as old_life:
        old = await old_life.enter_async_context(open_client(site, url))
        await old_life.enter_async_context(old.subscribe_glob("foo/*"))
        send_auth, receive_auth = get_auth_config_from_file(str(site.directory / "subscriber-secrets.json"))
        same_host = HttpPubSubConfig(
            host=old.callback_url.removesuffix("/v1/receive"),
            send_auth=send_auth,
            receive_auth=receive_auth,
            broadcasters=[url],
        )
        async with HttpPubSubClient(same_host) as new, new.subscribe_glob("foo/*"):
            await old_life.aclose()
            # Nobody listens at the old address any more; that the subscription is there is what counts.
            assert (await new.notify(topic=b"foo/bar", data=b"x", wait=0)).matched == 1
        async with open_client(site, url) as publisher:
            assert (await publisher.notify(topic=b"foo/bar", data=b"x")).matched == 0


class HoldingReceiver:
    """A callback in the test's own process that answers when it is told to."""

    def __init__(self) -> None:
        self.received = asyncio.Event()
        self.release = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.received.set()
        await self.release.wait()
        writer.write(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n")
        await writer.drain()
        writer.close()


async def test_sigterm_in_the_middle_of_a_notify_finishes_it_refuses_others_and_exits_0(tmp_path: Path) -> None:
    site = await Site.make(tmp_path / "site", "--to-broadcasters-auth", "none", "--to-subscribers-auth", "none")
    holding = HoldingReceiver()
    receiver = await asyncio.start_server(holding, "127.0.0.1", 0)
    callback = f"http://127.0.0.1:{receiver.sockets[0].getsockname()[1]}/hook"
    async with receiver, site.serve() as broadcaster, httpx.AsyncClient(base_url=await broadcaster.url()) as api:
        subscribed = await api.post("/v1/subscriptions", json={"url": callback, "topic": "t"})
        assert subscribed.status_code == 201
        notify = asyncio.create_task(api.post("/v1/notify?topic=t", content=b"x", timeout=30))
        await holding.received.wait()
        broadcaster.signal(signal.SIGTERM)

        async def draining() -> bool:
            return (await api.get("/v1/health/ready")).status_code == 503

        await until(draining)
        refused = await api.post("/v1/notify?topic=t", content=b"y")
        assert refused.status_code == 503
        assert refused.json()["code"] == "unavailable"
        assert refused.headers["retry-after"]
        assert not notify.done()
        holding.release.set()
        assert (await notify).json()["notified"] == 1
        assert await broadcaster.ended() == 0


async def test_bodies_that_are_still_coming_when_it_stops_are_answered_503(tmp_path: Path) -> None:
    site = await Site.make(tmp_path / "site", "--to-broadcasters-auth", "none", "--to-subscribers-auth", "none")
    head = b"POST /v1/notify?topic=t HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nbegun"
    async with site.serve() as broadcaster:
        url = httpx.URL(await broadcaster.url())
        uploads = [await asyncio.open_connection("127.0.0.1", url.port) for _ in range(10)]
        for _, writer in uploads:
            writer.write(head)
        async with httpx.AsyncClient(base_url=url) as api:
            assert (await api.post("/v1/notify?topic=t", content=b"x")).status_code == 200
        broadcaster.signal(signal.SIGTERM)
        for reader, writer in uploads:
            answer = await reader.readuntil(b"\r\n")
            assert answer == b"HTTP/1.1 503 Service Unavailable\r\n"
            writer.close()
        assert await broadcaster.ended() == 0
        assert "Traceback" not in broadcaster.output()


async def test_two_workers_behind_one_port_share_the_file(site: Site) -> None:
    async with site.serve("--workers", "2") as workers:
        url = await workers.url()
        async with open_client(site, url) as client:
            for number in range(20):
                topic = f"topic/{number}".encode()
                async with client.subscribe_exact(topic) as subscription:
                    assert (await client.notify(topic=topic, data=b"x")).notified == 1
                    await anext(subscription)
        assert await workers.stop() == 0
