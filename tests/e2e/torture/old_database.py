"""A database as the version before durable delivery left it behind, with subscriptions in it."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path

from httppubsubserver.migrations import find_migrations
from httppubsubserver.stores.sqlite_file import _statements, migrate

__all__ = ["make_old_database", "statements_to_come"]

LAST_MIGRATION = 3
LEASE_SECONDS = 86_400


def make_old_database(path: Path, subscriptions: Sequence[tuple[str, str, str, str]]) -> None:
    """Write it; `subscriptions` are ids, callback URLs, kinds (`exact`, `glob`) and patterns."""
    now = time.time_ns() // 1000
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        migrate(db, find_migrations("sqlite")[:LAST_MIGRATION])
        for version, (subscription_id, url, kind, pattern) in enumerate(subscriptions, 1):
            db.execute(
                "INSERT INTO subscriptions (id, url, kind, pattern, lease_seconds, created_at, expires_at) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (subscription_id, url, kind, pattern.encode(), LEASE_SECONDS, now, now + LEASE_SECONDS * 1_000_000),
            )
            db.execute("INSERT INTO subscription_changes VALUES (?, ?)", (version, subscription_id))


def statements_to_come() -> int:
    """How many statements migrate such a database, each migration's entry in the list of them included."""
    return sum(len(_statements(migration.sql)) + 1 for migration in find_migrations("sqlite")[LAST_MIGRATION:])
