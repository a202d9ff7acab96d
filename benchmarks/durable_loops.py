"""What a broadcaster's durable notifies are measured by: the same rows, written without a broadcaster around them.

    python benchmarks/durable_loops.py raw FILE
    python benchmarks/durable_loops.py store FILE

FILE is a new database with the tables and indexes of the migrations. Prints `ready`. For each line of standard input,
how many messages and how many of them at a time, it writes so many and prints messages a second.

- *raw*: SQL statements, and nothing but what they need: a transaction for each group, flushed to the disk.
- *store*: the durable store, with as many calls of `accept` at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import sys
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from durable_site import BODY, fill_subscriptions
from durable_site import publication as publication_of

from httppubsubserver.stores.sqlite import SqliteStore, open_sqlite

URL = "http://127.0.0.1:9/"
INSERT_MESSAGE = (
    "INSERT INTO messages (number, id, topic, content_type, sha256, size, traceparent, accepted_at, deliver_at, "
    "expires_at, body_kept, body) VALUES (?, ?, ?, 'application/octet-stream', ?, ?, NULL, ?, NULL, NULL, 1, ?)"
)
INSERT_DELIVERY = (
    "INSERT INTO deliveries (message, subscription_id, endpoint, sequence, previous_message_id, ordered, state, "
    "due_at, leased_by, attempts, updated_at) VALUES (?, ?, ?, ?, ?, 0, 'pending', ?, NULL, 0, ?)"
)


class RawLoop:
    """Writes what accepting writes for one subscription."""

    def __init__(self, file: Path) -> None:
        self.db = sqlite3.connect(file, isolation_level=None)
        self.db.execute("PRAGMA synchronous = FULL")
        self.db.execute("PRAGMA wal_autocheckpoint = 8000")
        self.subscription, self.endpoint = self.db.execute("SELECT id, endpoint FROM subscriptions").fetchone()
        self.number = 0
        self.last_id: str | None = None

    def write(self, count: int) -> None:
        """One transaction."""
        db = self.db
        now = time.time_ns() // 1000
        messages, deliveries = [], []
        for _ in range(count):
            self.number += 1
            message_id = "msg_" + urlsafe_b64encode(os.urandom(16)).decode("ascii")
            messages.append((self.number, message_id, b"t", sha256(BODY).digest(), len(BODY), now, BODY))
            deliveries.append((self.number, self.subscription, self.endpoint, self.number, self.last_id, now, now))
            self.last_id = message_id
        db.execute("BEGIN IMMEDIATE")
        db.executemany(INSERT_MESSAGE, messages)
        db.executemany(INSERT_DELIVERY, deliveries)
        db.execute(
            "UPDATE subscriptions SET last_sequence = ?, last_message_id = ? WHERE id = ?",
            (self.number, self.last_id, self.subscription),
        )
        db.execute("UPDATE endpoints SET ready_at = coalesce(ready_at, ?) WHERE number = ?", (now, self.endpoint))
        db.execute("COMMIT")

    def run(self, count: int, group: int) -> float:
        """Messages a second."""
        start = time.perf_counter()
        for written in range(0, count, group):
            self.write(min(group, count - written))
        return count / (time.perf_counter() - start)


async def accept(store: SqliteStore, subscription: str, count: int, at_once: int) -> float:
    """Messages a second, through the store."""
    left = count

    async def some() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await store.accept(publication_of(b"t", [subscription]), now=time.time_ns() // 1000)

    start = time.perf_counter()
    await asyncio.gather(*(some() for _ in range(at_once)))
    return count / (time.perf_counter() - start)


async def serve_store(file: Path) -> None:
    async with open_sqlite(f"sqlite:///{file}") as store:
        [subscription] = await fill_subscriptions(store, {b"t": [URL]}, durable=True)
        print("ready", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            count, at_once = map(int, line.split())
            print(await accept(store, subscription, count, at_once), flush=True)


async def make(file: Path) -> None:
    async with open_sqlite(f"sqlite:///{file}") as store:
        await fill_subscriptions(store, {b"t": [URL]}, durable=True)


def serve_raw(file: Path, run: Callable[[int, int], float]) -> None:
    print("ready", flush=True)
    for line in sys.stdin:
        count, group = map(int, line.split())
        print(run(count, group), flush=True)


def main() -> None:
    how, file = sys.argv[1], Path(sys.argv[2])
    runner = asyncio.run
    with contextlib.suppress(ImportError):
        import uvloop

        runner = uvloop.run
    if how == "raw":
        runner(make(file))
        serve_raw(file, RawLoop(file).run)
    else:
        runner(serve_store(file))


if __name__ == "__main__":
    main()
