"""Requests that are signed before the clock starts, and sender.c, which sends them faster than anybody here takes them.

    requests = signed_requests(path, url, secrets, [b"one", b"two"])
    closed_loop(program, requests, connections=64, seconds=2)

Bodies that begin with the moment at which they are due (`due_bodies`) let the receiver measure latencies in an open
loop: the schedule does not wait for answers, so a pause of whoever is measured counts for all that were due in it.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from harness import OTHERS, NotTaken

from httppubsubclient.protocol.credentials import Credentials, secrets_from_json, sign_request
from httppubsubclient.protocol.signatures import content_digest

BODY_BYTES = 100


@dataclass(frozen=True)
class Requests:
    """A file of requests that all have the same size."""

    file: Path
    size: int
    port: int


def signed_requests(
    file: Path, url: str, secrets: Path | None, bodies: Iterable[bytes], more_headers: Mapping[str, str] = {}
) -> Requests:
    """A POST to `url` for each body, with a nonce of its own; not signed without `secrets`."""
    parts = urlsplit(url)
    credentials = Credentials.none()
    if secrets is not None:
        credentials = secrets_from_json(json.loads(secrets.read_text())).to_broadcasters
    now = int(time.time())
    sizes = set()
    with file.open("wb") as output:
        for number, body in enumerate(bodies):
            headers = {"content-digest": content_digest(hashlib.sha256(body).digest())}
            headers |= sign_request(
                credentials,
                method="POST",
                path=parts.path,
                query=parts.query,
                headers=headers,
                now=now,
                nonce=f"{time.time_ns():016x}{number:016x}",
            )
            lines = "".join(f"{name}: {value}\r\n" for name, value in (headers | more_headers).items())
            head = f"POST {parts.path}?{parts.query} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n"
            sizes.add(output.write(f"{head}{lines}\r\n".encode("ascii") + body))
    assert len(sizes) == 1, "the sender finds requests by their size"
    return Requests(file, sizes.pop(), parts.port or 80)


def due_bodies(start_ns: int, interval_ns: int, count: int) -> Iterable[bytes]:
    """Bodies for an open loop: each begins with the moment at which it is due."""
    return (f"{start_ns + number * interval_ns:016x}".encode().ljust(BODY_BYTES, b"x") for number in range(count))


def closed_loop(
    program: str, requests: Requests, connections: int, seconds: float, cores: set[int] = OTHERS
) -> dict[str, float]:
    """Every connection sends its next request when it is answered: see sender.c for the results."""
    return _run(program, requests, connections, cores, "closed", str(seconds))


def open_loop(
    program: str, file: Path, url: str, secrets: Path | None, *, connections: int, per_second: float, seconds: float
) -> dict[str, float]:
    """So many requests a second, whatever becomes of them."""
    interval_ns, count = int(1e9 / per_second), max(1, int(per_second * seconds))
    start_ns = time.monotonic_ns() + 500_000_000 + count * 50_000
    requests = signed_requests(file, url, secrets, due_bodies(start_ns, interval_ns, count))
    return _run(program, requests, connections, OTHERS, "open", str(start_ns), str(interval_ns))


def _run(program: str, requests: Requests, connections: int, cores: set[int], *how: str) -> dict[str, float]:
    command = [program, str(requests.file), str(requests.size), str(requests.port), str(connections), *how]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, preexec_fn=lambda: os.sched_setaffinity(0, cores)
    )
    if done.returncode != 0:
        raise NotTaken(done.stderr.strip())
    result: dict[str, float] = json.loads(done.stdout)
    return result
