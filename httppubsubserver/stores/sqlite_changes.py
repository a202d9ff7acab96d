"""Subscriptions that go, and the log of what changed: in the transaction of whatever changes them.

A subscription that is or was durable leaves a row in `ended_subscriptions` when it goes, so that what it is still owed
is called off later, in slices (sqlite_upkeep.py).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from httppubsubserver.stores.sqlite_version import VERSION

__all__ = ["delete_subscriptions", "log_changes", "read_version"]


def read_version(db: sqlite3.Connection) -> int:
    """The version of the subscriptions."""
    version: int = db.execute(VERSION).fetchone()[0]
    return version


def delete_subscriptions(
    db: sqlite3.Connection, subscription_ids: Sequence[str], *, now: int, reason: str = "unsubscribed"
) -> None:
    """Delete them, without a word in the log; whatever `reason` says, one that has expired has expired."""
    db.executemany(
        "INSERT OR REPLACE INTO ended_subscriptions (subscription_id, reason) "
        "SELECT id, CASE WHEN expires_at <= ? THEN 'subscription_expired' ELSE ? END FROM subscriptions "
        "WHERE id = ? AND endpoint IS NOT NULL",
        [(now, reason, each) for each in subscription_ids],
    )
    db.executemany("DELETE FROM subscriptions WHERE id = ?", [(each,) for each in subscription_ids])


def log_changes(db: sqlite3.Connection, subscription_ids: Sequence[str], changes_kept: int) -> None:
    """Number the changes. The last row is always kept, so SQLite's next number is the next version."""
    if not subscription_ids:
        return
    db.executemany(
        "INSERT INTO subscription_changes (subscription_id) VALUES (?)", [(each,) for each in subscription_ids]
    )
    db.execute("DELETE FROM subscription_changes WHERE version <= ?", (read_version(db) - changes_kept,))
