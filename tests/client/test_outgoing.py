"""outgoing.py: whatever is published can be sent twice, and a large one is never in memory."""

from __future__ import annotations

import hashlib
import io
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from httppubsubclient.outgoing import Outgoing, open_outgoing
from httppubsubclient.protocol.errors import InvalidRequest, TooLarge

SPOOL_BYTES = 1000


async def opened(data: Any = None, sync_file: Any = None, max_bytes: int = 10**7) -> Outgoing:
    return await open_outgoing(data, sync_file, spool_bytes=SPOOL_BYTES, max_bytes=max_bytes, directory=None)


async def content(body: Outgoing) -> bytes:
    return b"".join([chunk async for chunk in body.chunks()])


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as entered:
        yield entered


class AsyncOnly:
    """What aiofiles gives: read is async, and iterating gives lines."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    async def read(self, size: int, /) -> bytes:
        return self._file.read(size)

    def __aiter__(self) -> AsyncIterator[bytes]:
        raise AssertionError("files are read, not iterated over")


class Pipe(io.RawIOBase):
    """A file that cannot seek."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def read(self, size: int = -1, /) -> bytes:
        return self._file.read(size)


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 700):
        yield data[start : start + 700]


@pytest.mark.parametrize("size", [0, 10, SPOOL_BYTES, SPOOL_BYTES + 1, 600_000])
@pytest.mark.parametrize(
    "kind", ["bytes", "bytearray", "memoryview", "async file", "iterator", "BytesIO", "disk", "pipe"]
)
async def test_every_kind_of_body_is_read_whole_and_can_be_sent_twice(
    kind: str, size: int, tmp_path: Path, stack: ExitStack
) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    data = data[:size]
    (tmp_path / "body").write_bytes(data)
    on_disk = stack.enter_context((tmp_path / "body").open("rb"))
    body = {
        "bytes": lambda: opened(data),
        "bytearray": lambda: opened(bytearray(data)),
        "memoryview": lambda: opened(memoryview(data)),
        "async file": lambda: opened(AsyncOnly(data)),
        "iterator": lambda: opened(pieces(data)),
        "BytesIO": lambda: opened(sync_file=io.BytesIO(data)),
        "disk": lambda: opened(sync_file=on_disk),
        "pipe": lambda: opened(sync_file=Pipe(data)),
    }[kind]()
    outgoing = await body
    assert (outgoing.size, outgoing.sha256) == (size, hashlib.sha256(data).digest())
    assert await content(outgoing) == data
    assert await content(outgoing) == data
    outgoing.close()


async def test_a_file_is_read_from_its_present_position_and_stays_open() -> None:
    for data in (b"0123456789", b"0123456789" * 1000):
        file = io.BytesIO(data)
        file.seek(4)
        outgoing = await opened(sync_file=file)
        assert await content(outgoing) == data[4:]
        outgoing.close()
        assert not file.closed


async def test_a_file_that_shrinks_while_it_is_sent_is_an_error() -> None:
    file = io.BytesIO(b"x" * 5000)
    outgoing = await opened(sync_file=file)
    file.truncate(2000)
    with pytest.raises(InvalidRequest, match="shorter"):
        await content(outgoing)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "exactly one"),
        ({"data": b"", "sync_file": io.BytesIO()}, "exactly one"),
        ({"data": "text"}, "encode"),
        ({"data": 5}, "not int"),
        ({"data": io.BytesIO(b"x")}, "sync_file="),
        ({"sync_file": io.StringIO("text")}, "binary mode"),
        ({"sync_file": AsyncOnly(b"x")}, "data="),
        ({"sync_file": b"x"}, "not bytes"),
    ],
)
async def test_what_is_no_body_is_refused_with_advice(given: dict[str, Any], told: str) -> None:
    with pytest.raises(TypeError, match=told):
        await opened(**given)


@pytest.mark.parametrize(
    "given",
    [
        {"data": b"x" * 3000},
        {"data": pieces(b"x" * 3000)},
        {"data": AsyncOnly(b"x" * 3000)},
        {"sync_file": io.BytesIO(b"x" * 3000)},
        {"sync_file": Pipe(b"x" * 3000)},
    ],
    ids=["bytes", "iterator", "async file", "file", "pipe"],
)
async def test_a_body_beyond_the_limit_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(TooLarge):
        await opened(**given, max_bytes=2999)
