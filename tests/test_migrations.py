"""The schema as a row of numbered steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from httppubsubclient.protocol.errors import ConfigurationError
from httppubsubserver.migrations import Applied, Migration, find_migrations, missing_migrations

ROOT = Path(__file__).parent.parent

ONE = Migration(1, "0001_one", "CREATE TABLE one (x);\n")
TWO = Migration(2, "0002_two", "CREATE TABLE two (x);\n")


def applied(migration: Migration) -> Applied:
    return Applied(migration.number, migration.name, migration.checksum)


def write(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text(f"-- {folder.parent.name}\n")


def test_every_dialect_has_the_same_names() -> None:
    names = {
        folder.name: [migration.name for migration in find_migrations(folder.name)]
        for folder in (ROOT / "migrations").iterdir()
    }
    assert "sqlite" in names
    assert all(each == names["sqlite"] for each in names.values())


def test_those_in_the_package_are_taken_before_those_of_a_checkout(tmp_path: Path) -> None:
    package = tmp_path / "package"
    write(tmp_path / "migrations" / "sqlite", "0001_x.sql")
    package.mkdir()
    assert find_migrations("sqlite", package=package) == (Migration(1, "0001_x", "-- migrations\n"),)
    write(package / "_migrations" / "sqlite", "0001_x.sql")
    assert find_migrations("sqlite", package=package) == (Migration(1, "0001_x", "-- _migrations\n"),)


def test_an_installation_without_them_says_where_they_should_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"_migrations/sqlite.*install httppubsub again"):
        find_migrations("sqlite", package=tmp_path / "package")


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ([], "no migrations"),
        (["0002_x.sql"], "without gaps"),
        (["0001_x.sql", "0003_x.sql"], "without gaps"),
        (["0001_x.sql", "0001_y.sql"], "without gaps"),
        (["1_x.sql"], "should be named"),
        (["0001-x.sql"], "should be named"),
    ],
)
def test_they_are_numbered_from_one_without_gaps(tmp_path: Path, names: list[str], says: str) -> None:
    write(tmp_path / "migrations" / "sqlite", *names)
    with pytest.raises(ConfigurationError, match=says):
        find_migrations("sqlite", package=tmp_path / "package")


def test_the_checksum_is_of_the_text_however_its_lines_end(tmp_path: Path) -> None:
    folder = tmp_path / "migrations" / "sqlite"
    folder.mkdir(parents=True)
    (folder / "0001_one.sql").write_bytes(ONE.sql.replace("\n", "\r\n").encode())
    [found] = find_migrations("sqlite", package=tmp_path / "package")
    assert found.checksum == ONE.checksum
    assert found.checksum != TWO.checksum


@pytest.mark.parametrize(
    ("taken", "missing"),
    [
        ([], (ONE, TWO)),
        ([applied(ONE)], (TWO,)),
        ([applied(ONE), applied(TWO)], ()),
        ([applied(TWO), applied(ONE)], ()),
    ],
)
def test_what_a_database_has_not_taken_is_missing(taken: list[Applied], missing: tuple[Migration, ...]) -> None:
    assert missing_migrations([ONE, TWO], taken) == missing


@pytest.mark.parametrize(
    ("taken", "says"),
    [
        ([applied(ONE), applied(TWO), Applied(3, "0003_three", "00")], r"newer.*0003_three.*0002_two.*upgrade"),
        ([applied(ONE)._replace(checksum="00" * 32)], r"0001_one is not the one"),
        ([applied(ONE)._replace(name="0001_other")], r"0001_other where this program has 0001_one"),
        ([applied(TWO)], r"0002_two where this program has 0001_one"),
        ([applied(ONE), Applied(3, "0003_three", "00")], r"0003_three where this program has 0002_two"),
    ],
)
def test_a_database_with_anything_else_is_refused(taken: list[Applied], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        missing_migrations([ONE, TWO], taken)
