"""publishing.py: when a message shall be delivered, when it expires, and calling it off."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from httppubsubclient.client import HttpPubSubClient
from httppubsubclient.protocol.errors import InvalidRequest, NotFound, QuotaExceeded, TooManyHops
from httppubsubclient.protocol.moments import message_moments
from httppubsubclient.protocol.patterns import Pattern
from tests.client.conftest import FakeBroadcaster, Wire, refuse

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
MOMENT = datetime(2026, 11, 21, 2, 11, tzinfo=UTC)


@pytest.mark.parametrize(
    ("moment", "sent"),
    [
        (90, "90"),
        (0, "0"),
        (0.2, "1"),
        (timedelta(minutes=5), "300"),
        (MOMENT, "2026-11-21T02:11:00.000000Z"),
        (MOMENT.astimezone(timezone(timedelta(hours=-5))), "2026-11-21T02:11:00.000000Z"),
    ],
)
async def test_moments_are_sent_and_signed(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster, moment: Any, sent: str
) -> None:
    await client.notify(topic=b"a", data=b"x", deliver_at=moment, expires=moment)
    headers = broadcaster.requests[0].headers
    assert headers["pubsub-deliver-at"] == headers["pubsub-expires"] == sent
    assert '"pubsub-deliver-at" "pubsub-expires"' in headers["signature-input"]
    now = int((MOMENT - timedelta(days=1)).timestamp()) * 1_000_000
    message_moments({"pubsub-deliver-at": sent}, now)


async def test_without_moments_nothing_is_sent(client: HttpPubSubClient, broadcaster: FakeBroadcaster) -> None:
    await client.notify(topic=b"a", data=b"x")
    assert not [name for name in broadcaster.requests[0].headers if name.startswith("pubsub-")]


@pytest.mark.parametrize("name", ["deliver_at", "expires"])
@pytest.mark.parametrize(
    ("moment", "told"),
    [
        (-1, "not before now"),
        (timedelta(seconds=-1), "not before now"),
        (float("nan"), "a moment, a timedelta or seconds"),
        (float("inf"), "a moment, a timedelta or seconds"),
        (True, "a moment, a timedelta or seconds"),
        ("2026-11-21T02:11:00Z", "a moment, a timedelta or seconds"),
        (datetime(2026, 11, 21), "has a time zone"),  # noqa: DTZ001 - that is what is refused
    ],
)
async def test_what_is_no_moment_is_refused_before_anything_is_sent(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster, name: str, moment: Any, told: str
) -> None:
    with pytest.raises(InvalidRequest, match=told):
        await client.notify(topic=b"a", data=b"x", **{name: moment})
    assert broadcaster.requests == []


async def test_a_scheduled_message_is_called_off(client: HttpPubSubClient, broadcaster: FakeBroadcaster) -> None:
    assert await client.cancel_scheduled("msg_later") == 3
    with pytest.raises(NotFound):
        await client.cancel_scheduled("msg_later")
    assert broadcaster.calls == ["DELETE /v1/messages/msg_later"] * 2


@pytest.mark.parametrize("message_id", ["", "a/b", "../subscriptions/sub_1", "x" * 65, None])
async def test_what_is_no_message_id_is_not_put_into_a_path(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster, message_id: Any
) -> None:
    with pytest.raises(InvalidRequest, match="message id"):
        await client.cancel_scheduled(message_id)
    assert broadcaster.requests == []


@pytest.mark.parametrize(("hops", "sent"), [(None, "0"), ("1", "1"), ("7", "7"), ("999", "999")])
async def test_what_is_published_because_of_a_message_passes_its_hops_on(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster, wire: Wire, hops: str | None, sent: str
) -> None:
    async with client.subscribe_exact(b"foo/bar") as subscription:
        headers = broadcaster.delivery(broadcaster.id_of(Pattern.exact(b"foo/bar")), b"foo/bar", b"hello")
        headers["traceparent"] = TRACEPARENT
        del headers["pubsub-hops"]
        headers |= {} if hops is None else {"pubsub-hops": hops}
        assert (await wire.post(headers, b"hello")).status_code == 200
        message = await anext(subscription)
        await client.notify(topic=b"further", data=b"x", after=message)
        assert broadcaster.requests[-1].headers["pubsub-hops"] == sent
        assert broadcaster.requests[-1].headers["traceparent"] == TRACEPARENT
        await client.notify(topic=b"further", data=b"x", after=message, traceparent=TRACEPARENT.replace("b7", "c7"))
        assert broadcaster.requests[-1].headers["traceparent"] == TRACEPARENT.replace("b7", "c7")


async def test_a_message_that_goes_round_is_told(client: HttpPubSubClient, broadcaster: FakeBroadcaster) -> None:
    broadcaster.next.append(refuse(TooManyHops("this message has been through 16 broadcasters")))
    with pytest.raises(TooManyHops, match="16 broadcasters"):
        await client.notify(topic=b"further", data=b"x")
    assert len(broadcaster.calls) == 1


async def test_a_delivery_with_hops_that_are_no_number_is_refused(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster, wire: Wire
) -> None:
    async with client.subscribe_exact(b"foo/bar"):
        for hops in ("", "-1", "1000", "1.5", "x", "1, 1"):
            headers = broadcaster.delivery(broadcaster.id_of(Pattern.exact(b"foo/bar")), b"foo/bar", b"hello")
            assert (await wire.post(headers | {"pubsub-hops": hops}, b"hello")).status_code == 400


@pytest.mark.parametrize("retry_after", [None, "60"])
async def test_a_quota_that_is_used_up_is_told_as_such(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster, retry_after: str | None
) -> None:
    headers = {} if retry_after is None else {"retry_after": retry_after}
    broadcaster.next.append(refuse(QuotaExceeded("100 subscriptions is the most"), **headers))
    with pytest.raises(QuotaExceeded, match="the most") as caught:
        await client.subscribe_exact(b"a").__aenter__()
    assert caught.value.retry_after_seconds == (None if retry_after is None else 60)
    assert len(broadcaster.calls) == 1


async def test_a_quota_that_ends_soon_is_waited_for(client: HttpPubSubClient, broadcaster: FakeBroadcaster) -> None:
    broadcaster.next.append(refuse(QuotaExceeded("too many messages"), retry_after="0"))
    assert (await client.notify(topic=b"a", data=b"x")).message_id == "msg_1"
    assert len(broadcaster.calls) == 2
