"""Large bodies of accepted messages, brought back from the store into a file from which they can be sent."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Final

from httppubsubclient.bodies import Body, BodyWriter
from httppubsubclient.protocol.errors import NotFound
from httppubsubclient.protocol.messages import Notification
from httppubsubserver.stores.durable import DurableStore

__all__ = ["StoredBodies"]

_KEPT: Final = 4
"""So many bodies stay in their files for the next who asks; that is disk, not memory."""

_AT_ONCE: Final = 4
"""So many are read from the store at the same time."""


class StoredBodies:
    """Gives a `Body` of its own to everybody who asks, and reads each message once as long as it is in demand."""

    def __init__(self, store: DurableStore, *, directory: str | None) -> None:
        self._store = store
        self._directory = directory
        self._kept: OrderedDict[str, Body] = OrderedDict()
        self._reading: dict[str, asyncio.Lock] = {}
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def open(self, notification: Notification) -> Body:
        """The body of a message, to be closed by whoever asked. Raises `Unavailable`, and `NotFound` when it is no
        longer kept or not the one that was accepted."""
        message_id = notification.message_id
        lock = self._reading.setdefault(message_id, asyncio.Lock())
        try:
            async with lock:
                body = self._kept.get(message_id)
                if body is None:
                    async with self._slots:
                        body = await self._read(notification)
                    self._keep(message_id, body)
                return body.share()
        finally:
            if not lock.locked():
                self._reading.pop(message_id, None)

    def close(self) -> None:
        """Free the files; what was given out stays good."""
        while self._kept:
            self._kept.popitem()[1].close()

    def _keep(self, message_id: str, body: Body) -> None:
        self._kept[message_id] = body
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)[1].close()

    async def _read(self, notification: Notification) -> Body:
        with BodyWriter(spool_bytes=0, max_bytes=notification.size, directory=self._directory) as writer:
            writer.expect(notification.size)
            position = 0
            while writer.size < notification.size:
                piece = await self._store.read_chunk(notification.message_id, position)
                if piece is None:
                    raise NotFound("the body of this message is no longer kept")
                await writer.write(piece)
                position += 1
            body = await writer.finish()
        if body.sha256 != notification.sha256:
            body.close()
            raise NotFound("the body of this message is not the one that was accepted")
        return body
