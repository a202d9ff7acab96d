"""One message on its way: the `Fanout` counts, a `Delivery` is its part for one subscription."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from httppubsubclient.bodies import Body
from httppubsubclient.protocol.delivery_heads import DeliveryHeads
from httppubsubclient.protocol.messages import Notification
from httppubsubserver.delivery.outbound import Answer, AttemptFailed, Post
from httppubsubserver.directory import Target

if TYPE_CHECKING:
    from httppubsubserver.delivery.lanes import Lane

__all__ = ["Delivery", "Fanout"]


class Fanout:
    """One message and its deliveries. Owns the body and closes it when nothing is under way any more."""

    __slots__ = (
        "_loop",
        "_on_done",
        "_waiters",
        "body",
        "bytes_in_memory",
        "deadline",
        "done",
        "failed",
        "heads",
        "matched",
        "notification",
        "notified",
        "over",
        "posts",
        "published_at",
        "targets",
    )

    def __init__(
        self,
        notification: Notification,
        body: Body,
        targets: list[Target],
        deadline: float,
        on_done: Callable[[Fanout], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._loop = loop
        self.notification = notification
        self.body = body
        self.bytes_in_memory = 0 if body.data is None else body.size
        self.targets = targets
        """Those that are not in a lane yet, the next one last."""
        self.matched = len(targets)
        self.deadline = deadline
        self.notified = 0
        self.failed = 0
        self.posts: dict[Delivery, Post] = {}
        self.heads: DeliveryHeads | None = None
        self.published_at: int | None = None
        """Microseconds since 1970; there when somebody needed it."""
        self.done = False
        """Nothing is under way any more."""
        self._waiters: list[asyncio.Future[None]] = []
        self.over = self.matched == 0
        self._on_done = on_done

    @property
    def pending(self) -> int:
        """Deliveries that are not settled yet."""
        return self.matched - self.notified - self.failed

    def settle(self, *, accepted: bool) -> None:
        """Count one delivery; at most once for each."""
        if self.over:
            return
        if accepted:
            self.notified += 1
        else:
            self.failed += 1
        self.close_when_over()

    def close_when_over(self) -> None:
        """Free the body and report, once, when everything is settled and no attempt reads it any more."""
        self.over = self.pending == 0
        if self.over and not self.posts and not self.done:
            self.body.close()
            self.done = True
            for waiter in self._waiters:
                if not waiter.done():
                    waiter.set_result(None)
            self._on_done(self)

    async def finished(self) -> None:
        """Wait until nothing is under way any more."""
        if not self.done:
            waiter = self._loop.create_future()
            self._waiters.append(waiter)
            await waiter


class Delivery:
    """One message for one subscription, at its present attempt."""

    __slots__ = ("_finished", "_head", "attempt", "fanout", "lane", "target")

    def __init__(
        self,
        fanout: Fanout,
        target: Target,
        head: Callable[[Delivery], bytes],
        finished: Callable[[Delivery, Answer | AttemptFailed], None],
    ) -> None:
        self.fanout = fanout
        self.target = target
        self.attempt = 1
        self.lane: Lane | None = None
        self._head = head
        self._finished = finished

    def head_again(self) -> bytes:
        """What the outbound calls when it has to send the same attempt once more. Raises `ConfigurationError`."""
        return self._head(self)

    def finished(self, outcome: Answer | AttemptFailed) -> None:
        """What the outbound calls when the attempt is decided."""
        self._finished(self, outcome)
