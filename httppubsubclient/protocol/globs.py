r"""Globs and MQTT filters: parse and match. The only matcher of the project.

A topic that is UTF-8 text is a list of segments with `/` between them; empty segments are ordinary (`/a` has two). A
topic that is not UTF-8 is matched by no pattern.

| in a glob        | stands for                                                                            |
|------------------|---------------------------------------------------------------------------------------|
| `*`              | any run of characters within one segment, also none                                   |
| `?`              | one character (not byte) other than `/`                                               |
| `[abc]` `[a-z]`  | one character of these; `]` stands for itself when first, `-` when first or last      |
| `[!abc]` `[^a]`  | one character that is none of these, and never `/`                                    |
| `**`             | as a whole segment: zero or more segments; inside a longer segment the same as `*`    |
| `\x`             | the character x, also inside `[...]`                                                  |
| all else         | itself: dots, control characters, `%`, `_`, `{`, `$` mean nothing special             |

| in an MQTT filter (MQTT 5.0 section 4.7)                                                                | source  |
|----------------------------------------------------------------------------------------------------------|---------|
| `+` is one whole level, also an empty one; `#`, only at the end, is the level before it and all below      | 4.7.1   |
| a filter that starts with `+` or `#` matches no topic that starts with `$`                               | 4.7.2   |
| at least one character, no U+0000, compared character by character without normalisation                 | 4.7.3   |

Both kinds compile to the same `Segment`s. Matching takes time in the order of (length of the topic) x (length of the
pattern) for every pattern: after a `*`, the leftmost place where the characters up to the next `*` fit is as good as
any other, because they fit only runs of one fixed length; so no choice is ever taken back. The same holds for `**`
and the segments up to the next `**`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar, Final, NamedTuple, TypeAlias

from httppubsubclient.protocol.errors import InvalidGlob

__all__ = [
    "MAX_CLASSES",
    "MAX_DOUBLE_STARS",
    "MAX_PATTERN_BYTES",
    "MAX_SEGMENTS",
    "Glob",
    "MqttFilter",
    "Segment",
    "Shape",
    "Span",
    "parse_glob",
    "parse_mqtt_filter",
    "segments_fit",
]

MAX_PATTERN_BYTES: Final = 1024
"""Of a glob or an MQTT filter, in UTF-8."""
MAX_SEGMENTS: Final = 64
"""Of a glob or an MQTT filter, after `**/**` has become `**`."""
MAX_DOUBLE_STARS: Final = 8
"""Of a glob, after `**/**` has become `**`."""
MAX_CLASSES: Final = 64
"""`[...]` in a glob: each that spans much of Unicode costs a millisecond when the glob is first used."""


class Span(Enum):
    """What a segment of a pattern stands for when it is nothing but a wildcard."""

    ONE = "*"
    """Any one segment."""
    MANY = "**"
    """Zero or more segments."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A segment of a pattern with a wildcard in it: matches one segment, by its two ends and what lies between."""

    prefix: str
    """The characters before the first wildcard."""
    suffix: str
    """The characters after the last wildcard."""
    inner: str
    """The longest run of plain characters between the first and the last wildcard."""
    middle: str | None
    """A regular expression for what lies between `prefix` and `suffix`; None stands for anything."""
    _compiled: re.Pattern[str] | None = field(default=None, init=False, repr=False, compare=False)

    def matches(self, segment: str, cold: list[Shape] | None = None) -> bool:
        """Whether this matches the whole of one segment, which holds no `/`.

        With `cold`, one that would have to be compiled for that joins the list instead, and the answer is False.
        """
        end = len(segment) - len(self.suffix)
        if end < len(self.prefix) or not segment.startswith(self.prefix) or not segment.endswith(self.suffix):
            return False
        if self.middle is None:
            return True
        compiled = self._compiled
        if compiled is None:
            if cold is not None:
                cold.append(self)
                return False
            compiled = self.compile()
        return compiled.fullmatch(segment, len(self.prefix), end) is not None

    def compile(self) -> re.Pattern[str]:
        """Make it ready: only when it is needed, because most patterns are parsed to be checked or stored, and this
        costs more than all the rest, up to some tenths of a second."""
        compiled = self._compiled
        if compiled is None:
            compiled = re.compile(self.middle or "", re.DOTALL)
            object.__setattr__(self, "_compiled", compiled)
        return compiled


Segment: TypeAlias = str | Shape | Span
"""One segment of a pattern; a `str` stands for exactly itself."""


@dataclass(frozen=True, slots=True)
class Glob:
    """A glob that has been parsed. Made by `parse_glob`."""

    text: str
    segments: tuple[Segment, ...] = field(repr=False, compare=False)
    skips_dollar_topics: ClassVar[bool] = False

    def matches(self, topic: bytes) -> bool:
        """Whether the whole topic matches; False for a topic that is not UTF-8."""
        parts = _parts(topic)
        return parts is not None and _match(self.segments, parts)


