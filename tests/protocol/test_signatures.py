"""RFC 9421 signatures and Content-Digest: syntax and arithmetic, known answers, and another implementation."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from http_message_signatures import HTTPMessageSigner, HTTPMessageVerifier, HTTPSignatureKeyResolver, algorithms
from hypothesis import given
from hypothesis import strategies as st

from httppubsubclient.protocol.credentials import (
    Credentials,
    Key,
    sign_delivery,
    sign_request,
    verify_delivery,
    verify_request,
)
from httppubsubclient.protocol.errors import InvalidRequest, PubSubError, Unauthorized
from httppubsubclient.protocol.messages import Notification, delivery_headers
from httppubsubclient.protocol.signatures import (
    DELIVERY,
    REQUEST,
    content_digest,
    parse_content_digest,
    parse_signatures,
    sign,
    signature_base,
)

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "signatures.json").read_text())
CREDENTIALS = Credentials("hmac", tuple(Key(key["id"], base64.b64decode(key["secret_b64"])) for key in VECTORS["keys"]))
NONCE = "AAECAwQFBgcICQoLDA0ODw"


def named(vectors: list[dict[str, Any]]) -> list[Any]:
    return [pytest.param(vector, id=vector["name"]) for vector in vectors]


def verified(vector: dict[str, Any], now: float) -> Any:
    headers = {
        **vector["headers"],
        "signature-input": vector["signature_input"],
        "signature": vector["signature"],
    }
    if vector["profile"] == "delivery":
        return verify_delivery(CREDENTIALS, method=vector["method"], headers=headers, now=now, tolerance_seconds=300)
    return verify_request(
        CREDENTIALS,
        method=vector["method"],
        path=vector["path"],
        query=vector["query"],
        headers=headers,
        has_body=bool(vector["body"]),
        now=now,
        tolerance_seconds=300,
    )


@pytest.mark.parametrize("vector", named(VECTORS["accepted"]))
def test_what_we_sign_is_byte_for_byte_the_known_answer(vector: dict[str, Any]) -> None:
    credentials = Credentials("hmac", (next(key for key in CREDENTIALS.keys if key.id == vector["key_id"]),))
    common = {"headers": vector["headers"], "now": vector["created"], "nonce": vector["nonce"]}
    if vector["profile"] == "delivery":
        signed = sign_delivery(credentials, **common)
    else:
        line = {name: vector[name] for name in ("method", "path", "query")}
        signed = sign_request(credentials, **line, **common)
    assert signed == {"signature-input": vector["signature_input"], "signature": vector["signature"]}


@pytest.mark.parametrize("vector", named(VECTORS["accepted"]))
def test_a_known_signature_is_accepted(vector: dict[str, Any]) -> None:
    proof = verified(vector, vector["created"])
    assert (proof.key_id, proof.nonce) == (vector["key_id"], vector["nonce"])
    assert proof.replay_until == vector["created"] + 300


@pytest.mark.parametrize("vector", named(VECTORS["accepted"]))
def test_any_single_change_of_what_is_signed_is_refused(vector: dict[str, Any]) -> None:
    changed = [{**vector, "method": vector["method"] + "X"}]
    if vector["profile"] == "request":
        changed += [{**vector, "path": vector["path"] + "/x"}, {**vector, "query": vector["query"] + "&"}]
    for name in ("content-digest", "idempotency-key", *DELIVERY.always[1:]):
        if name in vector["headers"]:
            covered = f'"{name}"' in vector["signature_input"]
            value = vector["headers"][name]
            assert covered
            changed.append({**vector, "headers": {**vector["headers"], name: "x" + value}})
            changed.append({**vector, "headers": {**vector["headers"], name: f"{value}, {value}"}})
    for message in changed:
        with pytest.raises(Unauthorized) as caught:
            verified(message, vector["created"])
        assert caught.value.reason == "mismatch"


@pytest.mark.parametrize("vector", named(VECTORS["refused"]))
def test_a_signature_that_does_not_hold_is_refused_for_its_reason(vector: dict[str, Any]) -> None:
    with pytest.raises(Unauthorized) as caught:
        verified(vector, vector["now"])
    assert caught.value.reason == vector["reason"]


def test_the_example_of_the_rfc_has_its_base_and_its_signature() -> None:
    """RFC 9421 appendix B.2.5."""
    secret = base64.b64decode(
        "uzvJfB4u3N0Jy4T7NZ75MDVcr8zSTInedJtkgcu46YW4XByzNJjxBdtjUkdJPBtbmHhIDi6pcl8jsasjlTMtDQ=="
    )
    base = signature_base(
        ("date", "@authority", "content-type"),
        ("Tue, 20 Apr 2021 02:07:55 GMT", "example.com", "application/json"),
        '("date" "@authority" "content-type");created=1618884473;keyid="test-shared-secret"',
    )
    assert base is not None
    signature = base64.b64encode(hmac.digest(secret, base, "sha256"))
    assert signature == b"pxcQw6G3AjtMBQjwo8XzkZf/bws5LelbaMk5rGIGtE8="


@pytest.mark.parametrize("digest", VECTORS["content_digests"]["accepted"], ids=lambda digest: digest["value"][:30])
def test_a_content_digest_gives_its_sha256(digest: dict[str, str]) -> None:
    assert parse_content_digest(digest["value"]).hex() == digest["sha256_hex"]


@pytest.mark.parametrize("value", [*VECTORS["content_digests"]["refused"], "x=:AA==:, " * 200])
def test_a_content_digest_that_is_none_is_refused(value: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_content_digest(value)


@given(st.binary(max_size=64))
def test_a_content_digest_survives_a_round_trip(body: bytes) -> None:
    sha256 = hashlib.sha256(body).digest()
    assert parse_content_digest(content_digest(sha256)) == sha256


@pytest.mark.parametrize("header", ["topic\nx", "a\rb", "a\r\n", "é", "\udc80", 'a\n"@path": /x'])
def test_what_is_not_one_line_of_ascii_cannot_be_signed(header: str) -> None:
    with pytest.raises(InvalidRequest, match="one line of ASCII"):
        sign(("idempotency-key",), (header,), key_id="k", secret=b"s", created=1, nonce=NONCE)


@pytest.mark.parametrize(("key_id", "nonce"), [('k"', NONCE), ("k", 'n"'), ("k\\", NONCE), ("", NONCE), ("k", "a b")])
def test_quotes_do_not_get_into_the_parameters(key_id: str, nonce: str) -> None:
    with pytest.raises(InvalidRequest, match="without quotes"):
        sign(("@method",), ("GET",), key_id=key_id, secret=b"s", created=1, nonce=nonce)


def test_white_space_between_the_parts_of_signature_input_changes_nothing() -> None:
    vector = VECTORS["accepted"][0]
    text = vector["signature_input"].replace('("', '(  "').replace('" "', '"   "').replace(";", ";  ")
    assert verified({**vector, "signature_input": f"  {text}\t"}, vector["created"]).nonce == vector["nonce"]


def test_of_several_signatures_one_that_holds_is_enough() -> None:
    vector = VECTORS["accepted"][0]
    other = vector["signature_input"].replace("sig1", "proxy").replace('keyid="k1"', 'keyid="proxy"')
    inputs = f"{other}, {vector['signature_input']}"
    signatures = f"{vector['signature'].replace('sig1', 'proxy')},{vector['signature']}"
    both = {**vector, "signature_input": inputs, "signature": signatures}
    assert verified(both, vector["created"]).key_id == "k1"
    with pytest.raises(Unauthorized, match=r"none of the 2 signatures .* proxy: .* sig1: "):
        verified({**both, "query": "topic=x"}, vector["created"])


def test_more_than_four_signatures_are_refused_unread() -> None:
    vector = VECTORS["accepted"][0]
    labels = [f"s{number}" for number in range(5)]
    headers = {
        "signature-input": ", ".join(vector["signature_input"].replace("sig1", label) for label in labels),
        "signature": ", ".join(vector["signature"].replace("sig1", label) for label in labels),
    }
    with pytest.raises(Unauthorized, match="more than 4"):
        parse_signatures(headers)
    with pytest.raises(Unauthorized, match="more than 4096"):
        parse_signatures({**headers, "signature": "s=:AAAA:" + " " * 4096 + ","})


@pytest.mark.parametrize(
    "text",
    [
        "sig1=(" + " " * 4000,
        'sig1=("a"' + " " * 4000 + "x",
        'sig1=("' + "a" * 4000,
        "sig1=()" + "; " * 2000,
        "sig1=()" + ";a=1" * 1000 + "x",
        'sig1=();n="' + "\\" * 4000,
        'sig1=();n="' + '\\"' * 2000,
        "a" * 4096,
        "sig1=()," * 500,
        "s=:" + "=" * 4000,
    ],
    ids=lambda text: text[:16],
)
def test_hostile_headers_end_in_linear_time(text: str) -> None:
    """A form that backtracks would take minutes, and the test run with it."""
    for headers in ({"signature-input": text, "signature": "sig1=:AAAA:"}, {"signature-input": "x", "signature": text}):
        with pytest.raises(Unauthorized):
            parse_signatures(headers)


PIECES = [
    "sig1", "=", "(", ")", '"@method"', '"@path"', '"@query"', ";created=1", ';nonce="0123456789abcdef"', ';keyid="k1"',
    ';alg="hmac-sha256"', ";expires=9", ',"', "\\", ":AAAA:", ", ", "sig2", "é", "-", ";", " ",
]  # fmt: skip
SHAPED = st.lists(st.sampled_from(PIECES), max_size=16).map("".join)


@given(st.text(max_size=60) | SHAPED, st.text(max_size=60) | SHAPED, st.text(max_size=30))
def test_random_headers_raise_nothing_but_our_errors(inputs: str, signatures: str, other: str) -> None:
    headers = {"signature-input": inputs, "signature": signatures, "content-digest": other, "idempotency-key": other}
    with pytest.raises(PubSubError):
        verified({**VECTORS["accepted"][0], "headers": headers, "signature_input": inputs, "signature": signatures}, 1)
    with suppress(PubSubError):
        parse_content_digest(inputs)


@given(st.dictionaries(st.sampled_from([*REQUEST.when_sent, *DELIVERY.always[1:]]), st.text(max_size=20)), st.text())
def test_whatever_can_be_signed_is_accepted(headers: dict[str, str], query: str) -> None:
    key = Credentials("hmac", CREDENTIALS.keys[:1])
    try:
        signed = sign_request(key, method="POST", path="/p", query=query, headers=headers, now=1000, nonce=NONCE)
    except PubSubError:
        return
    proof = verify_request(
        key,
        method="POST",
        path="/p",
        query=query,
        headers={**headers, **signed},
        has_body=False,
        now=1000,
        tolerance_seconds=1,
    )
    assert proof.nonce == NONCE


# The package http-message-signatures, both directions, both profiles.


@dataclass
class Message:
    method: str
    url: str
    headers: dict[str, str]


class Resolver(HTTPSignatureKeyResolver):
    def resolve_public_key(self, key_id: str) -> bytes:
        key = CREDENTIALS.key(key_id)
        assert key is not None
        return key.secret

    resolve_private_key = resolve_public_key


NOW = int(datetime.now(UTC).timestamp())
"""The package has no clock to be given."""


@pytest.fixture(autouse=True)
def of_now() -> None:
    """A run of the whole suite may take longer than a signature is good."""
    global NOW
    NOW = int(datetime.now(UTC).timestamp())


REQUESTS = [
    ("POST", "/v1/notify", "topic=foo/bar", b"data", {}),
    ("POST", "/v1/notify", "topic=a%20b&x=%2F", b"data", {"idempotency-key": "order 17"}),
    ("GET", "/pubsub/v1/subscriptions", "", b"", {}),
    ("GET", "", "", b"", {}),
    ("DELETE", "/v1/subscriptions/s%20x", "", b"", {}),
    ("PUT", "/v1/subscriptions", "url=http%3A%2F%2Fh%2F%23a", b"{}", {}),
]


def digested(headers: dict[str, str], body: bytes) -> dict[str, str]:
    return {**headers, "content-digest": content_digest(hashlib.sha256(body).digest())} if body else dict(headers)


def delivery(body: bytes) -> dict[str, str]:
    sha256 = hashlib.sha256(body).digest()
    notification = Notification("msg_1", "café/x".encode(), "text/plain", sha256, len(body))
    headers = delivery_headers(notification, "sub_1", attempt=2, timestamp=NOW, fragment="a")
    return {**headers, "content-digest": content_digest(sha256)}


@pytest.mark.parametrize(("method", "path", "query", "body", "headers"), REQUESTS)
def test_http_message_signatures_accepts_our_requests(
    method: str, path: str, query: str, body: bytes, headers: dict[str, str]
) -> None:
    headers = digested(headers, body)
    line = {"method": method, "path": path, "query": query}
    signed = sign_request(CREDENTIALS, **line, headers=headers, now=NOW, nonce=NONCE)
    url = f"http://host:3003{path}" + (f"?{query}" if query else "")
    verifier = HTTPMessageVerifier(signature_algorithm=algorithms.HMAC_SHA256, key_resolver=Resolver())
    [result] = verifier.verify(Message(method, url, {**headers, **signed}), max_age=None)
    assert set(result.covered_components) >= {'"@method"', '"@path"', '"@query"'}
    assert result.parameters["nonce"] == NONCE


@pytest.mark.parametrize(("method", "path", "query", "body", "headers"), REQUESTS)
def test_we_accept_the_requests_of_http_message_signatures(
    method: str, path: str, query: str, body: bytes, headers: dict[str, str]
) -> None:
    headers = digested(headers, body)
    message = Message(method, f"http://host:3003{path}" + (f"?{query}" if query else ""), headers)
    covered = ["@query", "@method", "@path", *headers]
    signer = HTTPMessageSigner(signature_algorithm=algorithms.HMAC_SHA256, key_resolver=Resolver())
    signer.sign(
        message,
        key_id="k1",
        covered_component_ids=covered,
        nonce=NONCE,
        tag="app",
        created=datetime.fromtimestamp(NOW, UTC),
        expires=datetime.fromtimestamp(NOW + 60, UTC),
        use_existing_digest=bool(body),
    )
    arrived = {name.lower(): value for name, value in message.headers.items()}
    assert arrived["signature"].startswith("pyhms=")
    line: dict[str, Any] = {"method": method, "path": path, "query": query}
    line |= {"headers": arrived, "has_body": bool(body)}
    proof = verify_request(CREDENTIALS, **line, now=NOW + 59, tolerance_seconds=300)
    assert (proof.key_id, proof.nonce, proof.replay_until) == ("k1", NONCE, NOW + 300)
    with pytest.raises(Unauthorized, match="expired"):
        verify_request(CREDENTIALS, **line, now=NOW + 60, tolerance_seconds=300)


@pytest.mark.parametrize("body", [b"", b"data"])
def test_http_message_signatures_accepts_our_deliveries(body: bytes) -> None:
    headers = delivery(body)
    headers |= sign_delivery(CREDENTIALS, headers=headers, now=NOW, nonce=NONCE)
    verifier = HTTPMessageVerifier(signature_algorithm=algorithms.HMAC_SHA256, key_resolver=Resolver())
    message = Message("POST", "http://anywhere/behind/a/proxy", headers)
    [result] = verifier.verify(message, max_age=None, require_components=DELIVERY.always, body=body)
    assert result.parameters["keyid"] == CREDENTIALS.keys[-1].id


@pytest.mark.parametrize("body", [b"", b"data"])
def test_we_accept_the_deliveries_of_http_message_signatures(body: bytes) -> None:
    message = Message("POST", "http://host:3002/v1/receive", delivery(body))
    signer = HTTPMessageSigner(signature_algorithm=algorithms.HMAC_SHA256, key_resolver=Resolver())
    covered = DELIVERY.always
    signer.sign(
        message, key_id="k1", covered_component_ids=covered, nonce=NONCE, label="other", use_existing_digest=True
    )
    arrived = {name.lower(): value for name, value in message.headers.items()}
    assert verify_delivery(CREDENTIALS, method="POST", headers=arrived, now=NOW, tolerance_seconds=300).key_id == "k1"
    arrived["pubsub-topic"] = "other"
    with pytest.raises(Unauthorized, match="does not hold"):
        verify_delivery(CREDENTIALS, method="POST", headers=arrived, now=NOW, tolerance_seconds=300)
