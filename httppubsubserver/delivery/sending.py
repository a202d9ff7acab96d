"""How a large body goes over a connection: by pieces, no faster than the peer takes them, and how far the peer is.

| the body lies | over  | how                                                                                |
|---------------|-------|------------------------------------------------------------------------------------|
| in memory     | both  | written by pieces whenever the transport has room                                  |
| in a file     | http  | `sendfile` in a thread: the kernel sends its pages, not one byte is copied up here |
| in a file     | https | read by pieces in a thread, then written                                           |
| in a stream   | both  | asked for a piece when the transport has room for it, then written                 |

`sendfile` takes a seventh of the CPU time of reading and writing. It goes past the transport, over a descriptor of our
own; the transport is idle meanwhile, but for what it reads.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import os
import sys
import termios
from collections.abc import Callable, Coroutine, Iterator
from contextlib import aclosing, contextmanager
from typing import Final

from httppubsubclient.bodies import CHUNK_BYTES, Body, uncancelled

__all__ = ["Sending", "StreamSending"]

_LOG = logging.getLogger("httppubsub.server.outbound")

_SENDFILE_BYTES: Final = 1024 * 1024
"""What a thread sends at most before others have their turn."""

_LAST_BYTES: Final = 64 * 1024
"""The end of a body goes through the transport: a thread's news that it was sent could come later than the answer."""

_PEER_IS_GONE: Final = frozenset(
    {errno.EPIPE, errno.ECONNRESET, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH}
)


class Sending:
    """One request with a large body on its way over one connection."""

    __slots__ = ("_body", "_rest", "_room", "_taken", "_task", "_transport", "given", "over")

    def __init__(self, body: Body, transport: asyncio.Transport) -> None:
        self._body = body
        self._transport = transport
        self._rest = memoryview(body.data or b"")
        self.given = 0
        """How much of the body is out of our hands: the transport, the kernel or the peer has it."""
        self._taken = 0
        """How much of it the peer had taken when `progressed` was asked last."""
        self.over = False
        """The peer has taken all of it."""
        self._room: asyncio.Future[None] | None = None
        """Set while the transport wants no more."""
        self._task: asyncio.Task[None] | None = None

    @property
    def unsent(self) -> bool:
        """Part of the body is still in our hands."""
        return self.given < self._body.size

    def start(
        self,
        head: bytes,
        *,
        in_clear: bool,
        spawn: Callable[[Coroutine[None, None, None]], asyncio.Task[None]],
        failed: Callable[[], object],
    ) -> None:
        """Send `head`, then the body. `in_clear`: without TLS; `failed` is called when the body cannot be read."""
        if self._body.data is None:
            self._task = spawn(self._send_unread(head, in_clear, failed))
        else:
            self._transport.write(head)
            self._write_rest()

    def stop(self) -> None:
        """Send no more. Idempotent."""
        self._rest = memoryview(b"")
        if self._task is not None:
            self._task.cancel()

    def pause(self) -> None:
        """The transport holds enough."""
        self._room = asyncio.get_running_loop().create_future()

    def resume(self) -> None:
        """There is room again."""
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(None)
        self._write_rest()

    def progressed(self) -> bool:
        """Whether the peer has taken some more since this was asked last, or everything that it was given.

        What our side of the kernel holds is not taken; what the peer's side holds, for an application that does not
        read it, is: that cannot be seen from here.
        """
        waiting = self._transport.get_write_buffer_size() + _unacknowledged_bytes(self._transport)
        taken = self.given - waiting
        self.over = not waiting and not self.unsent
        progressed = taken > self._taken or not waiting
        self._taken = max(taken, self._taken)
        return progressed

    def _write_rest(self) -> None:
        while self._rest and self._room is None:
            piece, self._rest = self._rest[:CHUNK_BYTES], self._rest[CHUNK_BYTES:]
            self.given += len(piece)
            self._transport.write(piece)

    async def _send_unread(self, head: bytes, in_clear: bool, failed: Callable[[], object]) -> None:
        try:
            await (self._send_by_kernel(head) if in_clear else self._send_by_pieces(head))
        except Exception as error:
            # The transport sees it too when the peer has gone, and may have an answer that came before.
            if not isinstance(error, OSError) or error.errno not in _PEER_IS_GONE:
                _LOG.exception("reading a body failed")
                failed()

    async def _send_by_pieces(self, head: bytes) -> None:
        self._transport.write(head)
        async with aclosing(self._body.chunks()) as chunks:
            async for chunk in chunks:
                self.given += len(chunk)
                self._transport.write(chunk)
                if self._room is not None:
                    await self._room

    async def _send_by_kernel(self, head: bytes) -> None:
        # Both are ours: the thread may still use them when the connection, or the body, is closed. Their numbers
        # would belong to another file then.
        with _duplicate(self._transport.get_extra_info("socket").fileno()) as peer, self._body.descriptor() as file:
            while head:
                try:
                    head = head[os.write(peer, head) :]
                except BlockingIOError:
                    await _writable(peer)
            end = max(0, self._body.size - _LAST_BYTES)
            while self.given < end:
                wanted = min(end - self.given, _SENDFILE_BYTES)
                sent = await uncancelled(asyncio.to_thread(_sendfile, peer, file, self.given, wanted))
                self.given += sent
                if sent < wanted:
                    await _writable(peer)
            last = await uncancelled(asyncio.to_thread(os.pread, file, _LAST_BYTES, end))
        if len(last) != self._body.size - end:
            raise OSError(errno.EIO, f"the spooled body ends at byte {end + len(last)}")
        self.given = self._body.size
        self._transport.write(last)


class StreamSending(Sending):
    """A body that is made while it is sent: its size is not known before. Its `chunks` tell of their own faults."""

    __slots__ = ("_ended",)

    def __init__(self, body: Body, transport: asyncio.Transport) -> None:
        super().__init__(body, transport)
        self._ended = False

    @property
    def unsent(self) -> bool:
        """See `Sending`."""
        return not self._ended

    async def _send_unread(self, head: bytes, in_clear: bool, failed: Callable[[], object]) -> None:
        await self._send_by_pieces(head)
        self._ended = True


def _sendfile(peer: int, file: int, position: int, count: int) -> int:
    """How much the kernel has taken; 0 when it has no room."""
    try:
        sent = os.sendfile(peer, file, position, count)
    except BlockingIOError:
        return 0
    if not sent:
        raise OSError(errno.EIO, f"the spooled body ends at byte {position}")
    return sent


@contextmanager
def _duplicate(descriptor: int) -> Iterator[int]:
    own = os.dup(descriptor)
    try:
        yield own
    finally:
        os.close(own)


async def _writable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    writable = asyncio.Event()
    loop.add_writer(descriptor, writable.set)
    try:
        await writable.wait()
    finally:
        loop.remove_writer(descriptor)


def _unacknowledged_bytes(transport: asyncio.Transport) -> int:
    """What the kernel holds of a connection that its peer has not acknowledged; 0 where it does not say (tcp(7))."""
    try:
        answer = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
    except (OSError, ValueError):
        return 0
    return int.from_bytes(answer, sys.byteorder)
