"""Whose subscriptions are whose, how many somebody may have, and the secrets that lie with them."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from httppubsubclient.protocol.errors import Forbidden, InvalidSecret, PreconditionFailed, QuotaExceeded
from httppubsubclient.protocol.messages import PERMANENT_UNTIL, Notification, Subscription
from httppubsubclient.protocol.patterns import Pattern
from httppubsubserver.stores import Only, Sealed, Store
from httppubsubserver.stores.durable import DurableStore, Publication, Selection
from tests.stores.conftest import NOW, SECOND, A, B, asking

TOPIC = Pattern.exact(b"t")
LATER = NOW + 100 * SECOND


async def put(
    store: Store, owner: str | None, url: str = A, pattern: str | bytes = b"t", max_subscriptions: int | None = None
) -> Subscription:
    subscription, _ = await store.subscribe(
        asking(url, pattern, lease_seconds=60), now=NOW, owner=owner, max_subscriptions=max_subscriptions
    )
    return subscription


async def seen(store: Store, owner: str | None, url: str | None = None) -> list[str]:
    """The ids on all pages, two a page."""
    found: list[str] = []
    cursor: str | None = None
    while True:
        page = await store.subscriptions(url=url, cursor=cursor, limit=2, now=NOW, owner=owner)
        found += [each.id for each in page.subscriptions]
        cursor = page.cursor
        if cursor is None:
            return found


class TestOwners:
    async def test_what_is_anothers_is_not_there(self, store: Store) -> None:
        mine, theirs = await put(store, "me"), await put(store, "them", B)
        assert (mine.owner, theirs.owner) == ("me", "them")
        assert await store.subscription(theirs.id, now=NOW, owner="me") is None
        assert await store.subscription(theirs.id, now=NOW) == theirs
        assert not await store.unsubscribe(theirs.id, now=NOW, owner="me")
        assert await seen(store, "me") == [mine.id]
        assert await seen(store, "me", B) == []
        assert await seen(store, None) == sorted([mine.id, theirs.id])
        assert await store.etag(B, now=NOW, owner="me") == await store.etag("http://nobody.test/", now=NOW)
        assert await store.unsubscribe(theirs.id, now=NOW, owner="them")

    async def test_the_same_subscription_belongs_to_one_owner(self, store: Store) -> None:
        theirs = await put(store, "them")
        with pytest.raises(Forbidden, match="another owner"):
            await put(store, "me")
        with pytest.raises(Forbidden):
            await store.replace(A, [asking(A, b"u"), asking(A, b"t")], if_match=None, now=NOW, owner="me")
        assert await seen(store, None) == [theirs.id]  # nothing of the set was written
        # Somebody to whom everything belongs may renew it, and it stays theirs.
        renewed = await put(store, None)
        assert (renewed.id, renewed.owner) == (theirs.id, "them")
        assert await store.subscribed(A, [TOPIC, Pattern.exact(b"u")], now=NOW) == (renewed, None)
        assert await store.subscribed(A, [TOPIC], now=LATER) == (None,)

    async def test_what_has_expired_is_in_nobodys_way(self, store: Store) -> None:
        theirs = await put(store, "them")
        mine, created = await store.subscribe(asking(A, b"t"), now=LATER, owner="me")
        assert created
        assert mine.id != theirs.id
        await store.subscribe(asking(B, b"t", lease_seconds=1), now=NOW, owner="them")
        [kept], *_ = await store.replace(B, [asking(B, b"t")], if_match=None, now=LATER, owner="me")
        assert kept.owner == "me"

    async def test_what_is_everybodys_is_taken_by_who_renews_it_first(self, store: Store) -> None:
        nobodys = await put(store, None)
        assert await seen(store, "me") == await seen(store, "them") == [nobodys.id]
        mine = await put(store, "me")
        assert (mine.id, mine.owner) == (nobodys.id, "me")
        assert await seen(store, "them") == []

    async def test_a_set_is_that_of_its_owner(self, store: Store) -> None:
        theirs = await put(store, "them", A, b"theirs")
        tag = await store.etag(A, now=NOW, owner="me")
        mine, after, _ = await store.replace(A, [asking(A, b"x"), asking(A, b"y")], if_match=tag, now=NOW, owner="me")
        assert after == await store.etag(A, now=NOW, owner="me")
        assert set(await seen(store, None)) == {theirs.id, *(each.id for each in mine)}
        await store.replace(A, [], if_match=after, now=NOW, owner="me")
        assert await seen(store, None) == [theirs.id]
        with pytest.raises(PreconditionFailed):
            await store.replace(A, [], if_match=after, now=NOW, owner="them")

    async def test_pages_of_an_owner_leave_nothing_out(self, store: Store) -> None:
        own = {(await put(store, owner, A, b"%d" % n)).id for n, owner in enumerate(["me", None] * 5)}
        for n in range(5):
            await put(store, "them", B, b"%d" % n)
        assert await seen(store, "me") == sorted(own)
        assert await seen(store, "me", A) == sorted(own)


class TestCounting:
    async def test_more_than_the_quota_are_refused_and_renewing_is_not_more(self, store: Store) -> None:
        for n in range(3):
            await put(store, "me", A, b"%d" % n, max_subscriptions=3)
        with pytest.raises(QuotaExceeded, match="3 subscriptions"):
            await put(store, "me", A, b"3", max_subscriptions=3)
        await put(store, "me", A, b"0", max_subscriptions=3)
        await put(store, "them", B, b"0", max_subscriptions=1)
        with pytest.raises(QuotaExceeded):
            await put(store, "them", A, b"4", max_subscriptions=0)

    async def test_a_whole_set_counts_and_fails_as_one(self, store: Store) -> None:
        first = await put(store, "me", B, b"0")
        four = [asking(A, b"%d" % n) for n in range(4)]
        with pytest.raises(QuotaExceeded):
            await store.replace(A, four, if_match=None, now=NOW, owner="me", max_subscriptions=4)
        assert await seen(store, None) == [first.id]
        for size in (3, 2, 3):
            await store.replace(A, four[:size], if_match=None, now=NOW, owner="me", max_subscriptions=4)
        assert len(await seen(store, "me")) == 4

    async def test_what_has_ended_makes_room(self, store: Store) -> None:
        one = await put(store, "me", max_subscriptions=1)
        await store.unsubscribe(one.id, now=NOW)
        await put(store, "me", B, max_subscriptions=1)
        # Expired, and not pruned yet.
        await store.subscribe(asking(A, b"t"), now=LATER, owner="me", max_subscriptions=1)
        await store.prune(now=LATER)
        with pytest.raises(QuotaExceeded):
            await store.subscribe(asking(A, b"u"), now=LATER, owner="me", max_subscriptions=1)

    async def test_taking_over_what_was_everybodys_counts(self, store: Store) -> None:
        await put(store, None)
        await put(store, "me", B)
        with pytest.raises(QuotaExceeded):
            await put(store, "me", max_subscriptions=1)
        assert (await put(store, "me", max_subscriptions=2)).owner == "me"
        with pytest.raises(QuotaExceeded):
            await put(store, "me", A, b"u", max_subscriptions=2)

    async def test_fifty_at_once_do_not_pass_it(self, store: Store) -> None:
        asked = (put(store, "me", A, b"%d" % n, max_subscriptions=20) for n in range(50))
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert sum(isinstance(each, QuotaExceeded) for each in answers) == 30
        assert len(await seen(store, "me")) == 20


class TestOptions:
    async def test_formats_and_permanence_are_kept(self, store: Store) -> None:
        request = replace(asking(A, b"t"), format="cloudevents-structured", lease_seconds=0)
        subscription, _ = await store.subscribe(request, now=NOW)
        assert (subscription.format, subscription.expires_at) == ("cloudevents-structured", PERMANENT_UNTIL)
        assert await store.subscription(subscription.id, now=NOW + 10**15) == subscription
        [listed] = (await store.changes_since(0)).changed
        assert (listed.format, listed.sealed) == ("cloudevents-structured", None)
        await store.subscribe(asking(A, b"t", lease_seconds=5), now=NOW)
        again = await store.subscription(subscription.id, now=NOW)
        assert again is not None
        assert (again.format, again.expires_at) == ("raw", NOW + 5 * SECOND)

    async def test_secrets_are_made_within_the_change_and_stay_until_they_are_changed(self, store: Store) -> None:
        given: list[tuple[str, bytes | None]] = []

        def change(subscription_id: str, present: bytes | None) -> Sealed:
            given.append((subscription_id, present))
            return Sealed((present or b"") + b"+", "v1a", "whpk_x")

        first, _ = await store.subscribe(asking(A, b"t"), now=NOW, secrets=change)
        assert (first.sealed, first.signature, first.public_key) == (b"+", "v1a", "whpk_x")
        renewed, _ = await store.subscribe(asking(A, b"t"), now=NOW + SECOND)
        assert renewed.sealed == b"+"
        assert await store.subscription(first.id, now=NOW) == renewed
        [second], *_ = await store.replace(A, [asking(A, b"t")], if_match=None, now=NOW, secrets={TOPIC: change})
        assert second.sealed == b"++"
        assert given == [(first.id, None), (first.id, b"+")]
        changes = await store.changes_since(0)
        assert [each.sealed for each in changes.changed] == [b"++"]

    async def test_a_secret_that_is_refused_changes_nothing(self, store: Store) -> None:
        def refuse(subscription_id: str, present: bytes | None) -> Sealed:
            raise InvalidSecret("no")

        with pytest.raises(InvalidSecret):
            await store.subscribe(asking(A, b"t"), now=NOW, secrets=refuse)
        assert await seen(store, None) == []
        version = await store.version()
        with pytest.raises(InvalidSecret):
            await store.replace(A, [asking(A, b"t")], if_match=None, now=NOW, secrets={TOPIC: refuse})
        assert await store.version() == version


class TestDeliveries:
    async def test_they_are_seen_by_the_owner_of_the_subscription(self, store: DurableStore) -> None:
        owners = ("me", "them", None)
        subscribers = {}
        for number, owner in enumerate(owners):
            request = replace(asking(A, b"%d" % number), delivery="durable")
            subscription, _ = await store.subscribe(request, now=NOW, owner=owner)
            subscribers[owner] = subscription.id
        notification = Notification("m", b"t", "text/plain", b"h" * 32, 1, None, 3)
        await store.accept(Publication(notification, b"x", [*subscribers.values()], owner="publisher"), now=NOW)

        async def visible(owner: str | None) -> set[str]:
            page = await store.deliveries(Selection(owner=owner), cursor=None, limit=10)
            return {each.subscription_id for each in page.deliveries}

        assert await visible(None) == set(subscribers.values())
        assert await visible("me") == {subscribers["me"], subscribers[None]}
        stored = await store.message("m", cursor=None, limit=10)
        assert stored is not None
        assert (stored.message.owner, stored.message.notification.hops) == ("publisher", 3)
        await store.unsubscribe(subscribers["me"], now=NOW)
        assert await visible("me") == {subscribers[None]}
        assert await visible(None) == set(subscribers.values())


class TestOnly:
    """Owners for whom there is only their own."""

    async def test_what_is_nobodys_is_not_there_and_is_not_removed(self, store: Store) -> None:
        nobodys = await put(store, None)
        mine = await put(store, Only("me"), A, b"u")
        assert mine.owner == "me"
        assert await seen(store, Only("me")) == await seen(store, Only("me"), A) == [mine.id]
        assert await seen(store, "me") == sorted([mine.id, nobodys.id])
        assert await store.subscription(nobodys.id, now=NOW, owner=Only("me")) is None
        assert not await store.unsubscribe(nobodys.id, now=NOW, owner=Only("me"))
        assert await store.etag(A, now=NOW, owner=Only("me")) != await store.etag(A, now=NOW, owner="me")
        kept, *_ = await store.replace(A, [], if_match=None, now=NOW, owner=Only("me"))
        assert kept == ()
        assert await seen(store, None) == [nobodys.id]

    async def test_what_is_nobodys_is_taken_by_who_subscribes_the_same_within_the_quota(self, store: Store) -> None:
        first, second, third = await put(store, None), await put(store, None, A, b"u"), await put(store, None, A, b"v")
        assert (await put(store, Only("me"))).id == first.id
        tag = await store.etag(A, now=NOW, owner=Only("me"))
        wanted = [asking(A, b"t"), asking(A, b"u")]
        with pytest.raises(QuotaExceeded):
            await store.replace(A, wanted, if_match=None, now=NOW, owner=Only("me"), max_subscriptions=1)
        kept, *_ = await store.replace(A, wanted, if_match=tag, now=NOW, owner=Only("me"), max_subscriptions=2)
        assert [each.id for each in kept] == [first.id, second.id]
        assert await seen(store, Only("me")) == sorted([first.id, second.id])
        assert (await store.subscription(third.id, now=NOW)) == third

    async def test_deliveries_messages_and_replays_are_those_of_ones_own(self, store: DurableStore) -> None:
        durable = [
            (await store.subscribe(replace(asking(url, b"t"), delivery="durable"), now=NOW, owner=owner))[0]
            for url, owner in ((A, None), (B, "me"))
        ]
        ids = [each.id for each in durable]
        for name, owner, receivers in (("m1", None, ids), ("m2", "them", ids[:1]), ("m3", "me", ids[:1])):
            notification = Notification(name, b"t", "a/b", b"x" * 32, 0)
            await store.accept(Publication(notification, b"", receivers, owner=owner), now=NOW)

        async def shown(name: str, owner: str | None) -> list[str] | None:
            found = await store.message(name, cursor=None, limit=10, owner=owner)
            return None if found is None else sorted(each.subscription_id for each in found.page.deliveries)

        assert [await shown(name, Only("me")) for name in ("m1", "m2", "m3")] == [ids[1:], None, []]
        assert [await shown(name, "me") for name in ("m1", "m2", "m3")] == [sorted(ids), ids[:1], ids[:1]]
        assert await shown("m2", Only("them")) == []
        assert await shown("m1", Only("them")) is None
        page = await store.deliveries(Selection(owner=Only("me")), cursor=None, limit=10)
        assert [each.subscription_id for each in page.deliveries] == ids[1:]
        for owner in (Only("me"), "me", None):
            begun = await store.replay(Selection(accepted_from=0, owner=owner), now=NOW)
            progress = await store.replay_progress(begun.number)
            assert progress is not None
            assert progress.selection == begun.selection
            assert type(progress.selection.owner) is type(owner)
