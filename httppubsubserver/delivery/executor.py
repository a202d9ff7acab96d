"""Durable deliveries on their way: claim, POST, settle.

    reservation = executor.reserve(targets)      # so many of them may start at once
    accepted = await store.accept(publication, now=now, terms=reservation.terms)
    executor.start(reservation, accepted, body)  # from memory; the rest is claimed when there is room

One task talks to the store, in cycles: it hands in what has been decided and takes what is due, as far as there is
room for it. Both share a transaction, and attempts go on meanwhile (attempts.py). What becomes of an attempt is
arithmetic (outcomes.py). Nothing is kept here that the store does not know: a crash is a lease that runs out.

| it wakes                                  | because                                            |
|-------------------------------------------|----------------------------------------------------|
| when an attempt is decided                | it has something to hand in, and a slot to fill    |
| when a notify has left deliveries behind  | they are due                                       |
| when the next one is due                  | retries and what is scheduled                      |
| every second or so                        | others write, too, and clocks are set              |
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from httppubsubclient.bodies import Body
from httppubsubclient.protocol.circuit import CircuitRules
from httppubsubclient.protocol.credentials import Credentials
from httppubsubclient.protocol.errors import PubSubError
from httppubsubclient.protocol.retry import backoff_delay
from httppubsubserver.config import ServerConfig
from httppubsubserver.delivery.answers import Answer, AttemptFailed
from httppubsubserver.delivery.attempts import Attempts
from httppubsubserver.delivery.endpoints import Endpoint, Endpoints
from httppubsubserver.delivery.outbound import Outbound
from httppubsubserver.delivery.outcomes import Outcomes
from httppubsubserver.delivery.webhooks import Webhooks
from httppubsubserver.delivery.work import Reservation, Work
from httppubsubserver.directory import Target
from httppubsubserver.escaping import shown_url
from httppubsubserver.stores.durable import Accepted, Claimed, DurableStore, Settlement, Terms

__all__ = ["Executor"]

_LOG = logging.getLogger("httppubsub.server.durable")

_POLL_SECONDS: Final = 1.0
_CLAIMED_AT_ONCE: Final = 256
_HANDED_IN_AT_ONCE: Final = 512
_LONGEST_PAUSE_SECONDS: Final = 5.0
_MICROSECONDS: Final = 1_000_000


class Executor:
    """Sees durable deliveries through. `holder` names this life of this process; `clock` gives Unix seconds."""

    def __init__(
        self,
        config: ServerConfig,
        credentials: Credentials,
        outbound: Outbound,
        store: DurableStore,
        webhooks: Webhooks,
        *,
        holder: str,
        clock: Callable[[], float],
        random: Callable[[], float],
    ) -> None:
        self._config = config
        self._store = store
        self._holder = holder
        self._clock = clock
        self._random = random
        self._loop = asyncio.get_running_loop()
        self._outcomes = Outcomes(clock=clock, random=random)
        rules = CircuitRules(limit=min(config.max_durable_in_flight_per_callback, config.max_durable_in_flight))
        self._endpoints = Endpoints(rules, clock=clock, random=random, slots=config.max_durable_in_flight)
        self._attempts = Attempts(
            config,
            outbound,
            store,
            self._endpoints,
            credentials,
            webhooks,
            clock=clock,
            decided=self._decided,
            returned=self._returned,
        )
        self._settlements: list[Settlement] = []
        self._releases: list[Claimed] = []
        self._errands: set[asyncio.Task[None]] = set()
        self._due_at: int | None = 0
        self._passed_over: set[str] = set()
        """Endpoints of which something may be due, and that are not looked at because enough of them is held."""
        self._passed_over_at = 0
        """The pressure (shares.py) under which others were passed over, whose URLs may not be known here."""
        self._look_at = 0.0
        """When to look what others have left (the event loop's time)."""
        self._awake = asyncio.Event()
        self._settled = asyncio.Event()
        self._cycling = asyncio.Lock()
        self._claiming = False
        self._draining = False
        self._closed = False
        self._troubles = 0
        self._task: asyncio.Task[None] | None = None

    # -- life -----------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Begin with what is due."""
        self._will_look_again()
        self._task = self._loop.create_task(self._run(), name="durable deliveries")

    def start_draining(self) -> None:
        """Begin nothing more, and give back what waits here; attempts under way are seen through."""
        self._draining = True
        self._attempts.start_draining()
        self._awake.set()

    async def drained(self) -> None:
        """Wait until no attempt is under way and the store knows of all that were."""
        while not self._closed and (self._claiming or self._attempts.running or self._settlements or self._releases):
            self._settled.clear()
            self._awake.set()
            await self._settled.wait()

    async def close(self) -> None:
        """End at once. Attempts under way are given up, and their leases too, if the store can be told."""
        self._draining = True
        if self._task is not None:
            # Not in the middle of a cycle: what a claim has leased would stay leased, and nobody would know of it.
            async with self._cycling:
                self._task.cancel()
            await asyncio.wait({self._task})
        await self._attempts.close()
        for errand in self._errands:
            errand.cancel()
        if self._errands:
            await asyncio.wait(set(self._errands))
        try:
            while self._settlements or self._releases:
                await self._hand_in()
        except PubSubError as error:
            _LOG.warning("some deliveries stay leased until their leases end: %s", error.detail)
            self._settlements.clear()
            self._releases.clear()
        self._closed = True
        self._settled.set()

    @property
    def running(self) -> int:
        """Attempts under way."""
        return self._attempts.running

    @property
    def bytes_in_memory(self) -> int:
        """Of the bodies that are held."""
        return self._attempts.bytes_in_memory

    # -- from a notify --------------------------------------------------------------------------------------------

    def reserve(self, targets: Sequence[Target]) -> Reservation:
        """Slots for the deliveries of one message, as far as there are any; `start` follows in any case."""
        taken, left = self._attempts.reserve(targets)
        until = self._now() + int(self._config.delivery_lease_seconds * _MICROSECONDS)
        return Reservation(Terms(self._holder, until, sum(taken.values()), 0, taken), taken, left)

    def start(
        self,
        reservation: Reservation,
        accepted: Accepted | None,
        body: Body,
        *,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        """Begin what was leased on the terms of the reservation. `accepted` is None when nothing was.

        `body` is that of the message and stays the caller's. `tell` gets, of each that begins here, what became of
        its attempt: the outcome of its `Settlement`, or `returned` or `lost`.
        """
        self._attempts.unreserve(reservation.taken)
        if accepted is not None:
            for claimed in accepted.leased:
                self._attempts.take(Work(claimed, _share(body), tell))
            if reservation.terms.at_most > len(accepted.leased):
                self.due()
            for url in reservation.left:
                self._left_behind(url)
        if not self._passed_over.isdisjoint(reservation.taken):
            self.due()  # what it was passed over for is taken no more
        self._look_again_if_eased()
        self._attempts.pump()
        if self._due_at is not None and self._due_at <= self._now():
            self._awake.set()  # there may be room for it again

    def _left_behind(self, url: str) -> None:
        """Something of this endpoint was accepted, and nothing asked for it. It is claimed as soon as it may be: while
        an endpoint is paused, or has its limit here, asking for every message would be in the way of accepting."""
        claimable_at = self._endpoints.claimable_at(url)
        if claimable_at is None:
            self._passed_over.add(url)
            self._note_pressure()
        else:
            self.due(int(claimable_at * _MICROSECONDS))

    def _note_pressure(self) -> None:
        """Somebody is passed over now, perhaps because of it."""
        self._passed_over_at = max(self._passed_over_at, self._endpoints.shares.pressure)

    def _look_again_if_eased(self) -> None:
        """Whoever was passed over because of the pressure is looked at when there is less of it."""
        if self._endpoints.shares.pressure < self._passed_over_at:
            self._passed_over_at = self._endpoints.shares.pressure
            self.due()

    def due(self, moment: int = 0) -> None:
        """Something may be claimed from this moment on (microseconds; 0: now)."""
        if self._due_at is None or moment < self._due_at:
            self._due_at = moment
            self._awake.set()

    async def resume(self, subscription_id: str, url: str) -> None:
        """A subscriber is back: what it is owed is due now, its schedule begins again, and a pause of its endpoint is
        over: a probe goes out.

        `url` is that of the endpoint. Raises `Unavailable`.
        """
        now = self._now()
        await self._store.block_endpoint(url, until=now, now=now)
        self._endpoints.end_pause(url)
        self.due()
        brought = await self._store.bring_forward(subscription_id, now=now)
        if brought:
            _LOG.info("%s is back: %d deliveries are due now", subscription_id, brought)
            self.due()

    # -- what becomes of an attempt -------------------------------------------------------------------------------

    def _decided(self, work: Work, outcome: Answer | AttemptFailed, ours: bool) -> None:
        settlement, shown, slowed = self._outcomes.decide(work, outcome, ours=ours)
        self._settlements.append(settlement)
        self._awake.set()
        if work.endpoint_url in self._passed_over:
            self.due()
        work.end(settlement.outcome)
        if shown != "unknown":
            endpoint = self._endpoints[work.endpoint_url]
            if shown == "works":
                until = self._endpoints.succeeded(endpoint)
            else:
                hanging = isinstance(outcome, AttemptFailed) and outcome.hanging
                until = self._endpoints.failed(endpoint, slowed, hanging=hanging)
            if until is not None:
                self._block(endpoint, until)
        self._look_again_if_eased()

    def _returned(self, work: Work) -> None:
        self._releases.append(work.claimed)
        self._awake.set()
        work.end("returned")
        self._look_again_if_eased()

    def _block(self, endpoint: Endpoint, until: float) -> None:
        """Let the store hold the endpoint back until then (Unix seconds), or no longer."""
        seconds = until - self._clock()
        endpoint.pause_is_written = False
        if seconds > 0:
            _LOG.warning("durable deliveries to %s pause for %.1f s", shown_url(endpoint.url), seconds)
            self._attempts.give_back(endpoint)
        errand = self._loop.create_task(self._write_down(endpoint, until))
        self._errands.add(errand)
        errand.add_done_callback(self._errands.discard)

    async def _write_down(self, endpoint: Endpoint, until: float) -> None:
        circuit = endpoint.circuit
        try:
            await self._store.block_endpoint(endpoint.url, until=int(until * _MICROSECONDS), now=self._now())
        except PubSubError as error:
            _LOG.warning("the pause of an endpoint was not written down: %s", error.detail)
        else:
            if endpoint.circuit is circuit:
                endpoint.pause_is_written = True
        self.due()

    # -- cycles with the store ------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            try:
                await self._sleep()
                async with self._cycling:
                    await self._cycle()
                self._troubles = 0
            except PubSubError as error:
                await self._back_off(error.detail)
            except Exception:
                _LOG.exception("durable deliveries met an unexpected error")
                await self._back_off("an unexpected error")

    async def _cycle(self) -> None:
        # Begun in the same turn of the event loop, they share a transaction.
        ended = await asyncio.gather(self._hand_in(), self._claim_what_is_due(), return_exceptions=True)
        for error in ended:
            if error is not None:
                raise error

    async def _sleep(self) -> None:
        """Until there is something to do; every second or so, look what others have left."""
        while not self._settlements and not self._releases:
            wait = self._look_at - self._loop.time()
            if self._due_at is not None and self._has_room:
                until_due = (self._due_at - self._now()) / _MICROSECONDS
                if until_due <= 0:
                    return
                wait = min(wait, until_due)
            if wait <= 0:
                await self._look_around()
                continue
            self._awake.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._awake.wait()
        if self._look_at <= self._loop.time():
            self.due()  # too busy for that: the claim looks, too

    async def _look_around(self) -> None:
        """Let the store say when the next one is due. What is told meanwhile counts as well."""
        self._will_look_again()
        if self._has_room:
            self._due_at = None
            self._note_pressure()
            endpoints = self._endpoints
            due_at = await self._store.next_due(endpoints.limits(), per_endpoint=endpoints.limit_of_others)
            if due_at is not None:
                self.due(due_at)

    def _will_look_again(self) -> None:
        self._look_at = self._loop.time() + _POLL_SECONDS * (0.5 + self._random())

    @property
    def _has_room(self) -> bool:
        return not self._draining and self._room > 0

    @property
    def _room(self) -> int:
        """What is claimed ahead keeps slots from waiting for the store."""
        return min(_CLAIMED_AT_ONCE, 2 * self._config.max_durable_in_flight - self._attempts.held)

    @property
    def _room_of_a_claim(self) -> int:
        """With room for the unproven no more than that: whose a claim takes is not known before."""
        room = self._endpoints.shares.room
        return min(self._room, room) if room > 0 else self._room

    async def _hand_in(self) -> None:
        """Tell the store what was decided. What it could not be told stays here."""
        settlements = self._settlements[:_HANDED_IN_AT_ONCE]
        releases = self._releases[:_HANDED_IN_AT_ONCE]
        if not settlements and not releases:
            return
        now = self._now()
        if settlements:
            in_time = await self._store.settle(settlements, now=now)
            del self._settlements[: len(settlements)]
            if not all(in_time):
                _LOG.info("%d deliveries had been taken over by another process", in_time.count(False))
            self._look_ahead(settlements)
        if releases:
            await self._store.release([each.held for each in releases], now=now)
            del self._releases[: len(releases)]
            self.due()
        self._settled.set()

    def _look_ahead(self, settlements: Sequence[Settlement]) -> None:
        """Settling makes others due: itself later, the next of an ordered subscription now."""
        moments = [each.due_at for each in settlements if each.outcome == "again"]
        if moments:
            self.due(min(moments))
        if any(each.held.ordered for each in settlements):
            self.due()

    async def _claim_what_is_due(self) -> None:
        now = self._now()
        if self._due_at is None or self._due_at > now or not self._has_room:
            return
        limits = self._endpoints.limits()
        terms = Terms(
            self._holder,
            now + int(self._config.delivery_lease_seconds * _MICROSECONDS),
            self._room_of_a_claim,
            self._endpoints.limit_of_others,
            limits,
        )
        self._passed_over_at = self._endpoints.shares.pressure
        self._passed_over = {url for url, limit in limits.items() if limit == 0}
        paused = self._endpoints.paused()
        self._due_at = None
        self._claiming = True
        self._will_look_again()
        try:
            claims = await self._store.claim(terms, now=now)
        except BaseException:
            self.due()
            raise
        finally:
            self._claiming = False
            self._settled.set()
        for claimed in claims.deliveries:
            message = claimed.message
            body = None
            if message.body is not None:
                body = Body(message.body, None, message.notification.size, message.notification.sha256)
            work = Work(claimed, body)
            self._attempts.take(work, let_through=work.endpoint_url in paused)
        self._attempts.pump()
        if claims.next_due_at is not None:
            self.due(claims.next_due_at)

    async def _back_off(self, why: str) -> None:
        self._troubles += 1
        pause = backoff_delay(self._troubles, self._random(), base_seconds=0.1, max_seconds=_LONGEST_PAUSE_SECONDS)
        if self._troubles == 1:
            _LOG.warning("durable deliveries wait for the database: %s", why)
        self._settled.set()
        self.due()
        await asyncio.sleep(pause)

    def _now(self) -> int:
        return int(self._clock() * _MICROSECONDS)


def _share(body: Body) -> Body | None:
    """None when there are too many open files: then it is read from the store when its turn comes."""
    try:
        return body.share()
    except OSError:
        return None
