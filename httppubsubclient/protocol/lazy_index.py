"""A `TopicIndex` that reads a pattern only when a topic comes that it could match.

To find its place in the index a pattern has to be parsed, which takes up to two milliseconds, and ten thousand may come
at once. So what changes waits, by the plain characters that its topics begin with, and only a topic that begins with
them has it put in place, a slice at a time:

    a/b*/**  waits under "a/b"       a/**  under "a/", which a topic `a` begins with, too       **/x  under ""
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

from httppubsubclient.protocol.globs import Shape
from httppubsubclient.protocol.patterns import Pattern
from httppubsubclient.protocol.topic_index import TopicIndex

__all__ = ["LazyIndex"]

K = TypeVar("K", bound=Hashable)

_MAX_START: Final = 32
"""Bytes."""
_MANY_STARTS: Final = 4096
"""From here on others wait by the beginning of their first segment, and from twice as many on under ""."""
# `[a]`, `[aa]`, `[a-a]` and `\\a` stand for a: who may subscribe to `a/**` may write it like that, too.
_GLOB_START: Final = re.compile(
    rb"(?:[^\\/*?\[]|\\[^/]|/(?!\*\*)|\[([^]\\!^/])(?:-\1)?\1*\]){0,%d}" % _MAX_START, re.DOTALL
)
_UNPLAIN: Final = re.compile(rb"\\(.)|\[(.)[^]]*\]", re.DOTALL)
_MQTT_START: Final = re.compile(rb"(?:[^+#/]|/(?!#)){0,%d}" % _MAX_START, re.DOTALL)


class LazyIndex(Generic[K]):
    """As `TopicIndex`, for keys that are added once and have one pattern each, which `pattern_of` tells."""

    __slots__ = ("_index", "_lengths", "_pattern_of", "_waiting")

    def __init__(self, pattern_of: Callable[[K], Pattern]) -> None:
        self._pattern_of = pattern_of
        self._index: TopicIndex[K] = TopicIndex()
        self._waiting: dict[bytes, dict[K, bool]] = {}
        """By what their topics begin with: whether they are to be added or removed."""
        self._lengths: Counter[int] = Counter()

    def __len__(self) -> int:
        """How many (pattern, key) there are."""
        waiting = sum(1 if added else -1 for keys in self._waiting.values() for added in keys.values())
        return len(self._index) + waiting

    def add(self, key: K) -> None:
        """Have `match` answer `key` for the topics that its pattern matches."""
        pattern = self._pattern_of(key)
        if pattern.kind == "exact":
            self._index.add(pattern, key)
        else:
            self._wait(_starts(pattern), key, added=True)

    def remove(self, key: K) -> None:
        """Undo `add`."""
        pattern = self._pattern_of(key)
        if pattern.kind == "exact":
            self._index.remove(pattern, key)
        else:
            self._unwait(_starts(pattern), key)

    def swap(self, old: K, new: K) -> None:
        """Remove `old` and add `new`, which has the same pattern."""
        pattern = self._pattern_of(old)
        if pattern.kind == "exact":
            self._index.add(pattern, new)
            self._index.remove(pattern, old)
            return
        starts = _starts(pattern)
        self._wait(starts, new, added=True)
        self._unwait(starts, old)

    def _unwait(self, starts: tuple[bytes, bytes, bytes], key: K) -> None:
        for start in starts:
            keys = self._waiting.get(start)
            if keys is not None and key in keys:
                del keys[key]
                if not keys:
                    self._drop(start)
                return
        self._wait(starts, key, added=False)

    def waits(self, topic: bytes) -> bool:
        """Whether `settle` has something to do before this topic can be matched."""
        waiting = self._waiting
        if waiting:
            ended = topic + b"/"
            for length in self._lengths:
                if ended[:length] in waiting:
                    return True
        return False

    def settle(self, topic: bytes, most: int) -> bool:
        """Put in place what could match `topic`, until `most` bytes of patterns have been read; False when that was not
        all. Raises `InvalidGlob`."""
        for start in self._starts_of(topic):
            keys = self._waiting[start]
            while keys:
                if most <= 0:
                    return False
                key, added = keys.popitem()
                if not keys:
                    self._drop(start)
                pattern = self._pattern_of(key)
                most -= len(pattern.value)
                if added:
                    self._index.add(pattern, key)
                else:
                    self._index.remove(pattern, key)
        return True

    def match(self, topic: bytes, cold: list[Shape] | None = None) -> list[K]:
        """See `TopicIndex.match`; for a topic for which nothing waits."""
        return self._index.match(topic, cold)

    def _starts_of(self, topic: bytes) -> list[bytes]:
        ended = topic + b"/"
        starts = [ended[:length] for length in self._lengths if length <= len(ended)]
        return [start for start in starts if start in self._waiting]

    def _wait(self, starts: tuple[bytes, bytes, bytes], key: K, *, added: bool) -> None:
        start = starts[0]
        if start not in self._waiting and len(self._waiting) >= _MANY_STARTS:
            start = starts[1]
            if start not in self._waiting and len(self._waiting) >= 2 * _MANY_STARTS:
                start = starts[2]
        keys = self._waiting.get(start)
        if keys is None:
            keys = self._waiting[start] = {}
            self._lengths[len(start)] += 1
        keys[key] = added

    def _drop(self, start: bytes) -> None:
        del self._waiting[start]
        self._lengths[len(start)] -= 1
        if not self._lengths[len(start)]:
            del self._lengths[len(start)]


def _starts(pattern: Pattern) -> tuple[bytes, bytes, bytes]:
    """What every topic that matches begins with, `/` being thought at its end: as far as is easily seen, that in its
    first segment, and nothing."""
    match = (_GLOB_START if pattern.kind == "glob" else _MQTT_START).match(pattern.value)
    assert match is not None
    start = match.group()
    if pattern.kind == "glob":
        start = _UNPLAIN.sub(rb"\1\2", start)
    # A segment that `**` may leave out has a `/` before it; the one that is thought at the end stands for that.
    if pattern.value[match.end() : match.end() + 1] == b"/":
        start += b"/"
    start = start[:_MAX_START]
    head, slash, _ = start.partition(b"/")
    return start, head + slash, b""