@dataclass(frozen=True, slots=True)
class MqttFilter:
    """An MQTT topic filter that has been parsed. Made by `parse_mqtt_filter`."""

    text: str
    segments: tuple[Segment, ...] = field(repr=False, compare=False)

    @property
    def skips_dollar_topics(self) -> bool:
        """Whether it starts with a wildcard, so that no topic starting with `$` matches (MQTT 5.0 section 4.7.2)."""
        return isinstance(self.segments[0], Span)

    def matches(self, topic: bytes) -> bool:
        """Whether the whole topic matches; False for a topic that is not UTF-8."""
        if self.skips_dollar_topics and topic.startswith(b"$"):
            return False
        parts = _parts(topic)
        return parts is not None and _match(self.segments, parts)


def parse_glob(text: str) -> Glob:
    """The glob that `text` is. Raises `InvalidGlob`, saying where it is malformed and why."""
    _check_text("glob", text)
    segments: list[Segment] = []
    tokens: list[_Token] = []
    classes = 0
    at = 0
    while at < len(text):
        plain = _PLAIN.match(text, at)
        if plain is not None:
            tokens.append(plain.group())
            at = plain.end()
        elif text[at] == "[":
            classes += 1
            if classes > MAX_CLASSES:
                raise _malformed("glob", text, at, f"more than {MAX_CLASSES} '[...]'")
            token, at = _parse_class(text, at)
            tokens.append(token)
        elif text.startswith(("/", "\\/"), at):
            _add_segment(segments, tokens)
            tokens = []
            at = text.index("/", at) + 1
        elif text[at] == "\\":
            if at + 1 == len(text):
                raise _malformed("glob", text, at, "'\\' has no character after it; write '\\\\' for a backslash")
            tokens.append(text[at + 1])
            at += 2
        else:
            tokens.append(_STAR if text[at] == "*" else _ANY_CHARACTER)
            at += 1
    _add_segment(segments, tokens)
    if segments.count(Span.MANY) > MAX_DOUBLE_STARS:
        raise InvalidGlob(f"glob {_shown(text)}: it holds more than {MAX_DOUBLE_STARS} '**'")
    _check_depth("glob", text, segments)
    return Glob(text, tuple(segments))


def parse_mqtt_filter(text: str) -> MqttFilter:
    """The MQTT topic filter that `text` is. Raises `InvalidGlob`, saying where it is malformed and why."""
    _check_text("MQTT filter", text)
    nul = text.find("\0")
    if nul >= 0:
        raise _malformed("MQTT filter", text, nul, "U+0000 is not allowed (MQTT 5.0 section 4.7.3)")
    if text.startswith("$share/"):
        raise _malformed("MQTT filter", text, 0, "shared subscriptions ('$share/...') are not supported")
    segments: list[Segment] = []
    at = 0
    for level in text.split("/"):
        if level == "#" and at + 1 < len(text):
            raise _malformed("MQTT filter", text, at, "'#' is allowed only as the last level")
        if level == "+" or level == "#":
            segments.append(Span.ONE if level == "+" else Span.MANY)
        else:
            misplaced = _MQTT_WILDCARD.search(level)
            if misplaced is not None:
                why = f"'{misplaced.group()}' stands for a whole level"
                raise _malformed("MQTT filter", text, at + misplaced.start(), why)
            segments.append(level)
        at += len(level) + 1
    _check_depth("MQTT filter", text, segments)
    return MqttFilter(text, tuple(segments))


class _Wild(NamedTuple):
    """A wildcard inside a segment, as a regular expression."""

    expression: str


_Token: TypeAlias = str | _Wild

_STAR: Final = _Wild(".*")
_ANY_CHARACTER: Final = _Wild(".")
_PLAIN = re.compile(r"[^\\/*?\[]+")
_MQTT_WILDCARD = re.compile(r"[+#]")
# "[[:alpha:]]" means something else everywhere else: refused rather than read as one of "[:alph", then "]".
_POSIX_CLASS = re.compile(r"\[([:.=])[^]/]+\1\]")


def _parse_class(text: str, start: int) -> tuple[_Token, int]:
    """The class whose `[` is at `start`, and the position after its `]`."""
    at = start + 1
    negated = text[at : at + 1] in ("!", "^")
    at += negated
    first = at
    single: str | None = None
    expression: list[str] = []
    while True:
        if text[at : at + 1] == "]" and at > first:
            break
        if _POSIX_CLASS.match(text, at):
            raise _malformed("glob", text, at, "named classes such as '[:alpha:]' are not supported")
        low, after = _class_character(text, start, at)
        high = low
        if text[after : after + 1] == "-" and text[after + 1 : after + 2] not in ("]", ""):
            high, after = _class_character(text, start, after + 1)
            if high < low:
                raise _malformed("glob", text, at, f"the range {low!r} to {high!r} is the wrong way round")
        single = low if not expression and low == high else None
        expression.append(re.escape(low) if low == high else f"{re.escape(low)}-{re.escape(high)}")
        at = after
    if single is not None and not negated:
        return single, at + 1
    return _Wild(f"[{'^' if negated else ''}{''.join(expression)}]"), at + 1


