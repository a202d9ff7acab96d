"""Durable delivery in SQLite: what is looked at, what a kill leaves, who may claim at once, trouble with the disk."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from httppubsubclient.protocol.errors import Unavailable
from httppubsubserver.migrations import find_migrations
from httppubsubserver.stores import sqlite_claims as claims
from httppubsubserver.stores import sqlite_deliveries as looking
from httppubsubserver.stores.durable import CHUNK_BYTES, Publication, Selection, Terms
from httppubsubserver.stores.sqlite import open_sqlite
from httppubsubserver.stores.sqlite_file import migrate
from tests.stores.conftest import NOW, asking
from tests.stores.durable_stores import (
    ENDPOINT,
    OTHER,
    accept_all,
    again,
    claim,
    dead,
    delivered,
    durable,
    ids,
    listed,
    publication,
    settle,
    told,
    work_off,
)
from tests.stores.test_sqlite import ROOT, one_connection, plain


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "pubsub.sqlite3"


@pytest.fixture
def url(path: Path) -> str:
    return f"sqlite:///{path}"


class TestPlans:
    """What a statement looks at, as SQLite itself says: SEARCH is along an index, SCAN is all of it."""

    @pytest.fixture
    def db(self, path: Path) -> Iterator[sqlite3.Connection]:
        with closing(plain(path)) as db:
            migrate(db, find_migrations("sqlite"))
            yield db

    def plan(self, db: sqlite3.Connection, sql: str) -> list[str]:
        parameters = (1,) * sql.count("?")
        return [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {sql}", parameters)]

    def test_a_claim_sees_no_row_of_another_endpoint_and_none_that_is_not_due(self, db: sqlite3.Connection) -> None:
        assert self.plan(db, claims.TO_CLAIM) == [
            "SEARCH d USING INDEX deliveries_to_claim (endpoint=? AND due_at<?)",
            "SEARCH s USING PRIMARY KEY (id=?) LEFT-JOIN",
        ]

    def test_turns_are_taken_along_their_index(self, db: sqlite3.Connection) -> None:
        assert self.plan(db, claims.READY) == ["SEARCH endpoints USING INDEX endpoints_by_turn (ready_at<?)"]

    def test_the_head_of_an_ordered_subscription_is_found_at_once(self, db: sqlite3.Connection) -> None:
        assert self.plan(db, claims.IN_ORDER) == [
            "SEARCH deliveries USING INDEX deliveries_in_order (subscription_id=? AND state=?)"
        ]

    def test_of_others_nothing_is_looked_at(self, db: sqlite3.Connection) -> None:
        for where in ("= ?", "IS NULL"):
            own = looking._OWN.format(join="", whose=where)
            assert self.plan(db, f"{own} AND s.id >= ? ORDER BY s.id") == [
                "SEARCH s USING INDEX subscriptions_durable_by_owner (owner=? AND id>?)"
            ]
        one = f"{looking._SELECT} {looking._WITH} WHERE d.message = ? AND d.subscription_id = ? AND +d.sequence > ?"
        assert self.plan(db, one)[0] == "SEARCH d USING PRIMARY KEY (message=? AND subscription_id=?)"

    async def test_nothing_that_is_called_again_and_again_goes_through_a_table(self, path: Path) -> None:
        """Each statement of a whole life of deliveries; only what counts or begins at the first row may scan."""
        statements: set[str] = set()
        async with one_connection(path) as (store, file):
            subscribers = [await durable(store, ordered=True), await durable(store, OTHER)]
            await file.run(lambda db: db.set_trace_callback(statements.add))
            await accept_all(store, ["m1", "m2", "m3"], subscribers)
            first, second, third, _ = await claim(store)
            await settle(store, delivered(first), again(second), dead(third))
            await store.extend([second.held], until=NOW, now=NOW)
            await store.block_endpoint(ENDPOINT, until=NOW, now=NOW)
            await store.next_due()
            await store.messages_after(subscribers[0], 1, limit=10, now=NOW)
            await store.notice_clock(now=NOW)
            await file.run(lambda db: db.set_trace_callback(None))
        with closing(plain(path)) as db:
            scans = {
                (line, sql)
                for sql in statements
                if sql.startswith(("SELECT", "UPDATE", "DELETE", "INSERT"))
                for (*_, line) in db.execute(f"EXPLAIN QUERY PLAN {sql}")
                if line.startswith("SCAN") and "json_each" not in line and "CONSTANT ROW" not in line
            }
        assert {line for line, _ in scans} <= {
            "SCAN endpoints USING INDEX endpoints_by_turn",  # of next_due, which stops at the first
            "SCAN clock",  # has one row
        }, scans

    async def test_the_backlog_of_one_endpoint_costs_the_others_no_steps(self, path: Path) -> None:
        """Steps of SQLite's virtual machine, counted: a claim beside 20,000 deliveries that are due elsewhere."""
        steps = 0

        def step() -> int:
            nonlocal steps
            steps += 1
            return 0

        async with one_connection(path) as (store, file):
            slow, quick = await durable(store), await durable(store, OTHER)

            async def counted(now: int) -> int:
                nonlocal steps
                await store.accept(publication(f"quick{now}", [quick]), now=now)
                await file.run(lambda db: db.set_progress_handler(step, 10))
                steps = 0
                claimed = await store.claim(terms_without_slow(now), now=now)
                await file.run(lambda db: db.set_progress_handler(None, 0))
                assert ids(claimed.deliveries) == [f"quick{now}"]
                await settle(store, *map(delivered, claimed.deliveries), now=now)
                return steps

            await accept_all(store, ["one"], [slow])
            alone = await counted(NOW)
            await asyncio.gather(*(store.accept(publication(f"m{n}", [slow]), now=NOW) for n in range(9_000)))
            assert await counted(NOW + 1) <= alone + 2


