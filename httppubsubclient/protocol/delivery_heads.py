"""The header lines of one message's deliveries, with everything that they have in common prepared once.

What stands here says in bytes what `messages.delivery_headers` and `credentials.sign_delivery` say one by one; tests
hold them against each other. Per delivery there is one HMAC over the part of the signature base that differs:

| signature base (RFC 9421 section 2.5)                                    | the same for           |
|--------------------------------------------------------------------------|------------------------|
| `"@method"`, `"content-digest"`, `"pubsub-topic"`                        | all deliveries         |
| `"pubsub-subscription"`                                                  | one subscription       |
| `"pubsub-attempt"`, `"webhook-id"`                                       | all, of one attempt    |
| `"pubsub-sequence"`, `"pubsub-previous"` of a durable one                | nobody                 |
| `"@signature-params"` up to the nonce                                    | all, within one second |
| the nonce                                                                | nobody                 |
| `keyid`, `alg`                                                           | all deliveries         |
"""

from __future__ import annotations

from binascii import b2a_base64
from typing import Final, Literal

from cryptography.hazmat.primitives.hmac import HMAC

from httppubsubclient.protocol.keys import Credentials
from httppubsubclient.protocol.messages import Notification
from httppubsubclient.protocol.signatures import (
    ALGORITHM,
    DELIVERY,
    LABEL,
    component_list,
    content_digest,
    prepared_mac,
)
from httppubsubclient.protocol.topics import encode_topic

__all__ = ["NONCE_PREFIX_BYTES", "DeliveryHeads"]

NONCE_PREFIX_BYTES: Final = 12
"""Random bytes in front of a 32-bit counter: together the nonce of a delivery."""

_COVERED: Final = ("@method", "content-digest", "pubsub-topic", "pubsub-subscription", "pubsub-attempt", "webhook-id")
assert DELIVERY.always == _COVERED, "the base below is written in the order of the profile"
assert DELIVERY.when_sent == ("pubsub-sequence", "pubsub-previous"), "and its end, too"
_COMPONENTS: Final = {
    "plain": component_list(_COVERED),
    "first": component_list((*_COVERED, "pubsub-sequence")),
    "next": component_list((*_COVERED, "pubsub-sequence", "pubsub-previous")),
}
_CRLF: Final = "\r\n"


class DeliveryHeads:
    """Makes the header lines of one message for one attempt number within one second.

    `place` says which deliveries: `plain` ones of best effort, or durable ones, the `first` of their subscriptions or
    one that comes `next` after another.
    `now` in Unix seconds; `nonce_prefix` are `NONCE_PREFIX_BYTES` random bytes that no other object was given.
    Raises `ConfigurationError` when no key may be used now.
    """

    __slots__ = (
        "_base_end",
        "_base_middle",
        "_base_parameters",
        "_common",
        "_count",
        "_input_end",
        "_input_start",
        "_mac",
        "now",
    )

    def __init__(
        self,
        credentials: Credentials,
        notification: Notification,
        *,
        attempt: int,
        now: int,
        nonce_prefix: bytes,
        place: Literal["plain", "first", "next"] = "plain",
    ) -> None:
        self.now = now
        self._mac: HMAC | None = None
        self._count = 0
        digest = content_digest(notification.sha256)
        topic = encode_topic(notification.topic)
        proof = ""
        if credentials.type == "token":
            proof = f"authorization: Bearer {credentials.signing_key(now).secret.decode('ascii')}\r\n"
        elif credentials.type == "hmac":
            key = credentials.signing_key(now)
            start = f'{_COMPONENTS[place]};created={now};nonce="{nonce_prefix.hex()}'
            end = f'";keyid="{key.id}";alg="{ALGORITHM}"'
            self._mac = prepared_mac(key.secret).copy()
            self._mac.update(
                f'"@method": POST\n"content-digest": {digest}\n"pubsub-topic": {topic}\n"pubsub-subscription": '.encode(
                    "ascii"
                )
            )
            self._base_middle = f'\n"pubsub-attempt": {attempt}\n"webhook-id": {notification.message_id}'.encode(
                "ascii"
            )
            self._base_parameters = f'\n"@signature-params": {start}'.encode("ascii")
            self._base_end = end.encode("ascii")
            self._input_start = f"signature-input: {LABEL}={start}".encode("ascii")
            self._input_end = f"{end}\r\nsignature: {LABEL}=:".encode("ascii")
        traceparent = notification.traceparent
        self._common = (
            f"webhook-id: {notification.message_id}\r\n"
            f"webhook-timestamp: {now}\r\n"
            f"pubsub-topic: {topic}\r\n"
            f"pubsub-attempt: {attempt}\r\n"
            f"pubsub-hops: {notification.hops + 1}\r\n"
            f"content-type: {notification.content_type}\r\n"
            f"content-digest: {digest}\r\n"
            f"{'' if traceparent is None else f'traceparent: {traceparent}{_CRLF}'}{proof}"
            "pubsub-subscription: "
        ).encode("ascii")

    def lines(self, subscription_id: str, fragment: str | None) -> bytes:
        """All header lines of the delivery to one subscription; `fragment` is that of its callback URL."""
        return self._lines(subscription_id, fragment, b"", b"")

    def durable_lines(
        self, subscription_id: str, fragment: str | None, sequence: int, previous_message_id: str | None
    ) -> bytes:
        """As `lines`, with the place of this delivery among those of its subscription, which is this object's."""
        if previous_message_id is None:
            covered = b'\n"pubsub-sequence": %d' % sequence
            sent = b"pubsub-sequence: %d\r\n" % sequence
        else:
            previous = previous_message_id.encode("ascii")
            covered = b'\n"pubsub-sequence": %d\n"pubsub-previous": %s' % (sequence, previous)
            sent = b"pubsub-sequence: %d\r\npubsub-previous: %s\r\n" % (sequence, previous)
        return self._lines(subscription_id, fragment, covered, sent)

    def _lines(self, subscription_id: str, fragment: str | None, covered: bytes, sent: bytes) -> bytes:
        subscription = subscription_id.encode("ascii")
        end = b"\r\n" if fragment is None else b"\r\npubsub-fragment: %s\r\n" % fragment.encode("ascii")
        if self._mac is None:
            return b"".join((self._common, subscription, end, sent))
        self._count += 1
        nonce = b"%08x" % self._count
        mac = self._mac.copy()
        mac.update(
            b"%s%s%s%s%s%s" % (subscription, self._base_middle, covered, self._base_parameters, nonce, self._base_end)
        )
        signature = b2a_base64(mac.finalize(), newline=False)
        return b"".join(
            (self._common, subscription, end, sent, self._input_start, nonce, self._input_end, signature, b":\r\n")
        )
