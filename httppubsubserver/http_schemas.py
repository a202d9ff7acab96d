"""The JSON of the HTTP API: what is accepted (pydantic models, strict), what is answered, and their OpenAPI entries."""

from __future__ import annotations

from copy import deepcopy
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from httppubsubclient.protocol.errors import PROBLEM_CONTENT_TYPE, WIRE, PubSubError
from httppubsubclient.protocol.options import DeliveryOptions, options_from_json
from httppubsubclient.protocol.patterns import Pattern, pattern_from_json

__all__ = [
    "APPLIED_HEADERS",
    "LIST_HEADERS",
    "MAX_SUBSCRIPTIONS_OF_A_SET",
    "NOTIFY_OPENAPI",
    "PRECONDITION_OPENAPI",
    "SECURITY",
    "SECURITY_SCHEMES",
    "SUBSCRIPTION_ID_OPENAPI",
    "HealthAnswer",
    "NotifyAnswer",
    "PatternFields",
    "Problem",
    "SubscribeFields",
    "SubscriptionAnswer",
    "SubscriptionPage",
    "SubscriptionSet",
    "WholeSetFields",
    "json_body",
    "problems",
]

MAX_SUBSCRIPTIONS_OF_A_SET: Final = 10_000

_COUNTS_EXAMPLE: JsonDict = {
    "message_id": "msg_p5jXN8AQM9LWM0D4loKWxJ8f",
    "matched": 3,
    "notified": 2,
    "pending": 0,
    "failed": 1,
}
_PATTERN_EXAMPLE: JsonDict = {"glob": "orders/*/paid", "lease_seconds": 86400}
_SUBSCRIPTION_EXAMPLE: JsonDict = {
    "id": "sub_0h9m2Zt4cQ7hJw3xkYb5Dg",
    "url": "http://127.0.0.1:3002/v1/receive",
    "glob": "orders/*/paid",
    "delivery": "best_effort",
    "lease_seconds": 86400,
    "created_at": "2026-11-21T09:30:00.000000Z",
    "expires_at": "2026-11-22T09:30:00.000000Z",
}


class PatternFields(BaseModel):
    """One pattern with its options: exactly one of `topic`, `topic_b64`, `glob` and `mqtt`."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [_PATTERN_EXAMPLE]})

    topic: str | None = Field(None, description="Exactly this topic, UTF-8, 1 to 4096 bytes.")
    topic_b64: str | None = Field(None, description="Exactly this topic, base64: for topics that are not UTF-8.")
    glob: str | None = Field(None, description="`*`, `?`, `[a-z]`, `**` as a whole segment; at most 1024 bytes.")
    mqtt: str | None = Field(None, description="An MQTT 5.0 topic filter: `+`, `#`; at most 1024 bytes.")
    delivery: Literal["best_effort", "durable"] = Field(
        "best_effort",
        description="`best_effort`: quick retries for some seconds, then the message is gone. "
        "`durable`: kept, and tried again for days until it is taken or given up.",
    )
    ordered: bool = Field(
        False, description="Durable only: one message at a time, in the order in which they were accepted."
    )
    retry_schedule_seconds: list[float] | None = Field(
        None,
        fail_fast=True,
        description="Durable only: the waits before attempt 1, 2, ... instead of the usual ones; "
        "1 to 64 numbers, all but the first greater than 0.",
    )
    format: Literal["raw", "cloudevents-binary", "cloudevents-structured"] = Field(
        "raw",
        description="What a delivery looks like: the published bytes as they are, or a CloudEvents 1.0.2 event, with "
        "its attributes as headers or as one JSON document.",
    )
    handshake: Literal["websub", "cloudevents"] = Field(
        "websub",
        description="How the callback is asked whether it agrees, if it is: by `GET` with a challenge, or, with a "
        "format of CloudEvents, by `OPTIONS`.",
    )
    secret: str | None = Field(
        None,
        description="Deliveries are signed with a secret of their own, as Standard Webhooks says: `whsec_...`, "
        "`whsk_...`, or `generate` for a new one, which is in this answer and never shown again, or `generate-v1a` for "
        "one of which the broadcaster shows the public key alone. "
        "Another one than before takes its place; left out, what there is stays.",
        max_length=512,
    )
    secret_grace_seconds: int | None = Field(
        None, description="How long the secret before this one is used, too; default 24 hours.", ge=0, le=604_800
    )
    allow_downgrade: bool = Field(False, description="A secret of v1 may take the place of one of v1a.")
    lease_seconds: int | None = Field(
        None, description="The subscription ends so long after it was last renewed; default 24 hours."
    )
    permanent: bool = Field(False, description="It never ends by itself. For keys that are `admin`.")

    def pattern(self) -> Pattern:
        """Raises `InvalidRequest`, `InvalidTopic` or `InvalidGlob`."""
        return pattern_from_json(
            {"topic": self.topic, "topic_b64": self.topic_b64, "glob": self.glob, "mqtt": self.mqtt}
        )

    def options(self) -> DeliveryOptions:
        """Raises `InvalidRequest` for options that do not go together."""
        return options_from_json(
            {
                "delivery": self.delivery,
                "ordered": self.ordered,
                "retry_schedule_seconds": self.retry_schedule_seconds,
                "format": self.format,
            }
        )


class SubscribeFields(PatternFields):
    """A subscription to make."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        json_schema_extra={"examples": [{"url": "http://127.0.0.1:3002/v1/receive", **_PATTERN_EXAMPLE}]},
    )

    url: str = Field(
        description="Where to POST, http or https. A fragment is part of the name and comes back as Pubsub-Fragment."
    )
    resume: bool = Field(
        False,
        description="Durable only: the subscriber is back. What waits for its next attempt is due now, with its "
        "schedule from the beginning, and a pause of its callback is over: one attempt goes out, then the others.",
    )


