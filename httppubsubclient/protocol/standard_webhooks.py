"""Standard Webhooks (standardwebhooks.com): signing v1 and v1a, and verifying them strictly.

Signed are the bytes `<id>.<timestamp>.<body>`. Keys are text with a prefix and base64 behind it:

| prefix   | key                                                          | signature            |
|----------|--------------------------------------------------------------|----------------------|
| `whsec_` | 24 to 64 random bytes, shared                                | `v1,` HMAC-SHA256    |
| `whsk_`  | ed25519 private key: 32 bytes seed, 32 bytes public key      | `v1a,` ed25519       |
| `whpk_`  | ed25519 public key, 32 bytes                                 |                      |

`webhook-signature` holds several of them, separated by single spaces. What is read here is bounded and exact, where
the reference verifiers take float timestamps, junk within base64, or raise whatever comes up: an id of
`[A-Za-z0-9_-]{1,64}`, which has no "." that could move the borders of what is signed; a timestamp of 10 to 12 digits,
signed as the text that arrived; at most 10 signatures in 4096 characters, each the base64 of exactly 32 or 64 bytes.

A header that is absent, empty or doubled by its `svix-` twin is `InvalidRequest`. Everything else that is wrong is
`Unauthorized`: there is one answer to a proof that does not hold, whatever is wrong with it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from httppubsubclient.protocol.errors import ConfigurationError, InvalidRequest, Unauthorized

__all__ = [
    "MAX_SIGNATURES",
    "MAX_SIGNATURE_HEADER_LENGTH",
    "PrivateKey",
    "PublicKey",
    "SharedSecret",
    "Webhook",
    "WebhookHead",
    "parse_key",
    "read_head",
    "sign_v1",
    "sign_v1a",
    "verify",
]

MAX_SIGNATURES: Final = 10
MAX_SIGNATURE_HEADER_LENGTH: Final = 4096

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_TIMESTAMP = re.compile(r"[0-9]{10,12}", re.ASCII)
# A version that is not known here is skipped, so that senders can add new ones beside the old.
_SIGNATURE = re.compile(r"(v[0-9]{1,3}[a-z]?),([A-Za-z0-9+/]{4,}={0,2})", re.ASCII)
_HEADERS: Final = ("id", "timestamp", "signature")

# Points whose order divides 8: with such a "public key" a signature can be made up for any message. As little-endian
# y without the sign bit: 0, 1, the two of order 8, -1, and the non-canonical p and p + 1 (RFC 8032 section 5.1.3).
_SMALL_ORDER: Final = frozenset(
    bytes.fromhex(text)
    for text in (
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    )
)


@dataclass(frozen=True, slots=True)
class SharedSecret:
    """A `whsec_` key: signs and verifies v1. `secret` has 24 to 64 bytes."""

    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if not 24 <= len(self.secret) <= 64:
            raise ConfigurationError(f"a whsec_ key has 24 to 64 bytes, not {len(self.secret)}")
        if len(set(self.secret)) == 1:
            raise ConfigurationError("a whsec_ key is random, not one byte repeated")

    def text(self) -> str:
        """`whsec_...`, which is secret."""
        return _text("whsec_", self.secret)


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A `whpk_` key: verifies v1a. `raw` has 32 bytes."""

    raw: bytes

    def __post_init__(self) -> None:
        if len(self.raw) != 32:
            raise ConfigurationError(f"a whpk_ key has 32 bytes, not {len(self.raw)}")
        if self.raw[:31] + bytes([self.raw[31] & 0x7F]) in _SMALL_ORDER:
            raise ConfigurationError("this whpk_ key is a point of small order, which proves nothing")

    def text(self) -> str:
        """`whpk_...`, to be given to receivers."""
        return _text("whpk_", self.raw)


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """A `whsk_` key: signs v1a. `seed` has 32 bytes."""

    seed: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.seed) != 32:
            raise ConfigurationError(f"the seed of a whsk_ key has 32 bytes, not {len(self.seed)}")
        if len(set(self.seed)) == 1:
            raise ConfigurationError("a whsk_ key is random, not one byte repeated")

    def public(self) -> PublicKey:
        """The key that verifies what this one signs."""
        return PublicKey(Ed25519PrivateKey.from_private_bytes(self.seed).public_key().public_bytes_raw())

    def text(self) -> str:
        """`whsk_...`, which is secret."""
        return _text("whsk_", self.seed + self.public().raw)


