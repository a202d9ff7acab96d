"""Claim, POST, settle: what is accepted arrives, or is dead, or is pending and due."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from httppubsubclient.bodies import Body
from httppubsubclient.protocol.errors import Unavailable
from httppubsubclient.protocol.messages import Notification
from httppubsubclient.protocol.moments import MessageMoments
from httppubsubserver.delivery import attempts as attempts_module
from httppubsubserver.delivery.outbound import Answer
from httppubsubserver.stores.durable import Publication, Selection
from tests.server.conftest import ScriptedOutbound
from tests.server.durable import OTHER, URL, Bench, open_bench


@pytest.fixture
async def bench(tmp_path: Path, outbound: ScriptedOutbound) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path, outbound) as opened:
        yield opened


async def test_what_is_accepted_is_sent_at_once_and_settled(bench: Bench) -> None:
    await bench.executor()
    await bench.subscribe()
    notify = await bench.publish(b"data")
    await notify.finished()
    assert (notify.matched, notify.notified, notify.pending, notify.failed) == (1, 1, 0, 0)
    await bench.until_states(delivered=1)
    [post] = bench.outbound.posts
    assert post.body == b"data"
    assert post.headers["webhook-id"] == "msg_1"
    assert post.headers["pubsub-sequence"] == "1"
    bench.check_idle()


async def test_a_freshly_accepted_delivery_needs_no_claim(bench: Bench) -> None:
    await bench.executor()
    await bench.until(lambda: bench.trouble.calls["claim"] == 1)  # of the start
    await bench.subscribe()
    await (await bench.publish()).finished()
    await bench.until_states(delivered=1)
    assert bench.trouble.calls["claim"] == 1


async def test_what_was_owed_at_the_start_is_claimed(bench: Bench) -> None:
    await bench.subscribe()
    executor = await bench.executor()
    executor.start_draining()
    for _ in range(3):
        await bench.publish()
    await bench.until_states(pending=3)
    await bench.executor()
    await bench.until_states(delivered=3)
    assert sorted(bench.posted()) == ["msg_1", "msg_2", "msg_3"]


async def test_a_failed_attempt_is_made_again_by_schedule_and_then_given_up(bench: Bench) -> None:
    await bench.executor()
    await bench.subscribe(schedule=(0.0, 10.0, 100.0))
    bench.outbound.replies(URL, 500)
    notify = await bench.publish()
    await notify.finished()
    assert (notify.pending, notify.failed) == (1, 0)
    for posts, wait in ((1, 10.0), (2, 100.0)):
        await bench.until(lambda posts=posts: len(bench.outbound.posts) == posts)  # type: ignore[misc]
        await bench.until_states(pending=1)
        [owed] = await bench.owed()
        # Made a fifth shorter: the random numbers of these tests are 0.
        assert owed.due_at == bench.clock.moment + int(wait * 0.8 * 1_000_000)
        bench.pass_by(wait * 0.8)
    await bench.until_states(dead=1)
    [owed] = await bench.owed()
    assert (owed.reason, owed.status, owed.attempts) == ("exhausted", 500, 3)
    assert [post.headers["pubsub-attempt"] for post in bench.outbound.posts] == ["1", "2", "3"]
    bench.check_idle()


async def test_retry_after_puts_the_next_attempt_off(bench: Bench) -> None:
    await bench.executor()
    await bench.subscribe()
    bench.outbound.replies(URL, Answer(500, "120"))
    await (await bench.publish()).finished()
    await bench.until_states(pending=1)
    [owed] = await bench.owed()
    assert owed.due_at == bench.clock.moment + 120_000_000


async def test_a_410_ends_the_subscription_and_the_delivery(bench: Bench) -> None:
    await bench.executor()
    await bench.subscribe()
    bench.outbound.replies(URL, 410)
    notify = await bench.publish()
    await notify.finished()
    assert notify.failed == 1
    await bench.until_states(dead=1)
    [owed] = await bench.owed()
    assert owed.reason == "gone"
    assert await bench.targets() == []
    bench.check_idle()


async def test_an_expired_message_is_not_sent_again(bench: Bench) -> None:
    await bench.executor()
    await bench.subscribe()
    bench.outbound.replies(URL, 500)
    await (await bench.publish(moments=MessageMoments(None, bench.clock.moment + 3_000_000))).finished()
    await bench.until_states(pending=1)
    bench.pass_by(60)
    await bench.until_states(dead=1)
    [owed] = await bench.owed()
    assert (owed.reason, len(bench.outbound.posts)) == ("expired", 1)


async def test_more_than_there_are_slots_go_out_one_after_the_other(tmp_path: Path, outbound: ScriptedOutbound) -> None:
    async with open_bench(tmp_path, outbound, max_durable_in_flight=3, max_durable_in_flight_per_callback=2) as bench:
        release = asyncio.Event()
        for number in range(5):
            await bench.subscribe(f"{URL}/{number}")
            outbound.hangs(f"{URL}/{number}", release)
        await bench.executor()
        for _ in range(6):
            await bench.publish()
        await outbound.until(lambda: outbound.in_flight == 3)
        release.set()
        await bench.until_states(delivered=30)
        assert outbound.most_in_flight == 3
        bench.check_idle()


async def test_one_endpoint_that_hangs_does_not_hold_up_another(bench: Bench) -> None:
    await bench.executor()
    await bench.subscribe(URL, topic=b"slow")
    await bench.subscribe(OTHER, topic=b"quick")
    release = asyncio.Event()
    bench.outbound.hangs(URL, release)
    for _ in range(100):
        await bench.publish(topic=b"slow")
    for _ in range(20):
        await (await bench.publish(topic=b"quick")).finished()
    assert bench.outbound.in_flight == 32
    release.set()
    await bench.until_states(delivered=120)
    bench.check_idle()


async def test_ordered_deliveries_go_one_at_a_time_and_a_dead_one_frees_the_next(bench: Bench) -> None:
    await bench.executor()
    await bench.subscribe(ordered=True, schedule=(0.0, 5.0))
    bench.outbound.replies(URL, 200, 500, 500, 200)
    for _ in range(4):
        await bench.publish()
    await bench.until_states(delivered=1, pending=1, waiting=2)
    bench.pass_by(10)
    await bench.until_states(delivered=3, dead=1)
    assert bench.posted() == ["msg_1", "msg_2", "msg_2", "msg_3", "msg_4"]
    assert bench.outbound.most_in_flight == 1


async def test_what_settling_frees_is_claimed_without_waiting_for_the_clock(bench: Bench) -> None:
    """Two hundred, one after the other: with a poll between them this test would take minutes."""
    await bench.executor()
    await bench.subscribe(ordered=True)
    for _ in range(200):
        await bench.publish()
    await bench.until_states(delivered=200)
    assert bench.posted() == [f"msg_{number}" for number in range(1, 201)]


async def test_what_becomes_due_while_the_store_is_asked_is_not_missed(bench: Bench) -> None:
    """The store's answer is older than what a notify says meanwhile."""
    executor = await bench.executor()
    await bench.subscribe()
    bench.trouble.after["next_due"] = asyncio.Event()
    await bench.until(lambda: bench.trouble.calls["next_due"] == 1)
    executor._attempts._draining = True  # nothing starts from memory: it has to be claimed
    await bench.publish()
    executor._attempts._draining = False
    claims = bench.trouble.calls["claim"]
    bench.trouble.after.pop("next_due").set()
    await bench.until_states(delivered=1)
    assert bench.trouble.calls["claim"] == claims + 1
    assert bench.trouble.calls["next_due"] == 1


