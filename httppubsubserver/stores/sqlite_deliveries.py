"""Looking at deliveries: pages of them, one message, what a subscription got.

A selection is walked along the index that fits it best, and the rest of it is looked at row by row; so a page is
bounded by the rows it looks at, and a cursor is the place of the last one. For an owner nothing is walked over but what
is there for him: neither a cursor, nor how short a page is, nor the time it takes tells him of what others have.
"""

from __future__ import annotations

import json
import sqlite3
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as NotBase64
from collections.abc import Iterator
from contextlib import contextmanager
from heapq import merge
from itertools import islice
from typing import Any, Final, NamedTuple

from httppubsubclient.protocol.errors import InvalidRequest
from httppubsubserver.stores import Only
from httppubsubserver.stores.durable import (
    MAX_COUNTED,
    Attempt,
    Attempted,
    Counts,
    DeliveryPage,
    DeliveryState,
    MessageAndDeliveries,
    OwedDelivery,
    Selection,
    Sequenced,
    SequencePage,
)
from httppubsubserver.stores.sqlite_claims import MESSAGE, stored_message

__all__ = ["Row", "bytes_used", "counts", "deliveries", "message", "messages_after", "selected", "walk"]

_ROWS_LOOKED_AT: Final = 2000

_SELECT: Final = (
    "SELECT d.message, d.subscription_id, d.endpoint, d.ordered, m.id, m.topic, m.accepted_at, m.expires_at, "
    "m.body_kept, e.url, d.state, d.reason, d.sequence, d.previous_message_id, d.due_at, d.leased_by, d.attempts, "
    "d.attempts_before, d.updated_at, d.status, "
    "(SELECT coalesce(s.owner, '') FROM subscriptions s WHERE s.id = d.subscription_id) FROM deliveries d"
)
_WITH: Final = "CROSS JOIN messages m ON m.number = d.message CROSS JOIN endpoints e ON e.number = d.endpoint"
_BY_TIME: Final = "SELECT accepted_at, number FROM messages"
_COUNT: Final = "SELECT count(*) FROM"
_PENDING: Final = "SELECT 1 FROM deliveries INDEXED BY deliveries_to_claim WHERE state = 'pending'"
_WAITING: Final = "SELECT 1 FROM deliveries WHERE ordered = 1 AND state = 'waiting' AND state IN ('pending', 'waiting')"
_DEAD: Final = "SELECT 1 FROM deliveries INDEXED BY deliveries_dead WHERE state = 'dead'"
_BLOCKED: Final = "SELECT 1 FROM endpoints WHERE blocked_until > ?"
_NUMBER: Final = "SELECT number FROM messages WHERE id = ?"
_OWN: Final = (
    "SELECT s.id FROM subscriptions s INDEXED BY subscriptions_durable_by_owner {join} "
    "WHERE s.owner {whose} AND s.endpoint IS NOT NULL"
)
_TO_OWN: Final = "CROSS JOIN deliveries d ON d.message = ?1 AND d.subscription_id = s.id"
_PUBLISHED: Final = "SELECT 1 FROM messages WHERE number = ?1 AND owner = ?2"
_BROUGHT: Final = _OWN.format(join=_TO_OWN, whose="= ?2")
_BROUGHT_TO_NOBODY: Final = (
    "SELECT 1 FROM deliveries d CROSS JOIN subscriptions s ON s.id = d.subscription_id "
    "WHERE d.message = ?1 AND s.owner IS NULL"
)
_IS_SHOWN: Final = f"SELECT EXISTS ({_PUBLISHED}) OR EXISTS ({_BROUGHT}) OR (?3 AND EXISTS ({_BROUGHT_TO_NOBODY}))"
_WITHOUT_BODY: Final = MESSAGE.format(body="NULL")
_WITH_BODY: Final = MESSAGE.format(body="body")

Place = list[int | str]


class Row(NamedTuple):
    """A delivery with what belongs to it of its message and endpoint."""

    message: int
    subscription_id: str
    endpoint: int
    ordered: int
    message_id: str
    topic: bytes
    accepted_at: int
    expires_at: int | None
    body_kept: int
    url: str
    state: DeliveryState
    reason: str | None
    sequence: int
    previous_message_id: str | None
    due_at: int
    leased_by: str | None
    attempts: int
    attempts_before: int
    updated_at: int
    status: int | None
    owner: str | None
    """Of the subscription: empty for one that is everybody's, None when it is gone."""


