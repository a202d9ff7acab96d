"""The bodies of webhooks: what is signed has to be in memory as a whole, and a structured event has a body of its own.

Both are bounded. `Room` is what all large ones may take at a time, whoever comes when it is full waits. What a message
has in common for all who get it as a structured event, which is nearly everything, is made once and kept for the next
(`DataMembers`). Small bodies are made at once and not counted: attempts under way are.
"""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict, deque
from typing import Final

from httppubsubclient.bodies import Body, uncancelled
from httppubsubclient.protocol.cloudevents import structured_data
from httppubsubclient.protocol.messages import Notification

__all__ = ["SMALL_BYTES", "SMALL_EVENT_BYTES", "DataMembers", "Room", "read_body"]

SMALL_BYTES: Final = 64 * 1024
"""Up to here a body is signed at once; above, in a thread, and counted."""

SMALL_EVENT_BYTES: Final = 16 * 1024
"""The same for structured events, of the message and of its data member: each delivery has a body of its own."""

_KEPT_BYTES: Final = 32 * 1024 * 1024
_KEPT: Final = 256


class Room:
    """So many bytes for everybody. Who asks for more than there are altogether gets them when nobody else has any."""

    def __init__(self, size: int) -> None:
        self._size = size
        self.taken = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, count: int) -> None:
        """Wait for room, in the order of asking. What was taken is given back with `give_back`."""
        if self._waiting or not self._fits(count):
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((count, turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self.give_back(count)
                else:
                    self._waiting.remove((count, turn))
                    self._next()
                raise
        else:
            self.taken += count

    def give_back(self, count: int) -> None:
        """Let others have it."""
        self.taken -= count
        self._next()

    def _fits(self, count: int) -> bool:
        return self.taken == 0 or self.taken + count <= self._size

    def _next(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0]):
            count, turn = self._waiting.popleft()
            self.taken += count
            turn.set_result(None)


class DataMembers:
    """The data of structured events (`cloudevents.structured_data`), the last ones kept."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._making: dict[str, asyncio.Lock] = {}
        self.bytes_in_memory = 0

    def of(self, notification: Notification, data: bytes) -> bytes:
        """That of a message whose body is `data`."""
        member = self._kept.get(notification.message_id)
        if member is None:
            member = structured_data(notification.content_type, data)
            self._keep(notification.message_id, member)
        return member

    async def of_large(self, notification: Notification, body: Body) -> bytes:
        """The same, made in a thread: by the first who asks, for all who ask meanwhile. Raises OSError."""
        message_id = notification.message_id
        lock = self._making.setdefault(message_id, asyncio.Lock())
        try:
            async with lock:
                member = self._kept.get(message_id)
                if member is None:
                    member = await uncancelled(asyncio.to_thread(_make, notification, body.share()))
                    self._keep(message_id, member)
                return member
        finally:
            if not lock.locked():
                self._making.pop(message_id, None)

    def _keep(self, message_id: str, member: bytes) -> None:
        if message_id in self._kept:
            return  # made twice at the same time
        self._kept[message_id] = member
        self.bytes_in_memory += len(member)
        while len(self._kept) > _KEPT or self.bytes_in_memory > _KEPT_BYTES:
            self.bytes_in_memory -= len(self._kept.popitem(last=False)[1])


def read_body(body: Body) -> bytes:
    """All of a body, and close it. Reads a file: for a thread. Raises OSError."""
    with body:
        if body.data is not None:
            return body.data
        with body.descriptor() as file:
            data = bytearray()
            while len(data) < body.size:
                piece = os.pread(file, body.size - len(data), len(data))
                if not piece:
                    raise OSError(f"the spooled body ends at byte {len(data)} of {body.size}")
                data += piece
    return bytes(data)


def _make(notification: Notification, body: Body) -> bytes:
    return structured_data(notification.content_type, read_body(body))
