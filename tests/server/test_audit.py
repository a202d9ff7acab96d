"""The audit log: a line for each change, with who and what, and none for what changes nothing."""

from __future__ import annotations

import base64
import json
import logging
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from httppubsubclient.protocol.credentials import Credentials, Key, Secrets
from httppubsubclient.protocol.messages import SubscribeRequest
from httppubsubclient.protocol.patterns import Pattern
from httppubsubclient.protocol.permissions import Permissions
from httppubsubclient.protocol.standard_webhooks import SharedSecret
from httppubsubserver.broadcaster import Broadcaster
from tests.server.conftest import OpenBroadcaster, ScriptedOutbound, api_of
from tests.server.issuer import AUDIENCE, ISSUER, jwk, jwks, token

URL = "http://127.0.0.1:2001/v1/receive"
DOCS = Path(__file__).parent.parent.parent / "docs" / "security.md"
KEYS = (
    Key("old", b"token-of-old" + b"x" * 24, owner="partner"),
    Key("new", b"token-of-new" + b"x" * 24, owner="partner"),
    Key("boss-1", b"token-of-boss" + b"x" * 24, owner="boss", permissions=Permissions(admin=True)),
)
SECRETS = Secrets(Credentials("token", KEYS), Credentials.none(), ())
SECRET, OTHER = SharedSecret(bytes(range(32))).text(), SharedSecret(bytes(range(1, 33))).text()
TOKEN: Any = {"exp": 2**40, "sub": "p", "httppubsub": {"publish": ["**"], "subscribe": ["**"]}}
As = Callable[[str], httpx.AsyncClient]
Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
async def site(open_broadcaster: OpenBroadcaster, tmp_path: Path) -> Broadcaster:
    (tmp_path / "jwks.json").write_bytes(jwks(jwk("P-256", "k1")))
    storage_key = tmp_path / "storage-key"
    storage_key.write_bytes(base64.b64encode(bytes(range(50, 82))))
    storage_key.chmod(0o600)
    return await open_broadcaster(
        secrets=SECRETS,
        storage_key_file=storage_key,
        jwt_issuer=ISSUER,
        jwt_audience=AUDIENCE,
        jwks_file=tmp_path / "jwks.json",
    )


@pytest.fixture
async def who(site: Broadcaster) -> AsyncIterator[As]:
    """An HTTP client with the key of this name, or with this bearer token."""
    secrets = {key.id: key.secret.decode() for key in KEYS}
    async with AsyncExitStack() as stack:
        clients: list[httpx.AsyncClient] = []

        def of(name: str) -> httpx.AsyncClient:
            clients.append(api_of(site))
            stack.push_async_callback(clients[-1].aclose)
            clients[-1].headers["authorization"] = f"Bearer {secrets.get(name, name)}"
            return clients[-1]

        yield of


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Lines:
    """The lines since the call before."""
    caplog.set_level(logging.INFO, "httppubsub.audit")

    def since() -> list[dict[str, Any]]:
        found = [json.loads(each.message) for each in caplog.records if each.name == "httppubsub.audit"]
        for secret in (SECRET, OTHER):
            assert secret not in caplog.text
        caplog.clear()
        return [line for line in found if line["action"] != "keys_loaded"]

    return since