def _class_character(text: str, start: int, at: int) -> tuple[str, int]:
    """One character of the class that began at `start`, with its escape taken off, and the position after it."""
    escaped = text[at : at + 1] == "\\"
    at += escaped
    character = text[at : at + 1]
    if not character:
        raise _malformed("glob", text, start, "'[' is never closed; write '\\[' for the character itself")
    if character == "/":
        raise _malformed("glob", text, at, "'/' inside '[...]': a class never matches it")
    return character, at + 1


def _add_segment(segments: list[Segment], tokens: list[_Token]) -> None:
    segment = _segment(tokens)
    # a/**/**/b is a/**/b: kept apart, each would only multiply the work.
    if segment is not Span.MANY or not segments or segments[-1] is not Span.MANY:
        segments.append(segment)


def _segment(tokens: list[_Token]) -> Segment:
    wild = [at for at, token in enumerate(tokens) if isinstance(token, _Wild)]
    if not wild:
        return _joined(tokens)
    if all(token is _STAR for token in tokens):
        return Span.MANY if len(tokens) == 2 else Span.ONE
    middle = tokens[wild[0] : wild[-1] + 1]
    anything = all(token is _STAR for token in middle)
    return Shape(
        prefix=_joined(tokens[: wild[0]]),
        suffix=_joined(tokens[wild[-1] + 1 :]),
        inner=_longest_plain(middle),
        middle=None if anything else _expression(middle),
    )


def _expression(tokens: list[_Token]) -> str:
    """A regular expression in which a piece between two `*` that has found its place never looks for another."""
    pieces = [""]
    for token in tokens:
        if token is _STAR:
            pieces.append("")
        else:
            pieces[-1] += token.expression if isinstance(token, _Wild) else re.escape(token)
    first, *between = pieces
    if not between:
        return first
    last = between.pop()
    # Only the last piece has to end where the segment ends: ".*" comes back for it once, over fixed ground.
    return first + "".join(f"(?>.*?{piece})" for piece in between if piece) + ".*" + last


def _longest_plain(tokens: list[_Token]) -> str:
    longest, run = "", ""
    for token in tokens:
        run = run + token if isinstance(token, str) else ""
        longest = max(longest, run, key=len)
    return longest


def _joined(tokens: list[_Token]) -> str:
    return "".join(token for token in tokens if isinstance(token, str))


def _parts(topic: bytes) -> list[str] | None:
    try:
        return topic.decode("utf-8").split("/")
    except UnicodeDecodeError:
        return None


def _match(segments: tuple[Segment, ...], parts: list[str]) -> bool:
    if Span.MANY not in segments:
        return len(segments) == len(parts) and segments_fit(segments, parts, 0)
    head, *groups = _split_at_many(segments)
    tail = groups.pop()
    at, end = len(head), len(parts) - len(tail)
    if at > end or not segments_fit(head, parts, 0) or not segments_fit(tail, parts, end):
        return False
    for group in groups:
        while at + len(group) <= end and not segments_fit(group, parts, at):
            at += 1
        at += len(group)
        if at > end:
            return False
    return True


def _split_at_many(segments: tuple[Segment, ...]) -> list[list[Segment]]:
    groups: list[list[Segment]] = [[]]
    for segment in segments:
        if segment is Span.MANY:
            groups.append([])
        else:
            groups[-1].append(segment)
    return groups


def segments_fit(segments: Sequence[Segment], parts: list[str], at: int, cold: list[Shape] | None = None) -> bool:
    """Whether `parts` from `at` on match these segments one by one; there are enough of them. `cold`: see `Shape`."""
    for segment in segments:
        part = parts[at]
        if isinstance(segment, str):
            if segment != part:
                return False
        elif isinstance(segment, Shape) and not segment.matches(part, cold):
            return False
        at += 1
    return True


def _check_text(kind: str, text: str) -> None:
    if not isinstance(text, str):
        raise InvalidGlob(f"{_article(kind)} is text, not {type(text).__name__}")
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise _malformed(kind, text, error.start, "a lone surrogate is not text") from None
    if not 1 <= size <= MAX_PATTERN_BYTES:
        raise InvalidGlob(f"{_article(kind)} has 1 to {MAX_PATTERN_BYTES} bytes of UTF-8; this one has {size}")


def _check_depth(kind: str, text: str, segments: list[Segment]) -> None:
    if len(segments) > MAX_SEGMENTS:
        raise InvalidGlob(f"{kind} {_shown(text)}: it has more than {MAX_SEGMENTS} segments ({len(segments)})")


def _malformed(kind: str, text: str, position: int, why: str) -> InvalidGlob:
    return InvalidGlob(f"{kind} {_shown(text)}, position {position} (counted from 0): {why}")


def _article(kind: str) -> str:
    return f"an {kind}" if kind.startswith("MQTT") else f"a {kind}"


def _shown(text: str) -> str:
    shown = ascii(text)
    return shown if len(shown) <= 100 else shown[:97] + "..."
