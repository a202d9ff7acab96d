"""One more broadcaster of the torture: `httppubsubserver serve --workers 2` as people start it, nothing patched."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Self

from tests.e2e.processes import Process, running
from tests.e2e.torture.broadcasters import Death, troubles_of
from tests.e2e.torture.journals import Journal
from tests.e2e.torture.ports import ReservedPort

__all__ = ["Workers"]

WORKERS = 2


class Workers:
    """Like `Broadcaster`, but it cannot be told where to die. In every other life a worker dies before the rest."""

    def __init__(self, serve: Sequence[str], journal: Journal, seed: str) -> None:
        self._port = ReservedPort()
        self._serve = [*serve, "--port", str(self._port.number), "--workers", str(WORKERS)]
        self._journal = journal
        self._random = random.Random(seed)
        self._life = contextlib.AsyncExitStack()
        self._process: Process | None = None
        self._paused: int | None = None
        self.url = self._port.url
        self.reached: list[str] = []
        self.troubles: list[str] = []

    @classmethod
    @contextlib.asynccontextmanager
    async def raised(cls, serve: Sequence[str], journal: Journal, *, seed: str) -> AsyncIterator[Self]:
        """Whatever lives at the end is killed."""
        workers = cls(serve, journal, seed)
        try:
            yield workers
        finally:
            await workers.kill()
            workers._port.close()

    async def begin(self, death: Death | None = None, *, bug: str | None = None) -> None:
        """Start a life; returns when it listens."""
        assert bug is None, "nothing is patched here"
        process = running("-m", "httppubsubserver", "serve", *self._serve)
        self._process = await self._life.enter_async_context(process)
        await self._process.url()

    async def live(self, death: Death, *, bug: str | None = None) -> None:
        """One life to its end, which comes when it comes: points do not count here."""
        await self.begin(bug=bug)
        assert self._process is not None
        parts = self._random.choice((1, 2))
        for part in range(parts):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(death.within_seconds):
                    await self._process.child.wait()
            assert self._process.child.returncode is None, self._process.output()
            if part + 1 < parts and (workers := self._workers()):
                self._signal(self._random.choice(workers), signal.SIGKILL)
        if death.gentle:
            self.resume()
            assert await self._process.stop() == 0, self._process.output()
        await self.kill()
        self._journal.write("died", point=None, passes=0, reached=False, workers=WORKERS)

    async def kill(self) -> None:
        """All of it at once: what is left of it would keep the port."""
        process, self._process = self._process, None
        if process is None:
            return
        self._signal(process.pid, signal.SIGSTOP)  # or it might start another worker behind our back
        for pid in [process.pid, *_workers_of(process)]:
            self._signal(pid, signal.SIGKILL)
        self._paused = None
        await process.ended()
        await self._life.aclose()
        self.troubles += troubles_of(process)

    def pause(self) -> None:
        """SIGSTOP for one of the workers."""
        workers = self._workers()
        if workers:
            self._paused = self._random.choice(workers)
            self._signal(self._paused, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT for that one, if it is still there."""
        if self._paused in self._workers():
            self._signal(self._paused, signal.SIGCONT)
        self._paused = None

    def _workers(self) -> list[int]:
        return [] if self._process is None else _workers_of(self._process)

    def _signal(self, pid: int, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _workers_of(process: Process) -> list[int]:
    try:
        return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []
