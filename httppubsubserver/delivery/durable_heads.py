"""The header lines of durable deliveries: prepared once for those that have everything else in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from httppubsubclient.protocol.delivery_heads import NONCE_PREFIX_BYTES, DeliveryHeads
from httppubsubclient.protocol.keys import Credentials
from httppubsubserver.randomness import random_bytes
from httppubsubserver.stores.durable import Claimed

__all__ = ["DurableHeads"]


_MAX_KEPT: Final = 512
"""What is claimed at once are the messages of one endpoint, then those of the next: often the same ones."""


class DurableHeads:
    """Makes them one by one. Keeps what it has prepared for messages within one second."""

    def __init__(self, credentials: Credentials, *, clock: Callable[[], float]) -> None:
        self._credentials = credentials
        self._clock = clock
        self._second = 0
        self._prepared: dict[tuple[str, int, bool], DeliveryHeads] = {}

    def lines(self, claimed: Claimed, fragment: str | None) -> bytes:
        """All of one attempt, with a nonce of its own. Raises `ConfigurationError` when no key may be used now."""
        message_id, previous = claimed.message.notification.message_id, claimed.previous_message_id
        now = int(self._clock())
        if now != self._second or len(self._prepared) >= _MAX_KEPT:
            self._second = now
            self._prepared.clear()
        wanted = (message_id, claimed.attempt, previous is None)
        heads = self._prepared.get(wanted)
        if heads is None:
            heads = self._prepared[wanted] = self._prepare(claimed, now)
        return heads.durable_lines(claimed.held.subscription_id, fragment, claimed.sequence, previous)

    def _prepare(self, claimed: Claimed, now: int) -> DeliveryHeads:
        return DeliveryHeads(
            self._credentials,
            claimed.message.notification,
            attempt=claimed.attempt,
            now=now,
            nonce_prefix=random_bytes(NONCE_PREFIX_BYTES),
            place="first" if claimed.previous_message_id is None else "next",
        )
