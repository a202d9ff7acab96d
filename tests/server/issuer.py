"""An issuer of tokens for tests: its keys, as a JWKS, and tokens that it signs."""

from __future__ import annotations

import base64
import json
from functools import cache
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

ISSUER, AUDIENCE = "https://issuer.example", "httppubsub"
NOW = 1_800_000_000

ALL: dict[str, Any] = {"publish": ["**"], "subscribe": ["**"]}


@cache
def private_key(kind: str) -> Any:
    """RSA-2048, RSA-1024, P-256, P-384, P-521 or Ed25519; with `/2` another one of the kind."""
    kind = kind.partition("/")[0]
    if kind.startswith("RSA-"):
        return rsa.generate_private_key(65537, int(kind[4:]))
    if kind == "Ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    curves: dict[str, ec.EllipticCurve] = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}
    return ec.generate_private_key(curves[kind])


def jwk(kind: str, kid: str | None = None, **members: Any) -> dict[str, Any]:
    """The public half, as in a JWKS."""
    algorithms: dict[str, Any] = {"R": jwt.algorithms.RSAAlgorithm, "P": jwt.algorithms.ECAlgorithm}
    algorithm = algorithms.get(kind[0], jwt.algorithms.OKPAlgorithm)
    fields: dict[str, Any] = algorithm.to_jwk(private_key(kind).public_key(), as_dict=True)
    fields.pop("key_ops", None)
    return {**fields, **({} if kid is None else {"kid": kid}), **members}


def jwks(*keys: dict[str, Any]) -> bytes:
    return json.dumps({"keys": keys}).encode()


def token(
    kind: str = "P-256",
    algorithm: str = "ES256",
    *,
    kid: str | None = "k1",
    head: dict[str, Any] | None = None,
    **claims: Any,
) -> str:
    """A token that is good unless the claims (`...` leaves one out) or the head say otherwise."""
    payload = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "exp": NOW + 300, "httppubsub": ALL, **claims}
    text = json.dumps({name: value for name, value in payload.items() if value is not ...}).encode()
    head = {**({} if kid is None else {"kid": kid}), **(head or {})}
    # Not PyJWT's own `encode`, which refuses some claims.
    return jwt.PyJWS().encode(text, private_key(kind), algorithm, headers=head)


def raw_token(head: bytes, payload: bytes = b"{}", signature: bytes = b"x" * 64) -> str:
    """Whatever is given, in the form of a token."""
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in (head, payload, signature))