async def post(api: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    answer = await api.post("/v1/subscriptions", json={"url": URL, "glob": "a/*", **fields})
    assert answer.status_code in (200, 201), answer.text
    subscription: dict[str, Any] = answer.json()
    return subscription


async def put(api: httpx.AsyncClient, *subscriptions: dict[str, Any]) -> None:
    answer = await api.put("/v1/subscriptions", params={"url": URL}, json={"subscriptions": subscriptions})
    assert answer.status_code == 200, answer.text


async def test_a_new_subscription_has_one_line_and_a_renewal_none(who: As, lines: Lines) -> None:
    made = await post(who("old"))
    assert lines() == [
        {
            "action": "subscribed",
            "by": "partner",
            "key": "old",
            "subscription": made["id"],
            "url": URL,
            "pattern": "glob='a/*'",
            "owner": "partner",
            "delivery": "best_effort",
            "ordered": False,
            "retry_schedule_seconds": None,
            "format": "raw",
            "permanent": False,
            "signature": None,
            "expires": made["expires_at"],
        }
    ]
    await post(who("new"), lease_seconds=7)
    await put(who("new"), {"glob": "a/*"})
    assert lines() == []


@pytest.mark.parametrize("by_put", [False, True])
async def test_other_options_are_a_change_that_tells_what_was(who: As, lines: Lines, by_put: bool) -> None:
    async def subscribe(**fields: Any) -> None:
        if by_put:
            await put(who("boss-1"), {"glob": "a/*", **fields})
        else:
            await post(who("boss-1"), **fields)

    options: dict[str, Any] = {}
    await subscribe()
    lines()
    for name, value, was in (
        ("format", "cloudevents-structured", "raw"),
        ("delivery", "durable", "best_effort"),
        ("ordered", True, False),
        ("retry_schedule_seconds", [1.0, 2.0], None),
        ("permanent", True, False),
    ):
        options[name] = value
        await subscribe(**options)
        [line] = lines()
        assert (line["action"], line["by"], line["key"]) == ("changed", "boss", "boss-1")
        assert (line[name], line["was"]) == (value, {name: was})
        await subscribe(**options)
        assert lines() == []
    await subscribe()
    [line] = lines()
    assert sorted(line["was"]) == sorted(options)


@pytest.mark.parametrize("by_put", [False, True])
async def test_a_secret_has_a_line_when_it_is_another_one(who: As, lines: Lines, by_put: bool) -> None:
    async def subscribe(**fields: Any) -> None:
        if by_put:
            await put(who("old"), {"glob": "a/*", **fields})
        else:
            await post(who("old"), **fields)

    await subscribe(secret=SECRET)
    assert [(line["action"], line["signature"]) for line in lines()] == [("subscribed", "v1"), ("secret_given", "v1")]
    await subscribe(secret=SECRET)
    await subscribe()
    assert lines() == []
    await subscribe(secret=OTHER)
    await subscribe(secret="generate-v1a")
    assert [(line["action"], line["signature"]) for line in lines()] == [
        ("secret_given", "v1"),
        ("secret_given", "v1a"),
    ]


async def test_a_set_has_a_line_for_each_that_comes_and_goes(who: As, lines: Lines) -> None:
    many = [{"glob": f"{n}/*"} for n in range(250)]
    await put(who("old"), {"glob": "a/*"}, *many)
    assert [(line["action"], line["pattern"]) for line in lines()] == [
        ("subscribed", f"glob='{name}/*'") for name in ("a", *range(250))
    ]
    await put(who("new"), {"topic": "t"}, {"glob": "a/*", "format": "cloudevents-binary"})
    found = lines()
    assert {(line["by"], line["key"], line["url"]) for line in found} == {("partner", "new", URL)}
    assert [line["action"] for line in found] == ["unsubscribed"] * 250 + ["subscribed", "changed"]
    assert {line["pattern"] for line in found[:250]} == {f"glob='{n}/*'" for n in range(250)}
    assert found[-1]["was"] == {"format": "raw"}


async def test_by_is_the_owner_and_the_key_has_a_member_of_its_own(
    who: As, site: Broadcaster, outbound: ScriptedOutbound, lines: Lines
) -> None:
    first = await post(who("old"), delivery="durable")
    assert (await who("new").delete(f"/v1/subscriptions/{first['id']}")).status_code == 204
    second = await post(who("old"), delivery="durable")
    sent = await who("new").post("/v1/notify?topic=a/b", content=b"", headers={"pubsub-deliver-at": "3600"})
    assert (await who("old").delete(f"/v1/messages/{sent.json()['message_id']}")).json() == {"cancelled": 1}
    replay = {"subscription_id": second["id"]}
    assert (await who("new").post("/v1/deliveries/replay", json=replay)).status_code == 202
    assert (await who("boss-1").delete(f"/v1/subscriptions/{second['id']}")).status_code == 204
    third = await post(who(token(**TOKEN)), glob="b/*")
    assert (await who(token(**TOKEN)).delete(f"/v1/subscriptions/{third['id']}")).status_code == 204
    fourth, _ = await site.subscribe(SubscribeRequest(URL, Pattern.glob("c/*"), 60))
    await post(who("new"), glob="c/*")
    found = lines()
    assert [(line["action"], line["by"], line.get("key"), line.get("owner")) for line in found] == [
        ("subscribed", "partner", "old", "partner"),
        ("unsubscribed", "partner", "new", "partner"),
        ("subscribed", "partner", "old", "partner"),
        ("called_off", "partner", "old", None),
        ("replayed", "partner", "new", None),
        ("unsubscribed", "boss", "boss-1", "partner"),
        ("subscribed", "jwt:p", None, "jwt:p"),
        ("unsubscribed", "jwt:p", None, "jwt:p"),
        ("subscribed", None, None, None),
        ("changed", "partner", "new", "partner"),
    ]
    assert found[-1]["was"] == {"owner": None}
    assert found[-1]["subscription"] == fourth.id


async def test_a_callback_that_answers_410_has_removed_it_itself(
    who: As, site: Broadcaster, outbound: ScriptedOutbound, lines: Lines
) -> None:
    made = await post(who("old"))
    outbound.replies(URL, 410)
    lines()
    await who("old").post("/v1/notify?topic=a/b", content=b"")
    await site.drained()
    [line] = lines()
    assert (line["action"], line["by"], "key" in line) == ("unsubscribed", "410", False)
    assert (line["subscription"], line["owner"], line["url"]) == (made["id"], "partner", URL)


async def test_what_was_refused_has_no_line(who: As, lines: Lines) -> None:
    await post(who("boss-1"))
    lines()
    for sent in ({"glob": "a/*"}, {"glob": "["}):
        assert (await who("old").post("/v1/subscriptions", json={"url": URL, **sent})).status_code in (403, 422)
    wanted = {"subscriptions": [{"glob": "b/*"}, {"glob": "a/*"}]}
    assert (await who("old").put("/v1/subscriptions", params={"url": URL}, json=wanted)).status_code == 403
    assert lines() == []


async def test_operators_read_of_every_action_and_member(who: As, lines: Lines) -> None:
    await post(who("old"), secret=SECRET)
    await post(who("old"), format="cloudevents-binary")
    await put(who("old"))
    words = set(re.findall(r"`([a-z0-9_]+)`", DOCS.read_text().partition("## The audit log")[2].partition("\n## ")[0]))
    found = lines()
    assert {line["action"] for line in found} == {"subscribed", "secret_given", "changed", "unsubscribed"}
    assert {word for line in found for word in (line["action"], *line)} - words == set()
