"""Subscriptions with secrets of their own, from a real broadcaster to receivers that know nothing of this project."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import standardwebhooks
import svix.webhooks

from httppubsubclient.protocol.cloudevents import event_topic, read_event
from tests.e2e.processes import DEADLINE_SECONDS, Site, running, until

KEY = "whsec_" + base64.b64encode(bytes(range(40))).decode()


@dataclass
class PlainReceiver:
    """Takes any POST with 204 and keeps it; asks for no header but Content-Length."""

    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    status: int = 204
    url: str = ""
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("ascii")
                headers = {
                    name.lower(): value
                    for name, _, value in (line.partition(": ") for line in head.split("\r\n")[1:-2])
                }
                body = await reader.readexactly(int(headers["content-length"]))
                self.requests.append((headers, body))
                self.changed.set()
                writer.write(b"HTTP/1.1 %d X\r\ncontent-length: 0\r\n\r\n" % self.status)
        writer.close()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(DEADLINE_SECONDS):
            while len(self.requests) < count:
                self.changed.clear()
                await self.changed.wait()


@pytest.fixture
async def receiver() -> AsyncIterator[PlainReceiver]:
    receiver = PlainReceiver()
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0, limit=1 << 20)
    receiver.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook"
    async with server:
        yield receiver


@pytest.fixture
async def open_site(tmp_path: Path) -> Site:
    """Nobody has to prove anything, so that what a subscription has of its own is seen alone."""
    return await Site.make(tmp_path / "open", "--to-broadcasters-auth", "none", "--to-subscribers-auth", "token")


async def subscribe(api: httpx.AsyncClient, url: str, **fields: Any) -> dict[str, Any]:
    answer = await api.post("/v1/subscriptions", json={"url": url, **fields})
    assert answer.status_code in (200, 201), answer.text
    made: dict[str, Any] = answer.json()
    return made


async def notify(api: httpx.AsyncClient, topic: str, content: bytes, content_type: str) -> dict[str, Any]:
    answer = await api.post(
        "/v1/notify", params={"topic": topic}, content=content, headers={"content-type": content_type}
    )
    assert answer.status_code in (200, 202), answer.text
    counts: dict[str, Any] = answer.json()
    return counts


def taken(headers: dict[str, str], body: bytes, *secrets: str) -> list[bool]:
    """By which of these keys two libraries of others take a delivery; they agree."""
    verdicts = []
    for secret in secrets:
        each = []
        for library, error in (
            (standardwebhooks.Webhook(secret), standardwebhooks.WebhookVerificationError),
            (svix.webhooks.Webhook(secret), svix.webhooks.WebhookVerificationError),
        ):
            try:
                library.verify(body, headers)
            except error:
                each.append(False)
            else:
                each.append(True)
        assert each[0] == each[1]
        verdicts.append(each[0])
    return verdicts


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_partner_with_a_library_for_standard_webhooks_takes_every_format(
    open_site: Site, receiver: PlainReceiver, workers: int
) -> None:
    async with open_site.serve("--workers", str(workers)) as broadcaster:
        url = await broadcaster.url()
        async with httpx.AsyncClient(base_url=url) as api:
            secrets = {}
            for delivery in ("best_effort", "durable"):
                for form in ("raw", "cloudevents-binary", "cloudevents-structured"):
                    made = await subscribe(
                        api, f"{receiver.url}?{delivery}&{form}", glob="orders/*", secret="generate", format=form,
                        delivery=delivery,
                    )  # fmt: skip
                    secrets[made["id"]] = made["secret"]
            data = b'{"order":  1}'
            counts = await notify(api, "orders/1", data, "application/json")
            assert (counts["matched"], counts["notified"]) == (6, 6)
            assert len(receiver.requests) == 6
            for headers, body in receiver.requests:
                own = headers["pubsub-subscription"]
                assert taken(headers, body, *secrets.values()) == [name == own for name in secrets]
                assert "authorization" not in headers
                if body != data or "ce-id" in headers:
                    event, received = read_event(headers, body)
                    assert (event_topic(event), received) == (b"orders/1", data)
                    assert event.source == "http://127.0.0.1:3003"
        assert await broadcaster.stop() == 0
    output = broadcaster.output()
    assert not [secret for secret in secrets.values() if secret[6:] in output]


async def test_large_and_spooled_messages_are_signed_too_and_larger_ones_fail(
    open_site: Site, receiver: PlainReceiver
) -> None:
    options = ("--spool-bytes", "300000", "--max-webhook-bytes", "2000000")
    async with (
        open_site.serve(*options) as broadcaster,
        httpx.AsyncClient(base_url=await broadcaster.url(), timeout=DEADLINE_SECONDS) as api,
    ):
        for delivery in ("best_effort", "durable"):
            for form in ("raw", "cloudevents-structured"):
                await subscribe(
                    api, f"{receiver.url}?{delivery}&{form}", topic="t", secret=KEY, format=form, delivery=delivery
                )
        for count, size in enumerate((100_000, 500_000, 2_000_000), 1):
            data = json.dumps("x" * (size - 2)).encode()
            assert len(data) == size
            assert (await notify(api, "t", data, "application/json"))["notified"] == 4
            for headers, body in receiver.requests[4 * count - 4 :]:
                assert taken(headers, body, KEY) == [True]
                assert body == data or read_event(headers, body).data == data
        counts = await notify(api, "t", bytes(2_000_001), "image/png")
        assert (counts["matched"], counts["notified"], counts["pending"], counts["failed"]) == (4, 0, 0, 4)

        async def given_up() -> bool:
            deliveries = (await api.get("/v1/deliveries", params={"state": "dead"})).json()["deliveries"]
            return [each["reason"] for each in deliveries] == ["too_large"] * 2

        await until(given_up)  # it is written after the answer
        assert len(receiver.requests) == 12


async def test_a_rotation_leaves_no_moment_without_a_good_signature_and_ends_with_its_grace(
    open_site: Site, receiver: PlainReceiver
) -> None:
    async with open_site.serve() as broadcaster, httpx.AsyncClient(base_url=await broadcaster.url()) as api:
        first = (await subscribe(api, receiver.url, topic="t", secret="generate"))["secret"]
        second = (await subscribe(api, receiver.url, topic="t", secret="generate"))["secret"]
        await notify(api, "t", b'"a"', "application/json")
        # Two more; the grace of the third is one second, over which the test need not wait: it asks until it is over.
        third = (await subscribe(api, receiver.url, topic="t", secret="generate", secret_grace_seconds=1))["secret"]

        async def over() -> bool:
            await notify(api, "t", b'"b"', "application/json")
            return " " not in receiver.requests[-1][0]["webhook-signature"]

        await until(over)
        assert taken(*receiver.requests[0], first, second) == [True, True]
        assert taken(*receiver.requests[-1], first, second, third) == [False, False, True]
        for headers, body in receiver.requests[1:]:
            assert taken(headers, body, third) == [True]


async def test_secrets_outlive_a_restart_and_a_new_storage_key_on_top_of_the_old(
    open_site: Site, receiver: PlainReceiver
) -> None:
    path = open_site.directory / "storage-key"
    old = path.read_text()
    async with open_site.serve() as broadcaster, httpx.AsyncClient(base_url=await broadcaster.url()) as api:
        schedule = [0, *[0.5] * 60]
        durable = {"delivery": "durable", "retry_schedule_seconds": schedule}
        secret = (await subscribe(api, receiver.url, topic="t", secret="generate", **durable))["secret"]
    path.write_text(base64.b64encode(os.urandom(32)).decode() + "\n" + old)
    async with open_site.serve() as broadcaster, httpx.AsyncClient(base_url=await broadcaster.url()) as api:
        assert (await notify(api, "t", b'"a"', "application/json"))["notified"] == 1
    # Without any key: what is owed waits, and is delivered with it.
    async with (
        open_site.serve("--storage-key-file", "") as broadcaster,
        httpx.AsyncClient(base_url=await broadcaster.url()) as api,
    ):
        assert (await notify(api, "t", b'"b"', "application/json"))["notified"] == 0
        refused = await api.post("/v1/subscriptions", json={"url": receiver.url, "topic": "u", "secret": "generate"})
        assert (refused.status_code, refused.json()["code"]) == (400, "invalid_request")
    assert "cannot be used: there is no storage key" in broadcaster.output()
    environment = {"HTTPPUBSUB_STORAGE_KEY": old.strip()}
    command = (
        *("-m", "httppubsubserver", "serve", "--db", f"sqlite:///{open_site.directory}/httppubsub.sqlite3"),
        *("--secrets", open_site.directory / "broadcaster-secrets.json", "--port", "0"),
    )
    async with running(*command, environment=environment) as broadcaster:
        await broadcaster.url()
        await receiver.until(2)
    assert [body for _, body in receiver.requests] == [b'"a"', b'"b"']
    for headers, body in receiver.requests:
        assert taken(headers, body, secret) == [True]


async def test_what_setup_made_works_where_it_lies(tmp_path: Path, receiver: PlainReceiver) -> None:
    await Site.make(tmp_path, "--to-broadcasters-auth", "none")
    async with (
        running("-m", "httppubsubserver", "serve", "--port", "0", cwd=tmp_path) as broadcaster,
        httpx.AsyncClient(base_url=await broadcaster.url()) as api,
    ):
        secret = (await subscribe(api, receiver.url, topic="t", secret="generate"))["secret"]
        await notify(api, "t", b'"a"', "application/json")
    assert taken(*receiver.requests[0], secret) == [True]
