"""registrations.py: what the broadcaster keeps for our URL is what is subscribed here, whatever happens between."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest

from httppubsubclient.client import BroadcastersUnavailable, HttpPubSubClient
from httppubsubclient.protocol.errors import Forbidden, InvalidRequest, Unavailable
from httppubsubclient.protocol.patterns import Pattern
from tests.client.conftest import CALLBACK, HOST, FakeBroadcaster, Wire, config, cut_off, refuse, unreachable, until

EXACT = Pattern.exact(b"foo/bar")


class Gate:
    """Holds a request until it is opened, before or after it is processed."""

    def __init__(self, broadcaster: FakeBroadcaster, *, processed: bool) -> None:
        self._broadcaster = broadcaster
        self._processed = processed
        self.reached = asyncio.Event()
        self.open = asyncio.Event()

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        answer = self._broadcaster.process(request) if self._processed else None
        self.reached.set()
        await self.open.wait()
        return answer or self._broadcaster.process(request)


async def test_the_first_subscription_replaces_what_an_earlier_life_left_behind(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster
) -> None:
    broadcaster.keep(CALLBACK, {"topic": "left/behind", "lease_seconds": 60})
    broadcaster.keep("http://another.test/v1/receive", {"topic": "not/ours", "lease_seconds": 60})
    async with client.subscribe_exact(b"foo/bar"):
        assert broadcaster.patterns() == ["topic='foo/bar'"]
        assert broadcaster.patterns("http://another.test/v1/receive") == ["topic='not/ours'"]


async def test_later_subscriptions_are_posted_and_deleted_one_by_one(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster
) -> None:
    async with client.subscribe_exact(b"foo/bar"):
        async with client.subscribe_exact(b"\xff"):
            assert broadcaster.patterns() == ["topic='foo/bar'", "topic_b64='/w=='"]
        assert broadcaster.patterns() == ["topic='foo/bar'"]
    assert broadcaster.calls == [
        "PUT /v1/subscriptions",
        "POST /v1/subscriptions",
        "DELETE /v1/subscriptions/sub_2",
        "DELETE /v1/subscriptions/sub_1",
    ]


async def test_the_fragment_is_part_of_the_url_that_is_subscribed(broadcaster: FakeBroadcaster) -> None:
    async with HttpPubSubClient(config(host=f"{HOST}/pubsub#1")) as client, client.subscribe_exact(b"foo"):
        assert b"url=http%3A%2F%2Fsubscriber.test%3A3002%2Fpubsub%2Fv1%2Freceive%231" in (
            broadcaster.requests[0].url.raw_path
        )
        assert broadcaster.patterns(f"{HOST}/pubsub/v1/receive#1") == ["topic='foo'"]


async def test_a_client_that_never_subscribed_says_nothing_on_leaving(broadcaster: FakeBroadcaster) -> None:
    async with HttpPubSubClient(config()):
        pass
    assert broadcaster.calls == []


async def test_leaving_the_client_drops_what_is_left(broadcaster: FakeBroadcaster) -> None:
    async with HttpPubSubClient(config()) as client:
        for topic in (b"a", b"b", b"c"):
            await client.subscribe_exact(topic).__aenter__()
    assert broadcaster.kept == {}
    assert broadcaster.calls[-1] == "PUT /v1/subscriptions"


async def test_many_subscriptions_at_once_share_calls(client: HttpPubSubClient, broadcaster: FakeBroadcaster) -> None:
    subscriptions = [client.subscribe_exact(b"%d" % number) for number in range(100)]
    await asyncio.gather(*(subscription.__aenter__() for subscription in subscriptions))
    assert len(broadcaster.kept) == 100
    await asyncio.gather(*(subscription.__aexit__(None, None, None) for subscription in subscriptions))
    assert broadcaster.kept == {}
    assert len(broadcaster.calls) <= 8


async def test_one_refused_pattern_is_not_paid_for_by_the_others(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster
) -> None:
    def refuse_secret(request: httpx.Request) -> httpx.Response | None:
        if b'"secret' in request.content:
            return refuse(Forbidden("not this topic"))(request)  # type: ignore[return-value]
        return None

    broadcaster.always = refuse_secret
    topics = [b"a", b"secret", b"b", b"c", b"secret2", b"d"]
    results = await asyncio.gather(
        *(client.subscribe_exact(topic).__aenter__() for topic in topics), return_exceptions=True
    )
    assert [isinstance(result, Forbidden) for result in results] == [False, True, False, False, True, False]
    assert sorted(broadcaster.patterns()) == ["topic='a'", "topic='b'", "topic='c'", "topic='d'"]


async def test_a_refused_subscription_is_as_if_it_had_never_been_asked_for(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster
) -> None:
    async with client.subscribe_exact(b"a"):
        broadcaster.next = [refuse(Forbidden("not this topic"))]
        with pytest.raises(Forbidden, match="not this topic"):
            async with client.subscribe_exact(b"b"):
                pass
        async with client.subscribe_exact(b"c"):
            assert broadcaster.patterns() == ["topic='a'", "topic='c'"]


async def test_a_subscription_that_no_broadcaster_takes_fails_within_its_time(
    hasty: HttpPubSubClient, broadcaster: FakeBroadcaster
) -> None:
    broadcaster.always = unreachable
    with pytest.raises(BroadcastersUnavailable, match="not reachable"):
        async with hasty.subscribe_exact(b"a"):
            pass


async def test_many_subscriptions_that_no_broadcaster_takes_fail_together(
    hasty: HttpPubSubClient, broadcaster: FakeBroadcaster
) -> None:
    broadcaster.always = unreachable
    async with asyncio.timeout(5):
        results = await asyncio.gather(
            *(hasty.subscribe_exact(b"%d" % number).__aenter__() for number in range(50)), return_exceptions=True
        )
    assert {type(result) for result in results} == {BroadcastersUnavailable}


@pytest.mark.parametrize("processed", [True, False])
async def test_cancelling_in_the_middle_of_subscribing_leaves_nothing_behind(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster, processed: bool
) -> None:
    async with client.subscribe_exact(b"stays"):
        gate = Gate(broadcaster, processed=processed)
        broadcaster.next = [gate]
        entering = asyncio.create_task(client.subscribe_exact(b"foo/bar").__aenter__())
        await gate.reached.wait()
        entering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await entering
        await until(lambda: broadcaster.calls[-1] == "PUT /v1/subscriptions")
        await until(lambda: broadcaster.patterns() == ["topic='stays'"])


async def test_an_answer_that_got_lost_is_repaired(hasty: HttpPubSubClient, broadcaster: FakeBroadcaster) -> None:
    def processed_but_lost(request: httpx.Request) -> httpx.Response:
        broadcaster.process(request)
        raise httpx.ReadError("reset by peer", request=request)

    async with hasty.subscribe_exact(b"stays"):
        broadcaster.next = [processed_but_lost, *[cut_off] * 100]
        with pytest.raises(BroadcastersUnavailable, match="repeating it is safe"):
            async with hasty.subscribe_exact(b"foo/bar"):
                pass
        broadcaster.next = []
        await until(lambda: broadcaster.patterns() == ["topic='stays'"])


async def test_leaving_while_no_broadcaster_answers_is_bounded_and_repaired_later(
    hasty: HttpPubSubClient, broadcaster: FakeBroadcaster, caplog: pytest.LogCaptureFixture
) -> None:
    async with hasty.subscribe_exact(b"stays"):
        async with hasty.subscribe_exact(b"foo/bar"):
            broadcaster.always = cut_off
        assert "its lease will run out" in caplog.text
        assert len(broadcaster.kept) == 2
        broadcaster.always = None
        await until(lambda: broadcaster.patterns() == ["topic='stays'"])


async def test_deleting_what_the_broadcaster_has_forgotten_is_fine(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster, caplog: pytest.LogCaptureFixture
) -> None:
    async with client.subscribe_exact(b"a"):
        broadcaster.kept.clear()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_more_patterns_than_a_broadcaster_takes_are_refused_at_once(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster
) -> None:
    too_many = client.subscribe(exact=[f"topic/{number}".encode() for number in range(10_001)])
    with pytest.raises(InvalidRequest, match="10000 patterns"):
        async with too_many:
            pass
    assert broadcaster.requests == []


async def test_what_another_process_has_taken_over_stays_when_we_leave(broadcaster: FakeBroadcaster) -> None:
    """A rolling restart with the same `host`: the new process subscribes before the old one leaves."""
    async with AsyncExitStack() as old_stack:
        old = await old_stack.enter_async_context(HttpPubSubClient(config()))
        await old_stack.enter_async_context(old.subscribe_exact(b"a"))
        async with HttpPubSubClient(config()) as new, new.subscribe_exact(b"a"):
            taken_over = dict(broadcaster.kept)
            await old_stack.aclose()
            assert broadcaster.kept == taken_over
            assert broadcaster.patterns() == ["topic='a'"]
        assert broadcaster.kept == {}


async def test_leases_are_renewed_with_the_whole_set(
    broadcaster: FakeBroadcaster, caplog: pytest.LogCaptureFixture
) -> None:
    broadcaster.lease_seconds = 1
    async with HttpPubSubClient(config()) as client, client.subscribe(exact=[b"a"], glob=["b/*"]):
        await until(lambda: broadcaster.calls.count("PUT /v1/subscriptions") >= 3)
        renewal = broadcaster.requests[1]
        assert [*json.loads(renewal.content)["subscriptions"]] == [
            {"topic": "a", "lease_seconds": 600},
            {"glob": "b/*", "lease_seconds": 600},
        ]
        assert renewal.headers["if-match"].startswith('"')
    assert "changed by somebody else" not in caplog.text, "every renewal named the present set"


async def test_what_a_broadcaster_forgot_is_there_again_after_the_renewal(
    broadcaster: FakeBroadcaster, caplog: pytest.LogCaptureFixture
) -> None:
    broadcaster.lease_seconds = 1
    async with HttpPubSubClient(config()) as client, client.subscribe_exact(b"foo/bar") as subscription:
        wire = Wire(client, broadcaster)
        broadcaster.kept.clear()
        await until(lambda: broadcaster.patterns() == ["topic='foo/bar'"])
        assert "GET /v1/subscriptions" in broadcaster.calls
        assert "changed by somebody else" in caplog.text
        async with wire.http:
            await wire.deliver(EXACT)
        assert (await subscription.messages().__anext__()).content == b"hello"


async def test_a_renewal_that_fails_is_tried_again(
    broadcaster: FakeBroadcaster, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("httppubsubclient.registrations.backoff_delay", lambda *_args, **_settings: 0.01)
    broadcaster.lease_seconds = 1
    async with HttpPubSubClient(config(request_timeout_seconds=0.05)) as client, client.subscribe_exact(b"a"):
        broadcaster.always = refuse(Unavailable("draining"))
        await until(lambda: "renewing" in caplog.text)
        broadcaster.always = None
        before = len(broadcaster.calls)
        await until(lambda: len(broadcaster.calls) > before + 2)


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_happens_the_broadcaster_ends_up_with_what_is_subscribed(
    broadcaster: FakeBroadcaster, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tasks subscribe, unsubscribe and are cancelled at random moments; calls are lost before and after processing."""
    monkeypatch.setattr("httppubsubclient.registrations.backoff_delay", lambda *_args, **_settings: 0.001)
    chance = random.Random(seed)

    async def unreliable(request: httpx.Request) -> httpx.Response | None:
        await asyncio.sleep(chance.random() / 1000)
        match chance.randrange(6):
            case 0:
                raise httpx.ReadError("lost on its way", request=request)
            case 1:
                broadcaster.process(request)
                raise httpx.ReadError("its answer was lost", request=request)
            case 2:
                return unreachable(request)
        return None

    async def churn(client: HttpPubSubClient) -> None:
        for _ in range(10):
            topics = [b"%d" % chance.randrange(6) for _ in range(chance.randrange(1, 3))]
            try:
                async with client.subscribe(exact=topics) as subscription:
                    await asyncio.sleep(chance.random() / 500)
                    await subscription.subscribe_exact(b"%d" % chance.randrange(6))
            except BroadcastersUnavailable:
                pass

    settings = config(request_timeout_seconds=0.05, leave_timeout_seconds=0.05)
    async with HttpPubSubClient(settings) as client:
        broadcaster.always = unreliable
        tasks = [asyncio.create_task(churn(client)) for _ in range(8)]
        for task in tasks[:4]:
            await asyncio.sleep(chance.random() / 50)
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert not [result for result in results if isinstance(result, Exception)]
        broadcaster.always = None
        async with client.subscribe(exact=[b"kept"]):
            await until(lambda: broadcaster.patterns() == ["topic='kept'"])
            registrations = client._running_registrations()
            assert registrations._wanted.keys() == registrations._confirmed.keys() == {Pattern.exact(b"kept")}
    assert broadcaster.kept == {}


