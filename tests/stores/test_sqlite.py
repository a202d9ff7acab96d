"""What is SQLite's own: the file, its neighbours, its faults."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager, suppress
from pathlib import Path

import pytest

from httppubsubclient.protocol.errors import ConfigurationError, Unavailable
from httppubsubclient.replay_file import ReplayFile
from httppubsubserver.migrations import Migration, find_migrations
from httppubsubserver.stores import open_store
from httppubsubserver.stores.sqlite import SqliteStore, open_sqlite
from httppubsubserver.stores.sqlite_file import SqliteFile, migrate, open_sqlite_file, sqlite_path
from tests.stores.conftest import NOW, SECOND, A, asking, put

ROOT = Path(__file__).parent.parent.parent
NOBODY = 65534


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pubsub.sqlite3"


@pytest.fixture
def url(path: Path) -> str:
    return f"sqlite:///{path}"


def plain(path: Path) -> sqlite3.Connection:
    """A connection without any of our code, in autocommit mode, that does not wait for locks."""
    return sqlite3.connect(path, isolation_level=None, timeout=0)


@asynccontextmanager
async def one_connection(path: Path) -> AsyncIterator[tuple[SqliteStore, SqliteFile]]:
    """A store that reads and writes through one connection, and the connection, to bring it into trouble."""
    async with open_sqlite_file(
        str(path), lock_timeout_seconds=0.01, open_timeout_seconds=5, migrations=find_migrations("sqlite")
    ) as file:
        with ReplayFile.open(None) as nonces:
            store = SqliteStore(file, file, None, nonces, changes_kept=100, lock_timeout_seconds=0.01)
            yield store, file
            await store.finish()


class Neighbour:
    """Another process with the same database open."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def says(self) -> str:
        assert self.process.stdout is not None
        async with asyncio.timeout(20):
            return (await self.process.stdout.readline()).decode().strip()

    async def ask(self, line: str) -> str:
        self.tell(line)
        return await self.says()

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")


@asynccontextmanager
async def neighbour(url: str) -> AsyncIterator[Neighbour]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-W", "error", "-m", "tests.stores.neighbour", url, cwd=ROOT,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    try:
        yield Neighbour(process)
        process.stdin.close()
        with suppress(BrokenPipeError, ConnectionResetError):
            await process.stdin.wait_closed()
        async with asyncio.timeout(20):
            assert await process.wait() in (0, -signal.SIGKILL)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


