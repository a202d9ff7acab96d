"""Random walks: whatever happens, in the end what was accepted is delivered or dead, and nothing is held.

Receivers fail in every way, the store fails before and after it did what it was asked, executors end and die, clocks
are set, messages expire. A failing walk is repeated by its seed.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any, cast

import pytest

from httppubsubclient.protocol.errors import Unavailable
from httppubsubclient.protocol.moments import MessageMoments
from httppubsubserver.delivery import attempts as attempts_module
from httppubsubserver.delivery.executor import Executor
from httppubsubserver.delivery.outbound import Answer, AttemptFailed
from httppubsubserver.stores.durable import DurableStore
from tests.server.conftest import Post, Reply, ScriptedOutbound
from tests.server.durable import Bench, Trouble, open_bench

STEPS = 60
ORDERED, PLAIN, FICKLE = "http://ordered.example/", "http://plain.example/", "http://fickle.example/"
REPLIES: list[Reply] = [
    *[200] * 6,
    500,
    404,
    410,
    Answer(503, "2"),
    Answer(429, "30"),
    AttemptFailed("connect_error", again=True),
    AttemptFailed("timeout", again=False, hanging=True),
]


class Fickle(Trouble):
    """Fails at random, before or after it did what it was asked; always when its process is `dead`."""

    rate = 0.0
    dead = False
    random: random.Random

    def __getattr__(self, name: str) -> Any:
        method = super().__getattr__(name)

        async def call(*arguments: Any, **named: Any) -> Any:
            if self.dead or self.random.random() < self.rate:
                raise Unavailable("the database is locked by another process")
            answer = await method(*arguments, **named)
            if self.dead or self.random.random() < self.rate:
                raise Unavailable("the disk of the database fails")
            return answer

        return call


class Walk:
    """One of them."""

    def __init__(self, bench: Bench, seed: int) -> None:
        self.bench = bench
        self.random = random.Random(seed)
        self.gate = asyncio.Event()
        self.wild = True
        self.published: dict[str, bool] = {}
        """By message id: whether its acceptance was confirmed."""
        self.scheduled: set[str] = set()
        self.taken: list[tuple[str, str]] = []
        """URL and message id of each POST that was answered 2xx."""
        self.stores: dict[Executor, Fickle] = {}
        for url in (ORDERED, PLAIN, FICKLE):
            bench.outbound.scripts[url] = self.receive

    async def receive(self, post: Post) -> Reply:
        if self.wild and self.random.random() < 0.1:
            await self.gate.wait()
        reply: Reply = self.random.choice(REPLIES) if self.wild else 200
        if reply == 410 and post.url != FICKLE:
            reply = 502
        if reply == 200:
            self.taken.append((post.url, post.headers["webhook-id"]))
        return reply

    async def open(self) -> None:
        store = Fickle(self.bench.trouble.inner, self.bench.outbound.changed)
        store.random = self.random
        executor = await self.bench.executor(store=cast(DurableStore, store))
        self.stores[executor] = store

    async def publish(self) -> None:
        bench, choice = self.bench, self.random
        executor = choice.choice(bench.executors)
        message_id = f"msg_{len(self.published)}"
        self.published[message_id] = False
        deliver_at = bench.clock.moment + choice.randrange(20_000_000) if choice.random() < 0.1 else None
        expires_at = bench.clock.moment + choice.randrange(1, 60_000_000) if choice.random() < 0.2 else None
        if deliver_at is not None:
            self.scheduled.add(message_id)
        body = b"x" * choice.choice([0, 1, 100, 300_000])
        bench.store = cast(DurableStore, self.stores[executor])
        moments = MessageMoments(deliver_at, expires_at)
        try:
            notify = await bench.publish(body, message_id=message_id, moments=moments, executor=executor)
        except Unavailable:
            return
        self.published[message_id] = notify.matched > 0

    async def step(self) -> None:
        bench, choice = self.bench, self.random
        action = choice.choices(["publish", "wait", "time", "jump", "end", "die", "trouble"], [12, 6, 6, 1, 1, 1, 2])[0]
        if action == "publish":
            await asyncio.gather(*(self.publish() for _ in range(choice.randrange(1, 5))))
        elif action == "wait":
            for _ in range(choice.randrange(20)):
                await bench.trouble.inner.counts(now=bench.clock.moment)
        elif action == "time":
            self.gate.set()
            self.gate = asyncio.Event()
            bench.pass_by(choice.random() * 20)
        elif action == "jump":
            bench.pass_by(choice.choice([-3600.0, 3600.0]))
            await bench.trouble.inner.notice_clock(now=bench.clock.moment)
        elif action == "trouble":
            rate = choice.choice([0.0, 0.05, 0.5])
            for store in self.stores.values():
                store.rate = rate
        else:
            executor = choice.choice(bench.executors)
            self.stores[executor].dead = action == "die"
            await executor.close()
            bench.executors.remove(executor)
            await self.open()

    async def come_to_an_end(self) -> None:
        """Everything works from now on; time passes until nothing is owed any more."""
        bench = self.bench
        self.wild = False
        self.gate.set()
        for store in self.stores.values():
            store.rate = 0.0
        for round_ in range(100):
            await bench.trouble.inner.work_off(now=bench.clock.moment)
            states = await bench.states()
            if not states.keys() - {"delivered", "dead", "cancelled"}:
                return
            claims = [self.stores[each].calls["claim"] for each in bench.executors]
            bench.pass_by(60 if round_ < 50 else 7200)
            for executor, before in zip(bench.executors, claims, strict=True):
                await bench.until(lambda e=executor, before=before: self.stores[e].calls["claim"] > before)  # type: ignore[misc]
            await bench.until(self.nothing_goes_on)
        raise AssertionError(f"still owed: {await bench.states()}")

    def nothing_goes_on(self) -> bool:
        return all(
            not (each._attempts.held or each._settlements or each._releases or each._claiming)
            for each in self.bench.executors
        )

    async def check(self) -> None:
        owed = await self.bench.owed()
        known = {each.message_id for each in owed}
        assert {message_id for message_id, confirmed in self.published.items() if confirmed} <= known
        taken = set(self.taken)
        for each in owed:
            if each.state == "delivered":
                assert (each.url, each.message_id) in taken
            else:
                assert each.reason in ("exhausted", "expired", "gone"), each
        # A scheduled message takes no place in the order; one that expired under way may have been taken late.
        in_order = {
            each.message_id: each.sequence
            for each in owed
            if each.url == ORDERED and each.state == "delivered" and each.message_id not in self.scheduled
        }
        firsts = dict.fromkeys(
            message_id for url, message_id in self.taken if url == ORDERED and message_id in in_order
        )
        sequences = [in_order[message_id] for message_id in firsts]
        assert sequences == sorted(in_order.values())


@pytest.mark.parametrize("seed", [*range(8), 140, 193])
async def test_a_random_walk_ends_well(
    tmp_path: Path, outbound: ScriptedOutbound, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts_module, "_TROUBLE_PAUSE_SECONDS", 0)
    monkeypatch.setattr("httppubsubserver.delivery.executor._LONGEST_PAUSE_SECONDS", 0.01)
    async with open_bench(tmp_path, outbound, max_durable_in_flight=6, max_durable_in_flight_per_callback=4) as bench:
        walk = Walk(bench, seed)
        for _ in range(2):
            await walk.open()
        await bench.subscribe(ORDERED, ordered=True, schedule=(0.0, *[1.0] * 63))
        await bench.subscribe(PLAIN, schedule=(0.0, *[1.0] * 8))
        await bench.subscribe(FICKLE)
        for _ in range(STEPS):
            await walk.step()
        await walk.come_to_an_end()
        await walk.check()
        bench.check_idle()
