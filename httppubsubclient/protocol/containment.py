r"""Does one pattern contain another: is every topic that the inner one matches a topic of the outer one?

A key that may subscribe to `orders/*` may subscribe to `orders/[ab]*`, too, and not to `orders/**`. Which is so cannot
be told from a few topics, and not from the texts. Patterns are regular languages, so it can be computed:

Each pattern becomes an automaton that reads a topic with a `/` behind it, so that every segment ends in one:

| in a pattern          | states                                                                               |
|-----------------------|--------------------------------------------------------------------------------------|
| a character, `?`, `[...]` | one, which reads a character of a set and goes on                                |
| `*`, `+`              | one, which reads any characters but `/` and stays; left without reading              |
| `**`, `#`             | one, which reads any characters and stays; left without reading, only behind a `/`   |

Both read the same topic: of the inner one a single state is followed, of the outer ones all states in which they could
be. A topic at whose end the inner one accepts and no outer one does is a counterexample. Sets of states that hold more
than one that was looked at already need not be looked at (the antichain method: the smaller set fails first). What
characters there are does not matter, only which sets tell them apart.

The number of such sets is exponential in the worst case (`**/*a??????????`). The work has a bound, beyond which the
answer is no: a yes is always true, a no comes with a counterexample or means that nothing was found within the bound.
Beside exact topics, topics are text here: no glob and no MQTT filter matches one that is not UTF-8.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, NamedTuple, TypeAlias

from httppubsubclient.protocol.patterns import Pattern
from httppubsubclient.protocol.topics import MAX_TOPIC_BYTES

__all__ = ["MAX_CONTAINMENT_STEPS", "Containment", "containment", "contains"]

MAX_CONTAINMENT_STEPS: Final = 20_000
"""Of one question, twice: for all outer patterns together, then for one after the other. A step takes microseconds."""


class Containment(NamedTuple):
    """Whether every topic that the inner pattern matches is matched by one of the outer ones."""

    holds: bool
    counterexample: bytes | None = None
    """A short topic that only the inner pattern matches; None also where the bound was reached."""


def contains(outer: Pattern, inner: Pattern) -> bool:
    """Whether every topic that `inner` matches is matched by `outer`; False also where the bound is reached."""
    return containment((outer,), inner).holds


def containment(outers: Sequence[Pattern], inner: Pattern) -> Containment:
    """The same for several outer patterns, which together may contain what none of them does: `[a-m]*` and `[n-z]*`."""
    if inner.kind == "exact":
        matched = any(_matches(outer, inner.value) for outer in outers)
        return Containment(matched, None if matched else inner.value)
    readable = [outer for outer in outers if outer.kind != "exact" or _is_text(outer.value)]
    answer = _search(readable, inner, MAX_CONTAINMENT_STEPS)[0]
    if answer is not None or len(readable) == 1:
        return answer or Containment(False)
    # Together they may have too many sets of states where one of them alone has few.
    steps = MAX_CONTAINMENT_STEPS
    for outer in readable:
        answer, steps = _search([outer], inner, steps)
        if answer is not None and answer.holds:
            return answer
    return Containment(False)


class _Wild(Enum):
    """Elements of an automaton that are not a set of characters."""

    ANY = "?"
    STAR = "*"
    MANY = "**"


_Range: TypeAlias = tuple[int, int]
"""First and last code point."""
_Element: TypeAlias = _Wild | tuple[_Range, ...]
"""A set is sorted and disjoint; an empty one reads nothing."""

_SLASH: Final = ord("/")
_DOLLAR: Final = ord("$")
_END_OF_SEGMENT: Final[_Element] = ((_SLASH, _SLASH),)
_LAST: Final = 0x10FFFF
_SURROGATES: Final = range(0xD800, 0xE000)
_READABLE: Final = "_0Aazyx"
"""Characters that people read easily in a counterexample, the best one last."""


@dataclass(frozen=True, slots=True)
class _Group:
    """Characters that no set of either side tells apart."""

    example: str
    is_slash: bool
    is_dollar: bool
    reads: int
    """Outer states, as bits, that read one of these and go on."""


@dataclass(slots=True)
class _Outer:
    """All outer automata, side by side: a set of states is one integer."""

    size: int = 0
    start: int = 0
    accepting: int = 0
    any: int = 0
    """States that read any character but `/`."""
    star: int = 0
    many: int = 0
    universal: int = 0
    """`**` at the end of a pattern: whoever is there accepts, whatever comes."""
    skips_dollar: int = 0
    """All states of patterns that match no topic starting with `$`."""
    toggles: dict[int, int] = field(default_factory=dict)
    """Code point -> states whose set begins or ends there."""

    def add(self, elements: Sequence[_Element], skips_dollar: bool) -> None:
        for at, element in enumerate(elements, self.size):
            bit = 1 << at
            if element is _Wild.ANY:
                self.any |= bit
            elif element is _Wild.STAR:
                self.star |= bit
            elif element is _Wild.MANY:
                self.many |= bit
            else:
                _toggle(self.toggles, element, bit)
        final = self.size + len(elements)
        if elements[-1] is _Wild.MANY:
            self.universal |= 1 << (final - 1)
        if skips_dollar:
            self.skips_dollar |= ((1 << (len(elements) + 1)) - 1) << self.size
        self.start |= 1 << self.size
        self.accepting |= 1 << final
        self.size = final + 1

    def closed(self, states: int) -> int:
        """With all states that are reached without reading: at most a `**`, then a `*`, are passed over."""
        passable = self.star | self.many
        states |= (states & passable) << 1
        return states | (states & passable) << 1

    def after(self, states: int, group: _Group) -> int:
        """The states after one character, `states` being closed."""
        if group.is_slash:
            return self.closed((states & group.reads) << 1 | states & self.many)
        gone_on = (states & (group.reads | self.any)) << 1
        # A `**` is not left in the middle of a segment.
        return gone_on | (gone_on & self.star) << 1 | states & self.many | self._stayed(states)

    def _stayed(self, states: int) -> int:
        stayed = states & self.star
        return stayed | stayed << 1


@dataclass(frozen=True, slots=True)
class _Inner:
    """The inner automaton, whose states are followed one by one."""

    elements: tuple[_Element, ...]
    reached: tuple[tuple[int, ...], ...]
    """State -> itself and all that are reached from it without reading."""
    read: tuple[Sequence[_Group], ...]
    """State -> what it reads, nothing for the last."""

    def after(self, state: int, group: _Group) -> tuple[int, ...]:
        element = self.elements[state]
        if element is _Wild.STAR:
            return self.reached[state]
        if element is _Wild.MANY:
            return self.reached[state] if group.is_slash else (state,)
        return self.reached[state + 1]

    def short_rest(self, state: int, group: _Group) -> str:
        """A short text that leads from a state, into which `group` was read, to the end, its `/` included."""
        passed = "" if group.is_slash or self.elements[state] is not _Wild.MANY else "/"
        needed = [at for at in range(state, len(self.elements)) if not _is_passable(self.elements[at])]
        return passed + "".join(self.read[at][0].example for at in needed)


class _Node(NamedTuple):
    """A topic's beginning: where the inner automaton is and where the outer ones may be."""

    state: int
    outer: int
    parent: int
    example: str


