"""F. The receiving side: the client's router and its verifier of Standard Webhooks."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import respx

from httppubsubclient.client import HttpPubSubClient
from httppubsubclient.protocol.errors import InvalidRequest, PubSubError, Unauthorized
from httppubsubclient.protocol.intent import handshake_headers
from httppubsubclient.protocol.patterns import Pattern
from httppubsubclient.protocol.standard_webhooks import (
    PrivateKey,
    PublicKey,
    SharedSecret,
    Webhook,
    sign_v1,
    sign_v1a,
    verify,
)
from tests.client.conftest import URL, FakeBroadcaster, Wire, config
from tests.client.test_receiver import Exchange, part

NOW = 1_795_000_000
BODY = b'{"test": 2432232314}'
SECRET, OTHER = SharedSecret(bytes(range(32))), SharedSecret(bytes(range(1, 33)))
PRIVATE = PrivateKey(bytes(range(2, 34)))


def signed(key: SharedSecret | PrivateKey = SECRET, body: bytes = BODY, **changed: str) -> dict[str, str]:
    """The headers of a good webhook, with some of them changed."""
    message_id, timestamp = changed.get("id", "msg_1"), changed.get("timestamp", str(NOW))
    signature = sign_v1(key, "msg_1", NOW, body) if isinstance(key, SharedSecret) else sign_v1a(key, "msg_1", NOW, body)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": changed.get("signature", signature),
    }


def verified(headers: dict[str, str], body: bytes = BODY, *keys: SharedSecret | PublicKey, now: float = NOW) -> Webhook:
    return verify(keys or (SECRET, PRIVATE.public()), headers, body, now=now, tolerance_seconds=300)


def refused(headers: dict[str, str], kind: type[PubSubError] = Unauthorized, body: bytes = BODY) -> None:
    with pytest.raises(kind) as caught:
        verified(headers, body)
    assert type(caught.value) is kind
    assert base64.b64encode(SECRET.secret).decode() not in str(caught.value)


def test_53_each_header_of_a_webhook_is_there_once_and_is_not_empty() -> None:
    good = signed()
    assert verified(good) == Webhook("msg_1", NOW)
    for name in good:
        refused({other: value for other, value in good.items() if other != name}, InvalidRequest)
        refused({**good, name: ""}, InvalidRequest)
        refused({**good, f"svix-{name[8:]}": good[name]}, InvalidRequest)
        # What came twice is joined (protocol/headers.py), or refused before.
        with pytest.raises((InvalidRequest, Unauthorized)):
            verified({**good, name: f"{good[name]}, {good[name]}"})
    refused({name.replace("webhook-", "svix-"): value for name, value in good.items()}, InvalidRequest)
    refused({}, InvalidRequest)


def test_54_a_signature_is_exactly_that() -> None:
    good = signed()["webhook-signature"]
    raw = base64.b64decode(good[3:])
    bad = [
        "garbage",
        "v1",
        "v1,",
        "v1,A",
        "v1,\u00e9",
        "v1,a,b",
        "V1," + good[3:],
        "v2," + good[3:],
        "v1 ," + good[3:],
        good[3:],
        f"v1,{base64.urlsafe_b64encode(bytes([255] * 32)).decode()}",
        good.rstrip("="),
        good + "=",
        good[:-2] + "B=",
        good + "\n",
        " " + good,
        good + " ",
        f"{good}  {good}",
        f"{good}\t{good}",
        f"{good},{good}",
        f"v1,{base64.b64encode(raw + b'x').decode()}",
        f"v1,{base64.b64encode(raw[:-1]).decode()}",
        f"v1,{base64.b64encode(bytes(32)).decode()}",
        f"v1,{raw.hex()}",
        f"v1a,{good[3:]}",
        " ".join([good] * 100_000),
        " ".join(["v1," + "A" * 43 + "="] * 11),
        "v1," + "A" * 1_000_000,
        "," * 4096,
        " " * 4096,
        "v1," * 1000,
    ]
    for signature in bad:
        refused(signed(signature=signature))
    # A version of the future beside a good one is passed over.
    assert verified(signed(signature=f"v9,AAAA {good}")).message_id == "msg_1"


def test_54_there_is_no_way_down_from_v1a() -> None:
    public = PRIVATE.public()
    assert verified(signed(PRIVATE), BODY, public).message_id == "msg_1"
    # The public key is known to everybody: taken for a shared secret, it would sign whatever one likes.
    forged = sign_v1(SharedSecret(public.raw), "msg_1", NOW, BODY)
    with pytest.raises(Unauthorized):
        verified(signed(signature=forged), BODY, public)
    with pytest.raises(Unauthorized):
        verified(signed(SECRET), BODY, public)


def test_55_a_timestamp_is_whole_seconds_of_about_now() -> None:
    bad = ["nan", "inf", "-1", "1e9", "1_795_000_000", "\uff11\uff17" + "9" * 8, f"{NOW}.0", f"{NOW}.5", "9" * 20]
    bad += [f"+{NOW}", f" {NOW}", f"{NOW} ", f"0x{NOW:x}", "0", "", f"-{NOW}", f"{NOW}\n", f"{NOW}000", f"0{NOW}0"]
    for timestamp in bad:
        with pytest.raises((Unauthorized, InvalidRequest)):
            verified(signed(timestamp=timestamp))
    for late in (-300, 0, 300):
        assert verified(signed(), now=NOW + late).timestamp == NOW
    for late in (-301, 301, 86_400, -86_400):
        with pytest.raises(Unauthorized) as caught:
            verified(signed(), now=NOW + late)
        assert caught.value.reason == "outside_tolerance"


def test_56_a_signature_is_of_one_body_one_id_one_time_and_one_secret() -> None:
    refused(signed(OTHER))
    refused(signed(id="msg_2"))
    refused(signed(timestamp=str(NOW + 1)))
    for body in (
        BODY + b"\n",
        BODY[:-1] + b"]",
        json.dumps(json.loads(BODY), separators=(",", ":")).encode(),
        b"",
        BODY.replace(b"2432", b"2433"),
        b"\xef\xbb\xbf" + BODY,
    ):
        refused(signed(), body=body)
    # Where the id could hold a dot, "a.b" + "1" and "a" + "b.1" would be the same bytes.
    for message_id in ("a.b", "msg 1", "msg_1\n", "x" * 65, "\u00e9"):
        refused(signed(id=message_id))


class Subscriber:
    """An entered client, its router, and a broadcaster made of a dict."""

    def __init__(self, client: HttpPubSubClient, broadcaster: FakeBroadcaster, wire: Wire) -> None:
        self.client = client
        self.broadcaster = broadcaster
        self.wire = wire


class OpenSubscriber:
    """Opens subscribers; the broadcaster is the same for all of them."""

    def __init__(self, stack: AsyncExitStack, broadcaster: FakeBroadcaster) -> None:
        self._stack = stack
        self.broadcaster = broadcaster

    async def __call__(self, **settings: Any) -> Subscriber:
        client = await self._stack.enter_async_context(HttpPubSubClient(config(**settings)))
        wire = Wire(client, self.broadcaster)
        await self._stack.enter_async_context(wire.http)
        return Subscriber(client, self.broadcaster, wire)


@pytest.fixture
async def open_subscriber() -> AsyncIterator[OpenSubscriber]:
    fake = FakeBroadcaster()
    with respx.mock(assert_all_called=False) as router:
        router.route(url__startswith=URL).mock(side_effect=fake)
        fake.network = router
        async with AsyncExitStack() as stack:
            yield OpenSubscriber(stack, fake)


EXACT = Pattern.exact(b"foo/bar")


async def test_53_54_55_56_the_router_answers_what_its_verifier_says(open_subscriber: OpenSubscriber) -> None:
    """The same over the route: what is wrong with a webhook is 400 or 401, and nothing of it is given to anybody."""
    one = await open_subscriber()
    async with one.client.subscribe_exact(b"foo/bar", secret="generate") as subscription:

        def good(**options: Any) -> dict[str, str]:
            return one.broadcaster.webhook(one.broadcaster.id_of(EXACT), b"foo/bar", BODY, **options)

        headers = good()
        signature, timestamp = headers["webhook-signature"], headers["webhook-timestamp"]
        without = {name: value for name, value in headers.items() if name != "webhook-signature"}
        shared = one.broadcaster.delivery(one.broadcaster.id_of(EXACT), b"foo/bar", BODY)
        for bad in (
            without,
            shared,  # signed with what all subscribers share
            {**headers, "webhook-signature": ""},
            {**headers, "webhook-signature": "garbage"},
            {**headers, "webhook-signature": signature.replace("v1,", "v2,")},
            {**headers, "webhook-signature": signature.rstrip("=")},
            {**headers, "webhook-signature": f"{signature}  {signature}"},
            {**headers, "webhook-signature": sign_v1(OTHER, headers["webhook-id"], int(timestamp), BODY)},
            {**headers, "webhook-id": "msg_other"},
            {**headers, "webhook-id": "a.b"},
            {**headers, "webhook-timestamp": str(int(timestamp) - 1)},
            {**headers, "webhook-timestamp": f"{timestamp}.0"},
            {**headers, "webhook-timestamp": "1e9"},
            {**headers, "svix-id": headers["webhook-id"]},
        ):
            answer = await one.wire.post(bad, BODY)
            assert answer.status_code in (400, 401), (bad, answer.text)
            assert answer.headers["content-type"] == "application/problem+json"
        for body in (BODY + b"\n", BODY[:-1], b"", BODY.replace(b" ", b"")):
            assert (await one.wire.post(good(), body)).status_code in (400, 401)
        async for message in subscription.with_timeout(0.01):
            assert message is None
            break
        assert (await one.wire.post(headers, BODY)).status_code == 200
        assert (await subscription.messages().__anext__()).content == BODY


async def test_58_the_same_delivery_again_runs_nothing_twice(open_subscriber: OpenSubscriber) -> None:
    one = await open_subscriber()
    async with one.client.subscribe_exact(b"foo/bar") as subscription:
        headers = one.broadcaster.delivery(one.broadcaster.id_of(EXACT), b"foo/bar", b"hello")
        answers = await asyncio.gather(*(one.wire.post(headers, b"hello") for _ in range(50)))
        assert sorted(answer.status_code for answer in answers) == [200] + [401] * 49, "the very same request"
        retries = await asyncio.gather(*(one.wire.deliver(EXACT, attempt=number) for number in range(2, 52)))
        assert {answer.status_code for answer in retries} == {200}, "signed anew: a retry of the same message"
        assert (await subscription.messages().__anext__()).content == b"hello"
        async for message in subscription.with_timeout(0.01):
            assert message is None
            break


async def test_58_what_was_received_before_a_restart_is_not_received_again(
    open_subscriber: OpenSubscriber, tmp_path: Path
) -> None:
    broadcaster = open_subscriber.broadcaster
    received = []
    for attempt in (1, 2):  # in two lives
        async with (
            HttpPubSubClient(config(remember_file=str(tmp_path / "seen"))) as client,
            client.subscribe_exact(b"foo/bar", durable="w", ack="accepted") as subscription,
            Wire(client, broadcaster).http as http,
        ):
            headers = broadcaster.delivery(broadcaster.id_of(EXACT), b"foo/bar", b"hello", sequence=1, attempt=attempt)
            answer = await http.post("/v1/receive?durable=w", headers=headers, content=b"hello")
            assert answer.status_code == 200
            async for message in subscription.with_timeout(0.01):
                if message is None:
                    break
                received.append(message.message_id)
    assert received == ["msg_1"]


async def test_38_our_client_is_not_subscribed_by_a_handshake_that_it_never_asked_for(
    open_subscriber: OpenSubscriber,
) -> None:
    one = await open_subscriber()
    origin = handshake_headers("broadcaster.test")
    async with one.client.subscribe_exact(b"foo/bar"), one.client.subscribe_exact(b"foo/bar", durable="worker"):
        for query in ("", "?durable=worker"):
            answer = await one.wire.http.options(f"/v1/receive{query}", headers=origin)
            assert answer.status_code == 405
            assert "webhook-allowed-origin" not in answer.headers


async def test_59_a_delivery_for_one_subscription_is_none_for_another(open_subscriber: OpenSubscriber) -> None:
    one = await open_subscriber()
    async with one.client.subscribe_exact(b"foo/bar") as subscription:
        headers = one.broadcaster.delivery("sub_of_somebody_else", b"foo/bar", b"hello")
        assert (await one.wire.post(headers, b"hello")).status_code == 410
        stolen = {**headers, "pubsub-subscription": one.broadcaster.id_of(EXACT)}
        assert (await one.wire.post(stolen, b"hello")).status_code == 401
        async for message in subscription.with_timeout(0.01):
            assert message is None
            break


async def test_59_the_secret_of_one_subscription_is_not_that_of_another(open_subscriber: OpenSubscriber) -> None:
    one = await open_subscriber()
    patterns = Pattern.exact(b"a"), Pattern.exact(b"b")
    async with one.client.subscribe(exact=[b"a", b"b"], secret="generate") as subscription:
        ids = [one.broadcaster.id_of(pattern) for pattern in patterns]
        secrets = [one.broadcaster.secrets[each] for each in ids]
        assert len({secret for several in secrets for secret in several}) == 2
        headers = one.broadcaster.webhook(ids[0], b"a", BODY)
        assert (await one.wire.post({**headers, "pubsub-subscription": ids[1]}, BODY)).status_code == 401
        async for message in subscription.with_timeout(0.01):
            assert message is None
            break
        assert (await one.wire.post(headers, BODY)).status_code == 200


async def test_61_nothing_of_a_body_is_read_before_the_proof_and_none_is_read_for_ever(
    open_subscriber: OpenSubscriber,
) -> None:
    one = await open_subscriber(max_body_bytes=1000, body_idle_timeout_seconds=0.02)
    async with one.client.subscribe_exact(b"foo/bar"):
        number = 0

        def good(**more: str) -> dict[str, str]:
            nonlocal number
            number += 1
            delivery = one.broadcaster.delivery(
                one.broadcaster.id_of(EXACT), b"foo/bar", b"hello", message_id=f"msg_{number}"
            )
            return {**delivery, **more}

        for headers, status in [
            (good(signature="junk"), 401),
            ({"content-length": "5"}, 401),
            (good(**{"content-encoding": "gzip"}), 415),
            (good(**{"content-encoding": "br, gzip"}), 415),
            (good(**{"content-length": "1001"}), 413),
            (good(**{"content-length": "-1"}), 400),
            (good(**{"content-length": "9" * 30}), 400),
        ]:
            exchange = Exchange(one.client, headers, part(b"hello"))
            assert (await exchange.run(), exchange.read) == (status, 0), headers
        endless = Exchange(one.client, good(), *[part(b"x" * 300, more=True)] * 1000)
        assert (await endless.run(), endless.read) == (413, 4)
        assert await Exchange(one.client, good(), part(b"hel", more=True)).run() == 408
        dripping = Exchange(one.client, good())

        async def drip() -> dict[str, Any]:
            await asyncio.sleep(0.005)
            return part(b"x", more=True)

        dripping._receive = drip  # type: ignore[method-assign]
        assert await dripping.run() == 408
        assert await Exchange(one.client, good(), part(b"hello")).run() == 200


async def test_62_nothing_that_a_message_names_is_fetched(open_subscriber: OpenSubscriber) -> None:
    one = await open_subscriber()
    async with one.client.subscribe_exact(b"foo/bar") as subscription:
        asked: list[httpx.Request] = []

        def never(request: httpx.Request) -> httpx.Response:
            asked.append(request)
            return httpx.Response(200)

        one.broadcaster.network.route(host="elsewhere.example").mock(side_effect=never)
        body = json.dumps(
            {
                "Type": "SubscriptionConfirmation",
                "SubscribeURL": "http://elsewhere.example/confirm",
                "SigningCertURL": "http://elsewhere.example/cert.pem",
                "dataref": "http://elsewhere.example/data",
                "specversion": "1.0",
                "dataschema": "http://elsewhere.example/schema",
            }
        ).encode()
        for number, content_type in enumerate(("application/json", "application/cloudevents+json", "text/html")):
            answer = await one.wire.deliver(EXACT, body=body, content_type=content_type, message_id=f"msg_{number}")
            assert answer.status_code == 200
            message = await subscription.messages().__anext__()
            assert message.content == body
            message.json()
        assert asked == []


async def test_63_who_stands_still_is_sent_no_more_than_fits(open_subscriber: OpenSubscriber) -> None:
    one = await open_subscriber(buffer_messages=3, buffer_bytes=1000)
    async with one.client.subscribe_exact(b"foo/bar") as subscription:
        statuses = [(await one.wire.deliver(EXACT, message_id=f"msg_{number}")).status_code for number in range(10)]
        assert statuses == [200] * 3 + [503] * 7
        full = await one.wire.deliver(EXACT, message_id="msg_10")
        assert (full.status_code, full.headers["retry-after"]) == (503, "1")
        assert (await subscription.messages().__anext__()).message_id == "msg_0"
        assert (await one.wire.deliver(EXACT, message_id="msg_3", attempt=2)).status_code == 200
        ids = [(await subscription.messages().__anext__()).message_id for _ in range(3)]
        assert ids == ["msg_1", "msg_2", "msg_3"], "what was answered 200 is there, what was not is not"
