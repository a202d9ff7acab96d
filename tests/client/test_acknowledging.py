"""When a durable message counts as received: accepted, processed, explicit; and what comes again."""

from __future__ import annotations

import asyncio
import logging
import random
from pathlib import Path
from typing import Any

import httpx
import pytest

from httppubsubclient.client import HttpPubSubClient, Message, Subscription
from httppubsubclient.listener import bound_socket
from httppubsubclient.protocol.patterns import Pattern
from tests.client.conftest import FakeBroadcaster, Wire, config, until

EXACT = Pattern.exact(b"foo/bar")


def delivering(wire: Wire, **options: Any) -> asyncio.Task[httpx.Response]:
    return asyncio.create_task(wire.deliver(EXACT, durable="w", **options))


async def settled() -> None:
    """Let everything happen that can happen at once."""
    for _ in range(50):
        await asyncio.sleep(0)


async def nothing_in(subscription: Subscription) -> bool:
    async for message in subscription.with_timeout(0.001):
        return message is None
    return False


async def test_accepted_answers_when_it_is_in_the_buffer(client: HttpPubSubClient, wire: Wire) -> None:
    async with client.subscribe_exact(b"foo/bar", durable="w") as subscription:
        assert (await wire.deliver(EXACT, durable="w")).status_code == 200
        message = await anext(subscription)
        message.ack()
        message.nack()
        assert (await wire.deliver(EXACT, durable="w")).status_code == 200
        assert await nothing_in(subscription)


async def test_processed_answers_when_it_was_taken(client: HttpPubSubClient, wire: Wire) -> None:
    async with client.subscribe_exact(b"foo/bar", durable="w", ack="processed") as subscription:
        answers = [delivering(wire, message_id=f"msg_{number}") for number in range(3)]
        await settled()
        assert not any(answer.done() for answer in answers)
        for number in range(3):
            message = await anext(subscription)
            assert (await answers[int(message.message_id[-1])]).status_code == 200
            await settled()
            assert sum(answer.done() for answer in answers) == number + 1


async def test_explicit_answers_when_it_is_acknowledged(client: HttpPubSubClient, wire: Wire) -> None:
    async with client.subscribe_exact(b"foo/bar", durable="w", ack="explicit") as subscription:
        answer = delivering(wire)
        message = await anext(subscription)
        await settled()
        assert not answer.done()
        message.ack()
        message.ack()
        assert (await answer).status_code == 200
        assert (await wire.deliver(EXACT, durable="w", attempt=2)).status_code == 200
        assert await nothing_in(subscription)


async def test_what_is_given_back_comes_again(client: HttpPubSubClient, wire: Wire) -> None:
    async with client.subscribe_exact(b"foo/bar", durable="w", ack="explicit") as subscription:
        answer = delivering(wire)
        first = await anext(subscription)
        first.nack()
        assert (await answer).status_code == 503
        assert "retry-after" not in (await answer).headers, "its own schedule says when"
        answer = delivering(wire, attempt=2)
        second = await anext(subscription)
        first.ack()
        await settled()
        assert not answer.done(), "it was decided about the first copy before"
        second.ack()
        assert (await answer).status_code == 200


async def test_a_further_attempt_joins_the_wait_and_nothing_is_put_twice(
    broadcaster: FakeBroadcaster,
) -> None:
    async with HttpPubSubClient(config(ack_timeout_seconds=0.01)) as client:
        wire = Wire(client, broadcaster)
        async with wire.http, client.subscribe_exact(b"foo/bar", durable="w", ack="processed") as subscription:
            for attempt in (1, 2, 3):
                answer = await wire.deliver(EXACT, durable="w", attempt=attempt)
                assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert (await anext(subscription)).message_id == "msg_1"
            assert await nothing_in(subscription)
            assert (await wire.deliver(EXACT, durable="w", attempt=4)).status_code == 200
            assert await nothing_in(subscription)


async def test_two_attempts_that_wait_are_answered_together(client: HttpPubSubClient, wire: Wire) -> None:
    async with client.subscribe_exact(b"foo/bar", durable="w", ack="processed") as subscription:
        answers = [delivering(wire, attempt=attempt) for attempt in (1, 2)]
        await settled()
        await anext(subscription)
        assert [(await answer).status_code for answer in answers] == [200, 200]
        assert await nothing_in(subscription)


