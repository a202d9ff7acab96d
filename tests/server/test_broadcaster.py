"""The broadcaster without HTTP."""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
from base64 import b64encode
from pathlib import Path
from time import time

import pytest

from httppubsubclient.bodies import Body, spool
from httppubsubclient.protocol.credentials import Credentials, Key, Secrets, verify_delivery
from httppubsubclient.protocol.errors import (
    ConfigurationError,
    Conflict,
    InvalidRequest,
    InvalidTopic,
    NotFound,
    Unavailable,
)
from httppubsubclient.protocol.messages import SubscribeRequest, parse_delivery
from httppubsubclient.protocol.patterns import Pattern
from httppubsubserver.broadcaster import Broadcaster
from httppubsubserver.config import ServerConfig
from tests.server.conftest import NO_AUTH, OpenBroadcaster, ScriptedOutbound, subscribe
from tests.server.peers import OK, Network, Wire

A, B = "http://127.0.0.1:2000/v1/receive", "http://127.0.0.1:2001/v1/receive"


async def test_a_message_reaches_exact_glob_and_mqtt_subscriptions_and_no_others(
    broadcaster: Broadcaster, outbound: ScriptedOutbound
) -> None:
    await subscribe(broadcaster, A, b"foo/bar")
    await subscribe(broadcaster, A, "foo/*")
    await subscribe(broadcaster, A, Pattern.mqtt("foo/#"))
    await subscribe(broadcaster, A, b"foo/baz")
    await subscribe(broadcaster, A, "bar/*")
    result = await broadcaster.notify(b"foo/bar", b"data")
    assert (result.matched, result.notified) == (3, 3)
    assert {post.body for post in outbound.posts} == {b"data"}


async def test_a_topic_that_is_not_text_reaches_its_exact_subscription_only(
    broadcaster: Broadcaster, outbound: ScriptedOutbound
) -> None:
    await subscribe(broadcaster, A, b"\xff\x00/x")
    await subscribe(broadcaster, B, "**")
    assert (await broadcaster.notify(b"\xff\x00/x", b"")).matched == 1
    assert outbound.posts[0].headers["pubsub-topic"] == "%FF%00/x"


async def test_a_delivery_carries_the_headers_of_the_protocol(
    open_broadcaster: OpenBroadcaster, outbound: ScriptedOutbound
) -> None:
    key = Key("k1", b"0123456789abcdef0123456789abcdef")
    secrets = Secrets(Credentials.none(), Credentials("hmac", (key,)), ())
    broadcaster = await open_broadcaster(secrets=secrets)
    subscription = await subscribe(broadcaster, "http://127.0.0.1:2000/hook#worker-1", b"foo/b r")
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    result = await broadcaster.notify(b"foo/b r", b"{}", content_type="application/json", traceparent=trace)
    [post] = outbound.posts
    assert post.url == "http://127.0.0.1:2000/hook"
    delivery = parse_delivery(post.headers)
    assert delivery.message_id == result.message_id
    assert delivery.topic == b"foo/b r"
    assert delivery.subscription_id == subscription.id
    assert delivery.fragment == "worker-1"
    assert delivery.content_type == "application/json"
    assert delivery.traceparent == trace
    digest = b64encode(hashlib.sha256(b"{}").digest()).decode()
    assert post.headers["content-digest"] == f"sha-256=:{digest}:"
    proof = verify_delivery(
        secrets.to_subscribers, method="POST", headers=post.headers, now=delivery.timestamp, tolerance_seconds=300
    )
    assert proof.key_id == "k1"


