"""Looking after deliveries: what is owed to whom, what became of it, sending it again, calling it off.

The routes of http_deliveries.py and the command `httppubsubserver deliveries` ask for the same things, and both say
what they select in the same words: `selection_of`. What changes something leaves a line in the log that says who asked.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Final, NamedTuple, get_args

from httppubsubclient.protocol.errors import Forbidden, Gone, InvalidRequest, NotFound
from httppubsubclient.protocol.messages import MESSAGE_ID, SUBSCRIPTION_ID, format_time
from httppubsubclient.protocol.moments import parse_moment
from httppubsubserver.audit import By, audit
from httppubsubserver.escaping import escaped
from httppubsubserver.stores import Only
from httppubsubserver.stores.durable import (
    DeliveryPage,
    DeliveryState,
    DurableStore,
    MessageAndDeliveries,
    Replay,
    Selection,
    SequencePage,
    StoredMessage,
)

__all__ = ["REPLAYED_STATES", "STATES", "Operations", "StoredBody", "selection_json", "selection_of"]

STATES: Final[tuple[DeliveryState, ...]] = get_args(DeliveryState)
REPLAYED_STATES: Final[tuple[DeliveryState, ...]] = ("dead", "delivered", "cancelled")

_MAX_PAGE_BODY_BYTES: Final = 1024 * 1024
"""Bodies on a page of a subscription's messages; the last one may pass it."""


class StoredBody(NamedTuple):
    """A body that is kept."""

    message: StoredMessage
    chunks: AsyncIterator[bytes]
    """Its bytes. Raises `Gone` when retention takes it meanwhile."""


class Operations:
    """What an operator asks a store, or an owner of keys: for an `owner` there is nothing but what is his.

    What he published is his, and so is what his subscriptions bring him; None sees everything. `now` gives microseconds
    since 1970.

    `wake` is called when there is something to work off (`Upkeep.wake`), or deliveries may have become due.
    """

    def __init__(self, store: DurableStore, *, now: Callable[[], int], wake: Callable[[], object]) -> None:
        self._store = store
        self._now = now
        self._wake = wake

    async def deliveries(self, selection: Selection, *, cursor: str | None, limit: int) -> DeliveryPage:
        """See `DurableStore.deliveries`."""
        return await self._store.deliveries(selection, cursor=cursor, limit=limit)

    async def message(
        self, message_id: str, *, cursor: str | None = None, limit: int = 1, owner: str | None = None
    ) -> MessageAndDeliveries:
        """One message without its body, and a page of its deliveries. Raises `NotFound`."""
        found = None
        if MESSAGE_ID.fullmatch(message_id):
            found = await self._store.message(message_id, cursor=cursor, limit=limit, owner=owner)
        if found is None:
            raise NotFound(f"there is no message '{escaped(message_id[:100])}', or it is no longer known")
        return found

    async def body(self, message_id: str, *, owner: str | None = None) -> StoredBody:
        """What was published. Raises `NotFound`, and `Gone` when it is no longer kept."""
        message = (await self.message(message_id, owner=owner)).message
        first = await self._store.read_chunk(message_id, 0) if message.body_kept else None
        if first is None and message.notification.size:
            raise Gone("the body of this message is no longer kept: see keep_bodies_seconds and max_stored_bytes")
        return StoredBody(message, self._chunks(message, first or b""))

    async def _chunks(self, message: StoredMessage, first: bytes) -> AsyncIterator[bytes]:
        chunk: bytes | None = first
        position = read = 0
        while chunk is not None:
            yield chunk
            read += len(chunk)
            if read >= message.notification.size:
                return
            position += 1
            chunk = await self._store.read_chunk(message.notification.message_id, position)
        raise Gone("the body of this message was taken by retention while it was read")

    async def messages_after(
        self, subscription_id: str, after: int, *, limit: int, owner: str | None = None
    ) -> SequencePage:
        """What a durable subscription got after the sequence `after`. Raises `NotFound`."""
        page = None
        if SUBSCRIPTION_ID.fullmatch(subscription_id) and await self._is_there_for(owner, subscription_id):
            page = await self._store.messages_after(
                subscription_id, after, limit=limit, max_body_bytes=_MAX_PAGE_BODY_BYTES, now=self._now()
            )
        if page is None:
            raise NotFound("there is no durable subscription with this id")
        return page

    async def _is_there_for(self, owner: str | None, subscription_id: str) -> bool:
        if owner is None:
            return True
        return await self._store.subscription(subscription_id, now=self._now(), owner=owner) is not None

    async def cancel_scheduled(self, message_id: str, *, by: By, owner: str | None = None) -> int:
        """Call off what has not been attempted of a scheduled message; how many deliveries. Raises `NotFound`, and
        `Forbidden` for who did not publish it."""
        found = await self.message(message_id, owner=owner)
        # What nobody published is to be called off by those for whom there is what is nobody's.
        published = found.message.owner == owner or (found.message.owner is None and not isinstance(owner, Only))
        if owner is not None and not published:
            raise Forbidden("only the owner of the key that published a message may call it off, or a key with 'admin'")
        cancelled = await self._store.cancel_scheduled(message_id, now=self._now())
        audit("called_off", by=by, message=message_id, deliveries=cancelled)
        self._wake()
        return cancelled

    async def replay(self, selection: Selection, *, by: By) -> Replay:
        """Ask for deliveries to be sent again, those of `selection.owner`. Raises `InvalidRequest`, `QuotaExceeded`
        (see `DurableStore.replay`), and `NotFound` for an unknown message."""
        if selection._replace(state=None, owner=None) == Selection():
            raise InvalidRequest("say what to replay: a message, a subscription, or from when until when")
        if selection.message_id is not None:
            await self.message(selection.message_id, owner=selection.owner)
        replay = await self._store.replay(selection, now=self._now())
        audit("replayed", by=by, replay=replay.number, selection=selection_json(replay.selection))
        self._wake()
        return replay

    async def replay_progress(self, number: int, *, owner: str | None = None) -> Replay:
        """How far a replay has got. Raises `NotFound`."""
        replay = await self._store.replay_progress(number)
        if replay is None or owner not in (None, replay.selection.owner):
            raise NotFound("there is no replay with this number, or it was finished long ago")
        return replay


