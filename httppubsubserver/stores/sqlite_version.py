"""The version of the subscriptions, read in the event loop.

It is read before every notify. Through a thread that takes 60 microseconds and a fight for the interpreter; here two,
because SQLite says first whether anything has been committed at all since the last time (`PRAGMA data_version`). A
reader waits for nobody in WAL mode; what is in its way in rare moments (recovery after a crash) is an error at once.
"""

from __future__ import annotations

import sqlite3
from typing import Final

__all__ = ["VERSION", "VersionReader"]

VERSION: Final = "SELECT coalesce(max(version), 0) FROM subscription_changes"


class VersionReader:
    """A connection of its own, for the thread that made it."""

    def __init__(self, path: str) -> None:
        self._db = sqlite3.connect(path, timeout=0, isolation_level=None)
        self._commits = -1
        self._version = 0

    def read(self) -> int:
        """The version as of now. Raises `sqlite3.Error`."""
        commits = self._db.execute("PRAGMA data_version").fetchone()[0]
        if commits != self._commits:
            self._version = self._db.execute(VERSION).fetchone()[0]
            # Last: a commit in between is seen the next time.
            self._commits = commits
        return self._version

    def close(self) -> None:
        """Close the connection."""
        self._db.close()