async def test_a_delivery_that_met_a_closed_connection_is_signed_anew_and_is_no_second_attempt(
    network: Network, tmp_path: Path
) -> None:
    """The receiver may have taken the first copy: the second one must not be a replay to it."""
    key = Key("k1", b"0123456789abcdef0123456789abcdef")
    secrets = Secrets(Credentials.none(), Credentials("hmac", (key,)), ())
    heads: list[dict[str, str]] = []

    async def temper(wire: Wire, number: int) -> None:
        while True:
            head, _ = await wire.request()
            heads.append(dict(line.split(": ", 1) for line in head.split("\r\n")[1:-2]))
            if len(heads) == 2:
                return
            await wire.send(OK)

    peer = await network.peer(temper)
    async with Broadcaster(ServerConfig(db=f"sqlite:///{tmp_path}/db"), secrets=secrets) as broadcaster:
        await subscribe(broadcaster, peer.callback().request_url, b"t")
        for number in range(2):
            result = await broadcaster.notify(b"t", b"%d" % number)
            assert (result.notified, result.failed) == (1, 0)
    proofs = [
        verify_delivery(secrets.to_subscribers, method="POST", headers=head, now=time(), tolerance_seconds=300)
        for head in heads
    ]
    assert len({proof.nonce for proof in proofs}) == 3
    first, taken, again = (parse_delivery(head) for head in heads)
    assert (taken.message_id, taken.attempt) == (again.message_id, again.attempt) == (result.message_id, 1)
    assert first.message_id != taken.message_id


async def test_the_same_subscription_again_keeps_its_id(broadcaster: Broadcaster) -> None:
    request = SubscribeRequest(A, Pattern.glob("a/*"), 60)
    first, created = await broadcaster.subscribe(request)
    again, created_again = await broadcaster.subscribe(request)
    assert (created, created_again) == (True, False)
    assert first.id == again.id
    assert (await broadcaster.notify(b"a/b", b"")).matched == 1


async def test_an_ended_lease_is_not_delivered_to(tmp_path: Path) -> None:
    now = 1_800_000_000.0
    outbound = ScriptedOutbound()
    config = ServerConfig(db=f"sqlite:///{tmp_path}/db")
    broadcaster = Broadcaster(config, secrets=NO_AUTH, outbound=outbound, clock=lambda: now)
    async with broadcaster:
        subscription, _ = await broadcaster.subscribe(SubscribeRequest(A, Pattern.exact(b"t"), 60))
        now += 59
        assert (await broadcaster.notify(b"t", b"")).matched == 1
        now += 2
        assert (await broadcaster.notify(b"t", b"")).matched == 0
        with pytest.raises(NotFound):
            await broadcaster.subscription(subscription.id)


async def test_subscriptions_survive_a_restart(tmp_path: Path) -> None:
    config = ServerConfig(db=f"sqlite:///{tmp_path}/db")
    async with Broadcaster(config, secrets=NO_AUTH, outbound=ScriptedOutbound()) as before:
        await subscribe(before, A, b"t")
    async with Broadcaster(config, secrets=NO_AUTH, outbound=ScriptedOutbound()) as after:
        assert (await after.notify(b"t", b"")).notified == 1


async def test_what_one_broadcaster_answered_the_next_notify_of_another_sees(
    open_broadcaster: OpenBroadcaster,
) -> None:
    one, other = await open_broadcaster(), await open_broadcaster()
    for n in range(50):
        topic = f"t/{n}".encode()
        subscription = await subscribe(one, A, topic)
        assert (await other.notify(topic, b"")).notified == 1
        await one.unsubscribe(subscription.id)
        assert (await other.notify(topic, b"")).matched == 0


async def test_not_waiting_counts_everything_as_pending(broadcaster: Broadcaster, outbound: ScriptedOutbound) -> None:
    release = asyncio.Event()
    await subscribe(broadcaster, A, b"t")
    outbound.hangs(A, release)
    result = await broadcaster.notify(b"t", b"x", wait_seconds=0)
    assert (result.matched, result.pending) == (1, 1)
    release.set()
    await broadcaster.drained()
    assert len(outbound.posts) == 1


async def test_waiting_for_a_while_counts_what_was_decided_until_then(
    broadcaster: Broadcaster, outbound: ScriptedOutbound
) -> None:
    release = asyncio.Event()
    await subscribe(broadcaster, A, b"t")
    await subscribe(broadcaster, B, b"t")
    outbound.hangs(A, release)
    result = await broadcaster.notify(b"t", b"x", wait_seconds=0.1)
    assert (result.notified, result.pending) == (1, 1)
    release.set()
    await broadcaster.drained()


