"""Which of N globs match one topic: the index beside a loop over the matcher, over `fnmatch`, and a scan in SQLite.

python benchmarks/matching.py [--quick] [--json PATH]
"""

from __future__ import annotations

import fnmatch
import random
import re
import sqlite3
import statistics
import sys
import time
from collections.abc import Callable

from harness import record

from httppubsubclient.protocol.patterns import Pattern
from httppubsubclient.protocol.topic_index import TopicIndex


def realistic(count: int, source: random.Random) -> list[str]:
    """Globs as services write them: mostly literal, with a wildcard here and there."""
    forms = [
        lambda a, b: f"orders/{a}/*",
        lambda a, b: f"users/{a}/{b}/**",
        lambda a, b: f"cache/*/{a}-{b}",
        lambda a, b: f"files/{a}/*.json",
        lambda a, b: f"tenants/{a}/*/events/{b}",
    ]
    return [source.choice(forms)(source.randrange(count), source.randrange(100)) for _ in range(count)]


def microseconds(work: Callable[[], object], budget_seconds: float) -> float:
    """Median duration of one call."""
    samples: list[float] = []
    end = time.perf_counter() + budget_seconds
    while time.perf_counter() < end or len(samples) < 3:
        start = time.perf_counter()
        work()
        samples.append(time.perf_counter() - start)
    return statistics.median(samples) * 1e6


def measure(count: int) -> None:
    """Print one row of the table."""
    globs = realistic(count, random.Random(1))
    topic = "tenants/7/eu/events/42"
    index: TopicIndex[int] = TopicIndex()
    for number, glob in enumerate(globs):
        index.add(Pattern.glob(glob), number)
    compiled = [re.compile(fnmatch.translate(glob)) for glob in globs]
    database = sqlite3.connect(":memory:")
    database.execute("CREATE TABLE globs (glob TEXT)")
    database.executemany("INSERT INTO globs VALUES (?)", [(glob,) for glob in globs])
    encoded = topic.encode()
    ours = microseconds(lambda: index.match(encoded), 0.3)
    regexes = microseconds(lambda: [c for c in compiled if c.match(topic)], 0.5)
    fnmatches = microseconds(lambda: [g for g in globs if fnmatch.fnmatchcase(topic, g)], 0.5)
    query = "SELECT rowid FROM globs WHERE ? GLOB glob"
    scan = microseconds(lambda: database.execute(query, (topic,)).fetchall(), 0.5)
    database.close()
    record("matching", globs=count, index=ours, regex=regexes, fnmatch=fnmatches, sqlite=scan)
    print(
        f"| {count:,} | {ours:.1f} us | {regexes:,.0f} us | {fnmatches:,.0f} us "
        f"| {scan:,.0f} us | {scan / ours:,.0f} |",
        flush=True,
    )


def main() -> None:
    print("| globs | index | loop over compiled regexes | loop over fnmatch | SQLite GLOB scan | SQLite / index |")
    print("|---|---|---|---|---|---|")
    for count in (1_000, 10_000) if "--quick" in sys.argv else (1_000, 10_000, 100_000):
        measure(count)


if __name__ == "__main__":
    main()
