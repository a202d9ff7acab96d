"""webhooks.py: which secrets are taken, that each is its own, and what happens while one is changed."""

from __future__ import annotations

import asyncio
import json
import os
import time
from typing import Any

import httpx
import pytest

from httppubsubclient.client import BroadcastersUnavailable, HttpPubSubClient
from httppubsubclient.protocol.errors import InvalidRequest, PubSubError, QuotaExceeded
from httppubsubclient.protocol.messages import Subscription
from httppubsubclient.protocol.patterns import Pattern
from httppubsubclient.protocol.standard_webhooks import PrivateKey, SharedSecret
from httppubsubclient.webhooks import Agreements, Keyring, WebhookOptions, check_webhook_options, rotation
from tests.client.conftest import CALLBACK, FakeBroadcaster, Wire, cut_off, refuse, unreachable, until
from tests.client.test_receiver import nothing_in

EXACT = Pattern.exact(b"foo/bar")
FIRST, SECOND = SharedSecret(bytes(range(32))).text(), SharedSecret(bytes(range(1, 33))).text()
PRIVATE = PrivateKey(bytes(range(32)))


@pytest.mark.parametrize(
    "secret",
    [
        "", "whsec_", "whsec_AAAA", "whsec_" + "A" * 32, "whsec_" + "-" * 32, FIRST[:-1], FIRST + "A", FIRST.upper(),
        "whsec_" + "QUJD" * 40, PRIVATE.public().text(), "whsk_" + FIRST[6:], "Generate", "generate ", "é",
        b"generate", 5,
    ],
)  # fmt: skip
@pytest.mark.parametrize("durable", [None, "worker-1"])
async def test_43_a_secret_that_is_none_is_refused_without_being_shown(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster, secret: Any, durable: str | None
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        client.subscribe_exact(b"foo/bar", secret=secret, durable=durable)
    assert not isinstance(secret, str) or len(secret) < 12 or secret[6:] not in str(caught.value)
    assert not broadcaster.calls


@pytest.mark.parametrize("form", ["", "RAW", "cloudevents", "cloudevents-batched", None, 5, ["raw"], FIRST])
async def test_a_format_that_is_none_is_refused(client: HttpPubSubClient, form: Any) -> None:
    with pytest.raises(InvalidRequest, match="format is one of") as caught:
        client.subscribe_exact(b"foo/bar", format=form)
    assert FIRST[:12] not in str(caught.value)


async def test_59_no_two_subscriptions_of_a_client_share_a_secret(client: HttpPubSubClient) -> None:
    async with client.subscribe_exact(b"a", secret=FIRST) as first:
        with pytest.raises(InvalidRequest, match="another subscription"):
            await client.subscribe_exact(b"b", secret=FIRST).__aenter__()
        with pytest.raises(InvalidRequest, match="another subscription"):
            await client.subscribe_exact(b"a", secret=FIRST, durable="worker-1").__aenter__()
        with pytest.raises(InvalidRequest, match="for one pattern"):
            await client.subscribe(exact=[b"c", b"d"], secret=SECOND).__aenter__()
        with pytest.raises(InvalidRequest, match="another subscription"):
            await first.subscribe_exact(b"b")
        async with client.subscribe_exact(b"b", secret=SECOND) as second:
            with pytest.raises(InvalidRequest, match="another subscription"):
                await second.rotate_secret(FIRST)
    async with client.subscribe_exact(b"b", secret=FIRST):
        pass  # it is free again


async def test_one_pattern_has_one_secret_and_one_format(client: HttpPubSubClient) -> None:
    async with client.subscribe_exact(b"a", secret="generate"), client.subscribe_exact(b"a", secret="generate"):
        others: list[Any] = [{}, {"secret": FIRST}, {"secret": "generate", "format": "cloudevents-binary"}]
        for options in others:
            with pytest.raises(InvalidRequest, match="entered with another"):
                await client.subscribe_exact(b"a", **options).__aenter__()


@pytest.mark.parametrize("durable", [None, "worker-1"])
async def test_renewing_tells_the_same_secret_and_format_again(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster, durable: str | None
) -> None:
    broadcaster.lease_seconds = 1
    form: Any = "cloudevents-structured"
    async with client.subscribe_exact(b"foo/bar", secret="generate", format=form, durable=durable):
        await until(lambda: len(broadcaster.requests) >= 3)
    asked = [json.loads(request.content) for request in broadcaster.requests[:3]]
    entries = [entry for one in asked for entry in one.get("subscriptions", [one])]
    assert len({entry["secret"] for entry in entries}) == 1
    assert {entry["format"] for entry in entries} == {form}


async def test_a_subscription_that_was_left_and_could_not_be_removed_gets_its_new_secret(
    hasty: HttpPubSubClient, broadcaster: FakeBroadcaster
) -> None:
    wire = Wire(hasty, broadcaster)
    async with hasty.subscribe_exact(b"other"):
        async with hasty.subscribe_exact(b"foo/bar", secret="generate"):
            broadcaster.always = unreachable
        broadcaster.always = None
        async with hasty.subscribe_exact(b"foo/bar", secret="generate") as subscription:
            headers = broadcaster.webhook(broadcaster.id_of(EXACT), b"foo/bar", b"hello")
            assert (await wire.post(headers, b"hello")).status_code == 200
            assert (await anext(subscription)).content == b"hello"


@pytest.mark.parametrize("durable", [None, "worker-1"])
async def test_subscribing_again_in_one_process_makes_no_new_secret_until_one_is_rotated(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster, durable: str | None
) -> None:
    def told() -> str:
        fields = json.loads(next(one for one in reversed(broadcaster.requests) if b"secret" in one.content).content)
        secret: str = fields.get("subscriptions", [fields])[0]["secret"]
        return secret

    secrets = []
    for _ in range(3):
        async with client.subscribe_exact(b"foo/bar", secret="generate", durable=durable):
            secrets.append(told())
    async with client.subscribe_exact(b"foo/bar", secret="generate", durable=durable) as subscription:
        await subscription.rotate_secret()
        secrets.append(told())
    async with client.subscribe_exact(b"foo/bar", secret="generate", durable=durable):
        secrets.append(told())
    assert [secrets.index(secret) for secret in secrets] == [0, 0, 0, 3, 4]


@pytest.mark.parametrize("others", [0, 2])
async def test_the_secret_of_an_earlier_life_is_given_up(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster, wire: Wire, others: int
) -> None:
    broadcaster.keep(CALLBACK, {"topic": "foo/bar", "secret": FIRST, "lease_seconds": 600})
    async with client.subscribe(exact=[b"foo/bar", *(b"%d" % n for n in range(others))]) as subscription:
        assert not broadcaster.secrets
        assert (await wire.deliver(EXACT)).status_code == 200
        assert (await anext(subscription)).content == b"hello"


async def test_of_a_durable_name_the_secret_of_an_earlier_life_has_to_be_given(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster
) -> None:
    async with client.subscribe_exact(b"foo/bar", durable="worker-1", secret=FIRST):
        pass
    with pytest.raises(PubSubError, match="secret of its own since an earlier life"):
        await client.subscribe_exact(b"foo/bar", durable="worker-1").__aenter__()
    async with client.subscribe_exact(b"foo/bar", durable="worker-1", secret="generate"):
        assert len(broadcaster.secrets[broadcaster.id_of(EXACT)]) == 2


@pytest.mark.parametrize("durable", [None, "worker-1"])
@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("signature", {"secret": "generate"}, "does not sign"),
        ("public_key", {"secret": "generate-v1a"}, "with another key"),
        ("format", {"format": "cloudevents-binary"}, "with the format 'raw'"),
    ],
)
async def test_a_broadcaster_that_does_not_do_what_was_asked_for_is_told_apart(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster, durable: str | None, name: str, options: Any, told: str
) -> None:
    def forgets(request: httpx.Request) -> httpx.Response:
        fields = broadcaster.process(request).json()
        for entry in fields.get("subscriptions", [fields]):
            entry.pop(name, None)
        return httpx.Response(200, json=fields)

    broadcaster.next.append(forgets)
    with pytest.raises(PubSubError, match=told):
        await client.subscribe_exact(b"foo/bar", durable=durable, **options).__aenter__()


