"""Many patterns -> those that match one topic, at a cost that follows the topic and the matches, not the patterns.

Exact topics, and patterns without a wildcard, are one dict. All others share a trie of their segments:

    orders/*/paid      root ── "orders" ── ONE ── "paid"
    orders/**          root ── "orders" ── MANY
    orders/eu-*/paid   root ── "orders" ── Shape("eu-", "") ── "paid"

A topic is walked through it segment by segment, with the set of nodes reached so far. The edges of a node are found by
look-up: plain segments in a dict, shapes by their ends (`shape_index`). A node behind `**` stays reached whatever
follows; each is entered at most once, so the work is at most (segments of the topic) x (nodes that fit), however many
`**` there are. Patterns that skip topics starting with `$` (MQTT 5.0 section 4.7.2) have a root of their own.

From where only one pattern goes on, the rest of it is one `_Leaf` instead of a chain of nodes, which would take several
times the memory: `users/7/*/x` beside `users/8/*/x` is root ── "users" ── "7" ── Leaf(ONE, "x").
"""

from __future__ import annotations

import sys
from collections.abc import Hashable
from itertools import chain
from typing import Any, Final, Generic, TypeAlias, TypeVar

from httppubsubclient.protocol.globs import Segment, Shape, Span, segments_fit
from httppubsubclient.protocol.patterns import Pattern
from httppubsubclient.protocol.shape_index import ShapeIndex

__all__ = ["TopicIndex"]

K = TypeVar("K", bound=Hashable)

_FEW = 4
"""Up to here several keys of one pattern are a tuple, which takes a third of the memory; beyond, a dict."""


class _Few(tuple[K, ...]):
    """No key, or 2 to 4 of them."""

    __slots__ = ()


class _Many(dict[K, None]):
    """5 keys or more."""

    __slots__ = ()


_Keys: TypeAlias = K | _Few[K] | _Many[K]
"""The keys of one pattern. A single one, as most patterns have, stands for itself."""
_SEVERAL: Final = (_Few, _Many)
_NONE: Final[_Few[Any]] = _Few()


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
        if root is None:
            if exact not in self._exact:
                self._exact[exact] = key
                self._size += 1
            elif not _holds(keys := self._exact[exact], key):
                self._exact[exact] = _with(keys, key)
                self._size += 1
            return
        place: _Place[K] = root
        for at, segment in enumerate(segments):
            node = place
            assert isinstance(node, _Node)
            rest = segments[at + 1 :]
            child = node.child(segment)
            if child is None:
                node.put(segment, _only(segment, rest, key))
                self._size += 1
                return
            place = child
            if isinstance(child, _Leaf):
                if child.rest == rest:
                    break
                place = _Node()
                place.extend(child.rest, child.keys)
                node.put(segment, place)
        if not _holds(place.keys, key):
            place.keys = _with(place.keys, key)
            self._size += 1

    def remove(self, pattern: Pattern, key: K) -> bool:
        """Undo `add`, leaving nothing behind; False when it was not there. Raises `InvalidGlob`."""
        exact, root, segments = self._place(pattern)
        if root is None:
            keys = self._exact.get(exact, _NONE)
            if not _holds(keys, key):
                return False
            keys = _without(keys, key)
            if keys is _NONE:
                del self._exact[exact]
            else:
                self._exact[exact] = keys
            self._size -= 1
            return True
        path: list[tuple[_Node[K], Segment]] = []
        place: _Place[K] = root
        for at, segment in enumerate(segments):
            node = place
            assert isinstance(node, _Node)
            child = node.child(segment)
            if child is None:
                return False
            path.append((node, segment))
            place = child
            if isinstance(child, _Leaf):
                if child.rest != segments[at + 1 :]:
                    return False
                break
        if not _holds(place.keys, key):
            return False
        place.keys = _without(place.keys, key)
        self._size -= 1
        for node, segment in reversed(path):
            if not place.empty():
                break
            node.drop(segment)
            place = node
        return True

    def match(self, topic: bytes, cold: list[Shape] | None = None) -> list[K]:
        """The keys of all patterns that match, in no particular order.

        Compiling may take long: with `cold`, shapes that would have to be compiled join that list, and the answer is
        right only if it stays empty. `Shape.compile` them, and ask again.
        """
        keys = self._exact.get(topic, _NONE)
        found: list[K] = list(keys) if isinstance(keys, _SEVERAL) else [keys]
        root, root_without_dollar = self._root, self._root_without_dollar
        if root.childless() and root_without_dollar.childless():
            return found
        try:
            segments = topic.decode("utf-8").split("/")
        except UnicodeDecodeError:
            return found
        if not root.childless():
            _collect(root, segments, found, cold)
        if not root_without_dollar.childless() and not topic.startswith(b"$"):
            _collect(root_without_dollar, segments, found, cold)
        return found

    def _place(self, pattern: Pattern) -> tuple[bytes, _Node[K] | None, tuple[Segment, ...]]:
        """Where a pattern belongs: the one topic it matches, or a root and the way from there."""
        if pattern.kind == "exact":
            return pattern.value, None, ()
        parsed = pattern.matcher()
        assert parsed is not None
        plain = [segment for segment in parsed.segments if isinstance(segment, str)]
        if len(plain) == len(parsed.segments):
            return "/".join(plain).encode("utf-8"), None, ()
        return b"", self._root_without_dollar if parsed.skips_dollar_topics else self._root, parsed.segments


