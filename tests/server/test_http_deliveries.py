"""The routes that look after deliveries, over a real store; nobody delivers here."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from fastapi import APIRouter, FastAPI

from httppubsubclient.protocol.credentials import Credentials, Key
from httppubsubclient.protocol.messages import Notification
from httppubsubclient.protocol.signatures import content_digest
from httppubsubserver.auth import Authenticator
from httppubsubserver.broadcaster import Broadcaster
from httppubsubserver.config import ServerConfig
from httppubsubserver.http_deliveries import add_deliveries
from httppubsubserver.http_requests import ProblemRoute
from httppubsubserver.operations import Operations
from httppubsubserver.stores import open_store
from httppubsubserver.stores.durable import CHUNK_BYTES, Attempt, DurableStore, Publication, Settlement
from tests.server.test_http_api import assert_problem
from tests.stores.conftest import NOW, SECOND
from tests.stores.durable_stores import accept_all, claim, dead, delivered, durable, publication, settle, work_off

TOKEN = Credentials("token", (Key("operator", b"secret-token-of-32-characters-00"),))


@dataclass
class Site:
    """What the routes need of a broadcaster."""

    store: DurableStore
    config: ServerConfig
    authenticator: Authenticator
    operations: Operations
    woken: int = 0
    draining: bool = False

    def wake(self) -> None:
        self.woken += 1


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[DurableStore]:
    async with open_store(f"sqlite:///{tmp_path}/pubsub.sqlite3") as store:
        yield store


def site_of(store: DurableStore, credentials: Credentials) -> Site:
    wakes: list[Callable[[], None]] = []
    operations = Operations(store, now=lambda: NOW, wake=lambda: wakes[0]())
    authenticator = Authenticator(credentials, store, tolerance_seconds=300, clock=lambda: NOW / SECOND)
    site = Site(store, ServerConfig(), authenticator, operations)
    wakes.append(site.wake)
    return site


def api_of(site: Site) -> httpx.AsyncClient:
    router = APIRouter(prefix="/v1", route_class=ProblemRoute)
    add_deliveries(router, cast(Broadcaster, site))
    app = FastAPI()
    app.include_router(router)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://broadcaster")


@pytest.fixture
def site(store: DurableStore) -> Site:
    return site_of(store, Credentials.none())


@pytest.fixture
async def api(site: Site) -> AsyncIterator[httpx.AsyncClient]:
    async with api_of(site) as api:
        yield api


async def get(api: httpx.AsyncClient, path: str) -> Any:
    answer = await api.get(path)
    assert answer.status_code == 200, answer.text
    return answer.json()


class TestListing:
    async def test_a_delivery_is_shown_whole(self, api: httpx.AsyncClient, store: DurableStore) -> None:
        subscription_id = await durable(store, "http://a.example/hook#1")
        await accept_all(store, ["m1", "m2"], [subscription_id])
        [first, second] = await claim(store)
        await settle(store, dead(first))
        page = await get(api, "/v1/deliveries")
        assert page["cursor"] is None
        pending, given_up = page["deliveries"]
        common = {
            "subscription_id": subscription_id,
            "topic_b64": base64.b64encode(b"t\xff").decode(),
            "url": "http://a.example/hook",
            "accepted_at": "2027-01-15T08:00:00.000000Z",
            "updated_at": "2027-01-15T08:00:00.000000Z",
            "attempts": 1,
            "status": None,
            "due_at": None,
        }
        assert given_up == common | {
            "message_id": "m1",
            "sequence": 1,
            "previous_message_id": None,
            "state": "dead",
            "reason": "exhausted",
            "leased_until": None,
        }
        assert pending == common | {
            "message_id": "m2",
            "sequence": 2,
            "previous_message_id": "m1",
            "state": "pending",
            "reason": None,
            "leased_until": "2027-01-15T08:01:00.000000Z",
        }
        assert second.leased_until == NOW + 60 * SECOND

    async def test_it_is_listed_by_whatever_is_known_of_it(self, api: httpx.AsyncClient, store: DurableStore) -> None:
        one, other = await durable(store), await durable(store, "http://b.example/")
        for n in range(4):
            await store.accept(publication(f"m{n}", [one, other]), now=NOW + n * SECOND)
        await settle(store, *[dead(each) for each in await claim(store, at_most=3, now=NOW + 9 * SECOND)])

        async def count(query: str) -> int:
            return len((await get(api, f"/v1/deliveries?{query}"))["deliveries"])

        assert await count("") == 8
        assert await count("state=dead") == 3
        assert await count("state=pending") == 5
        assert await count(f"subscription={one}") == 4
        assert await count("message=m2") == 2
        assert await count(f"message=m2&subscription={one}&state=cancelled") == 0
        assert await count("from=2027-01-15T08:00:01Z&until=2027-01-15T08:00:03Z") == 4
        assert await count("until=2027-01-15T09:00:01%2B01:00") == 2
        assert await count("message=unknown") == 0

    async def test_page_by_page(self, api: httpx.AsyncClient, store: DurableStore) -> None:
        await accept_all(store, [f"m{n}" for n in range(5)], [await durable(store)])
        found, cursor = [], ""
        while True:
            page = await get(api, f"/v1/deliveries?limit=2{cursor}")
            found += [each["message_id"] for each in page["deliveries"]]
            if page["cursor"] is None:
                break
            cursor = f"&cursor={page['cursor']}"
        assert found == ["m4", "m3", "m2", "m1", "m0"]

    @pytest.mark.parametrize(
        ("query", "words"),
        [
            ("state=lost", "state"),
            ("state=", "state"),
            ("limit=0", "limit"),
            ("limit=1001", "limit"),
            ("limit=many", "limit"),
            ("cursor=junk", "cursor"),
            ("cursor=W10", "cursor"),
            ("cursor=" + "x" * 600, "cursor"),
            ("subscription=a%20b", "id of a subscription"),
            ("message=%00", "id of a message"),
            ("message=" + "x" * 65, "message"),
            ("from=yesterday", "from is a moment like"),
            ("from=2027-01-15", "from is a moment like"),
            ("from=2027-01-15T08:00:00", "from is a moment like"),
            ("until=2027-01-15T09:00:01+01:00", "%2B"),
            ("until=1969-12-31T23:59:59Z", "until is a moment like"),
            ("from=2027-01-15T08:00:00Z&until=2027-01-15T08:00:00Z", "from is before until"),
            ("stat=dead", "no parameter 'stat' here; there are state,"),
            ("state=dead&state=dead", "'state' more than once"),
        ],
    )
    async def test_what_selects_nothing_that_is_meant_is_refused(
        self, api: httpx.AsyncClient, query: str, words: str
    ) -> None:
        problem = assert_problem(await api.get(f"/v1/deliveries?{query}"), 400, "invalid_request")
        assert words in problem["detail"]


class TestMessages:
    async def test_a_message_comes_with_its_deliveries_and_their_failed_attempts(
        self, api: httpx.AsyncClient, store: DurableStore
    ) -> None:
        one, other = sorted([await durable(store), await durable(store, "http://b.example/")])
        await store.accept(publication("m", [one, other], expires_at=NOW + 3600 * SECOND), now=NOW)
        answer = b"<h1>\x1b[31mno\xff</h1>\r\n"
        for each in await claim(store):
            attempt = Attempt(NOW + 1, NOW + 2, 500, None, answer)
            if each.held.subscription_id == other:
                attempt = Attempt(NOW + 1, NOW + 2, None, "connect \x07refused")
            await settle(store, Settlement(each.held, "dead", attempt, reason="exhausted"))
        shown = await get(api, "/v1/messages/m")
        deliveries = shown.pop("deliveries")
        assert shown == {
            "message_id": "m",
            "topic_b64": "dP8=",
            "content_type": "text/plain",
            "size": 4,
            "accepted_at": "2027-01-15T08:00:00.000000Z",
            "deliver_at": None,
            "expires_at": "2027-01-15T09:00:00.000000Z",
            "body_kept": True,
            "cursor": None,
        }
        attempts = {each["subscription_id"]: each["failed_attempts"] for each in deliveries}
        moments = {"began_at": "2027-01-15T08:00:00.000001Z", "ended_at": "2027-01-15T08:00:00.000002Z", "number": 1}
        assert attempts == {
            one: [moments | {"status": 500, "error": None, "answer": r"<h1>\x1b[31mno\xff</h1>\r\n"}],
            other: [moments | {"status": None, "error": r"connect \x07refused", "answer": ""}],
        }

    async def test_its_deliveries_come_in_pages(self, api: httpx.AsyncClient, store: DurableStore) -> None:
        ids = [await durable(store, f"http://{n}.example/") for n in range(3)]
        await accept_all(store, ["m"], ids)
        first = await get(api, "/v1/messages/m?limit=2")
        second = await get(api, f"/v1/messages/m?limit=2&cursor={first['cursor']}")
        found = [each["subscription_id"] for each in [*first["deliveries"], *second["deliveries"]]]
        assert sorted(found) == sorted(ids)
        assert second["cursor"] is None

    @pytest.mark.parametrize("path", ["m", "m/body", "%00", "x" * 70, "%ff", "a%20b/body"])
    async def test_an_unknown_one_is_not_found(self, api: httpx.AsyncClient, path: str) -> None:
        answer = await api.get(f"/v1/messages/{path}")
        assert answer.status_code == 404

    @pytest.mark.parametrize("size", [0, 5, CHUNK_BYTES, 2 * CHUNK_BYTES, 2 * CHUNK_BYTES + 1])
    async def test_a_body_comes_as_it_was_published_and_is_never_shown(
        self, size: int, api: httpx.AsyncClient, store: DurableStore
    ) -> None:
        subscription_id = await durable(store)
        body = bytes(range(251)) * (size // 251 + 1)
        body = body[:size]
        digest = hashlib.sha256(body).digest()
        notification = Notification("m", b"t", "text/html; charset=utf-7", digest, size, None)
        large = size > CHUNK_BYTES
        for position in range(-(-size // CHUNK_BYTES) if large else 0):
            piece = body[position * CHUNK_BYTES : (position + 1) * CHUNK_BYTES]
            await store.write_chunk("m", position, piece, now=NOW)
        await store.accept(Publication(notification, None if large else body, [subscription_id]), now=NOW)
        answer = await api.get("/v1/messages/m/body")
        assert (answer.status_code, answer.content) == (200, body)
        assert dict(answer.headers) == {
            "content-type": "text/html; charset=utf-7",
            "content-length": str(size),
            "content-digest": content_digest(digest),
            "content-disposition": "attachment",
            "x-content-type-options": "nosniff",
            "content-security-policy": "default-src 'none'; sandbox",
            "cache-control": "no-store",
        }

    async def test_a_body_that_is_no_longer_kept_is_gone(self, api: httpx.AsyncClient, store: DurableStore) -> None:
        await accept_all(store, ["m"], [await durable(store)])
        await settle(store, *[dead(each) for each in await claim(store)])
        await store.prune_messages(now=NOW, bodies_before=NOW + 1, messages_before=0)
        assert (await get(api, "/v1/messages/m"))["body_kept"] is False
        problem = assert_problem(await api.get("/v1/messages/m/body"), 410, "gone")
        assert "keep_bodies_seconds" in problem["detail"]

    async def test_a_scheduled_message_is_called_off(
        self, api: httpx.AsyncClient, site: Site, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "httppubsub.audit")
        ids = [await durable(site.store, f"http://{n}.example/") for n in range(2)]
        await site.store.accept(publication("m", ids, deliver_at=NOW + 3600 * SECOND), now=NOW)
        await accept_all(site.store, ["now"], ids)
        assert (await get(api, "/v1/messages/m"))["deliver_at"] == "2027-01-15T09:00:00.000000Z"
        for expected in (2, 0):
            answer = await api.delete("/v1/messages/m")
            assert (answer.status_code, answer.json()) == (200, {"cancelled": expected})
        assert (await api.delete("/v1/messages/now")).json() == {"cancelled": 0}
        assert_problem(await api.delete("/v1/messages/unknown"), 404, "not_found")
        states = [each["state"] for each in (await get(api, "/v1/messages/m"))["deliveries"]]
        assert states == ["cancelled", "cancelled"]
        assert '"action": "called_off", "by": null, "message": "m", "deliveries": 2' in caplog.text
        assert site.woken


class TestReplaying:
    async def test_what_is_dead_is_sent_again(
        self, api: httpx.AsyncClient, site: Site, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "httppubsub.audit")
        subscription_id = await durable(site.store)
        await accept_all(site.store, ["m1", "m2"], [subscription_id])
        await settle(site.store, *[dead(each) for each in await claim(site.store)])
        answer = await api.post("/v1/deliveries/replay", json={"message_id": "m1"})
        assert answer.status_code == 202
        number = answer.json()["replay"]
        begun = {
            "replay": number,
            "message_id": "m1",
            "subscription_id": None,
            "from": None,
            "until": None,
            "state": "dead",
            "requested_at": "2027-01-15T08:00:00.000000Z",
            "replayed": 0,
            "skipped": 0,
            "finished_at": None,
        }
        assert answer.json() == begun
        assert site.woken == 1
        progress = str(answer.request.url.join(answer.headers["location"]))
        assert await get(api, progress) == begun
        await work_off(site.store, now=NOW + SECOND)
        assert await get(api, progress) == begun | {"replayed": 1, "finished_at": "2027-01-15T08:00:01.000000Z"}
        states = [each["state"] for each in (await get(api, "/v1/deliveries"))["deliveries"]]
        assert states == ["dead", "pending"]
        assert f'"action": "replayed", "by": null, "replay": {number}, "selection": {{"message_id": "m1"' in caplog.text

    async def test_it_is_selected_like_a_list(self, api: httpx.AsyncClient, store: DurableStore) -> None:
        subscription_id = await durable(store)
        await accept_all(store, ["m1"], [subscription_id])
        await settle(store, *[delivered(each) for each in await claim(store)])
        fields = {
            "subscription_id": subscription_id,
            "from": "2027-01-15T08:00:00Z",
            "until": "2027-01-15T09:00:00.5+01:00",
            "state": "delivered",
        }
        answer = (await api.post("/v1/deliveries/replay", json=fields)).json()
        assert (answer["from"], answer["until"]) == ("2027-01-15T08:00:00.000000Z", "2027-01-15T08:00:00.500000Z")
        await work_off(store)
        assert (await get(api, f"/v1/deliveries/replays/{answer['replay']}"))["replayed"] == 1

    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ({}, "say what to replay"),
            ({"state": "dead"}, "say what to replay"),
            ({"message_id": None}, "say what to replay"),
            ({"message_id": ""}, "id of a message"),
            ({"message_id": 7}, "message_id"),
            ({"message": "m"}, "message"),
            ({"subscription_id": "a/b"}, "id of a subscription"),
            ({"subscription_id": "s", "state": "pending"}, "state"),
            ({"from": "2027-01-15T08:00:00Z", "until": "2027-01-15T07:00:00Z"}, "from is before until"),
            ({"from": 1800000000}, "from"),
            ({"from": "now"}, "from is a moment like"),
            ([], "body"),
        ],
    )
    async def test_what_it_cannot_mean_is_refused(self, fields: object, words: str, api: httpx.AsyncClient) -> None:
        problem = assert_problem(await api.post("/v1/deliveries/replay", json=fields), 400, "invalid_request")
        assert words in problem["detail"]

    async def test_bodies_are_bounded_json(self, api: httpx.AsyncClient) -> None:
        form = await api.post("/v1/deliveries/replay", data={"message_id": "m"})
        assert_problem(form, 415, "unsupported_media_type")
        assert_problem(await api.post("/v1/deliveries/replay", json={"message_id": "m" * 5000}), 413, "too_large")

    async def test_an_unknown_message_or_replay_is_not_found(self, api: httpx.AsyncClient) -> None:
        assert_problem(await api.post("/v1/deliveries/replay", json={"message_id": "m"}), 404, "not_found")
        for number in ("1", "0", "-1", "x", "9" * 18, "9" * 40, "٣"):
            assert_problem(await api.get(f"/v1/deliveries/replays/{number}"), 404, "not_found")


class TestCatchingUp:
    async def test_messages_come_with_their_bodies_in_order(self, api: httpx.AsyncClient, store: DurableStore) -> None:
        subscription_id = await durable(store)
        for n in range(1, 4):
            await store.accept(publication(f"m{n}", [subscription_id], b"\xff" * n), now=NOW)
        page = await get(api, f"/v1/subscriptions/{subscription_id}/messages?after=1&limit=1")
        assert page == {
            "messages": [
                {
                    "sequence": 2,
                    "previous_message_id": "m1",
                    "message_id": "m2",
                    "topic_b64": "dP8=",
                    "content_type": "text/plain",
                    "size": 2,
                    "accepted_at": "2027-01-15T08:00:00.000000Z",
                    "deliver_at": None,
                    "expires_at": None,
                    "body_kept": True,
                    "state": "pending",
                    "data_b64": "//8=",
                }
            ],
            "complete": True,
            "last": 3,
        }
        rest = await get(api, f"/v1/subscriptions/{subscription_id}/messages?after=2")
        assert [each["message_id"] for each in rest["messages"]] == ["m3"]
        everything = await get(api, f"/v1/subscriptions/{subscription_id}/messages")
        assert [each["sequence"] for each in everything["messages"]] == [1, 2, 3]

    async def test_a_large_body_is_elsewhere_and_one_that_is_gone_is_told(
        self, api: httpx.AsyncClient, store: DurableStore
    ) -> None:
        subscription_id = await durable(store)
        await accept_all(store, ["old"], [subscription_id])
        await settle(store, *[delivered(each) for each in await claim(store)])
        await store.prune_messages(now=NOW, bodies_before=NOW + 1, messages_before=0)
        body = bytes(CHUNK_BYTES + 1)
        await store.write_chunk("large", 0, body[:CHUNK_BYTES], now=NOW)
        await store.write_chunk("large", 1, body[CHUNK_BYTES:], now=NOW)
        notification = Notification("large", b"t", "a/b", hashlib.sha256(body).digest(), len(body), None)
        await store.accept(Publication(notification, None, [subscription_id]), now=NOW)
        await store.accept(publication("empty", [subscription_id], b""), now=NOW)
        page = await get(api, f"/v1/subscriptions/{subscription_id}/messages?after=0")
        told = [(each["message_id"], each["body_kept"], each["data_b64"]) for each in page["messages"]]
        assert told == [("old", False, None), ("large", True, None), ("empty", True, "")]
        assert page["complete"] is False
        assert (await get(api, f"/v1/subscriptions/{subscription_id}/messages?after=1"))["complete"] is True

    async def test_a_page_is_bounded_by_its_bodies(self, api: httpx.AsyncClient, store: DurableStore) -> None:
        subscription_id = await durable(store)
        for n in range(12):
            await store.accept(publication(f"m{n}", [subscription_id], bytes(CHUNK_BYTES)), now=NOW)
        page = await get(api, f"/v1/subscriptions/{subscription_id}/messages")
        assert [each["sequence"] for each in page["messages"]] == [1, 2, 3, 4, 5]
        assert (page["complete"], page["last"]) == (True, 12)

    async def test_only_durable_subscriptions_have_numbers(self, api: httpx.AsyncClient) -> None:
        for subscription_id in ("unknown", "a%20b", "%00"):
            answer = await api.get(f"/v1/subscriptions/{subscription_id}/messages")
            assert_problem(answer, 404, "not_found")

    @pytest.mark.parametrize("query", ["after=-1", "after=x", "after=1e3", "limit=0", "limit=1001", "from=1"])
    async def test_what_is_no_number_is_refused(self, query: str, api: httpx.AsyncClient) -> None:
        assert_problem(await api.get(f"/v1/subscriptions/s/messages?{query}"), 400, "invalid_request")


ROUTES = [
    ("GET", "/v1/deliveries"),
    ("GET", "/v1/messages/m"),
    ("GET", "/v1/messages/m/body"),
    ("DELETE", "/v1/messages/m"),
    ("POST", "/v1/deliveries/replay"),
    ("GET", "/v1/deliveries/replays/1"),
    ("GET", "/v1/subscriptions/s/messages"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES)
async def test_each_asks_for_credentials(
    method: str, path: str, store: DurableStore, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    site = site_of(store, TOKEN)
    await accept_all(store, ["m"], [await durable(store)])
    content = json.dumps({"message_id": "m"}) if method == "POST" else None
    async with api_of(site) as api:
        answer = await api.request(method, path, content=content)
        assert_problem(answer, 401, "unauthorized")
        assert answer.headers["www-authenticate"] == "Bearer"
        assert site.woken == 0
        answer = await api.request(
            method, path, content=content, headers={"authorization": "Bearer secret-token-of-32-characters-00"}
        )
        assert answer.status_code != 401
    assert "secret-token" not in caplog.text
    if method != "GET":
        assert '"by": "operator", "key": "operator"' in caplog.text