# -- rotation (hardening 70) ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("durable", [None, "worker-1"])
@pytest.mark.parametrize("kind", ["generate", "generate-v1a"])
async def test_70_the_old_key_counts_until_its_grace_is_over(
    client: HttpPubSubClient,
    broadcaster: FakeBroadcaster,
    wire: Wire,
    monkeypatch: pytest.MonkeyPatch,
    durable: str | None,
    kind: str,
) -> None:
    query = f"?durable={durable}" if durable else ""
    async with client.subscribe_exact(b"foo/bar", secret=kind, durable=durable) as subscription:
        subscription_id = broadcaster.id_of(EXACT)
        (old,) = broadcaster.secrets[subscription_id]
        await subscription.rotate_secret(kind, grace_seconds=60)
        new = broadcaster.secrets[subscription_id][0]
        assert new != old

        async def status(*secrets: str) -> int:
            headers = broadcaster.webhook(
                subscription_id, b"foo/bar", b"hello", secrets=secrets, message_id=f"msg_{os.urandom(8).hex()}"
            )
            return (await wire.post(headers, b"hello", query)).status_code

        assert [await status(new), await status(old), await status(new, old)] == [200] * 3
        now = time.monotonic()
        monkeypatch.setattr("httppubsubclient.webhooks.time.monotonic", lambda: now + 59)
        assert await status(old) == 200
        monkeypatch.setattr("httppubsubclient.webhooks.time.monotonic", lambda: now + 61)
        assert [await status(new), await status(old), await status(new, old)] == [200, 401, 200]


