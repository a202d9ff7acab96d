"""The store is the truth: subscriptions, their version, and what must be remembered across restarts.

`Store` is the contract; tests/stores/ holds its conformance suite, which every backend passes. `open_store(url)`
chooses the backend by the URL's scheme and imports its driver only then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from httppubsubclient.protocol.errors import ConfigurationError
from httppubsubclient.protocol.messages import SubscribeRequest, Subscription
from httppubsubclient.protocol.options import DeliveryFormat
from httppubsubclient.protocol.patterns import Pattern, PatternKind

if TYPE_CHECKING:
    from httppubsubserver.stores.durable import DurableStore

__all__ = [
    "Changes",
    "Listed",
    "Only",
    "Page",
    "Remembered",
    "Replaced",
    "Sealed",
    "SecretsChange",
    "Store",
    "open_store",
]


class Only(str):
    """An owner for whom there is what is his and nothing else. For others there is also what is nobody's: what was made
    in the process itself, without keys, or before there were owners."""

    __slots__ = ()


class Listed(NamedTuple):
    """What matching and delivering need of a subscription. A tuple, because a million are read when a process starts
    (a frozen dataclass takes five times as long to make)."""

    id: str
    url: str
    kind: PatternKind
    pattern: bytes
    """`Pattern.value`."""
    expires_at: int
    durable: bool
    format: DeliveryFormat = "raw"
    sealed: bytes | None = None
    """Its own secrets, encrypted."""


class Sealed(NamedTuple):
    """The secrets of a subscription as the store keeps them."""

    blob: bytes
    """Encrypted; the store does not look into it."""
    signature: Literal["v1", "v1a"]
    public_key: str | None


SecretsChange = Callable[[str, bytes | None], Sealed]
"""Gives the new secrets for a subscription's id and its present ones. Called within a transaction: quick, without I/O.
What it raises undoes the transaction."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What happened to the subscriptions after a version, folded: no id stands in both tuples."""

    version: int
    """The version that is reached by applying this; with a `cursor`, by as much of the table as has been read."""
    complete: bool
    """True when older history is gone: start over, with nothing but `changed`, which is the table or its beginning."""
    changed: tuple[Listed, ...]
    """New, or with other options or another expiry."""
    removed: tuple[str, ...]
    """Ids, also of subscriptions that were never listed."""
    cursor: str | None = None
    """There is more of the table: give this to the next call, with `version`."""


@dataclass(frozen=True, slots=True)
class Page:
    """One page of subscriptions, in the order of their ids."""

    subscriptions: tuple[Subscription, ...]
    cursor: str | None
    """Give it to the next call; None on the last page."""


@dataclass(frozen=True, slots=True)
class Remembered:
    """What is known about an idempotency key."""

    state: Literal["new", "running", "finished", "conflict"]
    """new: it is ours to run; running: somebody runs it; finished: see `answer`; conflict: another request's."""
    answer: str | None = None
    message_id: str = ""
    """new: the message that the request is; the same one when an earlier claim is taken over."""


class Replaced(NamedTuple):
    """What `Store.replace` has made of a set."""

    subscriptions: tuple[Subscription, ...]
    """The set in the order of the requests (a repeated pattern once: its first place, its last options)."""
    etag: str
    removed: tuple[Subscription, ...]
    """What is not part of it any more, without what had expired already."""


