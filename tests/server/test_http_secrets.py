"""Secrets and formats of subscriptions over the HTTP API: told once, never shown, refused with stable codes."""

from __future__ import annotations

import asyncio
import base64
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from httppubsubclient.protocol.credentials import Credentials, Secrets
from httppubsubclient.protocol.errors import ConfigurationError
from httppubsubclient.protocol.keys import Key
from httppubsubclient.protocol.standard_webhooks import PrivateKey, SharedSecret, parse_key
from httppubsubserver.broadcaster import Broadcaster
from httppubsubserver.config import ServerConfig
from tests.server.conftest import OpenBroadcaster, ScriptedOutbound, api_of

URL = "http://127.0.0.1:3002/hook"
KEY = SharedSecret(bytes(range(32)))
OTHER_KEY = SharedSecret(bytes(range(1, 33)))
PRIVATE = PrivateKey(bytes(range(32)))
TOKEN = Secrets(Credentials.none(), Credentials("token", (Key("k", b"the-token-of-all"),), ()), ())


@pytest.fixture
async def broadcaster(open_broadcaster: OpenBroadcaster, tmp_path: Path) -> Broadcaster:
    path = tmp_path / "storage-key"
    path.write_bytes(base64.b64encode(bytes(range(50, 82))))
    path.chmod(0o600)
    return await open_broadcaster(storage_key_file=path)


