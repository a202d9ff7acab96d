"""Accepting messages, many in one transaction.

What the messages of a batch have in common is read once and written once: a subscription's sequence, an endpoint's
next turn. Beyond that a message is one row, and a delivery one row.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from httppubsubclient.protocol.errors import PubSubError, Unavailable
from httppubsubserver.stores.batches import Failed
from httppubsubserver.stores.durable import Accepted, Claimed, Held, Publication, StoredMessage, Terms

__all__ = ["Accepting", "accept_all", "read_chunk", "schedule_of", "write_chunk"]

_ROWS_AT_ONCE: Final = 5000

_SUBSCRIBER: Final = (
    "SELECT s.id, s.url, s.ordered, s.retry_schedule, s.last_sequence, s.last_message_id, s.expires_at, s.format, "
    "s.sealed, e.number, e.url, e.ready_at, e.blocked_until "
    "FROM subscriptions s JOIN endpoints e ON e.number = s.endpoint WHERE s.id = ? AND s.delivery = 'durable'"
)
_HEAD: Final = (
    "SELECT 1 FROM deliveries "
    "WHERE subscription_id = ? AND ordered = 1 AND state = 'pending' AND state IN ('pending', 'waiting') LIMIT 1"
)
_INSERT_MESSAGE: Final = (
    "INSERT INTO messages (number, id, topic, content_type, sha256, size, traceparent, accepted_at, deliver_at, "
    "expires_at, body_kept, body, owner, hops) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1, ?, ?, ?)"
)
_INSERT_DELIVERY: Final = (
    "INSERT INTO deliveries (message, subscription_id, endpoint, sequence, previous_message_id, ordered, state, "
    "due_at, leased_by, attempts, updated_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)


class Accepting(NamedTuple):
    """One call of `accept`."""

    publication: Publication
    now: int
    terms: Terms | None


class _Endpoint:
    __slots__ = ("blocked_until", "changed", "number", "ready_at", "url")

    def __init__(self, number: int, url: str, ready_at: int | None, blocked_until: int) -> None:
        self.number = number
        self.url = url
        self.ready_at = ready_at
        self.blocked_until = blocked_until
        self.changed = False

    def has_nothing_older(self, now: int) -> bool:
        """What comes now may be attempted at once: nothing that has waited longer could be."""
        return self.blocked_until <= now and (self.ready_at is None or self.ready_at > now)

    def has_due_at(self, due_at: int) -> None:
        """Something of it is pending that may be claimed from then on."""
        ready_at = max(due_at, self.blocked_until)
        if self.ready_at is None or ready_at < self.ready_at:
            self.ready_at = ready_at
            self.changed = True


class _Subscriber:
    __slots__ = (
        "changed",
        "endpoint",
        "expires_at",
        "format",
        "has_head",
        "id",
        "last_id",
        "ordered",
        "schedule",
        "sealed",
        "sequence",
        "url",
    )

    def __init__(self, row: tuple[Any, ...], endpoint: _Endpoint, has_head: bool) -> None:
        self.id, self.url, ordered, schedule, self.sequence, self.last_id, self.expires_at, form, sealed = row[:9]
        self.format = form
        self.sealed = sealed
        self.ordered = bool(ordered)
        self.schedule = schedule_of(schedule)
        self.endpoint = endpoint
        self.has_head = has_head
        """Something of this ordered subscription is pending, so that what comes now waits."""
        self.changed = False


def accept_all(db: sqlite3.Connection, calls: Sequence[Accepting]) -> list[Accepted | Failed]:
    """What `accept` answers each of the calls."""
    batch = _Batch(db, [call.publication.notification.message_id for call in calls])
    answers: list[Accepted | Failed] = []
    for call in calls:
        try:
            answers.append(batch.accept(call))
        except PubSubError as error:
            answers.append(Failed(error))
    batch.write()
    return answers


class _Batch:
    """The messages that share a transaction, and what was read for them."""

    def __init__(self, db: sqlite3.Connection, message_ids: list[str]) -> None:
        self._db = db
        self._accepted: dict[str, int] = dict(
            db.execute(
                "SELECT m.id, (SELECT count(*) FROM deliveries d WHERE d.message = m.number) "
                "FROM messages m WHERE m.id IN (SELECT value FROM json_each(?))",
                (json.dumps(message_ids),),
            )
        )
        self._number: int = db.execute("SELECT coalesce(max(number), 0) FROM messages").fetchone()[0]
        self._subscribers: dict[str, _Subscriber | None] = {}
        self._endpoints: dict[int, _Endpoint] = {}
        self._messages: list[tuple[Any, ...]] = []
        self._deliveries: list[tuple[Any, ...]] = []

    def accept(self, call: Accepting) -> Accepted:
        """Take one message into the batch."""
        publication, now, terms = call
        notification, body, subscription_ids, deliver_at, expires_at, owner = publication
        message_id = notification.message_id
        repeated = self._accepted.get(message_id)
        if repeated is not None:
            return Accepted(repeated, True, ())
        found = [self._subscriber(each) for each in dict.fromkeys(subscription_ids)]
        subscribers = [each for each in found if each is not None and each.expires_at > now]
        if not subscribers:
            return Accepted(0, False, ())
        if body is None:
            _check_chunks(self._db, message_id, notification.size)
        self._number += 1
        self._messages.append(
            (
                self._number,
                message_id,
                notification.topic,
                notification.content_type,
                notification.sha256,
                notification.size,
                notification.traceparent,
                now,
                deliver_at,
                expires_at,
                body,
                owner,
                notification.hops,
            )
        )
        due_at = now if deliver_at is None else max(deliver_at, now)
        if due_at > now or (expires_at is not None and expires_at <= now):
            terms = None
        message = StoredMessage(notification, now, deliver_at, expires_at, body, True, owner)
        leased = self._owe(message, subscribers, due_at, now, terms)
        self._accepted[message_id] = len(subscribers)
        return Accepted(len(subscribers), False, leased)

    def _owe(
        self, message: StoredMessage, subscribers: list[_Subscriber], due_at: int, now: int, terms: Terms | None
    ) -> tuple[Claimed, ...]:
        """One delivery for each of them; those that may be leased are."""
        message_id = message.notification.message_id
        leased: list[Claimed] = []
        leases: Counter[int] = Counter()
        for subscriber in subscribers:
            endpoint = subscriber.endpoint
            subscriber.sequence += 1
            previous_id, subscriber.last_id = subscriber.last_id, message_id
            subscriber.changed = True
            ordered = subscriber.ordered and due_at <= now
            waiting = ordered and subscriber.has_head
            subscriber.has_head = subscriber.has_head or ordered
            first_wait = 0 if subscriber.schedule is None else int(subscriber.schedule[0] * 1_000_000)
            holder, free_at = None, due_at + first_wait
            if (
                terms is not None
                and not first_wait
                and not waiting
                and len(leased) < terms.at_most
                and endpoint.has_nothing_older(now)
                and leases[endpoint.number] < terms.limits.get(endpoint.url, terms.per_endpoint)
            ):
                holder, free_at = terms.holder, terms.until
                leases[endpoint.number] += 1
                leased.append(
                    Claimed(
                        Held(self._number, subscriber.id, holder, 1, endpoint.number, ordered),
                        message,
                        subscriber.url,
                        subscriber.sequence,
                        previous_id,
                        1,
                        subscriber.schedule,
                        subscriber.expires_at,
                        terms.until,
                        subscriber.format,
                        subscriber.sealed,
                    )
                )
            self._deliveries.append(
                (
                    self._number,
                    subscriber.id,
                    endpoint.number,
                    subscriber.sequence,
                    previous_id,
                    ordered,
                    "waiting" if waiting else "pending",
                    free_at,
                    holder,
                    0 if holder is None else 1,
                    now,
                )
            )
            if not waiting:
                endpoint.has_due_at(free_at)
            if len(self._deliveries) >= _ROWS_AT_ONCE:
                self._write_rows()
        return tuple(leased)

    def write(self) -> None:
        """Write what has not been written yet."""
        self._write_rows()
        subscribers = [each for each in self._subscribers.values() if each is not None and each.changed]
        self._db.executemany(
            "UPDATE subscriptions SET last_sequence = ?, last_message_id = ? WHERE id = ?",
            [(each.sequence, each.last_id, each.id) for each in subscribers],
        )
        self._db.executemany(
            "UPDATE endpoints SET ready_at = ? WHERE number = ?",
            [(each.ready_at, each.number) for each in self._endpoints.values() if each.changed],
        )

    def _write_rows(self) -> None:
        db = self._db
        db.executemany(_INSERT_MESSAGE, self._messages)
        ends = [(row[9], row[0]) for row in self._messages if row[9] is not None]
        db.executemany("INSERT INTO message_expiries (expires_at, message) VALUES (?, ?)", ends)
        large = [(row[1],) for row in self._messages if row[10] is None]
        db.executemany("DELETE FROM uploads WHERE message_id = ?", large)
        db.executemany(_INSERT_DELIVERY, self._deliveries)
        self._messages.clear()
        self._deliveries.clear()

    def _subscriber(self, subscription_id: str) -> _Subscriber | None:
        if subscription_id in self._subscribers:
            return self._subscribers[subscription_id]
        row = self._db.execute(_SUBSCRIBER, (subscription_id,)).fetchone()
        subscriber = None
        if row is not None:
            endpoint = self._endpoints.get(row[9])
            if endpoint is None:
                endpoint = self._endpoints[row[9]] = _Endpoint(*row[9:])
            has_head = bool(row[2]) and self._db.execute(_HEAD, (subscription_id,)).fetchone() is not None
            subscriber = _Subscriber(row, endpoint, has_head)
        self._subscribers[subscription_id] = subscriber
        return subscriber


def schedule_of(text: str | None) -> tuple[float, ...] | None:
    """A subscription's own schedule, as the column has it."""
    return None if text is None else tuple(json.loads(text))


