"""One large message to ten subscribers, beside curl sending the same file to the same receiver.

    python benchmarks/large.py [--quick]

1023 MiB, since `curl --data-binary` refuses 1 GiB (`--quick`: 64 MiB). The sender, whichever it is, has one core; the
receiver (C) and the publisher share the other ones. They take turns, several rounds each; the table shows medians.

- *broadcaster*: `httppubsubserver serve`, hmac in both directions, SQLite. One publish; the clock runs from the first
  byte that the publisher sends to the counts. *sending alone*: from the moment at which the first subscriber is called;
  an eleventh one, which answers without reading the body, tells it.
- *curl --data-binary @file*: reads the file into memory first, then sends it; ten processes, one after the other.
- *curl -T file*: reads and sends by pieces of 64 KiB; one after the other. All without `Expect: 100-continue`, for
  whose answer curl would wait a second.
- *curl --data-binary, ten at once*: in parallel, on the one core; left out where the memory does not suffice.

Where the receiver was busy for more than 90 % of the time, its row says so: that sender could have been faster.

Memory is that of the process alone: the most it had (VmHWM) minus what it had before (VmRSS). The body of a message
lies in an unlinked file beside it: where the spool directory is a disk, the kernel may drop its pages after writing
them; where it is a tmpfs, the body does take memory. The last line says which it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from harness import (
    CORES,
    OTHERS,
    OURS,
    Broadcaster,
    NotTaken,
    broadcaster,
    callback_urls,
    cpu_seconds,
    process,
    receiver_command,
    resident_bytes,
    subscribe,
)

from httppubsubclient.protocol.credentials import secrets_from_json, sign_request
from httppubsubclient.protocol.signatures import content_digest

MEBIBYTE = 1024 * 1024
QUANTILES = (("p50", 0.5), ("p99", 0.99), ("most", 1.0))
SUBSCRIBERS = 10
CURL = ("curl", "--silent", "--show-error", "--fail", "--noproxy", "*", "--output", "/dev/null", "-H", "Expect:")


class Probe:
    """A subscriber that notes when it is called, and answers at once: nobody sends a body on to somebody who has it."""

    def __init__(self) -> None:
        self.called_at = 0.0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            with connection, contextlib.suppress(ConnectionError):
                connection.recv(65536)
                self.called_at = time.perf_counter()
                connection.sendall(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n")
                while connection.recv(65536):
                    pass


class Publisher:
    """Signed publishes of one body over a connection of its own each."""

    def __init__(self, to: Broadcaster, file: Path) -> None:
        self.to, self.file = to, file
        self.ended_at = 0.0
        self.credentials = secrets_from_json(json.loads(to.secrets.read_text())).to_broadcasters
        with file.open("rb") as opened:
            self.digest = content_digest(hashlib.file_digest(opened, "sha256").digest())

    def publish(self, topic: str, matched: int) -> float:
        """Seconds until everybody who has subscribed has it; `ended_at` is that moment. Raises `NotTaken`."""
        parts = urlsplit(self.to.url)
        headers = {"content-digest": self.digest}
        headers |= sign_request(
            self.credentials,
            method="POST",
            path="/v1/notify",
            query=f"topic={topic}",
            headers=headers,
            now=int(time.time()),
            nonce=os.urandom(16).hex(),
        )
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        size = self.file.stat().st_size
        head = f"POST /v1/notify?topic={topic} HTTP/1.1\r\nhost: x\r\ncontent-length: {size}\r\n{lines}\r\n"
        with socket.create_connection((parts.hostname, parts.port)) as connection, self.file.open("rb") as body:
            start = time.perf_counter()
            connection.sendall(head.encode("ascii"))
            connection.sendfile(body)
            answer = b""
            while b'"matched"' not in answer or not answer.endswith(b"}"):
                piece = connection.recv(65536)
                if not piece:
                    raise NotTaken(answer.decode())
                answer += piece
            self.ended_at = time.perf_counter()
        counts = json.loads(answer.split(b"\r\n\r\n", 1)[1])
        if (counts["matched"], counts["notified"]) != (matched, matched):
            raise NotTaken(answer.decode())
        return self.ended_at - start


@dataclass
class Contestant:
    """A way to send the file ten times; `run` gives the seconds that it took."""

    name: str
    run: Callable[[], float]
    seconds: list[float] = field(default_factory=list)
    receiver_seconds: list[float] = field(default_factory=list)
    """CPU time of the receiver."""

    def take_turn(self, receiver: int) -> None:
        before = cpu_seconds(receiver)
        self.seconds.append(self.run())
        self.receiver_seconds.append(cpu_seconds(receiver) - before)

    def report(self, size: int, yardsticks: list[float]) -> None:
        seconds = statistics.median(self.seconds)
        rate = SUBSCRIBERS * size / seconds / 1e6
        busy = statistics.median(cpu / wall for cpu, wall in zip(self.receiver_seconds, self.seconds, strict=True))
        ratios = " | ".join(f"{yardstick / seconds:.2f}" for yardstick in yardsticks)
        note = " (the limit)" if busy > 0.9 else ""
        print(f"| {self.name} | {seconds:.2f} | {rate:,.0f} | {ratios} | {busy:.0%}{note} |", flush=True)


def curls(urls: list[str], file: Path, option: str, at_once: int) -> float:
    """Send the file to each URL with a curl of its own, so many of them at a time, on the sender's core."""
    what = ("-X", "POST", "-T", str(file)) if option == "-T" else ("--data-binary", f"@{file}")
    start = time.perf_counter()
    for first in range(0, len(urls), at_once):
        children = [
            subprocess.Popen([*CURL, *what, url], preexec_fn=lambda: os.sched_setaffinity(0, OURS))
            for url in urls[first : first + at_once]
        ]
        if sum(child.wait() for child in children):
            raise NotTaken(option)
    return time.perf_counter() - start


