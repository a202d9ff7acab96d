"""Which callbacks may be registered, decided by the URL alone: nothing is resolved and nobody is asked.

    policy = CallbackPolicy(config, broadcasters)
    policy.check(callback)                              # raises CallbackRefused
    egress = Egress(policy.addresses)                   # the same networks and ports, asked for each connection

| refused                                                            | unless                                        |
|--------------------------------------------------------------------|-----------------------------------------------|
| `http:`                                                            | `https_only` is not set                       |
| a port                                                             | `callback_ports` has it                       |
| an address                                                         | `callback_networks` has it                    |
| a name with one label, `localhost`, a name that only an own network | `callback_hosts` has exactly this name        |
| knows (`PRIVATE_ZONES`)                                            |                                               |
| the broadcaster itself: where it listens, what its secrets call it |                                               |

What a name leads to is asked when it is dialled (`delivery/egress.py`): it may be another address every time. So a
name that passes here promises nothing; what is refused here is refused early, with a reason that its owner can read.
The text is the same whichever address or name it is: it tells nobody what there is. It names the setting, for him to
ask its operator about; what exactly was in the way is for the log alone, once for each origin.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import suppress
from typing import Final, NamedTuple

from httppubsubclient.protocol.addresses import AddressKind, AddressPolicy, address_kind, parse_address
from httppubsubclient.protocol.callback_urls import CallbackUrl, parse_callback_url
from httppubsubclient.protocol.errors import CallbackRefused, ConfigurationError, InvalidUrl
from httppubsubserver.callback_ports import CallbackPorts
from httppubsubserver.config import ServerConfig
from httppubsubserver.delivery.outbound import client_certificate, tls_context
from httppubsubserver.delivery.proxy import parse_proxy_url

_LOG = logging.getLogger("httppubsub.server")

__all__ = ["PRIVATE_ZONES", "CallbackAddresses", "CallbackPolicy", "check_callback_settings"]

PRIVATE_ZONES: Final = (
    "localhost",  # RFC 6761 section 6.3
    "local",  # RFC 6762: multicast DNS; cluster.local
    "internal",  # reserved by ICANN for private use, 2024; what clouds call their machines
    "home.arpa",  # RFC 8375
    # RFC 6762 appendix G: what private networks use as they like
    "corp",
    "home",
    "intranet",
    "lan",
    "private",
    # what hosts files and resolvers make up
    "localdomain",
    "localdomain4",
    "localdomain6",
)
"""Names in them mean something else, or something at all, in one network alone."""

MAX_OWN: Final = 256
"""Places at which this broadcaster is known to listen."""
_MAX_TOLD: Final = 1000
"""Refused origins that the log tells of."""


class CallbackAddresses:
    """What `callback_networks` and `callback_ports` allow to be dialled. Raises `ConfigurationError`."""

    def __init__(self, networks: Iterable[str], ports: Iterable[str], nat64_prefixes: Iterable[str] = ()) -> None:
        try:
            self._addresses = AddressPolicy(tuple(networks), nat64_prefixes=tuple(nat64_prefixes))
        except ConfigurationError as error:
            raise ConfigurationError(error.detail if "nat64" in error.detail else f"callback_{error.detail}") from None
        self.ports = CallbackPorts(ports)

    def allows(self, address: str, port: int) -> bool:
        """Whether this may be dialled. What is no address may not."""
        return port in self.ports and self._addresses.allows_address(address)

    def allows_address(self, address: str) -> bool:
        """The same for any port that is allowed."""
        return self._addresses.allows_address(address)


def check_callback_settings(config: ServerConfig) -> None:
    """Raises `ConfigurationError` for whatever is wrong with where and how callbacks are called."""
    CallbackPolicy(config)
    if config.egress_proxy is not None:
        parse_proxy_url(config.egress_proxy)
    tls_context(config.callback_ca_file, client_certificate(config))


class _Refusal(NamedTuple):
    """Why a callback is refused."""

    rule: str
    """For the operator, in the log."""
    detail: str
    """For whoever asked; the same for all that the rule refuses."""


class CallbackPolicy:
    """What the settings say about callback URLs. Raises `ConfigurationError`.

    Asked about what comes over the wire. The application that holds the `Broadcaster` is the operator's own; what it
    subscribes is not asked about here, but like everything else when it is dialled.
    """

    def __init__(self, config: ServerConfig, broadcasters: Iterable[str] = ()) -> None:
        """`broadcasters`: the URLs by which this one, and those that share its database, are called."""
        self.addresses = CallbackAddresses(config.callback_networks, config.callback_ports, config.nat64_prefixes)
        self._https_only = config.https_only
        self._hosts = frozenset(map(_host_name, config.callback_hosts))
        self._own: set[tuple[str, int, str]] = set()
        self._told: set[str] = set()
        if config.port:
            self.listens_at(config.host, config.port)
        for url in broadcasters:
            with suppress(InvalidUrl):
                called = parse_callback_url(url)
                self.listens_at(called.host, called.port, called.target.partition("?")[0])

    def listens_at(self, host: str, port: int, path: str = "/") -> None:
        """This broadcaster is reached there: a callback that leads there would bring each message back to it.

        Told by whoever knows more than the settings: which address a connection came in at. Behind a `path` other than
        `/` others may be reached at the same place.
        """
        parsed = parse_address(host)
        if len(self._own) < MAX_OWN:
            own = host.lower().removesuffix(".") if parsed is None else str(parsed)
            self._own.add((own, port, f"{path.rstrip('/')}/"))

    def check(self, callback: CallbackUrl) -> None:
        """Raises `CallbackRefused`."""
        refusal = self._refusal(callback)
        if refusal is None:
            return
        if callback.origin not in self._told and len(self._told) < _MAX_TOLD:
            self._told.add(callback.origin)
            _LOG.info("%s was not subscribed: %s", callback.origin, refusal.rule)
        raise CallbackRefused(refusal.detail)

    def _refusal(self, callback: CallbackUrl) -> _Refusal | None:
        if self._https_only and callback.scheme != "https":
            return _Refusal("https_only is set", "this broadcaster calls back over https only (https_only)")
        if callback.port not in self.addresses.ports:
            return _Refusal(
                f"callback_ports has no {callback.port}",
                f"this broadcaster does not call back at port {callback.port}: its operator says at which "
                "(callback_ports)",
            )
        if parse_address(callback.host) is not None:
            if not self.addresses.allows_address(callback.host):
                kind = address_kind(callback.host)
                return _Refusal(
                    "callback_networks has no such address" + ("" if kind is None else f" ({kind.value})"),
                    "this broadcaster does not call back at this address: its operator says at which "
                    "(callback_networks)",
                )
        elif _is_private(callback.host) and callback.host not in self._hosts:
            return _Refusal(
                "callback_hosts does not have this name, which a single network knows",
                "this broadcaster does not call back at this name: one that a single network knows has to be allowed "
                "by the operator, as it is (callback_hosts)",
            )
        # Last: of an address that is refused anyway, nobody needs to know whose it is.
        if self._is_own(callback):
            return _Refusal(
                "it is a broadcaster's own address",
                "this is a broadcaster's own address: what it sends there would come back to it",
            )
        return None

    def _is_own(self, callback: CallbackUrl) -> bool:
        address = parse_address(callback.host)
        host = callback.host if address is None else str(address)
        path = f"{callback.target.partition('?')[0]}/"
        return any(
            port == callback.port and path.startswith(behind) and _leads_to(host, own)
            for own, port, behind in self._own
        )


def _leads_to(host: str, own: str) -> bool:
    """Whether a connection to `host` arrives at `own`, as far as one can say without asking anybody."""
    if host == own:
        return True
    kind = address_kind(own)
    if kind not in (AddressKind.LOOPBACK, AddressKind.UNSPECIFIED):
        return False
    # Listening at 0.0.0.0 or :: is listening at every loopback address; a host takes 0.0.0.0 for itself.
    of_host = AddressKind.LOOPBACK if _is_localhost(host) else address_kind(host)
    return of_host is AddressKind.UNSPECIFIED or (
        of_host is AddressKind.LOOPBACK and (kind is AddressKind.UNSPECIFIED or _is_localhost(host))
    )


def _is_localhost(host: str) -> bool:
    return host == "localhost" or host.endswith((".localhost", ".localdomain"))


def _is_private(host: str) -> bool:
    return "." not in host or host.endswith(tuple(f".{zone}" for zone in PRIVATE_ZONES)) or host in PRIVATE_ZONES


def _host_name(text: str) -> str:
    """One of `callback_hosts`, as it stands in a canonical URL. Raises `ConfigurationError`."""
    try:
        url = parse_callback_url(f"http://{text}/")
    except InvalidUrl as error:
        raise ConfigurationError(f"callback_hosts: {text[:100]!a} is no host name: {error.detail}") from None
    if url.host != text.lower().removesuffix(".") or parse_address(url.host) is not None:
        raise ConfigurationError(
            f"callback_hosts: {text[:100]!a} should be a host name alone; addresses belong into callback_networks"
        )
    return url.host
