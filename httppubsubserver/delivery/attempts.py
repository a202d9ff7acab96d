"""The durable attempts of this process: whose turn it is, and the POSTs under way.

What is claimed waits at its endpoint until it has a slot: of the endpoint's, as many as its circuit allows, and of
everybody's. Endpoints take turns. An attempt begins only while its lease outlasts it, and large bodies are read from
the store first.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final

from httppubsubclient.bodies import Body
from httppubsubclient.protocol.callback_urls import CallbackUrl, split_callback_url
from httppubsubclient.protocol.errors import InvalidUrl, NotFound, PubSubError, TooLarge
from httppubsubclient.protocol.keys import Credentials
from httppubsubserver.config import ServerConfig
from httppubsubserver.delivery.answers import Answer, AttemptFailed
from httppubsubserver.delivery.durable_heads import DurableHeads
from httppubsubserver.delivery.endpoints import Endpoint, Endpoints
from httppubsubserver.delivery.outbound import Outbound, Post
from httppubsubserver.delivery.proxy import ProxyFailed
from httppubsubserver.delivery.stored_bodies import StoredBodies
from httppubsubserver.delivery.turns import Turns
from httppubsubserver.delivery.webhook_heads import WITHHELD, NotMade, Parcel
from httppubsubserver.delivery.webhooks import Webhooks
from httppubsubserver.delivery.work import Work
from httppubsubserver.directory import Target
from httppubsubserver.stores.durable import Claimed, DurableStore
from httppubsubserver.subscription_secrets import withheld_from

__all__ = ["LEASE_MARGIN_SECONDS", "Attempts"]

_LOG = logging.getLogger("httppubsub.server.durable")

LEASE_MARGIN_SECONDS: Final = 5.0
"""An attempt begins only when its lease lasts so much longer than it may take."""

_TROUBLE_PAUSE_SECONDS: Final = 1.0
"""What cannot be prepared keeps its slot for so long: what is wrong passes, or others have no more luck."""

_PROXY_PAUSE_SECONDS: Final = 2.0
"""The same for what the egress proxy did not let out, which is true of everybody, or is found out by then."""

_NOTHING_LEFT: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""This machine has no room for another connection at present."""

_split = lru_cache(maxsize=1024)(split_callback_url)


