"""Settling: what becomes of a delivery after an attempt. Only who holds the lease may say so."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Final

from httppubsubserver.stores.durable import MAX_ANSWER_BYTES, MAX_ATTEMPTS_KEPT, Held, Settlement
from httppubsubserver.stores.sqlite_changes import delete_subscriptions, log_changes
from httppubsubserver.stores.sqlite_claims import advance, give_up, lower, state_of

__all__ = ["bring_forward", "extend", "release", "settle"]

# Claimed by somebody else since, it has another number of attempts.
_MINE: Final = "WHERE message = ? AND subscription_id = ? AND leased_by = ? AND attempts = ? AND state = 'pending'"
_SET: Final = "UPDATE deliveries SET"
_OVER: Final = f"{_SET} state = ?, reason = ?, status = ?, leased_by = NULL, updated_at = ? {_MINE}"
_AGAIN: Final = f"{_SET} due_at = ?, status = ?, leased_by = NULL, updated_at = ? {_MINE}"
_EXTEND: Final = f"{_SET} due_at = ?, updated_at = ? {_MINE}"
_RELEASE: Final = f"{_SET} due_at = ?, leased_by = NULL, attempts_before = attempts_before + 1, updated_at = ? {_MINE}"
_ATTEMPTED: Final = (
    # What is due already and was never attempted is as it shall be.
    "SELECT d.due_at, d.message, d.leased_by IS NULL AND coalesce(m.deliver_at, 0) <= ?1 "
    "AND (d.due_at > ?1 OR d.attempts > d.attempts_before) "
    "FROM deliveries d JOIN messages m ON m.number = d.message "
    "WHERE d.endpoint = ?2 AND d.state = 'pending' AND d.subscription_id = ?3 AND (d.due_at, d.message) > (?4, ?5) "
    "ORDER BY d.due_at, d.message LIMIT ?6"
)
_BRING: Final = (
    f"{_SET} due_at = min(due_at, ?1), attempts_before = attempts, updated_at = ?1 "
    "WHERE message = ?2 AND subscription_id = ?3"
)
_BROUGHT_AT_ONCE: Final = 1000
_CALLED_OFF: Final = "SELECT reason FROM deliveries WHERE message = ? AND subscription_id = ?"
_INSERT_ATTEMPT: Final = (
    "INSERT OR REPLACE INTO attempts (message, subscription_id, attempt, began_at, ended_at, status, error, answer) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)
_FORGET_ATTEMPTS: Final = "DELETE FROM attempts WHERE message = ? AND subscription_id = ? AND attempt <= ?"


def settle(db: sqlite3.Connection, settlements: Sequence[Settlement], now: int, changes_kept: int) -> list[bool]:
    """See `DurableStore.settle`."""
    return [_settle_one(db, each, now, changes_kept) for each in settlements]


def extend(db: sqlite3.Connection, held: Sequence[Held], until: int, now: int) -> list[bool]:
    """See `DurableStore.extend`."""
    in_time = []
    for each in held:
        mine = db.execute(_EXTEND, (until, now, *each[:4])).rowcount == 1
        if mine:
            lower(db, each.endpoint, until)
        in_time.append(mine)
    return in_time


def release(db: sqlite3.Connection, held: Sequence[Held], now: int) -> list[bool]:
    """See `DurableStore.release`."""
    in_time = []
    for each in held:
        mine = db.execute(_RELEASE, (now, now, *each[:4])).rowcount == 1
        if mine and not _give_up_called_off(db, each, now):
            lower(db, each.endpoint, now)
        elif mine and each.ordered:
            advance(db, each.subscription_id, each.endpoint, now)
        in_time.append(mine)
    return in_time


def bring_forward(
    db: sqlite3.Connection, subscription_id: str, place: tuple[int, int], now: int
) -> tuple[int, tuple[int, int] | None]:
    """A slice of `DurableStore.bring_forward`, from `place` on; how many, and where the next one goes on."""
    row = db.execute("SELECT endpoint FROM subscriptions WHERE id = ?", (subscription_id,)).fetchone()
    if row is None or row[0] is None:
        return 0, None
    rows = db.execute(_ATTEMPTED, (now, row[0], subscription_id, *place, _BROUGHT_AT_ONCE)).fetchall()
    wanted = [message for _, message, movable in rows if movable]
    db.executemany(_BRING, [(now, message, subscription_id) for message in wanted])
    if wanted:
        lower(db, row[0], now)
    return len(wanted), rows[-1][:2] if len(rows) == _BROUGHT_AT_ONCE else None


def _settle_one(db: sqlite3.Connection, settlement: Settlement, now: int, changes_kept: int) -> bool:
    held, outcome, attempt, due_at, reason, subscribed_until = settlement
    if outcome == "delivered":
        mine = db.execute(_OVER, ("delivered", None, attempt.status, now, *held[:4])).rowcount == 1
    elif outcome == "again":
        mine = db.execute(_AGAIN, (due_at, attempt.status, now, *held[:4])).rowcount == 1
        if mine and not _give_up_called_off(db, held, now):
            lower(db, held.endpoint, due_at)
    else:
        why = "gone" if outcome == "gone" else _called_off(db, held) or reason or "failed"
        mine = db.execute(_OVER, (state_of(why), why, attempt.status, now, *held[:4])).rowcount == 1
    if not mine:
        return False
    if outcome != "delivered":
        _keep_attempt(db, settlement)
    if outcome == "gone":
        _remove_subscription(db, held.subscription_id, subscribed_until, now, changes_kept)
    if held.ordered:
        advance(db, held.subscription_id, held.endpoint, now)
    return True


def _give_up_called_off(db: sqlite3.Connection, held: Held, now: int) -> bool:
    """Give up a delivery whose subscription has ended during the attempt: another one would come to nothing."""
    reason = _called_off(db, held)
    if reason is not None:
        give_up(db, held.message, held.subscription_id, reason, now)
    return reason is not None


def _called_off(db: sqlite3.Connection, held: Held) -> str | None:
    """The reason that `work_off` has left in the row when it met the delivery under this lease."""
    row = db.execute(_CALLED_OFF, (held.message, held.subscription_id)).fetchone()
    reason: str | None = None if row is None else row[0]
    return reason


def _keep_attempt(db: sqlite3.Connection, settlement: Settlement) -> None:
    held, attempt = settlement.held, settlement.attempt
    error = None if attempt.error is None else attempt.error[:MAX_ANSWER_BYTES]
    row = (attempt.began_at, attempt.ended_at, attempt.status, error, bytes(attempt.answer[:MAX_ANSWER_BYTES]))
    db.execute(_INSERT_ATTEMPT, (held.message, held.subscription_id, held.lease, *row))
    if held.lease > MAX_ATTEMPTS_KEPT:
        db.execute(_FORGET_ATTEMPTS, (held.message, held.subscription_id, held.lease - MAX_ATTEMPTS_KEPT))


def _remove_subscription(
    db: sqlite3.Connection, subscription_id: str, subscribed_until: int | None, now: int, changes_kept: int
) -> None:
    row = db.execute("SELECT expires_at FROM subscriptions WHERE id = ?", (subscription_id,)).fetchone()
    if row is not None and subscribed_until in (None, row[0]):
        delete_subscriptions(db, [subscription_id], now=now, reason="gone")
        log_changes(db, [subscription_id], changes_kept)
