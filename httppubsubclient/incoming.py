"""A delivery as it came, made into what the application gets: its own proof verified, its format taken off.

What is large is read, hashed and parsed in a thread; the bodies that this is about are bounded by
`max_webhook_bytes`, so there is never more than one of them in memory for each of those threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, Final, TypeVar

from httppubsubclient.bodies import CHUNK_BYTES, Body, BodyWriter
from httppubsubclient.message import EventDelivery
from httppubsubclient.protocol.cloudevents import (
    MAX_INLINE_DATA_BYTES,
    CloudEvent,
    event_mode,
    event_topic,
    read_event,
)
from httppubsubclient.protocol.errors import InvalidRequest, Unauthorized
from httppubsubclient.protocol.messages import Delivery, content_type_or_default
from httppubsubclient.protocol.options import DeliveryFormat
from httppubsubclient.protocol.patterns import Pattern
from httppubsubclient.protocol.standard_webhooks import PublicKey, SharedSecret, WebhookHead

__all__ = ["check_topic_of", "claims_own_proof", "decoded", "max_event_bytes", "prove"]

_IN_A_THREAD_BYTES: Final = 64 * 1024

_ATTRIBUTES_BYTES: Final = 128 * 1024
_MAX_ESCAPE_BYTES: Final = 6
"""Of one byte of text, in JSON: `\\u0000`."""

T = TypeVar("T")


def max_event_bytes(data_bytes: int) -> int:
    """The largest body that a structured event with so much data needs: in base64, or as text that is not that long."""
    text_bytes = min(data_bytes, MAX_INLINE_DATA_BYTES)
    return max(data_bytes * 4 // 3 + 4, text_bytes * _MAX_ESCAPE_BYTES) + _ATTRIBUTES_BYTES


def claims_own_proof(headers: Mapping[str, str]) -> bool:
    """Whether a delivery comes with a webhook signature, and so is to be judged by that alone."""
    return "webhook-signature" in headers or "svix-signature" in headers


def check_topic_of(delivery: Delivery, pattern: Pattern) -> None:
    """A webhook signature covers the body, not the headers: at least the topic has to be one that was subscribed.
    Raises `Unauthorized`."""
    matcher = pattern.matcher()
    matches = delivery.topic == pattern.value if matcher is None else matcher.matches(delivery.topic)
    if not matches:
        raise Unauthorized("the topic is not one of the subscription that this delivery names", reason="mismatch")


async def prove(head: WebhookHead, keys: Sequence[SharedSecret | PublicKey], body: Body) -> None:
    """Check the webhook signature of a body. Raises `Unauthorized`."""

    def check(data: bytes) -> None:
        head.check(keys, data)

    await _with_content(body, check)


async def decoded(
    headers: Mapping[str, str],
    delivery: Delivery,
    body: Body,
    form: DeliveryFormat,
    *,
    writer: Callable[[], BodyWriter],
) -> tuple[Delivery, Body]:
    """The message that a delivery in this format is. Raises `InvalidRequest` when it is none, `TooLarge` when its data
    are more than `writer` takes.

    The headers have to say the same as the event, whichever of the two was signed.
    """
    if form == "raw":
        return delivery, body
    mode = form.removeprefix("cloudevents-")
    if event_mode(headers) != mode:
        raise InvalidRequest(f"the subscription asked for events in {mode} mode, and this is none")
    if mode == "binary":
        event = read_event(headers, b"").event
        return _event_delivery(delivery, event), body
    found = await _with_content(body, lambda content: read_event(headers, content))
    with writer() as written:
        written.expect(len(found.data))
        for start in range(0, len(found.data), CHUNK_BYTES):
            await written.write(found.data[start : start + CHUNK_BYTES])
        data = await written.finish()
    body.close()
    return _event_delivery(delivery, found.event), data


async def _with_content(body: Body, function: Callable[[bytes], T]) -> T:
    if body.data is not None and body.size <= _IN_A_THREAD_BYTES:
        return function(body.data)

    def work() -> T:
        if body.data is not None:
            return function(body.data)
        with body.open() as file:
            return function(file.read())

    return await asyncio.to_thread(work)


def _event_delivery(delivery: Delivery, event: CloudEvent) -> EventDelivery:
    sequence = event.extensions.get("sequence")
    told = (
        event.id,
        event_topic(event),
        event.extensions.get("pubsubsubscription"),
        None if sequence is None else _number(sequence),
        event.extensions.get("pubsubprevious"),
    )
    expected = (
        delivery.message_id,
        delivery.topic,
        delivery.subscription_id,
        delivery.sequence,
        delivery.previous_message_id,
    )
    if told != expected:
        raise InvalidRequest("the headers of the delivery say something else than its event")
    values: dict[str, Any] = {one.name: getattr(delivery, one.name) for one in fields(delivery)}
    values["content_type"] = content_type_or_default(event.data_content_type)
    return EventDelivery(**values, event=event)


def _number(value: str | int | bool) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 18:
        return int(value)
    raise InvalidRequest("the extension sequence of an event is a number of up to 18 digits")
