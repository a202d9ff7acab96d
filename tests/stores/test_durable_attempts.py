"""What every store promises about durable delivery: leases, attempts, whose turn it is, and how a delivery ends.

Runs over all backends of conftest.py.
"""

from __future__ import annotations

import asyncio

import pytest

from httppubsubserver.stores.durable import (
    MAX_ANSWER_BYTES,
    MAX_ATTEMPTS_KEPT,
    Attempt,
    DurableStore,
    Selection,
    Settlement,
)
from tests.stores.conftest import NOW, SECOND
from tests.stores.durable_stores import (
    AGAIN_AT,
    ENDPOINT,
    LEASE,
    OTHER,
    YEAR,
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
    work_off,
)


class TestBringingForward:
    async def test_what_waits_for_its_next_attempt_is_due_and_its_schedule_begins_again(
        self, store: DurableStore
    ) -> None:
        subscriber = await durable(store)
        await accept_all(store, ["m"], [subscriber])
        for round_ in range(1, 4):
            [first] = await claim(store)
            await settle(store, again(first))
            assert await claim(store) == ()
            assert await store.bring_forward(subscriber, now=NOW) == 1
            [row] = await listed(store)
            assert (row.due_at, row.attempts, first.attempt, first.held.lease) == (NOW, 0, 1, round_)
        assert await store.bring_forward(subscriber, now=NOW) == 0, "it was not attempted since"

    async def test_what_is_due_already_begins_again_if_it_was_attempted(self, store: DurableStore) -> None:
        subscriber = await durable(store)
        await accept_all(store, ["m1", "m2"], [subscriber])
        [first] = await claim(store, at_most=1)
        await settle(store, again(first, NOW + 5))
        assert await store.bring_forward(subscriber, now=NOW + 10) == 1
        later = await claim(store, now=NOW + 10)
        assert (ids(later), [each.attempt for each in later]) == (["m2", "m1"], [1, 1])

    async def test_neither_what_is_leased_nor_what_is_for_later_nor_what_is_of_others(
        self, store: DurableStore
    ) -> None:
        one, two = await durable(store), await durable(store, OTHER)
        await store.accept(publication("later", [one], deliver_at=NOW + 100), now=NOW)
        await accept_all(store, ["m"], [one, two])
        held = {each.held.subscription_id: each for each in await claim(store)}
        await settle(store, again(held[two]))
        assert await store.bring_forward(one, now=NOW) == 0
        assert await settle(store, delivered(held[one])) == [True], "the lease is not lost"
        assert await claim(store) == ()
        assert await store.bring_forward("sub_none", now=NOW) == 0

    async def test_many_are_brought_forward_in_slices(self, store: DurableStore) -> None:
        subscriber = await durable(store)
        names = [f"m{number}" for number in range(2100)]
        await accept_all(store, names, [subscriber])
        claimed = await claim(store, at_most=2000, per_endpoint=2000)
        await settle(store, *(again(each, NOW + number) for number, each in enumerate(claimed)))
        assert await store.bring_forward(subscriber, now=NOW + 500) == 2000
        assert {(row.due_at or 0) <= NOW + 500 and row.attempts == 0 for row in await listed(store)} == {True}


