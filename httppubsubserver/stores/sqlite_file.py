"""An SQLite file: where it lies, how it is opened and migrated, and how work is done in it off the event loop.

Work is a plain function of the `sqlite3.Connection`, run whole in the driver's thread. So a transaction is one such
call, and whoever waits for it may be cancelled at any moment: the transaction still ends, by itself, one way or the
other. Written as a coroutine of driver calls it could be left open in the middle, and would cost a thread hop each.

A fault of the database (locked, disk full, read-only, damaged) is `Unavailable` and passes when the fault does; while
opening it is `ConfigurationError`, except for a lock.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, TypeAlias, TypeVar
from urllib.parse import unquote_to_bytes

import aiosqlite

from httppubsubclient.protocol.errors import ConfigurationError, PubSubError, Unavailable
from httppubsubserver.migrations import Applied, Migration, missing_migrations
from httppubsubserver.stores.batches import Failed

__all__ = ["MEMORY", "SqliteFile", "Work", "migrate", "open_sqlite_file", "sqlite_path"]

_LOG = logging.getLogger("httppubsub.server.stores.sqlite")

T = TypeVar("T")
Work: TypeAlias = Callable[[sqlite3.Connection], T]

MEMORY: Final = ":memory:"
_PREFIX: Final = "sqlite:///"

_FAULTS: Final = {
    sqlite3.SQLITE_BUSY: "the database is locked by another process",
    sqlite3.SQLITE_LOCKED: "the database is locked by another process",
    sqlite3.SQLITE_PROTOCOL: "the database is locked by another process",
    sqlite3.SQLITE_FULL: "the disk of the database is full",
    sqlite3.SQLITE_READONLY: "the database is read-only",
    sqlite3.SQLITE_PERM: "the database may not be accessed",
    sqlite3.SQLITE_CANTOPEN: "the database cannot be opened",
    sqlite3.SQLITE_IOERR: "the disk of the database fails",
    sqlite3.SQLITE_CORRUPT: "the database is damaged",
    sqlite3.SQLITE_NOTADB: "the database is not an SQLite file",
    sqlite3.SQLITE_NOMEM: "there is no memory left for the database",
}
_LOCKED: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL})
_RETRY_AFTER_SECONDS: Final = 1.0
_OPENING_LOCK_MILLISECONDS: Final = 100
_OPENING_PAUSE_SECONDS: Final = 0.02
_LARGEST_IDLE_WAL_BYTES: Final = 64 * 1024 * 1024
_CHECKPOINT_PAGES: Final = 8000
"""Of 4 KiB. A checkpoint of that many takes hardly longer than one of the usual 1000: most are the same pages again."""

_APPLIED_TABLE: Final = """
    CREATE TABLE IF NOT EXISTS httppubsub_migrations (
        number     INTEGER NOT NULL PRIMARY KEY,
        name       TEXT    NOT NULL,
        checksum   TEXT    NOT NULL,  -- SHA-256 of the file, hexadecimal
        applied_at TEXT    NOT NULL   -- UTC, for people
    )
"""


def sqlite_path(url: str) -> str:
    """The absolute path that `sqlite:///relative.db` or `sqlite:////absolute.db` names, or `:memory:`.

    The path is percent-decoded, so that `%3F`, `%23` and `%25` stand for `?`, `#` and `%`; a bare `?` or `#` is
    refused, because parameters and fragments would be silently part of the name. Raises `ConfigurationError`.
    """
    if not url.startswith(_PREFIX) or url == _PREFIX:
        raise ConfigurationError(
            f"an SQLite URL is sqlite:///relative.db, sqlite:////absolute.db or sqlite:///:memory:; got {url!r}"
        )
    text = url.removeprefix(_PREFIX)
    if "?" in text or "#" in text:
        raise ConfigurationError(
            f"an SQLite URL has no parameters; write ? as %3F and # as %23 if the file's name has them: {url!r}"
        )
    if text == MEMORY:
        return MEMORY
    path = os.fsdecode(unquote_to_bytes(text))
    if "\0" in path:
        raise ConfigurationError(f"a file's name has no NUL character: {url!r}")
    path = os.path.realpath(path)
    directory = os.path.dirname(path)
    if not os.path.isdir(directory):
        raise ConfigurationError(f"the directory of the database does not exist: {directory}")
    if os.path.isdir(path):
        raise ConfigurationError(f"the database is a directory: {path}")
    return path


class SqliteFile:
    """One open connection. Made by `open_sqlite_file`; used in the event loop that opened it."""

    def __init__(self, connection: aiosqlite.Connection, path: str) -> None:
        self.path = path
        self._connection = connection
        self._closed = False
        self._durable: bool | None = None
        self._fault: str | None = None
        self._identity = _identity_of(path)

    async def run(self, work: Work[T]) -> T:
        """`work(connection)`, in the connection's thread, after what was asked for earlier. Raises `Unavailable`."""
        try:
            answer = await self.attempt(work)
        except sqlite3.Error as error:
            fault = _fault_of(error)
            if fault is None:
                raise
            if fault != self._fault:
                self._fault = fault
                _LOG.error("%s: %s (%s)", self.path, fault, error)
            raise Unavailable(fault, retry_after_seconds=_RETRY_AFTER_SECONDS) from None
        if self._fault is not None:
            _LOG.warning("%s: works again; it was: %s", self.path, self._fault)
            self._fault = None
        return answer

    async def attempt(self, work: Work[T]) -> T:
        """Like `run`, but the errors of SQLite stay what they are."""
        if self._closed:
            raise Unavailable("the store is closed")
        # The driver has no public call that runs a function in its thread; this is what its own calls go through.
        answer: T = await self._connection._execute(work, self._connection._conn)  # type: ignore[no-untyped-call]
        return answer

    async def transact(self, works: Sequence[Work[Any]], *, durable: bool) -> list[Any]:
        """All of `works` in one write transaction; `Failed` stands for one that raised, and leaves no trace of it.

        A transaction that is `durable` has reached the disk when this returns; one that is not survives a crash of
        the process and may be lost with the machine's power. Raises `Unavailable`: then none of it has happened.
        """

        if durable and _identity_of(self.path) != self._identity:
            # SQLite would go on writing to a file that has no name any more, and everything would seem to be well.
            _LOG.error("%s was removed or replaced while it is in use; put it back, or start again", self.path)
            raise Unavailable("the database file was removed or replaced", retry_after_seconds=_RETRY_AFTER_SECONDS)

        def transaction(db: sqlite3.Connection) -> list[Any]:
            if durable != self._durable:
                db.execute("PRAGMA synchronous = FULL" if durable else "PRAGMA synchronous = NORMAL")
                self._durable = durable
            return _transaction(db, works)

        return await self.run(transaction)

    async def close(self) -> None:
        """End what was asked for before, then close."""
        if not self._closed:
            self._closed = True
            await self._connection.close()


