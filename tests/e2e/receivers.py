"""Receivers of every temper, with a port of 127.0.0.1 each. Meant to be started by hand, too:

    scripts/hostile-receiver accept hang drip bomb          (or all of them: scripts/hostile-receiver all)

prints `{"ports": [...]}` in the order of the arguments, then one JSON line for each request that was read in full and
one for whoever followed a redirect. Tests start the same as a process, or within their own by `open_receivers`.

`scripts/hostile-receiver` without arguments lists the tempers; the first line of each function below is what it does.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import socket
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

_PAUSE_SECONDS = 0.05
"""Between two bytes of whoever drips."""


class Receiver:
    """One port with its temper, and what came there."""

    def __init__(self, temper: str, say: Callable[[dict[str, Any]], None] | None = None) -> None:
        self.temper = temper
        self.port = 0
        self.elsewhere = 0
        self.requests: list[dict[str, Any]] = []
        """Those that were read in full."""
        self.connections = 0
        self.contacts = 0
        """How many came to `elsewhere`, where only a redirect leads."""
        self.changed = asyncio.Event()
        self._say = say
        self._servers: list[asyncio.Server] = []
        self._open: set[asyncio.Task[None]] = set()
        self._bound: socket.socket | None = None

    async def start(self) -> None:
        """Listen."""
        if self.temper == "refuse":
            # Bound and not listening: connections are refused, and nobody else is given the port.
            self._bound = socket.socket()
            self._bound.bind(("127.0.0.1", 0))
            self.port = self._bound.getsockname()[1]
            return
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 20)
        self.port = server.sockets[0].getsockname()[1]
        self._servers = [server]
        if self.temper.startswith("redirect"):
            target = await asyncio.start_server(self._contacted, "127.0.0.1", 0)
            self.elsewhere = target.sockets[0].getsockname()[1]
            self._servers.append(target)

    async def close(self) -> None:
        """Stop listening, and end what is left."""
        if self._bound is not None:
            self._bound.close()
        for server in self._servers:
            server.close()
            await server.wait_closed()
        while pending := [task for task in self._open if not task.done()]:
            for task in pending:
                task.cancel()
            await asyncio.wait(pending)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition` holds; it is looked at after every request."""
        async with asyncio.timeout(10):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    def note(self, line: dict[str, Any]) -> None:
        """Tell whoever listens."""
        if self._say is not None:
            self._say({"port": self.port, **line})
        self.changed.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        self.connections += 1
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while await TEMPERS[self.temper](Talk(self, reader, writer)):
                    pass
        finally:
            self._open.discard(task)
            writer.close()

    async def _contacted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.contacts += 1
        self.note({"followed_redirect": True})
        writer.close()


