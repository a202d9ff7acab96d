"""admission.py: whoever holds connections without using them shuts nobody out; who does not fit in is told so."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from httppubsubclient import admission
from tests.client.test_request_heads import LIMIT, Served, everything, head, refusal, serving
from tests.server.peers import LOOP_FACTORIES

__all__ = ["LOOP_FACTORIES"]

PLACES = 3


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    """Room for three."""
    async with serving(None, max_connections=PLACES) as served:
        yield served


async def works(served: Served) -> bool:
    answer = await served.exchange(head(b"connection: close"))
    return answer.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("sent", [b"", b"G", head()[:-2]])
async def test_those_who_only_connect_make_room_for_the_others(served: Served, sent: bytes) -> None:
    idle = [await served.connect() for _ in range(20)]
    for _, writer in idle:
        writer.write(sent)
    for _ in range(5):
        assert await works(served)
    assert len(served.server.server_state.connections) <= PLACES
    gone = [asyncio.create_task(everything(reader)) for reader, _ in idle[:-PLACES]]
    await asyncio.gather(*gone)


async def test_the_connection_that_has_been_idle_longest_goes(served: Served) -> None:
    kept = []
    for _ in range(PLACES):
        reader, writer = await served.connect()
        writer.write(head())
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        kept.append((reader, writer))
    # The first one is used once more, so the second one is now the one that waits longest.
    kept[0][1].write(head())
    assert (await kept[0][0].readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    assert await works(served)
    assert await everything(kept[1][0]) == b""
    for reader, writer in (kept[0], kept[2]):
        writer.write(head(b"connection: close"))
        assert (await everything(reader)).startswith(b"HTTP/1.1 200 ")


async def busy(served: Served) -> list[asyncio.StreamReader]:
    """All places are working."""
    served.app.release.clear()
    readers = []
    for number in range(PLACES):
        reader, writer = await served.connect()
        writer.write(head(b"connection: close"))
        readers.append(reader)
        async with asyncio.timeout(LIMIT):
            while len(served.app.scopes) <= number:
                await asyncio.sleep(0.001)
    return readers


async def test_when_all_are_working_a_new_one_is_503_and_told_when_to_come_again(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    readers = await busy(served)
    for _ in range(10):
        answer = await served.exchange(head())
        assert refusal(answer) == (503, "unavailable")
        assert b"retry-after: 1\r\n" in answer
    assert len(served.app.scopes) == PLACES
    served.app.release.set()
    for reader in readers:
        assert (await everything(reader)).startswith(b"HTTP/1.1 200 ")
    assert await works(served)
    assert caplog.text.count("all connections (3 at most) are in use") == 1


async def test_who_is_turned_away_and_does_not_go_is_closed(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "_REFUSAL_SECONDS", 0.1)
    await busy(served)
    reader, _ = await served.connect()
    assert await everything(reader) == b""


async def test_of_a_flood_most_are_just_closed(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "_MAX_REFUSALS", 2)
    await busy(served)
    flood = [await served.connect() for _ in range(20)]
    ended = await asyncio.gather(*(everything(reader) for reader, _ in flood[5:]))
    assert set(ended) == {b""}
    assert not served.app.release.is_set()


async def test_a_process_without_a_free_file_closes_what_is_idle_and_goes_on(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    idle, _ = await served.connect()
    assert await works(served)
    real = socket.socket.accept
    failures = [OSError(errno.EMFILE, "Too many open files"), OSError(errno.ECONNABORTED, "aborted")]

    def accept(listening: socket.socket) -> Any:
        if failures:
            raise failures.pop(0)
        return real(listening)

    monkeypatch.setattr(socket.socket, "accept", accept)
    reader, writer = await served.connect()  # by the kernel: it waits until it is accepted
    writer.write(head(b"connection: close"))
    assert (await everything(reader)).startswith(b"HTTP/1.1 200 ")
    assert await works(served)
    assert await everything(idle) == b""
    assert failures == []
