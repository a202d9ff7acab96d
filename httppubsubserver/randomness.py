"""Random bytes of the operating system, drawn in large pieces: one system call for hundreds of messages."""

from __future__ import annotations

import os

__all__ = ["random_bytes"]

_POOL_BYTES = 8192


class _Pool:
    """What was drawn and not given out yet."""

    def __init__(self) -> None:
        self.clear()
        # Parent and child must not both use what is left.
        os.register_at_fork(after_in_child=self.clear)

    def clear(self) -> None:
        self._drawn = b""
        self._used = 0

    def take(self, count: int) -> bytes:
        start, end = self._used, self._used + count
        if end > len(self._drawn):
            self._drawn = os.urandom(max(count, _POOL_BYTES))
            start, end = 0, count
        self._used = end
        return self._drawn[start:end]


_POOL = _Pool()


def random_bytes(count: int) -> bytes:
    """So many bytes that nobody else was given and nobody can guess. For one thread."""
    return _POOL.take(count)