@contextmanager
def snapshot(db: sqlite3.Connection) -> Iterator[None]:
    """What is read meanwhile belongs together."""
    db.execute("BEGIN")
    try:
        yield
    finally:
        db.execute("ROLLBACK")


# -- walking ----------------------------------------------------------------------------------------------------------


def walk(
    db: sqlite3.Connection, selection: Selection, place: Place | None, *, backwards: bool
) -> Iterator[tuple[Place, Row | None]]:
    """The deliveries behind `place`, among them all that are selected, each with its own place. A place without a
    delivery is where somebody has looked for some."""
    message = None
    if selection.message_id is not None:
        number = db.execute(_NUMBER, (selection.message_id,)).fetchone()
        if number is None:
            return iter(())
        message = number[0]
    if selection.owner is not None:
        return _of_owner(db, selection, selection.owner, message, place, backwards)
    if message is not None:
        return _of_message(db, message, place, backwards)
    if selection.subscription_id is not None:
        return _of_subscription(db, selection.subscription_id, place, backwards, selection.state)
    if selection.state == "dead":
        return _dead(db, place, backwards)
    return _by_time(db, selection, place, backwards)


def selected(selection: Selection, row: Row) -> bool:
    """Whether a row that was walked over is one of the selected."""
    return (
        (selection.subscription_id is None or row.subscription_id == selection.subscription_id)
        and (selection.state is None or row.state == selection.state)
        and (selection.accepted_from is None or row.accepted_at >= selection.accepted_from)
        and (selection.accepted_until is None or row.accepted_at < selection.accepted_until)
        and (selection.owner is None or _is_there_for(selection.owner, row.owner))
    )


def _is_there_for(owner: str, subscriber: str | None) -> bool:
    """`subscriber` as `Row.owner`."""
    return subscriber == owner or (subscriber == "" and not isinstance(owner, Only))


def _of_owner(
    db: sqlite3.Connection, selection: Selection, owner: str, message: int | None, place: Place | None, backwards: bool
) -> Iterator[tuple[Place, Row | None]]:
    """One of his subscriptions after another, in each of them by sequence."""
    (at, behind), before_all = _behind(place, 2), _order(backwards).before_all
    if place is not None and not (isinstance(at, str) and isinstance(behind, int)):
        raise _of_another_selection()
    for subscription_id in _own_subscriptions(db, selection.subscription_id, owner, at or ""):
        begun = subscription_id == at
        if not begun:
            yield [subscription_id, before_all], None
        rows = (
            _of_subscription(db, subscription_id, [behind] if begun else None, backwards, selection.state)
            if message is None
            else _of_message_to(db, message, subscription_id, behind if begun else None, backwards)
        )
        for (sequence,), row in rows:
            yield [subscription_id, sequence], row


def _own_subscriptions(db: sqlite3.Connection, only: str | None, owner: str, at: str) -> Iterator[str]:
    """The ids of those that are there for him, or of the `only` one of these, from `at` on."""
    if only is not None:
        whose = db.execute("SELECT coalesce(owner, '') FROM subscriptions WHERE id = ?", (only,)).fetchone()
        if whose is not None and _is_there_for(owner, whose[0]) and only >= at:
            yield only
        return
    wheres = ["= ?1"] if isinstance(owner, Only) else ["= ?1", "IS NULL"]
    found = (
        db.execute(f"{_OWN.format(join='', whose=where)} AND s.id >= ?2 ORDER BY s.id", (owner, at)) for where in wheres
    )
    for (subscription_id,) in merge(*found):
        yield subscription_id


def _of_message_to(
    db: sqlite3.Connection, message: int, subscription_id: str, behind: int | None, backwards: bool
) -> Iterator[tuple[Place, Row]]:
    """The one delivery, unless the place is behind it."""
    order = _order(backwards)
    rows = db.execute(
        f"{_SELECT} {_WITH} WHERE d.message = ? AND d.subscription_id = ? AND +d.sequence {order.than} ?",
        (message, subscription_id, order.before_all if behind is None else behind),
    )
    for row in map(Row._make, rows):
        yield [row.sequence], row


def _of_message(
    db: sqlite3.Connection, number: int, place: Place | None, backwards: bool
) -> Iterator[tuple[Place, Row]]:
    (behind,), order = _behind(place, 1), _order(backwards)
    where = "" if behind is None else f"AND d.subscription_id {order.than} ?"
    rows = db.execute(
        f"{_SELECT} {_WITH} WHERE d.message = ? {where} ORDER BY d.subscription_id {order.by}",
        (number,) if behind is None else (number, behind),
    )
    for row in map(Row._make, rows):
        yield [row.subscription_id], row


def _of_subscription(
    db: sqlite3.Connection,
    subscription_id: str,
    place: Place | None,
    backwards: bool,
    state: DeliveryState | None,
) -> Iterator[tuple[Place, Row]]:
    (behind,), order = _behind(place, 1), _order(backwards)
    indexed = "INDEXED BY deliveries_dead_of_subscription" if state == "dead" else ""
    where = "d.state = 'dead' AND" if state == "dead" else ""
    rows = db.execute(
        f"{_SELECT} {indexed} {_WITH} "
        f"WHERE {where} d.subscription_id = ? AND d.sequence {order.than} ? ORDER BY d.sequence {order.by}",
        (subscription_id, order.before_all if behind is None else behind),
    )
    for row in map(Row._make, rows):
        yield [row.sequence], row


def _dead(db: sqlite3.Connection, place: Place | None, backwards: bool) -> Iterator[tuple[Place, Row]]:
    (number, subscription_id), order = _behind(place, 2), _order(backwards)
    rows = db.execute(
        f"{_SELECT} INDEXED BY deliveries_dead {_WITH} "
        f"WHERE d.state = 'dead' AND (d.message, d.subscription_id) {order.than} (?, ?) "
        f"ORDER BY d.message {order.by}, d.subscription_id {order.by}",
        (order.before_all if number is None else number, subscription_id or ""),
    )
    for row in map(Row._make, rows):
        yield [row.message, row.subscription_id], row


def _by_time(
    db: sqlite3.Connection, selection: Selection, place: Place | None, backwards: bool
) -> Iterator[tuple[Place, Row]]:
    (moment, number, subscription_id), order = _behind(place, 3), _order(backwards)
    if moment is not None:
        for inner, row in _of_message(db, number, [subscription_id or ""], backwards):
            yield [moment, number, *inner], row
    messages = db.execute(
        f"{_BY_TIME} WHERE (accepted_at, number) {order.than} (?, ?) AND accepted_at >= ? AND accepted_at < ? "
        f"ORDER BY accepted_at {order.by}, number {order.by}",
        (
            order.before_all if moment is None else moment,
            order.before_all if number is None else number,
            -_FOREVER if selection.accepted_from is None else selection.accepted_from,
            _FOREVER if selection.accepted_until is None else selection.accepted_until,
        ),
    )
    for accepted_at, each in messages:
        for inner, row in _of_message(db, each, None, backwards):
            yield [accepted_at, each, *inner], row


_FOREVER: Final = 2**63 - 1


class _Order(NamedTuple):
    than: str
    by: str
    before_all: int


def _order(backwards: bool) -> _Order:
    return _Order("<", "DESC", _FOREVER) if backwards else _Order(">", "ASC", -_FOREVER)


def _behind(place: Place | None, length: int) -> list[Any]:
    """The parts of a place; the last is a text when there are several or its column is one."""
    if place is None:
        return [None] * length
    if len(place) != length:
        raise _of_another_selection()
    return list(place)


def _of_another_selection() -> InvalidRequest:
    return InvalidRequest("this cursor belongs to another selection")


# -- pages ------------------------------------------------------------------------------------------------------------


def deliveries(db: sqlite3.Connection, selection: Selection, cursor: str | None, limit: int) -> DeliveryPage:
    """See `DurableStore.deliveries`."""
    place = None if cursor is None else _place(cursor)
    with snapshot(db):
        return _page(walk(db, selection, place, backwards=True), selection, limit)


def message(
    db: sqlite3.Connection, message_id: str, cursor: str | None, limit: int, owner: str | None = None
) -> MessageAndDeliveries | None:
    """See `DurableStore.message`."""
    place = None if cursor is None else _place(cursor)
    with snapshot(db):
        number = db.execute(_NUMBER, (message_id,)).fetchone()
        if number is None or (owner is not None and not _is_shown(db, number[0], owner)):
            return None
        selection = Selection(message_id=message_id, owner=owner)
        page = _page(walk(db, selection, place, backwards=True), selection, limit)
        attempts = tuple(
            Attempted(each.subscription_id, row[0], Attempt(*row[1:]))
            for each in page.deliveries
            for row in db.execute(
                "SELECT attempt, began_at, ended_at, status, error, answer FROM attempts "
                "WHERE message = ? AND subscription_id = ? ORDER BY attempt",
                (number[0], each.subscription_id),
            )
        )
        return MessageAndDeliveries(stored_message(db.execute(_WITHOUT_BODY, number).fetchone()), page, attempts)