def _identity_of(path: str) -> tuple[int, int] | None:
    """Which file this path names; None when there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


@asynccontextmanager
async def open_sqlite_file(
    path: str,
    *,
    lock_timeout_seconds: float,
    open_timeout_seconds: float,
    migrations: Sequence[Migration] | None,
    create: bool = True,
) -> AsyncIterator[SqliteFile]:
    """A connection to `path`, in WAL mode and with all of `migrations`, while the context lasts.

    Without migrations it is for reading only, and the database is there already. Without `create` it must be there,
    with all of them.

    A new file is made with mode 0600; SQLite gives the files beside it (`-wal`, `-shm`) the mode of the first.
    Raises `ConfigurationError`, and `Unavailable` when the file stays locked for `open_timeout_seconds`. Once it is
    open, a lock is waited for at most `lock_timeout_seconds`.
    """
    try:
        if path != MEMORY and migrations is not None and create:
            _make_file(path)
        elif not create:
            _check_there(path)
        connection = await aiosqlite.connect(path, isolation_level=None)
    except (OSError, sqlite3.Error) as error:
        raise ConfigurationError(f"the database {path} cannot be opened: {error}") from None
    file = SqliteFile(connection, path)
    try:
        # SQLite does not wait for every lock that opening takes, so the whole of it is tried again.
        deadline = asyncio.get_running_loop().time() + open_timeout_seconds
        while not await _prepared(file, migrations, create):
            if asyncio.get_running_loop().time() >= deadline:
                raise Unavailable(f"the database {path} is locked by another process")
            await asyncio.sleep(_OPENING_PAUSE_SECONDS)
        await file.run(lambda db: db.execute(f"PRAGMA busy_timeout = {int(lock_timeout_seconds * 1000)}").close())
        yield file
    finally:
        await file.close()


def migrate(db: sqlite3.Connection, migrations: Sequence[Migration]) -> int:
    """Apply what is missing in one transaction, so that no crash leaves half of it; returns how many were.

    The transaction is also the lock: others wait for it, or get SQLITE_BUSY, and then find nothing missing.
    Raises `ConfigurationError` as `missing_migrations` does, or when one of them fails.
    """
    if not missing_migrations(migrations, _applied(db)):
        return 0
    db.execute("BEGIN IMMEDIATE")
    try:
        missing = missing_migrations(migrations, _applied(db))
        db.execute(_APPLIED_TABLE)
        for migration in missing:
            _apply(db, migration)
        db.execute("COMMIT")
    except BaseException:
        _roll_back(db)
        raise
    return len(missing)


def _make_file(path: str) -> None:
    # Never opened when it exists: closing it again would drop the locks that this process holds on it (POSIX).
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


def _check_there(path: str) -> None:
    if not os.path.exists(path):
        raise ConfigurationError(f"there is no database {path}; a broadcaster makes it when it starts")


async def _prepared(file: SqliteFile, migrations: Sequence[Migration] | None, create: bool) -> bool:
    """Try to make a fresh connection ready for use; False while another process holds a lock."""
    try:
        if migrations is None:
            await file.attempt(_prepare_reader)
        else:
            if not create:
                await file.attempt(lambda db: _check_migrated(db, file.path, migrations))
            await file.attempt(lambda db: _prepare_writer(db, file.path, migrations))
    except sqlite3.Error as error:
        if _primary_code(error) in _LOCKED:
            return False
        fault = _fault_of(error) or "the database cannot be used"
        raise ConfigurationError(f"{fault}: {file.path} ({error})") from None
    return True


def _prepare_reader(db: sqlite3.Connection) -> None:
    db.execute(f"PRAGMA busy_timeout = {_OPENING_LOCK_MILLISECONDS}")
    db.execute("PRAGMA query_only = ON")


def _prepare_writer(db: sqlite3.Connection, path: str, migrations: Sequence[Migration]) -> None:
    db.execute(f"PRAGMA busy_timeout = {_OPENING_LOCK_MILLISECONDS}")
    mode = db.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != ("memory" if path == MEMORY else "wal"):
        raise ConfigurationError(
            f"the database {path} stays in journal mode {mode}, and several processes need WAL; it has to lie on a "
            "local disk, not on a network file system"
        )
    db.execute(f"PRAGMA journal_size_limit = {_LARGEST_IDLE_WAL_BYTES}")
    db.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
    if not migrate(db, migrations):
        _check_writable(db)


def _check_migrated(db: sqlite3.Connection, path: str, migrations: Sequence[Migration]) -> None:
    """Before anything is written: it may be another program's."""
    db.execute(f"PRAGMA busy_timeout = {_OPENING_LOCK_MILLISECONDS}")
    missing = missing_migrations(migrations, _applied(db))
    if missing:
        raise ConfigurationError(
            f"the database {path} has no migration {missing[0].name}: it is no broadcaster's, or an older one's; a "
            "broadcaster of this version brings it up to date when it starts"
        )


