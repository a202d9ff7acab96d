"""Any sequence of calls leaves the deliveries as a plain model in Python has them."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from httppubsubserver.stores.durable import Claimed, DurableStore, Selection, Terms
from tests.stores.conftest import NOW, SECOND, OpenStore
from tests.stores.durable_stores import LEASE, dead, durable, gone, listed, publication, settle, work_off
from tests.stores.durable_stores import again as again_at
from tests.stores.durable_stores import delivered as was_delivered

URLS = ["http://a.example/#1", "http://a.example/#2", "http://b.example/"]
ENDPOINTS = ["http://a.example/", "http://b.example/"]
TOLERANCE = 5 * SECOND


@dataclass
class Message:
    number: int
    name: str
    accepted_at: int
    deliver_at: int | None
    expires_at: int | None
    end_worked_off: bool = False
    body_kept: bool = True


@dataclass
class Delivery:
    """What a row should say."""

    message: Message
    subscriber: Subscriber
    sequence: int
    previous: str | None
    ordered: bool
    state: str
    due_at: int
    updated_at: int
    holder: str | None = None
    attempts: int = 0
    before: int = 0
    reason: str | None = None
    called_off: str | None = None
    """Why it is given up when it comes back from an attempt."""

    def under_way(self, now: int) -> bool:
        return self.holder is not None and self.due_at > now

    @property
    def owed(self) -> bool:
        return self.state in ("pending", "waiting")

    def end(self, reason: str, now: int) -> None:
        self.state = "cancelled" if reason in ("unsubscribed", "called_off", "sent_again") else "dead"
        self.reason, self.holder, self.updated_at = reason, None, now


@dataclass
class Subscriber:
    id: str
    endpoint: str
    ordered: bool
    until: int = 0
    sequence: int = 0
    last: str | None = None
    ended: str | None = None
    end_worked_off: bool = False


@dataclass
class Model:
    """What there should be. All of it is looked at for each question: it is as plain as it can be."""

    now: int = NOW
    latest: int = NOW
    """That the store was told."""
    seen: int = NOW
    """The latest moment since a clock that was set back was noticed."""
    messages: dict[str, Message] = field(default_factory=dict)
    deliveries: list[Delivery] = field(default_factory=list)
    subscribers: dict[str, Subscriber] = field(default_factory=dict)
    at: list[Subscriber | None] = field(default_factory=lambda: [None] * len(URLS))
    blocked: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Until when, and when that was decided."""
    claims: list[Claimed] = field(default_factory=list)
    last_number: int = 0

    def blocked_until(self, endpoint: str) -> int:
        return self.blocked.get(endpoint, (0, 0))[0]

    def in_order(self, subscriber: Subscriber, state: str) -> list[Delivery]:
        found = [
            each for each in self.deliveries if each.subscriber is subscriber and each.ordered and each.state == state
        ]
        return sorted(found, key=lambda each: each.sequence)

    def advance(self, subscriber: Subscriber) -> None:
        waiting, heads = self.in_order(subscriber, "waiting"), self.in_order(subscriber, "pending")
        if not waiting or (heads and (heads[0].under_way(self.now) or heads[0].sequence < waiting[0].sequence)):
            return
        if heads:
            heads[0].state, heads[0].holder = "waiting", None
        first = waiting[0]
        first.state, first.due_at, first.updated_at = "pending", min(first.due_at, self.now), self.now

    def send_to_successor(self, row: Delivery) -> bool:
        have_it = {each.subscriber.id for each in self.deliveries if each.message is row.message}
        successors = [
            each
            for each in self.at
            if each is not None and each.endpoint == row.subscriber.endpoint and each.id not in have_it
        ]
        if not successors or row.reason == "sent_again":
            return False
        to = min(successors, key=lambda each: each.id)
        to.sequence += 1
        state = "waiting" if to.ordered else "pending"
        self.deliveries.append(Delivery(row.message, to, to.sequence, to.last, to.ordered, state, self.now, self.now))
        to.last = row.message.name
        row.end("sent_again", self.now)
        if to.ordered:
            self.advance(to)
        return True

    def held(self, claimed: Claimed) -> Delivery | None:
        """The delivery, while the lease is not lost."""
        for each in self.deliveries:
            name = (each.message.number, each.subscriber.id, each.holder, each.attempts)
            if name == claimed.held[:4] and each.state == "pending":
                return each
        return None


