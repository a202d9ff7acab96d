"""What one might weigh the broadcaster against: delivered messages a second of 100 bytes, on one topic.

    python benchmarks/peers.py [--quick]

Every server has one core to itself, and all that loads it shares the others. Servers take turns, several rounds each;
the table shows medians. Peers are had from Debian's packages and from PyPI, see peer_servers.py; where one cannot be
had, its row says why. peer_load.c is publisher and subscriber of all that hold connections, so it needs a compiler;
the broadcaster has publisher.py and receiver.c, like in fanout.py.
"""

from __future__ import annotations

import contextlib
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
from harness import (
    HERE,
    OTHERS,
    Broadcaster,
    NotTaken,
    ask,
    broadcaster,
    callback_urls,
    cpu_seconds,
    process,
    publish,
    receiver_command,
    subscribe,
)
from peer_servers import PEERS, Server
from venvs import NotInstalled

SECONDS, QUICK_SECONDS = 220, 35
"""What all of it may take, on a busy machine too: what would begin later is left out."""
PATIENCE = 20.0
"""Seconds that a round may take beyond its own."""
BUSY = 0.85
"""The share of the time, running or waiting to run, from which on a side counts as the limit."""

NOTES = """
`*` The load had no CPU left: the server could do more, see its microseconds.
`~` Neither side wanted all of its core: they waited for each other.
`!` Messages were lost.

What is comparable with what:

- The broadcaster is the only one here that calls its subscribers back: one POST per message and subscriber, answered
  with a status. All others hold a connection for each subscriber and write into it. A subscriber that is down, asleep
  or scaled to nothing costs the broadcaster nothing; with the others it has to come back and connect.
- The broadcaster signs and verifies (hmac, in both directions). No other one does: they are measured without TLS,
  without passwords and without signatures.
- Redis, NATS, mosquitto (QoS 0) and nchan (without its buffer) deliver at most once and forget; so does
  fastapi-websocket-pubsub, which waits for the answer of each subscriber before it calls the next. The broadcaster
  sees the answer to every POST and tries again what failed.
- Nothing persists messages here. The broadcaster keeps its subscriptions in SQLite, where they outlive a restart; the
  others know their subscribers only as long as these are connected.
- Redis and NATS collect what they have for a connection: with 100 subscribers one system call wrote some 150 messages
  (/proc/<pid>/io). mosquitto and nchan need one or more for each message, like the broadcaster for each POST, which is
  also answered.
- nchan loses messages beyond 32,767 a second on one channel and is not asked for more than 30,000: with one subscriber
  its row shows that limit, and its microseconds what the server would have left.
"""


def wanted_seconds(pid: int) -> float:
    """What a process had of a core so far and what it waited for one (/proc/<pid>/task/<thread>/schedstat)."""
    total = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            run, waited, _ = (thread / "schedstat").read_text().split()
            total += int(run) + int(waited)
    return total / 1e9


SERVERS = ["httppubsubserver", *PEERS]


@dataclass
class Round:
    """One server, once."""

    per_second: float
    cpu_microseconds: float
    server_busy: float
    load_busy: float
    lost: int


class OutOfTime(Exception):
    """The run has taken as long as it may."""


class Deadline:
    """When to begin nothing more."""

    def __init__(self, seconds: float) -> None:
        self.at = time.monotonic() + seconds

    def check(self) -> None:
        """Raises `OutOfTime`."""
        if time.monotonic() > self.at:
            raise OutOfTime("no time left")


Turn = Callable[[float], Round]
"""Load a server for so many seconds."""


def held_connections(server: Server, load: subprocess.Popen[str]) -> Turn:
    """Of a server that peer_load.c is connected to."""

    def turn(seconds: float) -> Round:
        before, start = cpu_seconds(server.pid), time.perf_counter()
        server_before, load_before = wanted_seconds(server.pid), wanted_seconds(load.pid)
        watchdog = threading.Timer(seconds + PATIENCE, load.kill)
        watchdog.start()
        answer = ask(load, str(seconds)).split()
        watchdog.cancel()
        if len(answer) != 4:
            raise NotTaken("the load broke off")
        in_time, elapsed, in_all, lost = int(answer[0]), float(answer[1]), int(answer[2]), int(answer[3])
        whole, cpu = time.perf_counter() - start, cpu_seconds(server.pid) - before
        server_busy = (wanted_seconds(server.pid) - server_before) / whole
        load_busy = (wanted_seconds(load.pid) - load_before) / whole
        return Round(in_time / elapsed, cpu / max(in_all, 1) * 1e6, server_busy, load_busy, lost)

    return turn


