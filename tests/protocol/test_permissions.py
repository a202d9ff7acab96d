"""Permissions: what a key may do, read strictly, and refused with what was asked and what is permitted."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from httppubsubclient.protocol.errors import ConfigurationError, Forbidden, InvalidGlob
from httppubsubclient.protocol.patterns import Pattern, pattern_from_json
from httppubsubclient.protocol.permissions import (
    MAX_PERMITTED_GLOBS,
    Permissions,
    Quotas,
    permissions_from_json,
    permissions_to_json,
)
from httppubsubclient.protocol.token_bucket import Rate
from tests.protocol.pattern_strategies import patterns, topics

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "permissions.json").read_text())


@pytest.mark.parametrize("row", VECTORS["keys"], ids=lambda row: json.dumps(row["key"]))
def test_a_key_may_do_what_its_globs_say(row: dict[str, Any]) -> None:
    permissions = permissions_from_json(row["key"], "key")
    for name, expected in (("publish", True), ("not_publish", False)):
        named = [text.encode() for text in row[name]] + [base64.b64decode(text) for text in row[f"{name}_b64"]]
        assert [permissions.may_publish(topic) for topic in named] == [expected] * len(named)
    for name, expected in (("subscribe", True), ("not_subscribe", False)):
        for pattern in map(pattern_from_json, row[name]):
            assert permissions.may_subscribe(pattern) is expected, pattern


@pytest.mark.parametrize(("key", "place"), VECTORS["refused"], ids=lambda value: str(value)[:40])
def test_a_wrong_member_is_refused_with_its_place(key: object, place: str) -> None:
    with pytest.raises(ConfigurationError, match="^" + re.escape(place)):
        permissions_from_json(key, "key")


def test_numbers_that_only_python_writes_are_refused() -> None:
    for value in (float("nan"), float("inf")):
        for fields in ({"valid_until": value}, {"quotas": {"messages_per_second": value}}):
            with pytest.raises(ConfigurationError):
                permissions_from_json(fields, "key")


def test_a_list_of_globs_is_bounded() -> None:
    permissions_from_json({"publish": ["a"] * MAX_PERMITTED_GLOBS}, "key")
    with pytest.raises(ConfigurationError, match="at most 64 globs"):
        permissions_from_json({"publish": ["a"] * (MAX_PERMITTED_GLOBS + 1)}, "key")
    with pytest.raises(InvalidGlob):
        Permissions(publish=("[",))


def test_the_members_that_others_read_are_passed_over_and_never_shown() -> None:
    permissions = permissions_from_json({"id": "k", "secret": "s3cret", "use_after": 1, "publish": ["a"]}, "key")
    assert "s3cret" not in repr(permissions)
    assert permissions == Permissions(publish=("a",))


def test_who_may_not_publish_is_told_the_topic_and_what_is_permitted() -> None:
    permissions = Permissions(publish=("orders/*", "status"))
    permissions.check_publish(b"status")
    with pytest.raises(Forbidden) as caught:
        permissions.check_publish(b"bills/\n1")
    assert str(caught.value) == (
        "this key may not publish to the topic bills/%0A1; it may publish to 'orders/*', 'status'"
    )
    with pytest.raises(Forbidden, match=r"may publish to nothing$"):
        Permissions(publish=()).check_publish(b"a")


def test_who_may_not_subscribe_is_told_a_topic_that_is_too_much() -> None:
    permissions = Permissions(subscribe=tuple(f"orders/{number}/*" for number in range(7)))
    permissions.check_subscribe(Pattern.glob("orders/[2-4]/x"))
    permissions.check_subscribe(Pattern.exact(b"orders/1/x"))
    with pytest.raises(Forbidden) as caught:
        permissions.check_subscribe(Pattern.glob("orders/[5-7]/x"))
    assert str(caught.value) == (
        "this key may not subscribe to the glob 'orders/[5-7]/x', which matches orders/7/x, for example; "
        "it may subscribe to 'orders/0/*', 'orders/1/*', 'orders/2/*', 'orders/3/*', 'orders/4/*' and 2 more"
    )
    with pytest.raises(Forbidden, match=r"the MQTT filter 'orders/#', which matches orders, for example; "):
        permissions.check_subscribe(Pattern.mqtt("orders/#"))
    with pytest.raises(Forbidden, match=r"the glob 'foo/\*', which matches foo/x, for example; "):
        permissions.check_subscribe(Pattern.glob("foo/*"))
    with pytest.raises(Forbidden, match=r"the glob '\*/', which matches /, for example; "):
        Permissions(subscribe=("x/x", "*/y")).check_subscribe(Pattern.glob("*/"))
    with pytest.raises(Forbidden, match="the topic orders/9; it may"):
        permissions.check_subscribe(Pattern.exact(b"orders/9"))
    Permissions().check_subscribe(Pattern.exact(b"\xff"))


def test_what_is_too_intricate_to_tell_is_refused() -> None:
    permissions = Permissions(subscribe=("*a" + "?" * 60,))
    with pytest.raises(Forbidden, match="ask for simpler ones"):
        permissions.check_subscribe(Pattern.glob("*" + "[ab]" * 12 + "a[ab]*" + "?" * 60))


def test_a_key_ends_at_its_moment() -> None:
    permissions = Permissions(valid_until=1000.5)
    assert permissions.is_valid(1000)
    assert not permissions.is_valid(1000.5)
    assert Permissions().is_valid(2**53)


def test_quotas_become_rates() -> None:
    quotas = Quotas(subscriptions=2, messages_per_second=0.1, bytes_per_second=1000)
    assert quotas.message_rate == Rate(0.1, 1)
    assert quotas.byte_rate == Rate(1000, 2000)
    assert quotas.allows_subscriptions(2)
    assert not quotas.allows_subscriptions(3)
    none = Quotas()
    assert (none.message_rate, none.byte_rate, none.allows_subscriptions(10**9)) == (None, None, True)
    for least in (0.001, 5e11):
        read = permissions_from_json({"quotas": {"messages_per_second": least}}, "key").quotas
        assert read.message_rate is not None


globs = st.lists(st.sampled_from(["a", "a/*", "**", "[ab]*", "é/?"]), max_size=3).map(tuple)
rates = st.one_of(st.none(), st.floats(0.001, 1e11), st.integers(1, 10**11))
made = st.builds(
    Permissions,
    publish=st.none() | globs,
    subscribe=st.none() | globs,
    admin=st.booleans(),
    quotas=st.builds(Quotas, st.none() | st.integers(0, 10**9), rates, rates),
    valid_until=st.none() | st.integers(0, 2**53) | st.floats(0, 2**53),
)


@given(made)
def test_permissions_survive_their_json(permissions: Permissions) -> None:
    text = json.dumps(permissions_to_json(permissions))
    assert permissions_from_json(json.loads(text), "key") == permissions


@given(globs, patterns, topics)
def test_who_may_subscribe_sees_only_what_the_globs_match(
    permitted: tuple[str, ...], asked: Pattern, topic: bytes
) -> None:
    permissions = Permissions(publish=permitted, subscribe=permitted)
    matcher = asked.matcher()
    matched = asked.value == topic if matcher is None else matcher.matches(topic)
    if matched and permissions.may_subscribe(asked):
        assert permissions.may_publish(topic)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
members = st.sampled_from(
    ["publish", "subscribe", "admin", "quotas", "valid_until", "subscriptions", "messages_per_second", "x"]
)


@given(st.dictionaries(members, anything | st.dictionaries(members, anything, max_size=2), max_size=3) | anything)
def test_random_json_is_permissions_or_one_error(obj: object) -> None:
    try:
        permissions = permissions_from_json(obj, "key")
    except ConfigurationError:
        return
    assert permissions_from_json(permissions_to_json(permissions), "key") == permissions
