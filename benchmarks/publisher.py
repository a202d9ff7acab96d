"""Publishes 100 bytes again and again over kept connections, and prints what it reached as one line of JSON.

    python benchmarks/publisher.py URL CONNECTIONS SECONDS [SECRETS]

With the path of a subscriber-secrets.json every request is signed.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

from httppubsubclient.protocol.credentials import Credentials, secrets_from_json, sign_request
from httppubsubclient.protocol.signatures import content_digest

BODY = b"x" * 100
DIGEST = content_digest(hashlib.sha256(BODY).digest())


class Load:
    """Counts what was answered, and how long each answer took."""

    def __init__(self, url: str, credentials: Credentials, seconds: float) -> None:
        parts = urlsplit(url)
        self.host, self.port = parts.hostname or "", parts.port or 80
        self.path, self.query = parts.path, parts.query
        self.target = f"{parts.path}?{parts.query}" if parts.query else parts.path
        self.credentials = credentials
        self.seconds = seconds
        self.latencies: list[float] = []
        self.nonces = 0

    def request(self) -> bytes:
        self.nonces += 1
        headers = {"content-digest": DIGEST}
        now = time.time()
        headers |= sign_request(
            self.credentials,
            method="POST",
            path=self.path,
            query=self.query,
            headers=headers,
            now=int(now),
            nonce=f"{int(now * 1e6):016x}{self.nonces:016x}",
        )
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = f"POST {self.target} HTTP/1.1\r\nhost: {self.host}\r\ncontent-length: {len(BODY)}\r\n{lines}\r\n"
        return head.encode("ascii") + BODY

    def check(self, answer: bytes) -> None:
        if b'"failed": 0' not in answer and b'"failed":0' not in answer and b"failed" in answer:
            raise SystemExit(f"a delivery failed; this run says nothing: {answer.decode()}")

    async def one_connection(self, end: float) -> None:
        reader, writer = await asyncio.open_connection(self.host, self.port)
        while (start := time.perf_counter()) < end:
            writer.write(self.request())
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 2"):
                raise SystemExit(f"the notify was not taken: {head.decode()}")
            length = head.lower().split(b"content-length: ", 1)[1].split(b"\r\n", 1)[0]
            self.check(await reader.readexactly(int(length)))
            self.latencies.append(time.perf_counter() - start)
        writer.close()

    async def run(self, connections: int) -> dict[str, float]:
        start = time.perf_counter()
        await asyncio.gather(*(self.one_connection(start + self.seconds) for _ in range(connections)))
        elapsed = time.perf_counter() - start
        ordered = sorted(self.latencies)
        return {
            "per_second": len(ordered) / elapsed,
            "p50_ms": ordered[len(ordered) // 2] * 1000,
            "p99_ms": ordered[len(ordered) * 99 // 100] * 1000,
        }


def run(load: Load, connections: int) -> None:
    work = load.run(connections)
    try:
        import uvloop

        result = uvloop.run(work)
    except ImportError:
        result = asyncio.run(work)
    print(json.dumps(result))


def main() -> None:
    url, connections, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    credentials = Credentials.none()
    if len(sys.argv) > 4:
        credentials = secrets_from_json(json.loads(Path(sys.argv[4]).read_text())).to_broadcasters
    run(Load(url, credentials, seconds), connections)


if __name__ == "__main__":
    main()
