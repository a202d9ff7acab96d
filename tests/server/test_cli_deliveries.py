"""`httppubsubserver deliveries`: what is typed, what is printed, the exit status, and what is left alone."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from httppubsubserver.cli import main
from httppubsubserver.stores import open_store
from httppubsubserver.stores.durable import Attempt, DurableStore, Settlement
from tests.stores.conftest import NOW, SECOND
from tests.stores.durable_stores import accept_all, claim, delivered, durable, listed, publication, settle

Fill = Callable[[Callable[[DurableStore], Awaitable[Any]]], Any]


@pytest.fixture(autouse=True)
def nothing_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("HTTPPUBSUB_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def db(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/pubsub.sqlite3"


@pytest.fixture
def fill(db: str) -> Fill:
    """Do something with the database, as a broadcaster that has ended since."""

    def fill(work: Callable[[DurableStore], Awaitable[Any]]) -> Any:
        async def run() -> Any:
            async with open_store(db) as store:
                return await work(store)

        return asyncio.run(run())

    return fill


@pytest.fixture
def at_that_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The present of the stored moments."""
    monkeypatch.setattr("httppubsubserver.cli_deliveries.time.time", lambda: NOW / SECOND)


async def three_of_each(store: DurableStore) -> tuple[str, str]:
    """Messages m0, m1, m2, a second apart: m0 dead for one subscription, all others pending."""
    one, other = await durable(store), await durable(store, "http://b.example/")
    for n in range(3):
        await store.accept(publication(f"m{n}", [one, other]), now=NOW + n * SECOND)
    attempt = Attempt(NOW, NOW + SECOND // 4, 500, None, b"\x1b[31mred\xff\n")
    first = next(each for each in await claim(store, per_endpoint=1) if each.held.subscription_id == one)
    await settle(store, Settlement(first.held, "dead", attempt, reason="exhausted"))
    return one, other


def ran(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[list[str], str]:
    """Its lines on stdout and what it says on stderr."""
    assert main(["deliveries", *arguments]) == 0
    output = capsys.readouterr()
    return output.out.splitlines(), output.err


def failed(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 1) -> str:
    if status == 2:
        with pytest.raises(SystemExit) as caught:
            main(["deliveries", *arguments])
        assert caught.value.code == 2
    else:
        assert main(["deliveries", *arguments]) == status
    output = capsys.readouterr()
    assert output.out == ""
    return output.err


# -- list -------------------------------------------------------------------------------------------------------------


def test_a_table_for_people(fill: Fill, db: str, capsys: pytest.CaptureFixture[str]) -> None:
    one, _ = fill(three_of_each)
    lines, errors = ran(capsys, "list", "--db", db)
    assert errors == ""
    assert lines[0].split() == ["ACCEPTED", "(UTC)", "MESSAGE", "SUBSCRIPTION", "STATE", "ATT", "STATUS", "WHAT"]
    assert len(lines) == 7
    [dead] = [line for line in lines if " dead " in line]
    assert dead.split() == [
        *("2027-01-15", "08:00:00", "m0", one, "dead", "1", "500", "exhausted", "t%FF", "http://a.example:3002/pubsub"),
    ]
    assert sum(" under way " in line for line in lines) == 1
    assert sum(" due 2027-01-15 08:00:0" in line for line in lines) == 4


def test_an_object_in_each_line_for_programs(fill: Fill, db: str, capsys: pytest.CaptureFixture[str]) -> None:
    one, _ = fill(three_of_each)
    lines, _ = ran(capsys, "list", "--db", db, "--json", "--state", "dead")
    [document] = [json.loads(line) for line in lines]
    assert (document["message_id"], document["subscription_id"], document["topic_b64"]) == ("m0", one, "dP8=")


@pytest.mark.usefixtures("at_that_time")
def test_it_selects_what_is_asked_for(fill: Fill, db: str, capsys: pytest.CaptureFixture[str]) -> None:
    one, _ = fill(three_of_each)

    def found(*arguments: str) -> list[str]:
        return [json.loads(line)["message_id"] for line in ran(capsys, "list", "--db", db, "--json", *arguments)[0]]

    assert found("--subscription", one) == ["m2", "m1", "m0"]
    assert found("--message", "m1") == ["m1", "m1"]
    assert found("--from", "2027-01-15T08:00:01Z", "--until", "2027-01-15T08:00:02Z") == ["m1", "m1"]
    assert found("--state", "pending", "--message", "m0") == ["m0"]
    assert found("--until", "1s", "--from", "7d") == []
    assert len(found("--from", "90m")) == 6


def test_a_limit_says_when_there_are_more(fill: Fill, db: str, capsys: pytest.CaptureFixture[str]) -> None:
    async def many(store: DurableStore) -> None:
        await accept_all(store, [f"m{n}" for n in range(250)], [await durable(store)])

    fill(many)
    for arguments, count, more in [
        (["--limit", "3"], 3, True),
        (["--limit", "250"], 250, False),
        (["--limit", "999"], 250, False),
        ([], 100, True),
        (["--all"], 250, False),
    ]:
        lines, errors = ran(capsys, "list", "--db", db, "--json", *arguments)
        assert (len(lines), "--all" in errors) == (count, more)


def test_nothing_is_no_error(fill: Fill, db: str, capsys: pytest.CaptureFixture[str]) -> None:
    fill(three_of_each)
    assert ran(capsys, "list", "--db", db, "--state", "cancelled") == ([], "there are no such deliveries\n")


# -- show -------------------------------------------------------------------------------------------------------------


def test_a_message_with_its_attempts(fill: Fill, db: str, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = fill(three_of_each)
    lines, _ = ran(capsys, "show", "m0", "--db", db)
    assert lines[:4] == [
        "message    m0",
        "topic      t%FF",
        "body       4 bytes of text/plain",
        "accepted   2027-01-15 08:00:00",
    ]
    at = lines.index(f"{one}  number 1  http://a.example:3002/pubsub")
    assert lines[at + 1 : at + 3] == [
        "  dead, exhausted, attempts: 1",
        r"  failed 1: 2027-01-15 08:00:00 0.250 s  status 500  \x1b[31mred\xff\n",
    ]
    at = lines.index(f"{other}  number 1  http://b.example/")
    assert lines[at + 1] == "  pending, under way, attempts: 1"
    [document] = [json.loads(line) for line in ran(capsys, "show", "m0", "--db", db, "--json")[0]]
    assert {each["subscription_id"]: len(each["failed_attempts"]) for each in document["deliveries"]} == {
        one: 1,
        other: 0,
    }


def test_a_message_with_very_many_deliveries(fill: Fill, db: str, capsys: pytest.CaptureFixture[str]) -> None:
    async def many(store: DurableStore) -> None:
        await accept_all(store, ["m"], [await durable(store, f"http://{n}.example/") for n in range(210)])

    fill(many)
    for arguments, count, more in [([], 100, True), (["--limit", "1"], 1, True), (["--all"], 210, False)]:
        lines, errors = ran(capsys, "show", "m", "--db", db, "--json", *arguments)
        assert len({each["subscription_id"] for each in json.loads(lines[0])["deliveries"]}) == count
        assert ("--all" in errors) is more


def test_an_unknown_message_ends_with_1(fill: Fill, db: str, capsys: pytest.CaptureFixture[str]) -> None:
    fill(three_of_each)
    assert failed(capsys, "show", "m9", "--db", db).startswith("httppubsubserver: there is no message 'm9'")


# -- replay -----------------------------------------------------------------------------------------------------------


async def two_dead(store: DurableStore) -> str:
    subscription_id = await durable(store, now=NOW)
    await accept_all(store, ["m0", "m1", "m2"], [subscription_id])
    for each in await claim(store):
        fate = delivered(each) if each.sequence == 3 else Settlement(each.held, "dead", Attempt(NOW, NOW, 500))
        await settle(store, fate)
    return subscription_id


async def pending(store: DurableStore) -> set[str]:
    return {each.message_id for each in await listed(store) if each.state == "pending"}


@pytest.mark.usefixtures("at_that_time")
def test_a_replay_waits_for_a_broadcaster(fill: Fill, db: str, capsys: pytest.CaptureFixture[str]) -> None:
    fill(two_dead)
    lines, _ = ran(capsys, "replay", "m0", "--db", db)
    assert lines == ["replay 1: a running broadcaster begins with it within seconds"]
    assert fill(pending) == set()
    assert fill(lambda store: store.work_off(now=NOW)) > 0
    assert fill(pending) == {"m0"}


@pytest.mark.usefixtures("at_that_time")
def test_a_replay_that_is_waited_for_needs_none(fill: Fill, db: str, capsys: pytest.CaptureFixture[str]) -> None:
    subscription_id = fill(two_dead)
    lines, _ = ran(capsys, "replay", "--subscription", subscription_id, "--wait", "--db", db)
    assert lines == ["replay 1: 2 are pending again, 0 could not be"]
    assert fill(pending) == {"m0", "m1"}
    [line], _ = ran(capsys, "replay", "m2", "--state", "delivered", "--wait", "--json", "--db", db)
    assert (json.loads(line)["replay"], json.loads(line)["replayed"]) == (2, 1)
    assert fill(pending) == {"m0", "m1", "m2"}


@pytest.mark.usefixtures("at_that_time")
def test_several_messages_or_none_of_them(fill: Fill, db: str, capsys: pytest.CaptureFixture[str]) -> None:
    fill(two_dead)
    assert "there is no message 'm9'" in failed(capsys, "replay", "m0", "m9", "--wait", "--db", db)
    assert fill(pending) == set()
    lines, _ = ran(capsys, "replay", "m0", "m1", "--from", "2027-01-15T08:00:00Z", "--wait", "--db", db)
    assert [line.partition(":")[0] for line in lines] == ["replay 1", "replay 2"]
    assert fill(pending) == {"m0", "m1"}


# -- what is refused, and what is left alone --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "required"),
        (["lost"], "invalid choice"),
        (["list", "--state", "lost"], "invalid choice"),
        (["list", "--limit", "0"], "a number, 1 or more"),
        (["list", "--limit", "many"], "a number, 1 or more"),
        (["list", "--from", "yesterday"], "a moment like"),
        (["list", "--subscription", "a b"], "id of a subscription"),
        (["list", "--message", "\x1b[2J"], r"id of a message is 1 to 64 of A-Z a-z 0-9 _ and -; got '\x1b[2J'"),
        (["list", "--from", "1h", "--until", "2h"], "from is before until"),
        (["show"], "required"),
        (["show", "a/b"], "id of a message"),
        (["replay"], "say what to replay"),
        (["replay", "--state", "dead"], "say what to replay"),
        (["replay", "m", "--state", "pending"], "invalid choice"),
        (["list", "--port", "1"], "unrecognized"),
    ],
)
def test_wrong_usage(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert words in failed(capsys, *arguments, status=2)


def test_a_database_that_is_not_there_is_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in (["list"], ["show", "m"], ["replay", "m"]):
        assert "there is no database" in failed(capsys, *arguments)
        assert "there is no database" in failed(capsys, *arguments, "--db", f"sqlite:///{tmp_path}/other.db")
    assert "does not exist" in failed(capsys, "list", "--db", f"sqlite:///{tmp_path}/no/other.db")
    assert "in memory" in failed(capsys, "list", "--db", "sqlite:///:memory:")
    assert list(tmp_path.iterdir()) == []


def test_a_database_of_another_program_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "other.db"
    path.touch()
    assert "no migration 0001" in failed(capsys, "list", "--db", f"sqlite:///{path}")
    assert path.read_bytes() == b""
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE t (a)")
    db.close()
    before = path.read_bytes()
    assert "no migration 0001" in failed(capsys, "replay", "m", "--db", f"sqlite:///{path}")
    path.write_text("hello, I am a diary, and I am long enough to be looked at" * 100)
    assert "not an SQLite file" in failed(capsys, "list", "--db", f"sqlite:///{path}")
    assert [each.name for each in tmp_path.iterdir()] == ["other.db"]
    assert before.startswith(b"SQLite format 3")


def test_an_older_database_is_not_migrated(
    fill: Fill, db: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(three_of_each)
    with sqlite3.connect(tmp_path / "pubsub.sqlite3") as connection:
        connection.execute("DELETE FROM httppubsub_migrations WHERE number >= 4")
    connection.close()
    assert "has no migration 0004_durable" in failed(capsys, "list", "--db", db)


def test_the_database_is_the_one_that_serve_would_take(
    fill: Fill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(three_of_each)
    (tmp_path / "pubsub.toml").write_text('db = "sqlite:///pubsub.sqlite3"\nport = 1\n')
    assert len(ran(capsys, "list", "--config", str(tmp_path / "pubsub.toml"))[0]) == 7
    monkeypatch.setenv("HTTPPUBSUB_CONFIG", str(tmp_path / "pubsub.toml"))
    assert len(ran(capsys, "list")[0]) == 7
    assert "there is no database" in failed(capsys, "list", "--db", f"sqlite:///{tmp_path}/other.db")
