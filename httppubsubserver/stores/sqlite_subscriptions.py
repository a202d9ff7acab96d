"""The subscriptions in an SQLite file: the SQL behind `Store`. Each change is part of its caller's transaction."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import replace as replaced
from typing import Any, Final, NamedTuple

from httppubsubclient.protocol.errors import Forbidden, PreconditionFailed, QuotaExceeded
from httppubsubclient.protocol.messages import PERMANENT_UNTIL, SubscribeRequest, Subscription
from httppubsubclient.protocol.options import DeliveryOptions
from httppubsubclient.protocol.patterns import Pattern
from httppubsubserver.stores import Changes, Listed, Only, Page, Replaced, SecretsChange
from httppubsubserver.stores.identity import etag_of, new_subscription_id
from httppubsubserver.stores.sqlite_accept import schedule_of
from httppubsubserver.stores.sqlite_changes import delete_subscriptions, log_changes, read_version

__all__ = [
    "PRUNE_SLICE",
    "Asking",
    "changes_since",
    "endpoint_of",
    "etag",
    "prune_subscriptions",
    "replace",
    "subscribe",
    "subscribed",
    "subscription_by_id",
    "subscriptions_page",
    "unsubscribe",
]

PRUNE_SLICE: Final = 1000
"""Rows that are deleted in one transaction, so that others get their turn between two."""

_MICROSECONDS: Final = 1_000_000

_SELECT: Final = (
    "SELECT id, url, kind, pattern, lease_seconds, created_at, expires_at, delivery, ordered, retry_schedule, format, "
    "signature, public_key, owner, sealed FROM subscriptions"
)
_LISTED: Final = "SELECT id, url, kind, pattern, expires_at, delivery = 'durable', format, sealed FROM subscriptions"
_CHANGED: Final = (
    "SELECT id, url, kind, pattern, expires_at, delivery = 'durable', format, sealed, subscription_id "
    "FROM (SELECT DISTINCT subscription_id FROM subscription_changes WHERE version > ?) "
    "LEFT JOIN subscriptions ON id = subscription_id"
)
_REPLACED: Final = "SELECT id FROM subscriptions WHERE url = ?2 AND ({own} OR expires_at <= ?3)"
"""All that a new set takes the place of; those that have expired are in the way of a new one, whoever had them."""


class Asking(NamedTuple):
    """Who asks for a change, and within what bounds."""

    owner: str | None
    max_subscriptions: int | None
    changes_kept: int


def changes_since(db: sqlite3.Connection, version: int, cursor: str | None, rows_per_piece: int) -> Changes:
    """See `Store.changes_since`."""
    rows: list[Any] = []
    piece: list[Any] = []
    db.execute("BEGIN")
    try:
        newest = read_version(db)
        oldest = db.execute("SELECT coalesce(min(version), 1) FROM subscription_changes").fetchone()[0]
        complete = version != newest and (version <= 0 or version < oldest - 1 or version > newest)
        if complete:
            cursor = ""  # before every id
        elif version != newest:
            rows = db.execute(_CHANGED, (version,)).fetchall()
        if cursor is not None:
            # In the order of the primary key: the cost of a piece does not grow with what lies before it.
            piece = db.execute(f"{_LISTED} WHERE id > ? ORDER BY id LIMIT ?", (cursor, rows_per_piece)).fetchall()
    finally:
        db.execute("ROLLBACK")
    listed = (Listed(*row[:8]) for row in rows if row[0] is not None)
    return Changes(
        newest,
        complete,
        (*map(Listed._make, piece), *listed),
        tuple(row[8] for row in rows if row[0] is None),
        piece[-1][0] if len(piece) == rows_per_piece else None,
    )


def subscribe(
    db: sqlite3.Connection, request: SubscribeRequest, secrets: SecretsChange | None, asking: Asking, now: int
) -> tuple[Subscription, bool]:
    """See `Store.subscribe`."""
    known = _same(db, request.url, request.pattern)
    if known is not None and known.expires_at <= now:
        delete_subscriptions(db, [known.id], now=now)
        log_changes(db, [known.id], asking.changes_kept)
        known = None
    _check_owner(known, asking)
    _check_count(db, asking, now, 0 if known is not None and known.owner is not None else 1)
    subscription = _put(db, request, known, secrets, asking, now)
    log_changes(db, [subscription.id], asking.changes_kept)
    return subscription, known is None


def subscribed(
    db: sqlite3.Connection, url: str, patterns: Sequence[Pattern], now: int
) -> tuple[Subscription | None, ...]:
    """See `Store.subscribed`."""
    found = (_same(db, url, pattern) for pattern in patterns)
    return tuple(each if each is not None and each.expires_at > now else None for each in found)


def _same(db: sqlite3.Connection, url: str, pattern: Pattern) -> Subscription | None:
    """The one that (url, pattern) names, even when it has expired."""
    row = db.execute(
        f"{_SELECT} WHERE url = ? AND kind = ? AND pattern = ?", (url, pattern.kind, pattern.value)
    ).fetchone()
    return None if row is None else _from_row(row)


def _check_owner(known: Subscription | None, asking: Asking) -> None:
    if known is not None and known.owner is not None and asking.owner not in (None, known.owner):
        raise Forbidden("this callback URL is subscribed to this pattern already, with a key of another owner")


def _check_count(db: sqlite3.Connection, asking: Asking, now: int, more: int) -> None:
    """Raises `QuotaExceeded` when the owner would have too many with so many `more`."""
    if more <= 0 or asking.max_subscriptions is None:
        return
    counted = db.execute("SELECT subscriptions FROM owners WHERE owner = ?", (asking.owner or "",)).fetchone()
    present = 0 if counted is None else counted[0]
    if present + more > asking.max_subscriptions:
        # Some may have expired.
        [present] = db.execute(
            "SELECT count(*) FROM subscriptions WHERE owner IS ? AND expires_at > ?", (asking.owner, now)
        ).fetchone()
    if present + more > asking.max_subscriptions:
        raise QuotaExceeded(
            f"{asking.max_subscriptions} subscriptions are permitted, and their owner has {present}: remove some "
            "first, or let their leases end"
        )


def unsubscribe(
    db: sqlite3.Connection,
    subscription_id: str,
    owner: str | None,
    now: int,
    expires_at: int | None,
    changes_kept: int,
) -> Subscription | None:
    """See `Store.unsubscribe`."""
    known = subscription_by_id(db, subscription_id, owner, now)
    if known is None or expires_at not in (None, known.expires_at):
        return None
    delete_subscriptions(db, [subscription_id], now=now)
    log_changes(db, [subscription_id], changes_kept)
    return known


def subscription_by_id(
    db: sqlite3.Connection, subscription_id: str, owner: str | None, now: int
) -> Subscription | None:
    """See `Store.subscription`."""
    row = db.execute(
        f"{_SELECT} WHERE {_own(owner)} AND id = ?2 AND expires_at > ?3", (owner, subscription_id, now)
    ).fetchone()
    return None if row is None else _from_row(row)


def subscriptions_page(
    db: sqlite3.Connection, url: str | None, owner: str | None, cursor: str | None, limit: int, now: int
) -> Page:
    """See `Store.subscriptions`."""
    # Each of an owner's and of those that are everybody's along an index of their own: a page is never looked for
    # among what is others'.
    of_url = "" if url is None else "AND url = ?1 "
    wheres = ["?2 IS NULL"]
    if owner is not None:
        wheres = ["owner = ?2"] if isinstance(owner, Only) else ["owner = ?2", "owner IS NULL"]
    rows = sorted(
        row
        for where in wheres
        for row in db.execute(
            f"{_SELECT} WHERE {where} {of_url}AND id > ?3 AND expires_at > ?4 ORDER BY id LIMIT ?5",
            (url, owner, cursor or "", now, limit + 1),
        )
    )[: limit + 1]
    page = tuple(map(_from_row, rows[:limit]))
    return Page(page, page[-1].id if len(rows) > limit else None)


def _own(owner: str | None) -> str:
    """The condition that a row is there for the owner, who is the first parameter."""
    if owner is None:
        return "TRUE"
    return "owner = ?1" if isinstance(owner, Only) else "(owner IS NULL OR owner = ?1)"


def etag(db: sqlite3.Connection, url: str, owner: str | None, now: int) -> str:
    """See `Store.etag`."""
    return etag_of(_of_url(db, url, owner, now))


def _of_url(db: sqlite3.Connection, url: str, owner: str | None, now: int) -> list[Subscription]:
    rows = db.execute(f"{_SELECT} WHERE {_own(owner)} AND url = ?2 AND expires_at > ?3", (owner, url, now)).fetchall()
    return list(map(_from_row, rows))


def replace(
    db: sqlite3.Connection,
    url: str,
    requests: Sequence[SubscribeRequest],
    secrets: Mapping[Pattern, SecretsChange],
    if_match: str | None,
    asking: Asking,
    now: int,
) -> Replaced:
    """See `Store.replace`."""
    known = {subscription.pattern: subscription for subscription in _of_url(db, url, asking.owner, now)}
    present = etag_of(known.values())
    if if_match is not None and if_match != present:
        raise PreconditionFailed(
            "the subscriptions of this URL have changed since; read them again, or leave out If-Match", etag=present
        )
    # A pattern that stands here twice keeps its first place and its last options.
    wanted = {request.pattern: request for request in requests}
    kept = {subscription.id for pattern, subscription in known.items() if pattern in wanted}
    replaced_rows = _REPLACED.format(own=_own(asking.owner))
    removed = [row[0] for row in db.execute(replaced_rows, (asking.owner, url, now)) if row[0] not in kept]
    gone = tuple(subscription for pattern, subscription in known.items() if pattern not in wanted)
    delete_subscriptions(db, removed, now=now)
    for pattern in wanted:
        if pattern not in known and (other := _same(db, url, pattern)) is not None:
            _check_owner(other, asking)
            known[pattern] = other  # nobody's
    counted = sum(1 for pattern in wanted if pattern not in known or known[pattern].owner is None)
    _check_count(db, asking, now, counted)
    subscriptions = tuple(
        _put(db, request, known.get(pattern), secrets.get(pattern), asking, now) for pattern, request in wanted.items()
    )
    log_changes(db, [*removed, *(subscription.id for subscription in subscriptions)], asking.changes_kept)
    return Replaced(subscriptions, etag_of(subscriptions), gone)


def _put(
    db: sqlite3.Connection,
    request: SubscribeRequest,
    known: Subscription | None,
    secrets: SecretsChange | None,
    asking: Asking,
    now: int,
) -> Subscription:
    """Write a new row, or renew the one of `known` with the options that are asked for now.

    One that was durable stays with its endpoint when it is best effort from here on: what it is owed stays owed. Its
    secrets stay, and its owner, too, if it has one.
    """
    subscription = Subscription(
        new_subscription_id() if known is None else known.id,
        request.url,
        request.pattern,
        request.lease_seconds,
        now if known is None else known.created_at,
        now + request.lease_seconds * _MICROSECONDS if request.lease_seconds else PERMANENT_UNTIL,
        *request.options,
        owner=asking.owner if known is None or known.owner is None else known.owner,
        before=known,
    )
    if secrets is not None:
        sealed = secrets(subscription.id, None if known is None else known.sealed)
        subscription = replaced(
            subscription, sealed=sealed.blob, signature=sealed.signature, public_key=sealed.public_key
        )
    elif known is not None:
        subscription = replaced(
            subscription, sealed=known.sealed, signature=known.signature, public_key=known.public_key
        )
    if known is None:
        db.execute(
            "INSERT INTO subscriptions (id, url, kind, pattern, lease_seconds, created_at, expires_at, owner) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                subscription.id,
                subscription.url,
                subscription.pattern.kind,
                subscription.pattern.value,
                subscription.lease_seconds,
                subscription.created_at,
                subscription.expires_at,
                subscription.owner,
            ),
        )
    else:
        db.execute(
            "UPDATE subscriptions SET lease_seconds = ?, expires_at = ?, owner = ? WHERE id = ?",
            (subscription.lease_seconds, subscription.expires_at, subscription.owner, subscription.id),
        )
    if secrets is not None:
        db.execute(
            "UPDATE subscriptions SET sealed = ?, signature = ?, public_key = ? WHERE id = ?",
            (subscription.sealed, subscription.signature, subscription.public_key, subscription.id),
        )
    if subscription.options != (DeliveryOptions() if known is None else known.options):
        _put_options(db, subscription)
    return subscription


def _put_options(db: sqlite3.Connection, subscription: Subscription) -> None:
    delivery, ordered, schedule, form = subscription.options
    schedule_text = None if schedule is None else json.dumps(schedule)
    db.execute(
        "UPDATE subscriptions SET delivery = ?, ordered = ?, retry_schedule = ?, format = ? WHERE id = ?",
        (delivery, ordered, schedule_text, form, subscription.id),
    )
    if delivery == "durable":
        endpoint = endpoint_of(subscription.url)
        db.execute("INSERT OR IGNORE INTO endpoints (url) VALUES (?)", (endpoint,))
        db.execute("UPDATE endpoints SET unused_after = NULL WHERE url = ? AND unused_after IS NOT NULL", (endpoint,))
        db.execute(
            "UPDATE subscriptions SET endpoint = (SELECT number FROM endpoints WHERE endpoints.url = ?) WHERE id = ?",
            (endpoint, subscription.id),
        )


def endpoint_of(url: str) -> str:
    """A callback URL without its fragment."""
    return url.partition("#")[0]


def prune_subscriptions(db: sqlite3.Connection, now: int, changes_kept: int) -> int:
    """Delete a slice of the expired ones; how many."""
    rows = db.execute("SELECT id FROM subscriptions WHERE expires_at <= ? LIMIT ?", (now, PRUNE_SLICE)).fetchall()
    expired = [row[0] for row in rows]
    delete_subscriptions(db, expired, now=now)
    log_changes(db, expired, changes_kept)
    return len(expired)


def _from_row(row: tuple[Any, ...]) -> Subscription:
    subscription_id, url, kind, value, lease_seconds, created_at, expires_at, delivery, ordered, schedule = row[:10]
    return Subscription(
        subscription_id,
        url,
        Pattern(kind, value),
        lease_seconds,
        created_at,
        expires_at,
        delivery,
        bool(ordered),
        schedule_of(schedule),
        *row[10:],
    )
