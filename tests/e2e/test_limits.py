"""What a running broadcaster does at its limits: connections, heads, bodies. It answers, and its memory stays flat."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.client.test_request_heads import everything, head, refusal
from tests.e2e.processes import DEADLINE_SECONDS, Process, Site, until
from tests.server.test_serving import Holding

OPEN = ("--to-broadcasters-auth", "none", "--to-subscribers-auth", "none")
MEBIBYTE = 1 << 20


@pytest.fixture
async def site(tmp_path: Path) -> Site:
    """Without authentication, so that nothing but a limit is in the way."""
    return await Site.make(tmp_path / "site", *OPEN)


@pytest.fixture
async def broadcaster(site: Site) -> AsyncIterator[Process]:
    """With small limits for bodies."""
    async with site.serve("--max-body-bytes", str(4 * MEBIBYTE), "--body-idle-timeout-seconds", "1") as process:
        await process.url()
        yield process


@pytest.fixture
async def holding() -> AsyncIterator[Holding]:
    """A callback that answers when it is told to."""
    holding = Holding()
    async with await asyncio.start_server(holding, "127.0.0.1", 0) as server:
        holding.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook"
        yield holding
        holding.release.set()


async def connect(process: Process) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(await process.url())
    return await asyncio.open_connection(parts.hostname, parts.port)


async def exchange(process: Process, data: bytes) -> bytes:
    reader, writer = await connect(process)
    try:
        writer.write(data)
        return await everything(reader)
    finally:
        writer.close()


def notify_head(*fields: bytes) -> bytes:
    return head(*fields, target=b"/v1/notify?topic=t", method=b"POST")


# -- connections ------------------------------------------------------------------------------------------------------


async def test_thousands_who_only_connect_cost_little_and_shut_nobody_out(site: Site) -> None:
    async with site.serve("--max-connections", "50") as broadcaster:
        async with httpx.AsyncClient(base_url=await broadcaster.url(), trust_env=False) as api:
            assert (await api.get("/v1/health/live")).status_code == 200
        before = broadcaster.resident_bytes()
        idle = []
        for number in range(600):
            reader, writer = await connect(broadcaster)
            writer.write(b"GET / HTTP/1.1\r\nx: y"[: number % 20])
            idle.append((reader, writer))
        async with httpx.AsyncClient(base_url=await broadcaster.url(), trust_env=False) as api:
            for _ in range(20):
                assert (await api.get("/v1/health/live")).status_code == 200
        open_files = len(list(Path(f"/proc/{broadcaster.pid}/fd").iterdir()))
        assert open_files < 50 + 40
        assert broadcaster.resident_bytes() - before < 20 * MEBIBYTE
        for _, writer in idle:
            writer.close()


async def test_when_every_place_is_working_the_next_one_is_503_and_deliveries_go_on(
    site: Site, holding: Holding
) -> None:
    async with (
        site.serve("--max-connections", "2") as broadcaster,
        httpx.AsyncClient(base_url=await broadcaster.url(), trust_env=False, timeout=30) as api,
    ):
        subscription = {"url": holding.url, "topic": "t"}
        assert (await api.post("/v1/subscriptions", json=subscription)).status_code == 201
        notifies = [asyncio.create_task(api.post("/v1/notify?topic=t", content=b"x")) for _ in range(2)]
        await holding.called.wait()
        answer = b""

        async def refused() -> bool:
            nonlocal answer
            answer = await exchange(broadcaster, head(target=b"/v1/health/live"))
            return answer.startswith(b"HTTP/1.1 503 ")

        await until(refused)
        assert refusal(answer) == (503, "unavailable")
        assert b"retry-after: " in answer
        holding.release.set()
        assert [(await notify).json()["notified"] for notify in notifies] == [1, 1]
        assert (await api.get("/v1/health/live")).status_code == 200


async def test_more_connections_than_files_are_said_to_be_fewer(tmp_path: Path) -> None:
    site = await Site.make(tmp_path / "site", *OPEN)
    async with site.serve("--max-connections", "100000000") as broadcaster:
        await broadcaster.url()
        assert any("max_connections is 100000000, but with a limit of" in line for line in broadcaster.errors)


# -- heads ------------------------------------------------------------------------------------------------------------


async def test_header_fields_that_no_request_should_have_are_refused(broadcaster: Process) -> None:
    for fields, expected in (
        ([b"x: y"] * 200, (431, "too_large")),
        ([b"content-type: " + b"x" * 100_000], (431, "too_large")),
        ([b"content-type: a\x00b"], (400, "invalid_request")),
        ([b"content-type: a\rb: c"], (400, "invalid_request")),
        ([b"host: elsewhere"], (400, "invalid_request")),
        ([b"content-length: 1"], (400, "invalid_request")),
        ([b"transfer-encoding: chunked"], (400, "invalid_request")),
    ):
        answer = await exchange(broadcaster, notify_head(b"content-length: 2", *fields) + b"hi")
        assert refusal(answer) == expected
    answer = await exchange(broadcaster, notify_head(b"transfer-encoding: gzip, chunked") + b"2\r\nhi\r\n0\r\n\r\n")
    assert refusal(answer) == (400, "invalid_request")


async def test_what_a_publisher_says_beside_its_message_never_reaches_a_subscriber(
    broadcaster: Process, holding: Holding
) -> None:
    """The names that a receiver, or somebody before it, would act on are the broadcaster's to give."""
    received: list[bytes] = []

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append((await reader.readuntil(b"\r\n\r\n")).lower())
        writer.write(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n")
        writer.close()

    names = [
        "webhook-id", "webhook-timestamp", "webhook-signature", "proxy-authorization", "x-amz-security-token",
        "x-goog-api-key", "cookie", "x-forwarded-for", "pubsub-subscription", "pubsub-attempt", "pubsub-fragment",
        "ce-type", "svix-id",
    ]  # fmt: skip
    async with (
        await asyncio.start_server(note, "127.0.0.1", 0) as server,
        httpx.AsyncClient(base_url=await broadcaster.url(), trust_env=False) as api,
    ):
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook"
        assert (await api.post("/v1/subscriptions", json={"url": url, "topic": "t"})).status_code == 201
        headers = dict.fromkeys(names, "planted")
        answer = await api.post("/v1/notify?topic=t", content=b"x", headers=headers)
        assert answer.json()["notified"] == 1
    assert b"planted" not in received[0]


async def test_a_content_type_that_cannot_be_forwarded_is_refused(broadcaster: Process) -> None:
    for value in ("text/plain; x=é".encode(), b"a/b" + b"c" * 5000, b"\xff\xfe", b"a\x7fb"):
        fields = (b"connection: close", b"content-length: 2", b"content-type: " + value)
        answer = await exchange(broadcaster, notify_head(*fields) + b"hi")
        assert answer.startswith(b"HTTP/1.1 400 "), answer[:300]
        assert b'"code"' in answer


# -- bodies -----------------------------------------------------------------------------------------------------------


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


async def pour(process: Process, start: bytes, piece: bytes, total: int) -> bytes:
    """Send until so many bytes are gone or nobody takes any more; what is answered."""
    reader, writer = await connect(process)
    answer = asyncio.create_task(everything(reader))
    try:
        writer.write(start)
        sent = 0
        while sent < total and not answer.done():
            writer.write(piece)
            sent += len(piece)
            await asyncio.wait_for(writer.drain(), DEADLINE_SECONDS)
            await asyncio.sleep(0)
        return await answer
    except ConnectionError:
        return await answer
    finally:
        writer.close()


JSON = b"content-type: application/json"
POURED = [
    (b"/v1/notify?topic=t", b"POST"),
    (b"/v1/subscriptions", b"POST"),
    (b"/v1/subscriptions?url=http://127.0.0.1:1/", b"PUT"),
    (b"/v1/deliveries/replay", b"POST"),
]


@pytest.mark.parametrize(("target", "method"), POURED)
@pytest.mark.parametrize("framing", ["chunked", "length"])
async def test_an_endless_body_is_413_while_it_comes_and_costs_no_memory(
    broadcaster: Process, target: bytes, method: bytes, framing: str
) -> None:
    piece = b" " * 65536
    before = broadcaster.resident_bytes()
    if framing == "chunked":
        start, piece = head(JSON, b"transfer-encoding: chunked", target=target, method=method), chunked(piece)
    else:
        start = head(JSON, b"content-length: 10000000000", target=target, method=method)
    answer = await pour(broadcaster, start, piece, 60 * MEBIBYTE)
    assert answer.startswith(b"HTTP/1.1 413 "), answer[:200]
    assert b'"too_large"' in answer
    assert broadcaster.resident_bytes() - before < 24 * MEBIBYTE


async def test_one_byte_too_many_is_one_too_many(broadcaster: Process) -> None:
    for size, status in ((4 * MEBIBYTE, b"200"), (4 * MEBIBYTE + 1, b"413")):
        sent = notify_head(b"connection: close", b"content-length: %d" % size) + b"x" * size
        assert (await exchange(broadcaster, sent)).startswith(b"HTTP/1.1 " + status)
        sent = notify_head(b"connection: close", b"transfer-encoding: chunked") + chunked(b"x" * size) + b"0\r\n\r\n"
        assert (await exchange(broadcaster, sent)).startswith(b"HTTP/1.1 " + status)


async def test_a_length_that_is_none_is_400(broadcaster: Process) -> None:
    for length in (b"-1", b"+5", b"5,5", b"0x5", b"5 5", b"", b"99999999999999999999", "\uff15".encode()):
        answer = await exchange(broadcaster, notify_head(b"content-length: " + length) + b"hello")
        assert refusal(answer) == (400, "invalid_request")


@pytest.mark.parametrize(("target", "method"), POURED)
async def test_a_packed_body_is_415_and_never_unpacked(broadcaster: Process, target: bytes, method: bytes) -> None:
    for coding in (b"gzip", b"br", b"zstd", b"deflate", b"gzip, identity", b"x" * 1000):
        fields = (JSON, b"connection: close", b"content-length: 2", b"content-encoding: " + coding)
        answer = await exchange(broadcaster, head(*fields, target=target, method=method) + b"{}")
        assert answer.startswith(b"HTTP/1.1 415 ")
        assert b'"unsupported_media_type"' in answer


@pytest.mark.parametrize("pause", [0.01, None])
async def test_a_body_that_drips_or_stops_is_408(broadcaster: Process, pause: float | None) -> None:
    reader, writer = await connect(broadcaster)
    answer = asyncio.create_task(everything(reader))
    writer.write(notify_head(b"content-length: 1000000"))
    with contextlib.suppress(ConnectionError):
        while not answer.done():
            writer.write(b"x" if pause is not None else b"")
            await asyncio.wait({answer}, timeout=pause or 30)
    assert (await answer).startswith(b"HTTP/1.1 408 ")
    assert b'"too_slow"' in answer.result()
    writer.close()


async def test_a_body_that_is_shorter_than_it_said_is_published_to_nobody(
    broadcaster: Process, holding: Holding
) -> None:
    async with httpx.AsyncClient(base_url=await broadcaster.url(), trust_env=False) as api:
        subscription: dict[str, Any] = {"url": holding.url, "topic": "t"}
        assert (await api.post("/v1/subscriptions", json=subscription)).status_code == 201
        for framing in (b"content-length: 10", b"transfer-encoding: chunked"):
            _, writer = await connect(broadcaster)
            writer.write(notify_head(framing) + (b"hello" if b"length" in framing else chunked(b"hello")))
            await writer.drain()
            writer.transport.abort()
        assert (await api.get("/v1/health/live")).status_code == 200
    assert not holding.called.is_set()