def callbacks(ours: Broadcaster, receiver: int, subscribers: int) -> Turn:
    """Of the broadcaster."""

    def children() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    def turn(seconds: float) -> Round:
        before, start = cpu_seconds(ours.pid), time.perf_counter()
        server_before, load_before = wanted_seconds(ours.pid), wanted_seconds(receiver) + children()
        url, connections = f"{ours.url}/v1/notify?topic=t", 64 if subscribers == 1 else 16
        rate = publish(url, connections, seconds, ours.secrets)["per_second"] * subscribers
        whole, cpu = time.perf_counter() - start, cpu_seconds(ours.pid) - before
        # The publisher needs a moment to start, in which nothing is published.
        server_busy = (wanted_seconds(ours.pid) - server_before) / seconds
        load_busy = (wanted_seconds(receiver) + children() - load_before) / whole
        return Round(rate, cpu / (rate * seconds) * 1e6, server_busy, load_busy, 0)

    return turn


def start_ours(stack: contextlib.ExitStack, directory: Path, subscribers: int, deadline: Deadline) -> Turn:
    """Raises `OutOfTime`."""
    receiver, line = stack.enter_context(process(receiver_command(directory, 8), OTHERS))
    ours = stack.enter_context(broadcaster(directory / "site"))
    for target in callback_urls(line.split(), subscribers):
        deadline.check()
        subscribe(ours, target, ["t"])
    return callbacks(ours, receiver.pid, subscribers)


def start_peer(stack: contextlib.ExitStack, name: str, directory: Path, program: Path, subscribers: int) -> Turn:
    """Raises `NotInstalled`."""
    server = stack.enter_context(PEERS[name](directory))
    wire = server.wire
    in_flight = max(2, min(wire.in_flight, wire.outstanding // subscribers))
    numbers = [server.port, subscribers, wire.publishers, in_flight, wire.most_per_second]
    load, line = stack.enter_context(process([program, *map(str, numbers), *wire.arguments()], OTHERS))
    if not line.startswith("ready"):
        raise NotInstalled("the load cannot talk to it")
    return held_connections(server, load)


def measure(
    subscribers: int, rounds: int, seconds: float, directory: Path, missing: dict[str, str], deadline: Deadline
) -> dict[str, str]:
    """One column: a cell for each server; `missing` says why one cannot be had, and is told of more."""
    taken: dict[str, list[Round]] = {}
    turns: dict[str, Turn] = {}
    cells = dict(missing)
    with contextlib.ExitStack() as stack:
        for name in SERVERS:
            place = directory / f"{name.split()[0]}-{subscribers}"
            place.mkdir()
            try:
                deadline.check()
                if name == SERVERS[0]:
                    turns[name] = start_ours(stack, place, subscribers, deadline)
                elif name not in missing:
                    turns[name] = start_peer(stack, name, place, directory / "peer_load", subscribers)
            except NotInstalled as error:
                cells[name] = missing[name] = str(error)
            except (OutOfTime, OSError, subprocess.SubprocessError, httpx.HTTPError) as error:
                cells[name] = str(error)
        for _ in range(rounds):
            for name, turn in turns.items():
                try:
                    deadline.check()
                    taken.setdefault(name, []).append(turn(seconds))
                except (NotTaken, OutOfTime, OSError) as error:
                    cells[name] = str(error)
    return cells | {name: cell(rounds) for name, rounds in taken.items() if rounds}


def cell(rounds: list[Round]) -> str:
    per_second = statistics.median(one.per_second for one in rounds)
    cpu = statistics.median(one.cpu_microseconds for one in rounds)
    mark = "!" if any(one.lost for one in rounds) else ""
    if statistics.median(one.load_busy for one in rounds) > BUSY:
        mark += "*"
    elif statistics.median(one.server_busy for one in rounds) < BUSY:
        mark += "~"
    return f"{per_second:,.0f}{mark} ({cpu:.{1 if cpu < 10 else 0}f})"


def main() -> None:
    # Ended by a signal, it still ends what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 20_000)), hard))
    quick = "--quick" in sys.argv
    deadline = Deadline(QUICK_SECONDS if quick else SECONDS)
    sizes = (1, 100) if quick else (1, 100, 1000)
    missing: dict[str, str] = {}
    columns: list[dict[str, str]] = []
    with tempfile.TemporaryDirectory() as path:
        directory = Path(path)
        compiler = shutil.which("cc")
        if compiler is None:
            missing.update(dict.fromkeys(PEERS, "the load needs a C compiler, and there is none"))
        else:
            subprocess.run([compiler, "-O2", "-o", directory / "peer_load", HERE / "peer_load.c"], check=True)
        for subscribers in sizes:
            rounds, seconds = (1, 1.0) if quick else (3, 2.0)
            columns.append(measure(subscribers, rounds, seconds, directory, missing, deadline))
    print("Delivered messages/s (CPU microseconds of the server for each) by number of subscribers.\n")
    print("| server | " + " | ".join(f"{subscribers:,}" for subscribers in sizes) + " |")
    print("|---|" + "---|" * len(sizes))
    for name in SERVERS:
        print(f"| {name} | " + " | ".join(column[name] for column in columns) + " |")
    print(NOTES)


if __name__ == "__main__":
    main()
