"""Deliveries a second of a whole broadcaster, beside what one would write by hand and beside a bare loop.

    python benchmarks/fanout.py [--quick] [--json PATH]

Each contestant is a process of its own on one core; the receiver (C, if there is a compiler) and the publisher share
the other one. They take turns, several rounds each; the table shows medians, and ratios are of medians.

- *broadcaster*: `httppubsubserver serve`, hmac in both directions: ingest, matching, signing, retries, counting.
- *httpx*, *aiohttp*: a FastAPI application with `asyncio.gather` over that client, nothing signed (by_hand.py).
- *lonelypss*: another broadcaster for webhooks, hmac in both directions, SQLite (lonelypss_site.py). It calls one
  subscriber after another, so two publishers at once keep it as busy as sixteen, and a round ends in reasonable time.
- *bare loop*: the broadcaster's own connections, sending prepared bytes, without anything else around them.
"""

from __future__ import annotations

import contextlib
import math
import sys
import tempfile
from pathlib import Path

from harness import (
    HERE,
    OTHERS,
    OURS,
    BareLoop,
    Contestant,
    broadcaster,
    callback_urls,
    process,
    receiver_command,
    record,
    subscribe,
    take_turns,
)
from lonelypss_site import lonelypss
from venvs import NotInstalled

PORTS = 8
"""Subscribers are spread over so many hosts."""


def measure(subscribers: int, rounds: int, seconds: float, directory: Path) -> None:
    """One row of the table."""
    connections = 64 if subscribers == 1 else 16
    with contextlib.ExitStack() as stack:
        receiver, line = stack.enter_context(process(receiver_command(directory, PORTS), OTHERS))
        targets = callback_urls(line.split(), subscribers)
        ours = stack.enter_context(broadcaster(directory / f"site{subscribers}"))
        for target in targets:
            subscribe(ours, target, ["t"])
        contestants = [Contestant("broadcaster", ours.pid, ours.url, ours.secrets, connections)]
        for library in ("httpx", "aiohttp"):
            command = [sys.executable, HERE / "by_hand.py", library, *targets]
            child, line = stack.enter_context(process(command, OURS))
            # One pool of httpx slows down with the requests in flight, and fails beyond: it does best with few.
            few = 2 if library == "httpx" and subscribers > 1 else connections
            contestants.append(Contestant(library, child.pid, line.removeprefix("listening on "), None, few))
        child, _ = stack.enter_context(process([sys.executable, HERE / "bare_loop.py", *targets], OURS))
        contestants.append(BareLoop(child))
        try:
            contestants.append(
                stack.enter_context(lonelypss(directory / f"lonelypss{subscribers}", subscribers, PORTS))
            )
            missing = ""
        except NotInstalled as error:
            missing = str(error)
        take_turns(contestants, receiver.pid, subscribers, rounds, seconds)
        report(subscribers, contestants, missing)


def report(subscribers: int, contestants: list[Contestant], missing: str) -> None:
    """Print a row; lonelypss is the last contestant, or is `missing` for that reason."""
    ours, with_httpx, with_aiohttp, bare, *peer = contestants
    rates = [contestant.median("deliveries_per_second") for contestant in contestants]
    names = ("broadcaster", "httpx", "aiohttp", "bare", "lonelypss")
    known = {name: rate for name, rate in zip(names, rates, strict=False) if not math.isnan(rate)}
    record("fanout", subscribers=subscribers, **known)
    print(
        f"| {subscribers} | {rates[0]:,.0f} ({ours.median('cpu_microseconds'):.0f}) "
        f"| {ours.median('p50_ms'):.1f} / {ours.median('p99_ms'):.1f} "
        f"| {rates[1]:,.0f} ({with_httpx.median('cpu_microseconds'):.0f}) "
        f"| {rates[2]:,.0f} ({with_aiohttp.median('cpu_microseconds'):.0f}) "
        f"| {rates[3]:,.0f} ({bare.median('cpu_microseconds'):.0f}) "
        + (f"| {rates[4]:,.0f} ({peer[0].median('cpu_microseconds'):.0f}) " if peer else f"| {missing} ")
        + f"| {rates[0] / rates[1]:.0f} | {rates[0] / rates[2]:.1f} | {rates[0] / rates[3]:.2f} "
        + (f"| {rates[0] / rates[4]:.0f} |" if peer else "| |"),
        flush=True,
    )


def main() -> None:
    quick = "--quick" in sys.argv
    print("Deliveries/s (CPU microseconds of the contestant for each), ms until a notify is answered, ratios.\n")
    print(
        "| subscribers | broadcaster | p50 / p99 | httpx | aiohttp | bare loop | lonelypss "
        "| /httpx | /aiohttp | /bare | /lonelypss |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as directory:
        for subscribers in (1, 100) if quick else (1, 10, 100, 1000):
            measure(subscribers, 3 if quick else 5, 1.0 if quick else 2.0, Path(directory))


if __name__ == "__main__":
    main()
