"""What every store promises about durable delivery. Runs over all backends of conftest.py."""

from __future__ import annotations

import asyncio

import pytest

from httppubsubclient.protocol.errors import InvalidRequest, Unavailable
from httppubsubclient.protocol.messages import Notification
from httppubsubserver.stores.durable import (
    CHUNK_BYTES,
    MAX_ANSWER_BYTES,
    MAX_ATTEMPTS_KEPT,
    Accepted,
    Attempt,
    Durability,
    Publication,
    Selection,
    Settlement,
    StoredMessage,
)
from tests.stores.conftest import NOW, SECOND, A, OpenStore, asking, only_lasting, put
from tests.stores.durable_stores import (
    AGAIN_AT,
    ENDPOINT,
    LEASE,
    OTHER,
    YEAR,
    FullStore,
    accept_all,
    again,
    claim,
    dead,
    delivered,
    durable,
    gone,
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
    async def test_a_subscription_becomes_durable_with_its_options_and_stays_it(self, store: FullStore) -> None:
        options = Durability(True, (0, 1.5, 60))
        subscription, created = await store.subscribe_durable(asking(A, b"t"), options, now=NOW)
        assert created
        assert await store.subscription(subscription.id, now=NOW) == subscription
        assert await store.durability(subscription.id, now=NOW) == options
        renewed, created = await store.subscribe(asking(A, b"t", lease_seconds=90), now=NOW)
        assert (created, renewed.id) == (False, subscription.id)
        assert await store.durability(subscription.id, now=NOW) == options
        again, created = await store.subscribe_durable(asking(A, b"t"), Durability(), now=NOW)
        assert (created, again.id) == (False, subscription.id)
        assert await store.durability(subscription.id, now=NOW) == Durability()
        assert await store.durability(subscription.id, now=NOW + 60 * SECOND) is None

    async def test_one_that_was_best_effort_becomes_durable(self, store: FullStore) -> None:
        subscription_id = await put(store, A, b"t")
        assert await store.durability(subscription_id, now=NOW) is None
        version = await store.version()
        assert await durable(store, A) == subscription_id
        assert await store.durability(subscription_id, now=NOW) == Durability()
        assert [each.id for each in (await store.changes_since(version)).changed] == [subscription_id]


class TestAccepting:
    async def test_what_was_accepted_is_claimed_with_all_that_an_attempt_needs(self, store: FullStore) -> None:
        request = asking(A, b"t", lease_seconds=100)
        subscription, _ = await store.subscribe_durable(request, Durability(False, (0, 7)), now=NOW)
        told = Notification("m1", b"\x00\xff", "text/x", b"h" * 32, 4, "00-" + "1" * 32 + "-" + "2" * 16 + "-01")
        accepted = await store.accept(Publication(told, b"data", [subscription.id], None, NOW + 9), now=NOW)
        assert accepted == Accepted(1, False, ())
        [claimed] = await claim(store)
        assert claimed.message == StoredMessage(told, NOW, None, NOW + 9, b"data", True)
        assert claimed[2:] == (A, 1, None, 1, (0, 7), subscription.expires_at, NOW + LEASE)
        assert claimed.held.subscription_id == subscription.id

    async def test_a_message_for_nobody_durable_writes_nothing(self, store: FullStore) -> None:
        best_effort = await put(store, A, b"t")
        expired = await durable(store, OTHER, lease_seconds=1)
        before = await store.counts(now=NOW)
        for subscription_ids in ([], [best_effort], ["sub_unknown"], [expired]):
            accepted = await store.accept(publication("m", subscription_ids), now=NOW + SECOND)
            assert accepted == Accepted(0, False, ())
        assert await store.message("m", cursor=None, limit=10) is None
        assert await store.counts(now=NOW) == before
        assert await store.next_due() is None

    async def test_the_same_message_id_twice_is_one(self, store: FullStore) -> None:
        subscribers = [await durable(store), await durable(store, OTHER)]
        first, second = await asyncio.gather(
            *(store.accept(publication("m", subscribers), now=NOW, terms=terms()) for _ in range(2))
        )
        assert (first.deliveries, first.repeated, len(first.leased)) == (2, False, 2)
        assert second == Accepted(2, True, ())
        assert await store.accept(publication("m", [], b"other"), now=NOW) == Accepted(2, True, ())
        assert len(await listed(store)) == 2

    async def test_a_subscription_that_is_named_twice_gets_one(self, store: FullStore) -> None:
        subscriber = await durable(store)
        assert (await store.accept(publication("m", [subscriber, subscriber]), now=NOW)).deliveries == 1

    async def test_sequences_have_no_gaps_and_name_the_message_before(self, store: FullStore) -> None:
        one, two = await durable(store), await durable(store, OTHER)
        calls = [store.accept(publication(f"m{n}", [one, two] if n % 3 else [two]), now=NOW) for n in range(30)]
        await asyncio.gather(*calls)
        for subscriber, count in ((one, 20), (two, 30)):
            rows = sorted(await listed(store, Selection(subscriber)), key=lambda row: row.sequence)
            assert [row.sequence for row in rows] == list(range(1, count + 1))
            assert [row.previous_message_id for row in rows] == [None, *(row.message_id for row in rows[:-1])]

    @pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES])
    async def test_a_body_comes_back_as_it_was(self, store: FullStore, size: int) -> None:
        body = bytes(range(256)) * (size // 256) or b"\x00" * size
        subscriber = await durable(store)
        await store.accept(publication("m", [subscriber], body), now=NOW)
        [claimed] = await claim(store)
        assert claimed.message.body == body
        assert await store.read_chunk("m", 0) == body
        assert await store.read_chunk("m", 1) is None
        assert await store.read_chunk("other", 0) is None

    async def test_a_large_body_is_in_pieces(self, store: FullStore) -> None:
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

    async def test_pieces_that_were_never_accepted_go_after_an_hour(self, store: FullStore) -> None:
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
    async def test_the_accepting_transaction_leases_what_it_may(self, store: FullStore) -> None:
        subscribers = [await durable(store, f"{ENDPOINT}#{n}") for n in range(4)] + [await durable(store, OTHER)]
        accepted = await store.accept(publication("m", subscribers), now=NOW, terms=terms(per_endpoint=2))
        assert [each.held.subscription_id for each in accepted.leased] == [*subscribers[:2], subscribers[4]]
        claimed = await claim(store)
        assert {each.held.subscription_id for each in claimed} == set(subscribers[2:4])
        assert (await settle(store, *map(delivered, [*accepted.leased, *claimed]))) == [True] * 5
        assert {state for state, _ in (await states(store)).values()} == {"delivered"}

    async def test_at_most_so_many(self, store: FullStore) -> None:
        subscribers = [await durable(store, f"http://{n}.example/") for n in range(5)]
        accepted = await store.accept(publication("m", subscribers), now=NOW, terms=terms(at_most=3))
        assert len(accepted.leased) == 3
        assert len(await claim(store)) == 2

    async def test_not_where_something_older_is_due_or_nothing_may_be_sent(self, store: FullStore) -> None:
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

    async def test_a_crash_is_a_lease_that_ends(self, store: FullStore) -> None:
        subscriber = await durable(store)
        [first] = (await store.accept(publication("m", [subscriber]), now=NOW, terms=terms())).leased
        assert await store.next_due() == NOW + LEASE
        assert await claim(store, holder="other", now=NOW + LEASE - 1) == ()
        [second] = await claim(store, holder="other", now=NOW + LEASE)
        assert (first.attempt, second.attempt) == (1, 2)


class TestLeases:
    async def test_nobody_claims_what_is_leased_until_the_lease_ends(self, store: FullStore) -> None:
        await accept_all(store, ["m"], [await durable(store)])
        [first] = await claim(store)
        assert await claim(store, now=NOW + LEASE - 1) == ()
        [row] = await listed(store)
        assert (row.state, row.due_at, row.leased_until, row.attempts) == ("pending", None, NOW + LEASE, 1)
        [second] = await claim(store, now=NOW + LEASE)
        assert (first.attempt, second.attempt) == (1, 2)

    async def test_a_zombie_settles_nothing(self, store: FullStore) -> None:
        await accept_all(store, ["m"], [await durable(store)])
        [zombie] = await claim(store, holder="zombie")
        [holder] = await claim(store, holder="holder", now=NOW + LEASE)
        for settlement in (delivered(zombie), again(zombie), dead(zombie), gone(zombie)):
            assert await settle(store, settlement) == [False]
        assert await store.extend([zombie.held], until=NOW + 9 * LEASE, now=NOW) == [False]
        assert await settle(store, delivered(holder)) == [True]
        assert await settle(store, delivered(holder), again(holder)) == [False, False]
        assert await states(store) == {("m", holder.held.subscription_id): ("delivered", None)}

    async def test_an_earlier_lease_of_the_same_holder_is_lost_too(self, store: FullStore) -> None:
        await accept_all(store, ["m"], [await durable(store)])
        [first] = await claim(store)
        [second] = await claim(store, now=NOW + LEASE)
        await settle(store, dead(second))
        await store.replay(Selection(), now=NOW + LEASE)
        await work_off(store, now=NOW + LEASE)
        [third] = await claim(store, now=NOW + LEASE)
        assert third.attempt == first.attempt == 1
        assert await settle(store, delivered(first)) == [False]
        assert await settle(store, delivered(third)) == [True]

    async def test_a_late_settlement_counts_while_nobody_else_has_claimed(self, store: FullStore) -> None:
        await accept_all(store, ["m"], [await durable(store)])
        [claimed] = await claim(store)
        assert await settle(store, delivered(claimed), now=NOW + 2 * LEASE) == [True]

    async def test_a_lease_can_be_extended(self, store: FullStore) -> None:
        await accept_all(store, ["m"], [await durable(store)])
        [claimed] = await claim(store)
        assert await store.extend([claimed.held], until=NOW + 2 * LEASE, now=NOW) == [True]
        assert await claim(store, now=NOW + 2 * LEASE - 1) == ()
        assert await settle(store, delivered(claimed)) == [True]
        assert await store.extend([claimed.held], until=NOW + 3 * LEASE, now=NOW) == [False]

    async def test_concurrent_claims_share_without_overlap(self, store: FullStore) -> None:
        await accept_all(store, [f"m{n}" for n in range(30)], [await durable(store)])
        claims = await asyncio.gather(*(claim(store, holder=str(n), at_most=7) for n in range(6)))
        assert sorted(id_ for each in claims for id_ in ids(each)) == sorted(f"m{n}" for n in range(30))


class TestTrying:
    async def test_again_is_due_when_it_says(self, store: FullStore) -> None:
        await accept_all(store, ["m"], [await durable(store)])
        [claimed] = await claim(store)
        assert await settle(store, again(claimed)) == [True]
        [row] = await listed(store)
        assert (row.state, row.due_at, row.leased_until, row.status) == ("pending", AGAIN_AT, None, 503)
        assert await claim(store, now=AGAIN_AT - 1) == ()
        assert await store.next_due() == AGAIN_AT
        [claimed] = await claim(store, now=AGAIN_AT)
        assert claimed.attempt == 2

    async def test_a_dead_one_keeps_its_last_answer_bounded(self, store: FullStore) -> None:
        await accept_all(store, ["m"], [subscriber := await durable(store)])
        [claimed] = await claim(store)
        attempt = Attempt(NOW, NOW + 5, 400, "e" * 9999, b"\x00\xff<" * 9999)
        await settle(store, Settlement(claimed.held, "dead", attempt, reason="refused"))
        assert await states(store) == {("m", subscriber): ("dead", "refused")}
        shown = await store.message("m", cursor=None, limit=10)
        assert shown is not None
        [kept] = shown.attempts
        assert (kept.subscription_id, kept.number) == (subscriber, 1)
        bounded = attempt._replace(error="e" * MAX_ANSWER_BYTES, answer=attempt.answer[:MAX_ANSWER_BYTES])
        assert kept.attempt == bounded
        assert await claim(store, now=NOW + YEAR) == ()
        assert await store.next_due() is None

    async def test_the_attempts_that_failed_are_kept_bounded(self, store: FullStore) -> None:
        subscriber = await durable(store, lease_seconds=1000 * 86_400)
        await accept_all(store, ["m"], [subscriber])
        for n in range(MAX_ATTEMPTS_KEPT + 3):
            [claimed] = await claim(store, now=NOW + n)
            await settle(store, again(claimed, NOW + n + 1))
        shown = await store.message("m", cursor=None, limit=10)
        assert shown is not None
        assert [each.number for each in shown.attempts] == list(range(4, MAX_ATTEMPTS_KEPT + 4))

    async def test_gone_removes_the_subscription_and_what_it_is_owed(self, store: FullStore) -> None:
        gone_one, other = await durable(store), await durable(store, OTHER)
        await accept_all(store, ["m1", "m2", "m3"], [gone_one, other])
        mine = [each for each in await claim(store) if each.held.subscription_id == gone_one]
        version = await store.version()
        assert await settle(store, gone(mine[0])) == [True]
        assert await store.subscription(gone_one, now=NOW) is None
        assert (await store.changes_since(version)).removed == (gone_one,)
        await work_off(store)
        # Two are under way; they still may have reached somebody.
        assert await settle(store, delivered(mine[1]), again(mine[2])) == [True, True]
        assert await claim(store, now=AGAIN_AT) != ()
        after = await states(store)
        assert {after[name, gone_one] for name in ("m1", "m3")} == {("dead", "gone")}
        assert after["m2", gone_one] == ("delivered", None)
        assert after["m1", other] == ("pending", None)

    async def test_gone_does_not_remove_what_was_renewed_since(self, store: FullStore) -> None:
        subscriber = await durable(store, lease_seconds=10)
        await accept_all(store, ["m"], [subscriber])
        [claimed] = await claim(store)
        await durable(store, lease_seconds=20)
        assert await settle(store, gone(claimed)) == [True]
        assert await store.subscription(subscriber, now=NOW) is not None
        assert await states(store) == {("m", subscriber): ("dead", "gone")}


class TestTurns:
    async def test_a_claim_takes_so_many_of_each_endpoint(self, store: FullStore) -> None:
        one, two = await durable(store), await durable(store, OTHER)
        for n in range(10):
            await store.accept(publication(f"a{n}", [one]), now=NOW)
        await accept_all(store, ["b1", "b2"], [two], now=NOW + 1)
        assert ids(await claim(store, now=NOW + 1, per_endpoint=3)) == ["a0", "a1", "a2", "b1", "b2"]

    async def test_endpoints_take_turns(self, store: FullStore) -> None:
        subscribers = {await durable(store, f"http://{n}.example/"): n for n in range(4)}
        await accept_all(store, [str(n) for n in range(10)], list(subscribers))
        turns = []
        for n in range(8):
            claimed = await claim(store, now=NOW + 1 + n, at_most=2, per_endpoint=2)
            turns.append({subscribers[each.held.subscription_id] for each in claimed})
        assert all(len(turn) == 1 for turn in turns)
        assert set.union(*turns[:4]) == set.union(*turns[4:]) == {0, 1, 2, 3}

    async def test_fragments_of_one_url_are_one_endpoint(self, store: FullStore) -> None:
        subscribers = [await durable(store, f"{ENDPOINT}{end}") for end in ("", "#1", "#2")]
        await accept_all(store, ["m"], subscribers)
        claimed = await claim(store, per_endpoint=2)
        assert len(claimed) == 2
        assert {each.url for each in claimed + await claim(store)} == {f"{ENDPOINT}{end}" for end in ("", "#1", "#2")}

    async def test_limits_stand_for_the_endpoints_they_name(self, store: FullStore) -> None:
        one, two = await durable(store, ENDPOINT + "#x"), await durable(store, OTHER)
        await accept_all(store, ["m1", "m2", "m3"], [one, two])
        probing = terms()._replace(limits={ENDPOINT: 0, OTHER: 1})
        claims = await store.claim(probing, now=NOW)
        assert [each.held.subscription_id for each in claims.deliveries] == [two]
        assert await store.next_due({OTHER: 0, ENDPOINT: 0}) is None
        claims = await store.claim(terms()._replace(limits={OTHER: 0}), now=NOW)
        assert [each.held.subscription_id for each in claims.deliveries] == [one] * 3
        assert claims.next_due_at == NOW + LEASE
        assert await store.next_due() == NOW

    async def test_a_blocked_endpoint_waits_and_the_last_word_counts(self, store: FullStore) -> None:
        one, two = await durable(store), await durable(store, OTHER)
        await accept_all(store, ["m1"], [one, two])
        await store.block_endpoint(ENDPOINT, until=NOW + 100, now=NOW)
        await store.block_endpoint("http://unknown.example/", until=NOW + 100, now=NOW)
        assert (await store.counts(now=NOW)).endpoints_blocked == 1
        [free] = await claim(store)
        assert free.held.subscription_id == two
        await settle(store, delivered(free))
        await accept_all(store, ["m2"], [one])
        assert await claim(store, now=NOW + 99) == ()
        assert await store.next_due() == NOW + 100
        await store.block_endpoint(ENDPOINT, until=NOW + 50, now=NOW)
        assert await claim(store, now=NOW + 49) == ()
        assert len(await claim(store, now=NOW + 50)) == 2
        await store.block_endpoint(ENDPOINT, until=NOW + 3 * LEASE, now=NOW)
        assert await claim(store, now=NOW + 2 * LEASE) == ()
        await store.block_endpoint(ENDPOINT, until=NOW, now=NOW)
        assert len(await claim(store, now=NOW + 2 * LEASE)) == 2

    async def test_what_is_settled_again_under_a_block_waits_for_it(self, store: FullStore) -> None:
        await accept_all(store, ["m"], [await durable(store)])
        [claimed] = await claim(store)
        await store.block_endpoint(ENDPOINT, until=NOW + 2 * LEASE, now=NOW)
        await settle(store, again(claimed, NOW + 5))
        assert await store.next_due() == NOW + 2 * LEASE
        assert await claim(store, now=NOW + 2 * LEASE - 1) == ()
        assert len(await claim(store, now=NOW + 2 * LEASE)) == 1

    async def test_bodies_in_memory_are_bounded(self, store: FullStore) -> None:
        subscriber = await durable(store)
        for n in range(5):
            await store.accept(publication(f"m{n}", [subscriber], b"x" * 1000), now=NOW)
        small = terms()._replace(max_body_bytes=1500)
        assert [len((await store.claim(small, now=NOW + n)).deliveries) for n in range(4)] == [2, 2, 1, 0]

    async def test_next_due_is_never_late(self, store: FullStore) -> None:
        subscriber = await durable(store)
        assert await store.next_due() is None
        await store.accept(publication("later", [subscriber], deliver_at=NOW + 500), now=NOW)
        assert await store.next_due() == NOW + 500
        await store.accept(publication("soon", [subscriber], deliver_at=NOW + 100), now=NOW)
        assert await store.next_due() == NOW + 100
        claims = await store.claim(terms(), now=NOW + 100)
        assert ids(claims.deliveries) == ["soon"]
        assert claims.next_due_at == NOW + 500
        await settle(store, again(claims.deliveries[0], NOW + 200))
        assert await store.next_due() == NOW + 200


class TestOrder:
    async def test_one_at_a_time_in_the_order_of_acceptance(self, store: FullStore) -> None:
        subscriber = await durable(store, ordered=True)
        await accept_all(store, ["m1", "m2", "m3"], [subscriber])
        assert [row.state for row in reversed(await listed(store))] == ["pending", "waiting", "waiting"]
        [first] = await claim(store)
        assert ids([first]) == ["m1"]
        assert await claim(store) == ()
        await settle(store, again(first, NOW + 5))
        assert await claim(store) == ()
        [first] = await claim(store, now=NOW + 5)
        assert ids([first]) == ["m1"]
        await settle(store, delivered(first))
        [second] = await claim(store)
        assert ids([second]) == ["m2"]
        await settle(store, dead(second))
        assert ids(await claim(store)) == ["m3"]

    async def test_only_the_first_starts_at_once(self, store: FullStore) -> None:
        subscriber = await durable(store, ordered=True)
        accepted = await asyncio.gather(
            *(store.accept(publication(f"m{n}", [subscriber]), now=NOW, terms=terms()) for n in range(3))
        )
        assert [len(each.leased) for each in accepted] == [1, 0, 0]
        [first] = accepted[0].leased
        assert first.held.ordered
        await settle(store, delivered(first))
        assert ids(await claim(store)) == ["m1"]

    async def test_another_subscription_of_the_endpoint_does_not_wait(self, store: FullStore) -> None:
        ordered, other = await durable(store, ENDPOINT + "#1", ordered=True), await durable(store, ENDPOINT)
        await accept_all(store, ["m1", "m2"], [ordered, other])
        assert len(await claim(store)) == 3

    async def test_what_is_replayed_comes_first_but_after_what_is_on_its_way(self, store: FullStore) -> None:
        subscriber = await durable(store, ordered=True)
        await accept_all(store, ["m1", "m2", "m3", "m4"], [subscriber])
        for _ in range(2):
            await settle(store, dead((await claim(store))[0]))
        [third] = await claim(store)
        await store.replay(Selection(), now=NOW)
        await work_off(store)
        assert await claim(store) == ()
        await settle(store, again(third, NOW + 1))
        for expected in ("m1", "m2", "m3", "m4"):
            [claimed] = await claim(store, now=NOW + 1)
            assert ids([claimed]) == [expected]
            await settle(store, delivered(claimed), now=NOW + 1)

    async def test_what_is_scheduled_does_not_hold_up_the_others(self, store: FullStore) -> None:
        subscriber = await durable(store, ordered=True)
        await store.accept(publication("later", [subscriber], deliver_at=NOW + 5), now=NOW)
        await accept_all(store, ["m1", "m2"], [subscriber])
        [claimed] = await claim(store)
        assert ids([claimed]) == ["m1"]
        assert ids(await claim(store, now=NOW + 5)) == ["later"]

    async def test_one_that_expires_frees_the_next(self, store: FullStore) -> None:
        subscriber = await durable(store, ordered=True)
        await store.accept(publication("m1", [subscriber], expires_at=NOW + 5), now=NOW)
        await accept_all(store, ["m2"], [subscriber])
        assert await claim(store, now=NOW + 5) == ()
        assert ids(await claim(store, now=NOW + 5)) == ["m2"]


class TestEnds:
    @pytest.mark.parametrize("how", ["unsubscribe", "replace"])
    async def test_what_is_unsubscribed_from_is_cancelled_and_stays_in_view(self, store: FullStore, how: str) -> None:
        subscriber, other = await durable(store), await durable(store, OTHER)
        await accept_all(store, ["m1", "m2", "m3"], [subscriber, other])
        first = next(each for each in await claim(store, at_most=2, per_endpoint=1))
        await settle(store, delivered(first))
        if how == "unsubscribe":
            assert await store.unsubscribe(first.held.subscription_id, now=NOW)
        else:
            await store.replace(first.url, [], if_match=None, now=NOW)
        await work_off(store)
        after = await states(store)
        assert [after[name, first.held.subscription_id] for name in ("m1", "m2", "m3")] == [
            ("delivered", None),
            ("cancelled", "unsubscribed"),
            ("cancelled", "unsubscribed"),
        ]
        rest = {subscriber, other} - {first.held.subscription_id}
        assert {each.held.subscription_id for each in await claim(store, now=NOW + LEASE)} == rest

    async def test_a_claim_that_comes_first_gives_them_up_itself(self, store: FullStore) -> None:
        subscriber = await durable(store)
        await accept_all(store, ["m1"], [subscriber])
        await store.unsubscribe(subscriber, now=NOW)
        assert await claim(store) == ()
        assert await states(store) == {("m1", subscriber): ("cancelled", "unsubscribed")}

    @pytest.mark.parametrize("pruned", [False, True])
    @pytest.mark.parametrize("worked_off", [False, True])
    async def test_what_an_expired_subscription_is_owed_is_dead(
        self, store: FullStore, pruned: bool, worked_off: bool
    ) -> None:
        subscriber = await durable(store, lease_seconds=10, ordered=True)
        await accept_all(store, ["m1", "m2"], [subscriber])
        now = NOW + 10 * SECOND
        if pruned:
            assert await store.prune(now=now) == 1
        if worked_off:
            await work_off(store, now=now)
        for _ in range(2):
            assert await claim(store, now=now) == ()
        assert set((await states(store)).values()) == {("dead", "subscription_expired")}

    async def test_many_are_called_off_in_slices(self, store: FullStore) -> None:
        subscriber = await durable(store, ordered=True)
        await asyncio.gather(*(store.accept(publication(f"m{n}", [subscriber]), now=NOW) for n in range(1200)))
        await store.unsubscribe(subscriber, now=NOW)
        assert await work_off(store) == 3
        assert set((await states(store)).values()) == {("cancelled", "unsubscribed")}
        assert (await store.counts(now=NOW)).pending == 0

    async def test_an_expired_message_is_dead_when_it_is_claimed_or_before(self, store: FullStore) -> None:
        one, two = await durable(store), await durable(store, OTHER)
        await store.accept(publication("m1", [one, two], expires_at=NOW + 10), now=NOW)
        await store.block_endpoint(OTHER, until=NOW + 1000, now=NOW)
        assert await claim(store, now=NOW + 10) == ()
        assert (await states(store))["m1", one] == ("dead", "expired")
        assert (await states(store))["m1", two] == ("pending", None)
        assert await store.work_off(now=NOW + 9) == 0
        await work_off(store, now=NOW + 10)
        assert (await states(store))["m1", two] == ("dead", "expired")

    async def test_what_expires_under_way_may_still_arrive(self, store: FullStore) -> None:
        one, two = await durable(store), await durable(store, OTHER)
        await store.accept(publication("m", [one, two], expires_at=NOW + 10), now=NOW)
        first, second = await claim(store)
        await work_off(store, now=NOW + 10)
        assert await settle(store, delivered(first), again(second, NOW + 20), now=NOW + 15) == [True, True]
        assert await claim(store, now=NOW + 20) == ()
        assert sorted((await states(store)).values(), key=str) == [("dead", "expired"), ("delivered", None)]

    async def test_many_expire_in_slices(self, store: FullStore) -> None:
        subscribers = [await durable(store, f"http://{n % 7}.example/#{n}") for n in range(1200)]
        await store.accept(publication("m", subscribers, expires_at=NOW + 10), now=NOW)
        assert await work_off(store, now=NOW + 10) == 3
        assert set((await states(store)).values()) == {("dead", "expired")}


class TestScheduling:
    async def test_it_is_due_then(self, store: FullStore) -> None:
        subscriber = await durable(store)
        await store.accept(publication("m", [subscriber], deliver_at=NOW + 1000), now=NOW)
        assert await claim(store, now=NOW + 999) == ()
        [claimed] = await claim(store, now=NOW + 1000)
        assert claimed.message.deliver_at == NOW + 1000

    async def test_it_can_be_called_off_while_no_attempt_was_made(self, store: FullStore) -> None:
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

    async def test_others_cannot(self, store: FullStore) -> None:
        await accept_all(store, ["m"], [await durable(store)])
        assert await store.cancel_scheduled("m", now=NOW) == 0
        assert await store.cancel_scheduled("unknown", now=NOW) == 0

    async def test_many_are_called_off_in_slices(self, store: FullStore) -> None:
        subscribers = [await durable(store, f"http://{n % 7}.example/#{n}") for n in range(1200)]
        await store.accept(publication("m", subscribers, deliver_at=NOW + 1000), now=NOW)
        assert await store.cancel_scheduled("m", now=NOW) == 1200


class TestLooking:
    async def test_pages_follow_each_other_and_leave_nothing_out(self, store: FullStore) -> None:
        subscribers = [await durable(store, f"http://{n}.example/") for n in range(3)]
        for n in range(7):
            await store.accept(publication(f"m{n}", subscribers), now=NOW + n // 2)
        for each in await claim(store, now=NOW + 9, per_endpoint=4):
            await settle(store, dead(each))
        rows = await listed(store)
        assert len(rows) == 21
        assert [row.message_id for row in rows[::3]] == [f"m{n}" for n in reversed(range(7))]
        selections = {
            Selection(): rows,
            Selection(subscribers[1]): [row for row in rows if row.subscription_id == subscribers[1]],
            Selection(state="dead"): [row for row in rows if row.state == "dead"],
            Selection(state="pending"): [row for row in rows if row.state == "pending"],
            Selection(subscribers[0], "dead"): [
                row for row in rows if row.subscription_id == subscribers[0] and row.state == "dead"
            ],
            Selection(message_id="m2"): [row for row in rows if row.message_id == "m2"],
            Selection(subscribers[2], message_id="m2"): [
                row for row in rows if row.message_id == "m2" and row.subscription_id == subscribers[2]
            ],
            Selection(message_id="unknown"): [],
            Selection("unknown"): [],
            Selection(accepted_from=NOW + 1, accepted_until=NOW + 3): [
                row for row in rows if NOW + 1 <= row.accepted_at < NOW + 3
            ],
            Selection(state="dead", accepted_from=NOW + 1): [
                row for row in rows if row.accepted_at >= NOW + 1 and row.state == "dead"
            ],
            Selection(subscribers[1], accepted_until=NOW + 2): [
                row for row in rows if row.accepted_at < NOW + 2 and row.subscription_id == subscribers[1]
            ],
        }
        for selection, expected in selections.items():
            for limit in (1, 2, 5, 100):
                assert await listed(store, selection, limit=limit) == expected, (selection, limit)

    async def test_a_rare_one_among_many_is_found_over_short_pages(self, store: FullStore) -> None:
        subscriber = await durable(store)
        await asyncio.gather(*(store.accept(publication(f"m{n}", [subscriber]), now=NOW) for n in range(4500)))
        [first] = await claim(store, at_most=1)
        await settle(store, delivered(first))
        page = await store.deliveries(Selection(state="delivered"), cursor=None, limit=10)
        assert (page.deliveries, page.cursor is None) == ((), False)
        assert [row.message_id for row in await listed(store, Selection(state="delivered"))] == ids([first])

    @pytest.mark.parametrize("cursor", ["", "!", "e30", "WzFd", "WyJ4Il0", "W1tdXQ", "WzFlOTk5XQ", "W10", "[" * 9999])
    async def test_a_strange_cursor_is_refused_or_is_a_place(self, store: FullStore, cursor: str) -> None:
        await accept_all(store, ["m"], [subscriber := await durable(store)])
        for selection in (Selection(), Selection(subscriber), Selection(state="dead"), Selection(message_id="m")):
            try:
                page = await store.deliveries(selection, cursor=cursor, limit=10)
            except InvalidRequest:
                continue
            assert len(page.deliveries) <= 1

    async def test_a_delivery_as_an_operator_sees_it(self, store: FullStore) -> None:
        subscriber = await durable(store, A)
        await store.accept(publication("m0", [subscriber]), now=NOW)
        await store.accept(publication("m", [subscriber]), now=NOW + 1)
        [row] = await listed(store, Selection(message_id="m"))
        assert row == (
            "m", subscriber, b"t\xff", A.partition("#")[0], "pending", None, 2, "m0", NOW + 1, NOW + 1, None, 0,
            NOW + 1, None,
        )  # fmt: skip

    async def test_a_message_with_its_deliveries_and_their_attempts(self, store: FullStore) -> None:
        subscribers = [await durable(store, f"http://{n}.example/") for n in range(3)]
        await store.accept(publication("m", subscribers), now=NOW)
        for each in await claim(store):
            await settle(store, again(each))
        first = await store.message("m", cursor=None, limit=2)
        assert first is not None
        assert first.message == StoredMessage(told("m"), NOW, None, None, None, True)
        assert {each.subscription_id for each in first.attempts} == {
            each.subscription_id for each in first.page.deliveries
        }
        second = await store.message("m", cursor=first.page.cursor, limit=2)
        assert second is not None
        assert len(second.page.deliveries) == len(second.attempts) == 1
        assert second.page.cursor is None
        assert second.attempts[0].attempt == Attempt(NOW, NOW + 1, 503, None, b"busy")
        assert await store.message("unknown", cursor=None, limit=2) is None

    async def test_counts(self, store: FullStore) -> None:
        await accept_all(store, ["m1", "m2", "m3"], [await durable(store, ordered=True), await durable(store, OTHER)])
        before = await store.counts(now=NOW)
        assert (before.pending, before.dead, before.endpoints_blocked) == (6, 0, 0)
        assert before.bytes_used > 0
        first, *_, last = await claim(store)
        await settle(store, dead(first), delivered(last))
        assert (await store.counts(now=NOW))[:2] == (4, 1)


class TestContinuity:
    async def test_what_was_missed_comes_in_order_and_says_that_it_is_complete(self, store: FullStore) -> None:
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

    async def test_what_retention_took_is_missing(self, store: FullStore) -> None:
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

    async def test_bodies_in_memory_are_bounded(self, store: FullStore) -> None:
        subscriber = await durable(store)
        for n in range(5):
            await store.accept(publication(f"m{n}", [subscriber], b"x" * 1000), now=NOW)
        page = await store.messages_after(subscriber, 0, limit=100, max_body_bytes=1500, now=NOW)
        assert page is not None
        assert (len(page.messages), page.complete, page.last) == (2, True, 5)

    async def test_only_a_durable_subscription_has_them(self, store: FullStore) -> None:
        best_effort = await put(store, A, b"t")
        expired = await durable(store, OTHER, lease_seconds=1)
        for subscriber in (best_effort, "unknown", expired):
            assert await store.messages_after(subscriber, 0, limit=1, now=NOW + SECOND) is None


class TestReplaying:
    async def test_the_dead_are_sent_again_from_the_beginning_of_their_schedule(self, store: FullStore) -> None:
        subscriber = await durable(store)
        await accept_all(store, ["m1", "m2"], [subscriber])
        first, second = await claim(store)
        await settle(store, again(first, NOW + 1))
        [first] = await claim(store, now=NOW + 1)
        await settle(store, dead(first), delivered(second), now=NOW + 1)
        replay = await store.replay(Selection(), now=NOW + 2)
        assert (replay.selection, replay.finished_at) == (Selection(state="dead"), None)
        await work_off(store, now=NOW + 3)
        finished = await store.replay_progress(replay.number)
        assert finished == replay._replace(replayed=1, finished_at=NOW + 3)
        [row] = await listed(store, Selection(message_id="m1"))
        assert (row.state, row.reason, row.due_at, row.attempts) == ("pending", None, NOW + 3, 0)
        [claimed] = await claim(store, now=NOW + 3)
        assert (ids([claimed]), claimed.attempt) == (["m1"], 1)
        assert await store.replay_progress(999) is None

    async def test_singly_by_subscription_by_time_and_by_state(self, store: FullStore) -> None:
        one, two = await durable(store), await durable(store, OTHER)
        for n in range(4):
            await store.accept(publication(f"m{n}", [one, two]), now=NOW + n)
        for each in await claim(store, now=NOW + 9):
            await settle(store, delivered(each) if each.sequence == 4 else dead(each))
        for n, (selection, expected) in enumerate(
            [
                (Selection(one, message_id="m0"), {("m0", one)}),
                (Selection(two, accepted_until=NOW + 1), {("m0", two)}),
                (Selection(accepted_from=NOW + 2), {("m2", one), ("m2", two)}),
                (Selection(one, "delivered"), {("m3", one)}),
                (Selection(), {("m1", one), ("m1", two)}),
                (Selection(), set()),
            ],
            10,
        ):
            await store.replay(selection, now=NOW + n)
            await work_off(store, now=NOW + n)
            claimed = await claim(store, now=NOW + n)
            assert {(each.message.notification.message_id, each.held.subscription_id) for each in claimed} == expected

    async def test_what_cannot_be_sent_again_is_counted(self, store: FullStore) -> None:
        there, away = await durable(store), await durable(store, OTHER)
        await store.accept(publication("expired", [there], expires_at=NOW + 5), now=NOW)
        await store.accept(publication("bodiless", [there]), now=NOW)
        await store.accept(publication("fine", [there, away]), now=NOW + 1)
        await settle(store, *map(dead, await claim(store, now=NOW + 1)))
        await store.unsubscribe(away, now=NOW + 1)
        await store.prune_messages(now=NOW + 1, bodies_before=NOW + 1, messages_before=NOW)
        replay = await store.replay(Selection(), now=NOW + 6)
        await work_off(store, now=NOW + 6)
        finished = await store.replay_progress(replay.number)
        assert finished is not None
        assert (finished.replayed, finished.skipped) == (1, 3)
        assert ids(await claim(store, now=NOW + 6)) == ["fine"]

    @pytest.mark.parametrize("state", ["pending", "waiting"])
    async def test_what_is_on_its_way_cannot_be(self, store: FullStore, state: str) -> None:
        with pytest.raises(InvalidRequest, match="on their way"):
            await store.replay(Selection(state=state), now=NOW)  # type: ignore[arg-type]

    async def test_many_in_slices_and_what_dies_meanwhile_only_once(self, store: FullStore) -> None:
        subscriber, other = await durable(store), await durable(store, OTHER)
        calls = [store.accept(publication(f"m{n}", [subscriber]), now=NOW) for n in range(1200)]
        await asyncio.gather(*calls)
        claimed = await claim(store, at_most=1200, per_endpoint=1200)
        await settle(store, *map(dead, claimed))
        replay = await store.replay(Selection(), now=NOW)
        slices = 0
        while await store.work_off(now=NOW + 1):
            slices += 1
            for each in await claim(store, now=NOW + 1, at_most=10):
                await settle(store, dead(each), now=NOW + 1)
            [new] = (await store.accept(publication(f"n{slices}", [other]), now=NOW, terms=terms())).leased
            await settle(store, dead(new))
        assert slices == 3
        finished = await store.replay_progress(replay.number)
        assert finished is not None
        assert finished.replayed == 1200


class TestRetention:
    async def test_bodies_go_before_messages_and_what_is_owed_stays(self, store: FullStore) -> None:
        subscriber = await durable(store)
        for n in range(5):
            await store.accept(publication(f"m{n}", [subscriber]), now=NOW + n)
        owed, *over = await claim(store, now=NOW + 9)
        await settle(store, *map(delivered, over))
        pruned = await store.prune_messages(now=NOW + 9, bodies_before=NOW + 3, messages_before=NOW + 2)
        assert pruned == (2, 1)
        assert [row.message_id for row in await listed(store)] == ["m4", "m3", "m2", "m0"]
        kept = {}
        for name in ("m0", "m2", "m3"):
            shown = await store.message(name, cursor=None, limit=1)
            assert shown is not None
            kept[name] = shown.message.body_kept
        assert kept == {"m0": True, "m2": False, "m3": True}
        assert await store.read_chunk("m2", 0) is None
        assert await settle(store, delivered(owed)) == [True]
        await store.prune_messages(now=NOW + 9, bodies_before=NOW + YEAR, messages_before=NOW + YEAR)
        assert [row.message_id for row in await listed(store)] == ["m4"], "the last one stays"

    async def test_large_bodies_go_with_all_their_pieces(self, store: FullStore) -> None:
        subscriber = await durable(store)
        pieces = [b"x" * CHUNK_BYTES] * 3
        for position, piece in enumerate(pieces):
            await store.write_chunk("m", position, piece, now=NOW)
        await store.accept(Publication(told("m", b"".join(pieces)), None, [subscriber]), now=NOW)
        used = (await store.counts(now=NOW)).bytes_used
        await settle(store, delivered((await claim(store))[0]))
        pruned = await store.prune_messages(now=NOW, bodies_before=NOW + 1, messages_before=NOW)
        assert pruned == (1, 0)
        assert await store.read_chunk("m", 0) is None
        assert (await store.counts(now=NOW)).bytes_used < used - 2 * CHUNK_BYTES

    async def test_by_size_the_oldest_go_first(self, store: FullStore) -> None:
        subscriber = await durable(store)
        for n in range(50):
            await store.accept(publication(f"m{n}", [subscriber], bytes(100_000)), now=NOW + n)
        before = (await store.counts(now=NOW)).bytes_used
        await settle(store, *map(delivered, (await claim(store, now=NOW + 99))[:40]))
        limit = before - 1_000_000
        await store.prune_messages(now=NOW + 99, bodies_before=NOW, messages_before=NOW, max_bytes=limit)
        assert (await store.counts(now=NOW)).bytes_used <= limit
        assert await store.read_chunk("m0", 0) is None
        assert await store.read_chunk("m40", 0) is not None
        assert len(await listed(store)) == 50, "without the bodies it fits"
        await store.prune_messages(now=NOW + 99, bodies_before=NOW, messages_before=NOW, max_bytes=0)
        assert len(await listed(store)) == 10, "what is owed stays"

    async def test_many_in_slices(self, store: FullStore) -> None:
        subscribers = [await durable(store, f"http://{n % 7}.example/#{n}") for n in range(1100)]
        await store.accept(publication("wide", subscribers), now=NOW)
        await asyncio.gather(*(store.accept(publication(f"m{n}", subscribers[:1]), now=NOW) for n in range(500)))
        claimed = await claim(store, at_most=2000, per_endpoint=2000)
        await settle(store, *map(dead, claimed))
        pruned = await store.prune_messages(now=NOW, bodies_before=NOW + 1, messages_before=NOW + 1)
        assert pruned == (501, 500)
        assert len(await listed(store)) == 1

    async def test_endpoints_go_when_nothing_is_left_of_them(self, store: FullStore) -> None:
        leaving, staying = await durable(store), await durable(store, OTHER)
        await accept_all(store, ["m1"], [leaving])
        await settle(store, delivered((await claim(store))[0]))
        await store.unsubscribe(leaving, now=NOW)
        await accept_all(store, ["m2", "m3"], [staying])
        await settle(store, *map(delivered, await claim(store)))
        now = NOW + LEASE
        await claim(store, now=now)
        for _ in range(2):
            await store.prune_messages(now=now, bodies_before=NOW, messages_before=NOW)
            assert {row.url for row in await listed(store)} == {ENDPOINT, OTHER}
        await accept_all(store, ["m4"], [staying], now=now)
        for _ in range(2):
            await store.prune_messages(now=now, bodies_before=NOW + 1, messages_before=NOW + 1)
        await store.block_endpoint(ENDPOINT, until=now + 1, now=now)
        await store.block_endpoint(OTHER, until=now + 1, now=now)
        assert (await store.counts(now=now)).endpoints_blocked == 1
        assert await durable(store) not in (leaving, staying)


class TestClock:
    HOUR = 3600 * SECOND

    async def test_what_was_decided_in_a_future_that_was_none_comes_back(self, store: FullStore) -> None:
        subscribers = [await durable(store, f"http://{n}.example/") for n in range(3)]
        ahead = NOW + self.HOUR
        assert await store.notice_clock(now=ahead) == 0
        await store.accept(publication("m", subscribers), now=ahead)
        await store.accept(publication("s", subscribers[:1], deliver_at=ahead + self.HOUR), now=ahead)
        held, failed, blocked = await claim(store, now=ahead)
        await settle(store, again(failed, ahead + 300 * SECOND), now=ahead)
        await settle(store, again(blocked, ahead), now=ahead)
        await store.block_endpoint(blocked.url, until=ahead + 60 * SECOND, now=ahead)
        assert await store.notice_clock(now=NOW) == 3
        assert await store.notice_clock(now=NOW) == 0
        due = {
            row.subscription_id: (row.due_at, row.leased_until)
            for row in await listed(store, Selection(message_id="m"))
        }
        assert due[held.held.subscription_id] == (None, NOW + LEASE)
        assert due[failed.held.subscription_id] == (NOW + 300 * SECOND, None)
        assert due[blocked.held.subscription_id] == (NOW, None)
        [scheduled] = await listed(store, Selection(message_id="s"))
        assert scheduled.due_at == ahead + self.HOUR
        assert await store.next_due() == NOW + 60 * SECOND
        assert await settle(store, delivered(held)) == [True]
        assert await claim(store, now=NOW + 59 * SECOND) == ()
        [unblocked] = await claim(store, now=NOW + 60 * SECOND)
        assert await settle(store, delivered(unblocked)) == [True]
        assert await claim(store, now=NOW + 299 * SECOND) == ()
        assert len(await claim(store, now=NOW + 300 * SECOND)) == 1

    async def test_an_ordered_one_goes_on(self, store: FullStore) -> None:
        subscriber = await durable(store, ordered=True)
        await store.notice_clock(now=NOW + self.HOUR)
        await accept_all(store, ["m1", "m2"], [subscriber], now=NOW + self.HOUR)
        await store.notice_clock(now=NOW)
        for expected in ("m1", "m2"):
            [claimed] = await claim(store)
            assert ids([claimed]) == [expected]
            await settle(store, delivered(claimed))

    async def test_a_clock_that_goes_on_or_differs_a_little_changes_nothing(self, store: FullStore) -> None:
        await store.notice_clock(now=NOW)
        await accept_all(store, ["m"], [await durable(store)], now=NOW + 4 * SECOND)
        for now in (NOW + 20 * SECOND, NOW + 16 * SECOND, NOW + YEAR, NOW + YEAR - 4 * SECOND):
            assert await store.notice_clock(now=now) == 0
        [claimed] = await claim(store, now=NOW + YEAR) or [None]
        assert claimed is None, "its subscription has expired"

    async def test_a_clock_that_was_set_forward_ends_waits_and_leases_early(self, store: FullStore) -> None:
        await accept_all(store, ["m1", "m2"], [await durable(store)])
        first, second = await claim(store)
        await settle(store, again(first))
        assert {*ids(await claim(store, now=NOW + self.HOUR))} == {"m1", "m2"}
        assert await settle(store, delivered(second), now=NOW + self.HOUR) == [False]

    async def test_many_endpoints_and_deliveries_in_slices(self, store: FullStore) -> None:
        subscribers = [await durable(store, f"http://{min(n, 150)}.example/#{n}") for n in range(1300)]
        await store.notice_clock(now=NOW + self.HOUR)
        await store.accept(publication("m", subscribers), now=NOW + self.HOUR)
        assert await store.notice_clock(now=NOW) == 1300
        assert len(await claim(store, at_most=2000, per_endpoint=2000)) == 1300


@only_lasting
class TestLasting:
    async def test_all_of_it_outlives_the_process(self, lasting: OpenStore) -> None:
        async with lasting() as opened:
            store: FullStore = opened  # type: ignore[assignment]
            subscriber = await durable(store, ordered=True)
            await accept_all(store, ["m1", "m2"], [subscriber])
            await settle(store, dead((await claim(store))[0]))
            [second] = await claim(store)
            replay = await store.replay(Selection(), now=NOW)
        async with lasting() as opened:
            store = opened  # type: ignore[assignment]
            await work_off(store)
            progress = await store.replay_progress(replay.number)
            assert progress is not None
            assert progress.replayed == 1
            assert await settle(store, delivered(second)) == [True]
            assert ids(await claim(store)) == ["m1"]

    async def test_a_closed_store_is_unavailable(self, lasting: OpenStore) -> None:
        async with lasting() as opened:
            store: FullStore = opened  # type: ignore[assignment]
            subscriber = await durable(store)
        for call in (
            store.accept(publication("m", [subscriber]), now=NOW),
            store.claim(terms(), now=NOW),
            store.next_due(),
            store.deliveries(Selection(), cursor=None, limit=1),
        ):
            with pytest.raises(Unavailable):
                await call


async def test_a_caller_that_is_cancelled_leaves_all_or_nothing(store: FullStore) -> None:
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