# -- deliveries meanwhile -----------------------------------------------------------------------------------------


async def test_a_delivery_that_overtakes_the_answer_to_the_subscribe_is_accepted(
    client: HttpPubSubClient, wire: Wire, broadcaster: FakeBroadcaster
) -> None:
    for topic in (b"first/by/put", b"second/by/post"):
        pattern = Pattern.exact(topic)
        gate = Gate(broadcaster, processed=True)
        broadcaster.next = [gate]
        subscription = client.subscribe_exact(topic)
        entering = asyncio.create_task(subscription.__aenter__())
        await gate.reached.wait()
        delivering = asyncio.create_task(wire.deliver(pattern, topic))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not delivering.done()
        gate.open.set()
        assert (await delivering).status_code == 200
        await entering
        assert (await subscription.messages().__anext__()).topic == topic


async def test_a_delivery_waits_only_so_long_for_our_own_call(
    client: HttpPubSubClient, wire: Wire, broadcaster: FakeBroadcaster, monkeypatch: pytest.MonkeyPatch
) -> None:
    registrations = client._running_registrations()
    registrations._undecided_seconds = 0.01
    gate = Gate(broadcaster, processed=True)
    broadcaster.next = [gate]
    entering = asyncio.create_task(client.subscribe_exact(b"foo/bar").__aenter__())
    await gate.reached.wait()
    answer = await wire.deliver(EXACT)
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    gate.open.set()
    await entering


