"""Nobody is called who has not agreed: which callbacks are asked, about what, and when.

`verify_callbacks` says which. With `public`, the default, it is those that may lie outside of the own networks:

| callback                                                                    | asked?                           |
|-----------------------------------------------------------------------------|----------------------------------|
| any, while `callback_networks` allows loopback and private addresses alone  | no                               |
| an address                                                                  | unless it is loopback or private |
| a name among `callback_hosts`, so known to the operator                     | unless all its addresses are     |
| any other name                                                              | yes: it can have another address |
|                                                                             | at the next delivery             |

Asked is once for each new (url, pattern), before it is stored: what fails leaves everything as it was. Whoever has a
subscription may renew it without being asked again; so nobody's silence ends what it once agreed to, but its 410 does.
That is so as long as it stays what it is: another delivery, order, schedule or format is agreed to like a new one.
A whole set is asked about pattern by pattern, `AT_ONCE` at a time. When that takes longer than one question may, the
call is answered 503 and what has been agreed to is remembered for `REMEMBERED_SECONDS`: the same call again goes on
from there. Then it is forgotten, since the subscription is what remembers. Calls that ask the same wait for one answer.

Who asks for unsubscribing need not be asked, having made the subscription. Where nothing has to be proven
(`to_broadcasters` of type `none`) that is not known, so that the callback is asked then, too, and before a renewal.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from ipaddress import ip_network
from typing import Final, TypeAlias

from httppubsubclient.protocol.addresses import AddressKind, address_kind, parse_address
from httppubsubclient.protocol.callback_urls import CallbackUrl, split_callback_url
from httppubsubclient.protocol.credentials import Secrets
from httppubsubclient.protocol.errors import CallbackRefused, CallbackUnreachable, PubSubError, Unavailable
from httppubsubclient.protocol.messages import SubscribeRequest, Subscription
from httppubsubclient.protocol.patterns import Pattern
from httppubsubserver.audit import By, audit_removed
from httppubsubserver.config import ServerConfig
from httppubsubserver.delivery.egress import Egress
from httppubsubserver.delivery.outbound import client_certificate, tls_context
from httppubsubserver.delivery.webhooks import event_identity
from httppubsubserver.question_limits import QuestionBudget
from httppubsubserver.stores import Store
from httppubsubserver.verification import Asker, Question

__all__ = ["AT_ONCE", "MAX_REMEMBERED", "REMEMBERED_SECONDS", "Consent", "names_strangers", "open_consent"]

AT_ONCE: Final = 8
"""Questions of one call."""
REMEMBERED_SECONDS: Final = 300.0
MAX_REMEMBERED: Final = 20_000

_OWN: Final = frozenset({AddressKind.LOOPBACK, AddressKind.UNSPECIFIED, AddressKind.PRIVATE, AddressKind.SHARED})
"""Addresses of one's own networks."""
_PAGE: Final = 1000


Renewals: TypeAlias = dict[Pattern, str]
"""What is there already, by its pattern, with its id."""


