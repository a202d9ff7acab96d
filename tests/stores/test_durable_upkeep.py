"""What every store promises about durable delivery: looking, replaying, forgetting, clocks and restarts.

Runs over all backends of conftest.py.
"""

from __future__ import annotations

import asyncio

import pytest

from httppubsubclient.protocol.errors import InvalidRequest, Unavailable
from httppubsubserver.stores.durable import (
    CHUNK_BYTES,
    Attempt,
    DurableStore,
    Pruned,
    Publication,
    Selection,
    StoredMessage,
)
from tests.stores.conftest import NOW, SECOND, A, OpenStore, only_lasting
from tests.stores.durable_stores import (
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
    ids,
    listed,
    publication,
    settle,
    terms,
    told,
    work_off,
)


class TestLooking:
    async def test_pages_follow_each_other_and_leave_nothing_out(self, store: DurableStore) -> None:
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

    async def test_a_rare_one_among_many_is_found_over_short_pages(self, store: DurableStore) -> None:
        subscriber = await durable(store)
        await asyncio.gather(*(store.accept(publication(f"m{n}", [subscriber]), now=NOW) for n in range(4500)))
        [first] = await claim(store, at_most=1)
        await settle(store, delivered(first))
        page = await store.deliveries(Selection(state="delivered"), cursor=None, limit=10)
        assert (page.deliveries, page.cursor is None) == ((), False)
        assert [row.message_id for row in await listed(store, Selection(state="delivered"))] == ids([first])

    @pytest.mark.parametrize(
        "cursor", ["", "!", "e30", "WzFd", "WyJ4Il0", "W1tdXQ", "WzFlOTk5XQ", "W10", "[" * 9999, "WyJcdWQ4MDAiXQ"]
    )
    async def test_a_strange_cursor_is_refused_or_is_a_place(self, store: DurableStore, cursor: str) -> None:
        await accept_all(store, ["m"], [subscriber := await durable(store)])
        for selection in (Selection(), Selection(subscriber), Selection(state="dead"), Selection(message_id="m")):
            try:
                page = await store.deliveries(selection, cursor=cursor, limit=10)
            except InvalidRequest:
                continue
            assert len(page.deliveries) <= 1

    async def test_a_delivery_as_an_operator_sees_it(self, store: DurableStore) -> None:
        subscriber = await durable(store, A)
        await store.accept(publication("m0", [subscriber]), now=NOW)
        await store.accept(publication("m", [subscriber]), now=NOW + 1)
        [row] = await listed(store, Selection(message_id="m"))
        assert row == (
            "m", subscriber, b"t\xff", A.partition("#")[0], "pending", None, 2, "m0", NOW + 1, NOW + 1, None, 0,
            NOW + 1, None,
        )  # fmt: skip

    async def test_a_message_with_its_deliveries_and_their_attempts(self, store: DurableStore) -> None:
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

    async def test_counts(self, store: DurableStore) -> None:
        await accept_all(store, ["m1", "m2", "m3"], [await durable(store, ordered=True), await durable(store, OTHER)])
        before = await store.counts(now=NOW)
        assert (before.pending, before.dead, before.endpoints_blocked) == (6, 0, 0)
        assert before.bytes_used > 0
        first, *_, last = await claim(store)
        await settle(store, dead(first), delivered(last))
        assert (await store.counts(now=NOW))[:2] == (4, 1)


