"""A body: in memory or in a file, written once, read by many, never left behind."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from httppubsubclient.bodies import CHUNK_BYTES, Body, BodyWriter, spool
from httppubsubclient.protocol.errors import TooLarge


async def pieces(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


@pytest.mark.parametrize("spool_bytes", [0, 10, 10**9])
async def test_a_body_is_what_was_written_wherever_it_lies(spool_bytes: int) -> None:
    chunks = [b"", b"a" * 700_000, b"b" * 900_000, b"c"]
    whole = b"".join(chunks)
    with await spool(pieces(*chunks), spool_bytes=spool_bytes, max_bytes=len(whole)) as body:
        assert (body.data is None) == (spool_bytes < len(whole))
        assert body.size == len(whole)
        assert body.sha256 == hashlib.sha256(whole).digest()
        assert b"".join([chunk async for chunk in body.chunks()]) == whole
        assert body.open().read() == whole


async def test_an_empty_body_is_one() -> None:
    with await spool(pieces(), spool_bytes=0, max_bytes=0) as body:
        assert (body.size, body.data) == (0, b"")
        assert [chunk async for chunk in body.chunks()] == []


async def test_readers_do_not_disturb_each_other_and_outlive_the_body() -> None:
    with await spool(pieces(bytes(range(256)) * 40), spool_bytes=1, max_bytes=10**6) as body:
        one, other = body.open(), body.open()
    with one, other:
        assert one.read(3) == b"\x00\x01\x02"
        assert other.read(2) == b"\x00\x01"
        assert one.seek(-1, os.SEEK_END) == 256 * 40 - 1
        assert one.read() == b"\xff"
        assert one.read() == b""
        one.seek(5)
        assert one.read(1) == b"\x05"
        with pytest.raises((ValueError, OSError)):
            one.seek(-5)


async def test_many_read_a_spooled_body_in_pieces_at_the_same_time() -> None:
    whole = os.urandom(3 * CHUNK_BYTES + 17)
    with await spool(pieces(whole), spool_bytes=1, max_bytes=len(whole)) as body:

        async def read() -> bytes:
            return b"".join([chunk async for chunk in body.chunks()])

        assert set(await asyncio.gather(*(read() for _ in range(5)))) == {whole}


async def test_one_byte_too_many_is_refused_at_once() -> None:
    with BodyWriter(spool_bytes=100, max_bytes=10) as writer:
        await writer.write(b"x" * 10)
        with pytest.raises(TooLarge, match="10 bytes"):
            await writer.write(b"x")


async def test_a_body_that_is_announced_as_large_is_in_a_file_from_its_start() -> None:
    with BodyWriter(spool_bytes=10, max_bytes=100) as writer:
        writer.expect(50)
        await writer.write(b"x")
        await writer.write(b"y")
        with await writer.finish() as body:
            assert body.data is None
            assert body.open().read() == b"xy"
    with BodyWriter(spool_bytes=10, max_bytes=100) as writer, pytest.raises(TooLarge):
        writer.expect(101)


async def test_a_descriptor_of_the_file_outlives_the_body() -> None:
    body = await spool(pieces(b"abc"), spool_bytes=1, max_bytes=3)
    with body.descriptor() as file:
        body.close()
        assert os.pread(file, 10, 0) == b"abc"
    with pytest.raises(ValueError, match="closed"), body.descriptor():
        pass


async def test_nothing_is_left_in_the_directory(tmp_path: Path) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    with BodyWriter(spool_bytes=1, max_bytes=100, directory=str(tmp_path)) as writer:
        await writer.write(b"x" * 50)
        assert list(tmp_path.iterdir()) == []
    with await spool(pieces(b"x" * 50), spool_bytes=1, max_bytes=100, directory=str(tmp_path)) as body:
        body.open().close()
    assert list(tmp_path.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == descriptors


async def test_a_closed_body_cannot_be_opened_and_closing_again_is_fine() -> None:
    body = await spool(pieces(b"xx"), spool_bytes=1, max_bytes=2)
    body.close()
    body.close()
    with pytest.raises(ValueError, match="closed"):
        body.open()


async def test_a_cancelled_write_does_not_break_the_file() -> None:
    with BodyWriter(spool_bytes=1, max_bytes=10**8) as writer:
        task = asyncio.create_task(writer.write(b"x" * 5_000_000))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@given(st.binary(max_size=2000), st.lists(st.integers(0, 2100), max_size=5), st.sampled_from([0, 100, 5000]))
def test_reading_and_seeking_agree_with_a_plain_file(data: bytes, positions: list[int], spool_bytes: int) -> None:
    async def check() -> None:
        with await spool(pieces(data), spool_bytes=spool_bytes, max_bytes=2000) as body, body.open() as reader:
            plain = io.BytesIO(data)
            for position in positions:
                assert reader.seek(position) == plain.seek(position)
                assert reader.read(7) == plain.read(7)
                assert reader.tell() == plain.tell()

    asyncio.run(check())


def test_bytes_make_a_body() -> None:
    body = Body.of(b"abc")
    assert (body.size, body.sha256) == (3, hashlib.sha256(b"abc").digest())
