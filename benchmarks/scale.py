"""How one broadcaster process carries its subscriptions: start, memory, changes, matching.

    python benchmarks/scale.py [--quick] [--json PATH]

The rows are written straight into a database file; a fresh process loads them through the store and the directory,
and measures. Ten subscriptions share a callback URL, unless the row says otherwise.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import itertools
import json
import random
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from harness import record

from httppubsubclient.protocol.lazy_index import LazyIndex
from httppubsubclient.protocol.patterns import Pattern
from httppubsubclient.protocol.topic_index import TopicIndex
from httppubsubserver.directory import Directory, Target
from httppubsubserver.stores import Changes, Listed
from httppubsubserver.stores.sqlite import open_sqlite

CHANGES = 2000
FAN_OUT = 1000
NEVER = 1 << 62
Figures = dict[str, float]


def topic_of(number: int) -> str:
    """An exact topic as services name them."""
    return f"tenants/{number % 977}/orders/{number}"


def glob_of(number: int, total: int) -> str:
    """A glob as services write them: mostly literal, with a wildcard here and there."""
    chance = random.Random(number)
    a, b = chance.randrange(total), chance.randrange(100)
    forms = (
        f"orders/{a}/*/{number}",
        f"users/{a}/{number}/**",
        f"cache/*/{a}-{number}",
        f"files/{a}/{number}-*.json",
        f"tenants/{a}/*/events/{b}-{number}",
    )
    return forms[number % len(forms)]


def listed(kind: str, number: int, total: int, per_url: int, identifier: int) -> Listed:
    """One subscription."""
    pattern = topic_of(number) if kind == "exact" else glob_of(number, total)
    place = number // per_url
    url = f"http://receiver-{place % 5000}.example:8080/pubsub/{place}"
    return Listed(
        f"sub_{identifier:022x}", url, "exact" if kind == "exact" else "glob", pattern.encode(), NEVER + number, False
    )


def fill(path: Path, kind: str, total: int, per_url: int) -> None:
    """Write the rows; which subscription has which id is random, as it is in life."""

    async def make() -> None:
        async with open_sqlite(f"sqlite:///{path}"):
            pass

    asyncio.run(make())
    chance = random.Random(1)
    numbers = chance.sample(range(total), total)
    identifiers = sorted(chance.getrandbits(88) for _ in numbers)

    def rows() -> Iterator[tuple[object, ...]]:
        for number, identifier in zip(numbers, identifiers, strict=True):
            each = listed(kind, number, total, per_url, identifier)
            yield each.id, each.url, each.kind, each.pattern, 3600, number, each.expires_at

    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        for pragma in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -1000000", "locking_mode = EXCLUSIVE"):
            database.execute(f"PRAGMA {pragma}").close()
        indexes = database.execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND tbl_name = 'subscriptions' AND sql NOT NULL"
        ).fetchall()
        database.execute("BEGIN")
        for name, _ in indexes:
            database.execute(f"DROP INDEX {name}")
        database.executemany(
            "INSERT INTO subscriptions (id, url, kind, pattern, lease_seconds, created_at, expires_at) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            rows(),
        )
        for _, sql in indexes:
            database.execute(sql)
        database.execute("INSERT INTO subscription_changes VALUES (?, 'the last')", (total,))
        database.execute("COMMIT")
        database.execute("PRAGMA journal_mode = WAL").close()


async def measure(path: Path, kind: str, total: int) -> Figures:
    """In a fresh process: load, then everything else."""
    async with open_sqlite(f"sqlite:///{path}") as store:
        directory = Directory(store)
        gc.collect()
        before = resident_bytes()
        turns: list[float] = []
        ticking = asyncio.create_task(tick(turns))
        start = time.perf_counter()
        await directory.refresh()
        figures = {"load_seconds": time.perf_counter() - start}
        ticking.cancel()
        assert len(directory) == total
        figures["bytes"] = (resident_bytes() - before) / total
        figures["peak_bytes"] = (resident_bytes("VmHWM") - before) / total
        figures["held_ms"] = max(turns, default=0.0) * 1e3
        figures["collection_ms"] = once(gc.collect) / 1e3
        topics = {
            "matched": (topic_of(7) if kind == "exact" else glob_of(7, total).replace("*", "x")).encode(),
            "unmatched": b"tenants/7/orders/nobody",
            "foreign": b"nothing/of/the/kind",
        }
        index = directory._known.index
        for topic in topics.values():
            index.settle(topic, 10**12)
        assert [len(index.match(topic)) for topic in topics.values()] == [1, 0, 0]
        remembering = Remembering(index)
        for name, topic in topics.items():
            figures[name] = repeated(lambda topic=topic: index.match(topic))  # type: ignore[misc]
            figures[f"{name}, kept"] = repeated(lambda topic=topic: remembering.match(topic))  # type: ignore[misc]
        samples = []
        for _ in range(300):
            start = time.perf_counter()
            await directory.match(topics["matched"], now=0)
            samples.append(time.perf_counter() - start)
        figures["whole"] = statistics.median(samples) * 1e6
        return figures | changed(directory, kind, total)


def changed(directory: Directory, kind: str, total: int) -> Figures:
    """Microseconds of one change, of the directory's state and of the index alone."""
    known = directory._known
    new = [listed(kind, total + n, total, 10, n) for n in range(CHANGES)]
    renewed = [each._replace(expires_at=NEVER) for each in new]
    patterns = [Pattern(each.kind, each.pattern) for each in new]
    targets = [object() for _ in new]
    index: TopicIndex[object] = known.index._index  # type: ignore[assignment]

    def apply(rows: Sequence[Listed], removed: Sequence[Listed] = ()) -> None:
        for each in rows:
            known.apply(Changes(known.version, False, (each,), ()))
        for each in removed:
            known.apply(Changes(known.version, False, (), (each.id,)))

    figures = {
        "add": once(lambda: apply(new)),
        "renew": once(lambda: apply(renewed)),
        "remove": once(lambda: apply((), new)),
        "index add": once(lambda: [index.add(*each) for each in zip(patterns, targets, strict=True)]),
        "index remove": once(lambda: [index.remove(*each) for each in zip(patterns, targets, strict=True)]),
    }
    assert len(known.index) == len(directory) == total
    return {name: microseconds / CHANGES for name, microseconds in figures.items()}


