"""A workbench for durable delivery: executors over one real database file, and everything around them scripted.

The clock stands still until a test moves it, nothing is random, the store can be made to fail or to hang at any call.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, cast

from httppubsubclient.bodies import Body
from httppubsubclient.protocol.credentials import Credentials
from httppubsubclient.protocol.errors import Unavailable
from httppubsubclient.protocol.messages import Notification, SubscribeRequest
from httppubsubclient.protocol.moments import NO_MOMENTS, MessageMoments
from httppubsubclient.protocol.patterns import Pattern
from httppubsubserver.acceptance import DurableNotify, accept
from httppubsubserver.config import ServerConfig
from httppubsubserver.delivery.executor import Executor
from httppubsubserver.delivery.webhooks import EventIdentity, Webhooks
from httppubsubserver.directory import Directory, Target
from httppubsubserver.stores import open_store
from httppubsubserver.stores.durable import Claimed, DurableStore, Held, OwedDelivery, Selection, StoredMessage
from httppubsubserver.subscription_secrets import SubscriptionSecrets
from httppubsubserver.vault import Vault
from tests.server.conftest import ScriptedOutbound

URL = "http://a.example/pubsub"
OTHER = "http://b.example/pubsub"
TOPIC = b"t"
START = 1_800_000_000.0


@dataclass
class Clock:
    """Unix seconds, as a test says."""

    now: float = START

    def __call__(self) -> float:
        return self.now

    def read(self) -> int:
        """In microseconds."""
        return int(self.now * 1_000_000)

    @property
    def moment(self) -> int:
        """The same."""
        return self.read()


@dataclass
class Trouble:
    """A store whose calls can be made to go wrong. Each call that is over sets `changed`."""

    inner: DurableStore
    changed: asyncio.Event
    calls: Counter[str] = field(default_factory=Counter)
    faults: dict[str, Exception] = field(default_factory=dict)
    """By the name of the call: raised instead, as long as it stands here."""
    before: dict[str, asyncio.Event] = field(default_factory=dict)
    """The call waits for it, and happens then."""
    after: dict[str, asyncio.Event] = field(default_factory=dict)
    """The call happens, and its answer waits for it."""

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.inner, name)

        async def call(*arguments: Any, **named: Any) -> Any:
            self.calls[name] += 1
            self.changed.set()
            try:
                if name in self.before:
                    await self.before[name].wait()
                if name in self.faults:
                    raise self.faults[name]
                answer = await method(*arguments, **named)
                self.changed.set()
                if name in self.after:
                    await self.after[name].wait()
                return answer
            finally:
                self.changed.set()

        return call

    def fail(self, *names: str) -> None:
        """These calls fail from now on."""
        self.faults = {name: Unavailable("the database is locked by another process") for name in names}

    def heal(self) -> None:
        """Everything works again, and nothing waits."""
        self.faults.clear()
        for gates in (self.before, self.after):
            while gates:
                gates.popitem()[1].set()


class Bench:
    """One database and those who deliver from it. Made by `open_bench`."""

    def __init__(
        self, stack: AsyncExitStack, config: ServerConfig, store: DurableStore, outbound: ScriptedOutbound
    ) -> None:
        self._stack = stack
        self.config = config
        self.outbound = outbound
        self.clock = Clock()
        self.trouble = Trouble(store, outbound.changed)
        self.store = cast(DurableStore, self.trouble)
        self.executors: list[Executor] = []
        self._directory = Directory(store)
        self._ids = count(1)
        self.secrets = SubscriptionSecrets(Vault([bytes(range(32))]), now=self.clock.read, grace_seconds=3600)

    async def executor(self, *, store: DurableStore | None = None, credentials: Credentials | None = None) -> Executor:
        """One more of them, at work."""
        executor = Executor(
            self.config,
            credentials or Credentials.none(),
            self.outbound,
            store or self.store,
            self.webhooks(credentials or Credentials.none()),
            holder=f"run_{len(self.executors)}",
            clock=self.clock,
            random=lambda: 0.0,
        )
        self._stack.push_async_callback(executor.close)
        self.executors.append(executor)
        executor.open()
        return executor

    def webhooks(self, credentials: Credentials) -> Webhooks:
        """What makes deliveries that are signed with secrets of their own."""
        return Webhooks(
            self.config,
            self.outbound,
            credentials,
            self.secrets,
            identity=EventIdentity("bench", None),
            clock=self.clock,
        )

    async def subscribe(
        self,
        url: str = URL,
        *,
        topic: bytes = TOPIC,
        ordered: bool = False,
        schedule: tuple[float, ...] | None = None,
        secret: str | None = None,
    ) -> str:
        """A durable subscription; its id."""
        request = SubscribeRequest(url, Pattern.exact(topic), 864_000, "durable", ordered, schedule)
        change = self.secrets.change(secret)
        subscription, _ = await self.trouble.inner.subscribe(request, now=self.clock.moment, secrets=change)
        return subscription.id

    async def targets(self, topic: bytes = TOPIC) -> list[Target]:
        """Who gets a message of this topic."""
        return await self._directory.match(topic, now=self.clock.moment)

    async def publish(
        self,
        body: Body | bytes = b"data",
        *,
        topic: bytes = TOPIC,
        moments: MessageMoments = NO_MOMENTS,
        message_id: str | None = None,
        executor: Executor | None = None,
    ) -> DurableNotify:
        """Accept a message, as a notify does."""
        with body if isinstance(body, Body) else Body.of(body) as body:
            message_id = message_id or f"msg_{next(self._ids)}"
            notification = Notification(message_id, topic, "text/plain", body.sha256, body.size, None)
            targets = await self.targets(topic)
            executor = executor or self.executors[0]
            return await accept(self.store, executor, notification, body, targets, moments, None, now=self.clock.read)

    def pass_by(self, seconds: float) -> None:
        """Let the clock go on; whoever waits for a moment looks again."""
        self.clock.now += seconds
        for executor in self.executors:
            executor.due()

    async def until(self, condition: Callable[[], Awaitable[bool] | bool]) -> None:
        """Wait for it; it is looked at after every call of the store and every change of the outbound."""
        async with asyncio.timeout(20):
            while True:
                self.outbound.changed.clear()
                holds = condition()
                if holds if isinstance(holds, bool) else await holds:
                    return
                await self.outbound.changed.wait()

    async def owed(self, selection: Selection | None = None) -> list[OwedDelivery]:
        """All deliveries, in the order of acceptance."""
        found: list[OwedDelivery] = []
        cursor: str | None = None
        while True:
            page = await self.trouble.inner.deliveries(selection or Selection(), cursor=cursor, limit=200)
            found += page.deliveries
            cursor = page.cursor
            if cursor is None:
                return found[::-1]

    async def states(self) -> Counter[str]:
        """How many deliveries are in which state; `leased` is one of its own."""
        return Counter("leased" if each.leased_until is not None else each.state for each in await self.owed())

    async def until_states(self, **wanted: int) -> None:
        """Wait until there are exactly so many of each."""

        async def reached() -> bool:
            return await self.states() == Counter(wanted)

        await self.until(reached)

    def posted(self) -> list[str]:
        """The ids of the messages that were POSTed, in order."""
        return [post.headers["webhook-id"] for post in self.outbound.posts]

    def check_idle(self) -> None:
        """Nothing is held by anybody, and every count is at nothing."""
        for executor in self.executors:
            attempts, endpoints = executor._attempts, executor._endpoints.all()
            assert (executor.running, executor.bytes_in_memory, attempts.held) == (0, 0, 0)
            assert all(each.held == 0 and not each.queued for each in endpoints)
            assert not attempts._preparing
            assert not attempts._by_delivery
            assert not attempts._runnable


@asynccontextmanager
async def open_bench(directory: Path, outbound: ScriptedOutbound, **settings: Any) -> AsyncIterator[Bench]:
    """A bench over a new file, or over the one that is there already."""
    database = f"sqlite:///{directory}/durable.sqlite3"
    config = ServerConfig(db=database, spool_directory=directory, **settings)
    async with open_store(database) as store, AsyncExitStack() as stack:
        bench = Bench(stack, config, store, outbound)
        try:
            yield bench
        finally:
            bench.trouble.heal()


def claimed(
    *, attempt: int = 1, schedule: tuple[float, ...] | None = None, url: str = URL, body: bytes = b"data"
) -> Claimed:
    """A lease as a store hands it out."""
    held = Held(1, "sub_1", "run_0", attempt, 1, False)
    notification = Notification("msg_1", TOPIC, "text/plain", hashlib.sha256(body).digest(), len(body), None)
    message = StoredMessage(notification, int(START) * 1_000_000, None, None, body, True)
    until = int(START + 30) * 1_000_000
    return Claimed(held, message, url, 1, None, attempt, schedule, until, until)