def _check_writable(db: sqlite3.Connection) -> None:
    """SQLite opens what it may not write to without a word, and even begins a transaction. Raises `sqlite3.Error`."""
    try:
        db.execute("DELETE FROM httppubsub_migrations WHERE 0")
    except sqlite3.OperationalError as error:
        if _primary_code(error) not in _LOCKED:  # a lock of somebody else's is a proof, too
            raise


def _applied(db: sqlite3.Connection) -> list[Applied]:
    exists = db.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'httppubsub_migrations'")
    if exists.fetchone() is None:
        return []
    rows = db.execute("SELECT number, name, checksum FROM httppubsub_migrations").fetchall()
    return [Applied(*row) for row in rows]


def _apply(db: sqlite3.Connection, migration: Migration) -> None:
    try:
        for statement in _statements(migration.sql):
            db.execute(statement)
            if not db.in_transaction:
                raise ConfigurationError(f"migration {migration.name} ends the transaction that it is applied in")
        db.execute(
            "INSERT INTO httppubsub_migrations (number, name, checksum, applied_at) VALUES (?, ?, ?, datetime('now'))",
            (migration.number, migration.name, migration.checksum),
        )
    except sqlite3.Error as error:
        if _fault_of(error) is not None:
            raise
        raise ConfigurationError(
            f"migration {migration.name} cannot be applied: {error}; is this the database of another program?"
        ) from None


def _statements(sql: str) -> list[str]:
    """The statements of a migration; each ends at the end of a line. (`executescript` would commit first.)"""
    statements = [""]
    for line in sql.splitlines(keepends=True):
        statements[-1] += line
        if sqlite3.complete_statement(statements[-1]):
            statements.append("")
    return [statement for statement in statements if statement.strip()]


def _transaction(db: sqlite3.Connection, works: Sequence[Work[Any]]) -> list[Any]:
    db.execute("BEGIN IMMEDIATE")
    try:
        answers = [_one_of_several(db, work) for work in works]
        db.execute("COMMIT")
    except BaseException:
        _roll_back(db)
        raise
    return answers


def _one_of_several(db: sqlite3.Connection, work: Work[Any]) -> Any:
    """What `work` returns, or `Failed` when it raised and only its own part of the transaction was undone."""
    db.execute("SAVEPOINT one_of_several")
    try:
        answer = work(db)
    except Exception as error:
        # SQLite ends the whole transaction itself on some faults; then the others have failed as well.
        if not db.in_transaction or _fault_of(error) is not None:
            raise
        db.execute("ROLLBACK TO one_of_several")
        answer = Failed(error)
    db.execute("RELEASE one_of_several")
    return answer


def _roll_back(db: sqlite3.Connection) -> None:
    if db.in_transaction:
        with suppress(sqlite3.Error):  # the error that led here is the one to report
            db.execute("ROLLBACK")


def _fault_of(error: Exception) -> str | None:
    """What is wrong with the database, for whoever asked for something; None when the error is ours."""
    if isinstance(error, PubSubError):
        return None
    return _FAULTS.get(_primary_code(error))


def _primary_code(error: Exception) -> int:
    """The result code of SQLite without its extension (https://sqlite.org/rescode.html)."""
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF
