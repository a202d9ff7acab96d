"""What every store promises about replaying what a subscription that is gone was owed.

Runs over all backends of conftest.py.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from httppubsubclient.protocol.patterns import Pattern
from httppubsubserver.stores import sqlite_upkeep
from httppubsubserver.stores.durable import DurableStore, Selection
from tests.stores.conftest import NOW, SECOND, asking
from tests.stores.durable_stores import (
    ENDPOINT,
    OTHER,
    accept_all,
    claim,
    dead,
    delivered,
    durable,
    gone,
    ids,
    publication,
    settle,
    states,
    work_off,
)

TOPIC = b"t\xff"
"""Of all messages here."""


async def replayed(store: DurableStore, selection: Selection | None = None, *, now: int = NOW) -> tuple[int, int]:
    """Replay the dead: how many were sent again, and how many skipped."""
    replay = await store.replay(selection or Selection(), now=now)
    await work_off(store, now=now)
    finished = await store.replay_progress(replay.number)
    assert finished is not None
    assert finished.finished_at == now
    return finished.replayed, finished.skipped


async def given_up(store: DurableStore, message_ids: list[str]) -> str:
    """A subscription that has answered 410, and has got none of these messages; its id."""
    subscriber = await durable(store, topic=TOPIC)
    await accept_all(store, message_ids, [subscriber])
    first, *others = await claim(store)
    await settle(store, *map(dead, others), gone(first))
    await work_off(store)
    return subscriber


async def test_after_a_410_the_new_subscription_gets_it(store: DurableStore) -> None:
    old = await given_up(store, ["m1", "m2"])
    new = await durable(store, topic=TOPIC)
    await accept_all(store, ["m3"], [new])
    assert await replayed(store) == (2, 0)
    claimed = await claim(store)
    assert {(ids([each])[0], each.sequence, each.previous_message_id, each.attempt) for each in claimed} == {
        ("m3", 1, None, 1),
        ("m1", 2, "m3", 1),
        ("m2", 3, "m1", 1),
    }
    await settle(store, *map(delivered, claimed))
    after = await states(store)
    assert {after[name, old] for name in ("m1", "m2")} == {("cancelled", "sent_again")}
    assert {after[name, new] for name in ("m1", "m2", "m3")} == {("delivered", None)}
    await accept_all(store, ["m4"], [new])
    [next_one] = await claim(store)
    assert (next_one.sequence, next_one.previous_message_id) == (4, "m2")


@pytest.mark.parametrize("pruned", [False, True])
async def test_after_the_end_of_a_lease(store: DurableStore, pruned: bool) -> None:
    old = await durable(store, topic=TOPIC, lease_seconds=10)
    await accept_all(store, ["m"], [old])
    await settle(store, *map(dead, await claim(store)))
    later = NOW + 20 * SECOND
    if pruned:
        await store.prune(now=later)
        await work_off(store, now=later)
    # The old one is deleted by subscribing to the same, else it is there and has expired.
    new = await durable(store, ENDPOINT + "#new", topic=TOPIC, now=later)
    assert await replayed(store, Selection(old), now=later) == (1, 0)
    [claimed] = await claim(store, now=later)
    assert (ids([claimed]), claimed.held.subscription_id) == (["m"], new)


async def test_after_unsubscribing_when_the_cancelled_are_asked_for(store: DurableStore) -> None:
    old = await durable(store, topic=TOPIC)
    await accept_all(store, ["m"], [old])
    await store.unsubscribe(old, now=NOW)
    await work_off(store)
    new = await durable(store, topic=TOPIC)
    assert await replayed(store) == (0, 0)
    assert await replayed(store, Selection(state="cancelled")) == (1, 0)
    assert await states(store) == {("m", old): ("cancelled", "sent_again"), ("m", new): ("pending", None)}


async def test_an_ordered_successor_gets_one_after_the_other(store: DurableStore) -> None:
    await given_up(store, ["m1", "m2"])
    new = await durable(store, topic=TOPIC, ordered=True)
    await accept_all(store, ["m3"], [new])
    assert await replayed(store) == (2, 0)
    got = []
    while claimed := await claim(store):
        assert len(claimed) == 1
        got.append((*ids(claimed), claimed[0].sequence))
        await settle(store, *map(delivered, claimed))
    assert got == [("m3", 1), ("m1", 2), ("m2", 3)]


async def test_an_ordered_successor_that_is_owed_nothing_begins_at_once(store: DurableStore) -> None:
    await given_up(store, ["m1", "m2"])
    new = await durable(store, topic=TOPIC, ordered=True)
    assert await replayed(store) == (2, 0)
    after = await states(store)
    assert (after["m1", new], after["m2", new]) == (("pending", None), ("waiting", None))
    assert await store.next_due() == NOW


async def test_twice_is_once(store: DurableStore) -> None:
    old = await given_up(store, ["m"])
    new = await durable(store, topic=TOPIC)
    assert await replayed(store) == (1, 0)
    assert await replayed(store) == (0, 0)
    assert await replayed(store, Selection(state="cancelled")) == (0, 1)
    # Its successor is gone as well; only that one's delivery goes on to the next.
    await settle(store, *map(gone, await claim(store)))
    await durable(store, topic=TOPIC)
    assert await replayed(store, Selection(state="cancelled")) == (0, 1)
    assert await replayed(store) == (1, 0)
    assert len(await claim(store)) == 1
    after = await states(store)
    assert after["m", old] == after["m", new] == ("cancelled", "sent_again")


async def test_one_that_has_it_already_is_no_successor(store: DurableStore) -> None:
    has_it = await durable(store, ENDPOINT + "#has", topic=TOPIC)
    old = await durable(store, topic=TOPIC)
    await accept_all(store, ["m"], [has_it, old])
    for each in await claim(store):
        await settle(store, gone(each) if each.held.subscription_id == old else delivered(each))
    assert await replayed(store) == (0, 1)
    assert await states(store) == {("m", old): ("dead", "gone"), ("m", has_it): ("delivered", None)}


async def test_nor_is_another_endpoint_another_topic_best_effort_or_an_expired_one(store: DurableStore) -> None:
    old = await given_up(store, ["m"])
    await durable(store, OTHER, topic=TOPIC)
    await durable(store, ENDPOINT, topic=b"another")
    await durable(store, ENDPOINT + "#expired", topic=TOPIC, lease_seconds=1)
    was_durable = await durable(store, ENDPOINT + "#best-effort", topic=TOPIC)
    await store.subscribe(asking(ENDPOINT + "#best-effort", TOPIC, lease_seconds=600), now=NOW)
    assert await replayed(store, now=NOW + SECOND) == (0, 1)
    assert await states(store) == {("m", old): ("dead", "gone")}
    assert await store.subscription(was_durable, now=NOW + SECOND) is not None


@pytest.mark.parametrize("pattern", [Pattern.glob("orders/*/paid"), Pattern.mqtt("orders/#")])
async def test_a_pattern_takes_what_it_matches(store: DurableStore, pattern: Pattern) -> None:
    old = await durable(store)
    for message_id, topic in (("m1", b"orders/1/paid"), ("m2", b"returns/1/paid")):
        asked = publication(message_id, [old])
        await store.accept(asked._replace(notification=asked.notification._replace(topic=topic)), now=NOW)
    for each in await claim(store):
        await settle(store, gone(each))
    request = replace(asking(ENDPOINT, pattern, lease_seconds=600), delivery="durable")
    await store.subscribe(request, now=NOW)
    assert await replayed(store) == (1, 1)
    assert ids(await claim(store)) == ["m1"]


async def test_many_in_slices(store: DurableStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_upkeep, "_SUBSCRIPTIONS_LOOKED_AT", 10)
    old = await durable(store, topic=TOPIC)
    await asyncio.gather(*(store.accept(publication(f"m{n:02}", [old]), now=NOW) for n in range(30)))
    first, *others = await claim(store)
    await settle(store, *map(dead, others), gone(first))
    await work_off(store)
    await durable(store, topic=TOPIC, ordered=True)
    for n in range(5):
        await durable(store, f"{ENDPOINT}#{n}", topic=b"another")
    replay = await store.replay(Selection(), now=NOW)
    assert await work_off(store) == 8, "six subscriptions and four deliveries in each"
    finished = await store.replay_progress(replay.number)
    assert finished is not None
    assert (finished.replayed, finished.skipped) == (30, 0)
    got = []
    while claimed := await claim(store):
        got += [(each.sequence, *ids([each])) for each in claimed]
        await settle(store, *map(delivered, claimed))
    assert got == [(n + 1, f"m{n:02}") for n in range(30)]
