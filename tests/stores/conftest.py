"""The backends that the conformance suite runs over. A new one is a line in BACKENDS."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from itertools import count
from pathlib import Path

import pytest

from httppubsubclient.protocol.messages import SubscribeRequest, Subscription
from httppubsubclient.protocol.patterns import Pattern
from httppubsubserver.stores import Listed, Store
from httppubsubserver.stores.durable import DurableStore
from httppubsubserver.stores.sqlite import open_sqlite

NOW = 1_800_000_000_000_000
SECOND = 1_000_000
A, B = "http://a.example:3002/pubsub#1", "https://b.example/pubsub"

CHANGES_KEPT = 20
"""The log of changes is this short here, so that tests reach its end."""
ROWS_PER_PIECE = 3
"""The whole table comes in pieces as small as this."""

OpenStore = Callable[[], AbstractAsyncContextManager[DurableStore]]


def sqlite_files(directory: Path) -> Iterator[OpenStore]:
    for number in count():
        url = f"sqlite:///{directory}/{number}.sqlite3"
        yield lambda url=url: open_sqlite(  # type: ignore[misc]
            url, changes_kept=CHANGES_KEPT, rows_per_piece=ROWS_PER_PIECE
        )


def sqlite_memory(_: Path) -> Iterator[OpenStore]:
    while True:
        yield lambda: open_sqlite("sqlite:///:memory:", changes_kept=CHANGES_KEPT, rows_per_piece=ROWS_PER_PIECE)


BACKENDS = {"sqlite": sqlite_files, "sqlite-memory": sqlite_memory}
LASTING = ["sqlite"]
"""Those whose data outlives the last one who has them open."""


@pytest.fixture(params=list(BACKENDS))
def databases(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OpenStore]:
    """Each `next` is an empty database of one backend; calling it opens it, again and again the same."""
    return BACKENDS[request.param](tmp_path)


@pytest.fixture
def lasting(databases: Iterator[OpenStore], request: pytest.FixtureRequest) -> OpenStore:
    """One empty database that lasts. Use with `only_lasting`."""
    return next(databases)


only_lasting = pytest.mark.parametrize("databases", LASTING, indirect=True)


@pytest.fixture
async def store(databases: Iterator[OpenStore]) -> AsyncIterator[DurableStore]:
    """An empty store."""
    async with next(databases)() as opened:
        yield opened


def asking(url: str, pattern: bytes | str | Pattern, *, lease_seconds: int = 60) -> SubscribeRequest:
    """Bytes are an exact topic, text is a glob."""
    if isinstance(pattern, bytes):
        pattern = Pattern.exact(pattern)
    elif isinstance(pattern, str):
        pattern = Pattern.glob(pattern)
    return SubscribeRequest(url, pattern, lease_seconds)


async def put(
    store: Store, url: str, pattern: bytes | str | Pattern, *, lease_seconds: int = 60, now: int = NOW
) -> str:
    """Subscribe; the id."""
    subscription, _ = await store.subscribe(asking(url, pattern, lease_seconds=lease_seconds), now=now)
    return subscription.id


def listed(subscription: Subscription) -> Listed:
    """What a store tells of it among its changes."""
    pattern = subscription.pattern
    durable = subscription.delivery == "durable"
    return Listed(subscription.id, subscription.url, pattern.kind, pattern.value, subscription.expires_at, durable)


async def everything(store: Store, *, now: int = NOW, url: str | None = None) -> list[Subscription]:
    """All unexpired subscriptions, of all URLs or of one."""
    page = await store.subscriptions(url=url, cursor=None, limit=10_000, now=now)
    assert page.cursor is None
    return list(page.subscriptions)
