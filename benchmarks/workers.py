"""What a second worker adds: deliveries a second of `serve --workers 2` beside those of `--workers 1`.

    python benchmarks/workers.py [--quick] [--json PATH]

100 subscribers, hmac in both directions, 64 connections of a publisher in C whose requests are signed before the clock
starts. Here nothing is pinned: broadcaster, receiver and publisher share all cores, so with two cores the most that two
workers can reach is what the receiver and the publisher leave them. That is why the CPU use of each is shown.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import tempfile
from pathlib import Path

from harness import CORES, Broadcaster, broadcaster, callback_urls, compiled, cpu_seconds, process, record, subscribe
from sender import BODY_BYTES, closed_loop, signed_requests

SUBSCRIBERS, PORTS, CONNECTIONS = 100, 8, 64
EVERYWHERE = set(CORES)


def processes(parent: int) -> list[int]:
    """A process and its children."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [parent, *map(int, children)]


class Setting:
    """A broadcaster with so many workers, and what came of it: deliveries/s, and cores used by each side."""

    def __init__(self, workers: int, site: Broadcaster) -> None:
        self.workers, self.site, self.pids = workers, site, processes(site.pid)
        self.rounds: list[list[float]] = []

    def run(self, sender: str, directory: Path, receiver: int, seconds: float) -> None:
        bodies = [b"0" * BODY_BYTES] * int(2_000 * seconds)
        requests = signed_requests(
            directory / "requests", f"{self.site.url}/v1/notify?topic=t", self.site.secrets, bodies
        )
        before, receiver_before = [cpu_seconds(pid) for pid in self.pids], cpu_seconds(receiver)
        result = closed_loop(sender, requests, CONNECTIONS, seconds, EVERYWHERE)
        used = [cpu_seconds(pid) - earlier for pid, earlier in zip(self.pids, before, strict=True)]
        if len(used) > 1:
            del used[0]  # the parent only looks after the others
        figures = [sum(used), min(used) / max(used), cpu_seconds(receiver) - receiver_before, result["cpu_seconds"]]
        figures = [figures[0] / result["seconds"], figures[1], *(x / result["seconds"] for x in figures[2:])]
        self.rounds.append([result["per_second"] * SUBSCRIBERS, *figures])

    def medians(self) -> list[float]:
        return [statistics.median(some) for some in zip(*self.rounds, strict=True)]


def main() -> None:
    quick = "--quick" in sys.argv
    seconds, rounds = (0.7, 3) if quick else (2.0, 7)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        sender, program = compiled("sender", directory), compiled("receiver", directory)
        if sender is None or program is None:
            raise SystemExit("this needs a C compiler: cc")
        receiver, line = stack.enter_context(process([program, str(PORTS)], EVERYWHERE))
        settings = []
        for workers in (1, 2):
            flags = ("--workers", str(workers))
            site = stack.enter_context(broadcaster(directory / f"site{workers}", EVERYWHERE, flags))
            for target in callback_urls(line.split(), SUBSCRIBERS):
                subscribe(site, target, ["t"])
            settings.append(Setting(workers, site))
        for _ in range(rounds):
            for setting in settings:
                setting.run(sender, directory, receiver.pid, seconds)
    print(f"{len(CORES)} cores for everything. Cores used:\n")
    print("| workers | deliveries/s | by the workers | least / most busy worker | by the receiver | by the publisher |")
    print("|---|---|---|---|---|---|")
    for setting in settings:
        rate, used, balance, receiving, sending = setting.medians()
        print(f"| {setting.workers} | {rate:,.0f} | {used:.2f} | {balance:.2f} | {receiving:.2f} | {sending:.2f} |")
        record("workers", workers=setting.workers, deliveries_per_second=rate, cores=used, receiver=receiving)
    rates = [setting.medians()[0] for setting in settings]
    per_core = [setting.medians()[0] / setting.medians()[1] for setting in settings]
    print(f"\n2 workers / 1 worker: {rates[1] / rates[0]:.2f}; for each core used: {per_core[1] / per_core[0]:.2f}")


if __name__ == "__main__":
    main()
