"""What is sent when: all subscribers of a message at once, bounded in total and per host, each settled exactly once.

A `Fanout` is one message on its way to its subscribers. Its deliveries wait in *lanes*, one per callback URL; lanes
take turns at the slots of their host and at those that everybody shares, so a busy callback delays itself only. A lane
whose last attempt ran out of time is *hanging*: until it answers again it may hold one slot, and all that hang together
half of those of their host and a quarter of those of everybody. Best effort means: quick retries (protocol/retry.py)
until the fan-out's deadline, then failed.

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
from httppubsubclient.protocol.callback_urls import CallbackUrl
from httppubsubclient.protocol.credentials import Credentials
from httppubsubclient.protocol.delivery_heads import NONCE_PREFIX_BYTES, DeliveryHeads
from httppubsubclient.protocol.errors import PubSubError
from httppubsubclient.protocol.messages import Notification
from httppubsubclient.protocol.retry import Verdict, quick_retry_delay, retry_after_seconds, verdict
from httppubsubserver.config import ServerConfig
from httppubsubserver.delivery.outbound import Answer, AttemptFailed, Outbound, Post
from httppubsubserver.directory import Target
from httppubsubserver.randomness import random_bytes

__all__ = ["Dispatcher", "Fanout"]

_LOG = logging.getLogger("httppubsub.server.delivery")

_MAX_REMEMBERED = 10_000
"""How many hanging callbacks, and failing subscriptions, are remembered; beyond it the oldest is forgotten."""

_AT_ONCE = 200
"""How many deliveries of a message are put into their lanes as it comes."""

_SLICE = 25
"""How many of the rest in one turn of the event loop: half a millisecond, beside whatever else waits."""


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
        self.posts: dict[_Delivery, Post] = {}
        self.heads: DeliveryHeads | None = None
        self.done = False
        """Nothing is under way any more."""
        self._waiters: list[asyncio.Future[None]] = []
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


class _Delivery:
    """One message for one subscription, at its present attempt."""

    __slots__ = ("_finished", "_head", "attempt", "fanout", "lane", "target")

    def __init__(
        self,
        fanout: Fanout,
        target: Target,
        head: Callable[[_Delivery], bytes],
        finished: Callable[[_Delivery, Answer | AttemptFailed], None],
    ) -> None:
        self.fanout = fanout
        self.target = target
        self.attempt = 1
        self.lane: _Lane | None = None
        self._head = head
        self._finished = finished

    def head_again(self) -> bytes:
        """What the outbound calls when it has to send the same attempt once more. Raises `ConfigurationError`."""
        return self._head(self)

    def finished(self, outcome: Answer | AttemptFailed) -> None:
        """What the outbound calls when the attempt is decided."""
        self._finished(self, outcome)


class _Host:
    """The attempts under way to one host and port, and the lanes that wait for one of its slots."""

    __slots__ = ("hanging", "in_flight", "lanes", "parked", "parked_hanging")

    def __init__(self) -> None:
        self.lanes = 0
        self.in_flight = 0
        self.hanging = 0
        self.parked: deque[_Lane] = deque()
        self.parked_hanging: deque[_Lane] = deque()


class _Lane:
    """The deliveries to one callback URL."""

    __slots__ = ("as_hanging", "host", "in_flight", "name", "origin", "queued", "waiting")

    def __init__(self, name: str, origin: str, host: _Host) -> None:
        self.name = name
        self.origin = origin
        self.host = host
        self.waiting: deque[_Delivery] = deque()
        self.in_flight = 0
        self.as_hanging = 0
        """Of those in flight, the ones that began while it was hanging."""
        self.queued = False
        """It stands in one of the queues: runnable, or parked."""

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
        gone: Callable[[Target], object],
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
        self._hosts: dict[str, _Host] = {}
        self._lanes: dict[str, _Lane] = {}
        self._runnable: deque[_Lane] = deque()
        self._parked_hanging: deque[_Lane] = deque()
        self._hanging: dict[str, None] = {}
        self._hanging_in_flight = 0
        per_host = config.max_in_flight_per_host
        self._most_per_lane = max(1, per_host * 3 // 4)  # leaves room for its neighbours until it shows that it hangs
        self._most_hanging_per_host = max(1, per_host // 2)
        self._most_hanging = max(1, config.max_in_flight // 4)
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
        fanout = Fanout(notification, body, targets, deadline, self._ended, self._loop)
        self._fanouts[fanout] = None
        self.bytes_in_memory += fanout.bytes_in_memory
        if not targets:
            fanout.close_when_over()
            return fanout
        fanout.timer = self._loop.call_at(deadline, self._give_up, fanout)
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
            self._enqueue(_Delivery(fanout, targets.pop(), head, finished))
        self._pump()

    def _enqueue(self, delivery: _Delivery) -> None:
        callback = delivery.target.callback
        lane = self._lanes.get(callback.name) or self._new_lane(callback)
        if len(lane.waiting) >= self._config.max_waiting_per_callback:
            lane.drop_settled()
            if len(lane.waiting) >= self._config.max_waiting_per_callback:
                self._failed(delivery, "too many deliveries wait for this callback")
                return
        delivery.lane = lane
        lane.waiting.append(delivery)
        if not lane.queued:
            self._queue(lane)

    def _new_lane(self, callback: CallbackUrl) -> _Lane:
        host = self._hosts.get(callback.origin)
        if host is None:
            host = self._hosts[callback.origin] = _Host()
        host.lanes += 1
        lane = self._lanes[callback.name] = _Lane(callback.name, callback.origin, host)
        return lane

    # -- from the lanes to the wire -----------------------------------------------------------------------------

    def _queue(self, lane: _Lane) -> None:
        """Let a lane with waiting deliveries take its next turn; forget one that has nothing left to do."""
        if lane.waiting:
            if not lane.queued:
                lane.queued = True
                self._runnable.append(lane)
        elif not lane.in_flight and not lane.queued:
            del self._lanes[lane.name]
            lane.host.lanes -= 1
            if not lane.host.lanes:
                del self._hosts[lane.origin]

    def _pump(self) -> None:
        """Start attempts while there are free slots, one of each lane in turn."""
        if self._pumping:
            return
        self._pumping = True
        while self._runnable and self._in_flight < self._config.max_in_flight:
            lane = self._runnable.popleft()
            lane.queued = False
            lane.drop_settled()
            if lane.waiting and not self._parked(lane):
                self._begin(lane, lane.waiting.popleft())
            self._queue_again(lane)
        self._pumping = False

    def _parked(self, lane: _Lane) -> bool:
        """Whether a lane has no right to a slot now; then it waits where the next free one is handed out."""
        host = lane.host
        hanging = lane.name in self._hanging
        if hanging and (lane.in_flight or host.hanging >= self._most_hanging_per_host):
            waiting_room: deque[_Lane] | None = None if lane.in_flight else host.parked_hanging
        elif hanging and self._hanging_in_flight >= self._most_hanging:
            waiting_room = self._parked_hanging
        elif lane.in_flight >= self._most_per_lane:
            waiting_room = None  # an attempt of its own ends first
        elif host.in_flight >= self._config.max_in_flight_per_host:
            waiting_room = host.parked
        else:
            return False
        if waiting_room is not None:
            lane.queued = True
            waiting_room.append(lane)
        return True

    def _queue_again(self, lane: _Lane) -> None:
        """After its turn: not while it waits for one of its own attempts, whose end queues it."""
        own_limit = 1 if lane.name in self._hanging else self._most_per_lane
        if not lane.waiting or lane.in_flight < own_limit:
            self._queue(lane)

    def _hand_on(self, host: _Host) -> None:
        """A slot has become free: who was parked for one may ask again."""
        for waiting_room in (host.parked, host.parked_hanging, self._parked_hanging):
            if waiting_room:
                self._runnable.append(waiting_room.popleft())

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
        lane.host.in_flight += 1
        if lane.name in self._hanging:
            lane.as_hanging += 1
            lane.host.hanging += 1
            self._hanging_in_flight += 1
        fanout.posts[delivery] = self._outbound.post(
            delivery.target.callback,
            head,
            fanout.body,
            deadline=deadline,
            done=delivery.finished,
            head_again=delivery.head_again,
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
                nonce_prefix=random_bytes(NONCE_PREFIX_BYTES),
            )
            if delivery.attempt == 1:
                fanout.heads = heads
        return heads.lines(target.id, target.callback.fragment)

    def _extended(self, seconds: float, body: Body) -> float:
        return seconds + body.size / self._config.min_bytes_per_second

    # -- from the answer to the counts --------------------------------------------------------------------------

    def _finished(self, delivery: _Delivery, outcome: Answer | AttemptFailed) -> None:
        lane = delivery.lane
        assert lane is not None
        del delivery.fanout.posts[delivery]
        self._leave(lane)
        if isinstance(outcome, AttemptFailed):
            self._note_hanging(lane.name, outcome.hanging)
            if outcome.again:
                self._retry(delivery, outcome.reason, None)
            else:
                self._failed(delivery, outcome.reason)
        else:
            if self._hanging:
                self._note_hanging(lane.name, False)
            self._answered(delivery, outcome)
        self._queue(lane)
        self._pump()

    def _answered(self, delivery: _Delivery, answer: Answer) -> None:
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

    def _leave(self, lane: _Lane) -> None:
        self._in_flight -= 1
        lane.in_flight -= 1
        lane.host.in_flight -= 1
        if lane.as_hanging:
            lane.as_hanging -= 1
            lane.host.hanging -= 1
            self._hanging_in_flight -= 1
        self._hand_on(lane.host)

    def _note_hanging(self, name: str, hanging: bool) -> None:
        self._hanging.pop(name, None)
        if hanging:
            self._hanging[name] = None
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
            self._leave(delivery.lane)
        fanout.close_when_over()
        for delivery in posts:
            assert delivery.lane is not None
            self._queue(delivery.lane)
        self._pump()

    def _ended(self, fanout: Fanout) -> None:
        del self._fanouts[fanout]
        self.bytes_in_memory -= fanout.bytes_in_memory
        if fanout.timer is not None:
            fanout.timer.cancel()
