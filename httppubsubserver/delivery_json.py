"""Deliveries, messages and replays as JSON: what the API answers, and what the command prints for programs.

What receivers answered, and errors, are escaped (escaping.py). The fields are described in http_delivery_schemas.py.
"""

from __future__ import annotations

from base64 import b64encode
from typing import Any

from httppubsubclient.protocol.messages import format_time
from httppubsubclient.protocol.topics import topic_to_json
from httppubsubserver.escaping import escaped
from httppubsubserver.operations import selection_json
from httppubsubserver.stores.durable import (
    Attempted,
    DeliveryPage,
    MessageAndDeliveries,
    OwedDelivery,
    Replay,
    Sequenced,
    SequencePage,
    StoredMessage,
)

__all__ = ["delivery_json", "message_json", "page_json", "replay_json", "sequence_page_json"]


def page_json(page: DeliveryPage) -> dict[str, Any]:
    """`DeliveryPageAnswer`"""
    return {"deliveries": [delivery_json(each) for each in page.deliveries], "cursor": page.cursor}


def delivery_json(delivery: OwedDelivery) -> dict[str, Any]:
    """`DeliveryAnswer`"""
    return {
        "message_id": delivery.message_id,
        "subscription_id": delivery.subscription_id,
        **topic_to_json(delivery.topic),
        "url": delivery.url,
        "state": delivery.state,
        "reason": None if delivery.reason is None else escaped(delivery.reason),
        "sequence": delivery.sequence,
        "previous_message_id": delivery.previous_message_id,
        "accepted_at": format_time(delivery.accepted_at),
        "due_at": _moment(delivery.due_at),
        "leased_until": _moment(delivery.leased_until),
        "attempts": delivery.attempts,
        "updated_at": format_time(delivery.updated_at),
        "status": delivery.status,
    }


def message_json(found: MessageAndDeliveries) -> dict[str, Any]:
    """`MessageAnswer`"""
    attempts: dict[str, list[dict[str, Any]]] = {}
    for each in found.attempts:
        attempts.setdefault(each.subscription_id, []).append(_attempt_json(each))
    return {
        **_head_json(found.message),
        "deliver_at": _moment(found.message.deliver_at),
        "expires_at": _moment(found.message.expires_at),
        "deliveries": [
            {**delivery_json(each), "failed_attempts": attempts.get(each.subscription_id, [])}
            for each in found.page.deliveries
        ],
        "cursor": found.page.cursor,
    }


def replay_json(replay: Replay) -> dict[str, Any]:
    """`ReplayAnswer`"""
    return {
        "replay": replay.number,
        **selection_json(replay.selection),
        "requested_at": format_time(replay.requested_at),
        "replayed": replay.replayed,
        "skipped": replay.skipped,
        "finished_at": _moment(replay.finished_at),
    }


def sequence_page_json(page: SequencePage) -> dict[str, Any]:
    """`SequencePageAnswer`"""
    return {"messages": [_sequenced_json(each) for each in page.messages], "complete": page.complete, "last": page.last}


def _sequenced_json(sequenced: Sequenced) -> dict[str, Any]:
    body = sequenced.message.body
    return {
        "sequence": sequenced.sequence,
        "previous_message_id": sequenced.previous_message_id,
        "state": sequenced.state,
        **_head_json(sequenced.message),
        "deliver_at": _moment(sequenced.message.deliver_at),
        "expires_at": _moment(sequenced.message.expires_at),
        "data_b64": None if body is None else b64encode(body).decode("ascii"),
    }


def _head_json(message: StoredMessage) -> dict[str, Any]:
    notification = message.notification
    return {
        "message_id": notification.message_id,
        **topic_to_json(notification.topic),
        "content_type": notification.content_type,
        "size": notification.size,
        "accepted_at": format_time(message.accepted_at),
        "body_kept": message.body_kept,
    }


def _attempt_json(attempted: Attempted) -> dict[str, Any]:
    attempt = attempted.attempt
    return {
        "number": attempted.number,
        "began_at": format_time(attempt.began_at),
        "ended_at": format_time(attempt.ended_at),
        "status": attempt.status,
        "error": None if attempt.error is None else escaped(attempt.error),
        "answer": escaped(attempt.answer),
    }


def _moment(moment: int | None) -> str | None:
    return None if moment is None else format_time(moment)
