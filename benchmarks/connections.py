"""The memory of an idle connection of the broadcaster's own POST client, beside one that has only an empty protocol.

    python benchmarks/connections.py [--quick] [--json PATH]

A process of its own opens connections to the receiver, each has carried one POST and its answer, and then nothing
happens; what its resident memory has grown by is divided by how many there are. The first hundred are not counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from harness import HERE, OTHERS, process, receiver_command, record, resident_bytes

from httppubsubclient.bodies import Body
from httppubsubclient.protocol.callback_urls import parse_callback_url
from httppubsubserver.delivery.outbound import Answer, AttemptFailed, Outbound, open_outbound

PORTS, WARM_UP = 8, 100
BODY = Body.of(b"x" * 100)
HEAD = b"content-type: application/octet-stream\r\n"


async def post(outbound: Outbound, urls: list[str], count: int) -> None:
    """So many POSTs at once: as many connections."""
    loop = asyncio.get_running_loop()
    answered = asyncio.Event()
    unanswered = count

    def done(outcome: Answer | AttemptFailed) -> None:
        nonlocal unanswered
        if isinstance(outcome, AttemptFailed):
            raise SystemExit(f"a connection failed: {outcome}")
        unanswered -= 1
        if unanswered == 0:
            answered.set()

    for number in range(count):
        callback = parse_callback_url(urls[number % len(urls)])
        outbound.post(callback, HEAD, BODY, deadline=loop.time() + 30, done=done)
    await answered.wait()


async def grown(open_them: Callable[[int], Awaitable[None]], count: int) -> float:
    """Bytes for each connection. The second call opens what the first has not opened."""
    await open_them(WARM_UP)
    gc.collect()
    bytes_before, files_before = resident_bytes(os.getpid()), len(os.listdir("/proc/self/fd"))
    await open_them(count)
    gc.collect()
    opened = len(os.listdir("/proc/self/fd")) - files_before
    return (resident_bytes(os.getpid()) - bytes_before) / opened


async def hold(kind: str, count: int, ports: list[str]) -> None:
    """What the process of its own does: print the bytes for each connection."""
    if kind == "protocol":
        connections = []

        async def connect(wanted: int) -> None:
            loop = asyncio.get_running_loop()
            for number in range(wanted):
                port = int(ports[number % len(ports)])
                connections.append(await loop.create_connection(asyncio.Protocol, "127.0.0.1", port))

        print(json.dumps(await grown(connect, count)))
        return
    async with open_outbound(connections_per_origin=count, max_answer_bytes=65536, ca_file=None) as outbound:
        urls = [f"http://127.0.0.1:{port}/" for port in ports]
        print(json.dumps(await grown(lambda wanted: post(outbound, urls, wanted), count)))


def main() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if sys.argv[1:2] == ["hold"]:
        work = hold(sys.argv[2], int(sys.argv[3]), sys.argv[4:])
        try:
            import uvloop

            uvloop.run(work)
        except ImportError:
            asyncio.run(work)
        return
    print("| connections | kB for each | with an empty protocol |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        _, line = stack.enter_context(process(receiver_command(Path(name), PORTS), OTHERS))
        for count in (1_000,) if "--quick" in sys.argv else (1_000, 2_000, 4_000):
            kilobytes = []
            for kind in ("outbound", "protocol"):
                command = [sys.executable, str(HERE / "connections.py"), "hold", kind, str(count), *line.split()]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                kilobytes.append(json.loads(done.stdout) / 1000)
            print(f"| {count:,} | {kilobytes[0]:.1f} | {kilobytes[1]:.1f} |", flush=True)
            record("connections", connections=count, kilobytes=kilobytes[0], protocol_kilobytes=kilobytes[1])


if __name__ == "__main__":
    main()