def terms_without_slow(now: int) -> Terms:
    return Terms("node", now + 60_000_000, 100, 8, {ENDPOINT: 0})


_DIES = """
import asyncio, os, signal, sqlite3, sys
from httppubsubserver.stores.sqlite import open_sqlite
from tests.stores.durable_stores import durable, publication
from tests.stores.conftest import NOW

async def main(url, kill_at):
    steps = 0
    def step():
        nonlocal steps
        steps += 1
        if steps == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return 0
    async with open_sqlite(url) as store:
        subscribers = [await durable(store, f"http://{n}.example/") for n in range(3)]
        async def publish(n):
            accepted = await store.accept(publication(f"m{n}", subscribers), now=NOW)
            os.write(1, f"m{n} {accepted.deliveries}\\n".encode())
        await publish("first")
        await store._calls(store_call(lambda db: db.set_progress_handler(step, 25)))
        for round in range(40):
            await asyncio.gather(*(publish(f"{round}_{n}") for n in range(5)))

def store_call(work):
    from httppubsubserver.stores.sqlite_durable import _Call, _Step
    return _Call(_Step.OTHERS, False, work)

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


class TestKilled:
    @pytest.mark.parametrize("kill_at", [1, 7, 40, 133, 500, 901])
    async def test_inside_a_commit_nothing_that_was_answered_is_lost_and_nothing_is_half(
        self, url: str, kill_at: int
    ) -> None:
        died = subprocess.run(
            [sys.executable, "-c", _DIES, url, str(kill_at)], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert died.returncode == -signal.SIGKILL, died.stderr
        answered = {line.split()[0] for line in died.stdout.splitlines()}
        assert "mfirst" in answered
        async with open_sqlite(url) as store:
            rows = await listed(store)
            there = {row.message_id for row in rows}
            assert there >= answered
            assert len(rows) == 3 * len(there), "each message with all of its deliveries"
            for subscriber in {row.subscription_id for row in rows}:
                own = sorted(row.sequence for row in rows if row.subscription_id == subscriber)
                assert own == list(range(1, len(there) + 1))
            claimed = await claim(store, at_most=1000, per_endpoint=1000)
            assert len(claimed) == len(rows)
            assert all(each.message.body == b"data" for each in claimed)


_CLAIMS = """
import asyncio, os, sys
from httppubsubserver.stores.sqlite import open_sqlite
from tests.stores.durable_stores import claim
from tests.stores.conftest import NOW

