"""What lines 40, 41, 42, 46 and 47 mean where several have keys of their own."""

from __future__ import annotations

import asyncio
import base64
import json
from hashlib import sha256
from typing import Any

import httpx
import pytest

from httppubsubclient.protocol.keys import Credentials, Key, Secrets
from httppubsubclient.protocol.permissions import Permissions, Quotas
from httppubsubserver.stores import sqlite_deliveries
from tests.hardening.support import CALLBACK, OpenDesk

__all__ = [
    "test_40_only_its_owner_or_an_admin_removes_a_subscription",
    "test_41_only_an_admin_subscribes_without_a_lease",
    "test_42_a_tenant_has_few_replays_under_way_and_others_are_not_kept_waiting",
    "test_42_beyond_the_quota_of_an_owner_nothing_is_made_however_many_ask",
    "test_46_nothing_tells_a_tenant_how_much_is_brought_to_another",
    "test_46_the_key_of_another_tenant_is_403_where_it_may_not_and_404_where_it_sees_nothing",
    "test_47_the_same_idempotency_key_of_two_owners_is_two",
]


def key(name: str, owner: str = "", **permissions: Any) -> Key:
    return Key(
        name,
        f"{name}-token-".encode() + sha256(name.encode()).hexdigest().encode(),
        0,
        None,
        owner,
        Permissions(**permissions),
    )


KEYS = {
    each.id: each
    for each in (
        key("victim"),
        key("attacker"),
        key("partner", publish=("partner/*",), subscribe=("partner/*",), quotas=Quotas(subscriptions=10)),
        key("partner-2", "partner", publish=("partner/*",), subscribe=("partner/*",), quotas=Quotas(subscriptions=10)),
        key("admin", admin=True),
    )
}
SECRETS = Secrets(Credentials("token", tuple(KEYS.values())), Credentials.none(), ())


