"""Durable names: what the broadcaster is told, who gets what comes, and what stays when we leave."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from httppubsubclient.client import BroadcastersUnavailable, HttpPubSubClient
from httppubsubclient.protocol.errors import Forbidden, InvalidRequest, Unavailable
from httppubsubclient.protocol.patterns import Pattern
from tests.client.conftest import HOST, FakeBroadcaster, Wire, config, refuse, unreachable, until

EXACT = Pattern.exact(b"foo/bar")
WORKER = f"{HOST}/v1/receive?durable=worker-1"


@pytest.fixture
async def wire(client: HttpPubSubClient, broadcaster: FakeBroadcaster) -> AsyncIterator[Wire]:
    wire = Wire(client, broadcaster)
    async with wire.http:
        yield wire


def sent(request: httpx.Request) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(request.content)
    return fields


async def test_a_name_is_its_own_callback_url_and_stays_when_it_is_left(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster
) -> None:
    async with client.subscribe_exact(b"foo/bar", durable="worker-1"):
        assert broadcaster.patterns(WORKER) == ["topic='foo/bar'"]
    assert broadcaster.patterns(WORKER) == ["topic='foo/bar'"]
    assert broadcaster.calls == ["POST /v1/subscriptions"]
    assert sent(broadcaster.requests[0]) == {
        "url": WORKER,
        "topic": "foo/bar",
        "delivery": "durable",
        "lease_seconds": 864_000,
        "resume": True,
    }


async def test_the_options_are_sent(client: HttpPubSubClient, broadcaster: FakeBroadcaster) -> None:
    options = {"durable": "a.b_c-1", "ordered": True, "retry_schedule_seconds": [0, 1.5], "ack": "processed"}
    async with client.subscribe(glob=["a/*"], mqtt=["b/#"], **options):  # type: ignore[arg-type]
        pass
    for request, pattern in zip(broadcaster.requests, [{"glob": "a/*"}, {"mqtt": "b/#"}], strict=True):
        fields = sent(request)
        assert fields["url"].endswith("?durable=a.b_c-1")
        assert (fields["ordered"], fields["retry_schedule_seconds"]) == (True, [0, 1.5])
        assert pattern.items() <= fields.items()


async def test_the_fragment_stands_behind_the_name(broadcaster: FakeBroadcaster) -> None:
    async with HttpPubSubClient(config(host=f"{HOST}/p#2")) as client, client.subscribe_exact(b"a", durable="w"):
        assert broadcaster.patterns(f"{HOST}/p/v1/receive?durable=w#2") == ["topic='a'"]
        wire = Wire(client, broadcaster)
        async with wire.http:
            assert (await wire.deliver(Pattern.exact(b"a"), durable="w", fragment="2")).status_code == 200
            assert (await wire.deliver(Pattern.exact(b"a"), durable="w")).status_code == 503


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"ordered": True}, "ordered needs a durable subscription"),
        ({"retry_schedule_seconds": [0]}, "retry_schedule_seconds needs"),
        ({"ack": "explicit"}, "ack needs"),
        ({"durable": "w", "ack": "sometimes"}, "ack is one of 'accepted'"),
        ({"durable": "w", "retry_schedule_seconds": [0, 0]}, r"retry_schedule_seconds\[1\]"),
        ({"durable": "w", "ordered": 1}, "ordered is True or False"),
        ({"durable": ""}, "1 to 64 letters"),
        ({"durable": "a b"}, "1 to 64 letters"),
        ({"durable": "x" * 65}, "1 to 64 letters"),
        ({"durable": b"w"}, "1 to 64 letters"),
    ],
)
async def test_options_that_make_no_sense_are_refused_at_once(
    client: HttpPubSubClient, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(InvalidRequest, match=told):
        client.subscribe_exact(b"a", **options)
    with pytest.raises(InvalidRequest, match=told):
        client.on("a", print, **options)


async def test_best_effort_and_a_name_live_side_by_side(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster, wire: Wire
) -> None:
    async with client.subscribe_exact(b"x") as plain, client.subscribe_exact(b"foo/bar", durable="worker-1") as lasting:
        assert (await wire.deliver(EXACT, durable="worker-1")).status_code == 200
        assert (await wire.deliver(Pattern.exact(b"x"))).status_code == 200
        assert (await anext(lasting)).topic == b"foo/bar"
        assert (await anext(plain)).topic == b"foo/bar", "the topic of the delivery"
    assert [*broadcaster.patterns(), *broadcaster.patterns(WORKER)] == ["topic='foo/bar'"]


async def test_a_name_that_is_away_is_answered_503_and_never_410(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster, wire: Wire
) -> None:
    async with client.subscribe_exact(b"foo/bar", durable="worker-1"):
        assert (await wire.deliver(EXACT, durable="worker-1")).status_code == 200
    for name, subscription in (("worker-1", "sub_1"), ("worker-1", "sub_9"), ("never", "sub_1")):
        answer = await wire.deliver(subscription, durable=name)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    async with client.subscribe_exact(b"foo/bar", durable="worker-1") as again:
        assert (await wire.deliver(EXACT, durable="worker-1", message_id="msg_2")).status_code == 200
        assert (await anext(again)).message_id == "msg_2"


async def test_a_pattern_that_is_not_entered_does_not_hold_up_the_others_of_its_name(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster, wire: Wire
) -> None:
    broadcaster.keep(WORKER, {"topic": "of an earlier life", "lease_seconds": 60, "delivery": "durable"})
    async with client.subscribe_exact(b"foo/bar", durable="worker-1"):
        answer = await wire.deliver("sub_1", durable="worker-1")
        assert (answer.status_code, answer.json()["code"]) == (409, "not_entered")
        assert "retry-after" not in answer.headers, "it would slow down the whole name"
        assert (await wire.deliver(EXACT, durable="worker-1")).status_code == 200


async def test_a_durable_delivery_whose_name_got_lost_is_not_answered_410(client: HttpPubSubClient, wire: Wire) -> None:
    async with client.subscribe_exact(b"x"), client.subscribe_exact(b"foo/bar", durable="worker-1"):
        assert (await wire.deliver(EXACT)).status_code == 410
        answer = await wire.deliver(EXACT, sequence=1)
        assert answer.status_code == 503
        assert "proxy" in answer.json()["detail"]


@pytest.mark.parametrize(("query", "status"), [("?durable=a&durable=b", 400), ("?durable=a%20b", 400), ("?x=1", 410)])
async def test_queries_of_others(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster, wire: Wire, query: str, status: int
) -> None:
    async with client.subscribe_exact(b"x"):
        headers = broadcaster.delivery("sub_9", b"x", b"")
        assert (await wire.post(headers, b"", query)).status_code == status


async def test_a_delivery_that_overtakes_the_answer_to_the_subscribe_is_accepted(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster, wire: Wire
) -> None:
    reached, answer = asyncio.Event(), asyncio.Event()

    async def slow(request: httpx.Request) -> httpx.Response:
        made = broadcaster.process(request)
        reached.set()
        await answer.wait()
        return made

    broadcaster.next = [slow]
    subscription = client.subscribe_exact(b"foo/bar", durable="worker-1")
    entering = asyncio.create_task(subscription.__aenter__())
    await reached.wait()
    delivering = asyncio.create_task(wire.deliver(EXACT, durable="worker-1"))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not delivering.done()
    answer.set()
    assert (await delivering).status_code == 200
    await entering
    assert (await anext(subscription)).message_id == "msg_1"


async def test_nothing_is_accepted_for_a_subscription_that_may_still_fail(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster, wire: Wire
) -> None:
    reached, answer = asyncio.Event(), asyncio.Event()

    async def held_then_refused(request: httpx.Request) -> httpx.Response | None:
        if sent(request)["topic"] != "refused":
            return None
        reached.set()
        await answer.wait()
        return refuse(Forbidden("not this topic"))(request)  # type: ignore[return-value]

    broadcaster.always = held_then_refused
    entering = asyncio.create_task(client.subscribe(exact=[b"foo/bar", b"refused"], durable="worker-1").__aenter__())
    await reached.wait()
    await until(lambda: broadcaster.patterns(WORKER))
    delivering = asyncio.create_task(wire.deliver(EXACT, durable="worker-1"))
    for _ in range(50):
        await asyncio.sleep(0)
    assert not delivering.done()
    answer.set()
    with pytest.raises(Forbidden):
        await entering
    assert (await delivering).status_code == 503
    async with client.subscribe_exact(b"foo/bar", durable="worker-1") as subscription:
        assert (await wire.deliver(EXACT, durable="worker-1", attempt=2)).status_code == 200
        assert (await anext(subscription)).message_id == "msg_1"


async def test_a_renewal_under_way_does_not_keep_a_comer_from_asking_for_its_backlog(
    broadcaster: FakeBroadcaster,
) -> None:
    reached, answer = asyncio.Event(), asyncio.Event()

    async def hold_renewals(request: httpx.Request) -> None:
        if "resume" not in sent(request):
            reached.set()
            await answer.wait()

    broadcaster.lease_seconds = 1
    broadcaster.always = hold_renewals
    async with HttpPubSubClient(config()) as client:
        async with client.subscribe_exact(b"a", durable="worker-1"):
            await reached.wait()
        entering = asyncio.create_task(client.subscribe_exact(b"a", durable="worker-1").__aenter__())
        for _ in range(50):
            await asyncio.sleep(0)
        assert not entering.done()
        answer.set()
        await entering
        assert ["resume" in sent(request) for request in broadcaster.requests[:3]] == [True, False, True]


async def test_patterns_are_added_and_removed_while_it_runs(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster, wire: Wire
) -> None:
    async with client.subscribe_multi(durable="worker-1") as subscription:
        assert broadcaster.calls == []
        await subscription.subscribe_exact(b"foo/bar")
        await subscription.subscribe_glob("foo/*")
        assert (await wire.deliver(EXACT, durable="worker-1")).status_code == 200
        assert (await wire.deliver(Pattern.glob("foo/*"), durable="worker-1")).status_code == 200
        await subscription.unsubscribe_exact(b"foo/bar")
        assert broadcaster.patterns(WORKER) == ["glob='foo/*'"]
        assert (await anext(subscription)).message_id == "msg_1"


async def test_it_is_renewed_without_asking_for_the_backlog_and_only_while_it_is_entered(
    broadcaster: FakeBroadcaster,
) -> None:
    broadcaster.lease_seconds = 1
    async with HttpPubSubClient(config()) as client:
        async with client.subscribe(exact=[b"a", b"b"], durable="worker-1"):
            await until(lambda: len(broadcaster.requests) >= 6)
        assert ["resume" in sent(request) for request in broadcaster.requests[:6]] == [True] * 2 + [False] * 4
        count = len(broadcaster.requests)
        async with client.subscribe_exact(b"c", durable="worker-1"):
            await until(lambda: len(broadcaster.requests) >= count + 3)
        assert {sent(request)["topic"] for request in broadcaster.requests[count:]} == {"c"}


async def test_what_the_broadcaster_forgot_is_subscribed_again_and_told(
    broadcaster: FakeBroadcaster, caplog: pytest.LogCaptureFixture
) -> None:
    broadcaster.lease_seconds = 1
    async with HttpPubSubClient(config()) as client, client.subscribe_exact(b"foo/bar", durable="worker-1"):
        broadcaster.kept.clear()
        await until(lambda: broadcaster.patterns(WORKER) == ["topic='foo/bar'"])
        await until(lambda: "messages may be missing" in caplog.text)
        wire = Wire(client, broadcaster)
        async with wire.http:
            assert (await wire.deliver(EXACT, durable="worker-1")).status_code == 200


async def test_a_renewal_that_fails_is_tried_again(
    broadcaster: FakeBroadcaster, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("httppubsubclient.durable_name.backoff_delay", lambda *_args, **_settings: 0.01)
    broadcaster.lease_seconds = 1
    async with (
        HttpPubSubClient(config(request_timeout_seconds=0.05)) as client,
        client.subscribe_exact(b"a", durable="worker-1"),
    ):
        broadcaster.always = refuse(Unavailable("draining"))
        await until(lambda: "renewing" in caplog.text)
        broadcaster.always = None
        before = len(broadcaster.calls)
        await until(lambda: len(broadcaster.calls) > before + 2)


async def test_what_is_refused_gets_nothing_and_can_be_tried_again(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster, wire: Wire
) -> None:
    broadcaster.next = [refuse(Forbidden("not this topic"))]
    with pytest.raises(Forbidden, match="not this topic"):
        await client.subscribe_exact(b"foo/bar", durable="worker-1").__aenter__()
    async with client.subscribe_exact(b"foo/bar", durable="worker-1"):
        assert (await wire.deliver(EXACT, durable="worker-1")).status_code == 200


async def test_it_fails_within_its_time_when_no_broadcaster_answers(
    hasty: HttpPubSubClient, broadcaster: FakeBroadcaster
) -> None:
    broadcaster.always = unreachable
    entering = [hasty.subscribe_exact(b"%d" % number, durable="worker-1").__aenter__() for number in range(20)]
    results = await asyncio.gather(*entering, return_exceptions=True)
    assert {type(result) for result in results} == {BroadcastersUnavailable}
    broadcaster.always = None
    async with hasty.subscribe_exact(b"a", durable="worker-1"):
        assert broadcaster.patterns(WORKER) == ["topic='a'"]


async def test_a_broadcaster_without_durable_delivery_is_noticed(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster
) -> None:
    def best_effort(request: httpx.Request) -> httpx.Response:
        fields = {**sent(request), "delivery": "best_effort"}
        return httpx.Response(201, json=broadcaster.keep(WORKER, fields).to_json())

    broadcaster.next = [best_effort]
    with pytest.raises(Exception, match="has no durable delivery"):
        await client.subscribe_exact(b"a", durable="worker-1").__aenter__()


async def test_two_subscriptions_share_a_pattern_and_each_gets_every_message(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster, wire: Wire
) -> None:
    async with (
        client.subscribe_exact(b"foo/bar", durable="worker-1") as one,
        client.subscribe_exact(b"foo/bar", durable="worker-1") as other,
    ):
        assert len(broadcaster.calls) == 1
        assert (await wire.deliver(EXACT, durable="worker-1")).status_code == 200
        assert (await anext(one)).message_id == (await anext(other)).message_id == "msg_1"
        with pytest.raises(InvalidRequest, match="entered with another `ordered`"):
            await client.subscribe_exact(b"foo/bar", durable="worker-1", ordered=True).__aenter__()


async def test_patterns_that_overlap_give_each_subscription_its_message_once(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster, wire: Wire
) -> None:
    glob = Pattern.glob("foo/*")
    async with (
        client.subscribe(exact=[b"foo/bar"], glob=["foo/*"], durable="worker-1") as both,
        client.subscribe_glob("foo/*", durable="worker-1") as one,
    ):
        for pattern in (EXACT, glob, EXACT, glob):
            assert (await wire.deliver(pattern, durable="worker-1")).status_code == 200
        for subscription in (both, one):
            assert (await anext(subscription)).message_id == "msg_1"
            async for message in subscription.with_timeout(0.001):
                assert message is None
                break


async def test_unsubscribing_removes_at_the_broadcaster_and_fails_loudly(
    hasty: HttpPubSubClient, broadcaster: FakeBroadcaster
) -> None:
    async with (
        hasty.subscribe(exact=[b"a", b"b"], durable="worker-1") as subscription,
        hasty.subscribe_exact(b"b", durable="worker-1") as other,
    ):
        await subscription.unsubscribe_exact(b"a")
        assert broadcaster.patterns(WORKER) == ["topic='b'"]
        await subscription.unsubscribe_exact(b"b")
        assert broadcaster.patterns(WORKER) == ["topic='b'"], "another one has it, too"
        broadcaster.always = unreachable
        with pytest.raises(BroadcastersUnavailable):
            await other.unsubscribe_exact(b"b")
        assert other.patterns == (Pattern.exact(b"b"),)
        broadcaster.always = None
        await other.unsubscribe_exact(b"b")
    assert broadcaster.kept == {}


async def test_a_whole_name_is_forgotten(client: HttpPubSubClient, broadcaster: FakeBroadcaster) -> None:
    broadcaster.keep(WORKER, {"topic": "of an earlier life", "lease_seconds": 60, "delivery": "durable"})
    async with client.subscribe_exact(b"a", durable="worker-1"), client.subscribe_exact(b"a", durable="other"):
        with pytest.raises(RuntimeError, match="leave its subscriptions first"):
            await client.forget_durable("worker-1")
    await client.forget_durable("worker-1")
    assert broadcaster.patterns(WORKER) == []
    assert broadcaster.patterns(f"{HOST}/v1/receive?durable=other") == ["topic='a'"]
    with pytest.raises(InvalidRequest, match="durable name"):
        await client.forget_durable("../other")


async def test_leaving_the_client_ends_it_here_and_keeps_it_there(broadcaster: FakeBroadcaster) -> None:
    async with HttpPubSubClient(config()) as client:
        subscription = await client.subscribe_exact(b"a", durable="worker-1").__aenter__()
    assert [message async for message in subscription] == []
    assert broadcaster.patterns(WORKER) == ["topic='a'"]
    await subscription.leave()


async def test_a_host_whose_port_changes_is_warned_about(
    broadcaster: FakeBroadcaster, caplog: pytest.LogCaptureFixture
) -> None:
    bind = {"type": "uvicorn", "address": "127.0.0.1", "port": 0}
    async with HttpPubSubClient(config(host="http://127.0.0.1:0", bind=bind)) as client:
        async with client.subscribe_exact(b"a"):
            pass
        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
        async with client.subscribe_exact(b"a", durable="worker-1"):
            assert "give host a port of its own" in caplog.text


async def test_best_effort_has_no_numbers(client: HttpPubSubClient) -> None:
    async with client.subscribe_exact(b"a") as subscription:
        with pytest.raises(TypeError, match="only durable subscriptions"):
            await subscription.catch_up()