async def _subscribe(store: DurableStore, model: Model, which: int, ordered: bool) -> None:
    known = model.at[which]
    subscription_id = await durable(store, URLS[which], b"t\xff", ordered=ordered, lease_seconds=10**9, now=model.now)
    if known is None:
        endpoint = URLS[which].partition("#")[0]
        known = model.at[which] = model.subscribers[subscription_id] = Subscriber(subscription_id, endpoint, ordered)
        model.blocked.setdefault(endpoint, (0, 0))
    assert known.id == subscription_id
    known.ordered, known.until = ordered, model.now + 10**9 * SECOND


async def _unsubscribe(store: DurableStore, model: Model, which: int) -> None:
    known = model.at[which]
    if known is not None:
        assert await store.unsubscribe(known.id, now=model.now)
        known.ended, model.at[which] = "unsubscribed", None


async def _accept(
    store: DurableStore, model: Model, name: int, deliver_in: int | None, expires_in: int | None, lease: bool
) -> None:
    now = model.now
    message_id = f"m{name}"
    there = [each for each in model.at if each is not None]
    deliver_at = None if deliver_in is None else now + deliver_in * SECOND
    expires_at = None if expires_in is None else now + expires_in * SECOND
    terms = Terms("accepting", now + LEASE) if lease else None
    accepted = await store.accept(
        publication(message_id, [each.id for each in there], deliver_at=deliver_at, expires_at=expires_at),
        now=now,
        terms=terms,
    )
    if message_id in model.messages:
        assert accepted.repeated
        assert accepted.leased == ()
        return
    assert (accepted.deliveries, accepted.repeated) == (len(there), False)
    if not there:
        return
    model.last_number += 1
    message = model.messages[message_id] = Message(model.last_number, message_id, now, deliver_at, expires_at)
    due_at = now if deliver_at is None else max(deliver_at, now)
    leased = {each.held.subscription_id: each for each in accepted.leased}
    for each in there:
        each.sequence += 1
        ordered = each.ordered and due_at <= now
        waiting = ordered and bool(model.in_order(each, "pending"))
        row = Delivery(
            message, each, each.sequence, each.last, ordered, "waiting" if waiting else "pending", due_at, now
        )
        each.last = message_id
        if each.id in leased:
            assert not waiting
            assert due_at <= now
            assert model.blocked_until(each.endpoint) <= now
            row.holder, row.due_at, row.attempts = "accepting", now + LEASE, 1
        model.deliveries.append(row)
    model.claims += accepted.leased


async def _claim(store: DurableStore, model: Model, holder: int, per_endpoint: int) -> None:
    # A clock that was set back by less than the tolerance is not noticed: an endpoint's next turn may lie ahead by as
    # much. Then claiming again a moment later is what helps.
    model.now = now = max(model.now, model.seen)
    terms = Terms(f"holder{holder}", now + LEASE, 1000, per_endpoint)
    claims = await store.claim(terms, now=now)
    expected: list[Delivery] = []
    for endpoint in ENDPOINTS:
        due = [
            each
            for each in model.deliveries
            if each.subscriber.endpoint == endpoint and each.state == "pending" and each.due_at <= now
        ]
        if model.blocked_until(endpoint) > now:
            continue
        due.sort(key=lambda each: (each.due_at, each.message.number, each.subscriber.id))
        for each in due[:per_endpoint]:
            if each.subscriber.ended is not None:
                each.end(each.subscriber.ended, now)
            elif each.message.expires_at is not None and each.message.expires_at <= now:
                each.end("expired", now)
            else:
                each.attempts += 1
                each.holder, each.due_at, each.updated_at = terms.holder, terms.until, now
                expected.append(each)
                continue
            if each.ordered:
                model.advance(each.subscriber)
    assert {each.held[:4] for each in claims.deliveries} == {
        (each.message.number, each.subscriber.id, each.holder, each.attempts) for each in expected
    }
    for claimed in claims.deliveries:
        row = model.held(claimed)
        assert row is not None
        assert (claimed.sequence, claimed.previous_message_id) == (row.sequence, row.previous)
        assert (claimed.attempt, claimed.held.ordered) == (row.attempts - row.before, row.ordered)
        assert claimed.message.notification.message_id == row.message.name
    model.claims += claims.deliveries


