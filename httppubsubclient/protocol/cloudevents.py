"""CloudEvents 1.0.2 over HTTP: a message as an event, in binary and in structured mode, and back.

| attribute            | of a delivery                                                                        |
|----------------------|--------------------------------------------------------------------------------------|
| `id`                 | the message id                                                                       |
| `source`             | the broadcaster, a URI reference                                                     |
| `type`               | `httppubsub.message`, or as configured                                               |
| `subject`            | the topic when it is text that an attribute can hold                                 |
| `pubsubtopicb64`     | otherwise the topic, in base64: exactly one of the two is there                      |
| `time`               | when the message was published                                                       |
| `datacontenttype`    | its Content-Type                                                                     |
| `traceparent`        | as published (distributed tracing extension)                                         |
| `sequence`           | durable: the number of the delivery, 18 digits, so that it sorts (sequence extension) |
| `pubsubprevious`     | durable: the message of the delivery before it                                       |
| `pubsubsubscription` | the subscription                                                                     |

Binary mode (HTTP binding 3.1): attributes as `ce-` headers, percent-encoded, the body as it is. Structured mode (3.2,
JSON format): one JSON object, in which the topic is part of what a signature over the body covers. There the data is

| Content-Type                      | bytes                        | member                                         |
|-----------------------------------|------------------------------|------------------------------------------------|
| `*/json`, `*/*+json`              | JSON in UTF-8                | `data`, the very text that was published       |
| `text/*`                          | UTF-8                        | `data`, a string                               |
| anything else, or above 1 MiB     | any                          | `data_base64`                                  |
| any                               | none                         | neither                                        |

Reading is strict: what two readers could take differently is `InvalidRequest`. Batches are not read. The caller bounds
body and headers, and refuses headers that come twice, as parse_headers does for names it knows.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

from httppubsubclient.protocol.errors import InvalidRequest, UnsupportedMediaType
from httppubsubclient.protocol.messages import (
    MAX_CONTENT_TYPE_LENGTH,
    Notification,
    content_type_or_default,
    format_time,
    parse_time,
)
from httppubsubclient.protocol.topics import check_topic

__all__ = [
    "DEFAULT_EVENT_TYPE",
    "MAX_ATTRIBUTES",
    "MAX_ATTRIBUTE_LENGTH",
    "MAX_INLINE_DATA_BYTES",
    "STRUCTURED_CONTENT_TYPE",
    "CloudEvent",
    "ReadEvent",
    "binary_headers",
    "event_mode",
    "event_of",
    "event_topic",
    "is_media_type",
    "read_event",
    "structured_around",
    "structured_body",
    "structured_data",
]

STRUCTURED_CONTENT_TYPE: Final = "application/cloudevents+json; charset=UTF-8"
DEFAULT_EVENT_TYPE: Final = "httppubsub.message"
MAX_ATTRIBUTES: Final = 64
MAX_ATTRIBUTE_LENGTH: Final = 8192
"""Characters of one attribute."""
MAX_INLINE_DATA_BYTES: Final = 1_048_576
"""JSON and text above this are not checked and written as such, but as base64: checking takes time."""

_VERSION: Final = "1.0"
_CORE: Final = ("id", "source", "type", "subject", "time", "dataschema")
"""Attributes of section 3 of the specification, without `specversion` and `datacontenttype`."""
_NO_EXTENSIONS: Final = frozenset({*_CORE, "specversion", "datacontenttype", "data"})
_NAME = re.compile(r"[a-z0-9]{1,64}", re.ASCII)
# Section 2.4, String: no control characters, no surrogates, no noncharacters.
_NO_TEXT = re.compile(
    "[\0-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef"
    + "".join(chr(plane << 16 | last) for plane in range(17) for last in (0xFFFE, 0xFFFF))
    + "]"
)
_REFERENCE = re.compile(r"(?:[!#$&-;=?-Z\[\]_a-z~]|%[0-9A-Fa-f]{2})+", re.ASCII)
_TIME = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?(?:Z|[+-][0-9]{2}:[0-9]{2})", re.ASCII
)
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_BACKSLASH = re.compile(r"\\(.)")
_ENCODED = re.compile(r"(?:[ -$&-~]|%[0-9A-Fa-f]{2})*", re.ASCII)
_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})")
_TO_ENCODE = re.compile(r'[^!-~]|["%]')
_MEDIA_TYPE = re.compile(r"\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+)/([!#$%&'*+.^_`|~0-9A-Za-z-]+)\s*(?:;(.*))?", re.ASCII)
_CHARSET = re.compile(r'(?:^|;)\s*charset\s*=\s*"?([^";\s]*)"?', re.ASCII | re.IGNORECASE)
_CHARSETS: Final = (None, "utf-8", "us-ascii", "iso-8859-1")
_SPACE = re.compile(r"[ \t\n\r]*")


def _no_number(name: str) -> float:
    raise ValueError(name)


_DECODER: Final = json.JSONDecoder(parse_constant=_no_number)
"""JSON of RFC 8259, which has no NaN."""


@dataclass(frozen=True, slots=True)
class CloudEvent:
    """The attributes of one event; its data comes separately. Raises `InvalidRequest` that names the attribute."""

    id: str
    source: str
    """A URI reference, RFC 3986 section 4.1."""
    type: str
    subject: str | None = None
    time: int | None = None
    """Microseconds since 1970."""
    data_content_type: str | None = None
    data_schema: str | None = None
    """A URI."""
    extensions: Mapping[str, str | int | bool] = field(default_factory=dict)
    """Names of `a-z0-9`."""

    def __post_init__(self) -> None:
        for name, text in (("id", self.id), ("type", self.type), ("subject", self.subject)):
            if text is not None:
                _check_text(name, text)
        for name, text in (("source", self.source), ("dataschema", self.data_schema)):
            if text is not None and not (len(text) <= MAX_ATTRIBUTE_LENGTH and _REFERENCE.fullmatch(text)):
                raise InvalidRequest(f"the attribute {name} of an event is a URI reference of RFC 3986")
        if self.data_content_type is not None:
            _check_content_type(self.data_content_type)
        if len(self.extensions) > MAX_ATTRIBUTES:
            raise InvalidRequest(f"an event has at most {MAX_ATTRIBUTES} extension attributes")
        for name, value in self.extensions.items():
            _check_extension(name, value)


class ReadEvent(NamedTuple):
    """An event as it was read."""

    event: CloudEvent
    data: bytes
    """Of binary mode the body, of structured mode what `data` or `data_base64` stands for."""


def event_of(
    notification: Notification,
    subscription_id: str,
    *,
    source: str,
    published_at: int | None,
    sequence: int | None = None,
    previous_message_id: str | None = None,
    event_type: str = DEFAULT_EVENT_TYPE,
) -> CloudEvent:
    """The event that one delivery is; the same for each attempt. `published_at`: microseconds since 1970."""
    extensions: dict[str, str | int | bool] = {"pubsubsubscription": subscription_id}
    subject = _as_text(notification.topic)
    if subject is None:
        extensions["pubsubtopicb64"] = base64.b64encode(notification.topic).decode("ascii")
    if notification.traceparent is not None:
        extensions["traceparent"] = notification.traceparent
    if sequence is not None:
        extensions["sequence"] = f"{sequence:018}"
    if previous_message_id is not None:
        extensions["pubsubprevious"] = previous_message_id
    return CloudEvent(
        id=notification.message_id,
        source=source,
        type=event_type,
        subject=subject,
        time=published_at,
        data_content_type=notification.content_type,
        extensions=extensions,
    )


def is_media_type(text: str) -> bool:
    """Whether a Content-Type that was published can be the `datacontenttype` of an event."""
    return _MEDIA_TYPE.fullmatch(text) is not None


def event_topic(event: CloudEvent) -> bytes:
    """The topic of an event that `event_of` made. Raises `InvalidRequest` for any other, `InvalidTopic`."""
    encoded = event.extensions.get("pubsubtopicb64")
    if (event.subject is None) == (encoded is None):
        raise InvalidRequest("the topic of an event is its subject or, in base64, pubsubtopicb64: exactly one of them")
    if event.subject is not None:
        return check_topic(event.subject.encode("utf-8"))
    return check_topic(_from_base64("pubsubtopicb64", encoded))


def binary_headers(event: CloudEvent) -> dict[str, str]:
    """The headers of binary mode, names in lower case; the body is the data."""
    headers = {f"ce-{name}": _encode_value(value) for name, value in _attributes(event).items()}
    if event.data_content_type is not None:
        headers["content-type"] = event.data_content_type
    return headers


def structured_body(event: CloudEvent, data: bytes) -> bytes:
    """The body of structured mode, to be sent as `STRUCTURED_CONTENT_TYPE`."""
    return structured_around(event, structured_data(event.data_content_type, data))


def structured_around(event: CloudEvent, data_member: bytes) -> bytes:
    """`structured_body` around data that `structured_data` has made of what has the event's own content type."""
    members = _attributes(event)
    if event.data_content_type is not None:
        members["datacontenttype"] = event.data_content_type
    head = json.dumps(members, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    return b"".join((head[:-1], data_member, b"}"))


def structured_data(content_type: str | None, data: bytes) -> bytes:
    """What all events with these data have in common in structured mode: a comma and the member; nothing for no data.

    For large data that is nearly all of the work.
    """
    if not data:
        return b""
    media_type, charset = _media_type(content_type or "")
    if len(data) <= MAX_INLINE_DATA_BYTES and charset in (None, "utf-8", "us-ascii"):
        if _is_json(media_type) and _is_json_text(data):
            return b',"data":' + data
        if media_type.startswith("text/") and not _is_json(media_type):
            try:
                return b',"data":' + json.dumps(data.decode(charset or "utf-8"), ensure_ascii=False).encode("utf-8")
            except UnicodeDecodeError:
                pass
    return b',"data_base64":"' + base64.b64encode(data) + b'"'


def event_mode(headers: Mapping[str, str]) -> Literal["binary", "structured"] | None:
    """In which mode a message with these headers (names in lower case) is an event, None if it is none.

    Raises `UnsupportedMediaType` for batches and for formats other than JSON.
    """
    content_type = headers.get("content-type", "").strip().lower()
    if not content_type.startswith("application/cloudevents"):
        return "binary" if "ce-specversion" in headers else None
    media_type, charset = _media_type(content_type)
    if media_type != "application/cloudevents+json" or charset not in (None, "utf-8"):
        raise UnsupportedMediaType("of structured events only application/cloudevents+json in UTF-8 is read")
    return "structured"


def read_event(headers: Mapping[str, str], body: bytes) -> ReadEvent:
    """The event that a message is. Raises `InvalidRequest` that says what is wrong, `UnsupportedMediaType`."""
    mode = event_mode(headers)
    if mode is None:
        raise InvalidRequest("this is no CloudEvent: neither its Content-Type says so nor is there a ce-specversion")
    if mode == "binary":
        return _read_binary(headers, body)
    return _read_structured(body)


def _read_binary(headers: Mapping[str, str], body: bytes) -> ReadEvent:
    members: dict[str, object] = {}
    for name, value in headers.items():
        if name.startswith("ce-"):
            if name in ("ce-datacontenttype", "ce-data"):
                raise InvalidRequest(f"in binary mode there is no header {name}")
            members[name[3:]] = _decode_value(name, value)
    if "content-type" in headers:
        members["datacontenttype"] = headers["content-type"]
    return ReadEvent(_event(members), body)


def _read_structured(body: bytes) -> ReadEvent:
    members = _members(body)
    raw = {name: members.pop(name) for name in ("data", "data_base64") if name in members}
    if len(raw) == 2:
        raise InvalidRequest("an event has data or data_base64, not both")
    values = {name: value for name, (value, _) in members.items() if value is not None}
    if "data" in raw:
        values.setdefault("datacontenttype", "application/json")
    event = _event(values)
    if "data" in raw:
        return ReadEvent(event, _inline_data(event, *raw["data"]))
    return ReadEvent(event, _from_base64("data_base64", raw["data_base64"][0]) if raw else b"")


def _event(members: dict[str, object]) -> CloudEvent:
    """The event that has these attributes, which are taken out."""
    version = members.pop("specversion", None)
    if version != _VERSION:
        raise InvalidRequest("the attribute specversion of an event is '1.0'")
    content_type = members.pop("datacontenttype", None)
    core = {name: members.pop(name, None) for name in _CORE}
    for name, value in (*core.items(), ("datacontenttype", content_type)):
        if value is None and name in ("id", "source", "type"):
            raise InvalidRequest(f"the attribute {name} of the event is missing")
        if value is not None and not isinstance(value, str):
            raise InvalidRequest(f"the attribute {name} of the event is not a string")
    return CloudEvent(
        id=str(core["id"]),
        source=str(core["source"]),
        type=str(core["type"]),
        subject=_optional(core["subject"]),
        time=None if core["time"] is None else _moment(str(core["time"])),
        data_content_type=_optional(content_type),
        data_schema=_optional(core["dataschema"]),
        extensions={name: _extension_value(name, value) for name, value in members.items()},
    )


def _optional(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _extension_value(name: str, value: object) -> str | int | bool:
    if not isinstance(value, str | int | bool):
        raise InvalidRequest(f"the extension attribute {name[:64]!a} is a string, an integer or a boolean")
    return value


def _attributes(event: CloudEvent) -> dict[str, str | int | bool]:
    """All attributes but `datacontenttype`, by their names."""
    optional = {
        "subject": event.subject,
        "time": None if event.time is None else format_time(event.time),
        "dataschema": event.data_schema,
    }
    present = {name: value for name, value in optional.items() if value is not None}
    required = {"specversion": _VERSION, "id": event.id, "source": event.source, "type": event.type}
    return {**required, **present, **event.extensions}


def _check_text(name: str, text: str, least: int = 1) -> None:
    if not least <= len(text) <= MAX_ATTRIBUTE_LENGTH or _NO_TEXT.search(text):
        raise InvalidRequest(
            f"the attribute {name} of an event has {least} to {MAX_ATTRIBUTE_LENGTH} characters, none of them a "
            "control character, a surrogate or a noncharacter"
        )


def _check_extension(name: str, value: str | int | bool) -> None:
    if not _NAME.fullmatch(name) or name in _NO_EXTENSIONS:
        raise InvalidRequest(f"{name[:64]!a} is no name of an extension attribute: those have 1 to 64 of a-z and 0-9")
    if isinstance(value, str):
        _check_text(name, value, least=0)
    elif not isinstance(value, bool) and not -(2**31) <= value < 2**31:
        raise InvalidRequest(f"the attribute {name} of an event is an integer of 32 bits")


def _check_content_type(text: str) -> None:
    if content_type_or_default(text) != text or not is_media_type(text):
        raise InvalidRequest(
            f"the attribute datacontenttype of an event is a media type of at most {MAX_CONTENT_TYPE_LENGTH} characters"
        )


def _moment(text: str) -> int:
    upper = text.upper()  # RFC 3339 section 5.6: "t" and "z" may be in lower case
    if _TIME.fullmatch(upper):
        try:
            return parse_time(upper)
        except ValueError:
            pass
    raise InvalidRequest("the attribute time of an event is a moment like 2026-11-21T02:11:00Z (RFC 3339)")


def _as_text(topic: bytes) -> str | None:
    """The topic as an attribute of type String, None if it cannot be one."""
    try:
        text = topic.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return None if _NO_TEXT.search(text) else text


def _encode_value(value: str | int | bool) -> str:
    """HTTP binding section 3.1.3.2: space, `"`, `%` and all that is not printable ASCII, as UTF-8."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return _TO_ENCODE.sub(lambda match: "".join(f"%{byte:02X}" for byte in match[0].encode("utf-8")), str(value))


def _decode_value(name: str, value: str) -> str:
    """The inverse; double quotes, which older senders use, are taken off first, as the section asks for."""
    unquoted = _QUOTED.sub(lambda match: _BACKSLASH.sub(r"\1", match[1]), value) if '"' in value else value
    if value.count('"') and _QUOTED.sub("", value).count('"'):
        raise InvalidRequest(f"the header {name[:64]!a} has a quote that is never closed")
    if not _ENCODED.fullmatch(unquoted):
        raise InvalidRequest(f"the header {name[:64]!a} is printable ASCII, all else percent-encoded")
    try:
        return _ESCAPE.sub(lambda match: bytes([int(match[1], 16)]), unquoted.encode("ascii")).decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidRequest(f"the header {name[:64]!a} does not stand for UTF-8") from None


def _media_type(text: str) -> tuple[str, str | None]:
    """Type and subtype, and the charset, both in lower case; an empty type if it is none."""
    match = _MEDIA_TYPE.fullmatch(text)
    if match is None:
        return "", None
    charset = _CHARSET.search(match[3] or "")
    return f"{match[1]}/{match[2]}".lower(), None if charset is None else charset[1].lower()


def _is_json(media_type: str) -> bool:
    return media_type.endswith(("/json", "+json"))


def _is_json_text(data: bytes) -> bool:
    try:
        text = data.decode("utf-8")
        _DECODER.decode(text)
    except (ValueError, RecursionError):
        return False
    return True


def _inline_data(event: CloudEvent, value: object, text: str) -> bytes:
    media_type, charset = _media_type(event.data_content_type or "")
    if _is_json(media_type):
        return text.encode("utf-8")
    if not isinstance(value, str):
        raise InvalidRequest("the data of an event that is not JSON is a string, or in data_base64")
    if charset not in _CHARSETS:
        raise InvalidRequest("text in an event is in utf-8, us-ascii or iso-8859-1, all else in data_base64")
    try:
        return value.encode(charset or "utf-8")
    except UnicodeEncodeError:
        raise InvalidRequest("the data of the event cannot be written in the charset of its datacontenttype") from None


def _from_base64(name: str, value: object) -> bytes:
    if isinstance(value, str):
        try:
            return base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            pass
    raise InvalidRequest(f"{name} of the event is not base64 (RFC 4648 section 4, padded)")


def _members(body: bytes) -> dict[str, tuple[Any, str]]:
    """The members of a JSON object: what each is, and its very text."""
    try:
        text = body.decode("utf-8")
        members, at = _read_object(text)
        if at != len(text):
            raise InvalidRequest("behind the JSON object of the event there is something else")
    except (ValueError, IndexError, RecursionError):
        raise InvalidRequest("a structured event is one JSON object in UTF-8") from None
    return members


def _read_object(text: str) -> tuple[dict[str, tuple[Any, str]], int]:
    """The members and the position behind the object. Raises ValueError or IndexError where there is no JSON."""
    members: dict[str, tuple[Any, str]] = {}
    at = _expect(text, 0, "{")
    while text[at] != "}" or members:
        name, at = _DECODER.raw_decode(text, at)
        if not isinstance(name, str):
            raise InvalidRequest("a member of a JSON object has a string for its name")
        if name in members:
            raise InvalidRequest(f"the event has the member {name[:64]!a} twice")
        if len(members) > MAX_ATTRIBUTES:
            raise InvalidRequest(f"an event has at most {MAX_ATTRIBUTES} members")
        start = _expect(text, _after_space(text, at), ":")
        value, end = _DECODER.raw_decode(text, start)
        members[name] = (value, text[start:end])
        at = _after_space(text, end)
        if text[at] == "}":
            break
        at = _expect(text, at, ",")
    return members, _after_space(text, at + 1)


def _expect(text: str, at: int, character: str) -> int:
    """The position of what follows this character and white space."""
    at = _after_space(text, at)
    if text[at] != character:
        raise ValueError(character)
    return _after_space(text, at + 1)


def _after_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return at if match is None else match.end()
