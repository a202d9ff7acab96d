"""Which deliveries were acknowledged, so that none is taken twice: in memory, and in a file for the next life.

    remembered = Remembered("worker.seen", 10_000)
    remembered.open()
    remembered.add("worker-1", "glob='foo/*'", "msg_1")

What is kept of each is 16 bytes of a hash. There are two generations: the younger one grows up to `count`, then takes
the place of the older one and a new one begins. So the last `count` to twice as many are remembered, and the file,
which is two, is bounded: `PATH` and `PATH.2`, each with a header and one hash after the other. Which of them is the
younger says the number in its header.

    header   16 bytes   magic, number of the generation (big-endian)
    hash     16 bytes   BLAKE2b of the durable name, the pattern and the message id

A hash is written with one `pwrite` and not synced: it survives the death of the process, and the last of them may be
lost with the machine's power. Then, or when the disk is full, a message may come twice: at least once is what is
promised. One process at a time: the lock (flock) is on `PATH`.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
import struct
from hashlib import blake2b
from typing import Final

from httppubsubclient.protocol.errors import ConfigurationError

__all__ = ["Remembered"]

logger = logging.getLogger(__name__)

_MAGIC: Final = b"hpsseen1"
_HEADER: Final = struct.Struct(">8sQ")
_HASH_BYTES: Final = 16
_MAX_GENERATION: Final = 2**63
"""Nobody has begun so many; a header that says more was damaged."""
assert _HEADER.size == _HASH_BYTES, "a hash lies at a multiple of its length"


class Remembered:
    """The last `count` deliveries, at least. Without a path it forgets at the end of the process."""

    def __init__(self, path: str | None, count: int) -> None:
        self._path = path
        self._count = count
        self._younger: set[bytes] = set()
        self._older: set[bytes] = set()
        self._files: _Files | None = None

    @property
    def is_lasting(self) -> bool:
        """Whether there is a file, so that the next life remembers, too."""
        return self._path is not None

    def has(self, name: str, pattern: str, message_id: str) -> bool:
        """Whether it was acknowledged, as far as that is remembered."""
        key = _key(name, pattern, message_id)
        return key in self._younger or key in self._older

    def add(self, name: str, pattern: str, message_id: str) -> None:
        """It was acknowledged. Trouble with the file is logged."""
        key = _key(name, pattern, message_id)
        if key in self._younger or key in self._older:
            return
        if len(self._younger) >= self._count:
            self._older, self._younger = self._younger, set()
            if self._files is not None:
                self._files.begin()
        self._younger.add(key)
        if self._files is not None:
            self._files.append(key)

    def open(self) -> None:
        """Lock the file and read what an earlier life wrote. Raises `ConfigurationError`."""
        if self._path is None or self._files is not None:
            return
        try:
            files = _Files(self._path)
        except OSError as error:
            raise ConfigurationError(f"remember_file {self._path!r}: {error.strerror or error}") from None
        try:
            older, younger = files.read(self._count)
        except OSError as error:
            files.close()
            raise ConfigurationError(f"remember_file {self._path!r}: {error.strerror or error}") from None
        except BaseException:
            files.close()
            raise
        self._older, self._younger, self._files = set(older), set(younger), files

    def close(self) -> None:
        """Let go of the file. Idempotent."""
        files, self._files = self._files, None
        if files is not None:
            files.close()


class _Files:
    """Both generations on disk. `_young` is the index of the younger one."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._fds: list[int] = []
        self._young = 0
        self._generation = 0
        self._end = 0
        self._in_trouble = False
        try:
            self._fds.append(_open(path))
            try:
                fcntl.flock(self._fds[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigurationError(
                    f"remember_file {path!r} is in use by another process or client: give each a file of its own"
                ) from None
            self._fds.append(_open(f"{path}.2"))
        except BaseException:
            self.close()
            raise

    def read(self, count: int) -> tuple[list[bytes], list[bytes]]:
        """What is there, the older generation first. A torn hash at the end is as if it had never been written."""
        generations = [self._generation_of(index) for index in (0, 1)]
        self._young = 1 if generations[1] > generations[0] else 0
        self._generation = generations[self._young]
        if self._generation == 0:
            self._generation = 1
            return [], []
        older, younger = self._hashes(1 - self._young, count), self._hashes(self._young, count)
        size = os.fstat(self._fds[self._young]).st_size
        self._end = size - size % _HASH_BYTES
        return older, younger

    def append(self, key: bytes) -> None:
        """Write one hash behind the others, the first together with the header."""
        at, data = self._end, key
        if at <= _HEADER.size:
            at, data = 0, _HEADER.pack(_MAGIC, self._generation) + key
        try:
            written = os.pwrite(self._fds[self._young], data, at)
        except OSError as error:
            self._tell(error)
        else:
            if written < len(data):
                self._tell(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
                return
            self._end = at + len(data)
            self._in_trouble = False

    def begin(self) -> None:
        """Empty the older generation and let it be the younger one."""
        self._young = 1 - self._young
        self._generation += 1
        self._end = 0
        try:
            os.ftruncate(self._fds[self._young], 0)
        except OSError as error:
            self._tell(error)

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()

    def _generation_of(self, index: int) -> int:
        """0 for one that was not begun, or whose beginning was cut off by the death of the process."""
        header = os.pread(self._fds[index], _HEADER.size, 0)
        if len(header) == _HEADER.size and header.startswith(_MAGIC):
            generation: int = _HEADER.unpack(header)[1]
            if generation > _MAX_GENERATION:
                raise ConfigurationError(
                    f"remember_file: the header of {self._name_of(index)!r} is damaged; nothing of it was changed. "
                    "Remove it to begin anew: then messages may come again"
                )
            return generation
        if len(header) < _HEADER.size and _MAGIC.startswith(header[: len(_MAGIC)]):
            return 0
        if header == bytes(_HEADER.size):  # the machine lost its power before this reached the disk
            return 0
        raise ConfigurationError(
            f"remember_file: {self._name_of(index)!r} is something else; nothing of it was changed"
        )

    def _name_of(self, index: int) -> str:
        return f"{self._path}.2" if index else self._path

    def _hashes(self, index: int, count: int) -> list[bytes]:
        """The last `count` of one generation."""
        size = os.fstat(self._fds[index]).st_size
        end = size - size % _HASH_BYTES
        start = max(_HEADER.size, end - count * _HASH_BYTES)
        data = os.pread(self._fds[index], max(0, end - start), start)
        return [data[at : at + _HASH_BYTES] for at in range(0, len(data) - len(data) % _HASH_BYTES, _HASH_BYTES)]

    def _tell(self, error: OSError) -> None:
        if not self._in_trouble:
            logger.error("%s cannot be written; after a restart messages may come again: %s", self._path, error)
        self._in_trouble = True


def _open(path: str) -> int:
    # Without O_NONBLOCK a pipe or a device might wait for another side.
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ConfigurationError(f"remember_file {path!r} is a pipe or a device: a regular file was expected")
    return fd


def _key(name: str, pattern: str, message_id: str) -> bytes:
    # Neither a name nor a message id holds a zero byte; what a pattern holds stands between them.
    return blake2b(f"{name}\0{pattern}\0{message_id}".encode(), digest_size=_HASH_BYTES).digest()
