"""What a torture consists of: who publishes, who subscribes, who dies how; drawn from a seed."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from tests.e2e.torture.broadcasters import Death, deaths_of
from tests.e2e.torture.old_database import statements_to_come

__all__ = ["LIVING_POINTS", "Pattern", "Plan", "SubscriberPlan", "buggy_plan", "short_plan", "soak_plan"]

LIVING_POINTS = ("after-commit", "after-claim", "before-settle", "during-commit", "torn-commit")
"""Of points.py, those that come again and again; a database is migrated once."""

RETRY_SCHEDULE_SECONDS = (0, 0.1, 0.2, 0.3, 0.5, 0.5, *([1] * 58))
"""As long as one may be: nothing shall be given up here."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """What a subscriber asks for: `kind` is `topic` or `glob`."""

    kind: str
    text: str
    ordered: bool = False


@dataclass(frozen=True, slots=True)
class SubscriberPlan:
    """One process with an endpoint of its own; see subscriber.py."""

    name: str
    patterns: tuple[Pattern, ...]
    misdeeds: Mapping[str, int | None] = field(default_factory=dict)
    chance: float = 0.0
    restarts: bool = False
    """It is killed and started again, again and again."""
    client: bool = False
    """It is our own client, with a durable name, and its one pattern a glob; see client_subscriber.py."""
    late: bool = False
    """It subscribes while the broadcaster dies and comes back."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One run."""

    seed: str
    deaths: Iterable[Death]
    subscribers: tuple[SubscriberPlan, ...]
    publishers: tuple[tuple[str, ...], ...]
    """The options of each, see publisher.py."""
    serve: tuple[str, ...] = ()
    """Further settings of the broadcasters."""
    bug: str | None = None
    broadcasters: int = 1
    """On one database, each with a port and deaths of its own."""
    workers: bool = False
    """And one more, which is started as people start it, with several workers (workers.py)."""
    zombies: bool = False
    """Broadcasters are stopped for a while, and go on later as if nothing had been."""
    minutes: float | None = None
    """The deaths end then, however many there are."""
    migrating_deaths: tuple[int, ...] = ()
    """Before all else an old database is migrated, and each try but the last dies before this statement."""
    lease_seconds: float | None = None
    """See faulty_serve.py; None: as the settings say."""
    drain_seconds: float = 60.0
    """How long it may take at most until nothing is owed any more."""


CLIENTS = (
    SubscriberPlan("client-ordered", (Pattern("glob", "a/*", ordered=True),), client=True),
    SubscriberPlan("client-mortal", (Pattern("glob", "**"),), client=True, restarts=True),
)
TOPICS = ("a/1", "a/2", "b/1")
SHORT_LEASE_SECONDS = 1.2
SOAK_LEASE_SECONDS = 2.5
"""Zombies are away for shorter and for longer."""
SERVE = ("--attempt-timeout-seconds", "0.5", "--notify-timeout-seconds", "2", "--log-level", "warning")


def subscribers_of(misdeeds: Mapping[str, int | None], chance: float) -> tuple[SubscriberPlan, ...]:
    """The company that every run has: good, bad, mortal, with an order, and late."""
    return (
        SubscriberPlan("steady", (Pattern("glob", "**"),)),
        SubscriberPlan("bad", (Pattern("glob", "a/*"), Pattern("topic", "b/1", ordered=True)), misdeeds, chance),
        SubscriberPlan("mortal", (Pattern("topic", "a/1"), Pattern("topic", "b/1")), restarts=True),
        SubscriberPlan("orderly", (Pattern("glob", "a/*", ordered=True),), misdeeds, chance),
        SubscriberPlan("late", (Pattern("glob", "b/*"), Pattern("topic", "a/2", ordered=True)), late=True),
    )


def short_plan(seed: str) -> Plan:
    """Every point, and some seconds."""
    chance = random.Random(seed)
    return Plan(
        seed,
        deaths_of(chance, LIVING_POINTS, at_random=3, within_seconds=10.0),
        subscribers_of({"error": 3, "busy": 1, "hang": 1, "close": 3, "slow": 3}, 0.2),
        (
            ("--topics", ",".join(TOPICS), "--pause", "0.02"),
            ("--topics", ",".join(TOPICS), "--pause", "0.02", "--keys", "--tries", "20"),
        ),
        serve=SERVE,
        lease_seconds=SHORT_LEASE_SECONDS,
        migrating_deaths=(chance.randint(2, statements_to_come()),),
    )


def buggy_plan(seed: str, bug: str) -> Plan:
    """Enough for a checker to notice a broadcaster with this bug (bugs.py)."""
    return Plan(
        seed,
        [Death(within_seconds=0.3)],
        (SubscriberPlan("bad", (Pattern("glob", "**"),), {"error": 5}, 0.5),),
        (("--topics", ",".join(TOPICS), "--pause", "0.02", "--large-every", "0"),),
        serve=SERVE,
        lease_seconds=SHORT_LEASE_SECONDS,
        bug=bug,
    )


def soak_plan(seed: str, minutes: float) -> Plan:
    """Three broadcasters on one database, zombies among them, and a death before each statement of the migration."""
    chance = random.Random(seed)
    return Plan(
        seed,
        _endless_deaths(chance),
        (*subscribers_of(dict.fromkeys(("error", "busy", "hang", "close", "slow")), 0.05), *CLIENTS),
        (
            ("--topics", ",".join(TOPICS), "--pause", "0.01"),
            ("--topics", ",".join(TOPICS), "--pause", "0.01"),
            ("--topics", ",".join(TOPICS), "--pause", "0.01", "--keys"),
        ),
        serve=SERVE,
        lease_seconds=SOAK_LEASE_SECONDS,
        broadcasters=2,
        workers=True,
        zombies=True,
        minutes=minutes,
        migrating_deaths=tuple(range(1, statements_to_come() + 1)),
        drain_seconds=300.0,
    )


def _endless_deaths(chance: random.Random) -> Iterator[Death]:
    """For a run that ends by time."""
    while True:
        yield from deaths_of(chance, LIVING_POINTS, at_random=8, within_seconds=4.0)
