"""The durable part of the store in an SQLite file: see `DurableStore`.

What is asked for at the same time shares a transaction, whatever it is; the SQL is in sqlite_accept.py,
sqlite_claims.py, sqlite_settle.py, sqlite_deliveries.py, sqlite_upkeep.py and sqlite_retention.py. A transaction with
something in it that was promised to last is flushed to the disk; one with only leases and settlements is not.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from itertools import groupby
from typing import Any, Final, NamedTuple, TypeVar

from httppubsubserver.stores import sqlite_retention as retention
from httppubsubserver.stores import sqlite_upkeep as upkeep
from httppubsubserver.stores.batches import Batches, Failed
from httppubsubserver.stores.durable import (
    Accepted,
    Claims,
    Counts,
    DeliveryPage,
    Held,
    MessageAndDeliveries,
    Pruned,
    Publication,
    Replay,
    Selection,
    SequencePage,
    Settlement,
    Terms,
)
from httppubsubserver.stores.sqlite_accept import Accepting, accept_all, read_chunk, write_chunk
from httppubsubserver.stores.sqlite_claims import block_endpoint, claim, next_due
from httppubsubserver.stores.sqlite_deliveries import bytes_used, counts, deliveries, message, messages_after
from httppubsubserver.stores.sqlite_file import SqliteFile, Work
from httppubsubserver.stores.sqlite_settle import bring_forward, extend, release, settle

__all__ = ["SqliteDurable"]

T = TypeVar("T")

_BATCH_SIZE: Final = 256
_MAX_WAITING: Final = 10_000
_FOREVER: Final = 2**63 - 1
_BEFORE_ALL: Final = (-_FOREVER, 0)
_STUCK_SLICES: Final = 50
"""Of messages that are still owed to somebody; what lies behind them is looked at by the next call."""
_CLOCK_SLICES: Final = 100


class _Step(IntEnum):
    """In which order a transaction does what it was asked."""

    SETTLE = 0
    ACCEPT = 1
    OTHERS = 2
    CLAIM = 3


class _Call(NamedTuple):
    step: _Step
    lasting: bool
    """It was promised that it reaches the disk."""
    question: Any


class SqliteDurable:
    """See `DurableStore`; `SqliteStore` is one."""

    def __init__(self, writer: SqliteFile, reader: SqliteFile, *, changes_kept: int) -> None:
        self._durable_reader = reader

        async def run(calls: list[_Call]) -> list[Any]:
            works, places = _works(calls, changes_kept)
            lasting = any(call.lasting for call in calls)
            answers = _spread(await writer.transact(works, durable=lasting), places)
            return [answers[number] for number in range(len(calls))]

        self._calls: Batches[_Call, Any] = Batches(run, batch_size=_BATCH_SIZE, max_waiting=_MAX_WAITING)
        self._bodies_place = self._rows_place = _BEFORE_ALL
        self._endpoints_place = -1

    async def finish_durable(self) -> None:
        """Take nothing more and end what was begun."""
        await self._calls.close()

    # -- accepting ------------------------------------------------------------------------------------------------

    async def write_chunk(self, message_id: str, position: int, data: bytes, *, now: int) -> None:
        """See `DurableStore.write_chunk`."""
        # The accepting transaction flushes what comes before it, too.
        await self._do(lambda db: write_chunk(db, message_id, position, data, now), lasting=False)

    async def read_chunk(self, message_id: str, position: int) -> bytes | None:
        """See `DurableStore.read_chunk`."""
        return await self._durable_reader.run(lambda db: read_chunk(db, message_id, position))

    async def accept(self, publication: Publication, *, now: int, terms: Terms | None = None) -> Accepted:
        """See `DurableStore.accept`."""
        accepted: Accepted = await self._calls(_Call(_Step.ACCEPT, True, Accepting(publication, now, terms)))
        return accepted

    # -- attempting -----------------------------------------------------------------------------------------------

    async def claim(self, terms: Terms, *, now: int) -> Claims:
        """See `DurableStore.claim`."""
        claims: Claims = await self._calls(_Call(_Step.CLAIM, False, lambda db: claim(db, terms, now)))
        return claims

    async def settle(self, settlements: Sequence[Settlement], *, now: int) -> list[bool]:
        """See `DurableStore.settle`."""
        in_time: list[bool] = await self._calls(_Call(_Step.SETTLE, False, (settlements, now)))
        return in_time

    async def extend(self, held: Sequence[Held], *, until: int, now: int) -> list[bool]:
        """See `DurableStore.extend`."""
        return await self._do(lambda db: extend(db, held, until, now), lasting=False)

    async def release(self, held: Sequence[Held], *, now: int) -> list[bool]:
        """See `DurableStore.release`."""
        return await self._do(lambda db: release(db, held, now), lasting=False)

    async def bring_forward(self, subscription_id: str, *, now: int) -> int:
        """See `DurableStore.bring_forward`."""
        brought = 0
        place: tuple[int, int] | None = _BEFORE_ALL
        while place is not None:
            some, place = await self._do(
                lambda db, place=place: bring_forward(db, subscription_id, place, now),  # type: ignore[misc]
                lasting=False,
            )
            brought += some
        return brought

    async def next_due(self, limits: Mapping[str, int] | None = None, *, per_endpoint: int = 1) -> int | None:
        """See `DurableStore.next_due`."""
        return await self._durable_reader.run(lambda db: next_due(db, limits or {}, per_endpoint))

    async def block_endpoint(self, url: str, *, until: int, now: int) -> None:
        """See `DurableStore.block_endpoint`."""
        await self._do(lambda db: block_endpoint(db, url, until, now), lasting=False)

    # -- looking --------------------------------------------------------------------------------------------------

    async def deliveries(self, selection: Selection, *, cursor: str | None, limit: int) -> DeliveryPage:
        """See `DurableStore.deliveries`."""
        return await self._durable_reader.run(lambda db: deliveries(db, selection, cursor, limit))

    async def message(
        self, message_id: str, *, cursor: str | None, limit: int, owner: str | None = None
    ) -> MessageAndDeliveries | None:
        """See `DurableStore.message`."""
        return await self._durable_reader.run(lambda db: message(db, message_id, cursor, limit, owner))

    async def messages_after(
        self, subscription_id: str, after: int, *, limit: int, max_body_bytes: int = 8 * 1024 * 1024, now: int
    ) -> SequencePage | None:
        """See `DurableStore.messages_after`."""
        return await self._durable_reader.run(
            lambda db: messages_after(db, subscription_id, after, limit, max_body_bytes, now)
        )

    async def counts(self, *, now: int) -> Counts:
        """See `DurableStore.counts`."""
        return await self._durable_reader.run(lambda db: counts(db, now))

    # -- in slices ------------------------------------------------------------------------------------------------

    async def cancel_scheduled(self, message_id: str, *, now: int) -> int:
        """See `DurableStore.cancel_scheduled`."""
        called_off, place = 0, ""
        while True:
            some, next_place = await self._do(
                lambda db, place=place: upkeep.cancel_scheduled(db, message_id, place, now),  # type: ignore[misc]
                lasting=True,
            )
            called_off += some
            if next_place is None:
                return called_off
            place = next_place

    async def replay(self, selection: Selection, *, now: int) -> Replay:
        """See `DurableStore.replay`."""
        return await self._do(lambda db: upkeep.begin_replay(db, selection, now), lasting=True)

    async def replay_progress(self, number: int) -> Replay | None:
        """See `DurableStore.replay_progress`."""
        return await self._durable_reader.run(lambda db: upkeep.replay_progress(db, number))

    async def work_off(self, *, now: int) -> int:
        """See `DurableStore.work_off`."""
        if not await self._durable_reader.run(lambda db: upkeep.anything_to_do(db, now)):
            return 0
        # A replay gives out sequences of subscriptions: they must not be given out again after a power cut.
        return await self._do(lambda db: upkeep.work_off(db, now), lasting=True)

    async def prune_messages(
        self, *, now: int, bodies_before: int, messages_before: int, max_bytes: int | None = None
    ) -> Pruned:
        """See `DurableStore.prune_messages`."""
        bodies = await self._prune_bodies(bodies_before, None)
        messages = await self._prune_rows(messages_before, None)
        if max_bytes is not None:
            bodies += await self._prune_bodies(_FOREVER, max_bytes)
            messages += await self._prune_rows(_FOREVER, max_bytes)
        while await self._do(lambda db: retention.prune_leftovers(db, messages_before, now), lasting=False):
            pass
        place = self._endpoints_place
        after = await self._do(lambda db: retention.endpoints_slice(db, place, now), lasting=False)
        self._endpoints_place = -1 if after is None else after
        return Pruned(bodies, messages)

    async def notice_clock(self, *, now: int) -> int:
        """See `DurableStore.notice_clock`."""
        set_back = await self._durable_reader.run(lambda db: retention.clock_to_notice(db, now))
        if set_back is None:
            return 0
        moved, place = 0, None
        while set_back:
            some, place = await self._do(
                lambda db, place=place: retention.set_clock_back(db, place, now, _CLOCK_SLICES),  # type: ignore[misc]
                lasting=False,
            )
            moved += some
            set_back = place is not None
        await self._do(lambda db: retention.clock_was_noticed(db, now), lasting=False)
        return moved

    async def _prune_bodies(self, before: int, max_bytes: int | None) -> int:
        self._bodies_place, deleted = await self._prune(retention.prune_bodies, before, self._bodies_place, max_bytes)
        return deleted

    async def _prune_rows(self, before: int, max_bytes: int | None) -> int:
        self._rows_place, deleted = await self._prune(retention.prune_rows, before, self._rows_place, max_bytes)
        return deleted

    async def _prune(
        self,
        prune: Callable[[sqlite3.Connection, int, tuple[int, int]], retention.Slice],
        before: int,
        place: tuple[int, int],
        max_bytes: int | None,
    ) -> tuple[tuple[int, int], int]:
        """Prune from `place` to the end, or until so much fits in; where the next call goes on, and how many went."""
        deleted = stuck = 0
        while stuck < _STUCK_SLICES and (max_bytes is None or await self._durable_reader.run(bytes_used) > max_bytes):
            went, next_place = await self._do(
                lambda db, place=place: prune(db, before, place),  # type: ignore[misc]
                lasting=False,
            )
            deleted += went
            stuck += went == 0
            if next_place is None:
                return _BEFORE_ALL, deleted
            place = next_place
        return place, deleted

    async def _do(self, work: Work[T], *, lasting: bool) -> T:
        answer: T = await self._calls(_Call(_Step.OTHERS, lasting, work))
        return answer


def _works(calls: Sequence[_Call], changes_kept: int) -> tuple[list[Work[Any]], list[list[int]]]:
    """What a transaction has to do for `calls`, and the numbers of the calls that each part answers."""
    works: list[Work[Any]] = []
    places: list[list[int]] = []
    in_order = sorted(range(len(calls)), key=lambda number: calls[number].step)
    for step, group in groupby(in_order, key=lambda number: calls[number].step):
        numbers = list(group)
        questions = [calls[number].question for number in numbers]
        if step is _Step.ACCEPT:
            works.append(lambda db, questions=questions: accept_all(db, questions))  # type: ignore[misc]
            places.append(numbers)
        elif step is _Step.SETTLE:
            works.append(
                lambda db, questions=questions: [settle(db, each, now, changes_kept) for each, now in questions]  # type: ignore[misc]
            )
            places.append(numbers)
        else:
            works += [lambda db, work=work: [work(db)] for work in questions]  # type: ignore[misc]
            places += [[number] for number in numbers]
    return works, places


def _spread(answers: Sequence[Any], places: Sequence[list[int]]) -> dict[int, Any]:
    """The answers by the numbers of their calls; a part that failed as a whole failed for each of them."""
    spread: dict[int, Any] = {}
    for answer, numbers in zip(answers, places, strict=True):
        each = [answer] * len(numbers) if isinstance(answer, Failed) else answer
        spread.update(zip(numbers, each, strict=True))
    return spread
