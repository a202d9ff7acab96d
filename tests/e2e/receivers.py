"""Receivers of every temper, in one process with a port each. Also meant to be started by hand:

    python tests/e2e/receivers.py accept accept hang error refuse drip endless

prints `{"ports": [...]}` in the order of the arguments, then one JSON line for each request that was read in full.

| temper  | does                                                                        |
|---------|-----------------------------------------------------------------------------|
| accept  | answers 204                                                                 |
| error   | answers 500                                                                 |
| gone    | answers 410                                                                 |
| busy    | answers 503 with Retry-After: 3600                                          |
| redirect| answers 307 to a port of its own, where any contact is printed              |
| refuse  | a port where nobody listens                                                 |
| reset   | resets the connection after the request's head                              |
| hang    | reads and never answers                                                     |
| deaf    | accepts the connection and reads nothing                                    |
| drip    | sends the status line one byte every 50 ms, for ever                        |
| endless | answers 200 and then a body without end                                     |
| bomb    | answers 200 with a Content-Length of 10 GB and some megabytes of it         |
| garbage | answers bytes that are not HTTP                                             |
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import sys
from typing import Any


class Receiver:
    """One port with its temper."""

    def __init__(self, temper: str) -> None:
        self.temper = temper
        self.port = 0
        self.elsewhere = 0

    async def start(self) -> asyncio.Server | None:
        if self.temper == "refuse":
            # Bound and not listening: connections are refused, and nobody else is given the port.
            self.bound = socket.socket()
            self.bound.bind(("127.0.0.1", 0))
            self.port = self.bound.getsockname()[1]
            return None
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0, limit=1 << 20)
        self.port = server.sockets[0].getsockname()[1]
        if self.temper == "redirect":
            target = await asyncio.start_server(self.contacted, "127.0.0.1", 0)
            self.elsewhere = target.sockets[0].getsockname()[1]
        return server

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while await self.one_request(reader, writer):
                pass
        writer.close()

    async def contacted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        say({"port": self.port, "followed_redirect": True})
        writer.close()

    async def one_request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        if self.temper == "deaf":
            await asyncio.Event().wait()
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
        original = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
        if self.temper == "reset":
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            return False
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        say(
            {
                "port": self.port,
                "path": head.split(" ", 2)[1],
                "headers": {name.lower(): value for name, value in original.items()},
                "body": body[:1000].decode("latin-1"),
            }
        )
        return await self.answer(writer)

    async def answer(self, writer: asyncio.StreamWriter) -> bool:
        fixed = {
            "accept": "204 No Content\r\n",
            "error": "500 Internal Server Error\r\ncontent-length: 0\r\n",
            "gone": "410 Gone\r\ncontent-length: 0\r\n",
            "busy": "503 Service Unavailable\r\nretry-after: 3600\r\ncontent-length: 0\r\n",
            "redirect": f"307 Moved\r\nlocation: http://127.0.0.1:{self.elsewhere}/\r\ncontent-length: 0\r\n",
        }.get(self.temper)
        if fixed is not None:
            writer.write(f"HTTP/1.1 {fixed}\r\n".encode())
            await writer.drain()
            return True
        if self.temper == "garbage":
            writer.write(b"\x00\xff this is not HTTP\r\n\r\n" * 10)
            await writer.drain()
        elif self.temper == "hang":
            await asyncio.Event().wait()
        elif self.temper == "drip":
            for byte in b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.05)
        elif self.temper == "endless":
            writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            while True:
                writer.write(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
                await writer.drain()
        elif self.temper == "bomb":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 10000000000\r\n\r\n" + b"x" * 10_000_000)
            await writer.drain()
            await asyncio.Event().wait()
        return False


def say(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


async def main(tempers: list[str]) -> None:
    receivers = [Receiver(temper) for temper in tempers]
    servers = [await receiver.start() for receiver in receivers]
    say({"ports": [receiver.port for receiver in receivers]})
    async with contextlib.AsyncExitStack() as stack:
        for server in servers:
            if server is not None:
                await stack.enter_async_context(server)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
