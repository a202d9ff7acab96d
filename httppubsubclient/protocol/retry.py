"""What an answer means, and when the next attempt is. Arithmetic only: the moment and the random number are arguments.

| answer                              | verdict    | best effort                         | durable                  |
|-------------------------------------|------------|-------------------------------------|--------------------------|
| 2xx                                 | `ACCEPTED` | is done                             | is done                  |
| 410                                 | `GONE`     | forgets the subscription            | forgets the subscription |
| 429, 502, 503, 504, no connection   | `AGAIN`    | tries again, not before Retry-After | the same, by schedule    |
| everything else, redirects included | `FAILED`   | gives up                            | the same, by schedule    |

A durable message is tried again after a 404 or a redirect too: somebody may mend the receiver before the schedule ends.

The durable schedule is that of Standard Webhooks, a subscription may have one of its own. Entry n is the wait before
attempt n, counted from the end of the attempt before; so there are as many attempts as entries:

| attempt | 1   | 2     | 3     | 4      | 5     | 6     | 7      | 8      | 9      | 10     | 11   |
|---------|-----|-------|-------|--------|-------|-------|--------|--------|--------|--------|------|
| after   | 0 s | 5 s   | 5 min | 30 min | 2 h   | 5 h   | 10 h   | 14 h   | 20 h   | 24 h   | dead |

Each wait is made up to a fifth shorter or longer at random, so that what failed together does not come back together;
the last attempt is made about 75 hours after the first. A Retry-After puts an attempt off, by a day at the most; it
never brings one forward.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import Enum
from typing import Final

from httppubsubclient.protocol.errors import InvalidRequest

__all__ = [
    "DURABLE_SCHEDULE_SECONDS",
    "MAX_QUICK_RETRY_SECONDS",
    "MAX_RETRY_AFTER_SECONDS",
    "MAX_SCHEDULE_ATTEMPTS",
    "MAX_SCHEDULE_WAIT_SECONDS",
    "QUICK_RETRY_SECONDS",
    "Verdict",
    "backoff_delay",
    "check_retry_schedule",
    "durable_retry_delay",
    "longest_durable_delay",
    "quick_retry_delay",
    "retry_after_seconds",
    "slows_endpoint",
    "tried_again_when_durable",
    "verdict",
]

QUICK_RETRY_SECONDS: Final = (0.2, 1.0, 2.0)
"""Best effort: the mean wait after attempt 1, 2, 3. After the fourth attempt there is no other."""

MAX_QUICK_RETRY_SECONDS: Final = 10.0
"""Best effort does not wait for a Retry-After beyond this."""

MAX_RETRY_AFTER_SECONDS: Final = 86_400.0
"""A Retry-After further away counts as this: nobody can put a sender off for years."""

DURABLE_SCHEDULE_SECONDS: Final = (0.0, 5.0, 300.0, 1800.0, 7200.0, 18_000.0, 36_000.0, 50_400.0, 72_000.0, 86_400.0)
"""Durable: the mean wait before attempt 1, 2, ... 10."""

MAX_SCHEDULE_ATTEMPTS: Final = 64
"""So many entries a subscription's own schedule may have."""

MAX_SCHEDULE_WAIT_SECONDS: Final = 30 * 86_400.0
"""No entry of a schedule is longer."""

_JITTER: Final = 0.2
_RETRY_AFTER_SPREAD: Final = 0.1

_AGAIN: Final = frozenset({429, 502, 503, 504})
_SLOWS_ENDPOINT: Final = frozenset({429, 503})
_MAX_HEADER_LENGTH: Final = 64
_DELTA = re.compile(r"[0-9]+", re.ASCII)
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
# RFC 9110 section 5.6.7: a recipient accepts all three forms of a date.
_MONTH: Final = rf"(?P<month>{'|'.join(_MONTHS)})"
_TIME: Final = r"(?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"
_DATES: Final = (
    re.compile(rf"[A-Z][a-z]{{2}}, (?P<day>[0-9]{{2}}) {_MONTH} (?P<year>[0-9]{{4}}) {_TIME} GMT", re.ASCII),
    re.compile(rf"[A-Z][a-z]{{5,8}}, (?P<day>[0-9]{{2}})-{_MONTH}-(?P<year>[0-9]{{2}}) {_TIME} GMT", re.ASCII),
    re.compile(rf"[A-Z][a-z]{{2}} {_MONTH} (?P<day>[ 0-9][0-9]) {_TIME} (?P<year>[0-9]{{4}})", re.ASCII),
)


class Verdict(Enum):
    """What an answer means to the one who sent the request."""

    ACCEPTED = "accepted"
    GONE = "gone"
    AGAIN = "again"
    FAILED = "failed"


def verdict(status: int) -> Verdict:
    """The meaning of an HTTP status."""
    if 200 <= status <= 299:
        return Verdict.ACCEPTED
    if status == 410:
        return Verdict.GONE
    return Verdict.AGAIN if status in _AGAIN else Verdict.FAILED


def tried_again_when_durable(meaning: Verdict) -> bool:
    """Whether a durable delivery with this verdict is tried again, as long as its schedule has attempts left."""
    return meaning in (Verdict.AGAIN, Verdict.FAILED)


def slows_endpoint(status: int) -> bool:
    """Whether a Retry-After that comes with this status speaks for the whole endpoint (RFC 6585 section 4, RFC 9110
    section 15.6.4): then nothing is sent there before it is over, see circuit.py."""
    return status in _SLOWS_ENDPOINT


