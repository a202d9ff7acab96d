"""Claiming: who may attempt what next.

Endpoints take turns by `ready_at`. It is a lower bound: nothing of the endpoint can be claimed earlier. Whatever adds
a delivery lowers it, what takes one away leaves it, and a claim that looks at the endpoint sets it right. So settling
a delivery writes nothing here, and an endpoint's backlog is never looked at on behalf of another.

A leased delivery is due at the end of its lease. So what is leased is out of the way of a claim, and a lease that
has ended is a delivery that is due.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from itertools import islice
from typing import Any, Final

from httppubsubclient.protocol.messages import Notification
from httppubsubserver.stores.durable import Claimed, Claims, Held, StoredMessage, Terms
from httppubsubserver.stores.sqlite_accept import schedule_of

__all__ = [
    "IN_ORDER",
    "MESSAGE",
    "READY",
    "TO_CLAIM",
    "advance",
    "block_endpoint",
    "claim",
    "give_up",
    "lower",
    "next_due",
    "state_of",
    "stored_message",
]

READY: Final = "SELECT number, url FROM endpoints WHERE ready_at <= ? ORDER BY ready_at"

TO_CLAIM: Final = (
    "SELECT d.message, d.subscription_id, d.sequence, d.previous_message_id, d.ordered, d.attempts, "
    "d.attempts_before, d.reason, s.url, s.retry_schedule, s.expires_at, s.format, s.sealed "
    "FROM deliveries d LEFT JOIN subscriptions s ON s.id = d.subscription_id AND s.expires_at > ? "
    "WHERE d.endpoint = ? AND d.state = 'pending' AND d.due_at <= ? "
    "ORDER BY d.due_at, d.message, d.subscription_id LIMIT ?"
)
_FIRST: Final = "SELECT due_at FROM deliveries WHERE endpoint = ? AND state = 'pending' ORDER BY due_at LIMIT 1"
_LEASE: Final = (
    "UPDATE deliveries SET due_at = ?, leased_by = ?, attempts = ?, updated_at = ? "
    "WHERE message = ? AND subscription_id = ?"
)
_LOWER: Final = (
    "UPDATE endpoints SET ready_at = max(?1, blocked_until) "
    "WHERE number = ?2 AND (ready_at IS NULL OR ready_at > max(?1, blocked_until))"
)
_GIVE_UP: Final = (
    "UPDATE deliveries SET state = ?, reason = ?, leased_by = NULL, updated_at = ? "
    "WHERE message = ? AND subscription_id = ?"
)
IN_ORDER: Final = (
    "SELECT message, sequence, due_at, leased_by FROM deliveries "
    # The second condition on the state is the one of the partial index, word for word.
    "WHERE subscription_id = ? AND ordered = 1 AND state = ? AND state IN ('pending', 'waiting') "
    "ORDER BY sequence LIMIT 1"
)
_DEMOTE: Final = "UPDATE deliveries SET state = 'waiting', leased_by = NULL WHERE message = ? AND subscription_id = ?"
_PROMOTE: Final = (
    "UPDATE deliveries SET state = 'pending', due_at = ?, updated_at = ? WHERE message = ? AND subscription_id = ?"
)
_TURNS: Final = "SELECT ready_at, url FROM endpoints WHERE ready_at IS NOT NULL ORDER BY ready_at"

MESSAGE: Final = (
    "SELECT id, topic, content_type, sha256, size, traceparent, hops, accepted_at, deliver_at, expires_at, body_kept, "
    "{body}, owner "
    "FROM messages WHERE number = ?"
)
_WITH_BODY: Final = MESSAGE.format(body="body")
_NOT_WANTED: Final = ("unsubscribed", "called_off", "sent_again")


def claim(db: sqlite3.Connection, terms: Terms, now: int) -> Claims:
    """See `DurableStore.claim`."""
    claiming = _Claiming(db, terms, now)
    for number, url in _ready(db, terms, now):
        at_most = min(terms.limits.get(url, terms.per_endpoint), terms.at_most - len(claiming.claimed))
        if at_most > 0:
            claiming.look_at(number, at_most)
        if claiming.full:
            break
    return Claims(tuple(claiming.claimed), next_due(db, terms.limits, terms.per_endpoint))


def _ready(db: sqlite3.Connection, terms: Terms, now: int) -> list[tuple[int, str]]:
    """The endpoints to look at, by their turns, without those that are passed over."""
    due = (row for row in db.execute(READY, (now,)) if terms.limits.get(row[1], terms.per_endpoint) > 0)
    # Of some what was due has been settled meanwhile.
    return list(islice(due, 2 * terms.at_most))


class _Claiming:
    """One claim: what it has got, and the messages it has read."""

    def __init__(self, db: sqlite3.Connection, terms: Terms, now: int) -> None:
        self._db = db
        self._terms = terms
        self._now = now
        self._messages: dict[int, StoredMessage] = {}
        self._body_bytes = 0
        self.claimed: list[Claimed] = []

    @property
    def full(self) -> bool:
        """No more fits in."""
        return len(self.claimed) >= self._terms.at_most or self._body_bytes > self._terms.max_body_bytes

    def look_at(self, endpoint: int, at_most: int) -> None:
        """Claim what is due of one endpoint, and say when its next turn is."""
        db, terms, now = self._db, self._terms, self._now
        leases: list[tuple[int, str, int, int, int, str]] = []
        for row in db.execute(TO_CLAIM, (now, endpoint, now, at_most)).fetchall():
            if self.full:
                break
            claimed = self._claimed(endpoint, row)
            if claimed is not None:
                self.claimed.append(claimed)
                leases.append((terms.until, terms.holder, claimed.held.lease, now, row[0], row[1]))
        db.executemany(_LEASE, leases)
        first = db.execute(_FIRST, (endpoint,)).fetchone()
        # With more that is due it stands behind the others from here on.
        ready_at = None if first is None else max(first[0], now)
        db.execute("UPDATE endpoints SET ready_at = ? WHERE number = ?", (ready_at, endpoint))

    def _claimed(self, endpoint: int, row: tuple[Any, ...]) -> Claimed | None:
        """The delivery of a row; None when it is not to be sent any more, and is given up."""
        number, subscription_id, sequence, previous_id, ordered, attempts, before, reason, url, schedule, until = row[
            :11
        ]
        if url is None:
            give_up(self._db, number, subscription_id, self._why_gone(subscription_id, reason), self._now)
        elif (message := self._message(number)).expires_at is not None and message.expires_at <= self._now:
            give_up(self._db, number, subscription_id, "expired", self._now)
        else:
            held = Held(number, subscription_id, self._terms.holder, attempts + 1, endpoint, bool(ordered))
            attempt = attempts + 1 - before
            retries, leased_until = schedule_of(schedule), self._terms.until
            return Claimed(held, message, url, sequence, previous_id, attempt, retries, until, leased_until, *row[11:])
        if ordered:
            advance(self._db, subscription_id, endpoint, self._now)
        return None

    def _message(self, number: int) -> StoredMessage:
        message = self._messages.get(number)
        if message is None:
            message = self._messages[number] = stored_message(self._db.execute(_WITH_BODY, (number,)).fetchone())
            self._body_bytes += len(message.body or b"")
        return message

    def _why_gone(self, subscription_id: str, reason: str | None) -> str:
        """`work_off` has left it in the row when it met the delivery under a lease."""
        if reason is None:
            row = self._db.execute(
                "SELECT reason FROM ended_subscriptions WHERE subscription_id = ?", (subscription_id,)
            ).fetchone()
            reason = "subscription_expired" if row is None else row[0]
        assert reason is not None
        return reason


def stored_message(row: tuple[Any, ...]) -> StoredMessage:
    """A row of `MESSAGE`."""
    accepted_at, deliver_at, expires_at, body_kept, body, owner = row[7:]
    return StoredMessage(Notification(*row[:7]), accepted_at, deliver_at, expires_at, body, bool(body_kept), owner)


def next_due(db: sqlite3.Connection, limits: Mapping[str, int], per_endpoint: int) -> int | None:
    """See `DurableStore.next_due`."""
    for ready_at, url in db.execute(_TURNS):
        if limits.get(url, per_endpoint) > 0:
            moment: int = ready_at
            return moment
    return None


def lower(db: sqlite3.Connection, endpoint: int, due_at: int) -> None:
    """Something of this endpoint may be claimed from then on."""
    db.execute(_LOWER, (due_at, endpoint))


def give_up(db: sqlite3.Connection, message: int, subscription_id: str, reason: str, now: int) -> None:
    """End a delivery for a reason that is not an answer."""
    db.execute(_GIVE_UP, (state_of(reason), reason, now, message, subscription_id))


def state_of(reason: str) -> str:
    """Of a delivery that ends for that reason."""
    return "cancelled" if reason in _NOT_WANTED else "dead"


def advance(db: sqlite3.Connection, subscription_id: str, endpoint: int, now: int) -> None:
    """Let the lowest sequence of an ordered subscription be the one that is pending; what is on its way stays."""
    waiting = db.execute(IN_ORDER, (subscription_id, "waiting")).fetchone()
    if waiting is None:
        return
    head = db.execute(IN_ORDER, (subscription_id, "pending")).fetchone()
    if head is not None:
        on_its_way = head[3] is not None and head[2] > now
        if on_its_way or head[1] < waiting[1]:
            return
        db.execute(_DEMOTE, (head[0], subscription_id))
    # It has waited for its turn, not for a moment; a later one is of a clock that was set back since.
    due_at = min(waiting[2], now)
    db.execute(_PROMOTE, (due_at, now, waiting[0], subscription_id))
    lower(db, endpoint, due_at)


def block_endpoint(db: sqlite3.Connection, url: str, until: int, now: int) -> None:
    """See `DurableStore.block_endpoint`."""
    row = db.execute("SELECT number, blocked_until FROM endpoints WHERE url = ?", (url,)).fetchone()
    # Each process knows only what it was answered itself, so a pause does not shorten the one of another.
    if row is None or now < until <= row[1]:
        return
    first = db.execute(_FIRST, row[:1]).fetchone()
    db.execute(
        "UPDATE endpoints SET blocked_until = ?, blocked_at = ?, ready_at = ? WHERE number = ?",
        (until, now, None if first is None else max(first[0], until), row[0]),
    )
