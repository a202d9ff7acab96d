"""Which addresses may be dialled: asked for every new connection, about the addresses that it is then made to.

A name is resolved once, and what came is both checked and dialled: there is no second answer that could be another
one. A name with one address that is not allowed is blocked whole, so that it depends neither on the order of its
addresses nor on which of them answers. A literal address goes the same way. Every kind of block is the same
`AttemptFailed("blocked_address")`; which address it was, the log of the broadcaster says, once for each host.

With a proxy the same addresses are checked, and then reached by its way (proxy.py).

Where and how the policy is written: callback_policy.py. What addresses are for: `protocol/addresses.py`.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from typing import Final, Protocol

from httppubsubclient.protocol.addresses import address_kind, parse_address
from httppubsubserver.delivery.answers import AttemptFailed
from httppubsubserver.delivery.proxy import Proxy
from httppubsubserver.delivery.resolving import Resolver, SystemResolver
from httppubsubserver.delivery.tcp import connected_to

__all__ = ["BLOCKED", "MAX_ADDRESSES", "Egress", "Policy", "blocked"]

_LOG = logging.getLogger("httppubsub.server.outbound")

BLOCKED: Final = "blocked_address"
"""The reason of every block."""

MAX_ADDRESSES: Final = 256
"""A name with more of them cannot be dialled: each costs a look."""

_MAX_VERDICTS: Final = 4096
_MAX_TOLD: Final = 1000


class Policy(Protocol):
    """What is asked; `AddressPolicy` is one, `CallbackAddresses` another."""

    def allows(self, address: str, port: int) -> bool:
        """Whether this may be dialled; what is no address may not."""


def blocked() -> AttemptFailed:
    """What everybody gets who may not be dialled, whatever the reason."""
    return AttemptFailed(BLOCKED, again=False)


class Egress:
    """The way out of one event loop. Without a `policy` every address may be dialled.

    `resolver`: by default the system's; an own one is asked for every new connection to a name. Close it.
    """

    def __init__(
        self, policy: Policy | None = None, *, resolver: Resolver | None = None, proxy: Proxy | None = None
    ) -> None:
        self._policy = policy
        self._proxy = proxy
        self._system = SystemResolver() if resolver is None else None
        self._resolver: Resolver = self._system or resolver  # type: ignore[assignment]
        self._verdicts: dict[tuple[str, int], bool] = {}
        self._reviews: list[Callable[[], None]] = []
        self._told: set[str] = set()

    @property
    def policy(self) -> Policy | None:
        """What is asked about addresses."""
        return self._policy

    def resolving_by(self, resolver: Resolver) -> Egress:
        """The same way out with the policy of this moment, and another resolver."""
        return Egress(self._policy, resolver=resolver, proxy=self._proxy)

    def set_policy(self, policy: Policy | None) -> None:
        """From now on this one is asked. Idle connections that it would not have allowed are closed; what is under
        way to such an address ends its request, and the connection with it."""
        self._policy = policy
        self._verdicts.clear()
        self._told.clear()
        for review in list(self._reviews):
            review()

    def on_change(self, review: Callable[[], None]) -> Callable[[], None]:
        """Have `review` called after each change of the policy; returns what ends that."""
        self._reviews.append(review)
        return lambda: self._reviews.remove(review)

    def allows(self, address: str, port: int) -> bool:
        """Whether this may be dialled. What is no address may not."""
        key = (address, port)
        verdict = self._verdicts.get(key)
        if verdict is None:
            policy = self._policy
            verdict = parse_address(address) is not None if policy is None else policy.allows(address, port)
            if len(self._verdicts) >= _MAX_VERDICTS:
                self._verdicts.clear()
            self._verdicts[key] = verdict
        return verdict

    async def resolve(self, host: str, port: int) -> list[str]:
        """Every address of a host, checked by nobody; a literal is its own. At least one. Raises `OSError`.

        Never to be dialled: the next question may have another answer. `addresses` is for that.
        """
        if parse_address(host) is not None:
            return [host]
        found = await self._resolver(host, port)
        if not 1 <= len(found) <= MAX_ADDRESSES:
            raise OSError("the name has no address" if not found else "the name has too many addresses")
        return found

    async def addresses(self, host: str, port: int) -> list[str]:
        """The addresses of a host, all of which may be dialled now. Raises `AttemptFailed`, `OSError`."""
        found = await self.resolve(host, port)
        for address in found:
            if not self.allows(address, port):
                self._tell(host, port, address)
                raise blocked()
        return found

    async def connected(self, port: int, owner: object, address: str) -> socket.socket:
        """A socket to an address that was checked. Raises `OSError`, `ProxyFailed`; has no deadline of its own.

        `owner`: who waits for it, see `late`.
        """
        if self._proxy is None:
            return await connected_to(address, port)
        return await self._proxy.tunnel(address, port, self.resolve, owner)

    def late(self, owner: object) -> AttemptFailed:
        """What an attempt has come to whose time is over while it was to be `connected`."""
        failure = None if self._proxy is None else self._proxy.late(owner)
        return failure or AttemptFailed("timeout", again=False, hanging=True)

    def close(self) -> None:
        """End the threads of the resolver."""
        if self._system is not None:
            self._system.close()

    def _tell(self, host: str, port: int, address: str) -> None:
        """For the operator alone: a name that its settings forbid may be one that was to be allowed."""
        if host in self._told or len(self._told) >= _MAX_TOLD:
            return
        self._told.add(host)
        kind = address_kind(address)
        _LOG.warning(
            "the policy for callbacks blocks %s: port %d at %.45s (%s)",
            host,
            port,
            ascii(address),
            "no address" if kind is None else kind.value,
        )
