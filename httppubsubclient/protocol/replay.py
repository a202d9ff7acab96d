"""Each signed request once: a bounded memory of the nonces that were seen.

A nonce need only be remembered while its signature would be accepted. When there are more than fit, the window forgets
its oldest second whole, and from then on refuses whatever was created in that second or before. So pressure on the
memory shortens the time in which a request may arrive late, and never lets one in twice.

The same holds for a clock that is set back: what was once too old stays refused.
"""

from __future__ import annotations

from bisect import insort

__all__ = ["ReplayWindow"]


class _Second:
    """The keys whose signatures were created in one second."""

    __slots__ = ("keys", "until")

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.until = 0.0


class ReplayWindow:
    """Remembers up to `max_entries` keys. Not for several threads: there is no lock."""

    def __init__(self, max_entries: int) -> None:
        if max_entries < 1:
            raise ValueError("a replay window remembers at least one entry")
        self._max_entries = max_entries
        self._seen: set[str] = set()
        self._seconds: dict[int, _Second] = {}
        self._order: list[int] = []
        self._forgotten: int | None = None

    def __len__(self) -> int:
        """How many keys are remembered."""
        return len(self._seen)

    def seen(self, key: str, *, created: int, now: float) -> bool | None:
        """Whether `key` is remembered; None when it is not, but might have been forgotten."""
        self._forget_what_is_over(now)
        if key in self._seen:
            return True
        return None if self._forgotten is not None and created <= self._forgotten else False

    def remember(self, key: str, *, created: int, until: float, now: float) -> None:
        """Remember `key`, of which `seen` has said False a while ago; or, where there is no room for what is so old,
        count it among what was forgotten."""
        if not self.first_time(key, created=created, until=until, now=now) and key not in self._seen:
            self._forgotten = created if self._forgotten is None else max(self._forgotten, created)

    def first_time(self, key: str, *, created: int, until: float, now: float) -> bool:
        """True when `key` is new, and remember it; False when it was seen before, or when that is not certain any more.

        `created` is the Unix second of the signature, `until` the moment from which it is not accepted anyway.
        """
        self._forget_what_is_over(now)
        if key in self._seen or until <= now:
            return False
        if self._forgotten is not None and created <= self._forgotten:
            return False
        if len(self._seen) >= self._max_entries:
            if created <= self._order[0]:
                return False
            self._forget_oldest_second()
        second = self._seconds.get(created)
        if second is None:
            second = self._seconds[created] = _Second()
            insort(self._order, created)
        second.keys.append(key)
        second.until = max(second.until, until)
        self._seen.add(key)
        return True

    def _forget_what_is_over(self, now: float) -> None:
        while self._order and self._seconds[self._order[0]].until <= now:
            self._forget_oldest_second()

    def _forget_oldest_second(self) -> None:
        created = self._order.pop(0)
        self._seen.difference_update(self._seconds.pop(created).keys)
        self._forgotten = created if self._forgotten is None else max(self._forgotten, created)
