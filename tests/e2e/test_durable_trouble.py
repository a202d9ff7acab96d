"""Trouble below a real broadcaster: it says so, promises nothing that it cannot keep, and goes on when it passes."""

from __future__ import annotations

import contextlib
import json
import resource
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.processes import Process, Site, running, until

RECEIVERS = Path(__file__).with_name("receivers.py")
ODD_SERVE = Path(__file__).with_name("odd_serve.py")
BODY = b"b" * 20_000


class Scene:
    """A broadcaster on an odd machine, and two receivers that take everything."""

    def __init__(self, directory: Path, process: Process, receivers: Process, ports: list[int], url: str) -> None:
        self.database = directory / "httppubsub.sqlite3"
        self.process = process
        self._receivers = receivers
        self.ports = ports
        self._http = httpx.AsyncClient(base_url=url, timeout=20)

    async def close(self) -> None:
        await self._http.aclose()

    async def subscribe(self, number: int, **options: Any) -> None:
        """The receiver with this number, to everything."""
        body = {"url": f"http://127.0.0.1:{self.ports[number]}/", "topic": "t", **options}
        answer = await self._http.post("/v1/subscriptions", json=body)
        assert answer.status_code in (200, 201), answer.text

    async def notify(self, text: bytes, *, wait: int | None = None) -> httpx.Response:
        headers = {} if wait is None else {"prefer": f"wait={wait}"}
        return await self._http.post("/v1/notify?topic=t", content=text + BODY, headers=headers)

    async def set_clock(self, jump: signal.Signals) -> None:
        """SIGUSR1: an hour forward; SIGUSR2: back."""
        told = len(self._jumps())
        self.process.signal(jump)

        async def done() -> bool:
            return len(self._jumps()) > told

        await until(done)

    def _jumps(self) -> list[str]:
        return [line for line in self.process.errors if line.startswith("the clock is")]

    def got(self, number: int) -> list[dict[str, Any]]:
        """What that receiver has got."""
        lines = [json.loads(line) for line in self._receivers.lines[1:]]
        return [line for line in lines if line["port"] == self.ports[number]]

    def texts(self, number: int) -> list[str]:
        return [line["body"].rstrip("b") for line in self.got(number)]

    async def until_texts(self, number: int, *texts: str) -> None:
        """Wait until that receiver has got exactly these."""

        async def arrived() -> bool:
            return sorted(self.texts(number)) == sorted(texts)

        await until(arrived)


@contextlib.asynccontextmanager
async def open_scene(
    directory: Path, *options: str, tempers: tuple[str, ...] = ("accept", "accept")
) -> AsyncIterator[Scene]:
    free = ("--to-broadcasters-auth", "none", "--to-subscribers-auth", "none")
    site = await Site.make(directory, *free)
    async with AsyncExitStack() as stack:
        receivers = await stack.enter_async_context(running(RECEIVERS, *tempers))
        ports = json.loads(await receivers.line())["ports"]
        process = await stack.enter_async_context(serve(site, *options))
        scene = Scene(directory, process, receivers, ports, await process.url())
        stack.push_async_callback(scene.close)
        yield scene


def serve(site: Site, *options: str) -> AbstractAsyncContextManager[Process]:
    database = f"sqlite:///{site.directory / 'httppubsub.sqlite3'}"
    secrets = site.directory / "broadcaster-secrets.json"
    return running(ODD_SERVE, "serve", "--db", database, "--secrets", secrets, "--port", "0", *options)


@contextlib.contextmanager
def locked(database: Path) -> Iterator[None]:
    """Another process writes, and takes its time."""
    connection = sqlite3.connect(database, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.close()


@contextlib.contextmanager
def no_growing_files(process: Process) -> Iterator[None]:
    """It can write nothing beyond the first byte of a file: as good as a disk that fails."""
    before = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1, before[1]))
    try:
        yield
    finally:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def full(directory: Path) -> Iterator[None]:
    """Not a byte is left on its disk."""
    filler = directory / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    try:
        yield
    finally:
        filler.unlink()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of a few megabytes, where that can be had."""
    place = tmp_path / "disk"
    place.mkdir()
    mount, umount = shutil.which("mount"), shutil.which("umount")
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=4m", "none", str(place)]
    if mount is None or umount is None or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("this user may not mount a small disk")
    try:
        yield place
    finally:
        subprocess.run([umount, "-l", str(place)], check=True)


async def see_it_through(scene: Scene, trouble: contextlib.AbstractContextManager[None]) -> None:
    """Before, during and after: who is promised what, and who gets it."""
    await scene.subscribe(0, delivery="durable")
    await scene.subscribe(1)
    assert (await scene.notify(b"before")).status_code == 200
    await scene.until_texts(0, "before")
    with trouble:
        refused = await scene.notify(b"during")
        assert refused.status_code == 503, refused.text
        assert "retry-after" in refused.headers
        await scene.until_texts(1, "before", "during")
    answer = await scene.notify(b"after")
    assert (answer.status_code, answer.json()["notified"]) == (200, 2)
    await scene.until_texts(1, "before", "during", "after")
    # What was refused may come all the same, when the disk failed at the very end; never twice.
    assert set(scene.texts(0)) - {"during"} == {"before", "after"}
    assert len(scene.texts(0)) == len(set(scene.texts(0)))


async def test_a_database_that_another_process_keeps_locked(tmp_path: Path) -> None:
    async with open_scene(tmp_path / "site") as scene:
        await see_it_through(scene, locked(scene.database))


async def test_a_disk_that_fails(tmp_path: Path) -> None:
    async with open_scene(tmp_path / "site") as scene:
        await see_it_through(scene, no_growing_files(scene.process))


async def test_a_disk_that_is_full(small_disk: Path) -> None:
    async with open_scene(small_disk / "site") as scene:
        await see_it_through(scene, full(small_disk))


async def test_a_clock_that_jumps_makes_neither_a_storm_nor_a_standstill(tmp_path: Path) -> None:
    async with open_scene(tmp_path / "site", tempers=("accept", "error")) as scene:
        await scene.subscribe(0, delivery="durable")
        await scene.subscribe(1, delivery="durable", retry_schedule_seconds=[0, 3000, 20_000])
        sent: list[str] = []
        for number in range(3):
            sent.append(str(number))
            answer = await scene.notify(sent[-1].encode())
            assert (answer.json()["notified"], answer.json()["pending"]) == (1, 1)
        for jump in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGUSR2, signal.SIGUSR1):
            await scene.set_clock(jump)
            sent.append(jump.name)
            answer = await scene.notify(sent[-1].encode())
            assert answer.status_code == 202
            await scene.until_texts(0, *sent)
        # One of each at first, and one again of those for which the clock has passed 3000 s.
        assert len(scene.got(1)) <= 2 * len(sent)


async def test_what_hung_when_a_broadcaster_was_stopped_is_attempted_by_the_next_one(tmp_path: Path) -> None:
    """At once: not when a lease of its would have ended, and as the attempt that it was."""
    async with open_scene(tmp_path / "site", "--shutdown-timeout-seconds", "0.1", tempers=("hang", "accept")) as scene:
        await scene.subscribe(0, delivery="durable")
        for text in (b"1", b"2"):
            assert (await scene.notify(text, wait=0)).status_code == 202
        await scene.until_texts(0, "1", "2")
        assert await scene.process.stop() == 0, scene.process.output()
        async with serve(Site(tmp_path / "site"), "--shutdown-timeout-seconds", "0.1"):
            await scene.until_texts(0, "1", "1", "2", "2")
        assert {line["headers"]["pubsub-attempt"] for line in scene.got(0)} == {"1"}
