"""Which addresses may be dialled: what an address is for, and a policy over that.

Every address has one kind, by the longest row of an own table that holds it: the IANA special-purpose address
registries for IPv4 and IPv6 (RFC 6890, RFC 8190), the multicast blocks, and the addresses at which clouds give out
credentials to whoever asks from inside. The standard library's `is_global` and `is_private` answer other questions.

| kind            | what it holds                                                   | allowed by                   |
|-----------------|-----------------------------------------------------------------|------------------------------|
| `public`        | IPv4 that is in no row; IPv6 of 2000::/3 that is in no other    | `public`, any network        |
| `loopback`      | 127/8, ::1                                                      | `loopback`, any network      |
| `unspecified`   | 0.0.0.0 and ::, which a host takes for itself                   | `loopback`, any network      |
| `private`       | RFC 1918, fc00::/7                                              | `private`, any network       |
| `shared`        | 100.64/10, behind a carrier's or a cloud's NAT (RFC 6598)       | `private`, any network       |
| `link_local`    | 169.254/16, fe80::/10, fec0::/10                                | a network within the row     |
| `multicast`     | 224/4, ff00::/8                                                 | a network within the row     |
| `transition`    | IPv6 that a translator or a tunnel turns into IPv4              | a network within the row     |
| `documentation` | examples                                                        | a network within the row     |
| `reserved`      | everything else                                                 | a network within the row     |
| `metadata`      | instance metadata and platform services of clouds               | a network within the row     |

A network within the row: `168.63.129.16/32` allows that address, while `168.0.0.0/6`, `0.0.0.0/0` and `public` do not.
So nobody allows the metadata service by allowing what lies around it, `private` and `100.64.0.0/10` included.

An IPv4-mapped address (`::ffff:10.0.0.1`) is the IPv4 address: that is where a dual-stack socket goes. Any other
address that carries an IPv4 address has to be allowed itself and in what it carries: `64:ff9b::/96` and `public`
together allow `64:ff9b::8.8.8.8`, which is how a network with DNS64 reaches the IPv4 internet, and still not
`64:ff9b::10.0.0.1`. A prefix of its own by which a network translates looks like any public one: `nat64_prefixes`
names it. A zone (`%eth0`) makes sense with link-local addresses only; all others are refused with one.

Name resolution is not done here: ask about the address that is dialled, at the moment it is dialled.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final, TypeAlias

from httppubsubclient.protocol.errors import ConfigurationError

__all__ = [
    "ALL_PORTS",
    "MAX_NAT64_PREFIXES",
    "MAX_NETWORKS",
    "MAX_PORT_RANGES",
    "WEB_PORTS",
    "AddressKind",
    "AddressPolicy",
    "IPAddress",
    "address_kind",
    "carried_ipv4",
    "parse_address",
]

MAX_NETWORKS: Final = 256
"""Of one policy, names included."""
MAX_PORT_RANGES: Final = 64
"""Of one policy."""
MAX_NAT64_PREFIXES: Final = 16
"""Of one policy."""
WEB_PORTS: Final = ("80", "443", "8080", "8443")
"""For callbacks of strangers: nothing but what HTTP is usually served at."""
ALL_PORTS: Final = ("1-65535",)

IPAddress: TypeAlias = IPv4Address | IPv6Address
IPNetwork: TypeAlias = IPv4Network | IPv6Network


class AddressKind(Enum):
    """What an address is for; the table of the module says what each kind holds."""

    PUBLIC = "public"
    LOOPBACK = "loopback"
    UNSPECIFIED = "unspecified"
    PRIVATE = "private"
    SHARED = "shared"
    LINK_LOCAL = "link_local"
    MULTICAST = "multicast"
    TRANSITION = "transition"
    DOCUMENTATION = "documentation"
    RESERVED = "reserved"
    METADATA = "metadata"


_NAMES: Final = {
    "loopback": frozenset({AddressKind.LOOPBACK, AddressKind.UNSPECIFIED}),
    "private": frozenset({AddressKind.PRIVATE, AddressKind.SHARED}),
    "public": frozenset({AddressKind.PUBLIC}),
}
_ORDINARY: Final = frozenset[AddressKind]().union(*_NAMES.values())
"""Kinds that a network allows however wide it is."""

_IPV4_ROWS: Final = {
    # IANA IPv4 Special-Purpose Address Registry
    "0.0.0.0/8": AddressKind.RESERVED,  # "this network", RFC 791 section 3.2
    "0.0.0.0/32": AddressKind.UNSPECIFIED,  # "this host on this network", RFC 1122 section 3.2.1.3
    "10.0.0.0/8": AddressKind.PRIVATE,  # RFC 1918
    "100.64.0.0/10": AddressKind.SHARED,  # RFC 6598
    "127.0.0.0/8": AddressKind.LOOPBACK,  # RFC 1122 section 3.2.1.3
    "169.254.0.0/16": AddressKind.LINK_LOCAL,  # RFC 3927
    "172.16.0.0/12": AddressKind.PRIVATE,  # RFC 1918
    "192.0.0.0/24": AddressKind.RESERVED,  # IETF protocol assignments, RFC 6890 section 2.1; DS-Lite, PCP, TURN
    "192.0.2.0/24": AddressKind.DOCUMENTATION,  # TEST-NET-1, RFC 5737
    "192.31.196.0/24": AddressKind.RESERVED,  # AS112-v4, RFC 7535
    "192.52.193.0/24": AddressKind.RESERVED,  # AMT, RFC 7450
    "192.88.99.0/24": AddressKind.RESERVED,  # 6to4 relay anycast, withdrawn by RFC 7526
    "192.168.0.0/16": AddressKind.PRIVATE,  # RFC 1918
    "192.175.48.0/24": AddressKind.RESERVED,  # direct delegation AS112, RFC 7534
    "198.18.0.0/15": AddressKind.RESERVED,  # benchmarking, RFC 2544
    "198.51.100.0/24": AddressKind.DOCUMENTATION,  # TEST-NET-2, RFC 5737
    "203.0.113.0/24": AddressKind.DOCUMENTATION,  # TEST-NET-3, RFC 5737
    "240.0.0.0/4": AddressKind.RESERVED,  # RFC 1112 section 4, with the limited broadcast 255.255.255.255 (RFC 8190)
    # IANA IPv4 Multicast Address Space Registry
    "224.0.0.0/4": AddressKind.MULTICAST,  # RFC 5771
    # Published by the clouds
    "100.100.100.200/32": AddressKind.METADATA,  # Alibaba Cloud
    "168.63.129.16/32": AddressKind.METADATA,  # Azure: DHCP, DNS, health and the agent's "wire server"
    "169.254.0.23/32": AddressKind.METADATA,  # Tencent Cloud
    "169.254.42.42/32": AddressKind.METADATA,  # Scaleway
    "169.254.169.254/32": AddressKind.METADATA,  # AWS, Azure, Google, Oracle, OpenStack, DigitalOcean and others
    "169.254.170.2/32": AddressKind.METADATA,  # AWS: credentials of ECS tasks
    "169.254.170.23/32": AddressKind.METADATA,  # AWS: EKS Pod Identity
    "192.0.0.192/32": AddressKind.METADATA,  # Oracle Cloud Classic
}
_IPV6_ROWS: Final = {
    # IANA Internet Protocol Version 6 Address Space, first of all the four pieces that it consists of
    "::/3": AddressKind.RESERVED,  # by the IETF, RFC 4291 section 4; the two below as well
    "2000::/3": AddressKind.PUBLIC,  # global unicast, RFC 4291 section 2.4
    "4000::/2": AddressKind.RESERVED,
    "8000::/1": AddressKind.RESERVED,
    "fec0::/10": AddressKind.LINK_LOCAL,  # site-local, deprecated by RFC 3879
    "ff00::/8": AddressKind.MULTICAST,  # RFC 4291 section 2.7
    # IANA IPv6 Special-Purpose Address Registry
    "::/96": AddressKind.TRANSITION,  # IPv4-compatible, deprecated: RFC 4291 section 2.5.5.1
    "::/128": AddressKind.UNSPECIFIED,  # RFC 4291 section 2.5.2
    "::1/128": AddressKind.LOOPBACK,  # RFC 4291 section 2.5.3
    "::ffff:0:0:0/96": AddressKind.TRANSITION,  # IPv4-translated, RFC 2765; left out of RFC 7915
    "64:ff9b::/96": AddressKind.TRANSITION,  # NAT64, the well-known prefix, RFC 6052
    "64:ff9b:1::/48": AddressKind.TRANSITION,  # NAT64 for local use, RFC 8215
    "100::/64": AddressKind.RESERVED,  # discard-only, RFC 6666
    "100:0:0:1::/64": AddressKind.RESERVED,  # dummy prefix, RFC 9780
    "2001::/23": AddressKind.RESERVED,  # IETF protocol assignments, RFC 2928; all below but Teredo
    "2001::/32": AddressKind.TRANSITION,  # Teredo, RFC 4380
    "2001:db8::/32": AddressKind.DOCUMENTATION,  # RFC 3849
    "2002::/16": AddressKind.TRANSITION,  # 6to4, RFC 3056
    "2620:4f:8000::/48": AddressKind.RESERVED,  # direct delegation AS112, RFC 7534
    "3fff::/20": AddressKind.DOCUMENTATION,  # RFC 9637
    "5f00::/16": AddressKind.RESERVED,  # segment routing, RFC 9602
    "fc00::/7": AddressKind.PRIVATE,  # unique local, RFC 4193
    "fe80::/10": AddressKind.LINK_LOCAL,  # RFC 4291 section 2.5.6
    # Published by the clouds
    "fd00:42::42/128": AddressKind.METADATA,  # Scaleway
    "fd00:100::100:200/128": AddressKind.METADATA,  # Alibaba Cloud
    "fd00:a9fe:a9fe::1/128": AddressKind.METADATA,  # Akamai (Linode)
    "fd00:c1::a9fe:a9fe/128": AddressKind.METADATA,  # Oracle Cloud
    "fd00:ec2::/32": AddressKind.METADATA,  # AWS: metadata ::254, Pod Identity ::23, DNS ::253, time ::123
    "fd20:ce::254/128": AddressKind.METADATA,  # Google Cloud
    "fe80::a9fe:a9fe/128": AddressKind.METADATA,  # OpenStack
}

_PORTS = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", re.ASCII)
_NETWORK = re.compile(r"[0-9a-fA-F.:]{2,45}(?:/[0-9]{1,3})?", re.ASCII)
_MAPPED: Final = IPv6Network("::ffff:0:0/96")
_HAS_ZONES: Final = IPv6Network("fe80::/10")


@dataclass(frozen=True, slots=True)
class AddressPolicy:
    """Which addresses and ports may be dialled. Raises `ConfigurationError` that names the entry at fault."""

    networks: tuple[str, ...]
    """`loopback`, `private`, `public`, networks (`10.0.0.0/8`) and single addresses; with none nothing is allowed."""
    ports: tuple[str, ...] = ALL_PORTS
    """Numbers (`443`) and ranges (`8000-8999`)."""
    nat64_prefixes: tuple[str, ...] = ()
    """IPv6 prefixes of 32, 40, 48, 56, 64 or 96 bits by which the own network translates to IPv4 (RFC 6052)."""
    _kinds: frozenset[AddressKind] = field(init=False, repr=False, compare=False)
    _networks: tuple[IPNetwork, ...] = field(init=False, repr=False, compare=False)
    _ports: tuple[range, ...] = field(init=False, repr=False, compare=False)
    _nat64_prefixes: tuple[IPv6Network, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _check_list("networks", self.networks, MAX_NETWORKS)
        _check_list("ports", self.ports, MAX_PORT_RANGES)
        _check_list("nat64_prefixes", self.nat64_prefixes, MAX_NAT64_PREFIXES)
        named = [_NAMES[entry] for entry in self.networks if entry in _NAMES]
        networks = [_network(f"networks[{at}]", entry) for at, entry in enumerate(self.networks) if entry not in _NAMES]
        ranges = [_port_range(f"ports[{at}]", entry) for at, entry in enumerate(self.ports)]
        object.__setattr__(self, "_kinds", frozenset[AddressKind]().union(*named))
        object.__setattr__(self, "_networks", tuple(networks))
        object.__setattr__(self, "_ports", tuple(ranges))
        prefixes = [_nat64_prefix(f"nat64_prefixes[{at}]", entry) for at, entry in enumerate(self.nat64_prefixes)]
        object.__setattr__(self, "_nat64_prefixes", tuple(prefixes))

    def allows(self, address: str | IPAddress, port: int) -> bool:
        """Whether this may be dialled. What is no address, or has a name instead of one, may not; never raises."""
        return any(port in ports for ports in self._ports) and self.allows_address(address)

    def allows_address(self, address: str | IPAddress) -> bool:
        """The same for any port that is allowed."""
        parsed = parse_address(address)
        if parsed is None:
            return False
        if isinstance(parsed, IPv6Address) and parsed.scope_id is not None and parsed not in _HAS_ZONES:
            return False
        return self._permits(parsed) and all(
            self._permits(carried) for carried in carried_ipv4(parsed, self._nat64_prefixes)
        )

    def _permits(self, address: IPAddress) -> bool:
        row, kind = _row(address)
        if kind in self._kinds:
            return True
        return any(
            _holds(network, address) and (kind in _ORDINARY or network.prefixlen >= row.prefixlen)
            for network in self._networks
        )


def parse_address(address: str | IPAddress) -> IPAddress | None:
    """The address that a text is, None if it is none. An IPv4-mapped one comes back as the IPv4 address it is.

    Only dotted quad and the forms of RFC 4291 section 2.2; `127.1` and `0x7f000001` are names to whoever is strict and
    addresses to `getaddrinfo`, hence nothing here.
    """
    try:
        parsed = ipaddress.ip_address(address) if isinstance(address, str) else address
    except ValueError:
        return None
    if not isinstance(parsed, IPv6Address):
        return parsed if isinstance(parsed, IPv4Address) else None
    mapped = parsed.ipv4_mapped
    return parsed if mapped is None or parsed.scope_id is not None else mapped


def address_kind(address: str | IPAddress) -> AddressKind | None:
    """What an address is for, of itself, for a log: None if it is none. Never for an answer to a stranger."""
    parsed = parse_address(address)
    return None if parsed is None else _row(parsed)[1]


def carried_ipv4(address: IPAddress, nat64_prefixes: Iterable[IPv6Network] = ()) -> tuple[IPv4Address, ...]:
    """Every IPv4 address that a translator, a tunnel or a relay could take out of this one.

    | form                                  | where its 32 bits are                               | source       |
    |---------------------------------------|-----------------------------------------------------|--------------|
    | IPv4-mapped, -compatible, -translated | the last                                            | RFC 4291 2.5 |
    | NAT64, 64:ff9b::/96                   | the last                                            | RFC 6052 2.1 |
    | NAT64, 64:ff9b:1::/48                 | where a prefix of 48, 56, 64 or 96 bits places them | RFC 8215     |
    | 6to4, 2002::/16                       | from bit 16 on                                      | RFC 3056 2   |
    | Teredo, 2001::/32                     | server: from bit 32 on; client: the last, inverted  | RFC 4380 4   |
    | ISATAP, `0:5efe` or `200:5efe` inside | the last                                            | RFC 5214 6.1 |

    How the local-use prefix is divided is known to its network alone: each way to read an address that leaves nothing
    but zeros behind it counts, unless one of `nat64_prefixes` says it. Of `::` and `::1` nothing can be taken.
    """
    if isinstance(address, IPv4Address):
        return ()
    value = int(address)
    if value <= 1:
        return ()
    found = [_bits(value, 96)] if value >> 32 in _LAST_32 else []
    own = [_nat64(value, prefix.prefixlen) for prefix in nat64_prefixes if address in prefix]
    found += own
    if value >> 80 == 0x0064_FF9B_0001 and not own:
        found += [_nat64(value, length) for length in (48, 56, 64) if _rest_is_zero(value, length)]
        found.append(_bits(value, 96))
    elif value >> 112 == 0x2002:
        found.append(_bits(value, 16))
    elif value >> 96 == 0x2001_0000:
        found += [_bits(value, 32), _bits(value ^ 0xFFFF_FFFF, 96)]
    # The universal bit (RFC 5214 section 6.1) is the sender's to set, hence nothing to rely on.
    if (value >> 32) & 0xFCFF_FFFF == 0x0000_5EFE:
        found.append(_bits(value, 96))
    return tuple(dict.fromkeys(IPv4Address(bits) for bits in found))


_LAST_32: Final = frozenset({0, 0xFFFF, 0xFFFF_0000, 0x0064_FF9B << 64})
"""Upper 96 bits: IPv4-compatible, IPv4-mapped, IPv4-translated, NAT64 with the well-known prefix."""


def _bits(value: int, start: int) -> int:
    """The 32 bits from `start` on, counted from the highest."""
    return (value >> (96 - start)) & 0xFFFF_FFFF


def _nat64(value: int, length: int) -> int:
    """The IPv4 address behind a prefix of so many bits: around the octet at bit 64, which is zero (RFC 6052 2.2)."""
    if length == 96:
        return value & 0xFFFF_FFFF
    before = 64 - length
    high = (value >> 64) & ((1 << before) - 1)
    low = (value >> (24 + before)) & ((1 << (32 - before)) - 1)
    return high << (32 - before) | low


def _rest_is_zero(value: int, length: int) -> bool:
    """Whether the octet at bit 64 and all that follows the IPv4 address behind such a prefix is zero."""
    return (value >> 56) & 0xFF == 0 and value & ((1 << (88 - length)) - 1) == 0


def _holds(network: IPNetwork, address: IPAddress) -> bool:
    return network.version == address.version and address in network


_Rows: TypeAlias = tuple[tuple[IPNetwork, AddressKind], ...]


def _longest_first(rows: dict[str, AddressKind]) -> _Rows:
    parsed = [(ipaddress.ip_network(text), kind) for text, kind in rows.items()]
    return tuple(sorted(parsed, key=lambda row: row[0].prefixlen, reverse=True))


_IPV4: Final = (*_longest_first(_IPV4_ROWS), (IPv4Network("0.0.0.0/0"), AddressKind.PUBLIC))
_IPV6: Final = _longest_first(_IPV6_ROWS)


def _row(address: IPAddress) -> tuple[IPNetwork, AddressKind]:
    rows: _Rows = _IPV4 if isinstance(address, IPv4Address) else _IPV6
    return next(row for row in rows if address in row[0])


def _check_list(name: str, entries: Iterable[object], limit: int) -> None:
    if not isinstance(entries, tuple) or not all(isinstance(entry, str) for entry in entries):
        raise ConfigurationError(f"{name} is a tuple of texts")
    if len(entries) > limit:
        raise ConfigurationError(f"{name} has at most {limit} entries, not {len(entries)}")


def _network(place: str, text: str) -> IPNetwork:
    shown = ascii(text[:60])
    if not _NETWORK.fullmatch(text):
        raise ConfigurationError(
            f"{place} is {shown}: write loopback, private, public, a network like 10.0.0.0/8 or an address"
        )
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ConfigurationError(f"{place} is {shown}, which is neither a network nor an address") from None
    if "/" in text and network.network_address != ipaddress.ip_address(text.split("/")[0]):
        raise ConfigurationError(f"{place} is {shown}, which has bits behind its prefix: did you mean {network}?")
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        raise ConfigurationError(f"{place} is {shown}: IPv4-mapped addresses count as IPv4, so write it as IPv4")
    return network


def _nat64_prefix(place: str, text: str) -> IPv6Network:
    network = _network(place, text)
    if not isinstance(network, IPv6Network) or network.prefixlen not in (32, 40, 48, 56, 64, 96):
        raise ConfigurationError(
            f"{place} is {text[:60]!a}: write an IPv6 prefix of 32, 40, 48, 56, 64 or 96 bits (RFC 6052 section 2.2)"
        )
    return network


def _port_range(place: str, text: str) -> range:
    match = _PORTS.fullmatch(text)
    first = 0 if match is None else int(match[1])
    last = first if match is None or match[2] is None else int(match[2])
    if not 1 <= first <= last <= 65535:
        raise ConfigurationError(f"{place} is {text[:40]!a}: write a port from 1 to 65535, or a range like 8000-8999")
    return range(first, last + 1)
