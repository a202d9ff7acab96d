"""What is sent when: all subscribers of a message at once, bounded in total and per host, each settled exactly once.

A `Fanout` is one message on its way to its subscribers (fanout.py). Its deliveries wait in *lanes*, one per callback
URL, which take turns at the slots (lanes.py), so that a busy or hanging callback delays itself only. Best effort means:
quick retries (protocol/retry.py) until the fan-out's deadline, then failed.

This is the hot path: a delivery is one small object and no task; what deliveries of a message have in common is
prepared once (protocol/delivery_heads.py); a large fan-out is fed to the lanes in slices, so that it does not hold up
a small one.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from httppubsubclient.bodies import Body
from httppubsubclient.protocol.credentials import Credentials
from httppubsubclient.protocol.delivery_heads import NONCE_PREFIX_BYTES, DeliveryHeads
from httppubsubclient.protocol.errors import PubSubError
from httppubsubclient.protocol.messages import Notification
from httppubsubclient.protocol.retry import Verdict, quick_retry_delay, retry_after_seconds, verdict
from httppubsubserver.config import ServerConfig
from httppubsubserver.delivery.fanout import Delivery, Fanout
from httppubsubserver.delivery.lanes import Lanes
from httppubsubserver.delivery.outbound import Answer, AttemptFailed, Outbound
from httppubsubserver.delivery.webhook_heads import WITHHELD, NotMade, Parcel
from httppubsubserver.delivery.webhooks import Webhooks
from httppubsubserver.directory import Target, WebhookTarget
from httppubsubserver.randomness import random_bytes
from httppubsubserver.subscription_secrets import withheld_from

__all__ = ["Dispatcher"]

_LOG = logging.getLogger("httppubsub.server.delivery")

_MAX_REMEMBERED = 10_000
"""How many failing subscriptions are remembered; beyond it the oldest is forgotten."""

_AT_ONCE = 200
"""How many deliveries of a message are put into their lanes as it comes."""

_SWEEP_SECONDS = 0.05
"""How exactly the deadlines of fan-outs are kept."""

_SLICE = 25
"""How many of the rest in one turn of the event loop: half a millisecond, beside whatever else waits."""


class Dispatcher:
    """Starts fan-outs and sees them through. `clock` gives Unix seconds; `random` numbers in [0, 1)."""

    def __init__(
        self,
        config: ServerConfig,
        credentials: Credentials,
        outbound: Outbound,
        webhooks: Webhooks,
        *,
        gone: Callable[[Target], object],
        clock: Callable[[], float],
        random: Callable[[], float],
    ) -> None:
        self._config = config
        self._credentials = credentials
        self._withheld = withheld_from(config, credentials)
        self._outbound = outbound
        self._webhooks = webhooks
        self._gone = gone
        self._clock = clock
        self._random = random
        self._loop = asyncio.get_running_loop()
        self._fanouts: dict[Fanout, None] = {}
        self._unfed: deque[Fanout] = deque()
        self._lanes = Lanes(config, self._begin)
        self._failing: dict[str, None] = {}
        self._retrying: dict[asyncio.TimerHandle, Delivery] = {}
        self._draining = False
        self.bytes_in_memory = 0
        self._sweeper: asyncio.TimerHandle | None = None

    @property
    def running(self) -> int:
        """Fan-outs under way."""
        return len(self._fanouts)

    def start(
        self, notification: Notification, body: Body, targets: list[Target], *, expires_in: float | None = None
    ) -> Fanout:
        """Begin to deliver to all of `targets`, which is used up. The body belongs to the fan-out from here on.

        `expires_in`: seconds until the message is worth nothing any more.
        """
        seconds = self._extended(self._config.notify_timeout_seconds, body)
        deadline = self._loop.time() + (seconds if expires_in is None else min(seconds, expires_in))
        fanout = Fanout(notification, body, targets, deadline, self._ended, self._loop)
        self._fanouts[fanout] = None
        self.bytes_in_memory += fanout.bytes_in_memory
        if not targets:
            fanout.close_when_over()
            return fanout
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(_SWEEP_SECONDS, self._sweep)
        if not self._unfed:
            self._feed_slice(fanout, _AT_ONCE)
        if fanout.targets:
            if not self._unfed:
                self._loop.call_soon(self._feed)
            self._unfed.append(fanout)
        return fanout

    def start_draining(self) -> None:
        """No more retries: what waits for one has failed. Attempts under way go on to their own deadlines."""
        self._draining = True
        retrying, self._retrying = self._retrying, {}
        for timer, delivery in retrying.items():
            timer.cancel()
            delivery.fanout.settle(accepted=False)

    async def drained(self) -> None:
        """Wait until no fan-out is under way."""
        while self._fanouts:
            await next(iter(self._fanouts)).finished()

    async def abort(self) -> None:
        """Give up everything that is under way, now."""
        for fanout in list(self._fanouts):
            self._give_up(fanout)
        await self.drained()

    # -- from the message to the lanes --------------------------------------------------------------------------

    def _feed(self) -> None:
        """One slice of the next large fan-out; again in the next turn of the event loop while there are any."""
        fanout = self._unfed.popleft()
        self._feed_slice(fanout, _SLICE)
        if fanout.targets:
            self._unfed.append(fanout)
        if self._unfed:
            self._loop.call_soon(self._feed)

    def _feed_slice(self, fanout: Fanout, size: int) -> None:
        targets = fanout.targets
        head, finished = self._head, self._finished
        for _ in range(min(size, len(targets))):
            self._enqueue(Delivery(fanout, targets.pop(), head, finished))
        self._lanes.pump()

    def _enqueue(self, delivery: Delivery) -> None:
        if not self._lanes.put(delivery):
            self._failed(delivery, "too many deliveries wait for this callback")

    # -- from the lanes to the wire -----------------------------------------------------------------------------

    def _begin(self, delivery: Delivery) -> None:
        fanout, target, lane = delivery.fanout, delivery.target, delivery.lane
        assert lane is not None
        if type(target) is WebhookTarget:  # the cheapest question that there is
            self._begin_webhook(delivery, target)
            return
        if self._withheld is not None and self._withheld(target.callback.host):
            self._failed(delivery, WITHHELD)
            return
        try:
            head = self._head(delivery)
        except PubSubError as error:
            # No key may be used now: nothing that a receiver would take can be sent.
            self._failed(delivery, error.code)
            return
        deadline = self._loop.time() + self._extended(self._config.attempt_timeout_seconds, fanout.body)
        self._lanes.enter(lane)
        fanout.posts[delivery] = self._outbound.post(
            target.callback,
            head,
            fanout.body,
            deadline=deadline,
            done=delivery.finished,
            head_again=delivery.head_again,
        )

    def _begin_webhook(self, delivery: Delivery, target: WebhookTarget) -> None:
        fanout, lane = delivery.fanout, delivery.lane
        assert lane is not None
        if fanout.published_at is None:
            fanout.published_at = int(self._clock() * 1_000_000)
        parcel = Parcel(
            fanout.notification,
            target.id,
            target.callback.fragment,
            delivery.attempt,
            target.format,
            target.sealed,
            fanout.published_at,
        )
        deadline = self._loop.time() + self._extended(self._config.attempt_timeout_seconds, fanout.body)
        self._lanes.enter(lane)
        fanout.posts[delivery] = self._webhooks.post(
            parcel, target.callback, fanout.body, deadline=deadline, done=delivery.finished
        )

    def _head(self, delivery: Delivery) -> bytes:
        fanout, target, now = delivery.fanout, delivery.target, int(self._clock())
        heads = fanout.heads
        if heads is None or heads.now != now or delivery.attempt > 1:
            heads = DeliveryHeads(
                self._credentials,
                fanout.notification,
                attempt=delivery.attempt,
                now=now,
                nonce_prefix=random_bytes(NONCE_PREFIX_BYTES),
            )
            if delivery.attempt == 1:
                fanout.heads = heads
        return heads.lines(target.id, target.callback.fragment)

    def _extended(self, seconds: float, body: Body) -> float:
        return seconds + body.size / self._config.min_bytes_per_second

    # -- from the answer to the counts --------------------------------------------------------------------------

    def _finished(self, delivery: Delivery, outcome: Answer | AttemptFailed) -> None:
        lane = delivery.lane
        assert lane is not None
        del delivery.fanout.posts[delivery]
        self._lanes.leave(lane)
        if isinstance(outcome, AttemptFailed):
            if not isinstance(outcome, NotMade):  # which says nothing about the callback
                self._lanes.tell(lane, hanging=outcome.hanging)
            if outcome.again:
                self._retry(delivery, outcome.told, None)
            else:
                self._failed(delivery, outcome.told)
        else:
            self._lanes.tell(lane, hanging=False)
            self._answered(delivery, outcome)
        self._lanes.queue(lane)
        self._lanes.pump()

    def _answered(self, delivery: Delivery, answer: Answer) -> None:
        meaning = verdict(answer.status)
        if meaning is Verdict.ACCEPTED:
            if self._failing and self._failing.pop(delivery.target.id, delivery) is None:
                _LOG.info("deliveries to %s succeed again", delivery.target.id)
            delivery.fanout.settle(accepted=True)
        elif meaning is Verdict.AGAIN:
            after = retry_after_seconds(answer.retry_after, self._clock())
            self._retry(delivery, f"status {answer.status}", after)
        else:
            if meaning is Verdict.GONE:
                self._gone(delivery.target)
            self._failed(delivery, f"status {answer.status}")

    def _retry(self, delivery: Delivery, reason: str, retry_after: float | None) -> None:
        """Schedule the next attempt when there is one that begins before the deadline."""
        fanout = delivery.fanout
        delay = quick_retry_delay(delivery.attempt, self._random(), retry_after)
        if delay is None or self._draining or fanout.over or self._loop.time() + delay >= fanout.deadline:
            self._failed(delivery, reason)
            return
        delivery.attempt += 1
        timer: asyncio.TimerHandle = self._loop.call_later(delay, lambda: self._due(timer))
        self._retrying[timer] = delivery

    def _due(self, timer: asyncio.TimerHandle) -> None:
        delivery = self._retrying.pop(timer)
        if not delivery.fanout.over:
            self._enqueue(delivery)
            self._lanes.pump()

    def _failed(self, delivery: Delivery, reason: str) -> None:
        target = delivery.target
        subscription_id = target.id
        # A subscriber that is away would fill the log: one warning until it takes something again.
        level = logging.INFO if subscription_id in self._failing else logging.WARNING
        self._failing[subscription_id] = None
        if len(self._failing) > _MAX_REMEMBERED:
            del self._failing[next(iter(self._failing))]
        _LOG.log(
            level,
            "delivery of %s to %s (%s at %s) failed at attempt %d: %s",
            delivery.fanout.notification.message_id,
            subscription_id,
            target.pattern,
            target.shown_url,
            delivery.attempt,
            reason,
        )
        delivery.fanout.settle(accepted=False)

    def _give_up(self, fanout: Fanout) -> None:
        """Fail whatever is not settled yet and stop the attempts under way."""
        fanout.failed += fanout.pending
        fanout.targets.clear()
        posts, fanout.posts = fanout.posts, {}
        for delivery, post in posts.items():
            post.cancel()
            assert delivery.lane is not None
            self._lanes.leave(delivery.lane)
        fanout.close_when_over()
        for delivery in posts:
            assert delivery.lane is not None
            self._lanes.queue(delivery.lane)
        self._lanes.pump()

    def _ended(self, fanout: Fanout) -> None:
        del self._fanouts[fanout]
        self.bytes_in_memory -= fanout.bytes_in_memory

    def _sweep(self) -> None:
        """Give up what is beyond its deadline. One timer for all: one for each would cost more than their counting."""
        now = self._loop.time()
        try:
            for fanout in [fanout for fanout in self._fanouts if fanout.deadline <= now]:
                self._give_up(fanout)
        finally:
            self._sweeper = self._loop.call_later(_SWEEP_SECONDS, self._sweep) if self._fanouts else None
