"""incoming.py: deliveries as CloudEvents give the same messages as raw ones, whatever proves them."""

from __future__ import annotations

import hashlib
import json
import time
from typing import Any

import pytest

from httppubsubclient.client import HttpPubSubClient, Message
from httppubsubclient.protocol.cloudevents import STRUCTURED_CONTENT_TYPE, binary_headers, event_of, structured_body
from httppubsubclient.protocol.credentials import Credentials, sign_delivery
from httppubsubclient.protocol.messages import Notification
from httppubsubclient.protocol.patterns import Pattern
from httppubsubclient.protocol.signatures import content_digest
from tests.client.conftest import RECEIVE_AUTH, FakeBroadcaster, Wire, config, webhook_signature
from tests.client.test_receiver import Exchange, nothing_in, part

EVERYTHING = Pattern.glob("**")
FORMATS = ["raw", "cloudevents-binary", "cloudevents-structured"]
PUBLISHED_AT = 1_795_226_400_000_000


def delivered(
    broadcaster: FakeBroadcaster,
    form: str,
    *,
    topic: bytes = b"foo/bar",
    data: bytes = b"hello",
    content_type: str = "text/plain",
    message_id: str = "msg_1",
    sequence: int | None = None,
    previous: str | None = None,
    changes: dict[str, str] | None = None,
    pattern: Pattern = EVERYTHING,
) -> tuple[dict[str, str], bytes]:
    """A delivery in a format, signed with whatever its subscription has. `changes` are made before it is signed."""
    subscription_id = broadcaster.id_of(pattern)
    notification = Notification(message_id, topic, content_type, hashlib.sha256(data).digest(), len(data))
    event = event_of(
        notification,
        subscription_id,
        source="http://broadcaster.test:3003",
        published_at=PUBLISHED_AT,
        sequence=sequence,
        previous_message_id=previous,
    )
    headers = broadcaster.delivery(
        subscription_id,
        topic,
        data,
        message_id=message_id,
        content_type=content_type,
        credentials=Credentials.none(),
        sequence=sequence,
        previous_message_id=previous,
    )
    body = data
    if form == "cloudevents-binary":
        headers |= binary_headers(event)
    elif form == "cloudevents-structured":
        body = structured_body(event, data)
        headers["content-type"] = STRUCTURED_CONTENT_TYPE
    headers |= changes or {}
    headers["content-digest"] = content_digest(hashlib.sha256(body).digest())
    secrets = broadcaster.secrets.get(subscription_id)
    if secrets is None:
        nonce = f"{message_id:-<22}"
        return headers | sign_delivery(RECEIVE_AUTH, headers=headers, now=int(time.time()), nonce=nonce), body
    timestamp = int(headers["webhook-timestamp"])
    headers["webhook-signature"] = " ".join(
        webhook_signature(secret, message_id, timestamp, body) for secret in secrets
    )
    return headers, body


@pytest.mark.parametrize("secret", [None, "generate", "generate-v1a"])
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    ("topic", "data", "content_type"),
    [
        (b"foo/bar", b"hello", "text/plain"),
        (b"foo/bar", b'{"a":  [1, 2.50], "a": "\\u00e9"}', "application/json"),
        ("töpic/ü 100%".encode(), "grün\n".encode(), "text/plain; charset=utf-8"),
        (b"foo", b"\xff\xfe\x00binary", "application/octet-stream"),
        (b"foo", b"", "application/octet-stream"),
        (b"foo", b"not json", "application/json"),
        (b"foo", bytes(200_000), "image/png"),
    ],
)
async def test_the_message_is_the_same_in_each_format(
    client: HttpPubSubClient,
    broadcaster: FakeBroadcaster,
    wire: Wire,
    form: Any,
    secret: str | None,
    topic: bytes,
    data: bytes,
    content_type: str,
) -> None:
    async with client.subscribe_glob("**", format=form, secret=secret) as subscription:
        headers, body = delivered(broadcaster, form, topic=topic, data=data, content_type=content_type)
        answer = await wire.post(headers, body)
        assert answer.status_code == 200, answer.text
        message = await anext(subscription)
        assert (message.topic, await message.read(), message.content_type) == (topic, data, content_type)
        assert (message.message_id, message.hops) == ("msg_1", 1)
        if form == "raw":
            assert message.event is None
        else:
            assert message.event is not None
            assert (message.event.id, message.event.time) == ("msg_1", PUBLISHED_AT)
            assert message.event.extensions["pubsubsubscription"] == broadcaster.id_of(EVERYTHING)
        again, body = delivered(broadcaster, form, topic=topic, data=data, content_type=content_type)
        assert (await wire.post(again, body)).status_code in (200, 401)
        assert await nothing_in(subscription)


