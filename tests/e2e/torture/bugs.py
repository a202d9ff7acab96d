"""Bugs that a broadcaster could have, to show that the checker finds them. Patched from outside, like the points.

| bug                    | which means                                                                              |
|------------------------|------------------------------------------------------------------------------------------|
| `settle-before-post`   | a delivery is settled as delivered when it is leased: what then fails is never tried again |
| `answer-before-commit` | a message is written only when the next one comes: a notify is answered before            |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from httppubsubserver.stores.durable import Accepted, Attempt, Claimed, Claims, Publication, Settlement, Terms
from httppubsubserver.stores.sqlite import SqliteStore
from tests.e2e.torture.patches import replace

__all__ = ["BUGS", "infest"]


def infest(bug: str) -> None:
    """Let this process have that bug."""
    BUGS[bug]()


def _settle_before_post() -> None:
    accept, claim, settle = SqliteStore.accept, SqliteStore.claim, SqliteStore.settle

    async def settle_all(store: SqliteStore, claimed: Sequence[Claimed], now: int) -> None:
        attempt = Attempt(now, now, 204)
        await settle(store, [Settlement(each.held, "delivered", attempt) for each in claimed], now=now)

    async def accepting(
        self: SqliteStore, publication: Publication, *, now: int, terms: Terms | None = None
    ) -> Accepted:
        accepted = await accept(self, publication, now=now, terms=terms)
        await settle_all(self, accepted.leased, now)
        return accepted

    async def claiming(self: SqliteStore, terms: Terms, *, now: int) -> Claims:
        claims = await claim(self, terms, now=now)
        await settle_all(self, claims.deliveries, now)
        return claims

    replace(SqliteStore, "accept", accepting)
    replace(SqliteStore, "claim", claiming)


def _answer_before_commit() -> None:
    accept = SqliteStore.accept
    unwritten: list[Publication] = []

    async def accepting(
        self: SqliteStore, publication: Publication, *, now: int, terms: Terms | None = None
    ) -> Accepted:
        unwritten.append(publication)
        if len(unwritten) > 1:
            await accept(self, unwritten.pop(0), now=now)
        return Accepted(len(publication.subscription_ids), False, ())

    replace(SqliteStore, "accept", accepting)


BUGS: dict[str, Callable[[], None]] = {
    "settle-before-post": _settle_before_post,
    "answer-before-commit": _answer_before_commit,
}
