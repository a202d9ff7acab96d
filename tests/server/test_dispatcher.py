"""Delivery to many: everybody at once, everybody bounded, nobody at another's cost."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from httppubsubclient.protocol.errors import NotFound, Unavailable
from httppubsubserver.broadcaster import Broadcaster
from httppubsubserver.config import ServerConfig
from httppubsubserver.delivery.outbound import Answer, AttemptFailed
from tests.server.conftest import NO_AUTH, OpenBroadcaster, ScriptedOutbound, subscribe


def url(port: int, path: str = "/v1/receive") -> str:
    return f"http://127.0.0.1:{port}{path}"


async def test_all_subscribers_are_called_at_once(
    open_broadcaster: OpenBroadcaster, outbound: ScriptedOutbound
) -> None:
    broadcaster = await open_broadcaster()
    release = asyncio.Event()
    for port in range(2000, 2050):
        await subscribe(broadcaster, url(port), b"t")
        outbound.hangs(url(port), release)
    notify = asyncio.create_task(broadcaster.notify(b"t", b"x"))
    await outbound.until(lambda: outbound.in_flight == 50)
    release.set()
    result = await notify
    assert (result.matched, result.notified, result.pending, result.failed) == (50, 50, 0, 0)


async def test_a_large_fan_out_does_not_hold_up_a_small_one(
    open_broadcaster: OpenBroadcaster, outbound: ScriptedOutbound
) -> None:
    broadcaster = await open_broadcaster()
    release = asyncio.Event()
    for number in range(800):
        await subscribe(broadcaster, url(2000 + number), b"large")
        outbound.hangs(url(2000 + number), release)
    await subscribe(broadcaster, url(5000), b"small")
    large = asyncio.create_task(broadcaster.notify(b"large", b"x"))
    await outbound.until(lambda: bool(outbound.posts))
    assert (await broadcaster.notify(b"small", b"y")).notified == 1
    release.set()
    assert (await large).notified == 800


async def test_attempts_are_bounded_per_host_and_in_total(
    open_broadcaster: OpenBroadcaster, outbound: ScriptedOutbound
) -> None:
    broadcaster = await open_broadcaster(max_in_flight=6, max_in_flight_per_host=4)
    release = asyncio.Event()
    for n in range(20):
        one_host, own_host = url(2000, f"/{n}"), url(3000 + n)
        for target in (one_host, own_host):
            await subscribe(broadcaster, target, b"t")
            outbound.hangs(target, release)
    notify = asyncio.create_task(broadcaster.notify(b"t", b"x"))
    await outbound.until(lambda: outbound.in_flight == 6)
    release.set()
    result = await notify
    assert result.notified == 40
    assert outbound.most_in_flight == 6


async def test_one_host_never_has_more_than_its_share(
    open_broadcaster: OpenBroadcaster, outbound: ScriptedOutbound
) -> None:
    broadcaster = await open_broadcaster(max_in_flight_per_host=3)
    for n in range(12):
        await subscribe(broadcaster, url(2000, f"/{n}"), b"t")
    result = await broadcaster.notify(b"t", b"x")
    assert result.notified == 12
    assert outbound.most_in_flight <= 3


async def test_a_hanging_callback_keeps_one_slot_and_its_neighbours_on_the_same_host_go_on(
    open_broadcaster: OpenBroadcaster, outbound: ScriptedOutbound
) -> None:
    broadcaster = await open_broadcaster(max_in_flight=8, max_in_flight_per_host=4)
    outbound.replies(url(2000, "/hangs"), AttemptFailed("timeout", again=False, hanging=True))
    await subscribe(broadcaster, url(2000, "/hangs"), b"t")
    await subscribe(broadcaster, url(2000, "/good"), b"other")
    assert (await broadcaster.notify(b"t", b"x")).failed == 1

    outbound.hangs(url(2000, "/hangs"))
    for _ in range(10):
        assert (await broadcaster.notify(b"t", b"x", wait_seconds=0)).pending == 1
    await outbound.until(lambda: outbound.in_flight == 1)
    for _ in range(20):
        assert (await broadcaster.notify(b"other", b"y")).notified == 1
    assert outbound.in_flight == 1


async def test_many_hanging_callbacks_leave_most_slots_to_the_others(
    open_broadcaster: OpenBroadcaster, outbound: ScriptedOutbound
) -> None:
    broadcaster = await open_broadcaster(max_in_flight=8)
    for port in range(2000, 2020):
        outbound.replies(url(port), AttemptFailed("timeout", again=False, hanging=True))
        await subscribe(broadcaster, url(port), b"t")
    await subscribe(broadcaster, url(3000), b"other")
    assert (await broadcaster.notify(b"t", b"x")).failed == 20
    for port in range(2000, 2020):
        outbound.hangs(url(port))
    await broadcaster.notify(b"t", b"x", wait_seconds=0)
    await outbound.until(lambda: outbound.in_flight == 2)
    assert (await broadcaster.notify(b"other", b"y")).notified == 1
    assert outbound.in_flight == 2


async def test_a_new_callback_that_hangs_leaves_room_for_its_neighbours_at_once(
    open_broadcaster: OpenBroadcaster, outbound: ScriptedOutbound
) -> None:
    broadcaster = await open_broadcaster(max_in_flight_per_host=4)
    outbound.hangs(url(2000, "/hangs"))
    await subscribe(broadcaster, url(2000, "/hangs"), b"t")
    await subscribe(broadcaster, url(2000, "/good"), b"other")
    for _ in range(10):
        await broadcaster.notify(b"t", b"x", wait_seconds=0)
    await outbound.until(lambda: outbound.in_flight == 3)
    assert (await broadcaster.notify(b"other", b"y")).notified == 1


async def test_a_hanging_callback_that_answers_again_gets_its_share_back(
    open_broadcaster: OpenBroadcaster, outbound: ScriptedOutbound
) -> None:
    broadcaster = await open_broadcaster(max_in_flight_per_host=4)
    outbound.replies(url(2000), AttemptFailed("timeout", again=False, hanging=True), 200)
    await subscribe(broadcaster, url(2000), b"t")
    assert (await broadcaster.notify(b"t", b"x")).failed == 1
    assert (await broadcaster.notify(b"t", b"x")).notified == 1
    release = asyncio.Event()
    outbound.hangs(url(2000), release)
    notifies = [asyncio.create_task(broadcaster.notify(b"t", b"x")) for _ in range(4)]
    await outbound.until(lambda: outbound.in_flight == 3)
    release.set()
    assert [(await notify).notified for notify in notifies] == [1, 1, 1, 1]


async def test_more_waiting_deliveries_than_allowed_fail_at_once(
    open_broadcaster: OpenBroadcaster, outbound: ScriptedOutbound
) -> None:
    broadcaster = await open_broadcaster(max_in_flight_per_host=1, max_waiting_per_callback=2)
    release = asyncio.Event()
    outbound.hangs(url(2000), release)
    for pattern in (b"t", "t", "?", "*", "**"):
        await subscribe(broadcaster, url(2000), pattern)
    notify = asyncio.create_task(broadcaster.notify(b"t", b"x"))
    await outbound.until(lambda: outbound.in_flight == 1)
    release.set()
    result = await notify
    assert result.notified + result.failed == 5
    assert result.failed >= 2


@pytest.mark.parametrize("status", [502, 503, 504])
async def test_a_passing_failure_is_retried_with_the_same_id_and_the_next_attempt_number(
    open_broadcaster: OpenBroadcaster, outbound: ScriptedOutbound, status: int
) -> None:
    broadcaster = await open_broadcaster()
    await subscribe(broadcaster, url(2000), b"t")
    outbound.replies(url(2000), status, AttemptFailed("connect_error", again=True), 204)
    result = await broadcaster.notify(b"t", b"x")
    assert result.notified == 1
    assert [post.headers["pubsub-attempt"] for post in outbound.posts] == ["1", "2", "3"]
    assert {post.headers["webhook-id"] for post in outbound.posts} == {result.message_id}


async def test_too_many_requests_is_retried_after_a_short_wait_only(
    open_broadcaster: OpenBroadcaster, outbound: ScriptedOutbound
) -> None:
    broadcaster = await open_broadcaster()
    await subscribe(broadcaster, url(2000), b"short")
    await subscribe(broadcaster, url(2001), b"long")
    outbound.replies(url(2000), Answer(429, "0"), Answer(200, None))
    outbound.replies(url(2001), Answer(429, "3600"), Answer(200, None))
    assert (await broadcaster.notify(b"short", b"x")).notified == 1
    assert (await broadcaster.notify(b"long", b"x")).failed == 1
    assert len(outbound.posts) == 3


@pytest.mark.parametrize("status", [301, 302, 307, 308, 400, 401, 404, 500, 501])
async def test_other_answers_fail_at_the_first_attempt(
    open_broadcaster: OpenBroadcaster, outbound: ScriptedOutbound, status: int
) -> None:
    broadcaster = await open_broadcaster()
    await subscribe(broadcaster, url(2000), b"t")
    outbound.replies(url(2000), status)
    assert (await broadcaster.notify(b"t", b"x")).failed == 1
    assert len(outbound.posts) == 1


async def test_gone_removes_the_subscription(open_broadcaster: OpenBroadcaster, outbound: ScriptedOutbound) -> None:
    broadcaster = await open_broadcaster()
    subscription = await subscribe(broadcaster, url(2000), b"t")
    outbound.replies(url(2000), 410)
    assert (await broadcaster.notify(b"t", b"x")).failed == 1
    await broadcaster.drained()
    with pytest.raises(NotFound):
        await broadcaster.subscription(subscription.id)
    assert (await broadcaster.notify(b"t", b"x")).matched == 0


async def test_the_deadline_of_a_notify_fails_what_is_not_confirmed(
    open_broadcaster: OpenBroadcaster, outbound: ScriptedOutbound
) -> None:
    broadcaster = await open_broadcaster(notify_timeout_seconds=0.05)
    await subscribe(broadcaster, url(2000), b"t")
    await subscribe(broadcaster, url(2001), b"t")
    outbound.hangs(url(2000))
    result = await broadcaster.notify(b"t", b"x")
    assert (result.notified, result.failed) == (1, 1)
    await outbound.until(lambda: outbound.in_flight == 0)


async def test_draining_refuses_new_notifies_and_finishes_running_ones(
    open_broadcaster: OpenBroadcaster, outbound: ScriptedOutbound
) -> None:
    broadcaster = await open_broadcaster()
    release = asyncio.Event()
    await subscribe(broadcaster, url(2000), b"t")
    outbound.hangs(url(2000), release)
    running = asyncio.create_task(broadcaster.notify(b"t", b"x"))
    await outbound.until(lambda: outbound.in_flight == 1)
    broadcaster.start_draining()
    with pytest.raises(Unavailable, match="shutting down"):
        await broadcaster.notify(b"t", b"y")
    drained = asyncio.create_task(broadcaster.drained())
    release.set()
    assert (await running).notified == 1
    await drained


async def test_draining_gives_up_what_waits_for_a_retry(
    open_broadcaster: OpenBroadcaster, outbound: ScriptedOutbound
) -> None:
    broadcaster = await open_broadcaster()
    await subscribe(broadcaster, url(2000), b"t")
    outbound.replies(url(2000), Answer(503, "20"))
    running = asyncio.create_task(broadcaster.notify(b"t", b"x"))
    await outbound.until(lambda: len(outbound.posts) == 1 and outbound.in_flight == 0)
    broadcaster.start_draining()
    assert (await running).failed == 1


async def test_closing_gives_up_what_does_not_finish_in_time(tmp_path: Path, outbound: ScriptedOutbound) -> None:
    config = ServerConfig(db=f"sqlite:///{tmp_path}/db", shutdown_timeout_seconds=0.05)
    outbound.hangs(url(2000))
    async with Broadcaster(config, secrets=NO_AUTH, outbound=outbound) as broadcaster:
        await subscribe(broadcaster, url(2000), b"t")
        hung = asyncio.create_task(broadcaster.notify(b"t", b"x"))
        await outbound.until(lambda: outbound.in_flight == 1)
    assert (await hung).failed == 1
    assert outbound.in_flight == 0
