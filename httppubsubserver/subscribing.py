"""What happens when subscriptions change: consent is asked for, secrets are made, the store is told, a line is written.

Whoever asks is an `owner`, as in `Store`; None is somebody to whom everything belongs. What he may ask for at all is
decided before (auth.py, subscribe_checks.py, callback_policy.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from httppubsubclient.protocol.errors import NotFound, PubSubError
from httppubsubclient.protocol.messages import SubscribeRequest, Subscription, format_time
from httppubsubclient.protocol.patterns import Pattern
from httppubsubserver.audit import audit
from httppubsubserver.background import Background
from httppubsubserver.consent import Consent
from httppubsubserver.delivery.executor import Executor
from httppubsubserver.directory import Target
from httppubsubserver.escaping import shown_url
from httppubsubserver.stores import SecretsChange
from httppubsubserver.stores.durable import DurableStore
from httppubsubserver.upkeep import Upkeep

__all__ = ["Subscribing"]

_LOG = logging.getLogger("httppubsub.server")

_AUDITED_IDS: Final = 100
"""How many subscriptions of a replaced set are named in the audit line."""


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
        await self._consent.check_renewed(renewals, [subscription], now=self._now())
        if created:
            audit("subscribed", by=owner, **_audited(subscription))
        if secrets is not None:
            audit("secret_given", by=owner, **_audited(subscription))
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
    ) -> tuple[tuple[Subscription, ...], str]:
        """See `Broadcaster.replace_subscriptions`."""
        renewals = await self._consent.to_replace(url, requests, if_match=if_match, owner=owner, now=self._now())
        changes = dict(secrets or {})
        required = self._required_secret(url)
        if required is not None:
            changes |= {request.pattern: required for request in requests if request.pattern not in changes}
        kept, etag = await self._store.replace(
            url,
            requests,
            if_match=if_match,
            now=self._now(),
            owner=owner,
            max_subscriptions=max_subscriptions,
            secrets=changes,
        )
        self._upkeep.wake()
        await self._consent.check_renewed(renewals, kept, now=self._now())
        audit(
            "subscriptions_replaced",
            by=owner,
            url=shown_url(url),
            count=len(kept),
            secrets=len(secrets or ()),
            subscriptions=[one.id for one in kept[:_AUDITED_IDS]],
        )
        return kept, etag

    async def unsubscribe(self, subscription_id: str, *, owner: str | None, by: str | None) -> None:
        """See `Broadcaster.unsubscribe`."""
        await self._consent.to_unsubscribe(subscription_id, owner=owner, now=self._now())
        if not await self._store.unsubscribe(subscription_id, now=self._now(), owner=owner):
            raise NotFound("there is no subscription with this id")
        self._upkeep.wake()
        audit("unsubscribed", by=owner or by, subscription=subscription_id)

    async def forget(self, target: Target) -> None:
        """A subscriber answered 410. If somebody has renewed it meanwhile, that was about an earlier state."""
        try:
            if await self._store.unsubscribe(target.id, now=self._now(), expires_at=target.expires_at):
                self._upkeep.wake()
                audit("unsubscribed", by="410", subscription=target.id)
        except PubSubError as error:
            _LOG.warning("%s answered 410 and could not be removed: %s", target.id, error.detail)

    async def _resume(self, subscription_id: str, endpoint_url: str) -> None:
        try:
            await self._executor.resume(subscription_id, endpoint_url)
        except PubSubError as error:
            _LOG.warning("what %s is owed could not be brought forward: %s", subscription_id, error.detail)


def _audited(subscription: Subscription) -> dict[str, object]:
    """What an audit line tells of a subscription."""
    return {
        "subscription": subscription.id,
        "url": shown_url(subscription.url),
        "pattern": str(subscription.pattern),
        "delivery": subscription.delivery,
        "expires": format_time(subscription.expires_at),
    }
