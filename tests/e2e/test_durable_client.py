"""Durable subscriptions of the client over a real broadcaster: leave and come back, restart, die, acknowledge."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest

from httppubsubclient.client import Message, Subscription
from httppubsubclient.protocol.errors import NotFound
from tests.e2e.conftest import open_client, subscriber
from tests.e2e.processes import DEADLINE_SECONDS, Process, Site, running, until

QUICK = [0, *[0.2] * 60]


async def _true(value: object) -> bool:
    return bool(value)


async def taken(subscription: Subscription, count: int) -> list[Message]:
    async with asyncio.timeout(DEADLINE_SECONDS):
        return [await anext(subscription) for _ in range(count)]


async def test_what_comes_while_a_subscription_is_left_is_there_when_it_comes_back(
    site: Site, broadcaster: Process, port: int
) -> None:
    url = await broadcaster.url()
    async with open_client(site, url) as publisher, subscriber(site, url, port) as client:
        async with client.subscribe_glob("foo/*", durable="worker-1"):
            assert (await publisher.notify(topic=b"foo/0", data=b"0")).notified == 1
        for number in range(1, 20):
            result = await publisher.notify(topic=b"foo/%d" % number, data=b"%d" % number, wait=0)
            assert (result.matched, result.failed) == (1, 0)
        async with client.subscribe_glob("foo/*", durable="worker-1") as subscription:
            messages = await taken(subscription, 19)
            assert sorted(int(message.content) for message in messages) == list(range(1, 20))
            assert sorted(message.sequence or 0 for message in messages) == list(range(2, 21))
            assert not subscription.missing


async def test_a_restart_finds_its_backlog_in_order(site: Site, broadcaster: Process, port: int) -> None:
    url = await broadcaster.url()
    options: Any = {"durable": "worker-1", "ordered": True, "ack": "processed"}
    async with open_client(site, url) as publisher:
        async with subscriber(site, url, port) as client, client.subscribe_exact(b"t", **options):
            pass
        for number in range(10):
            assert (await publisher.notify(topic=b"t", data=b"%d" % number, wait=0)).pending == 1
        async with subscriber(site, url, port) as client, client.subscribe_exact(b"t", **options) as subscription:
            assert [message.content for message in await taken(subscription, 10)] == [b"%d" % n for n in range(10)]


async def test_a_message_counts_as_received_when_it_was_taken(site: Site, broadcaster: Process, port: int) -> None:
    url = await broadcaster.url()
    async with (
        open_client(site, url) as publisher,
        subscriber(site, url, port) as client,
        client.subscribe_exact(b"t", durable="worker-1", ack="processed") as subscription,
    ):
        notify = asyncio.create_task(publisher.notify(topic=b"t", data=b"x"))
        inbox: Any = subscription._inbox
        await until(lambda: _true(inbox._held))
        assert not notify.done()
        await taken(subscription, 1)
        assert (await notify).notified == 1


async def test_what_was_not_taken_comes_again_in_the_next_life(site: Site, broadcaster: Process, port: int) -> None:
    url = await broadcaster.url()
    options: Any = {"durable": "worker-1", "ack": "processed", "retry_schedule_seconds": QUICK}
    async with open_client(site, url) as publisher:
        async with subscriber(site, url, port) as client, client.subscribe_exact(b"t", **options) as subscription:
            notifies = [asyncio.create_task(publisher.notify(topic=b"t", data=b"%d" % n)) for n in range(3)]
            first = await taken(subscription, 1)
        results = await asyncio.gather(*notifies)
        assert [sum(result.notified for result in results), sum(result.failed for result in results)] == [1, 0]
        async with subscriber(site, url, port) as client, client.subscribe_exact(b"t", **options) as subscription:
            rest = await taken(subscription, 2)
        assert sorted(message.content for message in first + rest) == [b"0", b"1", b"2"]


async def test_no_message_is_given_twice_although_the_process_died_before_it_answered(
    site: Site, broadcaster: Process, port: int, tmp_path: Path
) -> None:
    url = await broadcaster.url()
    secrets = str(site.directory / "subscriber-secrets.json")
    worker = ["-m", "tests.e2e.durable_worker", secrets, url, str(port), str(tmp_path / "seen")]
    async with open_client(site, url) as publisher:
        async with running(*worker, "die") as first_life:
            assert await first_life.line() == "subscribed"
            await publisher.notify(topic=b"t", data=b"one")
            assert await first_life.ended() == -signal.SIGKILL
            assert first_life.lines == ["subscribed", "one"]
        await publisher.notify(topic=b"t", data=b"two", wait=0)
        async with running(*worker) as second_life:
            # In order: the second message comes when the first is over.
            assert await second_life.wait_lines(2) == ["subscribed", "two"]


async def test_listening_from_a_shell_goes_on_where_it_ended(
    site: Site, broadcaster: Process, port: int, tmp_path: Path
) -> None:
    url = await broadcaster.url()
    listen = ["listen", "--exact", "t", "--durable", "shell", "--ordered", "--bind", f"127.0.0.1:{port}"]
    listen += ["--remember", str(tmp_path / "seen"), "--count", "1"]
    async with open_client(site, url) as publisher:
        for number in range(3):
            if number == 2:
                await publisher.notify(topic=b"t", data=b"2", wait=0)
            async with site.client(url, *listen) as shell:
                if number < 2:
                    await until(lambda shell=shell: _true(shell.errors))  # type: ignore[misc]
                    async with site.client(url, "notify", "t", "--data", str(number)) as notify:
                        assert await notify.ended() == 0, notify.output()
                assert await shell.ended() == 0, shell.output()
                assert shell.lines == [f"t: {number}"]
        assert (await publisher.notify(topic=b"t", data=b"x", wait=0)).matched == 1
        forget = ["listen", "--durable", "shell", "--bind", f"127.0.0.1:{port}", "--forget"]
        async with site.client(url, *forget) as shell:
            assert await shell.ended() == 0, shell.output()
        assert (await publisher.notify(topic=b"t", data=b"x")).matched == 0


async def test_what_is_unsubscribed_or_forgotten_is_owed_nothing(site: Site, broadcaster: Process, port: int) -> None:
    url = await broadcaster.url()
    async with open_client(site, url) as publisher, subscriber(site, url, port) as client:
        async with client.subscribe(exact=[b"a", b"b"], durable="worker-1") as subscription:
            await subscription.unsubscribe_exact(b"a")
            assert (await publisher.notify(topic=b"a", data=b"x")).matched == 0
        assert (await publisher.notify(topic=b"b", data=b"x", wait=0)).matched == 1
        await client.forget_durable("worker-1")
        assert (await publisher.notify(topic=b"b", data=b"x")).matched == 0
        async with client.subscribe_exact(b"b", durable="worker-1") as again:
            assert (await publisher.notify(topic=b"b", data=b"new")).matched == 1
            [message] = await taken(again, 1)
            assert (message.content, message.sequence) == (b"new", 1)


async def test_a_scheduled_message_comes_when_it_is_due_and_an_expired_one_does_not(
    site: Site, broadcaster: Process, port: int
) -> None:
    url = await broadcaster.url()
    async with (
        open_client(site, url) as publisher,
        subscriber(site, url, port) as client,
        client.subscribe_exact(b"t", durable="worker-1") as subscription,
        publisher.subscribe_exact(b"t"),
    ):
        later = await publisher.notify(topic=b"t", data=b"later", deliver_at=1, wait=0)
        assert (later.matched, later.pending) == (1, 1), "best effort does not get it"
        assert (await publisher.notify(topic=b"t", data=b"now", expires=3600)).notified == 2
        assert [message.content for message in await taken(subscription, 2)] == [b"now", b"later"]


async def test_catching_up_gets_what_was_sent_before_with_large_bodies(
    site: Site, broadcaster: Process, port: int
) -> None:
    url = await broadcaster.url()
    large = bytes(range(256)) * 4096
    async with open_client(site, url) as publisher:
        async with (
            subscriber(site, url, port) as client,
            client.subscribe_exact(b"t", durable="worker-1") as subscription,
        ):
            for body in (b"1", b"2", large):
                assert (await publisher.notify(topic=b"t", data=body)).notified == 1
            await taken(subscription, 3)
            assert not subscription.missing
            assert await subscription.catch_up(), "everything has come"
        async with (
            subscriber(site, url, port, spool_bytes=100_000) as client,
            client.subscribe_exact(b"t", durable="worker-1") as subscription,
        ):
            assert not await subscription.catch_up(), "there is nothing to count from"
            assert await subscription.catch_up(after=1)
            messages = await taken(subscription, 2)
            assert [message.sequence for message in messages] == [2, 3]
            assert await messages[1].read() == large
            await publisher.notify(topic=b"t", data=b"4")
            assert [message.sequence for message in await taken(subscription, 1)] == [4]
            assert not subscription.missing


async def test_a_scheduled_message_is_called_off(site: Site, broadcaster: Process, port: int) -> None:
    url = await broadcaster.url()
    async with open_client(site, url) as publisher, subscriber(site, url, port) as client:
        async with client.subscribe_exact(b"t", durable="worker-1") as subscription:
            later = await publisher.notify(topic=b"t", data=b"later", deliver_at=1, wait=0)
            assert await publisher.cancel_scheduled(later.message_id) == 1
            assert await publisher.cancel_scheduled(later.message_id) == 0
            await publisher.notify(topic=b"t", data=b"not before it", deliver_at=2)
            assert [message.content for message in await taken(subscription, 1)] == [b"not before it"]
            assert await subscription.catch_up()
            async for message in subscription.with_timeout(0.001):
                assert message is None, "it is not caught up on either"
                break
        with pytest.raises(NotFound):
            await publisher.cancel_scheduled("msg_unknown")