class Remembering:
    """A result cache as it could stand in front of the index: by topic, forgotten whenever anything changes."""

    def __init__(self, index: LazyIndex[Target]) -> None:
        self._index = index
        self._results: dict[bytes, list[Target]] = {}
        self._room = 100_000
        self._generation = self.generation = 0

    def match(self, topic: bytes) -> list[Target]:
        """The same as the index."""
        if self._generation != self.generation:
            self._results.clear()
            self._generation = self.generation
        found = self._results.get(topic)
        if found is None:
            found = self._index.match(topic)
            if len(found) < self._room:
                self._room -= len(found) + 1
                self._results[topic] = found
        return found


def large_fan_out() -> Figures:
    """One topic that many subscriptions match: the index, what the expiry costs, and what a cache would leave."""
    figures: Figures = {}
    directory = Directory(None)  # type: ignore[arg-type]
    rows = [listed("exact", n, 1, 10, n)._replace(pattern=b"t") for n in range(FAN_OUT)]
    directory._known.apply(Changes(1, False, tuple(rows), ()))
    index = directory._known.index
    remembering = Remembering(index)
    figures["index"] = repeated(lambda: index.match(b"t"))
    figures["and expiry"] = repeated(lambda: [each for each in index.match(b"t") if each.expires_at > 0])
    figures["kept, and expiry"] = repeated(lambda: [each for each in remembering.match(b"t") if each.expires_at > 0])
    return figures


