"""One broadcaster of the torture: a row of lives on one port, each of which ends by a death that is chosen."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.e2e.processes import Process, running
from tests.e2e.torture.journals import Journal
from tests.e2e.torture.ports import ReservedPort

__all__ = ["Broadcaster", "Death", "deaths_of", "troubles_of"]

KILLED = -signal.SIGKILL
DEATHS = (KILLED, -signal.SIGXFSZ)
_LOCKED = "locked by another process"
"""Whoever is stopped in the middle of a transaction locks the others out; they say so, and go on later."""


@dataclass(frozen=True, slots=True)
class Death:
    """How a life ends."""

    point: str | None = None
    """One of points.py; None: at any moment."""
    passes: int = 1
    within_seconds: float = 0.5
    """It is killed then at the latest. A point that has not been reached until then was missed."""
    gentle: bool = False
    """Told to stop by SIGTERM instead, and waited for."""


def deaths_of(chance: random.Random, points: Sequence[str], *, at_random: int, within_seconds: float) -> list[Death]:
    """One for each of `points` and so many at random moments, one in four of them gentle; shuffled."""
    named = [Death(point, chance.randint(1, 5), within_seconds) for point in points]
    others = [Death(within_seconds=chance.uniform(0.02, 0.4), gentle=number % 4 == 0) for number in range(at_random)]
    deaths = [*named, *others]
    chance.shuffle(deaths)
    return deaths


def troubles_of(process: Process) -> list[str]:
    """What a broadcaster has logged that nobody wants to read."""
    said = (line for line in process.errors if " ERROR " in line or line.startswith("Traceback"))
    return [line for line in said if _LOCKED not in line]


class Broadcaster:
    """Its lives come from a nursery (faulty_serve.py), one after the other."""

    def __init__(
        self, nursery: Process, serve: Sequence[str], journal: Journal, seed: str, lease_seconds: float | None
    ) -> None:
        self._nursery = nursery
        self._port = ReservedPort()
        self._serve = [*serve, "--port", str(self._port.number)]
        self._journal = journal
        self._told = ["--seed", seed]
        if lease_seconds is not None:
            self._told += ["--lease-seconds", str(lease_seconds)]
        self._born_after = 0
        self._lives = 0
        self._handle: int | None = None
        self.url = self._port.url
        self.reached: list[str] = []
        """The points at which it died."""

    @classmethod
    @contextlib.asynccontextmanager
    async def raised(
        cls, serve: Sequence[str], journal: Journal, *, seed: str, lease_seconds: float | None, cwd: Path
    ) -> AsyncIterator[Self]:
        """With a nursery of its own; whatever lives at the end is killed."""
        arguments = ("-m", "tests.e2e.torture.faulty_serve", "--nursery")
        async with running(*arguments, cwd=cwd, stdin=asyncio.subprocess.PIPE) as nursery:
            await nursery.line()
            broadcaster = cls(nursery, serve, journal, seed, lease_seconds)
            try:
                yield broadcaster
            finally:
                await broadcaster.kill()
                broadcaster._port.close()

    @property
    def troubles(self) -> list[str]:
        """See `troubles_of`."""
        return troubles_of(self._nursery)

    async def live(self, death: Death, *, bug: str | None = None) -> None:
        """One life to its end."""
        await self.begin(death, bug=bug)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(death.within_seconds):
                await self._nursery.line(_is_end, after=self._born_after)
        if death.gentle:
            self._signal(signal.SIGTERM)
            await self._nursery.line(_is_end, after=self._born_after)
        await self.kill()
        self._take_note(death)

    async def begin(self, death: Death | None = None, *, bug: str | None = None) -> None:
        """Start a life; returns when it listens, or is dead."""
        self._lives += 1
        self._born_after = len(self._nursery.lines)
        told = list(self._told)
        if death is not None and death.point is not None:
            told += ["--point", death.point, "--passes", str(death.passes)]
        if bug is not None:
            told += ["--bug", bug]
        stdin = self._nursery.child.stdin
        assert stdin is not None
        stdin.write(json.dumps([*told, "--", *self._serve]).encode() + b"\n")
        born = await self._nursery.line(lambda line: line.startswith("born "), after=self._born_after)
        with contextlib.suppress(ProcessLookupError):  # it may be gone already
            self._handle = os.pidfd_open(int(born.split()[1]))
        await self._nursery.line(lambda line: _is_end(line) or line.startswith("listening "), after=self._born_after)

    async def kill(self) -> None:
        """End the present life, if there is one."""
        self._signal(signal.SIGKILL)
        if self._lives:
            await self._nursery.line(_is_end, after=self._born_after)
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def pause(self) -> None:
        """SIGSTOP: it holds what it holds, and does nothing."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT: it goes on as if nothing had been."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._handle is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, number)

    def _take_note(self, death: Death) -> None:
        said = self._nursery.lines[self._born_after :]
        status = int(next(line for line in said if _is_end(line)).split()[1])
        # Nobody but us ends it; when it ends by itself, that is worth knowing.
        assert status in ((0,) if death.gentle else DEATHS), self._nursery.output()
        torn = death.point == "torn-commit"
        reached = f"dying {death.point}" in said and (status != KILLED) == torn
        if reached and death.point is not None:
            self.reached.append(death.point)
        self._journal.write("died", point=death.point, passes=death.passes, reached=reached, status=status)


def _is_end(line: str) -> bool:
    return line.startswith("ended ")
