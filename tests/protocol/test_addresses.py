"""Addresses: what each is for, and which of them a policy allows."""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from httppubsubclient.protocol.addresses import (
    ALL_PORTS,
    MAX_NETWORKS,
    MAX_PORT_RANGES,
    WEB_PORTS,
    AddressKind,
    AddressPolicy,
    address_kind,
    carried_ipv4,
    parse_address,
)
from httppubsubclient.protocol.errors import ConfigurationError

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "addresses.json").read_text())
EVERY_NAME = AddressPolicy(("loopback", "private", "public"))
EVERY_NETWORK = AddressPolicy(("0.0.0.0/0", "::/0"))
ipv4_addresses = st.ip_addresses(v=4)
ipv6_addresses = st.ip_addresses(v=6)


@pytest.mark.parametrize(
    ("address", "kind"), [(address, kind) for kind, found in VECTORS["kinds"].items() for address in found]
)
def test_an_address_has_one_kind(address: str, kind: str) -> None:
    assert address_kind(address) is AddressKind(kind)
    assert address_kind(ipaddress.ip_address(address)) is AddressKind(kind)


@pytest.mark.parametrize(("address", "carried"), VECTORS["carried"])
def test_an_address_may_carry_ipv4_addresses(address: str, carried: list[str]) -> None:
    assert [str(found) for found in carried_ipv4(ipaddress.ip_address(address))] == carried


def dialled(wanted: str) -> list[Any]:
    return [
        pytest.param(policy, address, port, id=f"{' '.join(policy['networks'])}: {address} {port}")
        for policy in VECTORS["policies"]
        for address, port in policy[wanted]
    ]


@pytest.mark.parametrize(("policy", "address", "port"), dialled("allowed"))
def test_a_policy_allows(policy: dict[str, Any], address: str, port: int) -> None:
    assert AddressPolicy(tuple(policy["networks"]), tuple(policy["ports"])).allows(address, port)


@pytest.mark.parametrize(("policy", "address", "port"), dialled("not"))
def test_a_policy_does_not_allow(policy: dict[str, Any], address: str, port: int) -> None:
    assert not AddressPolicy(tuple(policy["networks"]), tuple(policy["ports"])).allows(address, port)


@pytest.mark.parametrize("text", VECTORS["no_addresses"])
def test_what_is_no_address_is_never_allowed(text: str) -> None:
    assert parse_address(text) is None
    assert address_kind(text) is None
    assert not AddressPolicy(("loopback", "private", "public", "0.0.0.0/0", "::/0")).allows(text, 80)


@pytest.mark.parametrize("text", VECTORS["refused_networks"])
def test_a_wrong_network_is_refused_with_its_place(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"networks\[1\]"):
        AddressPolicy(("public", text))


@pytest.mark.parametrize("text", VECTORS["refused_ports"])
def test_a_wrong_port_is_refused_with_its_place(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"ports\[1\]"):
        AddressPolicy(("public",), ("443", text))


NAT64 = [
    ("2606:4700::/32", "2606:4700:c000:221::"),
    ("2606:4700:100::/40", "2606:4700:1c0:2:21::"),
    ("2606:4700:122::/48", "2606:4700:122:c000:2:2100::"),
    ("2606:4700:122:300::/56", "2606:4700:122:3c0:0:221::"),
    ("2606:4700:122:344::/64", "2606:4700:122:344:c0:2:2100::"),
    ("2606:4700:122:344::/96", "2606:4700:122:344::192.0.2.33"),
]
"""As in RFC 6052 section 2.4, with another first half."""


@pytest.mark.parametrize(("prefix", "address"), NAT64)
def test_the_own_networks_translation_is_looked_through(prefix: str, address: str) -> None:
    parsed = ipaddress.ip_address(address)
    assert carried_ipv4(parsed) == ()
    assert carried_ipv4(parsed, [ipaddress.IPv6Network(prefix)]) == (ipaddress.IPv4Address("192.0.2.33"),)
    assert AddressPolicy(("public",)).allows(address, 80)
    assert not AddressPolicy(("public",), nat64_prefixes=(prefix,)).allows(address, 80)
    assert AddressPolicy(("public", "192.0.2.0/24"), nat64_prefixes=(prefix,)).allows(address, 80)


def test_the_local_use_prefix_is_read_one_way_when_it_is_said_which() -> None:
    networks = ("public", "64:ff9b:1::/48")
    assert not AddressPolicy(networks).allows("64:ff9b:1:808:8:800::", 80)
    said = AddressPolicy(networks, nat64_prefixes=("64:ff9b:1::/48",))
    assert said.allows("64:ff9b:1:808:8:800::", 80)
    assert not said.allows("64:ff9b:1:a00:0:100::", 80)


@pytest.mark.parametrize("text", ["10.0.0.0/8", "2606:4700::/33", "2606:4700::1", "public", "", "2606:4700::/128"])
def test_a_wrong_translation_prefix_is_refused_with_its_place(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"nat64_prefixes\[0\]"):
        AddressPolicy(("public",), nat64_prefixes=(text,))
    with pytest.raises(ConfigurationError, match="at most 16"):
        AddressPolicy(("public",), nat64_prefixes=("64:ff9b::/96",) * 17)


def test_the_error_says_what_was_probably_meant() -> None:
    with pytest.raises(ConfigurationError, match=r"did you mean 10\.0\.0\.0/8\?"):
        AddressPolicy(("10.1.0.0/8",))
    with pytest.raises(ConfigurationError, match="write it as IPv4"):
        AddressPolicy(("::ffff:10.0.0.0/104",))


