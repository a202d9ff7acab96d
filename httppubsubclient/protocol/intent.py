"""Does this callback want to be called? Two handshakes, for both sides, as values.

| handshake                       | asked                                    | consent                                 |
|---------------------------------|------------------------------------------|-----------------------------------------|
| W3C WebSub section 5.3,         | `GET` with `hub.mode`, `hub.topic`,      | 2xx and a body that is the challenge,   |
| verification of intent          | `hub.challenge`, `hub.lease_seconds`     | to the byte                             |
| CloudEvents webhook 1.0.2       | `OPTIONS` with `WebHook-Request-Origin`, | 2xx and a `WebHook-Allowed-Origin` that |
| section 4, abuse protection     | `WebHook-Request-Rate`                   | is this origin or `*`                   |

In WebSub's query `hub.topic` is the topic or pattern itself, percent-encoded once; `pubsub.kind` says which (`exact`,
`glob`, `mqtt`). Consent is given in the answer to the request and nowhere else: each question has a challenge of its
own, which is not good for another; a redirect is no answer. Randomness is an argument.

Who is asked answers to questions about what it wants and to no others: whoever asks could otherwise subscribe it to
anything. A challenge is repeated as plain text that no browser takes for a page.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple
from urllib.parse import unquote_to_bytes

from httppubsubclient.protocol.errors import CallbackRefused, InvalidRequest, InvalidUrl
from httppubsubclient.protocol.patterns import Pattern, PatternKind
from httppubsubclient.protocol.topics import encode_topic

__all__ = [
    "MAX_CHALLENGE_LENGTH",
    "MAX_RATE_PER_MINUTE",
    "MIN_CHALLENGE_LENGTH",
    "Answer",
    "Handshake",
    "HandshakeRequest",
    "IntentMode",
    "Verification",
    "answer_handshake",
    "answer_verification",
    "check_handshake",
    "check_verification",
    "handshake_headers",
    "parse_handshake",
    "parse_verification",
    "verification_target",
]

MIN_CHALLENGE_LENGTH: Final = 22
"""Of ours: 128 bits in base64url."""
MAX_CHALLENGE_LENGTH: Final = 256
"""Of ours and of one that is answered."""
MAX_RATE_PER_MINUTE: Final = 10**9
_MAX_QUERY_LENGTH: Final = 3 * 4096 + 1024

IntentMode = Literal["subscribe", "unsubscribe"]
Handshake = Literal["websub", "cloudevents"]
"""By which of the two a callback is asked."""

_CHALLENGE = re.compile(rf"[A-Za-z0-9_-]{{{MIN_CHALLENGE_LENGTH},{MAX_CHALLENGE_LENGTH}}}", re.ASCII)
_ANY_CHALLENGE = re.compile(rf"[!-~]{{1,{MAX_CHALLENGE_LENGTH}}}", re.ASCII)
_LEASE = re.compile(r"[1-9][0-9]{0,9}", re.ASCII)
_RATE = re.compile(r"[1-9][0-9]{0,9}", re.ASCII)
_ORIGIN = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?)*", re.ASCII
)
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_NOT_ENCODED = re.compile(r"[^!-~]")
_RESERVED: Final = ("hub.", "pubsub.")
"""How names of parameters begin that a callback URL cannot have, since these are put behind its own."""
_PLAIN: Final = {
    "content-type": "text/plain; charset=utf-8",
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'",
}


@dataclass(frozen=True, slots=True)
class Verification:
    """One question of WebSub's: do you want this subscription?"""

    mode: IntentMode
    pattern: Pattern
    challenge: str = field(repr=False)
    """Random, new for each question: `[A-Za-z0-9_-]{22,256}` where it is ours."""
    lease_seconds: int | None = None
    """How long it would last; None for an unsubscribe, and where none was named."""

    def __post_init__(self) -> None:
        """Raises `InvalidRequest`."""
        # An empty one would be echoed by whoever answers nothing.
        if not _ANY_CHALLENGE.fullmatch(self.challenge):
            raise InvalidRequest(f"hub.challenge has 1 to {MAX_CHALLENGE_LENGTH} visible ASCII characters")


class HandshakeRequest(NamedTuple):
    """One question of CloudEvents': may this origin send to you?"""

    origin: str
    """A host name in lower case that stands for the whole sending system."""
    rate_per_minute: int | None
    """How many requests per minute it would like to send, None if it did not say."""


