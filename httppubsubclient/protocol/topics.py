"""Topics: 1 to 4096 arbitrary bytes, and their forms in a URL, in a header and in JSON.

| where           | form                                                                   | source           |
|-----------------|------------------------------------------------------------------------|------------------|
| query, header   | unreserved characters and `/` as they are, every other byte as `%XX`   | RFC 3986 2.1-2.3 |
| JSON            | `"topic"` when the bytes are UTF-8, otherwise `"topic_b64"` (RFC 4648) | docs/protocol.md |
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from urllib.parse import quote_from_bytes, unquote_to_bytes

from httppubsubclient.protocol.errors import InvalidTopic

__all__ = [
    "MAX_TOPIC_BYTES",
    "check_topic",
    "decode_topic",
    "encode_topic",
    "shown_topic",
    "topic_from_json",
    "topic_to_json",
]

MAX_TOPIC_BYTES = 4096

# Printable ASCII without the characters that end or change a query (& = # +), a percent sign only before two hex
# digits. "+" is refused rather than guessed: HTML forms mean a space by it, RFC 3986 a plus.
_ENCODED = re.compile(r"(?:[!-~](?<![%&#+])|%[0-9A-Fa-f]{2})*", re.ASCII)


def check_topic(topic: bytes) -> bytes:
    """Return `topic` when it is one, raise `InvalidTopic` when it is not."""
    if not isinstance(topic, bytes):
        raise InvalidTopic(f"a topic is bytes, not {type(topic).__name__}: write b'...' or call .encode()")
    if not 1 <= len(topic) <= MAX_TOPIC_BYTES:
        raise InvalidTopic(f"a topic has 1 to {MAX_TOPIC_BYTES} bytes; this one has {len(topic)}")
    return topic


def encode_topic(topic: bytes) -> str:
    """Percent-encode for a query or a header: `b"foo/b r"` gives `"foo/b%20r"`."""
    return quote_from_bytes(topic, safe="/")


def decode_topic(text: str) -> bytes:
    """The inverse of `encode_topic`; lenient about which characters are escaped, strict about everything else."""
    if len(text) > 3 * MAX_TOPIC_BYTES:
        raise InvalidTopic(f"a topic has at most {MAX_TOPIC_BYTES} bytes; this one is longer")
    if not _ENCODED.fullmatch(text):
        raise InvalidTopic(
            "a topic is percent-encoded: printable ASCII, every other byte as %XX ('+' as %2B, a space as %20)"
        )
    return check_topic(unquote_to_bytes(text))


def topic_to_json(topic: bytes) -> dict[str, str]:
    """`{"topic": text}` for UTF-8, `{"topic_b64": base64}` for anything else."""
    try:
        return {"topic": topic.decode("utf-8")}
    except UnicodeDecodeError:
        return {"topic_b64": base64.b64encode(topic).decode("ascii")}


def topic_from_json(fields: Mapping[str, object]) -> bytes:
    """The topic of an object that has exactly one of `topic` and `topic_b64`."""
    text, encoded = fields.get("topic"), fields.get("topic_b64")
    if (text is None) == (encoded is None):
        raise InvalidTopic("give exactly one of 'topic' (text) and 'topic_b64' (base64)")
    if isinstance(text, str):
        try:
            return check_topic(text.encode("utf-8"))
        except UnicodeEncodeError:
            raise InvalidTopic("'topic' holds a lone surrogate, which is not text: use 'topic_b64'") from None
    if isinstance(encoded, str):
        try:
            return check_topic(base64.b64decode(encoded, validate=True))
        except (binascii.Error, ValueError):
            raise InvalidTopic("'topic_b64' is not base64 (RFC 4648 section 4, padded)") from None
    raise InvalidTopic("'topic' and 'topic_b64' are strings")


def shown_topic(topic: bytes) -> str:
    """A topic for logs and error texts: printable, one line, at most 100 characters."""
    text = encode_topic(topic)
    return text if len(text) <= 100 else text[:97] + "..."