@pytest.mark.parametrize("form", FORMATS[1:])
async def test_a_topic_that_is_no_text_comes_through(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster, wire: Wire, form: Any
) -> None:
    topic, pattern = b"\xff\x00foo", Pattern.exact(b"\xff\x00foo")
    async with client.subscribe_exact(topic, format=form, secret="generate") as subscription:
        headers, body = delivered(broadcaster, form, topic=topic, pattern=pattern)
        assert (await wire.post(headers, body)).status_code == 200
        assert (await anext(subscription)).topic == topic


@pytest.mark.parametrize("form", FORMATS[1:])
async def test_a_durable_delivery_has_its_numbers_in_both_places(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster, wire: Wire, form: Any
) -> None:
    query = "?durable=worker-1"
    async with client.subscribe_glob("**", format=form, secret="generate", durable="worker-1") as subscription:
        for number, previous in ((1, None), (2, "msg_1")):
            message_id = f"msg_{number}"
            headers, body = delivered(broadcaster, form, message_id=message_id, sequence=number, previous=previous)
            assert (await wire.post(headers, body, query)).status_code == 200
            assert (await anext(subscription)).sequence == number
        headers, body = delivered(broadcaster, form, message_id="msg_3", sequence=3, previous="msg_2")
        for name, value in (("pubsub-sequence", "4"), ("pubsub-previous", "msg_1")):
            assert (await wire.post(headers | {name: value}, body, query)).status_code == 400
        assert not subscription.missing
        assert (await wire.post(headers, body, query)).status_code == 200