@pytest.mark.parametrize("ack", ["processed", "explicit"])
async def test_leaving_gives_back_what_was_not_acknowledged(client: HttpPubSubClient, wire: Wire, ack: Any) -> None:
    async with client.subscribe_exact(b"foo/bar", durable="w", ack=ack) as subscription:
        answers = [delivering(wire, message_id=f"msg_{number}") for number in range(2)]
        await settled()
        if ack == "explicit":
            await anext(subscription)
    assert [(await answer).status_code for answer in answers] == [503, 503]
    async with client.subscribe_exact(b"foo/bar", durable="w", ack=ack) as again:
        answers = [delivering(wire, message_id=f"msg_{number}", attempt=2) for number in range(2)]
        got = [await anext(again) for _ in range(2)]
        for message in got:
            message.ack()
        assert [(await answer).status_code for answer in answers] == [200, 200]
        assert sorted(message.message_id for message in got) == ["msg_0", "msg_1"]


async def test_leaving_the_client_gives_back_too(broadcaster: FakeBroadcaster) -> None:
    async with HttpPubSubClient(config()) as client:
        wire = Wire(client, broadcaster)
        await client.subscribe_exact(b"foo/bar", durable="w", ack="processed").__aenter__()
        answer = delivering(wire)
        await settled()
    assert (await answer).status_code == 503
    await wire.http.aclose()


async def test_an_acknowledgement_after_leaving_is_remembered(client: HttpPubSubClient, wire: Wire) -> None:
    async with client.subscribe_exact(b"foo/bar", durable="w", ack="explicit") as subscription:
        answer = delivering(wire)
        message = await anext(subscription)
    assert (await answer).status_code == 503
    message.ack()
    async with client.subscribe_exact(b"foo/bar", durable="w", ack="explicit") as again:
        assert (await wire.deliver(EXACT, durable="w", attempt=2)).status_code == 200
        assert await nothing_in(again)


