"""Whose turn it is to begin an attempt: endpoints that have something ready, one after the other.

Unproven endpoints that may not begin because of their common share (shares.py) step aside, and their line moves on as
soon as the share has room: first those with nothing under way. Whoever comes later stands behind them.
"""

from __future__ import annotations

from collections import deque

from httppubsubserver.delivery.endpoints import Endpoint
from httppubsubserver.delivery.shares import Shares

__all__ = ["Turns"]


class Turns:
    """Every endpoint stands here once at most, and `queued` says that it does."""

    def __init__(self, shares: Shares) -> None:
        self._shares = shares
        self._queue: deque[Endpoint] = deque()
        self._aside: dict[Endpoint, None] = {}
        """With nothing under way: they wait for the share."""
        self._aside_busy: dict[Endpoint, None] = {}
        """With something under way: they wait until it is less crowded, or until they have nothing under way."""
        self._aside_next = False

    def __len__(self) -> int:
        return len(self._queue) + len(self._aside) + len(self._aside_busy)

    def add(self, endpoint: Endpoint) -> None:
        """It has something ready, or one of its attempts has ended; does nothing when it stands here for good."""
        if not endpoint.ready:
            return
        if endpoint in self._aside_busy and (endpoint.proven or not endpoint.in_flight):
            self.remove_aside(endpoint)
        if not endpoint.queued:
            endpoint.queued = True
            self._queue.append(endpoint)

    def remove_aside(self, endpoint: Endpoint) -> None:
        """If it waits for the share, it does so no more."""
        if endpoint in self._aside or endpoint in self._aside_busy:
            self._aside.pop(endpoint, None)
            self._aside_busy.pop(endpoint, None)
            endpoint.queued = False

    def next(self) -> Endpoint | None:
        """Take the one whose turn it is. None: nobody may begin."""
        # In turn with the others: an endless queue of proven ones would keep those aside waiting for ever.
        self._aside_next = not self._aside_next
        endpoint = self._first_aside() if self._aside_next else None
        while endpoint is None and self._queue:
            endpoint = self._queue.popleft()
            if not endpoint.proven:
                (self._aside_busy if endpoint.in_flight else self._aside)[endpoint] = None
                endpoint = self._first_aside()
        endpoint = endpoint or self._first_aside()
        if endpoint is not None:
            endpoint.queued = False
        return endpoint

    def _first_aside(self) -> Endpoint | None:
        line = self._aside or ({} if self._shares.crowded else self._aside_busy)
        if not line or self._shares.free <= 0:
            return None
        endpoint = next(iter(line))
        del line[endpoint]
        return endpoint
