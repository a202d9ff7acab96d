"""The client: publish to the broadcasters, subscribe to them, and be called back by them.

    async with HttpPubSubClient(config) as client:
        async with client.subscribe_glob("foo/*") as subscription:
            await client.notify(topic=b"foo/bar", data=b"Hello, world!")
            async for message in subscription:
                print(message.topic, message.text())

It stands on its own (`bind` with uvicorn), or inside a FastAPI app: `app.include_router(client.router,
prefix="/pubsub")` starts and stops it with the app. How a message travels: receiver.py verifies what a broadcaster
posts, registrations.py knows which subscriptions it is for, subscriptions.py holds it until it is consumed;
broadcasters.py makes the calls in the other direction.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Unpack

import httpx
from fastapi import APIRouter

from httppubsubclient.bodies import uncancelled
from httppubsubclient.broadcasters import Broadcasters, BroadcastersUnavailable
from httppubsubclient.buffer import Limits
from httppubsubclient.callbacks import Callback
from httppubsubclient.config import HttpPubSubConfig
from httppubsubclient.consenting import Consenting, add_consent, origins_of
from httppubsubclient.durable_calls import DurableSettings
from httppubsubclient.durable_inbox import DurableInbox
from httppubsubclient.durable_options import SubscribeKeywords, subscribe_options
from httppubsubclient.durable_registrations import DurableRegistrations
from httppubsubclient.inbox import Inbox
from httppubsubclient.listener import bound_socket, listener_tls, listening
from httppubsubclient.message import Message
from httppubsubclient.outgoing import Publishable, SyncFile
from httppubsubclient.protocol.errors import CallbackUnreachable, ConfigurationError
from httppubsubclient.protocol.messages import NotifyResult
from httppubsubclient.protocol.patterns import Pattern, PatternKind
from httppubsubclient.publishing import Moment, PublishOptions, cancel_scheduled, publish
from httppubsubclient.receiver import Receiver, ReceiverLimits, receiving_app, receiving_router
from httppubsubclient.registrations import Registrations
from httppubsubclient.remembered import Remembered
from httppubsubclient.subscriptions import Subscription
from httppubsubclient.tls import Identity
from httppubsubclient.webhooks import Agreements

__all__ = ["BroadcastersUnavailable", "Callback", "HttpPubSubClient", "Message", "NotifyResult", "Subscription"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Life:
    """What exists between entering and leaving."""

    broadcasters: Broadcasters
    registrations: Registrations | None
    """None without `host`: the client only publishes."""
    durable: DurableRegistrations | None
    resources: AsyncExitStack


class HttpPubSubClient:
    """Publishes and subscribes while it is entered. It may be entered several times, also at the same time: the first
    starts it, the last to leave stops it."""

    def __init__(self, config: HttpPubSubConfig, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        """`transport` carries the calls to the broadcasters instead of httpx's own: `httppubsubserver.FastTransport()`
        when there are many at once. Whom it trusts is its own affair; who made it closes it, after this client."""
        if not isinstance(config, HttpPubSubConfig):
            raise ConfigurationError(f"HttpPubSubClient takes a HttpPubSubConfig, not {type(config).__name__}")
        if transport is not None and not isinstance(transport, httpx.AsyncBaseTransport):
            raise ConfigurationError(f"transport is a httpx.AsyncBaseTransport, not {type(transport).__name__}")
        for name in ("broadcaster_ca_file", "broadcaster_client_certfile"):
            if transport is not None and getattr(config, name) is not None:
                raise ConfigurationError(
                    f"{name} says nothing to a transport of your own: "
                    "FastTransport(tls=ssl.create_default_context(cafile=...))"
                )
        self._config = config
        self._transport = transport
        self._limits = Limits(
            messages=config.buffer_messages,
            memory_bytes=config.buffer_bytes,
            spooled_bytes=config.buffer_spooled_bytes,
            spool_bytes=config.spool_bytes,
        )
        remember_file = None if config.remember_file is None else os.fspath(config.remember_file)
        self._remembered = Remembered(remember_file, config.remembered_message_ids)
        self._remembered_once = Remembered(
            None if remember_file is None else f"{remember_file}.once", config.remembered_message_ids
        )
        self._receiver = Receiver(
            config.receive_auth,
            config.fragment,
            ReceiverLimits(
                max_body_bytes=config.max_body_bytes,
                spool_bytes=config.spool_bytes,
                spool_directory=config.spool_path,
                body_idle_timeout_seconds=config.body_idle_timeout_seconds,
                signature_tolerance_seconds=config.signature_tolerance_seconds,
                max_remembered_nonces=config.max_remembered_nonces,
                max_webhook_bytes=config.max_webhook_bytes,
                ack_timeout_seconds=config.ack_timeout_seconds,
                buffer=self._limits,
            ),
            self._remembered_once,
        )
        self._router = receiving_router(self._receiver, self._lifespan)
        add_consent(self._router, self._consenting())
        self._callbacks: list[Callback] = []
        self._lasting: set[Callback] = set()
        self._entered = 0
        self._entering = asyncio.Lock()
        self._life: _Life | None = None

    # -- starting and stopping ----------------------------------------------------------------------------------

    @property
    def router(self) -> APIRouter:
        """`/v1/receive`, for an app of your own. Its lifespan enters this client, so that including it is all
        there is to do. Dependencies of `include_router` do not apply: deliveries are guarded by `receive_auth`."""
        return self._router

    @property
    def callback_url(self) -> str:
        """The URL that the broadcasters call, with the real port; known while the client is entered."""
        return self._running_registrations().url

    async def __aenter__(self) -> HttpPubSubClient:
        """Listen (if `bind` says so) and confirm the callbacks that were registered before."""
        async with self._entering:
            if self._entered == 0:
                await self._start()
            self._entered += 1
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Unsubscribe everything that is left, end all iterators, stop listening. Bounded in time."""
        async with self._entering:
            self._entered -= 1
            if self._entered == 0 and self._life is not None:
                life, self._life = self._life, None
                await life.resources.aclose()

    async def _start(self) -> None:
        config = self._config
        async with AsyncExitStack() as stack:
            broadcasters = await stack.enter_async_context(self._broadcasters())
            port = await self._bind(stack)
            registrations = durable = None
            if config.host is not None:
                for remembered in (self._remembered, self._remembered_once):
                    stack.callback(remembered.close)
                    await uncancelled(asyncio.to_thread(remembered.open))
                # Connections of their own: subscribing never queues behind notifies that wait for somebody slow.
                calls = await stack.enter_async_context(self._broadcasters())
                agreements = partial(Agreements, {})  # no two of this client's subscriptions share a secret
                registrations = Registrations(
                    calls,
                    config.callback_url(port),
                    lease_seconds=config.lease_seconds,
                    request_timeout_seconds=config.request_timeout_seconds,
                    leave_timeout_seconds=config.leave_timeout_seconds,
                    agreements=agreements(),
                )
                durable = DurableRegistrations(
                    calls, registrations.url, self._remembered, self._durable_settings(), agreements
                )
                self._receiver.registrations, self._receiver.durable = registrations, durable
                stack.callback(self._receive_nothing)
                registrations.open()
                stack.push_async_callback(registrations.close)
                stack.push_async_callback(durable.close)
            self._life = _Life(broadcasters, registrations, durable, stack)
            try:
                stack.push_async_callback(self._pause_callbacks)
                for callback in self._callbacks:
                    callback.start()
                await self._confirm_callbacks()
            except BaseException:
                self._life = None
                raise
            self._life = _Life(broadcasters, registrations, durable, stack.pop_all())

    def _receive_nothing(self) -> None:
        self._receiver.registrations = self._receiver.durable = None

    def _consenting(self) -> Consenting:
        receiver = self._receiver
        return Consenting(
            lambda: (receiver.registrations, receiver.durable),
            fragment=self._config.fragment,
            origins=origins_of(self._broadcaster_urls()),
        )

    def _durable_settings(self) -> DurableSettings:
        config = self._config
        return DurableSettings(
            lease_seconds=config.durable_lease_seconds,
            request_timeout_seconds=config.request_timeout_seconds,
            min_bytes_per_second=config.min_bytes_per_second,
            max_body_bytes=config.max_body_bytes,
            spool_bytes=config.spool_bytes,
            spool_directory=config.spool_path,
        )

    async def _confirm_callbacks(self) -> None:
        """Raises what is wrong with a callback. Broadcasters that are away are tried again in the background, and those
        that ask us for our consent while the application around us does not listen yet."""
        for failure in await asyncio.gather(*(callback.first_outcome() for callback in self._callbacks)):
            if failure is not None and not isinstance(failure, BroadcastersUnavailable | CallbackUnreachable):
                raise failure

    async def _bind(self, stack: AsyncExitStack) -> int | None:
        """Listen, or let the application do it; the port if it is ours."""
        bind = self._config.bind
        if bind is None:
            return None
        if bind["type"] == "manual":
            served = bind["callback"](self._router)
            if inspect.isawaitable(served):
                served = await served
            if isinstance(served, AbstractAsyncContextManager):
                await stack.enter_async_context(served)
            return None
        sock = bound_socket(bind["address"], bind["port"])
        stack.callback(sock.close)
        app = receiving_app(self._receiver, self._router, self._config.path)
        await stack.enter_async_context(listening(app, sock, listener_tls(bind)))
        return int(sock.getsockname()[1])

    async def _pause_callbacks(self) -> None:
        callbacks, self._callbacks = self._callbacks, [one for one in self._callbacks if one in self._lasting]
        await asyncio.gather(*(callback.pause() for callback in callbacks))

    def _broadcasters(self) -> Broadcasters:
        config = self._config
        return Broadcasters(
            self._broadcaster_urls(),
            config.send_auth,
            connect_timeout_seconds=config.connect_timeout_seconds,
            bearer_token=config.bearer_token,
            ca_file=None if config.broadcaster_ca_file is None else os.fspath(config.broadcaster_ca_file),
            identity=Identity.of(
                config.broadcaster_client_certfile,
                config.broadcaster_client_keyfile,
                "broadcaster_client_certfile",
                "broadcaster_client_keyfile",
            ),
            transport=self._transport,
        )

    def _broadcaster_urls(self) -> tuple[str, ...]:
        try:
            return self._config.broadcaster_urls()
        except ConfigurationError:
            return ()  # raised when one is needed

    def _lifespan(self, _app: Any) -> AbstractAsyncContextManager[None]:
        @asynccontextmanager
        async def entered() -> AsyncIterator[None]:
            async with self:
                yield

        return entered()

    def _running(self) -> _Life:
        if self._life is None:
            raise RuntimeError(
                "the client is not running: enter it with `async with client`, or include client.router in an app "
                "whose lifespan runs"
            )
        return self._life

    def _running_registrations(self) -> Registrations:
        registrations = self._running().registrations
        self._config.broadcaster_urls()
        if registrations is None:
            raise ConfigurationError(
                "subscribing needs HttpPubSubConfig(host='http://...'): the URL at which the broadcasters reach us"
            )
        return registrations

    def _running_durable(self) -> DurableRegistrations:
        registrations, durable = self._running_registrations(), self._running().durable
        assert durable is not None, "they come together"
        if not self._config.has_port_of_its_own:
            logger.warning(
                "host has port 0, so a restart changes %s: what is pending of its durable names will wait for whoever "
                "gets that port; give host a port of its own",
                registrations.url,
            )
        return durable

    # -- subscribing --------------------------------------------------------------------------------------------

    # All take the keywords of durable subscriptions: durable="worker-1", ordered=True, ack="processed" or "explicit",
    # retry_schedule_seconds=[0, 1, 5]. durable_options.py says what they mean; without a name it is best effort.
    # And secret="generate", format="cloudevents-structured": webhooks.py says what those mean.

    def subscribe_exact(self, topic: bytes, **options: Unpack[SubscribeKeywords]) -> Subscription:
        """A subscription to one topic. Raises `InvalidTopic`."""
        return self._subscription([Pattern.exact(topic)], options)

    def subscribe_glob(self, glob: str, **options: Unpack[SubscribeKeywords]) -> Subscription:
        """A subscription to the topics that match a glob (docs/protocol.md). Raises `InvalidGlob`."""
        return self._subscription([Pattern.glob(glob)], options)

    def subscribe_mqtt(self, topic_filter: str, **options: Unpack[SubscribeKeywords]) -> Subscription:
        """A subscription to the topics that match an MQTT 5.0 topic filter. Raises `InvalidGlob`."""
        return self._subscription([Pattern.mqtt(topic_filter)], options)

    def subscribe_multi(self, **options: Unpack[SubscribeKeywords]) -> Subscription:
        """A subscription to nothing yet: add patterns with its own `subscribe_exact`, `subscribe_glob` and
        `subscribe_mqtt` once it is entered. A message that several of them match arrives once."""
        return self._subscription([], options)

    def subscribe(
        self,
        *,
        exact: Iterable[bytes] = (),
        glob: Iterable[str] = (),
        mqtt: Iterable[str] = (),
        **options: Unpack[SubscribeKeywords],
    ) -> Subscription:
        """A subscription to several patterns at once, confirmed together; each message arrives once."""
        for name, patterns in (("exact", exact), ("glob", glob), ("mqtt", mqtt)):
            if isinstance(patterns, (bytes, str)):
                raise TypeError(f"{name} is a list: {name}=[{patterns!r}]")
        return self._subscription(
            [
                *(Pattern.exact(topic) for topic in exact),
                *(Pattern.glob(text) for text in glob),
                *(Pattern.mqtt(text) for text in mqtt),
            ],
            options,
        )

    def _subscription(self, patterns: Iterable[Pattern], keywords: SubscribeKeywords) -> Subscription:
        durable, asked = subscribe_options(**keywords)
        count = self._config.remembered_message_ids
        if durable is None:
            plain = Inbox(self._limits, remembered_message_ids=count, asked=asked)
            return Subscription(self._running_registrations, patterns, plain)
        inbox = DurableInbox(durable, self._limits, remembered_message_ids=count, asked=asked)
        return Subscription(lambda: self._running_durable().name(inbox.options.name), patterns, inbox)

    async def forget_durable(self, name: str) -> int:
        """Remove a durable name from the broadcaster: everything that is subscribed under it, with its backlog, in
        whatever life that was. Raises `RuntimeError` while a subscription of it is entered."""
        return await self._running_durable().forget(name)

    def on(
        self,
        pattern: bytes | str,
        function: Callable[[Message], Any] | None = None,
        *,
        kind: PatternKind | None = None,
        **options: Unpack[SubscribeKeywords],
    ) -> Callback:
        """Call a function, sync or async, with each message: `bytes` mean an exact topic, `str` a glob, or say
        `kind="mqtt"`. See callbacks.py for what to do with the result.

        Registered before the client is entered, a callback is confirmed on entering, each time; registered later, it
        ends when the client is left. Exceptions of the function are logged. It runs in the event loop: what blocks
        belongs into `asyncio.to_thread`. With a durable name and `ack="processed"` a message counts as received when
        the function has returned; when it raised, the message comes again as its schedule says.
        """
        if function is not None and not callable(function):
            raise TypeError(f"a callback is a function that takes a message, not {type(function).__name__}")
        subscribe_options(**options)
        acknowledges = options.get("ack") == "processed"
        if acknowledges:
            options["ack"] = "explicit"
        callback = Callback(
            _pattern(pattern, kind),
            function,
            subscribe=lambda wanted: self._subscription([wanted], options),
            is_running=lambda: self._life is not None,
            forget=self._forget_callback,
            leave_timeout_seconds=self._config.leave_timeout_seconds,
            acknowledges=acknowledges,
        )
        self._callbacks.append(callback)
        if self._life is None:
            self._lasting.add(callback)
        return callback

    def _forget_callback(self, callback: Callback) -> None:
        if callback in self._callbacks:
            self._callbacks.remove(callback)
        self._lasting.discard(callback)

    # -- publishing ---------------------------------------------------------------------------------------------

    async def notify(
        self,
        *,
        topic: bytes,
        data: Publishable | None = None,
        sync_file: SyncFile | None = None,
        content_type: str | None = None,
        idempotency_key: str | None = None,
        wait: float | None = None,
        respond_async: bool = False,
        traceparent: str | None = None,
        deliver_at: Moment | None = None,
        expires: Moment | None = None,
        after: Message | None = None,
    ) -> NotifyResult:
        """Publish one message and tell what became of it.

        The body is `data` (bytes, a file with an async `read`, an async iterator of bytes) or `sync_file`, read from
        its present position; a large one is never in memory. `content_type` is passed on to the subscribers.

        `wait`: the broadcaster answers after so many seconds at most, what is undecided counts as pending;
        `respond_async`: it answers as soon as it has the message (RFC 7240). With an `idempotency_key`, 1 to 255
        visible ASCII characters, the message is published once however often this is called with it, so a call whose
        outcome is unknown is tried again by itself; without one it raises `BroadcastersUnavailable`.

        For durable subscriptions: `deliver_at` schedules the message, which then goes to them only, and `expires` is
        when it is no longer worth sending, counted from when it is due. Both are a `datetime` with its time zone, or a
        `timedelta` or seconds from now.

        `after`: the message that this one is published because of. It counts through how many broadcasters that came,
        so that what goes round in a circle ends with `TooManyHops`; and without a `traceparent` it gives its own.
        """
        hops, followed = (None, None) if after is None else (after.hops, after.traceparent)
        options = PublishOptions(
            content_type,
            idempotency_key,
            wait,
            respond_async,
            followed if traceparent is None else traceparent,
            deliver_at,
            expires,
            hops,
        )
        return await publish(self._running().broadcasters, self._config, topic, data, sync_file, options)

    async def cancel_scheduled(self, message_id: str) -> int:
        """Call off a scheduled message (`NotifyResult.message_id`): how many deliveries will not be made. Those that
        have begun go on. Raises `NotFound`."""
        return await cancel_scheduled(self._running().broadcasters, self._config, message_id)


def _pattern(pattern: bytes | str, kind: PatternKind | None) -> Pattern:
    kind = kind or ("exact" if isinstance(pattern, bytes) else "glob")
    if kind == "exact" and isinstance(pattern, bytes):
        return Pattern.exact(pattern)
    if kind == "glob" and isinstance(pattern, str):
        return Pattern.glob(pattern)
    if kind == "mqtt" and isinstance(pattern, str):
        return Pattern.mqtt(pattern)
    raise TypeError(
        "a pattern is bytes for one exact topic, str for a glob, or str with kind='mqtt'; "
        f"got {type(pattern).__name__} with kind={kind!r}"
    )
