"""Each signed request once, over restarts and over the processes of one machine: the nonces that were seen, in a file.

    with ReplayFile.open("httppubsub.db-nonces") as seen:
        if not seen.first_time("k1:5f0c...", until=..., now=...):
            raise Replayed

A call costs about three microseconds and blocks for no longer, so it is made in the event loop: this stands before
every message, and the commit of a database would cost several times as much, and a thread to wait for it.

The file is a hash table. A key is hashed with a secret of the file's own into a bucket of 32 slots; a slot is free when
its moment has passed, so nothing needs to be deleted. When a bucket is full, the table grows by a segment eight times
as large as the one before; what is there stays where it is. It begins with 256 KiB, and is full with some four million
keys in 150 MiB: 13,000 signed requests a second, when each is remembered for five minutes.

    header   4096 bytes   magic, secret, number of segments
    segment  512 x 8^n buckets of 512 bytes: 32 x fingerprint (8 bytes), 32 x until (microseconds since 1970)

The file is mapped into memory, and its blocks are allocated before they are used: touching a mapped page for which the
disk has no room, or that was cut off, would kill the process. Every call holds the file's lock (flock), and looks
whether the file is still the one of that name: one that was deleted is begun anew by all who use it. What was written
survives the death of the process; the last of it may be lost with the machine's power. (On a file system that copies on
write, a full disk can still kill a process that writes: keep the database elsewhere, or some room on it.)
"""

from __future__ import annotations

import errno
import fcntl
import logging
import mmap
import os
import struct
import tempfile
from hashlib import blake2b
from types import TracebackType
from typing import Final, Self

from httppubsubclient.protocol.errors import ConfigurationError, Unavailable

__all__ = ["Locked", "ReplayFile"]

_MAGIC: Final = b"hpsnonce"
_HEADER: Final = struct.Struct("<8s16sB")
_HEADER_BYTES: Final = 4096
_SLOTS: Final = 32
_FINGERPRINT_BYTES: Final = 8
_UNTILS: Final = struct.Struct(f"<{_SLOTS}Q")
_UNTIL: Final = struct.Struct("<Q")
_HASH: Final = struct.Struct("<Q8s")
_UNTILS_AT: Final = _SLOTS * _FINGERPRINT_BYTES
_BUCKET_BYTES: Final = _UNTILS_AT + _UNTILS.size
_BUCKETS: Final[tuple[int, ...]] = tuple(512 * 8**number for number in range(4))
"""Of each segment."""

_LOG = logging.getLogger("httppubsub.nonces")


class Locked(Exception):
    """Another process is at the file; it takes a few microseconds, unless that process is stopped."""


