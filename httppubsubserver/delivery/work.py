"""One durable delivery in this process: `Work` is a lease of ours and what is being done with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from httppubsubclient.bodies import Body
from httppubsubserver.delivery.outbound import Post
from httppubsubserver.stores.durable import Claimed, Terms

__all__ = ["Reservation", "Work"]


class Work:
    """A delivery that this process holds, from its claim to the end of its attempt."""

    __slots__ = ("_tell", "began_at", "body", "bytes_in_memory", "claimed", "endpoint_url", "post")

    def __init__(self, claimed: Claimed, body: Body | None, tell: Callable[[str], None] | None = None) -> None:
        self.claimed = claimed
        self.body = body
        """Its own, closed with it; None for a large one that has to be read from the store."""
        self.bytes_in_memory = 0 if body is None or body.data is None else body.size
        self.endpoint_url = claimed.url.partition("#")[0]
        self.began_at = 0
        """Microseconds; 0 as long as no attempt was begun."""
        self.post: Post | None = None
        self._tell = tell

    def end(self, outcome: str) -> None:
        """It is not being worked on any more; whoever waits for that is told, once."""
        if self.post is not None:
            self.post.cancel()
            self.post = None
        if self.body is not None:
            self.body.close()
        tell, self._tell = self._tell, None
        if tell is not None:
            tell(outcome)


@dataclass(frozen=True, slots=True)
class Reservation:
    """Slots that are kept free for deliveries that are about to be accepted."""

    terms: Terms
    taken: dict[str, int]
    """How many, by the URL of the endpoint."""
    left: set[str]
    """Endpoints of which it has none, because their circuits or limits say so, or because there are no slots."""
