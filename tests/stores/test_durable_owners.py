"""What every store promises about durable delivery among owners who are strangers: nobody learns how much others have,
nobody's replays hold up those of others, and nobody gets what another one was owed.

Runs over all backends of conftest.py.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import replace
from itertools import count

import pytest

from httppubsubclient.protocol.errors import InvalidRequest, QuotaExceeded
from httppubsubserver.stores import Only, sqlite_deliveries, sqlite_upkeep
from httppubsubserver.stores.durable import MAX_REPLAYS, DurableStore, OwedDelivery, Selection
from tests.stores.conftest import NOW, SECOND, asking
from tests.stores.durable_stores import (
    ENDPOINT,
    accept_all,
    claim,
    dead,
    delivered,
    gone,
    listed,
    publication,
    settle,
    states,
    work_off,
)

ME, THEM = Only("me"), Only("them")
WHOLE_TIME = Selection(accepted_from=0)
_NUMBERS = count()


async def subscribed(
    store: DurableStore, owner: str | None, url: str = "", *, topic: bytes = b"t\xff", lease_seconds: int = 600
) -> str:
    """A durable subscription, at an endpoint of its own unless the URL is given; the id."""
    request = asking(url or f"http://{next(_NUMBERS)}.example/", topic, lease_seconds=lease_seconds)
    subscription, _ = await store.subscribe(replace(request, delivery="durable"), now=NOW, owner=owner)
    return subscription.id


async def all_over(store: DurableStore, *, but: str = "") -> None:
    """Everything that is due is dead, but what is owed to one subscription, which is delivered."""
    while claimed := await claim(store):
        for each in claimed:
            await settle(store, delivered(each) if each.held.subscription_id == but else dead(each))


async def pages(
    store: DurableStore, selection: Selection, *, limit: int = 2
) -> list[tuple[tuple[OwedDelivery, ...], str | None]]:
    """All of them, with their cursors."""
    found: list[tuple[tuple[OwedDelivery, ...], str | None]] = []
    cursor: str | None = None
    while not found or cursor is not None:
        page = await store.deliveries(selection, cursor=cursor, limit=limit)
        found.append((page.deliveries, cursor := page.cursor))
    return found


def read(cursor: str) -> str:
    return urlsafe_b64decode(cursor + "===").decode()


class TestLooking:
    async def test_nothing_tells_an_owner_of_what_others_have(
        self, store: DurableStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sqlite_deliveries, "_ROWS_LOOKED_AT", 3)
        await subscribed(store, ME)  # it gets nothing
        mine = [await subscribed(store, ME) for _ in range(3)]
        await accept_all(store, ["m1", "m2", "m3"], mine)
        await all_over(store, but=mine[1])
        theirs = await subscribed(store, THEM)
        nobodys = await subscribed(store, None)
        selections = [
            Selection(owner=ME),
            Selection(state="dead", owner=ME),
            Selection(state="delivered", owner=ME),
            Selection(message_id="m2", owner=ME),
            Selection(mine[0], owner=ME),
            Selection(mine[0], "dead", "m2", owner=ME),
            Selection(theirs, owner=ME),
            Selection(theirs, "dead", owner=ME),
            Selection(theirs, message_id="m2", owner=ME),
            Selection(nobodys, owner=ME),
            Selection("unknown", owner=ME),
            Selection(accepted_from=0, accepted_until=NOW + SECOND, owner=ME),
        ]

        async def seen() -> list[object]:
            shown = await store.message("m2", cursor=None, limit=1, owner=ME)
            return [[await pages(store, each) for each in selections], shown]

        before = await seen()
        for n in range(20):
            await store.accept(publication(f"theirs{n}", [theirs, nobodys]), now=NOW)
        await store.accept(publication("late", [theirs, nobodys, *(await many(store, THEM))]), now=NOW)
        await all_over(store)
        assert await seen() == before
        for selection in selections:
            for _, cursor in await pages(store, selection, limit=1):
                assert cursor is None or any(f'"{each}"' in read(cursor) for each in await ids_of(store, ME))
        for foreign in (theirs, nobodys, "unknown"):
            assert await pages(store, Selection(foreign, owner=ME)) == [((), None)]

    @pytest.mark.parametrize("owner", [ME, "me"])
    async def test_pages_of_an_owner_leave_nothing_out_and_come_by_subscription(
        self, store: DurableStore, monkeypatch: pytest.MonkeyPatch, owner: str
    ) -> None:
        own = [await subscribed(store, each) for each in ("me", None, "me", None, "me")]
        there = {each for number, each in enumerate(own) if number % 2 == 0 or type(owner) is str}
        other = await subscribed(store, THEM)
        for n in range(4):
            await store.accept(publication(f"m{n}", [*own, other] if n % 2 else [*own[1:4], other]), now=NOW + n)
        await all_over(store, but=own[2])
        everything = [each for each in await listed(store) if each.subscription_id in there]
        everything.sort(key=lambda each: (each.subscription_id, -each.sequence))
        selections = (
            Selection(),
            Selection(state="dead"),
            Selection(state="delivered"),
            Selection(message_id="m2"),
            Selection(own[2]),
            Selection(own[2], "delivered", "m3"),
            Selection(state="dead", accepted_from=NOW + 1, accepted_until=NOW + 3),
        )
        for looked_at in (1, 2, 3, 2000):
            monkeypatch.setattr(sqlite_deliveries, "_ROWS_LOOKED_AT", looked_at)
            for selection in selections:
                expected = [each for each in everything if matches(selection, each)]
                for limit in (1, 2, 100):
                    found = await listed(store, selection._replace(owner=owner), limit=limit)
                    assert found == expected, (selection, limit)

    async def test_a_cursor_that_somebody_made_is_refused_or_is_a_place_among_ones_own(
        self, store: DurableStore
    ) -> None:
        mine, theirs = await subscribed(store, ME), await subscribed(store, THEM)
        await accept_all(store, ["m1", "m2"], [mine, theirs])
        for place in (
            f'["{theirs}", 0]',
            f'["{theirs}", {2**63 - 1}]',
            f'["{mine}", {2**63 - 1}]',
            f'["{mine}", {1 - 2**63}]',
            '["", 0]',
            '["~", 0]',
            f'[{NOW}, 1, "{theirs}"]',
            f'["{theirs}"]',
            f'[1, "{theirs}"]',
            '["a", "b"]',
            "[0, 0]",
            "[]",
        ):
            cursor = urlsafe_b64encode(place.encode()).decode()
            for selection in (Selection(), Selection(theirs), Selection(mine), Selection(message_id="m1")):
                try:
                    page = await store.deliveries(selection._replace(owner=ME), cursor=cursor, limit=10)
                except InvalidRequest:
                    continue
                assert {each.subscription_id for each in page.deliveries} <= {mine}
                assert page.cursor is None
            for selection in (Selection(), Selection(state="dead"), Selection(message_id="m1")):
                try:
                    await store.deliveries(selection, cursor=cursor, limit=10)
                except InvalidRequest:
                    continue


def matches(selection: Selection, delivery: OwedDelivery) -> bool:
    return (
        selection.subscription_id in (None, delivery.subscription_id)
        and selection.state in (None, delivery.state)
        and selection.message_id in (None, delivery.message_id)
        and (selection.accepted_from or 0) <= delivery.accepted_at < (selection.accepted_until or NOW * 2)
    )


async def many(store: DurableStore, owner: str | None) -> list[str]:
    return [await subscribed(store, owner) for _ in range(10)]


async def ids_of(store: DurableStore, owner: str) -> list[str]:
    page = await store.subscriptions(url=None, cursor=None, limit=100, now=NOW, owner=owner)
    return [each.id for each in page.subscriptions]


class TestReplaying:
    async def test_an_owner_has_a_bounded_number_under_way_and_others_are_not_bound_by_it(
        self, store: DurableStore
    ) -> None:
        for owner in (ME, "me", None):
            asked = [await store.replay(WHOLE_TIME._replace(owner=owner), now=NOW) for _ in range(MAX_REPLAYS // 2)]
        with pytest.raises(QuotaExceeded, match="16 replays") as refused:
            await store.replay(WHOLE_TIME._replace(owner=ME), now=NOW)
        assert refused.value.retry_after_seconds is not None
        await store.replay(WHOLE_TIME._replace(owner=THEM), now=NOW)
        for _ in range(2 * MAX_REPLAYS):
            asked.append(await store.replay(WHOLE_TIME, now=NOW))  # an operator's
        await work_off(store)
        await store.replay(WHOLE_TIME._replace(owner=ME), now=NOW)
        assert len({each.number for each in asked}) == len(asked)

    async def test_of_those_that_are_over_the_last_are_known(
        self, store: DurableStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sqlite_upkeep, "MAX_REPLAYS_KEPT", 3)
        theirs = await store.replay(WHOLE_TIME._replace(owner=THEM), now=NOW)
        numbers = []
        for _ in range(10):
            numbers.append((await store.replay(WHOLE_TIME._replace(owner=ME), now=NOW)).number)
            await work_off(store)
        known = [each for each in numbers if await store.replay_progress(each) is not None]
        assert known == numbers[-3:]
        assert await store.replay_progress(theirs.number) is not None

    @pytest.mark.parametrize("state", ["dead", "delivered"])
    async def test_it_looks_at_ones_own_alone_and_sends_each_once(
        self, store: DurableStore, monkeypatch: pytest.MonkeyPatch, state: str
    ) -> None:
        monkeypatch.setattr(sqlite_upkeep, "_SLICE", 2)
        mine = [await subscribed(store, ME) for _ in range(3)]
        theirs = await subscribed(store, THEM)
        await accept_all(store, [f"m{n}" for n in range(4)], [*mine, theirs])
        await accept_all(store, [f"theirs{n}" for n in range(100)], [theirs])
        while claimed := await claim(store):
            await settle(store, *(dead(each) if state == "dead" else delivered(each) for each in claimed))
        selection = Selection(state=state, accepted_from=0, owner=ME)  # type: ignore[arg-type]
        replay = await store.replay(selection, now=NOW)
        looked_at = 0
        while some := await store.work_off(now=NOW):
            looked_at += some
        progress = await store.replay_progress(replay.number)
        assert progress is not None
        assert (progress.replayed, progress.skipped) == (12, 0)
        assert looked_at <= 25, "deliveries, subscriptions and slices of his own"
        after = await states(store)
        assert {key for key, (now_in, _) in after.items() if now_in == "pending"} == {
            (f"m{n}", each) for n in range(4) for each in mine
        }

    async def test_owners_take_turns(self, store: DurableStore, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sqlite_upkeep, "_SLICE", 2)
        theirs, mine = await subscribed(store, THEM), await subscribed(store, ME)
        await accept_all(store, [f"m{n}" for n in range(30)], [theirs])
        await accept_all(store, ["m"], [mine])
        await all_over(store)
        hogs = [
            await store.replay(Selection(state="delivered", accepted_from=0, owner=owner), now=NOW)
            for owner in [THEM] * MAX_REPLAYS + [None] * MAX_REPLAYS
        ]
        replay = await store.replay(WHOLE_TIME._replace(owner=ME), now=NOW)
        for _ in range(6):  # two slices of it, and each of the three has had as many
            await store.work_off(now=NOW)
        progress = await store.replay_progress(replay.number)
        assert progress is not None
        assert (progress.replayed, progress.finished_at) == (1, NOW)
        unfinished = [
            each for each in hogs if (found := await store.replay_progress(each.number)) and not found.finished_at
        ]
        assert len(unfinished) >= 2 * MAX_REPLAYS - 2
        await work_off(store)
        for each in hogs:
            found = await store.replay_progress(each.number)
            assert found is not None
            assert found.finished_at == NOW

    async def test_what_others_end_and_let_expire_holds_up_nobodys_replay(
        self, store: DurableStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sqlite_upkeep, "_SLICE", 10)
        mine = await subscribed(store, ME)
        await accept_all(store, ["m"], [mine])
        await all_over(store)
        theirs = [await subscribed(store, THEM) for _ in range(40)]
        for n in range(40):
            await store.accept(publication(f"m{n}", [theirs[0]], expires_at=NOW + 1), now=NOW)
        for each in theirs:
            await store.unsubscribe(each, now=NOW)
        replay = await store.replay(WHOLE_TIME._replace(owner=ME), now=NOW)
        later = NOW + SECOND
        await store.work_off(now=later)
        progress = await store.replay_progress(replay.number)
        assert progress is not None
        assert progress.finished_at == later
        assert await work_off(store, now=later) <= 20
        assert {state for (_, each), (state, _) in (await states(store)).items() if each == theirs[0]} <= {
            "dead",
            "cancelled",
        }


class TestSuccessors:
    @pytest.mark.parametrize("by", ["expiry", "unsubscribing", "410"])
    @pytest.mark.parametrize(
        ("before", "after", "gets_it"),
        [
            ("me", "me", True),
            ("me", Only("me"), True),
            ("me", "them", False),
            ("me", None, False),
            (None, None, True),
            (None, "me", True),
        ],
    )
    async def test_what_was_an_owners_stays_his(
        self, store: DurableStore, by: str, before: str | None, after: str | None, gets_it: bool
    ) -> None:
        later = NOW + 100 * SECOND
        old = await subscribed(store, before, ENDPOINT, lease_seconds=50)
        await store.accept(publication("m", [old]), now=NOW)
        [claimed] = await claim(store)
        await settle(store, gone(claimed) if by == "410" else dead(claimed))
        if by == "unsubscribing":
            await store.unsubscribe(old, now=NOW)
        new = await subscribed(store, after, ENDPOINT + "#new", lease_seconds=5000)
        for pruned in (False, True):
            if pruned:
                await store.prune(now=later)
            replay = await store.replay(Selection(old), now=later)
            await work_off(store, now=later)
            progress = await store.replay_progress(replay.number)
            assert progress is not None
            assert (progress.replayed, progress.skipped) == ((not pruned, 0) if gets_it else (0, 1))
        assert (("m", new) in await states(store)) == gets_it
        if not gets_it:
            assert (await states(store))["m", old][0] == "dead"

    async def test_his_own_is_found_behind_those_of_others(self, store: DurableStore) -> None:
        old = await subscribed(store, "me", ENDPOINT)
        await accept_all(store, ["m"], [old])
        [claimed] = await claim(store)
        await settle(store, gone(claimed))
        for number, owner in enumerate(["them", None, "others"]):
            await subscribed(store, owner, f"{ENDPOINT}#{number}")
        mine = await subscribed(store, "me", f"{ENDPOINT}#me")
        await store.replay(Selection(), now=NOW)
        await work_off(store)
        assert await states(store) == {("m", old): ("cancelled", "sent_again"), ("m", mine): ("pending", None)}

    async def test_whose_it_was_is_known_as_long_as_there_are_deliveries(self, store: DurableStore) -> None:
        old = await subscribed(store, "me", ENDPOINT)
        await accept_all(store, ["m1", "m2"], [old])
        first, second = await claim(store)
        await settle(store, dead(first), gone(second))
        theirs = await subscribed(store, "them", ENDPOINT)
        far = NOW + 3 * SECOND
        await store.accept(publication("m3", [theirs]), now=far)
        await store.prune_messages(now=far, bodies_before=NOW, messages_before=NOW)
        await store.replay(Selection(), now=far)
        await work_off(store, now=far)
        assert {each for _, each in await states(store)} == {old, theirs}
        assert [name for name, each in await states(store) if each == theirs] == ["m3"]
