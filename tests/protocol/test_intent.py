"""The handshakes of consent: what is asked, what is consent and what is not, for both sides."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from httppubsubclient.protocol.callback_urls import parse_callback_url
from httppubsubclient.protocol.errors import CallbackRefused, InvalidRequest, InvalidUrl
from httppubsubclient.protocol.intent import (
    MAX_CHALLENGE_LENGTH,
    HandshakeRequest,
    Verification,
    answer_handshake,
    answer_verification,
    check_handshake,
    check_verification,
    handshake_headers,
    parse_handshake,
    parse_verification,
    verification_target,
)
from httppubsubclient.protocol.patterns import Pattern, pattern_from_json
from tests.protocol.pattern_strategies import patterns

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "intent.json").read_text())
CHALLENGE = VECTORS["challenge"]
QUESTION = Verification("subscribe", Pattern.exact(b"a"), CHALLENGE, 60)


@pytest.mark.parametrize("row", VECTORS["verifications"], ids=lambda row: row["target"])
def test_a_verification_is_a_query_behind_the_target(row: dict[str, Any]) -> None:
    verification = Verification(row["mode"], pattern_from_json(row["pattern"]), CHALLENGE, row["lease_seconds"])
    asked = verification_target(row["target"], verification)
    assert asked == row["asked"]
    assert parse_verification(asked.partition("?")[2]) == verification


@pytest.mark.parametrize(("query", "pattern", "challenge", "lease_seconds"), VECTORS["also_read"])
def test_questions_of_other_hubs_are_read(
    query: str, pattern: dict[str, str], challenge: str, lease_seconds: int | None
) -> None:
    expected = Verification("subscribe", pattern_from_json(pattern), challenge, lease_seconds)
    assert parse_verification(query) == expected


@pytest.mark.parametrize(("status", "body"), VECTORS["verified"])
def test_the_echoed_challenge_is_consent(status: int, body: str) -> None:
    check_verification(QUESTION, status, base64.b64decode(body))


@pytest.mark.parametrize(("status", "body"), VECTORS["not_verified"])
def test_anything_else_is_no_consent(status: int, body: str) -> None:
    with pytest.raises(CallbackRefused) as caught:
        check_verification(QUESTION, status, base64.b64decode(body))
    assert CHALLENGE not in str(caught.value)


@pytest.mark.parametrize("target", VECTORS["refused_targets"])
def test_a_callback_that_has_the_parameters_of_the_question_is_not_asked(target: str) -> None:
    with pytest.raises(InvalidUrl):
        verification_target(target, QUESTION)


@pytest.mark.parametrize("query", VECTORS["refused_queries"])
def test_what_is_no_question_or_two_is_refused(query: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_verification(query)


def test_a_long_query_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="bounded"):
        parse_verification("hub.mode=subscribe&hub.topic=a&hub.challenge=x&a=" + "a" * 20_000)


def test_a_challenge_is_long_enough_to_be_random_and_is_not_shown() -> None:
    assert CHALLENGE not in repr(QUESTION)
    for challenge in ("a" * 21, "a" * (MAX_CHALLENGE_LENGTH + 1), "a" * 30 + "&", "", "é" * 30):
        with pytest.raises(InvalidRequest):
            verification_target("/", Verification("subscribe", Pattern.exact(b"a"), challenge))
    short = parse_verification("hub.mode=subscribe&hub.topic=a&hub.challenge=x")
    with pytest.raises(InvalidRequest):
        check_verification(short, 200, b"x")


def test_a_callback_answers_with_the_challenge_or_with_404() -> None:
    status, headers, body = answer_verification(QUESTION, wanted=True)
    check_verification(QUESTION, status, body)
    assert headers["content-type"].startswith("text/plain")
    assert headers["x-content-type-options"] == "nosniff"
    status, headers, body = answer_verification(QUESTION, wanted=False)
    assert status == 404
    assert CHALLENGE.encode() not in body
    with pytest.raises(CallbackRefused):
        check_verification(QUESTION, status, body)


@pytest.mark.parametrize("row", VECTORS["handshakes"], ids=lambda row: row["origin"])
def test_a_handshake_asks_and_is_answered(row: dict[str, Any]) -> None:
    assert handshake_headers(row["origin"], row["rate"]) == row["headers"]
    assert parse_handshake(row["headers"]) == HandshakeRequest(row["origin"], row["rate"])
    for status, headers, permitted in row["answers"]:
        assert check_handshake(row["origin"], row["rate"], status, headers) == permitted


@pytest.mark.parametrize(("status", "headers"), VECTORS["no_consent"]["answers"])
def test_an_answer_that_does_not_name_the_origin_is_no_consent(status: int, headers: dict[str, str]) -> None:
    with pytest.raises(CallbackRefused):
        check_handshake(VECTORS["no_consent"]["origin"], 120, status, headers)


@pytest.mark.parametrize("origin", VECTORS["refused_origins"])
def test_an_origin_is_a_host_name(origin: str) -> None:
    with pytest.raises(InvalidRequest):
        handshake_headers(origin)


@pytest.mark.parametrize("headers", VECTORS["refused_handshakes"], ids=str)
def test_what_is_no_handshake_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest):
        parse_handshake(headers)


@pytest.mark.parametrize("rate", [0, -1, 10**9 + 1])
def test_a_rate_is_bounded(rate: int) -> None:
    with pytest.raises(InvalidRequest):
        handshake_headers("a.example", rate)


def test_a_callback_permits_the_origins_it_expects_and_no_more_than_was_asked_for() -> None:
    answer = answer_handshake(HandshakeRequest("a.example", 120), allowed_origins={"a.example"}, rate_per_minute=60)
    assert answer.headers == {"allow": "POST", "webhook-allowed-origin": "a.example", "webhook-allowed-rate": "60"}
    assert check_handshake("a.example", 120, answer.status, answer.headers) == 60
    answer = answer_handshake(HandshakeRequest("a.example", 30), allowed_origins={"a.example"}, rate_per_minute=60)
    assert check_handshake("a.example", 30, answer.status, answer.headers) == 30
    answer = answer_handshake(HandshakeRequest("a.example", None), allowed_origins={"a.example"})
    assert check_handshake("a.example", None, answer.status, answer.headers) is None
    answer = answer_handshake(HandshakeRequest("b.example", None), allowed_origins={"a.example"})
    assert (answer.status, answer.headers) == (405, {"allow": "POST"})
    with pytest.raises(CallbackRefused):
        check_handshake("b.example", None, answer.status, answer.headers)


targets = st.text(st.sampled_from("/ab?&=%2.hu"), max_size=20)


@given(targets, st.sampled_from(["subscribe", "unsubscribe"]), patterns, st.none() | st.integers(1, 10**10 - 1))
def test_every_question_arrives_whatever_the_callback_url(
    tail: str, mode: Any, pattern: Pattern, lease_seconds: int | None
) -> None:
    verification = Verification(mode, pattern, CHALLENGE, lease_seconds)
    try:
        target = parse_callback_url(f"http://a.example/{tail}").target
        asked = verification_target(target, verification)
    except InvalidUrl:
        return
    assert asked.startswith(target)
    assert parse_callback_url(f"http://a.example{asked}").target.partition("?")[0] == target.partition("?")[0]
    assert parse_verification(asked.partition("?")[2]) == verification


@given(st.text(st.sampled_from("hub.modetpicsrl=&%2+_"), max_size=40) | st.text(max_size=20))
def test_random_queries_are_questions_or_refused(query: str) -> None:
    for text in (query, f"hub.mode=subscribe&hub.topic=a&hub.challenge=x&{query}"):
        try:
            verification = parse_verification(text)
        except InvalidRequest:
            continue
        assert answer_verification(verification, wanted=True).body == verification.challenge.encode()


@given(st.binary(max_size=30) | st.text(max_size=30).map(str.encode), st.integers(100, 599))
def test_no_random_answer_is_consent(body: bytes, status: int) -> None:
    with pytest.raises(CallbackRefused):
        check_verification(QUESTION, status, body)
