"""Deliveries to a subscription with a secret of its own: what proves them, and what does not (hardening, section F)."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from httppubsubclient.client import HttpPubSubClient, Subscription
from httppubsubclient.protocol.credentials import Credentials, Key
from httppubsubclient.protocol.patterns import Pattern
from httppubsubclient.protocol.standard_webhooks import SharedSecret
from tests.client.conftest import CALLBACK, RECEIVE_AUTH, FakeBroadcaster, Wire, config, until, webhook_signature
from tests.client.test_receiver import Exchange, nothing_in, part

EXACT = Pattern.exact(b"foo/bar")
OTHER = SharedSecret(bytes(range(32))).text()


@pytest.fixture(params=["generate", "generate-v1a"])
async def subscription(client: HttpPubSubClient, request: pytest.FixtureRequest) -> AsyncIterator[Subscription]:
    async with client.subscribe_exact(b"foo/bar", secret=request.param) as entered:
        yield entered


@pytest.fixture
async def v1(client: HttpPubSubClient) -> AsyncIterator[Subscription]:
    async with client.subscribe_exact(b"foo/bar", secret="generate") as entered:
        yield entered


def good(broadcaster: FakeBroadcaster, body: bytes = b"hello", **options: Any) -> dict[str, str]:
    return broadcaster.webhook(broadcaster.id_of(EXACT), b"foo/bar", body, **options)


async def refused(
    wire: Wire, subscription: Subscription, headers: dict[str, str], *statuses: int, body: bytes = b"hello"
) -> None:
    answer = await wire.post(headers, body)
    assert answer.status_code in statuses, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert await nothing_in(subscription)


async def test_a_correct_webhook_is_accepted(
    subscription: Subscription, wire: Wire, broadcaster: FakeBroadcaster
) -> None:
    assert (await wire.post(good(broadcaster), b"hello")).status_code == 200
    message = await anext(subscription)
    assert (message.topic, message.content, message.content_type) == (b"foo/bar", b"hello", "text/plain")


async def test_each_subscription_has_a_key_of_its_own_that_the_broadcaster_is_told(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster
) -> None:
    patterns: dict[str, Any] = {"exact": [b"a", b"b"], "glob": ["c/*"]}
    async with client.subscribe(**patterns, secret="generate"), client.subscribe_exact(b"d", secret="generate"):
        secrets = [secret for several in broadcaster.secrets.values() for secret in several]
        assert len(set(secrets)) == len(secrets) == 4
        assert all(secret.startswith("whsec_") for secret in secrets)


# 53


@pytest.mark.parametrize("name", ["id", "timestamp", "signature"])
async def test_53_a_header_that_is_missing_empty_doubled_or_has_a_twin_is_refused(
    v1: Subscription, client: HttpPubSubClient, wire: Wire, broadcaster: FakeBroadcaster, name: str
) -> None:
    ours, twin = f"webhook-{name}", f"svix-{name}"
    headers = good(broadcaster)
    without = {key: value for key, value in headers.items() if key != ours}
    # Without its signature a delivery is no webhook: then it lacks the proof that the others share.
    await refused(wire, v1, without, 401 if name == "signature" else 400)
    await refused(wire, v1, headers | {ours: ""}, 400)
    await refused(wire, v1, headers | {twin: headers[ours]}, 400)
    await refused(wire, v1, without | {twin: headers[ours]}, 400)
    svix = {key.replace("webhook-", "svix-"): value for key, value in headers.items()}
    await refused(wire, v1, svix, 400)
    exchange = Exchange(client, headers, part(b"hello"))
    exchange._headers.append((ours.encode(), headers[ours].encode()))
    assert (await exchange.run(), exchange.read) == (400, 0)
    assert await nothing_in(v1)


# 54


def _signatures(value: str) -> list[str]:
    raw = base64.b64decode(value.partition(",")[2])
    return [
        "garbage", "v1", "v1,", "v1,A", "v1,é", "v1,a,b", value.replace("v1,", "v2,"), f"v2,{value[3:]}",
        f"{value}  {value}", f"{value}\t{value}", f"\t{value}x", " ".join([value] * 11),
        " ".join(["v1,AAAA"] * 10), f"{value}!", f"{value[:20]} {value[20:]}", value.rstrip("="),
        value + "=", value + "AAAA", "v1," + base64.urlsafe_b64encode(b"\xfb" * 32).decode(), "v1a," + value[3:],
        "v1," + base64.b64encode(raw[:31]).decode(), "v1," + base64.b64encode(raw + b"\0").decode(),
        "v1," + base64.b64encode(bytes(32)).decode(), value.upper(), value.replace("v1,", "V1,"),
        value.replace("v1,", "v1, "), value.replace("v1,", "v1="), ",", " ", "v1," + "A" * 4096,
    ]  # fmt: skip


@pytest.mark.parametrize("number", range(len(_signatures("v1,"))))
async def test_54_a_signature_of_wrong_form_is_refused(
    v1: Subscription, client: HttpPubSubClient, broadcaster: FakeBroadcaster, number: int
) -> None:
    headers = good(broadcaster)
    value = _signatures(headers["webhook-signature"])[number]
    exchange = Exchange(client, headers, part(b"hello"))
    exchange._headers = [
        (name, value.encode("latin-1") if name == b"webhook-signature" else old) for name, old in exchange._headers
    ]
    assert await exchange.run() in (400, 401)
    assert await nothing_in(v1)


async def test_54_a_hundred_thousand_signatures_are_refused_unread(
    v1: Subscription, client: HttpPubSubClient, broadcaster: FakeBroadcaster
) -> None:
    headers = good(broadcaster)
    headers["webhook-signature"] = " ".join([headers["webhook-signature"]] * 100_000)
    exchange = Exchange(client, headers, part(b"hello"))
    assert (await exchange.run(), exchange.read) == (401, 0)
    assert await nothing_in(v1)


async def test_54_an_unknown_version_beside_a_good_signature_is_skipped(
    v1: Subscription, wire: Wire, broadcaster: FakeBroadcaster
) -> None:
    headers = good(broadcaster)
    headers["webhook-signature"] = f"v2,{'A' * 8} {headers['webhook-signature']}"
    assert (await wire.post(headers, b"hello")).status_code == 200


# 55


@pytest.mark.parametrize(
    "value",
    [
        "nan", "inf", "-inf", "-1", "0", "1e9", "1_700_000_000", "1700000000.5", "+1700000000", " 1700000000 0",
        "99999999999999999999", "0x6553f100", "\uff11\uff17" + "\uff10" * 8, "1700000000,", "",
    ],
)  # fmt: skip
async def test_55_a_timestamp_that_is_not_unix_seconds_is_refused(
    v1: Subscription, client: HttpPubSubClient, broadcaster: FakeBroadcaster, value: str
) -> None:
    headers = good(broadcaster)
    exchange = Exchange(client, headers, part(b"hello"))
    exchange._headers = [
        (name, value.encode() if name == b"webhook-timestamp" else old) for name, old in exchange._headers
    ]
    assert (await exchange.run(), exchange.read) in ((400, 0), (401, 0))
    assert await nothing_in(v1)


@pytest.mark.parametrize(("age_seconds", "status"), [(299, 200), (-299, 200), (301, 401), (-302, 401), (86_400, 401)])
async def test_55_a_timestamp_counts_within_the_tolerance_both_ways(
    v1: Subscription, wire: Wire, broadcaster: FakeBroadcaster, age_seconds: int, status: int
) -> None:
    assert (await wire.post(good(broadcaster, age_seconds=age_seconds), b"hello")).status_code == status
    assert await nothing_in(v1) is (status == 401)


# 56


@pytest.mark.parametrize(
    "changed", [b"hellp", b"hello\n", b"hello ", b" hello", b"", b"hell", b"\xef\xbb\xbfhello", b"hello\0"]
)
async def test_56_a_changed_body_is_refused(
    subscription: Subscription, wire: Wire, broadcaster: FakeBroadcaster, changed: bytes
) -> None:
    await refused(wire, subscription, good(broadcaster), 401, body=changed)


async def test_56_json_that_was_written_anew_is_refused(
    subscription: Subscription, wire: Wire, broadcaster: FakeBroadcaster
) -> None:
    body = b'{"b": 1, "a": 2.0}'
    rewritten = json.dumps(json.loads(body), separators=(",", ":")).encode()
    await refused(wire, subscription, good(broadcaster, body), 401, body=rewritten)


async def test_56_what_is_signed_with_another_key_or_for_another_message_is_refused(
    v1: Subscription, client: HttpPubSubClient, wire: Wire, broadcaster: FakeBroadcaster
) -> None:
    async with client.subscribe_exact(b"b", secret="generate"):
        others = broadcaster.secrets[broadcaster.id_of(Pattern.exact(b"b"))]
        await refused(wire, v1, good(broadcaster, secrets=others), 401)
    await refused(wire, v1, good(broadcaster, secrets=[OTHER]), 401)
    await refused(wire, v1, good(broadcaster) | {"webhook-id": "msg_2"}, 401)
    headers = good(broadcaster)
    await refused(wire, v1, headers | {"webhook-timestamp": str(int(headers["webhook-timestamp"]) - 1)}, 401)
    # "a.b" + "1" and "a" + "b.1" are signed alike, so an id has no dot.
    await refused(wire, v1, headers | {"webhook-id": "msg.1"}, 401)


async def test_56_a_signature_of_the_one_kind_does_not_count_for_the_other(
    client: HttpPubSubClient, wire: Wire, broadcaster: FakeBroadcaster
) -> None:
    """The public key is public: as a shared secret it would let everybody sign."""
    async with client.subscribe_exact(b"foo/bar", secret="generate-v1a") as subscription:
        public = base64.b64decode(broadcaster.kept[broadcaster.id_of(EXACT)].public_key[5:])  # type: ignore[index]
        await refused(wire, subscription, good(broadcaster, secrets=[SharedSecret(public).text()]), 401)


@pytest.mark.parametrize("kind", ["hmac", "token", "none"])
async def test_56_the_proof_that_all_share_does_not_count_for_a_secret_of_its_own(
    broadcaster: FakeBroadcaster, kind: str
) -> None:
    shared = {
        "hmac": RECEIVE_AUTH,
        "token": Credentials(type="token", keys=(Key(id="t", secret=b"t" * 32),)),
        "none": Credentials.none(),
    }[kind]
    async with HttpPubSubClient(config(receive_auth=shared)) as client:
        async with client.subscribe_exact(b"foo/bar", secret="generate") as subscription:
            wire = Wire(client, broadcaster)
            headers = broadcaster.delivery(broadcaster.id_of(EXACT), b"foo/bar", b"hello", credentials=shared)
            await refused(wire, subscription, headers, 401)
            await refused(wire, subscription, {**headers, "webhook-signature": "v1," + "A" * 43 + "="}, 401)
            assert (await wire.post(good(broadcaster), b"hello")).status_code == 200
        async with client.subscribe_exact(b"foo/bar") as plain:
            headers = good(broadcaster, secrets=[OTHER], message_id="msg_2")
            await refused(wire, plain, headers, 401)


async def test_56_the_topic_which_is_not_signed_has_to_be_one_that_was_subscribed(
    client: HttpPubSubClient, wire: Wire, broadcaster: FakeBroadcaster
) -> None:
    for pattern, topic in [(EXACT, "foo/baz"), (Pattern.glob("foo/*"), "bar/foo"), (Pattern.mqtt("a/+"), "a/b/c")]:
        async with client._subscription([pattern], {"secret": "generate"}) as subscription:
            headers = broadcaster.webhook(broadcaster.id_of(pattern), b"x", b"hello")
            await refused(wire, subscription, headers | {"pubsub-topic": topic}, 401)


# 58


async def test_58_copies_and_retries_are_taken_once_and_all_acknowledged(
    subscription: Subscription, wire: Wire, broadcaster: FakeBroadcaster
) -> None:
    headers = good(broadcaster)
    copies = [wire.post(headers, b"hello") for _ in range(50)]
    answers = await asyncio.gather(*copies, wire.post(good(broadcaster, age_seconds=30, attempt=2), b"hello"))
    answers += [await wire.post(headers, b"hello"), await wire.post(good(broadcaster, age_seconds=-30), b"hello")]
    assert {answer.status_code for answer in answers} == {200}
    assert (await anext(subscription)).content == b"hello"
    assert await nothing_in(subscription)


async def test_58_a_duplicate_with_a_bad_signature_is_not_acknowledged(
    subscription: Subscription, wire: Wire, broadcaster: FakeBroadcaster
) -> None:
    assert (await wire.post(good(broadcaster), b"hello")).status_code == 200
    assert (await wire.post(good(broadcaster, secrets=[OTHER]), b"hello")).status_code == 401


async def test_58_a_copy_is_known_where_the_subscription_has_forgotten_it(broadcaster: FakeBroadcaster) -> None:
    async with HttpPubSubClient(config(remembered_message_ids=1)) as client:
        wire = Wire(client, broadcaster)
        async with client.subscribe_exact(b"foo/bar", secret=OTHER) as subscription:
            first = good(broadcaster)
            for headers in (first, good(broadcaster, message_id="msg_2"), good(broadcaster, message_id="msg_3")):
                assert (await wire.post(headers, b"hello")).status_code == 200
                await anext(subscription)
            assert (await wire.post(first, b"hello")).status_code == 200
            assert await nothing_in(subscription)
        async with client.subscribe_exact(b"foo/bar", secret=OTHER) as again:
            replayed = {**first, "pubsub-subscription": broadcaster.id_of(EXACT)}
            assert (await wire.post(replayed, b"hello")).status_code == 200
            assert await nothing_in(again)


async def test_58_what_may_be_a_copy_of_what_was_forgotten_is_refused(broadcaster: FakeBroadcaster) -> None:
    settings = config(remembered_message_ids=1, max_remembered_nonces=2)
    async with (
        HttpPubSubClient(settings) as client,
        client.subscribe_exact(b"foo/bar", secret="generate") as subscription,
    ):
        wire = Wire(client, broadcaster)
        first = good(broadcaster, age_seconds=9)
        for headers in (first, *(good(broadcaster, message_id=f"msg_{n}", age_seconds=8 - n) for n in range(2, 5))):
            assert (await wire.post(headers, b"hello")).status_code == 200
            await anext(subscription)
        answer = await wire.post(first, b"hello")
        assert (answer.status_code, answer.json()["code"]) == (401, "replayed")
        assert await nothing_in(subscription)
        assert (await wire.post(good(broadcaster, message_id="msg_9"), b"hello")).status_code == 200


async def test_58_no_order_of_timestamps_lets_a_copy_in(broadcaster: FakeBroadcaster) -> None:
    settings = config(remembered_message_ids=1, max_remembered_nonces=2)
    client = HttpPubSubClient(settings)
    async with client, client.subscribe_exact(b"foo/bar", secret="generate") as subscription:
        wire = Wire(client, broadcaster)
        taken = []
        for number, age_seconds in enumerate((0, -9, 5, -5, 9, -9, 0, 5, -5, 3, 30, -30)):
            headers = good(broadcaster, message_id=f"msg_{number}", age_seconds=age_seconds)
            if (await wire.post(headers, b"hello")).status_code == 200:
                assert (await anext(subscription)).message_id == f"msg_{number}"
                taken.append(headers)
            for copy in taken:
                assert (await wire.post(copy, b"hello")).status_code in (200, 401)
            assert await nothing_in(subscription)
        assert len(taken) > 2


@pytest.mark.parametrize("options", [{"secret": OTHER}, {}, {"secret": OTHER, "durable": "worker-1"}])
async def test_58_a_copy_that_comes_after_a_restart_is_taken_once(
    broadcaster: FakeBroadcaster, tmp_path: Path, options: Any
) -> None:
    settings = config(remember_file=tmp_path / "seen")
    query = "?durable=worker-1" if "durable" in options else ""
    secrets = options.get("secret")

    def copy() -> dict[str, str]:
        if secrets is not None:
            return good(broadcaster, secrets=[secrets])
        return broadcaster.delivery(broadcaster.id_of(EXACT), b"foo/bar", b"hello")

    for life in range(2):
        async with HttpPubSubClient(settings) as client, client.subscribe_exact(b"foo/bar", **options) as subscription:
            wire = Wire(client, broadcaster)
            assert (await wire.post(copy(), b"hello", query)).status_code == 200
            if life == 0:
                assert (await anext(subscription)).content == b"hello"
            assert await nothing_in(subscription)
            # What is new comes.
            headers = copy() | {"webhook-id": f"msg_new_{life}"}
            if secrets is None:
                headers = broadcaster.delivery(broadcaster.id_of(EXACT), b"foo/bar", b"x", message_id=f"msg_new_{life}")
            else:
                headers = good(broadcaster, b"x", secrets=[secrets], message_id=f"msg_new_{life}")
            assert (await wire.post(headers, b"x", query)).status_code == 200
            assert (await anext(subscription)).content == b"x"


async def test_58_what_found_no_room_is_taken_when_it_comes_again(broadcaster: FakeBroadcaster) -> None:
    async with HttpPubSubClient(config(buffer_messages=1)) as client:
        wire = Wire(client, broadcaster)
        async with client.subscribe_exact(b"foo/bar", secret="generate") as subscription:
            second = good(broadcaster, message_id="msg_2")
            assert (await wire.post(good(broadcaster), b"hello")).status_code == 200
            assert (await wire.post(second, b"hello")).status_code == 503
            await anext(subscription)
            # The same second, so the same signature: this is no replay.
            assert (await wire.post(second, b"hello")).status_code == 200
            assert (await anext(subscription)).message_id == "msg_2"


# 59


async def test_59_what_was_sent_for_one_subscription_is_refused_for_another(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster, wire: Wire
) -> None:
    first, second = (
        client.subscribe_exact(b"foo/bar", secret="generate"),
        client.subscribe_glob("*/*", secret="generate"),
    )
    async with first, second:
        headers = good(broadcaster) | {"pubsub-subscription": broadcaster.id_of(Pattern.glob("*/*"))}
        await refused(wire, second, headers, 401)


# 61


async def test_61_nothing_of_a_body_is_read_that_cannot_be_taken(
    v1: Subscription, client: HttpPubSubClient, broadcaster: FakeBroadcaster
) -> None:
    headers = good(broadcaster)
    for changes, status in [
        ({"content-encoding": "gzip"}, 415),
        ({"content-length": str(64 * 1024 * 1024)}, 413),
        ({"content-length": "-1"}, 400),
        ({"pubsub-subscription": "sub_unknown"}, 410),
        ({"pubsub-topic": "foo/baz"}, 401),
        ({"pubsub-attempt": "x"}, 400),
        ({"pubsub-fragment": "2"}, 503),
        ({"expect": "100-continue", "webhook-signature": "v1,x"}, 401),
    ]:
        exchange = Exchange(client, headers | changes, part(b"hello"))
        assert (await exchange.run(), exchange.read) == (status, 0), changes
    assert await nothing_in(v1)


async def test_61_an_endless_body_is_cut_off_at_the_limit(broadcaster: FakeBroadcaster) -> None:
    client = HttpPubSubClient(config(max_webhook_bytes=100))
    async with client, client.subscribe_exact(b"foo/bar", secret="generate") as subscription:
        exchange = Exchange(client, good(broadcaster), *[part(b"x" * 30, more=True)] * 1000)
        assert (await exchange.run(), exchange.read) == (413, 4)
        assert await nothing_in(subscription)


async def test_61_a_body_that_stops_or_drips_is_given_up(broadcaster: FakeBroadcaster) -> None:
    client = HttpPubSubClient(config(body_idle_timeout_seconds=0.02))
    async with client, client.subscribe_exact(b"foo/bar", secret="generate") as subscription:
        assert await Exchange(client, good(broadcaster), part(b"hel", more=True)).run() == 408
        exchange = Exchange(client, good(broadcaster))

        async def drip() -> dict[str, Any]:
            await asyncio.sleep(0.005)
            return part(b"x", more=True)

        exchange._receive = drip  # type: ignore[method-assign]
        assert await exchange.run() == 408
        assert await nothing_in(subscription)


async def test_61_bodies_of_strangers_take_no_room_from_what_is_proven(broadcaster: FakeBroadcaster) -> None:
    client = HttpPubSubClient(config(buffer_bytes=100, spool_bytes=1000))
    own, shared = client.subscribe_exact(b"foo/bar", secret="generate"), client.subscribe_exact(b"plain")
    async with client, own, shared:
        strangers = []
        for _ in range(20):
            headers = good(broadcaster, secrets=[OTHER]) | {"content-length": "60"}
            strangers.append(asyncio.create_task(Exchange(client, headers, part(b"x", more=True)).run()))
        await until(lambda: sum(task.done() for task in strangers) == 19)
        assert [task.result() for task in strangers if task.done()] == [503] * 19
        assert (await Wire(client, broadcaster).deliver(Pattern.exact(b"plain"), b"plain")).status_code == 200
        assert (await anext(shared)).content == b"hello"
        for task in strangers:
            task.cancel()
        await asyncio.gather(*strangers, return_exceptions=True)


async def test_61_a_large_body_is_verified_in_a_file(broadcaster: FakeBroadcaster) -> None:
    body = bytes(range(256)) * 4096
    async with HttpPubSubClient(config(spool_bytes=1000)) as client:
        for secret in ("generate", "generate-v1a"):
            async with client.subscribe_exact(b"foo/bar", secret=secret) as subscription:
                wire = Wire(client, broadcaster)
                changed = body[:-1] + b"x"
                await refused(wire, subscription, good(broadcaster, body, message_id=secret), 401, body=changed)
                assert (await wire.post(good(broadcaster, body, message_id=secret), body)).status_code == 200
                message = await anext(subscription)
                assert message._body.data is None
                assert await message.read() == body


# 62


async def test_62_no_url_in_a_message_is_ever_fetched(
    client: HttpPubSubClient, wire: Wire, broadcaster: FakeBroadcaster
) -> None:
    url = "http://victim.test/latest/meta-data"
    fetched = broadcaster.network.route(host="victim.test").respond(200)
    names = ("Type", "SubscribeURL", "SigningCertURL", "UnsubscribeURL", "dataref", "dataschema", "data_url")
    body = json.dumps({**dict.fromkeys(names, url), "Type": "SubscriptionConfirmation"}).encode()
    headers = {"x-amz-sns-message-type": "SubscriptionConfirmation", "ce-dataref": url, "link": f"<{url}>"}
    async with client.subscribe_exact(b"foo/bar", secret="generate") as subscription:
        assert (await wire.post(good(broadcaster, body) | headers, body)).status_code == 200
        assert (await anext(subscription)).content == body
    assert not fetched.called


# 63


async def test_63_a_stalled_consumer_bounds_what_waits_and_nothing_is_acknowledged_that_is_not_kept(
    broadcaster: FakeBroadcaster,
) -> None:
    settings = config(buffer_messages=10)
    async with (
        HttpPubSubClient(settings) as client,
        client.subscribe_exact(b"foo/bar", secret="generate") as subscription,
    ):
        wire = Wire(client, broadcaster)
        statuses = []
        for number in range(500):
            answer = await wire.post(good(broadcaster, message_id=f"msg_{number}"), b"hello")
            statuses.append(answer.status_code)
            assert answer.status_code == 200 or int(answer.headers["retry-after"]) > 0
        assert statuses == [200] * 10 + [503] * 490
        assert [(await anext(subscription)).message_id for _ in range(10)] == [f"msg_{number}" for number in range(10)]


# What strangers can bring about.


async def test_no_stranger_makes_a_client_reconcile_what_it_has(broadcaster: FakeBroadcaster) -> None:
    """A client that has just begun takes what is subscribed under its URL for an earlier life's: only a delivery that
    is proven may make it replace that."""
    broadcaster.keep(CALLBACK, {"topic": "of-the-process-before", "lease_seconds": 600})
    async with HttpPubSubClient(config()) as client:
        wire = Wire(client, broadcaster)
        headers = broadcaster.webhook("sub_1", b"foo/bar", b"hello", secrets=[OTHER])
        for _ in range(3):
            assert (await wire.post(headers, b"hello")).status_code == 503
            await asyncio.sleep(0)
        assert not broadcaster.calls
        assert (await wire.deliver("sub_1")).status_code == 503
        await until(lambda: "PUT /v1/subscriptions" in broadcaster.calls)


async def test_webhooks_of_random_bytes_are_refused_and_never_fail(
    v1: Subscription, client: HttpPubSubClient, broadcaster: FakeBroadcaster
) -> None:
    headers = good(broadcaster)
    for name in headers:
        for junk in (
            b"\x00\xff",
            b"",
            b"=",
            b"a" * 10_000,
            b"(((",
            "é".encode(),
            b'"',
            b"-1",
            b"9" * 30,
            b"v1,",
            b"\t",
        ):
            exchange = Exchange(client, headers, part(b"hello"))
            exchange._headers = [(n, junk if n == name.encode() else v) for n, v in exchange._headers]
            status = await exchange.run()
            if name in ("content-type", "traceparent", "pubsub-attempt", "pubsub-hops"):
                assert status in (200, 400), (name, junk)  # not signed
            else:
                assert status in (400, 401, 410, 422), (name, junk)
    assert len(await buffered(v1)) <= 1


async def buffered(subscription: Subscription) -> list[str]:
    found = []
    async for message in subscription.with_timeout(0.001):
        if message is None:
            break
        found.append(message.message_id)
    return found


# A subscription of which the answer has not come yet, and of those that are no more.


async def test_a_webhook_that_is_faster_than_the_answer_waits_for_it(
    client: HttpPubSubClient, wire: Wire, broadcaster: FakeBroadcaster
) -> None:
    answers: list[asyncio.Task[Any]] = []

    async def deliver_first(request: Any) -> Any:
        response = broadcaster.process(request)
        answers.append(asyncio.create_task(wire.post(good(broadcaster), b"hello")))
        await asyncio.sleep(0.01)
        assert not answers[0].done()
        return response

    async with client.subscribe_exact(b"other"):
        broadcaster.next.append(deliver_first)
        async with client.subscribe_exact(b"foo/bar", secret="generate") as subscription:
            assert (await answers[0]).status_code == 200
            assert (await anext(subscription)).content == b"hello"


async def test_nothing_secret_is_logged_or_answered(
    client: HttpPubSubClient, wire: Wire, broadcaster: FakeBroadcaster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    async with client.subscribe_exact(b"foo/bar", secret="generate") as subscription:
        secret = broadcaster.secrets[broadcaster.id_of(EXACT)][0]
        headers = good(broadcaster)
        shown = repr(subscription) + repr(vars(subscription)) + repr(vars(subscription._inbox))
        for changes in ({}, {"webhook-signature": "v1,x"}, {"webhook-id": "msg_2"}, {"webhook-timestamp": "1"}):
            shown += (await wire.post(headers | changes, b"hello")).text
    good_signature = webhook_signature(secret, "msg_2", int(headers["webhook-timestamp"]), b"hello")
    assert secret[6:] not in shown + caplog.text
    assert good_signature[3:] not in shown + caplog.text