async def test_a_subscriber_that_is_back_gets_its_backlog_at_once(bench: Bench) -> None:
    executor = await bench.executor()
    subscription = await bench.subscribe()
    bench.outbound.replies(URL, Answer(503, "3600"))
    for _ in range(5):
        await bench.publish()
    await bench.until(lambda: bench.trouble.calls["block_endpoint"] > 0)
    bench.outbound.replies(URL, 200)
    await executor.resume(subscription, URL)
    await bench.until_states(delivered=5)
    bench.check_idle()


async def test_two_executors_share_the_work_and_never_hold_one_delivery_together(bench: Bench) -> None:
    first, second = await bench.executor(), await bench.executor()
    for number in range(4):
        await bench.subscribe(f"{URL}/{number}")
    for number in range(50):
        await bench.publish(executor=(first, second)[number % 2])
    await bench.until_states(delivered=200)
    assert len(bench.outbound.posts) == 200
    bench.check_idle()


async def test_a_zombie_settles_nothing_that_others_have_taken(bench: Bench) -> None:
    """The first process is stopped in the middle of its attempt, for longer than its lease."""
    zombie = await bench.executor()
    await bench.subscribe()
    gate = asyncio.Event()
    bench.outbound.hangs(URL, gate)
    await bench.publish(executor=zombie)
    await bench.outbound.until(lambda: bench.outbound.in_flight == 1)
    bench.executors.clear()
    other = await bench.executor()
    bench.clock.now += bench.config.delivery_lease_seconds + 1
    other.due()
    await bench.outbound.until(lambda: bench.outbound.in_flight == 2)
    [owed] = await bench.owed()
    assert owed.attempts == 2
    gate.set()
    await bench.until_states(delivered=1)
    [owed] = await bench.owed(Selection(message_id="msg_1"))
    assert owed.attempts == 2


