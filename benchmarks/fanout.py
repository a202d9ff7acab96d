"""Deliveries a second of a whole broadcaster, beside what one would write by hand and beside a bare loop.

    python benchmarks/fanout.py [--quick]

Each contestant is a process of its own on one core; the receiver (C, if there is a compiler) and the publisher share
the other one. They take turns, several rounds each; the table shows medians, and ratios are of medians.

- *broadcaster*: `httppubsubserver serve`, hmac in both directions: ingest, matching, signing, retries, counting.
- *httpx*, *aiohttp*: a FastAPI application with `asyncio.gather` over that client, nothing signed (by_hand.py).
- *bare loop*: the broadcaster's own connections, sending prepared bytes, without anything else around them.

A round in which the receiver had no time left is not reported: then it, not the contestant, was measured.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import httpx

from httppubsubclient.protocol.credentials import secrets_from_json, sign_request
from httppubsubclient.protocol.signatures import content_digest

HERE = Path(__file__).parent
CORES = sorted(os.sched_getaffinity(0))
OURS, OTHERS = {CORES[0]}, set(CORES[1:]) or {CORES[0]}
TICKS = os.sysconf("SC_CLK_TCK")
PORTS = 8
"""Subscribers are spread over so many hosts."""


@dataclass
class Round:
    """One contestant, once."""

    deliveries_per_second: float
    cpu_microseconds: float
    p50_ms: float
    p99_ms: float


@contextlib.contextmanager
def process(command: list[str], cores: set[int], cwd: str | None = None) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process pinned to `cores`, and its first line of output."""
    child = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=cwd,
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
    )
    try:
        assert child.stdout is not None
        yield child, child.stdout.readline().strip()
    finally:
        child.terminate()
        child.wait()


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far (/proc/<pid>/stat, fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def receiver_command(directory: Path) -> list[str]:
    """The receiver in C, compiled now; in Python where that cannot be done."""
    compiler = shutil.which("cc")
    if compiler is None:
        return [sys.executable, str(HERE / "receiver.py"), str(PORTS)]
    program = directory / "receiver"
    subprocess.run([compiler, "-O2", "-o", program, HERE / "receiver.c"], check=True)
    return [str(program), str(PORTS)]


class NotTaken(Exception):
    """A contestant answered something else than success."""


def publish(url: str, connections: int, seconds: float, secrets: Path | None) -> dict[str, float]:
    command = [sys.executable, str(HERE / "publisher.py"), url, str(connections), str(seconds)]
    if secrets is not None:
        command.append(str(secrets))
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: os.sched_setaffinity(0, OTHERS),
    )
    if done.returncode != 0:
        raise NotTaken(done.stderr.strip().splitlines()[0])
    result: dict[str, float] = json.loads(done.stdout)
    return result


class Contestant:
    """A server process and how to load it."""

    def __init__(self, name: str, pid: int, url: str, secrets: Path | None, connections: int) -> None:
        self.name, self.pid, self.url, self.secrets, self.connections = name, pid, url, secrets, connections
        self.rounds: list[Round] = []
        self.broken = False

    def run(self, receiver: int, subscribers: int, seconds: float) -> None:
        before, receiver_before, start = cpu_seconds(self.pid), cpu_seconds(receiver), time.perf_counter()
        rate, p50_ms, p99_ms = self.load(subscribers, seconds)
        elapsed = time.perf_counter() - start
        busy = (cpu_seconds(receiver) - receiver_before) / elapsed
        if busy > 0.9:
            print(f"(a round of {self.name} is left out: the receiver was busy {busy:.0%} of it)", file=sys.stderr)
            return
        cpu = (cpu_seconds(self.pid) - before) / (rate * elapsed) * 1e6
        self.rounds.append(Round(rate, cpu, p50_ms, p99_ms))

    def load(self, subscribers: int, seconds: float) -> tuple[float, float, float]:
        """Deliveries a second; milliseconds until a notify is answered, median and 99th of a hundred."""
        result = publish(f"{self.url}/v1/notify?topic=t", self.connections, seconds, self.secrets)
        return result["per_second"] * subscribers, result["p50_ms"], result["p99_ms"]

    def median(self, field: str) -> float:
        return statistics.median(getattr(taken, field) for taken in self.rounds) if self.rounds else float("nan")


