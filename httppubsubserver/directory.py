"""The subscriptions as this process sees them: an index in memory, kept true by the store's version.

Whoever matches reads the version first and applies what changed since, so a subscription that any process has
answered is seen by the next notify here. The whole table, at the start and when too much has been missed, is read in
pieces into a second set that takes the place of the first when it is whole.

Patterns are parsed and compiled only when a topic comes that they could match, in slices and in a thread: whoever has
many new ones holds up those who publish to his topics, and not the others.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from operator import attrgetter
from typing import ClassVar, Final

from httppubsubclient.protocol.callback_urls import CallbackUrl, split_callback_url
from httppubsubclient.protocol.errors import InvalidUrl
from httppubsubclient.protocol.globs import Shape
from httppubsubclient.protocol.lazy_index import LazyIndex
from httppubsubclient.protocol.options import DeliveryFormat
from httppubsubclient.protocol.patterns import Pattern, PatternKind
from httppubsubserver.escaping import shown_url
from httppubsubserver.stores import Changes, Store

__all__ = ["Directory", "DurableTarget", "DurableWebhookTarget", "Target", "WebhookTarget"]

_LOG = logging.getLogger("httppubsub.server.directory")

_KINDS: Final[dict[PatternKind, PatternKind]] = {"exact": "exact", "glob": "glob", "mqtt": "mqtt"}
"""One copy of each for all targets; a row of the store brings its own."""

_SLICE: Final = 2000
"""How many of the targets of one topic are looked at before others get a turn."""

_SLICE_BYTES: Final = 1024
"""Of patterns that are parsed before others get a turn: at most 2 milliseconds."""
_COMPILING_SECONDS: Final = 0.02
"""In the thread, before others who need theirs get a turn."""

_RECENT_CALLBACKS: Final = 1024
"""Their subscriptions share one object also when they come one by one; in a load, all do."""


@dataclass(slots=True, eq=False)
class Target:
    """What the deliveries to one subscription need. Never changed: a renewed subscription is another target.

    There is one for each subscription in memory, so it holds nothing that can be had from something else; and it is
    not frozen, because that takes four times as long to make.
    """

    id: str
    callback: CallbackUrl
    """Shared by the subscriptions of one callback URL."""
    kind: PatternKind
    value: bytes
    expires_at: int
    durable: ClassVar[bool] = False
    webhook: ClassVar[bool] = False
    """Whether its deliveries need anything but what all have: another format, or secrets of its own."""

    @property
    def pattern(self) -> Pattern:
        """What it asks for."""
        return Pattern(self.kind, self.value)

    @property
    def shown_url(self) -> str:
        """Where it is, for the log."""
        return shown_url(self.callback.name)


@dataclass(slots=True, eq=False)
class DurableTarget(Target):
    """One whose messages are accepted for it before they are delivered."""

    durable: ClassVar[bool] = True


@dataclass(slots=True, eq=False)
class WebhookTarget(Target):
    """One that gets another format, or is signed with secrets of its own."""

    format: DeliveryFormat
    sealed: bytes | None
    """The secrets, encrypted."""
    webhook: ClassVar[bool] = True


@dataclass(slots=True, eq=False)
class DurableWebhookTarget(DurableTarget):
    """Both."""

    format: DeliveryFormat
    sealed: bytes | None
    webhook: ClassVar[bool] = True


_PATTERN_OF: Final[Callable[[Target], Pattern]] = attrgetter("pattern")


class Directory:
    """Answers which subscriptions a topic matches, as of the moment it is asked."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._known = _Known()
        self._loading: _Known | None = None
        self._lock = asyncio.Lock()
        self._settling = asyncio.Lock()
        self._compiling = asyncio.Lock()

    def __len__(self) -> int:
        return len(self._known.targets)

    @property
    def any_durable(self) -> bool:
        """Whether any of them is durable, as of the last match."""
        return self._known.durable > 0

    async def match(self, topic: bytes, *, now: int) -> list[Target]:
        """The unexpired subscriptions that match. `now` in microseconds."""
        await self.refresh()
        found = await self._matching(topic)
        if len(found) <= _SLICE:
            return [target for target in found if target.expires_at > now]
        targets: list[Target] = []
        for start in range(0, len(found), _SLICE):
            targets += [target for target in found[start : start + _SLICE] if target.expires_at > now]
            await asyncio.sleep(0)
        return targets

    async def _matching(self, topic: bytes) -> list[Target]:
        """Nothing waits between the last look at what is not in its place yet and the match."""
        while True:
            while self._known.index.waits(topic):
                async with self._settling:  # one slice at a time, whoever needs it
                    if not self._known.index.settle(topic, _SLICE_BYTES):
                        await asyncio.sleep(0)
            cold: list[Shape] = []
            found = self._known.index.match(topic, cold)
            if not cold:
                return found
            while cold:
                async with self._compiling:
                    cold = await asyncio.to_thread(_compile, cold)

    async def refresh(self) -> None:
        """Catch up with the store; cheap when nothing has changed.

        Whoever is cancelled while the whole table is read leaves the part that was read to the next one.
        """
        version = await self._store.version()
        # Another one, not a greater one: a database that was restored from a backup has gone back.
        if version == self._known.version:
            return
        async with self._lock:
            if version == self._known.version:
                return  # somebody who was here first has done it
            if await self._catch_up():
                return
            with _collector_paused():
                while not await self._catch_up():
                    pass

    async def _catch_up(self) -> bool:
        """Apply the next changes; False when there are more to come, of the whole table."""
        known = self._loading or self._known
        changes = await self._store.changes_since(known.version, known.cursor)
        # From here on nothing waits: whoever matches meanwhile sees the set before or the set after, never a part.
        if changes.complete:
            known = self._loading = _Known()
        known.apply(changes)
        if known.cursor is not None:
            return False
        if known is self._loading:
            known.loaded()
            self._known, self._loading = known, None
        return True


