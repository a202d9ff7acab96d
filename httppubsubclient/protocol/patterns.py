"""What a subscription asks for: one exact topic, a glob or an MQTT filter, as one small value.

| kind    | `value`                | JSON                                  |
|---------|------------------------|---------------------------------------|
| `exact` | the topic, 1..4096 bytes | `{"topic": ...}` or `{"topic_b64": ...}` |
| `glob`  | UTF-8, 1..1024 bytes   | `{"glob": ...}`                       |
| `mqtt`  | UTF-8, 1..1024 bytes   | `{"mqtt": ...}`                       |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from httppubsubclient.protocol.errors import InvalidGlob, InvalidRequest
from httppubsubclient.protocol.globs import Glob, MqttFilter, parse_glob, parse_mqtt_filter
from httppubsubclient.protocol.topics import check_topic, topic_from_json, topic_to_json

__all__ = ["Pattern", "PatternKind", "pattern_from_json"]

PatternKind = Literal["exact", "glob", "mqtt"]


@dataclass(frozen=True, slots=True)
class Pattern:
    """One exact topic, glob or MQTT filter. Make it with `exact`, `glob` or `mqtt`, which check it."""

    kind: PatternKind
    value: bytes

    @staticmethod
    def exact(topic: bytes) -> Pattern:
        """Matches this topic and no other. Raises `InvalidTopic`."""
        return Pattern("exact", check_topic(topic))

    @staticmethod
    def glob(text: str) -> Pattern:
        """Matches as docs/protocol.md describes globs. Raises `InvalidGlob`."""
        return Pattern("glob", _utf8(text, parse_glob(text)))

    @staticmethod
    def mqtt(text: str) -> Pattern:
        """Matches as MQTT 5.0 section 4.7 describes topic filters. Raises `InvalidGlob`."""
        return Pattern("mqtt", _utf8(text, parse_mqtt_filter(text)))

    def matcher(self) -> Glob | MqttFilter | None:
        """The parsed pattern, None for an exact topic (compare the bytes)."""
        if self.kind == "exact":
            return None
        text = self.value.decode("utf-8")
        return parse_glob(text) if self.kind == "glob" else parse_mqtt_filter(text)

    def to_json(self) -> dict[str, str]:
        """`{"topic": ...}`, `{"topic_b64": ...}`, `{"glob": ...}` or `{"mqtt": ...}`."""
        if self.kind == "exact":
            return topic_to_json(self.value)
        return {self.kind: self.value.decode("utf-8")}

    def __str__(self) -> str:
        return " ".join(f"{name}={value!r}" for name, value in self.to_json().items())


def pattern_from_json(fields: Mapping[str, object]) -> Pattern:
    """The pattern of an object that has exactly one of `topic`, `topic_b64`, `glob` and `mqtt`."""
    given = [name for name in ("topic", "topic_b64", "glob", "mqtt") if fields.get(name) is not None]
    if len(given) != 1:
        raise InvalidRequest(
            f"give exactly one of 'topic', 'topic_b64', 'glob' and 'mqtt'; got {' and '.join(given) or 'none'}"
        )
    name = given[0]
    if name in ("topic", "topic_b64"):
        return Pattern.exact(topic_from_json(fields))
    text = fields[name]
    if not isinstance(text, str):
        raise InvalidGlob(f"{name!r} is a string")
    return Pattern.glob(text) if name == "glob" else Pattern.mqtt(text)


def _utf8(text: str, _checked: Glob | MqttFilter) -> bytes:
    return text.encode("utf-8")