async def _settle(store: DurableStore, model: Model, which: int, outcome: str, seconds: int) -> None:
    """Of any lease that there ever was: most of them are lost."""
    if not model.claims:
        return
    claimed = model.claims[-1 - which % len(model.claims)]
    row, now = model.held(claimed), model.now
    settlement = {
        "delivered": was_delivered(claimed),
        "again": again_at(claimed, now + seconds * SECOND),
        "dead": dead(claimed),
        "gone": gone(claimed),
    }[outcome]
    assert await settle(store, settlement, now=now) == [row is not None]
    if row is None:
        return
    row.holder, row.updated_at = None, now
    if outcome in ("again", "dead") and row.called_off is not None:
        row.end(row.called_off, now)
    elif outcome == "again":
        row.due_at = now + seconds * SECOND
    elif outcome == "delivered":
        row.state, row.reason = "delivered", None
    else:
        row.end("gone" if outcome == "gone" else "exhausted", now)
    if outcome == "gone" and row.subscriber.ended is None and row.subscriber.until == claimed.subscribed_until:
        row.subscriber.ended = "gone"
        model.at[model.at.index(row.subscriber)] = None
    if row.ordered:
        model.advance(row.subscriber)


async def _extend(store: DurableStore, model: Model, which: int, seconds: int) -> None:
    if not model.claims:
        return
    claimed = model.claims[-1 - which % len(model.claims)]
    row, until = model.held(claimed), model.now + seconds * SECOND
    assert await store.extend([claimed.held], until=until, now=model.now) == [row is not None]
    if row is not None:
        row.due_at, row.updated_at = until, model.now


async def _block(store: DurableStore, model: Model, which: int, seconds: int) -> None:
    endpoint, until = ENDPOINTS[which], model.now + seconds * SECOND
    await store.block_endpoint(endpoint, until=until, now=model.now)
    if endpoint in model.blocked and (until <= model.now or until > model.blocked_until(endpoint)):
        model.blocked[endpoint] = (until, model.now)


async def _cancel(store: DurableStore, model: Model, name: int) -> None:
    message = model.messages.get(f"m{name}")
    called_off = 0
    if message is not None and message.deliver_at is not None:
        for each in sorted(model.deliveries, key=lambda each: each.subscriber.id):
            if each.message is message and each.owed and each.attempts == 0:
                each.end("called_off", model.now)
                called_off += 1
                if each.ordered:
                    model.advance(each.subscriber)
    assert await store.cancel_scheduled(f"m{name}", now=model.now) == called_off


async def _work_off(store: DurableStore, model: Model) -> None:
    now = model.now
    await work_off(store, now=now)
    for subscriber in model.subscribers.values():
        if subscriber.ended is not None and not subscriber.end_worked_off:
            subscriber.end_worked_off = True
            for each in model.deliveries:
                if each.subscriber is subscriber and each.owed:
                    if each.under_way(now):
                        each.called_off = subscriber.ended
                    else:
                        each.end(subscriber.ended, now)
    due = [
        each
        for each in model.messages.values()
        if each.expires_at is not None and each.expires_at <= now and not each.end_worked_off
    ]
    for message in sorted(due, key=lambda each: (each.expires_at, each.number)):
        message.end_worked_off = True
        for each in sorted(model.deliveries, key=lambda each: each.subscriber.id):
            if each.message is message and each.owed and not each.under_way(now):
                each.end("expired", now)
                if each.ordered:
                    model.advance(each.subscriber)


