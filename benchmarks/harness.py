"""What the benchmarks share: pinned processes, their CPU time and memory, a receiver in C, a broadcaster to load.

The process that is measured has one core, everything else the others. Contestants take turns in one run, since the
machine is never the same twice; a round in which the receiver had no time left says nothing and is left out.
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
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import httpx

from httppubsubclient.protocol.credentials import secrets_from_json, sign_request
from httppubsubclient.protocol.signatures import content_digest

HERE = Path(__file__).parent
CORES = sorted(os.sched_getaffinity(0))
OURS, OTHERS = {CORES[0]}, set(CORES[1:]) or {CORES[0]}
"""The core of what is measured, and those of everything else."""
TICKS = os.sysconf("SC_CLK_TCK")


class NotTaken(Exception):
    """A contestant answered something else than success."""


@contextlib.contextmanager
def process(
    command: Sequence[str | Path], cores: set[int], cwd: str | Path | None = None
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process pinned to `cores`, with pipes, and its first line of output."""
    child = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
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


def ask(child: subprocess.Popen[str], question: str) -> str:
    """Write a line to a process and read its answer, a line too."""
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(question + "\n")
    child.stdin.flush()
    return child.stdout.readline().strip()


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far (/proc/<pid>/stat, fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def resident_bytes(pid: int, field: str = "VmRSS") -> int:
    """The memory of a process now; with VmHWM, the most it has had."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def compiled(name: str, directory: Path) -> str | None:
    """A program in C, compiled into `directory`; None where that cannot be done."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    program = directory / name
    if not program.exists():
        subprocess.run([compiler, "-O2", "-o", program, HERE / f"{name}.c"], check=True)
    return str(program)


def receiver_command(directory: Path, ports: int) -> list[str]:
    """The receiver in C, compiled now; in Python, with one port, where that cannot be done."""
    program = compiled("receiver", directory)
    return [sys.executable, str(HERE / "receiver.py"), str(ports)] if program is None else [program, str(ports)]


def record(benchmark: str, **row: object) -> None:
    """Append a row to the file behind --json on the command line, for plots.py; nothing without it."""
    if "--json" in sys.argv:
        with Path(sys.argv[sys.argv.index("--json") + 1]).open("a") as results:
            results.write(json.dumps({"benchmark": benchmark, **row}) + "\n")


@dataclass
class Broadcaster:
    """A running `httppubsubserver serve` with hmac in both directions."""

    pid: int
    url: str
    """http://127.0.0.1:port"""
    secrets: Path
    """Its subscriber-secrets.json"""


def set_up(site: Path) -> None:
    """Make the secrets of a broadcaster in a new directory."""
    setup: list[str | Path] = [sys.executable, "-m", "httppubsubserver", "--setup", "--directory", site]
    subprocess.run(setup, check=True, capture_output=True)


@contextlib.contextmanager
def broadcaster(site: Path, cores: set[int] = OURS, flags: Sequence[str] = ()) -> Iterator[Broadcaster]:
    """Serve, from a new directory or from one that was set up."""
    if not (site / "subscriber-secrets.json").exists():
        set_up(site)
    serve = [sys.executable, "-m", "httppubsubserver", "serve", "--port", "0", "--log-level", "error", *flags]
    with process(serve, cores, site) as (child, line):
        yield Broadcaster(child.pid, line.removeprefix("listening on "), site / "subscriber-secrets.json")


def subscribe(to: Broadcaster, callback: str, topics: Sequence[str], **options: object) -> None:
    """Make exact subscriptions to `topics` the whole set of one callback URL, through the API's PUT."""
    body = json.dumps({"subscriptions": [{"topic": topic, **options} for topic in topics]}).encode()
    query = f"url={quote(callback, safe='')}"
    headers = {"content-digest": content_digest(hashlib.sha256(body).digest())}
    headers |= sign_request(
        secrets_from_json(json.loads(to.secrets.read_text())).to_broadcasters,
        method="PUT",
        path="/v1/subscriptions",
        query=query,
        headers=headers,
        now=int(time.time()),
        nonce=os.urandom(16).hex(),
    )
    url = f"{to.url}/v1/subscriptions?{query}"
    # Without certificates, which nothing here needs: loading them takes longer than the rest.
    httpx.put(url, content=body, headers=headers, trust_env=False, verify=False).raise_for_status()


def callback_urls(ports: Sequence[str], subscribers: int) -> list[str]:
    """A URL for each subscriber, spread over the receiver's ports."""
    return [f"http://127.0.0.1:{ports[number % len(ports)]}/{number}" for number in range(subscribers)]


def publish(url: str, connections: int, seconds: float, secrets: Path | None) -> dict[str, float]:
    """Run publisher.py: `per_second`, `p50_ms`, `p99_ms`. Raises `NotTaken`."""
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
        raise NotTaken(done.stderr.strip().splitlines()[-1])
    result: dict[str, float] = json.loads(done.stdout)
    return result


@dataclass
class Round:
    """One contestant, once."""

    deliveries_per_second: float
    cpu_microseconds: float
    p50_ms: float
    p99_ms: float


class Contestant:
    """A server process and how to load it."""

    def __init__(self, name: str, pid: int, url: str, secrets: Path | None, connections: int) -> None:
        self.name, self.pid, self.url, self.secrets, self.connections = name, pid, url, secrets, connections
        self.rounds: list[Round] = []
        self.broken = False

    def run(self, receiver: int, subscribers: int, seconds: float) -> None:
        """One round, kept unless the receiver was the limit."""
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
        """Of the rounds that were kept; nan when there is none."""
        return statistics.median(getattr(taken, field) for taken in self.rounds) if self.rounds else float("nan")


class BareLoop(Contestant):
    """bare_loop.py: told over a pipe to run for so long; answers with its rate."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        super().__init__("bare loop", child.pid, "", None, 0)
        self.child = child

    def load(self, subscribers: int, seconds: float) -> tuple[float, float, float]:
        """See Contestant."""
        return float(ask(self.child, str(seconds))), 0.0, 0.0


def take_turns(contestants: Sequence[Contestant], receiver: int, subscribers: int, rounds: int, seconds: float) -> None:
    """Every contestant once a round. One that fails is out."""
    for _ in range(rounds):
        for contestant in contestants:
            try:
                if not contestant.broken:
                    contestant.run(receiver, subscribers, seconds)
            except NotTaken as error:
                contestant.broken = True
                print(f"({contestant.name} is out at {subscribers} subscribers: {error})", file=sys.stderr)