class Answer(NamedTuple):
    """What a callback answers."""

    status: int
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes


def verification_target(target: str, verification: Verification) -> str:
    """The request target that asks: the path and query of a callback, and the question behind it.

    `target` is that of a `CallbackUrl`. Raises `InvalidUrl` when its query has parameters that the question consists
    of, `InvalidRequest` for a challenge that is too easily guessed.
    """
    _check_own_challenge(verification)
    path, separator, query = target.partition("?")
    for name, _ in _parameters(query):
        if name.lower().startswith(_RESERVED):
            raise InvalidUrl("a callback URL that is asked for its consent has no parameters hub.* and pubsub.*")
    fields = {
        "hub.mode": verification.mode,
        "hub.topic": encode_topic(verification.pattern.value),
        "hub.challenge": verification.challenge,
        "pubsub.kind": verification.pattern.kind,
    }
    if verification.lease_seconds is not None:
        fields["hub.lease_seconds"] = str(verification.lease_seconds)
    asked = "&".join(f"{name}={value}" for name, value in fields.items())
    return f"{path}?{query}&{asked}" if separator and query else f"{path}?{asked}"


def check_verification(verification: Verification, status: int, body: bytes) -> None:
    """Raises `CallbackRefused` unless the answer is consent: 2xx, and the challenge as its whole body.

    Of the body one byte more than `MAX_CHALLENGE_LENGTH` is enough. The text never says what came instead.
    """
    _check_own_challenge(verification)
    expected = verification.challenge.encode("ascii")
    # The time it takes does not tell how much of a guess was right.
    is_echo = hmac.compare_digest(expected, body)
    if not 200 <= status <= 299 or not is_echo:
        raise CallbackRefused(
            "the callback did not agree: it is to answer the GET with 2xx and exactly the value of hub.challenge"
        )


def parse_verification(query: str) -> Verification:
    """The question in the query (without its "?") of a request. Raises `InvalidRequest` when it is none, or unclear.

    Without `pubsub.kind` the topic is an exact one, which is what other hubs ask about. Parameters of others are
    passed over: they are part of the callback URL.
    """
    fields = _fields(query)
    mode, kind = fields.get("hub.mode"), fields.get("pubsub.kind", b"exact")
    if mode not in (b"subscribe", b"unsubscribe"):
        raise InvalidRequest("hub.mode is subscribe or unsubscribe")
    if kind not in (b"exact", b"glob", b"mqtt"):
        raise InvalidRequest("pubsub.kind is exact, glob or mqtt")
    for name in ("hub.topic", "hub.challenge"):
        if name not in fields:
            raise InvalidRequest(f"{name} is missing")
    lease = fields.get("hub.lease_seconds", b"").decode("latin-1")
    if lease and not _LEASE.fullmatch(lease):
        raise InvalidRequest("hub.lease_seconds is a whole number above 0")
    return Verification(
        mode="subscribe" if mode == b"subscribe" else "unsubscribe",
        pattern=_pattern("exact" if kind == b"exact" else "glob" if kind == b"glob" else "mqtt", fields["hub.topic"]),
        challenge=fields["hub.challenge"].decode("latin-1"),
        lease_seconds=int(lease) if lease else None,
    )


def answer_verification(verification: Verification, *, wanted: bool) -> Answer:
    """What a callback answers: the challenge when it wants what it is asked about, else 404 (WebSub section 5.3.1).

    Wanted is a subscribe for what one subscribes to, and an unsubscribe for what one does not.
    """
    if wanted:
        return Answer(200, dict(_PLAIN), verification.challenge.encode("ascii"))
    return Answer(404, dict(_PLAIN), b"this is not wanted here\n")


def handshake_headers(origin: str, rate_per_minute: int | None = None) -> dict[str, str]:
    """The headers of the OPTIONS request to a callback; each delivery later has the origin's, too (section 4.1.2).

    Raises `InvalidRequest`.
    """
    if not _ORIGIN.fullmatch(origin):
        raise InvalidRequest("the origin of a handshake is a host name in lower case that stands for this system")
    headers = {"webhook-request-origin": origin}
    if rate_per_minute is not None:
        if not 1 <= rate_per_minute <= MAX_RATE_PER_MINUTE:
            raise InvalidRequest(f"the rate of a handshake is 1 to {MAX_RATE_PER_MINUTE} requests per minute")
        headers["webhook-request-rate"] = str(rate_per_minute)
    return headers


