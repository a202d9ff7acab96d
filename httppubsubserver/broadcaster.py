"""The heart: subscribe, unsubscribe, notify. Read this first.

    async with Broadcaster(config) as broadcaster:
        await broadcaster.notify(b"foo/bar", b"data")

A notify (publishing.py) asks the directory which subscriptions match and hands the message to the dispatcher, which
delivers to all of them at once; the counts are the answer. On this path nothing is written to the database. Only when
durable subscriptions match, the message and what is owed of it are, before anything is answered (acceptance.py), and
the executor sees to their deliveries. The routes that make an HTTP API of it are in http_api.py; `router` mounts them
into any FastAPI application.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, AsyncExitStack
from functools import cached_property, partial
from types import TracebackType
from typing import TYPE_CHECKING, Self

from httppubsubclient.bodies import Body, BodyWriter
from httppubsubclient.protocol.credentials import Secrets
from httppubsubclient.protocol.errors import (
    ConfigurationError,
    InvalidRequest,
    NotFound,
    TooManyHops,
    Unavailable,
)
from httppubsubclient.protocol.messages import (
    DEFAULT_CONTENT_TYPE,
    Notification,
    NotifyResult,
    SubscribeRequest,
    Subscription,
    content_type_or_default,
    parse_traceparent,
)
from httppubsubclient.protocol.moments import NO_MOMENTS, MessageMoments
from httppubsubclient.protocol.patterns import Pattern
from httppubsubclient.protocol.topics import check_topic
from httppubsubserver.audit import OPERATOR, By, audit
from httppubsubserver.auth import Authenticator, check_jwt_settings, open_jwt_tokens
from httppubsubserver.background import Background
from httppubsubserver.callback_policy import CallbackPolicy
from httppubsubserver.config import ServerConfig, load_secrets
from httppubsubserver.consent import open_consent
from httppubsubserver.delivery.dispatcher import Dispatcher
from httppubsubserver.delivery.egress import Egress
from httppubsubserver.delivery.executor import Executor
from httppubsubserver.delivery.outbound import Outbound, client_certificate, open_outbound
from httppubsubserver.delivery.proxy import parse_proxy_url
from httppubsubserver.delivery.resolving import Resolver
from httppubsubserver.delivery.webhooks import Webhooks, event_identity
from httppubsubserver.directory import Directory
from httppubsubserver.idempotency import Once
from httppubsubserver.operations import Operations
from httppubsubserver.publishing import Publishing
from httppubsubserver.quotas import PublishQuotas
from httppubsubserver.randomness import random_bytes
from httppubsubserver.stores import Page, SecretsChange, open_store
from httppubsubserver.stores.durable import DurableStore
from httppubsubserver.subscribe_checks import SubscribeChecks
from httppubsubserver.subscribing import Subscribing
from httppubsubserver.subscription_secrets import SubscriptionSecrets, required_secret
from httppubsubserver.upkeep import Retention, Upkeep
from httppubsubserver.vault import open_vault

if TYPE_CHECKING:
    from fastapi import APIRouter

__all__ = ["Broadcaster"]

_LOG = logging.getLogger("httppubsub.server")

_ID_BYTES = 18  # a multiple of three: base64 without padding


class Broadcaster:
    """Keeps subscriptions and delivers messages to them, while it is entered as an async context manager.

    Entering again while it is open is counted: the store is opened and closed once. `secrets` stand in for the file
    that `config.secrets_file` names, `resolver` for the system's way to resolve the names of callbacks. `clock` gives
    Unix seconds, `uniform` random numbers in [0, 1).
    """

    def __init__(
        self,
        config: ServerConfig,
        *,
        secrets: Secrets | None = None,
        outbound: Outbound | None = None,
        resolver: Resolver | None = None,
        clock: Callable[[], float] = time.time,
        uniform: Callable[[], float] = random.random,
    ) -> None:
        self.config = config
        self._given_outbound = outbound
        self._clock = clock
        self._uniform = uniform
        self._secrets = secrets or _secrets_of(config)
        self.callbacks = CallbackPolicy(config, self._secrets.broadcasters)
        """Which callbacks may be registered."""
        self._proxy = None if config.egress_proxy is None else parse_proxy_url(config.egress_proxy)
        self._resolver = resolver
        self.egress: Egress
        """The way out to them; there while this is open."""
        check_jwt_settings(config, self._secrets.to_broadcasters)
        self.quotas = PublishQuotas()
        """How much each owner of keys publishes."""
        self.subscribe_checks = SubscribeChecks()
        """What each key may subscribe to."""
        self.subscription_secrets = SubscriptionSecrets(
            open_vault(config.storage_key_file), now=self.now, grace_seconds=config.secret_grace_seconds
        )
        """Makes what `subscribe` and `replace_subscriptions` take as `secrets`."""
        self._entered = 0
        self._entering = asyncio.Lock()
        self._stack = AsyncExitStack()
        self._draining = False
        self._background = Background()
        self._store: DurableStore | None = None
        self.authenticator: Authenticator
        self._directory: Directory
        self._dispatcher: Dispatcher
        self._executor: Executor
        self._publishing: Publishing
        self._subscribing: Subscribing
        self._upkeep: Upkeep
        self.operations: Operations
        """Looking at deliveries and sending them again; there while this is open."""

    @cached_property
    def router(self) -> APIRouter:
        """The HTTP API, for `app.include_router(broadcaster.router, prefix=...)`; its lifespan enters this object."""
        # The one import that points up: the surface promises the router on the broadcaster.
        from httppubsubserver.http_api import create_router

        return create_router(self)

    async def __aenter__(self) -> Self:
        async with self._entering:
            if self._entered == 0:
                await self._start()
            self._entered += 1
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        async with self._entering:
            self._entered -= 1
            if self._entered == 0:
                await self._stop()

    @property
    def store(self) -> DurableStore:
        """The store, while this is open. Raises `Unavailable`."""
        if self._store is None:
            raise Unavailable("the broadcaster is not running: enter it with `async with`, or start its application")
        return self._store

    # -- subscriptions ------------------------------------------------------------------------------------------

    async def subscribe(
        self,
        request: SubscribeRequest,
        *,
        resume: bool = False,
        owner: str | None = None,
        max_subscriptions: int | None = None,
        secrets: SecretsChange | None = None,
        by: By | None = None,
    ) -> tuple[Subscription, bool]:
        """Add a subscription, or renew the one with the same URL and pattern. True when it is new.

        Once this returns, every later notify sees it, in whichever process of the same database. With `resume` what
        a durable one is still owed is due now, with its schedule from the beginning. `owner` as in `Store`: who asks,
        None for somebody to whom everything belongs; `by` is what the audit log says of him.
        """
        _ = self.store  # raises when not open
        return await self._subscribing.subscribe(
            request, resume=resume, owner=owner, max_subscriptions=max_subscriptions, secrets=secrets, by=by
        )

    async def unsubscribe(self, subscription_id: str, *, owner: str | None = None, by: By | None = None) -> None:
        """Remove a subscription. Raises `NotFound`, and what `Consent` raises."""
        _ = self.store  # raises when not open
        await self._subscribing.unsubscribe(subscription_id, owner=owner, by=by)

    async def subscription(self, subscription_id: str, *, owner: str | None = None) -> Subscription:
        """One subscription. Raises `NotFound`."""
        found = await self.store.subscription(subscription_id, now=self.now(), owner=owner)
        if found is None:
            raise NotFound("there is no subscription with this id")
        return found

    async def subscriptions(
        self, *, url: str | None = None, cursor: str | None = None, limit: int = 100, owner: str | None = None
    ) -> Page:
        """A page of all subscriptions, or of those of one callback URL."""
        return await self.store.subscriptions(url=url, cursor=cursor, limit=limit, now=self.now(), owner=owner)

    async def etag(self, url: str, *, owner: str | None = None) -> str:
        """The ETag of a callback URL's set of subscriptions."""
        return await self.store.etag(url, now=self.now(), owner=owner)

    async def replace_subscriptions(
        self,
        url: str,
        requests: Sequence[SubscribeRequest],
        *,
        if_match: str | None = None,
        owner: str | None = None,
        max_subscriptions: int | None = None,
        secrets: Mapping[Pattern, SecretsChange] | None = None,
        by: By | None = None,
    ) -> tuple[tuple[Subscription, ...], str]:
        """Make `requests` the whole set of a callback URL; returns it with its ETag. Raises `PreconditionFailed`."""
        _ = self.store  # raises when not open
        return await self._subscribing.replace(
            url, requests, if_match=if_match, owner=owner, max_subscriptions=max_subscriptions, secrets=secrets, by=by
        )

    # -- notify ---------------------------------------------------------------------------------------------------

    async def notify(
        self,
        topic: bytes,
        data: bytes | Body,
        *,
        content_type: str = DEFAULT_CONTENT_TYPE,
        traceparent: str | None = None,
        wait_seconds: float | None = None,
        idempotency_key: str | None = None,
        moments: MessageMoments = NO_MOMENTS,
        hops: int = 0,
        owner: str | None = None,
    ) -> NotifyResult:
        """Deliver `data` to every subscription that `topic` matches and count the outcomes.

        For those that are durable it has reached the disk when this returns. Waits until every delivery is settled,
        or of a durable one the first attempt, at most `wait_seconds` (0: not at all); what is undecided then goes on
        and is counted as pending. A message that is scheduled (`moments`) is for durable subscriptions only. A `Body`
        belongs to this call, whatever comes of it. With an `idempotency_key` the message is sent once, and everybody
        who comes with the same key and the same message gets the same result. `hops`: how many broadcasters it
        has been through; `owner`: who publishes it, None for nobody in particular. Raises `InvalidTopic`,
        `InvalidRequest`, `TooManyHops`, `Conflict`, `Unavailable`: then nobody is owed anything, best effort may have
        begun.
        """
        if not isinstance(data, Body):
            if not isinstance(data, bytes | bytearray | memoryview):
                raise InvalidRequest(f"a message is bytes, not {type(data).__name__}: encode it first")
            data = Body.of(bytes(data))
        body = data
        try:
            self.check_accepting()
            self.check_hops(hops)
            notification = Notification(
                message_id=_new_id("msg_"),
                topic=check_topic(topic),
                content_type=content_type_or_default(content_type),
                sha256=body.sha256,
                size=body.size,
                traceparent=parse_traceparent(traceparent),
                hops=hops,
            )
        except BaseException:
            body.close()
            raise
        return await self._publishing.publish(notification, body, wait_seconds, moments, idempotency_key, owner)

    def body_writer(self, length: int | None = None) -> AbstractContextManager[BodyWriter]:
        """Where an arriving body is written: memory or a file, depending on its size and on what memory holds.

        What it may hold in memory counts as held while the context lasts; `length` is the size, if it is known.
        """
        return self._publishing.body_writer(length)

    # -- life -----------------------------------------------------------------------------------------------------

    def now(self) -> int:
        """Microseconds since 1970."""
        return int(self._clock() * 1_000_000)

    @property
    def draining(self) -> bool:
        """Nothing new is begun any more."""
        return self._draining

    def check_accepting(self) -> None:
        """Raises `Unavailable` while stopping, or when too much is under way."""
        _ = self.store  # raises when not open
        if self._draining:
            raise Unavailable("the broadcaster is shutting down", retry_after_seconds=1)
        if self._dispatcher.running >= self.config.max_pending_notifies:
            raise Unavailable("too many notifies are under way", retry_after_seconds=1)

    def check_hops(self, hops: int) -> None:
        """Raises `TooManyHops` for a message that goes round between broadcasters."""
        if hops >= self.config.max_hops:
            raise TooManyHops(
                f"this message has been through {hops} broadcasters already, and max_hops is {self.config.max_hops}: "
                "they subscribe to each other"
            )

    async def check_ready(self) -> None:
        """Raises `Unavailable` unless notifies can be taken and the store answers."""
        self.check_accepting()
        await self.store.version()

    def start_draining(self) -> None:
        """Take no new notifies; those under way finish, without further retries."""
        if self._store is not None and not self._draining:
            _LOG.info("draining: %d notifies under way", self._dispatcher.running)
            self._draining = True
            self._dispatcher.start_draining()
            self._executor.start_draining()

    async def drained(self) -> None:
        """Wait until nothing is under way any more."""
        while self._publishing.matching or self._dispatcher.running or self._background:
            await self._publishing.matched()
            await self._dispatcher.drained()
            await self._background.drained()
        await self._executor.drained()

    async def _start(self) -> None:
        async with AsyncExitStack() as stack:
            store = await stack.enter_async_context(open_store(self.config.db))
            self.egress = Egress(self.callbacks.addresses, resolver=self._resolver, proxy=self._proxy)
            stack.callback(self.egress.close)
            stack.callback(self.subscribe_checks.close)
            tokens = await open_jwt_tokens(self.config, clock=self._clock)
            if tokens is not None:
                stack.push_async_callback(tokens.close)
            outbound = self._given_outbound
            if outbound is None:
                outbound = await stack.enter_async_context(
                    open_outbound(
                        connections_per_origin=self.config.max_in_flight_per_host,
                        max_answer_bytes=self.config.max_answer_bytes,
                        ca_file=self.config.callback_ca_file,
                        step_seconds=self.config.attempt_timeout_seconds,
                        egress=self.egress,
                        certificate=client_certificate(self.config),
                    )
                )
            consent = await stack.enter_async_context(open_consent(self.config, store, self.egress, self._secrets))
            self._directory = Directory(store)
            webhooks = Webhooks(
                self.config,
                outbound,
                self._secrets.to_subscribers,
                self.subscription_secrets,
                identity=event_identity(self.config, self._secrets),
                clock=self._clock,
            )
            stack.push_async_callback(webhooks.close)
            self._dispatcher = Dispatcher(
                self.config,
                self._secrets.to_subscribers,
                outbound,
                webhooks,
                gone=lambda target: self._background.spawn(self._subscribing.forget(target)),
                clock=self._clock,
                random=self._uniform,
            )
            self._executor = Executor(
                self.config,
                self._secrets.to_subscribers,
                outbound,
                store,
                webhooks,
                holder=_new_id("run_"),
                clock=self._clock,
                random=self._uniform,
            )
            stack.push_async_callback(self._executor.close)
            once = Once(
                store,
                clock=self._clock,
                keep_seconds=self.config.idempotency_seconds,
                check_accepting=self.check_accepting,
                background=self._background.spawn,
            )
            self._publishing = Publishing(
                self.config,
                store,
                self._directory,
                self._dispatcher,
                self._executor,
                webhooks,
                once,
                background=self._background,
                now=self.now,
            )
            self.authenticator = Authenticator(
                self._secrets.to_broadcasters,
                store,
                tolerance_seconds=self.config.signature_tolerance_seconds,
                clock=self._clock,
                tokens=tokens,
            )
            await self._directory.refresh()
            self._executor.open()
            self._upkeep = Upkeep(
                store,
                Retention(
                    self.config.keep_bodies_seconds, self.config.keep_messages_seconds, self.config.max_stored_bytes
                ),
                now=self.now,
                uniform=self._uniform,
                due=self._executor.due,
            )
            self.operations = Operations(store, now=self.now, wake=self._upkeep.wake)
            to_subscribers, own_secrets = self._secrets.to_subscribers, self.subscription_secrets
            self._subscribing = Subscribing(
                store,
                consent,
                self._executor,
                self._upkeep,
                required_secret=partial(required_secret, self.config, to_subscribers, own_secrets),
                background=self._background,
                now=self.now,
            )
            stack.push_async_callback(_cancelled, asyncio.create_task(self._upkeep.run(), name="upkeep"))
            self._stack = stack.pop_all()
        self._draining = False
        for direction in ("to_broadcasters", "to_subscribers"):
            keys = getattr(self._secrets, direction).keys
            audit("keys_loaded", by=OPERATOR, direction=direction, keys=[key.id for key in keys])
        self._store = store
        _LOG.info("open with %d subscriptions", len(self._directory))

    async def _stop(self) -> None:
        self.start_draining()
        try:
            async with asyncio.timeout(self.config.shutdown_timeout_seconds):
                await self.drained()
        except TimeoutError:
            _LOG.warning("stopping with %d notifies unfinished", self._dispatcher.running)
            await self._dispatcher.abort()
            await self._background.abort()
            await self._executor.close()
            await self.drained()
        finally:
            self._store = None
            await self._stack.aclose()


def _new_id(prefix: str) -> str:
    return prefix + urlsafe_b64encode(random_bytes(_ID_BYTES)).decode("ascii")


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})


def _secrets_of(config: ServerConfig) -> Secrets:
    if config.secrets_file is None:
        raise ConfigurationError(
            "secrets_file is not set: make one with `httppubsubserver --setup` (its --to-broadcasters-auth and "
            "--to-subscribers-auth take `none` where nothing needs to be proven)"
        )
    return load_secrets(config.secrets_file)
