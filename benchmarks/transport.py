"""POSTs a second through `httpx.AsyncClient`, over httpx's own transport and over `FastTransport`.

    python benchmarks/transport.py [--quick]

One process on one core sends what a client's `notify` sends: 100 bytes as a counted stream, under the headers of a
signed request. The receiver (C, if there is a compiler) has the other core. The transports take turns, each with the
same number of requests in flight, several rounds; the table shows medians, and ratios are of medians.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
from harness import OTHERS, OURS, cpu_seconds, process, receiver_command

from httppubsubclient.protocol.credentials import Credentials, Key, sign_request
from httppubsubserver import FastTransport

BODY = b"x" * 100
HEADERS = {
    "accept-encoding": "identity",
    "user-agent": "httppubsubclient",
    "content-type": "application/octet-stream",
    "content-digest": "sha-256=:RBNvo1WzZ4oRRq0W9+hknpT7T8If536DEMBg9hyq/4o=:",
    "content-length": str(len(BODY)),
}
HEADERS |= sign_request(
    Credentials(type="hmac", keys=(Key(id="key", secret=b"k" * 32),)),
    method="POST",
    path="/v1/notify",
    query="topic=t",
    headers=HEADERS,
    now=int(time.time()),
    nonce="n" * 22,
)

TRANSPORTS = ("httpx", "FastTransport")


def transport(name: str) -> httpx.AsyncBaseTransport:
    """Both may use as many connections as there are requests in flight, and keep them."""
    if name == "httpx":
        limits = httpx.Limits(max_connections=1000, max_keepalive_connections=1000)
        return httpx.AsyncHTTPTransport(limits=limits, trust_env=False)
    return FastTransport()


async def body() -> AsyncIterator[bytes]:
    yield BODY


async def send(http: httpx.AsyncClient, url: str) -> None:
    request = http.build_request("POST", url, headers=HEADERS, content=body())
    response = await http.send(request, stream=True)
    async for _ in response.aiter_raw():
        pass
    await response.aclose()
    if response.status_code != 204:
        raise SystemExit(f"the receiver answered {response.status_code}")


async def measure(name: str, url: str, in_flight: int, seconds: float) -> tuple[float, float]:
    """Requests a second, connecting included; CPU microseconds of this process for each."""
    sent = 0

    async def worker() -> None:
        nonlocal sent
        while True:
            await send(http, url)
            sent += 1

    async with httpx.AsyncClient(transport=transport(name), trust_env=False, timeout=30) as http:
        start, cpu = time.perf_counter(), time.process_time()
        workers = [asyncio.create_task(worker()) for _ in range(in_flight)]
        done, _ = await asyncio.wait(workers, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        result = sent / (time.perf_counter() - start), (time.process_time() - cpu) / max(sent, 1) * 1e6
        for task in workers:
            task.cancel()
        await asyncio.wait(workers)
        for task in done:
            task.result()
        return result


def run(name: str, url: str, in_flight: int, seconds: float) -> tuple[float, float]:
    try:
        import uvloop
    except ImportError:
        return asyncio.run(measure(name, url, in_flight, seconds))
    return uvloop.run(measure(name, url, in_flight, seconds))


@contextlib.contextmanager
def watched(pid: int, name: str) -> Iterator[None]:
    """Says so when the receiver had no time left."""
    before, start = cpu_seconds(pid), time.perf_counter()
    yield
    busy = (cpu_seconds(pid) - before) / (time.perf_counter() - start)
    if busy > 0.9:
        print(f"(the receiver was busy {busy:.0%} of a round of {name}: it was the limit)", file=sys.stderr)


def main() -> None:
    quick = "--quick" in sys.argv
    rounds, seconds = (1, 0.8) if quick else (5, 3.0)
    print("POSTs/s through httpx.AsyncClient (CPU microseconds of the sender for each).\n")
    print("| in flight | httpx's transport | FastTransport | ratio | of CPU time |\n|---|---|---|---|---|")
    os.sched_setaffinity(0, OURS)
    with (
        tempfile.TemporaryDirectory() as directory,
        process(receiver_command(Path(directory), 1), OTHERS) as (receiver, line),
    ):
        url = f"http://127.0.0.1:{line}/v1/notify?topic=t"
        for in_flight in (1, 32, 256):
            taken: dict[str, list[tuple[float, float]]] = {name: [] for name in TRANSPORTS}
            for _ in range(rounds):
                for name in TRANSPORTS:
                    with watched(receiver.pid, name):
                        taken[name].append(run(name, url, in_flight, seconds))
            rates, cpu = (
                [statistics.median(one[field] for one in taken[name]) for name in TRANSPORTS] for field in (0, 1)
            )
            print(
                f"| {in_flight} | {rates[0]:,.0f} ({cpu[0]:,.0f}) | {rates[1]:,.0f} ({cpu[1]:,.0f}) "
                f"| {rates[1] / rates[0]:.1f} | {cpu[0] / cpu[1]:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
