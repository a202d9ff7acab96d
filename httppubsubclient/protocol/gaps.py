"""Whether the deliveries of one durable subscription are all there, from their numbers alone.

The broadcaster numbers the deliveries of each durable subscription 1, 2, 3 ... (`Pubsub-Sequence`), and each names the
message of the one before (`Pubsub-Previous`). The receiver tells `SeenNumbers` of each delivery that it has accepted:

| what comes                                                     | `Continuity`   | `missing`                     |
|----------------------------------------------------------------|----------------|-------------------------------|
| the next number; or the first of all, when nothing is known    | `IN_ORDER`     | none                          |
| a higher number                                                | `GAP`          | the numbers that it jumps     |
| a lower number, that was missing or is too old to tell         | `OUT_OF_ORDER` | none                          |
| a number that was seen, with the same message                  | `DUPLICATE`    | none                          |
| a number that was seen, with another message; or after another | `RESTARTED`    | none; counting begins with it |

A gap is news, not yet a loss: deliveries that are not ordered overtake each other, and one that is tried again comes
late. What stays missing was given up by the broadcaster or has been lost; asking for everything after `complete_to`
tells. `RESTARTED` says that these numbers do not continue those that were seen: the broadcaster's database is another
one, or an older copy of it.

Nobody should drop a message because of what this says: its id is for that. So `DUPLICATE` is said only when it is
certain, and what lies too far back is `OUT_OF_ORDER`. Memory is bounded: the ids of the last `max_recent` deliveries
and `max_gaps` ranges of missing numbers. When there are more ranges, the two lowest become one with what lies between
them: `missing` then has numbers that were seen, but never leaves one out that was not.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

__all__ = ["Arrival", "Continuity", "SeenNumbers"]

_NONE = range(0)


class Continuity(Enum):
    """How a delivery continues those before it."""

    IN_ORDER = "in_order"
    GAP = "gap"
    DUPLICATE = "duplicate"
    OUT_OF_ORDER = "out_of_order"
    RESTARTED = "restarted"


class Arrival(NamedTuple):
    """What one delivery says about the others."""

    continuity: Continuity
    missing: range = _NONE
    """`GAP`: the numbers that were expected before this one."""


class SeenNumbers:
    """The numbers of one subscription that were seen. Not for several threads: there is no lock.

    `last` is the highest number of an earlier life with its message id, 0 for a subscription that was just made, and
    None when nothing is known: then the first delivery is where counting begins.
    """

    __slots__ = ("_last", "_max_gaps", "_max_recent", "_missing", "_recent")

    def __init__(
        self, last: int | None = None, last_message_id: str | None = None, *, max_recent: int = 1024, max_gaps: int = 64
    ) -> None:
        if max_recent < 1 or max_gaps < 1:
            raise ValueError("a sequence remembers at least one delivery and one gap")
        self._last = last
        self._max_recent = max_recent
        self._max_gaps = max_gaps
        self._missing: list[range] = []
        self._recent: dict[int, str] = {}
        if last is not None and last_message_id is not None:
            self._recent[last] = last_message_id

    @property
    def last(self) -> int | None:
        """The highest number that was seen; None before the first."""
        return self._last

    @property
    def missing(self) -> tuple[range, ...]:
        """What was jumped and has not come, lowest first."""
        return tuple(self._missing)

    @property
    def complete_to(self) -> int | None:
        """From where counting began up to this number nothing is missing; None before the first."""
        return self._missing[0].start - 1 if self._missing else self._last

    def arrived(self, sequence: int, message_id: str, previous_message_id: str | None) -> Arrival:
        """A delivery has been accepted. `previous_message_id` is None for number 1, and when it was not told."""
        if self._last is None:
            self._begin(sequence, message_id)
            return Arrival(Continuity.IN_ORDER)
        known = self._recent.get(sequence)
        if known == message_id:
            return Arrival(Continuity.DUPLICATE)
        before = self._recent.get(sequence - 1, previous_message_id)
        if known is not None or (previous_message_id is not None and before != previous_message_id):
            self._begin(sequence, message_id)
            return Arrival(Continuity.RESTARTED)
        self._remember(sequence, message_id)
        if sequence <= self._last:
            self._fill(sequence)
            return Arrival(Continuity.OUT_OF_ORDER)
        jumped = range(self._last + 1, sequence)
        self._last = sequence
        if not jumped:
            return Arrival(Continuity.IN_ORDER)
        self._missing.append(jumped)
        self._bound_missing()
        return Arrival(Continuity.GAP, jumped)

    def give_up(self, through: int) -> None:
        """What is missing up to this number will not come: wait for it no longer."""
        self._missing = [
            range(max(gap.start, through + 1), gap.stop) for gap in self._missing if gap.stop > through + 1
        ]

    def _begin(self, sequence: int, message_id: str) -> None:
        self._last = sequence
        self._missing.clear()
        self._recent = {sequence: message_id}

    def _remember(self, sequence: int, message_id: str) -> None:
        if len(self._recent) >= self._max_recent:
            del self._recent[next(iter(self._recent))]
        self._recent[sequence] = message_id

    def _fill(self, sequence: int) -> None:
        for index, gap in enumerate(self._missing):
            if sequence in gap:
                parts = (range(gap.start, sequence), range(sequence + 1, gap.stop))
                self._missing[index : index + 1] = [part for part in parts if part]
                self._bound_missing()
                return

    def _bound_missing(self) -> None:
        if len(self._missing) > self._max_gaps:
            lowest, second = self._missing[:2]
            self._missing[:2] = [range(lowest.start, second.stop)]
