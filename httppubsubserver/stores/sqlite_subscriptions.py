"""The subscriptions in an SQLite file: the SQL behind `Store`. Each change is part of its caller's transaction."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from typing import Any, Final

from httppubsubclient.protocol.errors import PreconditionFailed
from httppubsubclient.protocol.messages import SubscribeRequest, Subscription
from httppubsubclient.protocol.options import DeliveryOptions
from httppubsubclient.protocol.patterns import Pattern
from httppubsubserver.stores import Changes, Listed, Page
from httppubsubserver.stores.identity import etag_of, new_subscription_id
from httppubsubserver.stores.sqlite_accept import schedule_of
from httppubsubserver.stores.sqlite_changes import delete_subscriptions, log_changes, read_version

__all__ = [
    "PRUNE_SLICE",
    "changes_since",
    "endpoint_of",
    "etag",
    "prune_subscriptions",
    "replace",
    "subscribe",
    "subscription_by_id",
    "subscriptions_page",
    "unsubscribe",
]

PRUNE_SLICE: Final = 1000
"""Rows that are deleted in one transaction, so that others get their turn between two."""

_MICROSECONDS: Final = 1_000_000

_SELECT: Final = (
    "SELECT id, url, kind, pattern, lease_seconds, created_at, expires_at, delivery, ordered, retry_schedule "
    "FROM subscriptions"
)
_LISTED: Final = "SELECT id, url, kind, pattern, expires_at, delivery = 'durable' FROM subscriptions"


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
            rows = db.execute(
                "SELECT id, url, kind, pattern, expires_at, delivery = 'durable', subscription_id "
                "FROM (SELECT DISTINCT subscription_id FROM subscription_changes WHERE version > ?) "
                "LEFT JOIN subscriptions ON id = subscription_id",
                (version,),
            ).fetchall()
        if cursor is not None:
            # In the order of the primary key: the cost of a piece does not grow with what lies before it.
            piece = db.execute(f"{_LISTED} WHERE id > ? ORDER BY id LIMIT ?", (cursor, rows_per_piece)).fetchall()
    finally:
        db.execute("ROLLBACK")
    listed = (Listed(*row[:6]) for row in rows if row[0] is not None)
    return Changes(
        newest,
        complete,
        (*map(Listed._make, piece), *listed),
        tuple(row[6] for row in rows if row[0] is None),
        piece[-1][0] if len(piece) == rows_per_piece else None,
    )


def subscribe(
    db: sqlite3.Connection, request: SubscribeRequest, now: int, changes_kept: int
) -> tuple[Subscription, bool]:
    """See `Store.subscribe`."""
    pattern = request.pattern
    row = db.execute(
        f"{_SELECT} WHERE url = ? AND kind = ? AND pattern = ?",
        (request.url, pattern.kind, pattern.value),
    ).fetchone()
    known = None if row is None else _from_row(row)
    if known is not None and known.expires_at <= now:
        delete_subscriptions(db, [known.id], now=now)
        log_changes(db, [known.id], changes_kept)
        known = None
    subscription = _put(db, request, known, now)
    log_changes(db, [subscription.id], changes_kept)
    return subscription, known is None


def unsubscribe(
    db: sqlite3.Connection, subscription_id: str, now: int, expires_at: int | None, changes_kept: int
) -> bool:
    """See `Store.unsubscribe`."""
    known = subscription_by_id(db, subscription_id, now)
    if known is None or expires_at not in (None, known.expires_at):
        return False
    delete_subscriptions(db, [subscription_id], now=now)
    log_changes(db, [subscription_id], changes_kept)
    return True


def subscription_by_id(db: sqlite3.Connection, subscription_id: str, now: int) -> Subscription | None:
    """See `Store.subscription`."""
    row = db.execute(f"{_SELECT} WHERE id = ? AND expires_at > ?", (subscription_id, now)).fetchone()
    return None if row is None else _from_row(row)


def subscriptions_page(db: sqlite3.Connection, url: str | None, cursor: str | None, limit: int, now: int) -> Page:
    """See `Store.subscriptions`."""
    of_url = "" if url is None else "url = ? AND "
    rows = db.execute(
        f"{_SELECT} WHERE {of_url}id > ? AND expires_at > ? ORDER BY id LIMIT ?",
        (*(() if url is None else (url,)), cursor or "", now, limit + 1),
    ).fetchall()
    page = tuple(map(_from_row, rows[:limit]))
    return Page(page, page[-1].id if len(rows) > limit else None)


def etag(db: sqlite3.Connection, url: str, now: int) -> str:
    """See `Store.etag`."""
    return etag_of(_of_url(db, url, now))


def _of_url(db: sqlite3.Connection, url: str, now: int) -> list[Subscription]:
    rows = db.execute(f"{_SELECT} WHERE url = ? AND expires_at > ?", (url, now)).fetchall()
    return list(map(_from_row, rows))


def replace(
    db: sqlite3.Connection,
    url: str,
    requests: Sequence[SubscribeRequest],
    if_match: str | None,
    now: int,
    changes_kept: int,
) -> tuple[tuple[Subscription, ...], str]:
    """See `Store.replace`."""
    known = {subscription.pattern: subscription for subscription in _of_url(db, url, now)}
    present = etag_of(known.values())
    if if_match is not None and if_match != present:
        raise PreconditionFailed(
            "the subscriptions of this URL have changed since; read them again, or leave out If-Match", etag=present
        )
    # A pattern that stands here twice keeps its first place and its last options.
    wanted = {request.pattern: request for request in requests}
    kept = {subscription.id for pattern, subscription in known.items() if pattern in wanted}
    removed = [row[0] for row in db.execute("SELECT id FROM subscriptions WHERE url = ?", (url,)) if row[0] not in kept]
    delete_subscriptions(db, removed, now=now)
    subscriptions = tuple(_put(db, request, known.get(pattern), now) for pattern, request in wanted.items())
    log_changes(db, [*removed, *(subscription.id for subscription in subscriptions)], changes_kept)
    return subscriptions, etag_of(subscriptions)


def _put(db: sqlite3.Connection, request: SubscribeRequest, known: Subscription | None, now: int) -> Subscription:
    """Write a new row, or renew the one of `known` with the options that are asked for now.

    One that was durable stays with its endpoint when it is best effort from here on: what it is owed stays owed.
    """
    subscription = Subscription(
        new_subscription_id() if known is None else known.id,
        request.url,
        request.pattern,
        request.lease_seconds,
        now if known is None else known.created_at,
        now + request.lease_seconds * _MICROSECONDS,
        *request.options,
    )
    if known is None:
        db.execute(
            "INSERT INTO subscriptions (id, url, kind, pattern, lease_seconds, created_at, expires_at) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                subscription.id,
                subscription.url,
                subscription.pattern.kind,
                subscription.pattern.value,
                subscription.lease_seconds,
                subscription.created_at,
                subscription.expires_at,
            ),
        )
    else:
        db.execute(
            "UPDATE subscriptions SET lease_seconds = ?, expires_at = ? WHERE id = ?",
            (subscription.lease_seconds, subscription.expires_at, subscription.id),
        )
    if subscription.options != (DeliveryOptions() if known is None else known.options):
        _put_options(db, subscription)
    return subscription


def _put_options(db: sqlite3.Connection, subscription: Subscription) -> None:
    delivery, ordered, schedule = subscription.options
    schedule_text = None if schedule is None else json.dumps(schedule)
    db.execute(
        "UPDATE subscriptions SET delivery = ?, ordered = ?, retry_schedule = ? WHERE id = ?",
        (delivery, ordered, schedule_text, subscription.id),
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
    subscription_id, url, kind, value, lease_seconds, created_at, expires_at, delivery, ordered, schedule = row
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
    )
