"""What every store promises about durable delivery: what is accepted, and when it is due first.

Runs over all backends of conftest.py.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from httppubsubclient.protocol.errors import Unavailable
from httppubsubclient.protocol.messages import Notification
from httppubsubclient.protocol.options import DeliveryOptions
from httppubsubserver.stores.durable import (
    CHUNK_BYTES,
    Accepted,
    DurableStore,
    Publication,
    Selection,
    StoredMessage,
)
from tests.stores.conftest import NOW, SECOND, A, asking, put
from tests.stores.durable_stores import (
    ENDPOINT,
    LEASE,
    OTHER,
    accept_all,
    again,
    claim,
    delivered,
    durable,
    ids,
    listed,
    publication,
    settle,
    states,
    terms,
    told,
    work_off,
)


class TestSubscribing:
    async def test_a_subscription_has_the_options_that_were_asked_for_last(self, store: DurableStore) -> None:
        request = replace(asking(A, b"t"), delivery="durable", ordered=True, retry_schedule_seconds=(0.0, 1.5, 60.0))
        subscription, created = await store.subscribe(request, now=NOW)
        assert created
        assert subscription.options == DeliveryOptions("durable", True, (0.0, 1.5, 60.0))
        assert await store.subscription(subscription.id, now=NOW) == subscription
        again, created = await store.subscribe(replace(asking(A, b"t"), delivery="durable"), now=NOW)
        assert (created, again.id, again.options) == (False, subscription.id, DeliveryOptions("durable"))
        [kept], *_ = await store.replace(A, [request], if_match=None, now=NOW)
        assert (kept.id, kept.options) == (subscription.id, request.options)

    async def test_one_that_was_best_effort_becomes_durable(self, store: DurableStore) -> None:
        subscription_id = await put(store, A, b"t")
        version = await store.version()
        assert await durable(store, A) == subscription_id
        assert [(each.id, each.durable) for each in (await store.changes_since(version)).changed] == [
            (subscription_id, True)
        ]

    async def test_one_that_is_best_effort_again_gets_what_it_was_owed(self, store: DurableStore) -> None:
        subscription_id = await durable(store, A)
        await store.accept(publication("m1", [subscription_id]), now=NOW)
        assert await put(store, A, b"t") == subscription_id
        assert (await store.accept(publication("m2", [subscription_id]), now=NOW)).deliveries == 0
        assert ids(await claim(store)) == ["m1"]
        assert await store.unsubscribe(subscription_id, now=NOW)
        later = NOW + LEASE
        await work_off(store, now=later)
        assert await claim(store, now=later) == ()
        assert await states(store) == {("m1", subscription_id): ("cancelled", "unsubscribed")}


class TestAccepting:
    async def test_what_was_accepted_is_claimed_with_all_that_an_attempt_needs(self, store: DurableStore) -> None:
        request = replace(asking(A, b"t", lease_seconds=100), delivery="durable", retry_schedule_seconds=(0.0, 7.0))
        subscription, _ = await store.subscribe(request, now=NOW)
        told = Notification("m1", b"\x00\xff", "text/x", b"h" * 32, 4, "00-" + "1" * 32 + "-" + "2" * 16 + "-01")
        accepted = await store.accept(Publication(told, b"data", [subscription.id], None, NOW + 9), now=NOW)
        assert accepted == Accepted(1, False, ())
        [claimed] = await claim(store)
        assert claimed.message == StoredMessage(told, NOW, None, NOW + 9, b"data", True)
        assert claimed[2:] == (A, 1, None, 1, (0.0, 7.0), subscription.expires_at, NOW + LEASE, "raw", None)
        assert claimed.held.subscription_id == subscription.id

    async def test_a_message_for_nobody_durable_writes_nothing(self, store: DurableStore) -> None:
        best_effort = await put(store, A, b"t")
        expired = await durable(store, OTHER, lease_seconds=1)
        before = await store.counts(now=NOW)
        for subscription_ids in ([], [best_effort], ["sub_unknown"], [expired]):
            accepted = await store.accept(publication("m", subscription_ids), now=NOW + SECOND)
            assert accepted == Accepted(0, False, ())
        assert await store.message("m", cursor=None, limit=10) is None
        assert await store.counts(now=NOW) == before
        assert await store.next_due() is None

    async def test_the_same_message_id_twice_is_one(self, store: DurableStore) -> None:
        subscribers = [await durable(store), await durable(store, OTHER)]
        first, second = await asyncio.gather(
            *(store.accept(publication("m", subscribers), now=NOW, terms=terms()) for _ in range(2))
        )
        assert (first.deliveries, first.repeated, len(first.leased)) == (2, False, 2)
        assert second == Accepted(2, True, ())
        assert await store.accept(publication("m", [], b"other"), now=NOW) == Accepted(2, True, ())
        assert len(await listed(store)) == 2

    async def test_a_subscription_that_is_named_twice_gets_one(self, store: DurableStore) -> None:
        subscriber = await durable(store)
        assert (await store.accept(publication("m", [subscriber, subscriber]), now=NOW)).deliveries == 1

    async def test_sequences_have_no_gaps_and_name_the_message_before(self, store: DurableStore) -> None:
        one, two = await durable(store), await durable(store, OTHER)
        calls = [store.accept(publication(f"m{n}", [one, two] if n % 3 else [two]), now=NOW) for n in range(30)]
        await asyncio.gather(*calls)
        for subscriber, count in ((one, 20), (two, 30)):
            rows = sorted(await listed(store, Selection(subscriber)), key=lambda row: row.sequence)
            assert [row.sequence for row in rows] == list(range(1, count + 1))
            assert [row.previous_message_id for row in rows] == [None, *(row.message_id for row in rows[:-1])]

    @pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES])
    async def test_a_body_comes_back_as_it_was(self, store: DurableStore, size: int) -> None:
        body = bytes(range(256)) * (size // 256) or b"\x00" * size
        subscriber = await durable(store)
        await store.accept(publication("m", [subscriber], body), now=NOW)
        [claimed] = await claim(store)
        assert claimed.message.body == body
        assert await store.read_chunk("m", 0) == body
        assert await store.read_chunk("m", 1) is None
        assert await store.read_chunk("other", 0) is None

    async def test_a_large_body_is_in_pieces(self, store: DurableStore) -> None:
        subscriber = await durable(store)
        pieces = [b"a" * CHUNK_BYTES, b"b" * CHUNK_BYTES, b"c"]
        whole = Publication(told("m", b"".join(pieces)), None, [subscriber])
        with pytest.raises(Unavailable, match="pieces"):
            await store.accept(whole, now=NOW)
        for position in (0, 2):
            await store.write_chunk("m", position, pieces[position], now=NOW)
        with pytest.raises(Unavailable, match="pieces"):
            await store.accept(whole, now=NOW)
        for position in (1, 1):
            await store.write_chunk("m", position, pieces[position], now=NOW)
        assert (await store.accept(whole, now=NOW)).deliveries == 1
        await store.write_chunk("m", 0, b"too late", now=NOW)
        [claimed] = await claim(store)
        assert (claimed.message.body, claimed.message.body_kept) == (None, True)
        assert [await store.read_chunk("m", position) for position in range(4)] == [*pieces, None]

    async def test_pieces_that_were_never_accepted_go_after_an_hour(self, store: DurableStore) -> None:
        hour, data = 3600 * SECOND, b"a" * CHUNK_BYTES
        subscriber = await durable(store)
        whole = [Publication(told(name, data), None, [subscriber]) for name in ("left", "taken", "new")]
        for name, now in (("left", NOW), ("taken", NOW), ("new", NOW + 1)):
            await store.write_chunk(name, 0, data, now=now)
        await store.accept(whole[1], now=NOW)
        await store.prune_messages(now=NOW + hour, bodies_before=NOW, messages_before=NOW)
        with pytest.raises(Unavailable):
            await store.accept(whole[0], now=NOW)
        assert await store.read_chunk("taken", 0) == data
        assert (await store.accept(whole[2], now=NOW)).deliveries == 1


class TestStartingAtOnce:
    async def test_the_accepting_transaction_leases_what_it_may(self, store: DurableStore) -> None:
        subscribers = [await durable(store, f"{ENDPOINT}#{n}") for n in range(4)] + [await durable(store, OTHER)]
        accepted = await store.accept(publication("m", subscribers), now=NOW, terms=terms(per_endpoint=2))
        assert [each.held.subscription_id for each in accepted.leased] == [*subscribers[:2], subscribers[4]]
        claimed = await claim(store)
        assert {each.held.subscription_id for each in claimed} == set(subscribers[2:4])
        assert (await settle(store, *map(delivered, [*accepted.leased, *claimed]))) == [True] * 5
        assert {state for state, _ in (await states(store)).values()} == {"delivered"}

    async def test_at_most_so_many(self, store: DurableStore) -> None:
        subscribers = [await durable(store, f"http://{n}.example/") for n in range(5)]
        accepted = await store.accept(publication("m", subscribers), now=NOW, terms=terms(at_most=3))
        assert len(accepted.leased) == 3
        assert len(await claim(store)) == 2

    async def test_not_where_something_older_is_due_or_nothing_may_be_sent(self, store: DurableStore) -> None:
        subscriber = await durable(store)
        await store.accept(publication("older", [subscriber]), now=NOW)
        assert (await store.accept(publication("newer", [subscriber]), now=NOW, terms=terms())).leased == ()
        assert ids(await claim(store)) == ["older", "newer"]
        assert (await store.accept(publication("third", [subscriber]), now=NOW, terms=terms())).leased
        await store.block_endpoint(ENDPOINT, until=NOW + 1, now=NOW)
        assert (await store.accept(publication("m1", [subscriber]), now=NOW, terms=terms())).leased == ()
        other = await durable(store, OTHER)
        skipping = terms()._replace(limits={OTHER: 0})
        assert (await store.accept(publication("m2", [other]), now=NOW, terms=skipping)).leased == ()
        later = publication("m3", [other], deliver_at=NOW + 1)
        assert (await store.accept(later, now=NOW, terms=terms())).leased == ()

    async def test_a_crash_is_a_lease_that_ends(self, store: DurableStore) -> None:
        subscriber = await durable(store)
        [first] = (await store.accept(publication("m", [subscriber]), now=NOW, terms=terms())).leased
        assert await store.next_due() == NOW + LEASE
        assert await claim(store, holder="other", now=NOW + LEASE - 1) == ()
        [second] = await claim(store, holder="other", now=NOW + LEASE)
        assert (first.attempt, second.attempt) == (1, 2)


class TestScheduling:
    async def test_it_is_due_then(self, store: DurableStore) -> None:
        subscriber = await durable(store)
        await store.accept(publication("m", [subscriber], deliver_at=NOW + 1000), now=NOW)
        assert await claim(store, now=NOW + 999) == ()
        [claimed] = await claim(store, now=NOW + 1000)
        assert claimed.message.deliver_at == NOW + 1000

    async def test_it_can_be_called_off_while_no_attempt_was_made(self, store: DurableStore) -> None:
        subscribers = [await durable(store, f"http://{n}.example/") for n in range(3)]
        await store.accept(publication("m", subscribers, deliver_at=NOW + 1000), now=NOW)
        [claimed] = await claim(store, at_most=1, now=NOW + 1000)
        assert await store.cancel_scheduled("m", now=NOW + 1000) == 2
        assert await store.cancel_scheduled("m", now=NOW + 1000) == 0
        await settle(store, again(claimed, NOW + 2000))
        assert await store.cancel_scheduled("m", now=NOW + 1000) == 0
        assert sorted((await states(store)).values(), key=str) == [
            ("cancelled", "called_off"), ("cancelled", "called_off"), ("pending", None),
        ]  # fmt: skip
        assert len(await claim(store, now=NOW + 2000)) == 1

    async def test_others_cannot(self, store: DurableStore) -> None:
        await accept_all(store, ["m"], [await durable(store)])
        assert await store.cancel_scheduled("m", now=NOW) == 0
        assert await store.cancel_scheduled("unknown", now=NOW) == 0

    async def test_many_are_called_off_in_slices(self, store: DurableStore) -> None:
        subscribers = [await durable(store, f"http://{n % 7}.example/#{n}") for n in range(1200)]
        await store.accept(publication("m", subscribers, deliver_at=NOW + 1000), now=NOW)
        assert await store.cancel_scheduled("m", now=NOW) == 1200


class TestContinuity:
    async def test_what_was_missed_comes_in_order_and_says_that_it_is_complete(self, store: DurableStore) -> None:
        subscriber = await durable(store)
        await accept_all(store, [f"m{n}" for n in range(1, 8)], [subscriber])
        await settle(store, *map(delivered, await claim(store, at_most=3)))
        page = await store.messages_after(subscriber, 2, limit=3, now=NOW)
        assert page is not None
        assert [(each.sequence, each.previous_message_id) for each in page.messages] == [
            (3, "m2"), (4, "m3"), (5, "m4"),
        ]  # fmt: skip
        assert page.messages[0].message == StoredMessage(told("m3"), NOW, None, None, b"data", True)
        assert (page.complete, page.last) == (True, 7)
        for after, numbers, complete in ((7, [], True), (6, [7], True), (8, [], False), (0, list(range(1, 8)), True)):
            page = await store.messages_after(subscriber, after, limit=100, now=NOW)
            assert page is not None
            assert ([each.sequence for each in page.messages], page.complete) == (numbers, complete)

    async def test_what_retention_took_is_missing(self, store: DurableStore) -> None:
        subscriber = await durable(store)
        for n in range(1, 5):
            await store.accept(publication(f"m{n}", [subscriber]), now=NOW + n)
        await settle(store, *map(delivered, await claim(store, now=NOW + 9)))
        await store.prune_messages(now=NOW + 9, bodies_before=NOW + 3, messages_before=NOW + 2)
        expected = {0: ([2, 3, 4], False), 1: ([2, 3, 4], False), 2: ([3, 4], True)}
        for after, (numbers, complete) in expected.items():
            page = await store.messages_after(subscriber, after, limit=100, now=NOW)
            assert page is not None
            assert ([each.sequence for each in page.messages], page.complete) == (numbers, complete)

    async def test_bodies_in_memory_are_bounded(self, store: DurableStore) -> None:
        subscriber = await durable(store)
        for n in range(5):
            await store.accept(publication(f"m{n}", [subscriber], b"x" * 1000), now=NOW)
        page = await store.messages_after(subscriber, 0, limit=100, max_body_bytes=1500, now=NOW)
        assert page is not None
        assert (len(page.messages), page.complete, page.last) == (2, True, 5)

    async def test_only_a_durable_subscription_has_them(self, store: DurableStore) -> None:
        best_effort = await put(store, A, b"t")
        expired = await durable(store, OTHER, lease_seconds=1)
        for subscriber in (best_effort, "unknown", expired):
            assert await store.messages_after(subscriber, 0, limit=1, now=NOW + SECOND) is None


async def test_a_caller_that_is_cancelled_leaves_all_or_nothing(store: DurableStore) -> None:
    subscriber = await durable(store)
    for n in range(40):
        call = asyncio.create_task(store.accept(publication(f"m{n}", [subscriber]), now=NOW))
        for _ in range(n % 5):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait({call})
    claimed = await claim(store)  # after all of them
    rows = await listed(store)
    assert sorted(row.sequence for row in rows) == list(range(1, len(rows) + 1))
    assert len(claimed) == len(rows)
