"""The header lines of durable deliveries: prepared once for those that have everything else in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from httppubsubclient.protocol.delivery_heads import NONCE_PREFIX_BYTES, DeliveryHeads
from httppubsubclient.protocol.keys import Credentials
from httppubsubserver.randomness import random_bytes
from httppubsubserver.stores.durable import Claimed

__all__ = ["DurableHeads"]


class DurableHeads:
    """Makes them one by one. Keeps what it prepared for the message, attempt and second that came last."""

    def __init__(self, credentials: Credentials, *, clock: Callable[[], float]) -> None:
        self._credentials = credentials
        self._clock = clock
        self._known: tuple[str, int, int, str] | None = None
        self._heads: DeliveryHeads | None = None

    def lines(self, claimed: Claimed, fragment: str | None) -> bytes:
        """All of one attempt, with a nonce of its own. Raises `ConfigurationError` when no key may be used now."""
        notification, previous = claimed.message.notification, claimed.previous_message_id
        now = int(self._clock())
        place: Literal["first", "next"] = "first" if previous is None else "next"
        wanted = (notification.message_id, claimed.attempt, now, place)
        if self._heads is None or wanted != self._known:
            self._heads = DeliveryHeads(
                self._credentials,
                notification,
                attempt=claimed.attempt,
                now=now,
                nonce_prefix=random_bytes(NONCE_PREFIX_BYTES),
                place=place,
            )
            self._known = wanted
        return self._heads.durable_lines(claimed.held.subscription_id, fragment, claimed.sequence, previous)
