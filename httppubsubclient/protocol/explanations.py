"""Why a proof is accepted or refused: every check, told one by one, for `httppubsubclient verify` and for people.

Nothing here ever shows a secret, a token or the correct signature.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from httppubsubclient.protocol.checks import check, delivery_must_cover, request_line, request_must_cover, verify
from httppubsubclient.protocol.errors import InvalidRequest, Unauthorized
from httppubsubclient.protocol.keys import Credentials
from httppubsubclient.protocol.signatures import (
    DELIVERY,
    REQUEST,
    Profile,
    Reason,
    content_digest,
    parse_content_digest,
    parse_signatures,
)
from httppubsubclient.protocol.standard_webhooks import PublicKey, SharedSecret, WebhookHead, read_head

__all__ = ["Step", "explain_delivery", "explain_request", "explain_webhook"]

_ACCEPTED = {
    "hmac": "accepted, provided that its nonce was not used before",
    "token": "accepted; a token may be used again and again",
    "none": "accepted, as everything is in this direction",
}


class Step(NamedTuple):
    """One line of an explanation."""

    name: str
    ok: bool
    detail: str


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
    must_cover = request_must_cover(headers, has_body)
    _explain(
        trail, credentials, REQUEST, must_cover, request_line(method, path, query), headers, now, tolerance_seconds
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
    must_cover = delivery_must_cover(headers)
    _explain(trail, credentials, DELIVERY, must_cover, {"@method": method}, headers, now, tolerance_seconds)
    return trail.finished(credentials, headers, sha256)


def explain_webhook(
    keys: Sequence[SharedSecret | PublicKey],
    headers: Mapping[str, str],
    body: bytes | None,
    *,
    now: float,
    tolerance_seconds: int,
) -> list[Step]:
    """Every check of `standard_webhooks.verify`; raises nothing. `body`: None when it was not caught."""
    steps: list[Step] = []
    timestamp = headers.get("webhook-timestamp", "")
    signed_at = float(timestamp) if timestamp.isascii() and timestamp.isdigit() and len(timestamp) <= 12 else now
    try:
        # As of its own moment, so that what is only too old has its other faults told, too.
        head = read_head(headers, now=signed_at, tolerance_seconds=tolerance_seconds)
    except (InvalidRequest, Unauthorized) as error:
        return [Step("headers", False, error.detail), Step("result", False, f"refused: {error.detail}")]
    versions = ", ".join(version for version, _ in head.signatures) or "none of a version known here"
    steps.append(Step("headers", True, f"they are well-formed; signatures: {versions}"))
    where = f"{now - signed_at:.0f} s ago" if now >= signed_at else f"{signed_at - now:.0f} s ahead"
    told = f"{where}, by the clock here, and {tolerance_seconds} s are tolerated"
    steps.append(Step("webhook-timestamp", abs(now - signed_at) <= tolerance_seconds, told))
    steps += _explain_keys(keys, head, body)
    wrong = next((step for step in steps if not step.ok and step.name in ("webhook-timestamp", "signature")), None)
    verdict = (
        "accepted, if it is for the subscription with this secret" if wrong is None else f"refused: {wrong.detail}"
    )
    return [*steps, Step("result", wrong is None, verdict)]


def _explain_keys(keys: Sequence[SharedSecret | PublicKey], head: WebhookHead, body: bytes | None) -> list[Step]:
    """A step for each key, and one that says whether any of them is enough."""
    if body is None:
        return [Step("signature", False, "the signature covers the body, which is not there")]
    if not keys:
        return [Step("signature", False, "there is no key to check it with")]
    steps = []
    for number, key in enumerate(keys, 1):
        kind = "whsec_, v1" if isinstance(key, SharedSecret) else "whpk_, v1a"
        holds = _proves(head, key, body)
        steps.append(Step(f"key {number}", holds, f"({kind}) the signature {'holds' if holds else 'does not hold'}"))
    if any(step.ok for step in steps):
        return [*steps, Step("signature", True, "one that holds is enough")]
    detail = "no signature holds: the id, the time or the body is another than what was signed, or the key is"
    for changed, advice in (
        (body.removesuffix(b"\n"), "but for the newline at its end: remove it"),
        (body.removesuffix(b"\r\n"), "but for the CR LF at its end: remove it"),
        (body + b"\n", "but for a newline at its end: add it"),
    ):
        if any(_proves(head, key, changed) for key in keys):
            detail = f"the body is the one that was signed {advice}"
    return [*steps, Step("signature", False, detail)]


def _proves(head: WebhookHead, key: SharedSecret | PublicKey, body: bytes) -> bool:
    try:
        head.check([key], body)
    except Unauthorized:
        return False
    return True


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
            verify(trail, credentials, profile, must_cover, derived, headers, now, tolerance_seconds)
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
        check(trail, claim, credentials, profile, must_cover, values, now, tolerance_seconds)
        trail.end()