class TestReplaying:
    async def test_the_dead_are_sent_again_from_the_beginning_of_their_schedule(self, store: DurableStore) -> None:
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

    async def test_singly_by_subscription_by_time_and_by_state(self, store: DurableStore) -> None:
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

    async def test_what_cannot_be_sent_again_is_counted(self, store: DurableStore) -> None:
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
    async def test_what_is_on_its_way_cannot_be(self, store: DurableStore, state: str) -> None:
        with pytest.raises(InvalidRequest, match="on their way"):
            await store.replay(Selection(state=state), now=NOW)  # type: ignore[arg-type]

    async def test_many_in_slices_and_what_dies_meanwhile_only_once(self, store: DurableStore) -> None:
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
    async def test_bodies_go_before_messages_and_what_is_owed_stays(self, store: DurableStore) -> None:
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

    async def test_what_dies_late_is_kept_as_long_as_what_was_delivered_at_once(self, store: DurableStore) -> None:
        subscriber = await durable(store)
        await accept_all(store, ["m1", "m2"], [subscriber])
        first, second = await claim(store)
        await settle(store, delivered(first))
        late = NOW + 100 * SECOND
        await settle(store, dead(second), now=late)
        await accept_all(store, ["last"], [subscriber], now=late)
        assert await store.prune_messages(now=late, bodies_before=late, messages_before=late) == Pruned(1, 1)
        assert [row.message_id for row in await listed(store)] == ["last", "m2"]
        over = late + SECOND
        assert await store.prune_messages(now=over, bodies_before=over, messages_before=over) == Pruned(1, 1)

    async def test_large_bodies_go_with_all_their_pieces(self, store: DurableStore) -> None:
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

    async def test_by_size_the_oldest_go_first(self, store: DurableStore) -> None:
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

    async def test_many_in_slices(self, store: DurableStore) -> None:
        subscribers = [await durable(store, f"http://{n % 7}.example/#{n}") for n in range(1100)]
        await store.accept(publication("wide", subscribers), now=NOW)
        await asyncio.gather(*(store.accept(publication(f"m{n}", subscribers[:1]), now=NOW) for n in range(500)))
        claimed = await claim(store, at_most=2000, per_endpoint=2000)
        await settle(store, *map(dead, claimed))
        pruned = await store.prune_messages(now=NOW, bodies_before=NOW + 1, messages_before=NOW + 1)
        assert pruned == (501, 500)
        assert len(await listed(store)) == 1

    async def test_endpoints_go_when_nothing_is_left_of_them(self, store: DurableStore) -> None:
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

    async def test_what_was_decided_in_a_future_that_was_none_comes_back(self, store: DurableStore) -> None:
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

    async def test_an_ordered_one_goes_on(self, store: DurableStore) -> None:
        subscriber = await durable(store, ordered=True)
        await store.notice_clock(now=NOW + self.HOUR)
        await accept_all(store, ["m1", "m2"], [subscriber], now=NOW + self.HOUR)
        await store.notice_clock(now=NOW)
        for expected in ("m1", "m2"):
            [claimed] = await claim(store)
            assert ids([claimed]) == [expected]
            await settle(store, delivered(claimed))

    async def test_a_clock_that_goes_on_or_differs_a_little_changes_nothing(self, store: DurableStore) -> None:
        await store.notice_clock(now=NOW)
        await accept_all(store, ["m"], [await durable(store)], now=NOW + 4 * SECOND)
        for now in (NOW + 20 * SECOND, NOW + 16 * SECOND, NOW + YEAR, NOW + YEAR - 4 * SECOND):
            assert await store.notice_clock(now=now) == 0
        [claimed] = await claim(store, now=NOW + YEAR) or [None]
        assert claimed is None, "its subscription has expired"

    async def test_a_clock_that_was_set_forward_ends_waits_and_leases_early(self, store: DurableStore) -> None:
        await accept_all(store, ["m1", "m2"], [await durable(store)])
        first, second = await claim(store)
        await settle(store, again(first))
        assert {*ids(await claim(store, now=NOW + self.HOUR))} == {"m1", "m2"}
        assert await settle(store, delivered(second), now=NOW + self.HOUR) == [False]

    async def test_many_endpoints_and_deliveries_in_slices(self, store: DurableStore) -> None:
        subscribers = [await durable(store, f"http://{min(n, 150)}.example/#{n}") for n in range(1300)]
        await store.notice_clock(now=NOW + self.HOUR)
        await store.accept(publication("m", subscribers), now=NOW + self.HOUR)
        assert await store.notice_clock(now=NOW) == 1300
        assert len(await claim(store, at_most=2000, per_endpoint=2000)) == 1300


@only_lasting
class TestLasting:
    async def test_all_of_it_outlives_the_process(self, lasting: OpenStore) -> None:
        async with lasting() as opened:
            store: DurableStore = opened
            subscriber = await durable(store, ordered=True)
            await accept_all(store, ["m1", "m2"], [subscriber])
            await settle(store, dead((await claim(store))[0]))
            [second] = await claim(store)
            replay = await store.replay(Selection(), now=NOW)
        async with lasting() as opened:
            store = opened
            await work_off(store)
            progress = await store.replay_progress(replay.number)
            assert progress is not None
            assert progress.replayed == 1
            assert await settle(store, delivered(second)) == [True]
            assert ids(await claim(store)) == ["m1"]

    async def test_a_closed_store_is_unavailable(self, lasting: OpenStore) -> None:
        async with lasting() as opened:
            store: DurableStore = opened
            subscriber = await durable(store)
        for call in (
            store.accept(publication("m", [subscriber]), now=NOW),
            store.claim(terms(), now=NOW),
            store.next_due(),
            store.deliveries(Selection(), cursor=None, limit=1),
        ):
            with pytest.raises(Unavailable):
                await call
