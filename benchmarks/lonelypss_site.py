"""lonelypss 0.0.12 as a contestant: set up by its own command with hmac in both directions and SQLite, one process.

It POSTs to one subscriber after another inside the request of the publisher, and commits the code of every answer to
SQLite before the next. What it needs besides: receive_lonelypss.py, publish_lonelypss.py, lonelypss_wire.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
from harness import HERE, OTHERS, OURS, Contestant, NotTaken, callback_urls, process
from lonelypss_wire import secret_of, subscription
from venvs import NotInstalled, python_with

REQUIREMENT = "lonelypss[standard]==0.0.12"
SERVE = """
import uvicorn
config = uvicorn.Config("main:app", port=0, log_level="critical", access_log=False)
sock = config.bind_socket()
sock.listen(2048)
print(f"http://127.0.0.1:{sock.getsockname()[1]}", flush=True)
uvicorn.Server(config).run(sockets=[sock])
"""
"""`uvicorn main:app` as its README says, on a free port and without logs, which would only slow it down."""
TRACING = "__import__('lonelypss.config.config', fromlist=['_']).TracingConfigSimple()"
"""The one it has. The main.py that its setup writes leaves this argument out, and would not start."""
AUTH = ["--to-broadcasters-auth", "hmac", "--to-subscribers-auth", "hmac"]
SETUP = ["-m", "lonelypss", "--setup", "--db", "sqlite", *AUTH]


class Lonelypss(Contestant):
    """Loaded through its own publisher, watched at its own receiver."""

    def __init__(self, pid: int, receiver: int, url: str, secrets: Path, connections: int) -> None:
        super().__init__("lonelypss", pid, url, secrets, connections)
        self.receiver = receiver

    def run(self, receiver: int, subscribers: int, seconds: float) -> None:
        """See Contestant."""
        super().run(self.receiver, subscribers, seconds)

    def load(self, subscribers: int, seconds: float) -> tuple[float, float, float]:
        """See Contestant."""
        arguments = [f"{self.url}/v1/notify", str(self.connections), str(seconds), str(self.secrets), str(subscribers)]
        command = [sys.executable, str(HERE / "publish_lonelypss.py"), *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, preexec_fn=lambda: os.sched_setaffinity(0, OTHERS)
        )
        if done.returncode != 0:
            raise NotTaken(done.stderr.strip().splitlines()[-1])
        result = json.loads(done.stdout)
        return result["per_second"] * subscribers, result["p50_ms"], result["p99_ms"]


@contextlib.contextmanager
def lonelypss(site: Path, subscribers: int, ports: int, connections: int = 2) -> Iterator[Lonelypss]:
    """Install, set up in a new directory, serve and subscribe. Raises `NotInstalled`."""
    python = python_with(REQUIREMENT)
    site.mkdir()
    setup = subprocess.run([python, *SETUP], cwd=site, capture_output=True, text=True, check=False)
    if setup.returncode != 0:
        raise NotInstalled(f"its setup failed: {setup.stderr.strip().splitlines()[-1]}")
    main = site / "main.py"
    main.write_text(main.read_text().replace("return ConfigFromParts(", f"return ConfigFromParts(tracing={TRACING},"))
    secrets = site / "subscriber-secrets.json"
    receive: list[str | Path] = [sys.executable, HERE / "receive_lonelypss.py", str(ports), secrets]
    with (
        process(receive, OTHERS) as (receiver, line),
        process([python, "-c", SERVE], OURS, site) as (child, url),
        httpx.Client(trust_env=False, timeout=30) as client,
    ):
        for target in callback_urls(line.split(), subscribers):
            signed, body = subscription(secret_of(secrets, "to-broadcaster"), target, b"t")
            headers = {"authorization": signed.decode("ascii")}
            try:
                answer = client.post(f"{url}/v1/subscribe/exact", content=body, headers=headers)
                answer.raise_for_status()
            except httpx.HTTPError as error:
                raise NotInstalled(f"it took no subscription: {error}") from error
        yield Lonelypss(child.pid, receiver.pid, url, secrets, connections)