def test_a_policy_is_bounded_and_takes_tuples_of_texts_only() -> None:
    AddressPolicy(("10.0.0.0/8",) * MAX_NETWORKS, ("80",) * MAX_PORT_RANGES)
    with pytest.raises(ConfigurationError, match="at most 256"):
        AddressPolicy(("10.0.0.0/8",) * (MAX_NETWORKS + 1))
    with pytest.raises(ConfigurationError, match="at most 64"):
        AddressPolicy(("public",), ("80",) * (MAX_PORT_RANGES + 1))
    for wrong in ("public", ["public"], (1,), None):
        with pytest.raises(ConfigurationError, match="networks is a tuple of texts"):
            AddressPolicy(wrong)  # type: ignore[arg-type]


def test_policies_that_say_the_same_are_equal_and_show_what_was_written() -> None:
    assert AddressPolicy(("public",)) == AddressPolicy(("public",), ALL_PORTS)
    assert repr(AddressPolicy(("public",), WEB_PORTS)) == (
        "AddressPolicy(networks=('public',), ports=('80', '443', '8080', '8443'), nat64_prefixes=())"
    )


def test_what_is_neither_text_nor_address_is_not_allowed() -> None:
    for wrong in (0x7F000001, b"\x7f\0\0\1", None, ("127.0.0.1", 80)):
        assert not EVERY_NAME.allows(wrong, 80)  # type: ignore[arg-type]


@given(ipv4_addresses)
def test_what_is_public_is_global_to_the_standard_library_too(address: ipaddress.IPv4Address) -> None:
    if address_kind(address) is AddressKind.PUBLIC:
        assert address.is_global


@given(ipv6_addresses)
def test_of_ipv6_only_global_unicast_is_public(address: ipaddress.IPv6Address) -> None:
    if address_kind(address) is AddressKind.PUBLIC and address.ipv4_mapped is None:
        assert int(address) >> 125 == 0b001
        assert address.is_global


@given(st.one_of(ipv4_addresses, ipv6_addresses))
def test_names_allow_ordinary_kinds_only(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    ordinary = {kind.value for kind in AddressKind} & {"public", "loopback", "unspecified", "private", "shared"}
    for name in ("loopback", "private", "public"):
        if AddressPolicy((name,)).allows(address, 80):
            kind = address_kind(address)
            assert kind is not None
            assert kind.value in ordinary


EMBEDDINGS = {
    "compatible": lambda v4: v4,
    "mapped": lambda v4: 0xFFFF << 32 | v4,
    "translated": lambda v4: 0xFFFF << 48 | v4,
    "NAT64": lambda v4: 0x64_FF9B << 96 | v4,
    "NAT64 for local use": lambda v4: 0x64_FF9B_0001 << 80 | v4,
    "NAT64 for local use, 48 bits": lambda v4: 0x64_FF9B_0001 << 80 | (v4 >> 16) << 64 | (v4 & 0xFFFF) << 40,
    "NAT64 for local use, 64 bits": lambda v4: 0x64_FF9B_0001 << 80 | v4 << 24,
    "6to4": lambda v4: 0x2002 << 112 | v4 << 80 | 1,
    "Teredo client": lambda v4: 0x2001_0000 << 96 | 0x08080808 << 64 | (v4 ^ 0xFFFFFFFF),
    "Teredo server": lambda v4: 0x2001_0000 << 96 | v4 << 64 | 0xF7F7F7F7,
    "ISATAP": lambda v4: 0x2606_4700 << 96 | 0x5EFE << 32 | v4,
    "ISATAP, universal": lambda v4: 0x2606_4700 << 96 | 0x0200_5EFE << 32 | v4,
}


POLICIES = [("public",), ("loopback", "private"), ("10.0.0.0/8", "8.0.0.0/8")]
WIDE = ("::/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "2606:4700::/32")
PAIRS = [(AddressPolicy(networks), AddressPolicy((*networks, *WIDE))) for networks in POLICIES]


@pytest.mark.parametrize("name", EMBEDDINGS)
@given(address=ipv4_addresses)
def test_no_embedding_leads_to_what_is_not_allowed(name: str, address: ipaddress.IPv4Address) -> None:
    """Also with every transition range allowed by hand."""
    outer = ipaddress.IPv6Address(EMBEDDINGS[name](int(address)))
    for strict, wide in PAIRS:
        if int(outer) > 1 and not strict.allows(address, 80):
            assert not wide.allows(outer, 80)


@given(st.one_of(ipv4_addresses, ipv6_addresses))
def test_all_networks_allow_what_the_names_allow_together(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    """What is for something special needs a network that was written for it."""
    assert EVERY_NETWORK.allows(address, 80) == EVERY_NAME.allows(address, 80)


@given(st.text(max_size=50), st.integers())
def test_random_text_is_an_address_or_not_allowed(text: str, port: int) -> None:
    if EVERY_NAME.allows(text, port):
        assert ipaddress.ip_address(text)


@given(st.text(st.sampled_from("0123456789abcdef:./-publicrvatok %"), max_size=24))
def test_random_entries_make_a_policy_or_one_error(text: str) -> None:
    for networks, ports in (((text,), ALL_PORTS), (("public",), (text,))):
        try:
            policy = AddressPolicy(networks, ports)
        except ConfigurationError:
            continue
        assert not policy.allows("169.254.169.254", 80) or "169.254" in text or "a9fe" in text
