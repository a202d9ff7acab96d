"""Many patterns -> those that match one topic, at a cost that follows the topic and the matches, not the patterns.

Exact topics, and patterns without a wildcard, are one dict. All others share a trie of their segments:

    orders/*/paid      root ── "orders" ── ONE ── "paid"
    orders/**          root ── "orders" ── MANY
    orders/eu-*/paid   root ── "orders" ── Shape("eu-", "") ── "paid"

A topic is walked through it segment by segment, with the set of nodes reached so far. The edges of a node are found by
look-up: plain segments in a dict, shapes by their ends (`shape_index`). A node behind `**` stays reached whatever
follows; each is entered at most once, so the work is at most (segments of the topic) x (nodes that fit), however many
`**` there are. Patterns that skip topics starting with `$` (MQTT 5.0 section 4.7.2) have a root of their own.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable
from itertools import chain
from typing import Generic, TypeAlias, TypeVar

from httppubsubclient.protocol.globs import Segment, Span
from httppubsubclient.protocol.patterns import Pattern
from httppubsubclient.protocol.shape_index import ShapeIndex

__all__ = ["TopicIndex"]

K = TypeVar("K", bound=Hashable)

_Keys: TypeAlias = tuple[K, ...] | dict[K, None]
_FEW = 4
"""Up to here the keys of one pattern are a tuple, which takes a third of the memory; beyond, a dict."""


class TopicIndex(Generic[K]):
    """A changing set of (pattern, key); a key stands under one pattern only. For one thread at a time."""

    __slots__ = ("_exact", "_root", "_root_without_dollar", "_size")

    def __init__(self) -> None:
        self.clear()

    def __len__(self) -> int:
        """How many (pattern, key) there are."""
        return self._size

    def clear(self) -> None:
        """Forget everything."""
        self._exact: dict[bytes, _Keys[K]] = {}
        self._root: _Node[K] = _Node()
        self._root_without_dollar: _Node[K] = _Node()
        self._size = 0

    def add(self, pattern: Pattern, key: K) -> None:
        """Have `match` answer `key` for the topics that `pattern` matches. Raises `InvalidGlob`.

        Adding what is there already changes nothing.
        """
        exact, root, segments = self._place(pattern)
        if exact is not None:
            keys = self._exact.get(exact, ())
            if key not in keys:
                self._exact[exact] = _with(keys, key)
                self._size += 1
            return
        node = root
        for segment in segments:
            node = node.child_or_new(segment)
        if key not in node.keys:
            node.keys = _with(node.keys, key)
            self._size += 1

    def remove(self, pattern: Pattern, key: K) -> bool:
        """Undo `add`, leaving nothing behind; False when it was not there. Raises `InvalidGlob`."""
        exact, root, segments = self._place(pattern)
        if exact is not None:
            keys = self._exact.get(exact, ())
            if key not in keys:
                return False
            keys = _without(keys, key)
            if keys:
                self._exact[exact] = keys
            else:
                del self._exact[exact]
            self._size -= 1
            return True
        path = [root]
        for segment in segments:
            child = path[-1].child(segment)
            if child is None:
                return False
            path.append(child)
        node = path.pop()
        if key not in node.keys:
            return False
        node.keys = _without(node.keys, key)
        self._size -= 1
        for parent, segment in zip(reversed(path), reversed(segments), strict=True):
            if not node.empty():
                break
            parent.drop(segment)
            node = parent
        return True

    def match(self, topic: bytes) -> list[K]:
        """The keys of all patterns that match, in no particular order."""
        found = list(self._exact.get(topic, ()))
        if self._root.empty() and self._root_without_dollar.empty():
            return found
        try:
            segments = topic.decode("utf-8").split("/")
        except UnicodeDecodeError:
            return found
        _collect(self._root, segments, found)
        if not topic.startswith(b"$"):
            _collect(self._root_without_dollar, segments, found)
        return found

    def _place(self, pattern: Pattern) -> tuple[bytes | None, _Node[K], tuple[Segment, ...]]:
        """Where a pattern belongs: the one topic it matches, or a root and the way from there."""
        parsed = pattern.matcher()
        if parsed is None:
            return pattern.value, self._root, ()
        plain = [segment for segment in parsed.segments if isinstance(segment, str)]
        if len(plain) == len(parsed.segments):
            return "/".join(plain).encode("utf-8"), self._root, ()
        root = self._root_without_dollar if parsed.skips_dollar_topics else self._root
        return None, root, parsed.segments


class _Node(Generic[K]):
    """What has been read of some patterns; `keys` are those of the patterns that end here."""

    __slots__ = ("keys", "many", "one", "plain", "shapes")

    def __init__(self) -> None:
        self.keys: _Keys[K] = ()
        self.plain: dict[str, _Node[K]] | None = None
        self.one: _Node[K] | None = None
        self.many: _Node[K] | None = None
        self.shapes: ShapeIndex[_Node[K]] | None = None

    def empty(self) -> bool:
        return not self.keys and self.childless()

    def childless(self) -> bool:
        return self.plain is None and self.one is None and self.many is None and self.shapes is None

    def child(self, segment: Segment) -> _Node[K] | None:
        if isinstance(segment, str):
            return None if self.plain is None else self.plain.get(segment)
        if isinstance(segment, Span):
            return self.one if segment is Span.ONE else self.many
        return None if self.shapes is None else self.shapes.get(segment)

    def child_or_new(self, segment: Segment) -> _Node[K]:
        known = self.child(segment)
        if known is not None:
            return known
        node: _Node[K] = _Node()
        if isinstance(segment, str):
            if self.plain is None:
                self.plain = {}
            # The same few words stand in most patterns: one copy of each is enough.
            self.plain[sys.intern(segment)] = node
        elif segment is Span.ONE:
            self.one = node
        elif segment is Span.MANY:
            self.many = node
        else:
            if self.shapes is None:
                self.shapes = ShapeIndex()
            self.shapes.put(segment, node)
        return node

    def drop(self, segment: Segment) -> None:
        if isinstance(segment, str):
            assert self.plain is not None
            del self.plain[segment]
            if not self.plain:
                self.plain = None
        elif segment is Span.ONE:
            self.one = None
        elif segment is Span.MANY:
            self.many = None
        else:
            assert self.shapes is not None
            self.shapes.drop(segment)
            if not self.shapes:
                self.shapes = None


def _collect(root: _Node[K], segments: list[str], found: list[K]) -> None:
    """Append the keys of the patterns below `root` that match the topic made of `segments`."""
    reached = [root]
    staying: list[_Node[K]] = []
    entered: set[_Node[K]] = set()
    if root.many is not None:
        _enter(root.many, entered, staying, found)
    for segment in segments:
        following: list[_Node[K]] = []
        for node in chain(reached, staying):
            if node.plain is not None:
                child = node.plain.get(segment)
                if child is not None:
                    following.append(child)
            if node.one is not None:
                following.append(node.one)
            if node.shapes is not None:
                following.extend(node.shapes.matching(segment))
        if not following and not staying:
            return
        for node in following:
            if node.many is not None:
                _enter(node.many, entered, staying, found)
        reached = following
    for node in reached:
        found.extend(node.keys)


def _enter(many: _Node[K], entered: set[_Node[K]], staying: list[_Node[K]], found: list[K]) -> None:
    """Reach the node behind a `**`, from where on any rest of the topic is as good as none."""
    if many not in entered:
        entered.add(many)
        found.extend(many.keys)
        if not many.childless():
            staying.append(many)


def _with(keys: _Keys[K], key: K) -> _Keys[K]:
    if isinstance(keys, dict):
        keys[key] = None
        return keys
    if len(keys) < _FEW:
        return (*keys, key)
    return dict.fromkeys((*keys, key))


def _without(keys: _Keys[K], key: K) -> _Keys[K]:
    if isinstance(keys, dict):
        del keys[key]
        return keys if len(keys) > _FEW else tuple(keys)
    return tuple(each for each in keys if each != key)
