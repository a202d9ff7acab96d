"""What happens when subscriptions change: consent is asked for, secrets are made, the store is told, a line is written.

Whoever asks is an `owner`, as in `Store`; None is somebody to whom everything belongs. What he may ask for at all is
decided before (auth.py, subscribe_checks.py, callback_policy.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

from httppubsubclient.protocol.errors import NotFound, PubSubError
from httppubsubclient.protocol.messages import SubscribeRequest, Subscription
from httppubsubclient.protocol.patterns import Pattern
from httppubsubserver.audit import ENDED_BY_CALLBACK, By, audit_put, audit_removed
from httppubsubserver.background import Background
from httppubsubserver.consent import Consent
from httppubsubserver.delivery.executor import Executor
from httppubsubserver.directory import Target
from httppubsubserver.stores import Replaced, SecretsChange
from httppubsubserver.stores.durable import DurableStore
from httppubsubserver.upkeep import Upkeep

__all__ = ["Subscribing"]

_LOG = logging.getLogger("httppubsub.server")

_SLICE: Final = 100
"""Lines of the audit log that are written before others get a turn."""


class Subscribing:
    """Changes subscriptions. `required_secret` gives what is asked of the secrets of a callback URL where a request
    says nothing about them; `now` microseconds since 1970."""

    def __init__(
        self,
        store: DurableStore,
        consent: Consent,
        executor: Executor,
        upkeep: Upkeep,
        *,
        required_secret: Callable[[str], SecretsChange | None],
        background: Background,
        now: Callable[[], int],
    ) -> None:
        self._store = store
        self._consent = consent
        self._executor = executor
        self._upkeep = upkeep
        self._required_secret = required_secret
        self._background = background
        self._now = now

    async def subscribe(
        self,
        request: SubscribeRequest,
        *,
        resume: bool,
        owner: str | None,
        max_subscriptions: int | None,
        secrets: SecretsChange | None,
        by: By | None,
    ) -> tuple[Subscription, bool]:
        """See `Broadcaster.subscribe`."""
        renewals = await self._consent.to_subscribe(request, owner=owner, now=self._now())
        subscription, created = await self._store.subscribe(
            request,
            now=self._now(),
            owner=owner,
            max_subscriptions=max_subscriptions,
            secrets=secrets or self._required_secret(request.url),
        )
        by = by or By(owner)
        audit_put(subscription, by=by)
        await self._consent.check_renewed(renewals, [subscription], now=self._now(), by=by)
        if resume and subscription.delivery == "durable":
            # A new one too: its callback may have been held back because of others.
            endpoint_url = subscription.url.partition("#")[0]
            self._background.spawn(self._resume(subscription.id, endpoint_url))
        return subscription, created

    async def replace(
        self,
        url: str,
        requests: Sequence[SubscribeRequest],
        *,
        if_match: str | None,
        owner: str | None,
        max_subscriptions: int | None,
        secrets: Mapping[Pattern, SecretsChange] | None,
        by: By | None,
    ) -> tuple[tuple[Subscription, ...], str]:
        """See `Broadcaster.replace_subscriptions`."""
        renewals = await self._consent.to_replace(url, requests, if_match=if_match, owner=owner, now=self._now())
        changes = dict(secrets or {})
        required = self._required_secret(url)
        if required is not None:
            changes |= {request.pattern: required for request in requests if request.pattern not in changes}
        replaced = await self._store.replace(
            url,
            requests,
            if_match=if_match,
            now=self._now(),
            owner=owner,
            max_subscriptions=max_subscriptions,
            secrets=changes,
        )
        self._upkeep.wake()
        by = by or By(owner)
        # Whoever gives up waiting leaves no half of it unwritten.
        audited = self._background.spawn(_audit_replaced(replaced, by), cancelled_at_the_end=False)
        await asyncio.shield(audited)
        await self._consent.check_renewed(renewals, replaced.subscriptions, now=self._now(), by=by)
        return replaced.subscriptions, replaced.etag

    async def unsubscribe(self, subscription_id: str, *, owner: str | None, by: By | None) -> None:
        """See `Broadcaster.unsubscribe`."""
        await self._consent.to_unsubscribe(subscription_id, owner=owner, now=self._now())
        removed = await self._store.unsubscribe(subscription_id, now=self._now(), owner=owner)
        if removed is None:
            raise NotFound("there is no subscription with this id")
        self._upkeep.wake()
        audit_removed(removed, by=by or By(owner))

    async def forget(self, target: Target) -> None:
        """A subscriber answered 410. If somebody has renewed it meanwhile, that was about an earlier state."""
        try:
            removed = await self._store.unsubscribe(target.id, now=self._now(), expires_at=target.expires_at)
            if removed is not None:
                self._upkeep.wake()
                audit_removed(removed, by=ENDED_BY_CALLBACK)
        except PubSubError as error:
            _LOG.warning("%s answered 410 and could not be removed: %s", target.id, error.detail)

    async def _resume(self, subscription_id: str, endpoint_url: str) -> None:
        try:
            await self._executor.resume(subscription_id, endpoint_url)
        except PubSubError as error:
            _LOG.warning("what %s is owed could not be brought forward: %s", subscription_id, error.detail)


async def _audit_replaced(replaced: Replaced, by: By) -> None:
    """The same lines as if each had been subscribed or removed alone."""
    lines = [partial(audit_removed, one, by=by) for one in replaced.removed]
    lines += [partial(audit_put, one, by=by) for one in replaced.subscriptions]
    for written, line in enumerate(lines, 1):
        line()
        if written % _SLICE == 0:
            await asyncio.sleep(0)
