"""What the tests of webhooks share: a broadcaster with a storage key, and looking at what it sends."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from httppubsubclient.bodies import Body, spool
from httppubsubclient.protocol.callback_urls import split_callback_url
from httppubsubclient.protocol.cloudevents import ReadEvent, read_event
from httppubsubclient.protocol.credentials import Credentials, Secrets, verify_delivery
from httppubsubclient.protocol.keys import Key
from httppubsubclient.protocol.messages import Notification, SubscribeRequest, Subscription
from httppubsubclient.protocol.options import DeliveryFormat
from httppubsubclient.protocol.patterns import Pattern
from httppubsubclient.protocol.standard_webhooks import PrivateKey, PublicKey, SharedSecret, verify
from httppubsubserver.broadcaster import Broadcaster
from httppubsubserver.config import ServerConfig
from httppubsubserver.delivery.outbound import Answer, AttemptFailed
from httppubsubserver.delivery.webhook_heads import Parcel
from httppubsubserver.delivery.webhooks import EventIdentity, Webhooks
from httppubsubserver.subscription_secrets import SubscriptionSecrets
from httppubsubserver.vault import Vault
from tests.server.conftest import OpenBroadcaster, Post

URL = "http://127.0.0.1:3002/hook"
OTHER = "http://127.0.0.1:3003/hook"
KEY = SharedSecret(bytes(range(32)))
PRIVATE = PrivateKey(bytes(range(32)))
HMAC = Credentials("hmac", (Key("k", b"s" * 32),), ())
TOKEN = Credentials("token", (Key("k", b"the-token-of-all"),), ())
BROADCASTER = "https://broadcaster.example/pubsub"
FORMATS: tuple[DeliveryFormat, ...] = ("raw", "cloudevents-binary", "cloudevents-structured")
SIZES = {"small": 100, "large": 70_000, "spooled": 300_000}


def storage_key(folder: Path, number: int = 0) -> Path:
    path = folder / f"storage-key-{number}"
    path.write_bytes(base64.b64encode(bytes(range(number, number + 32))))
    path.chmod(0o600)
    return path


OpenWithVault = Callable[..., Awaitable[Broadcaster]]


def with_vault(open_broadcaster: OpenBroadcaster, folder: Path) -> OpenWithVault:
    """Opens broadcasters that can keep secrets."""

    async def open_one(shared: Credentials = HMAC, key: int = 0, **options: Any) -> Broadcaster:
        secrets = Secrets(Credentials.none(), shared, (BROADCASTER,))
        return await open_broadcaster(secrets=secrets, storage_key_file=storage_key(folder, key), **options)

    return open_one


async def body_of(data: bytes) -> bytes | Body:
    """In a file when it is above 200,000 bytes, as a broadcaster has it above `spool_bytes`."""

    async def chunks() -> AsyncIterator[bytes]:
        yield data

    return data if len(data) <= 200_000 else await spool(chunks(), spool_bytes=0, max_bytes=10**9)


async def subscribe(
    broadcaster: Broadcaster,
    secret: str | None = None,
    form: DeliveryFormat = "raw",
    *,
    url: str = URL,
    topic: bytes = b"t",
    durable: bool = False,
) -> Subscription:
    request = SubscribeRequest(
        url, Pattern.exact(topic), 3600, "durable" if durable else "best_effort", format=form,
        retry_schedule_seconds=(0.0, 0.01, 0.01) if durable else None,
    )  # fmt: skip
    change = broadcaster.subscription_secrets.change(secret)
    subscription, _ = await broadcaster.subscribe(request, secrets=change)
    return subscription


def verified(post: Post, *keys: SharedSecret | PublicKey) -> None:
    """Our own verifier takes it."""
    webhook = verify(keys, post.headers, post.body, now=time.time(), tolerance_seconds=5)
    assert webhook.message_id == post.headers["webhook-id"]


def of_shared(post: Post, credentials: Credentials = HMAC) -> None:
    """The proof that subscribers share holds."""
    verify_delivery(credentials, method="POST", headers=post.headers, now=time.time(), tolerance_seconds=5)
    assert "webhook-signature" not in post.headers


def check_digest(post: Post) -> None:
    digest = base64.b64encode(hashlib.sha256(post.body).digest()).decode()
    assert post.headers["content-digest"] == f"sha-256=:{digest}:"


def event_of(post: Post) -> ReadEvent:
    return read_event(post.headers, post.body)


def bench(outbound: Any, shared: Credentials = HMAC, **options: Any) -> Webhooks:
    secrets = SubscriptionSecrets(Vault([bytes(range(32))]), now=lambda: 0, grace_seconds=60)
    return Webhooks(
        ServerConfig(**options), outbound, shared, secrets, identity=EventIdentity("urn:test", None), clock=time.time
    )


async def attempt(
    made: Webhooks,
    data: bytes | Body,
    *,
    form: DeliveryFormat = "raw",
    secret: SharedSecret | PrivateKey | None = KEY,
    topic: bytes = b"t",
    content_type: str = "application/octet-stream",
    seconds: float = 10,
) -> Answer | AttemptFailed:
    """One delivery, and what became of it."""
    body = data if isinstance(data, Body) else Body.of(data)
    change = made._secrets.change(None if secret is None else secret.text())
    sealed = None if change is None else change("sub_a", None).blob
    notification = Notification("msg_a", topic, content_type, body.sha256, body.size)
    parcel = Parcel(notification, "sub_a", None, 1, form, sealed, 1_800_000_000_000_000)
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[Answer | AttemptFailed] = loop.create_future()
    deadline = loop.time() + seconds
    made.post(parcel, split_callback_url(URL), body, deadline=deadline, done=outcome.set_result)
    assert not outcome.done(), "done is never called from within the post"
    return await outcome
