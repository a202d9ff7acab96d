"""Globs and MQTT filters match what docs/protocol.md and MQTT 5.0 section 4.7 say, and never slowly."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from wcmatch import glob as wcmatch_glob

from httppubsubclient.protocol.errors import InvalidGlob
from httppubsubclient.protocol.globs import (
    MAX_CLASSES,
    MAX_DOUBLE_STARS,
    MAX_PATTERN_BYTES,
    MAX_SEGMENTS,
    Glob,
    MqttFilter,
    Shape,
    parse_glob,
    parse_mqtt_filter,
)
from httppubsubclient.protocol.topics import MAX_TOPIC_BYTES
from tests.protocol.pattern_strategies import GlobAndTopic, any_text, globs_and_topics, syntax_text

VECTORS = Path(__file__).parent.parent / "vectors"
PARSERS: dict[str, Callable[[str], Glob | MqttFilter]] = {"glob": parse_glob, "mqtt": parse_mqtt_filter}


def vectors() -> Iterator[tuple[str, dict[str, Any]]]:
    for kind, name in (("glob", "globs.json"), ("mqtt", "mqtt_filters.json")):
        yield kind, json.loads((VECTORS / name).read_text("utf-8"))


def rows(member: str) -> list[Any]:
    return [pytest.param(kind, row, id=ascii(row[kind])) for kind, document in vectors() for row in document[member]]


@pytest.mark.parametrize(("kind", "row"), rows("match"))
def test_a_pattern_matches_what_the_vectors_say_and_nothing_else(kind: str, row: dict[str, Any]) -> None:
    pattern = PARSERS[kind](row[kind])
    answers = {topic: pattern.matches(topic.encode()) for topic in [*row["matches"], *row["not"]]}
    assert answers == dict.fromkeys(row["matches"], True) | dict.fromkeys(row["not"], False)


@pytest.mark.parametrize(("kind", "row"), rows("refused"))
def test_a_malformed_pattern_is_refused_and_told_why(kind: str, row: dict[str, Any]) -> None:
    with pytest.raises(InvalidGlob) as caught:
        PARSERS[kind](row[kind])
    assert row["why"] in caught.value.detail


def test_no_pattern_matches_a_topic_that_is_not_utf8() -> None:
    for kind, document in vectors():
        patterns = [PARSERS[kind](row[kind]) for row in document["match"]]
        for encoded in document["never_match_topics_b64"]:
            assert not any(pattern.matches(base64.b64decode(encoded)) for pattern in patterns)


@pytest.mark.parametrize(
    ("kind", "text", "position"),
    [
        ("glob", "a/[b", 2),
        ("glob", "éé[", 2),
        ("glob", "a/b\\", 3),
        ("glob", "[ab/c]", 3),
        ("glob", "x[az-a]", 3),
        ("glob", "x[y[:digit:]]", 3),
        ("glob", "ab\ud800c", 2),
        ("mqtt", "a/b#", 3),
        ("mqtt", "a/#/b", 2),
        ("mqtt", "+/b+", 3),
        ("mqtt", "a/\0", 2),
        ("mqtt", "\udfff", 0),
    ],
)
def test_the_error_names_the_position_of_the_fault(kind: str, text: str, position: int) -> None:
    with pytest.raises(InvalidGlob, match=rf"position {position} \(counted from 0\): ") as caught:
        PARSERS[kind](text)
    assert caught.value.detail.isascii()
    assert caught.value.detail.isprintable()


@pytest.mark.parametrize("kind", ["glob", "mqtt"])
def test_a_pattern_has_at_most_its_bytes_and_segments(kind: str) -> None:
    parse = PARSERS[kind]
    assert parse("é" * (MAX_PATTERN_BYTES // 2)).matches("é".encode() * (MAX_PATTERN_BYTES // 2))
    with pytest.raises(InvalidGlob, match="1 to 1024 bytes of UTF-8; this one has 1025"):
        parse("é" * (MAX_PATTERN_BYTES // 2) + "x")
    with pytest.raises(InvalidGlob, match="this one has 65000"):
        parse("*" * 65_000)
    assert parse("/" * (MAX_SEGMENTS - 1)).matches(b"/" * (MAX_SEGMENTS - 1))
    with pytest.raises(InvalidGlob, match=f"more than {MAX_SEGMENTS} segments"):
        parse("/" * MAX_SEGMENTS)


def test_a_glob_has_at_most_so_many_double_stars_and_classes() -> None:
    parse_glob("**/a/" * MAX_DOUBLE_STARS)
    with pytest.raises(InvalidGlob, match=f"more than {MAX_DOUBLE_STARS} "):
        parse_glob("**/a/" * (MAX_DOUBLE_STARS + 1))
    parse_glob("[ab]" * MAX_CLASSES)
    with pytest.raises(InvalidGlob, match=f"more than {MAX_CLASSES} "):
        parse_glob("[ab]" * (MAX_CLASSES + 1))


def test_double_stars_in_a_row_are_one() -> None:
    assert parse_glob("**/" * 300 + "a").segments == parse_glob("**/a").segments


@pytest.mark.parametrize("parse", PARSERS.values())
def test_what_is_not_text_is_refused(parse: Any) -> None:
    with pytest.raises(InvalidGlob, match="text, not bytes"):
        parse(b"a/*")


@pytest.mark.parametrize(("parse", "text"), [(parse_glob, "a/*[bc]?/**"), (parse_mqtt_filter, "a/+/#")])
def test_a_parsed_pattern_is_a_value(parse: Any, text: str) -> None:
    first, second = parse(text), parse(text)
    assert first == second
    assert hash(first) == hash(second)
    assert first != parse("b")
    assert first.text == text
    assert repr(first) == f"{type(first).__name__}(text={text!r})"
    with pytest.raises(AttributeError):
        first.text = "b"


# What wcmatch does differently on purpose, because its topics are files:
#   - several "/" in a row are one, and one at the end may be more: empty segments do not exist;
#   - "." and ".." are matched by no wildcard;
#   - "a/**" does not match "a".
# So both sides are translated, whatever they are: each segment but "**" gets a "~" in front (no segment is empty or
# made of dots any more, and "~*" is to "~x" what "*" is to "x"), and "/~" follows at the end (no "**" is last).
# Not generated, because we refuse it and wcmatch does not: what is malformed, and named classes.
def wcmatch_says(case: GlobAndTopic) -> bool:
    glob = "/".join(segment if segment == "**" else "~" + segment for segment in (*case.glob_segments, ""))
    topic = "/".join("~" + segment for segment in (*case.topic_segments, ""))
    flags = wcmatch_glob.GLOBSTAR | wcmatch_glob.DOTGLOB | wcmatch_glob.FORCEUNIX | wcmatch_glob.CASE
    return bool(wcmatch_glob.globmatch(topic, glob, flags=flags))


@settings(max_examples=300, deadline=None)
@given(globs_and_topics())
@example(GlobAndTopic(("a", "**"), ("a",)))
@example(GlobAndTopic(("a", "", "b"), ("a", "b")))
@example(GlobAndTopic(("*",), ("..",)))
@example(GlobAndTopic(("***",), ("a", "b")))
def test_a_glob_agrees_with_wcmatch(case: GlobAndTopic) -> None:
    assert parse_glob(case.glob).matches(case.topic) == wcmatch_says(case)


def test_the_random_globs_match_about_as_often_as_not() -> None:
    seen: list[bool] = []

    @settings(max_examples=200, deadline=None, database=None, derandomize=True)
    @given(globs_and_topics())
    def collect(case: GlobAndTopic) -> None:
        seen.append(parse_glob(case.glob).matches(case.topic))

    collect()
    assert 0.1 < sum(seen) / len(seen) < 0.9


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40))
def test_every_text_can_be_escaped_to_match_exactly_itself(text: str) -> None:
    escaped = "".join("\\" + character for character in text)
    assert parse_glob(escaped).matches(text.encode())
    assert not parse_glob(escaped).matches(text.encode() + b"x")


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(any_text, syntax_text),
    st.one_of(st.binary(max_size=40), syntax_text.map(str.encode)),
    st.sampled_from(sorted(PARSERS)),
)
@example("[[", b"[", "glob")
@example("[a&&b]", b"&", "glob")
@example("[--a]", b"-", "glob")
@example("*[~~]*", b"~", "glob")
def test_random_text_is_a_pattern_or_refused_and_nothing_else(text: str, topic: bytes, kind: str) -> None:
    try:
        pattern = PARSERS[kind](text)
    except InvalidGlob:
        return
    assert pattern.matches(topic) in (True, False)


FULL = MAX_TOPIC_BYTES

HOSTILE = [
    # Each would take longer than the sun has left for a matcher that tries all ways to divide the topic.
    pytest.param("*a" * 511 + "*", b"a" * FULL, True, id="stars that all fit"),
    pytest.param("*a" * 510 + "*b?", b"a" * FULL, False, id="stars, then one that never fits"),
    pytest.param("*a?" * 300 + "*b?", b"a" * FULL, False, id="stars with any characters"),
    pytest.param("*[ab]" * 63 + "*[c]?", b"a" * FULL, False, id="stars with classes"),
    pytest.param("*[!-~]" * 63 + "*?", b"a" * FULL, True, id="stars with negated classes"),
    pytest.param("?*" * 512, b"a" * FULL, True, id="question marks and stars"),
    pytest.param("*" * 1024, b"a" * FULL, True, id="nothing but stars"),
    pytest.param("?*" + "a" * 1000 + "[bc]*?", b"a" * FULL, False, id="one long piece that nearly fits everywhere"),
    pytest.param("**/a/" * 8 + "b", b"a/" * (FULL // 2), False, id="double stars"),
    pytest.param("**/*/" * 8 + "b", b"a/" * (FULL // 2 - 1) + b"b", True, id="double stars and stars"),
    pytest.param("**/*a*/" * 8 + "?b", b"aa/" * (FULL // 3), False, id="double stars and shapes"),
    pytest.param(
        "**/" + "?/" * 55 + "b/**/?", b"a/" * (FULL // 2), False, id="a long group that nearly fits everywhere"
    ),
    pytest.param("**/" * 341, b"a/" * (FULL // 2), True, id="double stars in a row"),
]


@pytest.mark.parametrize(("text", "topic", "expected"), HOSTILE)
def test_a_hostile_glob_is_answered_at_once(text: str, topic: bytes, expected: bool) -> None:
    assert parse_glob(text).matches(topic) is expected


@pytest.mark.parametrize("text", ["**/?a*/" * 8 + "[xy]?", "**/" + "?/" * 55 + "[xy]*/**/?", "?*/" * 60 + "**/[xy]"])
def test_the_work_grows_with_the_topic_and_no_faster(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = 0
    matches = Shape.matches

    def counting(self: Shape, segment: str, cold: list[Shape] | None = None) -> bool:
        nonlocal counted
        counted += 1
        return matches(self, segment, cold)

    monkeypatch.setattr(Shape, "matches", counting)
    glob = parse_glob(text)
    for length in (128, 256, 512, 1024):
        counted = 0
        assert not glob.matches(b"/".join([b"aa"] * length))
        assert counted <= length * len(glob.segments)
