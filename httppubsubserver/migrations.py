"""The schema as a row of numbered steps: finds them, and says which ones a database still needs.

A migration is a file `migrations/<dialect>/NNNN_words.sql`, numbered from 0001 without gaps, with the same names in
every dialect. What was released is never edited: a database remembers the SHA-256 of each file it has taken.
In a wheel the files lie in `httppubsubserver/_migrations/<dialect>/` (with the underscore, because a folder beside
this module and with its name would hide it); in a checkout they lie at the top level, beside the package.

How they are applied is each store's own business, but always alike: all that is missing in one transaction, under a
lock that lets one process do it and the others find it done.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from httppubsubclient.protocol.errors import ConfigurationError

__all__ = ["Applied", "Migration", "find_migrations", "missing_migrations"]

_FILE_NAME = re.compile(r"(?P<number>[0-9]{4})_[a-z0-9_]+", re.ASCII)
_PACKAGE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of the schema."""

    number: int
    name: str
    """As the file is named, without `.sql`: `0001_subscriptions`."""
    sql: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the text in hexadecimal; how the lines of the file end plays no part."""
        return hashlib.sha256(self.sql.encode("utf-8")).hexdigest()


class Applied(NamedTuple):
    """What a database remembers of a migration it has taken."""

    number: int
    name: str
    checksum: str


def find_migrations(dialect: str, *, package: Path = _PACKAGE) -> tuple[Migration, ...]:
    """The migrations of `dialect` in their order. `package` is the folder of the package that brings them.

    Raises `ConfigurationError` when there are none, or when they are not numbered 1, 2, 3, ...
    """
    places = (package / "_migrations" / dialect, package.parent / "migrations" / dialect)
    folder = next((place for place in places if place.is_dir()), None)
    if folder is None:
        raise ConfigurationError(
            f"the {dialect} migrations are missing: neither {places[0]} (an installed package) nor {places[1]} "
            "(a checkout) exists; install httppubsub again"
        )
    found = tuple(_read(path) for path in sorted(folder.glob("*.sql")))
    if not found or [migration.number for migration in found] != list(range(1, len(found) + 1)):
        names = ", ".join(migration.name for migration in found) or "no migrations"
        raise ConfigurationError(
            f"{folder} should hold migrations numbered 0001, 0002, ... without gaps; it has {names}"
        )
    return found


def missing_migrations(known: Sequence[Migration], applied: Iterable[Applied]) -> tuple[Migration, ...]:
    """Those of `known` that a database has not taken yet; what it has taken must be where `known` begins.

    Raises `ConfigurationError` for a database that a newer version has migrated, or one whose migrations are not
    those that this version knows under their numbers.
    """
    taken = sorted(applied)
    for position, step in enumerate(taken):
        if position >= len(known):
            raise ConfigurationError(
                f"the database is newer than this program: it has migration {taken[-1].name}, and the last one known "
                f"here is {known[-1].name if known else 'none'}; upgrade httppubsub, or restore an older backup"
            )
        expected = known[position]
        if (step.number, step.name) != (expected.number, expected.name):
            raise ConfigurationError(
                f"the database has migration {step.name} where this program has {expected.name}; it was made by "
                "another program, or by a version that was never released"
            )
        if step.checksum != expected.checksum:
            raise ConfigurationError(
                f"migration {step.name} is not the one that the database was migrated with (SHA-256 "
                f"{expected.checksum[:12]}..., applied was {step.checksum[:12]}...); a released migration is never "
                "edited: install the version of httppubsub that made the database, or a later release"
            )
    return tuple(known[len(taken) :])


def _read(path: Path) -> Migration:
    named = _FILE_NAME.fullmatch(path.stem)
    if named is None:
        raise ConfigurationError(f"{path} should be named like 0001_subscriptions.sql")
    return Migration(int(named["number"]), path.stem, path.read_text(encoding="utf-8"))
