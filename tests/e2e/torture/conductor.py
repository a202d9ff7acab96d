"""Starts everything, kills it again and again, waits until nothing is owed any more, and calls the checker.

    python -m tests.e2e.torture.conductor [--seed TEXT] [--minutes N]

1. An old database is migrated, by a broadcaster that dies in the middle of it, and then by one that does not.
2. Subscribers start and are subscribed; each subscription is written down when it is confirmed. Publishers start.
3. The broadcaster dies as planned, at named points and at random moments, and starts again each time. Mortal
   subscribers die, too.
4. The publishers stop. The broadcaster says through its API when nothing is owed any more, and what is dead.
5. The checker (a process of its own) reads the journals.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import random
import secrets
import sqlite3
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from httppubsubserver.provision import set_up
from tests.e2e.processes import DEADLINE_SECONDS, Process, running
from tests.e2e.torture.broadcasters import Broadcaster, Death
from tests.e2e.torture.journals import Journal
from tests.e2e.torture.old_database import make_old_database
from tests.e2e.torture.plans import (
    RETRY_SCHEDULE_SECONDS,
    Pattern,
    Plan,
    SubscriberPlan,
    buggy_plan,
    short_plan,
    soak_plan,
)
from tests.e2e.torture.ports import ReservedPort
from tests.e2e.torture.wire import BrokenAnswer, ask_json
from tests.e2e.torture.workers import Workers

__all__ = ["Outcome", "torture"]

ROOT = Path(__file__).parents[3]
POLL_SECONDS = 0.05
LIFE_SECONDS = (0.3, 1.0)
"""Of a mortal subscriber."""
BEFORE_A_PAUSE_SECONDS = (0.5, 3.0)
PAUSE_SECONDS = (0.5, 5.0)
"""Of a zombie: shorter and longer than a lease."""
WORKERS_LEASE_SECONDS = "10.5"
"""The shortest that the settings allow here."""
OLD_STRANGERS = 20
"""Subscriptions in the old database of which nothing else is ever asked."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a run."""

    right: bool
    """What the checker says."""
    verdict: dict[str, Any]
    """Its last line, see `checker.Report.to_json`."""
    text: str
    """All of what it printed."""
    reached: frozenset[str]
    """The points at which a broadcaster died."""
    troubles: tuple[str, ...]
    """What broadcasters have logged as errors."""


async def torture(plan: Plan, directory: Path) -> Outcome:
    """One run in this folder, which is empty."""
    async with contextlib.AsyncExitStack() as stack:
        return await Conductor(plan, directory, stack).run()


