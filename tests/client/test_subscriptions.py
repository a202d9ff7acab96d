"""subscriptions.py: what an application sees of its messages."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from httppubsubclient.client import HttpPubSubClient, Message
from httppubsubclient.protocol.patterns import Pattern
from tests.client.conftest import FakeBroadcaster, Wire, config

EXACT = Pattern.exact(b"foo/bar")
GLOB = Pattern.glob("foo/*")


async def test_a_delivery_comes_out_of_the_iterator(client: HttpPubSubClient, wire: Wire) -> None:
    async with client.subscribe_exact(b"foo/bar") as subscription:
        assert (await wire.deliver(EXACT, body=b"hello")).status_code == 200
        async for message in subscription:
            assert message.topic == b"foo/bar"
            assert message.data.read() == b"hello"
            assert message.data.read() == b""
            assert message.content == await message.read() == b"hello"
            assert (message.text(), message.size) == ("hello", 5)
            assert (message.message_id, message.content_type, message.pattern) == ("msg_1", "text/plain", EXACT)
            break


async def test_breaking_out_of_an_iteration_keeps_what_waits(client: HttpPubSubClient, wire: Wire) -> None:
    async with client.subscribe_exact(b"foo/bar") as subscription:
        for number in range(3):
            await wire.deliver(EXACT, body=b"%d" % number, message_id=f"msg_{number}")
        got = []
        for _ in range(3):
            async for message in subscription:
                got.append(message.text())
                break
        assert got == ["0", "1", "2"]


async def test_the_iterator_may_be_awaited_and_a_cancelled_next_loses_nothing(
    client: HttpPubSubClient, wire: Wire
) -> None:
    async with client.subscribe_exact(b"foo/bar") as subscription:
        iterator = await subscription.__aiter__()
        waiting = asyncio.create_task(iterator.__anext__())
        await asyncio.sleep(0)
        waiting.cancel()
        await wire.deliver(EXACT, body=b"hello")
        assert (await iterator.__anext__()).content == b"hello"
        await asyncio.wait({waiting})
        assert waiting.cancelled()


async def test_with_timeout_yields_none_each_time_nothing_came(client: HttpPubSubClient, wire: Wire) -> None:
    async with client.subscribe_exact(b"foo/bar") as subscription:
        got: list[Any] = []
        async for message in subscription.with_timeout(0.01):
            got.append(message)
            if len(got) == 2:
                await wire.deliver(EXACT, body=b"hello")
            if len(got) == 4:
                break
        assert got[:2] == [None, None]
        assert got[2].content == b"hello"
        assert got[3] is None


async def test_messages_are_shared_out_among_tasks_that_iterate(client: HttpPubSubClient, wire: Wire) -> None:
    got: list[tuple[int, str]] = []

    async def take(number: int, subscription: Any) -> None:
        async for message in subscription:
            got.append((number, message.message_id))
            await asyncio.sleep(0)

    async with client.subscribe_exact(b"foo/bar") as subscription:
        tasks = [asyncio.create_task(take(number, subscription)) for number in range(3)]
        await asyncio.sleep(0)
        for number in range(30):
            await wire.deliver(EXACT, message_id=f"msg_{number}")
        async with asyncio.timeout(5):
            while len(got) < 30:
                await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    assert sorted(message_id for _, message_id in got) == sorted(f"msg_{number}" for number in range(30))
    assert {number for number, _ in got} == {0, 1, 2}


async def test_leaving_ends_every_iteration(client: HttpPubSubClient) -> None:
    async def take(messages: Any) -> list[Message]:
        return [message async for message in messages]

    async with client.subscribe_exact(b"foo/bar") as subscription:
        tasks = [asyncio.create_task(take(subscription)), asyncio.create_task(take(subscription.with_timeout(60)))]
        await asyncio.sleep(0)
    assert await asyncio.gather(*tasks) == [[], []]
    assert [message async for message in subscription] == []


async def test_leaving_the_client_ends_every_iteration(broadcaster: FakeBroadcaster) -> None:
    async with HttpPubSubClient(config()) as client:
        subscription = client.subscribe_exact(b"foo/bar")
        await subscription.__aenter__()
        waiting = asyncio.create_task(subscription.messages().__anext__())
        await asyncio.sleep(0)
    with pytest.raises(StopAsyncIteration):
        await waiting
    assert broadcaster.kept == {}
    await subscription.__aexit__(None, None, None)


async def test_two_subscriptions_on_one_topic_share_one_registration_and_each_get_every_message(
    client: HttpPubSubClient, wire: Wire, broadcaster: FakeBroadcaster
) -> None:
    async with client.subscribe_exact(b"foo/bar") as one:
        async with client.subscribe_exact(b"foo/bar") as two:
            assert broadcaster.calls == ["PUT /v1/subscriptions"]
            await wire.deliver(EXACT)
            first, second = await one.messages().__anext__(), await two.messages().__anext__()
            assert first.data.read() == second.data.read() == b"hello"
        assert broadcaster.calls == ["PUT /v1/subscriptions"]
        await wire.deliver(EXACT, message_id="msg_2")
        assert (await one.messages().__anext__()).message_id == "msg_2"
    assert broadcaster.kept == {}


async def test_overlapping_patterns_in_one_subscription_give_one_copy(client: HttpPubSubClient, wire: Wire) -> None:
    async with client.subscribe_multi() as subscription:
        await subscription.subscribe_exact(b"foo/bar")
        await subscription.subscribe_glob("foo/*")
        await subscription.subscribe_mqtt("foo/+")
        for pattern in (EXACT, GLOB, Pattern.mqtt("foo/+")):
            assert (await wire.deliver(pattern, message_id="msg_1")).status_code == 200
        await wire.deliver(GLOB, message_id="msg_2")
        got = [await subscription.messages().__anext__() for _ in range(2)]
        assert [message.message_id for message in got] == ["msg_1", "msg_2"]


async def test_overlapping_subscriptions_get_their_own_copies(client: HttpPubSubClient, wire: Wire) -> None:
    async with client.subscribe_exact(b"foo/bar") as exact, client.subscribe_glob("foo/*") as glob:
        await wire.deliver(EXACT)
        await wire.deliver(GLOB)
        assert (await exact.messages().__anext__()).message_id == "msg_1"
        assert (await glob.messages().__anext__()).message_id == "msg_1"


async def test_patterns_are_added_and_removed_while_a_subscription_is_entered(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster
) -> None:
    async with client.subscribe_multi() as subscription:
        assert broadcaster.calls == []
        await subscription.subscribe_exact(b"foo/bar")
        await subscription.subscribe_exact(b"foo/bar")
        await subscription.subscribe_glob("foo/*")
        await subscription.subscribe_mqtt("a/+")
        assert broadcaster.patterns() == ["topic='foo/bar'", "glob='foo/*'", "mqtt='a/+'"]
        await subscription.unsubscribe_exact(b"foo/bar")
        await subscription.unsubscribe_exact(b"foo/bar")
        assert subscription.patterns == (GLOB, Pattern.mqtt("a/+"))
        await subscription.unsubscribe_glob("foo/*")
        await subscription.unsubscribe_mqtt("a/+")
        assert broadcaster.patterns() == []


async def test_many_patterns_are_confirmed_in_one_call(client: HttpPubSubClient, broadcaster: FakeBroadcaster) -> None:
    async with client.subscribe(exact=[b"a", b"b"], glob=["c/*"], mqtt=["d/+", "e/#"]):
        assert len(broadcaster.kept) == 5
        assert broadcaster.calls == ["PUT /v1/subscriptions"]
    assert broadcaster.kept == {}


@pytest.mark.parametrize("wrong", [{"exact": b"a"}, {"glob": "a"}, {"mqtt": "a"}])
def test_a_single_pattern_instead_of_a_list_is_an_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="is a list"):
        HttpPubSubClient(config()).subscribe(**wrong)


async def test_a_subscription_is_entered_once_and_used_only_then(client: HttpPubSubClient) -> None:
    subscription = client.subscribe_exact(b"foo")
    with pytest.raises(RuntimeError, match="not entered"):
        subscription.messages()
    with pytest.raises(RuntimeError, match="not entered"):
        subscription.with_timeout(1)
    with pytest.raises(RuntimeError, match="not entered"):
        await subscription.subscribe_exact(b"foo")
    async with subscription:
        pass
    with pytest.raises(RuntimeError, match="entered once"):
        async with subscription:
            pass
    with pytest.raises(RuntimeError, match="not entered"):
        await subscription.subscribe_exact(b"foo")


@pytest.mark.parametrize(
    ("content_type", "body", "text"),
    [
        ("text/plain", "grün".encode(), "grün"),
        ("text/plain; charset=latin-1", "grün".encode("latin-1"), "grün"),
        ("text/plain; charset=no-such-thing", "grün".encode(), "grün"),
        ("application/json", b'{"a": 1}', '{"a": 1}'),
    ],
)
async def test_text_is_decoded_as_its_content_type_says(
    client: HttpPubSubClient, wire: Wire, content_type: str, body: bytes, text: str
) -> None:
    async with client.subscribe_exact(b"foo/bar") as subscription:
        await wire.deliver(EXACT, body=body, content_type=content_type)
        message = await subscription.messages().__anext__()
        assert message.text() == text
        if content_type == "application/json":
            assert message.json() == {"a": 1}


async def test_a_large_body_lies_in_a_file_and_is_read_the_same_way(broadcaster: FakeBroadcaster) -> None:
    async with HttpPubSubClient(config(spool_bytes=100)) as client:
        wire = Wire(client, broadcaster)
        async with client.subscribe_exact(b"foo/bar") as one, client.subscribe_exact(b"foo/bar") as two, wire.http:
            body = b"0123456789" * 1000
            await wire.deliver(EXACT, body=body)
            message, other = await one.messages().__anext__(), await two.messages().__anext__()
            assert message.data.read(5) == b"01234"
            assert other.data.read() == body
            assert message.data.read() == body[5:]
            assert message.content == await message.read() == body


async def test_a_slow_consumer_is_answered_503_and_nothing_else_is_held_up(broadcaster: FakeBroadcaster) -> None:
    async with HttpPubSubClient(config(buffer_messages=2)) as client:
        wire = Wire(client, broadcaster)
        async with client.subscribe_exact(b"foo/bar") as slow, client.subscribe_glob("foo/*") as fast, wire.http:
            statuses = [(await wire.deliver(EXACT, message_id=f"msg_{n}")).status_code for n in range(4)]
            assert statuses == [200, 200, 503, 503]
            assert (await wire.deliver(GLOB)).status_code == 200
            await slow.messages().__anext__()
            assert (await wire.deliver(EXACT, message_id="msg_2")).status_code == 200
            assert (await fast.messages().__anext__()).message_id == "msg_1"


async def test_when_one_of_two_is_full_the_retry_is_only_for_that_one(broadcaster: FakeBroadcaster) -> None:
    async with HttpPubSubClient(config(buffer_messages=1)) as client:
        wire = Wire(client, broadcaster)
        async with client.subscribe_exact(b"foo/bar") as full, wire.http:
            await wire.deliver(EXACT, message_id="msg_1")
            async with client.subscribe_exact(b"foo/bar") as free:
                answer = await wire.deliver(EXACT, message_id="msg_2")
                assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
                assert (await free.messages().__anext__()).message_id == "msg_2"
                assert (await full.messages().__anext__()).message_id == "msg_1"
                assert (await wire.deliver(EXACT, message_id="msg_2", attempt=2)).status_code == 200
                assert (await full.messages().__anext__()).message_id == "msg_2"
                assert [m async for m in _until_none(free.with_timeout(0.01))] == []


async def _until_none(messages: Any) -> Any:
    async for message in messages:
        if message is None:
            return
        yield message


async def test_a_message_that_found_no_room_is_not_remembered_as_a_duplicate(broadcaster: FakeBroadcaster) -> None:
    async with HttpPubSubClient(config(buffer_messages=1)) as client:
        wire = Wire(client, broadcaster)
        async with client.subscribe_exact(b"foo/bar") as subscription, wire.http:
            await wire.deliver(EXACT, message_id="msg_1")
            assert (await wire.deliver(EXACT, message_id="msg_2")).status_code == 503
            await subscription.messages().__anext__()
            assert (await wire.deliver(EXACT, message_id="msg_2")).status_code == 200
            assert (await subscription.messages().__anext__()).message_id == "msg_2"


async def test_the_memory_of_message_ids_is_bounded(broadcaster: FakeBroadcaster) -> None:
    async with HttpPubSubClient(config(remembered_message_ids=2)) as client:
        wire = Wire(client, broadcaster)
        async with client.subscribe_exact(b"foo/bar") as subscription, wire.http:
            for message_id in ("msg_1", "msg_2", "msg_3", "msg_3", "msg_1"):
                assert (await wire.deliver(EXACT, message_id=message_id)).status_code == 200
            got = [await subscription.messages().__anext__() for _ in range(4)]
            assert [message.message_id for message in got] == ["msg_1", "msg_2", "msg_3", "msg_1"]


async def test_fifty_copies_at_once_arrive_once(client: HttpPubSubClient, wire: Wire) -> None:
    async with client.subscribe_exact(b"foo/bar") as subscription:
        answers = await asyncio.gather(*(wire.deliver(EXACT) for _ in range(50)))
        assert {answer.status_code for answer in answers} == {200}
        got = [m async for m in _until_none(subscription.with_timeout(0.01))]
        assert len(got) == 1