async def test_a_spooled_body_reaches_many_and_is_closed_afterwards(
    broadcaster: Broadcaster, outbound: ScriptedOutbound
) -> None:
    async def pieces() -> object:
        for _ in range(40):
            yield b"x" * 100_000

    await subscribe(broadcaster, A, b"t")
    await subscribe(broadcaster, B, b"t")
    body = await spool(pieces(), spool_bytes=1000, max_bytes=10_000_000)  # type: ignore[arg-type]
    assert body.data is None
    assert (await broadcaster.notify(b"t", body)).notified == 2
    assert [len(post.body) for post in outbound.posts] == [4_000_000, 4_000_000]
    with pytest.raises(ValueError, match="closed"):
        body.open()


async def test_the_body_is_closed_when_the_notify_is_refused(broadcaster: Broadcaster) -> None:
    async def pieces() -> object:
        yield b"x" * 100

    body = await spool(pieces(), spool_bytes=10, max_bytes=100)  # type: ignore[arg-type]
    with pytest.raises(InvalidTopic):
        await broadcaster.notify(b"", body)
    with pytest.raises(ValueError, match="closed"):
        body.open()


async def test_the_same_idempotency_key_sends_once_and_answers_the_same(
    broadcaster: Broadcaster, outbound: ScriptedOutbound
) -> None:
    release = asyncio.Event()
    await subscribe(broadcaster, A, b"t")
    outbound.hangs(A, release)
    notifies = [asyncio.create_task(broadcaster.notify(b"t", b"x", idempotency_key="k")) for _ in range(50)]
    await outbound.until(lambda: outbound.in_flight == 1)
    release.set()
    results = await asyncio.gather(*notifies)
    assert len(outbound.posts) == 1
    assert len(set(results)) == 1
    assert await broadcaster.notify(b"t", b"x", idempotency_key="k") == results[0]


@pytest.mark.parametrize(
    ("topic", "data", "content_type"),
    [(b"t", b"y", "text/plain"), (b"u", b"x", "text/plain"), (b"t", b"x", "text/html")],
)
async def test_the_same_idempotency_key_with_another_message_is_a_conflict(
    broadcaster: Broadcaster, topic: bytes, data: bytes, content_type: str
) -> None:
    await broadcaster.notify(b"t", b"x", content_type="text/plain", idempotency_key="k")
    with pytest.raises(Conflict):
        await broadcaster.notify(topic, data, content_type=content_type, idempotency_key="k")


async def test_a_publisher_that_goes_away_does_not_leave_its_key_claimed(
    broadcaster: Broadcaster, outbound: ScriptedOutbound
) -> None:
    release = asyncio.Event()
    await subscribe(broadcaster, A, b"t")
    outbound.hangs(A, release)
    notify = asyncio.create_task(broadcaster.notify(b"t", b"x", idempotency_key="k"))
    await outbound.until(lambda: outbound.in_flight == 1)
    notify.cancel()
    with pytest.raises(asyncio.CancelledError):
        await notify
    release.set()
    assert (await broadcaster.notify(b"t", b"x", idempotency_key="k")).notified == 1
    assert len(outbound.posts) == 1


