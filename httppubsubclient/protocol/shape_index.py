"""Many shapes at one place -> those that match one segment, without trying them all.

A shape fits only where its ends fit, and the ends are plain text. So shapes are grouped by how long their two ends are,
and within a group found by the ends themselves:

    eu-*-paid  ->  group (3, 5), key "eu--paid"        a segment is cut as segment[:3] + segment[-5:]
    *.json     ->  group (0, 5), key ".json"

Shapes that begin and end with a wildcard are grouped by the length of the plain text between, up to 8 characters of it:
every piece of the segment of that length is looked up. Only shapes without any plain text (`?`, `[ab]*`) are all tried.
The number of groups is bounded by the bounds below, whoever chooses the patterns.
"""

from __future__ import annotations

from typing import Final, Generic, TypeAlias, TypeVar

from httppubsubclient.protocol.globs import Shape

__all__ = ["MAX_END_CHARACTERS", "MAX_INNER_CHARACTERS", "ShapeIndex"]

V = TypeVar("V")

MAX_END_CHARACTERS: Final = 64
"""Of either end of a shape, the outermost characters that count for its group."""
MAX_INNER_CHARACTERS: Final = 8
"""Of the plain text between two wildcards, the first characters that count for its group."""

_Shapes: TypeAlias = tuple[Shape, V] | dict[Shape, V]
"""The shapes with one key. A single one, as most are, is no dict: that would take four times the memory."""


class ShapeIndex(Generic[V]):
    """A dict from `Shape` to values that also finds the values of all shapes that match a segment."""

    __slots__ = ("_ends", "_inner", "_size")

    def __init__(self) -> None:
        self._ends: dict[tuple[int, int], dict[str, _Shapes[V]]] = {}
        self._inner: dict[int, dict[str, _Shapes[V]]] | None = None
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def get(self, shape: Shape) -> V | None:
        """The value of this very shape."""
        ends, inner, key = _group(shape)
        group = self._ends.get(ends) if not inner else None if self._inner is None else self._inner.get(inner)
        shapes = None if group is None else group.get(key)
        if isinstance(shapes, dict):
            return shapes.get(shape)
        return shapes[1] if shapes is not None and shapes[0] == shape else None

    def put(self, shape: Shape, value: V) -> None:
        """Set the value of a shape."""
        ends, inner, key = _group(shape)
        if not inner:
            group = self._ends.setdefault(ends, {})
        else:
            if self._inner is None:
                self._inner = {}
            group = self._inner.setdefault(inner, {})
        shapes = group.get(key)
        if shapes is None or (isinstance(shapes, tuple) and shapes[0] == shape):
            self._size += shapes is None
            group[key] = (shape, value)
            return
        if isinstance(shapes, tuple):
            shapes = group[key] = dict([shapes])
        self._size += shape not in shapes
        shapes[shape] = value

    def drop(self, shape: Shape) -> None:
        """Forget a shape that has a value."""
        ends, inner, key = _group(shape)
        if not inner:
            group = self._ends[ends]
        else:
            assert self._inner is not None
            group = self._inner[inner]
        shapes = group[key]
        self._size -= 1
        if isinstance(shapes, dict):
            del shapes[shape]
            if len(shapes) == 1:
                group[key] = shapes.popitem()
            return
        del group[key]
        if group:
            return
        if not inner:
            del self._ends[ends]
        else:
            assert self._inner is not None
            del self._inner[inner]

    def matching(self, segment: str, cold: list[Shape] | None = None) -> list[V]:
        """The values of the shapes that match the whole of `segment`. `cold`: see `Shape.matches`."""
        found: list[V] = []
        length = len(segment)
        for (front, back), group in self._ends.items():
            if front + back <= length:
                shapes = group.get(segment[:front] + segment[length - back :])
                if shapes is not None:
                    _add_matching(shapes, segment, found, cold)
        if self._inner is not None:
            for size, group in self._inner.items():
                for piece in {segment[at : at + size] for at in range(length - size + 1)}:
                    shapes = group.get(piece)
                    if shapes is not None:
                        _add_matching(shapes, segment, found, cold)
        return found


def _add_matching(shapes: _Shapes[V], segment: str, found: list[V], cold: list[Shape] | None) -> None:
    if isinstance(shapes, dict):
        found.extend(value for shape, value in shapes.items() if shape.matches(segment, cold))
    elif shapes[0].matches(segment, cold):
        found.append(shapes[1])


def _group(shape: Shape) -> tuple[tuple[int, int], int, str]:
    """Lengths of the ends, length of the inner text when that is what decides (else 0), and the key in that group."""
    front = shape.prefix[:MAX_END_CHARACTERS]
    back = shape.suffix[-MAX_END_CHARACTERS:]
    if front or back or not shape.inner:
        return (len(front), len(back)), 0, front + back
    inner = shape.inner[:MAX_INNER_CHARACTERS]
    return (0, 0), len(inner), inner