class BareLoop(Contestant):
    """Told over a pipe to run for so long; answers with its rate."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        super().__init__("bare loop", child.pid, "", None, 0)
        self.child = child

    def load(self, subscribers: int, seconds: float) -> tuple[float, float, float]:
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        self.child.stdin.write(f"{seconds}\n")
        self.child.stdin.flush()
        return float(self.child.stdout.readline()), 0.0, 0.0


def subscribe_all(site: Path, url: str, ports: list[str], subscribers: int) -> None:
    """So many subscriptions to `t`, made through the API's PUT."""

    credentials = secrets_from_json(json.loads((site / "subscriber-secrets.json").read_text())).to_broadcasters
    body = json.dumps({"subscriptions": [{"topic": "t"}]}).encode()
    for number in range(subscribers):
        callback = f"http://127.0.0.1:{ports[number % len(ports)]}/{number}"
        query = f"url={quote(callback, safe='')}"
        headers = {"content-digest": content_digest(hashlib.sha256(body).digest())}
        headers |= sign_request(
            credentials,
            method="PUT",
            path="/v1/subscriptions",
            query=query,
            headers=headers,
            now=int(time.time()),
            nonce=os.urandom(16).hex(),
        )
        httpx.put(f"{url}/v1/subscriptions?{query}", content=body, headers=headers, trust_env=False).raise_for_status()


def measure(subscribers: int, rounds: int, seconds: float, directory: Path) -> None:
    """One row of the table."""
    connections = 64 if subscribers == 1 else 16
    with contextlib.ExitStack() as stack:
        receiver, line = stack.enter_context(process(receiver_command(directory), OTHERS))
        ports = line.split()
        site = directory / f"site{subscribers}"
        subprocess.run(
            [sys.executable, "-m", "httppubsubserver", "--setup", "--directory", site], check=True, capture_output=True
        )
        serve = [sys.executable, "-m", "httppubsubserver", "serve", "--port", "0", "--log-level", "error"]
        ours, line = stack.enter_context(process(serve, OURS, str(site)))
        url = line.removeprefix("listening on ")
        subscribe_all(site, url, ports, subscribers)
        secrets = site / "subscriber-secrets.json"
        contestants = [Contestant("broadcaster", ours.pid, url, secrets, connections)]
        targets = [f"http://127.0.0.1:{ports[n % len(ports)]}/{n}" for n in range(subscribers)]
        for library in ("httpx", "aiohttp"):
            command = [sys.executable, str(HERE / "by_hand.py"), library, *targets]
            child, line = stack.enter_context(process(command, OURS))
            # One pool of httpx slows down with the requests in flight, and fails beyond: it does best with few.
            few = 2 if library == "httpx" and subscribers > 1 else connections
            contestants.append(Contestant(library, child.pid, line.removeprefix("listening on "), None, few))
        bare = subprocess.Popen(
            [sys.executable, str(HERE / "bare_loop.py"), *targets],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: os.sched_setaffinity(0, OURS),
        )
        stack.callback(bare.wait)
        stack.callback(bare.kill)
        contestants.append(BareLoop(bare))
        for _ in range(rounds):
            for contestant in contestants:
                try:
                    if not contestant.broken:
                        contestant.run(receiver.pid, subscribers, seconds)
                except NotTaken as error:
                    contestant.broken = True
                    print(f"({contestant.name} is out at {subscribers} subscribers: {error})", file=sys.stderr)
        report(subscribers, contestants)


def report(subscribers: int, contestants: list[Contestant]) -> None:
    ours, with_httpx, with_aiohttp, bare = contestants
    rates = [contestant.median("deliveries_per_second") for contestant in contestants]
    print(
        f"| {subscribers} | {rates[0]:,.0f} ({ours.median('cpu_microseconds'):.0f}) "
        f"| {ours.median('p50_ms'):.1f} / {ours.median('p99_ms'):.1f} "
        f"| {rates[1]:,.0f} ({with_httpx.median('cpu_microseconds'):.0f}) "
        f"| {rates[2]:,.0f} ({with_aiohttp.median('cpu_microseconds'):.0f}) "
        f"| {rates[3]:,.0f} ({bare.median('cpu_microseconds'):.0f}) "
        f"| {rates[0] / rates[1]:.0f} | {rates[0] / rates[2]:.1f} | {rates[0] / rates[3]:.2f} |",
        flush=True,
    )


def main() -> None:
    quick = "--quick" in sys.argv
    print("Deliveries/s (CPU microseconds of the contestant for each), ms until a notify is answered, ratios.\n")
    print("| subscribers | broadcaster | p50 / p99 | httpx | aiohttp | bare loop | /httpx | /aiohttp | /bare |")
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as directory:
        for subscribers in (1, 100) if quick else (1, 10, 100, 1000):
            measure(subscribers, 3 if quick else 5, 1.0 if quick else 2.0, Path(directory))


if __name__ == "__main__":
    main()