def write_chunk(db: sqlite3.Connection, message_id: str, position: int, data: bytes, now: int) -> None:
    """See `DurableStore.write_chunk`. The pieces of a message that was accepted are left as they are."""
    if db.execute("SELECT 1 FROM messages WHERE id = ?", (message_id,)).fetchone() is not None:
        return
    db.execute(
        "INSERT OR REPLACE INTO message_chunks (message_id, position, data) VALUES (?, ?, ?)",
        (message_id, position, data),
    )
    db.execute("INSERT OR REPLACE INTO uploads (message_id, written_at) VALUES (?, ?)", (message_id, now))


def read_chunk(db: sqlite3.Connection, message_id: str, position: int) -> bytes | None:
    """See `DurableStore.read_chunk`."""
    # When a body is no longer kept, its pieces go one by one.
    row = db.execute("SELECT body_kept, body FROM messages WHERE id = ?", (message_id,)).fetchone()
    if row is None or not row[0]:
        return None
    if row[1] is not None:
        return row[1] if position == 0 else None
    row = db.execute(
        "SELECT data FROM message_chunks WHERE message_id = ? AND position = ?", (message_id, position)
    ).fetchone()
    piece: bytes | None = None if row is None else row[0]
    return piece


def _check_chunks(db: sqlite3.Connection, message_id: str, size: int) -> None:
    pieces, first, last, written = db.execute(
        "SELECT count(*), min(position), max(position), sum(length(data)) FROM message_chunks WHERE message_id = ?",
        (message_id,),
    ).fetchone()
    if not pieces or (first, last, written) != (0, pieces - 1, size):
        raise Unavailable("the pieces of this body are not all there: write them again, then accept the message")
