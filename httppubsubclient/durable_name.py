"""One durable name: what is subscribed under it, who gets what comes, and what was acknowledged.

What is subscribed belongs to the name, not to this process: it is added to by POST, one pattern each, and renewed by
POST while somebody here has entered it. Leaving takes nothing back, because the backlog is for whoever comes next;
only `remove` and `forget` do. So there is nothing to reconcile, and nothing is ever answered 410.

A delivery for a pattern that nobody has entered is answered 503 with Retry-After when nothing of the name is entered,
so that the broadcaster lets the name rest. It is answered 409 when other patterns of it are: that is a failed attempt
too, but says nothing about the name, whose other deliveries shall not wait for it.
Entering asks for what is pending at once ("resume").
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Collection, Iterable
from typing import Final

from httppubsubclient.bodies import Body
from httppubsubclient.broadcasters import BroadcastersUnavailable
from httppubsubclient.continuity import Continuity, catch_up
from httppubsubclient.durable_calls import DurableCalls
from httppubsubclient.durable_inbox import DurableInbox
from httppubsubclient.protocol.errors import InvalidRequest, NotEntered, PubSubError, Unavailable
from httppubsubclient.protocol.messages import Delivery
from httppubsubclient.protocol.options import DeliveryOptions
from httppubsubclient.protocol.patterns import Pattern
from httppubsubclient.protocol.retry import backoff_delay
from httppubsubclient.registrations import MAX_PATTERNS, UNDECIDED_SECONDS, without_effect
from httppubsubclient.remembered import Remembered
from httppubsubclient.webhooks import Agreements, Rotation, Terms

__all__ = ["AWAY_RETRY_SECONDS", "DurableName"]

logger = logging.getLogger(__name__)

AWAY_RETRY_SECONDS: Final = 5.0
"""What a delivery for a name that nobody has entered is put off by; the broadcaster makes longer pauses by itself."""

_RENEW_AT = 1 / 3
_MAX_RENEWAL_PAUSE_SECONDS: Final = 60.0
_CALLS_AT_ONCE: Final = 16


class DurableName:
    """The subscriptions of one name. `open` it, then `add` and `leave`, then `close` it."""

    def __init__(
        self,
        name: str,
        calls: DurableCalls,
        remembered: Remembered,
        *,
        request_timeout_seconds: float,
        agreements: Agreements | None = None,
    ) -> None:
        self.name = name
        self._calls = calls
        self._remembered = remembered
        self._request_timeout_seconds = request_timeout_seconds
        self._continuity = Continuity(name)
        self._agreements = agreements or Agreements()

        self._wanted: dict[Pattern, dict[DurableInbox, None]] = {}
        self._options: dict[Pattern, DeliveryOptions] = {}
        self._shown_patterns: dict[DurableInbox, dict[Pattern, str]] = {}
        self._entering: set[tuple[Pattern, DurableInbox]] = set()
        self._removing: set[Pattern] = set()
        self._ids: dict[Pattern, str] = {}
        self._patterns_by_id: dict[str, Pattern] = {}

        self._lock = asyncio.Lock()
        self._undecided_calls = 0
        self._decided = asyncio.Event()

        self._renew_at: float | None = None
        self._wake = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Start renewing."""
        self._keeper = asyncio.create_task(self._keep(), name=f"renew subscriptions of {self.name}")

    async def close(self) -> None:
        """End every subscription, here only: what is subscribed stays at the broadcaster."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait({self._keeper})
        for inbox in list(self._shown_patterns):
            inbox.close()
        for pattern in self._wanted:
            self._agreements.forget(pattern)
        self._wanted.clear()
        self._shown_patterns.clear()

    # -- subscribing (subscriptions.Registry) ------------------------------------------------------------------------

    async def add(self, patterns: Collection[Pattern], inbox: DurableInbox) -> None:
        """Subscribe `inbox`; returns when a broadcaster has confirmed each pattern. When it raises, `inbox` gets
        nothing, but the broadcaster may keep what it has confirmed."""
        inbox.memory = self
        if not patterns:
            return
        self._check(patterns, inbox.options.delivery)
        self._agreements.agree(patterns, inbox.asked, self._wanted)
        shown = self._shown_patterns.setdefault(inbox, {})
        new = [pattern for pattern in patterns if pattern not in shown]
        for pattern in new:
            shown[pattern] = str(pattern)
            self._wanted.setdefault(pattern, {})[inbox] = None
            self._options[pattern] = inbox.options.delivery
        # Until all are confirmed nothing is accepted for them: it would be lost if this failed.
        entering = {(pattern, inbox) for pattern in new}
        self._entering |= entering
        try:
            async with self._calling() as deadline:
                # Somebody else may have had it confirmed meanwhile.
                await self._post([pattern for pattern in new if pattern not in self._ids], deadline, resume=True)
            self._check_wanted(patterns, inbox)
        except BaseException:
            self._drop(new, inbox)
            raise
        finally:
            self._entering -= entering

    async def leave(self, patterns: Collection[Pattern], inbox: DurableInbox) -> None:
        """Let `inbox` get nothing more. What is subscribed stays at the broadcaster, with its backlog."""
        self._drop(patterns, inbox)

    async def remove(self, patterns: Collection[Pattern], inbox: DurableInbox) -> None:
        """Unsubscribe, at the broadcaster too when nobody else here has the pattern; its backlog is given up. When it
        raises, what could not be removed is as it was."""
        async with self._calling() as deadline:
            for pattern in patterns:
                subscription_id = self._ids.get(pattern)
                if subscription_id is not None and self._wanted.get(pattern, {}).keys() == {inbox}:
                    self._removing.add(pattern)
                    try:
                        await self._calls.unsubscribe(subscription_id, deadline)
                    finally:
                        self._removing.discard(pattern)
                    self._continuity.forget(subscription_id)
                self._drop([pattern], inbox)

    async def rotate(self, patterns: Collection[Pattern], rotation: Rotation) -> None:
        """Change the secrets of these patterns. When it raises `BroadcastersUnavailable` and may have been processed,
        the new ones stand and are told again with the next renewal; after any other error the old ones stand."""
        async with self._calling() as deadline:
            for pattern in patterns:
                take_back = self._agreements.rotate(pattern, rotation)
                try:
                    await self._post_one(pattern, deadline, resume=False)
                except BaseException as error:
                    if isinstance(error, PubSubError) and without_effect(error):
                        take_back()
                    else:
                        self._renew_at = asyncio.get_running_loop().time()
                        self._wake.set()
                    raise

    def terms(self, pattern: Pattern) -> Terms:
        """How the deliveries of a pattern come, and what proves them."""
        return self._agreements.of(pattern)

    async def forget(self) -> int:
        """Remove everything that is subscribed under this name, whoever subscribed it, with its backlog; how many
        subscriptions there were."""
        if self._wanted:
            raise RuntimeError(f"{self.name!r} is in use here: leave its subscriptions first")
        async with self._calling() as deadline:
            return await self._calls.unsubscribe_all(deadline)

    # -- consent (consenting) ----------------------------------------------------------------------------------------

    def wants(self, pattern: Pattern) -> bool:
        """Whether somebody here has entered this pattern, or is entering it."""
        return bool(self._wanted.get(pattern))

    def expects_handshake(self) -> bool:
        """Whether a broadcaster may ask by `OPTIONS` at this moment: we told it to, and a call of ours is under way."""
        return self._undecided_calls > 0 and self._agreements.ask_for_handshake()

    def gives_up(self, pattern: Pattern) -> bool:
        """Whether this pattern is being removed at the broadcaster, by us."""
        return pattern in self._removing

    # -- deliveries (receiver) ---------------------------------------------------------------------------------------

    async def members(self, subscription_id: str, *, proven: bool = True) -> tuple[Pattern, list[DurableInbox]]:
        """Who gets the deliveries of a subscription. Raises `NotEntered` when nobody has entered it, but others of this
        name; `Unavailable` when nothing of the name is entered, or that is not certain yet."""
        end = asyncio.get_running_loop().time() + UNDECIDED_SECONDS
        while True:
            pattern = self._patterns_by_id.get(subscription_id)
            if pattern is not None and (inboxes := self.takers(pattern)):
                return pattern, inboxes
            if not self._undecided_calls:
                if self._wanted:
                    raise NotEntered(f"{self.name!r} has not entered this subscription at present, but others")
                raise Unavailable(f"{self.name!r} is away", retry_after_seconds=AWAY_RETRY_SECONDS)
            try:
                async with asyncio.timeout_at(end):
                    await self._decided.wait()
            except TimeoutError:
                raise Unavailable(
                    "whether this subscription is entered is being settled", retry_after_seconds=1
                ) from None

    def arrived(self, delivery: Delivery) -> None:
        """A delivery was accepted, now or before."""
        self._continuity.arrived(delivery)

    # -- what was acknowledged (durable_inbox.Memory) ----------------------------------------------------------------

    def seen(self, inbox: DurableInbox, message_id: str) -> bool:
        """Whether the message was acknowledged for any of the patterns that this inbox has."""
        shown = self._shown_patterns.get(inbox, {})
        return any(self._remembered.has(self.name, pattern, message_id) for pattern in shown.values())

    def acknowledged(self, pattern: Pattern, message_id: str) -> None:
        """One has acknowledged a message; it is remembered when nobody owes that any more."""
        if not any(inbox.owes(message_id) for inbox in self._wanted.get(pattern, ())):
            self._remembered.add(self.name, str(pattern), message_id)

    # -- continuity --------------------------------------------------------------------------------------------------

    def missing(self, patterns: Iterable[Pattern]) -> dict[Pattern, tuple[range, ...]]:
        """The numbers that were jumped and have not come, for patterns that have such."""
        found = {pattern: self._continuity.missing(self._ids.get(pattern, "")) for pattern in patterns}
        return {pattern: numbers for pattern, numbers in found.items() if numbers}

    def restarted(self, patterns: Iterable[Pattern]) -> bool:
        """Whether the numbers of one of them did not continue those before."""
        return any(self._continuity.restarted(self._ids.get(pattern, "")) for pattern in patterns)

    async def catch_up(self, pattern: Pattern, after: int | None) -> bool:
        """Ask for everything after a number, by default after what is complete; whether nothing is missing then."""
        subscription_id = self._ids.get(pattern)
        if after is None and subscription_id is not None:
            after = self._continuity.complete_to(subscription_id)
        if subscription_id is None or after is None:
            return False  # it was left meanwhile, or there is nothing to count from
        taker = _Taker(self, pattern)
        through, complete = await catch_up(subscription_id, after, taker, page=self._calls.page, body=self._calls.body)
        self._continuity.caught_up(subscription_id, through)
        return complete

    def takers(self, pattern: Pattern) -> list[DurableInbox]:
        """Who has this pattern now."""
        return [inbox for inbox in self._wanted.get(pattern, ()) if (pattern, inbox) not in self._entering]

    # -- calls -------------------------------------------------------------------------------------------------------

    def _check(self, patterns: Collection[Pattern], options: DeliveryOptions) -> None:
        if len(self._wanted.keys() | set(patterns)) > MAX_PATTERNS:
            raise InvalidRequest(f"one name has {MAX_PATTERNS} patterns at most; a glob may stand for many")
        for pattern in patterns:
            if self._wanted.get(pattern) and self._options[pattern] != options:
                raise InvalidRequest(
                    f"{pattern} of {self.name!r} is entered with another `ordered` or `retry_schedule_seconds`"
                )

    def _check_wanted(self, patterns: Iterable[Pattern], inbox: DurableInbox) -> None:
        if any(inbox not in self._wanted.get(pattern, {}) for pattern in patterns):
            raise Unavailable("the client was left while it subscribed")

    def _drop(self, patterns: Iterable[Pattern], inbox: DurableInbox) -> None:
        shown = self._shown_patterns.get(inbox, {})
        for pattern in list(patterns):
            shown.pop(pattern, None)
            inboxes = self._wanted.get(pattern)
            if inboxes is not None:
                inboxes.pop(inbox, None)
                if not inboxes:
                    del self._wanted[pattern]
                    self._agreements.forget(pattern)
                    self._options.pop(pattern, None)
                    self._patterns_by_id.pop(self._ids.pop(pattern, ""), None)
        if not shown:
            self._shown_patterns.pop(inbox, None)

    @contextlib.asynccontextmanager
    async def _calling(self) -> AsyncIterator[float]:
        """One at a time; gives the deadline. Deliveries wait meanwhile: the broadcaster may be faster than its
        answer."""
        seconds = self._request_timeout_seconds
        deadline = asyncio.get_running_loop().time() + seconds
        self._undecided_calls += 1
        try:
            try:
                async with asyncio.timeout_at(deadline):
                    await self._lock.acquire()
            except TimeoutError:
                raise BroadcastersUnavailable(
                    f"earlier calls for {self.name!r} took all of {seconds:.3g} s", answers={}, maybe_processed=False
                ) from None
            try:
                yield deadline
            finally:
                self._lock.release()
        finally:
            self._undecided_calls -= 1
            self._decided.set()
            self._decided = asyncio.Event()

    async def _post(self, patterns: Collection[Pattern], deadline: float, *, resume: bool) -> None:
        turn = asyncio.Semaphore(_CALLS_AT_ONCE)

        async def post(pattern: Pattern) -> None:
            async with turn:
                await self._post_one(pattern, deadline, resume=resume)

        try:
            async with asyncio.TaskGroup() as group:
                for pattern in patterns:
                    group.create_task(post(pattern))
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _post_one(self, pattern: Pattern, deadline: float, *, resume: bool) -> None:
        options = self._options.get(pattern)
        if options is None:
            return  # it was left meanwhile
        terms = self.terms(pattern)
        kept, is_new = await self._calls.subscribe(pattern, options, terms, deadline, resume=resume)
        known = self._ids.get(pattern)
        if pattern not in self._wanted or (known is None and not resume):
            return  # it was left meanwhile; whoever has come for it since asks for its backlog
        if self.terms(pattern) is terms:
            self._agreements.confirm(kept)
        if known is not None and known != kept.id:
            logger.warning(
                "%s of %r had been forgotten by the broadcaster: messages may be missing", pattern, self.name
            )
            self._patterns_by_id.pop(known, None)
            self._continuity.forget(known)
        self._ids[pattern] = kept.id
        self._patterns_by_id[kept.id] = pattern
        self._continuity.begin(kept.id, is_new=is_new)
        self._note_lease(kept.lease_seconds)

    # -- renewing ----------------------------------------------------------------------------------------------------

    def _note_lease(self, lease_seconds: int) -> None:
        """Renew at a third of the shortest lease that was granted, a little earlier in some processes than in
        others."""
        if not lease_seconds:
            return  # permanent
        early = random.uniform(0.9, 1.0)  # noqa: S311 - spreads load, protects nothing
        renew_at = asyncio.get_running_loop().time() + lease_seconds * _RENEW_AT * early
        self._renew_at = renew_at if self._renew_at is None else min(self._renew_at, renew_at)
        self._wake.set()

    async def _keep(self) -> None:
        failures = 0
        while True:
            self._wake.clear()
            try:
                async with asyncio.timeout_at(self._renew_at):
                    await self._wake.wait()
                continue  # something was subscribed: it may be due at another time now
            except TimeoutError:
                self._renew_at = None
            try:
                async with self._calling() as deadline:
                    await self._post(list(self._ids), deadline, resume=False)
                failures = 0
            except PubSubError as error:
                failures += 1
                pause = backoff_delay(
                    failures,
                    random.random(),  # noqa: S311 - spreads load, protects nothing
                    base_seconds=1.0,
                    max_seconds=_MAX_RENEWAL_PAUSE_SECONDS,
                )
                self._renew_at = asyncio.get_running_loop().time() + pause
                logger.warning("renewing the subscriptions of %r failed; again in %.1f s: %s", self.name, pause, error)
            except Exception:
                self._renew_at = asyncio.get_running_loop().time() + _MAX_RENEWAL_PAUSE_SECONDS
                logger.exception("renewing the subscriptions of %r failed", self.name)


class _Taker:
    """Gives what is caught up on to all who have a pattern."""

    def __init__(self, name: DurableName, pattern: Pattern) -> None:
        self._name = name
        self._pattern = pattern

    def lacks(self, message_id: str) -> bool:
        return any(not inbox.has(message_id) for inbox in self._name.takers(self._pattern))

    def take(self, delivery: Delivery, body: Body) -> bool:
        taken = [inbox.offer(delivery, self._pattern, body) for inbox in self._name.takers(self._pattern)]
        return all(taken)

    def arrived(self, delivery: Delivery) -> None:
        self._name.arrived(delivery)
