"""Containment: always true when it says yes, with a counterexample when it says no, and bounded."""

from __future__ import annotations

import base64
import itertools
import json
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from httppubsubclient.protocol import containment as module
from httppubsubclient.protocol.containment import Containment, containment, contains
from httppubsubclient.protocol.errors import InvalidGlob
from httppubsubclient.protocol.patterns import Pattern, pattern_from_json
from tests.protocol.pattern_strategies import globs_and_topics, patterns, topics

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "containment.json").read_text())
SHORT_TOPICS = ["".join(letters) for length in range(1, 6) for letters in itertools.product("ab/", repeat=length)]


def matches(pattern: Pattern, topic: bytes) -> bool:
    matcher = pattern.matcher()
    return pattern.value == topic if matcher is None else matcher.matches(topic)


def named(rows: list[dict[str, Any]]) -> list[Any]:
    return [
        pytest.param(row, id=f"{' '.join(map(str, row['outers']))} and {row['inner']}".replace("'", "")) for row in rows
    ]


@pytest.mark.parametrize("row", named(VECTORS["contains"]))
def test_a_pattern_contains_another(row: dict[str, Any]) -> None:
    outers = [pattern_from_json(outer) for outer in row["outers"]]
    assert containment(outers, pattern_from_json(row["inner"])) == Containment(True)


@pytest.mark.parametrize("row", named(VECTORS["does_not"]))
def test_a_pattern_does_not_contain_another(row: dict[str, Any]) -> None:
    outers, inner = [pattern_from_json(outer) for outer in row["outers"]], pattern_from_json(row["inner"])
    expected = row.get("only_inner", "").encode() or base64.b64decode(row["only_inner_b64"])
    assert matches(inner, expected)
    assert not any(matches(outer, expected) for outer in outers)
    holds, found = containment(outers, inner)
    assert not holds
    assert found is not None
    assert matches(inner, found)
    assert not any(matches(outer, found) for outer in outers)


@settings(max_examples=60)
@given(st.lists(patterns, max_size=3), patterns, st.lists(topics, max_size=20))
def test_the_answer_agrees_with_the_matcher(outers: list[Pattern], inner: Pattern, some: list[bytes]) -> None:
    check(outers, inner, some)


@settings(max_examples=60)
@given(st.lists(globs_and_topics(), min_size=1, max_size=3), globs_and_topics())
def test_the_answer_agrees_with_the_matcher_for_globs_of_any_shape(outers: list[Any], inner: Any) -> None:
    check([Pattern.glob(outer.glob) for outer in outers], Pattern.glob(inner.glob), [inner.topic])


def check(outers: list[Pattern], inner: Pattern, some: list[bytes]) -> None:
    holds, counterexample = containment(outers, inner)
    if holds:
        for topic in some:
            assert not matches(inner, topic) or any(matches(outer, topic) for outer in outers)
    elif counterexample is not None:
        assert matches(inner, counterexample)
        assert not any(matches(outer, counterexample) for outer in outers)
    assert holds or counterexample is not None, "small patterns are decided"


short_glob = st.lists(
    st.sampled_from(["a", "b", "/", "/", "*", "**", "/**/", "?", "[ab]", "[!a]", "[!b]", "\\a"]),
    min_size=1,
    max_size=5,
).map("".join)


@settings(max_examples=40)
@given(st.lists(short_glob, min_size=1, max_size=2), short_glob)
@example(["a/**"], "**")
def test_the_answer_agrees_with_every_short_topic(outer_globs: list[str], inner_glob: str) -> None:
    outers, inner = [Pattern.glob(text) for text in outer_globs], Pattern.glob(inner_glob)
    matched = [topic.encode() for topic in SHORT_TOPICS if matches(inner, topic.encode())]
    left = [topic for topic in matched if not any(matches(outer, topic) for outer in outers)]
    holds, counterexample = containment(outers, inner)
    assert not (holds and left)
    if not holds:
        assert counterexample is not None


@given(patterns)
def test_a_pattern_contains_itself(pattern: Pattern) -> None:
    assert contains(pattern, pattern)
    if pattern.kind != "exact":
        assert contains(Pattern.glob("**"), pattern)


@settings(max_examples=60)
@given(globs_and_topics())
def test_a_glob_contains_itself(made: Any) -> None:
    assert contains(Pattern.glob(made.glob), Pattern.glob(made.glob))


@given(st.text(st.sampled_from("ab*?[]!-^\\/é"), min_size=1, max_size=12), st.text("ab/é-^]!", min_size=1, max_size=6))
def test_globs_are_read_as_the_matcher_reads_them(text: str, topic: str) -> None:
    """An exact topic is searched for here, too, when it is written as a glob."""
    try:
        outer = Pattern.glob(text)
    except InvalidGlob:
        assume(False)
    literal = Pattern.glob("".join(f"\\{character}" if character in "*?[\\" else character for character in topic))
    assume("**" not in topic)
    assert contains(outer, literal) == matches(outer, topic.encode())


def test_characters_beyond_the_basic_plane_and_next_to_the_surrogates_count_once() -> None:
    assert contains(Pattern.glob("[\ud7ff-\ue000]"), Pattern.glob("[\ud7ff\ue000]"))
    assert contains(Pattern.glob("[!b-\U0010ffff]"), Pattern.glob("[\0-a]"))
    assert not contains(Pattern.glob("[!\U0001f600]"), Pattern.glob("?"))
    assert containment([Pattern.glob("[!\U0001f600]")], Pattern.glob("?")).counterexample == "\U0001f600".encode()


def test_a_glob_that_nothing_matches_is_contained_in_everything() -> None:
    assert contains(Pattern.exact(b"x"), Pattern.glob("a[!\0-\U0010ffff]"))


def test_the_work_is_bounded_and_beyond_the_bound_the_answer_is_no(monkeypatch: pytest.MonkeyPatch) -> None:
    outer = Pattern.glob("*[ab]" + "?" * 40)
    inner = Pattern.glob("*[ab]" + "[ab]" * 12 + "?" * 28)
    steps: list[int] = []
    search = module._search

    def counted(*arguments: Any) -> Any:
        answer, left = search(*arguments)
        steps.append(arguments[2] - left)
        return answer, left

    monkeypatch.setattr(module, "_search", counted)
    assert contains(outer, inner)
    wide = Pattern.glob("*a" + "?" * 60)
    assert containment([wide], Pattern.glob("*" + "[ab]" * 12 + "a[ab]*" + "?" * 60)) == Containment(False)
    assert max(steps) <= module.MAX_CONTAINMENT_STEPS


LARGEST = [
    "".join(chr(0x100 + number) for number in range(512)),
    "*a" * 512,
    "?" * 1024,
    "*" + "?" * 1023,
    "/".join(["*" + "a" * 14] * 64),
    "**/" + "/".join(["*a?b*"] * 60),
    "[!ab]" * 64 + "*b" * 300,
    "".join(f"[{chr(0x80 + 4 * n)}-{chr(0x400 - 3 * n)}]" for n in range(64)) + "*" + string.ascii_letters * 5,
    "/".join(["**/*a"] * 8),
]


@pytest.mark.parametrize("inner", LARGEST, ids=range(len(LARGEST)))
def test_the_largest_patterns_are_answered(inner: str) -> None:
    for outer in LARGEST:
        holds, counterexample = containment([Pattern.glob(outer)], Pattern.glob(inner))
        assert holds or counterexample is None or matches(Pattern.glob(inner), counterexample)
        assert outer != inner or holds
