"""The subscriptions as this process sees them: an index in memory, kept true by the store's version.

Whoever matches reads the version first and applies what changed since, so a subscription that any process has
answered is seen by the next notify here.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from httppubsubclient.protocol.callback_urls import CallbackUrl, parse_callback_url
from httppubsubclient.protocol.delivery_heads import subscription_lines
from httppubsubclient.protocol.errors import InvalidUrl
from httppubsubclient.protocol.messages import Subscription
from httppubsubclient.protocol.topic_index import TopicIndex
from httppubsubserver.stores import Changes, Store

__all__ = ["Directory", "Target"]

_LOG = logging.getLogger("httppubsub.server.directory")

_SLICE = 1000
"""How many subscriptions are indexed before other work gets a turn."""


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """A subscription with what its deliveries need, prepared once."""

    subscription: Subscription
    callback: CallbackUrl
    lines: bytes
    """protocol/delivery_heads.subscription_lines"""

    @property
    def shown_url(self) -> str:
        """Where it is, for the log: without the query, which may hold a secret of the subscriber's."""
        return f"{self.callback.origin}{self.callback.target.partition('?')[0]}"


class Directory:
    """Answers which subscriptions a topic matches, as of the moment it is asked."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._version = 0
        self._index: TopicIndex[str] = TopicIndex()
        self._targets: dict[str, Target] = {}
        self._lock = asyncio.Lock()

    def __len__(self) -> int:
        return len(self._targets)

    async def match(self, topic: bytes, *, now: int) -> list[Target]:
        """The unexpired subscriptions that match. `now` in microseconds."""
        await self.refresh()
        targets = (self._targets[key] for key in self._index.match(topic))
        return [target for target in targets if target.subscription.expires_at > now]

    async def refresh(self) -> None:
        """Catch up with the store; cheap when nothing has changed."""
        # Another one, not a greater one: a database that was restored from a backup has gone back.
        if await self._store.version() != self._version:
            async with self._lock:
                await self._apply(await self._store.changes_since(self._version))

    async def _apply(self, changes: Changes) -> None:
        if changes.complete:
            # Built aside and swapped in: whoever matches meanwhile sees the old set or the new one, never a part.
            index: TopicIndex[str] = TopicIndex()
            targets: dict[str, Target] = {}
            for start in range(0, len(changes.changed), _SLICE):
                for subscription in changes.changed[start : start + _SLICE]:
                    _put(index, targets, subscription)
                await asyncio.sleep(0)
            self._index, self._targets = index, targets
        else:
            for subscription_id in changes.removed:
                _drop(self._index, self._targets, subscription_id)
            for subscription in changes.changed:
                _put(self._index, self._targets, subscription)
        self._version = changes.version


def _put(index: TopicIndex[str], targets: dict[str, Target], subscription: Subscription) -> None:
    known = targets.get(subscription.id)
    if known is not None:
        # (url, pattern) names a subscription, so a change of one that is known never touches either.
        targets[subscription.id] = Target(subscription, known.callback, known.lines)
        return
    try:
        callback = parse_callback_url(subscription.url)
    except InvalidUrl:
        _LOG.error("subscription %s has a callback URL that is not one; it is ignored", subscription.id)
        return
    targets[subscription.id] = Target(subscription, callback, subscription_lines(subscription, callback.fragment))
    index.add(subscription.pattern, subscription.id)


def _drop(index: TopicIndex[str], targets: dict[str, Target], subscription_id: str) -> None:
    target = targets.pop(subscription_id, None)
    if target is not None:
        index.remove(target.subscription.pattern, subscription_id)