class Store(Protocol):
    """All moments (`now`, `until`, ...) are microseconds since 1970; the store itself reads no clock.

    Every method raises `Unavailable` while the database cannot do its work; then nothing has happened, and the store
    works again when the database does. A caller may be cancelled at any moment: the change it asked for has then
    happened as a whole or not at all.

    Subscriptions have owners. With `owner=None` everything is there; with one, what is somebody else's is not: it is
    not shown, not counted and not removed, and asking for the same (url, pattern) raises `Forbidden`. What has no owner
    is everybody's, and the first owner who renews it has it from then on. `max_subscriptions` is how many one owner may
    have; more raise `QuotaExceeded`, and nothing has happened.
    """

    async def version(self) -> int:
        """The number that every change of subscriptions increments: one cheap read, never stale."""
        ...

    async def changes_since(self, version: int, cursor: str | None = None) -> Changes:
        """Everything that happened after `version`; 0 means from the beginning.

        The whole table comes in pieces. Each is a snapshot of its own and brings, with the next rows, what has
        happened since the piece before; applied in order they give the table as it is at the last one's version.
        Between two pieces nothing is held open, so any time may pass.
        """
        ...

    async def subscribe(
        self,
        request: SubscribeRequest,
        *,
        now: int,
        owner: str | None = None,
        max_subscriptions: int | None = None,
        secrets: SecretsChange | None = None,
    ) -> tuple[Subscription, bool]:
        """Add, or renew the same (url, pattern), which keeps its id and has these options from now on. True when new.
        `before` of what is returned is what it was.

        One that has expired is gone: it is recorded as removed, and a new one takes its place. Without `secrets` one
        keeps those it has.
        """
        ...

    async def unsubscribe(
        self, subscription_id: str, *, now: int, expires_at: int | None = None, owner: str | None = None
    ) -> Subscription | None:
        """Remove, and return what was removed; None when it is unknown or expired, or when `expires_at` is given and it
        has been renewed since."""
        ...

    async def subscription(self, subscription_id: str, *, now: int, owner: str | None = None) -> Subscription | None:
        """One subscription; None when unknown or expired."""
        ...

    async def subscribed(self, url: str, patterns: Sequence[Pattern], *, now: int) -> tuple[Subscription | None, ...]:
        """Who has these (url, pattern) at present, whoever owns them; None for those that nobody has."""
        ...

    async def subscriptions(
        self, *, url: str | None, cursor: str | None, limit: int, now: int, owner: str | None = None
    ) -> Page:
        """A page of all, or of one URL's, unexpired subscriptions. `limit` >= 1."""
        ...

    async def replace(
        self,
        url: str,
        requests: Sequence[SubscribeRequest],
        *,
        if_match: str | None,
        now: int,
        owner: str | None = None,
        max_subscriptions: int | None = None,
        secrets: Mapping[Pattern, SecretsChange] | None = None,
    ) -> Replaced:
        """Make `requests` the whole set of `url` in one transaction; what stays keeps its id and is renewed.

        All requests have this `url`. Raises `PreconditionFailed` (with the present ETag) when `if_match` is given and
        is not it.
        """
        ...

    async def etag(self, url: str, *, now: int, owner: str | None = None) -> str:
        """The strong ETag of a URL's set, with its quotes: it changes with anything GET would show of the set."""
        ...

    async def remember_once(self, key: str, *, until: int, now: int) -> bool:
        """True exactly once per key before `until`, over all processes and restarts: the replay window."""
        ...

    async def begin_once(
        self, key: str, *, fingerprint: bytes, message_id: str, lease_until: int, until: int, now: int
    ) -> Remembered:
        """Claim an idempotency key for a message. A claim that is not finished by `lease_until` may be taken over;
        what it was about, the fingerprint and the message, stays."""
        ...

    async def renew_once(self, key: str, *, message_id: str, lease_until: int) -> None:
        """Hold a claim longer, unless another message has it or it is finished."""
        ...

    async def finish_once(self, key: str, *, answer: str) -> None:
        """Keep the answer for those who come with the same key and fingerprint until its `until`. The first stays."""
        ...

    async def abandon_once(self, key: str) -> None:
        """Give up a claim that is not finished: it may be taken over at once."""
        ...

    async def prune(self, *, now: int) -> int:
        """Delete expired subscriptions (each counts as a change) and idempotency keys; returns how many."""
        ...


def open_store(url: str, *, create: bool = True) -> AbstractAsyncContextManager[DurableStore]:
    """The store at `sqlite:///relative.db`, `sqlite:////absolute.db` or `sqlite:///:memory:`, migrated and open
    while the context lasts. Without `create` the database is there already and as this version has it: nothing is
    made or migrated. Raises `ConfigurationError`; entering also `Unavailable`, when it stays locked."""
    scheme, separator, _ = url.partition("://")
    if not separator:
        raise ConfigurationError(f"a database URL looks like sqlite:///httppubsub.db; got {url!r}")
    if scheme == "sqlite":
        from httppubsubserver.stores.sqlite import open_sqlite

        return open_sqlite(url, create=create)
    raise ConfigurationError(f"no store for {scheme!r} databases; this version knows sqlite:///path")
