"""Who gets what a subscription that is gone was owed: another one of its endpoint that asks for the topic as well.

A subscriber whose lease ended, or who answered 410 once, comes back under a new id. A replay finds it here. What was an
owner's stays his: another one's subscription of the same endpoint gets nothing of it.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field
from typing import Final

from httppubsubclient.protocol.globs import Glob, MqttFilter
from httppubsubclient.protocol.patterns import Pattern
from httppubsubserver.stores.sqlite_claims import advance, give_up, lower
from httppubsubserver.stores.sqlite_deliveries import Row

__all__ = ["SENT_AGAIN", "Successors"]

SENT_AGAIN: Final = "sent_again"
"""Why a delivery is cancelled of which a successor has got its own."""

_OF_ENDPOINT: Final = (
    "SELECT id, kind, pattern FROM subscriptions "
    "WHERE endpoint = ?1 AND (?2 IS NULL OR owner = ?2) AND delivery = 'durable' AND expires_at > ?3 ORDER BY id"
)
_OWNER: Final = "SELECT owner FROM gone_subscriptions WHERE id = ?"
_OWED: Final = "SELECT 1 FROM deliveries WHERE message = ? AND subscription_id = ?"
_LAST: Final = "SELECT last_sequence, last_message_id, ordered FROM subscriptions WHERE id = ?"
_SET_LAST: Final = "UPDATE subscriptions SET last_sequence = ?, last_message_id = ? WHERE id = ?"
_INSERT: Final = (
    "INSERT INTO deliveries (message, subscription_id, endpoint, sequence, previous_message_id, ordered, state, "
    "due_at, updated_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)


@dataclass(slots=True)
class _Subscribed:
    """The durable subscriptions of one endpoint and owner, by what they ask for."""

    exact: dict[bytes, list[str]] = field(default_factory=dict)
    matchers: list[tuple[str, Glob | MqttFilter]] = field(default_factory=list)

    def add(self, subscription_id: str, pattern: Pattern) -> None:
        matcher = pattern.matcher()
        if matcher is None:
            self.exact.setdefault(pattern.value, []).append(subscription_id)
        else:
            self.matchers.append((subscription_id, matcher))

    def matching(self, topic: bytes) -> list[str]:
        """The lowest id first."""
        globs = [subscription_id for subscription_id, matcher in self.matchers if matcher.matches(topic)]
        return sorted(globs + self.exact.get(topic, []))


class Successors:
    """The successors that one transaction asks for; `looked_at` is what finding them has cost up to now."""

    def __init__(self, db: sqlite3.Connection, now: int) -> None:
        self._db = db
        self._now = now
        self._endpoints: dict[tuple[int, str | None], _Subscribed] = {}
        self.looked_at = 0
        """Subscriptions read, patterns tried and deliveries looked up."""

    def send(self, row: Row) -> bool:
        """Owe the message of `row`, whose subscription is gone, to a successor; False: there is none to be found."""
        successor = None if row.reason == SENT_AGAIN else self._successor(row)
        if successor is None:
            return False
        self._owe(row, successor)
        give_up(self._db, row.message, row.subscription_id, SENT_AGAIN, self._now)
        return True

    def _successor(self, row: Row) -> str | None:
        """The lowest id of those that match and have no delivery of this message."""
        subscribed = self._subscribed(row.endpoint, self._owner(row))
        self.looked_at += len(subscribed.matchers)
        for subscription_id in subscribed.matching(row.topic):
            self.looked_at += 1
            if self._db.execute(_OWED, (row.message, subscription_id)).fetchone() is None:
                return subscription_id
        return None

    def _owner(self, row: Row) -> str | None:
        """Whose the subscription was; None: nobody's, so that whoever has come in its place may have what it got."""
        if row.owner is not None:
            return row.owner or None
        found = self._db.execute(_OWNER, (row.subscription_id,)).fetchone()
        return None if found is None else found[0]

    def _subscribed(self, endpoint: int, owner: str | None) -> _Subscribed:
        known = self._endpoints.get((endpoint, owner))
        if known is None:
            known = self._endpoints[endpoint, owner] = _Subscribed()
            for subscription_id, kind, value in self._db.execute(_OF_ENDPOINT, (endpoint, owner, self._now)):
                known.add(subscription_id, Pattern(kind, value))
                self.looked_at += 1
        return known

    def _owe(self, row: Row, subscription_id: str) -> None:
        """A delivery of its own, with the next sequence of that subscription, due now."""
        db, now = self._db, self._now
        last, previous_id, ordered = db.execute(_LAST, (subscription_id,)).fetchone()
        state = "waiting" if ordered else "pending"
        db.execute(_SET_LAST, (last + 1, row.message_id, subscription_id))
        db.execute(
            _INSERT, (row.message, subscription_id, row.endpoint, last + 1, previous_id, ordered, state, now, now)
        )
        if ordered:
            advance(db, subscription_id, row.endpoint, now)
        else:
            lower(db, row.endpoint, now)
