"""What a process writes down as it happens, one JSON object per line, so that nothing is lost when it is killed.

Each line is one `write` to a file opened with O_APPEND. Moments are nanoseconds of the machine's monotonic clock, the
same for all its processes. Nothing of the product is imported here: the checker reads these files.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

__all__ = ["Journal", "read_journals"]

Event = dict[str, Any]


class Journal:
    """A new file of its own for each life of a process: what a death has cut short stays the end of a file."""

    def __init__(self, directory: Path, name: str) -> None:
        self.path = directory / f"{name}-{time.monotonic_ns()}-{os.getpid()}.jsonl"
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def write(self, event: str, **facts: Any) -> None:
        """One line; when this returns, the death of this process does not undo it."""
        line = json.dumps({"event": event, "at": time.monotonic_ns(), **facts}).encode("ascii") + b"\n"
        written = os.write(self._file, line)
        if written != len(line):
            raise OSError(f"{self.path}: only {written} of {len(line)} bytes were written")


def read_journals(paths: Iterable[Path]) -> Iterator[Event]:
    """All events of these files, each file's in their order; `by` of an event is the file's name.

    What comes behind the last end of a line was being written when its process was killed: it did not happen.
    """
    for path in paths:
        *lines, _ = path.read_bytes().split(b"\n")
        for line in lines:
            event: Event = json.loads(line)
            event["by"] = path.name
            yield event