async def test_a_lease_that_ended_while_its_delivery_waited_is_not_used(
    tmp_path: Path, outbound: ScriptedOutbound
) -> None:
    """What waits for a slot belongs to somebody else by now: it is given up without a POST."""
    async with open_bench(tmp_path, outbound, max_durable_in_flight=1) as bench:
        zombie = await bench.executor()
        await bench.subscribe(URL, topic=b"slow")
        await bench.subscribe(OTHER, topic=b"quick")
        gate = asyncio.Event()
        outbound.hangs(URL, gate)
        await bench.publish(topic=b"slow", executor=zombie)
        await outbound.until(lambda: outbound.in_flight == 1)
        await bench.publish(topic=b"quick", executor=zombie)
        await bench.until_states(leased=2)
        bench.executors.clear()
        other = await bench.executor()
        bench.clock.now += bench.config.delivery_lease_seconds + 1
        other.due()
        gate.set()
        await bench.until_states(delivered=2)
        await bench.until(lambda: zombie._attempts.held == 0)
        assert bench.posted().count("msg_2") == 1
        bench.check_idle()


async def test_trouble_of_the_store_loses_nothing_and_passes(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    await bench.executor()
    await bench.subscribe()
    await bench.publish()
    bench.trouble.fail("settle", "claim", "release", "extend", "next_due", "block_endpoint", "accept")
    with pytest.raises(Unavailable):
        await bench.publish()
    await bench.until(lambda: bench.trouble.calls["settle"] > 3)
    bench.trouble.heal()
    await bench.until_states(delivered=1)
    await (await bench.publish()).finished()
    await bench.until_states(delivered=2)
    bench.check_idle()
    waits = [record for record in caplog.records if "wait for the database" in record.getMessage()]
    assert len(waits) == 1


async def test_an_error_that_nobody_thought_of_does_not_end_the_work(bench: Bench) -> None:
    await bench.executor()
    await bench.subscribe()
    bench.trouble.faults["settle"] = RuntimeError("nobody thought of this")
    await bench.publish()
    await bench.until(lambda: bench.trouble.calls["settle"] > 2)
    bench.trouble.heal()
    await bench.until_states(delivered=1)


async def test_slots_are_free_again_when_a_notify_is_not_accepted(tmp_path: Path, outbound: ScriptedOutbound) -> None:
    async with open_bench(tmp_path, outbound, max_durable_in_flight=2) as bench:
        await bench.executor()
        await bench.subscribe()
        bench.trouble.fail("accept")
        for _ in range(5):
            with pytest.raises(Unavailable):
                await bench.publish()
        bench.check_idle()
        bench.trouble.heal()
        await (await bench.publish()).finished()
        await bench.until_states(delivered=1)


async def test_a_large_body_that_cannot_be_read_costs_no_attempt_and_no_slot(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once because the database is locked, once for a reason that nobody thought of."""
    monkeypatch.setattr(attempts_module, "_TROUBLE_PAUSE_SECONDS", 0)
    executor = await bench.executor()
    await bench.subscribe(schedule=(0.0,))
    executor.start_draining()
    await bench.publish(b"x" * 600_000)
    await executor.drained()
    second = await bench.executor()
    for fault in (Unavailable("the disk of the database fails"), OSError("too many open files")):
        bench.trouble.faults["read_chunk"] = fault
        reads = bench.trouble.calls["read_chunk"]
        second.due()
        await bench.until(lambda reads=reads: bench.trouble.calls["read_chunk"] > reads + 2)  # type: ignore[misc]
    assert bench.outbound.posts == []
    bench.trouble.heal()
    await bench.until_states(delivered=1)
    [post] = bench.outbound.posts
    assert (len(post.body), post.headers["pubsub-attempt"]) == (600_000, "1")
    bench.check_idle()


async def test_an_executor_that_is_never_idle_looks_what_others_have_left(bench: Bench) -> None:
    """A process that died, a replay from a command line: nobody tells of them, and the own work never ends."""
    executor = await bench.executor()
    await bench.subscribe(URL, topic=b"busy")
    await bench.subscribe(OTHER, topic=b"left")
    await (await bench.publish(topic=b"busy")).finished()
    [target] = await bench.targets(b"left")
    notification = Notification("msg_left", b"left", "text/plain", Body.of(b"x").sha256, 1, None)
    await bench.trouble.inner.accept(Publication(notification, b"x", [target.id]), now=bench.clock.moment)

    def arrived() -> bool:
        return any(post.url == OTHER for post in bench.outbound.posts)

    async with asyncio.timeout(20):
        while not arrived():
            await (await bench.publish(topic=b"busy")).finished()
    await bench.until(lambda: executor._attempts.held == 0)
