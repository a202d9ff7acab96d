"""The least of HTTP/1.1 that the programs here need, by hand: so that they are small, start fast and share no bug."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

__all__ = ["Answer", "BrokenAnswer", "Head", "ask", "ask_json", "read_head"]

_MOST_BYTES = 64 * 1024 * 1024


class BrokenAnswer(Exception):
    """There was no whole answer: the other side is gone, or speaks in riddles."""


class Head(NamedTuple):
    """The first line and the headers of a request or an answer."""

    line: str
    raw: tuple[tuple[bytes, bytes], ...]

    def get(self, name: str, default: str = "") -> str:
        """The value of a header, by its lower-case name."""
        return next((value.decode("latin-1") for key, value in self.raw if key.decode("latin-1") == name), default)


class Answer(NamedTuple):
    """What came back, in whole."""

    status: int
    body: bytes


async def read_head(reader: asyncio.StreamReader) -> Head:
    """Raises `asyncio.IncompleteReadError` at the end of the connection."""
    line, *fields = (await reader.readuntil(b"\r\n\r\n"))[:-4].split(b"\r\n")
    pairs = (field.partition(b":") for field in fields)
    return Head(line.decode("latin-1"), tuple((name.lower(), value.strip()) for name, _, value in pairs))


async def ask(
    url: str, method: str, target: str, *, headers: Mapping[str, str], body: bytes = b"", timeout_seconds: float
) -> Answer:
    """One request on a connection of its own. Raises `BrokenAnswer`, also when it takes too long."""
    parts = urlsplit(url)
    lines = [f"{method} {target} HTTP/1.1", f"host: {parts.netloc}", "connection: close"]
    lines += [f"content-length: {len(body)}", *(f"{name}: {value}" for name, value in headers.items())]
    request = "\r\n".join([*lines, "", ""]).encode("latin-1") + body
    try:
        async with asyncio.timeout(timeout_seconds):
            return await _exchange(parts.hostname or "", parts.port or 80, request)
    except TimeoutError:
        raise BrokenAnswer("no answer in time") from None
    except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
        raise BrokenAnswer(type(error).__name__) from None


async def ask_json(
    url: str, method: str, target: str, *, token: str, body: Any = None, timeout_seconds: float = 10.0
) -> tuple[int, Any]:
    """A call of the API with a token; the status and what the JSON says. Raises `BrokenAnswer`."""
    data = b"" if body is None else json.dumps(body).encode()
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    answer = await ask(url, method, target, headers=headers, body=data, timeout_seconds=timeout_seconds)
    try:
        return answer.status, json.loads(answer.body or b"null")
    except ValueError:
        raise BrokenAnswer("not JSON") from None


async def _exchange(host: str, port: int, request: bytes) -> Answer:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        with contextlib.suppress(ConnectionError):  # it may have answered without reading all of it
            writer.write(request)
            await writer.drain()
        head = await read_head(reader)
        length = int(head.get("content-length"))
        if not 0 <= length <= _MOST_BYTES:
            raise ValueError(head.line)
        return Answer(int(head.line.split(" ")[1]), await reader.readexactly(length))
    finally:
        writer.transport.abort()
