"""delivery/webhooks.py: what arrives at subscriptions with secrets of their own, and at those that want CloudEvents."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest
import standardwebhooks
import svix.webhooks
from hypothesis import given, settings
from hypothesis import strategies as st

from httppubsubclient.protocol import cloudevents
from httppubsubclient.protocol.cloudevents import event_topic, read_event
from httppubsubclient.protocol.credentials import Credentials, Secrets
from httppubsubclient.protocol.errors import ConfigurationError
from httppubsubclient.protocol.messages import SubscribeRequest, parse_delivery
from httppubsubclient.protocol.options import DeliveryFormat
from httppubsubclient.protocol.patterns import Pattern
from httppubsubclient.protocol.standard_webhooks import PrivateKey, PublicKey, SharedSecret, parse_key
from httppubsubserver.config import ServerConfig
from httppubsubserver.delivery import webhook_bodies
from httppubsubserver.delivery.webhooks import event_identity
from tests.server.conftest import OpenBroadcaster, Post, ScriptedOutbound
from tests.server.conftest import subscribe as subscribe_plain
from tests.server.webhooks import (
    BROADCASTER,
    FORMATS,
    HMAC,
    KEY,
    OTHER,
    PRIVATE,
    SIZES,
    TOKEN,
    URL,
    OpenWithVault,
    attempt,
    bench,
    body_of,
    check_digest,
    event_of,
    of_shared,
    subscribe,
    verified,
    with_vault,
)


@pytest.fixture
def open_with_vault(open_broadcaster: OpenBroadcaster, tmp_path: Path) -> OpenWithVault:
    return with_vault(open_broadcaster, tmp_path)


# -- signed with a secret of its own ----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("shared", [HMAC, TOKEN, Credentials.none()], ids=lambda each: each.type)
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("durable", [False, True], ids=["best effort", "durable"])
async def test_other_implementations_take_what_a_subscription_with_a_secret_gets(
    open_with_vault: OpenWithVault,
    outbound: ScriptedOutbound,
    form: DeliveryFormat,
    shared: Credentials,
    size: int,
    durable: bool,
) -> None:
    broadcaster = await open_with_vault(shared)
    await subscribe(broadcaster, KEY.text(), form, durable=durable)
    data = json.dumps({"text": "x" * size}).encode()
    result = await broadcaster.notify(b"t", await body_of(data), content_type="application/json")
    assert (result.matched, result.notified) == (1, 1)
    [post] = outbound.posts
    taken = standardwebhooks.Webhook(KEY.text()).verify(post.body, post.headers)
    assert (taken["data"] if form == "cloudevents-structured" else taken) == json.loads(data)
    svix.webhooks.Webhook(KEY.text()).verify(post.body, post.headers)
    verified(post, KEY)
    check_digest(post)
    assert not {"authorization", "signature", "signature-input"} & set(post.headers)
    delivery = parse_delivery(post.headers)
    assert (delivery.topic, delivery.attempt, delivery.message_id) == (b"t", 1, result.message_id)
    assert (delivery.sequence, delivery.hops) == (1 if durable else None, 1)
    if form == "raw":
        assert post.body == data
    else:
        event, payload = event_of(post)
        assert (event.id, event.source, event_topic(event), payload) == (result.message_id, BROADCASTER, b"t", data)
        assert event.extensions["pubsubsubscription"] == post.headers["pubsub-subscription"]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
async def test_v1a_holds_with_the_public_key_that_the_subscription_shows(
    open_with_vault: OpenWithVault, outbound: ScriptedOutbound, form: DeliveryFormat, size: int
) -> None:
    broadcaster = await open_with_vault()
    shown = (await subscribe(broadcaster, "generate-v1a", form)).to_json()
    assert shown["signature"] == "v1a"
    assert (await broadcaster.notify(b"t", await body_of(bytes(size)))).notified == 1
    [post] = outbound.posts
    public = parse_key(shown["public_key"])
    assert isinstance(public, PublicKey)
    verified(post, public)
    check_digest(post)


async def test_everybody_else_still_gets_the_shared_proof(
    open_with_vault: OpenWithVault, outbound: ScriptedOutbound
) -> None:
    broadcaster = await open_with_vault()
    await subscribe(broadcaster, KEY.text())
    await subscribe_plain(broadcaster, OTHER, b"t")
    assert (await broadcaster.notify(b"t", b"data")).notified == 2
    for post in outbound.posts:
        if post.url == OTHER:
            of_shared(post)
        else:
            verified(post, KEY)


async def test_no_two_generated_secrets_are_the_same_and_none_is_good_for_another_endpoint(
    open_with_vault: OpenWithVault, outbound: ScriptedOutbound
) -> None:
    broadcaster = await open_with_vault()
    keys: dict[str, SharedSecret] = {}
    for number in range(5):
        change = broadcaster.subscription_secrets.change("generate")
        request = SubscribeRequest(f"http://127.0.0.1:{4000 + number}/", Pattern.exact(b"t"), 60)
        await broadcaster.subscribe(request, secrets=change)
        assert change is not None
        assert change.generated is not None
        key = parse_key(change.generated)
        assert isinstance(key, SharedSecret)
        keys[request.url] = key
    assert (await broadcaster.notify(b"t", b'"data"')).notified == 5
    for post in outbound.posts:
        taken = 0
        for key in keys.values():
            try:
                standardwebhooks.Webhook(key.text()).verify(post.body, post.headers)
            except standardwebhooks.WebhookVerificationError:
                continue
            taken += 1
            assert key == keys[post.url]
        assert taken == 1


async def test_during_a_rotation_the_old_and_the_new_secret_sign(
    open_with_vault: OpenWithVault, outbound: ScriptedOutbound
) -> None:
    broadcaster = await open_with_vault()
    await subscribe(broadcaster, KEY.text())
    await subscribe(broadcaster, PRIVATE.text())
    await broadcaster.notify(b"t", b"data")
    [post] = outbound.posts
    assert [each.partition(",")[0] for each in post.headers["webhook-signature"].split(" ")] == ["v1a", "v1"]
    verified(post, KEY)
    verified(post, PRIVATE.public())
    await subscribe(broadcaster, None)  # a renewal says nothing of secrets
    await broadcaster.notify(b"t", b"data")
    assert outbound.posts[1].headers["webhook-signature"].count(",") == 2


async def test_who_publishes_chooses_neither_the_id_nor_the_moment_nor_where_the_body_begins(
    open_with_vault: OpenWithVault, outbound: ScriptedOutbound
) -> None:
    """A signature is over `id.timestamp.body`: with an id of theirs, one message could be signed as another one."""
    broadcaster = await open_with_vault()
    await subscribe(broadcaster, KEY.text())
    victim = b'{"amount": 1}'
    forged = b"msg_x.1700000000." + victim
    await broadcaster.notify(b"t", forged, content_type="msg_x.1700000000", idempotency_key="msg_x.1700000000")
    [post] = outbound.posts
    assert post.body == forged
    message_id = post.headers["webhook-id"]
    assert message_id.startswith("msg_")
    assert "." not in message_id
    assert abs(int(post.headers["webhook-timestamp"]) - time.time()) < 5
    for forged_id, body in (("msg_x", victim), (f"{message_id}.1", victim), (message_id, victim)):
        headers = {**post.headers, "webhook-id": forged_id}
        with pytest.raises(standardwebhooks.WebhookVerificationError):
            standardwebhooks.Webhook(KEY.text()).verify(body, headers)


async def test_a_second_attempt_is_signed_at_its_own_moment_and_is_the_same_event(
    open_with_vault: OpenWithVault, outbound: ScriptedOutbound
) -> None:
    broadcaster = await open_with_vault()
    await subscribe(broadcaster, KEY.text(), "cloudevents-structured")
    outbound.replies(URL, 503, 200)
    assert (await broadcaster.notify(b"t", b"data")).notified == 1
    first, second = outbound.posts
    assert [post.headers["pubsub-attempt"] for post in (first, second)] == ["1", "2"]
    assert first.body == second.body
    for post in (first, second):
        verified(post, KEY)


# -- formats ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["cloudevents-binary", "cloudevents-structured"])
@pytest.mark.parametrize("durable", [False, True], ids=["best effort", "durable"])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
async def test_an_event_without_a_secret_has_the_shared_proof_over_the_body_as_it_is_sent(
    open_with_vault: OpenWithVault, outbound: ScriptedOutbound, form: DeliveryFormat, durable: bool, size: int
) -> None:
    broadcaster = await open_with_vault()
    await subscribe(broadcaster, None, form, durable=durable)
    await broadcaster.notify(b"t", b"first")
    body = await body_of(b"\xff" * size)
    result = await broadcaster.notify(b"t", body, content_type="image/png", traceparent=TRACE)
    assert result.notified == 1
    post = outbound.posts[1]
    of_shared(post)
    check_digest(post)
    event, data = event_of(post)
    assert (data, event.data_content_type, event.subject) == (b"\xff" * size, "image/png", "t")
    assert event.extensions["traceparent"] == TRACE
    expected = outbound.posts[0].headers["webhook-id"] if durable else None
    assert event.extensions.get("pubsubprevious") == expected
    assert event.extensions.get("sequence") == ("000000000000000002" if durable else None)


TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("origin", [None, "events.example"])
async def test_each_event_says_whose_it_is_as_webhooks_of_cloudevents_want_it(
    open_with_vault: OpenWithVault, outbound: ScriptedOutbound, form: DeliveryFormat, origin: str | None
) -> None:
    broadcaster = await open_with_vault(webhook_origin=origin)
    await subscribe(broadcaster, KEY.text(), form)
    await broadcaster.notify(b"t", b"data")
    expected = None if form == "raw" else origin or "broadcaster.example"
    assert outbound.posts[0].headers.get("webhook-request-origin") == expected


@pytest.mark.parametrize("origin", ["", "Broadcaster.example", "a\r\nb: c", "ü.example", "https://a.example", "a b"])
def test_an_origin_that_is_no_host_name_is_refused_at_the_start(origin: str) -> None:
    with pytest.raises(ConfigurationError, match="webhook_origin should be a host name"):
        event_identity(ServerConfig(webhook_origin=origin), Secrets(Credentials.none(), HMAC, (BROADCASTER,)))


@pytest.mark.parametrize(
    ("urls", "expected"),
    [
        ((), ("httppubsub", None)),
        (("https://A.example/x", "https://b.example"), ("https://A.example/x", "a.example")),
        (("http://127.0.0.1:3003",), ("http://127.0.0.1:3003", "127.0.0.1")),
        (("http://[::1]:3003",), ("http://[::1]:3003", None)),
    ],
)
def test_events_come_from_the_first_broadcaster_of_the_secrets_file(
    urls: tuple[str, ...], expected: tuple[str, str | None]
) -> None:
    assert event_identity(ServerConfig(), Secrets(Credentials.none(), HMAC, urls)) == expected


async def test_text_that_grows_in_json_is_counted_as_what_it_has_become(outbound: ScriptedOutbound) -> None:
    release = asyncio.Event()
    outbound.hangs(URL, release)
    made = bench(outbound)
    data = bytes(16 * 1024)
    running = asyncio.create_task(
        attempt(made, data, form="cloudevents-structured", content_type="text/plain; charset=utf-8")
    )
    await outbound.until(lambda: outbound.in_flight == 1)
    assert made.room.taken == len(outbound.posts[0].body) > 6 * len(data)
    release.set()
    await running
    assert made.room.taken == 0
    assert event_of(outbound.posts[0]).data == data


@given(
    topic=st.binary(min_size=1, max_size=50),
    data=st.binary(max_size=200),
    content_type=st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=60),
    form=st.sampled_from(["cloudevents-binary", "cloudevents-structured"]),
    key=st.sampled_from([None, KEY, PRIVATE]),
)
@settings(max_examples=150, deadline=None)
def test_any_topic_and_any_bytes_arrive_in_any_format(
    topic: bytes, data: bytes, content_type: str, form: DeliveryFormat, key: SharedSecret | PrivateKey | None
) -> None:
    """Whatever a publisher writes as Content-Type: where an event cannot have it, it has the default."""

    async def deliver() -> Post:
        outbound = ScriptedOutbound()
        made = bench(outbound)
        await attempt(made, data, form=form, secret=key, topic=topic, content_type=content_type)
        [post] = outbound.posts
        return post

    post = asyncio.run(deliver())
    event, received = read_event(post.headers, post.body)
    assert (event_topic(event), received) == (topic, data)
    if key is not None:
        verified(post, key if isinstance(key, SharedSecret) else key.public())


async def test_the_data_of_an_event_are_prepared_once_for_all_who_get_it(
    open_with_vault: OpenWithVault, outbound: ScriptedOutbound, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared: list[int] = []
    real = cloudevents.structured_data

    def counted(content_type: str | None, data: bytes) -> bytes:
        prepared.append(len(data))
        return real(content_type, data)

    monkeypatch.setattr(webhook_bodies, "structured_data", counted)
    broadcaster = await open_with_vault()
    for number in range(30):
        url = f"http://127.0.0.1:{4000 + number}/"
        await subscribe(broadcaster, "generate", "cloudevents-structured", url=url, durable=number % 2 == 0)
    for size in (10, 100_000):
        assert (await broadcaster.notify(b"t", bytes(size))).notified == 30
    assert prepared == [10, 100_000]
    bodies = {post.headers["pubsub-subscription"]: post.body for post in outbound.posts}
    assert all(json.loads(body)["pubsubsubscription"] == owner for owner, body in bodies.items())


async def test_a_format_that_is_changed_counts_from_the_next_notify_on(
    open_with_vault: OpenWithVault, outbound: ScriptedOutbound
) -> None:
    broadcaster = await open_with_vault()
    for form in ("raw", "cloudevents-binary", "cloudevents-structured", "raw"):
        await subscribe(broadcaster, None, form)
        await broadcaster.notify(b"t", b"data")
    types = [post.headers["content-type"].partition(";")[0] for post in outbound.posts]
    assert types == [*["application/octet-stream"] * 2, "application/cloudevents+json", "application/octet-stream"]
    assert ["ce-id" in post.headers for post in outbound.posts] == [False, True, False, False]


# -- what cannot be made ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("secret", "form"), [("generate", "raw"), *((None, form) for form in FORMATS[1:])])
async def test_a_message_above_the_limit_fails_at_once_and_for_good(
    open_with_vault: OpenWithVault, outbound: ScriptedOutbound, secret: str | None, form: DeliveryFormat,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    broadcaster = await open_with_vault(max_webhook_bytes=1000)
    await subscribe(broadcaster, secret, form)
    await subscribe(broadcaster, secret, form, url=OTHER, durable=True)
    await subscribe_plain(broadcaster, "http://127.0.0.1:4000/", b"t")
    result = await broadcaster.notify(b"t", bytes(1001))
    assert (result.matched, result.notified, result.pending, result.failed) == (3, 1, 0, 2)
    assert [post.url for post in outbound.posts] == ["http://127.0.0.1:4000/"]
    assert caplog.text.count("too_large") == 2
    assert (await broadcaster.notify(b"t", bytes(1000))).notified == 3


async def test_without_the_storage_key_nothing_is_sent_and_with_it_everything_is_again(
    open_with_vault: OpenWithVault, open_broadcaster: OpenBroadcaster, outbound: ScriptedOutbound,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    def sent_to(url: str) -> set[str]:
        return {post.headers["webhook-id"] for post in outbound.posts if post.url == url}

    first = await open_with_vault()
    best_effort = await subscribe(first, KEY.text())
    durable = await subscribe(first, KEY.text(), url=OTHER, durable=True)
    for lost in (await open_broadcaster(secrets=Secrets(Credentials.none(), HMAC, ())), await open_with_vault(key=100)):
        for _ in range(3):
            result = await lost.notify(b"t", b"data", wait_seconds=10)
            assert (result.matched, result.notified) == (2, 0)
        await lost.__aexit__(None, None, None)
        await lost.__aenter__()  # the fixture leaves it
    assert not outbound.posts
    for owner in (best_effort.id, durable.id):
        lines = [line.getMessage() for line in caplog.records if f"secret of {owner} cannot" in line.getMessage()]
        assert len(lines) <= 4  # one for each life
        assert lines
    assert "whsec_" not in caplog.text
    # What the durable one could not be sent before may still be on its way, before this one.
    result = await first.notify(b"t", b"data")
    assert (result.matched, result.failed) == (2, 0)
    await outbound.until(lambda: {result.message_id} <= sent_to(URL) & sent_to(OTHER))
    for post in outbound.posts:
        verified(post, KEY)
