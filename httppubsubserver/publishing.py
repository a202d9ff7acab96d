"""One message on its way in: whom it matches, what is owed of it, and what its publisher is told.

Best-effort deliveries begin at once and wait for nothing. What durable subscriptions are owed is written meanwhile, and
nothing is answered before it has reached the disk.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from httppubsubclient.bodies import Body, BodyWriter
from httppubsubclient.protocol.errors import Unavailable
from httppubsubclient.protocol.messages import Notification, NotifyResult
from httppubsubclient.protocol.moments import MessageMoments
from httppubsubserver.acceptance import NOTHING_DURABLE, DurableNotify, accept
from httppubsubserver.background import Background
from httppubsubserver.config import ServerConfig
from httppubsubserver.delivery.dispatcher import Dispatcher
from httppubsubserver.delivery.executor import Executor
from httppubsubserver.delivery.webhooks import Webhooks
from httppubsubserver.directory import Directory, Target
from httppubsubserver.idempotency import Once
from httppubsubserver.stores.durable import CHUNK_BYTES, DurableStore

__all__ = ["Publishing"]

_SMALLEST_SPOOL_BYTES: Final = 64 * 1024


class Publishing:
    """Takes messages. `now` gives microseconds since 1970."""

    def __init__(
        self,
        config: ServerConfig,
        store: DurableStore,
        directory: Directory,
        dispatcher: Dispatcher,
        executor: Executor,
        webhooks: Webhooks,
        once: Once,
        *,
        background: Background,
        now: Callable[[], int],
    ) -> None:
        self._config = config
        self._store = store
        self._directory = directory
        self._dispatcher = dispatcher
        self._executor = executor
        self._webhooks = webhooks
        self._once = once
        self._background = background
        self._now = now
        self._matching = 0
        self._matched = asyncio.Event()
        self._reserved_bytes = 0
        self._accepting_bytes = 0

    @property
    def matching(self) -> int:
        """Messages of which it is not known yet whom they match."""
        return self._matching

    async def matched(self) -> None:
        """Wait until there are none."""
        while self._matching:
            self._matched.clear()
            await self._matched.wait()

    async def publish(
        self,
        notification: Notification,
        body: Body,
        wait_seconds: float | None,
        moments: MessageMoments,
        idempotency_key: str | None,
        owner: str | None = None,
    ) -> NotifyResult:
        """See `Broadcaster.notify`. Takes over the body."""
        if idempotency_key is None:
            return await self._publish(notification, body, wait_seconds, moments, owner)

        def work(message_id: str) -> Coroutine[Any, Any, NotifyResult]:
            return self._publish(notification._replace(message_id=message_id), body, wait_seconds, moments, owner)

        # In a task of its own: a publisher that goes away must not leave its key claimed and unanswered.
        running_seconds = self._config.notify_timeout_seconds + body.size / self._config.min_bytes_per_second
        return await asyncio.shield(
            self._background.spawn(
                self._once.run(idempotency_key, notification, body, work, running_seconds=running_seconds, owner=owner)
            )
        )

    async def _publish(
        self,
        notification: Notification,
        body: Body,
        wait_seconds: float | None,
        moments: MessageMoments,
        owner: str | None,
    ) -> NotifyResult:
        self._matching += 1
        try:
            targets = await self._directory.match(notification.topic, now=self._now())
        except BaseException:
            body.close()
            raise
        finally:
            self._matching -= 1
            if self._matching == 0:
                self._matched.set()
        durable: list[Target] = []
        if self._directory.any_durable:
            durable = [target for target in targets if target.durable]
            targets = [target for target in targets if not target.durable] if durable else targets
        if moments.deliver_at is not None:
            targets = []
        accepting = self._start_accepting(notification, body, durable, moments, owner) if durable else None
        fanout = self._dispatcher.start(notification, body, targets, expires_in=self._expires_in(moments))
        # Shielded: what was leased with it has to be begun, even if nobody wants to know any more.
        accepted = NOTHING_DURABLE if accepting is None else await asyncio.shield(accepting)
        if wait_seconds is None:
            await fanout.finished()
            await accepted.finished()
        else:
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_seconds):
                    await fanout.finished()
                    await accepted.finished()
        return NotifyResult(
            message_id=notification.message_id,
            matched=fanout.matched + accepted.matched,
            notified=fanout.notified + accepted.notified,
            pending=fanout.pending + accepted.pending,
            failed=fanout.failed + accepted.failed,
        )

    def _start_accepting(
        self,
        notification: Notification,
        body: Body,
        targets: list[Target],
        moments: MessageMoments,
        owner: str | None,
    ) -> asyncio.Task[DurableNotify]:
        # One transaction is soon over; cancelled, it would leave behind leases that nobody knows of.
        return self._background.spawn(
            self._accept(notification, body.share(), targets, moments, owner),
            cancelled_at_the_end=body.size > CHUNK_BYTES,
        )

    async def _accept(
        self,
        notification: Notification,
        body: Body,
        targets: list[Target],
        moments: MessageMoments,
        owner: str | None,
    ) -> DurableNotify:
        with body:
            size = min(body.size, CHUNK_BYTES)
            if self._accepting_bytes and self._accepting_bytes + size > self._config.bodies_in_memory_bytes:
                raise Unavailable("too many durable messages are being written", retry_after_seconds=1)
            self._accepting_bytes += size
            try:
                return await accept(
                    self._store, self._executor, notification, body, targets, moments, owner, now=self._now
                )
            finally:
                self._accepting_bytes -= size

    def _expires_in(self, moments: MessageMoments) -> float | None:
        return None if moments.expires_at is None else (moments.expires_at - self._now()) / 1_000_000

    @contextmanager
    def body_writer(self, length: int | None = None) -> Iterator[BodyWriter]:
        """Where an arriving body is written: memory or a file, depending on its size and on what memory holds.

        What it may hold in memory counts as held while the context lasts; `length` is the size, if it is known.
        """
        config = self._config
        held = self._dispatcher.bytes_in_memory + self._executor.bytes_in_memory + self._accepting_bytes
        held += self._webhooks.bytes_in_memory
        free = config.bodies_in_memory_bytes - held - self._reserved_bytes
        allowed = min(config.spool_bytes, max(free, _SMALLEST_SPOOL_BYTES))
        reserved = allowed if length is None else min(length, allowed)
        self._reserved_bytes += reserved
        try:
            yield BodyWriter(
                spool_bytes=allowed,
                max_bytes=config.max_body_bytes,
                directory=None if config.spool_directory is None else str(config.spool_directory),
            )
        finally:
            self._reserved_bytes -= reserved