class TestLeases:
    async def test_nobody_claims_what_is_leased_until_the_lease_ends(self, store: DurableStore) -> None:
        await accept_all(store, ["m"], [await durable(store)])
        [first] = await claim(store)
        assert await claim(store, now=NOW + LEASE - 1) == ()
        [row] = await listed(store)
        assert (row.state, row.due_at, row.leased_until, row.attempts) == ("pending", None, NOW + LEASE, 1)
        [second] = await claim(store, now=NOW + LEASE)
        assert (first.attempt, second.attempt) == (1, 2)

    async def test_a_zombie_settles_nothing(self, store: DurableStore) -> None:
        await accept_all(store, ["m"], [await durable(store)])
        [zombie] = await claim(store, holder="zombie")
        [holder] = await claim(store, holder="holder", now=NOW + LEASE)
        for settlement in (delivered(zombie), again(zombie), dead(zombie), gone(zombie)):
            assert await settle(store, settlement) == [False]
        assert await store.extend([zombie.held], until=NOW + 9 * LEASE, now=NOW) == [False]
        assert await settle(store, delivered(holder)) == [True]
        assert await settle(store, delivered(holder), again(holder)) == [False, False]
        assert await states(store) == {("m", holder.held.subscription_id): ("delivered", None)}

    async def test_an_earlier_lease_of_the_same_holder_is_lost_too(self, store: DurableStore) -> None:
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

    async def test_a_late_settlement_counts_while_nobody_else_has_claimed(self, store: DurableStore) -> None:
        await accept_all(store, ["m"], [await durable(store)])
        [claimed] = await claim(store)
        assert await settle(store, delivered(claimed), now=NOW + 2 * LEASE) == [True]

    async def test_a_lease_can_be_extended(self, store: DurableStore) -> None:
        await accept_all(store, ["m"], [await durable(store)])
        [claimed] = await claim(store)
        assert await store.extend([claimed.held], until=NOW + 2 * LEASE, now=NOW) == [True]
        assert await claim(store, now=NOW + 2 * LEASE - 1) == ()
        assert await settle(store, delivered(claimed)) == [True]
        assert await store.extend([claimed.held], until=NOW + 3 * LEASE, now=NOW) == [False]

    async def test_concurrent_claims_share_without_overlap(self, store: DurableStore) -> None:
        await accept_all(store, [f"m{n}" for n in range(30)], [await durable(store)])
        claims = await asyncio.gather(*(claim(store, holder=str(n), at_most=7) for n in range(6)))
        assert sorted(id_ for each in claims for id_ in ids(each)) == sorted(f"m{n}" for n in range(30))


class TestTrying:
    async def test_again_is_due_when_it_says(self, store: DurableStore) -> None:
        await accept_all(store, ["m"], [await durable(store)])
        [claimed] = await claim(store)
        assert await settle(store, again(claimed)) == [True]
        [row] = await listed(store)
        assert (row.state, row.due_at, row.leased_until, row.status) == ("pending", AGAIN_AT, None, 503)
        assert await claim(store, now=AGAIN_AT - 1) == ()
        assert await store.next_due() == AGAIN_AT
        [claimed] = await claim(store, now=AGAIN_AT)
        assert claimed.attempt == 2

    async def test_a_dead_one_keeps_its_last_answer_bounded(self, store: DurableStore) -> None:
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

    async def test_the_attempts_that_failed_are_kept_bounded(self, store: DurableStore) -> None:
        subscriber = await durable(store, lease_seconds=1000 * 86_400)
        await accept_all(store, ["m"], [subscriber])
        for n in range(MAX_ATTEMPTS_KEPT + 3):
            [claimed] = await claim(store, now=NOW + n)
            await settle(store, again(claimed, NOW + n + 1))
        shown = await store.message("m", cursor=None, limit=10)
        assert shown is not None
        assert [each.number for each in shown.attempts] == list(range(4, MAX_ATTEMPTS_KEPT + 4))

    async def test_gone_removes_the_subscription_and_what_it_is_owed(self, store: DurableStore) -> None:
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

    @pytest.mark.parametrize("ordered", [False, True])
    async def test_what_fails_after_unsubscribing_is_not_tried_again(self, store: DurableStore, ordered: bool) -> None:
        leaving = await durable(store, ordered=ordered)
        await accept_all(store, ["m"], [leaving])
        [claimed] = await claim(store)
        await store.unsubscribe(leaving, now=NOW)
        await work_off(store)
        assert await states(store) == {("m", leaving): ("pending", None)}
        assert await settle(store, again(claimed)) == [True]
        [row] = await listed(store)
        assert (row.state, row.reason, row.due_at, row.status) == ("cancelled", "unsubscribed", None, 503)
        shown = await store.message("m", cursor=None, limit=10)
        assert shown is not None
        assert [each.attempt.status for each in shown.attempts] == [503]
        assert await settle(store, delivered(claimed)) == [False]

    async def test_whatever_comes_back_after_unsubscribing_says_why_it_ended(self, store: DurableStore) -> None:
        leaving = await durable(store)
        await accept_all(store, ["m1", "m2", "m3", "m4"], [leaving])
        one, two, three, four = await claim(store)
        await store.unsubscribe(leaving, now=NOW)
        await work_off(store)
        assert await store.release([one.held], now=NOW) == [True]
        assert await settle(store, dead(two), gone(three), delivered(four)) == [True] * 3
        assert await states(store) == {
            ("m1", leaving): ("cancelled", "unsubscribed"),
            ("m2", leaving): ("cancelled", "unsubscribed"),
            ("m3", leaving): ("dead", "gone"),
            ("m4", leaving): ("delivered", None),
        }

    async def test_gone_does_not_remove_what_was_renewed_since(self, store: DurableStore) -> None:
        subscriber = await durable(store, lease_seconds=10)
        await accept_all(store, ["m"], [subscriber])
        [claimed] = await claim(store)
        await durable(store, lease_seconds=20)
        assert await settle(store, gone(claimed)) == [True]
        assert await store.subscription(subscriber, now=NOW) is not None
        assert await states(store) == {("m", subscriber): ("dead", "gone")}


