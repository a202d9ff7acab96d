"""One message as the application gets it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message as _MimeHeaders
from typing import Any, BinaryIO

from httppubsubclient.bodies import Body
from httppubsubclient.protocol.cloudevents import CloudEvent
from httppubsubclient.protocol.messages import Delivery
from httppubsubclient.protocol.patterns import Pattern
from httppubsubclient.protocol.topics import shown_topic

__all__ = ["EventDelivery", "Message"]


@dataclass(frozen=True, slots=True)
class EventDelivery(Delivery):
    """A delivery that came as a CloudEvent; all but `event` is as of any other."""

    event: CloudEvent | None = None


class Message:
    """One message that arrived. Its body is in memory, or in a temporary file that lives as long as this object."""

    __slots__ = (
        "_body",
        "_data",
        "_settle",
        "content_type",
        "event",
        "hops",
        "message_id",
        "pattern",
        "sequence",
        "topic",
        "traceparent",
    )

    def __init__(
        self, delivery: Delivery, pattern: Pattern, body: Body, settle: Callable[[bool], None] | None = None
    ) -> None:
        self.topic: bytes = delivery.topic
        self.message_id: str = delivery.message_id
        """The same for every subscriber and every attempt."""
        self.content_type: str = delivery.content_type
        """As published; `application/octet-stream` when the publisher said nothing."""
        self.traceparent: str | None = delivery.traceparent
        """W3C trace context of the publisher."""
        self.pattern: Pattern = pattern
        """The (first) pattern of the subscription that this message came for."""
        self.sequence: int | None = delivery.sequence
        """Durable: the number of this delivery among those of its subscription, 1, 2, 3 ..."""
        self.hops: int = delivery.hops
        """How many broadcasters it has come through: `client.notify(..., after=message)` passes that on."""
        self.event: CloudEvent | None = delivery.event if isinstance(delivery, EventDelivery) else None
        """The attributes of the CloudEvent that it came as; None of what is raw, or was caught up on."""
        self._body = body
        self._data: BinaryIO | None = None
        self._settle = settle

    def ack(self) -> None:
        """It is done, and shall not come again: what `ack="explicit"` waits for. Elsewhere, and again, it does nothing.
        To be called in the event loop."""
        if self._settle is not None:
            self._settle(True)

    def nack(self) -> None:
        """It is not done: let it come again, when its schedule says so. Only with `ack="explicit"`."""
        if self._settle is not None:
            self._settle(False)

    @property
    def data(self) -> BinaryIO:
        """The body as a file that is open for reading; always the same one, with its position. Reading a body larger
        than `spool_bytes` reads from disk: `await message.read()` does that off the event loop."""
        if self._data is None:
            self._data = self._body.open()
        return self._data

    @property
    def size(self) -> int:
        """Length of the body in bytes."""
        return self._body.size

    @property
    def content(self) -> bytes:
        """The whole body, wherever `data` stands."""
        if self._body.data is not None:
            return self._body.data
        with self._body.open() as file:
            return file.read()

    async def read(self) -> bytes:
        """The whole body, read off the event loop when it lies in a file."""
        if self._body.data is not None:
            return self._body.data
        return await asyncio.to_thread(lambda: self.content)

    def text(self) -> str:
        """The body as text, in the charset of its Content-Type, else UTF-8. Raises `UnicodeDecodeError`."""
        headers = _MimeHeaders()
        headers["content-type"] = self.content_type
        charset = headers.get_content_charset("utf-8")
        try:
            return self.content.decode(charset)
        except LookupError:
            return self.content.decode("utf-8")

    def json(self) -> Any:
        """The body parsed as JSON. Raises `ValueError`."""
        return json.loads(self.content)

    def __repr__(self) -> str:
        return f"<Message {self.message_id} topic={shown_topic(self.topic)} {self.content_type} of {self.size} bytes>"
