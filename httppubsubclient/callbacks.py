"""`client.on("foo/*", fn)`: a subscription whose messages go to a function, one after the other, in order.

Three ways to use what `on` returns: leave it (the subscription is made in the background; a failure is logged, and
while no broadcaster can be reached, or none reaches us, it is tried again),
await it (it is confirmed now, or the failure is raised), or enter it with `async with` (which unsubscribes at the end).
Without a function it is a decorator.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
from collections.abc import Callable, Generator
from types import TracebackType
from typing import Any, TypeVar, cast

from httppubsubclient.broadcasters import BroadcastersUnavailable
from httppubsubclient.message import Message
from httppubsubclient.protocol.errors import CallbackUnreachable
from httppubsubclient.protocol.patterns import Pattern
from httppubsubclient.protocol.retry import backoff_delay
from httppubsubclient.subscriptions import Subscription

__all__ = ["Callback"]

logger = logging.getLogger(__name__)

_MAX_PAUSE_SECONDS = 30.0
"""Between two attempts to subscribe while no broadcaster can be reached."""

_AGAIN = (BroadcastersUnavailable, CallbackUnreachable)
"""What passes: while an application starts or its proxy does not know it yet, nobody answers a broadcaster that asks
for consent."""

F = TypeVar("F", bound=Callable[[Message], Any])


class Callback:
    """A function that is called with each message of a pattern. Made by `HttpPubSubClient.on`."""

    def __init__(
        self,
        pattern: Pattern,
        function: Callable[[Message], Any] | None,
        *,
        subscribe: Callable[[Pattern], Subscription],
        is_running: Callable[[], bool],
        forget: Callable[[Callback], None],
        leave_timeout_seconds: float,
        acknowledges: bool = False,
    ) -> None:
        """`acknowledges`: a message counts as received when the function has returned; when it raised, it comes
        again."""
        self._acknowledges = acknowledges
        self.pattern = pattern
        self._function = function
        self._subscribe = subscribe
        self._is_running = is_running
        self._forget = forget
        self._leave_timeout_seconds = leave_timeout_seconds
        self._subscription: Subscription | None = None
        self._task: asyncio.Task[None] | None = None
        self._confirmed: asyncio.Future[None] | None = None
        self._subscribed = False
        if function is not None and is_running():
            self.start()

    def __call__(self, function: F) -> F:
        """As a decorator: the function stays what it is."""
        if self._function is not None:
            raise TypeError("this callback has its function already")
        if not callable(function):
            raise TypeError(f"a callback is a function that takes a message, not {type(function).__name__}")
        self._function = function
        if self._is_running():
            self.start()
        return function

    def start(self) -> None:
        """Subscribe in the background. The client does this when it is entered."""
        if self._function is None:
            raise TypeError(f"client.on({self.pattern}) got no function: pass one, or use it as a decorator")
        if self._task is None:
            self._confirmed = asyncio.get_running_loop().create_future()
            self._subscription = self._subscribe(self.pattern)
            self._task = asyncio.create_task(
                self._run(self._subscription, self._confirmed, self._function), name=f"callback {self.pattern}"
            )

    async def confirmed(self) -> Callback:
        """Return once a broadcaster has confirmed the subscription, or raise why that failed."""
        if self._confirmed is None:
            if self._function is None:
                raise TypeError(f"client.on({self.pattern}) got no function: pass one, or use it as a decorator")
            raise RuntimeError("enter the client first: async with client")
        try:
            await asyncio.shield(self._confirmed)
        except _AGAIN:
            await self.stop()  # whoever waits for it decides what to do next
            raise
        return self

    async def first_outcome(self) -> Exception | None:
        """Why the first attempt to subscribe failed, None when it did not. Further attempts may be under way."""
        assert self._confirmed is not None, "it was started"
        await asyncio.wait({self._confirmed})
        return cast("Exception | None", self._confirmed.exception())

    async def stop(self) -> None:
        """Unsubscribe and end. The call that is running may finish, within `leave_timeout_seconds`. Idempotent."""
        self._forget(self)
        await self.pause()

    async def pause(self) -> None:
        """Like `stop`, but it starts again when the client is entered again."""
        task, subscription, confirmed = self._task, self._subscription, self._confirmed
        self._task = self._subscription = self._confirmed = None
        if task is None or subscription is None or confirmed is None:
            return
        if not self._subscribed:
            task.cancel()
        self._subscribed = False
        await subscription.leave()
        if task is asyncio.current_task():
            return  # stopped by its own function: the loop ends when that returns
        try:
            await self._end(task)
        finally:
            if not confirmed.done():
                confirmed.set_exception(RuntimeError(f"the callback for {self.pattern} was stopped"))
                confirmed.exception()  # nobody need be waiting

    async def _end(self, task: asyncio.Task[None]) -> None:
        _, running = await asyncio.wait({task}, timeout=self._leave_timeout_seconds)
        if running:
            logger.warning("the callback for %s did not return in time; it is cancelled", self.pattern)
            task.cancel()
            await asyncio.wait({task})

    async def _run(
        self, subscription: Subscription, confirmed: asyncio.Future[None], function: Callable[[Message], Any]
    ) -> None:
        failures = 0
        while True:
            try:
                await subscription.__aenter__()
                break
            except Exception as error:
                if not confirmed.done():
                    confirmed.set_exception(error)
                    confirmed.exception()  # it counts as seen: it is logged
                if not isinstance(error, _AGAIN):
                    logger.error("the callback for %s could not subscribe: %s", self.pattern, error)  # noqa: TRY400 - raised when awaited
                    return
                failures += 1
                pause = backoff_delay(
                    failures,
                    random.random(),  # noqa: S311 - spreads load, protects nothing
                    base_seconds=1.0,
                    max_seconds=_MAX_PAUSE_SECONDS,
                )
                logger.warning(
                    "the callback for %s is not subscribed yet; again in %.1f s: %s", self.pattern, pause, error
                )
                await asyncio.sleep(pause)
                subscription = self._subscription = self._subscribe(self.pattern)
        if failures:
            logger.warning("the callback for %s is subscribed now", self.pattern)
        if not confirmed.done():
            confirmed.set_result(None)
        self._subscribed = True
        try:
            async for message in subscription:
                done = await self._call(function, message)
                if self._acknowledges:
                    message.ack() if done else message.nack()
        finally:
            await subscription.leave()

    async def _call(self, function: Callable[[Message], Any], message: Message) -> bool:
        """Whether it returned."""
        try:
            result = function(message)
            if inspect.isawaitable(result):
                await result
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Something that the function waited for was cancelled, not this.
            logger.exception("the callback for %s failed on %r", self.pattern, message)
        except Exception:
            logger.exception("the callback for %s failed on %r", self.pattern, message)
        else:
            return True
        return False

    def __await__(self) -> Generator[Any, None, Callback]:
        return self.confirmed().__await__()

    async def __aenter__(self) -> Callback:
        return await self.confirmed()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()