class TestUrls:
    @pytest.mark.parametrize(
        ("url", "relative"),
        [
            ("sqlite:///db.sqlite3", "db.sqlite3"),
            ("sqlite:///./db", "db"),
            ("sqlite:///with space and ü", "with space and ü"),
            ("sqlite:///a%3Fb%23c%25d%20e", "a?b#c%d e"),
            ("sqlite:///%FF", os.fsdecode(b"\xff")),
        ],
    )
    def test_a_relative_path_is_percent_decoded(
        self, url: str, relative: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert sqlite_path(url) == str(tmp_path / relative)

    def test_four_slashes_begin_an_absolute_path(self, tmp_path: Path) -> None:
        assert sqlite_path(f"sqlite:///{tmp_path}/db") == f"{tmp_path}/db"

    @pytest.mark.parametrize(
        ("url", "says"),
        [
            ("sqlite://", "sqlite:///relative.db"),
            ("sqlite:///", "sqlite:///relative.db"),
            ("sqlite://host/db", "sqlite:///relative.db"),
            ("sqlite:db", "looks like"),
            ("sqlite:///db?mode=ro", "%3F"),
            ("sqlite:///db#1", "%23"),
            ("sqlite:///a%00b", "NUL"),
            ("sqlite:////no/such/folder/db", "/no/such/folder"),
            ("sqlite:////tmp", "is a directory"),
            ("mysql://host/db", "mysql"),
        ],
    )
    async def test_what_names_no_database_is_refused_with_what_to_write(self, url: str, says: str) -> None:
        with pytest.raises(ConfigurationError, match=says):
            async with open_store(url):
                pass


class TestTheFile:
    async def test_it_is_in_wal_mode_and_only_its_owner_reads_it(self, path: Path, url: str) -> None:
        async with open_sqlite(url) as store:
            await put(store, A, b"t")
            with closing(plain(path)) as db:
                assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
            for name in (path, f"{path}-wal", f"{path}-shm"):
                assert stat.S_IMODE(os.stat(name).st_mode) == 0o600
        assert not os.path.exists(f"{path}-wal")

    async def test_the_mode_of_a_file_that_exists_is_left_alone(self, path: Path, url: str) -> None:
        path.touch(0o640)
        path.chmod(0o640)
        async with open_sqlite(url):
            pass
        assert stat.S_IMODE(path.stat().st_mode) == 0o640

    async def test_opening_it_again_does_not_drop_the_locks_of_this_process(self, path: Path, url: str) -> None:
        """POSIX drops all locks of a process on a file when it closes any descriptor of it."""
        async with open_sqlite(url), open_sqlite(url):
            program = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('VACUUM')"
            subprocess.run([sys.executable, "-c", program, str(path)], check=True)
            assert os.path.exists(f"{path}-wal"), "the child took itself for the last user of the database"

    async def test_subscriptions_are_flushed_to_the_disk_and_idempotency_keys_are_not(self, path: Path) -> None:
        async with one_connection(path) as (store, file):
            for _ in range(2):
                await put(store, A, b"t")
                assert await file.run(lambda db: db.execute("PRAGMA synchronous").fetchone()) == (2,)
                await store.begin_once(
                    "k", fingerprint=b"", message_id="m", lease_until=NOW, until=NOW + SECOND, now=NOW
                )
                assert await file.run(lambda db: db.execute("PRAGMA synchronous").fetchone()) == (1,)

    async def test_a_file_that_is_removed_or_replaced_is_noticed(self, path: Path, url: str) -> None:
        async with open_sqlite(url) as store:
            await put(store, A, b"t")
            aside = path.rename(f"{path}.aside")
            with pytest.raises(Unavailable, match="removed or replaced"):
                await put(store, A, b"u")
            path.touch()
            with pytest.raises(Unavailable, match="removed or replaced"):
                await put(store, A, b"u")
            aside.rename(path)
            await put(store, A, b"u")

    async def test_closing_leaves_no_thread(self, url: str) -> None:
        before = set(threading.enumerate())
        async with open_sqlite(url):
            threads = set(threading.enumerate()) - before
            assert len(threads) == 2
        assert all(ended(thread) for thread in threads)

    async def test_a_cancelled_opening_or_closing_leaves_no_thread_and_no_lock(self, path: Path, url: str) -> None:
        before = set(threading.enumerate())

        async def open_and_close() -> None:
            async with open_sqlite(url) as store:
                await put(store, A, b"t")

        for number in range(20):
            task = asyncio.create_task(open_and_close())
            await asyncio.wait({task}, timeout=number / 2000)
            task.cancel()
            await asyncio.wait({task})
        assert all(ended(thread) for thread in set(threading.enumerate()) - before)
        with closing(plain(path)) as db:
            db.execute("BEGIN EXCLUSIVE")


class TestNeighbours:
    async def test_a_process_sees_what_another_answered_before(self, url: str) -> None:
        async with neighbour(url) as other, open_sqlite(url) as store:
            assert await other.says() == "open"
            version = 0
            for n in range(50):
                subscription_id = await other.ask(f"subscribe {A} theirs/{n}")
                version += 1
                assert await store.version() == version
                [seen] = (await store.changes_since(version - 1)).changed
                assert seen.id == subscription_id
                await put(store, A, f"ours/{n}".encode())
                version += 1
                assert int(await other.ask("version")) == version
            assert await other.ask("remember nonce") == "True"
            assert not await store.remember_once("nonce", until=NOW + SECOND, now=NOW)

    async def test_a_process_that_is_killed_has_done_all_that_it_answered(self, url: str) -> None:
        async with neighbour(url) as other:
            await other.says()
            for n in range(1000):
                other.tell(f"subscribe {A} {n}")
            answered = [await other.says() for _ in range(20)]
            other.process.kill()
        async with open_sqlite(url) as store:
            assert {each.id for each in (await store.changes_since(0)).changed} >= set(answered)
            await put(store, A, b"works")

    async def test_many_that_open_a_new_database_at_once_migrate_it_once(self, path: Path, url: str) -> None:
        async with AsyncExitStack() as stack:
            others = [stack.enter_async_context(neighbour(url)) for _ in range(2)]
            stores = [stack.enter_async_context(open_sqlite(url)) for _ in range(8)]
            for other in await asyncio.gather(*others):
                assert await other.says() == "open"
            for store in await asyncio.gather(*stores):
                await put(store, A, b"t")
        with closing(plain(path)) as db:
            assert [row[0] for row in db.execute("SELECT name FROM httppubsub_migrations ORDER BY number")] == [
                migration.name for migration in find_migrations("sqlite")
            ]


class TestMigrating:
    async def test_a_newer_database_is_refused(self, path: Path, url: str) -> None:
        known = find_migrations("sqlite")
        newer = Migration(len(known) + 1, f"{len(known) + 1:04}_future", "CREATE TABLE future (x);\n")
        with closing(plain(path)) as db:
            migrate(db, [*known, newer])
        with pytest.raises(ConfigurationError, match=rf"newer.*{newer.name}.*upgrade"):
            async with open_sqlite(url):
                pass

    async def test_a_changed_migration_is_refused(self, path: Path, url: str) -> None:
        first, *others = find_migrations("sqlite")
        with closing(plain(path)) as db:
            migrate(db, [Migration(first.number, first.name, first.sql + "-- edited\n"), *others])
        with pytest.raises(ConfigurationError, match=first.name):
            async with open_sqlite(url):
                pass

    async def test_an_older_database_gets_what_it_lacks_and_keeps_what_it_has(self, path: Path, url: str) -> None:
        with closing(plain(path)) as db:
            assert migrate(db, find_migrations("sqlite")[:1]) == 1
            db.execute("INSERT INTO subscription_changes (subscription_id) VALUES ('sub_x')")
        async with open_sqlite(url) as store:
            assert await store.version() == 1
            assert await store.remember_once("k", until=NOW + 1, now=NOW)

    def test_a_kill_in_the_middle_leaves_nothing_half_applied(self, path: Path) -> None:
        program = """
import os, signal, sqlite3, sys
from httppubsubserver.migrations import Migration, find_migrations
from httppubsubserver.stores.sqlite_file import migrate
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA journal_mode = WAL")
db.create_function("die", 0, lambda: os.kill(os.getpid(), signal.SIGKILL))
known = find_migrations("sqlite")
migrate(db, [*known, Migration(len(known) + 1, "0099_dies", "CREATE TABLE half (x);\\nSELECT die();\\n")])
"""
        died = subprocess.run([sys.executable, "-c", program, path], check=False, cwd=ROOT)
        assert died.returncode == -signal.SIGKILL
        with closing(plain(path)) as db:
            assert db.execute("SELECT name FROM sqlite_master").fetchall() == []
            assert migrate(db, find_migrations("sqlite")) == len(find_migrations("sqlite"))
            assert migrate(db, find_migrations("sqlite")) == 0

    def test_one_that_fails_leaves_nothing_of_itself_or_its_predecessors(self, path: Path) -> None:
        broken = Migration(2, "0002_broken", "CREATE TABLE half (x);\nCREATE TABLE half (x);\n")
        with closing(plain(path)) as db:
            with pytest.raises(ConfigurationError, match=r"0002_broken cannot be applied: table half already exists"):
                migrate(db, [Migration(1, "0001_fine", "CREATE TABLE fine (x);\n"), broken])
            assert not db.in_transaction
            assert db.execute("SELECT name FROM sqlite_master").fetchall() == []

    def test_one_that_ends_the_transaction_is_refused(self, path: Path) -> None:
        with closing(plain(path)) as db, pytest.raises(ConfigurationError, match="ends the transaction"):
            migrate(db, [Migration(1, "0001_ends", "COMMIT;\n")])

    def test_statements_may_hold_semicolons(self, path: Path) -> None:
        sql = """-- first; a comment
CREATE TABLE t (x TEXT DEFAULT ';
;'); -- behind;
CREATE TRIGGER r AFTER INSERT ON t BEGIN
    DELETE FROM t WHERE x = 'a;';
END;
-- the end"""
        with closing(plain(path)) as db:
            migrate(db, [Migration(1, "0001_t", sql)])
            db.execute("INSERT INTO t DEFAULT VALUES")
            assert db.execute("SELECT x FROM t").fetchall() == [(";\n;",)]


class TestFaults:
    async def test_a_lock_of_somebody_else_is_unavailable_for_writers_and_passes(self, path: Path, url: str) -> None:
        async with open_sqlite(url, lock_timeout_seconds=0.01) as store:
            kept = await put(store, A, b"t")
            with closing(plain(path)) as other:
                other.execute("BEGIN IMMEDIATE")
                writes = (
                    put(store, A, b"u"),
                    store.unsubscribe(kept, now=NOW),
                    store.begin_once("k", fingerprint=b"", message_id="m", lease_until=NOW, until=NOW + 1, now=NOW),
                )
                for answer in await asyncio.gather(*writes, return_exceptions=True):
                    assert isinstance(answer, Unavailable)
                    assert "locked" in answer.detail
                    assert str(path) not in answer.detail
                    assert answer.retry_after_seconds
                assert await store.version() == 1
                assert await store.subscription(kept, now=NOW)
                assert await store.remember_once("k", until=NOW + 1, now=NOW)
                other.execute("ROLLBACK")
            await put(store, A, b"u")
            assert await store.version() == 2

    async def test_a_database_that_stays_locked_cannot_be_opened_for_now(self, path: Path, url: str) -> None:
        with closing(plain(path)) as other:
            other.execute("CREATE TABLE t (x)")
            other.execute("BEGIN EXCLUSIVE")
            with pytest.raises(Unavailable, match="locked"):
                async with open_sqlite(url, open_timeout_seconds=0):
                    pass

    async def test_opening_waits_for_a_lock_to_pass(self, path: Path, url: str) -> None:
        with closing(plain(path)) as other:
            other.execute("BEGIN IMMEDIATE")

            async def opened() -> int:
                async with open_sqlite(url) as store:
                    return await store.version()

            opening = asyncio.create_task(opened())
            await asyncio.wait({opening}, timeout=0.15)
            assert not opening.done()
            other.execute("ROLLBACK")
            assert await opening == 0

    async def test_opening_does_not_wait_for_a_writer_when_there_is_nothing_to_migrate(
        self, path: Path, url: str
    ) -> None:
        async with open_sqlite(url):
            pass
        with closing(plain(path)) as other:
            other.execute("BEGIN IMMEDIATE")
            async with open_sqlite(url, open_timeout_seconds=0) as store:
                assert await store.version() == 0

    async def test_a_full_disk_is_unavailable_and_passes(self, path: Path) -> None:
        async with one_connection(path) as (store, file):
            pages = await file.run(lambda db: db.execute("PRAGMA page_count").fetchone()[0])
            await file.run(lambda db: db.execute(f"PRAGMA max_page_count = {pages}").fetchone())
            wanted = [asking(A, str(n).encode() * 500) for n in range(100)]
            with pytest.raises(Unavailable, match="full"):
                await store.replace(A, wanted, if_match=None, now=NOW)
            assert await store.version() == 0
            assert (await store.changes_since(0)).changed == ()
            await file.run(lambda db: db.execute("PRAGMA max_page_count = 100000").fetchone())
            assert len((await store.replace(A, wanted, if_match=None, now=NOW))[0]) == 100

    async def test_a_database_that_became_read_only_is_unavailable_and_passes(self, path: Path) -> None:
        async with one_connection(path) as (store, file):
            await file.run(lambda db: db.execute("PRAGMA query_only = ON").fetchone())
            with pytest.raises(Unavailable, match="read-only"):
                await put(store, A, b"t")
            assert await store.version() == 0
            await file.run(lambda db: db.execute("PRAGMA query_only = OFF").fetchone())
            await put(store, A, b"t")

    @pytest.mark.parametrize("directory_mode", [0o755, 0o777])
    async def test_a_file_that_may_not_be_written_is_refused_at_once(self, directory_mode: int) -> None:
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, "db")
            async with open_sqlite(f"sqlite:///{path}"):
                pass
            path.chmod(0o444)
            os.chmod(directory, directory_mode if os.geteuid() == 0 else directory_mode & 0o577)
            try:
                with without_privileges(), pytest.raises(ConfigurationError, match=str(path)):
                    async with open_sqlite(f"sqlite:///{path}"):
                        pass
            finally:
                os.chmod(directory, 0o755)

    async def test_a_directory_that_may_not_be_written_is_named(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            os.chmod(directory, 0o555)
            with without_privileges(), pytest.raises(ConfigurationError, match=rf"{directory}/db cannot be opened"):
                async with open_sqlite(f"sqlite:///{directory}/db"):
                    pass

    async def test_a_file_of_another_kind_is_refused_and_left_alone(self, path: Path, url: str) -> None:
        text = b"To be, or not to be, that is the question. " * 100
        path.write_bytes(text)
        with pytest.raises(ConfigurationError, match="not an SQLite file"):
            async with open_sqlite(url):
                pass
        assert path.read_bytes() == text

    async def test_the_database_of_another_program_is_refused(self, path: Path, url: str) -> None:
        with closing(plain(path)) as db:
            db.execute("CREATE TABLE subscriptions (newsletter TEXT)")
        with pytest.raises(ConfigurationError, match="another program"):
            async with open_sqlite(url):
                pass
        with closing(plain(path)) as db:
            assert db.execute("SELECT name FROM sqlite_master").fetchall() == [("subscriptions",)]

    async def test_a_damaged_file_is_unavailable(self, path: Path, url: str) -> None:
        async with open_sqlite(url) as store:
            await store.replace(A, [asking(A, str(n).encode() * 100) for n in range(500)], if_match=None, now=NOW)
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.seek(size // 2)
            file.write(b"\xff" * (size // 2))
        async with open_sqlite(url) as store:
            with pytest.raises(Unavailable, match="damaged"):
                await store.changes_since(0)

    async def test_trouble_is_logged_when_it_begins_and_when_it_ends(
        self, path: Path, url: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with open_sqlite(url, lock_timeout_seconds=0) as store:
            with closing(plain(path)) as other:
                other.execute("BEGIN IMMEDIATE")
                for n in range(3):
                    with pytest.raises(Unavailable):
                        await put(store, A, str(n).encode())
                other.execute("ROLLBACK")
            await put(store, A, b"t")
        assert [record.levelname for record in caplog.records if record.name.startswith("httppubsub")] == [
            "ERROR",
            "WARNING",
        ]

    async def test_a_mistake_of_ours_is_not_blamed_on_the_database(self, path: Path) -> None:
        async with one_connection(path) as (store, file):
            with pytest.raises(sqlite3.OperationalError, match="no such table"):
                await file.run(lambda db: db.execute("SELECT * FROM nowhere"))
            with pytest.raises(ZeroDivisionError):
                await file.run(lambda _: 1 // 0)
            await put(store, A, b"t")


def insert(key: str) -> str:
    return f"INSERT INTO subscription_changes (subscription_id) VALUES ('{key}')"


class TestTransactions:
    async def test_one_that_fails_in_the_middle_is_undone_and_its_companions_are_not(self, path: Path) -> None:
        def fails(db: sqlite3.Connection) -> None:
            db.execute(insert("b"))
            raise KeyError("b")

        async with one_connection(path) as (_, file):
            works = [lambda db: db.execute(insert("a")).rowcount, fails, lambda db: db.execute(insert("c")).rowcount]
            first, second, third = await file.transact(works, durable=True)
            assert (first, third) == (1, 1)
            assert isinstance(second.error, KeyError)
            rows = await file.run(lambda db: db.execute("SELECT subscription_id FROM subscription_changes").fetchall())
            assert rows == [("a",), ("c",)]

    async def test_a_fault_of_the_disk_in_the_middle_undoes_all_of_it(self, path: Path) -> None:
        def breaks(db: sqlite3.Connection) -> None:
            db.execute(insert("b"))
            fault = sqlite3.OperationalError("disk I/O error")
            fault.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
            raise fault

        async with one_connection(path) as (_, file):
            with pytest.raises(Unavailable, match="disk"):
                await file.transact([lambda db: db.execute(insert("a")), breaks], durable=True)
            assert await file.run(lambda db: db.in_transaction) is False
            assert (
                await file.run(lambda db: db.execute("SELECT subscription_id FROM subscription_changes").fetchall())
                == []
            )

    async def test_no_transaction_stays_open(self, path: Path) -> None:
        async with one_connection(path) as (store, file):

            async def none_is_open() -> bool:
                return not await file.run(lambda db: db.in_transaction)

            await store.changes_since(0)
            assert await none_is_open()
            with closing(plain(path)) as other:
                other.execute("BEGIN IMMEDIATE")
                with pytest.raises(Unavailable):
                    await put(store, A, b"t")
                assert await none_is_open()
            for steps in range(30):
                call = asyncio.create_task(put(store, A, str(steps).encode()))
                for _ in range(steps % 5):
                    await asyncio.sleep(0)
                call.cancel()
                await asyncio.wait({call})
                assert await none_is_open()


def ended(thread: threading.Thread) -> bool:
    """It ends by itself, very soon if not already."""
    thread.join(10)
    return not thread.is_alive()


@contextmanager
def without_privileges() -> Iterator[None]:
    """Root may write everywhere; so be somebody else for a moment."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