class Attempts:
    """`decided` is told how an attempt ended (and whether it failed before anything was sent), `returned` of work that
    is given back. `clock` gives Unix seconds."""

    def __init__(
        self,
        config: ServerConfig,
        outbound: Outbound,
        store: DurableStore,
        endpoints: Endpoints,
        credentials: Credentials,
        webhooks: Webhooks,
        *,
        clock: Callable[[], float],
        decided: Callable[[Work, Answer | AttemptFailed, bool], None],
        returned: Callable[[Work], None],
    ) -> None:
        self._config = config
        self._outbound = outbound
        self._store = store
        self._endpoints = endpoints
        self._heads = DurableHeads(credentials, clock=clock)
        self._withheld = withheld_from(config, credentials)
        self._webhooks = webhooks
        self._clock = clock
        self._decided = decided
        self._returned = returned
        self._loop = asyncio.get_running_loop()
        self._bodies = StoredBodies(
            store, directory=None if config.spool_directory is None else str(config.spool_directory)
        )
        self._runnable = Turns(endpoints.shares)
        self._in_flight: dict[Work, None] = {}
        self._by_delivery: dict[tuple[int, str], Work] = {}
        """What waits and what is in flight."""
        self._preparing: set[asyncio.Task[None]] = set()
        self._draining = False
        self._pumping = False
        self.held = 0
        """Reserved, waiting for a slot, and in flight."""
        self.bytes_in_memory = 0

    @property
    def running(self) -> int:
        """Attempts under way."""
        return len(self._in_flight)

    # -- what comes in --------------------------------------------------------------------------------------------

    def reserve(self, targets: Sequence[Target]) -> tuple[dict[str, int], set[str]]:
        """Slots for the deliveries of one message, as far as there are any: how many, by the endpoint's URL, and the
        endpoints of those that got none."""
        shares = self._endpoints.shares
        taken: dict[str, int] = {}
        left: set[str] = set()
        for target in targets:
            url = target.callback.request_url
            if not self._has_slot(proven=url in shares.proven):
                left.add(url)
                continue
            endpoint = self._endpoints[url]
            if self._endpoints.may_reserve(endpoint):
                endpoint.reserved += 1
                self._hold(endpoint, 1)
                taken[url] = taken.get(url, 0) + 1
            else:
                left.add(url)
                self._endpoints.forget_idle(endpoint)
        return taken, left

    def _has_slot(self, *, proven: bool) -> bool:
        """Whether one more that a notify brings may have a slot kept for it."""
        shares = self._endpoints.shares
        free = self._config.max_durable_in_flight - self.held > 0
        # What the unproven have claimed ahead does not count for the slots that are kept back from them.
        kept_back = self.held - shares.held < shares.kept_back
        enough = free or kept_back if proven else free and shares.free_from_memory > 0
        return enough and not self._draining

    def _hold(self, endpoint: Endpoint, change: int) -> None:
        self.held += change
        self._endpoints.hold(endpoint, change)

    def unreserve(self, taken: dict[str, int]) -> None:
        """The opposite; `pump` follows."""
        for url, count in taken.items():
            endpoint = self._endpoints[url]
            endpoint.reserved -= count
            self._hold(endpoint, -count)
            self._endpoints.forget_idle(endpoint)

    def take(self, work: Work, *, let_through: bool = False) -> None:
        """A delivery whose lease is ours waits for its slot; `pump` follows.

        Its endpoint may be paused. Then it is returned: it was leased before the store knew of the pause; or, if
        `let_through`, the store knew, and somebody has ended the pause.
        """
        endpoint = self._endpoints[work.endpoint_url]
        known = self._by_delivery.setdefault(work.claimed.held[:2], work)
        if known is not work:
            # By the clock, which was set, our lease was over; the attempt goes on under the new one.
            known.claimed = work.claimed
            work.end("returned")
            return
        endpoint.ready.append(work)
        self._hold(endpoint, 1)
        self.bytes_in_memory += work.bytes_in_memory
        if self._endpoints.is_paused(endpoint):
            if not let_through:
                self.give_back(endpoint)
                return
            self._endpoints.let_through(endpoint)
        self._runnable.add(endpoint)

    def pump(self) -> None:
        """Begin attempts while there are free slots, one of each endpoint in turn."""
        if self._pumping:
            return
        self._pumping = True
        try:
            while self._runnable and len(self._in_flight) < self._config.max_durable_in_flight:
                endpoint = self._runnable.next()
                if endpoint is None:
                    break
                if endpoint.ready and not self._draining and self._endpoints.may_begin(endpoint):
                    self._begin(endpoint, endpoint.ready.popleft())
                    self._runnable.add(endpoint)
                elif self._draining or not endpoint.in_flight:
                    # Paused again, by a clock that was set: nothing that ends would bring its turn.
                    self.give_back(endpoint)
        finally:
            self._pumping = False

    def give_back(self, endpoint: Endpoint) -> None:
        """Return what waits for its turn, so that whoever may can have it."""
        while endpoint.ready:
            work = endpoint.ready.popleft()
            del self._by_delivery[work.claimed.held[:2]]
            self._hold(endpoint, -1)
            self.bytes_in_memory -= work.bytes_in_memory
            self._returned(work)
        self._runnable.remove_aside(endpoint)
        self._endpoints.forget_idle(endpoint)

    def start_draining(self) -> None:
        """Begin nothing more, and return what waits; attempts under way are seen through."""
        self._draining = True
        for endpoint in self._endpoints.all():
            self.give_back(endpoint)

    async def close(self) -> None:
        """Give up the attempts under way, and return them."""
        self.start_draining()
        for task in self._preparing:
            task.cancel()
        if self._preparing:
            await asyncio.wait(set(self._preparing))
        for work in list(self._in_flight):
            self._leave(work)
            self._returned(work)
        self._bodies.close()

    # -- one attempt ----------------------------------------------------------------------------------------------

    def _begin(self, endpoint: Endpoint, work: Work) -> None:
        self._endpoints.count_in_flight(endpoint, 1)
        self._in_flight[work] = None
        claimed = work.claimed
        seconds = self._seconds(work)
        lease_left = claimed.leased_until / 1_000_000 - self._clock()
        if work.body is None or lease_left < seconds + LEASE_MARGIN_SECONDS:
            task = self._loop.create_task(self._prepare(work))
            self._preparing.add(task)
            task.add_done_callback(self._preparing.discard)
        else:
            self._post(work)

    def _seconds(self, work: Work) -> float:
        """What an attempt may take."""
        size = work.claimed.message.notification.size
        return self._config.attempt_timeout_seconds + size / self._config.min_bytes_per_second

    async def _prepare(self, work: Work) -> None:
        """See that the lease lasts and that the body is there, then begin."""
        notification = work.claimed.message.notification
        try:
            if _is_webhook(work.claimed):
                self._webhooks.check_size(notification)  # before it is read for nothing
            ours = await self._extend(work)
            if ours and work.body is None:
                work.body = await self._bodies.open(notification)
                # Reading may have taken long.
                ours = await self._extend(work)
            if ours:
                self._post(work)
                return
            _LOG.info("the lease of a delivery to %s ended before it began", work.claimed.held.subscription_id)
        except NotMade as failure:
            self._end(work, failure, ours=True)
            return
        except (NotFound, TooLarge) as error:
            self._end(work, AttemptFailed(error.code, again=True), ours=True)
            return
        except Exception as error:
            # The fault is not the receiver's: no attempt is lost. What is returned comes at once, hence the pause.
            # Trouble of the database is in the log already, once.
            level = logging.INFO if isinstance(error, PubSubError) else logging.WARNING
            _LOG.log(level, "a delivery of %s could not be prepared: %r", notification.message_id, error)
            await asyncio.sleep(_TROUBLE_PAUSE_SECONDS)
        self._hand_back(work)

    async def _extend(self, work: Work) -> bool:
        """Let the lease last as long as reading the body from the store and sending it may take; False: it is lost."""
        claimed, now = work.claimed, self._clock()
        until = int((now + 2 * self._seconds(work) + LEASE_MARGIN_SECONDS) * 1_000_000)
        until = max(until, claimed.leased_until)
        [ours] = await self._store.extend([claimed.held], until=until, now=int(now * 1_000_000))
        return ours

    def _hand_back(self, work: Work) -> None:
        """It was not attempted."""
        if work not in self._in_flight:
            return  # given up meanwhile
        self._leave(work)
        self._returned(work)
        self._go_on(work)

    def _post(self, work: Work) -> None:
        claimed, body = work.claimed, work.body
        assert body is not None
        now = self._clock()
        expires_at = claimed.message.expires_at
        if expires_at is not None and expires_at <= now * 1_000_000:
            # Later, because this may be called by what that would begin again; the store knows what it means.
            self._loop.call_soon(self._hand_back, work)
            return
        try:
            callback = _split(claimed.url)
            if _is_webhook(claimed):
                work.began_at = int(now * 1_000_000)
                work.post = self._post_webhook(work, callback, body)
                return
            if self._withheld is not None and self._withheld(callback.host):
                # It may be given one before the next attempt.
                self._loop.call_soon(self._end, work, NotMade(WITHHELD), True)
                return
            head = self._heads.lines(claimed, callback.fragment)
        except (InvalidUrl, PubSubError) as error:
            # No key may be used now, or the URL is none: nothing that a receiver would take can be sent.
            self._loop.call_soon(self._end, work, AttemptFailed(error.code, again=True), True)
            return
        work.began_at = int(now * 1_000_000)
        work.post = self._outbound.post(
            callback,
            head,
            body,
            deadline=self._loop.time() + self._seconds(work),
            done=lambda outcome: self._answered(work, outcome),
            head_again=lambda: self._heads.lines(claimed, callback.fragment),
        )

    def _post_webhook(self, work: Work, callback: CallbackUrl, body: Body) -> Post:
        claimed = work.claimed
        parcel = Parcel(
            claimed.message.notification,
            claimed.held.subscription_id,
            callback.fragment,
            claimed.attempt,
            claimed.format,
            claimed.sealed,
            claimed.message.accepted_at,
            claimed.sequence,
            claimed.previous_message_id,
        )
        return self._webhooks.post(
            parcel,
            callback,
            body,
            deadline=self._loop.time() + self._seconds(work),
            done=lambda outcome: self._answered(work, outcome),
        )

    def _answered(self, work: Work, outcome: Answer | AttemptFailed) -> None:
        cause = outcome.__cause__ if isinstance(outcome, AttemptFailed) else None
        if isinstance(cause, OSError) and cause.errno in _NOTHING_LEFT:
            # Nothing was sent, so no attempt is lost, and the endpoint is not to blame.
            _LOG.warning("a delivery to %s has to wait: %s", work.claimed.held.subscription_id, cause.strerror)
            self._loop.call_later(_TROUBLE_PAUSE_SECONDS, self._hand_back, work)
        elif isinstance(outcome, ProxyFailed):
            self._loop.call_later(_PROXY_PAUSE_SECONDS, self._after_proxy, work, outcome)
        else:
            self._end(work, outcome, ours=isinstance(outcome, NotMade))

    def _after_proxy(self, work: Work, failure: ProxyFailed) -> None:
        """No attempt is lost, and the endpoint is not to blame, unless the proxy works for others."""
        if failure.excused():
            _LOG.info("a delivery to %s has to wait: %s", work.claimed.held.subscription_id, failure.why)
            self._hand_back(work)
        else:
            self._end(work, failure.of_receiver())

    def _end(self, work: Work, outcome: Answer | AttemptFailed, ours: bool = False) -> None:
        if work not in self._in_flight:
            return  # given up meanwhile
        self._leave(work)
        self._decided(work, outcome, ours)
        self._go_on(work)

    def _leave(self, work: Work) -> None:
        del self._in_flight[work]
        del self._by_delivery[work.claimed.held[:2]]
        endpoint = self._endpoints[work.endpoint_url]
        self._hold(endpoint, -1)
        self.bytes_in_memory -= work.bytes_in_memory
        self._endpoints.count_in_flight(endpoint, -1)

    def _go_on(self, work: Work) -> None:
        """Its slot is free for another one."""
        endpoint = self._endpoints[work.endpoint_url]
        self._runnable.add(endpoint)
        self._endpoints.forget_idle(endpoint)
        self.pump()


def _is_webhook(claimed: Claimed) -> bool:
    """Whether it needs anything but what all have."""
    return claimed.format != "raw" or claimed.sealed is not None