async def _replay(store: DurableStore, model: Model, state: str) -> None:
    await _work_off(store, model)
    now = model.now
    replay = await store.replay(Selection(state=state), now=now)  # type: ignore[arg-type]
    await work_off(store, now=now)
    replayed = skipped = 0
    selected = [each for each in model.deliveries if each.state == state]
    for each in sorted(selected, key=_acceptance if state != "dead" else _number):
        expired = each.message.expires_at is not None and each.message.expires_at <= now
        if expired or not each.message.body_kept:
            skipped += 1
            continue
        if each.subscriber.ended is not None:
            sent = model.send_to_successor(each)
            replayed, skipped = replayed + sent, skipped + (not sent)
            continue
        replayed += 1
        each.state, each.reason = "waiting" if each.ordered else "pending", None
        each.due_at, each.before, each.updated_at = now, each.attempts, now
        if each.ordered:
            model.advance(each.subscriber)
    assert await store.replay_progress(replay.number) == replay._replace(
        replayed=replayed, skipped=skipped, finished_at=now
    )


async def _come_back(store: DurableStore, model: Model, which: int, ordered: bool) -> None:
    """Under a new id, for what the old one was owed."""
    await _unsubscribe(store, model, which)
    await _work_off(store, model)
    await _subscribe(store, model, which, ordered)
    await _replay(store, model, "cancelled")


def _number(each: Delivery) -> tuple[int, str]:
    return each.message.number, each.subscriber.id


def _acceptance(each: Delivery) -> tuple[int, int, str]:
    return each.message.accepted_at, each.message.number, each.subscriber.id


async def _prune(store: DurableStore, model: Model, bodies_back: int, messages_back: int) -> None:
    bodies_before = model.now - bodies_back * SECOND
    messages_before = model.now - messages_back * SECOND
    pruned = await store.prune_messages(now=model.now, bodies_before=bodies_before, messages_before=messages_before)

    def free(before: int) -> list[Message]:
        kept = [row.message for row in model.deliveries if row.owed or row.updated_at >= before]
        return [each for each in model.messages.values() if each.accepted_at < before and each not in kept]

    bodies = [each for each in free(bodies_before) if each.body_kept]
    for each in bodies:
        each.body_kept = False
    over = [each for each in free(messages_before) if each.number != model.last_number]
    for each in over:
        del model.messages[each.name]
    model.deliveries = [row for row in model.deliveries if row.message not in over]
    assert pruned == (len(bodies), len(over))


async def _wait(store: DurableStore, model: Model, seconds: int) -> None:
    model.now += seconds * SECOND


async def _clock(store: DurableStore, model: Model, seconds: int) -> None:
    """It jumps, and the store is told what it says now."""
    model.now += seconds * SECOND
    now, moved = model.now, 0
    if now < model.latest - TOLERANCE:
        for each in model.deliveries:
            scheduled = each.holder is None and each.due_at == each.message.deliver_at
            if each.state == "pending" and each.due_at > now and each.updated_at > now and not scheduled:
                each.due_at -= each.updated_at - now
                each.updated_at = now
                moved += 1
        model.blocked = {
            endpoint: (until - (at - now), now) if at > now else (until, at)
            for endpoint, (until, at) in model.blocked.items()
        }
        model.latest = model.seen = now
    elif now >= model.latest + 2 * TOLERANCE:
        model.latest = now
    assert await store.notice_clock(now=now) == moved


