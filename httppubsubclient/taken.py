"""Which deliveries were taken, where the subscriptions themselves may have forgotten it.

A subscription remembers what it was given (inbox.py), which is enough for a sender that means well. Two things are
kept here besides, both only where they are needed:

- A webhook has no nonce: a copy of it proves as much as the first. So a message that came with a webhook signature is
  remembered until no copy could be in time any more, over leaving and entering again. When there are too many, the
  oldest are forgotten, and what may be a copy of one of those is refused (protocol/replay.py).
- With `remember_file`, messages of best effort are remembered for the next life, in a file beside that of the durable
  names, so that a copy that comes after a restart is not taken for new.
"""

from __future__ import annotations

import time
from hashlib import blake2b

from httppubsubclient.protocol.errors import Replayed
from httppubsubclient.protocol.patterns import Pattern
from httppubsubclient.protocol.replay import ReplayWindow
from httppubsubclient.protocol.standard_webhooks import WebhookHead
from httppubsubclient.remembered import Remembered

__all__ = ["Taken"]


class Taken:
    """`name` is that of a durable subscription, which has a memory of its own for the next life; None of any other."""

    def __init__(self, *, max_entries: int, tolerance_seconds: int, remembered: Remembered) -> None:
        """`remembered` is opened and closed by the caller."""
        self._window = ReplayWindow(max_entries)
        self._tolerance_seconds = tolerance_seconds
        self._remembered = remembered

    def before(self, name: str | None, pattern: Pattern, message_id: str, head: WebhookHead | None) -> bool:
        """Whether a message was taken before. Raises `Replayed` when that cannot be told any more."""
        if name is None and self._remembered.is_lasting and self._remembered.has("", str(pattern), message_id):
            return True
        if head is None:
            return False
        seen = self._window.seen(_key(name, pattern, message_id), created=int(head.timestamp), now=time.time())
        if seen is None:
            raise Replayed("this webhook is older than what can be told apart from its copies; send it signed anew")
        return seen

    def add(self, name: str | None, pattern: Pattern, message_id: str, head: WebhookHead | None) -> None:
        """A message was taken, by everybody it is for."""
        if name is None and self._remembered.is_lasting:
            self._remembered.add("", str(pattern), message_id)
        if head is not None:
            now = time.time()
            # Another attempt of it may have been signed up to the tolerance ahead of our clock.
            until = now + 2 * self._tolerance_seconds + 1
            self._window.remember(_key(name, pattern, message_id), created=int(head.timestamp), until=until, now=now)


def _key(name: str | None, pattern: Pattern, message_id: str) -> str:
    return blake2b(f"{name or ''}\0{pattern}\0{message_id}".encode(), digest_size=16).hexdigest()
