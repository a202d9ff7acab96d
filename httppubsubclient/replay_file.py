"""Each signed request once, over restarts and over the processes of one machine: the nonces that were seen, in a file.

    with ReplayFile.open("httppubsub.db-nonces") as seen:
        if not seen.first_time("k1:5f0c...", until=..., now=...):
            raise Replayed

A call costs about three microseconds and blocks for no longer, so it is made in the event loop: this stands before
every message, and the commit of a database would cost several times as much, and a thread to wait for it.

The file is a hash table. A key is hashed with a secret of the file's own into a bucket of 16 slots; a slot is free when
its moment has passed, so nothing needs to be deleted. When a bucket is full, the table grows by a segment eight times
as large as the one before; what is there stays where it is. Some four million keys fit.

    header   4096 bytes   magic, secret, number of segments
    segment  1024 x 8^n buckets of 256 bytes: 16 x fingerprint (8 bytes), 16 x until (microseconds since 1970)

The file is mapped into memory, and its blocks are written before they are used: touching a mapped page for which the
disk has no room would kill the process. Every call holds the file's lock (flock). What was written survives the death
of the process; the last of it may be lost with the machine's power.
"""

from __future__ import annotations

import errno
import fcntl
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
_COUNT_AT: Final = 24
_HEADER_BYTES: Final = 4096
_SLOTS: Final = 16
_FINGERPRINT_BYTES: Final = 8
_UNTILS: Final = struct.Struct(f"<{_SLOTS}Q")
_UNTIL: Final = struct.Struct("<Q")
_HASH: Final = struct.Struct("<Q8s")
_UNTILS_AT: Final = _SLOTS * _FINGERPRINT_BYTES
_BUCKET_BYTES: Final = _UNTILS_AT + _UNTILS.size
_MAX_SEGMENTS: Final = 4
_ZEROS: Final = bytes(1024 * _BUCKET_BYTES)
"""What the smallest segment consists of, and the others several times."""


class Locked(Exception):
    """Another process is at the file; it takes a few microseconds, unless that process is stopped."""


class ReplayFile:
    """An open file. For one thread; forget it after `close`."""

    def __init__(self, fd: int, path: str) -> None:
        self._fd = fd
        self._path = path
        self._map: mmap.mmap
        self._secret = b""
        self._segments: list[tuple[int, int]] = []
        """Where each begins, and how many buckets it has."""

    @classmethod
    def open(cls, path: str | None) -> ReplayFile:
        """Open or make the file, for its owner only; None makes one that nobody else sees.

        Raises `ConfigurationError`, and `Locked`.
        """
        try:
            if path is None:
                with tempfile.TemporaryFile() as unnamed:
                    fd = os.dup(unnamed.fileno())
            else:
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise ConfigurationError(f"the file of nonces cannot be opened: {error}") from None
        file = cls(fd, path or "an unnamed file")
        try:
            file._prepare()
        except OSError as error:
            file.close()
            raise ConfigurationError(f"the file of nonces cannot be used: {error}") from None
        except BaseException:
            file.close()
            raise
        return file

    def first_time(self, key: str, *, until: int, now: int) -> bool:
        """True when `key` was not seen before; it is remembered before `until` (microseconds, as `now`).

        Raises `Locked`, when another process holds the lock; `Unavailable`, when the disk or the table is full.
        """
        self._lock()
        try:
            return self._first_time(key.encode(), until, now)
        except OSError as error:
            raise Unavailable(
                f"nonces cannot be remembered: {error.strerror or error}", retry_after_seconds=1
            ) from None
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the file. Idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            if self._segments:
                self._map.close()
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

    def _prepare(self) -> None:
        self._lock()
        try:
            if os.fstat(self._fd).st_size < _HEADER_BYTES:
                _write(self._fd, b"".ljust(_HEADER_BYTES, b"\0"), 0)
                self._write_segment(_HEADER_BYTES, 1)
                # Last, so that a death in between leaves a file that is begun anew.
                _write(self._fd, _HEADER.pack(_MAGIC, os.urandom(16), 1), 0)
            self._read_header()
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _read_header(self) -> None:
        magic, self._secret, segments = _HEADER.unpack(os.pread(self._fd, _HEADER.size, 0))
        size = _HEADER_BYTES + sum(1024 * 8**number for number in range(segments)) * _BUCKET_BYTES
        if magic != _MAGIC or not 1 <= segments <= _MAX_SEGMENTS or os.fstat(self._fd).st_size < size:
            raise ConfigurationError(
                f"{self._path} is not a file of nonces, or damaged; stop all broadcasters that use it and delete it"
            )
        if self._segments:
            self._map.close()
        self._map = mmap.mmap(self._fd, size)
        self._segments, position = [], _HEADER_BYTES
        for number in range(segments):
            self._segments.append((position, 1024 * 8**number))
            position += 1024 * 8**number * _BUCKET_BYTES

    def _first_time(self, key: bytes, until: int, now: int) -> bool:
        if self._map[_COUNT_AT] != len(self._segments):
            self._read_header()  # another process has added a segment
        hashed, fingerprint = _HASH.unpack(blake2b(key, digest_size=16, key=self._secret).digest())
        place: tuple[int, int] | None = None
        for start, buckets in self._segments:
            position = start + hashed % buckets * _BUCKET_BYTES
            bucket = self._map[position : position + _BUCKET_BYTES]
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
            start, buckets = self._segments[-1]
            place = start + hashed % buckets * _BUCKET_BYTES, 0
        position, free = place
        at = position + free * _FINGERPRINT_BYTES
        self._map[at : at + _FINGERPRINT_BYTES] = fingerprint
        _UNTIL.pack_into(self._map, position + _UNTILS_AT + free * _UNTIL.size, until)
        return True

    def _grow(self) -> None:
        count = len(self._segments)
        if count == _MAX_SEGMENTS:
            raise Unavailable("too many signatures are remembered already", retry_after_seconds=10)
        self._write_segment(len(self._map), 8**count)
        _write(self._fd, _HEADER.pack(_MAGIC, self._secret, count + 1), 0)
        self._read_header()

    def _write_segment(self, position: int, times: int) -> None:
        for number in range(times):
            _write(self._fd, _ZEROS, position + number * len(_ZEROS))


def _write(fd: int, data: bytes, position: int) -> None:
    if os.pwrite(fd, data, position) != len(data):
        raise OSError(errno.ENOSPC, "the disk is full")


def _slot_of(bucket: bytes, fingerprint: bytes) -> int | None:
    """Which slot holds this fingerprint."""
    found = bucket.find(fingerprint, 0, _UNTILS_AT)
    while found >= 0 and found % _FINGERPRINT_BYTES:
        found = bucket.find(fingerprint, found + 1, _UNTILS_AT)
    return None if found < 0 else found // _FINGERPRINT_BYTES
