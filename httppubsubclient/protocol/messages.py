"""The values that cross the wire, and their forms as headers and JSON.

`Notification` is one published message. `Delivery` is that message for one subscription, as a receiver reads it from
the headers of a POST. `Subscription` is what a broadcaster keeps. `NotifyResult` is what a publisher is told.
Header names are lower-case wherever they are keys.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, NamedTuple

from httppubsubclient.protocol.errors import InvalidRequest
from httppubsubclient.protocol.intent import Handshake
from httppubsubclient.protocol.options import (
    DeliveryFormat,
    DeliveryMode,
    DeliveryOptions,
    check_options,
    options_from_json,
    options_to_json,
)
from httppubsubclient.protocol.patterns import Pattern, pattern_from_json
from httppubsubclient.protocol.topics import decode_topic, encode_topic

__all__ = [
    "DEFAULT_CONTENT_TYPE",
    "MAX_CONTENT_TYPE_LENGTH",
    "MAX_HOPS",
    "MESSAGE_ID",
    "PERMANENT_UNTIL",
    "RECEIVE_PATH",
    "SUBSCRIPTION_ID",
    "Delivery",
    "Notification",
    "NotifyResult",
    "SubscribeRequest",
    "Subscription",
    "check_idempotency_key",
    "content_type_or_default",
    "delivery_headers",
    "format_time",
    "parse_delivery",
    "parse_hops",
    "parse_time",
    "parse_traceparent",
]

RECEIVE_PATH: Final = "/v1/receive"
DEFAULT_CONTENT_TYPE: Final = "application/octet-stream"
MAX_CONTENT_TYPE_LENGTH: Final = 256
PERMANENT_UNTIL: Final = 253_402_214_400_000_000
"""When a subscription without a lease ends: the last day of the year 9999, in microseconds since 1970."""
MAX_HOPS: Final = 999
"""The most that a header can say."""
MESSAGE_ID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
SUBSCRIPTION_ID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)

_SEQUENCE = re.compile(r"[1-9][0-9]{0,17}", re.ASCII)
_ATTEMPT = re.compile(r"[1-9][0-9]{0,5}", re.ASCII)
_HOPS = re.compile(r"[0-9]{1,3}", re.ASCII)
_TIMESTAMP = re.compile(r"[0-9]{10,12}", re.ASCII)
# W3C Trace Context section 3.2: version 00 has exactly these four fields; ids of only zeros are invalid.
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)
_FRAGMENT = re.compile(r"[!-~]{1,2048}", re.ASCII)
_HEADER_TEXT = re.compile(r"[\x20-\x7e]+", re.ASCII)
_IDEMPOTENCY_KEY = re.compile(r"[\x21-\x7e]{1,255}", re.ASCII)
_SIGNATURES: Final[dict[object, Literal["v1", "v1a"]]] = {"v1": "v1", "v1a": "v1a"}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Notification(NamedTuple):
    """One published message without its body: what every delivery of it has in common."""

    message_id: str
    topic: bytes
    content_type: str
    sha256: bytes
    """SHA-256 of the body, 32 bytes, computed once."""
    size: int
    """Length of the body in bytes."""
    traceparent: str | None = None
    hops: int = 0
    """How many broadcasters it has been through before this one."""


@dataclass(frozen=True, slots=True)
class SubscribeRequest:
    """One subscription that somebody asks for; (url, pattern) names it."""

    url: str
    """Canonical, with its fragment (protocol/callback_urls.py)."""
    pattern: Pattern
    lease_seconds: int
    """0: permanent."""
    delivery: DeliveryMode = "best_effort"
    ordered: bool = False
    retry_schedule_seconds: tuple[float, ...] | None = None
    format: DeliveryFormat = "raw"
    handshake: Handshake = "websub"
    """How the callback is asked for its consent, if it is."""

    def __post_init__(self) -> None:
        check_options(self.options)
        if self.handshake == "cloudevents" and self.format == "raw":
            raise InvalidRequest('the handshake "cloudevents" goes with the formats of CloudEvents, not with "raw"')

    @property
    def options(self) -> DeliveryOptions:
        """How it shall be delivered to."""
        return DeliveryOptions(self.delivery, self.ordered, self.retry_schedule_seconds, self.format)


@dataclass(frozen=True, slots=True)
class Subscription:
    """One subscription as the store keeps it. Moments are microseconds since 1970 in UTC."""

    id: str
    url: str
    pattern: Pattern
    lease_seconds: int
    """0: permanent."""
    created_at: int
    expires_at: int
    delivery: DeliveryMode = "best_effort"
    ordered: bool = False
    retry_schedule_seconds: tuple[float, ...] | None = None
    format: DeliveryFormat = "raw"
    signature: Literal["v1", "v1a"] | None = None
    """By which its deliveries are signed with a secret of its own (standard_webhooks.py); None: it has none."""
    public_key: str | None = None
    """Of a secret of the kind v1a: `whpk_...`."""
    owner: str | None = None
    """Whose it is; None is everybody's. For the broadcaster alone, as is `sealed`: neither is part of the JSON."""
    sealed: bytes | None = field(default=None, repr=False)
    """Its secrets, encrypted."""
    before: Subscription | None = field(default=None, repr=False, compare=False)
    """In what a change answers: as it was before it; None for a new one. For the broadcaster alone, too."""

    @property
    def options(self) -> DeliveryOptions:
        """How it is delivered to."""
        return DeliveryOptions(self.delivery, self.ordered, self.retry_schedule_seconds, self.format)

    def to_json(self) -> dict[str, Any]:
        """The JSON form of the API."""
        permanent = self.lease_seconds == 0
        fields: dict[str, Any] = {
            "id": self.id,
            "url": self.url,
            **self.pattern.to_json(),
            **options_to_json(self.options),
            "lease_seconds": None if permanent else self.lease_seconds,
            "created_at": format_time(self.created_at),
            "expires_at": None if permanent else format_time(self.expires_at),
        }
        if permanent:
            fields["permanent"] = True
        if self.signature is not None:
            fields["signature"] = self.signature
        if self.public_key is not None:
            fields["public_key"] = self.public_key
        return fields

    @staticmethod
    def from_json(fields: Mapping[str, Any]) -> Subscription:
        """The inverse of `to_json`; unknown fields are ignored, so that a newer broadcaster can be understood."""
        return Subscription(
            # A client puts the id into the path of its next request.
            _matching(fields, "id", SUBSCRIPTION_ID),
            _string(fields, "url"),
            pattern_from_json(fields),
            0 if fields.get("permanent") is True else _count(fields, "lease_seconds"),
            _moment(fields, "created_at"),
            PERMANENT_UNTIL if fields.get("permanent") is True else _moment(fields, "expires_at"),
            *options_from_json(fields),
            signature=_SIGNATURES.get(fields.get("signature") if isinstance(fields.get("signature"), str) else None),
            public_key=None if fields.get("public_key") is None else _string(fields, "public_key"),
        )


