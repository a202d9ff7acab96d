"""A large message from end to end, with the memory of every process measured."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from pathlib import Path

import httpx
import pytest

from tests.e2e.processes import DEADLINE_SECONDS, Process, Site
from tests.e2e.test_main_job import subscribed

MEBIBYTE = 1024 * 1024
SLOWEST_BYTES_PER_SECOND = 10_000_000
ALLOWED_GROWTH = 64 * MEBIBYTE


def sparse_file(path: Path, size: int) -> str:
    """A file of zeros with a mark near its end, which takes no room on the disk; its SHA-256."""
    with path.open("wb") as file:
        file.seek(size - 100)
        file.write(b"the end".ljust(100))
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def peak_until_ended(process: Process) -> int:
    """The most memory that a process was seen to hold, looked at until it is gone."""
    peak = 0
    while process.child.returncode is None:
        with contextlib.suppress(OSError, ValueError):
            peak = max(peak, process.resident_bytes())
        await asyncio.sleep(0.02)
    assert peak > 0
    return peak


async def send_to(site: Site, size: int, subscribers: int, tmp_path: Path, *options: str) -> None:
    """One message of `size` bytes to so many listeners, each a process; every process's memory stays flat."""
    expected = sparse_file(tmp_path / "large", size)
    async with contextlib.AsyncExitStack() as stack:
        broadcaster = await stack.enter_async_context(site.serve("--spool-directory", str(tmp_path), *options))
        url = await broadcaster.url()
        listeners: list[Process] = []
        for _ in range(subscribers):
            listener = await stack.enter_async_context(
                site.client(url, "listen", "files/*", "--json", "--save", tmp_path / f"saved{len(listeners)}")
            )
            await subscribed(listener)
            listeners.append(listener)
        async with site.client(url, "notify", "files/warm", "--data", "x", "--json") as warm:
            assert await warm.ended() == 0, warm.output()
        before = [process.resident_bytes() for process in (broadcaster, *listeners)]

        publisher = await stack.enter_async_context(
            site.client(url, "notify", "files/large", "--file", tmp_path / "large", "--json")
        )
        for process in (publisher, *listeners):
            process.deadline_seconds = DEADLINE_SECONDS + size / SLOWEST_BYTES_PER_SECOND
        measuring = asyncio.create_task(peak_until_ended(publisher))
        lines = [await listener.line(lambda line: json.loads(line)["topic"] == "files/large") for listener in listeners]
        assert await publisher.ended() == 0, publisher.output()
        assert json.loads(publisher.lines[0])["notified"] == subscribers
        after = [process.resident_bytes() for process in (broadcaster, *listeners)]

    for line in lines:
        with open(json.loads(line)["file"], "rb") as file:
            assert hashlib.file_digest(file, "sha256").hexdigest() == expected
    growth = [later - earlier for earlier, later in zip(before, after, strict=True)]
    assert max(growth) < ALLOWED_GROWTH, growth
    assert await measuring < 3 * ALLOWED_GROWTH


async def test_a_large_message_arrives_whole_and_memory_stays_flat(site: Site, tmp_path: Path) -> None:
    await send_to(site, 256 * MEBIBYTE, 1, tmp_path)


@pytest.mark.soak
async def test_a_gibibyte_arrives_whole_and_memory_stays_flat(site: Site, tmp_path: Path) -> None:
    await send_to(site, 1024 * MEBIBYTE, 1, tmp_path)


@pytest.mark.soak
@pytest.mark.timeout(1800)
async def test_five_gibibytes_to_three_subscribers_arrive_whole_and_memory_stays_flat(
    site: Site, tmp_path: Path
) -> None:
    size = 5 * 1024 * MEBIBYTE
    await send_to(site, size, 3, tmp_path, "--max-body-bytes", str(size), "--attempt-timeout-seconds", "600")


async def test_a_body_over_the_limit_is_answered_413_even_while_it_is_still_being_sent(tmp_path: Path) -> None:
    site = await Site.make(tmp_path / "site", "--to-broadcasters-auth", "none", "--to-subscribers-auth", "none")
    async with site.serve("--max-body-bytes", "1000000") as broadcaster:
        url = f"{await broadcaster.url()}/v1/notify?topic=t"

        async def chunks() -> object:
            for _ in range(200):
                yield b"x" * 100_000

        async with httpx.AsyncClient(timeout=30) as client:
            declared = await client.post(url, content=b"x" * 1_000_001)
            streamed = await client.post(url, content=chunks())  # type: ignore[arg-type]
            assert (declared.status_code, streamed.status_code) == (413, 413)
            assert (await client.post(url, content=b"x" * 1_000_000)).status_code == 200