class Conductor:
    """One run. Everything that it starts ends with `stack`."""

    def __init__(self, plan: Plan, directory: Path, stack: contextlib.AsyncExitStack) -> None:
        self._plan = plan
        self._random = random.Random(plan.seed)
        self._stack = stack
        self._directory = directory
        self._journals = directory / "journals"
        self._journals.mkdir()
        set_up(
            directory,
            db=f"sqlite:///{self._database}",
            to_broadcasters="token",
            to_subscribers="hmac",
            broadcaster_urls=(),
            force=False,
        )
        self._secrets = directory / "subscriber-secrets.json"
        self._token: str = json.loads(self._secrets.read_text())["to_broadcasters"]["keys"][-1]["secret"]
        self._journal = Journal(self._journals, "conductor")
        self._subscribers = [Subscriber(each, plan.seed, self._secrets, self._journals) for each in plan.subscribers]
        self._broadcasters: list[Broadcaster | Workers] = []
        self._dying_is_over = asyncio.Event()

    @property
    def _database(self) -> Path:
        return self._directory / "torture.sqlite3"

    async def run(self) -> Outcome:
        """See above for the steps."""
        old = self._make_old_database()
        async with asyncio.TaskGroup() as group:
            for subscriber in self._subscribers:
                if not subscriber.plan.client:
                    group.create_task(subscriber.start(self._stack))
            group.create_task(self._raise_broadcasters())
        await self._migrate(old)
        for broadcaster in self._broadcasters[1:]:
            await broadcaster.begin()
        await self._subscribe_all(late=False)
        await self._start_clients()
        numbers = range(len(self._plan.publishers))
        publishers = await asyncio.gather(*(self._start_publisher(number) for number in numbers))
        await self._let_die()
        for publisher in publishers:
            assert await publisher.stop() == 0, publisher.output()
        await self._drain()
        return await self._check()

    # -- before ---------------------------------------------------------------------------------------------------

    def _make_old_database(self) -> set[str]:
        """With those that will become durable, and strangers; their ids."""
        if not self._plan.migrating_deaths:
            return set()
        wanted = [
            (subscriber.url, "exact" if pattern.kind == "topic" else "glob", pattern.text)
            for subscriber in self._subscribers
            for pattern in subscriber.plan.patterns
            if not subscriber.plan.late  # these would get best-effort deliveries until they are durable
            and not subscriber.plan.client
        ]
        wanted += [("http://127.0.0.1:9/nobody", "exact", f"nothing/{number}") for number in range(OLD_STRANGERS)]
        rows = [(f"sub_{self._random.randbytes(9).hex()}", *each) for each in wanted]
        make_old_database(self._database, rows)
        return {row[0] for row in rows}

    async def _raise_broadcasters(self) -> None:
        database = f"sqlite:///{self._database}"
        secrets_file = str(self._directory / "broadcaster-secrets.json")
        serve = ("--db", database, "--secrets", secrets_file, *self._plan.serve)
        for number in range(self._plan.broadcasters):
            raised = Broadcaster.raised(
                serve,
                self._journal,
                seed=f"{self._plan.seed}/{number}",
                lease_seconds=self._plan.lease_seconds,
                cwd=ROOT,
            )
            self._broadcasters.append(await self._stack.enter_async_context(raised))
        if self._plan.workers:
            workers = Workers.raised(
                (*serve, "--delivery-lease-seconds", WORKERS_LEASE_SECONDS), self._journal, seed=self._plan.seed
            )
            self._broadcasters.append(await self._stack.enter_async_context(workers))

    async def _migrate(self, old: set[str]) -> None:
        """Die in the middle as often as planned, then do it; whatever was in the database is still there."""
        first = self._broadcasters[0]
        for statement in self._plan.migrating_deaths:
            await first.live(Death("inside-migration", statement, within_seconds=10.0))
        await first.begin(bug=self._plan.bug)
        page = await self._ask("GET", "/v1/subscriptions?limit=1000")
        kept = {subscription["id"] for subscription in page["subscriptions"]}
        assert old <= kept, f"the migration has lost {old - kept}"

    async def _subscribe_all(self, *, late: bool) -> None:
        for subscriber in self._subscribers:
            if subscriber.plan.late == late and not subscriber.plan.client:
                for pattern in subscriber.plan.patterns:
                    await self._subscribe(subscriber, pattern)

    async def _start_clients(self) -> None:
        """They subscribe by themselves, at the broadcasters that there are."""
        async with asyncio.TaskGroup() as group:
            for subscriber in self._subscribers:
                if subscriber.plan.client:
                    subscriber.tell([broadcaster.url for broadcaster in self._broadcasters])
                    group.create_task(subscriber.start(self._stack, confirmed=True))

    async def _subscribe(self, subscriber: Subscriber, pattern: Pattern) -> None:
        wish = {
            "url": subscriber.url,
            pattern.kind: pattern.text,
            "delivery": "durable",
            "ordered": pattern.ordered,
            "retry_schedule_seconds": list(RETRY_SCHEDULE_SECONDS),
        }
        made = await self._ask("POST", "/v1/subscriptions", wish)
        self._journal.write(
            "subscribed",
            subscription=made["id"],
            kind=pattern.kind,
            pattern=pattern.text,
            subscriber=subscriber.plan.name,
            ordered=pattern.ordered,
        )

    async def _start_publisher(self, number: int) -> Process:
        urls = ",".join(broadcaster.url for broadcaster in self._broadcasters)
        given: tuple[str | Path, ...] = (
            "--name",
            f"p{number}",
            "--urls",
            urls,
            "--secrets",
            self._secrets,
            "--journals",
            self._journals,
        )
        options = (*given, "--seed", self._plan.seed, *self._plan.publishers[number])
        process = running("-m", "tests.e2e.torture.publisher", *options, cwd=ROOT)
        publisher = await self._stack.enter_async_context(process)
        await publisher.line()
        return publisher

    # -- meanwhile ------------------------------------------------------------------------------------------------

    async def _let_die(self) -> None:
        """All deaths, while mortal subscribers come and go."""
        async with asyncio.TaskGroup() as others:
            others.create_task(self._let_subscribers_die())
            others.create_task(self._subscribe_late())
            if self._plan.zombies:
                others.create_task(self._make_zombies())
            async with asyncio.TaskGroup() as group:
                for deaths, broadcaster in zip(self._shares(), self._broadcasters, strict=True):
                    group.create_task(self._let_broadcaster_die(broadcaster, deaths))
            self._dying_is_over.set()

    def _shares(self) -> list[Iterator[Death]]:
        """Of the deaths, one row for each broadcaster."""
        count = len(self._broadcasters)
        rows = itertools.tee(self._plan.deaths, count)
        return [itertools.islice(row, number, None, count) for number, row in enumerate(rows)]

    async def _let_broadcaster_die(self, broadcaster: Broadcaster | Workers, deaths: Iterator[Death]) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + (self._plan.minutes or 1e6) * 60
        # The life that is there already ends at a random moment, too.
        await self._over_within(self._random.uniform(0.1, 0.4))
        await broadcaster.kill()
        for death in deaths:
            if loop.time() >= end:
                break
            await broadcaster.live(death, bug=self._plan.bug)
        await broadcaster.begin(bug=self._plan.bug)

    async def _let_subscribers_die(self) -> None:
        mortal = [subscriber for subscriber in self._subscribers if subscriber.plan.restarts]
        while not await self._over_within(self._random.uniform(*LIFE_SECONDS)):
            for subscriber in mortal:
                await subscriber.restart()

    async def _subscribe_late(self) -> None:
        await self._over_within(self._random.uniform(*LIFE_SECONDS))
        await self._subscribe_all(late=True)

    async def _make_zombies(self) -> None:
        while not await self._over_within(self._random.uniform(*BEFORE_A_PAUSE_SECONDS)):
            zombie = self._random.choice(self._broadcasters)
            zombie.pause()
            await self._over_within(self._random.uniform(*PAUSE_SECONDS))
            zombie.resume()

    async def _over_within(self, seconds: float) -> bool:
        """Wait so long, less when all deaths are over: True."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._dying_is_over.wait()
        return self._dying_is_over.is_set()

    # -- after ----------------------------------------------------------------------------------------------------

    async def _drain(self) -> None:
        """Until nothing is owed any more; then write down what is dead, and look whether the database is sound."""
        async with asyncio.timeout(self._plan.drain_seconds):
            while await self._any_owed():
                await asyncio.sleep(POLL_SECONDS)
        async for delivery in self._deliveries("dead"):
            self._journal.write(
                "dead",
                subscription=delivery["subscription_id"],
                message_id=delivery["message_id"],
                sequence=delivery["sequence"],
                reason=delivery["reason"],
            )
        with contextlib.closing(sqlite3.connect(self._database)) as db:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]

    async def _any_owed(self) -> bool:
        for state in ("pending", "waiting"):
            async for _ in self._deliveries(state):
                return True
        return False

    async def _deliveries(self, state: str) -> AsyncIterator[dict[str, Any]]:
        cursor = ""
        while True:
            page = await self._ask("GET", f"/v1/deliveries?state={state}&limit=100{cursor}")
            for delivery in page["deliveries"]:
                yield delivery
            if page["cursor"] is None:
                return
            cursor = f"&cursor={page['cursor']}"

    async def _check(self) -> Outcome:
        files = sorted(self._journals.iterdir())
        async with running("-m", "tests.e2e.torture.checker", *files, cwd=ROOT) as checker:
            status = await checker.ended()
        assert checker.lines, checker.output()
        *lines, verdict = checker.lines
        reached = frozenset(point for broadcaster in self._broadcasters for point in broadcaster.reached)
        troubles = tuple(line for broadcaster in self._broadcasters for line in broadcaster.troubles)
        return Outcome(status == 0, json.loads(verdict), "\n".join([*lines, *checker.errors]), reached, troubles)

    async def _ask(self, method: str, target: str, body: Any = None) -> Any:
        """The first broadcaster is asked until it has answered: it may be dead at present."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            while True:
                with contextlib.suppress(BrokenAnswer):
                    url = self._broadcasters[0].url
                    status, answer = await ask_json(url, method, target, token=self._token, body=body)
                    if status < 500:
                        assert status in (200, 201), (method, target, status, answer)
                        return answer
                await asyncio.sleep(POLL_SECONDS)


