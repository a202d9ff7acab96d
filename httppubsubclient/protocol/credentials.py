"""How a request proves who sent it, in either direction, and what is made of such a proof.

| type    | proof                                                          | keys                               |
|---------|----------------------------------------------------------------|------------------------------------|
| `hmac`  | `Signature-Input`, `Signature` (RFC 9421, signatures.py)       | id and secret, several at once     |
| `token` | `Authorization: Bearer <token>` (RFC 6750 section 2.1)         | id and token, several at once      |
| `none`  | none                                                           |                                    |

Whose keys they are says keys.py, whose names are given here, too. Verifying is a list of checks: `verify_*` stops at
the first that fails, `explain_*` makes them all and tells about each. Neither ever shows a secret, a token or the
correct signature.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from typing import NamedTuple, Protocol

from httppubsubclient.protocol.errors import InvalidRequest, Unauthorized
from httppubsubclient.protocol.keys import (
    MAX_SECRET_LENGTH,
    Credentials,
    Key,
    Secrets,
    secrets_from_json,
    secrets_to_json,
)
from httppubsubclient.protocol.signatures import (
    ALGORITHM,
    DELIVERY,
    REQUEST,
    Profile,
    Reason,
    SignatureClaim,
    component_list,
    content_digest,
    holds,
    own_holds,
    parse_content_digest,
    parse_signatures,
    read_own,
    sign,
    signature_base,
)

__all__ = [
    "Credentials",
    "Key",
    "Proof",
    "Secrets",
    "Step",
    "explain_delivery",
    "explain_request",
    "secrets_from_json",
    "secrets_to_json",
    "sign_delivery",
    "sign_request",
    "verify_delivery",
    "verify_request",
]

_ACCEPTED = {
    "hmac": "accepted, provided that its nonce was not used before",
    "token": "accepted; a token may be used again and again",
    "none": "accepted, as everything is in this direction",
}
_BEARER = re.compile(r"bearer +([!-~]+) *", re.ASCII | re.IGNORECASE)
_DELIVERY_HEADERS = DELIVERY.always[1:]
_MUST_COVER = {
    (False, False): REQUEST.always,
    (True, False): (*REQUEST.always, "content-digest"),
    (False, True): (*REQUEST.always, "idempotency-key"),
    (True, True): (*REQUEST.always, "content-digest", "idempotency-key"),
}
"""With a body or without, with an idempotency key or without."""
_NONCE = re.compile(r"[!-~]{16,64}", re.ASCII)


class Proof(NamedTuple):
    """What a verified request has proven."""

    key_id: str | None
    """None where no proof is asked for."""
    nonce: str | None
    """With hmac: whoever verifies remembers `f"{key_id}:{nonce}"` and refuses it until `replay_until`."""
    replay_until: float | None
    """`created` + tolerance, Unix seconds: from this moment on the signature is too old anyway."""


class Step(NamedTuple):
    """One line of an explanation."""

    name: str
    ok: bool
    detail: str


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
    its `content-digest` and `idempotency-key` are covered. `nonce`: 16 to 64 visible ASCII characters, never the same
    twice. Raises `ConfigurationError` when no key may be used now, `InvalidRequest` for what cannot be signed.
    """
    if credentials.type == "hmac":
        values = REQUEST.values(_request_line(method, path, query), headers)
        return _sign(credentials, tuple(values), tuple(values.values()), now, nonce)
    return _bearer(credentials, now)


def sign_delivery(
    credentials: Credentials, *, headers: Mapping[str, str], now: int, nonce: str, method: str = "POST"
) -> dict[str, str]:
    """The headers that prove a delivery to a subscriber. `headers`: messages.delivery_headers and content-digest.

    Raises as `sign_request` does.
    """
    if credentials.type == "hmac":
        try:
            values = (method, *[headers[name] for name in _DELIVERY_HEADERS])
        except KeyError as error:
            raise InvalidRequest(f"a delivery without {error} cannot be signed") from None
        return _sign(credentials, DELIVERY.always, values, now, nonce)
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
    must_cover = _request_must_cover(headers, has_body)
    request_line = _request_line(method, path, query)
    proof = _accepted_at_once(credentials, must_cover, request_line, headers, now, tolerance_seconds)
    return proof or _verify(_Strict(), credentials, REQUEST, must_cover, request_line, headers, now, tolerance_seconds)