def check_handshake(origin: str, rate_per_minute: int | None, status: int, headers: Mapping[str, str]) -> int | None:
    """How many requests per minute the callback permits, None for any number. Raises `CallbackRefused` for no consent.

    `headers` of the answer have lower-case names; what comes twice is joined, hence no consent. Whoever permits
    without saying how much permits what was asked for.
    """
    allowed = headers.get("webhook-allowed-origin", "").strip(" \t")
    # Section 4.2: many a server answers OPTIONS with 200; only the header means that it was understood.
    if not 200 <= status <= 299 or (allowed != "*" and allowed.lower() != origin):
        raise CallbackRefused(
            f"the callback did not agree: it is to answer OPTIONS with 2xx and WebHook-Allowed-Origin: {origin}"
        )
    rate = headers.get("webhook-allowed-rate", "").strip(" \t")
    if rate == "*":
        return None
    if not rate:
        return rate_per_minute
    if not _RATE.fullmatch(rate):
        raise CallbackRefused("the callback's WebHook-Allowed-Rate is neither * nor a number above 0")
    return min(int(rate), MAX_RATE_PER_MINUTE)


def parse_handshake(headers: Mapping[str, str]) -> HandshakeRequest:
    """The question in the headers (lower-case names) of an OPTIONS request. Raises `InvalidRequest` when it is none."""
    origin = headers.get("webhook-request-origin", "").strip(" \t").lower()
    if not _ORIGIN.fullmatch(origin):
        raise InvalidRequest("the header webhook-request-origin is missing, or no host name")
    rate = headers.get("webhook-request-rate")
    if rate is None:
        return HandshakeRequest(origin, None)
    if not _RATE.fullmatch(rate.strip(" \t")):
        raise InvalidRequest("the header webhook-request-rate is a whole number above 0")
    return HandshakeRequest(origin, min(int(rate), MAX_RATE_PER_MINUTE))


def answer_handshake(
    request: HandshakeRequest, *, allowed_origins: Collection[str], rate_per_minute: int | None = None
) -> Answer:
    """What a callback answers: consent for an origin that is among those it expects, and 405 for any other.

    `allowed_origins`: host names in lower case. `rate_per_minute`: the most it permits, None for any number. The
    answer names the origin and never `*`, so that no cache or proxy gives it to another.
    """
    if request.origin not in allowed_origins:
        # Section 4.2: as if OPTIONS were not supported.
        return Answer(405, {"allow": "POST"}, b"")
    rates = [rate for rate in (rate_per_minute, request.rate_per_minute) if rate is not None]
    rate = "*" if rate_per_minute is None else str(min(rates))
    headers = {"allow": "POST", "webhook-allowed-origin": request.origin, "webhook-allowed-rate": rate}
    return Answer(200, headers, b"")


def _check_own_challenge(verification: Verification) -> None:
    if not _CHALLENGE.fullmatch(verification.challenge):
        raise InvalidRequest(
            f"a challenge has {MIN_CHALLENGE_LENGTH} to {MAX_CHALLENGE_LENGTH} of A-Z a-z 0-9 _ -, all of them random"
        )


def _parameters(query: str) -> Iterator[tuple[str, str]]:
    """Names, decoded, and values, as they stand there."""
    for parameter in query.split("&"):
        name, _, value = parameter.partition("=")
        yield unquote_to_bytes(name).decode("latin-1"), value


def _fields(query: str) -> dict[str, bytes]:
    """The parameters of ours, each of which comes once at most."""
    if len(query) > _MAX_QUERY_LENGTH or _NOT_ENCODED.search(query) or _BAD_ESCAPE.search(query):
        raise InvalidRequest("the query of a verification is percent-encoded and bounded")
    fields: dict[str, bytes] = {}
    for name, value in _parameters(query):
        if name.startswith(_RESERVED):
            if name in fields:
                raise InvalidRequest(f"{name[:40]!a} comes more than once")
            # Other hubs write forms, in which "+" is a space; ours never sends one.
            fields[name] = unquote_to_bytes(value.replace("+", " "))
    return fields


def _pattern(kind: PatternKind, value: bytes) -> Pattern:
    if kind == "exact":
        return Pattern.exact(value)
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidRequest("hub.topic of a glob or an MQTT filter is UTF-8") from None
    return Pattern.glob(text) if kind == "glob" else Pattern.mqtt(text)
