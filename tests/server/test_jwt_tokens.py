"""jwt_tokens.py: a token counts when all of it is right, says who somebody is and what he may do, and nothing else."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import sys
import types
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from httppubsubclient.protocol.errors import ConfigurationError, Forbidden, Unauthorized
from httppubsubclient.protocol.permissions import Permissions, Quotas
from httppubsubserver.jwt_keys import IssuerKeys, PublicKey, read_jwks
from httppubsubserver.jwt_tokens import JwtTokens, TokenHolder, looks_like_jwt
from tests.server.issuer import AUDIENCE, ISSUER, NOW, jwk, jwks, private_key, raw_token, token

KEYS = jwks(jwk("P-256", "k1"), jwk("RSA-2048", "r1"), jwk("Ed25519", "e1"), jwk("P-384", "p3"), jwk("P-521", "p5"))


def keys_of(text: bytes = KEYS) -> IssuerKeys:
    """Keys that never change."""
    keys = read_jwks(text)

    async def look() -> tuple[PublicKey, ...]:
        return keys

    return IssuerKeys(look, keys)


def tokens_of(keys: bytes = KEYS, now: float = NOW) -> JwtTokens:
    return JwtTokens(issuer=ISSUER, audience=AUDIENCE, keys=keys_of(keys), clock=lambda: now)


async def holder(text: str, **options: Any) -> TokenHolder:
    return await tokens_of(**options).holder(text)


async def refusal(text: str, **options: Any) -> str | None:
    with pytest.raises(Unauthorized) as caught:
        await holder(text, **options)
    for part in text.split("."):
        assert len(part) < 8 or part not in str(caught.value)
    return caught.value.reason


@pytest.mark.parametrize(
    ("kind", "algorithm", "kid"),
    [
        ("P-256", "ES256", "k1"),
        ("P-384", "ES384", "p3"),
        ("P-521", "ES512", "p5"),
        ("Ed25519", "EdDSA", "e1"),
        *(("RSA-2048", algorithm, "r1") for algorithm in ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")),
    ],
)
async def test_a_good_token_says_who_and_what(kind: str, algorithm: str, kid: str) -> None:
    claim = {"publish": ["a/**"], "subscribe": ["b"], "admin": True, "quotas": {"subscriptions": 2}}
    assert await holder(token(kind, algorithm, kid=kid, httppubsub=claim)) == (
        "jwt:alice",
        Permissions(("a/**",), ("b",), True, Quotas(2)),
    )


async def test_what_the_claim_leaves_out_is_not_permitted() -> None:
    assert (await holder(token(httppubsub={}))).permissions == Permissions((), ())
    assert (await holder(token(httppubsub={"publish": ["a"]}))).permissions == Permissions(("a",), ())


@pytest.mark.parametrize(
    "claim",
    [
        ...,
        None,
        [],
        "publish",
        True,
        {"publish": "**"},
        {"publish": None},
        {"subscribe": ["[a"]},
        {"admin": "yes"},
        {"quotas": {"subscriptions": -1}},
        {"valid_until": NOW},
        {"id": "x"},
        {"secret": "x"},
        {"Publish": ["**"]},
    ],
)
async def test_a_token_without_permissions_that_can_be_read_may_do_nothing(claim: Any) -> None:
    with pytest.raises(Forbidden):
        await holder(token(httppubsub=claim))


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"exp": ...}, "malformed"),
        ({"exp": NOW}, "expired"),
        ({"exp": NOW - 1}, "expired"),
        ({"exp": 0}, "expired"),
        ({"exp": -1}, "malformed"),
        ({"exp": 10**400}, "malformed"),
        ({"exp": True}, "malformed"),
        ({"exp": str(NOW + 300)}, "malformed"),
        ({"exp": None}, "malformed"),
        ({"exp": [NOW + 300]}, "malformed"),
        ({"nbf": NOW + 61}, "outside_tolerance"),
        ({"nbf": "x"}, "malformed"),
        ({"iat": NOW + 61}, "outside_tolerance"),
        ({"iat": None}, "malformed"),
        ({"iss": ...}, "mismatch"),
        ({"iss": ISSUER + "/"}, "mismatch"),
        ({"iss": ISSUER.upper()}, "mismatch"),
        ({"aud": ...}, "mismatch"),
        ({"aud": "httppubsub2"}, "mismatch"),
        ({"aud": ["http", "pubsub"]}, "mismatch"),
        ({"aud": []}, "mismatch"),
        ({"aud": {AUDIENCE: 1}}, "mismatch"),
        ({"sub": ...}, "malformed"),
        ({"sub": ""}, "malformed"),
        ({"sub": "a\nb"}, "malformed"),
        ({"sub": "a\x00b"}, "malformed"),
        ({"sub": "x" * 256}, "malformed"),
        ({"sub": "\ud800"}, "malformed"),
    ],
)
async def test_each_claim_has_to_be_right(claims: dict[str, Any], reason: str) -> None:
    assert await refusal(token(**claims)) == reason


def payload_of(text: str) -> bytes:
    payload: bytes = jwt.PyJWS().decode_complete(text, options={"verify_signature": False})["payload"]
    return payload


async def test_a_token_counts_a_minute_before_its_time_and_not_a_moment_after_it() -> None:
    text = token(nbf=NOW + 60, iat=NOW + 60, exp=NOW + 100.5, aud=["other", AUDIENCE])
    assert (await holder(text)).owner == "jwt:alice"
    assert (await holder(text, now=NOW + 100.4)).owner == "jwt:alice"
    assert await refusal(text, now=NOW + 100.5) == "expired"


async def test_a_subject_cannot_be_taken_for_the_owner_of_a_key() -> None:
    assert (await holder(token(sub="partner"))).owner == "jwt:partner"
    assert (await holder(token(sub="a b:c"))).owner == "jwt:a b:c"


async def test_algorithms_without_a_public_key_are_never_taken() -> None:
    public = private_key("RSA-2048").public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    head = json.dumps({"alg": "HS256", "kid": "r1", "typ": "JWT"}).encode()
    claims = payload_of(token())
    unsigned = raw_token(head, claims).rpartition(".")[0]
    mac = hmac.digest(pem, unsigned.encode(), hashlib.sha256)
    forged = f"{unsigned}.{base64.urlsafe_b64encode(mac).decode().rstrip('=')}"
    assert await refusal(forged) == "wrong_algorithm"
    for algorithm in ("none", "None", "NONE", "HS512", "ES256K", "", "es256", None, 1, ["ES256"]):
        head = json.dumps({"alg": algorithm, "kid": "k1"}).encode()
        assert await refusal(raw_token(head, claims)) == "wrong_algorithm"
    assert await refusal(raw_token(b'{"alg":"none"}', claims, b"")) == "malformed"


async def test_the_key_decides_the_algorithm_not_the_token() -> None:
    only = jwks(jwk("RSA-2048", "r1", alg="PS256"))
    assert await holder(token("RSA-2048", "PS256", kid="r1"), keys=only)
    assert await refusal(token("RSA-2048", "RS256", kid="r1"), keys=only) == "unknown_key"
    assert await refusal(token("P-256", "ES256", kid="r1")) == "unknown_key"


async def test_a_signature_of_another_key_does_not_hold() -> None:
    assert await refusal(token("P-256/2")) == "mismatch"
    good = token()
    head, payload, signature = good.split(".")
    assert await refusal(f"{head}.{payload}.{signature[:-4]}AAAA") == "mismatch"
    other = token(sub="mallory").split(".")[1]
    assert await refusal(f"{head}.{other}.{signature}") == "mismatch"
    assert await refusal(token(kid="k2")) == "unknown_key"
    # Of several keys with one id, one that holds is enough.
    both = jwks(jwk("P-256/2", "k1"), jwk("P-256", "k1"))
    assert await holder(good, keys=both)


async def test_without_a_key_id_only_the_only_key_of_its_kind_counts() -> None:
    assert await holder(token(kid=None))
    assert await refusal(token(kid=None), keys=jwks(jwk("P-256", "k1"), jwk("P-256/2", "k2"))) == "unknown_key"


@pytest.mark.parametrize(
    "head",
    [
        {"crit": ["exp"]},
        {"crit": []},
        {"typ": "secevent+jwt"},
        {"typ": 5},
    ],
)
async def test_what_is_not_understood_in_the_head_is_refused(head: dict[str, Any]) -> None:
    text = json.dumps({"alg": "ES256", "kid": "k1", **head}).encode()
    assert await refusal(raw_token(text, payload_of(token()))) == "malformed"


async def test_types_of_access_tokens_are_taken() -> None:
    for kind in ("JWT", "jwt", "at+jwt", "application/at+JWT"):
        assert await holder(token(head={"typ": kind}))


async def test_keys_that_a_token_brings_along_are_not_looked_at() -> None:
    own = jwk("P-256/2")
    for head in ({"jwk": own}, {"jku": "http://127.0.0.1:1/"}, {"x5u": "http://127.0.0.1:1/"}):
        assert await refusal(token("P-256/2", head=head)) == "mismatch"


@pytest.mark.parametrize(
    "text",
    [
        "eyJ",
        "eyJ..",
        "eyJhbGciOiJFUzI1NiJ9.e30",
        "eyJhbGciOiJFUzI1NiJ9.e30.x.y",
        "eyJhbGciOiJFUzI1NiJ9.e3 0.x",
        "eyJhbGciOiJFUzI1NiJ9.é.x",
        "eyJhbGciOiJFUzI1NiJ9.e30.x\n",
        "eyJ" + "a" * 20_000 + ".a.a",
        raw_token(b'{"alg":"ES256","kid":"k1"'),
        raw_token(b'{"alg":"ES256","alg":"ES256","kid":"k1"}'),
        raw_token(b'{"a":' + b"[" * 5000),
        raw_token(b'{"alg":NaN}'),
        raw_token(b'{"\xff'),
    ],
)
async def test_what_is_no_token_is_refused_as_such(text: str) -> None:
    assert await refusal(text) == "malformed"


async def test_claims_that_stand_twice_are_refused() -> None:
    payload = payload_of(token())[:-1] + b',"sub":"mallory"}'
    text = jwt.PyJWS().encode(payload, private_key("P-256"), "ES256", headers={"kid": "k1"})
    assert await refusal(text) == "malformed"


@given(st.text(alphabet=st.characters(max_codepoint=127)) | st.from_regex(r"eyJ[\w-]*\.[\w-]*\.[\w-]*", fullmatch=True))
async def test_random_texts_raise_nothing_but_unauthorized(text: str) -> None:
    with pytest.raises(Unauthorized):
        await holder(text)


async def test_a_token_is_remembered_until_it_ends_or_the_keys_change(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [float(NOW)]
    keys = keys_of()
    tokens = JwtTokens(issuer=ISSUER, audience=AUDIENCE, keys=keys, clock=lambda: now[0])
    text = token()
    first = await tokens.holder(text)
    assert await tokens.holder(text) is first
    await keys.refresh()
    assert await tokens.holder(text) is not first
    now[0] += 300
    with pytest.raises(Unauthorized):
        await tokens.holder(text)
    for number in range(3000):
        monkeypatch.setattr(tokens, "_clock", lambda: NOW)
        await tokens.holder(token(kid="e1", kind="Ed25519", algorithm="EdDSA", sub=str(number)))
    assert len(tokens._remembered) <= 1024


async def test_without_pyjwt_this_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = keys_of()
    for module in (None, types.ModuleType("jwt")):  # another distribution has one of this name
        monkeypatch.setitem(sys.modules, "jwt", module)
        with pytest.raises(ConfigurationError, match=r"pip install 'httppubsub\[jwt\]'"):
            JwtTokens(issuer=ISSUER, audience=AUDIENCE, keys=keys, clock=lambda: NOW)


def test_what_could_be_a_token_is_told_by_its_form() -> None:
    assert looks_like_jwt(token())
    for other in ("secret", "a.b.c", "eyJa.b", "eyJ", ""):
        assert not looks_like_jwt(other)
