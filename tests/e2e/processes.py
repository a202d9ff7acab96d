"""Real processes for the tests: started on port 0, found by the line they print, gone when the test is."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from tests import canaries

__all__ = ["DEADLINE_SECONDS", "Process", "Site", "running", "until"]

DEADLINE_SECONDS = 30.0
"""How long anything may take before a test gives up waiting; generous, because machines are busy."""

_LISTENING = "listening on "


class Process:
    """A child process whose output is collected while it runs."""

    def __init__(self, child: asyncio.subprocess.Process, name: str) -> None:
        self.deadline_seconds = DEADLINE_SECONDS
        self.child = child
        self.name = name
        self.lines: list[str] = []
        self.errors: list[str] = []
        self._changed = asyncio.Event()
        self._readers = [
            asyncio.create_task(self._collect(child.stdout, self.lines)),
            asyncio.create_task(self._collect(child.stderr, self.errors)),
        ]

    @property
    def pid(self) -> int:
        return self.child.pid

    async def line(self, condition: Callable[[str], bool] = lambda _: True, *, after: int = 0) -> str:
        """The first line of output from position `after` that meets the condition; waits for it."""
        return (await self.wait_lines(1, condition, after=after))[0]

    async def wait_lines(
        self, count: int, condition: Callable[[str], bool] = lambda _: True, *, after: int = 0
    ) -> list[str]:
        """The first `count` such lines; waits for them."""
        async with asyncio.timeout(self.deadline_seconds):
            while True:
                found = [line for line in self.lines[after:] if condition(line)]
                if len(found) >= count:
                    return found[:count]
                if self.child.returncode is not None and self._readers[0].done():
                    raise AssertionError(f"{self.name} ended with {self.child.returncode}: {self.output()}")
                self._changed.clear()
                await self._changed.wait()

    async def url(self) -> str:
        """Where a broadcaster listens; its first line of output says it."""
        first = await self.line()
        assert first.startswith(_LISTENING), first
        return first.removeprefix(_LISTENING)

    def signal(self, number: signal.Signals) -> None:
        # Not child.send_signal: that polls first, and may reap the child behind the back of asyncio.
        os.kill(self.pid, number)

    async def ended(self) -> int:
        """Its exit status, once it has ended and everything that it wrote is read."""
        async with asyncio.timeout(self.deadline_seconds):
            status = await self.child.wait()
            await asyncio.gather(*self._readers)
        return status

    async def stop(self) -> int:
        """SIGTERM, and wait."""
        self.signal(signal.SIGTERM)
        return await self.ended()

    def resident_bytes(self) -> int:
        """Its peak memory so far (VmHWM of /proc)."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        [line] = [line for line in status.splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024

    def output(self) -> str:
        return "\n".join([*self.lines, *self.errors])

    async def _collect(self, stream: asyncio.StreamReader | None, lines: list[str]) -> None:
        assert stream is not None
        async for line in stream:
            text = line.decode().rstrip("\n")
            lines.append(text)
            if "sign" not in self.name:  # which is for showing what proves who one is
                canaries.look_at(self.name, text)
            self._changed.set()
        self._changed.set()


@contextlib.asynccontextmanager
async def running(
    *arguments: str | Path,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    stdin: int = asyncio.subprocess.DEVNULL,
) -> AsyncIterator[Process]:
    """A process of this Python with these arguments; killed at the end if it is still there."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("HTTPPUBSUB_")}
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        *map(str, arguments),
        cwd=cwd,
        env={**variables, "PYTHONUNBUFFERED": "1", **(environment or {})},
        stdin=stdin,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    process = Process(child, " ".join(map(str, arguments[:3])))
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await process.ended()


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Ask again and again until `condition` holds; for what cannot be waited for in any other way."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not await condition():
            await asyncio.sleep(0.01)


class Site:
    """A folder made by `httppubsubserver --setup`, and the commands that use it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @classmethod
    async def make(cls, directory: Path, *options: str) -> Site:
        """Run --setup with these options."""
        async with running("-m", "httppubsubserver", "--setup", "--directory", directory, *options) as setup:
            assert await setup.ended() == 0, setup.output()
        for name in ("broadcaster-secrets.json", "subscriber-secrets.json", "storage-key"):
            if (directory / name).exists():
                canaries.plant_file(directory / name)
        return cls(directory)

    def serve(self, *options: str) -> contextlib.AbstractAsyncContextManager[Process]:
        """A broadcaster on a free port (unless the options say otherwise), with this folder's database."""
        database = f"sqlite:///{self.directory / 'httppubsub.sqlite3'}"
        port = () if "--port" in options else ("--port", "0")
        secrets = self.directory / "broadcaster-secrets.json"
        storage_key = self.directory / "storage-key"
        if storage_key.exists() and "--storage-key-file" not in options:
            options = ("--storage-key-file", str(storage_key), *options)
        return running("-m", "httppubsubserver", "serve", "--db", database, "--secrets", secrets, *port, *options)

    def client(self, url: str, *arguments: str | Path) -> contextlib.AbstractAsyncContextManager[Process]:
        """`httppubsubclient ...` as a process, talking to the broadcaster at `url`."""
        secrets = self.directory / "subscriber-secrets.json"
        command, *rest = arguments
        return running("-m", "httppubsubclient", command, "--secrets", secrets, "--broadcaster", url, *rest)

    @property
    def secrets(self) -> dict[str, Any]:
        """What subscriber-secrets.json says."""
        document: dict[str, Any] = json.loads((self.directory / "subscriber-secrets.json").read_text())
        return document
