"""The durable names of one client, each with a callback URL of its own (durable_name.py says how they live)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from httppubsubclient.broadcasters import Broadcasters
from httppubsubclient.durable_calls import DurableCalls, DurableSettings
from httppubsubclient.durable_name import AWAY_RETRY_SECONDS, DurableName
from httppubsubclient.durable_options import check_durable_name, durable_url
from httppubsubclient.protocol.errors import Unavailable
from httppubsubclient.protocol.patterns import Pattern
from httppubsubclient.remembered import Remembered
from httppubsubclient.webhooks import Agreements

__all__ = ["DurableRegistrations"]


class DurableRegistrations:
    """Made when the client is entered, closed when it is left. Entering a name is what makes it."""

    def __init__(
        self,
        broadcasters: Broadcasters,
        callback_url: str,
        remembered: Remembered,
        settings: DurableSettings,
        agreements: Callable[[], Agreements] = Agreements,
    ) -> None:
        """`agreements` makes those of one name."""
        self._broadcasters = broadcasters
        self._callback_url = callback_url
        self._remembered = remembered
        self._settings = settings
        self._agreements = agreements
        self._names: dict[str, DurableName] = {}
        self._forgetting: set[str] = set()

    def name(self, name: str) -> DurableName:
        """This name, for subscribing under it."""
        known = self._names.get(name)
        if known is None:
            known = self._names[name] = self._made(name)
            known.open()
        return known

    def entered(self, name: str) -> DurableName:
        """This name, for a delivery. Raises `Unavailable` when nothing was ever entered under it."""
        known = self._names.get(name)
        if known is None:
            raise Unavailable(f"{name!r} is away", retry_after_seconds=AWAY_RETRY_SECONDS)
        return known

    async def forget(self, name: str) -> int:
        """Remove everything that is subscribed under a name, with its backlog; how many subscriptions there were."""
        check_durable_name(name)
        known = self._names.get(name)
        self._forgetting.add(name)
        try:
            return await (known or self._made(name)).forget()
        finally:
            self._forgetting.discard(name)

    def wants(self, name: str, pattern: Pattern) -> bool:
        """Whether somebody here has entered this pattern of a name, or is entering it."""
        known = self._names.get(name)
        return known is not None and known.wants(pattern)

    def expects_handshake(self, name: str) -> bool:
        """Whether a broadcaster may ask by `OPTIONS` about a name at this moment."""
        known = self._names.get(name)
        return known is not None and known.expects_handshake()

    def gives_up(self, name: str, pattern: Pattern) -> bool:
        """Whether this pattern of a name, or the whole name, is being removed at the broadcaster, by us."""
        known = self._names.get(name)
        return name in self._forgetting or (known is not None and known.gives_up(pattern))

    async def close(self) -> None:
        """End every subscription, here only."""
        await asyncio.gather(*(name.close() for name in self._names.values()))
        self._names.clear()

    def _made(self, name: str) -> DurableName:
        calls = DurableCalls(self._broadcasters, durable_url(self._callback_url, name), self._settings)
        seconds = self._settings.request_timeout_seconds
        return DurableName(
            name, calls, self._remembered, request_timeout_seconds=seconds, agreements=self._agreements()
        )
