"""Accepting a message for its durable subscriptions: on the disk before the publisher is answered, started at once.

What a publisher waits for are the first attempts of those that could start at once; the others are pending.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Final

from httppubsubclient.bodies import Body
from httppubsubclient.protocol.messages import Notification
from httppubsubclient.protocol.moments import MessageMoments
from httppubsubserver.delivery.executor import Executor
from httppubsubserver.directory import Target
from httppubsubserver.stores.durable import CHUNK_BYTES, DurableStore, Publication

__all__ = ["NOTHING_DURABLE", "DurableNotify", "accept"]

_PIECES_AT_ONCE: Final = 8


class DurableNotify:
    """The durable deliveries of one message, as its publisher sees them."""

    def __init__(self) -> None:
        self.matched = 0
        self.notified = 0
        self.failed = 0
        """Dead, or not wanted any more, after the first attempt."""
        self._first_attempts = 0
        self._waiter: asyncio.Future[None] | None = None

    @property
    def pending(self) -> int:
        """Owed."""
        return self.matched - self.notified - self.failed

    def begin(self, count: int) -> None:
        """So many first attempts are being made."""
        self._first_attempts += count

    def attempted(self, outcome: str) -> None:
        """One of them is over, see `Executor.start`."""
        self._first_attempts -= 1
        if outcome == "delivered":
            self.notified += 1
        elif outcome in ("dead", "gone"):
            self.failed += 1
        if not self._first_attempts and self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def finished(self) -> None:
        """Wait until the first attempts are over."""
        if self._first_attempts:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter


NOTHING_DURABLE: Final = DurableNotify()
"""Of a message that no durable subscription matches."""


async def accept(
    store: DurableStore,
    executor: Executor,
    notification: Notification,
    body: Body,
    targets: Sequence[Target],
    moments: MessageMoments,
    owner: str | None,
    *,
    now: Callable[[], int],
) -> DurableNotify:
    """Write the message and what is owed of it; when this returns it has reached the disk. `body` stays the caller's.

    Raises `Unavailable`: then the message may have been accepted, if the disk failed at the very end, or not.
    """
    notify = DurableNotify()
    data = None
    if body.size <= CHUNK_BYTES:
        data = body.data if body.data is not None else b"".join([chunk async for chunk in body.chunks()])
    else:
        await _write_pieces(store, notification.message_id, body, now)
    publication = Publication(
        notification, data, [target.id for target in targets], moments.deliver_at, moments.expires_at, owner
    )
    reservation = executor.reserve(targets if moments.deliver_at is None else ())
    accepted = None
    try:
        accepted = await store.accept(publication, now=now(), terms=reservation.terms)
        notify.matched = accepted.deliveries
        notify.begin(len(accepted.leased))
    finally:
        executor.start(reservation, accepted, body, tell=notify.attempted)
    if moments.deliver_at is not None:
        executor.due(moments.deliver_at)
    return notify


async def _write_pieces(store: DurableStore, message_id: str, body: Body, now: Callable[[], int]) -> None:
    """A large body, some pieces at a time: they share a transaction, and little of it is in memory."""
    position = 0
    pieces: list[bytes] = []
    async with aclosing(body.chunks()) as chunks:
        async for chunk in chunks:
            # In a file it comes in pieces of this size; in memory as a whole.
            for start in range(0, len(chunk), CHUNK_BYTES):
                pieces.append(chunk[start : start + CHUNK_BYTES])
                if len(pieces) == _PIECES_AT_ONCE:
                    position = await _write_some(store, message_id, position, pieces, now)
    await _write_some(store, message_id, position, pieces, now)


async def _write_some(
    store: DurableStore, message_id: str, position: int, pieces: list[bytes], now: Callable[[], int]
) -> int:
    await asyncio.gather(
        *(store.write_chunk(message_id, position + number, piece, now=now()) for number, piece in enumerate(pieces))
    )
    written = position + len(pieces)
    pieces.clear()
    return written
