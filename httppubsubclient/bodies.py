"""A message's body: written once while it is hashed, then read by many. Small ones stay in memory, large ones live in
an unlinked temporary file, so that memory stays flat and nothing is left behind whatever dies.

The broadcaster uses this too: it is the one room of the client, besides `protocol`, that both sides share.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import os
import tempfile
from collections.abc import AsyncGenerator, AsyncIterable, Coroutine, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, BinaryIO, TypeVar

from httppubsubclient.protocol.errors import TooLarge, Unavailable

__all__ = ["CHUNK_BYTES", "Body", "BodyWriter", "spool", "uncancelled"]

T = TypeVar("T")

CHUNK_BYTES = 256 * 1024
"""How much of a large body is in memory per reader."""

_NO_ROOM_RETRY_SECONDS = 5.0

_FLUSH_BYTES = 1024 * 1024
"""A spooled body is hashed and written in pieces of about this size, in a thread."""


class Body:
    """A finished body. Close it, or use it as a context manager, when no new reader will be opened."""

    __slots__ = ("_data", "_fd", "sha256", "size")

    def __init__(self, data: bytes | None, fd: int | None, size: int, sha256: bytes) -> None:
        self._data = data
        self._fd = fd
        self.size = size
        self.sha256 = sha256

    @classmethod
    def of(cls, data: bytes) -> Body:
        """A body that is already in memory."""
        return cls(data, None, len(data), hashlib.sha256(data).digest())

    @property
    def data(self) -> bytes | None:
        """The whole body when it is in memory, None when it lies in a file."""
        return self._data

    def open(self) -> BinaryIO:
        """A reader of its own, at position 0; it outlives this body. Reading a spooled body blocks briefly."""
        if self._data is not None:
            return io.BytesIO(self._data)
        return io.BufferedReader(_FileReader(os.dup(self._descriptor()), self.size), CHUNK_BYTES)

    def share(self) -> Body:
        """The same body once more, for somebody who closes it at another time."""
        return Body(self._data, None if self._data is not None else os.dup(self._descriptor()), self.size, self.sha256)

    @contextmanager
    def descriptor(self) -> Iterator[int]:
        """For a body in a file: a descriptor of it, good as long as the context lasts. Its position is not for use."""
        own = os.dup(self._descriptor())
        try:
            yield own
        finally:
            os.close(own)

    async def chunks(self) -> AsyncGenerator[bytes, None]:
        """The body in pieces of at most `CHUNK_BYTES`, read off the event loop. Close what is not read to its end."""
        if self._data is not None:
            if self._data:
                yield self._data
            return
        position = 0
        while position < self.size:
            chunk = await asyncio.to_thread(os.pread, self._descriptor(), CHUNK_BYTES, position)
            if not chunk:
                raise OSError(f"the spooled body ends at byte {position} of {self.size}")
            yield chunk
            position += len(chunk)

    def close(self) -> None:
        """Free the file. Readers that are open stay good. Idempotent."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def _descriptor(self) -> int:
        if self._fd is None:
            raise ValueError("this body is closed")
        return self._fd

    def __enter__(self) -> Body:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class BodyWriter:
    """Takes a body piece by piece: hashes it, moves it to a file above `spool_bytes`, refuses it above `max_bytes`.

    Use it as a context manager: what was not `finish`ed is discarded at the end.
    """

    def __init__(self, *, spool_bytes: int, max_bytes: int, directory: str | None = None) -> None:
        self._spool_bytes = spool_bytes
        self.max_bytes = max_bytes
        self._directory = directory
        self._pieces: list[bytes] = []
        self._pending = 0
        self._fd: int | None = None
        self._sha256 = hashlib.sha256()
        self._expected = 0
        self.size = 0

    def expect(self, size: int) -> None:
        """So much will come: a large body goes to a file from its start. Raises `TooLarge` if it would be refused."""
        if size > self.max_bytes:
            raise TooLarge(f"the body is larger than {self.max_bytes} bytes")
        self._expected = size

    async def write(self, chunk: bytes) -> None:
        """Append. Raises `TooLarge` as soon as the body is beyond `max_bytes`, `Unavailable` when the disk is full."""
        self.size += len(chunk)
        if self.size > self._expected:
            self.expect(self.size)
        self._pieces.append(chunk)
        self._pending += len(chunk)
        if self._fd is None and self._expected > self._spool_bytes:
            with _no_room_is_unavailable():
                self._fd = await asyncio.to_thread(_unlinked_file, self._directory)
        if self._fd is not None and self._pending >= _FLUSH_BYTES:
            await self._flush(self._fd)

    async def finish(self) -> Body:
        """The finished body; the writer holds nothing afterwards."""
        if self._fd is None:
            data = b"".join(self._pieces)
            self._pieces = []
            if len(data) > _FLUSH_BYTES:
                await asyncio.to_thread(self._sha256.update, data)
            else:
                self._sha256.update(data)
            return Body(data, None, self.size, self._sha256.digest())
        await self._flush(self._fd)
        body = Body(None, self._fd, self.size, self._sha256.digest())
        self._fd = None
        return body

    def close(self) -> None:
        """Discard what was not finished. Idempotent."""
        self._pieces = []
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    async def _flush(self, fd: int) -> None:
        pieces, self._pieces, self._pending = self._pieces, [], 0
        # Shielded: the descriptor must not be closed (and its number reused) while the thread still writes to it.
        with _no_room_is_unavailable():
            await uncancelled(asyncio.to_thread(self._store, fd, pieces))

    def _store(self, fd: int, pieces: list[bytes]) -> None:
        data = memoryview(b"".join(pieces))
        self._sha256.update(data)
        while data:
            data = data[os.write(fd, data) :]

    def __enter__(self) -> BodyWriter:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def _no_room_is_unavailable() -> Iterator[None]:
    """A full disk or a missing folder is trouble that passes, for whoever sent the body."""
    try:
        yield
    except OSError as error:
        detail = f"there is no room for a body of this size at present ({error.strerror})"
        raise Unavailable(detail, retry_after_seconds=_NO_ROOM_RETRY_SECONDS) from None


async def spool(
    chunks: AsyncIterable[bytes], *, spool_bytes: int, max_bytes: int, directory: str | None = None
) -> Body:
    """Read all of `chunks` into a `Body`. Raises `TooLarge`."""
    with BodyWriter(spool_bytes=spool_bytes, max_bytes=max_bytes, directory=directory) as writer:
        async for chunk in chunks:
            await writer.write(chunk)
        return await writer.finish()


class _FileReader(io.RawIOBase):
    """Reads a descriptor that others read too: the position is kept here, not in the kernel."""

    def __init__(self, fd: int, size: int) -> None:
        super().__init__()
        self._fd = fd
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = os.preadv(self._fd, [buffer], self._position)
        self._position += count
        return count

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError("a position before the start of the body")
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def close(self) -> None:
        if not self.closed:
            os.close(self._fd)
        super().close()


def _unlinked_file(directory: str | None) -> int:
    fd, path = tempfile.mkstemp(prefix="httppubsub-", dir=directory)
    os.unlink(path)
    return fd


async def uncancelled(work: Coroutine[Any, Any, T]) -> T:
    """Wait until `work` is done even when cancelled meanwhile, then let the cancellation travel on."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # nobody waits for it any more: not an error that was never looked at
        raise