def selection_of(
    *,
    state: str | None = None,
    subscription_id: str | None = None,
    message_id: str | None = None,
    accepted_from: str | None = None,
    accepted_until: str | None = None,
    states: Sequence[DeliveryState] = STATES,
) -> Selection:
    """What somebody selects in words; the moments are RFC 3339. Raises `InvalidRequest`, which says what is wrong."""
    known = next((each for each in states if each == state), None)
    if state is not None and known is None:
        raise InvalidRequest(f"the state is one of {', '.join(states)}; got '{escaped(state[:100])}'")
    selection = Selection(
        None if subscription_id is None else _checked(subscription_id, "subscription", SUBSCRIPTION_ID),
        known,
        None if message_id is None else _checked(message_id, "message", MESSAGE_ID),
        None if accepted_from is None else parse_moment("from", accepted_from),
        None if accepted_until is None else parse_moment("until", accepted_until),
    )
    first, end = selection.accepted_from, selection.accepted_until
    if first is not None and end is not None and first >= end:
        raise InvalidRequest(f"from is before until, which is not included; got {accepted_from} and {accepted_until}")
    return selection


def selection_json(selection: Selection) -> dict[str, Any]:
    """The inverse of `selection_of`."""
    first, end = selection.accepted_from, selection.accepted_until
    return {
        "message_id": selection.message_id,
        "subscription_id": selection.subscription_id,
        "from": None if first is None else format_time(first),
        "until": None if end is None else format_time(end),
        "state": selection.state,
    }


def _checked(text: str, kind: str, form: re.Pattern[str]) -> str:
    if not form.fullmatch(text):
        raise InvalidRequest(f"the id of a {kind} is 1 to 64 of A-Z a-z 0-9 _ and -; got '{escaped(text[:100])}'")
    return text