class TestTurns:
    async def test_a_claim_takes_so_many_of_each_endpoint(self, store: DurableStore) -> None:
        one, two = await durable(store), await durable(store, OTHER)
        for n in range(10):
            await store.accept(publication(f"a{n}", [one]), now=NOW)
        await accept_all(store, ["b1", "b2"], [two], now=NOW + 1)
        assert ids(await claim(store, now=NOW + 1, per_endpoint=3)) == ["a0", "a1", "a2", "b1", "b2"]

    async def test_endpoints_take_turns(self, store: DurableStore) -> None:
        subscribers = {await durable(store, f"http://{n}.example/"): n for n in range(4)}
        await accept_all(store, [str(n) for n in range(10)], list(subscribers))
        turns = []
        for n in range(8):
            claimed = await claim(store, now=NOW + 1 + n, at_most=2, per_endpoint=2)
            turns.append({subscribers[each.held.subscription_id] for each in claimed})
        assert all(len(turn) == 1 for turn in turns)
        assert set.union(*turns[:4]) == set.union(*turns[4:]) == {0, 1, 2, 3}

    async def test_fragments_of_one_url_are_one_endpoint(self, store: DurableStore) -> None:
        subscribers = [await durable(store, f"{ENDPOINT}{end}") for end in ("", "#1", "#2")]
        await accept_all(store, ["m"], subscribers)
        claimed = await claim(store, per_endpoint=2)
        assert len(claimed) == 2
        assert {each.url for each in claimed + await claim(store)} == {f"{ENDPOINT}{end}" for end in ("", "#1", "#2")}

    async def test_limits_stand_for_the_endpoints_they_name(self, store: DurableStore) -> None:
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

    async def test_a_blocked_endpoint_waits_until_the_latest_end_or_until_it_is_ended(
        self, store: DurableStore
    ) -> None:
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
        assert await claim(store, now=NOW + 99) == ()
        assert await store.next_due() == NOW + 100
        assert len(await claim(store, now=NOW + 100)) == 2
        await store.block_endpoint(ENDPOINT, until=NOW + 3 * LEASE, now=NOW)
        assert await claim(store, now=NOW + 2 * LEASE) == ()
        await store.block_endpoint(ENDPOINT, until=NOW, now=NOW)
        assert len(await claim(store, now=NOW + 2 * LEASE)) == 2

    async def test_what_is_settled_again_under_a_block_waits_for_it(self, store: DurableStore) -> None:
        await accept_all(store, ["m"], [await durable(store)])
        [claimed] = await claim(store)
        await store.block_endpoint(ENDPOINT, until=NOW + 2 * LEASE, now=NOW)
        await settle(store, again(claimed, NOW + 5))
        assert await store.next_due() == NOW + 2 * LEASE
        assert await claim(store, now=NOW + 2 * LEASE - 1) == ()
        assert len(await claim(store, now=NOW + 2 * LEASE)) == 1

    async def test_bodies_in_memory_are_bounded(self, store: DurableStore) -> None:
        subscriber = await durable(store)
        for n in range(5):
            await store.accept(publication(f"m{n}", [subscriber], b"x" * 1000), now=NOW)
        small = terms()._replace(max_body_bytes=1500)
        assert [len((await store.claim(small, now=NOW + n)).deliveries) for n in range(4)] == [2, 2, 1, 0]

    async def test_next_due_is_never_late(self, store: DurableStore) -> None:
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
    async def test_one_at_a_time_in_the_order_of_acceptance(self, store: DurableStore) -> None:
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

    async def test_only_the_first_starts_at_once(self, store: DurableStore) -> None:
        subscriber = await durable(store, ordered=True)
        accepted = await asyncio.gather(
            *(store.accept(publication(f"m{n}", [subscriber]), now=NOW, terms=terms()) for n in range(3))
        )
        assert [len(each.leased) for each in accepted] == [1, 0, 0]
        [first] = accepted[0].leased
        assert first.held.ordered
        await settle(store, delivered(first))
        assert ids(await claim(store)) == ["m1"]

    async def test_another_subscription_of_the_endpoint_does_not_wait(self, store: DurableStore) -> None:
        ordered, other = await durable(store, ENDPOINT + "#1", ordered=True), await durable(store, ENDPOINT)
        await accept_all(store, ["m1", "m2"], [ordered, other])
        assert len(await claim(store)) == 3

    async def test_what_is_replayed_comes_first_but_after_what_is_on_its_way(self, store: DurableStore) -> None:
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

    async def test_what_is_scheduled_does_not_hold_up_the_others(self, store: DurableStore) -> None:
        subscriber = await durable(store, ordered=True)
        await store.accept(publication("later", [subscriber], deliver_at=NOW + 5), now=NOW)
        await accept_all(store, ["m1", "m2"], [subscriber])
        [claimed] = await claim(store)
        assert ids([claimed]) == ["m1"]
        assert ids(await claim(store, now=NOW + 5)) == ["later"]

    async def test_one_that_expires_frees_the_next(self, store: DurableStore) -> None:
        subscriber = await durable(store, ordered=True)
        await store.accept(publication("m1", [subscriber], expires_at=NOW + 5), now=NOW)
        await accept_all(store, ["m2"], [subscriber])
        assert await claim(store, now=NOW + 5) == ()
        assert ids(await claim(store, now=NOW + 5)) == ["m2"]


