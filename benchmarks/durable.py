"""Durable delivery: accepting beside a raw SQLite loop, draining a backlog beside best effort, memory, fairness.

    python benchmarks/durable.py [--quick] [--only accept,drain,memory,fairness] [--directory PATH] [--json PATH]

Everything lies on a disk, in the repository or in PATH, and what is promised to last is flushed to it. 100 bytes, hmac
in both directions. What is compared takes turns in one run; the tables show medians.

- *accept*: notifies a second while the subscriber is away, so that only accepting is measured, beside durable_loops.py,
  which writes the same rows on the same core in transactions of as many messages as the broadcaster's had on average.
- *drain*: a backlog is there when the broadcaster starts; deliveries a second, from the first that arrives to the last.
  Then best effort of the same broadcaster to the same URLs.
- *memory*: of the broadcaster while very much is pending, and while that drains.
- *fairness*: how long fresh durable messages to ten endpoints take, beside one with a backlog.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import socket
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from subprocess import Popen
from sys import executable
from urllib.parse import urlsplit

from durable_site import BODY, Counting, file_system, fill, flush_milliseconds, on_disk, transactions
from harness import (
    HERE,
    OTHERS,
    OURS,
    Broadcaster,
    ask,
    broadcaster,
    callback_urls,
    compiled,
    cpu_seconds,
    process,
    record,
    resident_bytes,
    set_up,
    subscribe,
)
from sender import closed_loop, open_loop, signed_requests

ASYNC = {"prefer": "respond-async"}
NO_LIMIT_SECONDS = 600.0
PORTS = 8
HEALTHY, HEALTHY_PER_SECOND = 10, 50
MEBIBYTE = 1024 * 1024


@dataclass
class Bench:
    """The programs that all parts use, and how much of it there shall be."""

    directory: Path
    sender: str
    receiver: str
    quick: bool

    def site(self, name: str) -> Path:
        """A directory with secrets, for one broadcaster."""
        site = self.directory / name
        set_up(site)
        return site

    @contextlib.contextmanager
    def receiving(self, ports: int) -> Iterator[tuple[Counting, list[str]]]:
        """A receiver that counts, and its ports."""
        with process([self.receiver, str(ports), "latency"], OTHERS) as (child, line):
            yield Counting(child), line.split()

    def send(self, site: Broadcaster, topic: str, count: int, at_once: int, *, wait: bool = True) -> dict[str, float]:
        """So many notifies over so many connections; `wait`: for the deliveries."""
        requests = signed_requests(
            self.directory / "requests",
            f"{site.url}/v1/notify?topic={topic}",
            site.secrets,
            [BODY] * count,
            {} if wait else ASYNC,
        )
        port = urlsplit(site.url).port or 80
        return closed_loop(self.sender, replace(requests, port=port), at_once, NO_LIMIT_SECONDS)


@contextlib.contextmanager
def endpoint(accepts: bool) -> Iterator[str]:
    """A URL that hangs, because nobody answers there, or one at which connections are refused."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        if accepts:
            listening.listen(4096)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"


def database(site: Path) -> Path:
    """The file of a broadcaster that was set up there."""
    return site / "httppubsub.sqlite3"


# -- accept -----------------------------------------------------------------------------------------------------------


