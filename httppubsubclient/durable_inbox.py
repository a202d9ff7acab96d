"""The inbox of a durable subscription: it says when a message counts as received, and not before.

| a message is | which means                                                      | a further attempt of it            |
|--------------|------------------------------------------------------------------|------------------------------------|
| unknown      | it has not come, or was given back                               | is put into the buffer             |
| held         | it is in the buffer, or with the application, not acknowledged   | waits for the same acknowledgement |
| acknowledged | it is over, and remembered, across restarts if there is a file   | is answered 2xx at once            |

Leaving tells everybody who waits that nothing was acknowledged: what is held comes again. An acknowledgement that
comes later still counts, as far as it is remembered.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import Protocol

from httppubsubclient.bodies import Body
from httppubsubclient.buffer import Limits
from httppubsubclient.durable_options import DurableOptions
from httppubsubclient.inbox import Inbox
from httppubsubclient.message import Message
from httppubsubclient.protocol.messages import Delivery
from httppubsubclient.protocol.patterns import Pattern
from httppubsubclient.webhooks import NO_OPTIONS, WebhookOptions

__all__ = ["DurableInbox", "Memory"]

logger = logging.getLogger(__name__)


class Memory(Protocol):
    """What a name knows about acknowledged deliveries; see durable_registrations.py."""

    def seen(self, inbox: DurableInbox, message_id: str) -> bool:
        """Whether this inbox acknowledged the message, maybe in an earlier life."""
        ...

    def acknowledged(self, pattern: Pattern, message_id: str) -> None:
        """One inbox has acknowledged a message that came for this pattern."""
        ...


class _Held:
    """A message that waits to be acknowledged."""

    __slots__ = ("decided", "message_id", "pattern", "waited_for")

    def __init__(self, pattern: Pattern, message_id: str) -> None:
        self.pattern = pattern
        self.message_id = message_id
        self.decided = False
        self.waited_for: asyncio.Future[bool] | None = None

    def tell(self, acknowledged: bool) -> None:
        """Let those who wait go on."""
        if self.waited_for is not None and not self.waited_for.done():
            self.waited_for.set_result(acknowledged)


class DurableInbox(Inbox):
    """Holds each message until it is acknowledged the way that `options.ack` says. `memory` is set on entering."""

    def __init__(
        self,
        options: DurableOptions,
        limits: Limits,
        *,
        remembered_message_ids: int,
        asked: WebhookOptions = NO_OPTIONS,
    ) -> None:
        super().__init__(limits, remembered_message_ids=remembered_message_ids, asked=asked)
        self.options = options
        self.memory: Memory | None = None
        self._max_held = limits.messages
        self._held: dict[str, _Held] = {}

    async def get(self) -> Message:
        message = await self._buffer.get()
        if self.options.ack == "processed":
            message.ack()
        return message

    def has(self, message_id: str) -> bool:
        if message_id in self._held or message_id in self._accepted:
            return True
        return self.memory is not None and self.memory.seen(self, message_id)

    def owes(self, message_id: str) -> bool:
        """Whether this inbox has not acknowledged the message."""
        return message_id in self._held or message_id not in self._accepted

    def fits(self, size: int) -> bool:
        return len(self._held) < self._max_held and super().fits(size)

    def offer(self, delivery: Delivery, pattern: Pattern, body: Body) -> bool:
        """Take the message; True as well when it was taken before. False: there is no room, or the subscription was
        left meanwhile."""
        if self.closed:
            return False
        message_id = delivery.message_id
        if self.has(message_id):
            return True
        held = _Held(pattern, message_id)
        if not self.fits(body.size) or not self._buffer.put(
            Message(delivery, pattern, body, partial(self._settle, held))
        ):
            return False
        self._held[message_id] = held
        if self.options.ack == "accepted":
            self._settle(held, True)
        return True

    def unacknowledged(self, message_id: str) -> asyncio.Future[bool] | None:
        """Told True when the message is acknowledged, False when it was given back or the subscription was left.
        It is one future for all who wait: shield it."""
        held = self._held.get(message_id)
        if held is None:
            return None
        if held.waited_for is None:
            held.waited_for = asyncio.get_running_loop().create_future()
        return held.waited_for

    def close(self) -> None:
        if self.options.ack == "accepted" and len(self._buffer):
            logger.warning(
                "%d messages of %r were acknowledged, and are dropped because the subscription is left; with "
                "ack='processed' they would come again",
                len(self._buffer),
                self.options.name,
            )
        super().close()
        for held in self._held.values():
            held.tell(acknowledged=False)
        self._held.clear()

    def _settle(self, held: _Held, acknowledged: bool) -> None:
        if held.decided:
            return
        held.decided = True
        if self._held.get(held.message_id) is held:
            del self._held[held.message_id]
        if acknowledged:
            self._accept(held.message_id)
            if self.memory is not None:
                self.memory.acknowledged(held.pattern, held.message_id)
        held.tell(acknowledged)
