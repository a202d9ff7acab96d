"""What is sent when: all subscribers of a message at once, bounded in total and per host, each settled exactly once.

A `Fanout` is one message on its way to its subscribers. Its deliveries wait in *lanes*, one per host and port; lanes
take turns, so a busy host delays itself only. A lane whose last attempt ran out of time is *hanging*: until it answers
again it may hold one of the slots that everybody shares, not more. Best effort means: quick retries
(protocol/retry.py) until the fan-out's deadline, then failed.

This is the hot path: a delivery is one small object and no task; what deliveries of a message have in common is
prepared once (protocol/delivery_heads.py); a large fan-out is fed to the lanes in slices, so that it does not hold up
a small one.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from os import urandom

from httppubsubclient.bodies import Body
from httppubsubclient.protocol.credentials import Credentials
from httppubsubclient.protocol.delivery_heads import NONCE_PREFIX_BYTES, DeliveryHeads
from httppubsubclient.protocol.errors import PubSubError
from httppubsubclient.protocol.messages import Notification
from httppubsubclient.protocol.retry import Verdict, quick_retry_delay, retry_after_seconds, verdict
from httppubsubserver.config import ServerConfig
from httppubsubserver.delivery.outbound import Answer, AttemptFailed, Outbound, Post
from httppubsubserver.directory import Target

__all__ = ["Dispatcher", "Fanout"]

_LOG = logging.getLogger("httppubsub.server.delivery")

_MAX_REMEMBERED = 10_000
"""How many hanging origins, and failing subscriptions, are remembered; beyond it the oldest is forgotten."""

_SLICE = 200
"""How many deliveries of a message are put into their lanes before others get a turn."""


class Fanout:
    """One message and its deliveries. Owns the body and closes it when nothing is under way any more."""

    __slots__ = (
        "_on_done",
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
        "targets",
        "timer",
    )

    def __init__(
        self,
        notification: Notification,
        body: Body,
        targets: list[Target],
        deadline: float,
        on_done: Callable[[Fanout], None],
    ) -> None:
        self.notification = notification
        self.body = body
        self.bytes_in_memory = 0 if body.data is None else body.size
        self.targets = targets
        """Those that are not in a lane yet, the next one last."""
        self.matched = len(targets)
        self.deadline = deadline
        self.notified = 0
        self.failed = 0
        self.posts: dict[_Delivery, Post] = {}
        self.heads: DeliveryHeads | None = None
        self.done = asyncio.Event()
        self.over = self.matched == 0
        self.timer: asyncio.TimerHandle | None = None
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
        if self.over and not self.posts and not self.done.is_set():
            self.body.close()
            self.done.set()
            self._on_done(self)


class _Delivery:
    """One message for one subscription, at its present attempt."""

    __slots__ = ("_finished", "attempt", "fanout", "lane", "target")

    def __init__(
        self, fanout: Fanout, target: Target, finished: Callable[[_Delivery, Answer | AttemptFailed], None]
    ) -> None:
        self.fanout = fanout
        self.target = target
        self.attempt = 1
        self.lane: _Lane | None = None
        self._finished = finished

    def finished(self, outcome: Answer | AttemptFailed) -> None:
        """What the outbound calls when the attempt is decided."""
        self._finished(self, outcome)


class _Lane:
    """The deliveries to one host and port."""

    __slots__ = ("in_flight", "origin", "runnable", "waiting")

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.waiting: deque[_Delivery] = deque()
        self.in_flight = 0
        self.runnable = False

    def drop_settled(self) -> None:
        """Forget those at the front whose fan-out is over; the oldest are at the front."""
        while self.waiting and self.waiting[0].fanout.over:
            self.waiting.popleft()


class Dispatcher:
    """Starts fan-outs and sees them through. `clock` gives Unix seconds; `random` numbers in [0, 1)."""

    def __init__(
        self,
        config: ServerConfig,
        credentials: Credentials,
        outbound: Outbound,
        *,
        gone: Callable[[str], object],
        clock: Callable[[], float],
        random: Callable[[], float],
    ) -> None:
        self._config = config
        self._credentials = credentials
        self._outbound = outbound
        self._gone = gone
        self._clock = clock
        self._random = random
        self._loop = asyncio.get_running_loop()
        self._fanouts: dict[Fanout, None] = {}
        self._unfed: deque[Fanout] = deque()
        self._lanes: dict[str, _Lane] = {}
        self._runnable: deque[_Lane] = deque()
        self._hanging: dict[str, None] = {}
        self._failing: dict[str, None] = {}
        self._in_flight = 0
        self._pumping = False
        self._retrying: dict[asyncio.TimerHandle, _Delivery] = {}
        self._draining = False
        self.bytes_in_memory = 0

    @property
    def running(self) -> int:
        """Fan-outs under way."""
        return len(self._fanouts)

    def start(self, notification: Notification, body: Body, targets: list[Target]) -> Fanout:
        """Begin to deliver to all of `targets`, which is used up. The body belongs to the fan-out from here on."""
        deadline = self._loop.time() + self._extended(self._config.notify_timeout_seconds, body)
        fanout = Fanout(notification, body, targets, deadline, self._ended)
        self._fanouts[fanout] = None
        self.bytes_in_memory += fanout.bytes_in_memory
        if not targets:
            fanout.close_when_over()
            return fanout
        fanout.timer = self._loop.call_at(deadline, self._give_up, fanout)
        if not self._unfed:
            self._feed_slice(fanout)
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
            await next(iter(self._fanouts)).done.wait()

    async def abort(self) -> None:
        """Give up everything that is under way, now."""
        for fanout in list(self._fanouts):
            self._give_up(fanout)
        await self.drained()

    # -- from the message to the lanes --------------------------------------------------------------------------

    def _feed(self) -> None:
        """One slice of the next large fan-out; again in the next turn of the event loop while there are any."""
        fanout = self._unfed.popleft()
        self._feed_slice(fanout)
        if fanout.targets:
            self._unfed.append(fanout)
        if self._unfed:
            self._loop.call_soon(self._feed)

    def _feed_slice(self, fanout: Fanout) -> None:
        targets = fanout.targets
        for _ in range(min(_SLICE, len(targets))):
            self._enqueue(_Delivery(fanout, targets.pop(), self._finished))
        self._pump()

    def _enqueue(self, delivery: _Delivery) -> None:
        origin = delivery.target.callback.origin
        lane = self._lanes.get(origin)
        if lane is None:
            lane = self._lanes[origin] = _Lane(origin)
        if len(lane.waiting) >= self._config.max_waiting_per_host:
            lane.drop_settled()
            if len(lane.waiting) >= self._config.max_waiting_per_host:
                self._failed(delivery, "too many deliveries wait for this host")
                return
        delivery.lane = lane
        lane.waiting.append(delivery)
        if not lane.runnable:
            self._mark_runnable(lane)

    # -- from the lanes to the wire -----------------------------------------------------------------------------

    def _mark_runnable(self, lane: _Lane) -> None:
        if lane.waiting:
            limit = 1 if lane.origin in self._hanging else self._config.max_in_flight_per_host
            if lane.in_flight < limit and not lane.runnable:
                lane.runnable = True
                self._runnable.append(lane)
        elif not lane.in_flight:
            self._lanes.pop(lane.origin, None)

    def _pump(self) -> None:
        """Start attempts while there are free slots, one of each lane in turn."""
        if self._pumping:
            return
        self._pumping = True
        runnable, most = self._runnable, self._config.max_in_flight
        while runnable and self._in_flight < most:
            lane = runnable.popleft()
            lane.runnable = False
            while lane.waiting:
                delivery = lane.waiting.popleft()
                if not delivery.fanout.over:
                    self._begin(lane, delivery)
                    break
            self._mark_runnable(lane)
        self._pumping = False

    def _begin(self, lane: _Lane, delivery: _Delivery) -> None:
        fanout = delivery.fanout
        try:
            head = self._head(delivery)
        except PubSubError as error:
            # No key may be used now: nothing that a receiver would take can be sent.
            self._failed(delivery, error.code)
            return
        deadline = self._loop.time() + self._extended(self._config.attempt_timeout_seconds, fanout.body)
        self._in_flight += 1
        lane.in_flight += 1
        fanout.posts[delivery] = self._outbound.post(
            delivery.target.callback, head, fanout.body, deadline=deadline, done=delivery.finished
        )

    def _head(self, delivery: _Delivery) -> bytes:
        fanout, target, now = delivery.fanout, delivery.target, int(self._clock())
        heads = fanout.heads
        if heads is None or heads.now != now or delivery.attempt > 1:
            heads = DeliveryHeads(
                self._credentials,
                fanout.notification,
                attempt=delivery.attempt,
                now=now,
                nonce_prefix=urandom(NONCE_PREFIX_BYTES),
            )
            if delivery.attempt == 1:
                fanout.heads = heads
        return heads.lines(target.subscription.id, target.lines)

    def _extended(self, seconds: float, body: Body) -> float:
        return seconds + body.size / self._config.min_bytes_per_second

    # -- from the answer to the counts --------------------------------------------------------------------------

    def _finished(self, delivery: _Delivery, outcome: Answer | AttemptFailed) -> None:
        lane = delivery.lane
        assert lane is not None
        del delivery.fanout.posts[delivery]
        self._leave(lane)
        if isinstance(outcome, AttemptFailed):
            self._note_hanging(lane.origin, outcome.hanging)
            if outcome.again:
                self._retry(delivery, outcome.reason, None)
            else:
                self._failed(delivery, outcome.reason)
        else:
            if self._hanging:
                self._note_hanging(lane.origin, False)
            self._answered(delivery, outcome)
        self._mark_runnable(lane)
        self._pump()

    def _answered(self, delivery: _Delivery, answer: Answer) -> None:
        meaning = verdict(answer.status)
        if meaning is Verdict.ACCEPTED:
            if self._failing and self._failing.pop(delivery.target.subscription.id, delivery) is None:
                _LOG.info("deliveries to %s succeed again", delivery.target.subscription.id)
            delivery.fanout.settle(accepted=True)
        elif meaning is Verdict.AGAIN:
            after = retry_after_seconds(answer.retry_after, self._clock())
            self._retry(delivery, f"status {answer.status}", after)
        else:
            if meaning is Verdict.GONE:
                self._gone(delivery.target.subscription.id)
            self._failed(delivery, f"status {answer.status}")

    def _leave(self, lane: _Lane) -> None:
        self._in_flight -= 1
        lane.in_flight -= 1

    def _note_hanging(self, origin: str, hanging: bool) -> None:
        self._hanging.pop(origin, None)
        if hanging:
            self._hanging[origin] = None
            if len(self._hanging) > _MAX_REMEMBERED:
                del self._hanging[next(iter(self._hanging))]

    def _retry(self, delivery: _Delivery, reason: str, retry_after: float | None) -> None:
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
            self._pump()

    def _failed(self, delivery: _Delivery, reason: str) -> None:
        target = delivery.target
        subscription_id = target.subscription.id
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
            target.subscription.pattern,
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
            self._leave(delivery.lane)
        fanout.close_when_over()
        for delivery in posts:
            assert delivery.lane is not None
            self._mark_runnable(delivery.lane)
        self._pump()

    def _ended(self, fanout: Fanout) -> None:
        del self._fanouts[fanout]
        self.bytes_in_memory -= fanout.bytes_in_memory
        if fanout.timer is not None:
            fanout.timer.cancel()
