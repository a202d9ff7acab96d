"""One attempt: only under a lease that outlasts it, only with its body, only while the message is wanted."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from httppubsubclient.bodies import Body
from httppubsubclient.protocol.credentials import Credentials
from httppubsubclient.protocol.keys import Key
from httppubsubclient.protocol.moments import MessageMoments
from httppubsubserver.delivery import attempts as attempts_module
from httppubsubserver.delivery.answers import AttemptFailed
from httppubsubserver.delivery.proxy import ProxyFailed
from httppubsubserver.delivery.work import Work
from tests.server.conftest import ScriptedOutbound
from tests.server.durable import OTHER, URL, Bench, claimed, open_bench


@pytest.fixture
async def bench(tmp_path: Path, outbound: ScriptedOutbound) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path, outbound, max_durable_in_flight=1) as opened:
        yield opened


async def behind_a_slow_one(bench: Bench, moments: MessageMoments | None = None) -> asyncio.Event:
    """msg_2 waits for the only slot, which msg_1 has until the event."""
    await bench.executor()
    await bench.subscribe(URL, topic=b"slow")
    await bench.subscribe(OTHER, topic=b"quick")
    gate = asyncio.Event()
    bench.outbound.hangs(URL, gate)
    await bench.publish(topic=b"slow")
    await bench.outbound.until(lambda: bench.outbound.in_flight == 1)
    await bench.publish(topic=b"quick", moments=moments or MessageMoments(None, None))
    await bench.until_states(leased=2)
    return gate


async def test_a_lease_that_would_end_during_the_attempt_is_extended_first(bench: Bench) -> None:
    gate = await behind_a_slow_one(bench)
    bench.clock.now += bench.config.delivery_lease_seconds - 12
    bench.trouble.before["settle"] = asyncio.Event()
    gate.set()
    await bench.outbound.until(lambda: len(bench.outbound.posts) == 2)
    assert bench.trouble.calls["extend"] == 1
    [_, quick] = await bench.owed()
    assert quick.leased_until is not None
    assert quick.leased_until > bench.clock.moment + int(bench.config.attempt_timeout_seconds) * 1_000_000
    bench.trouble.before.pop("settle").set()
    await bench.until_states(delivered=2)
    bench.check_idle()


async def test_a_lease_that_is_long_enough_costs_no_call(bench: Bench) -> None:
    gate = await behind_a_slow_one(bench)
    gate.set()
    await bench.until_states(delivered=2)
    assert bench.trouble.calls["extend"] == 0


async def test_what_expires_while_it_waits_for_a_slot_is_not_sent(bench: Bench) -> None:
    gate = await behind_a_slow_one(bench, MessageMoments(None, bench.clock.moment + 5_000_000))
    bench.clock.now += 6
    gate.set()
    await bench.until_states(delivered=1, dead=1)
    assert bench.posted() == ["msg_1"]
    bench.check_idle()


async def test_a_large_body_has_a_lease_as_long_as_it_may_take(bench: Bench) -> None:
    """30 MB at the slowest rate that is allowed take as long as an ordinary lease."""
    await bench.subscribe()
    first = await bench.executor()
    first.start_draining()
    await bench.publish(b"x" * 30_000_000)
    gate = asyncio.Event()
    bench.outbound.hangs(URL, gate)
    await bench.executor()
    await bench.outbound.until(lambda: bench.outbound.in_flight == 1)
    [owed] = await bench.owed()
    assert owed.leased_until is not None
    assert owed.leased_until >= bench.clock.moment + 40_000_000
    gate.set()
    await bench.until_states(delivered=1)


async def test_a_lease_that_was_lost_while_the_body_was_read_is_not_used(bench: Bench) -> None:
    """Reading took longer than anybody thought; somebody else has the delivery."""
    await bench.subscribe()
    first = await bench.executor()
    first.start_draining()
    await bench.publish(b"x" * 600_000)
    gate = bench.trouble.after["read_chunk"] = asyncio.Event()
    slow = await bench.executor()
    await bench.until(lambda: bench.trouble.calls["read_chunk"] == 1)
    bench.executors.clear()
    bench.trouble.after.clear()
    other = await bench.executor()
    bench.clock.now += 120
    other.due()
    await bench.until_states(delivered=1)
    gate.set()
    await bench.until(lambda: slow._attempts.held == 0)
    assert len(bench.outbound.posts) == 1
    bench.check_idle()


async def test_without_a_key_nothing_is_sent_and_the_endpoint_is_not_to_blame(bench: Bench) -> None:
    old = Key("k1", b"x" * 32, valid_until=bench.clock.now - 1)
    executor = await bench.executor(credentials=Credentials("hmac", (old,)))
    await bench.subscribe(schedule=(0.0, 10.0))
    notify = await bench.publish()
    await notify.finished()
    assert notify.pending == 1
    await bench.until_states(pending=1)
    assert bench.outbound.posts == []
    assert executor._endpoints.all() == []
    bench.check_idle()


async def test_a_machine_without_room_for_another_connection_costs_no_attempt_and_no_trust(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts_module, "_TROUBLE_PAUSE_SECONDS", 0)
    executor = await bench.executor()
    await bench.subscribe(schedule=(0.0,))
    nothing_left = OSError(errno.EMFILE, "Too many open files")
    failed = AttemptFailed("connect_error", again=True, cause=nothing_left)
    bench.outbound.replies(URL, *[failed] * 10, 200)
    notify = await bench.publish()
    await notify.finished()
    assert (notify.pending, notify.failed) == (1, 0)
    await bench.until_states(delivered=1)
    assert {post.headers["pubsub-attempt"] for post in bench.outbound.posts} == {"1"}
    assert len(bench.outbound.posts) == 11
    await bench.until(lambda: executor._endpoints.all() == [])
    bench.check_idle()


@pytest.mark.parametrize("works", [False, True], ids=["for nobody", "for others"])
async def test_what_a_proxy_does_not_let_out_costs_an_attempt_only_if_it_works_for_others(
    works: bool, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts_module, "_PROXY_PAUSE_SECONDS", 0)
    executor = await bench.executor()
    await bench.subscribe(schedule=(0.0,) if works else (0.0, 10.0))
    refused = ProxyFailed("the egress proxy answered 503", excused=lambda: not works)
    bench.outbound.replies(URL, *[refused] * 10, 200)
    notify = await bench.publish()
    await notify.finished()
    assert (notify.pending, notify.failed) == ((0, 1) if works else (1, 0))
    await bench.until_states(**({"dead": 1} if works else {"delivered": 1}))
    assert {post.headers["pubsub-attempt"] for post in bench.outbound.posts} == {"1"}
    assert len(bench.outbound.posts) == (1 if works else 11)
    await bench.until(lambda: executor._endpoints.all() == [] or works)
    bench.check_idle()


def test_whoever_waits_is_told_once() -> None:
    told: list[str] = []
    work = Work(claimed(), None, told.append)
    work.end("delivered")
    work.end("returned")
    assert told == ["delivered"]


# -- webhooks ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, 100_000, 600_000])
async def test_a_webhook_too_large_is_dead_at_once_and_never_read_from_the_store(
    tmp_path: Path, outbound: ScriptedOutbound, size: int
) -> None:
    async with open_bench(tmp_path, outbound, max_webhook_bytes=size - 1) as bench:
        await bench.executor()
        await bench.subscribe(secret="generate")
        plain = await bench.subscribe(OTHER)
        await bench.publish(bytes(size))
        await bench.until_states(dead=1, delivered=1)
        [dead] = [each for each in await bench.owed() if each.state == "dead"]
        assert (dead.reason, dead.attempts) == ("too_large", 1)
        assert [post.headers["pubsub-subscription"] for post in outbound.posts] == [plain]
        bench.check_idle()


async def test_a_webhook_that_cannot_be_signed_says_nothing_about_its_endpoint(
    bench: Bench, outbound: ScriptedOutbound
) -> None:
    await bench.subscribe(secret="generate")
    await bench.subscribe(f"{URL}#plain", topic=b"u")
    vault, bench.secrets._vault = bench.secrets._vault, None
    executor = await bench.executor()
    for _ in range(20):
        await bench.publish()
    await bench.until(lambda: bench.trouble.calls["settle"] >= 1)
    await bench.publish(topic=b"u")
    await bench.until_states(pending=20, delivered=1)
    bench.secrets._vault = vault
    bench.pass_by(10)
    await bench.until_states(delivered=21)
    assert executor.running == 0
    assert all("webhook-signature" in post.headers for post in outbound.posts[1:])
    bench.check_idle()


async def test_a_webhook_whose_body_finds_no_descriptor_loses_no_attempt(
    bench: Bench, outbound: ScriptedOutbound, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts_module, "_TROUBLE_PAUSE_SECONDS", 0.01)
    faults = 3
    share = Body.share

    def failing(body: Body) -> Body:
        nonlocal faults
        if faults and body.size == 70_000:
            faults -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return share(body)

    await bench.subscribe(secret="generate")
    await bench.executor()
    await bench.publish(bytes(10))
    await bench.until_states(delivered=1)
    monkeypatch.setattr(Body, "share", failing)
    notified = await bench.publish(bytes(70_000))
    await bench.until_states(delivered=2)
    await notified.finished()
    assert faults == 0
    assert outbound.posts[-1].headers["pubsub-attempt"] == "1"
    bench.check_idle()
