"""Every error of the project, as one tree, and the one table that says how each looks on the wire.

    PubSubError
    ├── InvalidRequest            invalid_request      400  malformed headers, JSON or parameters
    │   ├── InvalidTopic          invalid_topic        422
    │   ├── InvalidGlob           invalid_glob         422  a glob or an MQTT filter
    │   ├── InvalidUrl            invalid_url          422  a callback URL that is refused for its form
    │   ├── InvalidSecret         invalid_secret       422  a secret of a subscription that is none, or too weak
    │   └── DigestMismatch        digest_mismatch      400  the body is not the one that Content-Digest names
    ├── CallbackRefused           callback_refused     422  the policy does not allow this callback
    ├── CallbackUnreachable       callback_unreachable 422
    ├── Unauthorized              unauthorized         401  no proof, or one that does not hold
    │   └── Replayed              replayed             401  a proof that was used before
    ├── Forbidden                 forbidden            403  proven, but not permitted
    ├── NotFound                  not_found            404
    ├── Gone                      gone                 410  what this names is no longer here, for good
    ├── NotEntered                not_entered          409  nobody has entered this subscription at present
    ├── Conflict                  conflict             422  the same Idempotency-Key with another request
    ├── PreconditionFailed        precondition_failed  412  If-Match names another state than the present one
    ├── TooLarge                  too_large            413
    ├── UnsupportedMediaType      unsupported_media_type 415
    ├── TooSlow                   too_slow             408  the body did not arrive in time
    ├── QuotaExceeded             quota_exceeded       429  more than this key may have or do; perhaps later
    ├── TooManyHops               too_many_hops        508  the message goes round between broadcasters
    ├── Unavailable               unavailable          503  not now; `retry_after_seconds` says when again
    └── ConfigurationError        configuration        500  a setting or a secrets file is wrong; never on the wire

An error's text is meant for the person who caused it: what was expected, what came, what to do. It never holds a
secret. Sources: problem details RFC 9457, close codes RFC 6455 section 7.4 (4000-4999 are ours), JSON-RPC 2.0
section 5.1 (-32000..-32099 are ours).
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

__all__ = [
    "PROBLEM_CONTENT_TYPE",
    "WIRE",
    "CallbackRefused",
    "CallbackUnreachable",
    "ConfigurationError",
    "Conflict",
    "DigestMismatch",
    "Forbidden",
    "Gone",
    "InvalidGlob",
    "InvalidRequest",
    "InvalidSecret",
    "InvalidTopic",
    "InvalidUrl",
    "NotEntered",
    "NotFound",
    "PreconditionFailed",
    "PubSubError",
    "QuotaExceeded",
    "Replayed",
    "TooLarge",
    "TooManyHops",
    "TooSlow",
    "Unauthorized",
    "Unavailable",
    "UnsupportedMediaType",
    "Wire",
    "from_problem",
    "problem",
    "wire_of",
]

PROBLEM_CONTENT_TYPE = "application/problem+json"


class PubSubError(Exception):
    """The root. `code` is stable and meant for programs; `detail` is the text for people."""

    code: ClassVar[str] = "internal"

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class InvalidRequest(PubSubError):
    """The request is malformed; sending it again unchanged cannot help."""

    code = "invalid_request"


class InvalidTopic(InvalidRequest):
    """A topic is 1 to 4096 bytes, percent-encoded where it stands in a URL or a header."""

    code = "invalid_topic"


class InvalidGlob(InvalidRequest):
    """A glob or an MQTT filter that does not follow its grammar or exceeds a bound."""

    code = "invalid_glob"


class InvalidUrl(InvalidRequest):
    """A callback URL that can never be called: wrong scheme, host, port or characters."""

    code = "invalid_url"


class InvalidSecret(InvalidRequest):
    """A secret of a subscription that does not have its form, or is too easily guessed."""

    code = "invalid_secret"


class DigestMismatch(InvalidRequest):
    """The body that arrived is not the one whose Content-Digest was sent."""

    code = "digest_mismatch"


class CallbackRefused(PubSubError):
    """The broadcaster's policy does not allow calling this address."""

    code = "callback_refused"


class CallbackUnreachable(PubSubError):
    """The callback did not answer when it was tried."""

    code = "callback_unreachable"


class Unauthorized(PubSubError):
    """No credentials, or credentials that do not hold."""

    code = "unauthorized"
    challenge: str | None = None
    """The value of WWW-Authenticate (RFC 9110 section 11.6.1), set by whoever asks for the credentials."""

    def __init__(self, detail: str, *, reason: str | None = None) -> None:
        super().__init__(detail)
        self.reason = reason
        """One word for programs, see `Reason` in signatures.py; None when a peer said so or nothing more is known."""


class Replayed(Unauthorized):
    """A correct signature whose nonce was already used."""

    code = "replayed"


class Forbidden(PubSubError):
    """Correct credentials that do not permit this."""

    code = "forbidden"


class NotFound(PubSubError):
    """There is nothing with this id."""

    code = "not_found"


class Gone(PubSubError):
    """There was something with this id and it will not come back: forget it."""

    code = "gone"


