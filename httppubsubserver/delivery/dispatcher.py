"""What is sent when: all subscribers of a message at once, bounded in total and per host, each settled exactly once.

A `Fanout` is one message on its way to its subscribers. Its deliveries wait in *lanes*, one per host and port; lanes
take turns, so a busy host delays itself only. A lane whose last attempt ran out of time is *hanging*: until it
answers again it may hold one of the slots that everybody shares, not more. Best effort means: quick retries
(protocol/retry.py) until the fan-out's deadline, then failed.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from httppubsubclient.bodies import Body
from httppubsubclient.protocol.credentials import Credentials, sign_delivery
from httppubsubclient.protocol.messages import Notification, delivery_headers
from httppubsubclient.protocol.retry import Verdict, quick_retry_delay, retry_after_seconds, verdict
from httppubsubclient.protocol.signatures import content_digest
from httppubsubserver.config import ServerConfig
from httppubsubserver.delivery.outbound import AttemptFailed, Outbound
from httppubsubserver.directory import Target

__all__ = ["Dispatcher", "Fanout"]

_LOG = logging.getLogger("httppubsub.server.delivery")

_MAX_HANGING = 10_000
"""How many hanging origins are remembered; beyond it the oldest is given the benefit of the doubt."""


class Fanout:
    """One message and its deliveries. Owns the body and closes it when nothing is under way any more."""

    def __init__(self, notification: Notification, body: Body, matched: int, on_done: Callable[[Fanout], None]) -> None:
        self.notification = notification
        self.body = body
        self.bytes_in_memory = 0 if body.data is None else body.size
        self.digest = content_digest(body.sha256)
        self.matched = matched
        self.notified = 0
        self.failed = 0
        self.attempts: set[asyncio.Task[None]] = set()
        self.done = asyncio.Event()
        self.over = matched == 0
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

    def give_up(self) -> None:
        """Fail whatever is not settled yet and stop the attempts under way."""
        if self.over:
            return
        self.failed += self.pending
        for attempt in self.attempts:
            attempt.cancel()
        self.close_when_over()

    def attempt_ended(self, attempt: asyncio.Task[None]) -> None:
        """Forget a task; the last one frees the body."""
        self.attempts.discard(attempt)
        self.close_when_over()

    def close_when_over(self) -> None:
        """Free the body and report, once, when everything is settled and no attempt reads it any more."""
        self.over = self.pending == 0
        if self.over and not self.attempts and not self.done.is_set():
            self.body.close()
            self.done.set()
            self._on_done(self)


@dataclass(slots=True)
class _Delivery:
    fanout: Fanout
    target: Target
    deadline: float
    attempt: int = 1


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
        self._lanes: dict[str, _Lane] = {}
        self._runnable: deque[_Lane] = deque()
        self._in_flight = 0
        self._retrying: dict[asyncio.TimerHandle, _Delivery] = {}
        self._draining = False
        self._fanouts: dict[Fanout, asyncio.TimerHandle] = {}
        self.bytes_in_memory = 0
        self._hanging: dict[str, None] = {}

    @property
    def running(self) -> int:
        """Fan-outs under way."""
        return len(self._fanouts)

    def start(self, notification: Notification, body: Body, targets: list[Target]) -> Fanout:
        """Begin to deliver to all of `targets`. The body belongs to the fan-out from here on."""
        fanout = Fanout(notification, body, len(targets), self._finished)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._extended(self._config.notify_timeout_seconds, body)
        self.bytes_in_memory += fanout.bytes_in_memory
        self._fanouts[fanout] = loop.call_at(deadline, fanout.give_up)
        if not targets:
            fanout.close_when_over()
        for target in targets:
            self._enqueue(_Delivery(fanout, target, deadline))
        self._pump()
        return fanout

    def start_draining(self) -> None:
        """No more retries: what waits for one has failed. Attempts under way go on to their own deadlines."""
        self._draining = True
        for timer, delivery in self._retrying.items():
            timer.cancel()
            delivery.fanout.settle(accepted=False)
        self._retrying.clear()

    async def drained(self) -> None:
        """Wait until no fan-out is under way."""
        while self._fanouts:
            await next(iter(self._fanouts)).done.wait()

    async def abort(self) -> None:
        """Give up everything that is under way, now."""
        for fanout in list(self._fanouts):
            fanout.give_up()
        await self.drained()

    def _finished(self, fanout: Fanout) -> None:
        self.bytes_in_memory -= fanout.bytes_in_memory
        self._fanouts.pop(fanout).cancel()

    def _extended(self, seconds: float, body: Body) -> float:
        return seconds + body.size / self._config.min_bytes_per_second

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
        lane.waiting.append(delivery)
        self._mark_runnable(lane)

    def _mark_runnable(self, lane: _Lane) -> None:
        limit = 1 if lane.origin in self._hanging else self._config.max_in_flight_per_host
        if lane.waiting and lane.in_flight < limit and not lane.runnable:
            lane.runnable = True
            self._runnable.append(lane)
        elif not lane.waiting and not lane.in_flight:
            self._lanes.pop(lane.origin, None)

    def _pump(self) -> None:
        """Start attempts while there are free slots, one of each lane in turn."""
        while self._runnable and self._in_flight < self._config.max_in_flight:
            lane = self._runnable.popleft()
            lane.runnable = False
            lane.drop_settled()
            if lane.waiting:
                self._begin(lane, lane.waiting.popleft())
            self._mark_runnable(lane)

    def _begin(self, lane: _Lane, delivery: _Delivery) -> None:
        if delivery.fanout.over:
            return
        self._in_flight += 1
        lane.in_flight += 1
        attempt = asyncio.get_running_loop().create_task(self._attempt(lane, delivery))
        delivery.fanout.attempts.add(attempt)
        attempt.add_done_callback(lambda task: self._ended(lane, delivery, task))

    def _ended(self, lane: _Lane, delivery: _Delivery, attempt: asyncio.Task[None]) -> None:
        self._in_flight -= 1
        lane.in_flight -= 1
        if not attempt.cancelled() and (error := attempt.exception()) is not None:
            # Whatever went wrong here, the publisher must not wait for it.
            _LOG.error("an attempt ended with an unexpected error", exc_info=error)
            delivery.fanout.settle(accepted=False)
        delivery.fanout.attempt_ended(attempt)
        self._mark_runnable(lane)
        self._pump()

    async def _attempt(self, lane: _Lane, delivery: _Delivery) -> None:
        fanout, target = delivery.fanout, delivery.target
        timeout = self._extended(self._config.attempt_timeout_seconds, fanout.body)
        try:
            answer = await self._outbound.post(
                target.callback, self._headers(delivery), fanout.body, timeout_seconds=timeout
            )
        except AttemptFailed as failure:
            self._note_hanging(lane.origin, failure.hanging)
            if failure.again:
                self._retry(delivery, failure.reason, None)
            else:
                self._failed(delivery, failure.reason)
            return
        self._note_hanging(lane.origin, False)
        meaning = verdict(answer.status)
        if meaning is Verdict.ACCEPTED:
            fanout.settle(accepted=True)
        elif meaning is Verdict.AGAIN:
            after = retry_after_seconds(answer.retry_after, self._clock())
            self._retry(delivery, f"status {answer.status}", after)
        else:
            if meaning is Verdict.GONE:
                self._gone(target.subscription.id)
            self._failed(delivery, f"status {answer.status}")

    def _note_hanging(self, origin: str, hanging: bool) -> None:
        self._hanging.pop(origin, None)
        if hanging:
            self._hanging[origin] = None
            if len(self._hanging) > _MAX_HANGING:
                del self._hanging[next(iter(self._hanging))]

    def _headers(self, delivery: _Delivery) -> dict[str, str]:
        fanout, target = delivery.fanout, delivery.target
        now = int(self._clock())
        headers = delivery_headers(
            fanout.notification,
            target.subscription.id,
            attempt=delivery.attempt,
            timestamp=now,
            fragment=target.callback.fragment,
        )
        headers["content-digest"] = fanout.digest
        headers.update(sign_delivery(self._credentials, headers=headers, now=now, nonce=secrets.token_urlsafe(16)))
        return headers

    def _retry(self, delivery: _Delivery, reason: str, retry_after: float | None) -> None:
        """Schedule the next attempt when there is one that begins before the deadline."""
        delay = quick_retry_delay(delivery.attempt, self._random(), retry_after)
        loop = asyncio.get_running_loop()
        if delay is None or self._draining or delivery.fanout.over or loop.time() + delay >= delivery.deadline:
            self._failed(delivery, reason)
            return
        delivery.attempt += 1
        timer: asyncio.TimerHandle = loop.call_later(delay, lambda: self._due(timer))
        self._retrying[timer] = delivery

    def _due(self, timer: asyncio.TimerHandle) -> None:
        delivery = self._retrying.pop(timer)
        if not delivery.fanout.over:
            self._enqueue(delivery)
            self._pump()

    def _failed(self, delivery: _Delivery, reason: str) -> None:
        _LOG.info(
            "delivery of %s to %s failed at attempt %d: %s",
            delivery.fanout.notification.message_id,
            delivery.target.subscription.id,
            delivery.attempt,
            reason,
        )
        delivery.fanout.settle(accepted=False)
