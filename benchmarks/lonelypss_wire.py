"""The three messages of lonelypss that a load needs: a notify, a subscription and the answer of a callback.

    authorization: X-HMAC <seconds>:<nonce>:<base64 of HMAC-SHA512(secret, kind, seconds, nonce, fields)>

Written from lonelypsp 0.0.47 (`lonelypsp/auth/helpers/hmac_auth_config.py`, `lonelypsp/stateless/constants.py`). All
numbers are big-endian; a field is its length (one to eight bytes) and then itself. No tracing is sent: it is a field
of no bytes. The broadcaster remembers each code it has seen, in SQLite, so nothing signed can be prepared beforehand;
one signature takes some microseconds, the message that carries it hundreds of them.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from pathlib import Path

SUBSCRIBE_EXACT, NOTIFY, CONFIRM_RECEIVE = 1, 3, 8
"""Kinds of what is signed."""
RESPONSE_CONFIRM_RECEIVE = 8
"""The first two bytes of a callback's answer."""
NONCE = b"n"
"""One is enough: the identifier, or the URL of a subscription, already makes each code another."""


def secret_of(file: Path, direction: str) -> bytes:
    """`to-broadcaster` or `to-subscriber` of a subscriber-secrets.json."""
    return base64.urlsafe_b64decode(json.loads(file.read_text())[direction]["secret"] + "==")


def field(value: bytes, width: int = 2) -> bytes:
    return len(value).to_bytes(width, "big") + value


def authorization(secret: bytes, kind: int, fields: bytes) -> bytes:
    now = int(time.time())
    signed = kind.to_bytes(1, "big") + now.to_bytes(8, "big") + field(NONCE, 1) + fields
    code = base64.b64encode(hmac.digest(secret, signed, "sha512"))
    return b"X-HMAC %d:%b:%b" % (now, NONCE, code)


def subscription(secret: bytes, url: str, topic: bytes) -> tuple[bytes, bytes]:
    """Authorization and body of POST /v1/subscribe/exact, without a URL for missed messages."""
    place, no_recovery = field(url.encode()), field(b"")
    return (
        authorization(secret, SUBSCRIBE_EXACT, field(b"") + place + no_recovery + field(topic)),
        place + field(topic) + no_recovery + field(b""),
    )


def notify(secret: bytes, topic: bytes, identifier: bytes, message: bytes) -> tuple[bytes, bytes]:
    """Authorization and body of POST /v1/notify."""
    digest = hashlib.sha512(message).digest()
    return (
        authorization(secret, NOTIFY, field(b"") + field(topic) + field(identifier, 1) + digest),
        field(topic) + digest + field(b"") + field(identifier, 1) + field(message, 8),
    )


def notified(answer: bytes) -> int:
    """How many subscribers confirmed, of the answer to a notify: kind, authorization, tracing, this, identifier."""
    at = 2
    for _ in range(2):
        at += 2 + int.from_bytes(answer[at : at + 2], "big")
    return int.from_bytes(answer[at : at + 4], "big")


def identifier_of(body: bytes) -> bytes:
    """Of a message as it comes to a callback: tracing, topic, identifier, message."""
    at = 0
    for _ in range(2):
        at += 2 + int.from_bytes(body[at : at + 2], "big")
    return body[at + 1 : at + 1 + body[at]]


def confirmation(secret: bytes, url: bytes, identifier: bytes) -> bytes:
    """The body of a callback's answer: one subscriber has it."""
    name, one = field(identifier, 1), (1).to_bytes(4, "big")
    code = authorization(secret, CONFIRM_RECEIVE, field(b"") + name + one + field(url))
    return RESPONSE_CONFIRM_RECEIVE.to_bytes(2, "big") + field(code) + field(b"") + name + one
