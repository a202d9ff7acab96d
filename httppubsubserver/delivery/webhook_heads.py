"""What makes a delivery a webhook: the headers of one that is signed with its subscription's own secrets, or is a
CloudEvent.

| the subscription has | its deliveries prove themselves by                          | and not by                      |
|----------------------|-------------------------------------------------------------|---------------------------------|
| secrets of its own   | Webhook-Signature, one for each, over `id.timestamp.body`   | Signature, Authorization        |
| none                 | what all subscribers share: Signature, Authorization, or    | Webhook-Signature               |
|                      | nothing; the digest in it is that of the body as it is sent |                                 |

So a receiver that has a secret of its own never sees a proof that would be good for another one. Id and timestamp are
the broadcaster's, never the publisher's, and the id has no ".": nobody chooses where in the signed bytes what begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from httppubsubclient.protocol.cloudevents import (
    STRUCTURED_CONTENT_TYPE,
    CloudEvent,
    binary_headers,
    event_of,
    is_media_type,
)
from httppubsubclient.protocol.delivery_heads import DeliveryHeads
from httppubsubclient.protocol.keys import Credentials
from httppubsubclient.protocol.messages import DEFAULT_CONTENT_TYPE, Notification
from httppubsubclient.protocol.options import DeliveryFormat
from httppubsubclient.protocol.standard_webhooks import PrivateKey, SharedSecret, sign_v1, sign_v1a
from httppubsubserver.delivery.answers import AttemptFailed

__all__ = ["WITHHELD", "NotMade", "Parcel", "event_for", "head_lines", "media_type_sent", "structured_sent"]

WITHHELD: Final = "needs_secret"
"""Why a delivery has failed: what subscribers share is a token, and this one has no secret of its own and may be a
stranger."""

_NOTHING_SHARED = Credentials.none()


class NotMade(AttemptFailed):
    """The attempt failed here, before anything was sent: the endpoint is not to blame."""

    def __init__(self, reason: str, *, for_good: bool = False, cause: BaseException | None = None) -> None:
        super().__init__(reason, again=False, cause=cause)
        self.for_good = for_good
        """No other attempt would do better."""


class Parcel(NamedTuple):
    """One delivery, as far as its head and its body depend on it."""

    notification: Notification
    """With a Content-Type that is one, see `media_type_sent`."""
    subscription_id: str
    fragment: str | None
    attempt: int
    format: DeliveryFormat
    sealed: bytes | None
    """The secrets of the subscription."""
    published_at: int
    """Microseconds since 1970; the same for each attempt."""
    sequence: int | None = None
    """Of a durable delivery."""
    previous_message_id: str | None = None


def media_type_sent(notification: Notification, form: DeliveryFormat) -> Notification:
    """The message with a Content-Type that an event can have: publishers may have written anything there."""
    if form == "raw" or is_media_type(notification.content_type):
        return notification
    return notification._replace(content_type=DEFAULT_CONTENT_TYPE)


def event_for(parcel: Parcel, source: str) -> CloudEvent:
    """The event that a delivery is; `source` is the broadcaster."""
    return event_of(
        parcel.notification,
        parcel.subscription_id,
        source=source,
        published_at=parcel.published_at,
        sequence=parcel.sequence,
        previous_message_id=parcel.previous_message_id,
    )


def head_lines(
    parcel: Parcel,
    event: CloudEvent | None,
    sent: Notification,
    *,
    credentials: Credentials,
    keys: Sequence[SharedSecret | PrivateKey],
    data: bytes,
    now: int,
    nonce_prefix: bytes,
    origin: str | None,
) -> bytes:
    """All header lines of one attempt.

    `event` is None for raw deliveries. `sent` tells of the body as it is sent, and `data` is that body; without `keys`
    it is not looked at. `origin` is the host name that stands for us in each event, as the HTTP webhooks of CloudEvents
    want it, if there is one. `now` in Unix seconds, `nonce_prefix` as for `DeliveryHeads`. Raises `ConfigurationError`
    when the proof is that of `credentials`, and no key may be used now.
    """
    heads = DeliveryHeads(
        _NOTHING_SHARED if keys else credentials,
        sent,
        attempt=parcel.attempt,
        now=now,
        nonce_prefix=nonce_prefix,
        place="plain" if parcel.sequence is None else "first" if parcel.previous_message_id is None else "next",
    )
    if parcel.sequence is None:
        lines = heads.lines(parcel.subscription_id, parcel.fragment)
    else:
        lines = heads.durable_lines(
            parcel.subscription_id, parcel.fragment, parcel.sequence, parcel.previous_message_id
        )
    more: dict[str, str] = {}
    if event is not None and parcel.format == "cloudevents-binary":
        more = binary_headers(event)
        del more["content-type"]  # it is there already
    if event is not None and origin is not None:
        more["webhook-request-origin"] = origin
    lines += "".join(f"{name}: {value}\r\n" for name, value in more.items()).encode("ascii")
    if keys:
        signatures = " ".join(_signature(key, sent.message_id, now, data) for key in keys)
        lines += f"webhook-signature: {signatures}\r\n".encode("ascii")
    return lines


def structured_sent(notification: Notification, sha256: bytes, size: int) -> Notification:
    """What is sent of a message in structured mode."""
    return notification._replace(content_type=STRUCTURED_CONTENT_TYPE, sha256=sha256, size=size)


def _signature(key: SharedSecret | PrivateKey, message_id: str, now: int, data: bytes) -> str:
    if isinstance(key, PrivateKey):
        return sign_v1a(key, message_id, now, data)
    return sign_v1(key, message_id, now, data)
