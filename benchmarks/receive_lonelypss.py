"""A subscriber of lonelypss: confirms every message with a signed answer, as its broadcaster demands. Prints its ports.

    python benchmarks/receive_lonelypss.py PORTS SECRETS

Each answer signs the identifier of the message it confirms, so receiver.c cannot give it. One in Python is far from
being the limit: it answers some ten thousand a second. It does not verify what it receives, like the other receivers.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from lonelypss_wire import confirmation, identifier_of, secret_of


class Receiver(asyncio.Protocol):
    """Requests one after another, in whatever pieces they come."""

    def __init__(self, secret: bytes) -> None:
        self.secret = secret
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while True:
            head, separator, rest = self.buffer.partition(b"\r\n\r\n")
            if not separator:
                return
            request, *lines = head.split(b"\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(b": ") for line in lines)}
            length = int(headers[b"content-length"])
            if len(rest) < length:
                return
            self.buffer = rest[length:]
            url = b"http://" + headers[b"host"] + request.split(b" ")[1]
            body = confirmation(self.secret, url, identifier_of(rest[:length]))
            answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
            self.transport.write(answer)  # type: ignore[attr-defined]


async def main() -> None:
    secret = secret_of(Path(sys.argv[2]), "to-broadcaster")
    loop = asyncio.get_running_loop()
    servers = [await loop.create_server(lambda: Receiver(secret), "127.0.0.1", 0) for _ in range(int(sys.argv[1]))]
    print(*(server.sockets[0].getsockname()[1] for server in servers), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    try:
        import uvloop

        uvloop.run(main())
    except ImportError:
        asyncio.run(main())
