"""How a request proves who sent it, in either direction, and what is made of such a proof.

| type    | proof                                                          | keys                               |
|---------|----------------------------------------------------------------|------------------------------------|
| `hmac`  | `Signature-Input`, `Signature` (RFC 9421, signatures.py)       | id and secret, several at once     |
| `token` | `Authorization: Bearer <token>` (RFC 6750 section 2.1)         | id and token, several at once      |
| `none`  | none                                                           |                                    |

Whose keys they are says keys.py, whose names are given here, too. Verifying is a list of checks: `verify_*` stops at
the first that fails (checks.py), `explain_*` makes them all and tells about each (explanations.py). Neither ever shows
a secret, a token or the correct signature.
"""

from __future__ import annotations

from collections.abc import Mapping

from httppubsubclient.protocol.checks import (
    NONCE,
    Proof,
    Strict,
    accepted_at_once,
    delivery_must_cover,
    request_line,
    request_must_cover,
    verify,
)
from httppubsubclient.protocol.errors import InvalidRequest
from httppubsubclient.protocol.keys import Credentials, Key, Secrets, secrets_from_json, secrets_to_json
from httppubsubclient.protocol.signatures import DELIVERY, REQUEST, sign

__all__ = [
    "Credentials",
    "Key",
    "Proof",
    "Secrets",
    "secrets_from_json",
    "secrets_to_json",
    "sign_delivery",
    "sign_request",
    "verify_delivery",
    "verify_request",
]


def sign_request(
    credentials: Credentials,
    *,
    method: str,
    path: str,
    query: str,
    headers: Mapping[str, str],
    now: int,
    nonce: str,
) -> dict[str, str]:
    """The headers that prove a request to a broadcaster; lower-case names, none with `none`.

    `path` and `query` (without its "?") as they stand in the request line. `headers` has lower-case names; with hmac
    those of `REQUEST.when_sent` are covered. `nonce`: 16 to 64 visible ASCII characters, never the same
    twice. Raises `ConfigurationError` when no key may be used now, `InvalidRequest` for what cannot be signed.
    """
    if credentials.type == "hmac":
        values = REQUEST.values(request_line(method, path, query), headers)
        return _sign(credentials, tuple(values), tuple(values.values()), now, nonce)
    return _bearer(credentials, now)


def sign_delivery(
    credentials: Credentials, *, headers: Mapping[str, str], now: int, nonce: str, method: str = "POST"
) -> dict[str, str]:
    """The headers that prove a delivery to a subscriber. `headers`: messages.delivery_headers and content-digest.

    Raises as `sign_request` does.
    """
    if credentials.type == "hmac":
        components = delivery_must_cover(headers)
        try:
            values = (method, *[headers[name] for name in components[1:]])
        except KeyError as error:
            raise InvalidRequest(f"a delivery without {error} cannot be signed") from None
        return _sign(credentials, components, values, now, nonce)
    return _bearer(credentials, now)


def verify_request(
    credentials: Credentials,
    *,
    method: str,
    path: str,
    query: str,
    headers: Mapping[str, str],
    has_body: bool,
    now: float,
    tolerance_seconds: int,
) -> Proof:
    """Check the proof of a request to a broadcaster, from its head alone. Raises `Unauthorized` with a `reason`.

    Lower-case header names; what came several times is joined with ", " (RFC 9421 section 2.1). With a body,
    `content-digest` has to be covered; comparing it with the body is up to the caller, and so is the nonce.
    """
    must_cover = request_must_cover(headers, has_body)
    line = request_line(method, path, query)
    proof = accepted_at_once(credentials, must_cover, line, headers, now, tolerance_seconds)
    return proof or verify(Strict(), credentials, REQUEST, must_cover, line, headers, now, tolerance_seconds)


def verify_delivery(
    credentials: Credentials, *, method: str, headers: Mapping[str, str], now: float, tolerance_seconds: int
) -> Proof:
    """Check the proof of a delivery to a subscriber, from its head alone. Raises `Unauthorized` with a `reason`.

    Comparing `content-digest` with the body is up to the caller, and so is the nonce. Not covered, hence not to be
    trusted: `webhook-timestamp` (freshness is that of `created`), `content-type`, `pubsub-fragment`, `traceparent`.
    """
    line = {"@method": method}
    must_cover = delivery_must_cover(headers)
    proof = accepted_at_once(credentials, must_cover, line, headers, now, tolerance_seconds)
    return proof or verify(Strict(), credentials, DELIVERY, must_cover, line, headers, now, tolerance_seconds)


def _sign(
    credentials: Credentials, components: tuple[str, ...], values: tuple[str, ...], now: int, nonce: str
) -> dict[str, str]:
    if not NONCE.fullmatch(nonce):
        raise InvalidRequest("a nonce has 16 to 64 visible ASCII characters")
    key = credentials.signing_key(now)
    return sign(components, values, key_id=key.id, secret=key.secret, created=now, nonce=nonce)


def _bearer(credentials: Credentials, now: float) -> dict[str, str]:
    if credentials.type == "none":
        return {}
    return {"authorization": f"Bearer {credentials.signing_key(now).secret.decode('ascii')}"}
