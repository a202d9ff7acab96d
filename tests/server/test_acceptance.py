"""A notify with durable subscriptions: what is answered is on the disk, and what is counted is true."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, cast

import pytest

from httppubsubclient.bodies import Body, BodyWriter
from httppubsubclient.protocol.errors import Unavailable
from httppubsubclient.protocol.messages import NotifyResult, SubscribeRequest
from httppubsubclient.protocol.moments import MessageMoments
from httppubsubclient.protocol.patterns import Pattern
from httppubsubserver.broadcaster import Broadcaster
from httppubsubserver.config import ServerConfig
from httppubsubserver.stores.durable import DurableStore, OwedDelivery, Selection
from httppubsubserver.stores.sqlite_file import SqliteFile
from tests.server.conftest import NO_AUTH, ScriptedOutbound
from tests.server.durable import OTHER, URL, Clock, Trouble

Open = Callable[..., Awaitable[Broadcaster]]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def open_one(tmp_path: Path, outbound: ScriptedOutbound, clock: Clock) -> AsyncIterator[Open]:
    """Opens broadcasters over one file, whose store can be made to fail."""
    async with AsyncExitStack() as stack:

        async def opened(*, clock: Clock = clock, **settings: Any) -> Broadcaster:
            config = ServerConfig(
                db=f"sqlite:///{tmp_path}/durable.sqlite3",
                spool_directory=tmp_path,
                shutdown_timeout_seconds=0.1,
                **settings,
            )
            broadcaster = Broadcaster(config, secrets=NO_AUTH, outbound=outbound, clock=clock, uniform=lambda: 0.0)
            await stack.enter_async_context(broadcaster)
            store = cast(DurableStore, Trouble(broadcaster.store, outbound.changed))
            broadcaster._store = broadcaster._publishing._store = store
            return broadcaster

        yield opened


def trouble(broadcaster: Broadcaster) -> Trouble:
    return cast(Trouble, broadcaster.store)


async def durable(broadcaster: Broadcaster, url: str = URL, topic: bytes = b"t") -> str:
    subscription, _ = await broadcaster.subscribe(SubscribeRequest(url, Pattern.exact(topic), 3600, "durable"))
    return subscription.id


async def best_effort(broadcaster: Broadcaster, url: str = OTHER, topic: bytes = b"t") -> str:
    subscription, _ = await broadcaster.subscribe(SubscribeRequest(url, Pattern.exact(topic), 3600))
    return subscription.id


async def owed(broadcaster: Broadcaster) -> list[OwedDelivery]:
    page = await trouble(broadcaster).inner.deliveries(Selection(), cursor=None, limit=100)
    return list(page.deliveries)


def counts(result: NotifyResult) -> tuple[int, int, int, int]:
    return result.matched, result.notified, result.pending, result.failed


async def test_both_kinds_are_counted_together(open_one: Open, outbound: ScriptedOutbound) -> None:
    broadcaster = await open_one()
    for path in ("ok", "busy", "gone"):
        await durable(broadcaster, f"{URL}/{path}")
        await best_effort(broadcaster, f"{OTHER}/{path}")
    outbound.replies(f"{URL}/busy", 500)
    outbound.replies(f"{OTHER}/busy", 500)
    outbound.replies(f"{URL}/gone", 410)
    outbound.replies(f"{OTHER}/gone", 410)
    result = await broadcaster.notify(b"t", b"x")
    # A durable delivery that failed is not failed: it is owed.
    assert counts(result) == (6, 2, 1, 3)
    assert {post.headers["webhook-id"] for post in outbound.posts} == {result.message_id}


async def test_a_notify_waits_for_first_attempts_as_long_as_it_was_told(
    open_one: Open, outbound: ScriptedOutbound
) -> None:
    broadcaster = await open_one()
    await durable(broadcaster)
    gate = asyncio.Event()
    outbound.hangs(URL, gate)
    assert counts(await broadcaster.notify(b"t", b"x", wait_seconds=0)) == (1, 0, 1, 0)
    waiting = asyncio.create_task(broadcaster.notify(b"t", b"x"))
    await outbound.until(lambda: outbound.in_flight == 2)
    assert not waiting.done()
    gate.set()
    assert counts(await waiting) == (1, 1, 0, 0)


async def test_best_effort_is_not_held_up_by_a_slow_disk(open_one: Open, outbound: ScriptedOutbound) -> None:
    broadcaster = await open_one()
    await durable(broadcaster)
    await best_effort(broadcaster)
    gate = trouble(broadcaster).before["accept"] = asyncio.Event()
    notify = asyncio.create_task(broadcaster.notify(b"t", b"x", wait_seconds=0))
    await outbound.until(lambda: len(outbound.posts) == 1)
    assert outbound.posts[0].url == OTHER
    assert not notify.done()  # nothing is answered before it is on the disk, whatever it was told about waiting
    gate.set()
    assert (await notify).matched == 2
    await outbound.until(lambda: len(outbound.posts) == 2)


async def test_what_cannot_be_written_is_refused_and_best_effort_gets_it(
    open_one: Open, outbound: ScriptedOutbound
) -> None:
    broadcaster = await open_one()
    await durable(broadcaster)
    await best_effort(broadcaster)
    trouble(broadcaster).fail("accept")
    with pytest.raises(Unavailable):
        await broadcaster.notify(b"t", b"x")
    await outbound.until(lambda: [post.url for post in outbound.posts] == [OTHER])
    trouble(broadcaster).heal()
    assert counts(await broadcaster.notify(b"t", b"x")) == (2, 2, 0, 0)


async def test_a_scheduled_message_is_for_durable_subscriptions_only(
    open_one: Open, outbound: ScriptedOutbound, clock: Clock
) -> None:
    broadcaster = await open_one()
    await durable(broadcaster)
    await best_effort(broadcaster)
    moments = MessageMoments(clock.moment + 60_000_000, None)
    result = await broadcaster.notify(b"t", b"x", moments=moments)
    assert counts(result) == (1, 0, 1, 0)
    assert outbound.posts == []
    clock.now += 60
    broadcaster._executor.due()
    await outbound.until(lambda: len(outbound.posts) == 1)
    assert outbound.posts[0].url == URL


async def test_a_scheduled_message_that_no_durable_subscription_matches_goes_to_nobody(
    open_one: Open, outbound: ScriptedOutbound, clock: Clock
) -> None:
    broadcaster = await open_one()
    await best_effort(broadcaster)
    result = await broadcaster.notify(b"t", b"x", moments=MessageMoments(clock.moment + 60_000_000, None))
    assert counts(result) == (0, 0, 0, 0)


async def test_a_message_that_expired_before_its_first_attempt_is_dead(open_one: Open, clock: Clock) -> None:
    broadcaster = await open_one()
    await durable(broadcaster)
    moments = MessageMoments(clock.moment + 10_000_000, clock.moment + 20_000_000)
    await broadcaster.notify(b"t", b"x", moments=moments)
    clock.now += 30
    broadcaster._executor.due()
    async with asyncio.timeout(10):
        while (await owed(broadcaster))[0].state != "dead":
            pass
    assert (await owed(broadcaster))[0].reason == "expired"


@pytest.mark.parametrize("on_the_disk", [False, True])
async def test_a_retry_after_a_refusal_has_the_same_id_and_is_delivered_once(
    open_one: Open, outbound: ScriptedOutbound, on_the_disk: bool
) -> None:
    """The disk may fail at the very end: then it was accepted, though the publisher was told otherwise."""
    broadcaster = await open_one()
    await durable(broadcaster)
    inner, tried = trouble(broadcaster).inner.accept, []

    async def fails_at_the_end(publication: Any, **named: Any) -> Any:
        tried.append(publication.notification.message_id)
        if on_the_disk:
            await inner(publication, now=named["now"])
        raise Unavailable("the disk of the database fails")

    trouble(broadcaster).__dict__["accept"] = fails_at_the_end
    with pytest.raises(Unavailable):
        await broadcaster.notify(b"t", b"x", idempotency_key="key")
    del trouble(broadcaster).__dict__["accept"]
    result = await broadcaster.notify(b"t", b"x", idempotency_key="key")
    assert [result.message_id] == tried
    await outbound.until(lambda: len(outbound.posts) == 1)
    assert outbound.posts[0].headers["webhook-id"] == result.message_id
    assert len(await owed(broadcaster)) == 1


async def test_an_idempotency_key_over_a_crash_keeps_the_message_id(
    open_one: Open, outbound: ScriptedOutbound, clock: Clock
) -> None:
    """The first process stops between the commit and its answer; the publisher asks the second one."""
    first = await open_one()
    await durable(first)
    gate = trouble(first).after["accept"] = asyncio.Event()
    lost = asyncio.create_task(first.notify(b"t", b"x", idempotency_key="key"))
    async with asyncio.timeout(10):
        while not await owed(first):
            pass
    [before] = await owed(first)
    later = Clock(clock.now + first.config.notify_timeout_seconds + 20)
    second = await open_one(clock=later)
    result = await second.notify(b"t", b"x", idempotency_key="key")
    assert result.message_id == before.message_id
    assert counts(result) == (1, 0, 1, 0)
    await outbound.until(lambda: len(outbound.posts) == 1)
    assert outbound.posts[0].headers["webhook-id"] == before.message_id
    assert len(await owed(second)) == 1
    gate.set()
    await lost


async def test_a_publisher_that_goes_away_leaves_nothing_undone(open_one: Open, outbound: ScriptedOutbound) -> None:
    broadcaster = await open_one()
    await durable(broadcaster)
    gate = trouble(broadcaster).after["accept"] = asyncio.Event()
    notify = asyncio.create_task(broadcaster.notify(b"t", b"x"))
    await outbound.until(lambda: trouble(broadcaster).calls["accept"] == 1)
    notify.cancel()
    await asyncio.wait({notify})
    gate.set()
    await outbound.until(lambda: len(outbound.posts) == 1)
    assert broadcaster._executor._attempts.held <= 1


async def test_what_waits_for_the_disk_is_bounded(open_one: Open, outbound: ScriptedOutbound) -> None:
    broadcaster = await open_one(bodies_in_memory_bytes=1000)
    await durable(broadcaster)
    gate = trouble(broadcaster).before["accept"] = asyncio.Event()
    first = asyncio.create_task(broadcaster.notify(b"t", b"x" * 800))
    await outbound.until(lambda: trouble(broadcaster).calls["accept"] == 1)
    with pytest.raises(Unavailable, match="being written"):
        await broadcaster.notify(b"t", b"x" * 800)
    gate.set()
    assert counts(await first) == (1, 1, 0, 0)
    assert counts(await broadcaster.notify(b"t", b"x" * 800)) == (1, 1, 0, 0)


async def large(directory: Path, size: int, *, in_a_file: bool) -> Body:
    with BodyWriter(spool_bytes=0 if in_a_file else size, max_bytes=size, directory=str(directory)) as writer:
        await writer.write(b"L" * size)
        return await writer.finish()


@pytest.mark.parametrize("in_a_file", [False, True])
@pytest.mark.parametrize("size", [256 * 1024, 256 * 1024 + 1, 5_000_000])
async def test_a_large_body_is_kept_whole(
    tmp_path: Path, open_one: Open, outbound: ScriptedOutbound, clock: Clock, size: int, in_a_file: bool
) -> None:
    broadcaster = await open_one()
    await durable(broadcaster)
    outbound.replies(URL, 500, 200)
    result = await broadcaster.notify(b"t", await large(tmp_path, size, in_a_file=in_a_file))
    assert counts(result) == (1, 0, 1, 0)
    clock.now += 10
    await outbound.until(lambda: len(outbound.posts) == 1)
    async with asyncio.timeout(10):
        while (await owed(broadcaster))[0].state != "delivered":
            broadcaster._executor.due()
    assert [len(post.body) for post in outbound.posts] == [size, size]
    assert outbound.posts[1].body == b"L" * size


async def test_a_large_body_that_cannot_be_written_is_refused_as_a_whole(
    tmp_path: Path, open_one: Open, outbound: ScriptedOutbound
) -> None:
    broadcaster = await open_one()
    await durable(broadcaster)
    trouble(broadcaster).fail("write_chunk")
    with pytest.raises(Unavailable):
        await broadcaster.notify(b"t", await large(tmp_path, 5_000_000, in_a_file=True))
    assert trouble(broadcaster).calls["accept"] == 0
    assert await owed(broadcaster) == []
    trouble(broadcaster).heal()
    assert counts(await broadcaster.notify(b"t", await large(tmp_path, 5_000_000, in_a_file=True))) == (1, 1, 0, 0)


async def test_a_body_for_which_there_is_no_descriptor_left_is_read_from_the_store(
    tmp_path: Path, open_one: Open, outbound: ScriptedOutbound, monkeypatch: pytest.MonkeyPatch
) -> None:
    broadcaster = await open_one()
    await durable(broadcaster)
    gate = trouble(broadcaster).after["accept"] = asyncio.Event()
    notify = asyncio.create_task(broadcaster.notify(b"t", await large(tmp_path, 400_000, in_a_file=True)))
    await outbound.until(lambda: trouble(broadcaster).calls["accept"] == 1)

    def none_left(_: Body) -> Body:
        monkeypatch.undo()
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(Body, "share", none_left)
    gate.set()
    assert counts(await notify) == (1, 1, 0, 0)
    assert [len(post.body) for post in outbound.posts] == [400_000]


async def test_a_database_that_is_read_only_for_a_while(
    open_one: Open, outbound: ScriptedOutbound, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was under way is settled, what was refused can be sent again, and nobody has to start anything anew."""
    broadcaster = await open_one()
    await durable(broadcaster)
    await best_effort(broadcaster)
    gate = asyncio.Event()
    outbound.hangs(URL, gate)
    await broadcaster.notify(b"t", b"before", wait_seconds=0)
    await outbound.until(lambda: len(outbound.posts) == 2)
    transact, read_only = SqliteFile.transact, True

    async def transact_if_it_may(self: SqliteFile, works: Any, *, durable: bool) -> list[Any]:
        state = "ON" if read_only else "OFF"
        await self.attempt(lambda db: db.execute(f"PRAGMA query_only = {state}").close())
        return await transact(self, works, durable=durable)

    monkeypatch.setattr(SqliteFile, "transact", transact_if_it_may)
    gate.set()
    with pytest.raises(Unavailable, match="read-only"):
        await broadcaster.notify(b"t", b"during")
    await outbound.until(lambda: [post.url for post in outbound.posts if post.body == b"during"] == [OTHER])
    assert [each.state for each in await owed(broadcaster)] == ["pending"]
    read_only = False
    assert counts(await broadcaster.notify(b"t", b"after")) == (2, 2, 0, 0)
    async with asyncio.timeout(10):
        while {each.state for each in await owed(broadcaster)} != {"delivered"}:
            pass
    assert [post.body for post in outbound.posts if post.url == URL] == [b"before", b"after"]