async def test_a_message_that_is_out_is_answered_as_such_whatever_the_store_says_then(
    broadcaster: Broadcaster, outbound: ScriptedOutbound, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anything else would make the publisher send it again."""
    await subscribe(broadcaster, A, b"t")
    finish_once, failures = broadcaster.store.finish_once, [1, 2]

    async def in_trouble(key: str, *, answer: str) -> None:
        if failures:
            failures.pop()
            raise Unavailable("the database is locked")
        await finish_once(key, answer=answer)

    monkeypatch.setattr(broadcaster.store, "finish_once", in_trouble)
    first = await broadcaster.notify(b"t", b"x", idempotency_key="k")
    assert first.notified == 1
    assert await broadcaster.notify(b"t", b"x", idempotency_key="k") == first
    assert len(outbound.posts) == 1


async def test_nobody_waits_for_another_s_answer_while_the_broadcaster_stops(
    broadcaster: Broadcaster, outbound: ScriptedOutbound
) -> None:
    release = asyncio.Event()
    await subscribe(broadcaster, A, b"t")
    outbound.hangs(A, release)
    first = asyncio.create_task(broadcaster.notify(b"t", b"x", idempotency_key="k"))
    await outbound.until(lambda: outbound.in_flight == 1)
    second = asyncio.create_task(broadcaster.notify(b"t", b"x", idempotency_key="k"))
    await asyncio.sleep(0)
    broadcaster.start_draining()
    with pytest.raises(Unavailable, match="shutting down"):
        await second
    release.set()
    assert (await first).notified == 1


async def test_a_subscription_that_was_renewed_after_the_delivery_began_survives_its_410(
    broadcaster: Broadcaster, outbound: ScriptedOutbound
) -> None:
    subscription = await subscribe(broadcaster, A, b"t")

    async def renewed_meanwhile(_: object) -> int:
        await subscribe(broadcaster, A, b"t")
        return 410

    outbound.scripts[A] = renewed_meanwhile
    assert (await broadcaster.notify(b"t", b"x")).failed == 1
    await broadcaster.drained()
    assert (await broadcaster.subscription(subscription.id)).id == subscription.id


async def test_a_database_that_has_gone_back_is_loaded_anew(tmp_path: Path, outbound: ScriptedOutbound) -> None:
    path = tmp_path / "db"
    config = ServerConfig(db=f"sqlite:///{path}")
    async with Broadcaster(config, secrets=NO_AUTH, outbound=outbound) as broadcaster:
        await subscribe(broadcaster, A, b"kept")
        with sqlite3.connect(path) as live, sqlite3.connect(tmp_path / "backup") as backup:
            live.backup(backup)
            await subscribe(broadcaster, A, b"lost")
            assert (await broadcaster.notify(b"lost", b"")).matched == 1
            backup.backup(live)
        live.close()
        backup.close()
        assert (await broadcaster.notify(b"lost", b"")).matched == 0
        assert (await broadcaster.notify(b"kept", b"")).matched == 1


async def test_text_is_no_message(broadcaster: Broadcaster) -> None:
    with pytest.raises(InvalidRequest, match="encode"):
        await broadcaster.notify(b"t", "text")  # type: ignore[arg-type]


async def test_too_many_notifies_at_once_are_refused(
    open_broadcaster: OpenBroadcaster, outbound: ScriptedOutbound
) -> None:
    broadcaster = await open_broadcaster(max_pending_notifies=1)
    release = asyncio.Event()
    await subscribe(broadcaster, A, b"t")
    outbound.hangs(A, release)
    await broadcaster.notify(b"t", b"x", wait_seconds=0)
    with pytest.raises(Unavailable, match="too many"):
        await broadcaster.notify(b"t", b"x")
    release.set()


async def test_small_bodies_go_to_a_file_when_memory_holds_enough(open_broadcaster: OpenBroadcaster) -> None:
    broadcaster = await open_broadcaster(bodies_in_memory_bytes=0)
    with broadcaster.body_writer() as writer:
        await writer.write(b"x" * 200_000)
        with await writer.finish() as body:
            assert body.data is None


async def test_what_bodies_may_hold_in_memory_is_shared_by_all_that_arrive(open_broadcaster: OpenBroadcaster) -> None:
    broadcaster = await open_broadcaster(bodies_in_memory_bytes=1_000_000, spool_bytes=600_000)
    with broadcaster.body_writer(600_000) as first, broadcaster.body_writer(600_000) as second:
        for writer, in_memory in ((first, True), (second, False)):
            await writer.write(b"x" * 600_000)
            with await writer.finish() as body:
                assert (body.data is not None) == in_memory
    with broadcaster.body_writer(600_000) as again:
        await again.write(b"x" * 600_000)
        with await again.finish() as body:
            assert body.data is not None


async def test_a_broadcaster_that_is_not_open_says_so(tmp_path: Path) -> None:
    broadcaster = Broadcaster(ServerConfig(db=f"sqlite:///{tmp_path}/db"), secrets=NO_AUTH)
    with pytest.raises(Unavailable, match="not running"):
        await broadcaster.notify(b"t", b"x")
    with pytest.raises(Unavailable, match="not running"):
        await subscribe(broadcaster, A, b"t")


async def test_without_secrets_there_is_no_broadcaster() -> None:
    with pytest.raises(ConfigurationError, match="--setup"):
        Broadcaster(ServerConfig())


async def test_a_body_in_memory_can_be_read_by_many() -> None:
    body = Body.of(b"abc")
    assert body.open().read() == body.open().read() == b"abc"
    assert [chunk async for chunk in body.chunks()] == [b"abc"]
