"""What the directory knows is what the store holds, however it was read and whatever happened meanwhile."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from httppubsubclient.protocol.errors import Unavailable
from httppubsubserver.directory import Directory
from httppubsubserver.stores import Changes, Store
from httppubsubserver.stores.sqlite import SqliteStore, open_sqlite
from tests.stores.conftest import NOW, SECOND, A, B, asking, everything, put

TOPICS = [f"t/{n}".encode() for n in range(20)]
CHANGES_KEPT = 50


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteStore]:
    """Its table comes in pieces of five."""
    async with open_sqlite(f"sqlite:///{path}", changes_kept=CHANGES_KEPT, rows_per_piece=5) as opened:
        yield opened


class Watched:
    """A store that counts the pieces it gives and does something before each."""

    def __init__(self, store: Store, before: Callable[[int], Awaitable[None]] | None = None) -> None:
        self.before = before
        self._store = store
        self.version = store.version
        self.pieces = 0

    async def changes_since(self, version: int, cursor: str | None = None) -> Changes:
        self.pieces += 1
        if self.before is not None:
            await self.before(self.pieces)
        return await self._store.changes_since(version, cursor)

    def directory(self) -> Directory:
        return Directory(self)  # type: ignore[arg-type]


async def found(directory: Directory, topic: bytes = b"t/1", *, now: int = NOW) -> set[str]:
    targets = await directory.match(topic, now=now)
    ids = {target.id for target in targets}
    assert len(ids) == len(targets)
    return ids


async def agrees(directory: Directory, store: Store) -> None:
    """Whether every topic is matched as the table says."""
    table = await everything(store)
    for topic in TOPICS:
        expected = set()
        for each in table:
            matcher = each.pattern.matcher()
            if each.pattern.value == topic if matcher is None else matcher.matches(topic):
                expected.add(each.id)
        assert await found(directory, topic) == expected
    assert len(directory) == len(table)


async def fill(store: Store, count: int, url: str = A) -> None:
    await store.replace(url, [asking(url, f"t/{n}".encode()) for n in range(count)], if_match=None, now=NOW)


@pytest.mark.parametrize("count", [0, 1, 4, 5, 6, 20])
async def test_a_table_of_any_size_is_loaded_whole(store: SqliteStore, count: int) -> None:
    await fill(store, count)
    await agrees(Directory(store), store)


async def test_changes_are_applied_in_place(store: SqliteStore) -> None:
    await fill(store, 20)
    directory = Directory(store)
    await directory.refresh()
    star = await put(store, B, "t/*")
    assert star in await found(directory)
    await put(store, B, b"t/1")
    await fill(store, 10)
    await agrees(directory, store)
    await store.unsubscribe(star, now=NOW)
    await store.prune(now=NOW)
    await agrees(directory, store)


async def test_a_renewed_subscription_is_another_target(store: SqliteStore) -> None:
    """A delivery under way still knows until when its subscription was good."""
    patterns: list[bytes | str] = [b"t/1", "t/*", "t/?", "**"]
    for pattern in patterns:
        await put(store, A, pattern, lease_seconds=60)
    directory = Directory(store)
    before = await directory.match(b"t/1", now=NOW)
    for pattern in patterns:
        await put(store, A, pattern, lease_seconds=600)
    after = await directory.match(b"t/1", now=NOW + 60 * SECOND)
    assert {target.id for target in after} == {target.id for target in before}
    assert {target.expires_at for target in before} == {NOW + 60 * SECOND}
    assert {target.expires_at for target in after} == {NOW + 600 * SECOND}
    assert await found(directory, now=NOW + 600 * SECOND) == set()


async def test_the_subscriptions_of_one_callback_share_it(store: SqliteStore) -> None:
    await fill(store, 12)
    await fill(store, 12, B)
    await put(store, A, "t/*")
    directory = Directory(store)
    await directory.refresh()
    await put(store, A, "t/?")
    await put(store, A, "**")
    targets = [target for topic in TOPICS for target in await directory.match(topic, now=NOW)]
    assert len({id(target.callback) for target in targets}) <= 3  # those of the load, and of what came after
    assert {target.callback.name for target in targets} == {A, B}


@pytest.mark.parametrize("seed", range(12))
async def test_what_others_change_while_the_table_is_read_is_neither_lost_nor_stale(
    store: SqliteStore, path: Path, seed: int
) -> None:
    """Sometimes so much that the log no longer tells of it all, and the reading starts over."""
    chance = random.Random(seed)
    urls = [f"http://h{n}.example/" for n in range(3)]
    patterns: list[bytes | str] = [*TOPICS[:4], "t/*", "t/1*"]
    for url in urls:
        await fill(store, chance.randrange(20), url)
    async with open_sqlite(f"sqlite:///{path}", changes_kept=CHANGES_KEPT) as other:

        async def meanwhile(piece: int) -> None:
            for _ in range(chance.choice([0, 1, 3, 80]) if piece < 30 else 0):
                url, now = chance.choice(urls), NOW + chance.randrange(100)
                known = await everything(store)
                match chance.randrange(4):
                    case 0 | 1:
                        await put(other, url, chance.choice(patterns), now=now)
                    case 2 if known:
                        await other.unsubscribe(chance.choice(known).id, now=NOW)
                    case 3:
                        await other.replace(
                            url,
                            [asking(url, topic) for topic in chance.sample(TOPICS, chance.randrange(12))],
                            if_match=None,
                            now=now,
                        )

        watched = Watched(store, meanwhile)
        directory = watched.directory()
        await directory.refresh()
        watched.before = None
        await agrees(directory, store)
        await meanwhile(1)
        await agrees(directory, store)


async def test_whoever_asks_while_the_table_is_read_waits_for_all_of_it(store: SqliteStore) -> None:
    await fill(store, 20)
    everybody = await put(store, B, "t/*")
    watched = Watched(store)
    directory = watched.directory()
    answers = await asyncio.gather(*(found(directory, topic) for topic in TOPICS))
    assert all(len(ids) == 2 and everybody in ids for ids in answers)
    assert watched.pieces == 5, "and nobody reads it again"


@pytest.mark.parametrize("at", [1, 2, 3, 5])
async def test_a_caller_that_goes_away_leaves_what_was_read_to_the_next(store: SqliteStore, at: int) -> None:
    await fill(store, 20)
    stuck, go_on = asyncio.Event(), asyncio.Event()

    async def wait_once(piece: int) -> None:
        if piece == at:
            stuck.set()
            await go_on.wait()

    watched = Watched(store, wait_once)
    directory = watched.directory()
    first = asyncio.create_task(found(directory))
    await stuck.wait()
    second = asyncio.create_task(found(directory))
    await put(store, B, b"t/1")
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert len(await second) == 2
    assert watched.pieces <= 7, "one for the one who went away, and one for what came between"
    await agrees(directory, store)


async def test_until_a_new_load_is_whole_the_old_set_stays(store: SqliteStore, path: Path) -> None:
    await fill(store, 20)
    stuck, go_on = asyncio.Event(), asyncio.Event()

    async def wait_in_the_second_load(piece: int) -> None:
        if piece == 7:
            stuck.set()
            await go_on.wait()

    watched = Watched(store, wait_in_the_second_load)
    directory = watched.directory()
    await directory.refresh()
    assert (watched.pieces, len(directory)) == (5, 20)
    for n in range(CHANGES_KEPT + 1):
        await put(store, B, b"t/1", now=NOW + n)
    await store.unsubscribe((await everything(store))[0].id, now=NOW)
    refreshing = asyncio.create_task(directory.refresh())
    await stuck.wait()
    assert len(directory) == 20
    go_on.set()
    await refreshing
    await agrees(directory, store)


async def test_a_load_goes_on_after_a_fault_of_the_store(store: SqliteStore) -> None:
    await fill(store, 20)

    async def fail_once(piece: int) -> None:
        if piece == 3:
            raise Unavailable("the disk of the database fails")

    watched = Watched(store, fail_once)
    directory = watched.directory()
    with pytest.raises(Unavailable):
        await directory.match(b"t/1", now=NOW)
    assert gc.isenabled()
    await agrees(directory, store)
    assert watched.pieces == 6


@pytest.mark.parametrize("at", [None, 2, 4])
async def test_a_database_that_has_gone_back_is_loaded_anew(store: SqliteStore, path: Path, at: int | None) -> None:
    """Also when that happens while it is read."""
    await fill(store, 12)
    backup = sqlite3.connect(":memory:")
    with sqlite3.connect(path) as live:
        live.backup(backup)
        for n in range(5):
            await put(store, B, f"t/{n}*")
        await store.unsubscribe((await everything(store))[-1].id, now=NOW)

        async def restore(piece: int) -> None:
            if piece == at:
                backup.backup(live)

        directory = Watched(store, restore).directory()
        await directory.refresh()
        if at is None:
            assert len(directory) == 16
            backup.backup(live)
        await agrees(directory, store)
        assert len(directory) == 12
        await put(store, B, "t/*")
        await agrees(directory, store)
    live.close()
    backup.close()


async def test_a_row_that_is_damaged_is_left_out_and_told_of(
    store: SqliteStore, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await fill(store, 12)
    broken = await put(store, B, b"t/1")
    with sqlite3.connect(path) as plain:
        plain.execute("UPDATE subscriptions SET url = 'nonsense' WHERE id = ?", (broken,))
    plain.close()
    directory = Directory(store)
    with caplog.at_level(logging.ERROR):
        assert broken not in await found(directory)
    assert len(directory) == 12
    assert f"subscription {broken} has a callback URL that is not one" in caplog.text
    assert await store.unsubscribe(broken, now=NOW)
    await agrees(directory, store)
