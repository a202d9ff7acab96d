"""Wrong key, old timestamp, replayed nonce, changed topic, changed body: refused, and nothing is delivered."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import httpx
import pytest

from httppubsubclient.client import HttpPubSubClient
from httppubsubclient.protocol.credentials import Credentials, Key, secrets_from_json, sign_delivery, sign_request
from httppubsubclient.protocol.messages import Notification, delivery_headers
from httppubsubclient.protocol.signatures import content_digest
from tests.e2e.conftest import open_client
from tests.e2e.processes import Process, Site


def digest_of(body: bytes) -> str:
    return content_digest(hashlib.sha256(body).digest())


def with_another_secret(credentials: Credentials) -> Credentials:
    return replace(credentials, keys=tuple(Key(key.id, os.urandom(32)) for key in credentials.keys))


@pytest.fixture
async def client(site: Site, broadcaster: Process) -> AsyncIterator[HttpPubSubClient]:
    async with open_client(site, await broadcaster.url()) as client:
        yield client


async def test_a_publisher_that_cheats_is_refused(site: Site, broadcaster: Process, client: HttpPubSubClient) -> None:
    url = await broadcaster.url()
    credentials = secrets_from_json(site.secrets).to_broadcasters

    async def publish(
        credentials: Credentials, *, signed: bytes = b"x", sent: bytes = b"x", query: str = "topic=t", offset: int = 0
    ) -> tuple[int, str, dict[str, str]]:
        headers = {"content-digest": digest_of(signed)}
        headers |= sign_request(
            credentials,
            method="POST",
            path="/v1/notify",
            query="topic=t",
            headers=headers,
            now=int(time.time()) + offset,
            nonce=os.urandom(16).hex(),
        )
        async with httpx.AsyncClient() as http:
            answer = await http.post(f"{url}/v1/notify?{query}", content=sent, headers=headers)
        return answer.status_code, answer.json().get("code", ""), headers

    async with client.subscribe_glob("**") as subscription:
        assert (await publish(with_another_secret(credentials)))[:2] == (401, "unauthorized")
        assert (await publish(credentials, offset=-400))[:2] == (401, "unauthorized")
        assert (await publish(credentials, offset=400))[:2] == (401, "unauthorized")
        assert (await publish(credentials, query="topic=u"))[:2] == (401, "unauthorized")
        assert (await publish(credentials, sent=b"y"))[:2] == (400, "digest_mismatch")
        status, _, headers = await publish(credentials)
        assert status == 200
        async with httpx.AsyncClient() as http:
            replayed = await http.post(f"{url}/v1/notify?topic=t", content=b"x", headers=headers)
        assert (replayed.status_code, replayed.json()["code"]) == (401, "replayed")
        assert (await anext(subscription)).data.read() == b"x"
        await client.notify(topic=b"end", data=b"")
        assert (await anext(subscription)).topic == b"end", "nothing else was delivered"


async def test_a_forged_delivery_is_refused(site: Site, broadcaster: Process, client: HttpPubSubClient) -> None:
    credentials = secrets_from_json(site.secrets).to_subscribers
    async with client.subscribe_glob("**") as subscription:
        await client.notify(topic=b"first", data=b"")
        await anext(subscription)
        [subscription_id] = await subscription_ids(site, await broadcaster.url())

        async def deliver(
            credentials: Credentials, *, sent: bytes = b"x", offset: int = 0, changed: dict[str, str] | None = None
        ) -> tuple[int, str, dict[str, str]]:
            now = int(time.time()) + offset
            sha256 = hashlib.sha256(b"x").digest()
            notification = Notification(f"msg_{os.urandom(8).hex()}", b"forged", "text/plain", sha256, 1)
            headers = delivery_headers(notification, subscription_id, attempt=1, timestamp=now, fragment=None)
            headers["content-digest"] = content_digest(sha256)
            headers |= sign_delivery(credentials, headers=headers, now=now, nonce=os.urandom(16).hex())
            headers |= changed or {}
            async with httpx.AsyncClient() as http:
                answer = await http.post(client.callback_url, content=sent, headers=headers)
            return answer.status_code, answer.json()["code"] if answer.content else "", headers

        refused = (401, "unauthorized")
        assert (await deliver(with_another_secret(credentials)))[:2] == refused
        assert (await deliver(credentials, offset=-400))[:2] == refused
        assert (await deliver(credentials, offset=400))[:2] == refused
        assert (await deliver(credentials, changed={"pubsub-topic": "other"}))[:2] == refused
        assert (await deliver(credentials, changed={"webhook-id": "msg_other"}))[:2] == refused
        assert (await deliver(credentials, changed={"pubsub-attempt": "2"}))[:2] == refused
        assert (await deliver(credentials, sent=b"y"))[:2] == (400, "digest_mismatch")
        status, _, headers = await deliver(credentials)
        assert status in (200, 204)
        async with httpx.AsyncClient() as http:
            replayed = await http.post(client.callback_url, content=b"x", headers=headers)
        assert (replayed.status_code, replayed.json()["code"]) == (401, "replayed")
        assert (await anext(subscription)).topic == b"forged"
        await client.notify(topic=b"end", data=b"")
        assert (await asyncio.wait_for(anext(subscription), 10)).topic == b"end", "nothing else was delivered"


async def subscription_ids(site: Site, url: str) -> list[str]:
    headers = sign_request(
        secrets_from_json(site.secrets).to_broadcasters,
        method="GET",
        path="/v1/subscriptions",
        query="",
        headers={},
        now=int(time.time()),
        nonce=os.urandom(16).hex(),
    )
    async with httpx.AsyncClient() as http:
        answer = await http.get(f"{url}/v1/subscriptions", headers=headers)
    return [subscription["id"] for subscription in answer.json()["subscriptions"]]