async def test_a_delivery_for_a_subscription_that_is_certainly_not_ours_is_answered_410(
    client: HttpPubSubClient, wire: Wire
) -> None:
    async with client.subscribe_exact(b"foo/bar"):
        answer = await wire.deliver("sub_unknown")
        assert (answer.status_code, answer.json()["code"]) == (410, "gone")


async def test_a_delivery_after_leaving_is_answered_410(
    client: HttpPubSubClient, wire: Wire, broadcaster: FakeBroadcaster
) -> None:
    async with client.subscribe_exact(b"foo/bar"):
        subscription_id = broadcaster.id_of(EXACT)
    assert (await wire.deliver(subscription_id)).status_code == 410


async def test_a_delivery_of_an_earlier_life_is_answered_503_until_that_is_cleared(
    client: HttpPubSubClient, wire: Wire, broadcaster: FakeBroadcaster
) -> None:
    """410 would make the broadcaster forget a subscription that we may be about to take over, with its id."""
    broadcaster.keep(CALLBACK, {"topic": "foo/bar", "lease_seconds": 60})
    broadcaster.next = []
    answer = await wire.deliver(EXACT)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    await until(lambda: broadcaster.kept == {})
    assert (await wire.deliver("sub_1")).status_code == 410


async def test_a_delivery_while_the_state_is_in_doubt_is_answered_503(
    hasty: HttpPubSubClient, broadcaster: FakeBroadcaster
) -> None:
    def processed_but_lost(request: httpx.Request) -> httpx.Response:
        broadcaster.process(request)
        raise httpx.ReadError("reset by peer", request=request)

    async with hasty.subscribe_exact(b"stays"):
        broadcaster.next = [processed_but_lost]
        broadcaster.always = unreachable
        with pytest.raises(BroadcastersUnavailable):
            await hasty.subscribe_exact(b"foo/bar").__aenter__()
        hasty._running_registrations()._undecided_seconds = 0.01
        wire = Wire(hasty, broadcaster)
        async with wire.http:
            assert (await wire.deliver(EXACT)).status_code == 503
        broadcaster.always = None
        await until(lambda: broadcaster.patterns() == ["topic='stays'"])


@pytest.mark.parametrize("junk", [{}, {"subscriptions": []}, {"subscriptions": [{"id": 5}]}, {"subscriptions": ["x"]}])
async def test_an_answer_that_is_no_confirmation_is_an_error(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster, junk: dict[str, Any]
) -> None:
    broadcaster.next = [lambda _: httpx.Response(200, json=junk)]
    with pytest.raises(Exception, match=r"http://broadcaster\.test:3003"):
        await client.subscribe_exact(b"foo/bar").__aenter__()
    async with client.subscribe_exact(b"foo/bar"):
        assert broadcaster.patterns() == ["topic='foo/bar'"]
