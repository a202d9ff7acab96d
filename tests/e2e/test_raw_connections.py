"""What a broadcaster and a client's listener do with bytes that no HTTP library would send."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.e2e.conftest import open_client
from tests.e2e.processes import DEADLINE_SECONDS, Process, Site

HEAD = b"POST /v1/notify?topic=t HTTP/1.1\r\nhost: x\r\n"


@pytest.fixture
async def open_broadcaster(tmp_path: Path) -> AsyncIterator[Process]:
    """Without authentication, so that nothing but the form of a request is in its way."""
    site = await Site.make(tmp_path / "site", "--to-broadcasters-auth", "none", "--to-subscribers-auth", "none")
    async with site.serve() as process:
        await process.url()
        yield process


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            yield reader, writer
    finally:
        writer.close()


async def everything(reader: asyncio.StreamReader) -> bytes:
    """What is sent until the other side closes, or resets."""
    received = bytearray()
    try:
        while chunk := await reader.read(65536):
            received += chunk
    except ConnectionError:
        pass
    return bytes(received)


async def test_an_upgrade_is_refused_and_its_body_is_never_taken_for_a_request(open_broadcaster: Process) -> None:
    url = await open_broadcaster.url()
    called = asyncio.Event()

    async def call(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        called.set()
        writer.close()

    callback = await asyncio.start_server(call, "127.0.0.1", 0)
    async with httpx.AsyncClient(base_url=url) as api:
        address = f"http://127.0.0.1:{callback.sockets[0].getsockname()[1]}/hook"
        subscription = {"url": address, "topic": "smuggled"}
        assert (await api.post("/v1/subscriptions", json=subscription)).status_code == 201
    smuggled = b"POST /v1/notify?topic=smuggled HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"
    async with connected(url) as (reader, writer):
        upgrade = b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n"
        writer.write(HEAD + upgrade + b"content-length: %d\r\n\r\n" % len(smuggled))
        await writer.drain()
        writer.write(smuggled)
        answer = await everything(reader)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert await open_broadcaster.stop() == 0  # with all that it has to deliver
    assert not called.is_set()
    callback.close()


@pytest.mark.parametrize("shape", ["one header", "many headers", "a target"])
async def test_a_head_without_end_is_cut_off_and_costs_no_memory(open_broadcaster: Process, shape: str) -> None:
    url = await open_broadcaster.url()
    before = open_broadcaster.resident_bytes()
    start = b"GET /" if shape == "a target" else HEAD + (b"x: " if shape == "one header" else b"")
    piece = b"y: z\r\n" * 10_000 if shape == "many headers" else b"y" * 60_000
    async with connected(url) as (reader, writer):
        reading = asyncio.create_task(everything(reader))
        writer.write(start)
        try:
            for _ in range(2000):
                writer.write(piece)
                await writer.drain()
        except ConnectionError:
            pass
        answer = await reading
    assert answer.startswith(b"HTTP/1.1 414 " if shape == "a target" else b"HTTP/1.1 431 ")
    assert b'"code": "too_large"' in answer
    assert open_broadcaster.resident_bytes() - before < 30_000_000


@pytest.mark.parametrize(
    "framing",
    [
        b"content-length: 5\r\ncontent-length: 6\r\n",
        b"content-length: 5\r\ntransfer-encoding: chunked\r\n",
        b"content-length: -1\r\n",
        b"content-length: 5x\r\n",
        b"transfer-encoding: gzip\r\n",
        b"transfer-encoding: chunked, chunked\r\n",
    ],
)
async def test_ambiguous_framing_is_refused_and_the_connection_closed(
    open_broadcaster: Process, framing: bytes
) -> None:
    async with connected(await open_broadcaster.url()) as (reader, writer):
        writer.write(HEAD + framing + b"\r\nhello0\r\n\r\n")
        writer.write_eof()
        answer = await everything(reader)
    assert answer.startswith(b"HTTP/1.1 4"), answer
    assert answer.count(b"HTTP/1.1 ") == 1


async def test_a_client_s_listener_cuts_off_endless_heads_and_upgrades_too(site: Site) -> None:
    async with site.serve() as broadcaster, open_client(site, await broadcaster.url()) as client:
        async with connected(client.callback_url) as (reader, writer):
            reading = asyncio.create_task(everything(reader))
            writer.write(b"POST /v1/receive HTTP/1.1\r\nx: ")
            with suppress(ConnectionError):
                for _ in range(200):
                    writer.write(b"y" * 60_000)
                    await writer.drain()
            answer = await reading
            assert answer.startswith(b"HTTP/1.1 431 ")
        async with connected(client.callback_url) as (reader, writer):
            writer.write(b"POST /v1/receive HTTP/1.1\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n")
            assert (await everything(reader)).startswith(b"HTTP/1.1 400 ")


async def test_a_spool_folder_that_is_gone_is_503_and_works_again_when_it_is_back(tmp_path: Path) -> None:
    site = await Site.make(tmp_path / "site", "--to-broadcasters-auth", "none", "--to-subscribers-auth", "none")
    folder = tmp_path / "spool"
    folder.mkdir()
    async with (
        site.serve("--spool-directory", str(folder), "--spool-bytes", "1000") as broadcaster,
        httpx.AsyncClient(base_url=await broadcaster.url(), timeout=30) as api,
    ):
        folder.rmdir()
        refused = await api.post("/v1/notify?topic=t", content=b"x" * 100_000)
        assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
        folder.mkdir()
        assert (await api.post("/v1/notify?topic=t", content=b"x" * 100_000)).status_code == 200
    assert list(folder.iterdir()) == []
