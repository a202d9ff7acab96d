"""Whether everything came that a durable subscription was sent, and asking for what did not.

`Continuity` keeps the numbers of one durable name, by subscription id; protocol/gaps.py says what they mean.
`catch_up` reads what a broadcaster keeps of one subscription, `GET /v1/subscriptions/{id}/messages?after=`, page by
page, and offers it to whoever lacks it.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, Protocol

from httppubsubclient.bodies import Body
from httppubsubclient.broadcasters import Answer
from httppubsubclient.protocol import gaps
from httppubsubclient.protocol.errors import InvalidRequest, NotFound, PubSubError
from httppubsubclient.protocol.gaps import SeenNumbers
from httppubsubclient.protocol.messages import MESSAGE_ID, Delivery, content_type_or_default, parse_time
from httppubsubclient.protocol.topics import topic_from_json

__all__ = ["Continuity", "Taker", "catch_up"]

logger = logging.getLogger(__name__)

_PAGE: Final = 100
"""Messages asked for at once; the broadcaster bounds the bytes."""


def _now() -> int:
    return time.time_ns() // 1000


class Continuity:
    """The numbers of the deliveries of one name."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._seen: dict[str, SeenNumbers] = {}
        self._restarted: set[str] = set()

    def begin(self, subscription_id: str, *, is_new: bool) -> None:
        """A broadcaster has confirmed a subscription. One that is new counts from 1, another from what comes first."""
        if is_new:
            self._seen[subscription_id] = SeenNumbers(last=0)
        else:
            self._seen.setdefault(subscription_id, SeenNumbers())

    def forget(self, subscription_id: str) -> None:
        """The subscription is no more."""
        self._seen.pop(subscription_id, None)
        self._restarted.discard(subscription_id)

    def arrived(self, delivery: Delivery) -> None:
        """A delivery was accepted, now or before."""
        seen = self._seen.get(delivery.subscription_id)
        if seen is None or delivery.sequence is None:
            return
        arrival = seen.arrived(delivery.sequence, delivery.message_id, delivery.previous_message_id)
        if arrival.continuity is gaps.Continuity.RESTARTED:
            self._restarted.add(delivery.subscription_id)
            logger.warning(
                "the deliveries of %r begin anew at number %d: the broadcaster's database is another one, or an older "
                "copy; what was sent between is not known",
                self._name,
                delivery.sequence,
            )
        elif arrival.continuity is gaps.Continuity.GAP:
            logger.info(
                "before number %d of %r, %d have not come yet", delivery.sequence, self._name, len(arrival.missing)
            )

    def missing(self, subscription_id: str) -> tuple[range, ...]:
        """The numbers that were jumped and have not come."""
        seen = self._seen.get(subscription_id)
        return () if seen is None else seen.missing

    def restarted(self, subscription_id: str) -> bool:
        """Whether the numbers did not continue those before, since that was last asked for by `caught_up`."""
        return subscription_id in self._restarted

    def complete_to(self, subscription_id: str) -> int | None:
        """Up to this number nothing is missing; None when nothing is known."""
        seen = self._seen.get(subscription_id)
        return None if seen is None else seen.complete_to

    def caught_up(self, subscription_id: str, through: int) -> None:
        """Everything that is still to be had up to this number was asked for."""
        seen = self._seen.get(subscription_id)
        if seen is not None:
            seen.give_up(through)
        self._restarted.discard(subscription_id)


class Taker(Protocol):
    """Who gets what is caught up on."""

    def lacks(self, message_id: str) -> bool:
        """Whether somebody has not got this message."""
        ...

    def take(self, delivery: Delivery, body: Body) -> bool:
        """Give it to those who lack it. False: somebody has no room."""
        ...

    def arrived(self, delivery: Delivery) -> None:
        """Nobody lacks it any more, or it is not to be had."""
        ...


class _Page(NamedTuple):
    messages: Sequence[_Kept]
    complete: bool
    last: int


class _Kept(NamedTuple):
    delivery: Delivery
    size: int
    data: bytes | None
    body_kept: bool
    deliver_at: int | None
    expires_at: int | None