class TestEnds:
    @pytest.mark.parametrize("how", ["unsubscribe", "replace"])
    async def test_what_is_unsubscribed_from_is_cancelled_and_stays_in_view(
        self, store: DurableStore, how: str
    ) -> None:
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

    async def test_a_claim_that_comes_first_gives_them_up_itself(self, store: DurableStore) -> None:
        subscriber = await durable(store)
        await accept_all(store, ["m1"], [subscriber])
        await store.unsubscribe(subscriber, now=NOW)
        assert await claim(store) == ()
        assert await states(store) == {("m1", subscriber): ("cancelled", "unsubscribed")}

    @pytest.mark.parametrize("pruned", [False, True])
    @pytest.mark.parametrize("worked_off", [False, True])
    async def test_what_an_expired_subscription_is_owed_is_dead(
        self, store: DurableStore, pruned: bool, worked_off: bool
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

    async def test_many_are_called_off_in_slices(self, store: DurableStore) -> None:
        subscriber = await durable(store, ordered=True)
        await asyncio.gather(*(store.accept(publication(f"m{n}", [subscriber]), now=NOW) for n in range(1200)))
        await store.unsubscribe(subscriber, now=NOW)
        assert await work_off(store) == 3
        assert set((await states(store)).values()) == {("cancelled", "unsubscribed")}
        assert (await store.counts(now=NOW)).pending == 0

    async def test_an_expired_message_is_dead_when_it_is_claimed_or_before(self, store: DurableStore) -> None:
        one, two = await durable(store), await durable(store, OTHER)
        await store.accept(publication("m1", [one, two], expires_at=NOW + 10), now=NOW)
        await store.block_endpoint(OTHER, until=NOW + 1000, now=NOW)
        assert await claim(store, now=NOW + 10) == ()
        assert (await states(store))["m1", one] == ("dead", "expired")
        assert (await states(store))["m1", two] == ("pending", None)
        assert await store.work_off(now=NOW + 9) == 0
        await work_off(store, now=NOW + 10)
        assert (await states(store))["m1", two] == ("dead", "expired")

    async def test_what_expires_under_way_may_still_arrive(self, store: DurableStore) -> None:
        one, two = await durable(store), await durable(store, OTHER)
        await store.accept(publication("m", [one, two], expires_at=NOW + 10), now=NOW)
        first, second = await claim(store)
        await work_off(store, now=NOW + 10)
        assert await settle(store, delivered(first), again(second, NOW + 20), now=NOW + 15) == [True, True]
        assert await claim(store, now=NOW + 20) == ()
        assert sorted((await states(store)).values(), key=str) == [("dead", "expired"), ("delivered", None)]

    async def test_many_expire_in_slices(self, store: DurableStore) -> None:
        subscribers = [await durable(store, f"http://{n % 7}.example/#{n}") for n in range(1200)]
        await store.accept(publication("m", subscribers, expires_at=NOW + 10), now=NOW)
        assert await work_off(store, now=NOW + 10) == 3
        assert set((await states(store)).values()) == {("dead", "expired")}
