"""The broadcaster's own connections with prepared bytes and nothing else: how fast it could be at most.

    python benchmarks/bare_loop.py URL...
    python benchmarks/bare_loop.py relay URL...

Prints `ready`. For each line of standard input, a number of seconds, it POSTs to the URLs of its arguments for so long,
each of them in turn as often as the others, and prints its requests a second.

As a relay it takes requests, one small one at a time over each connection, and POSTs the body of each to all URLs; it
answers when all have answered. It prints where it listens. So it is loaded and timed as a broadcaster is.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Callable
from typing import cast

from httppubsubclient.bodies import Body
from httppubsubclient.protocol.callback_urls import CallbackUrl, parse_callback_url
from httppubsubserver.delivery.outbound import Answer, AttemptFailed, Outbound, open_outbound

BODY = Body.of(b"x" * 100)
HEAD = b"content-type: application/octet-stream\r\nx: " + b"y" * 600 + b"\r\n"
IN_FLIGHT = 256


class Loop:
    """Keeps so many requests in flight until the time is over."""

    def __init__(self, outbound: Outbound, callbacks: list[CallbackUrl], seconds: float) -> None:
        self.loop = asyncio.get_running_loop()
        self.outbound, self.callbacks = outbound, callbacks
        self.start = self.loop.time()
        self.end = self.start + seconds
        self.sent = self.answered = 0
        self.over = asyncio.Event()

    async def run(self) -> float:
        for _ in range(min(IN_FLIGHT, len(self.callbacks) * 32)):
            self.send()
        await self.over.wait()
        return self.answered / (self.loop.time() - self.start)

    def send(self) -> None:
        callback = self.callbacks[self.sent % len(self.callbacks)]
        self.sent += 1
        self.outbound.post(callback, HEAD, BODY, deadline=self.end + 10, done=self.done)

    def done(self, outcome: Answer | AttemptFailed) -> None:
        if isinstance(outcome, AttemptFailed):
            raise SystemExit(f"the bare loop failed: {outcome}")
        self.answered += 1
        if self.loop.time() < self.end:
            self.send()
        elif self.answered == self.sent:
            self.over.set()


class Bursts:
    """What the relay has to send, with as many in flight as the other loop has."""

    def __init__(self, outbound: Outbound, callbacks: list[CallbackUrl]) -> None:
        self.loop = asyncio.get_running_loop()
        self.outbound, self.callbacks = outbound, callbacks
        self.waiting: deque[tuple[CallbackUrl, Body, Callable[[Answer | AttemptFailed], None]]] = deque()
        self.in_flight = 0

    def start(self, body: Body, answer: Callable[[], None]) -> None:
        unanswered = len(self.callbacks)

        def done(outcome: Answer | AttemptFailed) -> None:
            nonlocal unanswered
            if isinstance(outcome, AttemptFailed):
                raise SystemExit(f"the relay failed: {outcome}")
            unanswered -= 1
            self.in_flight -= 1
            if unanswered == 0:
                answer()
            self.pump()

        self.waiting.extend((callback, body, done) for callback in self.callbacks)
        self.pump()

    def pump(self) -> None:
        while self.waiting and self.in_flight < IN_FLIGHT:
            callback, body, done = self.waiting.popleft()
            self.in_flight += 1
            self.outbound.post(callback, HEAD, body, deadline=self.loop.time() + 10, done=done)


class Relay(asyncio.Protocol):
    """One connection of the publisher's. A small request arrives in one piece over the loopback."""

    def __init__(self, bursts: Bursts) -> None:
        self.bursts = bursts

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.bursts.start(Body.of(data.partition(b"\r\n\r\n")[2]), self.answer)

    def answer(self) -> None:
        self.transport.write(b"HTTP/1.1 204 No Content\r\n\r\n")


async def relay(outbound: Outbound, callbacks: list[CallbackUrl]) -> None:
    bursts = Bursts(outbound, callbacks)
    server = await asyncio.get_running_loop().create_server(lambda: Relay(bursts), "127.0.0.1", 0)
    print(f"listening on http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


async def main() -> None:
    as_relay = sys.argv[1] == "relay"
    callbacks = [parse_callback_url(url) for url in sys.argv[1 + as_relay :]]
    async with open_outbound(connections_per_origin=64, max_answer_bytes=65536, ca_file=None) as outbound:
        if as_relay:
            await relay(outbound, callbacks)
        print("ready", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            print(await Loop(outbound, callbacks, float(line)).run(), flush=True)


if __name__ == "__main__":
    try:
        import uvloop

        uvloop.run(main())
    except ImportError:
        asyncio.run(main())
