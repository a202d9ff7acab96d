"""What every store promises. Runs over all backends of conftest.py."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import pytest

from httppubsubclient.protocol.errors import PreconditionFailed, Unavailable
from httppubsubclient.protocol.messages import SUBSCRIPTION_ID, Subscription
from httppubsubclient.protocol.patterns import Pattern
from httppubsubserver.stores import Changes, Remembered, Store
from tests.stores.conftest import (
    CHANGES_KEPT,
    NOW,
    ROWS_PER_PIECE,
    SECOND,
    A,
    B,
    OpenStore,
    asking,
    everything,
    listed,
    only_lasting,
    put,
)

LATER = NOW + 3600 * SECOND


class TestSubscribing:
    async def test_what_was_subscribed_is_read_back_unchanged(self, store: Store) -> None:
        subscription, created = await store.subscribe(asking(A, b"\x00\xff/foo", lease_seconds=7), now=NOW)
        assert created
        assert SUBSCRIPTION_ID.fullmatch(subscription.id)
        assert subscription.id.startswith("sub_")
        assert subscription == Subscription(
            subscription.id, A, Pattern.exact(b"\x00\xff/foo"), 7, NOW, NOW + 7 * SECOND
        )
        assert await store.subscription(subscription.id, now=NOW) == subscription
        assert await everything(store) == [subscription]

    async def test_the_same_url_and_pattern_again_renews_and_keeps_the_id(self, store: Store) -> None:
        first, _ = await store.subscribe(asking(A, "foo/*", lease_seconds=60), now=NOW)
        again, created = await store.subscribe(asking(A, "foo/*", lease_seconds=30), now=NOW + 50 * SECOND)
        assert not created
        assert again == replace(first, lease_seconds=30, expires_at=NOW + 80 * SECOND)
        assert await everything(store) == [again]

    async def test_url_kind_and_pattern_together_name_a_subscription(self, store: Store) -> None:
        patterns = [Pattern.exact(b"foo/*"), Pattern.glob("foo/*"), Pattern.mqtt("foo/*"), Pattern.exact(b"foo")]
        ids = {await put(store, url, pattern) for url in (A, A + "#2", B) for pattern in patterns}
        assert len(ids) == 12
        assert ids == {await put(store, url, pattern) for url in (A, A + "#2", B) for pattern in patterns}

    async def test_concurrent_requests_for_one_subscription_make_one(self, store: Store) -> None:
        answers = await asyncio.gather(*(store.subscribe(asking(A, b"t"), now=NOW) for _ in range(20)))
        assert len({subscription.id for subscription, _ in answers}) == 1
        assert sum(created for _, created in answers) == 1

    async def test_what_was_unsubscribed_is_gone(self, store: Store) -> None:
        subscription_id = await put(store, A, b"t")
        assert await store.unsubscribe(subscription_id, now=NOW)
        assert not await store.unsubscribe(subscription_id, now=NOW)
        assert await store.subscription(subscription_id, now=NOW) is None
        assert await everything(store) == []

    async def test_a_removal_that_is_about_an_earlier_lease_changes_nothing(self, store: Store) -> None:
        subscription_id = await put(store, A, b"t")
        before = await store.subscription(subscription_id, now=NOW)
        assert before is not None
        assert not await store.unsubscribe(subscription_id, now=NOW, expires_at=before.expires_at - 1)
        assert await store.subscription(subscription_id, now=NOW) == before
        assert await store.unsubscribe(subscription_id, now=NOW, expires_at=before.expires_at)

    async def test_an_unknown_id_is_nothing(self, store: Store) -> None:
        assert await store.subscription("sub_unknown", now=NOW) is None
        assert not await store.unsubscribe("sub_unknown", now=NOW)
        assert await store.version() == 0


class TestExpiry:
    async def test_an_expired_subscription_is_as_if_it_were_not_there(self, store: Store) -> None:
        empty = await store.etag(A, now=NOW)
        subscription_id = await put(store, A, b"t", lease_seconds=60)
        last, over = NOW + 60 * SECOND - 1, NOW + 60 * SECOND
        assert await store.subscription(subscription_id, now=last) is not None
        assert await store.subscription(subscription_id, now=over) is None
        assert len(await everything(store, now=last)) == 1
        assert await everything(store, now=over) == []
        assert await store.etag(A, now=last) != empty
        assert await store.etag(A, now=over) == empty
        assert not await store.unsubscribe(subscription_id, now=over)

    async def test_subscribing_after_the_expiry_is_a_new_subscription(self, store: Store) -> None:
        old = await put(store, A, b"t", lease_seconds=60)
        version = await store.version()
        new, created = await store.subscribe(asking(A, b"t"), now=NOW + 61 * SECOND)
        assert created
        assert new.id != old
        changes = await store.changes_since(version)
        assert (changes.changed, changes.removed) == ((listed(new),), (old,))

    async def test_pruning_deletes_what_expired_and_tells_of_it(self, store: Store) -> None:
        expired = [await put(store, A, topic, lease_seconds=60) for topic in (b"1", b"2")]
        kept = await put(store, A, b"3", lease_seconds=600)
        await store.remember_once("new", until=NOW + 600 * SECOND, now=NOW)
        await store.begin_once(
            "old", fingerprint=b"", message_id="m", lease_until=NOW, until=NOW + 60 * SECOND, now=NOW
        )
        version = await store.version()
        now = NOW + 60 * SECOND
        assert await store.prune(now=now) == 3
        assert await store.prune(now=now) == 0
        changes = await store.changes_since(version)
        assert set(changes.removed) == set(expired)
        assert [subscription.id for subscription in await everything(store, now=now)] == [kept]
        assert not await store.remember_once("new", until=NOW + 700 * SECOND, now=now)

    async def test_pruning_takes_more_than_one_slice(self, store: Store) -> None:
        await store.replace(A, [asking(A, str(n).encode()) for n in range(2100)], if_match=None, now=NOW)
        assert await store.prune(now=LATER) == 2100
        assert (await store.changes_since(0)).changed == ()


class TestListing:
    async def test_pages_follow_the_ids_and_leave_nothing_out(self, store: Store) -> None:
        ids = sorted([await put(store, url, str(n).encode()) for n in range(5) for url in (A, B)])
        for url, expected in ((None, ids), (A, sorted(each.id for each in await everything(store, url=A)))):
            for limit in (1, 3, 5, 10, 11):
                seen: list[str] = []
                cursor = None
                while True:
                    page = await store.subscriptions(url=url, cursor=cursor, limit=limit, now=NOW)
                    seen += [subscription.id for subscription in page.subscriptions]
                    cursor = page.cursor
                    if cursor is None:
                        break
                    assert len(page.subscriptions) == limit
                assert seen == expected

    async def test_any_text_is_a_cursor(self, store: Store) -> None:
        subscription_id = await put(store, A, b"t")
        for cursor in ("", "!", "\x00", "' OR 1 --"):
            page = await store.subscriptions(url=None, cursor=cursor, limit=10, now=NOW)
            assert [subscription.id for subscription in page.subscriptions] == [subscription_id]
        assert (await store.subscriptions(url=None, cursor="é", limit=10, now=NOW)).subscriptions == ()


class TestReplacing:
    async def test_the_set_becomes_what_was_asked_for(self, store: Store) -> None:
        stays, goes = await put(store, A, b"stays"), await put(store, A, b"goes")
        other = await put(store, B, b"goes")
        now = NOW + SECOND
        wanted = [asking(A, "new/*"), asking(A, b"stays", lease_seconds=5)]
        subscriptions, etag, _ = await store.replace(A, wanted, if_match=None, now=now)
        assert [subscription.pattern for subscription in subscriptions] == [
            Pattern.glob("new/*"),
            Pattern.exact(b"stays"),
        ]
        assert subscriptions[1] == Subscription(stays, A, Pattern.exact(b"stays"), 5, NOW, now + 5 * SECOND)
        assert etag == await store.etag(A, now=now)
        assert await store.subscription(goes, now=now) is None
        assert await store.subscription(other, now=now) is not None
        assert set(await everything(store, url=A, now=now)) == set(subscriptions)

    async def test_a_change_tells_what_was_before_it(self, store: Store) -> None:
        over = NOW + 10 * SECOND
        ended = await put(store, A, b"ended", lease_seconds=10)
        first, _ = await store.subscribe(asking(A, b"stays"), now=NOW)
        goes, _ = await store.subscribe(asking(A, b"goes"), now=NOW)
        again, _ = await store.subscribe(asking(A, b"stays", lease_seconds=90), now=NOW)
        assert (first.before, again.before) == (None, first)
        wanted = [asking(A, b"stays"), asking(A, b"new"), asking(A, b"ended")]
        subscriptions, _, removed = await store.replace(A, wanted, if_match=None, now=over)
        assert [each.before for each in subscriptions] == [again, None, None]
        assert subscriptions[2].id != ended
        assert removed == (goes,)
        assert await store.unsubscribe(again.id, now=over) == subscriptions[0]

    async def test_a_repeated_pattern_stands_once_with_its_last_options(self, store: Store) -> None:
        wanted = [asking(A, b"1", lease_seconds=1), asking(A, b"2"), asking(A, b"1", lease_seconds=9)]
        subscriptions, *_ = await store.replace(A, wanted, if_match=None, now=NOW)
        assert [(each.pattern.value, each.lease_seconds) for each in subscriptions] == [(b"1", 9), (b"2", 60)]

    async def test_nothing_is_a_set_too(self, store: Store) -> None:
        subscription_id = await put(store, A, b"t")
        empty = await store.etag(B, now=NOW)
        assert (await store.replace(A, [], if_match=None, now=NOW))[:2] == ((), empty)
        assert (await store.changes_since(1)).removed == (subscription_id,)
        version = await store.version()
        await store.replace(A, [], if_match=empty, now=NOW)
        assert await store.version() == version

    async def test_an_expired_subscription_does_not_come_back_with_its_id(self, store: Store) -> None:
        old = await put(store, A, b"t", lease_seconds=1)
        subscriptions, *_ = await store.replace(A, [asking(A, b"t")], if_match=None, now=LATER)
        assert subscriptions[0].id != old
        assert (await store.changes_since(1)).removed == (old,)

    async def test_another_state_than_the_expected_one_is_left_alone(self, store: Store) -> None:
        await put(store, A, b"t")
        etag = await store.etag(A, now=NOW)
        await put(store, A, b"u")
        present, version = await store.etag(A, now=NOW), await store.version()
        with pytest.raises(PreconditionFailed) as caught:
            await store.replace(A, [], if_match=etag, now=NOW)
        assert caught.value.etag == present
        assert await store.version() == version
        assert len(await everything(store)) == 2
        await store.replace(A, [], if_match=present, now=NOW)
        assert await everything(store) == []

    async def test_of_two_that_expect_the_same_state_one_wins(self, store: Store) -> None:
        etag = await store.etag(A, now=NOW)
        answers = await asyncio.gather(
            *(store.replace(A, [asking(A, topic)], if_match=etag, now=NOW) for topic in (b"1", b"2", b"3")),
            return_exceptions=True,
        )
        assert sorted(isinstance(answer, PreconditionFailed) for answer in answers) == [False, True, True]
        assert len(await everything(store)) == 1

    async def test_a_request_of_another_url_is_a_mistake_of_the_caller(self, store: Store) -> None:
        with pytest.raises(ValueError, match="URL"):
            await store.replace(A, [asking(B, b"t")], if_match=None, now=NOW)


class TestEtag:
    async def test_it_is_a_strong_one_in_quotes(self, store: Store) -> None:
        etag = await store.etag(A, now=NOW)
        assert etag[0] == etag[-1] == '"'
        assert etag[1:-1].isalnum()

    async def test_it_changes_with_everything_that_is_shown_of_the_set_and_nothing_else(self, store: Store) -> None:
        seen = [await store.etag(A, now=NOW)]
        subscription_id = await put(store, A, b"t")
        seen.append(await store.etag(A, now=NOW))
        await put(store, A, b"t", now=NOW + 1)
        seen.append(await store.etag(A, now=NOW + 1))
        await put(store, A, b"u")
        seen.append(await store.etag(A, now=NOW + 1))
        await put(store, B, b"t")
        assert await store.etag(A, now=NOW + 2) == seen[-1]
        await store.unsubscribe(subscription_id, now=NOW)
        seen.append(await store.etag(A, now=NOW + 2))
        assert len(set(seen)) == 5


class TestVersion:
    async def test_every_change_increments_it_and_nothing_else_does(self, store: Store) -> None:
        seen = [await store.version()]
        assert seen == [0]

        async def grew() -> bool:
            seen.append(await store.version())
            return seen[-1] > seen[-2]

        subscription_id = await put(store, A, b"t")
        assert await grew()
        await put(store, A, b"t", now=NOW + 1)
        assert await grew(), "a renewal changes expires_at"
        await store.remember_once("k", until=LATER, now=NOW)
        await store.etag(A, now=NOW)
        await everything(store)
        await store.prune(now=NOW)
        assert not await grew()
        await store.replace(A, [asking(A, b"u")], if_match=None, now=NOW)
        assert await grew()
        assert not await store.unsubscribe(subscription_id, now=NOW)
        assert not await grew()
        await store.prune(now=LATER)
        assert await grew()

    async def test_a_read_that_begins_after_a_change_was_answered_sees_it(self, store: Store) -> None:
        """While other reads are under way all the time, whose answers may be older."""
        stop = False

        async def read_on() -> None:
            while not stop:
                await store.version()
                await asyncio.sleep(0)  # a store may answer without waiting

        readers = [asyncio.create_task(read_on()) for _ in range(5)]
        for n in range(1, 101):
            await put(store, A, str(n).encode())
            assert await store.version() == n
        stop = True
        await asyncio.gather(*readers)

    async def test_changes_are_folded_by_id(self, store: Store) -> None:
        kept, gone = await put(store, A, b"kept"), await put(store, A, b"gone")
        version = await store.version()
        await put(store, A, b"kept", now=NOW + 1)
        renewed, _ = await store.subscribe(asking(A, b"kept"), now=NOW + 2)
        await store.unsubscribe(gone, now=NOW)
        brief = await put(store, A, b"brief")
        await store.unsubscribe(brief, now=NOW)
        changes = await store.changes_since(version)
        assert changes.version == await store.version()
        assert not changes.complete
        assert changes.changed == (listed(renewed),)
        assert kept == renewed.id
        assert set(changes.removed) == {gone, brief}

    async def test_nothing_happened_since_the_present_version(self, store: Store) -> None:
        assert await store.changes_since(0) == Changes(0, False, (), ())
        await put(store, A, b"t")
        assert await store.changes_since(1) == Changes(1, False, (), ())

    async def test_from_the_beginning_is_the_whole_table(self, store: Store) -> None:
        await put(store, A, b"1")
        await store.unsubscribe(await put(store, A, b"2"), now=NOW)
        changes = await store.changes_since(0)
        assert (changes.complete, changes.removed) == (True, ())
        assert list(changes.changed) == [listed(each) for each in await everything(store)]

    async def test_who_has_missed_too_much_is_given_the_whole_table(self, store: Store) -> None:
        await put(store, A, b"first")
        for n in range(CHANGES_KEPT):
            await put(store, A, b"renewed", now=NOW + n)
        newest = await store.version()
        enough = await store.changes_since(newest - CHANGES_KEPT)
        assert (enough.complete, len(enough.changed)) == (False, 1)
        await put(store, A, b"renewed", now=LATER)
        missed = await store.changes_since(1)
        assert missed.complete
        assert {each.pattern for each in missed.changed} == {b"first", b"renewed"}
        assert missed.version == await store.version()

    async def test_a_version_from_the_future_is_answered_with_the_whole_table(self, store: Store) -> None:
        """As after an older backup was restored under a running process."""
        await put(store, A, b"t")
        changes = await store.changes_since(99)
        assert (changes.complete, changes.version, len(changes.changed)) == (True, 1, 1)

    async def test_the_whole_table_comes_in_pieces(self, store: Store) -> None:
        for n in range(3 * ROWS_PER_PIECE + 1):
            await put(store, A, str(n).encode())
        changes = await store.changes_since(0)
        assert changes.complete
        pieces = [changes.changed]
        while changes.cursor is not None:
            changes = await store.changes_since(changes.version, changes.cursor)
            assert not changes.complete
            pieces.append(changes.changed)
        assert [len(piece) for piece in pieces] == [ROWS_PER_PIECE] * 3 + [1]
        assert [each for piece in pieces for each in piece] == [listed(each) for each in await everything(store)]

    async def test_a_piece_brings_what_has_happened_since_the_one_before(self, store: Store) -> None:
        ids = sorted([await put(store, A, str(n).encode()) for n in range(2 * ROWS_PER_PIECE)])
        first = await store.changes_since(0)
        assert [each.id for each in first.changed] == ids[:ROWS_PER_PIECE]
        await store.unsubscribe(ids[0], now=NOW)
        await store.unsubscribe(ids[-1], now=NOW)
        new = await put(store, B, b"new")
        second = await store.changes_since(first.version, first.cursor)
        assert set(second.removed) == {ids[0], ids[-1]}
        assert {each.id for each in second.changed} >= {*ids[ROWS_PER_PIECE:-1], new}
        assert (second.complete, second.version) == (False, await store.version())

    async def test_who_has_missed_too_much_between_two_pieces_starts_over(self, store: Store) -> None:
        for n in range(2 * ROWS_PER_PIECE):
            await put(store, A, str(n).encode())
        first = await store.changes_since(0)
        for n in range(CHANGES_KEPT + 1):
            await put(store, A, b"renewed", now=NOW + n)
        again = await store.changes_since(first.version, first.cursor)
        assert again.complete
        assert [each.id for each in again.changed] == [each.id for each in (await everything(store))[:ROWS_PER_PIECE]]


class TestNonces:
    async def test_a_key_is_new_once_until_it_may_be_forgotten(self, store: Store) -> None:
        until = NOW + 10 * SECOND
        assert await store.remember_once("k", until=until, now=NOW)
        assert not await store.remember_once("k", until=until + 5, now=NOW)
        assert not await store.remember_once("k", until=until + 5, now=until - 1)
        assert await store.remember_once("k", until=until + 10, now=until)
        assert not await store.remember_once("k", until=until + 10, now=until + 9)

    async def test_of_many_at_once_exactly_one_is_first(self, store: Store) -> None:
        keys = [f"k{n}" for n in range(50)] * 10
        answers = await asyncio.gather(*(store.remember_once(key, until=LATER, now=NOW) for key in keys))
        assert sum(answers) == 50
        assert all(answers[:50])

    async def test_one_bad_call_spoils_none_of_those_that_share_its_transaction(self, store: Store) -> None:
        keys = ["a", "\ud800", "b", "c"]
        answers = await asyncio.gather(
            *(store.remember_once(key, until=LATER, now=NOW) for key in keys), return_exceptions=True
        )
        assert [answers[0], *answers[2:]] == [True, True, True]
        assert isinstance(answers[1], UnicodeEncodeError)
        assert not await store.remember_once("a", until=LATER, now=NOW)

    async def test_a_cancelled_call_spoils_none_of_the_others(self, store: Store) -> None:
        calls = [asyncio.create_task(store.remember_once(f"k{n}", until=LATER, now=NOW)) for n in range(40)]
        for steps, call in enumerate(calls[::2]):
            if steps % 4 == 0:
                await asyncio.sleep(0)
            call.cancel()
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert answers[1::2] == [True] * 20
        assert all(answer is True or isinstance(answer, asyncio.CancelledError) for answer in answers[::2])


NEW = Remembered("new", message_id="m1")


class TestIdempotencyKeys:
    @staticmethod
    async def begin(store: Store, *, fingerprint: bytes = b"one", message_id: str = "m1", now: int = NOW) -> Remembered:
        return await store.begin_once(
            "key",
            fingerprint=fingerprint,
            message_id=message_id,
            lease_until=now + 10 * SECOND,
            until=now + 100 * SECOND,
            now=now,
        )

    async def test_the_answer_is_kept_for_those_who_come_again(self, store: Store) -> None:
        assert await self.begin(store) == NEW
        assert await self.begin(store) == Remembered("running")
        await store.finish_once("key", answer='{"a": 1}')
        assert await self.begin(store) == Remembered("finished", '{"a": 1}')
        assert await self.begin(store, now=NOW + 99 * SECOND) == Remembered("finished", '{"a": 1}')
        assert await self.begin(store, message_id="m2", now=NOW + 100 * SECOND) == Remembered("new", message_id="m2")

    async def test_an_abandoned_claim_is_taken_over_at_once_and_is_the_same_message(self, store: Store) -> None:
        await self.begin(store)
        await store.abandon_once("key")
        assert await self.begin(store, fingerprint=b"two") == Remembered("conflict")
        assert await self.begin(store, message_id="m2") == NEW

    async def test_a_claim_is_held_longer_by_its_own_message_until_it_is_finished(self, store: Store) -> None:
        await self.begin(store)
        await store.renew_once("key", message_id="m2", lease_until=NOW + 99 * SECOND)
        await store.renew_once("key", message_id="m1", lease_until=NOW + 20 * SECOND)
        assert await self.begin(store, now=NOW + 19 * SECOND) == Remembered("running")
        assert await self.begin(store, now=NOW + 20 * SECOND) == NEW
        await store.finish_once("key", answer="done")
        await store.renew_once("key", message_id="m1", lease_until=NOW + 90 * SECOND)
        assert await self.begin(store, now=NOW + 50 * SECOND) == Remembered("finished", "done")

    async def test_what_is_taken_over_is_the_same_message(self, store: Store) -> None:
        await self.begin(store)
        assert await self.begin(store, message_id="m2", now=NOW + 10 * SECOND) == NEW

    async def test_a_claim_that_ran_out_is_taken_over_by_one(self, store: Store) -> None:
        await self.begin(store)
        later = NOW + 10 * SECOND
        assert await self.begin(store, now=later - 1) == Remembered("running")
        answers = await asyncio.gather(*(self.begin(store, now=later) for _ in range(5)))
        assert sorted(answer.state for answer in answers) == ["new"] + ["running"] * 4

    async def test_another_request_under_the_key_is_a_conflict_always(self, store: Store) -> None:
        await self.begin(store)
        assert await self.begin(store, fingerprint=b"two") == Remembered("conflict")
        assert await self.begin(store, fingerprint=b"two", now=NOW + 11 * SECOND) == Remembered("conflict")
        await store.finish_once("key", answer="done")
        assert await self.begin(store, fingerprint=b"two") == Remembered("conflict")

    async def test_an_answer_that_was_given_stays(self, store: Store) -> None:
        await self.begin(store)
        await store.finish_once("key", answer="first")
        await store.finish_once("key", answer="second")
        await store.abandon_once("key")
        assert await self.begin(store) == Remembered("finished", "first")

    async def test_finishing_and_abandoning_an_unknown_key_do_nothing(self, store: Store) -> None:
        await store.finish_once("key", answer="x")
        await store.abandon_once("key")
        assert await self.begin(store) == NEW


class TestLife:
    @only_lasting
    async def test_everything_survives_a_restart(self, lasting: OpenStore) -> None:
        async with lasting() as store:
            subscription, _ = await store.subscribe(asking(A, "foo/**"), now=NOW)
            await store.unsubscribe(await put(store, A, b"gone"), now=NOW)
            version, etag = await store.version(), await store.etag(A, now=NOW)
            await store.remember_once("nonce", until=LATER, now=NOW)
            await store.begin_once("key", fingerprint=b"f", message_id="m", lease_until=LATER, until=LATER, now=NOW)
            await store.finish_once("key", answer="answer")
        async with lasting() as store:
            assert await everything(store) == [subscription]
            assert (await store.version(), await store.etag(A, now=NOW)) == (version, etag)
            assert not await store.remember_once("nonce", until=LATER, now=NOW)
            known = await store.begin_once(
                "key", fingerprint=b"f", message_id="m", lease_until=LATER, until=LATER, now=NOW
            )
            assert known == Remembered("finished", "answer")

    @only_lasting
    async def test_what_one_answered_another_sees_at_once(self, lasting: OpenStore) -> None:
        async with lasting() as one, lasting() as other:
            for n in range(1, 51):
                subscription, _ = await one.subscribe(asking(A, str(n).encode()), now=NOW)
                assert await other.version() == n
                assert (await other.changes_since(n - 1)).changed == (listed(subscription),)
            assert await one.remember_once("k", until=LATER, now=NOW)
            assert not await other.remember_once("k", until=LATER, now=NOW)

    @only_lasting
    async def test_many_at_two_stores_lose_nothing(self, lasting: OpenStore) -> None:
        async with lasting() as one, lasting() as other:
            topics = [str(n).encode() for n in range(100)]
            await asyncio.gather(
                *(store.subscribe(asking(A, topic), now=NOW) for topic in topics for store in (one, other))
            )
            answers = await asyncio.gather(
                *(store.remember_once(f"k{n}", until=LATER, now=NOW) for n in range(100) for store in (one, other))
            )
            assert len(await everything(one)) == 100
            assert await other.version() == 200
            assert sum(answers) == 100

    async def test_a_closed_store_is_unavailable(self, databases: Iterator[OpenStore]) -> None:
        async with next(databases)() as store:
            pass
        for call in (store.version(), put(store, A, b"t"), store.etag(A, now=NOW)):
            with pytest.raises(Unavailable, match="closed"):
                await call

    async def test_closing_answers_what_was_asked_before(self, databases: Iterator[OpenStore]) -> None:
        async with next(databases)() as store:
            calls = [asyncio.create_task(put(store, A, str(n).encode())) for n in range(300)]
            await asyncio.sleep(0)
        assert len(set(await asyncio.gather(*calls))) == 300


class TestCancellation:
    async def test_a_change_whose_caller_is_cancelled_happens_as_a_whole_or_not_at_all(self, store: Store) -> None:
        wanted = [asking(A, str(n).encode()) for n in range(30)]
        for steps in range(40):
            before = {each.pattern for each in await everything(store)}
            call = asyncio.create_task(store.replace(A, wanted if steps % 2 else [], if_match=None, now=NOW))
            for _ in range(steps % 7):
                await asyncio.sleep(0)
            if steps % 3 == 0:
                await store.version()
            call.cancel()
            await asyncio.wait({call})
            await store.replace(B, [], if_match=None, now=NOW)  # by now it has been decided
            after = {each.pattern for each in await everything(store, url=A)}
            assert after in (before, set() if steps % 2 == 0 else {request.pattern for request in wanted})
        assert await put(store, B, b"still works")

    async def test_a_cancelled_read_leaves_the_store_in_order(self, store: Store) -> None:
        await put(store, A, b"t")
        for steps in range(12):
            reads = [
                asyncio.create_task(read)
                for read in (store.version(), store.changes_since(0), store.etag(A, now=NOW), everything(store))
            ]
            for _ in range(steps):
                await asyncio.sleep(0)
            for read in reads:
                read.cancel()
            await asyncio.wait(reads)
        assert await store.version() == 1
        assert await put(store, A, b"u")
