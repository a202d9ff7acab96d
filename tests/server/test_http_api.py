"""The HTTP API of protocol.md, as curl or any other client sees it."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from fastapi import FastAPI

from httppubsubclient.protocol.credentials import Credentials, Key, Secrets, sign_request
from httppubsubclient.protocol.signatures import content_digest
from httppubsubserver.broadcaster import Broadcaster
from tests.server.conftest import OpenBroadcaster, ScriptedOutbound, api_of, subscribe

CALLBACK = "http://127.0.0.1:2000/v1/receive"


def assert_problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = answer.json()
    assert document["code"] == code
    assert document["status"] == status
    assert document["detail"]
    assert document["title"]
    return document


async def make(api: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    answer = await api.post("/v1/subscriptions", json={"url": CALLBACK, **fields})
    assert answer.status_code in (200, 201), answer.text
    subscription: dict[str, Any] = answer.json()
    return subscription


class TestNotify:
    async def test_the_raw_body_is_published_and_the_outcomes_are_counted(
        self, api: httpx.AsyncClient, outbound: ScriptedOutbound
    ) -> None:
        await make(api, topic="foo/bar")
        await make(api, glob="foo/*")
        answer = await api.post("/v1/notify?topic=foo/bar", content=b"\x00\xff", headers={"content-type": "a/b"})
        assert answer.status_code == 200
        counts = answer.json()
        assert counts.pop("message_id").startswith("msg_")
        assert counts == {"matched": 2, "notified": 2, "pending": 0, "failed": 0}
        assert {post.body for post in outbound.posts} == {b"\x00\xff"}
        assert {post.headers["content-type"] for post in outbound.posts} == {"a/b"}

    async def test_an_empty_body_is_a_message(self, api: httpx.AsyncClient, outbound: ScriptedOutbound) -> None:
        await make(api, topic="t")
        assert (await api.post("/v1/notify?topic=t")).json()["notified"] == 1
        assert outbound.posts[0].headers["content-type"] == "application/octet-stream"

    async def test_a_topic_may_be_any_bytes(self, api: httpx.AsyncClient, outbound: ScriptedOutbound) -> None:
        topic = bytes(range(256))
        await make(api, topic_b64=base64.b64encode(topic).decode())
        assert (await api.post(f"/v1/notify?topic={quote(topic)}")).json()["matched"] == 1

    @pytest.mark.parametrize(
        "query", ["", "?topic=", "?topic=a+b", "?topic=%zz", "?topic=%", "?topic=" + "a" * 4097, "?Topic=a"]
    )
    async def test_what_is_no_topic_is_refused(self, api: httpx.AsyncClient, query: str) -> None:
        assert_problem(await api.post(f"/v1/notify{query}"), 422, "invalid_topic")

    async def test_two_topics_are_refused(self, api: httpx.AsyncClient) -> None:
        assert_problem(await api.post("/v1/notify?topic=a&topic=b"), 400, "invalid_request")

    async def test_respond_async_answers_at_once(self, api: httpx.AsyncClient, outbound: ScriptedOutbound) -> None:
        release = asyncio.Event()
        await make(api, topic="t")
        outbound.hangs(CALLBACK, release)
        answer = await api.post("/v1/notify?topic=t", headers={"prefer": "respond-async"})
        assert answer.status_code == 202
        assert answer.json()["pending"] == 1
        assert answer.headers["preference-applied"] == "respond-async"
        release.set()

    async def test_wait_answers_when_the_time_is_over(self, api: httpx.AsyncClient, outbound: ScriptedOutbound) -> None:
        release = asyncio.Event()
        await make(api, topic="t")
        assert (await api.post("/v1/notify?topic=t", headers={"prefer": "wait=10"})).status_code == 200
        outbound.hangs(CALLBACK, release)
        answer = await api.post("/v1/notify?topic=t", headers={"prefer": "respond-async, wait=0"})
        assert answer.status_code == 202
        assert answer.headers["preference-applied"] == "wait=0"
        release.set()

    async def test_a_body_over_the_limit_is_refused_while_it_streams(self, open_broadcaster: OpenBroadcaster) -> None:
        read = 0

        async def endless() -> AsyncIterator[bytes]:
            nonlocal read
            while read < 100_000_000:
                read += 10_000
                yield b"x" * 10_000

        async with api_of(await open_broadcaster(max_body_bytes=50_000)) as api:
            assert (await api.post("/v1/notify?topic=t", content=b"x" * 50_000)).status_code == 200
            assert_problem(await api.post("/v1/notify?topic=t", content=b"x" * 50_001), 413, "too_large")
            assert_problem(await api.post("/v1/notify?topic=t", content=endless()), 413, "too_large")

    async def test_a_body_that_stops_arriving_is_given_up(self, open_broadcaster: OpenBroadcaster) -> None:
        async def stalls() -> AsyncIterator[bytes]:
            yield b"x"
            await asyncio.Event().wait()

        async with api_of(await open_broadcaster(body_idle_timeout_seconds=0.05)) as api:
            assert_problem(await api.post("/v1/notify?topic=t", content=stalls()), 408, "too_slow")

    async def test_a_compressed_body_is_refused(self, api: httpx.AsyncClient) -> None:
        answer = await api.post("/v1/notify?topic=t", content=b"x", headers={"content-encoding": "gzip"})
        assert_problem(answer, 415, "unsupported_media_type")

    async def test_the_digest_is_compared(self, api: httpx.AsyncClient) -> None:
        right = {"content-digest": content_digest(hashlib.sha256(b"x").digest())}
        assert (await api.post("/v1/notify?topic=t", content=b"x", headers=right)).status_code == 200
        answer = await api.post("/v1/notify?topic=t", content=b"yy", headers=right)
        problem = assert_problem(answer, 400, "digest_mismatch")
        came = content_digest(hashlib.sha256(b"yy").digest())
        assert f"2 bytes came, whose digest is {came}" in problem["detail"]

    async def test_an_idempotency_key_sends_once(self, api: httpx.AsyncClient, outbound: ScriptedOutbound) -> None:
        await make(api, topic="t")
        headers = {"idempotency-key": "k-1"}
        first = await api.post("/v1/notify?topic=t", content=b"x", headers=headers)
        again = await api.post("/v1/notify?topic=t", content=b"x", headers=headers)
        assert first.json() == again.json()
        assert len(outbound.posts) == 1
        other = await api.post("/v1/notify?topic=t", content=b"y", headers=headers)
        assert_problem(other, 422, "conflict")

    @pytest.mark.parametrize("key", ["", " ", "a b", "x" * 256])
    async def test_what_is_no_idempotency_key_is_refused(self, api: httpx.AsyncClient, key: str) -> None:
        answer = await api.post("/v1/notify?topic=t", headers={"idempotency-key": key})
        assert_problem(answer, 400, "invalid_request")

    async def test_while_draining_the_answer_is_503_with_retry_after(
        self, api: httpx.AsyncClient, broadcaster: Broadcaster
    ) -> None:
        broadcaster.start_draining()
        answer = await api.post("/v1/notify?topic=t")
        assert_problem(answer, 503, "unavailable")
        assert answer.headers["retry-after"] == "1"
        assert_problem(await api.get("/v1/health/ready"), 503, "unavailable")
        assert (await api.get("/v1/health/live")).status_code == 200


class TestSubscriptions:
    async def test_a_new_one_is_201_and_the_same_again_200_with_the_same_id(self, api: httpx.AsyncClient) -> None:
        fields = {"url": "HTTP://127.0.0.1:2000/%7Ea/../hook#1", "glob": "a/*"}
        first = await api.post("/v1/subscriptions", json=fields)
        again = await api.post("/v1/subscriptions", json={**fields, "url": "http://127.0.0.1:2000/hook#1"})
        assert (first.status_code, again.status_code) == (201, 200)
        assert first.json()["id"] == again.json()["id"]
        assert first.json()["url"] == "http://127.0.0.1:2000/hook#1"
        assert first.json()["glob"] == "a/*"
        assert first.json()["lease_seconds"] == 86_400

    @pytest.mark.parametrize(
        ("fields", "status", "code"),
        [
            ({"topic": "t", "glob": "g"}, 400, "invalid_request"),
            ({}, 400, "invalid_request"),
            ({"topic": "t", "unknown": 1}, 400, "invalid_request"),
            ({"topic": "t", "delivery": "sometimes"}, 400, "invalid_request"),
            ({"topic": "t", "ordered": True}, 400, "invalid_request"),
            ({"topic": "t", "delivery": "durable", "retry_schedule_seconds": []}, 400, "invalid_request"),
            ({"topic": "t", "delivery": "durable", "retry_schedule_seconds": [0, 0]}, 400, "invalid_request"),
            ({"topic": "t", "lease_seconds": 0}, 400, "invalid_request"),
            ({"topic": "t", "lease_seconds": -1}, 400, "invalid_request"),
            ({"topic": "t", "lease_seconds": 10**9}, 400, "invalid_request"),
            ({"topic": "t", "lease_seconds": " 10"}, 400, "invalid_request"),
            ({"topic": "t", "lease_seconds": 1.5}, 400, "invalid_request"),
            ({"topic": ""}, 422, "invalid_topic"),
            ({"topic_b64": "a"}, 422, "invalid_topic"),
            ({"glob": "["}, 422, "invalid_glob"),
            ({"glob": "\\"}, 422, "invalid_glob"),
            ({"glob": "x" * 1025}, 422, "invalid_glob"),
            ({"mqtt": "a/#/b"}, 422, "invalid_glob"),
            ({"topic": "t", "url": "ftp://x/"}, 422, "invalid_url"),
            ({"topic": "t", "url": "http://u:p@x/"}, 422, "invalid_url"),
            ({"topic": "t", "url": "http://x:0/"}, 422, "invalid_url"),
        ],
    )
    async def test_bad_fields_are_refused_with_a_stable_code(
        self, api: httpx.AsyncClient, fields: dict[str, Any], status: int, code: str
    ) -> None:
        assert_problem(await api.post("/v1/subscriptions", json={"url": CALLBACK, **fields}), status, code)

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("secrets", "secrets: no such member; did you mean 'secret'?"),
            ("lease_second", "lease_second: no such member; did you mean 'lease_seconds'?"),
            ("zzz", "zzz: no such member; known are topic, topic_b64, "),
            ("x" * 50_000, "x" * 40 + "...: no such member; known are "),
            ("a\n\u202e", r"a\n\u202e: no such member; known are "),
        ],
    )
    async def test_a_member_that_does_not_exist_is_told_with_the_nearest_that_does(
        self, api: httpx.AsyncClient, name: str, text: str
    ) -> None:
        fields = {"glob": "a", name: "hunter2"}
        answer = await api.post("/v1/subscriptions", json={"url": CALLBACK, **fields})
        assert_problem(answer, 400, "invalid_request")
        assert answer.json()["detail"].startswith(text)
        answer = await api.put("/v1/subscriptions", params={"url": CALLBACK}, json={"subscriptions": [fields]})
        assert_problem(answer, 400, "invalid_request")
        assert "subscriptions.0." in answer.json()["detail"]
        assert ("did you mean" in text) == ("did you mean" in answer.json()["detail"])
        assert "hunter2" not in answer.text

    @pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"url": 1}', b"\xff", b"[" * 60_000])
    async def test_what_is_not_the_expected_json_is_refused(self, api: httpx.AsyncClient, body: bytes) -> None:
        assert_problem(await api.post("/v1/subscriptions", content=body), 400, "invalid_request")

    async def test_a_huge_or_mistyped_body_is_refused(self, api: httpx.AsyncClient) -> None:
        assert_problem(await api.post("/v1/subscriptions", content=b" " * 70_000), 413, "too_large")
        answer = await api.post("/v1/subscriptions", content=b"{}", headers={"content-type": "text/plain"})
        assert_problem(answer, 415, "unsupported_media_type")

    async def test_one_can_be_shown_and_removed(self, api: httpx.AsyncClient) -> None:
        subscription = await make(api, topic="t")
        path = f"/v1/subscriptions/{subscription['id']}"
        assert (await api.get(path)).json() == subscription
        removed = await api.delete(path)
        assert (removed.status_code, removed.content) == (204, b"")
        assert_problem(await api.delete(path), 404, "not_found")
        assert_problem(await api.get(path), 404, "not_found")

    async def test_the_list_comes_in_pages(self, api: httpx.AsyncClient) -> None:
        made = {(await make(api, topic=f"t/{n}"))["id"] for n in range(25)}
        seen: list[str] = []
        cursor = None
        while True:
            params = {"limit": "10", "url": CALLBACK} | ({"cursor": cursor} if cursor else {})
            page = (await api.get("/v1/subscriptions", params=params)).json()
            seen += [subscription["id"] for subscription in page["subscriptions"]]
            if (cursor := page["cursor"]) is None:
                break
        assert len(seen) == 25
        assert set(seen) == made
        assert (await api.get("/v1/subscriptions?url=http://elsewhere/")).json()["subscriptions"] == []

    @pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "url=ftp://x"])
    async def test_bad_list_parameters_are_refused(self, api: httpx.AsyncClient, query: str) -> None:
        answer = await api.get(f"/v1/subscriptions?{query}")
        assert answer.status_code in (400, 422)
        assert answer.headers["content-type"] == "application/problem+json"

    async def test_the_whole_set_of_a_url_is_replaced_at_once(self, api: httpx.AsyncClient) -> None:
        kept, dropped = await make(api, glob="keep/*"), await make(api, topic="drop")
        url = f"/v1/subscriptions?url={quote(CALLBACK, safe='')}"
        etag = (await api.get(url)).headers["etag"]
        wanted = {"subscriptions": [{"glob": "keep/*"}, {"topic": "new"}]}
        answer = await api.put(url, json=wanted, headers={"if-match": etag})
        assert answer.status_code == 200, answer.text
        ids = [subscription["id"] for subscription in answer.json()["subscriptions"]]
        assert ids[0] == kept["id"]
        assert dropped["id"] not in ids
        assert (await api.get(url)).headers["etag"] == answer.headers["etag"] != etag

    async def test_if_match_with_an_old_etag_changes_nothing(self, api: httpx.AsyncClient) -> None:
        url = f"/v1/subscriptions?url={quote(CALLBACK, safe='')}"
        old = (await api.get(url)).headers["etag"]
        await make(api, topic="t")
        answer = await api.put(url, json={"subscriptions": []}, headers={"if-match": old})
        assert_problem(answer, 412, "precondition_failed")
        assert answer.headers["etag"] == (await api.get(url)).headers["etag"]
        assert len((await api.get(url)).json()["subscriptions"]) == 1


HMAC = Secrets(Credentials("hmac", (Key("k1", b"k" * 32), Key("k2", b"l" * 32))), Credentials.none(), ())
TOKEN = Secrets(Credentials("token", (Key("t1", b"t" * 40),)), Credentials.none(), ())


class TestAuthentication:
    @pytest.fixture
    async def signed_api(self, open_broadcaster: OpenBroadcaster) -> AsyncIterator[httpx.AsyncClient]:
        async with api_of(await open_broadcaster(secrets=HMAC)) as api:
            yield api

    def headers(
        self,
        now: float,
        *,
        body: bytes = b"x",
        query: str = "topic=t",
        nonce: str = "n" * 22,
        secret: bytes = b"k" * 32,
    ) -> dict[str, str]:
        digest = {"content-digest": content_digest(hashlib.sha256(body).digest())}
        credentials = Credentials("hmac", (Key("k1", secret),))
        signed = sign_request(
            credentials, method="POST", path="/v1/notify", query=query, headers=digest, now=int(now), nonce=nonce
        )
        return digest | signed

    async def test_a_signed_request_is_taken_once(self, signed_api: httpx.AsyncClient, now: float) -> None:
        headers = self.headers(now)
        assert (await signed_api.post("/v1/notify?topic=t", content=b"x", headers=headers)).status_code == 200
        again = await signed_api.post("/v1/notify?topic=t", content=b"x", headers=headers)
        assert_problem(again, 401, "replayed")

    async def test_a_nonce_is_remembered_over_a_restart(self, open_broadcaster: OpenBroadcaster, now: float) -> None:
        headers = self.headers(now)
        for expected in (200, 401):
            async with api_of(await open_broadcaster(secrets=HMAC)) as api:
                answer = await api.post("/v1/notify?topic=t", content=b"x", headers=headers)
                assert answer.status_code == expected

    @pytest.mark.parametrize("offset", [-1000, 1000])
    async def test_a_timestamp_outside_the_tolerance_is_refused(
        self, signed_api: httpx.AsyncClient, now: float, offset: int
    ) -> None:
        answer = await signed_api.post("/v1/notify?topic=t", content=b"x", headers=self.headers(now + offset))
        assert_problem(answer, 401, "unauthorized")

    async def test_a_wrong_key_another_topic_and_no_signature_are_refused(
        self, signed_api: httpx.AsyncClient, now: float
    ) -> None:
        wrong = self.headers(now, secret=b"w" * 32)
        assert_problem(await signed_api.post("/v1/notify?topic=t", content=b"x", headers=wrong), 401, "unauthorized")
        other = self.headers(now, query="topic=u")
        assert_problem(await signed_api.post("/v1/notify?topic=t", content=b"x", headers=other), 401, "unauthorized")
        answer = await signed_api.post("/v1/notify?topic=t", content=b"x")
        assert_problem(answer, 401, "unauthorized")
        assert answer.headers["www-authenticate"] == "Signature"

    async def test_a_changed_body_is_refused_and_delivers_nothing(
        self, open_broadcaster: OpenBroadcaster, outbound: ScriptedOutbound, now: float
    ) -> None:
        broadcaster = await open_broadcaster(secrets=HMAC)
        await subscribe(broadcaster, CALLBACK, b"t")
        async with api_of(broadcaster) as api:
            answer = await api.post("/v1/notify?topic=t", content=b"y", headers=self.headers(now))
        assert_problem(answer, 400, "digest_mismatch")
        assert outbound.posts == []

    async def test_nothing_of_the_body_is_read_before_the_credentials_hold(self, signed_api: httpx.AsyncClient) -> None:
        read = False

        async def watched() -> AsyncIterator[bytes]:
            nonlocal read
            read = True
            yield b""

        assert_problem(await signed_api.post("/v1/notify?topic=t", content=watched()), 401, "unauthorized")
        assert not read

    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("GET", "/v1/subscriptions"),
            ("POST", "/v1/subscriptions"),
            ("PUT", "/v1/subscriptions?url=http://x/"),
            ("GET", "/v1/subscriptions/sub_1"),
            ("DELETE", "/v1/subscriptions/sub_1"),
            ("POST", "/v1/notify?topic=t"),
        ],
    )
    @pytest.mark.parametrize("secrets", [HMAC, TOKEN])
    async def test_every_route_asks_for_credentials(
        self, open_broadcaster: OpenBroadcaster, secrets: Secrets, method: str, path: str
    ) -> None:
        async with api_of(await open_broadcaster(secrets=secrets)) as api:
            assert_problem(await api.request(method, path), 401, "unauthorized")
            assert (await api.get("/v1/health/ready")).status_code == 200

    async def test_a_token_opens_and_another_does_not(self, open_broadcaster: OpenBroadcaster) -> None:
        async with api_of(await open_broadcaster(secrets=TOKEN)) as api:
            good = {"authorization": "Bearer " + "t" * 40}
            assert (await api.post("/v1/notify?topic=t", content=b"x", headers=good)).status_code == 200
            bad = {"authorization": "Bearer " + "u" * 40}
            answer = await api.post("/v1/notify?topic=t", content=b"x", headers=bad)
            assert_problem(answer, 401, "unauthorized")
            assert answer.headers["www-authenticate"] == "Bearer"


class TestMounting:
    async def test_the_router_lives_under_a_prefix_with_the_lifespan_of_its_host(
        self, open_broadcaster: OpenBroadcaster, now: float
    ) -> None:
        broadcaster = await open_broadcaster(secrets=HMAC)
        app = FastAPI()
        app.include_router(broadcaster.router, prefix="/pubsub")
        signed = sign_request(
            Credentials("hmac", (Key("k1", b"k" * 32),)),
            method="GET",
            path="/pubsub/v1/subscriptions",
            query="",
            headers={},
            now=int(now),
            nonce="n" * 22,
        )
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://host") as client,
        ):
            assert (await client.get("/pubsub/v1/health/ready")).status_code == 200
            assert (await client.get("/pubsub/v1/subscriptions", headers=signed)).status_code == 200


class TestOpenApi:
    def test_every_route_is_described_with_its_answers(self, broadcaster: Broadcaster) -> None:
        app = FastAPI()
        app.include_router(broadcaster.router)
        paths = app.openapi()["paths"]
        operations = {(method, path): op for path, ops in paths.items() for method, op in ops.items()}
        assert set(operations) == {
            ("post", "/v1/notify"),
            ("post", "/v1/subscriptions"),
            ("get", "/v1/subscriptions"),
            ("put", "/v1/subscriptions"),
            ("get", "/v1/subscriptions/{subscription_id}"),
            ("delete", "/v1/subscriptions/{subscription_id}"),
            ("get", "/v1/subscriptions/{subscription_id}/messages"),
            ("get", "/v1/deliveries"),
            ("post", "/v1/deliveries/replay"),
            ("get", "/v1/deliveries/replays/{number}"),
            ("get", "/v1/messages/{message_id}"),
            ("delete", "/v1/messages/{message_id}"),
            ("get", "/v1/messages/{message_id}/body"),
            ("get", "/v1/health/live"),
            ("get", "/v1/health/ready"),
        }
        for operation in operations.values():
            assert operation["summary"]
            assert operation["description"]
            for status, answer in operation["responses"].items():
                if int(status) >= 400:
                    assert set(answer["content"]) == {"application/problem+json"}, (operation["summary"], status)
        body = operations["post", "/v1/notify"]["requestBody"]["content"]
        assert body == {"*/*": {"schema": {"type": "string", "format": "binary"}}}
        for (_, path), operation in operations.items():
            in_path = {each["name"] for each in operation.get("parameters", ()) if each["in"] == "path"}
            assert in_path == set(re.findall(r"{(\w+)}", path)), path
        listed = {parameter["name"] for parameter in operations["get", "/v1/deliveries"]["parameters"]}
        assert listed == {"state", "subscription", "message", "from", "until", "cursor", "limit"}
        names = {parameter["name"] for parameter in operations["post", "/v1/notify"]["parameters"]}
        assert names == {"topic", "Content-Digest", "Idempotency-Key", "Prefer", "traceparent"}