def retry_after_seconds(header: str | None, now: float) -> float | None:
    """Seconds from `now` that a Retry-After (RFC 9110 section 10.2.3) asks for: 0 to 86400; None for none or junk."""
    if header is None or len(header) > _MAX_HEADER_LENGTH:
        return None
    text = header.strip(" \t")
    if _DELTA.fullmatch(text):
        return min(float(text), MAX_RETRY_AFTER_SECONDS)
    moment = _parse_date(text, now)
    return None if moment is None else min(max(moment - now, 0.0), MAX_RETRY_AFTER_SECONDS)


def quick_retry_delay(attempt: int, random: float, retry_after: float | None) -> float | None:
    """Best effort: seconds to wait after attempt number `attempt` (1, 2, ...) failed; None: give up.

    `random` is in [0, 1): the wait is 0.5 to 1.5 times that of `QUICK_RETRY_SECONDS`, and never ends before
    `retry_after`, which spreads it by up to a tenth, so that all who were told the same do not come back at once.
    """
    if not 1 <= attempt <= len(QUICK_RETRY_SECONDS):
        return None
    delay = QUICK_RETRY_SECONDS[attempt - 1] * (0.5 + random)
    if retry_after is None:
        return delay
    if retry_after > MAX_QUICK_RETRY_SECONDS:
        return None
    return max(delay, retry_after * (1 + random * _RETRY_AFTER_SPREAD))


def check_retry_schedule(schedule: object) -> tuple[float, ...]:
    """A subscription's own schedule, as JSON or Python gives it. Raises `InvalidRequest` naming the wrong entry.

    1 to 64 numbers of seconds, each at most 30 days. The first may be 0, the others are greater: attempts without a
    pause between them would be one long failure.
    """
    if not isinstance(schedule, (list, tuple)):
        raise InvalidRequest(f"retry_schedule_seconds is a list of numbers; got {_kind(schedule)}")
    if not 1 <= len(schedule) <= MAX_SCHEDULE_ATTEMPTS:
        raise InvalidRequest(f"retry_schedule_seconds has 1 to {MAX_SCHEDULE_ATTEMPTS} entries; got {len(schedule)}")
    for position, wait in enumerate(schedule):
        # bool is a kind of int; what is not a number is named by its type alone, for it may be long.
        if isinstance(wait, bool) or not isinstance(wait, (int, float)):
            raise InvalidRequest(f"retry_schedule_seconds[{position}] is a number; got {_kind(wait)}")
        # Written so that NaN, of which every comparison is false, is refused.
        if not (0 <= wait <= MAX_SCHEDULE_WAIT_SECONDS and (wait > 0 or position == 0)):
            bounds = f"{'0 to' if position == 0 else 'more than 0 and at most'} {MAX_SCHEDULE_WAIT_SECONDS:.0f}"
            raise InvalidRequest(f"retry_schedule_seconds[{position}] is {bounds} (30 days); got {_shown(wait)}")
    return tuple(map(float, schedule))


def durable_retry_delay(
    attempt: int, schedule: Sequence[float], random: float, retry_after: float | None
) -> float | None:
    """Durable: seconds to wait after attempt number `attempt` failed; None: there is no other, the delivery is dead.

    `attempt` 0 gives the wait before the first. `random` is in [0, 1): the wait is 0.8 to 1.2 times that of the
    schedule. `retry_after` counts as a day at the most, is spread by up to a tenth, and never shortens a wait.
    """
    if not 0 <= attempt < len(schedule):
        return None
    delay = schedule[attempt] * (1 - _JITTER + 2 * _JITTER * random)
    if retry_after is None:
        return delay
    return max(delay, min(retry_after, MAX_RETRY_AFTER_SECONDS) * (1 + random * _RETRY_AFTER_SPREAD))


def longest_durable_delay(schedule: Sequence[float]) -> float:
    """No `durable_retry_delay` of this schedule is longer: what is due further ahead was written by another clock."""
    return max(max(schedule) * (1 + _JITTER), MAX_RETRY_AFTER_SECONDS * (1 + _RETRY_AFTER_SPREAD))


def backoff_delay(attempt: int, random: float, *, base_seconds: float, max_seconds: float) -> float:
    """Exponential back-off with full jitter: `random` in [0, 1) times base, 2 base, 4 base ... up to the maximum."""
    # Beyond 2**63 the maximum has long been reached; the bound keeps a float from overflowing.
    doublings = min(max(attempt - 1, 0), 63)
    return random * min(base_seconds * 2.0**doublings, max_seconds)


def _parse_date(text: str, now: float) -> float | None:
    for form in _DATES:
        match = form.fullmatch(text)
        if match is None:
            continue
        year = int(match["year"])
        if len(match["year"]) == 2:
            year = _four_digits(year, now)
        try:
            moment = datetime(
                year,
                _MONTHS.index(match["month"]) + 1,
                int(match["day"]),
                int(match["hour"]),
                int(match["minute"]),
                min(int(match["second"]), 59),  # 60 is a leap second
                tzinfo=UTC,
            )
        except ValueError:
            return None
        return moment.timestamp()
    return None


def _four_digits(year: int, now: float) -> int:
    """RFC 9110 section 5.6.7: a two-digit year more than 50 years ahead is the last one with these digits."""
    this_year = datetime.fromtimestamp(now, UTC).year
    year += this_year - this_year % 100
    return year - 100 if year > this_year + 50 else year


def _kind(value: object) -> str:
    return "none" if value is None else type(value).__name__


def _shown(number: float) -> str:
    try:
        return f"{number:g}"
    except OverflowError:  # an integer of JSON may have thousands of digits
        return "a number beyond all floats"
