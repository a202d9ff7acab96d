"""The broadcaster's own connections with prepared bytes and nothing else: how fast it could be at most.

Prints `ready`. For each line of standard input, a number of seconds, it POSTs to the URLs of its arguments for so long,
each of them in turn as often as the others, and prints its requests a second.
"""

from __future__ import annotations

import asyncio
import sys

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


async def main() -> None:
    callbacks = [parse_callback_url(url) for url in sys.argv[1:]]
    async with open_outbound(connections_per_origin=64, max_answer_bytes=65536, ca_file=None) as outbound:
        print("ready", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            print(await Loop(outbound, callbacks, float(line)).run(), flush=True)


if __name__ == "__main__":
    try:
        import uvloop

        uvloop.run(main())
    except ImportError:
        asyncio.run(main())
