"""How long a message takes from the moment its notify was due to each of 100 subscribers, at half load.

    python benchmarks/latency.py [--quick] [--json PATH]

The broadcaster (hmac in both directions) beside the bare loop as a relay (bare_loop.py). First each one's maximum with
16 connections that publish without a pause, then half of that in an open loop: the schedule does not wait for answers,
a body carries the moment at which it was due, and the receiver (C) counts how long after that it has arrived. They
take turns; the figures are medians over the rounds of each round's median, 99th of a hundred, and longest.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from harness import (
    HERE,
    OTHERS,
    OURS,
    ask,
    broadcaster,
    callback_urls,
    compiled,
    cpu_seconds,
    process,
    record,
    subscribe,
)
from sender import BODY_BYTES, closed_loop, open_loop, signed_requests

SUBSCRIBERS, PORTS = 100, 8
CONNECTIONS_AT_MOST, CONNECTIONS = 16, 64
"""To find the maximum; in the open loop, where most of them are idle."""


@dataclass
class Relay:
    """A process that passes on what is published."""

    name: str
    url: str
    secrets: Path | None
    maximum: float = 0.0
    """Notifies a second."""
    rounds: dict[str, list[dict[str, float]]] = field(default_factory=dict)

    def median(self, load: str, figure: str) -> float:
        return statistics.median(taken[figure] for taken in self.rounds[load])


class Bench:
    """The receiver, the sender and whoever stands between."""

    def __init__(self, directory: Path, sender: str, receiver: subprocess.Popen[str]) -> None:
        self.directory, self.sender, self.receiver = directory, sender, receiver

    def maximum(self, relay: Relay, seconds: float) -> float:
        """Notifies a second of connections that never pause. What is signed for it is certainly enough."""
        bodies = [b"0" * BODY_BYTES] * int(2000 * seconds)
        requests = signed_requests(self.directory / "requests", relay.url, relay.secrets, bodies)
        return closed_loop(self.sender, requests, CONNECTIONS_AT_MOST, seconds)["per_second"]

    def latency(self, relay: Relay, per_second: float, seconds: float) -> dict[str, float]:
        """What the receiver has measured at so many notifies a second."""
        ask(self.receiver, "reset")
        before = cpu_seconds(self.receiver.pid)
        sent = open_loop(
            self.sender,
            self.directory / "requests",
            relay.url,
            relay.secrets,
            connections=CONNECTIONS,
            per_second=per_second,
            seconds=seconds,
        )
        busy = (cpu_seconds(self.receiver.pid) - before + sent["cpu_seconds"]) / sent["seconds"]
        measured: dict[str, float] = json.loads(ask(self.receiver, "report"))
        assert measured["count"] == int(sent["count"]) * SUBSCRIBERS, (measured, sent)
        return measured | {"busy": busy, "late_p99_ms": sent["late_p99_ms"]}


def main() -> None:
    quick = "--quick" in sys.argv
    seconds, rounds = (0.7, 2) if quick else (3.0, 5)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        sender, receiver_program = compiled("sender", directory), compiled("receiver", directory)
        if sender is None or receiver_program is None:
            raise SystemExit("this needs a C compiler: cc")
        receiver, ports = stack.enter_context(process([receiver_program, str(PORTS), "latency"], OTHERS))
        targets = callback_urls(ports.split(), SUBSCRIBERS)
        site = stack.enter_context(broadcaster(directory / "site"))
        for target in targets:
            subscribe(site, target, ["t"])
        command: list[str | Path] = [sys.executable, HERE / "bare_loop.py", "relay", *targets]
        _, line = stack.enter_context(process(command, OURS))
        ours = Relay("broadcaster", f"{site.url}/v1/notify?topic=t", site.secrets)
        bare = Relay("bare loop", f"{line.removeprefix('listening on ')}/v1/notify?topic=t", site.secrets)
        bench = Bench(directory, sender, receiver)
        maxima: dict[str, list[float]] = {ours.name: [], bare.name: []}
        for _ in range(rounds):
            for relay in (ours, bare):
                maxima[relay.name].append(bench.maximum(relay, seconds / 2))
        for relay in (ours, bare):
            relay.maximum = statistics.median(maxima[relay.name])
        for _ in range(rounds):
            for relay in (ours, bare):
                for load, notifies in (("its own", relay.maximum / 2), ("the broadcaster's", ours.maximum / 2)):
                    relay.rounds.setdefault(load, []).append(bench.latency(relay, notifies, seconds))
        report(ours, bare)


def report(ours: Relay, bare: Relay) -> None:
    print(
        f"Milliseconds from when a notify was due to its arrival at each of {SUBSCRIBERS} subscribers: p50 / p99 / "
        f"longest.\nMaxima: broadcaster {ours.maximum * SUBSCRIBERS:,.0f} deliveries/s, "
        f"bare loop {bare.maximum * SUBSCRIBERS:,.0f}.\n"
    )
    print("| half of the maximum of | broadcaster | bare loop | p99 / p99 | receiver and sender busy, late p99 |")
    print("|---|---|---|---|---|")
    for load in ("its own", "the broadcaster's"):
        row: dict[str, float] = {}
        cells = []
        for key, relay in (("broadcaster", ours), ("bare", bare)):
            figures = [relay.median(load, figure) for figure in ("p50_ms", "p99_ms", "max_ms")]
            row |= {f"{key}_p50_ms": figures[0], f"{key}_p99_ms": figures[1], f"{key}_max_ms": figures[2]}
            cells.append(" / ".join(f"{figure:.2f}" for figure in figures))
        busy = " and ".join(f"{relay.median(load, 'busy'):.0%}" for relay in (ours, bare))
        late = " and ".join(f"{relay.median(load, 'late_p99_ms'):.2f}" for relay in (ours, bare))
        ratio = row["broadcaster_p99_ms"] / row["bare_p99_ms"]
        print(f"| {load} | {cells[0]} | {cells[1]} | {ratio:.1f} | {busy}, {late} ms |", flush=True)
        record("latency", load=load, **row)


if __name__ == "__main__":
    main()
