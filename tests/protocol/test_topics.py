"""Topics, and patterns as values: their forms in a query, in a header and in JSON, both ways."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from httppubsubclient.protocol.errors import InvalidGlob, InvalidRequest, InvalidTopic
from httppubsubclient.protocol.globs import parse_glob, parse_mqtt_filter
from httppubsubclient.protocol.patterns import Pattern, pattern_from_json
from httppubsubclient.protocol.topics import (
    MAX_TOPIC_BYTES,
    check_topic,
    decode_topic,
    encode_topic,
    shown_topic,
    topic_from_json,
    topic_to_json,
)
from tests.protocol.pattern_strategies import any_text, patterns

VECTORS: dict[str, Any] = json.loads((Path(__file__).parent.parent / "vectors" / "topics.json").read_text("utf-8"))


@pytest.mark.parametrize("row", VECTORS["forms"], ids=lambda row: row["encoded"])
def test_a_topic_has_one_form_in_a_query_and_one_in_json(row: dict[str, Any]) -> None:
    topic = base64.b64decode(row["bytes_b64"])
    assert encode_topic(topic) == row["encoded"]
    assert decode_topic(row["encoded"]) == topic
    assert topic_to_json(topic) == row["json"]
    assert topic_from_json(row["json"]) == topic


@pytest.mark.parametrize("row", VECTORS["also_decoded"], ids=lambda row: row["encoded"])
def test_other_encodings_of_a_topic_are_accepted(row: dict[str, Any]) -> None:
    assert decode_topic(row["encoded"]) == base64.b64decode(row["bytes_b64"])


def test_a_topic_that_is_text_may_still_come_as_base64() -> None:
    assert topic_from_json({"topic_b64": "Zm9v"}) == b"foo"


@pytest.mark.parametrize("text", VECTORS["refused_encoded"], ids=ascii)
def test_what_is_not_percent_encoded_is_refused(text: str) -> None:
    with pytest.raises(InvalidTopic):
        decode_topic(text)


@pytest.mark.parametrize("fields", VECTORS["refused_json"], ids=ascii)
def test_what_is_not_a_topic_in_json_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(InvalidTopic):
        topic_from_json(fields)


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(InvalidTopic, match="lone surrogate"):
        topic_from_json({"topic": "a\ud800"})


def test_a_topic_has_1_to_4096_bytes() -> None:
    longest = b"\xff" * MAX_TOPIC_BYTES
    assert check_topic(longest) == longest
    assert decode_topic(encode_topic(longest)) == longest
    assert topic_from_json(topic_to_json(longest)) == longest
    for topic in (b"", longest + b"a"):
        with pytest.raises(InvalidTopic, match=f"1 to 4096 bytes; this one has {len(topic)}"):
            check_topic(topic)
    for text in ("a" * (MAX_TOPIC_BYTES + 1), "%FF" * (MAX_TOPIC_BYTES + 1), "%" * 100_000):
        with pytest.raises(InvalidTopic):
            decode_topic(text)


@pytest.mark.parametrize("topic", ["foo", bytearray(b"foo"), None, 1])
def test_a_topic_is_bytes(topic: Any) -> None:
    with pytest.raises(InvalidTopic, match=f"not {type(topic).__name__}"):
        check_topic(topic)


def test_a_topic_in_a_log_is_one_short_printable_line() -> None:
    assert shown_topic(b"foo/bar") == "foo/bar"
    assert shown_topic(b"a\r\n\x1b[31m") == "a%0D%0A%1B%5B31m"
    assert len(shown_topic(b"\n" * MAX_TOPIC_BYTES)) == 100


@settings(max_examples=200, deadline=None)
@given(st.binary(min_size=1, max_size=60))
def test_every_topic_comes_back_from_each_form(topic: bytes) -> None:
    assert decode_topic(encode_topic(topic)) == topic
    assert topic_from_json(json.loads(json.dumps(topic_to_json(topic)))) == topic
    assert pattern_from_json(Pattern.exact(topic).to_json()) == Pattern.exact(topic)


@settings(max_examples=200, deadline=None)
@given(st.one_of(any_text, st.text(st.sampled_from("%0aFg/+é\n"), max_size=12)))
def test_random_text_is_a_topic_or_refused_and_nothing_else(text: str) -> None:
    try:
        topic = decode_topic(text)
    except InvalidTopic:
        return
    assert decode_topic(encode_topic(topic)) == topic


_json_value = st.one_of(st.none(), st.booleans(), st.integers(), any_text, st.lists(any_text, max_size=2))


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(["topic", "topic_b64", "glob", "mqtt", "other"]), _json_value, max_size=2))
def test_random_json_is_a_pattern_or_refused_and_nothing_else(fields: dict[str, object]) -> None:
    try:
        pattern = pattern_from_json(fields)
    except InvalidRequest:
        return
    assert pattern_from_json(pattern.to_json()) == pattern


@settings(max_examples=100, deadline=None)
@given(patterns)
def test_every_pattern_comes_back_from_json(pattern: Pattern) -> None:
    assert pattern_from_json(json.loads(json.dumps(pattern.to_json()))) == pattern


def test_a_pattern_knows_its_matcher() -> None:
    assert Pattern.exact(b"a/*").matcher() is None
    assert Pattern.glob("é/*").matcher() == parse_glob("é/*")
    assert Pattern.mqtt("é/+").matcher() == parse_mqtt_filter("é/+")


def test_patterns_of_different_kinds_are_different() -> None:
    assert len({Pattern.exact(b"a"), Pattern.glob("a"), Pattern.mqtt("a"), Pattern.glob("a")}) == 3


@pytest.mark.parametrize(
    ("pattern", "shown"),
    [
        (Pattern.exact(b"a b"), "topic='a b'"),
        (Pattern.exact(b"\xff"), "topic_b64='/w=='"),
        (Pattern.glob("a/*"), "glob='a/*'"),
        (Pattern.mqtt("a\n/+"), "mqtt='a\\n/+'"),
    ],
)
def test_a_pattern_is_shown_as_it_is_written(pattern: Pattern, shown: str) -> None:
    assert str(pattern) == shown


@pytest.mark.parametrize(
    "fields",
    [{}, {"topic": None}, {"topic": "a", "glob": "a"}, {"topic": "a", "topic_b64": "YQ=="}, {"glob": "a", "mqtt": "a"}],
    ids=str,
)
def test_exactly_one_kind_of_pattern_is_given(fields: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest, match="exactly one"):
        pattern_from_json(fields)


def test_a_member_that_is_null_is_not_given() -> None:
    assert pattern_from_json({"topic": None, "glob": "a/*", "mqtt": None}) == Pattern.glob("a/*")


@pytest.mark.parametrize(
    "fields", [{"glob": 1}, {"mqtt": ["a"]}, {"glob": "["}, {"mqtt": "a#"}, {"glob": "\ud800"}], ids=ascii
)
def test_a_glob_or_filter_that_is_none_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(InvalidGlob):
        pattern_from_json(fields)
