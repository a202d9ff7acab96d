"""The JSON of the routes that look after deliveries: what is accepted, what is answered, and their OpenAPI entries."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from httppubsubserver.operations import REPLAYED_STATES, STATES, selection_of
from httppubsubserver.stores.durable import DeliveryState, Selection

__all__ = [
    "BODY_OPENAPI",
    "CATCH_UP_OPENAPI",
    "LIST_OPENAPI",
    "MESSAGE_ID_OPENAPI",
    "REPLAY_LOCATION",
    "REPLAY_OPENAPI",
    "SHOW_MESSAGE_OPENAPI",
    "CancelAnswer",
    "DeliveryAnswer",
    "DeliveryPageAnswer",
    "MessageAnswer",
    "ReplayAnswer",
    "ReplayFields",
    "SequencePageAnswer",
]

_DELIVERY_EXAMPLE: JsonDict = {
    "message_id": "msg_p5jXN8AQM9LWM0D4loKWxJ8f",
    "subscription_id": "sub_0h9m2Zt4cQ7hJw3xkYb5Dg",
    "topic": "orders/17/paid",
    "url": "http://127.0.0.1:3002/v1/receive",
    "state": "dead",
    "reason": "exhausted",
    "sequence": 12,
    "previous_message_id": "msg_0q2Lr0yXk1mB8m5zQvT9aw",
    "accepted_at": "2026-11-21T09:30:00.000000Z",
    "due_at": None,
    "leased_until": None,
    "attempts": 10,
    "updated_at": "2026-11-25T01:12:00.000000Z",
    "status": 500,
}
_REPLAY_EXAMPLE: JsonDict = {"subscription_id": "sub_0h9m2Zt4cQ7hJw3xkYb5Dg", "from": "2026-11-21T00:00:00Z"}


class ReplayFields(BaseModel):
    """Which deliveries shall be sent again: those that meet all of it, and at least one of it but the state."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [_REPLAY_EXAMPLE]})

    message_id: str | None = Field(None, description="Of this message.")
    subscription_id: str | None = Field(None, description="Of this subscription.")
    from_: str | None = Field(None, alias="from", description="Accepted at this moment or later, RFC 3339.")
    until: str | None = Field(None, description="Accepted before this moment, RFC 3339.")
    state: Literal["dead", "delivered", "cancelled"] = Field("dead", description="That are in this state.")

    def selection(self) -> Selection:
        """Raises `InvalidRequest`."""
        return selection_of(
            state=self.state,
            subscription_id=self.subscription_id,
            message_id=self.message_id,
            accepted_from=self.from_,
            accepted_until=self.until,
            states=REPLAYED_STATES,
        )


class DeliveryAnswer(BaseModel):
    """A message for one durable subscription, and what became of it. Moments are RFC 3339, UTC."""

    model_config = ConfigDict(json_schema_extra={"examples": [_DELIVERY_EXAMPLE]})

    message_id: str
    subscription_id: str
    topic: str | None = None
    topic_b64: str | None = None
    url: str = Field(description="The callback URL without its fragment.")
    state: DeliveryState
    reason: str | None = Field(description="Why it is dead or cancelled.")
    sequence: int = Field(description="`Pubsub-Sequence`")
    previous_message_id: str | None = Field(description="`Pubsub-Previous`")
    accepted_at: str
    due_at: str | None = Field(
        description="When the next attempt is due; null while one is under way, and when it is over."
    )
    leased_until: str | None = Field(description="An attempt is under way, until then at the latest.")
    attempts: int = Field(description="Begun since it was accepted or sent again.")
    updated_at: str
    status: int | None = Field(description="Of the last answer.")


class DeliveryPageAnswer(BaseModel):
    """A page of deliveries."""

    deliveries: list[DeliveryAnswer]
    cursor: str | None = Field(
        description="Give it to the next call; null on the last page. A page before that may be short, even empty."
    )


class AttemptAnswer(BaseModel):
    """An attempt that failed."""

    number: int = Field(description="1, 2, ... over the whole life of the delivery.")
    began_at: str
    ended_at: str
    status: int | None = Field(description="null: there was no answer, see `error`.")
    error: str | None
    answer: str = Field(
        description="The beginning of the answer's body, at most 1024 bytes: what cannot be shown is \\xNN or \\uNNNN."
    )


class AttemptedDeliveryAnswer(DeliveryAnswer):
    """A delivery with its attempts."""

    failed_attempts: list[AttemptAnswer] = Field(description="The last 32.")