def verify_delivery(
    credentials: Credentials, *, method: str, headers: Mapping[str, str], now: float, tolerance_seconds: int
) -> Proof:
    """Check the proof of a delivery to a subscriber, from its head alone. Raises `Unauthorized` with a `reason`.

    Comparing `content-digest` with the body is up to the caller, and so is the nonce. Not covered, hence not to be
    trusted: `webhook-timestamp` (freshness is that of `created`), `content-type`, `pubsub-fragment`, `traceparent`.
    """
    line = {"@method": method}
    proof = _accepted_at_once(credentials, DELIVERY.always, line, headers, now, tolerance_seconds)
    return proof or _verify(_Strict(), credentials, DELIVERY, DELIVERY.always, line, headers, now, tolerance_seconds)


def explain_request(
    credentials: Credentials,
    *,
    method: str,
    path: str,
    query: str,
    headers: Mapping[str, str],
    has_body: bool,
    now: float,
    tolerance_seconds: int,
    sha256: bytes | None = None,
) -> list[Step]:
    """Every check of `verify_request`, and of Content-Digest when `sha256` of the body is given; raises nothing.

    The last step, `result`, says whether the request would be accepted: with hmac, provided that its nonce is new.
    """
    trail = _Recording()
    must_cover = _request_must_cover(headers, has_body)
    _explain(
        trail, credentials, REQUEST, must_cover, _request_line(method, path, query), headers, now, tolerance_seconds
    )
    return trail.finished(credentials, headers, sha256)


def explain_delivery(
    credentials: Credentials,
    *,
    method: str,
    headers: Mapping[str, str],
    now: float,
    tolerance_seconds: int,
    sha256: bytes | None = None,
) -> list[Step]:
    """As `explain_request`, for a delivery."""
    trail = _Recording()
    _explain(trail, credentials, DELIVERY, DELIVERY.always, {"@method": method}, headers, now, tolerance_seconds)
    return trail.finished(credentials, headers, sha256)


class _Trail(Protocol):
    """Where checks report to. `failed` raises when the first failure is the end of it."""

    def passed(self, name: str, text: str, *values: object) -> None: ...

    def failed(self, name: str, reason: Reason, detail: str) -> None: ...

    def base(self, base: bytes | None) -> None: ...


class _Strict:
    """The first failure ends it; nobody wants to read about what passed."""

    def passed(self, name: str, text: str, *values: object) -> None: ...

    def failed(self, name: str, reason: Reason, detail: str) -> None:
        raise Unauthorized(detail, reason=reason)

    def base(self, base: bytes | None) -> None: ...