async def subscribe(api: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    return await api.post("/v1/subscriptions", json={"url": URL, "topic": "t", **fields})


async def test_a_generated_secret_is_in_the_answer_of_that_call_and_nowhere_else(
    api: httpx.AsyncClient, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.DEBUG)
    made = await subscribe(api, secret="generate")
    assert made.status_code == 201
    fields = made.json()
    secret = fields.pop("secret")
    assert isinstance(parse_key(secret), SharedSecret)
    assert fields["signature"] == "v1"
    shown = [
        await subscribe(api),
        await api.get(f"/v1/subscriptions/{fields['id']}"),
        await api.get("/v1/subscriptions", params={"url": URL}),
        await api.put("/v1/subscriptions", params={"url": URL}, json={"subscriptions": [{"topic": "t"}]}),
        await api.delete(f"/v1/subscriptions/{fields['id']}"),
    ]
    assert [answer.status_code for answer in shown] == [200, 200, 200, 200, 204]
    for answer in shown:
        assert "secret" not in answer.text
        assert answer.text == "" or '"signature":"v1"' in answer.text
    raw = base64.b64decode(secret.removeprefix("whsec_"))
    for needle in (secret[6:], raw.hex()):
        assert needle not in caplog.text
    for path in tmp_path.glob("pubsub.sqlite3*"):
        content = path.read_bytes()
        assert raw not in content
        assert secret[6:].encode() not in content


async def test_a_given_secret_is_not_shown_even_in_its_own_answer(
    api: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for key in (KEY, PRIVATE):
        answer = await subscribe(api, topic=type(key).__name__, secret=key.text())
        assert answer.status_code == 201
        assert "secret" not in answer.json()
        assert key.text()[6:] not in answer.text + caplog.text
    assert answer.json()["public_key"] == PRIVATE.public().text()


async def test_of_a_generated_v1a_key_only_the_public_half_is_told(api: httpx.AsyncClient) -> None:
    fields = (await subscribe(api, secret="generate-v1a")).json()
    assert "secret" not in fields
    assert fields["signature"] == "v1a"
    assert fields["public_key"].startswith("whpk_")
    assert (await subscribe(api)).json()["public_key"] == fields["public_key"]


@pytest.mark.parametrize(
    "secret",
    [
        "",
        "hunter2",
        "whsec_" + base64.b64encode(bytes(range(23))).decode(),
        "whsec_" + base64.b64encode(bytes(range(65))).decode(),
        "whsec_" + base64.b64encode(bytes(32)).decode(),
        "whsec_not base64 at all!",
        "whsec_" + "A" * 500,
        PRIVATE.public().text(),
    ],
)
async def test_43_what_is_no_secret_is_refused_at_registration(
    api: httpx.AsyncClient, outbound: ScriptedOutbound, secret: str
) -> None:
    for answer in (
        await subscribe(api, secret=secret),
        await api.put(
            "/v1/subscriptions", params={"url": URL}, json={"subscriptions": [{"topic": "t", "secret": secret}]}
        ),
    ):
        assert answer.status_code == 422
        assert answer.json()["code"] == "invalid_secret"
        assert len(secret) < 10 or secret[6:] not in answer.text
    assert (await api.get("/v1/subscriptions")).json()["subscriptions"] == []
    assert outbound.posts == []


@pytest.mark.parametrize(
    "fields",
    [
        {"secret": 5},
        {"secret": ["generate"]},
        {"secret": "x" * 600},
        {"secret": "generate", "secret_grace_seconds": -1},
        {"secret": "generate", "secret_grace_seconds": 10**9},
        {"secret": "generate", "secret_grace_seconds": "5"},
        {"secret": "generate", "allow_downgrade": "yes"},
        {"secret_grace_seconds": 5},
        {"allow_downgrade": True},
        {"format": "cloudevents"},
        {"format": None},
    ],
)
async def test_members_of_a_wrong_form_are_refused_without_repeating_them(
    api: httpx.AsyncClient, fields: dict[str, Any]
) -> None:
    answer = await subscribe(api, **fields)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    assert "x" * 100 not in answer.text


async def test_70_rotation_is_bounded_and_says_when_it_goes_on(api: httpx.AsyncClient) -> None:
    statuses = []
    for _ in range(20):
        answer = await subscribe(api, secret="generate")
        statuses.append(answer.status_code)
    assert statuses == [201, 200, 200, 200, *[429] * 16]
    assert answer.json()["code"] == "quota_exceeded"
    assert 86_000 < int(answer.headers["retry-after"]) <= 86_400
    assert (await subscribe(api, secret="generate", secret_grace_seconds=0)).status_code == 200


async def test_70_from_v1a_down_to_v1_only_with_consent(api: httpx.AsyncClient) -> None:
    await subscribe(api, secret="generate-v1a")
    for entry in ({"secret": "generate"}, {"secret": KEY.text()}):
        for answer in (
            await subscribe(api, **entry),
            await api.put("/v1/subscriptions", params={"url": URL}, json={"subscriptions": [{"topic": "t", **entry}]}),
        ):
            assert (answer.status_code, answer.json()["code"]) == (422, "invalid_secret")
            assert "allow_downgrade" in answer.json()["detail"]
    [entry] = (await api.get("/v1/subscriptions")).json()["subscriptions"]
    assert entry["signature"] == "v1a"
    answer = await subscribe(api, secret="generate", allow_downgrade=True)
    assert (answer.status_code, answer.json()["signature"]) == (200, "v1")
    assert "public_key" not in answer.json()


async def test_each_of_a_whole_set_gets_its_own_secret(api: httpx.AsyncClient) -> None:
    entries = [{"topic": "a", "secret": "generate"}, {"glob": "b*", "secret": "generate"}, {"topic": "c"}]
    answer = await api.put("/v1/subscriptions", params={"url": URL}, json={"subscriptions": entries})
    first, second, third = answer.json()["subscriptions"]
    assert first["secret"] != second["secret"]
    assert "secret" not in third
    assert "signature" not in third
    again = await api.put("/v1/subscriptions", params={"url": URL}, json={"subscriptions": [{"topic": "a"}]})
    [kept] = again.json()["subscriptions"]
    assert kept["id"] == first["id"]
    assert kept["signature"] == "v1"


async def test_the_tag_of_a_set_changes_with_its_secrets_kind(api: httpx.AsyncClient) -> None:
    first = await subscribe(api)
    second = await subscribe(api, secret="generate")
    third = await subscribe(api, secret="generate-v1a")
    assert len({answer.headers["etag"] for answer in (first, second, third)}) == 3


async def test_fifty_rotations_at_once_leave_one_row_and_no_more_than_four_secrets(
    api: httpx.AsyncClient, broadcaster: Broadcaster
) -> None:
    answers = await asyncio.gather(*(subscribe(api, secret="generate") for _ in range(50)))
    statuses = sorted(answer.status_code for answer in answers)
    assert statuses == [200, 200, 200, 201, *[429] * 46]
    page = await broadcaster.subscriptions()
    [subscription] = page.subscriptions
    assert subscription.sealed is not None
    keys = broadcaster.subscription_secrets.signing_keys(subscription.id, subscription.sealed)
    told = {answer.json()["secret"] for answer in answers if answer.status_code < 400}
    assert {key.text() for key in keys} == told


async def test_without_a_storage_key_the_answer_says_what_the_operator_has_to_set(
    open_broadcaster: OpenBroadcaster,
) -> None:
    async with api_of(await open_broadcaster()) as api:
        answer = await subscribe(api, secret="generate")
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
        assert "storage_key_file" in answer.json()["detail"]
        assert (await subscribe(api, format="cloudevents-structured")).status_code == 201


async def test_a_storage_key_file_that_is_wrong_stops_the_start(
    open_broadcaster: OpenBroadcaster, tmp_path: Path
) -> None:
    path = tmp_path / "wrong"
    path.write_text("hunter2\n")
    with pytest.raises(ConfigurationError, match="is not the padded base64") as caught:
        await open_broadcaster(storage_key_file=path)
    assert "hunter2" not in str(caught.value)


# -- the token that all share -----------------------------------------------------------------------------------------


@pytest.fixture
async def strangers(open_broadcaster: OpenBroadcaster, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """With a token for all subscribers, and callbacks anywhere."""
    path = tmp_path / "storage-key"
    path.write_bytes(base64.b64encode(bytes(range(50, 82))))
    path.chmod(0o600)
    broadcaster = await open_broadcaster(
        secrets=TOKEN, storage_key_file=path, callback_networks=("public", "loopback"), verify_callbacks="never"
    )
    async with api_of(broadcaster) as api:
        yield api


async def test_who_may_be_a_stranger_has_to_have_a_secret_and_never_sees_the_token(
    strangers: httpx.AsyncClient, outbound: ScriptedOutbound
) -> None:
    stranger = {"url": "https://partner.example/hook", "topic": "t"}
    whole_set: dict[str, Any] = {"params": {"url": stranger["url"]}, "json": {"subscriptions": [{"topic": "t"}]}}
    for answer in (
        await strangers.post("/v1/subscriptions", json=stranger),
        await strangers.put("/v1/subscriptions", **whole_set),
    ):
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
        assert '"secret": "generate"' in answer.json()["detail"]
    assert (await subscribe(strangers)).status_code == 201  # at 127.0.0.1
    made = await strangers.post("/v1/subscriptions", json={**stranger, "secret": "generate"})
    assert made.status_code == 201
    for answer in (
        await strangers.post("/v1/subscriptions", json=stranger),
        await strangers.put("/v1/subscriptions", **whole_set),
    ):
        assert answer.status_code == 200, "a renewal keeps what it has"
    await strangers.post("/v1/notify", params={"topic": "t"}, content=b"data")
    proofs = {post.url: sorted({"authorization", "webhook-signature"} & set(post.headers)) for post in outbound.posts}
    assert proofs == {"https://partner.example/hook": ["webhook-signature"], URL: ["authorization"]}


HMAC = Secrets(Credentials.none(), Credentials("hmac", (Key("k", bytes(range(32))),)), ())
KINDS: tuple[dict[str, Any], ...] = ({}, {"format": "cloudevents-binary"}, {"format": "cloudevents-structured"})


@pytest.mark.parametrize(
    ("before", "networks_before"), [(HMAC, ("public", "loopback")), (TOKEN, ("loopback", "private"))]
)
async def test_59_no_change_of_the_settings_hands_the_token_to_strangers(
    tmp_path: Path,
    outbound: ScriptedOutbound,
    before: Secrets,
    networks_before: tuple[str, ...],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What was subscribed when others could be called, or when they had another proof."""

    @asynccontextmanager
    async def opened(secrets: Secrets, *networks: str) -> AsyncIterator[httpx.AsyncClient]:
        path = tmp_path / "storage-key"
        path.write_bytes(base64.b64encode(bytes(range(50, 82))))
        path.chmod(0o600)
        config = ServerConfig(
            db=f"sqlite:///{tmp_path}/pubsub.sqlite3",
            storage_key_file=path,
            callback_networks=networks,
            verify_callbacks="never",
            shutdown_timeout_seconds=0.1,
        )
        async with Broadcaster(config, secrets=secrets, outbound=outbound) as broadcaster, api_of(broadcaster) as api:
            yield api

    async def made(api: httpx.AsyncClient, url: str, **fields: Any) -> None:
        answer = await api.post("/v1/subscriptions", json={"url": url, "topic": "t", **fields})
        assert answer.status_code in (200, 201), answer.text

    stranger = "https://partner.example/hook"
    async with opened(before, *networks_before) as api:
        for number, fields in enumerate(KINDS):
            for url in (stranger, URL):
                await made(api, f"{url}#{number}", **fields)
                await made(api, f"{url}#durable{number}", delivery="durable", **fields)
    async with opened(TOKEN, "public", "loopback") as api:
        sent = (await api.post("/v1/notify", params={"topic": "t"}, content=b"data")).json()
        assert (sent["matched"], sent["failed"]) == (12, 3)
        await outbound.until(lambda: len(outbound.posts) == 6)
        assert {post.url for post in outbound.posts} == {URL}
        assert "needs_secret" in caplog.text

        async def errors() -> list[str]:
            shown = (await api.get(f"/v1/messages/{sent['message_id']}")).json()["deliveries"]
            return [attempt["error"] for each in shown for attempt in each["failed_attempts"]]

        async with asyncio.timeout(10):
            while len(await errors()) < 3:
                await asyncio.sleep(0.005)
        assert await errors() == ["needs_secret"] * 3
        for number, fields in enumerate(KINDS):
            await made(api, f"{stranger}#durable{number}", delivery="durable", secret="generate", resume=True, **fields)
        await outbound.until(lambda: len(outbound.posts) == 9)
        for post in outbound.posts[6:]:
            assert post.url == stranger
            assert {"webhook-signature", "authorization"} & set(post.headers) == {"webhook-signature"}
