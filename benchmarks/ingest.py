"""Notifies a second with one subscriber, beside a bare uvicorn that is sent exactly the same requests.

    python benchmarks/ingest.py [--quick] [--json PATH]

100 bytes, hmac in both directions, 64 connections; the requests are signed before the clock starts and sent by a
program in C. The broadcaster verifies, matches, signs and delivers each; bare_app.py only reads it. They take turns.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from harness import HERE, OTHERS, OURS, broadcaster, compiled, cpu_seconds, process, record, subscribe
from sender import BODY_BYTES, Requests, closed_loop, signed_requests

CONNECTIONS = 64
NO_LIMIT_SECONDS = 60.0
"""A round is over when all requests are answered."""


class Server:
    """Who is sent the requests, and what came of it in each round."""

    def __init__(self, name: str, pid: int, url: str) -> None:
        self.name, self.pid, self.port = name, pid, urlsplit(url).port or 80
        self.rates: list[float] = []
        self.cpu: list[float] = []
        self.others: list[float] = []

    def run(self, sender: str, requests: Requests, receiver: int) -> None:
        before, receiver_before = cpu_seconds(self.pid), cpu_seconds(receiver)
        result = closed_loop(sender, replace(requests, port=self.port), CONNECTIONS, NO_LIMIT_SECONDS)
        self.rates.append(result["per_second"])
        self.cpu.append((cpu_seconds(self.pid) - before) / result["count"] * 1e6)
        others = result["cpu_seconds"] + cpu_seconds(receiver) - receiver_before
        self.others.append(others / result["seconds"])


def main() -> None:
    quick = "--quick" in sys.argv
    count, rounds = (5_000, 2) if quick else (30_000, 5)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        sender, program = compiled("sender", directory), compiled("receiver", directory)
        if sender is None or program is None:
            raise SystemExit("this needs a C compiler: cc")
        receiver, port = stack.enter_context(process([program, "1"], OTHERS))
        site = stack.enter_context(broadcaster(directory / "site"))
        subscribe(site, f"http://127.0.0.1:{port}/", ["t"])
        child, line = stack.enter_context(process([sys.executable, HERE / "bare_app.py"], OURS))
        ours = Server("broadcaster", site.pid, site.url)
        bare = Server("bare uvicorn", child.pid, line.removeprefix("listening on "))
        for _ in range(rounds):
            requests = signed_requests(
                directory / "requests", f"{site.url}/v1/notify?topic=t", site.secrets, [b"0" * BODY_BYTES] * count
            )
            for server in (ours, bare):
                server.run(sender, requests, receiver.pid)
    print("| | notifies/s | CPU microseconds for each | sender and receiver busy |\n|---|---|---|---|")
    for server in (ours, bare):
        rate, cpu, others = (statistics.median(some) for some in (server.rates, server.cpu, server.others))
        print(f"| {server.name} | {rate:,.0f} | {cpu:.0f} | {others:.0%} |")
    ratio = statistics.median(ours.rates) / statistics.median(bare.rates)
    by_cpu = statistics.median(bare.cpu) / statistics.median(ours.cpu)
    print(f"\nbroadcaster / bare uvicorn: {ratio:.2f}; by the CPU time of each, {by_cpu:.2f}")
    record("ingest", broadcaster=statistics.median(ours.rates), bare=statistics.median(bare.rates))


if __name__ == "__main__":
    main()
