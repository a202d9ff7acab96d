"""Secrets of subscriptions and formats, over a real broadcaster: what the client asks for is what arrives."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from itertools import product
from typing import Any

import httpx
import pytest

from httppubsubclient.client import HttpPubSubClient, Message, Subscription
from httppubsubclient.protocol.errors import InvalidRequest, QuotaExceeded, TooManyHops
from tests.e2e.conftest import open_client, subscriber
from tests.e2e.processes import DEADLINE_SECONDS, Process, Site, until


@pytest.fixture
async def broadcaster(site: Site) -> AsyncIterator[Process]:
    async with site.serve("--storage-key-file", str(site.directory / "storage-key")) as process:
        await process.url()
        yield process


FORMATS = ["raw", "cloudevents-binary", "cloudevents-structured"]
MESSAGES: list[tuple[bytes, bytes, str]] = [
    (b"foo/bar", b"hello", "text/plain"),
    (b"foo/\xff\x00", b'{"a":  [1, 2.50]}', "application/json"),
    ("foo/töpic 100%".encode(), bytes(range(256)) * 1000, "image/png"),
    (b"foo/empty", b"", "application/octet-stream"),
]


async def taken(subscription: Subscription) -> Message:
    async with asyncio.timeout(DEADLINE_SECONDS):
        return await anext(subscription)


async def test_every_message_is_the_same_however_it_travels(site: Site, broadcaster: Process) -> None:
    ways: Any = product(FORMATS, [None, "generate", "generate-v1a"], [None, "worker-1"])
    async with open_client(site, await broadcaster.url()) as client:
        for form, secret, durable in ways:
            topics = [topic for topic, _, _ in MESSAGES]
            async with client.subscribe(exact=topics, secret=secret, format=form, durable=durable) as subscription:
                for topic, data, content_type in MESSAGES:
                    result = await client.notify(topic=topic, data=data, content_type=content_type)
                    assert (result.matched, result.failed) == (1, 0), (form, secret, durable, result)
                    message = await taken(subscription)
                    assert (message.topic, await message.read(), message.content_type) == (topic, data, content_type)
                    assert (message.message_id, message.hops) == (result.message_id, 1)
                    assert (message.event is None) == (form == "raw")
                    assert (message.sequence is None) == (durable is None)
            await client.forget_durable("worker-1")


@pytest.mark.parametrize("durable", [None, "worker-1"])
async def test_a_secret_is_rotated_while_messages_flow_and_none_is_lost(
    site: Site, broadcaster: Process, durable: str | None
) -> None:
    opening = open_client(site, await broadcaster.url())
    options: Any = {"secret": "generate-v1a", "durable": durable}
    async with opening as client, client.subscribe_exact(b"foo", **options) as subscription:
        expected = set()

        async def publish() -> None:
            for number in range(60):
                result = await client.notify(topic=b"foo", data=b"%d" % number)
                assert (result.matched, result.failed) == (1, 0)
                expected.add(result.message_id)

        async def rotate() -> None:
            for _ in range(4):
                await subscription.rotate_secret("generate-v1a", grace_seconds=60)

        publishing = asyncio.create_task(publish())
        with pytest.raises(QuotaExceeded) as caught:
            await rotate()
        await publishing
        assert 0 < (caught.value.retry_after_seconds or 0) <= 61
        assert {(await taken(subscription)).message_id for _ in range(60)} == expected
        with pytest.raises(InvalidRequest, match="allow_downgrade"):
            await subscription.rotate_secret("generate", grace_seconds=0)
        await subscription.rotate_secret("generate", grace_seconds=0, allow_downgrade=True)
        assert (await client.notify(topic=b"foo", data=b"x")).failed == 0


async def test_a_message_that_goes_round_ends_with_an_error(site: Site) -> None:
    async with (
        site.serve("--max-hops", "3") as broadcaster,
        open_client(site, await broadcaster.url()) as client,
        client.subscribe_exact(b"foo") as subscription,
    ):
        await client.notify(topic=b"foo", data=b"0")
        for hops in (1, 2, 3):
            message = await taken(subscription)
            assert message.hops == hops
            if hops < 3:
                await client.notify(topic=b"foo", data=b"x", after=message)
        with pytest.raises(TooManyHops, match="3"):
            await client.notify(topic=b"foo", data=b"x", after=message)


@pytest.mark.parametrize("options", [{}, {"secret": "generate"}, {"secret": "generate-v1a"}], ids=str)
async def test_a_life_after_a_kill_takes_over_what_had_another_secret(
    site: Site, broadcaster: Process, port: int, options: Any
) -> None:
    url = await broadcaster.url()
    arguments = ("--exact", "foo", "--bind", f"127.0.0.1:{port}", "--own-secret", "--format", "cloudevents-structured")
    async with open_client(site, url) as publisher:
        async with site.client(url, "listen", *arguments) as killed:

            async def arrives() -> bool:
                return (await publisher.notify(topic=b"foo", data=b"1")).notified == 1

            await until(arrives)
            assert await killed.line() == "foo: 1"
            killed.signal(signal.SIGKILL)
            await killed.ended()
        async with subscriber(site, url, port) as client, client.subscribe_exact(b"foo", **options) as subscription:
            assert (await publisher.notify(topic=b"foo", data=b"2")).notified == 1
            message = await taken(subscription)
            assert (message.content, message.event) == (b"2", None)


async def test_what_standard_tools_send_is_understood_and_nothing_else(site: Site, broadcaster: Process) -> None:
    """A stranger who knows the address, and the subscription, but not its secret."""
    async with open_client(site, await broadcaster.url()) as client:
        assert isinstance(client, HttpPubSubClient)
        async with client.subscribe_exact(b"foo", secret="generate") as subscription:
            await client.notify(topic=b"foo", data=b"1")
            message = await taken(subscription)
            async with httpx.AsyncClient(trust_env=False) as stranger:
                for headers in (
                    {},
                    {"webhook-id": "msg_1", "webhook-timestamp": "1700000000", "webhook-signature": "v1,AAAA"},
                    {"authorization": "Bearer x"},
                ):
                    answer = await stranger.post(client.callback_url, headers=headers, content=b"x")
                    assert answer.status_code in (400, 401)
            assert message.content == b"1"