@dataclass(frozen=True, slots=True)
class Webhook:
    """What a verified webhook has proven; its body is the one that was given."""

    message_id: str
    timestamp: int
    """Unix seconds."""


def parse_key(text: str) -> SharedSecret | PrivateKey | PublicKey:
    """A key from its text. Raises `ConfigurationError`, which never shows the text."""
    prefix, separator, encoded = text.partition("_")
    if not separator or prefix not in ("whsec", "whsk", "whpk"):
        raise ConfigurationError("a webhook key begins with whsec_, whsk_ or whpk_")
    raw = _decoded(encoded)
    if raw is None:
        raise ConfigurationError(f"what follows {prefix}_ is not padded base64")
    if prefix == "whsec":
        return SharedSecret(raw)
    if prefix == "whpk":
        return PublicKey(raw)
    if len(raw) != 64:
        raise ConfigurationError(f"a whsk_ key has 64 bytes (seed and public key), not {len(raw)}")
    key = PrivateKey(raw[:32])
    if key.public().raw != raw[32:]:
        raise ConfigurationError("the two halves of this whsk_ key do not belong together")
    return key


def sign_v1(secret: SharedSecret, message_id: str, timestamp: int, body: bytes) -> str:
    """`v1,<base64>`, one entry of webhook-signature. Raises `InvalidRequest` for an id that could not be verified."""
    return "v1," + base64.b64encode(_hmac(secret, _signed(message_id, str(timestamp), body))).decode("ascii")


def sign_v1a(key: PrivateKey, message_id: str, timestamp: int, body: bytes) -> str:
    """`v1a,<base64>`, one entry of webhook-signature. Raises `InvalidRequest` for an id that could not be verified."""
    signature = Ed25519PrivateKey.from_private_bytes(key.seed).sign(_signed(message_id, str(timestamp), body))
    return "v1a," + base64.b64encode(signature).decode("ascii")


@dataclass(frozen=True, slots=True)
class WebhookHead:
    """The three headers of a webhook, well-formed and in time; nothing is proven yet. Made by `read_head`."""

    message_id: str
    timestamp: str
    """Unix seconds as they arrived: this very text is signed."""
    signatures: tuple[tuple[str, bytes], ...]
    """(version, signature) for the versions known here."""

    def check(self, keys: Sequence[SharedSecret | PublicKey], body: bytes) -> Webhook:
        """What this body proves with one of `keys`. Raises `Unauthorized`."""
        signed = _signed(self.message_id, self.timestamp, body)
        if not any(_holds(key, self.signatures, signed) for key in keys):
            raise Unauthorized("none of the webhook signatures holds with a key known here", reason="mismatch")
        return Webhook(self.message_id, int(self.timestamp))


def read_head(headers: Mapping[str, str], *, now: float, tolerance_seconds: int) -> WebhookHead:
    """All that can be told about a webhook before its body is read. Raises `InvalidRequest` or `Unauthorized`."""
    message_id, timestamp, signatures = (_header(headers, name) for name in _HEADERS)
    if not _ID.fullmatch(message_id):
        raise Unauthorized("webhook-id is 1 to 64 characters of A-Z a-z 0-9 _ -", reason="malformed")
    if not _TIMESTAMP.fullmatch(timestamp):
        raise Unauthorized("webhook-timestamp is Unix seconds, 10 to 12 digits", reason="malformed")
    sent = _parse_signatures(signatures)
    age = now - int(timestamp)
    if not -tolerance_seconds <= age <= tolerance_seconds:
        raise Unauthorized(
            f"webhook-timestamp is {abs(age):.0f} s {'old' if age > 0 else 'ahead'}, by the clock here, and "
            f"{tolerance_seconds} s are tolerated",
            reason="outside_tolerance",
        )
    return WebhookHead(message_id, timestamp, tuple(sent))