@dataclass(frozen=True, slots=True)
class NotifyResult:
    """What became of one message: matched = notified + pending + failed."""

    message_id: str
    matched: int
    """Subscriptions that the topic matched."""
    notified: int
    """Confirmed by a 2xx answer of the subscriber."""
    pending: int
    """Not decided yet when the answer was sent."""
    failed: int
    """Given up."""

    def to_json(self) -> dict[str, Any]:
        """The JSON form of the API."""
        return {
            "message_id": self.message_id,
            "matched": self.matched,
            "notified": self.notified,
            "pending": self.pending,
            "failed": self.failed,
        }

    @staticmethod
    def from_json(fields: Mapping[str, Any]) -> NotifyResult:
        """The inverse of `to_json`; unknown fields are ignored."""
        return NotifyResult(
            message_id=_string(fields, "message_id"),
            matched=_count(fields, "matched"),
            notified=_count(fields, "notified"),
            pending=_count(fields, "pending"),
            failed=_count(fields, "failed"),
        )


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message for one subscription, as its headers tell it (the body comes separately)."""

    message_id: str
    timestamp: int
    """Unix seconds of this attempt."""
    topic: bytes
    subscription_id: str
    attempt: int
    content_type: str
    fragment: str | None = None
    """The fragment of the callback URL, which is not part of a request line."""
    traceparent: str | None = None
    sequence: int | None = None
    """Durable: the number of this delivery among those of its subscription, 1, 2, 3 ... (see gaps.py)."""
    previous_message_id: str | None = None
    """Durable: the message of the delivery before it; number 1 has none."""
    hops: int = 0
    """How many broadcasters the message has been through, this one included; 0 where it is not said."""


def delivery_headers(
    notification: Notification,
    subscription_id: str,
    *,
    attempt: int,
    timestamp: int,
    fragment: str | None,
    sequence: int | None = None,
    previous_message_id: str | None = None,
) -> dict[str, str]:
    """The headers of one attempt, without authentication and without Content-Digest (see signatures.py).

    A durable delivery has its `sequence` as Pubsub-Sequence, and all but the first have Pubsub-Previous.
    """
    headers = {
        "webhook-id": notification.message_id,
        "webhook-timestamp": str(timestamp),
        "pubsub-topic": encode_topic(notification.topic),
        "pubsub-subscription": subscription_id,
        "pubsub-attempt": str(attempt),
        "pubsub-hops": str(notification.hops + 1),
        "content-type": notification.content_type,
    }
    if fragment is not None:
        headers["pubsub-fragment"] = fragment
    if notification.traceparent is not None:
        headers["traceparent"] = notification.traceparent
    if sequence is not None:
        headers["pubsub-sequence"] = str(sequence)
    if previous_message_id is not None:
        headers["pubsub-previous"] = previous_message_id
    return headers


def parse_delivery(headers: Mapping[str, str]) -> Delivery:
    """The inverse of `delivery_headers`. Raises `InvalidRequest` naming the first header that is wrong."""
    return Delivery(
        message_id=_matching(headers, "webhook-id", MESSAGE_ID),
        timestamp=int(_matching(headers, "webhook-timestamp", _TIMESTAMP)),
        topic=decode_topic(_required(headers, "pubsub-topic")),
        subscription_id=_matching(headers, "pubsub-subscription", SUBSCRIPTION_ID),
        attempt=int(_matching(headers, "pubsub-attempt", _ATTEMPT)),
        content_type=content_type_or_default(headers.get("content-type")),
        fragment=None if "pubsub-fragment" not in headers else _matching(headers, "pubsub-fragment", _FRAGMENT),
        traceparent=parse_traceparent(headers.get("traceparent")),
        sequence=None if "pubsub-sequence" not in headers else int(_matching(headers, "pubsub-sequence", _SEQUENCE)),
        previous_message_id=(
            None if "pubsub-previous" not in headers else _matching(headers, "pubsub-previous", MESSAGE_ID)
        ),
        hops=parse_hops(headers),
    )


def parse_hops(headers: Mapping[str, str]) -> int:
    """Pubsub-Hops, 0 where it is missing. Raises `InvalidRequest`."""
    text = headers.get("pubsub-hops")
    if text is None:
        return 0
    if not _HOPS.fullmatch(text):
        raise InvalidRequest(f"pubsub-hops is a number from 0 to {MAX_HOPS}")
    return int(text)


def content_type_or_default(value: str | None) -> str:
    """The Content-Type to forward. Raises `InvalidRequest` when it could not be sent on as a header."""
    if value is None or value == "":
        return DEFAULT_CONTENT_TYPE
    if len(value) > MAX_CONTENT_TYPE_LENGTH or not _HEADER_TEXT.fullmatch(value):
        raise InvalidRequest(f"Content-Type is printable ASCII of at most {MAX_CONTENT_TYPE_LENGTH} characters")
    return value


def check_idempotency_key(key: str) -> str:
    """1 to 255 visible ASCII characters. Raises `InvalidRequest`."""
    if not _IDEMPOTENCY_KEY.fullmatch(key):
        raise InvalidRequest("an Idempotency-Key has 1 to 255 visible ASCII characters")
    return key


def parse_traceparent(value: str | None) -> str | None:
    """A valid W3C traceparent, else None: Trace Context section 3.2.2.3 says to ignore an invalid one."""
    return value if value is not None and _TRACEPARENT.fullmatch(value) else None


def format_time(microseconds: int) -> str:
    """RFC 3339 in UTC with microseconds: `2026-11-21T02:11:00.000000Z`."""
    moment = _EPOCH + timedelta(microseconds=microseconds)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_time(text: str) -> int:
    """The inverse of `format_time`, any RFC 3339 offset. Raises ValueError."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone")
    return (moment - _EPOCH) // timedelta(microseconds=1)


def _required(headers: Mapping[str, str], name: str) -> str:
    value = headers.get(name)
    if not value:
        raise InvalidRequest(f"the header {name} is missing or empty")
    return value


def _matching(fields: Mapping[str, Any], name: str, form: re.Pattern[str]) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not form.fullmatch(value):
        raise InvalidRequest(f"{name!r} is missing or does not have the form {form.pattern}")
    return value


def _count(fields: Mapping[str, Any], name: str) -> int:
    value = fields.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InvalidRequest(f"{name!r} is missing or not a count")
    return value


def _moment(fields: Mapping[str, Any], name: str) -> int:
    try:
        return parse_time(_string(fields, name))
    except ValueError:
        raise InvalidRequest(f"{name!r} is not a moment like 2026-11-21T02:11:00Z") from None


def _string(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise InvalidRequest(f"{name!r} is missing or not a string")
    return value