class Consent:
    """Asked before anything is stored; without it `Broadcaster.subscribe` does nothing."""

    def __init__(
        self,
        config: ServerConfig,
        store: Store,
        egress: Egress,
        ask: Callable[[Question], Awaitable[None]],
        *,
        proven: bool,
    ) -> None:
        """`proven`: whether those who subscribe have to prove who they are."""
        self._policy = config.verify_callbacks
        self._known_hosts = frozenset(host.lower().removesuffix(".") for host in config.callback_hosts)
        self._strangers = names_strangers(config.callback_networks)
        self._timeout_seconds = config.verification_timeout_seconds
        self._store = store
        self._egress = egress
        self._ask = ask
        self._proven = proven
        self._under_way: dict[Question, asyncio.Task[PubSubError | None]] = {}
        self._remembered: dict[bytes, float] = {}
        """What was agreed to, and until when that counts; the oldest first."""

    async def aclose(self) -> None:
        """Whoever waits is told to come again."""
        for task in self._under_way.values():
            task.cancel()
        if self._under_way:
            await asyncio.wait(set(self._under_way.values()))

    # -- before a change -----------------------------------------------------------------------------------------

    async def to_subscribe(self, request: SubscribeRequest, *, owner: str | None, now: int) -> Renewals:
        """Return when the callback agrees, unless that is a renewal.

        Raises `CallbackRefused`, `CallbackUnreachable`, `QuotaExceeded`, `Unavailable`, `InvalidRequest`.
        """
        callback = split_callback_url(request.url)
        if not await self._is_asked(callback):
            return {}
        questions, renewals = await self._new(callback, [request], owner, now)
        await self._asked(questions)
        return renewals

    async def to_replace(
        self, url: str, requests: Sequence[SubscribeRequest], *, if_match: str | None, owner: str | None, now: int
    ) -> Renewals:
        """Return when the callback agrees to what is new of its set, and to what goes, as far as it is asked that.
        Raises the same."""
        callback = split_callback_url(url)
        if not await self._is_asked(callback):
            return {}
        if if_match is not None and if_match != await self._store.etag(url, now=now, owner=owner):
            return {}  # nothing will change
        questions, renewals = await self._new(callback, requests, owner, now)
        if not self._proven:
            kept = {request.pattern for request in requests}
            gone = [one.pattern for one in await self._present(url, now) if one.pattern not in kept]
            questions += [Question(callback, "unsubscribe", pattern, None, owner) for pattern in gone]
        await self._asked(questions)
        return renewals

    async def check_renewed(
        self, renewals: Renewals, kept: Iterable[Subscription], *, now: int, by: By | None = None
    ) -> None:
        """What was to be renewed, and ended between that and now, was made anew without being asked about: it is
        removed. Otherwise a callback that answers 410 to somebody who renews without a pause would not be rid of him.
        Raises `CallbackRefused`."""
        anew = [one for one in kept if renewals.get(one.pattern, one.id) != one.id]
        for one in anew:
            if await self._store.unsubscribe(one.id, now=now):
                audit_removed(one, by=by or By(one.owner))
        if anew:
            raise CallbackRefused("the subscription ended while it was renewed: subscribe again")

    async def to_unsubscribe(self, subscription_id: str, *, owner: str | None, now: int) -> None:
        """Return when the subscription may be removed; also when there is none. Raises the same."""
        if self._proven:
            return
        found = await self._store.subscription(subscription_id, now=now, owner=owner)
        if found is None:
            return
        callback = split_callback_url(found.url)
        if await self._is_asked(callback):
            await self._asked([Question(callback, "unsubscribe", found.pattern, None, owner)])

    # -- who is asked --------------------------------------------------------------------------------------------

    async def _is_asked(self, callback: CallbackUrl) -> bool:
        if self._policy != "public" or not self._strangers:
            return self._policy == "always"
        if parse_address(callback.host) is None and callback.host not in self._known_hosts:
            return True
        try:
            addresses = await asyncio.wait_for(
                self._egress.resolve(callback.host, callback.port), self._timeout_seconds
            )
        except OSError:  # TimeoutError is one
            return True
        return not all(address_kind(address) in _OWN for address in addresses)

    async def _new(
        self, callback: CallbackUrl, requests: Sequence[SubscribeRequest], owner: str | None, now: int
    ) -> tuple[list[Question], Renewals]:
        wanted = {request.pattern: request for request in requests}
        present = await self._store.subscribed(callback.name, list(wanted), now=now)
        questions: dict[Question, None] = {}
        renewals: Renewals = {}
        for request, found in zip(wanted.values(), present, strict=True):
            if found is not None and self._is_renewal(found, request, owner):
                renewals[request.pattern] = found.id
            elif found is None or owner is None or found.owner in (None, owner):
                pattern: Pattern | None = None if request.handshake == "cloudevents" else request.pattern
                lease = (request.lease_seconds or None) if pattern is not None else None
                questions[Question(callback, "subscribe", pattern, lease, owner)] = None
            # What is somebody else's is refused by the store: nobody is asked about it.
        return list(questions), renewals

    def _is_renewal(self, found: Subscription, request: SubscribeRequest, owner: str | None) -> bool:
        # Who agreed to be sent events now and then has not agreed to be sent something else, or by another schedule.
        return self._proven and (owner is None or found.owner == owner) and found.options == request.options

    async def _present(self, url: str, now: int) -> list[Subscription]:
        found: list[Subscription] = []
        cursor: str | None = None
        while True:
            page = await self._store.subscriptions(url=url, cursor=cursor, limit=_PAGE, now=now)
            found += page.subscriptions
            if page.cursor is None:
                return found
            cursor = page.cursor

    # -- asking --------------------------------------------------------------------------------------------------

    async def _asked(self, questions: Sequence[Question]) -> None:
        if len(questions) == 1:
            await self._agrees(questions[0])
        elif questions:
            await self._agrees_to_all(questions)
        for question in questions:
            self._remembered.pop(_digest(question), None)

    async def _agrees_to_all(self, questions: Collection[Question]) -> None:
        left = iter(questions)
        fresh = 0

        async def ask_next() -> None:
            nonlocal fresh
            for question in left:
                fresh += await self._agrees(question)

        try:
            async with asyncio.timeout(self._timeout_seconds), asyncio.TaskGroup() as group:
                for _ in range(min(AT_ONCE, len(questions))):
                    group.create_task(ask_next())
        except TimeoutError:
            if not fresh:
                raise CallbackUnreachable(
                    f"the callback agreed to none of {len(questions)} patterns within {self._timeout_seconds:g} s"
                ) from None
            raise Unavailable(
                f"the callback was asked about {len(questions)} patterns and has not answered for all of them yet; the "
                "same request again goes on from there",
                retry_after_seconds=1,
            ) from None
        except ExceptionGroup as failures:
            raise _first(failures.exceptions) from None

    async def _agrees(self, question: Question) -> bool:
        """Whether it agreed now (not a little while ago). Raises why it does not."""
        until = self._remembered.get(_digest(question))
        if until is not None and until > asyncio.get_running_loop().time():
            return False
        task = self._under_way.get(question)
        if task is None:
            # A task of its own: whoever gives up waiting gives up nothing for the others, nor for itself later.
            task = asyncio.create_task(self._outcome(question))
            self._under_way[question] = task
            task.add_done_callback(lambda _: self._under_way.pop(question, None))
        try:
            failure = await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise Unavailable("the broadcaster is shutting down", retry_after_seconds=1) from None
            raise
        if failure is not None:
            # One of its own for each: whoever raises an exception hangs its traceback on it.
            raise copy.copy(failure)
        return True

    async def _outcome(self, question: Question) -> PubSubError | None:
        try:
            await self._ask(question)
        except PubSubError as error:
            return error
        now = asyncio.get_running_loop().time()
        while self._remembered:
            oldest, until = next(iter(self._remembered.items()))
            if until > now and len(self._remembered) < MAX_REMEMBERED:
                break
            del self._remembered[oldest]
        digest = _digest(question)
        self._remembered.pop(digest, None)
        self._remembered[digest] = now + REMEMBERED_SECONDS
        return None