def verify(
    keys: Sequence[SharedSecret | PublicKey],
    headers: Mapping[str, str],
    body: bytes,
    *,
    now: float,
    tolerance_seconds: int,
) -> Webhook:
    """Check the signature of a webhook: one that holds with one of `keys` is enough (rotation).

    `headers` has lower-case names; what came several times is joined with ", ", and so refused. The timestamp may
    differ from `now` by `tolerance_seconds` in both directions. A v1 signature counts only where a whsec_ key is
    given, so there is no way down from v1a. Raises `InvalidRequest` or `Unauthorized`, nothing else.
    """
    return read_head(headers, now=now, tolerance_seconds=tolerance_seconds).check(keys, body)


def _holds(key: SharedSecret | PublicKey, sent: Sequence[tuple[str, bytes]], signed: bytes) -> bool:
    if isinstance(key, SharedSecret):
        expected = _hmac(key, signed)
        return any(version == "v1" and hmac.compare_digest(expected, signature) for version, signature in sent)
    return any(version == "v1a" and _ed25519_holds(key, signature, signed) for version, signature in sent)


def _ed25519_holds(key: PublicKey, signature: bytes, signed: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(key.raw).verify(signature, signed)
    except (InvalidSignature, ValueError):
        return False
    return True


def _parse_signatures(text: str) -> list[tuple[str, bytes]]:
    """(version, signature) for the versions known here. One entry of wrong form spoils them all."""
    entries = text.split(" ", MAX_SIGNATURES) if len(text) <= MAX_SIGNATURE_HEADER_LENGTH else []
    if not 1 <= len(entries) <= MAX_SIGNATURES:
        raise Unauthorized(
            f"webhook-signature holds at most {MAX_SIGNATURES} signatures in {MAX_SIGNATURE_HEADER_LENGTH} characters",
            reason="malformed",
        )
    signatures = []
    for entry in entries:
        match = _SIGNATURE.fullmatch(entry)
        signature = None if match is None else _decoded(match[2])
        if match is None or signature is None:
            raise _malformed_signature()
        expected_length = {"v1": 32, "v1a": 64}.get(match[1])
        if expected_length is None:
            continue
        if len(signature) != expected_length:
            raise _malformed_signature()
        signatures.append((match[1], signature))
    return signatures


def _header(headers: Mapping[str, str], name: str) -> str:
    value = headers.get(f"webhook-{name}")
    if not value:
        raise InvalidRequest(f"the header webhook-{name} is missing or empty")
    if f"svix-{name}" in headers:
        raise InvalidRequest(f"both webhook-{name} and svix-{name} were sent: only one can be what was signed")
    return value


def _signed(message_id: str, timestamp: str, body: bytes) -> bytes:
    if not _ID.fullmatch(message_id) or not _TIMESTAMP.fullmatch(timestamp):
        raise InvalidRequest("signed are an id of 1 to 64 characters of A-Z a-z 0-9 _ -, and 10 to 12 digits of time")
    return f"{message_id}.{timestamp}.".encode("ascii") + body


def _hmac(secret: SharedSecret, signed: bytes) -> bytes:
    return hmac.digest(secret.secret, signed, hashlib.sha256)


def _text(prefix: str, raw: bytes) -> str:
    return prefix + base64.b64encode(raw).decode("ascii")


def _decoded(text: str) -> bytes | None:
    """Base64, padded and canonical (RFC 4648 section 3.5); None for anything else."""
    try:
        decoded = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
    return decoded if base64.b64encode(decoded).decode("ascii") == text else None


def _malformed_signature() -> Unauthorized:
    return Unauthorized(
        "webhook-signature is 'v1,<base64 of 32 bytes>' or 'v1a,<base64 of 64 bytes>'", reason="malformed"
    )
