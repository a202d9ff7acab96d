"""What makes a proof good: one check after the other, for requests and deliveries alike.

`verify` stops at the first that fails; explanations.py makes them all and tells about each. `accepted_at_once` is the
short way for what is signed as we sign, and good.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from typing import Final, NamedTuple, Protocol

from httppubsubclient.protocol.errors import Unauthorized
from httppubsubclient.protocol.keys import MAX_SECRET_LENGTH, Credentials, Key
from httppubsubclient.protocol.signatures import (
    ALGORITHM,
    DELIVERY,
    REQUEST,
    Profile,
    Reason,
    SignatureClaim,
    component_list,
    holds,
    own_holds,
    parse_signatures,
    read_own,
    signature_base,
)

__all__ = [
    "NONCE",
    "Proof",
    "Strict",
    "Trail",
    "accepted_at_once",
    "check",
    "delivery_must_cover",
    "request_line",
    "request_must_cover",
    "verify",
]

_BEARER = re.compile(r"bearer +([!-~]+) *", re.ASCII | re.IGNORECASE)
_MUST_COVER = {
    (False, False): REQUEST.always,
    (True, False): (*REQUEST.always, "content-digest"),
    (False, True): (*REQUEST.always, "idempotency-key"),
    (True, True): (*REQUEST.always, "content-digest", "idempotency-key"),
}
"""With a body or without, with an idempotency key or without."""
_MOMENTS = REQUEST.when_sent[2:]
NONCE: Final = re.compile(r"[!-~]{16,64}", re.ASCII)


class Proof(NamedTuple):
    """What a verified request has proven."""

    key_id: str | None
    """None where no proof is asked for."""
    nonce: str | None
    """With hmac: whoever verifies remembers `f"{key_id}:{nonce}"` and refuses it until `replay_until`."""
    replay_until: float | None
    """`created` + tolerance, Unix seconds: from this moment on the signature is too old anyway."""


class Trail(Protocol):
    """Where checks report to. `failed` raises when the first failure is the end of it."""

    def passed(self, name: str, text: str, *values: object) -> None: ...

    def failed(self, name: str, reason: Reason, detail: str) -> None: ...

    def base(self, base: bytes | None) -> None: ...


class Strict:
    """The first failure ends it; nobody wants to read about what passed."""

    def passed(self, name: str, text: str, *values: object) -> None: ...

    def failed(self, name: str, reason: Reason, detail: str) -> None:
        raise Unauthorized(detail, reason=reason)

    def base(self, base: bytes | None) -> None: ...


def accepted_at_once(
    credentials: Credentials,
    must_cover: tuple[str, ...],
    derived: Mapping[str, str],
    headers: Mapping[str, str],
    now: float,
    tolerance_seconds: int,
) -> Proof | None:
    """The short way to the proof of a message that is signed as we sign, and good. None decides nothing.

    Only ever says yes to what `verify` says yes to, with the same proof; tests hold one against the other.
    """
    if credentials.type != "hmac":
        return None
    claim = read_own(headers)
    if claim is None or claim.components != component_list(must_cover):
        return None
    key = credentials.key(claim.key_id)
    if key is None or (key.valid_until is not None and key.valid_until <= now):
        return None
    if not -tolerance_seconds <= now - claim.created < tolerance_seconds:
        return None
    try:
        values = tuple([derived[name] if name[0] == "@" else headers[name] for name in must_cover])
    except KeyError:
        return None
    if not own_holds(claim, must_cover, values, key.secret):
        return None
    return Proof(claim.key_id, claim.nonce, float(claim.created + tolerance_seconds))


def verify(
    trail: Trail,
    credentials: Credentials,
    profile: Profile,
    must_cover: tuple[str, ...],
    derived: Mapping[str, str],
    headers: Mapping[str, str],
    now: float,
    tolerance_seconds: int,
) -> Proof:
    if credentials.type == "none":
        trail.passed("type", "no proof is asked for in this direction")
        return Proof(None, None, None)
    if credentials.type == "token":
        return _verify_token(trail, credentials, headers, now)
    claims = parse_signatures(headers)
    values = profile.values(derived, headers)
    # RFC 9421 section 3.2: which of several signatures counts is up to the verifier. One that holds is enough; a
    # proxy may have added another with a key and a profile of its own.
    failures = []
    for claim in claims:
        try:
            return check(trail, claim, credentials, profile, must_cover, values, now, tolerance_seconds)
        except Unauthorized as error:
            failures.append((claim.label, error))
    if len(failures) == 1:
        raise failures[0][1]
    told = "; ".join(f"{label[:40]}: {error.detail}" for label, error in failures)
    raise Unauthorized(f"none of the {len(failures)} signatures is accepted: {told}", reason=failures[0][1].reason)


def check(
    trail: Trail,
    claim: SignatureClaim,
    credentials: Credentials,
    profile: Profile,
    must_cover: tuple[str, ...],
    values: Mapping[str, str],
    now: float,
    tolerance_seconds: int,
) -> Proof:
    """All that makes one signature count, the arithmetic last."""
    if claim.algorithm != ALGORITHM:
        trail.failed("alg", "wrong_algorithm", f"alg is {claim.algorithm[:40]!r}, not {ALGORITHM!r}")
    else:
        trail.passed("alg", "%s", claim.algorithm)
    key = _known_key(trail, credentials, claim.key_id, now)
    complete = _check_coverage(trail, claim, profile, must_cover, values)
    _check_time(trail, claim, now, tolerance_seconds)
    if not NONCE.fullmatch(claim.nonce):
        trail.failed("nonce", "bad_nonce", "the nonce is not 16 to 64 visible ASCII characters")
    else:
        trail.passed("nonce", "%s", claim.nonce)
    covered = tuple([values[name] for name in claim.components]) if complete else ()
    if key is None or not complete:
        trail.failed("signature", "mismatch", "the signature cannot be checked: see above")
    elif not holds(claim, covered, key.secret):
        trail.base(signature_base(claim.components, covered, claim.parameters))
        trail.failed(
            "signature",
            "mismatch",
            f"the signature does not hold: what arrived is not what was signed, or the secret of {key.id!r} is another",
        )
    else:
        trail.passed("signature", "holds with the key %r", key.id)
    return Proof(claim.key_id, claim.nonce, float(claim.created + tolerance_seconds))


def _known_key(trail: Trail, credentials: Credentials, key_id: str, now: float) -> Key | None:
    key = credentials.key(key_id)
    if key is None:
        trail.failed("keyid", "unknown_key", f"the key id {key_id[:64]!r} is not known here")
    elif key.valid_until is not None and key.valid_until <= now:
        ago = now - key.valid_until
        trail.failed("keyid", "key_expired", f"the key {key.id!r} is not valid any more, since {ago:.0f} s")
    else:
        trail.passed("keyid", "%r is known and valid", key.id)
    return key


def _check_coverage(
    trail: Trail,
    claim: SignatureClaim,
    profile: Profile,
    must_cover: tuple[str, ...],
    values: Mapping[str, str],
) -> bool:
    """Whether the signature base can be built: everything covered is there."""
    complete, good = True, True
    for name in claim.components:
        if name not in profile.always and name not in profile.when_sent:
            trail.failed("components", "not_covered", f"{name[:64]!r} is not a component that is signed here")
            complete = good = False
        elif name not in values:
            trail.failed("components", "missing", f"the header {name} is covered by the signature, but missing")
            complete = good = False
    for name in must_cover:
        if name not in claim.components:
            absent = "" if name in values else ", and the header is missing"
            trail.failed("components", "not_covered", f"{name} is not covered by the signature{absent}")
            good = False
    if good:
        trail.passed("components", "%s", " ".join(claim.components))
    return complete


def _check_time(trail: Trail, claim: SignatureClaim, now: float, tolerance_seconds: int) -> None:
    # Half open, because a nonce is forgotten at created + tolerance: there is no moment in which it is both
    # forgotten and accepted.
    age = now - claim.created
    if not -tolerance_seconds <= age < tolerance_seconds:
        where = f"{age:.0f} s ago" if age > 0 else f"{-age:.0f} s ahead"
        trail.failed(
            "created",
            "outside_tolerance",
            f"the signature was made {where}, by the clock here, and {tolerance_seconds} s are tolerated",
        )
    else:
        trail.passed("created", "%.0f s ago, %d s are tolerated", age, tolerance_seconds)
    if claim.expires is None:
        return
    if now >= claim.expires:
        trail.failed("expires", "expired", f"the signature expired {now - claim.expires:.0f} s ago")
    else:
        trail.passed("expires", "in %.0f s", claim.expires - now)


def _verify_token(trail: Trail, credentials: Credentials, headers: Mapping[str, str], now: float) -> Proof:
    text = headers.get("authorization", "").strip(" \t")
    if not text:
        raise Unauthorized("the header authorization is missing: send Authorization: Bearer <token>", reason="missing")
    match = _BEARER.fullmatch(text) if len(text) <= 2 * MAX_SECRET_LENGTH else None
    if match is None:
        raise Unauthorized("Authorization does not have the form Bearer <token>", reason="malformed")
    trail.passed("authorization", "Bearer with a token")
    sent = match[1].encode("ascii")
    found: Key | None = None
    for key in credentials.keys:  # all of them, so that the time tells nothing
        if hmac.compare_digest(key.secret, sent):
            found = key
    if found is None:
        raise Unauthorized("the token is not one of those known here", reason="mismatch")
    _known_key(trail, credentials, found.id, now)
    return Proof(found.id, None, None)


def request_line(method: str, path: str, query: str) -> dict[str, str]:
    # RFC 9421 section 2.2.6 and 2.2.7: an empty path is "/"; the query has its "?", also when it is empty.
    return {"@method": method, "@path": path or "/", "@query": f"?{query}"}


def request_must_cover(headers: Mapping[str, str], has_body: bool) -> tuple[str, ...]:
    must_cover = _MUST_COVER[has_body, "idempotency-key" in headers]
    return must_cover + _sent(_MOMENTS, headers)


def delivery_must_cover(headers: Mapping[str, str]) -> tuple[str, ...]:
    return DELIVERY.always + _sent(DELIVERY.when_sent, headers)


def _sent(names: tuple[str, ...], headers: Mapping[str, str]) -> tuple[str, ...]:
    """Those of two names that the message has: mostly none."""
    first, second = names
    if first in headers:
        return names if second in headers else (first,)
    return (second,) if second in headers else ()
