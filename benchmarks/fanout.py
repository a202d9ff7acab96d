"""Deliveries a second of one notify to N subscribers: the broadcaster beside what one would write by hand.

All contestants POST the same 100 bytes to the same receiver process, in turns within one run; only the ratios count.

- *broadcaster*: `Broadcaster.notify` with hmac: matching, a digest, a signature for each delivery, retries, counting.
- *httpx, gather*: `asyncio.gather` over one `httpx.AsyncClient`, as one would write it by hand; no signatures.
- *bare loop*: prebuilt bytes over kept connections, one request at a time on each: no signatures, no HTTP parser.
"""

from __future__ import annotations

import asyncio
import logging
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx

from httppubsubclient.protocol.credentials import Credentials, Key, Secrets
from httppubsubclient.protocol.messages import SubscribeRequest
from httppubsubclient.protocol.patterns import Pattern
from httppubsubserver.broadcaster import Broadcaster
from httppubsubserver.config import ServerConfig

BODY = b"x" * 100
CONNECTIONS = 32
Contestant = Callable[[], Awaitable[None]]


async def with_broadcaster(port: int, subscribers: int, stack: list[Broadcaster], directory: str) -> Contestant:
    key = Key("k", b"0123456789abcdef0123456789abcdef")
    secrets = Secrets(Credentials.none(), Credentials("hmac", (key,)), ())
    broadcaster = Broadcaster(ServerConfig(db=f"sqlite:///{directory}/{subscribers}.db"), secrets=secrets)
    await broadcaster.__aenter__()
    stack.append(broadcaster)
    for number in range(subscribers):
        url = f"http://127.0.0.1:{port}/{number}"
        await broadcaster.subscribe(SubscribeRequest(url, Pattern.exact(b"t"), 3600))

    async def notify() -> None:
        result = await broadcaster.notify(b"t", BODY)
        if result.notified != subscribers:
            raise SystemExit(f"only {result.notified} of {subscribers} were delivered; this run says nothing")

    return notify


def with_httpx(client: httpx.AsyncClient, port: int, subscribers: int) -> Contestant:
    async def one(number: int) -> None:
        (await client.post(f"http://127.0.0.1:{port}/{number}", content=BODY)).raise_for_status()

    async def notify() -> None:
        await asyncio.gather(*(one(number) for number in range(subscribers)))

    return notify


async def with_bare_loop(port: int, subscribers: int) -> Contestant:
    connections = [await asyncio.open_connection("127.0.0.1", port) for _ in range(min(CONNECTIONS, subscribers))]
    request = (
        b"POST /0 HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 100\r\n" + b"h: " + b"y" * 600 + b"\r\n\r\n" + BODY
    )

    async def share(connection: tuple[asyncio.StreamReader, asyncio.StreamWriter], count: int) -> None:
        reader, writer = connection
        for _ in range(count):
            writer.write(request)
            await reader.readuntil(b"\r\n\r\n")

    async def notify() -> None:
        each, rest = divmod(subscribers, len(connections))
        await asyncio.gather(*(share(c, each + (n < rest)) for n, c in enumerate(connections)))

    return notify


async def rate(contestant: Contestant, subscribers: int, seconds: float) -> float:
    """Deliveries a second over about so many seconds."""
    start = time.perf_counter()
    count = 0
    while (elapsed := time.perf_counter() - start) < seconds:
        await contestant()
        count += subscribers
    return count / elapsed


async def measure(port: int, *, rounds: int, seconds: float) -> None:
    print("| subscribers | broadcaster | httpx, gather | bare loop | broadcaster / httpx | broadcaster / bare |")
    print("|---|---|---|---|---|---|")
    opened: list[Broadcaster] = []
    with tempfile.TemporaryDirectory() as directory:
        async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
            for subscribers in (1, 10, 100):
                contestants = [
                    await with_broadcaster(port, subscribers, opened, directory),
                    with_httpx(client, port, subscribers),
                    await with_bare_loop(port, subscribers),
                ]
                rates = [[await rate(c, subscribers, seconds) for c in contestants] for _ in range(rounds)]
                ours, httpx_rate, bare = (statistics.median(column) for column in zip(*rates, strict=True))
                print(
                    f"| {subscribers} | {ours:,.0f}/s | {httpx_rate:,.0f}/s | {bare:,.0f}/s "
                    f"| {ours / httpx_rate:.1f} | {ours / bare:.2f} |",
                    flush=True,
                )
        for broadcaster in opened:
            await broadcaster.__aexit__(None, None, None)


def main() -> None:
    logging.disable(logging.INFO)
    quick = "--quick" in sys.argv
    receiver = Path(__file__).with_name("receiver.py")
    with subprocess.Popen([sys.executable, receiver], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            work = measure(port, rounds=3 if quick else 6, seconds=0.5 if quick else 1.5)
            try:
                import uvloop

                uvloop.run(work)
            except ImportError:
                asyncio.run(work)
        finally:
            process.kill()


if __name__ == "__main__":
    main()