def as_(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {KEYS[name].secret.decode()}"}


def refused(answer: httpx.Response, status: int, code: str) -> None:
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text


async def test_40_only_its_owner_or_an_admin_removes_a_subscription(open_desk: OpenDesk) -> None:
    api = (await open_desk(secrets=SECRETS)).api
    wanted = {"url": CALLBACK, "topic": "partner/1"}
    made = (await api.post("/v1/subscriptions", json=wanted, headers=as_("victim"))).json()
    path, whole = f"/v1/subscriptions/{made['id']}", "/v1/subscriptions"
    refused(await api.delete(path), 401, "unauthorized")
    for name in ("attacker", "partner", "partner-2"):
        refused(await api.delete(path, headers=as_(name)), 404, "not_found")
        # Nor by saying that there are none at this callback, or that it ends in a second.
        sent: dict[str, Any] = {"subscriptions": []}
        answer = await api.put(whole, params={"url": CALLBACK}, json=sent, headers=as_(name))
        assert answer.status_code == 200
        refused(await api.post(whole, json={**wanted, "lease_seconds": 1}, headers=as_(name)), 403, "forbidden")
        sent = {"subscriptions": [{"topic": "partner/1", "lease_seconds": 1}]}
        answer = await api.put(whole, params={"url": CALLBACK}, json=sent, headers=as_(name))
        refused(answer, 403, "forbidden")
    assert (await api.get(path, headers=as_("victim"))).json() == made
    assert (await api.delete(path, headers=as_("admin"))).status_code == 204
    refused(await api.get(path, headers=as_("victim")), 404, "not_found")


async def test_41_only_an_admin_subscribes_without_a_lease(open_desk: OpenDesk) -> None:
    api = (await open_desk(secrets=SECRETS)).api
    wanted = {"url": CALLBACK, "topic": "partner/1", "permanent": True}
    for name in ("victim", "partner"):
        refused(await api.post("/v1/subscriptions", json=wanted, headers=as_(name)), 403, "forbidden")
    both = {**wanted, "lease_seconds": 60}
    refused(await api.post("/v1/subscriptions", json=both, headers=as_("admin")), 400, "invalid_request")
    made = (await api.post("/v1/subscriptions", json=wanted, headers=as_("admin"))).json()
    assert (made["permanent"], made["lease_seconds"], made["expires_at"]) == (True, None, None)


async def test_42_beyond_the_quota_of_an_owner_nothing_is_made_however_many_ask(open_desk: OpenDesk) -> None:
    desks = [await open_desk(secrets=SECRETS, max_subscriptions_per_key=12) for _ in range(2)]
    for names, quota in ((("partner", "partner-2"), 10), (("victim",), 12)):
        answers = await asyncio.gather(
            *(
                desks[number % 2].api.post(
                    "/v1/subscriptions",
                    json={"url": f"{CALLBACK}/{names[0]}", "topic": f"partner/{number}"},
                    headers=as_(names[number % len(names)]),
                )
                for number in range(60)
            )
        )
        assert sorted(answer.status_code for answer in answers) == [201] * quota + [429] * (60 - quota)
        refused(max(answers, key=lambda answer: answer.status_code), 429, "quota_exceeded")
        listed = await desks[0].api.get("/v1/subscriptions?limit=1000", headers=as_(names[0]))
        assert len(listed.json()["subscriptions"]) == quota


async def test_46_the_key_of_another_tenant_is_403_where_it_may_not_and_404_where_it_sees_nothing(
    open_desk: OpenDesk, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "httppubsub")
    api = (await open_desk(secrets=SECRETS)).api
    answer = await api.post("/v1/notify?topic=orders/1", content=b"x", headers=as_("partner"))
    refused(answer, 403, "forbidden")
    assert "orders/1" in answer.json()["detail"]
    for pattern in (
        {"topic": "orders/1"},
        {"glob": "**"},
        {"glob": "partner/**"},
        {"mqtt": "#"},
        {"topic_b64": "/w=="},
    ):
        wanted = {"url": CALLBACK, **pattern}
        refused(await api.post("/v1/subscriptions", json=wanted, headers=as_("partner")), 403, "forbidden")
    # What belongs to another looks like what does not exist, byte for byte but for the id that was asked for.
    durable = {"url": CALLBACK, "topic": "partner/1", "delivery": "durable"}
    made = (await api.post("/v1/subscriptions", json=durable, headers=as_("victim"))).json()["id"]
    sent = await api.post(
        "/v1/notify?topic=partner/1", content=b"x", headers={**as_("victim"), "prefer": "respond-async"}
    )
    message = sent.json()["message_id"]
    for method, path in (
        ("GET", "/v1/subscriptions/{}"),
        ("DELETE", "/v1/subscriptions/{}"),
        ("GET", "/v1/subscriptions/{}/messages"),
        ("GET", "/v1/messages/{}"),
        ("GET", "/v1/messages/{}/body"),
        ("DELETE", "/v1/messages/{}"),
    ):
        real = message if "/messages/{}" in path else made
        theirs = await api.request(method, path.format(real), headers=as_("partner"))
        absent = await api.request(method, path.format("x" * len(real)), headers=as_("partner"))
        assert theirs.status_code == absent.status_code == 404, (method, path)
        assert theirs.text.replace(real, "x" * len(real)) == absent.text
    assert all(each.secret.decode() not in caplog.text for each in KEYS.values())


async def test_47_the_same_idempotency_key_of_two_owners_is_two(open_desk: OpenDesk) -> None:
    api = (await open_desk(secrets=SECRETS)).api
    once = {"idempotency-key": "order-17"}

    async def sent(name: str, content: bytes) -> httpx.Response:
        return await api.post("/v1/notify?topic=partner/1", content=content, headers={**as_(name), **once})

    answers = {name: await sent(name, name.encode()) for name in ("victim", "attacker", "partner", "admin")}
    assert len({answer.json()["message_id"] for answer in answers.values()}) == 4
    assert (await sent("partner-2", b"partner")).json() == answers["partner"].json()
    refused(await sent("victim", b"attacker"), 422, "conflict")


async def test_46_nothing_tells_a_tenant_how_much_is_brought_to_another(
    open_desk: OpenDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_deliveries, "_ROWS_LOOKED_AT", 20)
    api = (await open_desk(secrets=SECRETS)).api

    async def subscribed(name: str) -> str:
        wanted = {"url": f"{CALLBACK}/{name}", "topic": "partner/1", "delivery": "durable"}
        made: str = (await api.post("/v1/subscriptions", json=wanted, headers=as_(name))).json()["id"]
        return made

    async def publish(times: int) -> str:
        headers = {**as_("victim"), "prefer": "respond-async"}
        for _ in range(times):
            sent = await api.post("/v1/notify?topic=partner/1", content=b"x", headers=headers)
        message: str = sent.json()["message_id"]
        return message

    theirs = await subscribed("victim")
    message = await publish(50)  # more than the rows that one page looks at
    empty: dict[str, Any] = {"deliveries": [], "cursor": None}
    for query in ("", "?state=dead", f"?subscription={theirs}", f"?message={message}", "?from=2000-01-01T00:00:00Z"):
        assert (await api.get(f"/v1/deliveries{query}", headers=as_("partner"))).json() == empty, query
    mine = await subscribed("partner")
    await publish(3)
    cursor: str | None = ""
    found = 0
    while cursor is not None:
        page = (await api.get(f"/v1/deliveries?limit=1{cursor and '&cursor=' + cursor}", headers=as_("partner"))).json()
        found += len(page["deliveries"])
        cursor = page["cursor"]
        assert cursor is None or json.loads(base64.urlsafe_b64decode(cursor + "==="))[0] == mine
    assert found == 3


async def test_42_a_tenant_has_few_replays_under_way_and_others_are_not_kept_waiting(open_desk: OpenDesk) -> None:
    desk = await open_desk(secrets=SECRETS)
    whole_time = {"from": "2000-01-01T00:00:00Z", "state": "delivered"}

    async def replay(name: str) -> httpx.Response:
        return await desk.api.post("/v1/deliveries/replay", json=whole_time, headers=as_(name))

    answers = await asyncio.gather(*(replay("attacker") for _ in range(200)), replay("victim"))
    assert {answer.status_code for answer in answers} <= {202, 429}
    for answer in answers:
        if answer.status_code == 429:
            refused(answer, 429, "quota_exceeded")
            assert int(answer.headers["retry-after"]) >= 1
    assert answers[-1].status_code == 202
    path = f"/v1/deliveries/replays/{answers[-1].json()['replay']}"
    async with asyncio.timeout(10):
        while (await desk.api.get(path, headers=as_("victim"))).json()["finished_at"] is None:
            await asyncio.sleep(0.005)
