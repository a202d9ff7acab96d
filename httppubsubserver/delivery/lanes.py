"""Whose turn it is: deliveries wait in lanes, one per callback URL, and lanes take turns at the slots.

| bound                                   | slots                                                              |
|-----------------------------------------|--------------------------------------------------------------------|
| everybody                               | `max_in_flight`                                                    |
| one host and port                       | `max_in_flight_per_host`                                           |
| one callback URL                        | three quarters of its host's                                       |
| one that hangs                          | 1                                                                  |
| all that hang, of one host / altogether | half of the host's / a quarter of everybody's                      |

A lane whose last attempt ran out of time *hangs* until it answers again. A lane that has no right to a slot is parked
where the next free one is handed out, so nobody is looked at in vain.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from httppubsubclient.protocol.callback_urls import CallbackUrl
from httppubsubserver.config import ServerConfig
from httppubsubserver.delivery.fanout import Delivery

__all__ = ["Lane", "Lanes"]

_MAX_REMEMBERED: Final = 10_000
"""How many hanging callbacks are remembered; beyond it the oldest is forgotten."""


class Host:
    """The attempts under way to one host and port, and the lanes that wait for one of its slots."""

    __slots__ = ("hanging", "in_flight", "lanes", "parked", "parked_hanging")

    def __init__(self) -> None:
        self.lanes = 0
        self.in_flight = 0
        self.hanging = 0
        self.parked: deque[Lane] = deque()
        self.parked_hanging: deque[Lane] = deque()


class Lane:
    """The deliveries to one callback URL."""

    __slots__ = ("as_hanging", "host", "in_flight", "name", "origin", "queued", "waiting")

    def __init__(self, name: str, origin: str, host: Host) -> None:
        self.name = name
        self.origin = origin
        self.host = host
        self.waiting: deque[Delivery] = deque()
        self.in_flight = 0
        self.as_hanging = 0
        """Of those in flight, the ones that began while it was hanging."""
        self.queued = False
        """It stands in one of the queues: runnable, or parked."""

    def drop_settled(self) -> None:
        """Forget those at the front whose fan-out is over; the oldest are at the front."""
        while self.waiting and self.waiting[0].fanout.over:
            self.waiting.popleft()


class Lanes:
    """All lanes. `begin` starts an attempt: it calls `enter`, and when the attempt is over somebody calls `leave`."""

    def __init__(self, config: ServerConfig, begin: Callable[[Delivery], None]) -> None:
        self._begin = begin
        self._most_waiting = config.max_waiting_per_callback
        self._most = config.max_in_flight
        self._most_per_host = config.max_in_flight_per_host
        # Leaves room for its neighbours until it shows that it hangs.
        self._most_per_lane = max(1, self._most_per_host * 3 // 4)
        self._most_hanging_per_host = max(1, self._most_per_host // 2)
        self._most_hanging = max(1, self._most // 4)
        self._hosts: dict[str, Host] = {}
        self._lanes: dict[str, Lane] = {}
        self._runnable: deque[Lane] = deque()
        self._parked_hanging: deque[Lane] = deque()
        self._hanging: dict[str, None] = {}
        self._hanging_in_flight = 0
        self._in_flight = 0
        self._pumping = False

    def put(self, delivery: Delivery) -> bool:
        """Let it wait in its lane; False when too many do already."""
        callback = delivery.target.callback
        lane = self._lanes.get(callback.name) or self._new(callback)
        if len(lane.waiting) >= self._most_waiting:
            lane.drop_settled()
            if len(lane.waiting) >= self._most_waiting:
                return False
        delivery.lane = lane
        lane.waiting.append(delivery)
        if not lane.queued:
            self.queue(lane)
        return True

    def enter(self, lane: Lane) -> None:
        """An attempt begins."""
        self._in_flight += 1
        lane.in_flight += 1
        lane.host.in_flight += 1
        if lane.name in self._hanging:
            lane.as_hanging += 1
            lane.host.hanging += 1
            self._hanging_in_flight += 1

    def leave(self, lane: Lane) -> None:
        """An attempt is over. `queue` and `pump` follow, when what comes of it is done."""
        self._in_flight -= 1
        lane.in_flight -= 1
        lane.host.in_flight -= 1
        if lane.as_hanging:
            lane.as_hanging -= 1
            lane.host.hanging -= 1
            self._hanging_in_flight -= 1
        self._hand_on(lane.host)

    def tell(self, lane: Lane, *, hanging: bool) -> None:
        """How an attempt of this lane ended: out of time, or in any other way."""
        if not hanging and not self._hanging:
            return
        self._hanging.pop(lane.name, None)
        if hanging:
            self._hanging[lane.name] = None
            if len(self._hanging) > _MAX_REMEMBERED:
                del self._hanging[next(iter(self._hanging))]

    def queue(self, lane: Lane) -> None:
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

    def pump(self) -> None:
        """Start attempts while there are free slots, one of each lane in turn."""
        if self._pumping:
            return
        self._pumping = True
        try:
            while self._runnable and self._in_flight < self._most:
                lane = self._runnable.popleft()
                lane.queued = False
                lane.drop_settled()
                if lane.waiting and not self._parked(lane):
                    self._begin(lane.waiting.popleft())
                self._queue_again(lane)
        finally:
            self._pumping = False

    def _parked(self, lane: Lane) -> bool:
        """Whether a lane has no right to a slot now; then it waits where the next free one is handed out."""
        host = lane.host
        hanging = lane.name in self._hanging
        if hanging and (lane.in_flight or host.hanging >= self._most_hanging_per_host):
            waiting_room: deque[Lane] | None = None if lane.in_flight else host.parked_hanging
        elif hanging and self._hanging_in_flight >= self._most_hanging:
            waiting_room = self._parked_hanging
        elif lane.in_flight >= self._most_per_lane:
            waiting_room = None  # an attempt of its own ends first
        elif host.in_flight >= self._most_per_host:
            waiting_room = host.parked
        else:
            return False
        if waiting_room is not None:
            lane.queued = True
            waiting_room.append(lane)
        return True

    def _queue_again(self, lane: Lane) -> None:
        """After its turn: not while it waits for one of its own attempts, whose end queues it."""
        own_limit = 1 if lane.name in self._hanging else self._most_per_lane
        if not lane.waiting or lane.in_flight < own_limit:
            self.queue(lane)

    def _hand_on(self, host: Host) -> None:
        """A slot has become free: who was parked for one may ask again."""
        for waiting_room in (host.parked, host.parked_hanging, self._parked_hanging):
            if waiting_room:
                self._runnable.append(waiting_room.popleft())

    def _new(self, callback: CallbackUrl) -> Lane:
        host = self._hosts.get(callback.origin)
        if host is None:
            host = self._hosts[callback.origin] = Host()
        host.lanes += 1
        lane = self._lanes[callback.name] = Lane(callback.name, callback.origin, host)
        return lane