async def _agrees(store: DurableStore, model: Model) -> None:
    rows = {(row.message_id, row.subscription_id): row for row in await listed(store, limit=3)}
    assert rows.keys() == {(each.message.name, each.subscriber.id) for each in model.deliveries}
    for each in model.deliveries:
        row = rows[each.message.name, each.subscriber.id]
        assert (row.state, row.reason) == (each.state, each.reason)
        assert (row.sequence, row.previous_message_id, row.url) == (
            each.sequence,
            each.previous,
            each.subscriber.endpoint,
        )
        assert (row.attempts, row.updated_at) == (each.attempts - each.before, each.updated_at)
        moments = (None, None) if not each.owed else (None, each.due_at) if each.holder else (each.due_at, None)
        assert (row.due_at, row.leased_until) == moments
    claimable = [
        max(each.due_at, model.blocked_until(each.subscriber.endpoint))
        for each in model.deliveries
        if each.state == "pending"
    ]
    next_due = await store.next_due()
    assert not claimable or (next_due is not None and next_due <= max(model.seen, min(claimable)))
    for subscriber in model.subscribers.values():
        assert len(model.in_order(subscriber, "pending")) <= 1
        assert not model.in_order(subscriber, "waiting") or model.in_order(subscriber, "pending")
    counts = await store.counts(now=model.now)
    assert counts.pending == sum(each.owed for each in model.deliveries)
    assert counts.dead == sum(each.state == "dead" for each in model.deliveries)


WHICH = st.integers(0, len(URLS) - 1)
NAMES = st.integers(0, 7)
RECENT = st.integers(0, 5)
SECONDS = st.sampled_from([0, 1, 4, 30, 90])

STEPS = st.one_of(
    st.tuples(st.just(_subscribe), WHICH, st.booleans()),
    st.tuples(st.just(_accept), NAMES, st.none(), st.none(), st.booleans()),
    st.tuples(st.just(_accept), NAMES, st.none() | SECONDS, st.none() | SECONDS, st.booleans()),
    st.tuples(st.just(_claim), st.integers(0, 1), st.sampled_from([1, 2, 1000])),
    st.tuples(st.just(_settle), RECENT, st.sampled_from(["delivered", "again", "dead"]), SECONDS),
    st.tuples(st.just(_settle), RECENT, st.sampled_from(["delivered", "again", "dead", "gone"]), SECONDS),
    st.tuples(st.just(_extend), RECENT, SECONDS),
    st.tuples(st.just(_wait), SECONDS),
    st.tuples(st.just(_clock), st.sampled_from([-3600, -7, -3, 0, 20, 3600])),
    st.tuples(st.just(_replay), st.sampled_from(["dead", "delivered", "cancelled"])),
    st.tuples(st.just(_unsubscribe), WHICH),
    st.tuples(st.just(_come_back), WHICH, st.booleans()),
    st.tuples(st.just(_block), st.integers(0, 1), SECONDS),
    st.tuples(st.just(_cancel), NAMES),
    st.tuples(st.just(_work_off)),
    st.tuples(st.just(_prune), SECONDS, SECONDS),
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(ordered=st.lists(st.booleans(), min_size=3, max_size=3), steps=st.lists(STEPS, min_size=10, max_size=60))
async def test_a_store_agrees_with_the_model(
    databases: Iterator[OpenStore],
    monkeypatch: pytest.MonkeyPatch,
    ordered: list[bool],
    steps: list[tuple[Any, ...]],
) -> None:
    numbers = count(1)
    # Ids decide who comes first of what is due at one moment: an example must have the same ones each time.
    monkeypatch.setattr(secrets, "token_urlsafe", lambda _: f"{next(numbers):03}")
    async with next(databases)() as opened:
        store: DurableStore = opened
        model = Model()
        await store.notice_clock(now=model.now)
        for which, in_order in enumerate(ordered):
            await _subscribe(store, model, which, in_order)
        for step, *given_to_it in steps:
            do: Callable[..., Awaitable[None]] = step
            model.now += 1
            model.seen = max(model.seen, model.now)
            await do(store, model, *given_to_it)
            await _agrees(store, model)