@pytest.mark.parametrize("secret", [None, "generate"])
@pytest.mark.parametrize(
    ("form", "changes"),
    [
        ("cloudevents-binary", {"ce-subject": "foo/baz"}),
        ("cloudevents-binary", {"ce-id": "msg_2"}),
        ("cloudevents-binary", {"ce-pubsubsubscription": "sub_9"}),
        ("cloudevents-binary", {"ce-specversion": "2.0"}),
        ("cloudevents-binary", {"ce-source": ""}),
        ("cloudevents-binary", {"ce-sequence": "000000000000000001"}),
        ("cloudevents-binary", {"ce-sequence": "x"}),
        ("cloudevents-binary", {"content-type": STRUCTURED_CONTENT_TYPE}),
        ("cloudevents-structured", {"pubsub-topic": "foo/baz"}),
        ("cloudevents-structured", {"content-type": "text/plain"}),
        ("cloudevents-structured", {"content-type": "application/json"}),
        ("cloudevents-structured", {"pubsub-sequence": "1"}),
    ],
)
async def test_an_event_that_says_something_else_than_its_headers_is_refused(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster, form: Any, wire: Wire, secret: Any, changes: dict[str, str]
) -> None:
    async with client.subscribe_glob("**", format=form, secret=secret) as subscription:
        headers, body = delivered(broadcaster, form, changes=changes)
        assert (await wire.post(headers, body)).status_code == 400
        assert await nothing_in(subscription)


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[]", b"null", b"{", b'{"specversion":"1.0"}', b"[" * 100_000, b"\xff", b'{"a":' * 50_000]
)
async def test_a_body_that_is_no_event_is_refused(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster, wire: Wire, body: bytes
) -> None:
    async with client.subscribe_glob("**", format="cloudevents-structured", secret="generate") as subscription:
        headers = broadcaster.webhook(
            broadcaster.id_of(EVERYTHING), b"foo/bar", body, content_type=STRUCTURED_CONTENT_TYPE
        )
        assert (await wire.post(headers, body)).status_code == 400
        assert await nothing_in(subscription)


async def test_an_event_that_was_published_comes_raw_as_it_was(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster, wire: Wire
) -> None:
    body = b'{"specversion":"1.0","id":"1","source":"/","type":"t","data":1}'
    async with client.subscribe_glob("**") as subscription:
        headers, _ = delivered(broadcaster, "raw", data=body, content_type="application/cloudevents+json")
        assert (await wire.post(headers, body)).status_code == 200
        message = await anext(subscription)
        assert (message.content, message.content_type) == (body, "application/cloudevents+json")
        assert message.event is None


async def test_an_event_that_comes_inside_of_one_is_the_data(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster, wire: Wire
) -> None:
    inner = b'{"specversion":"1.0","id":"1","source":"/","type":"t","data":1}'
    async with client.subscribe_glob("**", format="cloudevents-structured") as subscription:
        headers, body = delivered(
            broadcaster, "cloudevents-structured", data=inner, content_type="application/cloudevents+json"
        )
        assert (await wire.post(headers, body)).status_code == 200
        message = await anext(subscription)
        assert (message.content, message.content_type) == (inner, "application/cloudevents+json")
        assert json.loads(body)["data"] == json.loads(inner)


@pytest.mark.parametrize("secret", [None, "generate"])
@pytest.mark.parametrize(
    ("form", "data", "content_type", "status"),
    [
        ("cloudevents-structured", bytes(1000), "image/png", 200),
        ("cloudevents-structured", bytes(1000), "text/plain", 200),
        ("cloudevents-structured", bytes(1001), "image/png", 413),
        ("cloudevents-structured", bytes(1001), "text/plain", 413),
        ("cloudevents-structured", bytes(200_000), "image/png", 413),
        ("cloudevents-binary", bytes(1000), "image/png", 200),
        ("raw", bytes(1000), "image/png", 200),
    ],
)
async def test_the_limit_is_that_of_the_message(
    broadcaster: FakeBroadcaster, secret: Any, form: Any, data: bytes, content_type: str, status: int
) -> None:
    client = HttpPubSubClient(config(max_webhook_bytes=1000))
    async with client, client.subscribe_glob("**", format=form, secret=secret) as subscription:
        headers, body = delivered(broadcaster, form, data=data, content_type=content_type)
        assert (await Wire(client, broadcaster).post(headers, body)).status_code == status
        assert await nothing_in(subscription) is (status != 200)


@pytest.mark.parametrize("form", ["raw", "cloudevents-binary"])
async def test_the_limit_holds_only_where_the_whole_is_needed(broadcaster: FakeBroadcaster, form: Any) -> None:
    client = HttpPubSubClient(config(max_webhook_bytes=1000))
    async with client, client.subscribe_glob("**", format=form) as plain:
        headers, body = delivered(broadcaster, form, data=bytes(5000), content_type="image/png")
        assert (await Wire(client, broadcaster).post(headers, body)).status_code == 200
        assert (await anext(plain)).size == 5000
    client = HttpPubSubClient(config(max_webhook_bytes=1000))
    async with client, client.subscribe_glob("**", format=form, secret="generate") as own:
        headers, body = delivered(broadcaster, form, data=bytes(1001), content_type="image/png", message_id="msg_2")
        assert (await Wire(client, broadcaster).post(headers, body)).status_code == 413
        assert await nothing_in(own)


async def test_a_large_event_lies_in_a_file_before_and_after(broadcaster: FakeBroadcaster) -> None:
    data = bytes(range(256)) * 4096
    async with HttpPubSubClient(config(spool_bytes=1000)) as client:
        form: Any = "cloudevents-structured"
        async with client.subscribe_glob("**", format=form, secret="generate") as subscription:
            headers, body = delivered(broadcaster, form, data=data, content_type="image/png")
            assert (await Wire(client, broadcaster).post(headers, body)).status_code == 200
            message: Message = await anext(subscription)
            assert message._body.data is None
            assert await message.read() == data


async def test_an_attribute_that_comes_twice_is_refused(client: HttpPubSubClient, broadcaster: FakeBroadcaster) -> None:
    async with client.subscribe_glob("**", format="cloudevents-binary", secret="generate") as subscription:
        headers, body = delivered(broadcaster, "cloudevents-binary")
        exchange = Exchange(client, headers, part(body))
        exchange._headers.append((b"ce-type", b"another"))
        assert (await exchange.run(), exchange.read) == (400, 0)
        assert await nothing_in(subscription)