def _search(outers: Sequence[Pattern], inner: Pattern, steps: int) -> tuple[Containment | None, int]:
    """The answer, None beyond so many steps, and the steps that are left."""
    outer = _Outer()
    for pattern in outers:
        outer.add(_elements(pattern), _skips_dollar(pattern))
    inner_skips_dollar = _skips_dollar(inner)
    reader = _inner(_elements(inner), outer, tells_dollar=inner_skips_dollar or outer.skips_dollar != 0)
    if any(not groups for groups in reader.read[:-1]):
        return Containment(True), steps  # it has an empty set: no topic matches
    search = _Search(outer, reader, inner_skips_dollar, steps)
    return search.run(), max(0, search.steps)


@dataclass(slots=True)
class _Search:
    """Breadth first through the beginnings of all topics that the inner automaton can read."""

    outer: _Outer
    inner: _Inner
    inner_skips_dollar: bool
    steps: int
    nodes: list[_Node] = field(default_factory=list)
    seen: dict[int, list[int]] = field(default_factory=dict)
    """Inner state -> sets of outer states that it was looked at with."""

    def run(self) -> Containment | None:
        cost = 1 + self.outer.size // 1024
        start = self.outer.closed(self.outer.start)
        self.nodes = [_Node(state, start, -1, "") for state in self.inner.reached[0]]
        beginnings = len(self.nodes)
        at = 0
        while at < len(self.nodes):
            for group in self.inner.read[self.nodes[at].state]:
                self.steps -= cost
                if self.steps < 0:
                    return None
                end = self._step(at, group, is_first=at < beginnings)
                if end is not None:
                    return self._counterexample(at, end)
            at += 1
        return Containment(True)

    def _step(self, at: int, group: _Group, *, is_first: bool) -> str | None:
        """Read one character; a text that makes a counterexample of what was read before, or None."""
        node = self.nodes[at]
        after = self.outer.after(node.outer, group)
        if is_first and group.is_dollar:
            if self.inner_skips_dollar:
                return None
            after &= ~self.outer.skips_dollar
        if after & self.outer.universal:
            return None
        final = len(self.inner.elements)
        for state in self.inner.after(node.state, group):
            if is_first and group.is_slash:
                # So far the topic is empty, which none is: it decides nothing.
                self.nodes.append(_Node(state, after, at, group.example))
            elif after == 0 and state != final:
                return group.example + self.inner.short_rest(state, group)
            elif state == final and not after & self.outer.accepting:
                return group.example
            elif self._is_new(state, after):
                self.nodes.append(_Node(state, after, at, group.example))
        return None

    def _is_new(self, state: int, after: int) -> bool:
        """Whether no set within this one was looked at with this state."""
        smaller = self.seen.setdefault(state, [])
        self.steps -= len(smaller) // 8
        if any(known & ~after == 0 for known in smaller):
            return False
        smaller.append(after)
        return True

    def _counterexample(self, at: int, end: str) -> Containment:
        text = end
        while at >= 0:
            text = self.nodes[at].example + text
            at = self.nodes[at].parent
        topic = text.removesuffix("/").encode("utf-8")
        return Containment(False, topic if len(topic) <= MAX_TOPIC_BYTES else None)


