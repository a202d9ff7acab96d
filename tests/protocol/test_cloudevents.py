"""CloudEvents: a delivery as an event in both modes, read back as it was, and strict about everything else."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from httppubsubclient.protocol.cloudevents import (
    MAX_ATTRIBUTE_LENGTH,
    MAX_ATTRIBUTES,
    MAX_INLINE_DATA_BYTES,
    STRUCTURED_CONTENT_TYPE,
    CloudEvent,
    ReadEvent,
    binary_headers,
    event_mode,
    event_of,
    event_topic,
    read_event,
    structured_body,
)
from httppubsubclient.protocol.errors import InvalidRequest, InvalidTopic, UnsupportedMediaType
from httppubsubclient.protocol.messages import Notification

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "cloudevents.json").read_text())
STRUCTURED = {"content-type": STRUCTURED_CONTENT_TYPE}
REQUIRED = {"specversion": "1.0", "id": "1", "source": "x", "type": "t"}


def named(rows: list[dict[str, Any]], name: str) -> list[Any]:
    return [pytest.param(row, id=row[name]) for row in rows]


def made(delivery: dict[str, Any]) -> CloudEvent:
    topic = base64.b64decode(delivery["topic_b64"])
    notification = Notification(
        delivery["message_id"], topic, delivery["content_type"], bytes(32), 0, delivery["traceparent"]
    )
    return event_of(
        notification,
        delivery["subscription_id"],
        source=delivery["source"],
        published_at=delivery["published_at"],
        sequence=delivery["sequence"],
        previous_message_id=delivery["previous_message_id"],
    )


@pytest.mark.parametrize("row", named(VECTORS["events"], "name"))
def test_a_delivery_is_an_event_in_both_modes(row: dict[str, Any]) -> None:
    event, data = made(row["delivery"]), base64.b64decode(row["data_b64"])
    assert binary_headers(event) == row["headers"]
    body = structured_body(event, data)
    assert json.loads(body) == row["structured"]
    assert list(json.loads(body)) == list(row["structured"])
    assert read_event(row["headers"], data) == ReadEvent(event, data)
    assert read_event(STRUCTURED, body) == ReadEvent(event, data)
    assert event_topic(event) == base64.b64decode(row["delivery"]["topic_b64"])


@pytest.mark.parametrize(("value", "header", "also_read"), VECTORS["header_values"])
def test_a_header_value_is_percent_encoded(value: str, header: str, also_read: list[str]) -> None:
    assert binary_headers(CloudEvent(value, "x", "t"))["ce-id"] == header
    for text in (header, *also_read):
        headers = {"ce-specversion": "1.0", "ce-id": text, "ce-source": "x", "ce-type": "t"}
        assert read_event(headers, b"").event.id == value


@pytest.mark.parametrize("row", named(VECTORS["refused"], "why"))
def test_what_is_no_good_event_is_refused(row: dict[str, Any]) -> None:
    with pytest.raises((InvalidRequest, UnsupportedMediaType)):
        read_event(row["headers"], row["body"].encode())


def test_the_mode_is_seen_in_the_head() -> None:
    assert event_mode({}) is None
    assert event_mode({"content-type": "application/json"}) is None
    assert event_mode({"ce-specversion": "1.0"}) == "binary"
    assert event_mode({"content-type": "Application/CloudEvents+JSON; Charset=UTF-8"}) == "structured"
    for content_type in (
        "application/cloudevents-batch+json",
        "application/cloudevents+xml",
        "application/cloudevents",
    ):
        with pytest.raises(UnsupportedMediaType):
            event_mode({"content-type": content_type, "ce-specversion": "1.0"})


def test_the_json_that_was_published_arrives_to_the_byte() -> None:
    data = b'\n{"b": 1e400, "a" : 1.10, "a":"\\ud800 \xc3\xa9", "n": 123456789012345678901234567890}  '
    body = structured_body(CloudEvent("1", "x", "t", data_content_type="application/json"), data)
    assert data.strip() in body
    assert read_event(STRUCTURED, body).data == data.strip()


def test_an_event_without_datacontenttype_holds_json() -> None:
    read = read_event(STRUCTURED, json.dumps({**REQUIRED, "data": "text"}).encode())
    assert read.data == b'"text"'
    assert read.event.data_content_type == "application/json"
    assert read_event(STRUCTURED, json.dumps({**REQUIRED, "data": None}).encode()).data == b"null"


def test_null_is_an_attribute_that_is_not_there() -> None:
    body = json.dumps({**REQUIRED, "subject": None, "time": None, "e": None, "i": 5, "b": False}).encode()
    assert read_event(STRUCTURED, body).event == CloudEvent("1", "x", "t", extensions={"i": 5, "b": False})


def test_text_is_written_in_the_charset_of_its_content_type() -> None:
    fields = {**REQUIRED, "datacontenttype": "text/plain; charset=ISO-8859-1", "data": "é"}
    assert read_event(STRUCTURED, json.dumps(fields).encode()).data == b"\xe9"
    event = CloudEvent("1", "x", "t", data_content_type="text/plain; charset=iso-8859-1")
    assert json.loads(structured_body(event, b"\xe9"))["data_base64"] == "6Q=="


def test_a_deep_or_a_large_document_goes_as_base64() -> None:
    event = CloudEvent("1", "x", "t", data_content_type="application/json")
    for data in (b"[" * 200_000, b"[" * 100_000 + b"]" * 100_000, b'"' + b"a" * MAX_INLINE_DATA_BYTES + b'"', b"NaN"):
        members = json.loads(structured_body(event, data))
        assert base64.b64decode(members["data_base64"]) == data
        assert "data" not in members


def test_a_deep_event_is_refused() -> None:
    for body in (b'{"data":' + b"[" * 200_000, b'{"data":' + b'{"a":' * 100_000, b'{"id":' + b"9" * 5000 + b"}"):
        with pytest.raises(InvalidRequest):
            read_event(STRUCTURED, body)


def test_attributes_are_bounded() -> None:
    CloudEvent("a" * MAX_ATTRIBUTE_LENGTH, "x", "t")
    too_long = "a" * (MAX_ATTRIBUTE_LENGTH + 1)
    for name, wrong in (("id", (too_long, "x", "t")), ("source", ("1", too_long, "t")), ("type", ("1", "x", ""))):
        with pytest.raises(InvalidRequest, match=name):
            CloudEvent(*wrong)
    many = {f"e{number}": "" for number in range(MAX_ATTRIBUTES + 1)}
    with pytest.raises(InvalidRequest, match="at most 64"):
        CloudEvent("1", "x", "t", extensions=many)
    with pytest.raises(InvalidRequest, match="at most 64"):
        read_event(STRUCTURED, json.dumps({**REQUIRED, **many}).encode())
    for name in ("data", "specversion", "id", "A", "a_b", "", "a" * 65):
        with pytest.raises(InvalidRequest, match="name"):
            CloudEvent("1", "x", "t", extensions={name: ""})


@pytest.mark.parametrize(
    ("subject", "extensions"),
    [(None, {}), ("a", {"pubsubtopicb64": "YQ=="}), (None, {"pubsubtopicb64": "!"}), (None, {"pubsubtopicb64": 1})],
)
def test_an_event_with_no_topic_or_two_is_not_ours(subject: str | None, extensions: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        event_topic(CloudEvent("1", "x", "t", subject=subject, extensions=extensions))
    with pytest.raises(InvalidTopic):
        event_topic(CloudEvent("1", "x", "t", extensions={"pubsubtopicb64": ""}))


text = st.text(st.characters(exclude_categories=("Cc", "Cs", "Cn")), min_size=1, max_size=20)
content_types = st.sampled_from(
    ["application/json", "text/plain", "text/plain; charset=us-ascii", "a/b+json", "application/octet-stream", None]
)
json_data = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
).map(lambda value: json.dumps(value).encode())


@settings(max_examples=200)
@given(
    st.builds(
        CloudEvent,
        id=text,
        source=st.sampled_from(["x", "https://a.example/b?c#d", "urn:a:b", "%41"]),
        type=text,
        subject=st.none() | text,
        time=st.none() | st.integers(0, 10**17),
        data_content_type=content_types,
        data_schema=st.none() | st.just("https://a.example/schema"),
        extensions=st.dictionaries(st.sampled_from(["a", "b1", "pubsubprevious"]), text, max_size=3),
    ),
    st.binary(max_size=20) | json_data | text.map(str.encode),
)
def test_an_event_survives_both_modes(event: CloudEvent, data: bytes) -> None:
    headers = binary_headers(event)
    assert all(value.isascii() and value.isprintable() for value in headers.values())
    assert read_event(headers, data) == ReadEvent(event, data)
    body = structured_body(event, data)
    json.loads(body)
    read = read_event(STRUCTURED, body)
    is_json = event.data_content_type in ("application/json", "a/b+json") and "data" in json.loads(body)
    assert read.data == (data.strip(b" \t\r\n") if is_json else data)
    assert read.event == event


@given(st.binary(min_size=1, max_size=60))
def test_every_topic_survives(topic: bytes) -> None:
    notification = Notification("msg_1", topic, "text/plain", bytes(32), 0)
    event = event_of(notification, "sub_1", source="x", published_at=None)
    assert event_topic(read_event(binary_headers(event), b"").event) == topic
    assert event_topic(read_event(STRUCTURED, structured_body(event, b"")).event) == topic


pieces = st.sampled_from(
    ['{"specversion":"1.0"', ',"id":"1"', ',"source":"x"', ',"type":"t"', "}", "{", '"', ":", ",", "[", "null", "1e999",
     ',"data":', ',"data_base64":""', "\\ud800", " ", "\n", "é", ',"time":"', "2026-11-21T02:11:00Z", "\x00"]
)  # fmt: skip


@given(st.lists(pieces, max_size=12).map("".join) | st.text(max_size=20))
def test_random_bodies_are_events_or_refused(body: str) -> None:
    try:
        read = read_event(STRUCTURED, body.encode("utf-8", "surrogatepass"))
    except InvalidRequest:
        return
    assert read_event(STRUCTURED, structured_body(*read)) == read


@given(
    st.dictionaries(
        st.sampled_from(["ce-id", "ce-time", "ce-subject", "ce-x", "ce-", "content-type", "ce-source"]),
        st.text(st.sampled_from('a%"\\ 2Cé;=/\x00')) | st.text(max_size=10),
    )
)
def test_random_headers_are_events_or_refused(headers: dict[str, str]) -> None:
    complete = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "x", "ce-type": "t", **headers}
    try:
        read = read_event(complete, b"")
    except (InvalidRequest, UnsupportedMediaType):
        return
    assert read_event(binary_headers(read.event), b"") == read
