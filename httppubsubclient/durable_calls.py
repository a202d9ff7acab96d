"""The calls to the broadcasters that one durable name makes, under its own callback URL."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from urllib.parse import quote

from httppubsubclient.bodies import Body, BodyWriter
from httppubsubclient.broadcasters import Answer, Broadcasters, parse_subscription
from httppubsubclient.protocol.errors import NotFound, PubSubError
from httppubsubclient.protocol.messages import Subscription
from httppubsubclient.protocol.options import DeliveryOptions, options_to_json
from httppubsubclient.protocol.patterns import Pattern
from httppubsubclient.registrations import PATH
from httppubsubclient.webhooks import Terms

__all__ = ["DurableCalls", "DurableSettings"]


@dataclass(frozen=True, slots=True)
class DurableSettings:
    """What the names of one client have in common; see config.py."""

    lease_seconds: int
    request_timeout_seconds: float
    min_bytes_per_second: int
    max_body_bytes: int
    spool_bytes: int
    spool_directory: str | None


class DurableCalls:
    """Each call is over by its deadline (in the loop's time), and may be repeated."""

    def __init__(self, broadcasters: Broadcasters, url: str, settings: DurableSettings) -> None:
        self._broadcasters = broadcasters
        self._url = url
        self._settings = settings

    async def subscribe(
        self, pattern: Pattern, options: DeliveryOptions, terms: Terms, deadline: float, *, resume: bool
    ) -> tuple[Subscription, bool]:
        """Subscribe or renew: the subscription, and whether it is new. `resume`: what is pending is due now."""
        fields = {
            "url": self._url,
            **pattern.to_json(),
            **options_to_json(options),
            **terms.fields(),
            "lease_seconds": self._settings.lease_seconds,
            **({"resume": True} if resume else {}),
        }
        answer = await self._call("POST", PATH, deadline, fields=fields)
        kept = parse_subscription(answer, answer.fields())
        if kept.delivery != "durable":
            raise PubSubError(f"{answer.url} has no durable delivery: it subscribed {pattern} with best effort")
        if terms.is_foreign(kept):
            raise PubSubError(
                f"{pattern} of {self._url} has a secret of its own since an earlier life: give it as secret=, "
                "let secret='generate' make another, or forget the name with its backlog"
            )
        return kept, answer.status == 201

    async def unsubscribe(self, subscription_id: str, deadline: float) -> None:
        """Remove one subscription; that it is gone already is fine."""
        with contextlib.suppress(NotFound):
            await self._call("DELETE", f"{PATH}/{subscription_id}", deadline)

    async def unsubscribe_all(self, deadline: float) -> int:
        """Remove all subscriptions of this URL; how many there were (1000: so many, or more)."""
        query = f"url={quote(self._url, safe='')}"
        listed = await self._call("GET", PATH, deadline, query=f"{query}&limit=1000")
        await self._call("PUT", PATH, deadline, query=query, fields={"subscriptions": []})
        return len(listed.fields()["subscriptions"])

    async def page(self, path: str, query: str) -> Answer:
        """A page of something."""
        deadline = asyncio.get_running_loop().time() + self._settings.request_timeout_seconds
        return await self._call("GET", path, deadline, query=query)

    async def body(self, path: str, size: int) -> Body:
        """A body of `size` bytes, however large."""
        settings = self._settings
        seconds = settings.request_timeout_seconds + size / settings.min_bytes_per_second
        answer = await self._broadcasters.call(
            "GET",
            path,
            repeatable=True,
            retry_seconds=settings.request_timeout_seconds,
            deadline_seconds=seconds,
            attempt_seconds=seconds,
            open_body=lambda: BodyWriter(
                spool_bytes=settings.spool_bytes, max_bytes=settings.max_body_bytes, directory=settings.spool_directory
            ),
        )
        if answer.body is None or answer.body.size != size:
            raise PubSubError(f"{answer.url} answered {path} with a body of another length")
        return answer.body

    async def _call(
        self, method: str, path: str, deadline: float, *, query: str = "", fields: dict[str, object] | None = None
    ) -> Answer:
        left = max(0.001, deadline - asyncio.get_running_loop().time())
        return await self._broadcasters.call(
            method, path, query=query, fields=fields, repeatable=True, retry_seconds=left, deadline_seconds=left
        )