class _Node(Generic[K]):
    """What has been read of some patterns; `keys` are those of the patterns that end here."""

    __slots__ = ("keys", "many", "one", "plain", "shapes")

    def __init__(self) -> None:
        self.keys: _Keys[K] = _NONE
        self.plain: dict[str, _Place[K]] | None = None
        self.one: _Place[K] | None = None
        self.many: _Node[K] | None = None
        self.shapes: ShapeIndex[_Place[K]] | None = None

    def empty(self) -> bool:
        return self.keys is _NONE and self.childless()

    def childless(self) -> bool:
        return self.plain is None and self.one is None and self.many is None and self.shapes is None

    def child(self, segment: Segment) -> _Place[K] | None:
        if isinstance(segment, str):
            return None if self.plain is None else self.plain.get(segment)
        if isinstance(segment, Span):
            return self.one if segment is Span.ONE else self.many
        return None if self.shapes is None else self.shapes.get(segment)

    def put(self, segment: Segment, child: _Place[K]) -> None:
        """Set the child behind `segment`, in place of the one that is there."""
        if isinstance(segment, str):
            if self.plain is None:
                self.plain = {}
            self.plain[segment] = child
        elif segment is Span.ONE:
            self.one = child
        elif segment is Span.MANY:
            assert isinstance(child, _Node)
            self.many = child
        else:
            if self.shapes is None:
                self.shapes = ShapeIndex()
            self.shapes.put(segment, child)

    def extend(self, rest: tuple[Segment, ...], keys: _Keys[K]) -> None:
        """Take in, while this is empty, the keys of the one pattern that goes on like this."""
        if rest:
            self.put(rest[0], _only(rest[0], rest[1:], keys))
        else:
            self.keys = keys

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


class _Leaf(Generic[K]):
    """The rest of the only pattern that goes this way; of all segments of `rest` only the last may be MANY."""

    __slots__ = ("keys", "rest")

    def __init__(self, rest: tuple[Segment, ...], keys: _Keys[K]) -> None:
        # The same few words stand in most patterns: one copy of each is enough.
        self.rest = tuple([sys.intern(segment) if isinstance(segment, str) else segment for segment in rest])
        self.keys = keys

    def empty(self) -> bool:
        return self.keys is _NONE

    def open_ended(self) -> bool:
        return bool(self.rest) and self.rest[-1] is Span.MANY

    def fits(self, segments: list[str], at: int, cold: list[Shape] | None) -> bool:
        """Whether the rest of a topic, `segments` from `at` on, matches."""
        left = len(segments) - at
        if self.open_ended():
            return left >= len(self.rest) - 1 and segments_fit(self.rest[:-1], segments, at, cold)
        return left == len(self.rest) and segments_fit(self.rest, segments, at, cold)


