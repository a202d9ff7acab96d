"""A broadcaster made of a dict, on the other side of respx, and deliveries signed as a broadcaster signs them."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs

import httpx
import pytest
import respx
from fastapi import FastAPI

from httppubsubclient.client import HttpPubSubClient
from httppubsubclient.config import HttpPubSubConfig
from httppubsubclient.protocol.credentials import Credentials, Key, sign_delivery, verify_request
from httppubsubclient.protocol.errors import NotFound, PreconditionFailed, PubSubError, problem, wire_of
from httppubsubclient.protocol.messages import Notification, Subscription, delivery_headers
from httppubsubclient.protocol.options import options_from_json
from httppubsubclient.protocol.patterns import Pattern, pattern_from_json
from httppubsubclient.protocol.signatures import content_digest
from httppubsubclient.protocol.standard_webhooks import (
    PrivateKey,
    PublicKey,
    SharedSecret,
    parse_key,
    sign_v1,
    sign_v1a,
)

URL = "http://broadcaster.test:3003"
HOST = "http://subscriber.test:3002"
CALLBACK = f"{HOST}/v1/receive"
SEND_AUTH = Credentials(type="hmac", keys=(Key(id="to-broadcasters", secret=b"b" * 32),), broadcasters=(URL,))
RECEIVE_AUTH = Credentials(type="hmac", keys=(Key(id="to-subscribers", secret=b"s" * 32),), broadcasters=(URL,))
YEAR_2030 = 1_893_456_000_000_000


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """A module that names `LOOP_FACTORIES` has its tests run under each of them."""
    module = item.getparent(pytest.Module)
    return getattr(module and module.obj, "LOOP_FACTORIES", {"asyncio": asyncio.new_event_loop})


Behaviour = Callable[[httpx.Request], Awaitable[httpx.Response | None] | httpx.Response | None]


class FakeBroadcaster:
    """Keeps subscriptions in a dict. `next` holds what the next requests do instead (or, returning None, before)."""

    network: respx.MockRouter

    def __init__(self) -> None:
        self.kept: dict[str, Subscription] = {}
        self.calls: list[str] = []
        self.requests: list[httpx.Request] = []
        self.next: list[Behaviour] = []
        self.always: Behaviour | None = None
        self.lease_seconds: int | None = None
        self.pages: dict[str, list[dict[str, Any]]] = {}
        """What is kept of the messages of a subscription, by its id."""
        self.bodies: dict[str, bytes] = {}
        self.page_size = 100
        self.called_off: set[str] = set()
        self.scheduled = {"msg_later": 3}
        self.secrets: dict[str, list[str]] = {}
        """Those of a subscription, by its id, the newest first: all of them sign."""
        self._ids = (f"sub_{number}" for number in itertools.count(1))
        self._moments = itertools.count(1)
        self._nonces = itertools.count(1)

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(0)  # a network never answers at once
        self.requests.append(request)
        self.calls.append(f"{request.method} {request.url.path}")
        behaviour = self.next.pop(0) if self.next else self.always
        if behaviour is not None:
            answer = behaviour(request)
            if not isinstance(answer, httpx.Response) and answer is not None:
                answer = await answer
            if answer is not None:
                return answer
        try:
            return self.process(request)
        except PubSubError as error:
            return answer_of(error)

    def process(self, request: httpx.Request) -> httpx.Response:
        query = request.url.query.decode()
        verify_request(
            SEND_AUTH,
            method=request.method,
            path=request.url.raw_path.decode().partition("?")[0],
            query=query,
            headers={name.lower(): value for name, value in request.headers.items()},
            has_body=bool(request.content),
            now=time.time(),
            tolerance_seconds=300,
        )
        assert not request.content or request.headers["content-digest"] == content_digest(
            hashlib.sha256(request.content).digest()
        )
        match request.method, request.url.path:
            case "POST", "/v1/notify":
                counts = {"message_id": "msg_1", "matched": 3, "notified": 2, "pending": 1, "failed": 0}
                return httpx.Response(200, json=counts)
            case "POST", "/v1/subscriptions":
                fields = json.loads(request.content)
                known = len(self.kept)
                made = self.keep(fields["url"], fields).to_json()
                is_new = len(self.kept) > known
                return httpx.Response(201 if is_new else 200, json=made, headers={"etag": self.etag(fields["url"])})
            case "PUT", "/v1/subscriptions":
                url = parse_qs(query)["url"][0]
                if_match = request.headers.get("if-match")
                if if_match is not None and if_match != self.etag(url):
                    raise PreconditionFailed("it is another set now", etag=self.etag(url))
                entries = json.loads(request.content)["subscriptions"]
                kept = [self.keep(url, entry) for entry in entries]
                ids = {subscription.id for subscription in kept}
                self.kept = {key: value for key, value in self.kept.items() if value.url != url or key in ids}
                self.secrets = {key: value for key, value in self.secrets.items() if key in self.kept}
                return httpx.Response(
                    200,
                    json={"url": url, "subscriptions": [subscription.to_json() for subscription in kept]},
                    headers={"etag": self.etag(url)},
                )
            case "GET", "/v1/subscriptions":
                url = parse_qs(query)["url"][0]
                return httpx.Response(200, json={"subscriptions": [], "cursor": None}, headers={"etag": self.etag(url)})
            case "GET", path if path.endswith("/messages"):
                return httpx.Response(200, json=self.page(path.split("/")[-2], parse_qs(query)))
            case "GET", "/v1/deliveries":
                asked = parse_qs(query)
                state = "cancelled" if asked["message"][0] in self.called_off else "pending"
                return httpx.Response(200, json={"deliveries": [{"state": state}], "cursor": None})
            case "GET", path if path.endswith("/body"):
                return httpx.Response(200, content=self.bodies[path.split("/")[-2]])
            case "DELETE", path if path.startswith("/v1/messages/"):
                cancelled = self.scheduled.pop(path.rpartition("/")[2], None)
                if cancelled is None:
                    raise NotFound("there is no such message")
                return httpx.Response(200, json={"cancelled": cancelled})
            case "DELETE", path:
                self.secrets.pop(path.rpartition("/")[2], None)
                if self.kept.pop(path.rpartition("/")[2], None) is None:
                    raise NotFound("there is none")
                return httpx.Response(204)
        raise NotFound(f"no such route: {request.method} {request.url.path}")

    def page(self, subscription_id: str, query: Mapping[str, list[str]]) -> dict[str, Any]:
        """Complete when no number is missing between `after` and the last on the page, and every body is kept."""
        after, kept = int(query["after"][0]), self.pages[subscription_id]
        found = [message for message in kept if message["sequence"] > after][: self.page_size]
        numbers = [message["sequence"] for message in found]
        without_gaps = numbers == list(range(after + 1, after + 1 + len(numbers)))
        complete = without_gaps and all(message.get("body_kept", True) for message in found)
        return {"messages": found, "complete": complete, "last": max(message["sequence"] for message in kept)}

    def keep(self, url: str, fields: Mapping[str, Any]) -> Subscription:
        pattern = pattern_from_json(fields)
        known = [one.id for one in self.kept.values() if (one.url, one.pattern) == (url, pattern)]
        subscription_id = known[0] if known else next(self._ids)
        lease_seconds = self.lease_seconds or fields["lease_seconds"]
        if "secret" in fields and fields["secret"] not in self.secrets.get(subscription_id, [])[:1]:
            self.secrets.setdefault(subscription_id, []).insert(0, fields["secret"])
        signature: dict[str, Any] = {}
        if subscription_id in self.secrets:
            key = parse_key(self.secrets[subscription_id][0])
            signature = {"signature": "v1a", "public_key": key.public().text()} if isinstance(key, PrivateKey) else {}
            signature = signature or {"signature": "v1"}
        # No two calls happen at the same moment, so each of them shows in the ETag.
        expires_at = YEAR_2030 + next(self._moments)
        self.kept[subscription_id] = Subscription(
            subscription_id, url, pattern, lease_seconds, YEAR_2030, expires_at, *options_from_json(fields), **signature
        )
        return self.kept[subscription_id]

    def etag(self, url: str) -> str:
        shown = ",".join(sorted(f"{one.id} {one.expires_at}" for one in self.kept.values() if one.url == url))
        return f'"{hashlib.sha256(shown.encode()).hexdigest()[:16]}"'

    def patterns(self, url: str = CALLBACK) -> list[str]:
        return [str(subscription.pattern) for subscription in self.kept.values() if subscription.url == url]

    def id_of(self, pattern: Pattern) -> str:
        return next(key for key, value in self.kept.items() if value.pattern == pattern)

    def delivery(
        self,
        subscription_id: str,
        topic: bytes,
        body: bytes,
        *,
        message_id: str = "msg_1",
        content_type: str = "text/plain",
        fragment: str | None = None,
        attempt: int = 1,
        age_seconds: int = 0,
        sequence: int | None = None,
        previous_message_id: str | None = None,
        credentials: Credentials = RECEIVE_AUTH,
    ) -> dict[str, str]:
        """The headers of one signed attempt; each has a nonce of its own."""
        sha256 = hashlib.sha256(body).digest()
        now = int(time.time()) - age_seconds
        notification = Notification(message_id, topic, content_type, sha256, len(body))
        headers = delivery_headers(
            notification,
            subscription_id,
            attempt=attempt,
            timestamp=now,
            fragment=fragment,
            sequence=sequence,
            previous_message_id=previous_message_id,
        )
        headers["content-digest"] = content_digest(sha256)
        nonce = f"{next(self._nonces):022d}"
        return headers | sign_delivery(credentials, headers=headers, now=now, nonce=nonce)

    def webhook(
        self,
        subscription_id: str,
        topic: bytes,
        body: bytes,
        *,
        secrets: Sequence[str] | None = None,
        **options: Any,
    ) -> dict[str, str]:
        """The same for a subscription with a secret of its own: signed with all of them, and with nothing else."""
        headers = self.delivery(subscription_id, topic, body, credentials=Credentials.none(), **options)
        del headers["content-digest"]
        secrets = self.secrets[subscription_id] if secrets is None else secrets
        timestamp = int(headers["webhook-timestamp"])
        headers["webhook-signature"] = " ".join(
            webhook_signature(secret, headers["webhook-id"], timestamp, body) for secret in secrets
        )
        return headers


def webhook_signature(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    key = parse_key(secret)
    assert not isinstance(key, PublicKey)
    sign = sign_v1 if isinstance(key, SharedSecret) else sign_v1a
    return sign(key, message_id, timestamp, body)  # type: ignore[arg-type]


def answer_of(error: PubSubError, **headers: str) -> httpx.Response:
    return httpx.Response(
        wire_of(error).status,
        json=problem(error),
        headers={"content-type": "application/problem+json", **{k.replace("_", "-"): v for k, v in headers.items()}},
    )


def refuse(error: PubSubError, **headers: str) -> Behaviour:
    return lambda _request: answer_of(error, **headers)


def unreachable(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("Connection refused", request=request)


def cut_off(request: httpx.Request) -> httpx.Response:
    raise httpx.ReadError("reset by peer", request=request)


class Wire:
    """The subscriber's side of the network: posts deliveries to the client's router, mounted in an app."""

    def __init__(self, client: HttpPubSubClient, broadcaster: FakeBroadcaster) -> None:
        app = FastAPI()
        app.include_router(client.router)
        self.broadcaster = broadcaster
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url=HOST)

    async def post(self, headers: dict[str, str], body: Any = b"", query: str = "") -> httpx.Response:
        return await self.http.post(f"/v1/receive{query}", headers=headers, content=body)

    async def deliver(
        self,
        pattern: Pattern | str,
        topic: bytes = b"foo/bar",
        body: bytes = b"hello",
        *,
        durable: str | None = None,
        **options: Any,
    ) -> httpx.Response:
        subscription_id = pattern if isinstance(pattern, str) else self.broadcaster.id_of(pattern)
        query = "" if durable is None else f"?durable={durable}"
        return await self.post(self.broadcaster.delivery(subscription_id, topic, body, **options), body, query)


@pytest.fixture
def broadcaster() -> Iterator[FakeBroadcaster]:
    fake = FakeBroadcaster()
    with respx.mock(assert_all_called=False) as router:
        router.route(url__startswith=URL).mock(side_effect=fake)
        fake.network = router
        yield fake


def config(**settings: Any) -> HttpPubSubConfig:
    return HttpPubSubConfig(
        **{
            "host": HOST,
            "send_auth": SEND_AUTH,
            "receive_auth": RECEIVE_AUTH,
            **settings,
        }
    )


@pytest.fixture
async def client(broadcaster: FakeBroadcaster) -> AsyncIterator[HttpPubSubClient]:
    async with HttpPubSubClient(config()) as entered:
        yield entered


@pytest.fixture
async def hasty(broadcaster: FakeBroadcaster) -> AsyncIterator[HttpPubSubClient]:
    """A client that gives up soon, for tests in which it has to."""
    async with HttpPubSubClient(config(request_timeout_seconds=0.2, leave_timeout_seconds=0.2)) as entered:
        yield entered


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses between attempts are drawn from a short range, and leases are renewed long before a third of them."""
    monkeypatch.setattr("httppubsubclient.broadcasters._BASE_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr("httppubsubclient.broadcasters._MAX_PAUSE_SECONDS", 0.02)
    monkeypatch.setattr("httppubsubclient.registrations._RENEW_AT", 0.05)
    monkeypatch.setattr("httppubsubclient.durable_name._RENEW_AT", 0.05)


@pytest.fixture
async def wire(client: HttpPubSubClient, broadcaster: FakeBroadcaster) -> AsyncIterator[Wire]:
    wire = Wire(client, broadcaster)
    async with wire.http:
        yield wire


async def until(condition: Callable[[], object]) -> None:
    """Wait until something is true; a test that waits for what never comes fails after five seconds."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)
