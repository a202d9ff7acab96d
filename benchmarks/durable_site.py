"""What the benchmark of durable delivery needs: a disk, subscriptions and backlogs in the file of a site, counting.

directory = on_disk("bench")                              # not a file system in memory
fill(database, {b"t": urls}, durable=True, messages=1000)  # for each of the topics
with counting.expect(1000) as drained: ...
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import statistics
import struct
import subprocess
import tempfile
import time
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from harness import HERE, ask

from httppubsubclient.protocol.messages import Notification, SubscribeRequest
from httppubsubclient.protocol.patterns import Pattern
from httppubsubserver.stores.durable import DurableStore, Publication
from httppubsubserver.stores.sqlite import open_sqlite

BODY = b"0" * 100
LEASE_SECONDS = 86_400
DEADLINE_SECONDS = 900.0
FILLED_AT_ONCE = 256


@contextlib.contextmanager
def on_disk(directory: Path | None = None) -> Iterator[Path]:
    """A temporary directory, in the repository or in the given one. Refuses one in memory, which flushes nothing."""
    with tempfile.TemporaryDirectory(dir=directory or HERE.parent, prefix=".bench-") as name:
        kind = file_system(Path(name))
        if kind in ("tmpfs", "ramfs"):
            raise SystemExit(f"{name} is {kind}, in memory: give a --directory on a disk")
        yield Path(name)


def file_system(directory: Path) -> str:
    """Its name, as stat(1) has it."""
    command = ["stat", "--file-system", "--format=%T", directory]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def flush_milliseconds(directory: Path) -> float:
    """How long it takes to write 4 KiB and have them on the disk; median of 100."""
    taken = []
    with (directory / "flushed").open("wb", buffering=0) as file:
        for _ in range(100):
            start = time.perf_counter()
            file.write(b"0" * 4096)
            os.fdatasync(file.fileno())
            taken.append((time.perf_counter() - start) * 1000)
    return statistics.median(taken)


def transactions(database: Path) -> int:
    """How many there have been, modulo 2**32: `iChange` in the index of the WAL (sqlite.org/walformat.html)."""
    with Path(f"{database}-shm").open("rb") as file:
        header: tuple[int, ...] = struct.unpack("=III", file.read(12))
    return header[2]


def publication(topic: bytes, subscription_ids: Sequence[str]) -> Publication:
    """A message for these subscriptions, with an id of its own."""
    message_id = "msg_" + urlsafe_b64encode(os.urandom(16)).decode("ascii")
    notification = Notification(message_id, topic, "application/octet-stream", sha256(BODY).digest(), len(BODY), None)
    return Publication(notification, BODY, subscription_ids)


async def fill_subscriptions(store: DurableStore, topics: Mapping[bytes, Sequence[str]], *, durable: bool) -> list[str]:
    """Subscribe URLs to exact topics; the ids."""
    now = time.time_ns() // 1000
    ids = []
    for topic, urls in topics.items():
        for url in urls:
            request = SubscribeRequest(
                url, Pattern.exact(topic), LEASE_SECONDS, delivery="durable" if durable else "best_effort"
            )
            subscription, _ = await store.subscribe(request, now=now)
            ids.append(subscription.id)
    return ids


def fill(
    database: Path, topics: Mapping[bytes, Sequence[str]], *, durable: bool = True, deliveries: int = 0, spread: int = 1
) -> None:
    """Subscribe, and let so many deliveries be pending, made by the store. `spread`: subscriptions of one message;
    messages take turns among the subscriptions."""

    async def work() -> None:
        async with open_sqlite(f"sqlite:///{database}") as store:
            ids = await fill_subscriptions(store, topics, durable=durable)
            groups = [ids[start : start + spread] for start in range(0, len(ids), spread)]
            topic = next(iter(topics))
            turns = itertools.cycle(groups)
            left = deliveries
            while left > 0:
                some = [next(turns) for _ in range(min(FILLED_AT_ONCE, max(1, left // spread)))]
                now = time.time_ns() // 1000
                await asyncio.gather(*(store.accept(publication(topic, group), now=now) for group in some))
                left -= sum(map(len, some))

    asyncio.run(work())


class Counting:
    """The receiver in C, started with `latency`, as a counter of what has arrived."""

    def __init__(self, receiver: subprocess.Popen[str]) -> None:
        self.receiver = receiver

    def reset(self) -> None:
        """Begin at 0."""
        ask(self.receiver, "reset")

    def rate(self, total: int) -> float:
        """Deliveries a second, from the first that is seen to the last of `total` since `reset`."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        first: tuple[float, int] | None = None
        arrived = 0
        while arrived < total:
            arrived += int(json.loads(ask(self.receiver, "count"))["count"])
            now = time.perf_counter()
            if arrived and first is None:
                first = now, arrived
            if time.monotonic() > deadline:
                raise SystemExit(f"{arrived} of {total} arrived")
            time.sleep(0.02)
        assert first is not None
        if first[1] >= total:
            raise SystemExit("all of it arrived between two looks: take more")
        return (total - first[1]) / (now - first[0])