class NotEntered(PubSubError):
    """Nobody has entered this durable subscription at present: to be sent again later, and nothing is wrong with the
    receiver."""

    code = "not_entered"


class Conflict(PubSubError):
    """The same Idempotency-Key came with another request."""

    code = "conflict"


class PreconditionFailed(PubSubError):
    """If-Match does not name the present state; `etag` does."""

    code = "precondition_failed"

    def __init__(self, detail: str, *, etag: str | None = None) -> None:
        super().__init__(detail)
        self.etag = etag


class TooLarge(PubSubError):
    """A body beyond the configured limit."""

    code = "too_large"


class UnsupportedMediaType(PubSubError):
    """A Content-Encoding or Content-Type that this endpoint does not take."""

    code = "unsupported_media_type"


class TooSlow(PubSubError):
    """A request body that did not arrive in the time allowed."""

    code = "too_slow"


class QuotaExceeded(PubSubError):
    """More than this key may have or do. `retry_after_seconds` is when trying again makes sense, None if unknown."""

    code = "quota_exceeded"

    def __init__(self, detail: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(detail)
        self.retry_after_seconds = retry_after_seconds


class TooManyHops(PubSubError):
    """A message that has been through so many broadcasters that it is taken for one that goes round."""

    code = "too_many_hops"


class Unavailable(PubSubError):
    """Not now. `retry_after_seconds` is when trying again makes sense, None if unknown."""

    code = "unavailable"

    def __init__(self, detail: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(detail)
        self.retry_after_seconds = retry_after_seconds


class ConfigurationError(PubSubError):
    """A setting, a flag or a secrets file is wrong. Raised at start-up, never sent to a peer."""

    code = "configuration"


class Wire(NamedTuple):
    """How an error looks to the other side."""

    status: int
    """HTTP status."""
    title: str
    """`title` of the problem document: the same for every error of this code (RFC 9457 section 3.1.4)."""
    close_code: int
    """Websocket close code."""
    rpc_code: int
    """JSON-RPC error code."""


WIRE: dict[type[PubSubError], Wire] = {
    PubSubError: Wire(500, "Internal error", 1011, -32603),
    InvalidRequest: Wire(400, "Invalid request", 4400, -32600),
    InvalidTopic: Wire(422, "Invalid topic", 4422, -32010),
    InvalidGlob: Wire(422, "Invalid pattern", 4422, -32011),
    InvalidUrl: Wire(422, "Invalid callback URL", 4422, -32012),
    InvalidSecret: Wire(422, "Invalid secret", 4422, -32024),
    DigestMismatch: Wire(400, "Digest mismatch", 4400, -32013),
    CallbackRefused: Wire(422, "Callback refused", 4422, -32014),
    CallbackUnreachable: Wire(422, "Callback unreachable", 4422, -32015),
    Unauthorized: Wire(401, "Unauthorized", 4401, -32001),
    Replayed: Wire(401, "Replayed", 4401, -32002),
    Forbidden: Wire(403, "Forbidden", 4403, -32003),
    NotFound: Wire(404, "Not found", 4404, -32004),
    Gone: Wire(410, "Gone", 4410, -32005),
    NotEntered: Wire(409, "Not entered", 4409, -32021),
    Conflict: Wire(422, "Conflict", 4422, -32016),
    PreconditionFailed: Wire(412, "Precondition failed", 4412, -32017),
    TooLarge: Wire(413, "Too large", 1009, -32018),
    UnsupportedMediaType: Wire(415, "Unsupported media type", 1003, -32019),
    TooSlow: Wire(408, "Too slow", 4408, -32020),
    QuotaExceeded: Wire(429, "Quota exceeded", 4429, -32022),
    TooManyHops: Wire(508, "Too many hops", 4508, -32023),
    Unavailable: Wire(503, "Unavailable", 1013, -32006),
    ConfigurationError: Wire(500, "Internal error", 1011, -32603),
}
"""The one mapping table: every class of the tree, exactly once (a test compares)."""

_BY_CODE: dict[str, type[PubSubError]] = {cls.code: cls for cls in WIRE}


def wire_of(error: PubSubError) -> Wire:
    """The row of the table for an error; a class made outside of this module counts as its nearest parent here."""
    return next(WIRE[cls] for cls in type(error).__mro__ if cls in WIRE)


def problem(error: PubSubError) -> dict[str, object]:
    """The problem document of an error (RFC 9457): `type`, `status`, `title`, `detail`, `code`."""
    wire = wire_of(error)
    return {
        "type": "about:blank",
        "status": wire.status,
        "title": wire.title,
        "detail": error.detail,
        "code": error.code,
    }


def from_problem(code: object, detail: str, *, retry_after_seconds: float | None = None) -> PubSubError:
    """The error that a peer's problem document stands for; an unknown code gives the root class."""
    cls = _BY_CODE.get(code, PubSubError) if isinstance(code, str) else PubSubError
    if issubclass(cls, Unavailable | QuotaExceeded):
        return cls(detail, retry_after_seconds=retry_after_seconds)
    return cls(detail)
