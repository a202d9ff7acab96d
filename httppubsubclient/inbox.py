"""What one subscription has accepted and not yet handed out: where deliveries end and iterating begins.

`Inbox` is for best effort: what is in it counts as received. durable_inbox.py adds what durable subscriptions need.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from httppubsubclient.bodies import Body
from httppubsubclient.buffer import Buffer, Limits
from httppubsubclient.message import Message
from httppubsubclient.protocol.messages import Delivery
from httppubsubclient.protocol.patterns import Pattern
from httppubsubclient.webhooks import NO_OPTIONS, WebhookOptions

__all__ = ["Inbox", "Member"]


class Member(Protocol):
    """A local subscription, as far as deliveries concern it."""

    asked: WebhookOptions

    def has(self, message_id: str) -> bool:
        """Whether this message was accepted before."""
        ...

    def fits(self, size: int) -> bool:
        """Whether a body of `size` bytes would be accepted now."""
        ...

    def offer(self, delivery: Delivery, pattern: Pattern, body: Body) -> bool:
        """Accept the message; True as well when it was accepted before. False: no room."""
        ...

    def unacknowledged(self, message_id: str) -> asyncio.Future[bool] | None:
        """What to wait for before the message counts as received; None: for nothing."""
        ...

    def close(self) -> None:
        """The client is being left: nothing will come any more."""
        ...


class Inbox:
    """A bounded buffer of messages, each of them once. It is a `Member`."""

    def __init__(self, limits: Limits, *, remembered_message_ids: int, asked: WebhookOptions = NO_OPTIONS) -> None:
        self.asked = asked
        self._buffer: Buffer[Message] = Buffer(limits, size_of=lambda message: message.size)
        self._remembered_message_ids = remembered_message_ids
        self._accepted: dict[str, None] = {}
        self.closed = False
        """Nobody will take anything more out of it."""

    async def get(self) -> Message:
        """The oldest message, waiting for one if need be. Raises `buffer.Closed` once the subscription is left."""
        return await self._buffer.get()

    def has(self, message_id: str) -> bool:
        """Whether this message was accepted, as far as that is remembered."""
        return message_id in self._accepted

    def fits(self, size: int) -> bool:
        """Whether a body of `size` bytes would be accepted now."""
        return self._buffer.fits(size)

    def offer(self, delivery: Delivery, pattern: Pattern, body: Body) -> bool:
        """Take the message; True as well when it was taken before, or when nobody wants it any more. False: the buffer
        is full."""
        if self.closed or self.has(delivery.message_id):
            return True
        if not self._buffer.put(Message(delivery, pattern, body)):
            return False
        self._accept(delivery.message_id)
        return True

    def unacknowledged(self, message_id: str) -> asyncio.Future[bool] | None:
        """What to wait for before the message counts as received; None: for nothing."""
        return None

    def close(self) -> None:
        """End every iterator and drop what waits. Idempotent."""
        self.closed = True
        self._buffer.close()

    def _accept(self, message_id: str) -> None:
        self._accepted[message_id] = None
        if len(self._accepted) > self._remembered_message_ids:
            del self._accepted[next(iter(self._accepted))]