def resident_bytes(line: str = "VmRSS") -> int:
    """Of this process, now or (VmHWM) at the most."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{line}:")[1].split()[0]) * 1024


async def tick(turns: list[float]) -> None:
    """Note how late a timer is, again and again."""
    while True:
        start = time.perf_counter()
        await asyncio.sleep(0.001)
        turns.append(time.perf_counter() - start - 0.001)


def once(work: Callable[[], object]) -> float:
    """Microseconds."""
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e6


def repeated(work: Callable[[], object]) -> float:
    """Microseconds of one call: the median of nine bursts of 5 ms."""
    samples = []
    for _ in range(9):
        start = now = time.perf_counter()
        calls = 0
        while now - start < 0.005:
            for _ in itertools.repeat(None, 50):
                work()
            calls += 50
            now = time.perf_counter()
        samples.append((now - start) / calls * 1e6)
    return statistics.median(samples)


def in_a_process(kind: str, total: int, per_url: int) -> Figures:
    """Fill a database and measure in a fresh process."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "db"
        fill(path, kind, total, per_url)
        done = subprocess.run(
            [sys.executable, __file__, "--measure", kind, str(total), path], stdout=subprocess.PIPE, check=True
        )
    figures: Figures = json.loads(done.stdout)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tenths of everything")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--json", help="append rows for plots.py to this file")
    arguments = parser.parse_args()
    if arguments.measure:
        kind, total, path = arguments.measure
        print(json.dumps(asyncio.run(measure(Path(path), kind, int(total)))))
        return
    tenth = 10 if arguments.quick else 1
    cases = [("exact", 1_000, 10), ("exact", 10_000, 10), ("exact", 100_000 // tenth, 1)]
    cases += [("exact", 100_000 // tenth, 10), ("exact", 1_000_000 // tenth, 10)]
    cases += [("glob", 1_000, 10), ("glob", 10_000 // tenth, 10), ("glob", 100_000 // tenth, 10)]
    results = {case: in_a_process(*case) for case in dict.fromkeys(cases)}

    print("| subscriptions | load | for a million | memory each | at the peak | loop held up | full collection |")
    print("|---|---|---|---|---|---|---|")
    for (kind, total, per_url), each in results.items():
        if per_url > 1:
            record("scale", kind=kind, subscriptions=total, bytes=each["bytes"])
        print(
            f"| {total:,} {kind}{' of a URL each' if per_url == 1 else ''} | {each['load_seconds']:.2f} s "
            f"| {each['load_seconds'] / total * 1e6:.1f} s | {each['bytes']:.0f} B | {each['peak_bytes']:.0f} B "
            f"| {each['held_ms']:.0f} ms | {each['collection_ms']:.0f} ms |"
        )
    print("\n| one change, us | add | renew | remove | index alone: add | remove |\n|---|---|---|---|---|---|")
    for (kind, total, per_url), each in results.items():
        if per_url > 1:
            row = [f"{each[name]:.1f}" for name in ("add", "renew", "remove", "index add", "index remove")]
            print(f"| among {total:,} {kind} | {' | '.join(row)} |")
    print("\nOne match, us; in brackets what a result cache would make of it, when it has the topic.\n")
    print("| among | matched | unmatched | of another kind | Directory.match, with the store's version |")
    print("|---|---|---|---|---|")
    for (kind, total, per_url), each in results.items():
        if per_url > 1:
            row = [f"{each[name]:.2f} ({each[f'{name}, kept']:.2f})" for name in ("matched", "unmatched", "foreign")]
            print(f"| {total:,} {kind} | {' | '.join(row)} | {each['whole']:.0f} |")
    fan_out = large_fan_out()
    print(
        f"\nA topic that {FAN_OUT:,} exact subscriptions match: {fan_out['index']:.0f} us, "
        f"{fan_out['and expiry']:.0f} us with the check of their leases, {fan_out['kept, and expiry']:.0f} us from a "
        "result cache."
    )


if __name__ == "__main__":
    main()
