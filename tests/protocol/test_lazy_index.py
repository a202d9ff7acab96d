"""A pattern that nobody has read yet is matched as if it had been."""

from __future__ import annotations

import random

import pytest

from httppubsubclient.protocol import lazy_index
from httppubsubclient.protocol.errors import InvalidGlob
from httppubsubclient.protocol.globs import parse_glob
from httppubsubclient.protocol.lazy_index import LazyIndex
from httppubsubclient.protocol.patterns import Pattern

Key = tuple[Pattern, int]

GLOB_PIECES = [
    *"ab-*?/é\\!",
    "/",
    "**",
    "/**",
    "**/",
    "[a]",
    "[aa]",
    "[a-a]",
    "[a-a-a]",
    "[a-]",
    "[-a]",
    "[--]",
    "[---]",
]
GLOB_PIECES += ["[!a]", "[^a]", "[ab]", "[[]", "[]]", "[\\a]", "[é]", "\\a", "\\/", "\\*", "\\[", "\\é", "abcabc" * 6]
MQTT_PIECES = [*"ab-*?é\\[$", "/", "/", "/+", "+/", "/#", "#", "+", "abcabc" * 6]
TOPIC_PIECES = [*"ab-!^*?é\\[]$", "/", "/", "abcabc" * 6]


def index() -> LazyIndex[Key]:
    return LazyIndex(lambda key: key[0])


def found(at: LazyIndex[Key], topic: bytes) -> list[Key]:
    while at.waits(topic):
        at.settle(topic, 1)
    return sorted(at.match(topic), key=lambda key: key[1])


def some(chance: random.Random) -> Pattern | None:
    kind = chance.choice(("glob", "glob", "mqtt", "exact"))
    pieces = {"glob": GLOB_PIECES, "mqtt": MQTT_PIECES, "exact": TOPIC_PIECES}[kind]
    text = "".join(chance.choices(pieces, k=chance.randrange(1, 7)))
    try:
        if kind == "exact":
            return Pattern.exact(text.encode())
        return Pattern.glob(text) if kind == "glob" else Pattern.mqtt(text)
    except InvalidGlob:
        return None


@pytest.mark.parametrize("seed", range(15))
def test_it_answers_as_if_all_had_been_read(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(seed)
    monkeypatch.setattr(lazy_index, "_MANY_STARTS", chance.choice((1, 5, 4096)))
    lazy, live = index(), dict[Key, None]()
    for number in range(400):
        if live and chance.random() < 0.3:
            key = chance.choice(list(live))
            del live[key]
            if chance.random() < 0.5:
                lazy.remove(key)
            else:
                live[key[0], number] = None
                lazy.swap(key, (key[0], number))
        elif (pattern := some(chance)) is not None:
            live[pattern, number] = None
            lazy.add((pattern, number))
        assert len(lazy) == len(live)
        if number % 8 == 0:
            topic = "".join(chance.choices(TOPIC_PIECES, k=chance.randrange(1, 6))).encode()
            if chance.random() < 0.05:
                topic += b"\xff"
            expected = []
            for key in live:
                matcher = key[0].matcher()
                if key[0].value == topic if matcher is None else matcher.matches(topic):
                    expected.append(key)
            assert found(lazy, topic) == expected, topic


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("orders/*/paid", b"orders/"),
        ("orders/eu-*", b"orders/eu-"),
        ("orders/**", b"orders/"),
        ("orders/**/x*", b"orders/"),
        ("a", b"a"),
        ("\\a/[b]/[c-cc]*", b"a/b/c"),
        ("**/a", b""),
        ("[ab]/x", b""),
        ("x" * 100 + "*", b"x" * 32),
    ],
)
def test_only_topics_that_begin_alike_have_to_wait(text: str, start: bytes) -> None:
    parse_glob(text)
    lazy = index()
    lazy.add((Pattern.glob(text), 0))
    for topic in (b"b", b"orders", b"orders/", b"orders/eu-1", b"a", b"a/b/c", b"x" * 99):
        assert lazy.waits(topic) == (topic + b"/").startswith(start)


def test_what_comes_and_goes_before_anybody_asks_leaves_nothing() -> None:
    lazy = index()
    for number in range(100):
        lazy.add((Pattern.glob(f"a{number}*"), number))
    lazy.settle(b"a1x", 10**6)
    for number in range(100):
        lazy.remove((Pattern.glob(f"a{number}*"), number))
    assert len(lazy) == 0
    assert found(lazy, b"a1x") == []
    assert not lazy._waiting
    assert not lazy._lengths
