"""Header fields as they arrive, as one dict that leaves no two readers of a message different choices."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from httppubsubclient.protocol.errors import InvalidRequest

__all__ = ["SINGLE", "parse_headers"]

SINGLE: Final = frozenset(
    {
        "authorization",
        "content-digest",
        "content-encoding",
        "content-length",
        "content-type",
        "host",
        "idempotency-key",
        "pubsub-attempt",
        "pubsub-deliver-at",
        "pubsub-expires",
        "pubsub-fragment",
        "pubsub-previous",
        "pubsub-sequence",
        "pubsub-subscription",
        "pubsub-topic",
        "signature",
        "signature-input",
        "traceparent",
        "transfer-encoding",
        "webhook-id",
        "webhook-signature",
        "webhook-timestamp",
    }
)
"""Two of one of these would let the proof and its reader look at different ones."""


def parse_headers(raw: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """Names in lower case; what comes more than once is joined with ", " (RFC 9110 section 5.3).

    Raises `InvalidRequest` when one of `SINGLE`, or an attribute of an event, comes more than once.
    """
    headers: dict[str, str] = {}
    for raw_name, raw_value in raw:
        name = _NAMES.get(raw_name) or raw_name.decode("latin-1").lower()
        value = raw_value.decode("latin-1").strip(" \t")
        if name in headers:
            if name in SINGLE or name.startswith("ce-"):
                raise InvalidRequest(f"the header {name} came more than once")
            value = f"{headers[name]}, {value}"
        headers[name] = value
    return headers


_NAMES: Final = {name.encode("ascii"): name for name in SINGLE}
"""Most names are these already, in lower case: found, not made."""
