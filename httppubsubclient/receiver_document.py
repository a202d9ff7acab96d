"""What the OpenAPI document of an application says about the route that takes deliveries."""

from __future__ import annotations

from typing import Any

from httppubsubclient.protocol.errors import PROBLEM_CONTENT_TYPE

__all__ = ["DESCRIPTION", "PARAMETERS", "REQUEST_BODY", "RESPONSES"]

DESCRIPTION = (
    "One delivery: the published bytes as the body, or in the format that the subscription asked for, everything about "
    "them in headers. 2xx acknowledges that the message is in the buffer of each subscription it is for, or, if a "
    "durable subscription asks for that, that the application has it. An answer of 410 makes the broadcaster forget "
    "the subscription."
)


def _header(name: str, description: str, example: str, *, required: bool = True) -> dict[str, Any]:
    return {
        "name": name,
        "in": "header",
        "required": required,
        "description": description,
        "schema": {"type": "string"},
        "example": example,
    }


PARAMETERS = [
    _header("Webhook-Id", "The message id: the same on each attempt", "msg_2mVnQp"),
    _header("Webhook-Timestamp", "Unix seconds of this attempt", "1795226400"),
    _header("Pubsub-Topic", "The topic, percent-encoded", "foo/bar"),
    _header("Pubsub-Subscription", "The subscription id", "sub_7Hq2"),
    _header("Pubsub-Attempt", "1, 2, ...", "1"),
    _header("Pubsub-Fragment", "The fragment of the subscribed URL", "1", required=False),
    _header("Pubsub-Sequence", "Durable: 1, 2, 3 ... among those of the subscription", "7", required=False),
    _header("Pubsub-Previous", "Durable: the message id of the one before", "msg_1kWsRt", required=False),
    _header("Content-Digest", "SHA-256 of the body (RFC 9530)", "sha-256=:...:", required=False),
    _header("Signature-Input", "With hmac (RFC 9421)", "httppubsub=(...)", required=False),
    _header("Signature", "With hmac (RFC 9421)", "httppubsub=:...:", required=False),
    _header("Webhook-Signature", "With a secret of the subscription's own, instead", "v1,...", required=False),
    _header("Pubsub-Hops", "How many broadcasters it came through", "1", required=False),
    _header("traceparent", "As published (W3C Trace Context)", "00-...-01", required=False),
]

REQUEST_BODY = {
    "required": True,
    "description": "The published bytes, unchanged",
    "content": {"*/*": {"schema": {"type": "string", "format": "binary"}}},
}

_PROBLEM = {PROBLEM_CONTENT_TYPE: {"schema": {"type": "object"}}}

RESPONSES: dict[int | str, dict[str, Any]] = {
    400: {
        "description": "Malformed headers, another body than Content-Digest names, or not the format asked for",
        "content": _PROBLEM,
    },
    401: {"description": "No proof, one that does not hold, or one that was used before", "content": _PROBLEM},
    408: {"description": "The body did not arrive in time", "content": _PROBLEM},
    409: {
        "description": "This durable subscription is not entered at present, others of its name are",
        "content": _PROBLEM,
    },
    410: {"description": "There is no such subscription here: forget it", "content": _PROBLEM},
    413: {"description": "The body is too large", "content": _PROBLEM},
    415: {"description": "Content-Encoding is not identity", "content": _PROBLEM},
    422: {"description": "The topic is malformed", "content": _PROBLEM},
    503: {"description": "A buffer is full, a durable name is away: again after Retry-After", "content": _PROBLEM},
}
