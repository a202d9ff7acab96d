"""How much may go through in a time: a token bucket as arithmetic.

A bucket holds up to `burst` units and is refilled with `per_second`. Its whole state is one integer, the moment at
which it would be full again (as in the "virtual scheduling" of ITU-T I.371): nothing runs, nothing has to be written
while nothing happens, 0 is a full bucket, and a state that lies in the past is the same as a full one.

What is larger than the whole bucket is not refused for ever: it waits for a full bucket and leaves a debt, which has to
be refilled first. So the rate holds over time, and the bucket says how regular it is. Moments are integer microseconds
of any clock; a clock that is set back delays nobody by more than `MAX_DEBT_SECONDS` and one filling.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, NamedTuple

from httppubsubclient.protocol.errors import ConfigurationError

__all__ = ["FULL", "MAX_DEBT_SECONDS", "MAX_PER_SECOND", "Rate", "Taken", "take"]

FULL: Final = 0
"""The state of a bucket that nothing was taken from."""
MAX_PER_SECOND: Final = 10**12
MAX_DEBT_SECONDS: Final = 3600
"""The most that one amount can cost, however large it is."""

_MICROSECONDS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Rate:
    """Units per second, and how many of them may come at once. Raises `ConfigurationError`."""

    per_second: float
    burst: float

    def __post_init__(self) -> None:
        for name, value in (("per_second", self.per_second), ("burst", self.burst)):
            # The comparison refuses NaN, too.
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_PER_SECOND:
                raise ConfigurationError(f"{name} of a rate is a number above 0, at most {MAX_PER_SECOND}")
        if self.burst / self.per_second > MAX_DEBT_SECONDS:
            raise ConfigurationError(f"the burst of a rate is what comes in {MAX_DEBT_SECONDS} seconds at most")

    @property
    def filling(self) -> int:
        """Microseconds in which an empty bucket becomes full."""
        return math.ceil(self.burst * _MICROSECONDS / self.per_second)

    def cost(self, amount: int) -> int:
        """Microseconds in which so many units come, bounded by `MAX_DEBT_SECONDS`."""
        return min(math.ceil(amount * _MICROSECONDS / self.per_second), MAX_DEBT_SECONDS * _MICROSECONDS)


class Taken(NamedTuple):
    """What became of an amount."""

    state: int
    """Of the bucket from now on; unchanged in effect when the amount has to wait."""
    wait_microseconds: int
    """0: it went through. Otherwise it would go through after this time, if nothing else did meanwhile."""

    @property
    def allowed(self) -> bool:
        """Whether it went through."""
        return self.wait_microseconds == 0


def take(rate: Rate, state: int, now: int, amount: int) -> Taken:
    """Take `amount` units (0 or more) out of the bucket, or say how long to wait."""
    filling, cost = rate.filling, rate.cost(amount)
    missing = min(max(state - now, 0), filling + MAX_DEBT_SECONDS * _MICROSECONDS)
    wait = missing + min(cost, filling) - filling
    if wait > 0:
        return Taken(now + missing, wait)
    return Taken(now + missing + cost, 0)
