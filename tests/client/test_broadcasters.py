"""broadcasters.py and notify: calls are signed, spread, tried again where that is safe, and always end."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from httppubsubclient.client import BroadcastersUnavailable, HttpPubSubClient
from httppubsubclient.protocol.credentials import Credentials
from httppubsubclient.protocol.errors import (
    ConfigurationError,
    Forbidden,
    InvalidRequest,
    InvalidTopic,
    PubSubError,
    QuotaExceeded,
    TooLarge,
    Unauthorized,
    Unavailable,
)
from tests.client.conftest import URL, FakeBroadcaster, config, cut_off, refuse, unreachable

OTHER = "http://other.test:3003"
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def test_notify_publishes_bytes_and_tells_the_counts(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster
) -> None:
    result = await client.notify(topic=b"foo/b r\xff", data=b"Hello, world!", content_type="text/plain")
    assert (result.message_id, result.matched, result.notified, result.pending, result.failed) == ("msg_1", 3, 2, 1, 0)
    (request,) = broadcaster.requests
    assert request.url.raw_path == b"/v1/notify?topic=foo/b%20r%FF"
    assert request.content == b"Hello, world!"
    assert request.headers["content-type"] == "text/plain"
    assert request.headers["content-length"] == "13"
    assert "transfer-encoding" not in request.headers


async def test_notify_publishes_files_and_streams(client: HttpPubSubClient, broadcaster: FakeBroadcaster) -> None:
    async def stream() -> AsyncIterator[bytes]:
        yield b"one "
        yield b"two"

    await client.notify(topic=b"foo", sync_file=io.BytesIO(b"file"))
    await client.notify(topic=b"foo", data=stream())
    await client.notify(topic=b"foo", data=b"")
    assert [request.content for request in broadcaster.requests] == [b"file", b"one two", b""]
    assert broadcaster.requests[0].headers["content-type"] == "application/octet-stream"


async def test_notify_passes_on_what_the_publisher_prefers(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster
) -> None:
    await client.notify(
        topic=b"foo", data=b"", idempotency_key="key-1", wait=2.5, respond_async=True, traceparent=TRACEPARENT
    )
    headers = broadcaster.requests[0].headers
    assert headers["idempotency-key"] == "key-1"
    assert headers["prefer"] == "respond-async, wait=3"
    assert headers["traceparent"] == TRACEPARENT


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"topic": "text"}, InvalidTopic),
        ({"topic": b""}, InvalidTopic),
        ({"idempotency_key": "with space"}, InvalidRequest),
        ({"idempotency_key": ""}, InvalidRequest),
        ({"wait": -1}, InvalidRequest),
        ({"wait": float("nan")}, InvalidRequest),
        ({"traceparent": "junk"}, InvalidRequest),
        ({"content_type": "text/plain\r\nX: y"}, InvalidRequest),
        ({"data": "text"}, TypeError),
    ],
)
async def test_what_cannot_be_published_is_refused_before_anything_is_sent(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster, arguments: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        await client.notify(**{"topic": b"foo", "data": b"", **arguments})
    assert broadcaster.requests == []


async def test_a_body_beyond_the_limit_is_refused_before_anything_is_sent(broadcaster: FakeBroadcaster) -> None:
    async with HttpPubSubClient(config(max_body_bytes=3)) as client:
        with pytest.raises(TooLarge):
            await client.notify(topic=b"foo", data=b"1234")
    assert broadcaster.requests == []


async def test_an_error_of_the_broadcaster_keeps_its_class_and_says_where_it_came_from(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster
) -> None:
    broadcaster.next = [refuse(Forbidden("this key may not publish to foo"))]
    with pytest.raises(Forbidden, match=rf"{URL} answered 403 .*may not publish"):
        await client.notify(topic=b"foo", data=b"")
    broadcaster.next = [refuse(Unauthorized("your clock is 400 s behind"))]
    with pytest.raises(Unauthorized, match="400 s behind"):
        await client.notify(topic=b"foo", data=b"")


async def test_a_quota_is_told_as_such_and_waited_for_only_as_long_as_is_said(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster
) -> None:
    broadcaster.next = [refuse(QuotaExceeded("this key may have 2 subscriptions"))]
    with pytest.raises(QuotaExceeded, match=rf"{URL} answered 429 .*2 subscriptions"):
        await client.notify(topic=b"foo", data=b"")
    assert len(broadcaster.requests) == 1
    broadcaster.next = [refuse(QuotaExceeded("too fast"), retry_after="0")]
    assert (await client.notify(topic=b"foo", data=b"")).message_id == "msg_1"
    broadcaster.next = [refuse(QuotaExceeded("too fast"), retry_after="3000")]
    with pytest.raises(QuotaExceeded, match="too fast") as caught:
        await client.notify(topic=b"foo", data=b"")
    assert caught.value.retry_after_seconds == 3000
    assert len(broadcaster.requests) == 4


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (httpx.Response(307, headers={"location": "http://elsewhere/"}), "redirects are not followed"),
        (httpx.Response(404, text="Not Found"), "prefix"),
        (httpx.Response(404, json={"detail": "Not Found"}), "prefix"),
        (httpx.Response(200, text="hello"), "not a broadcaster"),
        (httpx.Response(200, json={"message_id": "msg_1"}), "matched"),
        (httpx.Response(500, text="oops"), "answered 500"),
    ],
)
async def test_an_answer_that_is_not_a_broadcasters_says_so(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster, answer: httpx.Response, told: str
) -> None:
    broadcaster.next = [lambda _: answer]
    with pytest.raises(PubSubError, match=told):
        await client.notify(topic=b"foo", data=b"")
    assert len(broadcaster.requests) == 1


async def test_an_unreachable_broadcaster_is_tried_again_then_named(
    hasty: HttpPubSubClient, broadcaster: FakeBroadcaster
) -> None:
    broadcaster.always = unreachable
    with pytest.raises(BroadcastersUnavailable, match=r"not reachable.*had no effect") as caught:
        await hasty.notify(topic=b"foo", data=b"")
    assert list(caught.value.answers) == [URL]
    assert not caught.value.maybe_processed
    assert isinstance(caught.value, Unavailable)


async def test_a_broadcaster_that_comes_back_in_time_is_all_that_is_needed(broadcaster: FakeBroadcaster) -> None:
    broadcaster.next = [unreachable, refuse(Unavailable("draining"), retry_after="0"), cut_off, unreachable]
    async with HttpPubSubClient(config()) as client:
        result = await client.notify(topic=b"foo", data=b"body", idempotency_key="key")
    assert result.notified == 2
    assert [request.content for request in broadcaster.requests] == [b"body"] * 5


async def test_each_attempt_is_signed_anew(broadcaster: FakeBroadcaster) -> None:
    broadcaster.next = [refuse(Unavailable("draining"))]
    async with HttpPubSubClient(config()) as client:
        await client.notify(topic=b"foo", data=b"body")
    first, second = (request.headers["signature-input"] for request in broadcaster.requests)
    assert first != second


@pytest.mark.parametrize("failure", [cut_off, lambda _: httpx.Response(502), lambda _: httpx.Response(504)])
async def test_a_notify_that_may_have_been_processed_is_not_repeated_without_a_key(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster, failure: Any
) -> None:
    broadcaster.next = [failure]
    with pytest.raises(BroadcastersUnavailable, match="idempotency_key") as caught:
        await client.notify(topic=b"foo", data=b"body")
    assert caught.value.maybe_processed
    assert len(broadcaster.requests) == 1


async def test_a_broadcaster_that_hangs_is_given_up_after_the_stated_time(broadcaster: FakeBroadcaster) -> None:
    async def hang(_: httpx.Request) -> None:
        await asyncio.Event().wait()

    broadcaster.always = hang
    async with HttpPubSubClient(config(notify_timeout_seconds=0.05)) as client:
        with pytest.raises(BroadcastersUnavailable, match=r"did not answer within 0\.0"):
            await client.notify(topic=b"foo", data=b"")


async def test_what_the_broadcaster_wants_waited_for_is_told_when_there_is_no_time(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster
) -> None:
    broadcaster.next = [refuse(Unavailable("draining"), retry_after="30")]
    with pytest.raises(BroadcastersUnavailable, match="answered 503: draining") as caught:
        await client.notify(topic=b"foo", data=b"")
    assert caught.value.retry_after_seconds == 30


async def test_calls_are_spread_over_all_broadcasters(broadcaster: FakeBroadcaster) -> None:
    seen: set[str] = set()

    def note(request: httpx.Request) -> None:
        seen.add(str(request.url.host))

    broadcaster.always = note
    broadcaster.network.route(url__startswith=OTHER).mock(side_effect=broadcaster)
    async with HttpPubSubClient(config(broadcasters=[URL, OTHER])) as client:
        for _ in range(200):
            await client.notify(topic=b"foo", data=b"")
            if len(seen) == 2:
                break
    assert seen == {"broadcaster.test", "other.test"}


async def test_a_call_fails_over_to_another_broadcaster_and_the_dead_one_is_avoided(
    broadcaster: FakeBroadcaster,
) -> None:
    dead = broadcaster.network.route(url__startswith=OTHER).mock(side_effect=unreachable)
    async with HttpPubSubClient(config(broadcasters=[URL, OTHER])) as client:
        for _ in range(50):
            await client.notify(topic=b"foo", data=b"")
    assert len(broadcaster.requests) == 50
    assert dead.call_count <= 1


async def test_a_broadcaster_that_hangs_leaves_time_for_the_others(broadcaster: FakeBroadcaster) -> None:
    async def hang(_: httpx.Request) -> httpx.Response:
        await asyncio.Event().wait()
        raise AssertionError

    broadcaster.network.route(url__startswith=OTHER).mock(side_effect=hang)
    async with HttpPubSubClient(config(broadcasters=[URL, OTHER], request_timeout_seconds=0.4)) as client:
        for number in range(6):
            async with client.subscribe_exact(b"%d" % number):
                pass
    assert broadcaster.kept == {}


async def test_every_broadcaster_that_failed_is_named(broadcaster: FakeBroadcaster) -> None:
    broadcaster.always = refuse(Unavailable("draining"))
    broadcaster.network.route(url__startswith=OTHER).mock(side_effect=unreachable)
    async with HttpPubSubClient(config(broadcasters=[URL, OTHER], request_timeout_seconds=0.1)) as client:
        with pytest.raises(BroadcastersUnavailable) as caught:
            await client.notify(topic=b"foo", data=b"")
    assert set(caught.value.answers) == {URL, OTHER}
    assert "draining" in str(caught.value)
    assert "not reachable" in str(caught.value)


async def test_a_broadcaster_under_a_prefix_is_called_and_signed_there(broadcaster: FakeBroadcaster) -> None:
    async with HttpPubSubClient(config(broadcasters=[f"{URL}/prefix/"])) as client:
        with pytest.raises(PubSubError, match="no such route: POST /prefix/v1/notify"):
            await client.notify(topic=b"foo", data=b"")


async def test_no_broadcaster_is_an_error_only_when_one_is_needed() -> None:
    nobody = Credentials.none()
    async with HttpPubSubClient(config(send_auth=nobody, receive_auth=nobody)) as client:
        with pytest.raises(ConfigurationError, match="no broadcaster is known"):
            await client.notify(topic=b"foo", data=b"")
        with pytest.raises(ConfigurationError, match="no broadcaster is known"):
            async with client.subscribe_exact(b"foo"):
                pass


async def test_nothing_is_done_by_a_client_that_is_not_entered() -> None:
    client = HttpPubSubClient(config())
    with pytest.raises(RuntimeError, match="enter it"):
        await client.notify(topic=b"foo", data=b"")
    with pytest.raises(RuntimeError, match="enter it"):
        async with client.subscribe_exact(b"foo"):
            pass


async def test_no_secret_is_in_an_error(hasty: HttpPubSubClient, broadcaster: FakeBroadcaster) -> None:
    broadcaster.always = unreachable
    with pytest.raises(BroadcastersUnavailable) as caught:
        await hasty.notify(topic=b"foo", data=b"")
    assert "bbbbbbbb" not in repr(caught.value) + str(caught.value)