async def test_what_was_accepted_and_not_taken_is_told_when_it_is_dropped(
    client: HttpPubSubClient, wire: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    async with client.subscribe_exact(b"foo/bar", durable="w"):
        await wire.deliver(EXACT, durable="w")
    assert "1 messages of 'w' were acknowledged, and are dropped" in caplog.text


async def test_all_members_have_to_acknowledge(client: HttpPubSubClient, wire: Wire) -> None:
    async with (
        client.subscribe_exact(b"foo/bar", durable="w", ack="explicit") as careful,
        client.subscribe_exact(b"foo/bar", durable="w") as quick,
    ):
        answer = delivering(wire)
        message = await anext(careful)
        await anext(quick)
        await settled()
        assert not answer.done()
        message.ack()
        assert (await answer).status_code == 200
    async with client.subscribe_exact(b"foo/bar", durable="w") as later:
        assert (await wire.deliver(EXACT, durable="w", attempt=2)).status_code == 200
        assert await nothing_in(later), "both had it"


async def test_what_one_member_still_owes_is_not_remembered(client: HttpPubSubClient, wire: Wire) -> None:
    async with (
        client.subscribe_exact(b"foo/bar", durable="w", ack="explicit"),
        client.subscribe_exact(b"foo/bar", durable="w") as quick,
    ):
        answer = delivering(wire)
        await anext(quick)
    assert (await answer).status_code == 503
    async with client.subscribe_exact(b"foo/bar", durable="w") as later:
        assert (await wire.deliver(EXACT, durable="w", attempt=2)).status_code == 200
        assert (await anext(later)).message_id == "msg_1"


async def test_no_more_than_the_buffer_holds_is_unacknowledged(broadcaster: FakeBroadcaster) -> None:
    async with HttpPubSubClient(config(buffer_messages=2, ack_timeout_seconds=0.01)) as client:
        wire = Wire(client, broadcaster)
        async with wire.http, client.subscribe_exact(b"foo/bar", durable="w", ack="explicit") as subscription:
            for number in range(2):
                await wire.deliver(EXACT, durable="w", message_id=f"msg_{number}")
            messages = [await anext(subscription) for _ in range(2)]
            answer = await wire.deliver(EXACT, durable="w", message_id="msg_2")
            assert "full" in answer.json()["detail"]
            messages[0].ack()
            answer = await wire.deliver(EXACT, durable="w", message_id="msg_2")
            assert "not acknowledged" in answer.json()["detail"]


async def test_a_connection_that_is_gone_leaves_nothing_behind(broadcaster: FakeBroadcaster) -> None:
    listening_at = bound_socket("127.0.0.1", 0)
    port = listening_at.getsockname()[1]
    listening_at.close()
    host = f"http://127.0.0.1:{port}"
    bind = {"type": "uvicorn", "address": "127.0.0.1", "port": port}
    async with (
        HttpPubSubClient(config(host=host, bind=bind, ack_timeout_seconds=60)) as client,
        client.subscribe_exact(b"foo/bar", durable="w", ack="processed") as subscription,
    ):
        headers = broadcaster.delivery("sub_1", b"foo/bar", b"hello")
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(
            f"POST /v1/receive?durable=w HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n{lines}\r\nhello".encode()
        )
        inbox: Any = subscription._inbox
        await until(lambda: inbox._held and next(iter(inbox._held.values())).waited_for is not None)
        waiting = [task for task in asyncio.all_tasks() if "coro=<_gone()" in repr(task)]
        assert len(waiting) == 1
        writer.close()
        await until(lambda: waiting[0].done())
        assert (await anext(subscription)).message_id == "msg_1"
        await reader.read()


async def test_a_callback_acknowledges_when_it_has_returned(
    client: HttpPubSubClient, wire: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    go, calls = asyncio.Event(), []

    async def work(message: Message) -> None:
        calls.append(message.message_id)
        await go.wait()
        if len(calls) == 1:
            raise RuntimeError("not this time")

    async with client.on(b"foo/bar", work, durable="w", ack="processed"):
        answer = delivering(wire)
        await until(lambda: calls)
        await settled()
        assert not answer.done()
        go.set()
        assert (await answer).status_code == 503
        assert (await wire.deliver(EXACT, durable="w", attempt=2)).status_code == 200
        assert calls == ["msg_1", "msg_1"]
    assert [record.levelno for record in caplog.records if record.levelno > logging.INFO] == [logging.ERROR]


async def test_a_callback_with_a_name_is_still_subscribed_when_it_ends(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster, wire: Wire
) -> None:
    got: list[str] = []
    async with client.on(b"foo/bar", lambda message: got.append(message.message_id), durable="w"):
        assert (await wire.deliver(EXACT, durable="w")).status_code == 200
        await until(lambda: got)
    assert broadcaster.calls == ["POST /v1/subscriptions"]
    assert (await wire.deliver(EXACT, durable="w", message_id="msg_2")).status_code == 503


@pytest.mark.parametrize("seed", range(6))
async def test_whatever_happens_200_means_acknowledged_and_what_is_acknowledged_comes_once(
    broadcaster: FakeBroadcaster, tmp_path: Path, seed: int
) -> None:
    """Messages come again and again, are given back or not decided; subscriptions and clients are left and entered."""
    chance = random.Random(seed)
    settings = config(ack_timeout_seconds=0.005, remember_file=tmp_path / "seen", buffer_messages=4)
    acknowledged: list[str] = []
    owed = {f"msg_{number}" for number in range(12)}

    async def attempt(wire: Wire, message_id: str) -> None:
        answer = await wire.deliver(EXACT, durable="w", message_id=message_id)
        assert answer.status_code in (200, 503)
        if answer.status_code == 200:
            assert message_id in acknowledged
            owed.discard(message_id)

    async def work(subscription: Subscription, *, certain: bool) -> None:
        async for message in subscription:
            await asyncio.sleep(chance.random() / 500)
            outcome = 0 if certain else chance.randrange(3)
            if outcome == 0:
                acknowledged.append(message.message_id)
                message.ack()
            elif outcome == 1:
                message.nack()

    async def life(*, certain: bool) -> None:
        async with HttpPubSubClient(settings) as client:
            wire = Wire(client, broadcaster)
            async with wire.http, asyncio.TaskGroup() as attempts:
                for _ in range(chance.randrange(1, 4)):
                    async with client.subscribe_exact(b"foo/bar", durable="w", ack="explicit") as subscription:
                        working = [asyncio.create_task(work(subscription, certain=certain)) for _ in range(2)]
                        for message_id in chance.sample(sorted(owed), len(owed)) * 2:
                            attempts.create_task(attempt(wire, message_id))
                            await asyncio.sleep(chance.random() / 500)
                    await asyncio.gather(*working)

    for _ in range(3):
        await life(certain=False)
    async with asyncio.timeout(20):
        while owed:
            await life(certain=True)
    assert sorted(acknowledged) == sorted(set(acknowledged)), "no message is given again after it was acknowledged"
    assert len(acknowledged) == 12