class _Recording:
    """Keeps a step for every check."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._prefix = ""
        self._accepted = False

    def begin(self, label: str | None) -> None:
        self._prefix = "" if label is None else f"{label} "
        self._first = len(self.steps)

    def end(self) -> None:
        self._accepted = self._accepted or all(step.ok for step in self.steps[self._first :])

    def passed(self, name: str, text: str, *values: object) -> None:
        self.steps.append(Step(self._prefix + name, True, text % values))

    def failed(self, name: str, reason: Reason, detail: str) -> None:
        self.steps.append(Step(self._prefix + name, False, detail))

    def base(self, base: bytes | None) -> None:
        for line in (base or b"").decode("ascii").splitlines():
            self.steps.append(Step(self._prefix + "signature base", True, line))

    def finished(self, credentials: Credentials, headers: Mapping[str, str], sha256: bytes | None) -> list[Step]:
        self._prefix = ""
        if sha256 is not None and "content-digest" in headers:
            self._accepted &= self._digest(headers["content-digest"], sha256)
        wrong = next((step for step in self.steps if not step.ok), None)
        if self._accepted:
            self.passed("result", "%s", _ACCEPTED[credentials.type])
        else:
            detail = "refused" if wrong is None else f"refused: {wrong.detail}"
            self.steps.append(Step("result", False, detail))
        return self.steps

    def _digest(self, header: str, sha256: bytes) -> bool:
        try:
            named = parse_content_digest(header)
        except InvalidRequest as error:
            self.failed("content-digest", "malformed", error.detail)
            return False
        if named != sha256:
            self.failed(
                "content-digest",
                "mismatch",
                f"the body is another one: its digest is {content_digest(sha256)}, "
                f"Content-Digest names {content_digest(named)}",
            )
            return False
        self.passed("content-digest", "the body is the one that Content-Digest names")
        return True


def _explain(
    trail: _Recording,
    credentials: Credentials,
    profile: Profile,
    must_cover: tuple[str, ...],
    derived: Mapping[str, str],
    headers: Mapping[str, str],
    now: float,
    tolerance_seconds: int,
) -> None:
    trail.begin(None)
    try:
        if credentials.type != "hmac":
            _verify(trail, credentials, profile, must_cover, derived, headers, now, tolerance_seconds)
            trail.end()
            return
        claims = parse_signatures(headers)
    except Unauthorized as error:
        trail.failed("headers", "malformed", error.detail)
        return
    trail.passed("headers", "Signature-Input and Signature are well-formed: %d of them", len(claims))
    values = profile.values(derived, headers)
    for claim in claims:
        trail.begin(claim.label)
        _check(trail, claim, credentials, profile, must_cover, values, now, tolerance_seconds)
        trail.end()


def _accepted_at_once(
    credentials: Credentials,
    must_cover: tuple[str, ...],
    derived: Mapping[str, str],
    headers: Mapping[str, str],
    now: float,
    tolerance_seconds: int,
) -> Proof | None:
    """The short way to the proof of a message that is signed as we sign, and good. None decides nothing.

    Only ever says yes to what `_verify` says yes to, with the same proof; tests hold one against the other.
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


def _verify(
    trail: _Trail,
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
            return _check(trail, claim, credentials, profile, must_cover, values, now, tolerance_seconds)
        except Unauthorized as error:
            failures.append((claim.label, error))
    if len(failures) == 1:
        raise failures[0][1]
    told = "; ".join(f"{label[:40]}: {error.detail}" for label, error in failures)
    raise Unauthorized(f"none of the {len(failures)} signatures is accepted: {told}", reason=failures[0][1].reason)


def _check(
    trail: _Trail,
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
    if not _NONCE.fullmatch(claim.nonce):
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


def _known_key(trail: _Trail, credentials: Credentials, key_id: str, now: float) -> Key | None:
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
    trail: _Trail,
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


def _check_time(trail: _Trail, claim: SignatureClaim, now: float, tolerance_seconds: int) -> None:
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


def _verify_token(trail: _Trail, credentials: Credentials, headers: Mapping[str, str], now: float) -> Proof:
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


def _request_line(method: str, path: str, query: str) -> dict[str, str]:
    # RFC 9421 section 2.2.6 and 2.2.7: an empty path is "/"; the query has its "?", also when it is empty.
    return {"@method": method, "@path": path or "/", "@query": f"?{query}"}


def _request_must_cover(headers: Mapping[str, str], has_body: bool) -> tuple[str, ...]:
    return _MUST_COVER[has_body, "idempotency-key" in headers]


def _sign(
    credentials: Credentials, components: tuple[str, ...], values: tuple[str, ...], now: int, nonce: str
) -> dict[str, str]:
    if not _NONCE.fullmatch(nonce):
        raise InvalidRequest("a nonce has 16 to 64 visible ASCII characters")
    key = credentials.signing_key(now)
    return sign(components, values, key_id=key.id, secret=key.secret, created=now, nonce=nonce)


def _bearer(credentials: Credentials, now: float) -> dict[str, str]:
    if credentials.type == "none":
        return {}
    return {"authorization": f"Bearer {credentials.signing_key(now).secret.decode('ascii')}"}
