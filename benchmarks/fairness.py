"""Whether a notify to 100,000 subscribers delays small ones: how long those take to arrive, with and without it.

    python benchmarks/fairness.py [--quick] [--json PATH]

Small notifies to one subscriber are due at a steady rate, in an open loop, and their receiver (C) counts how long after
that they arrive. Now and then, one large notify goes out among them, to receivers of its own. The receivers and the
publishers share one core, the broadcaster has the other one, and has nothing left over while the large one lasts.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
from harness import OTHERS, Broadcaster, ask, broadcaster, callback_urls, compiled, process, record, subscribe
from sender import open_loop

from httppubsubclient.protocol.credentials import secrets_from_json, sign_request
from httppubsubclient.protocol.signatures import content_digest

PORTS, CONNECTIONS = 8, 32
SMALL_PER_SECOND = 200
FIGURES = ("p50_ms", "p99_ms", "max_ms")
BODY = b"0" * 100


def load_subscriptions(database: Path, urls: list[str], topic: bytes) -> None:
    """Write them into the file of a running broadcaster, whose next notify reads all of it anew."""
    now = time.time_ns() // 1000
    rows = [(f"sub_{number:022}", url, topic, now, now + 10**10) for number, url in enumerate(urls)]
    with contextlib.closing(sqlite3.connect(database)) as db, db:
        db.executemany(
            "INSERT INTO subscriptions (id, url, kind, pattern, lease_seconds, created_at, expires_at) "
            "VALUES (?, ?, 'exact', ?, 86400, ?, ?)",
            rows,
        )
        # Whoever is behind the first row that is left in the log of changes reads the whole table.
        db.execute("INSERT INTO subscription_changes VALUES (1000000, ?)", (rows[-1][0],))
        db.execute("DELETE FROM subscription_changes WHERE version < 1000000")


def notify(to: Broadcaster, topic: str) -> tuple[float, dict[str, int]]:
    """Publish once; how long the answer took, and what it says."""
    headers = {"content-digest": content_digest(hashlib.sha256(BODY).digest())}
    headers |= sign_request(
        secrets_from_json(json.loads(to.secrets.read_text())).to_broadcasters,
        method="POST",
        path="/v1/notify",
        query=f"topic={topic}",
        headers=headers,
        now=int(time.time()),
        nonce=os.urandom(16).hex(),
    )
    with httpx.Client(trust_env=False, timeout=60) as client:
        start = time.perf_counter()
        answer = client.post(f"{to.url}/v1/notify?topic={topic}", content=BODY, headers=headers)
        answer.raise_for_status()
    counts: dict[str, int] = answer.json()
    return time.perf_counter() - start, counts


def main() -> None:
    quick = "--quick" in sys.argv
    subscribers, rounds = (20_000, 2) if quick else (100_000, 5)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        sender, receiver = compiled("sender", directory), compiled("receiver", directory)
        if sender is None or receiver is None:
            raise SystemExit("this needs a C compiler: cc")
        _, line = stack.enter_context(process([receiver, str(PORTS)], OTHERS))
        small, port = stack.enter_context(process([receiver, "1", "latency"], OTHERS))
        site = stack.enter_context(broadcaster(directory / "site"))
        subscribe(site, f"http://127.0.0.1:{port}/", ["small"])
        load_subscriptions(
            directory / "site" / "httppubsub.sqlite3", callback_urls(line.split(), subscribers), b"large"
        )
        notify(site, "small")  # reads the subscriptions
        large_seconds, counts = notify(site, "large")
        assert counts["notified"] == subscribers, counts

        def small_ones() -> dict[str, float]:
            ask(small, "reset")
            open_loop(
                sender,
                directory / "requests",
                f"{site.url}/v1/notify?topic=small",
                site.secrets,
                connections=CONNECTIONS,
                per_second=SMALL_PER_SECOND,
                seconds=large_seconds,
            )
            measured: dict[str, float] = json.loads(ask(small, "report"))
            return measured

        alone, beside, larges = [], [], []
        for _ in range(rounds):
            alone.append(small_ones())
            # The open loop begins half a second after it was asked for, and the large one shortly after that.
            large = threading.Timer(0.6, lambda: larges.append(notify(site, "large")[0]))
            large.start()
            beside.append(small_ones())
            large.join()
        rows = [[statistics.median(taken[figure] for taken in some) for figure in FIGURES] for some in (alone, beside)]
        rate = subscribers / statistics.median(larges)
        print(f"{SMALL_PER_SECOND} small notifies a second; milliseconds from when one was due to its arrival.\n")
        print("| | p50 | p99 | longest |\n|---|---|---|---|")
        print("| alone | " + " | ".join(f"{figure:.1f}" for figure in rows[0]) + " |")
        print(f"| beside one to {subscribers:,} ({rate:,.0f}/s) | " + " | ".join(f"{x:.1f}" for x in rows[1]) + " |")
        record("fairness", subscribers=subscribers, alone=rows[0], beside=rows[1], large_per_second=rate)


if __name__ == "__main__":
    main()
