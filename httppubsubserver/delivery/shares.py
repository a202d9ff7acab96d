"""How much of the slots may be taken by endpoints that have not shown that they work.

An endpoint is *proven* when its last answer was 2xx, else *unproven*. An attempt that hangs has its slot for many
seconds, and who hangs is known only afterwards. So the unproven together get no more than three quarters of what there
is, and the last quarter is for those that answer. The more the unproven have, the less one of them may have:

| pressure | when the unproven hold         | of each of them may be held      |
|----------|--------------------------------|----------------------------------|
| 0        | less than half of the slots    | as much as its circuit allows    |
| 1        | half or more                   | 1                                |
| 2        | all that they may hold         | no more                          |
"""

from __future__ import annotations

from typing import Final

__all__ = ["Shares"]

_MAX_PROVEN: Final = 10_000
"""How many endpoints that work are remembered; beyond it the oldest is forgotten, and has to prove itself anew."""

_HELD_PER_SLOT: Final = 2
"""So many deliveries are held for each slot, so that none waits for a claim."""


class Shares:
    """Counts what the unproven have. `slots` is how many attempts may be under way in all, >= 1."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._half = (slots + 1) // 2
        self.kept_back = slots // 4
        """Slots that are for proven endpoints only."""
        self.proven: dict[str, None] = {}
        """The URLs of proven endpoints, those that have answered last at the end."""
        self.held = 0
        """Deliveries of unproven endpoints that this process has, or has asked for."""
        self.in_flight = 0
        """The ones of them that are being POSTed."""

    @property
    def free(self) -> int:
        """Slots that unproven endpoints may still take; < 0 when some were proven until now."""
        return self._slots - self.kept_back - self.in_flight

    @property
    def free_from_memory(self) -> int:
        """Deliveries of unproven endpoints that a notify may have leased at once; may be < 0."""
        return self._slots - self.kept_back - self.held

    @property
    def room(self) -> int:
        """How many more deliveries of unproven endpoints may be held; may be < 0."""
        return _HELD_PER_SLOT * (self._slots - self.kept_back) - self.held

    @property
    def pressure(self) -> int:
        """0 to 2, as in the table above."""
        if self.held < self._half:
            return 0
        return 1 if self.room > 0 else 2

    @property
    def crowded(self) -> bool:
        """Half of the slots or more are taken by the unproven: each may have one attempt under way."""
        return self.in_flight >= self._half

    def prove(self, url: str) -> str | None:
        """Remember that this endpoint has answered 2xx. Returns the URL of the one that is forgotten instead."""
        self.proven.pop(url, None)
        self.proven[url] = None
        if len(self.proven) <= _MAX_PROVEN:
            return None
        oldest = next(iter(self.proven))
        del self.proven[oldest]
        return oldest
