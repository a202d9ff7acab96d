"""What a fuzz target is, and how bytes are taken apart for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from httppubsubclient.protocol.headers import parse_headers

__all__ = ["NOW", "Target", "head_of", "json_of", "latin", "lines_of", "text_of", "texts", "vectors"]

NOW: Final = 1_795_000_000
VECTORS: Final = Path(__file__).parent.parent / "vectors"


@dataclass(frozen=True, slots=True)
class Target:
    """One parser."""

    run: Callable[[bytes], object]
    refusals: tuple[type[Exception], ...] = ()
    """What it may raise."""
    seeds: tuple[bytes, ...] = ()
    """What it reads well, or nearly: where the search begins."""

    def __call__(self, data: bytes) -> None:
        """Raises for a finding only."""
        with suppress(*self.refusals):
            self.run(data)


def vectors(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((VECTORS / f"{name}.json").read_text())
    return document


def texts(*values: object) -> tuple[bytes, ...]:
    """Every text in these values, however deep, once."""
    found: dict[bytes, None] = {}
    todo = list(values)
    while todo:
        value = todo.pop()
        if isinstance(value, str):
            found[value.encode("utf-8", "surrogatepass")] = None
        elif isinstance(value, Mapping):
            todo += value.values()
        elif isinstance(value, list | tuple):
            todo += value
    return tuple(found)


def latin(data: bytes) -> str:
    return data.decode("latin-1")


def text_of(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass") if is_text(data) else data.decode("latin-1")


def is_text(data: bytes) -> bool:
    try:
        data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return False
    return True


def head_of(data: bytes) -> tuple[dict[str, str], bytes]:
    """Header lines, an empty line, a body: as on the wire, but read without judgement."""
    head, _, body = data.partition(b"\n\n")
    raw = [(name.strip(), value) for name, _, value in (line.partition(b":") for line in head.split(b"\n"))]
    return parse_headers(raw), body


def lines_of(headers: Mapping[str, str], body: str = "") -> bytes:
    head = "\n".join(f"{name}: {value}" for name, value in headers.items())
    return f"{head}\n\n{body}".encode("utf-8", "surrogatepass")


def json_of(data: bytes) -> Any:
    with suppress(ValueError, RecursionError):
        return json.loads(data)
    return None