class Subscriber:
    """One that may die and be started again, at the same port."""

    def __init__(self, plan: SubscriberPlan, seed: str, secrets_file: Path, journals: Path) -> None:
        self.plan = plan
        self._port = ReservedPort()
        self.url = f"{self._port.url}/hook"
        self._module = "tests.e2e.torture.subscriber"
        self._options: tuple[str | Path, ...] = (
            *("--name", plan.name, "--port", str(self._port.number), "--secrets", secrets_file),
            *("--journals", journals, "--seed", seed),
            *("--misdeeds", json.dumps(dict(plan.misdeeds)), "--chance", str(plan.chance)),
        )
        self._life = contextlib.AsyncExitStack()

    def tell(self, urls: Sequence[str]) -> None:
        """Be a client of these broadcasters."""
        [pattern] = self.plan.patterns
        self._module = "tests.e2e.torture.client_subscriber"
        self._options = (
            *self._options[:8],
            *("--urls", ",".join(urls), "--glob", pattern.text),
            *("--schedule", json.dumps(RETRY_SCHEDULE_SECONDS)),
            *(("--ordered",) if pattern.ordered else ()),
        )

    async def start(self, stack: contextlib.AsyncExitStack, *, confirmed: bool = False) -> None:
        """The first life, until it listens or (a client) has its subscription; everything ends with `stack`."""
        stack.callback(self._port.close)
        stack.push_async_callback(lambda: self._life.aclose())
        await self._begin("subscribed" if confirmed else "ready")

    async def restart(self) -> None:
        """SIGKILL, and the next life."""
        await self._life.aclose()
        await self._begin("ready")

    async def _begin(self, said: str) -> None:
        process = running("-m", self._module, *self._options, cwd=ROOT)
        await (await self._life.enter_async_context(process)).line(lambda line: line == said)


async def main() -> int:
    """By hand, and by scripts/soak through the tests."""
    parser = argparse.ArgumentParser(prog="conductor", description="Torture a broadcaster; see this file.")
    parser.add_argument("--seed", default=secrets.token_hex(4))
    parser.add_argument("--minutes", type=float, default=None, help="default: a short run")
    parser.add_argument("--bug", default=None, help="see bugs.py")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    if options.minutes is not None:
        plan = soak_plan(options.seed, options.minutes)
    else:
        plan = short_plan(options.seed) if options.bug is None else buggy_plan(options.seed, options.bug)
    with tempfile.TemporaryDirectory(prefix="torture") as directory:
        outcome = await torture(plan, Path(directory))
    print(outcome.text)
    print("reached:", ", ".join(sorted(outcome.reached)))
    print("\n".join(outcome.troubles[:20]))
    return 0 if outcome.right and not outcome.troubles else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