class Talk:
    """One request and its answer, by hand."""

    def __init__(self, receiver: Receiver, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.receiver = receiver
        self.reader = reader
        self.writer = writer

    async def request(self) -> dict[str, Any]:
        """Read one, and tell of it."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        headers = {
            name.lower(): value
            for line in head.split("\r\n")[1:]
            if ": " in line
            for name, value in [line.split(": ", 1)]
        }
        body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        method, path, _ = head.split(" ", 2)
        request = {"method": method, "path": path, "headers": headers, "body": body[:1000].decode("latin-1")}
        self.receiver.requests.append(request)
        self.receiver.note(request)
        return request

    async def send(self, *pieces: bytes, pause_seconds: float = 0) -> None:
        """Send these, one after the other."""
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            if pause_seconds:
                await asyncio.sleep(pause_seconds)

    async def drip(self, data: bytes) -> None:
        """Byte by byte."""
        await self.send(*(bytes([byte]) for byte in data), pause_seconds=_PAUSE_SECONDS)

    def reset(self) -> bool:
        """End the connection with an RST."""
        linger = struct.pack("ii", 1, 0)
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()
        return False

    async def rest(self) -> bool:
        """Do nothing more, for ever."""
        await asyncio.Event().wait()
        return False


Temper = Callable[[Talk], Awaitable[bool]]
"""Deals with one request; True: with the next one on this connection, too."""


def _answers(answer: str, does: str) -> Temper:
    async def temper(talk: Talk) -> bool:
        await talk.request()
        await talk.send(
            f"HTTP/1.1 {answer}\r\n\r\n".replace("ELSEWHERE", str(talk.receiver.elsewhere)).encode("latin-1")
        )
        return True

    temper.__doc__ = does
    return temper


def _redirects(status: int) -> Temper:
    return _answers(
        f"{status} Moved\r\nlocation: http://127.0.0.1:ELSEWHERE/\r\ncontent-length: 0",
        f"answers {status} to a port of its own, where any contact is told",
    )


# -- slow -----------------------------------------------------------------------------------------------------------


async def hang(talk: Talk) -> bool:
    """reads and never answers"""
    await talk.request()
    return await talk.rest()


async def deaf(talk: Talk) -> bool:
    """accepts the connection and reads nothing"""
    return await talk.rest()


async def drip(talk: Talk) -> bool:
    """sends the head of its answer one byte every 50 ms, for ever"""
    await talk.request()
    await talk.drip(b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000)
    return False


async def drip_body(talk: Talk) -> bool:
    """answers 500, and its body one byte every 50 ms, for ever"""
    await talk.request()
    await talk.send(b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 100000\r\n\r\n")
    await talk.drip(b"y" * 100_000)
    return False


async def drip_read(talk: Talk) -> bool:
    """reads the request one byte every 50 ms"""
    while await talk.reader.read(1):
        await asyncio.sleep(_PAUSE_SECONDS)
    return False


async def interim(talk: Talk) -> bool:
    """answers 100 and 103 again and again, as fast as they are taken"""
    await talk.request()
    while True:
        await talk.send(b"HTTP/1.1 100 Continue\r\n\r\n" * 100, b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n" * 100)


# -- large ----------------------------------------------------------------------------------------------------------


async def endless(talk: Talk) -> bool:
    """answers 200 and then a body without end"""
    await talk.request()
    await talk.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    while True:
        await talk.send(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")


async def endless_error(talk: Talk) -> bool:
    """answers 500 and then a body without end"""
    await talk.request()
    await talk.send(b"HTTP/1.1 500 Internal Server Error\r\nconnection: close\r\n\r\n")
    while True:
        await talk.send(b"x" * 0x10000)


async def endless_head(talk: Talk) -> bool:
    """answers headers without end"""
    await talk.request()
    await talk.send(b"HTTP/1.1 200 OK\r\n")
    while True:
        await talk.send(b"x-more: and more\r\n" * 1000)


async def endless_line(talk: Talk) -> bool:
    """answers one header without end"""
    await talk.request()
    await talk.send(b"HTTP/1.1 200 OK\r\nx: ")
    while True:
        await talk.send(b"y" * 0x10000)


async def bomb(talk: Talk) -> bool:
    """answers 200 with a Content-Length of 10 GB and some megabytes of it"""
    await talk.request()
    await talk.send(b"HTTP/1.1 200 OK\r\ncontent-length: 10000000000\r\n\r\n" + b"x" * 10_000_000)
    return await talk.rest()


async def gzip_bomb(talk: Talk) -> bool:
    """answers 200 with 100 kB of gzip that unpack to 100 MB"""
    await talk.request()
    await talk.send(
        b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%b" % (len(_bomb()), _bomb())
    )
    return True


_packed: list[bytes] = []


def _bomb() -> bytes:
    if not _packed:
        _packed.append(gzip.compress(bytes(100_000_000), 9))
    return _packed[0]


# -- broken ---------------------------------------------------------------------------------------------------------


async def reset_at_once(talk: Talk) -> bool:
    """resets the connection as soon as it is there"""
    return talk.reset()


async def reset(talk: Talk) -> bool:
    """resets the connection after the request's head"""
    await talk.reader.readuntil(b"\r\n\r\n")
    return talk.reset()


async def reset_after_body(talk: Talk) -> bool:
    """resets the connection after the request's body"""
    await talk.request()
    return talk.reset()


async def reset_in_head(talk: Talk) -> bool:
    """resets the connection within the head of its answer"""
    await talk.request()
    await talk.send(b"HTTP/1.1 200 O")
    return talk.reset()


async def reset_after_head(talk: Talk) -> bool:
    """answers the head of a 200 and resets the connection within the body"""
    await talk.request()
    await talk.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf")
    await asyncio.sleep(_PAUSE_SECONDS)  # or the kernel would throw away with the RST what was not read yet
    return talk.reset()


async def close_after_body(talk: Talk) -> bool:
    """closes the connection in order, without an answer"""
    await talk.request()
    return False


async def early(talk: Talk) -> bool:
    """answers 200 to the head and closes, the body unread"""
    await talk.reader.readuntil(b"\r\n\r\n")
    await talk.send(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
    return False


async def ahead(talk: Talk) -> bool:
    """answers 500, and right behind it 200 for whatever is asked next"""
    await talk.request()
    await talk.send(
        b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
    )
    return True


def _framing(head: str, body: bytes, does: str) -> Temper:
    async def temper(talk: Talk) -> bool:
        await talk.request()
        await talk.send(head.encode("latin-1") + b"\r\n\r\n" + body)
        return await talk.rest()

    temper.__doc__ = does
    return temper


# -- odd ------------------------------------------------------------------------------------------------------------


async def flapping(talk: Talk) -> bool:
    """answers 204 and 500 in turn"""
    await talk.request()
    good = len(talk.receiver.requests) % 2 == 1
    await talk.send(b"HTTP/1.1 204 No Content\r\n\r\n" if good else b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n")
    return True


FORGED = "\x1b[2J\x1b]0;owned\x07<script>alert(1)</script>\r\n2026-11-21 CRITICAL forged: line\n\x9b31m\u202e"
"""What should never reach a terminal, a browser or a log as it is."""


async def ansi(talk: Talk) -> bool:
    """answers 500 with a body of escape sequences, HTML and lines that look like a log"""
    await talk.request()
    body = FORGED.encode()
    await talk.send(b"HTTP/1.1 500 No\r\ncontent-type: text/html\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
    return True


TEMPERS: dict[str, Temper] = {
    "accept": _answers("204 No Content", "answers 204"),
    "error": _answers("500 Internal Server Error\r\ncontent-length: 0", "answers 500"),
    "gone": _answers("410 Gone\r\ncontent-length: 0", "answers 410"),
    "busy": _answers("503 Unavailable\r\nretry-after: 3600\r\ncontent-length: 0", "answers 503 with Retry-After: 3600"),
    "refuse": deaf,
    "redirect": _redirects(307),
    "redirect-301": _redirects(301),
    "redirect-302": _redirects(302),
    "redirect-303": _redirects(303),
    "redirect-308": _redirects(308),
    "hang": hang,
    "deaf": deaf,
    "drip": drip,
    "drip-body": drip_body,
    "drip-read": drip_read,
    "interim": interim,
    "endless": endless,
    "endless-error": endless_error,
    "endless-head": endless_head,
    "endless-line": endless_line,
    "bomb": bomb,
    "gzip-bomb": gzip_bomb,
    "reset-at-once": reset_at_once,
    "reset": reset,
    "reset-after-body": reset_after_body,
    "reset-in-head": reset_in_head,
    "reset-after-head": reset_after_head,
    "close-after-body": close_after_body,
    "early": early,
    "ahead": ahead,
    "garbage": _framing("\x00\xff this is not HTTP", b"\r\n" * 10, "answers bytes that are not HTTP"),
    "two-lengths": _framing(
        "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2", b"xy", "answers two Content-Lengths"
    ),
    "two-framings": _framing(
        "HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked",
        b"0\r\n\r\n",
        "answers Content-Length and chunks",
    ),
    "negative-length": _framing("HTTP/1.1 200 OK\r\ncontent-length: -1", b"x", "answers a Content-Length of -1"),
    "bare-cr": _framing("HTTP/1.1 200 OK\r\nx: a\rcontent-length: 0", b"", "answers a head with a bare CR"),
    "escape": _framing(
        "HTTP/1.1 200 \x1b[31mred\r\ncontent-length: 0", b"", "answers an escape sequence in its status line"
    ),
    "folded": _framing("HTTP/1.1 200 OK\r\nx: a\r\n b: c", b"", "answers a folded header"),
    "http-0.9": _framing("<html>it works</html>", b"", "answers as before HTTP/1.0"),
    "http-2": _framing("HTTP/2 200", b"", "answers as HTTP/2"),
    "switching": _framing("HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c", b"x", "answers 101"),
    "flapping": flapping,
    "ansi": ansi,
    "cookies": _answers(
        '200 OK\r\nset-cookie: a=b; Path=/\r\nalt-svc: h3=":1"\r\nstrict-transport-security: max-age=9999\r\n'
        "content-length: 0",
        "answers 200 with Set-Cookie, Alt-Svc and Strict-Transport-Security",
    ),
    "challenge": _answers(
        '401 Unauthorized\r\nwww-authenticate: Basic realm="x", Negotiate, Digest realm="x", nonce="1"\r\n'
        "content-length: 0",
        "answers 401 with challenges of several kinds",
    ),
}
"""Every temper by its name."""


@contextlib.asynccontextmanager
async def open_receivers(
    *tempers: str, say: Callable[[dict[str, Any]], None] | None = None
) -> AsyncIterator[list[Receiver]]:
    """Receivers of these tempers in this process."""
    receivers = [Receiver(temper, say) for temper in tempers]
    try:
        for receiver in receivers:
            await receiver.start()
        yield receivers
    finally:
        for receiver in receivers:
            await receiver.close()


def say(line: dict[str, Any]) -> None:
    """One line of JSON on stdout."""
    print(json.dumps(line), flush=True)


async def main(tempers: list[str]) -> None:
    """Receivers of these tempers, until somebody ends the process."""
    async with open_receivers(*tempers, say=say) as receivers:
        say({"ports": [receiver.port for receiver in receivers]})
        await asyncio.Event().wait()


if __name__ == "__main__":
    chosen = list(TEMPERS) if sys.argv[1:] == ["all"] else sys.argv[1:]
    unknown = [name for name in chosen if name not in TEMPERS]
    if unknown or not chosen:
        print(
            *(f"there is no temper {name!r}" for name in unknown),
            sep="\n",
            file=sys.stderr,
            end="\n" if unknown else "",
        )
        for name, temper in TEMPERS.items():
            text = "a port where nobody listens" if name == "refuse" else temper.__doc__
            print(f"{name:18}{text}", file=sys.stderr)
        raise SystemExit(2)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(chosen))
