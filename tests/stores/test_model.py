"""Any sequence of calls leaves a store with what a dict would hold, and whoever reads its changes with the same."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from httppubsubclient.protocol.messages import SubscribeRequest, Subscription
from httppubsubclient.protocol.patterns import Pattern
from httppubsubserver.stores import Listed, Store
from tests.stores.conftest import NOW, SECOND, A, B, OpenStore, everything, listed

URLS = st.sampled_from([A, B])
PATTERNS = st.sampled_from([Pattern.exact(b"t"), Pattern.exact(b"\xff"), Pattern.glob("t"), Pattern.mqtt("t/#")])
REQUESTS = st.one_of(
    st.builds(SubscribeRequest, URLS, PATTERNS, st.integers(1, 5)),
    st.builds(
        SubscribeRequest,
        URLS,
        PATTERNS,
        st.integers(1, 5),
        st.just("durable"),
        st.booleans(),
        st.sampled_from([None, (0.0, 5.0)]),
    ),
)


@dataclass
class Model:
    """What a store should hold, by (url, pattern): the id and when it expires; and what a reader of changes knows."""

    known: dict[tuple[str, Pattern], Subscription]
    version: int
    cursor: str | None
    replica: dict[str, Listed]

    def alive(self, now: int) -> dict[tuple[str, Pattern], Subscription]:
        return {name: each for name, each in self.known.items() if each.expires_at > now}


STEPS = st.one_of(
    st.tuples(st.just("subscribe"), REQUESTS),
    st.tuples(st.just("unsubscribe"), st.tuples(URLS, PATTERNS)),
    st.tuples(st.just("replace"), st.tuples(URLS, st.lists(REQUESTS, max_size=3))),
    st.tuples(st.just("wait"), st.integers(1, 3)),
    st.tuples(st.just("prune"), st.none()),
    st.tuples(st.just("catch up"), st.none()),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEPS, min_size=20, max_size=60))
async def test_a_store_agrees_with_a_dict(databases: Iterator[OpenStore], steps: list[tuple[str, object]]) -> None:
    async with next(databases)() as store:
        model, now = Model({}, 0, None, {}), NOW
        for verb, given_to_it in steps:
            now += 1
            if verb == "wait":
                assert isinstance(given_to_it, int)
                now += given_to_it * SECOND
            else:
                await DO[verb](store, model, given_to_it, now)
            alive = model.alive(now)
            assert {(each.url, each.pattern): each for each in await everything(store, now=now)} == alive
        await _catch_up(store, model, None, now)


async def _subscribe(store: Store, model: Model, request: SubscribeRequest, now: int) -> None:
    subscription, created = await store.subscribe(request, now=now)
    _expect(model, request, subscription, now, created=created)


async def _unsubscribe(store: Store, model: Model, name: tuple[str, Pattern], now: int) -> None:
    known = model.known.get(name)
    if known is not None:
        removed = await store.unsubscribe(known.id, now=now)
        assert (removed is not None) == (name in model.alive(now))
        if removed:
            del model.known[name]


async def _replace(store: Store, model: Model, wanted: tuple[str, list[SubscribeRequest]], now: int) -> None:
    url, requests = wanted
    requests = [replace(request, url=url) for request in requests]
    subscriptions, etag, _ = await store.replace(url, requests, if_match=await store.etag(url, now=now), now=now)
    assert etag == await store.etag(url, now=now)
    last = {request.pattern: request for request in requests}
    assert [subscription.pattern for subscription in subscriptions] == list(last)
    for subscription, request in zip(subscriptions, last.values(), strict=True):
        _expect(model, request, subscription, now, created=(url, request.pattern) not in model.alive(now))
    for name in [name for name in model.known if name[0] == url and name[1] not in last]:
        del model.known[name]


async def _prune(store: Store, model: Model, _: None, now: int) -> None:
    dead = len(model.known) - len(model.alive(now))
    assert await store.prune(now=now) == dead
    model.known = model.alive(now)


async def _catch_up(store: Store, model: Model, _: None, now: int) -> None:
    """As directory.py does it."""
    changes = await store.changes_since(model.version, model.cursor)
    assert changes.version == await store.version()
    if changes.complete:
        model.replica = {}
    for subscription_id in changes.removed:
        model.replica.pop(subscription_id, None)
    model.replica.update({each.id: each for each in changes.changed})
    model.version, model.cursor = changes.version, changes.cursor
    complete = {each.id: listed(each) for each in model.known.values()}
    expected = {key: each for key, each in complete.items() if model.cursor is None or key <= model.cursor}
    assert model.replica.items() >= expected.items()
    assert complete.items() >= model.replica.items()


def _expect(model: Model, request: SubscribeRequest, subscription: Subscription, now: int, *, created: bool) -> None:
    known = model.alive(now).get((request.url, request.pattern))
    assert created == (known is None)
    expected = Subscription(
        id=subscription.id if known is None else known.id,
        url=request.url,
        pattern=request.pattern,
        lease_seconds=request.lease_seconds,
        created_at=now if known is None else known.created_at,
        expires_at=now + request.lease_seconds * SECOND,
        delivery=request.delivery,
        ordered=request.ordered,
        retry_schedule_seconds=request.retry_schedule_seconds,
    )
    assert subscription == expected
    model.known[request.url, request.pattern] = subscription


DO: dict[str, Callable[..., Awaitable[None]]] = {
    "subscribe": _subscribe,
    "unsubscribe": _unsubscribe,
    "replace": _replace,
    "prune": _prune,
    "catch up": _catch_up,
}
