"""Subscriptions as the application sees them: enter one, iterate over its messages, leave it.

    async with client.subscribe_glob("foo/*") as subscription:
        async for message in subscription:
            print(message.topic, message.text())

Entering returns when a broadcaster has confirmed the subscription; leaving unsubscribes, unless it has a durable name.
Between the two, messages that were accepted from a broadcaster wait in a bounded buffer (inbox.py). What is
acknowledged to the broadcaster is that a message is in the buffer, not that it was consumed, unless a durable
subscription asks for more (durable_inbox.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Generator, Iterable
from types import TracebackType
from typing import Any, Protocol, TypeVar

from httppubsubclient.buffer import Closed
from httppubsubclient.durable_name import DurableName
from httppubsubclient.inbox import Inbox
from httppubsubclient.message import Message
from httppubsubclient.protocol.errors import InvalidRequest
from httppubsubclient.protocol.patterns import Pattern
from httppubsubclient.webhooks import DEFAULT_GRACE_SECONDS, Rotation, rotation

__all__ = ["Message", "Messages", "MessagesOrNone", "Registry", "Subscription"]


InboxT = TypeVar("InboxT", bound=Inbox, contravariant=True)


class Registry(Protocol[InboxT]):
    """Where an inbox is subscribed: registrations.py, or with a durable name durable_name.py."""

    async def add(self, patterns: Collection[Pattern], inbox: InboxT, /) -> None:
        """Subscribe; returns when it is confirmed."""
        ...

    async def leave(self, patterns: Collection[Pattern], inbox: InboxT, /) -> None:
        """The inbox gets nothing more."""
        ...

    async def remove(self, patterns: Collection[Pattern], inbox: InboxT, /) -> None:
        """Unsubscribe, at the broadcaster too."""
        ...

    async def rotate(self, patterns: Collection[Pattern], rotation: Rotation, /) -> None:
        """Change the secrets of patterns that have one."""
        ...


class Subscription:
    """One or more patterns whose messages arrive in one buffer, each message once. Made by `HttpPubSubClient`.

    It is entered once. Several tasks may iterate at the same time: each message goes to one of them. A cancelled
    `__anext__` loses nothing.
    """

    def __init__(
        self,
        connect: Callable[[], Registry[Any]],
        patterns: Iterable[Pattern],
        inbox: Inbox,
    ) -> None:
        """`connect` gives the registry for this kind of inbox, while the client is entered."""
        self._connect = connect
        self._patterns: dict[Pattern, None] = dict.fromkeys(patterns)
        self._inbox = inbox
        self._registry: Registry[Any] | None = None
        self._changing = asyncio.Lock()

    # -- the life of it -----------------------------------------------------------------------------------------

    async def __aenter__(self) -> Subscription:
        if self._registry is not None or self._inbox.closed:
            raise RuntimeError("a subscription is entered once: make another one")
        self._registry = self._connect()
        try:
            await self._registry.add(list(self._patterns), self._inbox)
        except BaseException:
            self._inbox.close()
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.leave()

    async def leave(self) -> None:
        """What leaving the context does: iterators end, buffered messages are dropped. The broadcaster is told, but for
        a durable name: that stays subscribed. Idempotent."""
        registry, patterns = self._registry, list(self._patterns)
        was_entered = not self._inbox.closed
        self._inbox.close()
        if was_entered and registry is not None and patterns:
            await registry.leave(patterns, self._inbox)

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

    async def rotate_secret(
        self,
        secret: str = "generate",  # noqa: S107 - a word, no secret
        *,
        grace_seconds: int = DEFAULT_GRACE_SECONDS,
        allow_downgrade: bool = False,
    ) -> None:
        """Change the secret of each of the patterns; returns when the broadcaster has confirmed the new ones.

        The old ones are good beside them for `grace_seconds`, then no more; with 0 they end at once. From
        `"generate-v1a"` back to v1, which others can make who can verify it, only with `allow_downgrade`. When it
        raises `BroadcastersUnavailable` and may have been processed, the new ones stand and are told again by itself;
        after any other error the old ones stand. Raises `QuotaExceeded` when too many were made in a short time.
        """
        wanted = rotation(secret, grace_seconds, allow_downgrade)
        async with self._changing:
            registry = self._entered()
            if wanted.is_given and len(self._patterns) > 1:
                raise InvalidRequest("a given secret is for one pattern: 'generate' makes one for each")
            await registry.rotate(list(self._patterns), wanted)

    async def _subscribe(self, pattern: Pattern) -> None:
        async with self._changing:
            registry = self._entered()
            if pattern in self._patterns:
                return
            await registry.add([pattern], self._inbox)
            if self._inbox.closed:
                await registry.leave([pattern], self._inbox)
                self._entered()
            self._patterns[pattern] = None

    async def _unsubscribe(self, pattern: Pattern) -> None:
        async with self._changing:
            registry = self._entered()
            if pattern in self._patterns:
                del self._patterns[pattern]
                try:
                    await registry.remove([pattern], self._inbox)
                except BaseException:
                    self._patterns[pattern] = None
                    raise

    def _entered(self) -> Registry[Any]:
        if self._registry is None or self._inbox.closed:
            raise RuntimeError("this subscription is not entered: async with ... as subscription")
        return self._registry

    def _was_entered(self) -> None:
        """What was left ends its iterators; only what was never entered is a mistake."""
        if self._registry is None and not self._inbox.closed:
            self._entered()

    # -- continuity of a durable subscription -----------------------------------------------------------------------

    @property
    def missing(self) -> dict[Pattern, tuple[range, ...]]:
        """The numbers (`message.sequence`) that were jumped and have not come, for patterns that have such; empty when
        there is no gap. Unless it is `ordered`, messages that overtake others make gaps for moments."""
        return self._durable_name().missing(self._patterns)

    @property
    def restarted(self) -> bool:
        """Whether the numbers began anew: the broadcaster's database is another one, or an older copy, and what was
        sent between is not known. `catch_up` ends it."""
        return self._durable_name().restarted(self._patterns)

    async def catch_up(self, *, after: int | None = None) -> bool:
        """Ask the broadcaster for everything after what is complete, and put what has not come yet into the buffer.
        True when nothing is missing any more.

        False: something is no longer kept; or the buffer is full (take messages and call it again); or nothing has
        come yet, so that there is nothing to count from. `after`, with one pattern only, counts from that number
        instead: the `sequence` of the last message of an earlier life, or 0 for everything that is kept.
        """
        name = self._durable_name()
        if after is not None and len(self._patterns) != 1:
            raise InvalidRequest("after= needs a subscription with one pattern: each counts for itself")
        outcomes = [await name.catch_up(pattern, after) for pattern in list(self._patterns)]
        return all(outcomes)

    def _durable_name(self) -> DurableName:
        registry = self._entered()
        if not isinstance(registry, DurableName):
            raise TypeError("only durable subscriptions have numbers: durable='a-name'")
        return registry

    # -- messages, consumer's side ------------------------------------------------------------------------------

    def __aiter__(self) -> Messages:
        return self.messages()

    async def __anext__(self) -> Message:
        """One message: `message = await anext(subscription)`."""
        return await anext(self.messages())

    def messages(self) -> Messages:
        """An async iterator over the messages; it may also be awaited, which gives itself."""
        self._was_entered()
        return Messages(self._inbox)

    def with_timeout(self, seconds: float) -> MessagesOrNone:
        """Like iterating, but yields None each time that `seconds` pass without a message."""
        self._was_entered()
        return MessagesOrNone(self._inbox, seconds)


class Messages:
    """`async for message in subscription`, or `iterator = await subscription.__aiter__()`."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox

    def __aiter__(self) -> Messages:
        return self

    async def __anext__(self) -> Message:
        try:
            return await self._inbox.get()
        except Closed:
            raise StopAsyncIteration from None

    def __await__(self) -> Generator[Any, None, Messages]:
        return self._itself().__await__()

    async def _itself(self) -> Messages:
        return self


class MessagesOrNone:
    """`async for message in subscription.with_timeout(5)`."""

    def __init__(self, inbox: Inbox, seconds: float) -> None:
        self._inbox = inbox
        self._seconds = seconds

    def __aiter__(self) -> MessagesOrNone:
        return self

    async def __anext__(self) -> Message | None:
        try:
            async with asyncio.timeout(self._seconds):
                return await self._inbox.get()
        except TimeoutError:
            return None
        except Closed:
            raise StopAsyncIteration from None