def small_meanwhile(large: Publisher, small: Publisher) -> list[float]:
    """Seconds that each of many small notifies took, one after the other, while the large one was on its way."""
    latencies: list[float] = []
    sending = threading.Thread(target=large.publish, args=("large", SUBSCRIBERS + 1))
    sending.start()
    while sending.is_alive():
        latencies.append(small.publish("small", 1))
        time.sleep(0.005)
    sending.join()
    return sorted(latencies)


def available_bytes() -> int:
    """What may still be taken of the machine's memory."""
    line = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable"))
    return int(line.split()[1]) * 1024


def kind_of_filesystem(directory: str) -> str:
    """As `stat -f` names it."""
    done = subprocess.run(["stat", "-f", "-c", "%T", directory], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def main() -> None:
    quick = "--quick" in sys.argv
    size, rounds = (64 if quick else 1023) * MEBIBYTE, 2 if quick else 3
    os.sched_setaffinity(0, OTHERS)
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        file, tiny = directory / "body", directory / "tiny"
        with file.open("wb") as body:
            for _ in range(size // MEBIBYTE):
                body.write(os.urandom(MEBIBYTE))
        tiny.write_bytes(b"x" * 100)
        receiver, line = stack.enter_context(process(receiver_command(directory, SUBSCRIBERS + 1), OTHERS))
        urls = callback_urls(line.split(), SUBSCRIBERS + 1)
        ours = stack.enter_context(broadcaster(directory / "site"))
        probe = Probe()
        for url in [*urls[:-1], probe.url]:
            subscribe(ours, url, ["large"])
        subscribe(ours, urls[-1], ["small"])
        publisher, small = Publisher(ours, file), Publisher(ours, tiny)
        for _ in range(20):
            small.publish("small", 1)
        sending_seconds: list[float] = []

        def publish() -> float:
            seconds = publisher.publish("large", SUBSCRIBERS + 1)
            sending_seconds.append(publisher.ended_at - probe.called_at)
            return seconds

        targets = urls[:-1]
        contestants = [
            Contestant("broadcaster", publish),
            Contestant("curl --data-binary, one after the other", lambda: curls(targets, file, "--data-binary", 1)),
            Contestant("curl -T, one after the other", lambda: curls(targets, file, "-T", 1)),
        ]
        if available_bytes() > 1.5 * SUBSCRIBERS * size:  # each of the ten holds the file in memory
            many = Contestant("curl --data-binary, ten at once", lambda: curls(targets, file, "--data-binary", 10))
            contestants.append(many)
        before = resident_bytes(ours.pid)
        for _ in range(rounds):
            for contestant in contestants:
                contestant.take_turn(receiver.pid)
        grown = resident_bytes(ours.pid, "VmHWM") - before
        meanwhile = small_meanwhile(publisher, small)

        print(f"{size // MEBIBYTE} MiB to {SUBSCRIBERS} subscribers, {len(CORES)} cores; MB/s delivered.\n")
        print("| | seconds | MB/s | / curl --data-binary | / curl -T | receiver busy |")
        print("|---|---|---|---|---|---|")
        yardsticks = [statistics.median(contestant.seconds) for contestant in contestants[1:3]]
        whole = contestants[0]
        sending = Contestant(
            "broadcaster, sending alone",
            lambda: 0.0,
            sending_seconds,
            whole.receiver_seconds,
        )
        for contestant in (whole, sending, *contestants[1:]):
            contestant.report(size, yardsticks)
        print(f"\nMost memory of the broadcaster over idle: {grown / MEBIBYTE:.0f} MiB.", end=" ")
        print(f"The spool directory is {kind_of_filesystem(tempfile.gettempdir())}.")
        print(f"A small notify meanwhile ({len(meanwhile)} of them), ms:", end=" ")
        print(", ".join(f"{name} {meanwhile[int((len(meanwhile) - 1) * at)] * 1e3:.1f}" for name, at in QUANTILES))


if __name__ == "__main__":
    main()
