"""When a message shall be delivered and when it loses its worth: two headers of a notify, for durable deliveries.

| header              | means                                 | bounds                                             |
|---------------------|---------------------------------------|----------------------------------------------------|
| `Pubsub-Deliver-At` | it is not sent before this moment     | at most a year ahead; one in the past means now    |
| `Pubsub-Expires`    | from this moment on it is not sent    | after the moment it is due, by at most 30 days     |

Each is a whole number of seconds from now (`90`), or a moment of RFC 3339 with its offset (`2026-11-21T02:11:00Z`).
The seconds of `Pubsub-Expires` count from `Pubsub-Deliver-At`, if that is there too. A number of seconds does not
depend on the publisher's clock. Moments here are microseconds since 1970.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

from httppubsubclient.protocol.errors import InvalidRequest
from httppubsubclient.protocol.messages import parse_time

__all__ = [
    "MAX_DELIVER_AT_SECONDS",
    "MAX_EXPIRES_SECONDS",
    "NO_MOMENTS",
    "MessageMoments",
    "MomentHeader",
    "message_moments",
    "parse_moment",
    "parse_moment_header",
]

MAX_DELIVER_AT_SECONDS: Final = 365 * 86_400
MAX_EXPIRES_SECONDS: Final = 30 * 86_400

MomentHeader = Literal["pubsub-deliver-at", "pubsub-expires"]

_SECONDS = re.compile(r"[0-9]{1,12}", re.ASCII)
# RFC 3339 section 5.6; what Python reads beyond it (weeks, no offset, no separators) would be a second form.
_MOMENT = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?(?:Z|[+-][0-9]{2}:[0-9]{2})", re.ASCII
)
_MICROSECONDS: Final = 1_000_000
_YEAR_10000: Final = 253_402_300_800 * _MICROSECONDS


class MessageMoments(NamedTuple):
    """What the headers of one notify ask for; None where nothing was asked."""

    deliver_at: int | None
    expires_at: int | None


NO_MOMENTS: Final = MessageMoments(None, None)
"""Now, and for as long as it takes."""


def message_moments(headers: Mapping[str, str], now: int) -> MessageMoments:
    """Both moments of a notify. Raises `InvalidRequest` naming the header that is wrong."""
    deliver_at = expires_at = None
    if "pubsub-deliver-at" in headers:
        deliver_at = parse_moment_header("pubsub-deliver-at", headers["pubsub-deliver-at"], now)
    if "pubsub-expires" in headers:
        first = now if deliver_at is None else deliver_at
        expires_at = parse_moment_header("pubsub-expires", headers["pubsub-expires"], first)
    return MessageMoments(deliver_at, expires_at)


def parse_moment_header(name: MomentHeader, value: str, now: int) -> int:
    """The moment that this header names, within its bounds. Raises `InvalidRequest`."""
    moment = _parse(name, value, now)
    if name == "pubsub-deliver-at":
        if moment > now + MAX_DELIVER_AT_SECONDS * _MICROSECONDS:
            raise InvalidRequest(f"the header {name} is at most {MAX_DELIVER_AT_SECONDS} seconds (365 days) ahead")
        return max(moment, now)
    if moment <= now:
        raise InvalidRequest(f"the header {name} names a moment that is not after the one at which the message is due")
    if moment > now + MAX_EXPIRES_SECONDS * _MICROSECONDS:
        raise InvalidRequest(
            f"the header {name} is 1 to {MAX_EXPIRES_SECONDS} seconds (30 days) after the message is due; got"
            f" {(moment - now) // _MICROSECONDS}"
        )
    return moment


def _parse(name: str, value: str, now: int) -> int:
    if _SECONDS.fullmatch(value):
        return now + int(value) * _MICROSECONDS
    moment = _moment(value)
    if moment is None:
        raise InvalidRequest(
            f"the header {name} is a whole number of seconds from now, or a moment like 2026-11-21T02:11:00Z (RFC 3339)"
        )
    return moment


def parse_moment(name: str, value: str) -> int:
    """A moment of RFC 3339 with its offset, of the years 1970 to 9999. Raises `InvalidRequest` with the name."""
    moment = _moment(value)
    if moment is None or not 0 <= moment < _YEAR_10000:
        raise InvalidRequest(
            f"{name} is a moment like 2026-11-21T02:11:00Z or 2026-11-21T04:11:00+02:00 (RFC 3339; 1970 to 9999; in a "
            "query + is written %2B)"
        )
    return moment


def _moment(value: str) -> int | None:
    if _MOMENT.fullmatch(value):
        try:
            return parse_time(value)
        except (ValueError, OverflowError):
            pass
    return None
