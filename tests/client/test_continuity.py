"""What is missing among the numbers of a durable subscription, and catching up on it."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import pytest

from httppubsubclient.client import HttpPubSubClient, Subscription
from httppubsubclient.protocol.errors import InvalidRequest, PubSubError
from httppubsubclient.protocol.patterns import Pattern
from tests.client.conftest import HOST, FakeBroadcaster, Wire, config

EXACT = Pattern.exact(b"foo/bar")
WORKER = f"{HOST}/v1/receive?durable=w"


def kept(sequence: int, data: bytes = b"hello", **fields: Any) -> dict[str, Any]:
    return {
        "sequence": sequence,
        "previous_message_id": f"msg_{sequence - 1}" if sequence > 1 else None,
        "message_id": f"msg_{sequence}",
        "topic": "foo/bar",
        "content_type": "text/plain",
        "size": len(data),
        "accepted_at": "2026-11-21T02:11:00.000000Z",
        "data_b64": base64.b64encode(data).decode(),
        **fields,
    }


async def deliver(wire: Wire, sequence: int, *, previous: str | None = None, message_id: str | None = None) -> None:
    answer = await wire.deliver(
        EXACT,
        durable="w",
        message_id=message_id or f"msg_{sequence}",
        sequence=sequence,
        previous_message_id=previous or (f"msg_{sequence - 1}" if sequence > 1 else None),
    )
    assert answer.status_code == 200


async def taken(subscription: Subscription) -> list[str]:
    """What is in the buffer."""
    found = []
    async for message in subscription.with_timeout(0.001):
        if message is None:
            break
        found.append(message.message_id)
    return found


async def test_a_gap_shows_until_it_is_filled(client: HttpPubSubClient, wire: Wire) -> None:
    async with client.subscribe_exact(b"foo/bar", durable="w") as subscription:
        await deliver(wire, 1)
        assert not subscription.missing
        await deliver(wire, 5)
        assert subscription.missing == {EXACT: (range(2, 5),)}
        await deliver(wire, 3)
        assert subscription.missing == {EXACT: (range(2, 3), range(4, 5))}
        await deliver(wire, 2)
        await deliver(wire, 4)
        assert not subscription.missing
        assert [message.sequence for message in [await anext(subscription) for _ in range(5)]] == [1, 5, 3, 2, 4]


async def test_a_new_subscription_counts_from_1_and_an_old_one_from_what_comes_first(
    broadcaster: FakeBroadcaster,
) -> None:
    for first_life in (True, False):
        async with HttpPubSubClient(config()) as client:
            wire = Wire(client, broadcaster)
            async with wire.http, client.subscribe_exact(b"foo/bar", durable="w") as subscription:
                await deliver(wire, 7)
                assert subscription.missing == ({EXACT: (range(1, 7),)} if first_life else {})


async def test_numbers_go_on_where_they_were_when_a_name_comes_back(client: HttpPubSubClient, wire: Wire) -> None:
    async with client.subscribe_exact(b"foo/bar", durable="w"):
        await deliver(wire, 1)
    async with client.subscribe_exact(b"foo/bar", durable="w") as subscription:
        await deliver(wire, 3)
        assert subscription.missing == {EXACT: (range(2, 3),)}


async def test_numbers_that_begin_anew_are_told(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster, wire: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    async with client.subscribe_exact(b"foo/bar", durable="w") as subscription:
        await deliver(wire, 1)
        told = [subscription.restarted]
        await deliver(wire, 2, previous="msg_another", message_id="msg_other")
        told.append(subscription.restarted)
        assert "begin anew at number 2" in caplog.text
        broadcaster.pages["sub_1"] = [kept(2)]
        assert await subscription.catch_up()
        assert [*told, subscription.restarted] == [False, True, False]


async def test_catching_up_puts_what_is_missing_into_the_buffer(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster, wire: Wire
) -> None:
    broadcaster.pages["sub_1"] = [kept(number, b"body %d" % number) for number in range(1, 10)]
    broadcaster.page_size = 2
    async with client.subscribe_exact(b"foo/bar", durable="w") as subscription:
        for number in (1, 2, 6):
            await deliver(wire, number)
        assert await subscription.catch_up()
        assert not subscription.missing
        messages = [await anext(subscription) for _ in range(9)]
        assert [message.sequence for message in messages] == [1, 2, 6, 3, 4, 5, 7, 8, 9]
        assert [message.content for message in messages[3:]] == [b"body %d" % number for number in (3, 4, 5, 7, 8, 9)]
        assert (messages[4].topic, messages[4].content_type) == (b"foo/bar", "text/plain")
        assert [request.url.query for request in broadcaster.requests[1:]] == [
            b"after=%d&limit=100" % after for after in (2, 4, 6, 8)
        ]
        await deliver(wire, 3)
        await deliver(wire, 10)
        assert not subscription.missing
        assert await taken(subscription) == ["msg_10"]
        assert await subscription.catch_up()


async def test_a_large_body_is_fetched_and_lies_in_a_file(broadcaster: FakeBroadcaster) -> None:
    large = bytes(range(256)) * 2000
    broadcaster.pages["sub_1"] = [kept(1), kept(2, large, data_b64=None)]
    broadcaster.bodies["msg_2"] = large
    async with (
        HttpPubSubClient(config(spool_bytes=1000)) as client,
        client.subscribe_exact(b"foo/bar", durable="w") as subscription,
    ):
        assert await subscription.catch_up()
        messages = [await anext(subscription) for _ in range(2)]
        assert messages[1].size == len(large)
        assert await messages[1].read() == large
        broadcaster.pages["sub_1"].append(kept(3, large, data_b64=None))
        broadcaster.bodies["msg_3"] = large[:-1]
        with pytest.raises(PubSubError, match="of another length"):
            await subscription.catch_up()


async def test_what_is_no_longer_kept_is_not_waited_for(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster, wire: Wire
) -> None:
    broadcaster.pages["sub_1"] = [kept(4, data_b64=None, body_kept=False), kept(5), kept(6)]
    async with client.subscribe_exact(b"foo/bar", durable="w") as subscription:
        await deliver(wire, 1)
        assert await subscription.catch_up() is False
        assert not subscription.missing
        assert await taken(subscription) == ["msg_1", "msg_5", "msg_6"]
        await deliver(wire, 7)
        assert not subscription.missing


async def test_what_has_no_room_is_left_for_the_next_time(broadcaster: FakeBroadcaster) -> None:
    broadcaster.pages["sub_1"] = [kept(number) for number in range(1, 6)]
    async with (
        HttpPubSubClient(config(buffer_messages=2)) as client,
        client.subscribe_exact(b"foo/bar", durable="w") as subscription,
    ):
        got = []
        for expected in (False, False, True):
            assert await subscription.catch_up() is expected
            got += await taken(subscription)
        assert got == [f"msg_{number}" for number in range(1, 6)]


async def test_what_is_not_due_was_called_off_or_has_expired_is_not_taken(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster
) -> None:
    past, future = "2000-01-01T00:00:00Z", "2999-01-01T00:00:00Z"
    broadcaster.pages["sub_1"] = [
        kept(1, deliver_at=past),
        kept(2, deliver_at=future),
        kept(3, deliver_at=past),
        kept(4, expires_at=past),
        kept(5, expires_at=future),
    ]
    broadcaster.called_off = {"msg_3"}
    async with client.subscribe_exact(b"foo/bar", durable="w") as subscription:
        assert await subscription.catch_up()
        assert await taken(subscription) == ["msg_1", "msg_5"]
        assert not subscription.missing


async def test_without_a_number_to_count_from_one_can_be_given(broadcaster: FakeBroadcaster) -> None:
    broadcaster.keep(WORKER, {"topic": "foo/bar", "lease_seconds": 60, "delivery": "durable"})
    broadcaster.pages["sub_1"] = [kept(number) for number in range(1, 6)]
    async with (
        HttpPubSubClient(config()) as client,
        client.subscribe_exact(b"foo/bar", durable="w") as subscription,
    ):
        assert await subscription.catch_up() is False
        assert await subscription.catch_up(after=3)
        assert await taken(subscription) == ["msg_4", "msg_5"]
        await subscription.subscribe_exact(b"x")
        with pytest.raises(InvalidRequest, match="one pattern"):
            await subscription.catch_up(after=0)


async def test_all_who_share_the_pattern_get_what_was_missing(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster
) -> None:
    broadcaster.pages["sub_1"] = [kept(1), kept(2)]
    async with (
        client.subscribe_exact(b"foo/bar", durable="w") as one,
        client.subscribe_exact(b"foo/bar", durable="w") as other,
    ):
        assert await one.catch_up()
        assert await taken(one) == await taken(other) == ["msg_1", "msg_2"]


@pytest.mark.parametrize(
    "junk",
    [
        {},
        {"messages": {}, "complete": True, "last": 1},
        {"messages": [], "complete": "yes", "last": 1},
        {"messages": [5], "complete": True, "last": 1},
        {"messages": [kept(1, message_id="../x")], "complete": True, "last": 1},
        {"messages": [kept(1, message_id=None)], "complete": True, "last": 1},
        {"messages": [kept(1, data_b64="?")], "complete": True, "last": 1},
        {"messages": [kept(1, topic=None)], "complete": True, "last": 1},
        {"messages": [kept(1, accepted_at="soon")], "complete": True, "last": 1},
        {"messages": [kept(-1)], "complete": True, "last": 1},
        {"messages": [kept(2), kept(1)], "complete": True, "last": 2},
        {"messages": [kept(1, deliver_at=5)], "complete": True, "last": 1},
    ],
)
async def test_an_answer_that_is_no_page_is_an_error_that_names_the_broadcaster(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster, junk: dict[str, Any]
) -> None:
    async with client.subscribe_exact(b"foo/bar", durable="w") as subscription:
        broadcaster.next = [lambda _: httpx.Response(200, json=junk)]
        with pytest.raises(PubSubError, match=r"http://broadcaster\.test:3003"):
            await subscription.catch_up()
