"""What crosses the wire: headers and JSON, there and back; and what is no message."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from httppubsubclient.protocol.errors import InvalidRequest, PubSubError
from httppubsubclient.protocol.messages import (
    DEFAULT_CONTENT_TYPE,
    PERMANENT_UNTIL,
    Delivery,
    Notification,
    NotifyResult,
    Subscription,
    content_type_or_default,
    delivery_headers,
    format_time,
    parse_delivery,
    parse_hops,
    parse_time,
    parse_traceparent,
)
from httppubsubclient.protocol.patterns import Pattern

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
IDS = st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True)
TOPICS = st.binary(min_size=1, max_size=100)
CONTENT_TYPES = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=50)
MOMENTS = st.integers(0, 253_402_300_799_999_999)  # 9999-12-31
HEADERS = {
    "webhook-id": "msg_1",
    "webhook-timestamp": "1790000000",
    "pubsub-topic": "foo/bar",
    "pubsub-subscription": "sub_1",
    "pubsub-attempt": "1",
}


@given(
    IDS,
    TOPICS,
    CONTENT_TYPES,
    IDS,
    st.integers(1, 999_999),
    st.integers(10**9, 10**12 - 1),
    st.none() | st.sampled_from(["1", "a/b?c=%20"]),
    st.none() | st.just(TRACEPARENT),
)
def test_a_delivery_survives_the_way_through_its_headers(
    message_id: str,
    topic: bytes,
    content_type: str,
    subscription_id: str,
    attempt: int,
    timestamp: int,
    fragment: str | None,
    traceparent: str | None,
) -> None:
    notification = Notification(message_id, topic, content_type, bytes(32), 0, traceparent)
    headers = delivery_headers(notification, subscription_id, attempt=attempt, timestamp=timestamp, fragment=fragment)
    assert all(name == name.lower() and value.isascii() and value.isprintable() for name, value in headers.items())
    assert parse_delivery(headers) == Delivery(
        message_id, timestamp, topic, subscription_id, attempt, content_type, fragment, traceparent, hops=1
    )


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize("value", [None, "", " ", "é", "a b", "a\n", "x" * 20_000, "a, a"])
def test_a_delivery_with_a_header_missing_or_wrong_is_refused(name: str, value: str | None) -> None:
    headers = {key: text for key, text in {**HEADERS, name: value}.items() if text is not None}
    with pytest.raises(InvalidRequest):
        parse_delivery(headers)


@pytest.mark.parametrize(
    ("name", "value"),
    [("pubsub-attempt", text) for text in ("0", "01", "-1", "1.0", "1000000", "\N{FULLWIDTH DIGIT ONE}", "1_0")]
    + [
        ("webhook-timestamp", text)
        for text in ("1", "nan", "-1790000000", "1_790000000", "\N{FULLWIDTH DIGIT ONE}790000000", "1" * 13)
    ]
    + [("webhook-id", text) for text in ("a.b", "x" * 65, "é")]
    + [("pubsub-subscription", text) for text in ("../x", "x" * 65)],
)
def test_a_number_or_an_id_has_one_form(name: str, value: str) -> None:
    with pytest.raises(InvalidRequest, match=name):
        parse_delivery({**HEADERS, name: value})


@given(st.dictionaries(st.sampled_from([*HEADERS, "content-type", "traceparent", "pubsub-fragment"]), st.text()))
def test_random_headers_raise_nothing_but_our_errors(changes: dict[str, str]) -> None:
    try:
        delivery = parse_delivery({**HEADERS, **changes})
    except PubSubError:
        return
    assert 1 <= len(delivery.topic) <= 4096


@pytest.mark.parametrize("value", [None, ""])
def test_no_content_type_means_bytes(value: str | None) -> None:
    assert content_type_or_default(value) == DEFAULT_CONTENT_TYPE


@pytest.mark.parametrize("value", ["a\r\nx: y", "a\x00", "é", "x" * 257, "\t", "a\x7f"])
def test_a_content_type_that_could_not_be_sent_on_is_refused(value: str) -> None:
    with pytest.raises(InvalidRequest, match="Content-Type"):
        content_type_or_default(value)


@pytest.mark.parametrize("value", ["application/json", "text/plain; charset=utf-8", "x" * 256])
def test_a_content_type_is_forwarded_as_it_is(value: str) -> None:
    assert content_type_or_default(value) == value


@pytest.mark.parametrize(
    "value",
    [
        "",
        "x",
        TRACEPARENT.upper(),
        TRACEPARENT + "-x",
        "ff" + TRACEPARENT[2:],
        "00-" + "0" * 32 + TRACEPARENT[35:],
        TRACEPARENT[:36] + "0" * 16 + "-01",
        TRACEPARENT + "\n",
    ],
)
def test_an_invalid_traceparent_is_ignored(value: str) -> None:
    assert parse_traceparent(value) is None
    assert parse_traceparent(TRACEPARENT) == TRACEPARENT


@pytest.mark.parametrize("value", ["", "a\nb", "a b", "é", "x" * 3000])
def test_a_fragment_that_no_url_has_is_refused(value: str) -> None:
    with pytest.raises(InvalidRequest, match="pubsub-fragment"):
        parse_delivery({**HEADERS, "pubsub-fragment": value})


# Subscriptions and results

PATTERNS = TOPICS.map(Pattern.exact) | st.sampled_from([Pattern.glob("foo/*"), Pattern.glob("é"), Pattern.mqtt("+/#")])
SUBSCRIPTION: dict[str, Any] = {
    "id": "sub_1",
    "url": "http://h/#1",
    "glob": "foo/*",
    "lease_seconds": 60,
    "created_at": "2026-11-21T02:11:00.000000Z",
    "expires_at": "2026-11-21T02:12:00.000000Z",
}


@given(IDS, st.text(max_size=20), PATTERNS, st.integers(1, 10**9), MOMENTS, MOMENTS)
def test_a_subscription_survives_the_way_through_json(
    subscription_id: str, url: str, pattern: Pattern, lease_seconds: int, created_at: int, expires_at: int
) -> None:
    subscription = Subscription(subscription_id, url, pattern, lease_seconds, created_at, expires_at)
    fields = json.loads(json.dumps(subscription.to_json()))
    assert fields["delivery"] == "best_effort"
    assert Subscription.from_json({**fields, "later": 1}) == subscription


def test_a_permanent_subscription_has_neither_a_lease_nor_an_end_in_json() -> None:
    subscription = Subscription(
        "sub_1",
        "http://a.test/",
        Pattern.exact(b"t"),
        0,
        1,
        PERMANENT_UNTIL,
        format="cloudevents-binary",
        signature="v1a",
        public_key="whpk_x",
        owner="partner",
        sealed=b"secret",
    )
    fields = json.loads(json.dumps(subscription.to_json()))
    assert (fields["permanent"], fields["lease_seconds"], fields["expires_at"]) == (True, None, None)
    assert (fields["format"], fields["signature"], fields["public_key"]) == ("cloudevents-binary", "v1a", "whpk_x")
    # Whose it is and its secrets stay with the broadcaster.
    assert Subscription.from_json(fields) == replace(subscription, owner=None, sealed=None)
    assert "partner" not in json.dumps(fields)
    assert "secret" not in json.dumps(fields) + repr(subscription)


@pytest.mark.parametrize(("text", "hops"), [(None, 0), ("0", 0), ("7", 7), ("999", 999)])
def test_hops_are_counted(text: str | None, hops: int) -> None:
    assert parse_hops({} if text is None else {"pubsub-hops": text}) == hops


@pytest.mark.parametrize("text", ["", "-1", "+1", "1.0", "1000", "\u0661", " 1", "1, 1", "nan"])
def test_what_is_no_number_of_hops_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="pubsub-hops"):
        parse_hops({"pubsub-hops": text})


@pytest.mark.parametrize("name", SUBSCRIPTION)
@pytest.mark.parametrize("value", [..., None, 1.5, True, [], {}, "", float("inf"), "a/../b"])
def test_what_is_no_subscription_is_refused(name: str, value: Any) -> None:
    fields = {key: entry for key, entry in {**SUBSCRIPTION, name: value}.items() if entry is not ...}
    if name in ("url", "glob") and value in ("", "a/../b"):
        return
    with pytest.raises(PubSubError):
        Subscription.from_json(fields)


JSON = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30) | st.lists(st.text(), max_size=1)


@given(st.dictionaries(st.sampled_from([*SUBSCRIPTION, "topic", "topic_b64", "mqtt", "message_id", "matched"]), JSON))
def test_random_json_raises_nothing_but_our_errors(changes: dict[str, Any]) -> None:
    for from_json in (Subscription.from_json, NotifyResult.from_json):
        with suppress(PubSubError):
            from_json({**SUBSCRIPTION, **changes})


@given(st.lists(st.integers(0, 10**9), min_size=4, max_size=4), IDS)
def test_a_result_survives_the_way_through_json(counts: list[int], message_id: str) -> None:
    result = NotifyResult(message_id, *counts)
    assert NotifyResult.from_json({**json.loads(json.dumps(result.to_json())), "later": 1}) == result


@pytest.mark.parametrize("name", ["message_id", "matched", "notified", "pending", "failed"])
@pytest.mark.parametrize("value", [..., None, "1", -1, 1.5, True, [], {}])
def test_what_is_no_result_is_refused(name: str, value: Any) -> None:
    fields: dict[str, Any] = {"message_id": "m", "matched": 1, "notified": 1, "pending": 0, "failed": 0, name: value}
    if value is ...:
        del fields[name]
    if name == "message_id" and value == "1":
        fields[name] = 1
    with pytest.raises(InvalidRequest, match=name):
        NotifyResult.from_json(fields)


@given(MOMENTS)
def test_a_moment_survives_the_way_through_text(microseconds: int) -> None:
    text = format_time(microseconds)
    assert text.endswith("Z")
    assert parse_time(text) == microseconds


def test_a_moment_may_have_any_offset_but_must_have_one() -> None:
    assert parse_time("1970-01-01T01:00:00+01:00") == 0
    with pytest.raises(ValueError, match="time zone"):
        parse_time("1970-01-01T00:00:00")


def test_years_have_four_digits() -> None:
    assert format_time(0) == "1970-01-01T00:00:00.000000Z"


# Durable deliveries

NOTIFICATION = Notification("msg_2", b"foo/bar", "text/plain", bytes(32), 0)


@given(st.none() | st.integers(1, 10**18 - 1), st.none() | IDS)
def test_the_number_of_a_delivery_and_the_message_before_survive_the_headers(
    sequence: int | None, previous_message_id: str | None
) -> None:
    headers = delivery_headers(
        NOTIFICATION,
        "sub_1",
        attempt=1,
        timestamp=1_790_000_000,
        fragment=None,
        sequence=sequence,
        previous_message_id=previous_message_id,
    )
    delivery = parse_delivery(headers)
    assert (delivery.sequence, delivery.previous_message_id) == (sequence, previous_message_id)
    assert ("pubsub-sequence" in headers) is (sequence is not None)
    assert ("pubsub-previous" in headers) is (previous_message_id is not None)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pubsub-sequence", text)
        for text in ("", "0", "01", "-1", "+1", "1.0", "1_0", "1" * 19, "1\n", "\N{FULLWIDTH DIGIT ONE}")
    ]
    + [("pubsub-previous", text) for text in ("", "a.b", "x" * 65, "é", "a, b")],
)
def test_the_number_of_a_delivery_and_the_message_before_have_one_form(name: str, value: str) -> None:
    with pytest.raises(InvalidRequest, match=name):
        parse_delivery({**HEADERS, name: value})
