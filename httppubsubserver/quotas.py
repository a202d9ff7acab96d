"""How much each owner publishes: token buckets in the memory of this process.

A quota of a key is asked of the bucket of its owner, so that two keys of one owner are not twice as much. Several
processes (`workers`) each have buckets of their own: together they let through as many times the quota.

What comes without a Content-Length is counted while it arrives. It is treated as if its length had been said: when the
bucket is full at its beginning it goes through whatever its size, and leaves a debt; otherwise what is left has to do.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from httppubsubclient.protocol.errors import QuotaExceeded
from httppubsubclient.protocol.permissions import Quotas
from httppubsubclient.protocol.token_bucket import FULL, MAX_DEBT_SECONDS, Rate, Taken, take

__all__ = ["Buckets", "Charge", "PublishQuotas", "monotonic_microseconds"]

MAX_OWNERS: Final = 10_000
"""Whose buckets are remembered; those that are full again go first, then those that are nearest to it."""

_MICROSECONDS: Final = 1_000_000

Charge = Callable[[int], None]
"""Told of so many more bytes that have arrived. Raises `QuotaExceeded`."""


def monotonic_microseconds() -> int:
    """The clock of the buckets."""
    return time.monotonic_ns() // 1000


class Buckets:
    """One bucket for each owner. `clock` gives microseconds and is not set."""

    def __init__(self, clock: Callable[[], int] = monotonic_microseconds, *, max_owners: int = MAX_OWNERS) -> None:
        self._clock = clock
        self._max_owners = max_owners
        self._states: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._states)

    def take(self, owner: str, rate: Rate, amount: int) -> int:
        """Microseconds to wait; 0: it was taken."""
        taken = self.ask(owner, rate, amount)
        if taken.allowed:
            self.put(owner, taken)
        return taken.wait_microseconds

    def ask(self, owner: str, rate: Rate, amount: int) -> Taken:
        """What taking would do; `put` does it, if nothing else was done meanwhile."""
        return take(rate, self._states.get(owner, FULL), self._clock(), amount)

    def put(self, owner: str, taken: Taken) -> None:
        """See `ask`."""
        if owner not in self._states and len(self._states) >= self._max_owners:
            self._forget_some()
        self._states[owner] = taken.state

    def is_full(self, owner: str) -> bool:
        """Whether nothing is missing."""
        return self._states.get(owner, FULL) <= self._clock()

    def charge(self, owner: str, rate: Rate, amount: int) -> None:
        """Take it in any case, as a debt when it is too much."""
        now = self._clock()
        state = max(self._states.get(owner, FULL), now) + rate.cost(amount)
        longest = rate.filling + MAX_DEBT_SECONDS * _MICROSECONDS
        self.put(owner, Taken(min(state, now + longest), 0))

    def _forget_some(self) -> None:
        now = self._clock()
        self._states = {owner: state for owner, state in self._states.items() if state > now}
        excess = len(self._states) - self._max_owners * 3 // 4
        if excess > 0:
            for owner in sorted(self._states, key=self._states.__getitem__)[:excess]:
                del self._states[owner]


class PublishQuotas:
    """`messages_per_second` and `bytes_per_second` of those who publish."""

    def __init__(self, clock: Callable[[], int] = monotonic_microseconds) -> None:
        self._messages = Buckets(clock)
        self._bytes = Buckets(clock)

    def begin(self, owner: str, quotas: Quotas, length: int | None) -> Charge | None:
        """Take one message with a body of `length` bytes, before it is read, or none of both.

        None: its length is not known; the `Charge` that is returned then has to be told what arrives. Raises
        `QuotaExceeded`.
        """
        messages, octets = quotas.message_rate, quotas.byte_rate
        taken = None if messages is None else self._messages.ask(owner, messages, 1)
        if taken is not None and not taken.allowed:
            raise _exceeded(f"{quotas.messages_per_second:g} messages", taken.wait_microseconds)
        if octets is not None and length is not None:
            wait = self._bytes.take(owner, octets, length)
            if wait:
                raise _exceeded(f"{quotas.bytes_per_second:g} bytes", wait)
        elif octets is not None and not self._bytes.ask(owner, octets, 1).allowed:
            raise _exceeded(f"{quotas.bytes_per_second:g} bytes", self._bytes.ask(owner, octets, 1).wait_microseconds)
        if taken is not None:
            self._messages.put(owner, taken)
        return None if octets is None or length is not None else self._arriving(owner, quotas, octets)

    def _arriving(self, owner: str, quotas: Quotas, rate: Rate) -> Charge:
        goes_through: bool | None = None

        def charge(size: int) -> None:
            nonlocal goes_through
            if goes_through is None and size:
                # At the first bytes, not before: of several that begin at once, one finds the bucket full.
                goes_through = self._bytes.is_full(owner)
            if goes_through:
                self._bytes.charge(owner, rate, size)
            elif size and (wait := self._bytes.take(owner, rate, size)):
                raise _exceeded(f"{quotas.bytes_per_second:g} bytes", wait)

        return charge


def _exceeded(what: str, wait_microseconds: int) -> QuotaExceeded:
    seconds = wait_microseconds / _MICROSECONDS
    shown = f"{seconds:.3g}" if seconds < 100 else f"{seconds:.0f}"
    return QuotaExceeded(
        f"permitted are {what} a second, which is used up for now; again in {shown} s", retry_after_seconds=seconds
    )