async def test_70_without_grace_the_old_key_ends_at_once(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster, wire: Wire
) -> None:
    async with client.subscribe_exact(b"foo/bar", secret=FIRST) as subscription:
        await subscription.rotate_secret(SECOND, grace_seconds=0)
        asked = json.loads(broadcaster.requests[-1].content)
        assert (asked["secret"], asked["secret_grace_seconds"]) == (SECOND, 0)
        headers = broadcaster.webhook(broadcaster.id_of(EXACT), b"foo/bar", b"hello", secrets=[FIRST])
        assert (await wire.post(headers, b"hello")).status_code == 401
        assert await nothing_in(subscription)


@pytest.mark.parametrize("durable", [None, "worker-1"])
@pytest.mark.parametrize("failure", [refuse(QuotaExceeded("four live ones", retry_after_seconds=5)), unreachable])
async def test_70_a_rotation_that_was_refused_changes_nothing(
    hasty: HttpPubSubClient, broadcaster: FakeBroadcaster, durable: str | None, failure: Any
) -> None:
    wire, query = Wire(hasty, broadcaster), f"?durable={durable}" if durable else ""
    async with hasty.subscribe_exact(b"foo/bar", secret="generate", durable=durable) as subscription:
        broadcaster.always = failure
        with pytest.raises((QuotaExceeded, BroadcastersUnavailable)):
            await subscription.rotate_secret()
        broadcaster.always = None
        assert len(broadcaster.secrets[broadcaster.id_of(EXACT)]) == 1
        headers = broadcaster.webhook(broadcaster.id_of(EXACT), b"foo/bar", b"hello")
        assert (await wire.post(headers, b"hello", query)).status_code == 200
        await subscription.rotate_secret()
        assert len(broadcaster.secrets[broadcaster.id_of(EXACT)]) == 2


@pytest.mark.parametrize("durable", [None, "worker-1"])
@pytest.mark.parametrize("arrives", [True, False])
async def test_70_a_rotation_of_which_the_outcome_is_unknown_is_finished_later(
    hasty: HttpPubSubClient, broadcaster: FakeBroadcaster, durable: str | None, arrives: bool
) -> None:
    wire, query = Wire(hasty, broadcaster), f"?durable={durable}" if durable else ""

    def breaks_off(request: httpx.Request) -> httpx.Response:
        if arrives:
            broadcaster.process(request)
        return cut_off(request)

    async with hasty.subscribe_exact(b"foo/bar", secret="generate", durable=durable) as subscription:
        subscription_id = broadcaster.id_of(EXACT)
        (old,) = broadcaster.secrets[subscription_id]
        broadcaster.always = breaks_off
        with pytest.raises(BroadcastersUnavailable):
            await subscription.rotate_secret(grace_seconds=0)
        # Whichever of the two the broadcaster signs with now, it counts.
        for number, secret in enumerate(broadcaster.secrets[subscription_id]):
            headers = broadcaster.webhook(
                subscription_id, b"foo/bar", b"hello", secrets=[secret], message_id=f"msg_{number}"
            )
            assert (await wire.post(headers, b"hello", query)).status_code == 200
        broadcaster.always = None
        calls = len(broadcaster.calls)
        await until(lambda: len(broadcaster.calls) > calls and len(broadcaster.secrets[subscription_id]) == 2)
        headers = broadcaster.webhook(subscription_id, b"foo/bar", b"hello", secrets=[old], message_id="msg_9")
        await until(lambda: len(hasty_keys(subscription)) == 1)
        assert (await wire.post(headers, b"hello", query)).status_code == 401


def hasty_keys(subscription: Any) -> list[Any]:
    keys: list[Any] = subscription._registry.terms(EXACT).own_keys()
    return keys