class WholeSetFields(BaseModel):
    """All subscriptions that a callback URL shall have. Read entry by entry (whole_sets.py); this describes it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    subscriptions: list[PatternFields] = Field(max_length=MAX_SUBSCRIPTIONS_OF_A_SET)


class NotifyAnswer(BaseModel):
    """matched = notified + pending + failed."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [_COUNTS_EXAMPLE],
        }
    )

    message_id: str = Field(description="The same for every delivery of this message: `Webhook-Id`.")
    matched: int = Field(description="Subscriptions that the topic matched.")
    notified: int = Field(description="Confirmed by a 2xx answer.")
    pending: int = Field(description="Not decided when this was answered.")
    failed: int = Field(description="Given up.")


class SubscriptionAnswer(BaseModel):
    """A subscription as it is kept."""

    model_config = ConfigDict(json_schema_extra={"examples": [_SUBSCRIPTION_EXAMPLE]})

    id: str
    url: str = Field(description="The callback URL in its canonical form.")
    topic: str | None = None
    topic_b64: str | None = None
    glob: str | None = None
    mqtt: str | None = None
    delivery: Literal["best_effort", "durable"]
    ordered: bool | None = Field(None, description="There when it is true.")
    retry_schedule_seconds: list[float] | None = Field(None, description="There when it has one of its own.")
    format: Literal["cloudevents-binary", "cloudevents-structured"] | None = Field(
        None, description="There when it is not raw."
    )
    signature: Literal["v1", "v1a"] | None = Field(None, description="There when it has a secret of its own.")
    public_key: str | None = Field(None, description="`whpk_...`: by which signatures of v1a are verified.")
    secret: str | None = Field(None, description="The one that was generated by this call, this once.")
    permanent: bool | None = Field(None, description="There when it is true.")
    lease_seconds: int | None
    created_at: str = Field(description="RFC 3339, UTC.")
    expires_at: str | None = Field(description="RFC 3339, UTC; renewed by subscribing again.")


class SubscriptionPage(BaseModel):
    """A page of subscriptions."""

    subscriptions: list[SubscriptionAnswer]
    cursor: str | None = Field(description="Give it to the next call; null on the last page.")


class SubscriptionSet(BaseModel):
    """All subscriptions of one callback URL, in the order in which they were asked for."""

    url: str
    subscriptions: list[SubscriptionAnswer]


class HealthAnswer(BaseModel):
    """A probe's answer."""

    status: Literal["live", "ready"]


class Problem(BaseModel):
    """An error, RFC 9457."""

    type: Literal["about:blank"]
    status: int
    title: str
    detail: str = Field(description="What was expected, what came, what to do.")
    code: str = Field(description="Stable; see docs/protocol.md for the table.")


_PROBLEM_SCHEMA: Final = Problem.model_json_schema()


