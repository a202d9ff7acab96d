"""The store in one SQLite file, shared by the processes of one machine.

Two connections with a thread each: one writes, one reads. Concurrent writes share a transaction. What is answered about
subscriptions has reached the disk before; idempotency keys are safe from a crash of the process, and the last of them
may be lost with the machine's power.

The version of the subscriptions is the number of the last row in the log of their changes, so a change and its
version cannot come apart, and each process reads from the log what it has missed.

What stands before every notify takes microseconds in the event loop, where a thread would cost twenty times as much:
the version is read there (`VersionReader`), and nonces are remembered in a file of their own (replay_file.py).
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from typing import Any, Final, TypeVar

from httppubsubclient.protocol.errors import ConfigurationError, Unavailable
from httppubsubclient.protocol.messages import SubscribeRequest, Subscription
from httppubsubclient.protocol.patterns import Pattern
from httppubsubclient.replay_file import Locked, ReplayFile
from httppubsubserver.migrations import find_migrations
from httppubsubserver.stores import Changes, Page, Remembered, Replaced, SecretsChange
from httppubsubserver.stores import sqlite_subscriptions as subscriptions
from httppubsubserver.stores.batches import Batches
from httppubsubserver.stores.sqlite_changes import read_version
from httppubsubserver.stores.sqlite_durable import SqliteDurable
from httppubsubserver.stores.sqlite_file import MEMORY, SqliteFile, Work, open_sqlite_file, sqlite_path
from httppubsubserver.stores.sqlite_subscriptions import Asking
from httppubsubserver.stores.sqlite_version import VersionReader

__all__ = ["SqliteStore", "open_sqlite"]

T = TypeVar("T")

CHANGES_KEPT: Final = 10_000
"""Rows of the log; who has missed more reads the whole table instead."""

ROWS_PER_PIECE: Final = 500
"""Of the whole table. Indexing so many takes 2 milliseconds, globs 10; then others get their turn."""

_BATCH_SIZE: Final = 256
_MAX_WAITING: Final = 10_000
_RENEW_KEY: Final = "UPDATE idempotency_keys SET lease_until = ? WHERE key = ? AND message_id = ? AND answer IS NULL"
_PRUNE_KEYS: Final = (
    "DELETE FROM idempotency_keys WHERE key IN (SELECT key FROM idempotency_keys WHERE until <= ? LIMIT ?)"
)
_NONCES_LOCK_PAUSE_SECONDS: Final = 0.001


@asynccontextmanager
async def open_sqlite(
    url: str,
    *,
    create: bool = True,
    lock_timeout_seconds: float = 5.0,
    open_timeout_seconds: float = 60.0,
    changes_kept: int = CHANGES_KEPT,
    rows_per_piece: int = ROWS_PER_PIECE,
) -> AsyncIterator[SqliteStore]:
    """The store at `sqlite:///path`, migrated and open while the context lasts.

    A database that is locked for `lock_timeout_seconds` (when opening: `open_timeout_seconds`) is `Unavailable`.
    Raises `ConfigurationError` when it cannot be opened, or is not one that this version can use. Without `create` it
    is for looking on beside a broadcaster: the file is there and needs no migration, and nonces are not shared.
    """
    path = sqlite_path(url)
    if path == MEMORY and not create:
        raise ConfigurationError("a database in memory belongs to its broadcaster alone: nobody else can open it")
    migrations = find_migrations("sqlite")
    async with AsyncExitStack() as stack:
        writer = await stack.enter_async_context(
            open_sqlite_file(
                path,
                lock_timeout_seconds=lock_timeout_seconds,
                open_timeout_seconds=open_timeout_seconds,
                migrations=migrations,
                create=create,
            )
        )
        # A database in memory belongs to its one connection; its calls take turns in that connection's thread.
        reader = writer
        if path != MEMORY:
            reader = await stack.enter_async_context(
                open_sqlite_file(
                    path,
                    lock_timeout_seconds=lock_timeout_seconds,
                    open_timeout_seconds=open_timeout_seconds,
                    migrations=None,
                )
            )
        nonces = stack.enter_context(await _open_nonces(path if create else MEMORY, open_timeout_seconds))
        store = SqliteStore(
            writer,
            reader,
            None if path == MEMORY else stack.enter_context(closing(VersionReader(path))),
            nonces,
            changes_kept=changes_kept,
            rows_per_piece=rows_per_piece,
            lock_timeout_seconds=lock_timeout_seconds,
        )
        stack.push_async_callback(store.finish)
        yield store


async def _open_nonces(path: str, timeout_seconds: float) -> ReplayFile:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_seconds
    while True:
        try:
            return ReplayFile.open(None if path == MEMORY else f"{path}-nonces")
        except Locked:
            if loop.time() >= deadline:
                raise Unavailable("the file of nonces is locked by another process") from None
            await asyncio.sleep(_NONCES_LOCK_PAUSE_SECONDS)


class SqliteStore(SqliteDurable):
    """See `Store` and `DurableStore`. Made by `open_sqlite`."""

    def __init__(
        self,
        writer: SqliteFile,
        reader: SqliteFile,
        version: VersionReader | None,
        nonces: ReplayFile,
        *,
        changes_kept: int,
        lock_timeout_seconds: float,
        rows_per_piece: int = ROWS_PER_PIECE,
    ) -> None:
        super().__init__(writer, reader, changes_kept=changes_kept)
        self._reader = reader
        self._version = version
        self._nonces = nonces
        self._changes_kept = changes_kept
        self._lock_timeout_seconds = lock_timeout_seconds
        self._finished = False
        self._rows_per_piece = rows_per_piece

        async def durably(works: list[Work[Any]]) -> list[Any]:
            return await writer.transact(works, durable=True)

        async def quickly(works: list[Work[Any]]) -> list[Any]:
            return await writer.transact(works, durable=False)

        async def read_versions(questions: list[None]) -> list[int]:
            return [await reader.run(read_version)] * len(questions)

        self._durably: Batches[Work[Any], Any] = Batches(durably, batch_size=_BATCH_SIZE, max_waiting=_MAX_WAITING)
        self._quickly: Batches[Work[Any], Any] = Batches(quickly, batch_size=_BATCH_SIZE, max_waiting=_MAX_WAITING)
        self._versions: Batches[None, int] = Batches(read_versions, batch_size=_MAX_WAITING, max_waiting=_MAX_WAITING)

    async def finish(self) -> None:
        """Take nothing more and end what was begun."""
        self._finished = True
        await self._durably.close()
        await self._quickly.close()
        await self._versions.close()
        await self.finish_durable()

    # -- subscriptions ------------------------------------------------------------------------------------------

    async def version(self) -> int:
        """See `Store.version`."""
        if self._version is not None and not self._finished:
            try:
                return self._version.read()
            except sqlite3.Error:
                pass  # the thread may wait for what is in the way, and knows what to say about it
        return await self._versions(None)

    async def changes_since(self, version: int, cursor: str | None = None) -> Changes:
        """See `Store.changes_since`."""
        return await self._reader.run(lambda db: subscriptions.changes_since(db, version, cursor, self._rows_per_piece))

    async def subscribe(
        self,
        request: SubscribeRequest,
        *,
        now: int,
        owner: str | None = None,
        max_subscriptions: int | None = None,
        secrets: SecretsChange | None = None,
    ) -> tuple[Subscription, bool]:
        """See `Store.subscribe`."""
        asking = Asking(owner, max_subscriptions, self._changes_kept)
        return await self._change(lambda db: subscriptions.subscribe(db, request, secrets, asking, now))

    async def unsubscribe(
        self, subscription_id: str, *, now: int, expires_at: int | None = None, owner: str | None = None
    ) -> Subscription | None:
        """See `Store.unsubscribe`."""
        return await self._change(
            lambda db: subscriptions.unsubscribe(db, subscription_id, owner, now, expires_at, self._changes_kept)
        )

    async def subscription(self, subscription_id: str, *, now: int, owner: str | None = None) -> Subscription | None:
        """See `Store.subscription`."""
        return await self._reader.run(lambda db: subscriptions.subscription_by_id(db, subscription_id, owner, now))

    async def subscribed(self, url: str, patterns: Sequence[Pattern], *, now: int) -> tuple[Subscription | None, ...]:
        """See `Store.subscribed`."""
        return await self._reader.run(lambda db: subscriptions.subscribed(db, url, patterns, now))

    async def subscriptions(
        self, *, url: str | None, cursor: str | None, limit: int, now: int, owner: str | None = None
    ) -> Page:
        """See `Store.subscriptions`."""
        return await self._reader.run(lambda db: subscriptions.subscriptions_page(db, url, owner, cursor, limit, now))

    async def replace(
        self,
        url: str,
        requests: Sequence[SubscribeRequest],
        *,
        if_match: str | None,
        now: int,
        owner: str | None = None,
        max_subscriptions: int | None = None,
        secrets: Mapping[Pattern, SecretsChange] | None = None,
    ) -> Replaced:
        """See `Store.replace`."""
        if any(request.url != url for request in requests):
            raise ValueError("all of a URL's subscriptions have this URL")
        asking = Asking(owner, max_subscriptions, self._changes_kept)
        return await self._change(
            lambda db: subscriptions.replace(db, url, requests, secrets or {}, if_match, asking, now)
        )

    async def etag(self, url: str, *, now: int, owner: str | None = None) -> str:
        """See `Store.etag`."""
        return await self._reader.run(lambda db: subscriptions.etag(db, url, owner, now))

    # -- once -----------------------------------------------------------------------------------------------------

    async def remember_once(self, key: str, *, until: int, now: int) -> bool:
        """See `Store.remember_once`."""
        began = 0.0
        while not self._finished:
            try:
                return self._nonces.first_time(key, until=until, now=now)
            except Locked:
                time = asyncio.get_running_loop().time()
                began = began or time
                if time > began + self._lock_timeout_seconds:
                    raise Unavailable(
                        "the file of nonces is locked by another process", retry_after_seconds=1
                    ) from None
                await asyncio.sleep(_NONCES_LOCK_PAUSE_SECONDS)
        raise Unavailable("the store is closed")

    async def begin_once(
        self, key: str, *, fingerprint: bytes, message_id: str, lease_until: int, until: int, now: int
    ) -> Remembered:
        """See `Store.begin_once`."""
        return await self._remember(lambda db: _begin_once(db, key, fingerprint, message_id, lease_until, until, now))

    async def renew_once(self, key: str, *, message_id: str, lease_until: int) -> None:
        """See `Store.renew_once`."""
        await self._remember(lambda db: db.execute(_RENEW_KEY, (lease_until, key, message_id)))

    async def finish_once(self, key: str, *, answer: str) -> None:
        """See `Store.finish_once`."""
        await self._remember(lambda db: _finish_once(db, key, answer))

    async def abandon_once(self, key: str) -> None:
        """See `Store.abandon_once`."""
        await self._remember(lambda db: _abandon_once(db, key))

    async def prune(self, *, now: int) -> int:
        """See `Store.prune`."""
        deleted = 0
        while some := await self._change(lambda db: subscriptions.prune_subscriptions(db, now, self._changes_kept)):
            deleted += some
        while some := await self._remember(
            lambda db: db.execute(_PRUNE_KEYS, (now, subscriptions.PRUNE_SLICE)).rowcount
        ):
            deleted += some
        return deleted

    async def _change(self, work: Work[T]) -> T:
        answer: T = await self._durably(work)
        return answer

    async def _remember(self, work: Work[T]) -> T:
        answer: T = await self._quickly(work)
        return answer


def _begin_once(
    db: sqlite3.Connection, key: str, fingerprint: bytes, message_id: str, lease_until: int, until: int, now: int
) -> Remembered:
    known = db.execute(
        "SELECT fingerprint, lease_until, answer, message_id FROM idempotency_keys WHERE key = ? AND until > ?",
        (key, now),
    ).fetchone()
    if known is not None:
        if known[0] != fingerprint:
            return Remembered("conflict")
        if known[2] is not None:
            return Remembered("finished", known[2])
        if known[1] > now:
            return Remembered("running")
        message_id = known[3] or message_id
    db.execute(
        "INSERT OR REPLACE INTO idempotency_keys (key, fingerprint, message_id, lease_until, until) "
        "VALUES (?, ?, ?, ?, ?)",
        (key, fingerprint, message_id, lease_until, until),
    )
    return Remembered("new", message_id=message_id)


def _finish_once(db: sqlite3.Connection, key: str, answer: str) -> None:
    # The first answer stays: somebody may have been told it already.
    db.execute("UPDATE idempotency_keys SET answer = ? WHERE key = ? AND answer IS NULL", (answer, key))


def _abandon_once(db: sqlite3.Connection, key: str) -> None:
    db.execute("UPDATE idempotency_keys SET lease_until = 0 WHERE key = ? AND answer IS NULL", (key,))
