"""What nobody is owed any more goes, in slices; what a clock that was set back has left in the future comes back."""

from __future__ import annotations

import sqlite3
from typing import Final, NamedTuple

__all__ = [
    "Slice",
    "clock_to_notice",
    "clock_was_noticed",
    "endpoints_slice",
    "prune_bodies",
    "prune_leftovers",
    "prune_rows",
    "set_clock_back",
]

_SLICE_ROWS: Final = 1000
"""Rows that are deleted in one transaction."""
_SLICE_MESSAGES: Final = 200
_SLICE_PIECES: Final = 64
_UPLOAD_LEASE: Final = 3600 * 1_000_000
_TOLERANCE: Final = 5 * 1_000_000
"""Clocks of several machines are never quite the same."""
_NOTICE_EVERY: Final = 10 * 1_000_000

# Owed to somebody, or not long over: what dies late is kept as long as what was delivered at once.
_OWED: Final = (
    "EXISTS (SELECT 1 FROM deliveries d "
    "WHERE d.message = m.number AND (d.state IN ('pending', 'waiting') OR d.updated_at >= ?))"
)
# The number of the last one is not given to another: an old lease would fit that.
_OLDEST: Final = (
    "SELECT m.accepted_at, m.number, m.id, m.body IS NULL, {owed} FROM messages m "
    "WHERE {kept} m.accepted_at < ? AND (m.accepted_at, m.number) > (?, ?) {not_last}"
    "ORDER BY m.accepted_at, m.number LIMIT ?"
)
_WITH_BODIES: Final = _OLDEST.format(owed=_OWED, kept="m.body_kept = 1 AND", not_last="")
_ALL: Final = _OLDEST.format(owed=_OWED, kept="", not_last="AND m.number < (SELECT max(number) FROM messages) ")


_PENDING: Final = (
    "SELECT d.due_at, d.message, d.subscription_id, d.updated_at, d.leased_by, m.deliver_at "
    "FROM deliveries d CROSS JOIN messages m ON m.number = d.message "
    "WHERE d.endpoint = ? AND d.state = 'pending' AND (d.due_at, d.message, d.subscription_id) > (?, ?, ?) "
    "ORDER BY d.due_at, d.message, d.subscription_id LIMIT ?"
)
_SET_READY: Final = (
    "UPDATE endpoints SET ready_at = max(blocked_until, (SELECT d.due_at FROM deliveries d "
    "WHERE d.endpoint = number AND d.state = 'pending' ORDER BY d.due_at LIMIT 1)) WHERE number = ?"
)
_BRING_BACK: Final = "UPDATE deliveries SET due_at = ?, updated_at = ? WHERE message = ? AND subscription_id = ?"
_BRING_BLOCK_BACK: Final = (
    "UPDATE endpoints SET blocked_until = blocked_until - (blocked_at - ?1), blocked_at = ?1 "
    "WHERE number = ?2 AND blocked_at > ?1"
)

Place = tuple[int, int, int, str]


class Slice(NamedTuple):
    """What one transaction of retention did."""

    deleted: int
    """Bodies or messages that went as a whole."""
    place: tuple[int, int] | None
    """Where to go on; None at the end."""


def prune_bodies(db: sqlite3.Connection, before: int, place: tuple[int, int]) -> Slice:
    """Delete the bodies of messages that were accepted, and were over for everybody, before that moment."""
    rows = db.execute(_WITH_BODIES, (before, before, *place, _SLICE_MESSAGES)).fetchall()
    free = [row for row in rows if not row[4]]
    db.executemany("UPDATE messages SET body = NULL, body_kept = 0 WHERE number = ?", [(row[1],) for row in free])
    _leave_pieces(db, [row[2] for row in free if row[3]])
    return Slice(len(free), rows[-1][:2] if len(rows) == _SLICE_MESSAGES else None)


def prune_rows(db: sqlite3.Connection, before: int, place: tuple[int, int]) -> Slice:
    """Delete messages that were accepted, and were over for everybody, before that moment, with all that belongs to
    them."""
    rows = db.execute(_ALL, (before, before, *place, _SLICE_MESSAGES)).fetchall()
    room, deleted = _SLICE_ROWS, 0
    for moment, number, message_id, without_body, owed in rows:
        if not owed:
            room -= _delete_deliveries(db, number, room)
            if room <= 0:
                return Slice(deleted, place)
            db.execute("DELETE FROM messages WHERE number = ?", (number,))
            if without_body:
                _leave_pieces(db, [message_id])
            deleted += 1
        place = (moment, number)
    return Slice(deleted, place if len(rows) == _SLICE_MESSAGES else None)


def _delete_deliveries(db: sqlite3.Connection, number: int, at_most: int) -> int:
    rows = db.execute("SELECT message, subscription_id FROM deliveries WHERE message = ? LIMIT ?", (number, at_most))
    keys = rows.fetchall()
    db.executemany("DELETE FROM attempts WHERE message = ? AND subscription_id = ?", keys)
    db.executemany("DELETE FROM deliveries WHERE message = ? AND subscription_id = ?", keys)
    db.executemany(
        "DELETE FROM gone_subscriptions "
        "WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM deliveries WHERE subscription_id = ?1)",
        [(subscription_id,) for _, subscription_id in keys],
    )
    return len(keys)


def _leave_pieces(db: sqlite3.Connection, message_ids: list[str]) -> None:
    """The pieces of a body go like those of a message that was never accepted."""
    db.executemany(
        "INSERT OR REPLACE INTO uploads (message_id, written_at) SELECT ?1, ?2 "
        "WHERE EXISTS (SELECT 1 FROM message_chunks WHERE message_id = ?1)",
        [(each, -_UPLOAD_LEASE) for each in message_ids],
    )


def prune_leftovers(db: sqlite3.Connection, replays_before: int, now: int) -> int:
    """Delete a slice of the pieces that no message has, and of the replays that are over; how many rows."""
    left = db.execute(
        "SELECT message_id FROM uploads WHERE written_at <= ? LIMIT 1", (max(now - _UPLOAD_LEASE, 0),)
    ).fetchone()
    if left is not None:
        pieces = db.execute(
            "DELETE FROM message_chunks WHERE rowid IN (SELECT rowid FROM message_chunks WHERE message_id = ? LIMIT ?)",
            (*left, _SLICE_PIECES),
        ).rowcount
        if pieces < _SLICE_PIECES:
            db.execute("DELETE FROM uploads WHERE message_id = ?", left)
        return pieces + 1
    return db.execute(
        "DELETE FROM replays WHERE number IN (SELECT number FROM replays WHERE finished_at < ? LIMIT ?)",
        (replays_before, _SLICE_ROWS),
    ).rowcount


def endpoints_slice(db: sqlite3.Connection, after: int, now: int) -> int | None:
    """Look at the next endpoints, and delete those that nothing is left of; the next place, or None at the end.

    A delivery does not keep its endpoint by an index of its own. But all deliveries of an endpoint without a
    subscription are of messages that were there when it was seen to have none.
    """
    rows = db.execute(
        "SELECT number, unused_after, ready_at IS NULL AND blocked_until <= ? AND NOT EXISTS "
        "(SELECT 1 FROM subscriptions s WHERE s.endpoint = e.number) "
        "FROM endpoints e WHERE number > ? ORDER BY number LIMIT ?",
        (now, after, _SLICE_ROWS),
    ).fetchall()
    oldest, newest = db.execute("SELECT coalesce(min(number), 1), coalesce(max(number), 0) FROM messages").fetchone()
    for number, unused_after, unused in rows:
        if unused and unused_after is not None and unused_after < oldest:
            db.execute("DELETE FROM endpoints WHERE number = ?", (number,))
        elif unused != (unused_after is not None):
            db.execute("UPDATE endpoints SET unused_after = ? WHERE number = ?", (newest if unused else None, number))
    return rows[-1][0] if len(rows) == _SLICE_ROWS else None


# -- the clock --------------------------------------------------------------------------------------------------------


def clock_to_notice(db: sqlite3.Connection, now: int) -> bool | None:
    """None: nothing to do. True: the clock was set back. False: the latest moment is to be written down."""
    latest = db.execute("SELECT max(latest) FROM clock").fetchone()[0]
    if latest is not None and now < latest - _TOLERANCE:
        return True
    return False if latest is None or now >= latest + _NOTICE_EVERY else None


def clock_was_noticed(db: sqlite3.Connection, now: int) -> None:
    """From now on, this is the latest moment that was seen."""
    db.execute("DELETE FROM clock")
    db.execute("INSERT INTO clock (latest) VALUES (?)", (now,))


def set_clock_back(db: sqlite3.Connection, place: Place | None, now: int, at_most: int) -> tuple[int, Place | None]:
    """Bring what was decided in the future to as long after `now` as it was meant to be, in at most so many slices.

    Returns how many deliveries moved, and the next place: an endpoint, and where among its deliveries.
    """
    moved = 0
    place = place or _next_endpoint(db, -1, now)
    for _ in range(at_most):
        if place is None:
            db.execute("UPDATE uploads SET written_at = ? WHERE written_at > ?", (now, now))
            break
        rows = db.execute(_PENDING, (*place, _SLICE_ROWS)).fetchall()
        late = [
            (due_at - (decided_at - now), now, message, subscription_id)
            for due_at, message, subscription_id, decided_at, leased_by, deliver_at in rows
            if decided_at > now and (leased_by is not None or due_at != deliver_at)
        ]
        db.executemany(_BRING_BACK, late)
        moved += len(late)
        if len(rows) == _SLICE_ROWS:
            place = (place[0], *rows[-1][:3])
        else:
            db.execute(_SET_READY, (place[0],))
            place = _next_endpoint(db, place[0], now)
    return moved, place


def _next_endpoint(db: sqlite3.Connection, after: int, now: int) -> Place | None:
    """The beginning of the next endpoint, whose block is brought back."""
    row = db.execute("SELECT number FROM endpoints WHERE number > ? ORDER BY number LIMIT 1", (after,)).fetchone()
    if row is None:
        return None
    db.execute(_BRING_BLOCK_BACK, (now, row[0]))
    return row[0], now, 0, ""
