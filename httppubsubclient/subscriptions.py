"""Subscriptions as the application sees them: enter one, iterate over its messages, leave it.

    async with client.subscribe_glob("foo/*") as subscription:
        async for message in subscription:
            print(message.topic, message.text())

Entering returns when a broadcaster has confirmed the subscription; leaving unsubscribes. Between the two, messages
that were accepted from a broadcaster wait in a bounded buffer. What is acknowledged to the broadcaster is that a
message is in the buffer, not that it was consumed.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Generator, Iterable
from email.message import Message as _MimeHeaders
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from httppubsubclient.bodies import Body
from httppubsubclient.buffer import Buffer, Closed, Limits
from httppubsubclient.protocol.messages import Delivery
from httppubsubclient.protocol.patterns import Pattern
from httppubsubclient.protocol.topics import shown_topic

if TYPE_CHECKING:
    from httppubsubclient.registrations import Registrations

__all__ = ["Message", "Messages", "MessagesOrNone", "Subscription"]


class Message:
    """One message that arrived. Its body is in memory, or in a temporary file that lives as long as this object."""

    __slots__ = ("_body", "_data", "content_type", "message_id", "pattern", "topic", "traceparent")

    def __init__(self, delivery: Delivery, pattern: Pattern, body: Body) -> None:
        self.topic: bytes = delivery.topic
        self.message_id: str = delivery.message_id
        """The same for every subscriber and every attempt."""
        self.content_type: str = delivery.content_type
        """As published; `application/octet-stream` when the publisher said nothing."""
        self.traceparent: str | None = delivery.traceparent
        """W3C trace context of the publisher."""
        self.pattern: Pattern = pattern
        """The (first) pattern of the subscription that this message came for."""
        self._body = body
        self._data: BinaryIO | None = None

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


class Subscription:
    """One or more patterns whose messages arrive in one buffer, each message once. Made by `HttpPubSubClient`.

    It is entered once. Several tasks may iterate at the same time: each message goes to one of them. A cancelled
    `__anext__` loses nothing.
    """

    def __init__(
        self,
        connect: Callable[[], Registrations],
        patterns: Iterable[Pattern],
        *,
        limits: Limits,
        remembered_message_ids: int,
    ) -> None:
        self._connect = connect
        self._patterns: dict[Pattern, None] = dict.fromkeys(patterns)
        self._buffer: Buffer[Message] = Buffer(limits, size_of=lambda message: message.size)
        self._remembered_message_ids = remembered_message_ids
        self._accepted: dict[str, None] = {}
        self._registrations: Registrations | None = None
        self._changing = asyncio.Lock()
        self._state: Literal["new", "entered", "left"] = "new"

    # -- the life of it -----------------------------------------------------------------------------------------

    async def __aenter__(self) -> Subscription:
        if self._state != "new":
            raise RuntimeError("a subscription is entered once: make another one")
        self._registrations = self._connect()
        self._state = "entered"
        try:
            await self._registrations.add(list(self._patterns), self)
        except BaseException:
            self.close()
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.leave()

    async def leave(self) -> None:
        """What leaving the context does: iterators end, buffered messages are dropped, the broadcaster is told.
        Idempotent."""
        registrations, patterns = self._registrations, list(self._patterns)
        was_entered = self._state == "entered"
        self.close()
        if was_entered and registrations is not None and patterns:
            await registrations.remove(patterns, self)

    def close(self) -> None:
        """End every iterator, here only; the broadcaster is not told. Idempotent."""
        self._state = "left"
        self._buffer.close()

    # -- what it is subscribed to -------------------------------------------------------------------------------

    @property
    def patterns(self) -> tuple[Pattern, ...]:
        """What is subscribed now."""
        return tuple(self._patterns)

    async def subscribe_exact(self, topic: bytes) -> None:
        """Add one topic; returns when it is confirmed. Adding what is there already does nothing."""
        await self._subscribe(Pattern.exact(topic))

    async def subscribe_glob(self, glob: str) -> None:
        """Add a glob; returns when it is confirmed."""
        await self._subscribe(Pattern.glob(glob))

    async def subscribe_mqtt(self, topic_filter: str) -> None:
        """Add an MQTT topic filter; returns when it is confirmed."""
        await self._subscribe(Pattern.mqtt(topic_filter))

    async def unsubscribe_exact(self, topic: bytes) -> None:
        """Remove one topic. Messages in the buffer stay. Removing what is not there does nothing."""
        await self._unsubscribe(Pattern.exact(topic))

    async def unsubscribe_glob(self, glob: str) -> None:
        """Remove a glob."""
        await self._unsubscribe(Pattern.glob(glob))

    async def unsubscribe_mqtt(self, topic_filter: str) -> None:
        """Remove an MQTT topic filter."""
        await self._unsubscribe(Pattern.mqtt(topic_filter))

    async def _subscribe(self, pattern: Pattern) -> None:
        async with self._changing:
            registrations = self._entered()
            if pattern in self._patterns:
                return
            await registrations.add([pattern], self)
            if self._state == "left":
                await registrations.remove([pattern], self)
                self._entered()
            self._patterns[pattern] = None

    async def _unsubscribe(self, pattern: Pattern) -> None:
        async with self._changing:
            registrations = self._entered()
            if pattern in self._patterns:
                del self._patterns[pattern]
                await registrations.remove([pattern], self)

    def _entered(self) -> Registrations:
        if self._state != "entered" or self._registrations is None:
            raise RuntimeError("this subscription is not entered: async with ... as subscription")
        return self._registrations

    # -- messages, consumer's side ------------------------------------------------------------------------------

    def __aiter__(self) -> Messages:
        return self.messages()

    async def __anext__(self) -> Message:
        """One message: `message = await anext(subscription)`."""
        return await anext(self.messages())

    def messages(self) -> Messages:
        """An async iterator over the messages; it may also be awaited, which gives itself."""
        if self._state == "new":
            self._entered()
        return Messages(self._buffer)

    def with_timeout(self, seconds: float) -> MessagesOrNone:
        """Like iterating, but yields None each time that `seconds` pass without a message."""
        if self._state == "new":
            self._entered()
        return MessagesOrNone(self._buffer, seconds)

    # -- messages, broadcaster's side (registrations.Member) ----------------------------------------------------

    def has(self, message_id: str) -> bool:
        """Whether this message was accepted, as far as that is remembered."""
        return message_id in self._accepted

    def fits(self, size: int) -> bool:
        """Whether a body of `size` bytes would be accepted now."""
        return self._buffer.fits(size)

    def offer(self, delivery: Delivery, pattern: Pattern, body: Body) -> bool:
        """Take the message; True as well when it was taken before. False: the buffer is full."""
        if self._state == "left" or delivery.message_id in self._accepted:
            return True
        if not self._buffer.put(Message(delivery, pattern, body)):
            return False
        self._accepted[delivery.message_id] = None
        if len(self._accepted) > self._remembered_message_ids:
            del self._accepted[next(iter(self._accepted))]
        return True


class Messages:
    """`async for message in subscription`, or `iterator = await subscription.__aiter__()`."""

    def __init__(self, buffer: Buffer[Message]) -> None:
        self._buffer = buffer

    def __aiter__(self) -> Messages:
        return self

    async def __anext__(self) -> Message:
        try:
            return await self._buffer.get()
        except Closed:
            raise StopAsyncIteration from None

    def __await__(self) -> Generator[Any, None, Messages]:
        return self._itself().__await__()

    async def _itself(self) -> Messages:
        return self


class MessagesOrNone:
    """`async for message in subscription.with_timeout(5)`."""

    def __init__(self, buffer: Buffer[Message], seconds: float) -> None:
        self._buffer = buffer
        self._seconds = seconds

    def __aiter__(self) -> MessagesOrNone:
        return self

    async def __anext__(self) -> Message | None:
        try:
            async with asyncio.timeout(self._seconds):
                return await self._buffer.get()
        except TimeoutError:
            return None
        except Closed:
            raise StopAsyncIteration from None
