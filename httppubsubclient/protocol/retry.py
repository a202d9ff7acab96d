"""What an answer means, and when the next attempt is. Arithmetic only: the moment and the random number are arguments.

| answer                                     | verdict    | the sender                           |
|--------------------------------------------|------------|--------------------------------------|
| 2xx                                        | `ACCEPTED` | is done                              |
| 410                                        | `GONE`     | forgets the subscription             |
| 429, 502, 503, 504, no connection          | `AGAIN`    | tries again, not before Retry-After  |
| everything else, redirects included        | `FAILED`   | gives up                             |
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from enum import Enum
from typing import Final

__all__ = [
    "MAX_QUICK_RETRY_SECONDS",
    "MAX_RETRY_AFTER_SECONDS",
    "QUICK_RETRY_SECONDS",
    "Verdict",
    "backoff_delay",
    "quick_retry_delay",
    "retry_after_seconds",
    "verdict",
]

QUICK_RETRY_SECONDS: Final = (0.2, 1.0, 2.0)
"""Best effort: the mean wait after attempt 1, 2, 3. After the fourth attempt there is no other."""

MAX_QUICK_RETRY_SECONDS: Final = 10.0
"""Best effort does not wait for a Retry-After beyond this."""

MAX_RETRY_AFTER_SECONDS: Final = 86_400.0
"""A Retry-After further away counts as this: nobody can put a sender off for years."""

_AGAIN: Final = frozenset({429, 502, 503, 504})
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
    return max(delay, retry_after * (1 + random / 10))


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
