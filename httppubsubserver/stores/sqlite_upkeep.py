"""What takes long, in slices: replays, ends of subscriptions, messages that expire. Each slice is a transaction.

What is to be done stands in rows, with how far it has got; so whoever comes next goes on, in whichever process. None of
the kinds waits for another, and owners take turns with their replays: many of one are no long wait for the others.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, Final

from httppubsubclient.protocol.errors import InvalidRequest, QuotaExceeded
from httppubsubserver.stores import Only
from httppubsubserver.stores.durable import MAX_REPLAYS, MAX_REPLAYS_KEPT, Replay, Selection
from httppubsubserver.stores.sqlite_claims import advance, give_up, lower
from httppubsubserver.stores.sqlite_deliveries import Row, selected, walk
from httppubsubserver.stores.sqlite_successors import Successors

__all__ = ["anything_to_do", "begin_replay", "cancel_scheduled", "replay_progress", "work_off"]

_SLICE: Final = 500
"""Rows of each kind that are looked at in one transaction, so that others get their turn between two."""

_SUBSCRIPTIONS_LOOKED_AT: Final = 20_000
"""For successors, in one transaction; then the slice ends early."""

_RETRY_AFTER_SECONDS: Final = 10
"""For who has too many replays at once: whatever they are, some rows of one are looked at within seconds."""

_REPLAY: Final = (
    "SELECT number, selection, requested_at, replayed, skipped, finished_at, place, last_message FROM replays WHERE"
)


def anything_to_do(db: sqlite3.Connection, now: int) -> bool:
    """Whether `work_off` would find something: asked for without keeping anybody from writing."""
    found: int = db.execute(
        "SELECT EXISTS (SELECT 1 FROM ended_subscriptions) "
        "OR EXISTS (SELECT 1 FROM message_expiries WHERE expires_at <= ?) "
        "OR EXISTS (SELECT 1 FROM replays WHERE finished_at IS NULL)",
        (now,),
    ).fetchone()[0]
    return bool(found)


def work_off(db: sqlite3.Connection, now: int) -> int:
    """See `DurableStore.work_off`."""
    return _up_to_a_slice(_end_subscription, db, now) + _up_to_a_slice(_expire_message, db, now) + _replay_some(db, now)


def _up_to_a_slice(work: Callable[[sqlite3.Connection, int, int], int], db: sqlite3.Connection, now: int) -> int:
    """One thing after another: who ends many that are small holds up nobody for long."""
    looked_at = 0
    while looked_at < _SLICE and (some := work(db, now, _SLICE - looked_at)):
        looked_at += some
    return looked_at


def _end_subscription(db: sqlite3.Connection, now: int, at_most: int) -> int:
    """Call off what a subscription that is gone is owed."""
    ended = db.execute("SELECT subscription_id, reason, after_sequence FROM ended_subscriptions LIMIT 1").fetchone()
    if ended is None:
        return 0
    subscription_id, reason, after = ended
    rows = db.execute(
        "SELECT message, state, leased_by, due_at, sequence FROM deliveries "
        "WHERE subscription_id = ? AND sequence > ? ORDER BY sequence LIMIT ?",
        (subscription_id, after, at_most),
    ).fetchall()
    for message, state, leased_by, due_at, _ in rows:
        if leased_by is not None and due_at > now:
            # Somebody is at it, and may say yet that it was delivered; if not, `settle` or the next claim reads the
            # reason.
            db.execute(
                "UPDATE deliveries SET reason = ? WHERE message = ? AND subscription_id = ?",
                (reason, message, subscription_id),
            )
        elif state in ("pending", "waiting"):
            give_up(db, message, subscription_id, reason, now)
    if len(rows) < at_most:
        db.execute("DELETE FROM ended_subscriptions WHERE subscription_id = ?", (subscription_id,))
    else:
        db.execute(
            "UPDATE ended_subscriptions SET after_sequence = ? WHERE subscription_id = ?",
            (rows[-1][4], subscription_id),
        )
    return len(rows) + 1


def _expire_message(db: sqlite3.Connection, now: int, at_most: int) -> int:
    """Give up what is pending of a message that has expired, but for what is under way."""
    due = db.execute(
        "SELECT expires_at, message, place FROM message_expiries WHERE expires_at <= ? LIMIT 1", (now,)
    ).fetchone()
    if due is None:
        return 0
    expires_at, message, place = due
    rows = _of_message(db, message, place, at_most)
    _give_up_all(db, message, rows, "expired", now, lambda leased_by, due_at, _: leased_by is None or due_at <= now)
    if len(rows) < at_most:
        db.execute("DELETE FROM message_expiries WHERE expires_at = ? AND message = ?", (expires_at, message))
    else:
        db.execute(
            "UPDATE message_expiries SET place = ? WHERE expires_at = ? AND message = ?",
            (rows[-1][0], expires_at, message),
        )
    return len(rows) + 1


def cancel_scheduled(db: sqlite3.Connection, message_id: str, place: str, now: int) -> tuple[int, str | None]:
    """A slice of `DurableStore.cancel_scheduled` behind `place`: how many were called off, and the next place."""
    found = db.execute("SELECT number FROM messages WHERE id = ? AND deliver_at IS NOT NULL", (message_id,)).fetchone()
    if found is None:
        return 0, None
    rows = _of_message(db, found[0], place, _SLICE)
    called_off = _give_up_all(db, found[0], rows, "called_off", now, lambda _, __, attempts: attempts == 0)
    return called_off, rows[-1][0] if len(rows) == _SLICE else None


def _of_message(db: sqlite3.Connection, message: int, place: str, at_most: int) -> list[tuple[Any, ...]]:
    return db.execute(
        "SELECT subscription_id, state, leased_by, due_at, attempts, ordered, endpoint FROM deliveries "
        "WHERE message = ? AND subscription_id > ? ORDER BY subscription_id LIMIT ?",
        (message, place, at_most),
    ).fetchall()


def _give_up_all(
    db: sqlite3.Connection,
    message: int,
    rows: list[tuple[Any, ...]],
    reason: str,
    now: int,
    may_end: Callable[[str | None, int, int], bool],
) -> int:
    ended = 0
    for subscription_id, state, leased_by, due_at, attempts, ordered, endpoint in rows:
        if state in ("pending", "waiting") and may_end(leased_by, due_at, attempts):
            give_up(db, message, subscription_id, reason, now)
            if ordered:
                advance(db, subscription_id, endpoint, now)
            ended += 1
    return ended


# -- replays ----------------------------------------------------------------------------------------------------------


def begin_replay(db: sqlite3.Connection, selection: Selection, now: int) -> Replay:
    """See `DurableStore.replay`."""
    if selection.state in ("pending", "waiting"):
        raise InvalidRequest(f"deliveries that are {selection.state} are on their way already: replay the dead")
    selection = selection._replace(state=selection.state or "dead")
    if selection.owner is not None:
        _make_room(db, selection.owner)
    number = db.execute(
        "INSERT INTO replays (selection, requested_at, owner, last_message) "
        "VALUES (?, ?, ?, (SELECT coalesce(max(number), 0) FROM messages))",
        (json.dumps(_with_owner(selection)), now, selection.owner or ""),
    ).lastrowid
    assert number is not None
    return Replay(number, selection, now, 0, 0, None)


def _make_room(db: sqlite3.Connection, owner: str) -> None:
    """Raises `QuotaExceeded`."""
    unfinished = db.execute("SELECT count(*) FROM replays WHERE owner = ? AND finished_at IS NULL", (owner,))
    if unfinished.fetchone()[0] >= MAX_REPLAYS:
        raise QuotaExceeded(
            f"{MAX_REPLAYS} replays of yours are not finished yet; wait for one, or select more with one replay",
            retry_after_seconds=_RETRY_AFTER_SECONDS,
        )
    db.execute(
        "DELETE FROM replays WHERE number IN (SELECT number FROM replays "
        "WHERE owner = ? AND finished_at IS NOT NULL ORDER BY number DESC LIMIT -1 OFFSET ?)",
        (owner, MAX_REPLAYS_KEPT - 1),
    )


def replay_progress(db: sqlite3.Connection, number: int) -> Replay | None:
    """See `DurableStore.replay_progress`."""
    row = db.execute(f"{_REPLAY} number = ?", (number,)).fetchone()
    return None if row is None else Replay(row[0], _selection(row[1]), *row[2:6])


def _with_owner(selection: Selection) -> Sequence[object]:
    """As JSON; an owner for whom there is only his own in a list."""
    return (*selection[:-1], [selection.owner] if isinstance(selection.owner, Only) else selection.owner)


def _selection(text: str) -> Selection:
    values = json.loads(text)
    if isinstance(values[-1], list):
        values[-1] = Only(values[-1][0])
    return Selection(*values)


def _replay_some(db: sqlite3.Connection, now: int) -> int:
    row = _next_replay(db)
    if row is None:
        return 0
    number, text, _, replayed, skipped, _, place, last_message = row
    selection = _selection(text)
    # All of the slice first: what is made pending leaves the index that is walked along.
    try:
        found = list(islice(walk(db, selection, place and json.loads(place), backwards=False), _SLICE))
    except InvalidRequest:
        # A place of an earlier version, which walked otherwise: from the beginning, rather than never.
        found = list(islice(walk(db, selection, None, backwards=False), _SLICE))
    successors, looked_at = Successors(db, now), 0
    for here, each in found:
        if each is not None and selected(selection, each) and each.message <= last_message:
            if _send_again(db, each, successors, now):
                replayed += 1
            else:
                skipped += 1
        place, looked_at = json.dumps(here), looked_at + 1
        if successors.looked_at >= _SUBSCRIPTIONS_LOOKED_AT:
            break
    finished = looked_at == len(found) < _SLICE
    db.execute(
        "UPDATE replays SET place = ?, replayed = ?, skipped = ?, finished_at = ? WHERE number = ?",
        (place, replayed, skipped, now if finished else None, number),
    )
    return looked_at + 1


def _next_replay(db: sqlite3.Connection) -> tuple[Any, ...] | None:
    """The first of the next owner who has one."""
    for whose in ("owner > (SELECT owner FROM replay_turn) AND", ""):
        row = db.execute(f"{_REPLAY} {whose} finished_at IS NULL ORDER BY owner, number LIMIT 1").fetchone()
        if row is not None:
            db.execute("UPDATE replay_turn SET owner = (SELECT owner FROM replays WHERE number = ?)", row[:1])
            return tuple(row)
    return None


def _send_again(db: sqlite3.Connection, row: Row, successors: Successors, now: int) -> bool:
    """Make a delivery that is over pending again, with its schedule from the beginning; or owe its message to a
    successor of its subscription."""
    if not row.body_kept or (row.expires_at is not None and row.expires_at <= now):
        return False
    subscribed = db.execute(
        "SELECT delivery FROM subscriptions WHERE id = ? AND expires_at > ?", (row.subscription_id, now)
    ).fetchone()
    if subscribed is None:
        return successors.send(row)
    if subscribed[0] != "durable":
        return False
    db.execute(
        "UPDATE deliveries SET state = ?, reason = NULL, due_at = ?, attempts_before = attempts, updated_at = ? "
        "WHERE message = ? AND subscription_id = ?",
        ("waiting" if row.ordered else "pending", now, now, row.message, row.subscription_id),
    )
    if row.ordered:
        advance(db, row.subscription_id, row.endpoint, now)
    else:
        lower(db, row.endpoint, now)
    return True