class MessageAnswer(BaseModel):
    """A message without its body, and a page of its deliveries."""

    message_id: str
    topic: str | None = None
    topic_b64: str | None = None
    content_type: str
    size: int = Field(description="Of the body, in bytes.")
    accepted_at: str
    deliver_at: str | None = Field(description="Of a scheduled one.")
    expires_at: str | None
    body_kept: bool = Field(description="false: retention has taken the body, and it cannot be sent again.")
    deliveries: list[AttemptedDeliveryAnswer]
    cursor: str | None = Field(description="Give it to the next call; null on the last page.")


class CancelAnswer(BaseModel):
    """How many deliveries were called off."""

    cancelled: int = Field(description="Those of which no attempt was begun.")


class ReplayAnswer(BaseModel):
    """How far a replay has got. `finished_at` says when all of it was due again, not that it was delivered."""

    replay: int = Field(description="Its number.")
    message_id: str | None
    subscription_id: str | None
    from_: str | None = Field(alias="from")
    until: str | None
    state: Literal["dead", "delivered", "cancelled"]
    requested_at: str
    replayed: int = Field(description="Deliveries that are pending again.")
    skipped: int = Field(
        description="That could not be: the subscription is gone, the body is no longer kept, the message has expired."
    )
    finished_at: str | None


class SequencedAnswer(BaseModel):
    """A message as one of a subscription's."""

    sequence: int
    previous_message_id: str | None
    state: str = Field(description="Of its delivery; `cancelled`: it was called off, and is not wanted any more.")
    message_id: str
    topic: str | None = None
    topic_b64: str | None = None
    content_type: str
    size: int
    accepted_at: str
    deliver_at: str | None = Field(description="Of a scheduled one: it is not due before that, and may be called off.")
    expires_at: str | None = Field(description="From then on nobody wants it.")
    body_kept: bool
    data_b64: str | None = Field(
        description="The body, base64; null above 256 KiB (see `GET /v1/messages/{id}/body`) and when it is not kept."
    )


class SequencePageAnswer(BaseModel):
    """What a subscription got after a sequence, in order."""

    messages: list[SequencedAnswer]
    complete: bool = Field(
        description="Between `after` and the last of these nothing is missing, no number and no body."
    )
    last: int = Field(
        description="The last sequence of the subscription: ask again after the last of these until it is that."
    )


# -- OpenAPI ----------------------------------------------------------------------------------------------------------


def _in_path(name: str, description: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "description": description, "schema": {"type": "string"}}


def _in_query(name: str, description: str, **schema: Any) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "description": description, "schema": schema}


def _limit(most: int, default: int) -> dict[str, Any]:
    return _in_query("limit", "At most so many.", type="integer", minimum=1, maximum=most, default=default)


_CURSOR = _in_query("cursor", "The `cursor` of the page before.", type="string")
_MESSAGE_ID = _in_path("message_id", "The `message_id` that the notify was answered with.")

# Written here, not taken from parameters of the functions: those would be read before the credentials are checked.
LIST_OPENAPI: dict[str, Any] = {
    "parameters": [
        _in_query("state", "Only those in this state.", type="string", enum=list(STATES)),
        _in_query("subscription", "Only those of the subscription with this id.", type="string"),
        _in_query("message", "Only those of the message with this id.", type="string"),
        _in_query("from", "Accepted at this moment or later, RFC 3339.", type="string", format="date-time"),
        _in_query("until", "Accepted before this moment, RFC 3339.", type="string", format="date-time"),
        _CURSOR,
        _limit(1000, 100),
    ]
}

MESSAGE_ID_OPENAPI: dict[str, Any] = {"parameters": [_MESSAGE_ID]}

SHOW_MESSAGE_OPENAPI: dict[str, Any] = {"parameters": [_MESSAGE_ID, _CURSOR, _limit(100, 20)]}

REPLAY_OPENAPI: dict[str, Any] = {
    "parameters": [_in_path("number", "The `replay` that asking for it was answered with.")]
}

CATCH_UP_OPENAPI: dict[str, Any] = {
    "parameters": [
        _in_path("subscription_id", "The `id` that subscribing answered."),
        _in_query("after", "The last number that the subscriber has; 0: none.", type="integer", minimum=0, default=0),
        _limit(1000, 100),
    ]
}

BODY_OPENAPI: dict[str, Any] = {
    "description": "What was published, with its Content-Type.",
    "content": {"*/*": {"schema": {"type": "string", "format": "binary"}}},
    "headers": {"Content-Digest": {"description": "RFC 9530, sha-256.", "schema": {"type": "string"}}},
}

REPLAY_LOCATION: dict[str, Any] = {
    "headers": {"Location": {"description": "Where its progress is told.", "schema": {"type": "string"}}}
}