async def test_70_twenty_rotations_at_once_end_with_one_that_all_agree_on(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster, wire: Wire
) -> None:
    async with client.subscribe_exact(b"foo/bar", secret="generate") as subscription:
        await asyncio.gather(*(subscription.rotate_secret(grace_seconds=5) for _ in range(20)))
        newest = broadcaster.secrets[broadcaster.id_of(EXACT)][:1]
        headers = broadcaster.webhook(broadcaster.id_of(EXACT), b"foo/bar", b"hello", secrets=newest)
        assert (await wire.post(headers, b"hello")).status_code == 200


async def test_70_a_way_down_is_asked_for_only_with_consent(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster
) -> None:
    async with client.subscribe_exact(b"foo/bar", secret="generate-v1a") as subscription:
        assert "allow_downgrade" not in json.loads(broadcaster.requests[-1].content)["subscriptions"][0]
        await subscription.rotate_secret("generate", allow_downgrade=True)
        assert json.loads(broadcaster.requests[-1].content)["allow_downgrade"] is True
        await subscription.subscribe_exact(b"more")
        assert "allow_downgrade" not in json.loads(broadcaster.requests[-1].content)


@pytest.mark.parametrize(
    ("secret", "grace_seconds", "allow_downgrade"),
    [("x", 5, False), (None, 5, False), (FIRST, -1, False), (FIRST, 1.5, False), (FIRST, True, False),
     (FIRST, 10**9, False), (FIRST, 5, "yes")],
)  # fmt: skip
async def test_a_rotation_that_makes_no_sense_is_refused(secret: Any, grace_seconds: Any, allow_downgrade: Any) -> None:
    with pytest.raises(InvalidRequest):
        rotation(secret, grace_seconds, allow_downgrade)


async def test_a_given_secret_does_not_take_the_place_of_several(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster
) -> None:
    async with client.subscribe(exact=[b"a", b"b"], secret="generate") as subscription:
        with pytest.raises(InvalidRequest, match="for one pattern"):
            await subscription.rotate_secret(FIRST)
        await subscription.rotate_secret()
        assert [len(secrets) for secrets in broadcaster.secrets.values()] == [2, 2]


async def test_a_subscription_that_is_left_while_its_secret_changes_is_left(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster
) -> None:
    form: Any = "cloudevents-binary"
    async with client.subscribe_exact(b"other"):
        subscription = client.subscribe_exact(b"foo/bar", secret="generate", format=form)
        await subscription.__aenter__()
        leaving: list[asyncio.Task[None]] = []

        async def left_meanwhile(request: httpx.Request) -> httpx.Response:
            leaving.append(asyncio.create_task(subscription.leave()))
            await asyncio.sleep(0)
            return broadcaster.process(request)

        broadcaster.next.append(left_meanwhile)
        await subscription.rotate_secret()
        await leaving[0]
        await until(lambda: broadcaster.patterns() == ["topic='other'"])
        assert not broadcaster.secrets


async def test_what_has_no_secret_cannot_be_rotated(client: HttpPubSubClient) -> None:
    async with client.subscribe_exact(b"foo/bar") as plain:
        with pytest.raises(InvalidRequest, match="no secret of its own"):
            await plain.rotate_secret()
    with pytest.raises(RuntimeError, match="not entered"):
        await client.subscribe_exact(b"foo/bar", secret="generate").rotate_secret()


def test_nothing_shows_a_secret() -> None:
    keyring = Keyring(FIRST)
    undo = keyring.rotate(rotation(SECOND, 5, False))
    agreements = Agreements()
    agreements.agree([EXACT], check_webhook_options("raw", FIRST), ())
    shown = repr((keyring, undo, agreements, vars(agreements), vars(keyring), rotation(FIRST, 5, False)))
    shown += repr((WebhookOptions("raw", FIRST), agreements.of(EXACT), agreements.of(EXACT).asked))
    for text in (FIRST, SECOND):
        assert text[6:] not in shown
        assert repr(bytes(range(8)))[2:-1] not in shown


def test_the_terms_of_many_patterns_are_kept_only_while_they_are_wanted() -> None:
    agreements = Agreements()
    for number in range(100):
        pattern = Pattern.exact(b"%d" % number)
        agreements.agree([pattern], WebhookOptions("raw", "generate"), ())
        agreements.confirm(Subscription("sub_1", CALLBACK, pattern, 60, 0, 0, signature="v1"))
        agreements.forget(pattern)
    agreements.keep_only(())
    assert not agreements._terms
    assert not agreements._confirmed
    assert not agreements._given