@asynccontextmanager
async def open_consent(config: ServerConfig, store: Store, egress: Egress, secrets: Secrets) -> AsyncIterator[Consent]:
    """A `Consent` that asks over `egress`. Raises `ConfigurationError`."""
    asker = Asker(
        egress,
        lambda: tls_context(config.callback_ca_file, client_certificate(config)),
        budget=QuestionBudget(config.verifications_per_hour, now=lambda: time.monotonic_ns() // 1000),
        timeout_seconds=config.verification_timeout_seconds,
        origin=event_identity(config, secrets).origin,
    )
    consent = Consent(config, store, egress, asker.ask, proven=secrets.to_broadcasters.type != "none")
    try:
        yield consent
    finally:
        await consent.aclose()
        await asker.aclose()


def names_strangers(networks: Iterable[str]) -> bool:
    """Whether `callback_networks` allows anything but loopback and private addresses."""
    for entry in networks:
        if entry in ("loopback", "private"):
            continue
        if entry == "public":
            return True
        network = ip_network(entry, strict=False)
        if address_kind(network[0]) not in _OWN or address_kind(network[-1]) not in _OWN or network.prefixlen < 7:
            return True
    return False


def _first(failures: Sequence[Exception]) -> Exception:
    """The narrowest of several that came at once: the first that the callback itself has caused."""
    return next((one for one in failures if not isinstance(one, Unavailable)), failures[0])


def _digest(question: Question) -> bytes:
    return hashlib.blake2b(repr(question).encode(), digest_size=16).digest()