def accept(bench: Bench) -> None:
    print("## Accepting: messages a second\n")
    print(
        "| publishers | away | messages / commit | raw loop | store alone | delivered at once | best effort "
        "| away / raw | delivered / raw | store / raw | away / best effort |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    rounds = 2 if bench.quick else 5
    for publishers, count in ((1, 1_000), (8, 5_000), (64, 10_000), (256, 10_000)):
        _accept_row(bench, publishers, count // 4 if bench.quick else count, rounds)
    print()


def _accept_row(bench: Bench, publishers: int, count: int, rounds: int) -> None:
    rates: dict[str, list[float]] = defaultdict(list)
    with contextlib.ExitStack() as stack:
        _, ports = stack.enter_context(bench.receiving(1))
        away = stack.enter_context(endpoint(accepts=False))
        site = stack.enter_context(broadcaster(bench.site(f"accept{publishers}")))
        subscribe(site, away, ["away"], delivery="durable")
        subscribe(site, f"http://127.0.0.1:{ports[0]}/d", ["delivered"], delivery="durable")
        subscribe(site, f"http://127.0.0.1:{ports[0]}/b", ["best"])
        loops = {how: stack.enter_context(loop(bench, how, publishers)) for how in ("raw", "store")}
        bench.send(site, "away", 200, 4)  # until nobody expects it to answer
        for _ in range(rounds):
            file = database(bench.directory / f"accept{publishers}")
            before = transactions(file)
            rates["away"].append(bench.send(site, "away", count, publishers)["per_second"])
            group = count / (transactions(file) - before)
            rates["group"].append(group)
            for how, child in loops.items():
                at_once = max(1, round(group)) if how == "raw" else publishers
                rates[how].append(float(ask(child, f"{count} {at_once}")))
            for topic in ("delivered", "best"):
                rates[topic].append(bench.send(site, topic, count, publishers)["per_second"])
    median = {name: statistics.median(some) for name, some in rates.items()}
    record("durable_accept", publishers=publishers, **median)
    print(
        f"| {publishers} | {median['away']:,.0f} | {median['group']:.1f} | {median['raw']:,.0f} "
        f"| {median['store']:,.0f} | {median['delivered']:,.0f} | {median['best']:,.0f} "
        f"| {median['away'] / median['raw']:.2f} | {median['delivered'] / median['raw']:.2f} "
        f"| {median['store'] / median['raw']:.2f} | {median['away'] / median['best']:.2f} |",
        flush=True,
    )


@contextlib.contextmanager
def loop(bench: Bench, how: str, publishers: int) -> Iterator[Popen[str]]:
    """durable_loops.py on the core of the broadcaster."""
    file = bench.directory / f"{how}{publishers}.sqlite3"
    with process([executable, HERE / "durable_loops.py", how, file], OURS) as (child, line):
        assert line == "ready", line
        yield child


# -- drain ------------------------------------------------------------------------------------------------------------


def drain(bench: Bench) -> None:
    pending, rounds = (20_000, 1) if bench.quick else (100_000, 3)
    cases = ((1, 1), (100, 1), (100, 100))
    taken: dict[tuple[int, int], list[tuple[float, ...]]] = defaultdict(list)
    for number in range(rounds):
        for endpoints, spread in cases:
            name = f"drain{endpoints}-{spread}-{number}"
            taken[endpoints, spread].append(_drain_once(bench, name, endpoints, pending, spread))
    medians = {case: [statistics.median(each) for each in zip(*some, strict=True)] for case, some in taken.items()}
    fan_out = medians[100, 100][2]
    print(f"## Draining {pending:,}: deliveries a second (CPU microseconds of the broadcaster for each)\n")
    print("| endpoints | messages | drained | best effort, the same messages | ratio | to best effort to 100 at once |")
    print("|---|---|---|---|---|---|")
    for (endpoints, spread), (rate, cpu, best, best_cpu) in medians.items():
        print(
            f"| {endpoints} | {pending // spread:,} | {rate:,.0f} ({cpu * 1e6:.0f}) "
            f"| {best:,.0f} ({best_cpu * 1e6:.0f}) | {rate / best:.2f} | {rate / fan_out:.2f} |"
        )
        record("durable_drain", endpoints=endpoints, spread=spread, drained=rate, best=best)
    print(flush=True)


def _drain_once(
    bench: Bench, name: str, endpoints: int, pending: int, spread: int
) -> tuple[float, float, float, float]:
    """Deliveries a second and CPU seconds for each: of the backlog, and of best effort."""
    site = bench.site(name)
    with bench.receiving(PORTS) as (counting, ports):
        urls = callback_urls(ports, endpoints)
        fill(database(site), {b"t": urls}, deliveries=pending, spread=spread)
        # One message goes to as many subscribers as one of the backlog does.
        fill(database(site), {(b"b%d" % n): urls[n : n + spread] for n in range(0, endpoints, spread)}, durable=False)
        counting.reset()
        with broadcaster(site) as ours:
            before = cpu_seconds(ours.pid)
            drained = counting.rate(pending)
            cpu = (cpu_seconds(ours.pid) - before) / pending
            best, best_cpu = _best_effort(bench, ours, pending, spread)
    return drained, cpu, best, best_cpu


def _best_effort(bench: Bench, ours: Broadcaster, pending: int, spread: int) -> tuple[float, float]:
    """Up to as many messages by HTTP; a notify is answered when all that one goes to have confirmed it."""
    count, connections = (min(pending, 20_000), 64) if spread == 1 else (min(pending, 100_000) // spread, 16)
    bench.send(ours, "b0", connections, connections)
    before = cpu_seconds(ours.pid)
    rate = bench.send(ours, "b0", count, connections)["per_second"] * spread
    return rate, (cpu_seconds(ours.pid) - before) / (count * spread)


# -- memory -----------------------------------------------------------------------------------------------------------


def memory(bench: Bench) -> None:
    pending, seconds = (100_000, 3.0) if bench.quick else (1_000_000, 20.0)
    with bench.receiving(PORTS) as (counting, ports):
        idle = _peak(bench.site("memory0"), 1.0)
        site = bench.site("memory1")
        fill(database(site), {b"t": callback_urls(ports, 100)}, deliveries=pending)
        counting.receiver.send_signal(signal.SIGSTOP)
        waiting = _peak(site, seconds)
        counting.receiver.send_signal(signal.SIGCONT)
        counting.reset()
        draining = _peak(site, seconds)
        drained = json.loads(ask(counting.receiver, "count"))["count"]
    print(f"## Memory with {pending:,} pending: MiB of the broadcaster, at most\n")
    print(f"| nothing pending | all subscribers hang | while {drained:,} of it drain |\n|---|---|---|")
    print("| " + " | ".join(f"{some / MEBIBYTE:.0f}" for some in (idle, waiting, draining)) + " |\n", flush=True)
    record("durable_memory", pending=pending, idle=idle, waiting=waiting, draining=draining)


def _peak(site: Path, seconds: float) -> int:
    """The most memory that a broadcaster has had after so long."""
    with broadcaster(site) as ours:
        time.sleep(seconds)
        return resident_bytes(ours.pid, "VmHWM")


# -- fairness ---------------------------------------------------------------------------------------------------------


def fairness(bench: Bench) -> None:
    pending, rounds, seconds = (20_000, 1, 2.0) if bench.quick else (100_000, 3, 5.0)
    print(
        f"## Fairness: milliseconds until a fresh message has arrived at {HEALTHY} endpoints, {HEALTHY_PER_SECOND} "
        f"messages a second, beside one endpoint with {pending:,} pending\n"
    )
    print("| that one | p50 | p99 | longest |\n|---|---|---|---|")
    rows: dict[str, list[dict[str, float]]] = defaultdict(list)
    with (
        endpoint(accepts=False) as refusing,
        endpoint(accepts=True) as hanging,
        bench.receiving(1) as (_, ports),
    ):
        others = {
            "is not there": None,
            "refuses": refusing,
            "hangs": hanging,
            "drains": f"http://127.0.0.1:{ports[0]}/",
        }
        for number in range(rounds):
            for what, url in others.items():
                site = bench.site(f"fairness{number}-{what.replace(' ', '')}")
                rows[what].append(_healthy(bench, site, url, pending, seconds))
    for what, some in rows.items():
        p50, p99, longest = (statistics.median(each[name] for each in some) for name in ("p50_ms", "p99_ms", "max_ms"))
        print(f"| {what} | {p50:.1f} | {p99:.1f} | {longest:.1f} |")
        record("durable_fairness", beside=what, p50_ms=p50, p99_ms=p99, max_ms=longest)
    print(flush=True)


def _healthy(bench: Bench, site: Path, sick: str | None, pending: int, seconds: float) -> dict[str, float]:
    """Latencies of those that work, beside one that has a backlog."""
    if sick is not None:
        fill(database(site), {b"backlog": [sick]}, deliveries=pending)
    with bench.receiving(1) as (counting, ports):
        fill(database(site), {b"healthy": callback_urls(ports, HEALTHY)})
        with broadcaster(site) as ours:
            bench.send(ours, "healthy", 20, 1)
            counting.reset()
            open_loop(
                bench.sender,
                bench.directory / "requests",
                f"{ours.url}/v1/notify?topic=healthy",
                ours.secrets,
                connections=64,
                per_second=HEALTHY_PER_SECOND,
                seconds=seconds,
            )
            measured: dict[str, float] = json.loads(ask(counting.receiver, "report"))
    return measured


PARTS: dict[str, Callable[[Bench], None]] = {"accept": accept, "drain": drain, "memory": memory, "fairness": fairness}


def parts_of(text: str) -> Sequence[str]:
    """Names, with commas between them."""
    return text.split(",")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", type=parts_of, default=list(PARTS))
    parser.add_argument("--directory", type=Path)
    parser.add_argument("--json")
    options = parser.parse_args()
    with on_disk(options.directory) as directory:
        sender, receiver = compiled("sender", directory), compiled("receiver", directory)
        if sender is None or receiver is None:
            raise SystemExit("this needs a C compiler: cc")
        flush = flush_milliseconds(directory)
        print(f"On {file_system(directory)}; writing 4 KiB and having them on the disk takes {flush:.2f} ms.\n")
        bench = Bench(directory, sender, receiver, options.quick)
        for part in options.only:
            PARTS[part](bench)


if __name__ == "__main__":
    main()
