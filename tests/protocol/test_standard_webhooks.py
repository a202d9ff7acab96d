"""Standard Webhooks: known answers, strict verification, and two other implementations, in both directions."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import standardwebhooks
import svix.webhooks
from hypothesis import example, given
from hypothesis import strategies as st

from httppubsubclient.protocol.errors import ConfigurationError, InvalidRequest, PubSubError, Unauthorized
from httppubsubclient.protocol.standard_webhooks import (
    PrivateKey,
    PublicKey,
    SharedSecret,
    Webhook,
    parse_key,
    sign_v1,
    sign_v1a,
    verify,
)

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "standard_webhooks.json").read_text())
SECRET = SharedSecret(bytes(range(32)))
PRIVATE = PrivateKey(bytes(range(32)))
NOW = int(datetime.now(UTC).timestamp())
"""The other implementations have no clock to be given."""


@pytest.fixture(autouse=True)
def of_now() -> None:
    """A run of the whole suite may take longer than a signature is good."""
    global NOW
    NOW = int(datetime.now(UTC).timestamp())


def named(vectors: list[dict[str, Any]]) -> list[Any]:
    return [pytest.param(vector, id=vector["name"]) for vector in vectors]


def verified(vector: dict[str, Any]) -> Webhook:
    keys = [key for text in vector["keys"] if isinstance(key := parse_key(text), SharedSecret | PublicKey)]
    return verify(keys, vector["headers"], vector["body"].encode(), now=vector["now"], tolerance_seconds=300)


@pytest.mark.parametrize("vector", named(VECTORS["sign"]))
def test_what_we_sign_is_the_known_answer(vector: dict[str, Any]) -> None:
    key = parse_key(vector["key"])
    arguments = (vector["id"], vector["timestamp"], vector["body"].encode())
    signature = sign_v1(key, *arguments) if isinstance(key, SharedSecret) else sign_v1a(key, *arguments)  # type: ignore[arg-type]
    assert signature == vector["signature"]


@pytest.mark.parametrize("vector", named(VECTORS["accepted"]))
def test_a_known_webhook_is_accepted(vector: dict[str, Any]) -> None:
    assert verified(vector) == Webhook("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330)


@pytest.mark.parametrize("vector", named(VECTORS["refused"]))
def test_what_does_not_hold_is_refused_with_its_code(vector: dict[str, Any]) -> None:
    with pytest.raises((InvalidRequest, Unauthorized)) as caught:
        verified(vector)
    assert caught.value.code == vector["code"]


@pytest.mark.parametrize("text", VECTORS["refused_keys"], ids=lambda text: ascii(text)[1:24])
def test_a_key_that_is_none_is_refused_without_being_shown(text: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_key(text)
    assert len(text) < 8 or text[6:] not in str(caught.value)


@pytest.mark.parametrize("key", [SECRET, PRIVATE, PRIVATE.public()], ids=lambda key: type(key).__name__)
def test_a_key_survives_a_round_trip_and_a_secret_one_is_not_shown(key: Any) -> None:
    assert parse_key(key.text()) == key
    if not isinstance(key, PublicKey):
        assert "\\x01" not in repr(key)
        assert key.text()[6:] not in repr(key)


@pytest.mark.parametrize("message_id", ["a.b", "", "a b", "é", "x" * 65, "a\n"])
def test_an_id_that_could_not_be_verified_is_not_signed(message_id: str) -> None:
    with pytest.raises(InvalidRequest):
        sign_v1(SECRET, message_id, NOW, b"")
    with pytest.raises(InvalidRequest):
        sign_v1a(PRIVATE, message_id, NOW, b"")


def headers(signature: str, message_id: str = "msg_1") -> dict[str, str]:
    return {"webhook-id": message_id, "webhook-timestamp": str(NOW), "webhook-signature": signature}


@given(st.binary(max_size=100), st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True))
def test_whatever_is_signed_is_accepted(body: bytes, message_id: str) -> None:
    both = headers(f"{sign_v1(SECRET, message_id, NOW, body)} {sign_v1a(PRIVATE, message_id, NOW, body)}", message_id)
    for key in (SECRET, PRIVATE.public()):
        assert verify([key], both, body, now=NOW, tolerance_seconds=1) == Webhook(message_id, NOW)


ENTRIES = st.lists(st.sampled_from(["v1", "v1a", "v2", ",", " ", "AAAA", "=", "A" * 43, "é"]), max_size=10)


@given(st.text(max_size=40), st.text(max_size=20), st.text(max_size=40) | ENTRIES.map("".join), st.binary(max_size=20))
@example("m", str(NOW), "v1a," + "A" * 86 + "==", b"")
def test_random_headers_raise_nothing_but_our_errors(message_id: str, time: str, signature: str, body: bytes) -> None:
    sent = {"webhook-id": message_id, "webhook-timestamp": time, "webhook-signature": signature}
    for changed in (sent, {**headers(signature), "webhook-id": message_id or "m"}):
        with pytest.raises(PubSubError):
            verify([SECRET, PRIVATE.public()], changed, body, now=NOW, tolerance_seconds=300)


@given(st.text(max_size=20) | st.text(max_size=90).map(lambda text: "whsec_" + text))
def test_random_keys_raise_nothing_but_configuration_errors(text: str) -> None:
    with suppress(ConfigurationError):
        parse_key(text)


BODY = '{"hello": "wörld"}'


@pytest.mark.parametrize("package", [standardwebhooks, svix.webhooks], ids=["standardwebhooks", "svix"])
def test_other_implementations_accept_what_we_sign(package: Any) -> None:
    ours = headers(sign_v1(SECRET, "msg_1", NOW, BODY.encode()))
    package.Webhook(SECRET.text()).verify(BODY, ours)
    with pytest.raises(package.WebhookVerificationError):
        package.Webhook(SECRET.text()).verify(BODY + " ", ours)


@pytest.mark.parametrize("package", [standardwebhooks, svix.webhooks], ids=["standardwebhooks", "svix"])
def test_we_accept_what_other_implementations_sign(package: Any) -> None:
    signature = package.Webhook(SECRET.text()).sign("msg_1", datetime.fromtimestamp(NOW, UTC), BODY)
    assert verify([SECRET], headers(signature), BODY.encode(), now=NOW, tolerance_seconds=300).message_id == "msg_1"
