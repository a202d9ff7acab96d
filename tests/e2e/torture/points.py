"""Where the broadcaster can be told to die. Everything is patched from outside: the product knows nothing of this.

| point             | the process dies by SIGKILL                                                                   |
|-------------------|-----------------------------------------------------------------------------------------------|
| `after-commit`    | when an accepted message is committed, before the notify is answered                          |
| `after-claim`     | when deliveries have been claimed, before the first byte of an attempt                        |
| `before-settle`   | when a subscriber has taken a delivery, before that is written                                |
| `during-commit`   | some moments after the COMMIT of accepted messages has begun, from another thread             |
| `torn-commit`     | in the middle of a write of that COMMIT, of which half stays in the log: see `_tear`          |
| `inside-migration`| before one of the statements that migrate the database                                        |

`arm(point, passes, seed)` lets that happen when the point is passed for the `passes`-th time.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import sqlite3
import struct
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from httppubsubserver.migrations import Migration
from httppubsubserver.stores import sqlite_accept, sqlite_durable, sqlite_file
from httppubsubserver.stores.durable import Accepted, Claims, Publication, Settlement, Terms
from httppubsubserver.stores.sqlite import SqliteStore
from tests.e2e.torture.patches import replace

__all__ = ["POINTS", "arm"]

_LONGEST_COMMIT_SECONDS = 0.004
_WAL_HEADER_BYTES, _FRAME_HEADER_BYTES, _PAGE_BYTES = 32, 24, 4096
"""https://sqlite.org/fileformat2.html#the_write_ahead_log"""
_MX_FRAME_AT, _BACKFILLED_AT = 16, 96
"""In the index of the log: https://sqlite.org/walformat.html"""


class Countdown:
    """Counts the passes of a point."""

    def __init__(self, point: str, passes: int) -> None:
        self._point = point
        self._left = passes

    def passed(self) -> bool:
        """True when it is time; only once."""
        self._left -= 1
        return self._left == 0

    def die(self) -> NoReturn:
        """Say where, and be gone."""
        os.write(1, f"dying {self._point}\n".encode())
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("unreachable: nobody survives SIGKILL")

    def pass_or_die(self) -> None:
        if self.passed():
            self.die()


def arm(point: str, passes: int, seed: str) -> None:
    """Patch what has to be patched in this process."""
    POINTS[point](Countdown(point, passes), random.Random(seed))


def _after_commit(countdown: Countdown, _: random.Random) -> None:
    accept = SqliteStore.accept

    async def dying(self: SqliteStore, publication: Publication, *, now: int, terms: Terms | None = None) -> Accepted:
        accepted = await accept(self, publication, now=now, terms=terms)
        if accepted.deliveries:
            countdown.pass_or_die()
        return accepted

    replace(SqliteStore, "accept", dying)


def _after_claim(countdown: Countdown, _: random.Random) -> None:
    claim = SqliteStore.claim

    async def dying(self: SqliteStore, terms: Terms, *, now: int) -> Claims:
        claims = await claim(self, terms, now=now)
        if claims.deliveries:
            countdown.pass_or_die()
        return claims

    replace(SqliteStore, "claim", dying)


def _before_settle(countdown: Countdown, _: random.Random) -> None:
    settle = SqliteStore.settle

    async def dying(self: SqliteStore, settlements: Sequence[Settlement], *, now: int) -> list[bool]:
        if any(settlement.outcome == "delivered" for settlement in settlements):
            countdown.pass_or_die()
        return await settle(self, settlements, now=now)

    replace(SqliteStore, "settle", dying)


class _Watched:
    """A connection of which some statements are told before they are executed."""

    def __init__(self, db: sqlite3.Connection, before: Callable[[str, sqlite3.Connection], None]) -> None:
        self._db = db
        self._before = before

    def execute(self, sql: str, *parameters: Any) -> sqlite3.Cursor:
        self._before(sql, self._db)
        return self._db.execute(sql, *parameters)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)


def _before_accepting_commits(act: Callable[[sqlite3.Connection], None]) -> None:
    """Let `act` be called before each COMMIT with accepted messages in it."""
    accept_all, transaction = sqlite_accept.accept_all, sqlite_file._transaction
    accepting = False

    def marking(db: sqlite3.Connection, *rest: Any) -> Any:
        nonlocal accepting
        accepting = True
        return accept_all(db, *rest)

    def before(sql: str, db: sqlite3.Connection) -> None:
        nonlocal accepting
        if sql == "COMMIT" and accepting:
            accepting = False
            act(db)

    def watched(db: sqlite3.Connection, works: Any) -> Any:
        return transaction(_Watched(db, before), works)  # type: ignore[arg-type]

    replace(sqlite_durable, "accept_all", marking)
    replace(sqlite_file, "_transaction", watched)


def _during_commit(countdown: Countdown, chance: random.Random) -> None:
    def begin_to_die(_: sqlite3.Connection) -> None:
        if countdown.passed():
            threading.Thread(target=soon).start()

    def soon() -> None:
        time.sleep(chance.uniform(0, _LONGEST_COMMIT_SECONDS))
        countdown.die()

    _before_accepting_commits(begin_to_die)


def _torn_commit(countdown: Countdown, chance: random.Random) -> None:
    # Python ignores this signal; its default is to end the process where it stands.
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def tear(db: sqlite3.Connection) -> None:
        if countdown.passed():
            os.write(1, b"dying torn-commit\n")
            _tear(db, chance)

    _before_accepting_commits(tear)


def _tear(db: sqlite3.Connection, chance: random.Random) -> None:
    """Let no file grow beyond a point inside of what this transaction is going to write.

    The kernel then writes up to that point, and the next write ends the process (setrlimit(2), RLIMIT_FSIZE): half a
    frame is in the log, as after a crash in the middle of a write.
    """
    [(_, _, path)] = db.execute("PRAGMA database_list").fetchall()
    # Through SQLite's own descriptor: closing another one of this file would drop the locks of this process.
    index = os.pread(_descriptor_of(f"{path}-shm"), _BACKFILLED_AT + 4, 0)
    [last_frame] = struct.unpack_from("=I", index, _MX_FRAME_AT)
    [backfilled] = struct.unpack_from("=I", index, _BACKFILLED_AT)
    # When all of the log is in the database, writing begins at its front again.
    frames = 0 if backfilled == last_frame else last_frame
    begin = _WAL_HEADER_BYTES + frames * (_FRAME_HEADER_BYTES + _PAGE_BYTES)
    limit = begin + chance.randrange(1, 2 * (_FRAME_HEADER_BYTES + _PAGE_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))


def _descriptor_of(path: str) -> int:
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}") == path:
                return int(name)
    raise AssertionError(f"{path} is not open")


def _inside_migration(countdown: Countdown, _: random.Random) -> None:
    apply = sqlite_file._apply

    def before(_: str, db: sqlite3.Connection) -> None:
        assert db.in_transaction
        countdown.pass_or_die()

    def dying(db: sqlite3.Connection, migration: Migration) -> None:
        apply(_Watched(db, before), migration)  # type: ignore[arg-type]

    replace(sqlite_file, "_apply", dying)


POINTS: dict[str, Callable[[Countdown, random.Random], None]] = {
    "after-commit": _after_commit,
    "after-claim": _after_claim,
    "before-settle": _before_settle,
    "during-commit": _during_commit,
    "torn-commit": _torn_commit,
    "inside-migration": _inside_migration,
}