class ReplayFile:
    """An open file. For one thread; forget it after `close`."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._fd = -1
        self._map: mmap.mmap | None = None
        self._header = self._secret = b""
        self._segments: list[tuple[int, int]] = []
        """Where each begins, and how many buckets it has."""

    @classmethod
    def open(cls, path: str | None) -> ReplayFile:
        """Open or make the file, for its owner only; None makes one that nobody else sees.

        Raises `ConfigurationError`, and `Locked`.
        """
        file = cls(path)
        try:
            file._open()
        except OSError as error:
            raise ConfigurationError(f"the file of nonces cannot be used: {error}") from None
        return file

    def first_time(self, key: str, *, until: int, now: int) -> bool:
        """True when `key` was not seen before; it is remembered before `until` (microseconds, as `now`).

        Raises `Locked`, when another process holds the lock; `Unavailable`, when the disk or the table is full.
        """
        try:
            if self._fd < 0:
                self._open()  # it was lost, and could not be begun anew at that moment
            self._lock()
            try:
                if not self._lost():
                    return self._first_time(key.encode(), until, now)
            finally:
                fcntl.flock(self._fd, fcntl.LOCK_UN)
            _LOG.error("%s was deleted or cut off: requests of the last minutes could be replayed once", self._path)
            self.close()
            self._open()
        except OSError as error:
            raise Unavailable(
                f"nonces cannot be remembered: {error.strerror or error}", retry_after_seconds=1
            ) from None
        except ConfigurationError as error:
            raise Unavailable(f"nonces cannot be remembered: {error.detail}") from None
        return self.first_time(key, until=until, now=now)

    def close(self) -> None:
        """Close the file. Idempotent."""
        fd, self._fd = self._fd, -1
        if self._map is not None:
            self._map.close()
            self._map, self._segments = None, []
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Locked from None

    def _open(self) -> None:
        if self._path is None:
            with tempfile.TemporaryFile() as unnamed:
                self._fd = os.dup(unnamed.fileno())
        else:
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            self._lock()
            try:
                self._prepare()
            finally:
                fcntl.flock(self._fd, fcntl.LOCK_UN)
        except BaseException:
            self.close()
            raise

    def _lost(self) -> bool:
        """Whether this is no longer the file of its name, or part of what is mapped is no longer there."""
        status = os.fstat(self._fd)
        return (status.st_nlink == 0 and self._path is not None) or self._map is None or status.st_size < len(self._map)

    def _prepare(self) -> None:
        if os.fstat(self._fd).st_size < _HEADER.size or os.pread(self._fd, 1, 0) == b"\0":
            self._allocate(0, _end_of(1))
            # Last, so that a death in between leaves a file that is begun anew.
            os.pwrite(self._fd, _HEADER.pack(_MAGIC, os.urandom(16), 1), 0)
        self._read_header()

    def _read_header(self) -> None:
        header = os.pread(self._fd, _HEADER.size, 0)
        magic, secret, segments = _HEADER.unpack(header)
        if magic != _MAGIC or not 1 <= segments <= len(_BUCKETS):
            raise ConfigurationError(
                f"{self._path} is not a file of nonces, or damaged: stop all broadcasters that use it, and delete it"
            )
        size = os.fstat(self._fd).st_size
        if size < _end_of(segments):  # the machine lost its power while the table grew
            self._allocate(size, _end_of(segments))
        earlier, self._map = self._map, mmap.mmap(self._fd, _end_of(segments))
        if earlier is not None:
            earlier.close()
        self._header, self._secret = header, secret
        self._segments = [(_end_of(number), _BUCKETS[number]) for number in range(segments)]

    def _first_time(self, key: bytes, until: int, now: int) -> bool:
        if self._map is None or self._map[: _HEADER.size] != self._header:
            self._read_header()  # another process has added a segment, or begun the file anew
        hashed, fingerprint = _HASH.unpack(blake2b(key, digest_size=16, key=self._secret).digest())
        table = self._map
        assert table is not None
        place: tuple[int, int] | None = None
        for start, buckets in self._segments:
            position = start + hashed % buckets * _BUCKET_BYTES
            bucket = table[position : position + _BUCKET_BYTES]
            untils = _UNTILS.unpack_from(bucket, _UNTILS_AT)
            slot = _slot_of(bucket, fingerprint)
            if slot is not None and untils[slot] > now:
                return False
            if place is None:
                if slot is None:
                    slot = untils.index(min(untils))
                if untils[slot] <= now:
                    place = position, slot
        if place is None:
            self._grow()
            table = self._map
            assert table is not None
            start, buckets = self._segments[-1]
            place = start + hashed % buckets * _BUCKET_BYTES, 0
        position, free = place
        at = position + free * _FINGERPRINT_BYTES
        table[at : at + _FINGERPRINT_BYTES] = fingerprint
        _UNTIL.pack_into(table, position + _UNTILS_AT + free * _UNTIL.size, until)
        return True

    def _grow(self) -> None:
        count = len(self._segments)
        if count == len(_BUCKETS):
            raise Unavailable("too many signatures are remembered already", retry_after_seconds=10)
        self._allocate(_end_of(count), _end_of(count + 1))
        os.pwrite(self._fd, _HEADER.pack(_MAGIC, self._secret, count + 1), 0)
        self._read_header()

    def _allocate(self, start: int, end: int) -> None:
        """Zeros that the disk has room for."""
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self._fd, start, end - start)
            return
        for position in range(start, end, _HEADER_BYTES):
            data = bytes(min(_HEADER_BYTES, end - position))
            if os.pwrite(self._fd, data, position) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _end_of(segments: int) -> int:
    """How many bytes a file with so many segments has."""
    size: int = _HEADER_BYTES + sum(_BUCKETS[:segments]) * _BUCKET_BYTES
    return size


def _slot_of(bucket: bytes, fingerprint: bytes) -> int | None:
    """Which slot holds this fingerprint."""
    found = bucket.find(fingerprint, 0, _UNTILS_AT)
    while found >= 0 and found % _FINGERPRINT_BYTES:
        found = bucket.find(fingerprint, found + 1, _UNTILS_AT)
    return None if found < 0 else found // _FINGERPRINT_BYTES
