"""One endpoint's circuit: how many attempts may be under way to it. Arithmetic over a small value.

An endpoint is a callback URL without its fragment: what fails together. While it fails, only probes go out; when a
probe succeeds, the backlog drains at a rising rate.

| phase     | may be under way | after a success                  | after a failure         | told to wait            |
|-----------|------------------|----------------------------------|-------------------------|-------------------------|
| `CLOSED`  | the limit        | `CLOSED`, no failures            | `CLOSED`; nth: `OPEN`   | `SLOWED`                |
| `OPEN`    | 0                | `CLOSING` with 2                 | `OPEN`, the same pause  | `SLOWED`                |
| `SLOWED`  | 0                | `SLOWED`                         | `SLOWED`                | `SLOWED`, the later end |
| `PROBING` | 1                | `CLOSING` with 2                 | `OPEN`, a longer pause  | `SLOWED`                |
| `CLOSING` | 2, 4, 8 ...      | twice as many; at limit `CLOSED` | `OPEN`, a longer pause  | `SLOWED`                |

`OPEN` and `SLOWED` turn into `PROBING` by themselves, when their pause is over. What arrives during a pause are the
results of attempts that began before it: a hundred failures together make one pause, not a hundred. A success among
them shows that the endpoint works and ends an `OPEN` one; a `SLOWED` one was asked for, so it lasts.

"Told to wait" is a 429 or 503 with Retry-After (`retry.slows_endpoint`). Such a pause is as long as it asks for, but
at least the shortest pause and at most a day. It does not make the next one longer: a receiver that says when it has
room again is not failing. Every other pause is twice as long as the one before, made up to a fifth shorter at random.

Nothing here remembers which attempts are under way. The caller counts them and begins another while there are fewer
than `allowed`. So a probe whose result never comes blocks nothing once the caller has given it up; and no probe begins
before the attempts from before the pause have ended. What counts as a failure is every answer that is neither 2xx nor
409 nor 410, and no answer; a 409 or 410 is about one subscription and counts as neither.

The moments are seconds of one clock, which may be set: a pause is over, too, when the moment at which it began lies
ahead. So a clock that is set back lengthens a pause by no more than its own length, and never lets more through than
one probe.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from httppubsubclient.protocol.retry import MAX_RETRY_AFTER_SECONDS

__all__ = [
    "NEW_CIRCUIT",
    "NEXT_PHASE",
    "Circuit",
    "CircuitRules",
    "Event",
    "Phase",
    "after_failure",
    "after_success",
    "allowed",
    "next_moment",
    "phase",
]

_JITTER: Final = 0.2


class Phase(Enum):
    """Where a circuit stands; `PROBING` follows from the moment and is never stored."""

    CLOSED = "closed"
    OPEN = "open"
    SLOWED = "slowed"
    PROBING = "probing"
    CLOSING = "closing"


class Event(Enum):
    """What the result of an attempt means to the circuit."""

    SUCCESS = "success"
    FAILURE = "failure"
    TOLD_TO_WAIT = "told_to_wait"


NEXT_PHASE: Final[dict[tuple[Phase, Event], Phase]] = {
    (Phase.CLOSED, Event.SUCCESS): Phase.CLOSED,
    (Phase.CLOSED, Event.FAILURE): Phase.CLOSED,  # OPEN when it was the last of `failures_to_open`
    (Phase.CLOSED, Event.TOLD_TO_WAIT): Phase.SLOWED,
    (Phase.OPEN, Event.SUCCESS): Phase.CLOSING,
    (Phase.OPEN, Event.FAILURE): Phase.OPEN,
    (Phase.OPEN, Event.TOLD_TO_WAIT): Phase.SLOWED,
    (Phase.SLOWED, Event.SUCCESS): Phase.SLOWED,
    (Phase.SLOWED, Event.FAILURE): Phase.SLOWED,
    (Phase.SLOWED, Event.TOLD_TO_WAIT): Phase.SLOWED,
    (Phase.PROBING, Event.SUCCESS): Phase.CLOSING,
    (Phase.PROBING, Event.FAILURE): Phase.OPEN,
    (Phase.PROBING, Event.TOLD_TO_WAIT): Phase.SLOWED,
    (Phase.CLOSING, Event.SUCCESS): Phase.CLOSING,  # CLOSED when the limit is reached
    (Phase.CLOSING, Event.FAILURE): Phase.OPEN,
    (Phase.CLOSING, Event.TOLD_TO_WAIT): Phase.SLOWED,
}
"""The table above. The two thresholds are applied where the new state is made."""


@dataclass(frozen=True, slots=True)
class CircuitRules:
    """What is the same for the circuits of all endpoints."""

    limit: int
    """Attempts under way to one endpoint that works."""
    failures_to_open: int = 5
    """So many failures one after the other end the trust."""
    shortest_pause_seconds: float = 1.0
    longest_pause_seconds: float = 300.0
    """Not for Retry-After, which may ask for a day."""

    def __post_init__(self) -> None:
        if self.limit < 1 or self.failures_to_open < 1:
            raise ValueError("a circuit lets through at least one attempt, and opens after at least one failure")
        if not 0 < self.shortest_pause_seconds <= self.longest_pause_seconds <= MAX_RETRY_AFTER_SECONDS:
            raise ValueError("the pauses of a circuit are longer than nothing and at most a day")


@dataclass(frozen=True, slots=True)
class Circuit:
    """The state of one endpoint. Begin with `NEW_CIRCUIT`."""

    stored: Phase = Phase.CLOSED
    """The phase after the last result; `phase` gives the present one."""
    failures: int = 0
    """`CLOSED`: failures one after the other."""
    pauses: int = 0
    """Pauses since it was closed, those not counted that the endpoint asked for: the next one doubles as often."""
    paused_at: float = 0.0
    """`OPEN` and `SLOWED`: when the pause began."""
    paused_until: float = 0.0
    """`OPEN` and `SLOWED`: the first moment of the next probe."""
    window: int = 0
    """`CLOSING`: how many may be under way."""


NEW_CIRCUIT: Final = Circuit()
"""Nothing is known against the endpoint."""


def phase(state: Circuit, now: float) -> Phase:
    """The phase at this moment."""
    if state.stored in (Phase.OPEN, Phase.SLOWED) and not state.paused_at <= now < state.paused_until:
        return Phase.PROBING
    return state.stored


def allowed(state: Circuit, now: float, rules: CircuitRules) -> int:
    """How many attempts may be under way to the endpoint at this moment, 0 to the limit."""
    match phase(state, now):
        case Phase.CLOSED:
            return rules.limit
        case Phase.OPEN | Phase.SLOWED:
            return 0
        case Phase.PROBING:
            return 1
        case Phase.CLOSING:
            return min(state.window, rules.limit)


def next_moment(state: Circuit, now: float) -> float:
    """When the next attempt may begin: `now`, or the end of the pause."""
    return state.paused_until if phase(state, now) in (Phase.OPEN, Phase.SLOWED) else now


def after_success(state: Circuit, now: float, rules: CircuitRules) -> Circuit:
    """An attempt was answered 2xx."""
    present = phase(state, now)
    following = NEXT_PHASE[present, Event.SUCCESS]
    if following is Phase.CLOSING:
        # The probe that opened the way was the one attempt of the slow start.
        more = 2 * (state.window if present is Phase.CLOSING else 1)
        return NEW_CIRCUIT if more >= rules.limit else Circuit(Phase.CLOSING, pauses=state.pauses, window=more)
    return state if following is Phase.SLOWED else NEW_CIRCUIT


def after_failure(
    state: Circuit, now: float, rules: CircuitRules, *, random: float, retry_after: float | None
) -> Circuit:
    """An attempt failed. `retry_after` are the seconds of a Retry-After that came with 429 or 503, else None;
    `random` is in [0, 1)."""
    present = phase(state, now)
    following = NEXT_PHASE[present, Event.FAILURE if retry_after is None else Event.TOLD_TO_WAIT]
    if following is Phase.SLOWED:
        if retry_after is None:
            return state
        until = now + _asked_pause(retry_after, random, rules)
        if present is Phase.SLOWED:
            until = max(until, state.paused_until)
        return Circuit(Phase.SLOWED, pauses=state.pauses, paused_at=now, paused_until=until)
    if following is Phase.CLOSED and state.failures + 1 < rules.failures_to_open:
        return Circuit(failures=state.failures + 1)
    if present is Phase.OPEN:
        return state
    until = now + _own_pause(state.pauses, random, rules)
    return Circuit(Phase.OPEN, pauses=state.pauses + 1, paused_at=now, paused_until=until)


def _own_pause(pauses: int, random: float, rules: CircuitRules) -> float:
    # The bound on the doublings keeps a float from overflowing; the longest pause has long been reached.
    doubled = rules.shortest_pause_seconds * 2.0 ** min(pauses, 63)
    return min(doubled, rules.longest_pause_seconds) * (1 - _JITTER * random)


def _asked_pause(retry_after: float, random: float, rules: CircuitRules) -> float:
    """Spread over a tenth more, for several broadcasters that were told the same."""
    return min(max(retry_after * (1 + random / 10), rules.shortest_pause_seconds), MAX_RETRY_AFTER_SECONDS)
