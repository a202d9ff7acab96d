"""Several keys at one broadcaster: each does what it may, and sees, renews and removes what is its owner's."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from httppubsubclient.protocol.credentials import Credentials, Key, Secrets, sign_request
from httppubsubclient.protocol.errors import ConfigurationError
from httppubsubclient.protocol.messages import SubscribeRequest, format_time
from httppubsubclient.protocol.patterns import Pattern
from httppubsubclient.protocol.permissions import Permissions, Quotas
from httppubsubserver.broadcaster import Broadcaster
from httppubsubserver.config import ServerConfig
from tests.server.conftest import OpenBroadcaster, ScriptedOutbound, api_of
from tests.server.issuer import AUDIENCE, ISSUER, NOW, jwk, jwks, token

A, B = "http://127.0.0.1:2001/hook", "http://127.0.0.1:2002/hook"
SOON: Any = {"exp": 2**40}


def key(name: str, *, owner: str = "", valid_until: float | None = None, **permissions: Any) -> Key:
    return Key(name, f"token-of-{name}-".encode() + b"x" * 24, 0, valid_until, owner, Permissions(**permissions))


KEYS = (
    key("plain"),
    key("alice"),
    key("alice-2", owner="alice"),
    key("orders", subscribe=("orders/**",), publish=("orders/eu/**", "exact")),
    key("reader", publish=()),
    key("writer", subscribe=()),
    key("few", quotas=Quotas(subscriptions=2)),
    key("fast", quotas=Quotas(messages_per_second=1, bytes_per_second=1000)),
    key("admin", admin=True),
    key("auditor", admin=True, publish=(), subscribe=()),
    key("ended", valid_until=1),
)
SECRETS = Secrets(Credentials("token", KEYS), Credentials.none(), ())
As = Callable[[str], httpx.AsyncClient]


def problem(answer: httpx.Response, status: int, code: str) -> str:
    assert answer.status_code == status, answer.text
    document = answer.json()
    assert document["code"] == code
    detail: str = document["detail"]
    assert "token-of" not in answer.text
    return detail


@pytest.fixture
async def site(open_broadcaster: OpenBroadcaster, tmp_path: Path) -> Broadcaster:
    (tmp_path / "jwks.json").write_bytes(jwks(jwk("P-256", "k1")))
    return await open_broadcaster(
        secrets=SECRETS, jwt_issuer=ISSUER, jwt_audience=AUDIENCE, jwks_file=tmp_path / "jwks.json"
    )


@pytest.fixture
async def who(site: Broadcaster) -> AsyncIterator[As]:
    """An HTTP client with the key of this name, or with this token of the issuer."""
    async with AsyncExitStack() as stack:
        clients: dict[str, httpx.AsyncClient] = {}
        for each in KEYS:
            clients[each.id] = await stack.enter_async_context(api_of(site))
            clients[each.id].headers["authorization"] = f"Bearer {each.secret.decode()}"
        made: list[httpx.AsyncClient] = []

        def of(name: str) -> httpx.AsyncClient:
            if name in clients:
                return clients[name]
            client = api_of(site)
            client.headers["authorization"] = f"Bearer {name}"
            made.append(client)
            return client

        yield of
        for client in made:
            await client.aclose()


async def made(api: httpx.AsyncClient, url: str = A, **fields: Any) -> dict[str, Any]:
    answer = await api.post("/v1/subscriptions", json={"url": url, **fields})
    assert answer.status_code in (200, 201), answer.text
    subscription: dict[str, Any] = answer.json()
    return subscription


async def seen(api: httpx.AsyncClient, query: str = "") -> set[str]:
    """The ids of all pages."""
    ids: set[str] = set()
    cursor = ""
    while True:
        answer = (await api.get(f"/v1/subscriptions?limit=2{query}{cursor}")).json()
        ids |= {each["id"] for each in answer["subscriptions"]}
        if answer["cursor"] is None:
            return ids
        cursor = f"&cursor={answer['cursor']}"


# -- who ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/subscriptions", "/v1/deliveries", "/v1/messages/m"])
async def test_without_a_key_that_counts_nobody_gets_in(site: Broadcaster, who: As, path: str) -> None:
    async with api_of(site) as api:
        problem(await api.get(path), 401, "unauthorized")
        secret = KEYS[0].secret.decode()
        for query in (f"access_token={secret}", f"token={secret}", f"authorization=Bearer+{secret}"):
            problem(await api.get(f"{path}?{query}"), 401, "unauthorized")
    assert "not valid any more" in problem(await who("ended").get(path), 401, "unauthorized")
    problem(await who("nobody").get(path), 401, "unauthorized")


# -- ownership ----------------------------------------------------------------------------------------------------


async def test_a_key_sees_what_its_owner_made_and_an_admin_everything(who: As) -> None:
    first = (await made(who("alice"), glob="a/*"))["id"]
    second = (await made(who("alice-2"), B, glob="b/*"))["id"]
    other = (await made(who("orders"), glob="orders/*"))["id"]
    for name in ("alice", "alice-2"):
        assert await seen(who(name)) == {first, second}
    assert await seen(who("orders")) == {other}
    assert await seen(who("plain")) == set()
    for name in ("admin", "auditor"):
        assert await seen(who(name)) == {first, second, other}
    assert await seen(who("alice"), f"&url={A}") == {first}
    assert (await who("alice").get(f"/v1/subscriptions/{second}")).status_code == 200


async def test_what_is_anothers_is_not_there(who: As, outbound: ScriptedOutbound) -> None:
    mine = (await made(who("alice"), glob="orders/**"))["id"]
    unknown = problem(await who("orders").get("/v1/subscriptions/sub_unknown"), 404, "not_found")
    for name in ("orders", "plain"):
        assert problem(await who(name).get(f"/v1/subscriptions/{mine}"), 404, "not_found") == unknown
        assert problem(await who(name).delete(f"/v1/subscriptions/{mine}"), 404, "not_found") == unknown
        problem(await who(name).get(f"/v1/subscriptions/{mine}/messages"), 404, "not_found")
    assert await seen(who("alice")) == {mine}
    assert (await who("plain").post("/v1/notify?topic=orders/1")).json()["notified"] == 1


async def test_the_same_subscription_cannot_be_taken_from_another(who: As) -> None:
    mine = await made(who("alice"), glob="orders/*", lease_seconds=1000)
    answer = await who("orders").post("/v1/subscriptions", json={"url": A, "glob": "orders/*", "lease_seconds": 1})
    assert "another owner" in problem(answer, 403, "forbidden")
    answer = await who("orders").put(f"/v1/subscriptions?url={A}", json={"subscriptions": [{"glob": "orders/*"}]})
    problem(answer, 403, "forbidden")
    assert (await who("alice").get(f"/v1/subscriptions/{mine['id']}")).json() == mine


async def test_a_whole_set_is_that_of_its_owner(who: As) -> None:
    theirs = (await made(who("alice"), glob="a/*"))["id"]
    await made(who("orders"), glob="orders/1/*")
    etag = (await who("orders").get(f"/v1/subscriptions?url={A}")).headers["etag"]
    await made(who("alice"), glob="b/*")
    sent = {"subscriptions": [{"glob": "orders/2/*"}]}
    answer = await who("orders").put(f"/v1/subscriptions?url={A}", json=sent, headers={"if-match": etag})
    assert answer.status_code == 200, answer.text
    assert answer.headers["etag"] == (await who("orders").get(f"/v1/subscriptions?url={A}")).headers["etag"]
    assert [each["glob"] for each in answer.json()["subscriptions"]] == ["orders/2/*"]
    await who("orders").put(f"/v1/subscriptions?url={A}", json={"subscriptions": []})
    assert await seen(who("orders")) == set()
    assert theirs in await seen(who("alice"))
    assert len(await seen(who("alice"))) == 2
    # An admin's set is his own, too, and so is its tag.
    tag = (await who("admin").get(f"/v1/subscriptions?url={A}")).headers["etag"]
    answer = await who("admin").put(f"/v1/subscriptions?url={A}", json=sent, headers={"if-match": tag})
    assert answer.status_code == 200
    assert len(await seen(who("alice"))) == 2


async def test_an_admin_removes_what_others_made_and_that_is_written_down(
    who: As, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "httppubsub.audit")
    mine = (await made(who("alice"), glob="a/*"))["id"]
    assert (await who("auditor").delete(f"/v1/subscriptions/{mine}")).status_code == 204
    assert await seen(who("alice")) == set()
    [line] = [json.loads(record.message) for record in caplog.records if "unsubscribed" in record.message]
    assert (line["by"], line["key"], line["owner"]) == ("auditor", "auditor", "alice")
    assert (line["subscription"], line["url"], line["pattern"]) == (mine, "http://127.0.0.1:2001/...", "glob='a/*'")
    assert "token-of" not in caplog.text


async def test_what_is_nobodys_is_there_for_keys_without_restrictions_alone(site: Broadcaster, who: As) -> None:
    made_here, _ = await site.subscribe(SubscribeRequest(A, Pattern.glob("orders/*"), 600))
    for name in ("orders", "reader", "writer", token(**SOON)):
        assert await seen(who(name)) == set()
        problem(await who(name).delete(f"/v1/subscriptions/{made_here.id}"), 404, "not_found")
    for name in ("plain", "alice", "admin", "auditor"):
        assert await seen(who(name)) == {made_here.id}
    # An empty set removes nothing that is not his.
    assert (await who("orders").put(f"/v1/subscriptions?url={A}", json={"subscriptions": []})).status_code == 200
    assert await seen(who("plain")) == {made_here.id}
    # Whoever subscribes the same takes it over.
    sent = {"subscriptions": [{"glob": "orders/*"}]}
    answer = await who("orders").put(f"/v1/subscriptions?url={A}", json=sent)
    assert [each["id"] for each in answer.json()["subscriptions"]] == [made_here.id]
    assert await seen(who("plain")) == set()
    assert await seen(who("orders")) == {made_here.id}


# -- permissions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"topic": "secret"}, "the topic secret"),
        ({"glob": "**"}, "the glob '**', which matches"),
        ({"glob": "order*/**"}, "the glob 'order*/**', which matches"),
        ({"glob": "orders/**/../x", "lease_seconds": 5}, None),
        ({"mqtt": "orders/#"}, None),
        ({"mqtt": "+/orders/#"}, "the MQTT filter '+/orders/#', which matches"),
        ({"topic_b64": "/w=="}, "the topic"),
    ],
)
async def test_a_pattern_needs_a_permission_that_contains_it(
    who: As, fields: dict[str, Any], named: str | None
) -> None:
    answers = [
        await who("orders").post("/v1/subscriptions", json={"url": A, **fields}),
        await who("orders").put(
            f"/v1/subscriptions?url={A}", json={"subscriptions": [{"glob": "orders/fine/*"}, fields]}
        ),
    ]
    for answer in answers:
        if named is None:
            assert answer.status_code in (200, 201), answer.text
        else:
            detail = problem(answer, 403, "forbidden")
            assert named in detail
            assert "may subscribe to 'orders/**'" in detail
    if named is not None:
        assert await seen(who("orders")) == set()
    problem(await who("writer").post("/v1/subscriptions", json={"url": A, "topic": "x"}), 403, "forbidden")


async def test_a_renewal_is_asked_for_its_permission_again(
    site: Broadcaster, open_broadcaster: OpenBroadcaster
) -> None:
    api = api_of(site)
    api.headers["authorization"] = f"Bearer {KEYS[1].secret.decode()}"
    await made(api, glob="x/*")
    less = Secrets(Credentials("token", (key("alice", subscribe=("y/*",)),)), Credentials.none(), ())
    after = api_of(await open_broadcaster(secrets=less))
    after.headers["authorization"] = api.headers["authorization"]
    problem(await after.post("/v1/subscriptions", json={"url": A, "glob": "x/*"}), 403, "forbidden")
    assert len(await seen(after)) == 1


async def test_publishing_needs_a_glob_that_matches_before_a_byte_of_the_body_is_read(who: As) -> None:
    read = False

    async def watched() -> AsyncIterator[bytes]:
        nonlocal read
        read = True
        yield b""

    for name, topic in (("orders", "orders/us/1"), ("orders", "exact/not"), ("orders", "%FF"), ("reader", "a")):
        detail = problem(await who(name).post(f"/v1/notify?topic={topic}", content=watched()), 403, "forbidden")
        assert "may not publish to the topic" in detail
    assert "topic orders/us/1; it may publish to 'orders/eu/**', 'exact'" in problem(
        await who("orders").post("/v1/notify?topic=orders/us/1"), 403, "forbidden"
    )
    assert not read
    for topic in ("orders/eu/1", "exact", "orders/eu"):
        assert (await who("orders").post(f"/v1/notify?topic={topic}")).status_code == 200


async def test_what_a_token_may_not_do_is_told_of_the_token(who: As) -> None:
    holder = who(token(httppubsub={"publish": ["a"], "subscribe": ["a"]}, **SOON))
    answer = await holder.post("/v1/notify?topic=b")
    assert problem(answer, 403, "forbidden").startswith("this token may not publish to the topic b;")
    answer = await holder.post("/v1/subscriptions", json={"url": A, "glob": "*"})
    assert problem(answer, 403, "forbidden").startswith("this token may not subscribe to the glob '*',")


async def test_only_an_admin_subscribes_for_ever(who: As) -> None:
    for name in ("plain", "orders", token(**SOON)):
        answer = await who(name).post("/v1/subscriptions", json={"url": A, "glob": "orders/*", "permanent": True})
        assert "lease" in problem(answer, 403, "forbidden")
        sent = {"subscriptions": [{"glob": "orders/*", "permanent": True}]}
        problem(await who(name).put(f"/v1/subscriptions?url={A}", json=sent), 403, "forbidden")
    assert (await made(who("admin"), glob="orders/*", permanent=True))["expires_at"] is None
    answer = await who("auditor").post("/v1/subscriptions", json={"url": B, "glob": "orders/*", "permanent": True})
    assert "may not subscribe" in problem(answer, 403, "forbidden")


@pytest.mark.parametrize("lease", [0, -1, 864_001, 10**9, 10**30, 1.5, "10", " 10", True, [], float("nan")])
async def test_a_lease_is_a_whole_number_within_its_bounds(who: As, lease: Any) -> None:
    text = json.dumps({"url": A, "topic": "a", "lease_seconds": lease})
    answer = await who("plain").post("/v1/subscriptions", content=text, headers={"content-type": "application/json"})
    problem(answer, 400, "invalid_request")
    assert await seen(who("plain")) == set()


# -- quotas -------------------------------------------------------------------------------------------------------


async def test_beyond_its_quota_of_subscriptions_a_key_gets_429_also_when_it_hurries(who: As) -> None:
    few = who("few")
    answers = await asyncio.gather(
        *(few.post("/v1/subscriptions", json={"url": A, "topic": f"t/{number % 5}"}) for number in range(50))
    )
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 201, 429}
    assert statuses.count(201) == 2
    ids = await seen(few)
    assert len(ids) == 2
    problem(next(answer for answer in answers if answer.status_code == 429), 429, "quota_exceeded")
    sent = {"subscriptions": [{"topic": str(number)} for number in range(3)]}
    problem(await few.put(f"/v1/subscriptions?url={B}", json=sent), 429, "quota_exceeded")
    assert await seen(few) == ids
    # A set that takes the place of another one needs no more room than it has itself.
    assert (await few.put(f"/v1/subscriptions?url={A}", json={"subscriptions": sent["subscriptions"][:2]})).is_success
    assert (await made(who("plain"), topic="t")) is not None


async def test_one_subscription_that_is_asked_for_by_many_at_once_is_one(who: As) -> None:
    answers = await asyncio.gather(
        *(who("alice").post("/v1/subscriptions", json={"url": A, "glob": "a/*"}) for _ in range(50))
    )
    assert sorted(answer.status_code for answer in answers) == [200] * 49 + [201]
    assert len(await seen(who("alice"))) == 1


async def test_the_smaller_bound_counts(open_broadcaster: OpenBroadcaster) -> None:
    site = await open_broadcaster(secrets=SECRETS, max_subscriptions_per_key=1)
    for each in KEYS[:10]:
        async with api_of(site) as api:
            api.headers["authorization"] = f"Bearer {each.secret.decode()}"
            answers = [
                await api.post("/v1/subscriptions", json={"url": f"{A}/{each.owner}", "topic": f"orders/{number}"})
                for number in range(2)
            ]
        expected = [403, 403] if each.id in ("writer", "auditor") else [201, 429]
        assert [answer.status_code for answer in answers] == ([200, 429] if each.id == "alice-2" else expected)


async def test_too_many_messages_and_bytes_get_429_with_the_time_to_wait(who: As) -> None:
    fast = who("fast")
    answers = [await fast.post("/v1/notify?topic=t", content=b"x") for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 429, 429]
    detail = problem(answers[2], 429, "quota_exceeded")
    assert "1 messages a second" in detail
    assert answers[2].headers["retry-after"] == "1"
    assert (await who("plain").post("/v1/notify?topic=t")).status_code == 200


async def test_bytes_are_refused_by_their_length_before_they_are_read_or_while_they_arrive(
    open_broadcaster: OpenBroadcaster,
) -> None:
    secrets = Secrets(Credentials("token", (key("b", quotas=Quotas(bytes_per_second=1000)),)), Credentials.none(), ())
    site = await open_broadcaster(secrets=secrets, max_body_bytes=100_000)
    read = 0

    async def chunks(number: int) -> AsyncIterator[bytes]:
        nonlocal read
        for _ in range(number):
            read += 1
            yield b"x" * 500

    async with api_of(site) as api:
        api.headers["authorization"] = f"Bearer {secrets.to_broadcasters.keys[0].secret.decode()}"
        # Beyond what anybody may send: not charged.
        answer = await api.post("/v1/notify?topic=t", content=chunks(1), headers={"content-length": "100001"})
        problem(answer, 413, "too_large")
        assert (await api.post("/v1/notify?topic=t", content=b"x" * 1500)).status_code == 200
        read = 0
        answer = await api.post("/v1/notify?topic=t", content=chunks(8), headers={"content-length": "4000"})
        problem(answer, 429, "quota_exceeded")
        assert read == 0
        answer = await api.post("/v1/notify?topic=t", content=chunks(8))
        problem(answer, 429, "quota_exceeded")
        assert int(answer.headers["retry-after"]) >= 1


# -- messages and deliveries --------------------------------------------------------------------------------------


async def durable(who: As, name: str, url: str, glob: str) -> str:
    subscription_id: str = (await made(who(name), url, glob=glob, delivery="durable", retry_schedule_seconds=[0]))["id"]
    return subscription_id


async def test_messages_are_shown_to_their_publisher_and_to_those_who_get_them(
    who: As, outbound: ScriptedOutbound
) -> None:
    outbound.replies(A, 400)
    outbound.replies(B, 400)
    mine = await durable(who, "alice", A, "orders/**")
    theirs = await durable(who, "orders", B, "orders/eu/*")
    published = (await who("writer").post("/v1/notify?topic=orders/eu/1", content=b"secret")).json()
    path = f"/v1/messages/{published['message_id']}"
    shown = {"alice": {mine}, "alice-2": {mine}, "orders": {theirs}, "writer": set(), "admin": {mine, theirs}}
    for name, subscriptions in shown.items():
        document = (await who(name).get(path)).json()
        assert {each["subscription_id"] for each in document["deliveries"]} == subscriptions
        assert (await who(name).get(f"{path}/body")).content == b"secret"
        listed = (await who(name).get("/v1/deliveries")).json()["deliveries"]
        assert {each["subscription_id"] for each in listed} == subscriptions
        by_message = (await who(name).get(f"/v1/deliveries?message={published['message_id']}")).json()["deliveries"]
        assert {each["subscription_id"] for each in by_message} == subscriptions
    unknown = await who("plain").get("/v1/messages/msg_unknown")
    for name in ("plain", "reader", "few", token(**SOON)):
        for suffix in ("", "/body"):
            answer = await who(name).get(path + suffix)
            detail = problem(answer, 404, "not_found")
            assert detail.replace(published["message_id"], "msg_unknown") == problem(unknown, 404, "not_found")
        problem(await who(name).delete(path), 404, "not_found")
        assert (await who(name).get("/v1/deliveries")).json()["deliveries"] == []
        assert (await who(name).get(f"/v1/deliveries?subscription={mine}")).json()["deliveries"] == []
    assert (await who("alice").get(f"/v1/subscriptions/{mine}/messages")).json()["last"] == 1
    problem(await who("alice").get(f"/v1/subscriptions/{theirs}/messages"), 404, "not_found")


async def test_only_its_publisher_calls_a_message_off(site: Broadcaster, who: As) -> None:
    await durable(who, "alice", A, "orders/**")
    headers = {"pubsub-deliver-at": format_time(site.now() + 10**10)}
    for publisher, refused in (("writer", "alice"), ("alice-2", None)):
        sent = await who(publisher).post("/v1/notify?topic=orders/1", headers=headers)
        path = f"/v1/messages/{sent.json()['message_id']}"
        if refused is not None:
            assert "published" in problem(await who(refused).delete(path), 403, "forbidden")
        assert (await who(publisher).delete(path)).json() == {"cancelled": 1}
    sent = await who("writer").post("/v1/notify?topic=orders/1", headers=headers)
    assert (await who("auditor").delete(f"/v1/messages/{sent.json()['message_id']}")).json() == {"cancelled": 1}


async def test_a_replay_sends_again_what_is_ones_own(site: Broadcaster, who: As, outbound: ScriptedOutbound) -> None:
    for url in (A, B):
        outbound.replies(url, 400)
    await durable(who, "alice", A, "orders/**")
    theirs = await durable(who, "orders", B, "orders/**")
    message_id = (await who("writer").post("/v1/notify?topic=orders/eu/1")).json()["message_id"]
    outbound.replies(B, 200)
    before = len(outbound.posts)
    whole_time = {"from": "2000-01-01T00:00:00Z"}
    for name, selection in (("plain", whole_time), ("few", whole_time), ("alice", {"subscription_id": theirs})):
        answer = await who(name).post("/v1/deliveries/replay", json=selection)
        assert answer.status_code == 202, answer.text
        number = answer.json()["replay"]
        await finished(who(name), number)
        assert (await who(name).get(f"/v1/deliveries/replays/{number}")).json()["replayed"] == 0
        problem(await who("orders").get(f"/v1/deliveries/replays/{number}"), 404, "not_found")
        assert (await who("admin").get(f"/v1/deliveries/replays/{number}")).status_code == 200
    problem(await who("plain").post("/v1/deliveries/replay", json={"message_id": message_id}), 404, "not_found")
    problem(await who("plain").post("/v1/deliveries/replay", json={}), 400, "invalid_request")
    assert len(outbound.posts) == before
    number = (await who("orders").post("/v1/deliveries/replay", json=whole_time)).json()["replay"]
    await finished(who("orders"), number)
    assert (await who("orders").get(f"/v1/deliveries/replays/{number}")).json()["replayed"] == 1
    await outbound.until(lambda: len(outbound.posts) == before + 1)
    assert outbound.posts[-1].url == B
    number = (await who("auditor").post("/v1/deliveries/replay", json=whole_time)).json()["replay"]
    await finished(who("admin"), number)
    await outbound.until(lambda: len(outbound.posts) == before + 2)
    assert outbound.posts[-1].url == A


async def test_who_may_subscribe_to_nothing_has_nothing_to_replay(who: As) -> None:
    whole_time = {"from": "2000-01-01T00:00:00Z"}
    for name in ("writer", token(httppubsub={"publish": ["a/*"]}, **SOON)):
        assert "nothing" in problem(await who(name).post("/v1/deliveries/replay", json=whole_time), 403, "forbidden")
    # An admin replays what others have.
    assert (await who("auditor").post("/v1/deliveries/replay", json=whole_time)).status_code == 202


async def finished(api: httpx.AsyncClient, number: int) -> None:
    async with asyncio.timeout(20):
        while (await api.get(f"/v1/deliveries/replays/{number}")).json()["finished_at"] is None:
            await asyncio.sleep(0.01)


async def test_idempotency_keys_are_each_owners_own(who: As) -> None:
    headers = {"idempotency-key": "order-17"}
    sent = {
        name: (await who(name).post("/v1/notify?topic=orders/eu/1", content=name.encode(), headers=headers)).json()
        for name in ("alice", "orders", "plain", "admin")
    }
    assert len({each["message_id"] for each in sent.values()}) == 4
    again = await who("alice-2").post("/v1/notify?topic=orders/eu/1", content=b"alice", headers=headers)
    assert again.json() == sent["alice"]
    problem(await who("alice").post("/v1/notify?topic=orders/eu/1", content=b"x", headers=headers), 422, "conflict")


# -- tokens of an issuer ------------------------------------------------------------------------------------------


async def test_a_token_of_the_issuer_is_as_good_as_a_key_with_its_permissions(who: As) -> None:
    good = token(httppubsub={"publish": ["a/*"], "subscribe": ["a/**"], "quotas": {"subscriptions": 1}}, **SOON)
    mine = await made(who(good), glob="a/*")
    assert await seen(who(token(**SOON))) == {mine["id"]}  # another token of the same subject
    assert await seen(who(token(sub="bob", **SOON))) == set()
    assert (await who(good).post("/v1/notify?topic=a/b")).json()["matched"] == 1
    problem(await who(good).post("/v1/notify?topic=b"), 403, "forbidden")
    problem(await who(good).post("/v1/subscriptions", json={"url": A, "topic": "a/b"}), 429, "quota_exceeded")
    assert await seen(who(token(sub="root", httppubsub={"admin": True}, **SOON))) == {mine["id"]}
    nothing = await who(token(httppubsub=..., **SOON)).get("/v1/subscriptions")
    assert "permits nothing" in problem(nothing, 403, "forbidden")
    for bad in (token("P-256/2", **SOON), token(aud="x", **SOON), token(exp=NOW - 10**9), token(exp=...)):
        answer = await who(bad).get("/v1/subscriptions")
        problem(answer, 401, "unauthorized")
        assert answer.headers["www-authenticate"] == "Bearer"
        assert bad.split(".")[2] not in answer.text


async def test_with_signed_requests_a_token_is_an_alternative(
    open_broadcaster: OpenBroadcaster, tmp_path: Path, now: float
) -> None:
    (tmp_path / "jwks.json").write_bytes(jwks(jwk("P-256", "k1")))
    hmac = Credentials("hmac", (Key("k1", b"k" * 31 + b"1"),))
    site = await open_broadcaster(
        secrets=Secrets(hmac, Credentials.none(), ()),
        jwt_issuer=ISSUER,
        jwt_audience=AUDIENCE,
        jwks_file=tmp_path / "jwks.json",
    )
    async with api_of(site) as api:
        bearer = {"authorization": f"Bearer {token(**SOON)}"}
        assert (await api.get("/v1/subscriptions", headers=bearer)).status_code == 200
        answer = await api.get("/v1/subscriptions", headers={"authorization": "Bearer something"})
        assert "none of the issuer" in problem(answer, 401, "unauthorized")
        assert answer.headers["www-authenticate"] == "Signature, Bearer"
        answer = await api.get("/v1/subscriptions", headers={"authorization": "Basic eyJ4Og=="})
        assert "signature is missing" in problem(answer, 401, "unauthorized")
        request: dict[str, Any] = {"method": "GET", "path": "/v1/subscriptions", "query": "", "headers": {}}
        signed = sign_request(hmac, **request, now=int(now), nonce="n" * 22)
        # What a proxy added for itself does not spoil a good signature.
        both = {**signed, "authorization": f"Bearer {token('P-256/2', **SOON)}"}
        assert (await api.get("/v1/subscriptions", headers=both)).status_code == 200


async def test_a_token_in_the_secrets_file_may_look_like_one_of_an_issuer(
    open_broadcaster: OpenBroadcaster, tmp_path: Path
) -> None:
    (tmp_path / "jwks.json").write_bytes(jwks(jwk("P-256", "k1")))
    odd = Key("odd", b"eyJhbGciOiJub25lIn0.eyJhbGciOiJub25lIn0.x")
    site = await open_broadcaster(
        secrets=Secrets(Credentials("token", (odd,)), Credentials.none(), ()),
        jwt_issuer=ISSUER,
        jwt_audience=AUDIENCE,
        jwks_file=tmp_path / "jwks.json",
    )
    async with api_of(site) as api:
        headers = {"authorization": f"Bearer {odd.secret.decode()}"}
        assert (await api.get("/v1/subscriptions", headers=headers)).status_code == 200


@pytest.mark.parametrize(
    ("settings", "secrets", "fault"),
    [
        ({"jwt_issuer": "x"}, SECRETS, "need jwt_audience and one of jwks_file and jwks_url, too"),
        ({"jwt_audience": "x"}, SECRETS, "need jwt_issuer and one of"),
        ({"jwks_url": "https://x/"}, SECRETS, "need jwt_issuer and jwt_audience, too"),
        ({"jwt_issuer": "x", "jwks_url": "https://x/"}, SECRETS, "need jwt_audience, too"),
        ({"jwt_issuer": "x", "jwt_audience": "x"}, SECRETS, "need one of jwks_file and jwks_url, too"),
        ({"jwt_issuer": "x", "jwt_audience": "x", "jwks_url": "https://x/", "jwks_file": "y"}, SECRETS, "both set"),
        ({"jwt_issuer": "x", "jwt_audience": "x", "jwks_url": "ftp://x/"}, SECRETS, "jwks_url: "),
        ({"jwt_issuer": "x", "jwt_audience": "x", "jwks_url": "https://u:hunter2@x/"}, SECRETS, "jwks_url: "),
        ({"jwt_issuer": "x", "jwt_audience": "x", "jwks_file": "/nowhere"}, SECRETS, "jwks_file '/nowhere'"),
        (
            {"jwt_issuer": "x", "jwt_audience": "x", "jwks_url": "https://x/"},
            Secrets(Credentials.none(), Credentials.none(), ()),
            "nobody would have to show a token",
        ),
    ],
)
def test_settings_that_would_let_in_nobody_or_anybody_are_refused(
    settings: dict[str, Any], secrets: Secrets, fault: str
) -> None:
    with pytest.raises(ConfigurationError, match=fault) as caught:
        Broadcaster(ServerConfig(**settings), secrets=secrets)
    assert "hunter2" not in str(caught.value)


# -- documents ----------------------------------------------------------------------------------------------------


async def test_the_document_of_the_api_says_who_is_refused_where(site: Broadcaster) -> None:
    async with api_of(site) as api:
        paths = (await api.get("/openapi.json")).json()["paths"]
    for path, operations in paths.items():
        for method, operation in operations.items():
            if "/health/" in path:
                continue
            assert {"401", "403"} <= set(operation["responses"]), (method, path)
            limited = method in ("post", "put") and path in ("/v1/notify", "/v1/subscriptions")
            assert "429" in operation["responses"] or not limited, (method, path)
            if limited:
                assert "Retry-After" in operation["responses"]["429"]["headers"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"sec-fetch-site": "none"}, 200),  # typed into the address bar
        ({"origin": "http://page.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-origin"}, 403),
    ],
)
@pytest.mark.parametrize("proof", ["none", "token"])
async def test_where_nothing_has_to_be_proven_no_web_page_may_do_anything(
    open_broadcaster: OpenBroadcaster, headers: dict[str, str], status: int, proof: str
) -> None:
    nothing = Secrets(Credentials.none(), Credentials.none(), ())
    site = await open_broadcaster(secrets=nothing if proof == "none" else SECRETS)
    if proof == "token":
        # A page that knows a token is one that may.
        headers = headers | {"authorization": f"Bearer {KEYS[0].secret.decode()}"}
        status = 200
    async with api_of(site) as api:
        for answer in (
            await api.get("/v1/subscriptions", headers=headers),
            await api.post("/v1/notify", params={"topic": "t"}, content=b"x", headers=headers),
        ):
            assert answer.status_code == status, answer.text