_Place: TypeAlias = _Node[K] | _Leaf[K]


def _only(segment: Segment, rest: tuple[Segment, ...], keys: _Keys[K]) -> _Place[K]:
    """What stands behind `segment` when only one pattern goes that way: a leaf, behind nodes as far as MANY needs it.

    A node behind MANY stays reached, so a leaf that held one would be tried in full for each segment of a topic.
    """
    if segment is not Span.MANY and Span.MANY not in rest[:-1]:
        return _Leaf(rest, keys)
    path = (segment, *rest)
    nodes = max((at for at, each in enumerate(path[:-1]) if each is Span.MANY), default=-1) + 1
    child: _Place[K]
    if path[nodes] is Span.MANY:
        child = _Node()
        child.keys = keys
    else:
        child = _Leaf(path[nodes + 1 :], keys)
    for each in reversed(path[1 : nodes + 1]):
        node: _Node[K] = _Node()
        node.put(each, child)
        child = node
    return child


def _collect(root: _Node[K], segments: list[str], found: list[K], cold: list[Shape] | None) -> None:
    """Append the keys of the patterns below `root` that match the topic made of `segments`."""
    reached = [root]
    staying: list[_Node[K]] = []
    entered: set[_Place[K]] = set()
    if root.many is not None:
        _enter(root.many, entered, staying, found)
    for at, segment in enumerate(segments, start=1):
        following: list[_Place[K]] = []
        for node in chain(reached, staying):
            if node.plain is not None:
                child = node.plain.get(segment)
                if child is not None:
                    following.append(child)
            if node.one is not None:
                following.append(node.one)
            if node.shapes is not None:
                following.extend(node.shapes.matching(segment, cold))
        reached = []
        for place in following:
            if isinstance(place, _Leaf):
                if place not in entered and place.fits(segments, at, cold):
                    entered.add(place)
                    _found(place.keys, found)
            else:
                reached.append(place)
                if place.many is not None:
                    _enter(place.many, entered, staying, found)
        if not reached and not staying:
            return
    for node in reached:
        _found(node.keys, found)


def _enter(many: _Node[K], entered: set[_Place[K]], staying: list[_Node[K]], found: list[K]) -> None:
    """Reach the node behind a `**`, from where on any rest of the topic is as good as none."""
    if many not in entered:
        entered.add(many)
        _found(many.keys, found)
        if not many.childless():
            staying.append(many)


def _found(keys: _Keys[K], found: list[K]) -> None:
    if isinstance(keys, _SEVERAL):
        found.extend(keys)
    else:
        found.append(keys)


def _holds(keys: _Keys[K], key: K) -> bool:
    return key in keys if isinstance(keys, _SEVERAL) else keys == key


def _with(keys: _Keys[K], key: K) -> _Keys[K]:
    if isinstance(keys, _Many):
        keys[key] = None
        return keys
    if not isinstance(keys, _Few):
        return _Few((keys, key))
    if not keys:
        return key
    return _Few((*keys, key)) if len(keys) < _FEW else _Many((each, None) for each in (*keys, key))


def _without(keys: _Keys[K], key: K) -> _Keys[K]:
    if isinstance(keys, _Many):
        del keys[key]
        return keys if len(keys) > _FEW else _Few(keys)
    if not isinstance(keys, _Few):
        return _NONE
    left = tuple(each for each in keys if each != key)
    return _Few(left) if len(left) > 1 else left[0]
