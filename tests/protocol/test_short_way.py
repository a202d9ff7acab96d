"""The short way to a proof says yes only where the checks, one by one, say so as well, and with the same proof."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from httppubsubclient.protocol import checks as module
from httppubsubclient.protocol.credentials import (
    Credentials,
    Key,
    Proof,
    sign_request,
    verify_request,
)
from httppubsubclient.protocol.errors import Unauthorized
from httppubsubclient.protocol.explanations import explain_request
from httppubsubclient.protocol.signatures import REQUEST, content_digest, read_own

T = TypeVar("T")
NOW = 1_790_000_000
NONCE = "AAECAwQFBgcICQoLDA0ODw"
HMAC = Credentials("hmac", (Key("old", b"o" * 32, valid_until=NOW + 10), Key("k1", b"n" * 32)))
DIGEST = content_digest(b"\1" * 32)
LINE = {"@method": "POST", "@path": "/v1/notify", "@query": "?topic=t"}


def signed(**headers: str) -> dict[str, str]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    line = {"method": "POST", "path": "/v1/notify", "query": "topic=t"}
    return named | sign_request(HMAC, **line, headers=named, now=NOW, nonce=NONCE)


def short(headers: dict[str, str], now: float = NOW, has_body: bool = True) -> Proof | None:
    must_cover = module.request_must_cover(headers, has_body)
    return module.accepted_at_once(HMAC, must_cover, LINE, headers, now, 300)


def one_by_one(headers: dict[str, str], now: float = NOW, has_body: bool = True) -> Proof | None:
    must_cover = module.request_must_cover(headers, has_body)
    try:
        return module.verify(module.Strict(), HMAC, REQUEST, must_cover, LINE, headers, now, 300)
    except Unauthorized:
        return None


@pytest.mark.parametrize("headers", [{}, {"idempotency_key": "once"}])
@pytest.mark.parametrize("has_body", [True, False])
def test_what_we_sign_goes_the_short_way(headers: dict[str, str], has_body: bool) -> None:
    message = signed(**headers, **({"content_digest": DIGEST} if has_body else {}))
    assert short(message, has_body=has_body) == one_by_one(message, has_body=has_body) == Proof("k1", NONCE, NOW + 300)


@pytest.mark.parametrize("age", [-301, -300, -299, 0, 299, 299.5, 300, 301])
def test_both_know_the_same_time(age: float) -> None:
    headers = signed(content_digest=DIGEST)
    assert short(headers, NOW + age) == one_by_one(headers, NOW + age)


def test_both_know_when_a_key_ends() -> None:
    headers = signed(content_digest=DIGEST)
    headers["signature-input"] = headers["signature-input"].replace("k1", "old")
    assert short(headers) is one_by_one(headers) is None


GOOD = signed(content_digest=DIGEST, idempotency_key="once")
PIECES = st.sampled_from(
    ["0", "1", " ", '"', ";", "=", ":", ",", "\\", "\n", "é", "sig1", "expires=1", "k1", "old", "A="]
)


@settings(max_examples=1500, deadline=None)
@given(
    name=st.sampled_from(["signature-input", "signature", "content-digest", "idempotency-key"]),
    place=st.integers(0, 400),
    removed=st.integers(0, 3),
    put=PIECES,
)
def test_a_changed_message_is_never_accepted_by_the_short_way_alone(
    name: str, place: int, removed: int, put: str
) -> None:
    value = GOOD[name]
    place %= len(value) + 1
    headers = GOOD | {name: value[:place] + put + value[place + removed :]}
    proof = short(headers)
    assert proof is None or proof == one_by_one(headers)


@pytest.mark.parametrize("name", sorted(GOOD))
def test_a_missing_header_is_not_accepted(name: str) -> None:
    headers = {key: value for key, value in GOOD.items() if key != name}
    assert short(headers) is None


@pytest.mark.parametrize(
    "spelling",
    [
        lambda text: text.replace("created=", "created=0"),
        lambda text: text.replace(";created", "; created"),
        lambda text: re.sub(r";created=(\d+)(;.*)", r"\2;created=\1", text),
        lambda text: text.replace("sig1", "mine"),
        lambda text: text + ", " + text.replace("sig1", "sig2"),
    ],
)
def test_other_spellings_are_left_to_the_long_way(spelling: object) -> None:
    assert callable(spelling)
    assert read_own(GOOD | {"signature-input": spelling(GOOD["signature-input"])}) is None


def test_what_the_short_way_accepts_is_explained_as_accepted() -> None:
    def ask(check: Callable[..., T]) -> T:
        line = {"method": "POST", "path": "/v1/notify", "query": "topic=t"}
        return check(HMAC, **line, headers=GOOD, has_body=True, now=NOW, tolerance_seconds=300)

    assert ask(verify_request).key_id == "k1"
    assert all(step.ok for step in ask(explain_request))