def _is_shown(db: sqlite3.Connection, number: int, owner: str) -> bool:
    """He published it, or a subscription that is there for him brings it. What is others' is not counted over, unless
    for one for whom there is also what is nobody's."""
    shown: int = db.execute(_IS_SHOWN, (number, owner, not isinstance(owner, Only))).fetchone()[0]
    return bool(shown)


def _page(walked: Iterator[tuple[Place, Row | None]], selection: Selection, limit: int) -> DeliveryPage:
    found: list[OwedDelivery] = []
    last: Place | None = None
    for place, row in islice(walked, _ROWS_LOOKED_AT):
        last = place
        if row is not None and selected(selection, row):
            found.append(_owed(row))
            if len(found) == limit:
                break
    at_the_end = last is None or next(walked, None) is None
    return DeliveryPage(tuple(found), None if last is None or at_the_end else _cursor(last))


def _owed(row: Row) -> OwedDelivery:
    owed = row.state in ("pending", "waiting")
    return OwedDelivery(
        row.message_id,
        row.subscription_id,
        row.topic,
        row.url,
        row.state,
        # `work_off` leaves one at a delivery that is under way.
        None if owed else row.reason,
        row.sequence,
        row.previous_message_id,
        row.accepted_at,
        row.due_at if owed and row.leased_by is None else None,
        row.due_at if owed and row.leased_by is not None else None,
        row.attempts - row.attempts_before,
        row.updated_at,
        row.status,
    )


def _cursor(place: Place) -> str:
    return urlsafe_b64encode(json.dumps(place).encode()).decode().rstrip("=")


def _place(cursor: str) -> Place:
    try:
        place = json.loads(urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (NotBase64, ValueError, RecursionError):
        place = None
    if not isinstance(place, list) or not all(map(_is_part, place)):
        raise InvalidRequest("this cursor is not one of a page of deliveries")
    return place


def _is_part(part: object) -> bool:
    return (isinstance(part, str) and part.isascii()) or (type(part) is int and abs(part) <= _FOREVER)


# -- what a subscription got ------------------------------------------------------------------------------------------


def messages_after(
    db: sqlite3.Connection, subscription_id: str, after: int, limit: int, max_body_bytes: int, now: int
) -> SequencePage | None:
    """See `DurableStore.messages_after`."""
    with snapshot(db):
        known = db.execute(
            "SELECT last_sequence FROM subscriptions WHERE id = ? AND expires_at > ? AND delivery = 'durable'",
            (subscription_id, now),
        ).fetchone()
        if known is None:
            return None
        last: int = known[0]
        rows = db.execute(
            "SELECT sequence, previous_message_id, state, message FROM deliveries "
            "WHERE subscription_id = ? AND sequence > ? ORDER BY sequence LIMIT ?",
            (subscription_id, after, limit),
        )
        found: list[Sequenced] = []
        body_bytes = 0
        for sequence, previous_id, state, number in rows:
            stored = stored_message(db.execute(_WITH_BODY, (number,)).fetchone())
            found.append(Sequenced(sequence, previous_id, state, stored))
            body_bytes += len(stored.body or b"")
            if body_bytes > max_body_bytes:
                break
    numbers = [each.sequence for each in found]
    without_gaps = numbers == list(range(after + 1, after + 1 + len(numbers))) if numbers else after == last
    return SequencePage(tuple(found), without_gaps and all(each.message.body_kept for each in found), last)


def counts(db: sqlite3.Connection, now: int) -> Counts:
    """See `DurableStore.counts`."""
    with snapshot(db):
        return Counts(
            min(_count(db, _PENDING) + _count(db, _WAITING), MAX_COUNTED),
            _count(db, _DEAD),
            _count(db, _BLOCKED, now),
            bytes_used(db),
        )


def _count(db: sqlite3.Connection, rows: str, *parameters: int) -> int:
    counted: int = db.execute(f"{_COUNT} ({rows} LIMIT {MAX_COUNTED})", parameters).fetchone()[0]
    return counted


def bytes_used(db: sqlite3.Connection) -> int:
    """By what is in the database; pages that have become free are used again."""
    pages, free, size = (
        db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
    )
    used: int = (pages - free) * size
    return used
