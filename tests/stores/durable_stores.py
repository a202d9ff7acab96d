"""What the tests of durable delivery share."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace

from httppubsubclient.protocol.messages import Notification
from httppubsubserver.stores.durable import (
    Attempt,
    Claimed,
    DeliveryPage,
    DurableStore,
    OwedDelivery,
    Publication,
    Selection,
    Settlement,
    Terms,
)
from tests.stores.conftest import NOW, SECOND, asking

ENDPOINT = "http://a.example:3002/pubsub"
OTHER = "http://b.example/pubsub"
LEASE = 60 * SECOND
AGAIN_AT = NOW + 300 * SECOND
YEAR = 365 * 86_400 * SECOND


async def durable(
    store: DurableStore,
    url: str = ENDPOINT,
    topic: bytes = b"t",
    *,
    ordered: bool = False,
    lease_seconds: int = 10 * 86_400,
    now: int = NOW,
) -> str:
    """Subscribe; the id."""
    request = replace(asking(url, topic, lease_seconds=lease_seconds), delivery="durable", ordered=ordered)
    subscription, _ = await store.subscribe(request, now=now)
    return subscription.id


def told(message_id: str, body: bytes = b"data") -> Notification:
    return Notification(message_id, b"t\xff", "text/plain", hashlib.sha256(body).digest(), len(body), None)


def publication(
    message_id: str,
    subscription_ids: Iterable[str],
    body: bytes = b"data",
    *,
    deliver_at: int | None = None,
    expires_at: int | None = None,
) -> Publication:
    return Publication(told(message_id, body), body, list(subscription_ids), deliver_at, expires_at)


def terms(holder: str = "node", *, now: int = NOW, at_most: int = 100, per_endpoint: int = 100) -> Terms:
    return Terms(holder, now + LEASE, at_most, per_endpoint)


async def claim(
    store: DurableStore, *, holder: str = "node", now: int = NOW, at_most: int = 100, per_endpoint: int = 100
) -> tuple[Claimed, ...]:
    """Claim on such terms."""
    on = terms(holder, now=now, at_most=at_most, per_endpoint=per_endpoint)
    return (await store.claim(on, now=now)).deliveries


def ids(claimed: Iterable[Claimed]) -> list[str]:
    """Of the messages."""
    return [each.message.notification.message_id for each in claimed]


def delivered(claimed: Claimed, *, now: int = NOW) -> Settlement:
    return Settlement(claimed.held, "delivered", Attempt(now, now + 1, 204))


def again(claimed: Claimed, due_at: int = AGAIN_AT, *, now: int = NOW) -> Settlement:
    return Settlement(claimed.held, "again", Attempt(now, now + 1, 503, None, b"busy"), due_at=due_at)


def dead(claimed: Claimed, reason: str = "exhausted", *, now: int = NOW) -> Settlement:
    return Settlement(claimed.held, "dead", Attempt(now, now + 1, None, "refused"), reason=reason)


def gone(claimed: Claimed, *, now: int = NOW) -> Settlement:
    return Settlement(claimed.held, "gone", Attempt(now, now + 1, 410), subscribed_until=claimed.subscribed_until)


async def settle(store: DurableStore, *settlements: Settlement, now: int = NOW) -> list[bool]:
    return await store.settle(settlements, now=now)


async def listed(store: DurableStore, selection: Selection | None = None, *, limit: int = 100) -> list[OwedDelivery]:
    """All pages."""
    found: list[OwedDelivery] = []
    cursor: str | None = None
    while True:
        page: DeliveryPage = await store.deliveries(selection or Selection(), cursor=cursor, limit=limit)
        assert len(page.deliveries) <= limit
        found += page.deliveries
        cursor = page.cursor
        if cursor is None:
            return found


async def states(store: DurableStore) -> dict[tuple[str, str], tuple[str, str | None]]:
    """State and reason of each delivery."""
    return {(each.message_id, each.subscription_id): (each.state, each.reason) for each in await listed(store)}


async def work_off(store: DurableStore, *, now: int = NOW) -> int:
    """Until there is nothing left to do; how many slices it took."""
    slices = 0
    while await store.work_off(now=now):
        slices += 1
    return slices


async def accept_all(
    store: DurableStore, message_ids: Sequence[str], subscription_ids: Sequence[str], *, now: int = NOW
) -> None:
    for message_id in message_ids:
        await store.accept(publication(message_id, subscription_ids), now=now)
