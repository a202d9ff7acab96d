"""The index answers what trying every pattern would answer, through every change, without trying every pattern."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from httppubsubclient.protocol.globs import MAX_SEGMENTS, Shape
from httppubsubclient.protocol.patterns import Pattern
from httppubsubclient.protocol.shape_index import ShapeIndex
from httppubsubclient.protocol.topic_index import TopicIndex
from tests.protocol.pattern_strategies import GlobAndTopic, globs_and_topics, patterns, topics


def one_by_one(entries: dict[int, Pattern], topic: bytes) -> list[int]:
    found = []
    for key, pattern in entries.items():
        matcher = pattern.matcher()
        if pattern.value == topic if matcher is None else matcher.matches(topic):
            found.append(key)
    return sorted(found)


def indexed(*each: Pattern) -> TopicIndex[int]:
    index: TopicIndex[int] = TopicIndex()
    for key, pattern in enumerate(each):
        index.add(pattern, key)
    return index


def holds_nothing(index: TopicIndex[int]) -> bool:
    """Whether no node and no dict entry is left; that is memory, so it cannot be asked from outside."""
    return not len(index) and not index._exact and index._root.empty() and index._root_without_dollar.empty()


def test_exact_topics_globs_and_filters_stand_side_by_side() -> None:
    index: TopicIndex[str] = TopicIndex()
    index.add(Pattern.exact(b"a/b"), "exact")
    index.add(Pattern.glob("a/*"), "star")
    index.add(Pattern.glob("a/[bc]"), "class")
    index.add(Pattern.glob("a/b"), "plain glob")
    index.add(Pattern.glob("**"), "all")
    index.add(Pattern.mqtt("+/b"), "plus")
    index.add(Pattern.mqtt("a/b/#"), "hash")
    index.add(Pattern.glob("b/*"), "other")
    assert sorted(index.match(b"a/b")) == ["all", "class", "exact", "hash", "plain glob", "plus", "star"]
    assert sorted(index.match(b"a/c")) == ["all", "class", "star"]
    assert index.match(b"z") == ["all"]
    assert len(index) == 8


def test_an_exact_topic_is_never_read_as_a_pattern() -> None:
    index = indexed(Pattern.exact(b"a/*"), Pattern.exact(b"#"), Pattern.exact(b"\xff"), Pattern.glob("\\*"))
    assert index.match(b"a/b") == []
    assert index.match(b"a/*") == [0]
    assert index.match(b"#") == [1]
    assert index.match(b"\xff") == [2]
    assert index.match(b"*") == [3]


def test_a_topic_that_is_not_utf8_is_matched_by_its_exact_subscription_only() -> None:
    index = indexed(Pattern.glob("**"), Pattern.mqtt("#"), Pattern.exact(b"a/\xff"))
    assert index.match(b"a/\xff") == [2]


def test_dollar_topics_are_skipped_by_filters_that_start_with_a_wildcard_and_by_those_only() -> None:
    index = indexed(
        Pattern.mqtt("#"), Pattern.mqtt("+/a"), Pattern.mqtt("$SYS/#"), Pattern.glob("**"), Pattern.glob("*/a")
    )
    assert sorted(index.match(b"$SYS/a")) == [2, 3, 4]
    assert sorted(index.match(b"SYS/a")) == [0, 1, 3, 4]


def test_one_pattern_may_stand_for_many_keys() -> None:
    index: TopicIndex[int] = TopicIndex()
    for pattern in (Pattern.exact(b"a"), Pattern.glob("b*"), Pattern.mqtt("c/+")):
        for key in range(20):
            index.add(pattern, key)
    assert len(index) == 60
    for topic in (b"a", b"bx", b"c/d"):
        assert sorted(index.match(topic)) == list(range(20))
    for pattern in (Pattern.exact(b"a"), Pattern.glob("b*"), Pattern.mqtt("c/+")):
        for key in range(19):
            assert index.remove(pattern, key)
    for topic in (b"a", b"bx", b"c/d"):
        assert index.match(topic) == [19]


@pytest.mark.parametrize(
    "pattern", [Pattern.exact(b"a"), Pattern.glob("a*"), Pattern.mqtt("+/#"), Pattern.glob("a")], ids=str
)
def test_adding_twice_is_adding_once(pattern: Pattern) -> None:
    index = indexed(pattern)
    index.add(pattern, 0)
    assert len(index) == 1
    assert index.match(b"a") == [0]
    assert index.remove(pattern, 0)
    assert holds_nothing(index)


@pytest.mark.parametrize(
    "pattern", [Pattern.exact(b"a"), Pattern.glob("a/*"), Pattern.glob("a/b*/c"), Pattern.mqtt("+/#")], ids=str
)
def test_removing_what_is_not_there_says_so_and_changes_nothing(pattern: Pattern) -> None:
    index: TopicIndex[int] = TopicIndex()
    assert not index.remove(pattern, 1)
    assert holds_nothing(index)
    index.add(pattern, 1)
    assert not index.remove(pattern, 2)
    assert not index.remove(Pattern.glob("a/b*/c/d"), 1)
    assert len(index) == 1
    assert index.remove(pattern, 1)
    assert not index.remove(pattern, 1)


def test_removing_one_pattern_keeps_those_that_share_its_way() -> None:
    index = indexed(Pattern.glob("a/*/c"), Pattern.glob("a/*"), Pattern.glob("a/*/c/**"), Pattern.glob("a/*/d"))
    assert index.remove(Pattern.glob("a/*/c"), 0)
    assert sorted(index.match(b"a/b/c")) == [2]
    assert index.match(b"a/b") == [1]
    assert index.match(b"a/b/d") == [3]


def test_a_pattern_that_goes_its_own_way_later_takes_nothing_from_its_neighbours() -> None:
    """Each adds a way off in the middle of what was the rest of one pattern alone."""
    each = [
        Pattern.glob("a/*/c/d/e"),
        Pattern.glob("a/*/c/d/**"),
        Pattern.glob("a/*/c"),
        Pattern.glob("a/*/c/**/e"),
        Pattern.glob("a/*/c/d*/e"),
        Pattern.glob("a/*/c/*/e"),
        Pattern.glob("a/*"),
        Pattern.glob("a/**/c/d/e"),
    ]
    topics = [b"a/b/c/d/e", b"a/b/c", b"a/b", b"a/b/c/d", b"a/b/c/x/e", b"a/b/c/d/e/f", b"a/c/d/e", b"a/b/c/e"]
    for order in (each, each[::-1], each[3:] + each[:3]):
        index = indexed(*order)
        entries = dict(enumerate(order))
        while entries:
            for topic in topics:
                assert sorted(index.match(topic)) == one_by_one(entries, topic)
            key, pattern = entries.popitem()
            assert index.remove(pattern, key)
        assert holds_nothing(index)


def test_a_key_may_be_of_any_type() -> None:
    index: TopicIndex[object] = TopicIndex()
    keys: list[object] = [(), (1, 2), frozenset({3}), None, "key"]
    for count, key in enumerate(keys, start=1):
        for pattern in (Pattern.exact(b"a"), Pattern.glob("*")):
            index.add(pattern, key)
        assert set(index.match(b"a")) == set(keys[:count])
        assert len(index.match(b"a")) == 2 * count
    for key in keys:
        for pattern in (Pattern.exact(b"a"), Pattern.glob("*")):
            assert index.remove(pattern, key)
    assert not index.match(b"a")


def test_clear_forgets_everything() -> None:
    index = indexed(Pattern.exact(b"a"), Pattern.glob("**"), Pattern.mqtt("#"))
    index.clear()
    assert holds_nothing(index)
    assert index.match(b"a") == []
    index.add(Pattern.glob("*"), 7)
    assert index.match(b"a") == [7]


@settings(max_examples=150, deadline=None)
@given(st.lists(patterns, max_size=30), st.lists(topics, min_size=1, max_size=6))
def test_the_index_agrees_with_matching_one_by_one(each: list[Pattern], asked: list[bytes]) -> None:
    index = indexed(*each)
    for topic in asked:
        assert sorted(index.match(topic)) == one_by_one(dict(enumerate(each)), topic)


@settings(max_examples=100, deadline=None)
@given(st.lists(globs_and_topics(), min_size=1, max_size=6))
def test_the_index_agrees_for_globs_of_every_form(cases: list[GlobAndTopic]) -> None:
    each = [Pattern.glob(case.glob) for case in cases]
    index = indexed(*each)
    for case in cases:
        topic = case.topic
        assert sorted(index.match(topic)) == one_by_one(dict(enumerate(each)), topic)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), patterns), max_size=40), st.lists(topics, min_size=1, max_size=4))
def test_the_index_agrees_through_random_changes(changes: list[tuple[int, Pattern]], asked: list[bytes]) -> None:
    index: TopicIndex[int] = TopicIndex()
    entries: dict[int, Pattern] = {}
    for key, pattern in changes:
        known = entries.pop(key, None)
        if known is not None:
            assert index.remove(known, key)
        else:
            index.add(pattern, key)
            entries[key] = pattern
        assert len(index) == len(entries)
        for topic in asked:
            assert sorted(index.match(topic)) == one_by_one(entries, topic)
    for key, pattern in entries.items():
        assert index.remove(pattern, key)
    assert holds_nothing(index)


FAMILIES: dict[str, tuple[Callable[[int], Pattern], bytes]] = {
    "plain segments": (lambda i: Pattern.glob(f"a/{i}/*"), b"a/77/x"),
    "beginnings": (lambda i: Pattern.glob(f"a/dev-{i}-*"), b"a/dev-77-x"),
    "beginnings with more to them": (lambda i: Pattern.glob(f"a/dev-{i}-*[xy]?"), b"a/dev-77-xy"),
    "ends": (lambda i: Pattern.glob(f"a/*-{i}.json"), b"a/dev-77.json"),
    "ends behind a common beginning": (lambda i: Pattern.glob(f"a/dev-*-{i}"), b"a/dev-x-77"),
    "beginnings before a common end": (lambda i: Pattern.glob(f"a/{i}-*-measured"), b"a/77-x-measured"),
    "insides": (lambda i: Pattern.glob(f"a/*-{i}-*"), b"a/dev-77-x"),
    "double stars": (lambda i: Pattern.glob(f"**/x{i}-*/**/y{i}-*"), b"a/b/x77-a/c/d/y77-b"),
    "filters": (lambda i: Pattern.mqtt(f"+/{i}/+/x/#"), b"a/77/x/x/y"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_work_does_not_grow_with_the_patterns_that_do_not_match(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, topic = FAMILIES[family]
    tried: list[Shape] = []
    matches = Shape.matches

    def counting(self: Shape, segment: str, cold: list[Shape] | None = None) -> bool:
        tried.append(self)
        return matches(self, segment, cold)

    monkeypatch.setattr(Shape, "matches", counting)
    counts = []
    for size in (100, 3000):
        index = indexed(*(written(i) for i in range(size)))
        tried.clear()
        assert index.match(topic) == [77]
        counts.append(len(tried))
    assert counts[0] == counts[1] <= 4


def test_a_node_behind_a_double_star_is_reached_once_however_many_ways_lead_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = 0
    matching = ShapeIndex.matching

    def counting(self: ShapeIndex[object], segment: str, cold: list[Shape] | None = None) -> list[object]:
        nonlocal asked
        asked += 1
        return matching(self, segment, cold)

    monkeypatch.setattr(ShapeIndex, "matching", counting)
    index = indexed(
        Pattern.glob("**/a*/" * 8 + "b"),
        Pattern.glob("**/a*/" * 7 + "b"),
        Pattern.glob("**/a*/*/" * 8 + "c"),
        Pattern.glob("**/*a*/" * 8 + "d"),
        Pattern.glob("**/?/" * 8 + "e"),
    )
    nodes = 5 * 8 * 3
    for length in (64, 128, 256, 512):
        asked = 0
        assert index.match(b"/".join([b"aa"] * length)) == []
        assert asked <= length * nodes


def test_the_deepest_patterns_and_topics_need_no_deep_stack() -> None:
    deepest = [
        Pattern.glob("/".join(["*"] * MAX_SEGMENTS)),
        Pattern.glob("/".join(["a*"] * (MAX_SEGMENTS - 1)) + "/**"),
        Pattern.mqtt("/".join(["a"] * (MAX_SEGMENTS - 1)) + "/#"),
        Pattern.glob("**/a/" * 7 + "**"),
    ]
    limit = sys.getrecursionlimit()
    depth = 0
    frame = sys._getframe()
    while frame.f_back is not None:
        frame, depth = frame.f_back, depth + 1
    sys.setrecursionlimit(depth + 30)
    try:
        index = indexed(*deepest)
        found = sorted(index.match(b"/".join([b"a"] * 2048)))
        removed = [index.remove(pattern, key) for key, pattern in enumerate(deepest)]
    finally:
        sys.setrecursionlimit(limit)
    assert found == [1, 2, 3]
    assert removed == [True] * len(deepest)
    assert holds_nothing(index)


def test_shapes_are_found_by_ends_and_insides_longer_than_what_is_looked_up() -> None:
    long = "x" * 100
    index = indexed(
        Pattern.glob(f"{long}1*"), Pattern.glob(f"{long}2*"), Pattern.glob(f"*1{long}"), Pattern.glob(f"*{long}3*")
    )
    assert index.match(f"{long}1".encode()) == [0]
    assert index.match(f"{long}2y".encode()) == [1]
    assert index.match(f"a1{long}".encode()) == [2]
    assert index.match(f"a{long}3b".encode()) == [3]
    assert index.match(b"x" * 64) == []


def test_thousands_of_globs_agree_with_matching_one_by_one() -> None:
    chance = random.Random(7)
    words = ["eu", "us", "orders", "paid", "dev-1", "dev-22", "x.json"]
    wild = ["*", "**", "dev-*", "*.json", "*e*", "?u", "[eu][us]", "o*s"]
    each = [
        Pattern.glob(
            "/".join(chance.choice(words if chance.random() < 0.6 else wild) for _ in range(chance.randint(1, 5)))
        )
        for _ in range(2000)
    ]
    index = indexed(*each)
    for _ in range(20):
        topic = "/".join(chance.choice(words) for _ in range(chance.randint(1, 5))).encode()
        assert sorted(index.match(topic)) == one_by_one(dict(enumerate(each)), topic)