def _inner(elements: Sequence[_Element], outer: _Outer, *, tells_dollar: bool) -> _Inner:
    reached: list[tuple[int, ...]] = [(len(elements),)]
    for at in range(len(elements) - 1, -1, -1):
        reached.append((at, *reached[-1]) if _is_passable(elements[at]) else (at,))
    toggles: dict[int, int] = {}
    for at, element in enumerate(elements):
        if not isinstance(element, _Wild):
            _toggle(toggles, element, 1 << at)
    groups: dict[tuple[int, int, bool, bool], _Group] = {}
    for (reads, own, is_slash, is_dollar), example in _told_apart(outer.toggles, toggles, tells_dollar=tells_dollar):
        key = (reads, own, is_slash, is_dollar)
        if key not in groups or _READABLE.find(example) > _READABLE.find(groups[key].example):
            groups[key] = _Group(example, is_slash, is_dollar, reads)
    every = tuple(groups.values())
    inside = tuple(group for group in every if not group.is_slash)
    read: list[list[_Group]] = [[] for _ in elements]
    for (_, own, _, _), group in groups.items():
        for at in _bits(own):
            read[at].append(group)
    readable = {_Wild.ANY: inside, _Wild.STAR: inside, _Wild.MANY: every}
    return _Inner(
        elements=tuple(elements),
        reached=tuple(reversed(reached)),
        read=(*(readable[e] if isinstance(e, _Wild) else read[at] for at, e in enumerate(elements)), ()),
    )


def _told_apart(
    outer: dict[int, int], inner: dict[int, int], *, tells_dollar: bool
) -> Iterator[tuple[tuple[int, int, bool, bool], str]]:
    """Runs of characters between the borders of all sets: outer states, inner states, whether `/`, `$`; one of them."""
    special = {0, _SLASH, _SLASH + 1, _SURROGATES.start, _SURROGATES.stop}
    if tells_dollar:
        special |= {_DOLLAR, _DOLLAR + 1}
    borders = sorted(special | outer.keys() | inner.keys())
    reads = own = 0
    for at, start in enumerate(borders):
        reads ^= outer.get(start, 0)
        own ^= inner.get(start, 0)
        end = borders[at + 1] if at + 1 < len(borders) else _LAST + 1
        if start in _SURROGATES or start >= end:
            continue
        example = next((character for character in reversed(_READABLE) if start <= ord(character) < end), chr(start))
        yield (reads, own, start == _SLASH, tells_dollar and start == _DOLLAR), example


