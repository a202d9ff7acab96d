"""publishing.py: when a message shall be delivered, when it expires, and calling it off."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from httppubsubclient.client import HttpPubSubClient
from httppubsubclient.protocol.errors import InvalidRequest, NotFound
from httppubsubclient.protocol.moments import message_moments
from tests.client.conftest import FakeBroadcaster

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
