"""How often, and how many at once, callbacks are asked whether they want to be called: no more than a nuisance.

Whoever may subscribe can have a question sent to anybody. So each question is paid for before it is sent, by everybody
it concerns, and what a callback agrees to is given back: who agrees is not being molested, and may ask for thousands of
patterns. What is left is questions that nobody wanted, and of these an hour has at most

| for one                                              | `verifications_per_hour`, times | at once |
|------------------------------------------------------|---------------------------------|---------|
| owner who asks, at one host                          | 1                               | 8       |
| owner who asks, at one address                       | 1                               |         |
| host of a callback URL, whoever asks                 | 4                               | 32      |
| address (IPv6: its /64), by whatever name, likewise  | 4                               |         |
| owner who asks, wherever                             | 8                               | 64      |
| process of the broadcaster, all of it                | 64                              | 256     |

whenever that hour begins. No owner can use up what a host has for all: whoever asks about paths of it that refuse locks
out himself and nobody else, and it takes four of them, who share nothing, to lock out a fifth. Nobody waits for a turn
longer than a question may take; more than `MAX_WAITING` do not wait, and of one owner `MAX_WAITING_OF_OWNER`.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from ipaddress import IPv6Address, IPv6Network
from typing import Final, Literal, NamedTuple

from httppubsubclient.protocol.addresses import parse_address
from httppubsubclient.protocol.errors import QuotaExceeded, Unavailable

__all__ = [
    "EVERYBODY",
    "MAX_WAITING",
    "MAX_WAITING_OF_OWNER",
    "Charge",
    "QuestionBudget",
    "Turns",
    "address_charges",
    "question_charges",
]

Kind = Literal["host", "owner at host", "address", "owner at address", "owner", "all"]

MAX_WAITING: Final = 1000
"""Questions that wait for their turn."""
MAX_WAITING_OF_OWNER: Final = 250
"""Of them, those of one owner: nobody fills the line alone."""
MAX_KEPT: Final = 100_000
"""Of those who have paid; with more of them, those who have not done so for an hour are forgotten."""

_TIMES: Final[dict[Kind, int]] = {
    "owner at host": 1,
    "owner at address": 1,
    "host": 4,
    "address": 4,
    "owner": 8,
    "all": 64,
}
_AT_ONCE: Final[dict[Kind, int]] = {"owner at host": 8, "host": 32, "owner": 64, "all": 256}
_MICROSECONDS: Final = 1_000_000
_HOUR: Final = 3600 * _MICROSECONDS


class Charge(NamedTuple):
    """Who pays for a question."""

    kind: Kind
    name: str


EVERYBODY: Final = Charge("all", "")


def question_charges(host: str, owner: str | None) -> list[Charge]:
    """Who pays for a question to a host, besides the addresses that it turns out to have."""
    name = owner or ""
    # No host has a space in it.
    return [Charge("owner at host", f"{host} {name}"), Charge("host", host), Charge("owner", name), EVERYBODY]


def address_charges(address: str, owner: str | None) -> list[Charge]:
    """The charges for an address; in IPv6 whoever has one has its whole /64."""
    parsed = parse_address(address)
    if isinstance(parsed, IPv6Address):
        network = str(IPv6Network((int(parsed) >> 64 << 64, 64)))
    else:
        network = address if parsed is None else str(parsed)
    return [Charge("owner at address", f"{network} {owner or ''}"), Charge("address", network)]


class QuestionBudget:
    """What may still be asked. `now` gives microseconds of a clock that is never set."""

    def __init__(self, per_hour: int, *, now: Callable[[], int]) -> None:
        self._per_hour: dict[Kind, int] = {kind: times * per_hour for kind, times in _TIMES.items()}
        self._now = now
        self._spent: dict[Charge, deque[int]] = {}
        """When, the oldest first: no more of them than an hour may have."""
        self._forget_at = MAX_KEPT

    def spend(self, charges: Iterable[Charge]) -> None:
        """One question at the cost of all of these, or of none: raises `QuotaExceeded`."""
        now = self._now()
        spent: dict[Charge, deque[int]] = {}
        for charge in charges:
            moments = self._spent.get(charge) or deque()
            while moments and moments[0] <= now - _HOUR:
                moments.popleft()
            if len(moments) >= self._per_hour[charge.kind]:
                raise QuotaExceeded(
                    "this callback, its host or its owner was asked too often whether it agrees, and did not: "
                    "make it answer, then try again after the time that Retry-After says",
                    retry_after_seconds=-(-(moments[0] + _HOUR - now) // _MICROSECONDS),
                )
            spent[charge] = moments
        for moments in spent.values():
            moments.append(now)
        self._spent |= spent
        if len(self._spent) > self._forget_at:
            self._forget_old(now)

    def give_back(self, charges: Iterable[Charge]) -> None:
        """The question was welcome."""
        for charge in charges:
            moments = self._spent.get(charge)
            if moments:
                moments.pop()
                if not moments:
                    del self._spent[charge]

    def _forget_old(self, now: int) -> None:
        """What everybody may ask bounds what is left."""
        self._spent = {charge: spent for charge, spent in self._spent.items() if spent and spent[-1] > now - _HOUR}
        self._forget_at = max(MAX_KEPT, 2 * len(self._spent))


class Turns:
    """How many questions are under way at once; further ones wait in the order in which they came."""

    def __init__(self) -> None:
        self._under_way: Counter[Charge] = Counter()
        self._waiting: deque[tuple[Sequence[Charge], asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def turn(self, charges: Sequence[Charge]) -> AsyncIterator[None]:
        """One of the places of each of these, while the context lasts. Has no deadline. Raises `Unavailable`."""
        # Of those who wait nobody fits, or he would be in: who fits takes no place from them.
        if not self._fits(charges):
            owners = [charge for charge in charges if charge.kind == "owner"]
            of_owner = sum(owner in others for others, _ in self._waiting for owner in owners)
            if len(self._waiting) >= MAX_WAITING or of_owner >= MAX_WAITING_OF_OWNER:
                raise Unavailable("too many callbacks are being asked whether they agree", retry_after_seconds=1)
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((charges, turn))
            try:
                await turn
            except BaseException:
                if turn.cancelled():
                    self._waiting.remove((charges, turn))
                else:  # it had its turn at the moment it was given up
                    self._leave(charges)
                raise
        else:
            self._under_way.update(charges)
        try:
            yield
        finally:
            self._leave(charges)

    def _leave(self, charges: Sequence[Charge]) -> None:
        self._under_way.subtract(charges)
        for charge in charges:
            if not self._under_way[charge]:
                del self._under_way[charge]
        self._let_in()

    def _let_in(self) -> None:
        """Whoever may go on; who waits for a place of its own keeps nobody else."""
        for charges, turn in list(self._waiting):
            if not turn.done() and self._fits(charges):
                self._waiting.remove((charges, turn))
                self._under_way.update(charges)
                turn.set_result(None)

    def _fits(self, charges: Iterable[Charge]) -> bool:
        return all(self._under_way[charge] < _AT_ONCE.get(charge.kind, 1 << 30) for charge in charges)
