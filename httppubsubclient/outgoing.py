"""What is about to be published: bytes, a file or a stream, with its length and SHA-256 known before the first byte
is sent, and readable again from the start, so that a retry or another broadcaster gets the same body.

| given                                  | is kept as                                                    |
|----------------------------------------|---------------------------------------------------------------|
| bytes, bytearray, memoryview           | itself                                                        |
| a sync file that can seek              | the file: hashed in a thread first, read again while it is sent |
| any other file, an async iterator      | a copy, in a temporary file above `spool_bytes`               |

Files are read from their present position, in threads.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import io
from collections.abc import AsyncIterable, AsyncIterator
from typing import Any, Protocol, runtime_checkable

from httppubsubclient.bodies import CHUNK_BYTES, Body, BodyWriter, spool
from httppubsubclient.protocol.errors import InvalidRequest, TooLarge

__all__ = ["AsyncFile", "Outgoing", "Publishable", "SyncFile", "open_outgoing"]


class SyncFile(Protocol):
    """A file opened for reading in binary mode, or anything with its `read`."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; empty at the end."""
        ...


@runtime_checkable
class AsyncFile(Protocol):
    """Like `SyncFile` with an async `read`: aiofiles, anyio, ..."""

    async def read(self, size: int, /) -> bytes:
        """At most `size` bytes; empty at the end."""
        ...


Publishable = bytes | bytearray | memoryview | AsyncFile | AsyncIterable[bytes]


class Outgoing(Protocol):
    """A body that can be sent more than once."""

    @property
    def size(self) -> int:
        """In bytes."""
        ...

    @property
    def sha256(self) -> bytes:
        """32 bytes."""
        ...

    def chunks(self) -> AsyncIterator[bytes]:
        """The whole body, from its start."""
        ...

    def close(self) -> None:
        """Free what is held; a file that was given stays open."""
        ...


async def open_outgoing(
    data: Publishable | None,
    sync_file: SyncFile | None,
    *,
    spool_bytes: int,
    max_bytes: int,
    directory: str | None,
) -> Outgoing:
    """Take exactly one of the two. Raises `TypeError` for anything that is not a body, and `TooLarge`."""
    if (data is None) == (sync_file is None):
        raise TypeError("give the body as exactly one of data= and sync_file=")
    if sync_file is not None:
        return await _from_sync_file(sync_file, spool_bytes=spool_bytes, max_bytes=max_bytes, directory=directory)
    if isinstance(data, (bytes, bytearray, memoryview)):
        return await _from_bytes(bytes(data), max_bytes)
    chunks = _pieces(data)
    return await spool(chunks, spool_bytes=spool_bytes, max_bytes=max_bytes, directory=directory)


async def _from_bytes(data: bytes, max_bytes: int) -> Body:
    if len(data) > max_bytes:
        raise TooLarge(f"the body has {len(data)} bytes; the limit is {max_bytes}")
    # Hashing a megabyte takes about half a millisecond: more than that is done in a thread.
    return Body.of(data) if len(data) <= 1024 * 1024 else await asyncio.to_thread(Body.of, data)


def _pieces(data: object) -> AsyncIterator[bytes]:
    if isinstance(data, str):
        raise TypeError("a body is bytes: call .encode() on the text")
    if isinstance(data, AsyncFile) and callable(data.read):
        return _read_async(data)
    if isinstance(data, AsyncIterable):
        return _checked(data)
    raise TypeError(
        "data is bytes, a file with an async read or an async iterator of bytes, "
        f"not {type(data).__name__}; an ordinary file goes to sync_file="
    )


async def _read_async(file: AsyncFile) -> AsyncIterator[bytes]:
    while True:
        reading = file.read(CHUNK_BYTES)
        if not inspect.isawaitable(reading):
            raise TypeError("this file's read is not async: pass it as sync_file=")
        chunk = _bytes(await reading)
        if not chunk:
            return
        yield chunk


async def _checked(chunks: AsyncIterable[object]) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        yield _bytes(chunk)


def _bytes(chunk: object) -> bytes:
    if isinstance(chunk, bytes):
        return chunk
    if isinstance(chunk, (bytearray, memoryview)):
        return bytes(chunk)
    raise TypeError(f"a body consists of bytes, not {type(chunk).__name__}: open the file in binary mode ('rb')")


async def _from_sync_file(file: SyncFile, *, spool_bytes: int, max_bytes: int, directory: str | None) -> Outgoing:
    if not callable(getattr(file, "read", None)):
        raise TypeError(f"sync_file is a file opened in binary mode, not {type(file).__name__}")
    if inspect.iscoroutinefunction(file.read):
        raise TypeError("this file's read is async: pass it as data=")
    start = await asyncio.to_thread(_position, file)
    with BodyWriter(spool_bytes=spool_bytes, max_bytes=max_bytes, directory=directory) as writer:
        while True:
            chunk = _bytes(await asyncio.to_thread(file.read, CHUNK_BYTES))
            if chunk and start is not None and writer.size + len(chunk) > spool_bytes:
                # It is large and can be read twice: no copy of it is made.
                writer.close()
                return await _SeekableFile.hashed(file, start, max_bytes)
            if not chunk:
                return await writer.finish()
            await writer.write(chunk)


def _position(file: Any) -> int | None:
    """Where a file stands, None if it cannot be asked to go back there."""
    try:
        return int(file.tell()) if file.seekable() else None
    except (AttributeError, OSError):
        return None


class _SeekableFile:
    """A large file that is read where it is. Whoever gave it must not touch it until the call returns."""

    def __init__(self, file: io.BufferedIOBase, start: int, size: int, sha256: bytes) -> None:
        self._file = file
        self._start = start
        self.size = size
        self.sha256 = sha256

    @classmethod
    async def hashed(cls, file: SyncFile, start: int, max_bytes: int) -> _SeekableFile:
        digest = hashlib.sha256()
        size = 0
        binary: io.BufferedIOBase = file  # type: ignore[assignment]
        await asyncio.to_thread(binary.seek, start)
        while chunk := _bytes(await asyncio.to_thread(_read_and_hash, binary, digest)):
            size += len(chunk)
            if size > max_bytes:
                raise TooLarge(f"the file has more than {max_bytes} bytes, which is the limit")
        return cls(binary, start, size, digest.digest())

    async def chunks(self) -> AsyncIterator[bytes]:
        await asyncio.to_thread(self._file.seek, self._start)
        left = self.size
        while left:
            chunk = await asyncio.to_thread(self._file.read, min(CHUNK_BYTES, left))
            if not chunk:
                raise InvalidRequest(f"the file became {left} bytes shorter while it was sent")
            left -= len(chunk)
            yield chunk

    def close(self) -> None:
        """Nothing is held: the file belongs to the caller."""


def _read_and_hash(file: io.BufferedIOBase, digest: hashlib._Hash) -> bytes:
    chunk = file.read(CHUNK_BYTES)
    digest.update(chunk)
    return chunk