async def catch_up(
    subscription_id: str,
    after: int,
    taker: Taker,
    *,
    page: Callable[[str, str], Awaitable[Answer]],
    body: Callable[[str, int], Awaitable[Body]],
    now: Callable[[], int] = _now,
) -> tuple[int, bool]:
    """Offer everything after the number `after`: up to which number that went, and whether nothing is missing there.

    `page(path, query)` asks a broadcaster for one page, `body(path, size)` for a large body. It ends early, and is not
    complete, when somebody has no room.
    """
    complete = True
    while True:
        answer = await page(f"/v1/subscriptions/{subscription_id}/messages", f"after={after}&limit={_PAGE}")
        kept = await asyncio.to_thread(_page, answer, subscription_id)
        complete = complete and kept.complete
        for entry in kept.messages:
            if entry.delivery.sequence is None or entry.delivery.sequence <= after:
                raise PubSubError(f"{answer.url} answered with messages that are out of order")
            number = entry.delivery.sequence
            if entry.deliver_at is not None and entry.deliver_at > now():
                after = number  # it comes when it is due
                continue
            if taker.lacks(entry.delivery.message_id) and await _is_wanted(entry, page, now()):
                if not entry.body_kept:
                    complete = False
                elif not taker.take(entry.delivery, await _body_of(entry, body)):
                    return after, False
            taker.arrived(entry.delivery)
            after = number
        if not kept.messages or after >= kept.last:
            return after, complete


async def _is_wanted(entry: _Kept, page: Callable[[str, str], Awaitable[Answer]], now: int) -> bool:
    """Whether it has not expired, and was not called off: only what is scheduled can be, so only that is asked for."""
    if entry.expires_at is not None and entry.expires_at <= now:
        return False
    if entry.deliver_at is None:
        return True
    delivery = entry.delivery
    query = f"message={delivery.message_id}&subscription={delivery.subscription_id}"
    answer = await page("/v1/deliveries", query)
    try:
        return not any(each["state"] == "cancelled" for each in answer.fields()["deliveries"])
    except (KeyError, TypeError) as error:
        raise PubSubError(
            f"{answer.url} answered {answer.status} with what is no list of deliveries: {error}"
        ) from None


async def _body_of(entry: _Kept, body: Callable[[str, int], Awaitable[Body]]) -> Body:
    if entry.data is not None:
        return await asyncio.to_thread(Body.of, entry.data)
    try:
        return await body(f"/v1/messages/{entry.delivery.message_id}/body", entry.size)
    except NotFound as error:
        raise PubSubError(f"a message was deleted while it was asked for: {error.detail}") from None


def _page(answer: Answer, subscription_id: str) -> _Page:
    fields = answer.fields()
    try:
        entries, complete, last = fields["messages"], fields["complete"], fields["last"]
        if not isinstance(entries, list) or not isinstance(complete, bool) or not _is_count(last):
            raise InvalidRequest("a field is of another type")  # noqa: TRY301 - one place that says what it is
        return _Page([_kept(entry, subscription_id) for entry in entries], complete, last)
    except (InvalidRequest, KeyError, TypeError, ValueError, AttributeError) as error:
        raise PubSubError(f"{answer.url} answered {answer.status} with what is no page of messages: {error}") from None


def _kept(fields: Mapping[str, Any], subscription_id: str) -> _Kept:
    message_id, sequence, size, data = fields["message_id"], fields["sequence"], fields["size"], fields.get("data_b64")
    previous = fields.get("previous_message_id")
    if not MESSAGE_ID.fullmatch(message_id) or not _is_count(sequence) or not _is_count(size):
        raise InvalidRequest("a message has no id, number or size")
    delivery = Delivery(
        message_id=message_id,
        timestamp=(_moment(fields, "accepted_at") or 0) // 1_000_000,
        topic=topic_from_json(fields),
        subscription_id=subscription_id,
        attempt=1,
        content_type=content_type_or_default(fields.get("content_type")),
        sequence=sequence,
        previous_message_id=previous if previous is None or MESSAGE_ID.fullmatch(previous) else None,
    )
    try:
        body = None if data is None else base64.b64decode(data, validate=True)
    except binascii.Error:
        raise InvalidRequest("'data_b64' is not base64") from None
    return _Kept(
        delivery,
        size,
        body,
        fields.get("body_kept", True) is not False,
        _moment(fields, "deliver_at"),
        _moment(fields, "expires_at"),
    )


def _moment(fields: Mapping[str, Any], name: str) -> int | None:
    """Microseconds since 1970."""
    text = fields.get(name)
    return None if text is None else parse_time(text)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
