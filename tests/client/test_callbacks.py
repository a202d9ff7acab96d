"""callbacks.py: `client.on(...)` as a statement, a decorator, an awaitable and a context."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from httppubsubclient.client import BroadcastersUnavailable, HttpPubSubClient, Message
from httppubsubclient.protocol.errors import Forbidden, InvalidGlob
from httppubsubclient.protocol.patterns import Pattern
from tests.client.conftest import FakeBroadcaster, Wire, config, refuse, unreachable, until

EXACT = Pattern.exact(b"foo/bar")


async def test_a_function_is_called_with_each_message_in_order(client: HttpPubSubClient, wire: Wire) -> None:
    got: list[str] = []
    await client.on(b"foo/bar", lambda message: got.append(message.message_id))
    for number in range(5):
        await wire.deliver(EXACT, message_id=f"msg_{number}")
    await until(lambda: len(got) == 5)
    assert got == [f"msg_{number}" for number in range(5)]


async def test_an_async_function_is_awaited_before_the_next_message(client: HttpPubSubClient, wire: Wire) -> None:
    got: list[str] = []

    async def take(message: Message) -> None:
        got.append(f"start {message.message_id}")
        await asyncio.sleep(0)
        got.append(f"end {message.message_id}")

    await client.on(b"foo/bar", take)
    for number in range(2):
        await wire.deliver(EXACT, message_id=f"msg_{number}")
    await until(lambda: len(got) == 4)
    assert got == ["start msg_0", "end msg_0", "start msg_1", "end msg_1"]


async def test_an_exception_is_logged_and_the_next_message_is_handled(
    client: HttpPubSubClient, wire: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    got: list[str] = []

    def take(message: Message) -> None:
        got.append(message.message_id)
        raise ValueError("not this one")

    await client.on(b"foo/bar", take)
    await wire.deliver(EXACT, message_id="msg_1")
    await wire.deliver(EXACT, message_id="msg_2")
    await until(lambda: len(got) == 2)
    assert "not this one" in caplog.text


async def test_a_cancelled_task_that_the_function_waited_for_does_not_end_the_callback(
    client: HttpPubSubClient, wire: Wire, caplog: pytest.LogCaptureFixture
) -> None:
    got: list[str] = []

    async def take(message: Message) -> None:
        got.append(message.message_id)
        other = asyncio.create_task(asyncio.Event().wait())
        other.cancel()
        await other

    await client.on(b"foo/bar", take)
    await wire.deliver(EXACT, message_id="msg_1")
    await wire.deliver(EXACT, message_id="msg_2")
    await until(lambda: len(got) == 2)
    assert "CancelledError" in caplog.text


@pytest.mark.parametrize(
    ("pattern", "kind", "shown"),
    [
        (b"foo/bar", None, "topic='foo/bar'"),
        (b"foo/bar", "exact", "topic='foo/bar'"),
        ("foo/*", None, "glob='foo/*'"),
        ("foo/*", "glob", "glob='foo/*'"),
        ("foo/+", "mqtt", "mqtt='foo/+'"),
    ],
)
async def test_bytes_are_a_topic_and_text_is_a_glob(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster, pattern: Any, kind: Any, shown: str
) -> None:
    await client.on(pattern, print, kind=kind)
    assert broadcaster.patterns() == [shown]


@pytest.mark.parametrize(
    ("pattern", "kind"), [("foo", "exact"), (b"foo", "glob"), (b"foo", "mqtt"), ("foo", "junk"), (5, None)]
)
def test_a_pattern_of_another_type_is_an_error(pattern: Any, kind: Any) -> None:
    with pytest.raises(TypeError, match="bytes for one exact topic"):
        HttpPubSubClient(config()).on(pattern, print, kind=kind)


def test_a_malformed_glob_is_an_error_at_once() -> None:
    with pytest.raises(InvalidGlob):
        HttpPubSubClient(config()).on("[", print)


async def test_callbacks_registered_before_entering_are_confirmed_on_entering(broadcaster: FakeBroadcaster) -> None:
    got: list[str] = []
    client = HttpPubSubClient(config())
    client.on(b"foo/bar", lambda message: got.append(message.message_id))

    @client.on("foo/*")
    async def take(message: Message) -> None:
        got.append(f"glob {message.message_id}")

    assert callable(take)
    for _ in range(2):  # each time it is entered
        async with client:
            assert sorted(broadcaster.patterns()) == ["glob='foo/*'", "topic='foo/bar'"]
            wire = Wire(client, broadcaster)
            async with wire.http:
                await wire.deliver(EXACT)
                await wire.deliver(Pattern.glob("foo/*"))
            await until(lambda: len(got) == 2)
            got.clear()
        assert broadcaster.kept == {}


async def test_a_statement_inside_the_context_subscribes_in_the_background(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster
) -> None:
    client.on("foo/*", print)
    await until(lambda: broadcaster.patterns() == ["glob='foo/*'"])


async def test_a_callback_registered_inside_ends_with_the_context(broadcaster: FakeBroadcaster) -> None:
    client = HttpPubSubClient(config())
    async with client:
        await client.on("foo/*", print)
    async with client:
        assert broadcaster.kept == {}


async def test_as_a_context_it_unsubscribes_at_its_end(client: HttpPubSubClient, broadcaster: FakeBroadcaster) -> None:
    async with client.on("foo/*", print):
        assert broadcaster.patterns() == ["glob='foo/*'"]
    assert broadcaster.patterns() == []


async def test_a_refused_subscription_is_raised_when_awaited_and_logged_in_any_case(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster, caplog: pytest.LogCaptureFixture
) -> None:
    broadcaster.next = [refuse(Forbidden("not this one"))]
    with pytest.raises(Forbidden, match="not this one"):
        await client.on("foo/*", print)
    broadcaster.next = [refuse(Forbidden("nor this one"))]
    client.on("foo/*", print)
    await until(lambda: "nor this one" in caplog.text)


async def test_entering_fails_when_a_callback_is_refused(broadcaster: FakeBroadcaster) -> None:
    broadcaster.always = refuse(Forbidden("nobody may"))
    client = HttpPubSubClient(config(request_timeout_seconds=0.2))
    client.on("foo/*", print)
    with pytest.raises(Forbidden):
        async with client:
            pass
    broadcaster.always = None
    async with client:
        assert len(broadcaster.kept) == 1


async def test_a_broadcaster_that_is_away_at_the_start_is_tried_again_in_the_background(
    broadcaster: FakeBroadcaster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("httppubsubclient.callbacks._MAX_PAUSE_SECONDS", 0.01)
    broadcaster.always = unreachable
    client = HttpPubSubClient(config(request_timeout_seconds=0.1))
    client.on("foo/*", print)
    client.on("bar/*", print)
    async with client:
        assert broadcaster.kept == {}
        broadcaster.always = None
        await until(lambda: len(broadcaster.kept) == 2)
    assert broadcaster.kept == {}


async def test_leaving_ends_the_attempts_in_the_background(broadcaster: FakeBroadcaster) -> None:
    broadcaster.always = unreachable
    client = HttpPubSubClient(config(request_timeout_seconds=0.1))
    client.on("foo/*", print)
    before = asyncio.all_tasks()
    async with client:
        pass
    assert asyncio.all_tasks() == before


async def test_whoever_awaits_a_callback_is_told_that_the_broadcaster_is_away_and_nothing_goes_on(
    broadcaster: FakeBroadcaster,
) -> None:
    async with HttpPubSubClient(config(request_timeout_seconds=0.1)) as client:
        broadcaster.always = unreachable
        before = asyncio.all_tasks()
        with pytest.raises(BroadcastersUnavailable):
            await client.on("foo/*", print)
        assert asyncio.all_tasks() == before


async def test_a_callback_may_stop_itself(client: HttpPubSubClient, wire: Wire, broadcaster: FakeBroadcaster) -> None:
    got: list[str] = []

    async def take(message: Message) -> None:
        got.append(message.message_id)
        await callback.stop()

    callback = client.on(b"foo/bar", take)
    await callback
    await wire.deliver(EXACT)
    await until(lambda: broadcaster.kept == {})
    assert got == ["msg_1"]


async def test_a_call_that_is_running_may_finish_when_the_client_is_left(broadcaster: FakeBroadcaster) -> None:
    got: list[str] = []
    started, go_on = asyncio.Event(), asyncio.Event()

    async def take(_message: Message) -> None:
        started.set()
        await go_on.wait()
        got.append("finished")

    async with HttpPubSubClient(config(leave_timeout_seconds=5)) as client:
        wire = Wire(client, broadcaster)
        await client.on(b"foo/bar", take)
        async with wire.http:
            await wire.deliver(EXACT)
        await started.wait()
        asyncio.get_running_loop().call_soon(go_on.set)
    assert got == ["finished"]


async def test_a_call_that_does_not_return_is_cancelled(
    broadcaster: FakeBroadcaster, caplog: pytest.LogCaptureFixture
) -> None:
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def take(_message: Message) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with HttpPubSubClient(config(leave_timeout_seconds=0.02)) as client:
        wire = Wire(client, broadcaster)
        await client.on(b"foo/bar", take)
        async with wire.http:
            await wire.deliver(EXACT)
        await started.wait()
    assert cancelled.is_set()
    assert "did not return in time" in caplog.text


async def test_stopping_before_it_is_confirmed_ends_those_who_await_it(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster
) -> None:
    async def hang(_: Any) -> None:
        await asyncio.Event().wait()

    broadcaster.next = [hang]
    callback = client.on("foo/*", print)
    waiting = asyncio.create_task(callback.confirmed())
    await until(lambda: broadcaster.calls)
    await callback.stop()
    with pytest.raises(RuntimeError, match="was stopped"):
        await waiting
    await until(lambda: broadcaster.calls[-1] == "PUT /v1/subscriptions" and len(broadcaster.calls) > 1)


async def test_misuse_is_told(client: HttpPubSubClient) -> None:
    with pytest.raises(TypeError, match="got no function"):
        await client.on("foo/*")
    with pytest.raises(TypeError, match="takes a message"):
        client.on("foo/*", 5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="has its function already"):
        client.on("foo/*", print)(print)
    with pytest.raises(RuntimeError, match="enter the client first"):
        await HttpPubSubClient(config()).on("foo/*", print)
