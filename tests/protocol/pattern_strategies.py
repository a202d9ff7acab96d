"""Random globs, MQTT filters and topics that meet each other often, for hypothesis."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

from httppubsubclient.protocol.patterns import Pattern

__all__ = ["GlobAndTopic", "any_text", "globs_and_topics", "patterns", "syntax_text", "topics"]

_CHARACTERS = "ab.-]!^é\n"
_character = st.sampled_from(_CHARACTERS)
_word = st.text(_character, max_size=4)

any_text = st.text(st.characters(exclude_categories=()), max_size=40)
"""Any text, lone surrogates included."""
syntax_text = st.text(st.sampled_from("[]!^-\\*?/+#$:ab\0é"), min_size=1, max_size=24)
"""Text in which almost every character means something to a glob or an MQTT filter."""

_common = st.sampled_from(["a", "b", "ab", "", "$a", "é"])
_mqtt_level = st.one_of(_common, st.just("+"))
_glob_segment = st.one_of(
    _common,
    st.sampled_from(["*", "**", "a*", "*b", "a*b", "?", "[ab]", "[!a]*", "*a*", "*é*", "?b", "*ab*ba*", "$*"]),
)
_shown_segment = st.sampled_from(["a", "b", "ab", "", "$a", "é", "aab", "abba", "bab", "é"])

topics = st.one_of(
    st.lists(_shown_segment, min_size=1, max_size=6).map(lambda parts: ("/".join(parts) or "a").encode()),
    st.binary(min_size=1, max_size=6),
)
"""Topics for `patterns`, a few of them not UTF-8."""

patterns = st.one_of(
    topics.map(Pattern.exact),
    st.lists(_glob_segment, min_size=1, max_size=6).map(lambda parts: Pattern.glob("/".join(parts) or "a")),
    st.tuples(st.lists(_mqtt_level, min_size=1, max_size=4), st.sampled_from(["", "/#"])).map(
        lambda parts: Pattern.mqtt(("/".join(parts[0]) or "a") + parts[1])
    ),
    st.just(Pattern.mqtt("#")),
)
"""Patterns of all kinds, from so few words that many of them meet."""


@dataclass(frozen=True)
class GlobAndTopic:
    """A glob and a topic, both as segments, so that a test can translate them without parsing."""

    glob_segments: tuple[str, ...]
    topic_segments: tuple[str, ...]

    @property
    def glob(self) -> str:
        return "/".join(self.glob_segments)

    @property
    def topic(self) -> bytes:
        return "/".join(self.topic_segments).encode()


@st.composite
def _class_and_member(draw: st.DrawFn) -> tuple[str, str]:
    """`[...]`, and a character that is likely in it."""
    members: list[str] = []
    text = ""
    for place in range(draw(st.integers(1, 3))):
        low, high = sorted((draw(_character), draw(_character)))
        members.append(low)
        if draw(st.booleans()):
            high = low
        ends = [low] if low == high else [low, high]
        # "]" may stand bare only at the very start, "-" only at an end; "!" and "^" negate at the start.
        bare = [end not in "]-!^" or (end == "]" and place == 0 and at == 0) for at, end in enumerate(ends)]
        text += "-".join(
            end if plain and draw(st.booleans()) else "\\" + end for plain, end in zip(bare, ends, strict=True)
        )
    edge = draw(st.sampled_from(["", "", "", "-"]))
    return f"[{draw(st.sampled_from(['', '', '!', '^']))}{text}{edge}]", draw(st.sampled_from(members))


@st.composite
def _segment_and_fit(draw: st.DrawFn) -> tuple[str, str]:
    """A segment of a glob, and a text that often matches it."""
    text, fit = "", ""
    for _ in range(draw(st.integers(0, 5))):
        kind = draw(st.sampled_from(["plain", "plain", "escape", "*", "*", "?", "class"]))
        if kind == "class":
            token, piece = draw(_class_and_member())
        elif kind == "plain":
            piece = draw(_character)
            token = piece
        elif kind == "escape":
            piece = draw(st.sampled_from("*?[]\\a"))
            token = "\\" + piece
        else:
            piece = draw(_word) if kind == "*" else draw(_character)
            token = kind
        text, fit = text + token, fit + piece
    return text, fit


@st.composite
def globs_and_topics(draw: st.DrawFn) -> GlobAndTopic:
    """A well-formed glob of any shape, and a topic that about as often matches as not."""
    glob: list[str] = []
    topic: list[str] = []
    for _ in range(draw(st.integers(1, 5))):
        if draw(st.integers(0, 3)) == 0:
            glob.append("**")
            topic.extend(draw(st.lists(_word, max_size=3)))
        else:
            text, fit = draw(_segment_and_fit())
            glob.append(text)
            topic.append(fit)
    for _ in range(draw(st.sampled_from([0, 0, 1]))):
        topic.insert(draw(st.integers(0, len(topic))), draw(_word))
    if glob == [""]:
        glob = ["*"]
    if topic in ([], [""]):
        topic = ["a"]
    return GlobAndTopic(tuple(glob), tuple(topic))
