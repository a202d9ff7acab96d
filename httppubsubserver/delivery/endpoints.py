"""What this process knows about the endpoints of durable deliveries: their circuits, and what it holds of each.

The store has the last word on a pause: it hands out nothing of a blocked endpoint, to nobody. So whatever it does hand
out of one that is paused here was let through by somebody else (a subscriber that is back, another broadcaster), and
is the probe.

| a delivery that this process holds | counts as   |
|------------------------------------|-------------|
| is asked for by a notify           | `reserved`  |
| was claimed and waits for its turn | `ready`     |
| is being POSTed                    | `in_flight` |

What they may have together is in shares.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from httppubsubclient.protocol.circuit import (
    NEW_CIRCUIT,
    Circuit,
    CircuitRules,
    Phase,
    after_failure,
    after_success,
    allowed,
    next_moment,
    phase,
)
from httppubsubserver.delivery.shares import Shares
from httppubsubserver.delivery.work import Work

__all__ = ["Endpoint", "Endpoints"]

_READ_AHEAD: Final = 2
"""Of an endpoint that works so many times its limit are held, so that none of its slots waits for a claim."""

_MAX_REMEMBERED: Final = 10_000
"""How many endpoints that do not work are remembered; beyond it the oldest is forgotten, and is asked anew."""


class Endpoint:
    """One callback URL without its fragment."""

    __slots__ = ("circuit", "in_flight", "pause_is_written", "proven", "queued", "ready", "reserved", "url")

    def __init__(self, url: str, *, proven: bool = False) -> None:
        self.url = url
        self.proven = proven
        """Its last answer was 2xx."""
        self.circuit: Circuit = NEW_CIRCUIT
        self.pause_is_written = False
        """The store knows of the last pause."""
        self.reserved = 0
        self.ready: deque[Work] = deque()
        self.in_flight = 0
        self.queued = False
        """It stands among those that have something to begin."""

    @property
    def held(self) -> int:
        """Deliveries of it that this process has, or has asked for."""
        return self.reserved + len(self.ready) + self.in_flight


class Endpoints:
    """All that are held, and those whose circuit is not closed.

    `clock` gives Unix seconds; `slots` is how many attempts may be under way in all.
    """

    def __init__(
        self, rules: CircuitRules, *, clock: Callable[[], float], random: Callable[[], float], slots: int = 512
    ) -> None:
        self._rules = rules
        self.shares = Shares(slots)
        self._clock = clock
        self._random = random
        self._known: dict[str, Endpoint] = {}

    def __getitem__(self, url: str) -> Endpoint:
        """The endpoint with this URL, a new one if it is not known. `forget_idle` follows when nothing is held."""
        endpoint = self._known.get(url)
        if endpoint is None:
            endpoint = self._known[url] = Endpoint(url, proven=url in self.shares.proven)
            if len(self._known) > _MAX_REMEMBERED:
                self._forget_oldest(endpoint)
        return endpoint

    def all(self) -> list[Endpoint]:
        """Those that are known now."""
        return list(self._known.values())

    def hold(self, endpoint: Endpoint, change: int) -> None:
        """So many more of its deliveries are held, or fewer."""
        if not endpoint.proven:
            self.shares.held += change

    def count_in_flight(self, endpoint: Endpoint, change: int) -> None:
        """So many more attempts are under way, or fewer."""
        endpoint.in_flight += change
        if not endpoint.proven:
            self.shares.in_flight += change

    def may_begin(self, endpoint: Endpoint) -> bool:
        """Whether its circuit lets another attempt be under way."""
        return endpoint.in_flight < self._allowed(endpoint)

    def may_reserve(self, endpoint: Endpoint) -> bool:
        """Whether a notify may have the store lease it one at once."""
        if not endpoint.proven and endpoint.held and self.shares.pressure:
            return False
        return endpoint.held < self._allowed(endpoint)

    def _allowed(self, endpoint: Endpoint) -> int:
        # Most of them work, and are asked about for every delivery.
        if endpoint.circuit is NEW_CIRCUIT:
            return self._rules.limit
        return allowed(endpoint.circuit, self._clock(), self._rules)

    def limits(self) -> dict[str, int]:
        """How many more of each may be claimed, where that is not `limit_of_others`."""
        now = self._clock()
        limits: dict[str, int] = {}
        if self.shares.pressure:
            limits = dict.fromkeys(self.shares.proven, self._read_ahead)
        for url, endpoint in self._known.items():
            limits[url] = max(0, self._limit(endpoint, now) - endpoint.held)
        return limits

    def _limit(self, endpoint: Endpoint, now: float) -> int:
        limit = self._limit_of_circuit(endpoint, now)
        return limit if endpoint.proven else min(limit, self.limit_of_others)

    def _limit_of_circuit(self, endpoint: Endpoint, now: float) -> int:
        present = phase(endpoint.circuit, now)
        if present is Phase.CLOSED:
            return self._read_ahead
        if present is Phase.CLOSING:
            return allowed(endpoint.circuit, now, self._rules)
        return 1 if present is Phase.PROBING or endpoint.pause_is_written else 0

    def claimable_at(self, url: str) -> float | None:
        """When more of it may be claimed, Unix seconds: when its pause is over, or now. None: when one that is held
        has ended, or when there is less pressure."""
        endpoint = self._known.get(url)
        now = self._clock()
        if endpoint is None:
            return now if self.limit_of_others or url in self.shares.proven else None
        if endpoint.held >= self._limit(endpoint, now):
            return None
        return next_moment(endpoint.circuit, now)

    @property
    def limit_of_others(self) -> int:
        """How many may be claimed of an endpoint about which nothing is known."""
        return (self._read_ahead, 1, 0)[self.shares.pressure]

    @property
    def _read_ahead(self) -> int:
        return _READ_AHEAD * self._rules.limit

    def is_paused(self, endpoint: Endpoint) -> bool:
        """Whether nothing may be sent there now."""
        return endpoint.circuit is not NEW_CIRCUIT and phase(endpoint.circuit, self._clock()) in (
            Phase.OPEN,
            Phase.SLOWED,
        )

    def paused(self) -> frozenset[str]:
        """Those that are paused as far as is known here, and of which the store hands out nothing, unless somebody
        else lets it through."""
        return frozenset(url for url, each in self._known.items() if each.pause_is_written and self.is_paused(each))

    def let_through(self, endpoint: Endpoint) -> None:
        """The store has handed out a delivery of it: a pause that is remembered here is over."""
        circuit = endpoint.circuit
        now = self._clock()
        endpoint.circuit = replace(circuit, paused_at=min(circuit.paused_at, now), paused_until=now)

    def succeeded(self, endpoint: Endpoint) -> float | None:
        """An attempt was answered 2xx. Returns now, when that ends a pause; else None."""
        self._judge(endpoint, proven=True)
        forgotten = self.shares.prove(endpoint.url)
        if forgotten is not None and forgotten in self._known:
            self._judge(self._known[forgotten], proven=False)
        circuit = endpoint.circuit
        if circuit is NEW_CIRCUIT:
            return None
        now = self._clock()
        was_paused = phase(circuit, now) is Phase.OPEN
        endpoint.circuit = after_success(circuit, now, self._rules)
        return now if was_paused else None

    def failed(self, endpoint: Endpoint, retry_after: float | None, *, hanging: bool = False) -> float | None:
        """An attempt failed; `retry_after` as `after_failure` has it. Returns the end of a pause that begins.

        One that was `hanging` is enough for a pause when many wait for the slots that it had.
        """
        self._judge(endpoint, proven=False)
        self.shares.proven.pop(endpoint.url, None)
        before = known = endpoint.circuit
        if hanging and self.shares.pressure and known.stored is Phase.CLOSED:
            known = replace(known, failures=self._rules.failures_to_open - 1)
        endpoint.circuit = after_failure(
            known, self._clock(), self._rules, random=self._random(), retry_after=retry_after
        )
        paused = endpoint.circuit.stored in (Phase.OPEN, Phase.SLOWED)
        return endpoint.circuit.paused_until if paused and endpoint.circuit is not before else None

    def end_pause(self, url: str) -> None:
        """Its subscriber is back: a pause is over now, and a probe shows whether it takes anything. How many pauses
        there were still counts, for it may be back again and again without taking anything."""
        endpoint = self._known.get(url)
        if endpoint is not None and self.is_paused(endpoint):
            self.let_through(endpoint)

    def _judge(self, endpoint: Endpoint, *, proven: bool) -> None:
        """What is held of it counts for the unproven, or does so no more."""
        if endpoint.proven is not proven:
            sign = -1 if proven else 1
            self.shares.held += sign * endpoint.held
            self.shares.in_flight += sign * endpoint.in_flight
            endpoint.proven = proven

    def forget_idle(self, endpoint: Endpoint) -> None:
        """Forget it when nothing of it is held and nothing is known against it."""
        if not endpoint.queued and not endpoint.held and endpoint.circuit == NEW_CIRCUIT:
            self._known.pop(endpoint.url, None)

    def _forget_oldest(self, new: Endpoint) -> None:
        for url, endpoint in self._known.items():
            if not endpoint.held and not endpoint.queued and endpoint is not new:
                del self._known[url]
                return