class _Known:
    """The subscriptions at one version of the store, or the part of them up to `cursor`."""

    def __init__(self) -> None:
        self.version = 0
        self.cursor: str | None = None
        self.index: LazyIndex[Target] = LazyIndex(_PATTERN_OF)
        self.targets: dict[str, Target] = {}
        self.durable = 0
        self._callback_of = lru_cache(maxsize=None)(split_callback_url)

    def loaded(self) -> None:
        """Nothing but single changes will follow."""
        self._callback_of = lru_cache(maxsize=_RECENT_CALLBACKS)(split_callback_url)

    def apply(self, changes: Changes) -> None:
        index, targets, callback_of = self.index, self.targets, self._callback_of
        for subscription_id in changes.removed:
            target = targets.pop(subscription_id, None)
            if target is not None:
                self.durable -= target.durable
                index.remove(target)
        for subscription_id, url, kind, value, expires_at, durable, form, sealed in changes.changed:
            of_its_kind: Callable[..., Target] = DurableTarget if durable else Target
            options: tuple[object, ...] = ()
            if form != "raw" or sealed is not None:
                of_its_kind = DurableWebhookTarget if durable else WebhookTarget
                options = (form, sealed)
            known = targets.get(subscription_id)
            if known is None:
                try:
                    callback = callback_of(url)
                except InvalidUrl:
                    _LOG.error("subscription %s has a callback URL that is not one; it is ignored", subscription_id)
                    continue
                target = of_its_kind(subscription_id, callback, _KINDS[kind], value, expires_at, *options)
                targets[subscription_id] = target
                self.durable += durable
                index.add(target)
            elif known.expires_at != expires_at or known.durable != durable or options or known.webhook:
                # (url, pattern) names a subscription, so a change of one that is known never touches either.
                target = of_its_kind(subscription_id, known.callback, known.kind, known.value, expires_at, *options)
                targets[subscription_id] = target
                self.durable += durable - known.durable
                index.swap(known, target)
        self.version = changes.version
        self.cursor = changes.cursor


def _compile(shapes: list[Shape]) -> list[Shape]:
    """Those that are left when the time is over, but at least one fewer."""
    began = time.monotonic()
    for at, shape in enumerate(shapes):
        if at and time.monotonic() - began > _COMPILING_SECONDS:
            return shapes[at:]
        shape.compile()
    return []


@contextmanager
def _collector_paused() -> Iterator[None]:
    """While the whole table is read hardly anything becomes garbage, and looking for it takes a third of the time.

    One collection at the end looks at all that is new. It would come anyway, and twice before that for the young.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
            gc.collect()
