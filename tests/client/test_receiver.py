"""receiver.py: what is refused, in which order, and that nothing refused is delivered."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from hashlib import sha256
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from httppubsubclient.client import HttpPubSubClient, Subscription
from httppubsubclient.protocol.credentials import Credentials, Key
from httppubsubclient.protocol.patterns import Pattern
from httppubsubclient.protocol.signatures import content_digest
from tests.client.conftest import RECEIVE_AUTH, SEND_AUTH, FakeBroadcaster, Wire, config

EXACT = Pattern.exact(b"foo/bar")


@pytest.fixture
async def subscription(client: HttpPubSubClient) -> AsyncIterator[Subscription]:
    async with client.subscribe_exact(b"foo/bar") as entered:
        yield entered


async def nothing_in(subscription: Subscription) -> bool:
    async for message in subscription.with_timeout(0.001):
        return message is None
    return False


async def test_a_correct_delivery_is_accepted(subscription: Subscription, wire: Wire) -> None:
    answer = await wire.deliver(EXACT, body=b"")
    assert (answer.status_code, answer.content) == (200, b"")
    assert (await subscription.messages().__anext__()).content == b""


@pytest.mark.parametrize(
    ("name", "value", "status", "code"),
    [
        ("signature", None, 401, "unauthorized"),
        ("signature-input", None, 401, "unauthorized"),
        ("signature", "junk", 401, "unauthorized"),
        ("signature-input", "junk", 401, "unauthorized"),
        ("pubsub-topic", "foo/baz", 401, "unauthorized"),
        ("pubsub-attempt", "2", 401, "unauthorized"),
        ("pubsub-subscription", "sub_2", 401, "unauthorized"),
        ("webhook-id", "msg_2", 401, "unauthorized"),
        ("webhook-id", None, 401, "unauthorized"),
        ("content-digest", None, 401, "unauthorized"),
        ("content-digest", "sha-256=:" + "A" * 43 + "=:", 401, "unauthorized"),
        ("content-encoding", "gzip", 415, "unsupported_media_type"),
        ("webhook-timestamp", None, 400, "invalid_request"),
        ("webhook-timestamp", "1e9", 400, "invalid_request"),
    ],
)
async def test_a_delivery_with_one_header_changed_is_refused(
    subscription: Subscription,
    wire: Wire,
    broadcaster: FakeBroadcaster,
    name: str,
    value: str | None,
    status: int,
    code: str,
) -> None:
    headers = broadcaster.delivery(broadcaster.id_of(EXACT), b"foo/bar", b"hello")
    if value is None:
        del headers[name]
    else:
        headers[name] = value
    answer = await wire.post(headers, b"hello")
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert await nothing_in(subscription)


async def test_a_changed_body_is_refused(subscription: Subscription, wire: Wire, broadcaster: FakeBroadcaster) -> None:
    headers = broadcaster.delivery(broadcaster.id_of(EXACT), b"foo/bar", b"hello")
    answer = await wire.post(headers, b"hellO")
    assert (answer.status_code, answer.json()["code"]) == (400, "digest_mismatch")
    assert f"5 bytes came, whose digest is {content_digest(sha256(b'hellO').digest())}" in answer.json()["detail"]
    assert await nothing_in(subscription)


@pytest.mark.parametrize("age_seconds", [310, -310])
async def test_an_old_or_future_signature_is_refused(subscription: Subscription, wire: Wire, age_seconds: int) -> None:
    answer = await wire.deliver(EXACT, age_seconds=age_seconds)
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
    assert await nothing_in(subscription)


async def test_another_key_is_refused(subscription: Subscription, wire: Wire) -> None:
    for keys in [(Key(id="to-subscribers", secret=b"x" * 32),), SEND_AUTH.keys]:
        answer = await wire.deliver(EXACT, credentials=Credentials(type="hmac", keys=keys))
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
        assert "www-authenticate" in answer.headers
    assert await nothing_in(subscription)


async def test_an_identical_request_is_a_replay_and_a_new_attempt_is_not(
    subscription: Subscription, wire: Wire, broadcaster: FakeBroadcaster
) -> None:
    headers = broadcaster.delivery(broadcaster.id_of(EXACT), b"foo/bar", b"hello")
    answers = [await wire.post(headers, b"hello") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 401]
    assert answers[1].json()["code"] == "replayed"
    assert (await wire.deliver(EXACT, attempt=2)).status_code == 200
    assert (await subscription.messages().__anext__()).content == b"hello"
    assert await nothing_in(subscription)


async def test_fifty_identical_requests_at_once_are_one_and_49_replays(
    subscription: Subscription, wire: Wire, broadcaster: FakeBroadcaster
) -> None:
    headers = broadcaster.delivery(broadcaster.id_of(EXACT), b"foo/bar", b"hello")
    answers = await asyncio.gather(*(wire.post(headers, b"hello") for _ in range(50)))
    assert sorted(answer.status_code for answer in answers) == [200] + [401] * 49


async def test_with_tokens_the_token_is_what_counts(broadcaster: FakeBroadcaster) -> None:
    token = Credentials(type="token", keys=(Key(id="t", secret=b"t" * 32),))
    async with HttpPubSubClient(config(receive_auth=token)) as client, client.subscribe_exact(b"foo/bar"):
        wire = Wire(client, broadcaster)
        async with wire.http:
            assert (await wire.deliver(EXACT, credentials=token)).status_code == 200
            wrong = Credentials(type="token", keys=(Key(id="t", secret=b"u" * 32),))
            assert (await wire.deliver(EXACT, credentials=wrong)).status_code == 401
            assert (await wire.deliver(EXACT, credentials=RECEIVE_AUTH)).status_code == 401


async def test_without_authentication_the_digest_is_still_compared(broadcaster: FakeBroadcaster) -> None:
    nobody = Credentials.none()
    async with HttpPubSubClient(config(receive_auth=nobody)) as client, client.subscribe_exact(b"foo/bar"):
        wire = Wire(client, broadcaster)
        async with wire.http:
            assert (await wire.deliver(EXACT, credentials=nobody)).status_code == 200
            headers = broadcaster.delivery(
                broadcaster.id_of(EXACT), b"foo/bar", b"x", credentials=nobody, message_id="msg_2"
            )
            assert (await wire.post(headers, b"y")).status_code == 400
            del headers["content-digest"]
            assert (await wire.post(headers, b"y")).status_code == 200


async def test_a_delivery_for_another_process_behind_the_address_is_tried_again(
    subscription: Subscription, wire: Wire
) -> None:
    answer = await wire.deliver(EXACT, fragment="2")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "0")
    assert await nothing_in(subscription)


async def test_a_client_that_is_not_running_answers_503(broadcaster: FakeBroadcaster) -> None:
    wire = Wire(HttpPubSubClient(config()), broadcaster)
    async with wire.http:
        assert (await wire.deliver("sub_1")).status_code == 503


# -- bodies, by hand ----------------------------------------------------------------------------------------------


class Exchange:
    """One request to the router as ASGI messages, so that it can be told what of it was read, and when."""

    def __init__(self, client: HttpPubSubClient, headers: dict[str, str], *events: dict[str, Any]) -> None:
        self._app = FastAPI()
        self._app.include_router(client.router)
        self._headers = [(name.encode(), value.encode()) for name, value in headers.items()]
        self._events = list(events)
        self.read = 0
        self.sent: list[Any] = []

    async def _receive(self) -> Any:
        self.read += 1
        if not self._events:
            await asyncio.Event().wait()
        return self._events.pop(0)

    async def _send(self, message: Any) -> None:
        self.sent.append(message)

    async def run(self) -> int | None:
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": "/v1/receive",
            "raw_path": b"/v1/receive",
            "query_string": b"",
            "root_path": "",
            "headers": self._headers,
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
        }
        await self._app(scope, self._receive, self._send)
        return self.sent[0]["status"] if self.sent else None


def part(body: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


async def test_nothing_of_the_body_is_read_before_the_headers_are_proven(
    client: HttpPubSubClient, subscription: Subscription, broadcaster: FakeBroadcaster
) -> None:
    good = broadcaster.delivery(broadcaster.id_of(EXACT), b"foo/bar", b"hello")
    unknown = broadcaster.delivery("sub_unknown", b"foo/bar", b"hello")
    for headers, status in [
        ({**good, "signature": "junk"}, 401),
        ({**good, "content-encoding": "gzip"}, 415),
        ({**good, "content-length": str(10**13)}, 413),
        ({**good, "content-length": "-1"}, 400),
        ({**good, "content-length": "1" * 30}, 400),
        (unknown, 410),
    ]:
        exchange = Exchange(client, headers, part(b"hello"))
        assert (await exchange.run(), exchange.read) == (status, 0)


async def test_a_full_buffer_is_told_before_the_body_is_read(broadcaster: FakeBroadcaster) -> None:
    async with HttpPubSubClient(config(buffer_messages=1)) as client, client.subscribe_exact(b"foo/bar"):
        for number, status, read in [(1, 200, 1), (2, 503, 0)]:
            headers = broadcaster.delivery(broadcaster.id_of(EXACT), b"foo/bar", b"hello", message_id=f"msg_{number}")
            exchange = Exchange(client, headers, part(b"hello"))
            assert (await exchange.run(), exchange.read) == (status, read)


async def test_a_body_that_comes_in_pieces_is_put_together(
    client: HttpPubSubClient, subscription: Subscription, broadcaster: FakeBroadcaster
) -> None:
    headers = broadcaster.delivery(broadcaster.id_of(EXACT), b"foo/bar", b"hello")
    assert await Exchange(client, headers, part(b"he", more=True), part(b"", more=True), part(b"llo")).run() == 200
    assert (await subscription.messages().__anext__()).content == b"hello"


async def test_a_duplicate_is_read_to_its_end_and_thrown_away(
    client: HttpPubSubClient, subscription: Subscription, broadcaster: FakeBroadcaster
) -> None:
    for attempt in (1, 2):
        headers = broadcaster.delivery(broadcaster.id_of(EXACT), b"foo/bar", b"hello", attempt=attempt)
        exchange = Exchange(client, headers, part(b"he", more=True), part(b"llo"))
        assert (await exchange.run(), exchange.read) == (200, 2)
    assert (await subscription.messages().__anext__()).content == b"hello"
    assert await nothing_in(subscription)


async def test_an_endless_body_is_cut_off_at_the_limit(broadcaster: FakeBroadcaster) -> None:
    async with HttpPubSubClient(config(max_body_bytes=100)) as client, client.subscribe_exact(b"foo/bar") as inbox:
        headers = broadcaster.delivery(broadcaster.id_of(EXACT), b"foo/bar", b"hello")
        exchange = Exchange(client, headers, *[part(b"x" * 30, more=True)] * 1000)
        assert (await exchange.run(), exchange.read) == (413, 4)
        assert await nothing_in(inbox)


async def test_a_body_that_stops_arriving_is_given_up(broadcaster: FakeBroadcaster) -> None:
    settings = config(body_idle_timeout_seconds=0.02)
    async with HttpPubSubClient(settings) as client, client.subscribe_exact(b"foo/bar") as inbox:
        headers = broadcaster.delivery(broadcaster.id_of(EXACT), b"foo/bar", b"hello")
        assert await Exchange(client, headers, part(b"hel", more=True)).run() == 408
        assert await nothing_in(inbox)


async def test_a_body_that_only_drips_is_given_up(broadcaster: FakeBroadcaster) -> None:
    async with HttpPubSubClient(config(body_idle_timeout_seconds=0.02)) as client, client.subscribe_exact(b"foo/bar"):
        headers = broadcaster.delivery(broadcaster.id_of(EXACT), b"foo/bar", b"hello")
        exchange = Exchange(client, headers)

        async def drip() -> dict[str, Any]:
            await asyncio.sleep(0.005)
            return part(b"x", more=True)

        exchange._receive = drip  # type: ignore[method-assign]
        assert await exchange.run() == 408


async def test_a_sender_that_goes_away_leaves_nothing_behind(
    client: HttpPubSubClient, subscription: Subscription, broadcaster: FakeBroadcaster
) -> None:
    headers = broadcaster.delivery(broadcaster.id_of(EXACT), b"foo/bar", b"hello")
    assert await Exchange(client, headers, part(b"hel", more=True), {"type": "http.disconnect"}).run() is None
    assert await nothing_in(subscription)
    assert await Exchange(client, broadcaster.delivery("sub_1", b"foo/bar", b"hello"), part(b"hello")).run() == 200


async def test_bodies_that_arrive_at_the_same_time_are_bounded_like_those_that_wait(
    broadcaster: FakeBroadcaster,
) -> None:
    settings = config(buffer_bytes=100, spool_bytes=1000, body_idle_timeout_seconds=5)
    async with HttpPubSubClient(settings) as client, client.subscribe_exact(b"foo/bar"):
        runs = []
        for number in range(3):
            body = b"x" * 60
            headers = broadcaster.delivery("sub_1", b"foo/bar", body, message_id=f"msg_{number}")
            exchange = Exchange(client, {**headers, "content-length": "60"}, part(body[:30], more=True))
            runs.append(asyncio.create_task(exchange.run()))
        done, pending = await asyncio.wait(runs, timeout=1, return_when=asyncio.FIRST_COMPLETED)
        assert [task.result() for task in done] == [503] * len(done)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)


@pytest.mark.parametrize(
    "name", ["webhook-id", "signature", "signature-input", "content-digest", "pubsub-topic", "content-length"]
)
async def test_a_header_that_comes_twice_is_refused(
    client: HttpPubSubClient, subscription: Subscription, broadcaster: FakeBroadcaster, name: str
) -> None:
    headers = broadcaster.delivery(broadcaster.id_of(EXACT), b"foo/bar", b"hello") | {"content-length": "5"}
    exchange = Exchange(client, headers, part(b"hello"))
    exchange._headers.append((name.encode(), headers[name].encode()))
    assert await exchange.run() == 400
    assert await nothing_in(subscription)


async def test_headers_of_random_bytes_are_refused_and_never_fail(
    client: HttpPubSubClient, subscription: Subscription, broadcaster: FakeBroadcaster
) -> None:
    good = broadcaster.delivery(broadcaster.id_of(EXACT), b"foo/bar", b"hello")
    for name in good:
        for junk in (b"\x00\xff", b"", b"=", b"a" * 10_000, b"(((", "é".encode(), b'"', b";;", b"sig=()"):
            exchange = Exchange(client, good, part(b"hello"))
            exchange._headers = [(n, junk if n == name.encode() else v) for n, v in exchange._headers]
            status = await exchange.run()
            assert status in (400, 401, 422) or name in ("content-type", "traceparent", "webhook-timestamp"), name
            assert status != 500


async def test_the_route_is_documented_and_takes_deliveries_by_post_alone(client: HttpPubSubClient) -> None:
    app = FastAPI()
    app.include_router(client.router, prefix="/pubsub")
    operation = app.openapi()["paths"]["/pubsub/v1/receive"]["post"]
    assert "*/*" in operation["requestBody"]["content"]
    assert {"200", "400", "401", "408", "410", "413", "415", "503"} <= set(operation["responses"])
    assert "Webhook-Id" in json.dumps(operation["parameters"])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as http:
        assert (await http.put("/pubsub/v1/receive")).status_code == 405
        assert (await http.get("/pubsub/v1/receive")).status_code == 400, "that is how consent is asked for"
