"""Deliveries that fail are dead, are looked at and sent again: a broadcaster in this process, through its API."""

from __future__ import annotations

import logging
from typing import Any

import httpx
import pytest

from httppubsubserver.broadcaster import Broadcaster
from httppubsubserver.delivery.outbound import Answer, AttemptFailed
from tests.server.conftest import OpenBroadcaster, ScriptedOutbound, api_of

CALLBACK = "http://127.0.0.1:2000/v1/receive"
BROKEN = Answer(500, None, excerpt=b"\x1b[31mbroken\xff")


async def subscribed(api: httpx.AsyncClient, **fields: Any) -> str:
    fields = {"url": CALLBACK, "topic": "t", "delivery": "durable", "retry_schedule_seconds": [0], **fields}
    answer = await api.post("/v1/subscriptions", json=fields)
    assert answer.status_code in (200, 201), answer.text
    subscription_id: str = answer.json()["id"]
    return subscription_id


async def notified(api: httpx.AsyncClient, *, topic: str = "t", **headers: str) -> dict[str, Any]:
    answer = await api.post(f"/v1/notify?topic={topic}", content=b"data", headers=headers)
    assert answer.status_code in (200, 202), answer.text
    result: dict[str, Any] = answer.json()
    return result


async def states(api: httpx.AsyncClient) -> list[str]:
    return [each["state"] for each in (await api.get("/v1/deliveries")).json()["deliveries"]]


async def test_what_is_dead_shows_what_was_answered_and_is_sent_again(
    api: httpx.AsyncClient, broadcaster: Broadcaster, outbound: ScriptedOutbound, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "httppubsub.audit")
    subscription_id = await subscribed(api)
    outbound.replies(CALLBACK, BROKEN, 204)
    message_id = (await notified(api))["message_id"]
    await broadcaster.drained()
    [delivery] = (await api.get("/v1/deliveries?state=dead")).json()["deliveries"]
    assert (delivery["message_id"], delivery["status"], delivery["reason"]) == (message_id, 500, "exhausted")
    [shown] = (await api.get(f"/v1/messages/{message_id}")).json()["deliveries"]
    assert [each["answer"] for each in shown["failed_attempts"]] == [r"\x1b[31mbroken\xff"]
    assert (await api.get(f"/v1/messages/{message_id}/body")).content == b"data"
    answer = await api.post("/v1/deliveries/replay", json={"subscription_id": subscription_id})
    assert answer.status_code == 202
    await outbound.until(lambda: len(outbound.posts) == 2)
    assert {post.headers["webhook-id"] for post in outbound.posts} == {message_id}
    progress = (await api.get(f"/v1/deliveries/replays/{answer.json()['replay']}")).json()
    assert (progress["replayed"], progress["skipped"]) == (1, 0)
    assert '"action": "replayed"' in caplog.text


async def test_what_could_not_be_sent_says_why(
    api: httpx.AsyncClient, broadcaster: Broadcaster, outbound: ScriptedOutbound
) -> None:
    await subscribed(api)
    outbound.replies(CALLBACK, AttemptFailed("connect_error", again=True))
    message_id = (await notified(api))["message_id"]
    await broadcaster.drained()
    [shown] = (await api.get(f"/v1/messages/{message_id}")).json()["deliveries"]
    [attempt] = shown["failed_attempts"]
    assert (attempt["status"], attempt["error"], attempt["answer"]) == (None, "connect_error", "")


async def test_a_scheduled_message_is_called_off(api: httpx.AsyncClient, outbound: ScriptedOutbound) -> None:
    await subscribed(api)
    result = await notified(api, **{"pubsub-deliver-at": "3600"})
    assert result["pending"] == 1
    assert (await api.delete(f"/v1/messages/{result['message_id']}")).json() == {"cancelled": 1}
    assert await states(api) == ["cancelled"]
    assert not outbound.posts


async def test_unsubscribing_calls_off_what_is_owed(
    api: httpx.AsyncClient, broadcaster: Broadcaster, outbound: ScriptedOutbound
) -> None:
    subscription_id = await subscribed(api, retry_schedule_seconds=[0, 3600])
    outbound.replies(CALLBACK, 500)
    assert (await notified(api))["pending"] == 1
    await broadcaster.drained()
    assert (await api.delete(f"/v1/subscriptions/{subscription_id}")).status_code == 204
    # By whoever is there first: this, or the upkeep that was woken.
    while await broadcaster.store.work_off(now=broadcaster.now()):
        pass
    [delivery] = (await api.get("/v1/deliveries")).json()["deliveries"]
    assert (delivery["state"], delivery["reason"]) == ("cancelled", "unsubscribed")


async def test_catching_up(api: httpx.AsyncClient) -> None:
    subscription_id = await subscribed(api)
    sent = [(await notified(api))["message_id"] for _ in range(3)]
    page = (await api.get(f"/v1/subscriptions/{subscription_id}/messages?after=1")).json()
    assert [each["message_id"] for each in page["messages"]] == sent[1:]
    assert (page["complete"], page["last"]) == (True, 3)


async def test_when_it_is_not_open_it_says_so(open_broadcaster: OpenBroadcaster) -> None:
    broadcaster = await open_broadcaster()
    async with api_of(Broadcaster(broadcaster.config, secrets=broadcaster._secrets)) as api:
        for path in ("/v1/deliveries", "/v1/messages/m", "/v1/messages/m/body", "/v1/deliveries/replays/1"):
            assert (await api.get(path)).status_code == 503