def _toggle(toggles: dict[int, int], ranges: tuple[_Range, ...], bit: int) -> None:
    for first, last in ranges:
        toggles[first] = toggles.get(first, 0) ^ bit
        toggles[last + 1] = toggles.get(last + 1, 0) ^ bit


def _bits(number: int) -> Iterator[int]:
    while number:
        lowest = number & -number
        yield lowest.bit_length() - 1
        number ^= lowest


def _is_passable(element: _Element) -> bool:
    return element is _Wild.STAR or element is _Wild.MANY


def _is_text(topic: bytes) -> bool:
    try:
        topic.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _matches(pattern: Pattern, topic: bytes) -> bool:
    matcher = pattern.matcher()
    return pattern.value == topic if matcher is None else matcher.matches(topic)


def _skips_dollar(pattern: Pattern) -> bool:
    matcher = pattern.matcher()
    return matcher is not None and matcher.skips_dollar_topics


def _elements(pattern: Pattern) -> list[_Element]:
    text = pattern.value.decode("utf-8")
    if pattern.kind == "glob":
        return _glob_elements(text)
    elements: list[_Element] = []
    for segment in text.split("/"):
        if pattern.kind == "mqtt" and segment == "#":
            elements.append(_Wild.MANY)
            continue
        if pattern.kind == "mqtt" and segment == "+":
            elements.append(_Wild.STAR)
        else:
            elements.extend(_only(character) for character in segment)
        elements.append(_END_OF_SEGMENT)
    return elements


def _only(character: str) -> _Element:
    return ((ord(character), ord(character)),)


def _glob_elements(text: str) -> list[_Element]:
    """The elements of a glob that is well-formed: `_skips_dollar` has parsed it. The grammar is that of globs.py."""
    elements: list[_Element] = []
    segment: list[_Element] = []
    at = 0
    while at < len(text):
        character = text[at]
        at += 1
        if character == "\\":
            character = text[at]
            at += 1
            # An escaped "/" still ends the segment, any other character stands for itself.
            if character != "/":
                segment.append(_only(character))
                continue
        if character == "/":
            _add_segment(elements, segment)
            segment = []
        elif character == "[":
            element, at = _class_element(text, at)
            segment.append(element)
        elif character == "*":
            segment.append(_Wild.STAR)
        else:
            segment.append(_Wild.ANY if character == "?" else _only(character))
    _add_segment(elements, segment)
    return elements


def _add_segment(elements: list[_Element], segment: list[_Element]) -> None:
    if segment == [_Wild.STAR, _Wild.STAR]:
        if not elements or elements[-1] is not _Wild.MANY:
            elements.append(_Wild.MANY)
        return
    for element in segment:
        if element is not _Wild.STAR or not elements or elements[-1] is not _Wild.STAR:
            elements.append(element)
    elements.append(_END_OF_SEGMENT)


def _class_element(text: str, at: int) -> tuple[_Element, int]:
    """The set of the class whose `[` is before `at`, and the position after its `]`."""
    negated = text[at] in "!^"
    at += negated
    first = at
    ranges: list[_Range] = []
    while text[at] != "]" or at == first:
        low, at = _class_character(text, at)
        high = low
        if text[at] == "-" and text[at + 1] != "]":
            high, at = _class_character(text, at + 1)
        ranges.append((low, high))
    return _set(_complement(ranges) if negated else ranges), at + 1


def _class_character(text: str, at: int) -> tuple[int, int]:
    at += text[at] == "\\"
    return ord(text[at]), at + 1


def _complement(ranges: Iterable[_Range]) -> list[_Range]:
    outside: list[_Range] = []
    start = 0
    for first, last in _set(ranges):
        if start < first:
            outside.append((start, first - 1))
        start = last + 1
    return [*outside, (start, _LAST)] if start <= _LAST else outside


def _set(ranges: Iterable[_Range]) -> tuple[_Range, ...]:
    """Sorted and disjoint, without `/`, which no class matches."""
    merged: list[_Range] = []
    for first, last in sorted(_without_slash(ranges)):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return tuple(merged)


def _without_slash(ranges: Iterable[_Range]) -> Iterator[_Range]:
    for first, last in ranges:
        if first <= _SLASH <= last:
            if first < _SLASH:
                yield first, _SLASH - 1
            if last > _SLASH:
                yield _SLASH + 1, last
        else:
            yield first, last