async def main(url, holder):
    async with open_sqlite(url) as store:
        print("open", flush=True)
        sys.stdin.readline()
        while claimed := await claim(store, holder=holder, at_most=7, per_endpoint=3):
            print(*(f"{each.held.message}/{each.held.subscription_id}" for each in claimed), flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_whose_a_subscription_was_is_forgotten_with_its_last_delivery(path: Path, url: str) -> None:
    async with open_sqlite(url) as store:
        ids_of_owners = {}
        for owner in ("me", "them", "nothing", None):
            request = replace(asking(f"http://{owner}.example/", b"t"), delivery="durable")
            ids_of_owners[owner] = (await store.subscribe(request, now=NOW, owner=owner))[0].id
        me, them, nothing, nobody = ids_of_owners.values()
        await accept_all(store, ["m1", "m2"], [me, nobody])
        await accept_all(store, ["m3"], [them, nobody])
        await settle(store, *map(delivered, await claim(store)))
        for each in (me, them, nothing, nobody):
            await store.unsubscribe(each, now=NOW)
        with closing(plain(path)) as db:
            assert dict(db.execute("SELECT id, owner FROM gone_subscriptions")) == {me: "me", them: "them"}
            await store.prune_messages(now=NOW + 9, bodies_before=NOW + 9, messages_before=NOW + 9)
            assert dict(db.execute("SELECT id, owner FROM gone_subscriptions")) == {them: "them"}, "m3 was the last"


async def test_a_replay_with_a_place_of_an_earlier_version_begins_anew(path: Path, url: str) -> None:
    async with open_sqlite(url) as store:
        request = replace(asking(ENDPOINT, b"t"), delivery="durable")
        mine, _ = await store.subscribe(request, now=NOW, owner="me")
        await accept_all(store, ["m"], [mine.id])
        await settle(store, *map(dead, await claim(store)))
        replay = await store.replay(Selection(accepted_from=0, owner="me"), now=NOW)
        with closing(plain(path)) as db, db:
            db.execute("UPDATE replays SET place = ?", (f'[{NOW}, 1, "{mine.id}"]',))
        assert await work_off(store) == 1
        finished = await store.replay_progress(replay.number)
        assert finished is not None
        assert (finished.replayed, finished.finished_at) == (1, NOW)


async def test_two_processes_that_claim_at_once_never_hold_one_delivery_together(url: str) -> None:
    async with open_sqlite(url) as store:
        subscribers = [await durable(store, f"http://{n}.example/") for n in range(10)]
        await accept_all(store, [f"m{n}" for n in range(100)], subscribers)
        others = [
            await asyncio.create_subprocess_exec(
                sys.executable, "-W", "error", "-c", _CLAIMS, url, holder, cwd=ROOT,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            )
            for holder in ("one", "two")
        ]  # fmt: skip
        try:
            for other in others:
                assert other.stdout is not None
                assert await other.stdout.readline() == b"open\n"
            told = await asyncio.gather(*(other.communicate(b"go\n") for other in others))
        finally:
            for other in others:
                if other.returncode is None:
                    other.kill()
                    await other.wait()
        claimed = [out.decode().split() for out, _ in told]
        assert not set(claimed[0]) & set(claimed[1])
        assert len(claimed[0]) + len(claimed[1]) == len({*claimed[0], *claimed[1]}) == 1000
        rows = await listed(store)
        assert all(row.attempts == 1 and row.leased_until for row in rows)


class TestFaults:
    async def test_a_full_disk_accepts_nothing_and_passes(self, path: Path) -> None:
        async with one_connection(path) as (store, file):
            subscriber = await durable(store)
            pages = await file.run(lambda db: db.execute("PRAGMA page_count").fetchone()[0])
            await file.run(lambda db: db.execute(f"PRAGMA max_page_count = {pages + 2}").fetchone())
            body = bytes(100_000)
            calls = (store.accept(publication(f"m{n}", [subscriber], body), now=NOW) for n in range(3))
            answers = await asyncio.gather(*calls, return_exceptions=True)
            assert [type(each) for each in answers] == [Unavailable] * 3
            with pytest.raises(Unavailable, match="full"):
                await store.write_chunk("large", 0, bytes(CHUNK_BYTES), now=NOW)
            assert await listed(store) == []
            assert await claim(store) == ()
            await file.run(lambda db: db.execute("PRAGMA max_page_count = 100000").fetchone())
            assert (await store.accept(publication("m0", [subscriber], body), now=NOW)).deliveries == 1
            [row] = await listed(store)
            assert row.sequence == 1

    async def test_a_lock_accepts_nothing_and_passes(self, path: Path, url: str) -> None:
        async with open_sqlite(url, lock_timeout_seconds=0.01) as store:
            subscriber = await durable(store)
            await accept_all(store, ["m0"], [subscriber])
            [claimed] = await claim(store)
            with closing(plain(path)) as other:
                other.execute("BEGIN IMMEDIATE")
                for call in (
                    store.accept(publication("m", [subscriber]), now=NOW),
                    store.settle([delivered(claimed)], now=NOW),
                    store.claim(terms_without_slow(NOW), now=NOW),
                ):
                    with pytest.raises(Unavailable, match="locked"):
                        await call
                [row] = await listed(store)
                assert (row.message_id, row.state) == ("m0", "pending")
                other.execute("ROLLBACK")
            assert await settle(store, delivered(claimed)) == [True]
            assert (await store.accept(publication("m", [subscriber]), now=NOW)).deliveries == 1

    async def test_a_read_only_database_accepts_nothing_and_passes(self, path: Path) -> None:
        async with one_connection(path) as (store, file):
            subscriber = await durable(store)
            await file.run(lambda db: db.execute("PRAGMA query_only = ON").fetchone())
            with pytest.raises(Unavailable, match="read-only"):
                await store.accept(publication("m", [subscriber]), now=NOW)
            await file.run(lambda db: db.execute("PRAGMA query_only = OFF").fetchone())
            assert (await store.accept(publication("m", [subscriber]), now=NOW)).deliveries == 1


class TestFlushing:
    async def test_what_is_promised_to_last_is_flushed_and_leases_are_not(self, path: Path) -> None:
        async with one_connection(path) as (store, file):

            async def synchronous() -> str:
                level = await file.run(lambda db: db.execute("PRAGMA synchronous").fetchone()[0])
                return {1: "normal", 2: "full"}[level]

            subscriber = await durable(store)
            pieces = [b"x" * CHUNK_BYTES, b"y"]
            for position, piece in enumerate(pieces):
                await store.write_chunk("large", position, piece, now=NOW)
                assert await synchronous() == "normal"
            await store.accept(Publication(told("large", b"".join(pieces)), None, [subscriber]), now=NOW)
            assert await synchronous() == "full"
            [claimed] = await claim(store)
            assert await synchronous() == "normal"
            await settle(store, dead(claimed))
            assert await synchronous() == "normal"
            await store.replay(Selection(), now=NOW)
            assert await synchronous() == "full"

    async def test_calls_at_the_same_time_share_a_transaction(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with one_connection(path) as (store, file):
            subscriber = await durable(store)
            sizes = []
            transact = file.transact

            async def counted(works: list[object], *, durable: bool) -> list[object]:
                sizes.append(durable)
                return await transact(works, durable=durable)  # type: ignore[arg-type]

            monkeypatch.setattr(file, "transact", counted)
            await asyncio.gather(*(store.accept(publication(f"m{n}", [subscriber]), now=NOW) for n in range(100)))
            assert sizes == [True]