def problems(*errors: type[PubSubError]) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI entries of these errors, by status, with one example for each."""
    by_status: dict[int, list[type[PubSubError]]] = {}
    for error in errors:
        by_status.setdefault(WIRE[error].status, []).append(error)
    return {status: _problem_entry(status, of_status) for status, of_status in sorted(by_status.items())}


def _problem_entry(status: int, errors: list[type[PubSubError]]) -> dict[str, Any]:
    examples = {
        error.code: {
            "value": {
                "type": "about:blank",
                "status": status,
                "title": WIRE[error].title,
                "detail": (error.__doc__ or "").splitlines()[0],
                "code": error.code,
            }
        }
        for error in errors
    }
    entry: dict[str, Any] = {
        "description": " / ".join(WIRE[error].title for error in errors),
        "content": {PROBLEM_CONTENT_TYPE: {"schema": deepcopy(_PROBLEM_SCHEMA), "examples": examples}},
    }
    if status in _PROBLEM_HEADERS:
        name, description = _PROBLEM_HEADERS[status]
        entry["headers"] = {name: {"description": description, "schema": {"type": "string"}}}
    return entry


_PROBLEM_HEADERS = {
    401: ("WWW-Authenticate", "`Signature` or `Bearer`: how to prove who you are."),
    429: ("Retry-After", "Seconds, where waiting helps."),
    412: ("ETag", "Of the present set."),
    503: ("Retry-After", "Seconds."),
}

SECURITY: dict[str, Any] = {
    "security": [{"hmac": []}, {"token": []}, {}],
}
"""What each route but the probes asks for: the one that this broadcaster was set up with."""

SECURITY_SCHEMES: dict[str, Any] = {
    "hmac": {
        "type": "apiKey",
        "in": "header",
        "name": "Signature",
        "description": "RFC 9421 with hmac-sha256, together with Signature-Input; see docs/protocol.md.",
    },
    "token": {
        "type": "http",
        "scheme": "bearer",
        "description": "A token of the secrets file, or a JSON Web Token of the issuer that is set.",
    },
}


def json_body(model: type[BaseModel]) -> dict[str, Any]:
    """The OpenAPI entry of a JSON body that the route reads by itself, after the credentials were checked."""
    schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})
    return {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": _inlined(schema, definitions)}},
        }
    }


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """`schema` with its references to `definitions` replaced by what they name (none of ours is recursive)."""
    if isinstance(schema, list):
        return [_inlined(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    name = schema.get("$ref", "").removeprefix("#/$defs/") if isinstance(schema.get("$ref"), str) else ""
    if name:
        return _inlined(definitions[name], definitions)
    return {key: _inlined(value, definitions) for key, value in schema.items()}


def _header(name: str, description: str, *, required: bool = False, **schema: Any) -> dict[str, Any]:
    return {
        "name": name,
        "in": "header",
        "required": required,
        "description": description,
        "schema": {"type": "string", **schema},
    }


LIST_HEADERS: dict[str, Any] = {
    "headers": {
        "ETag": {
            "description": "Of the whole set of the callback URL, strong; for If-Match of a PUT.",
            "schema": {"type": "string"},
        }
    }
}

PRECONDITION_OPENAPI: dict[str, Any] = {
    "parameters": [_header("If-Match", "The ETag that a GET or PUT of this URL's set returned.")]
}

SUBSCRIPTION_ID_OPENAPI: dict[str, Any] = {
    "parameters": [
        {
            "name": "subscription_id",
            "in": "path",
            "required": True,
            "description": "The `id` that subscribing answered.",
            "schema": {"type": "string"},
        }
    ]
}
"""Written here, not taken from a parameter of the function: any text may be asked for, what is unknown is a 404."""

APPLIED_HEADERS: dict[str, Any] = {
    "headers": {"Preference-Applied": {"description": "What of `Prefer` was honoured.", "schema": {"type": "string"}}}
}

NOTIFY_OPENAPI: dict[str, Any] = {
    "requestBody": {
        "required": False,
        "description": "The message, any bytes; forwarded unchanged.",
        "content": {"*/*": {"schema": {"type": "string", "format": "binary"}}},
    },
    "parameters": [
        {
            "name": "topic",
            "in": "query",
            "required": True,
            "description": "1 to 4096 bytes, percent-encoded (RFC 3986; `+` is written %2B).",
            "schema": {"type": "string", "minLength": 1},
            "example": "orders/17/paid",
        },
        _header("Content-Digest", "RFC 9530, sha-256. Required with hmac authentication when there is a body."),
        _header("Idempotency-Key", "The same message with the same key is sent once.", minLength=1, maxLength=255),
        _header("Prefer", "RFC 7240: `respond-async`, or `wait=SECONDS`."),
        _header("traceparent", "W3C Trace Context; forwarded."),
    ],
}
