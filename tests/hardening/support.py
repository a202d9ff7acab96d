"""A broadcaster in this process with real sockets on the way out, and what is needed to misbehave towards it."""

from __future__ import annotations

import asyncio
import base64
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qsl

import httpx
import pytest
from fastapi import FastAPI

from httppubsubclient.protocol.credentials import Secrets
from httppubsubserver.broadcaster import Broadcaster
from httppubsubserver.config import ServerConfig
from tests import canaries
from tests.e2e.receivers import Receiver, open_receivers
from tests.server.conftest import NO_AUTH
from tests.server.peers import Authority

__all__ = [
    "CALLBACK",
    "Asked",
    "Desk",
    "OpenAsked",
    "OpenDesk",
    "OpenReceivers",
    "answered",
    "echo",
    "hostile",
    "one_authority",
    "open_asked",
    "open_desk",
    "resolutions",
    "storage_key",
    "until",
]

CALLBACK = "http://127.0.0.1:2000/v1/receive"


class Desk:
    """One open broadcaster and an HTTP client of its API."""

    def __init__(self, broadcaster: Broadcaster, api: httpx.AsyncClient) -> None:
        self.broadcaster = broadcaster
        self.api = api

    async def subscribe(self, url: str, **fields: Any) -> httpx.Response:
        """POST /v1/subscriptions, to the topic `t` unless the fields say otherwise."""
        wanted = fields if {"topic", "topic_b64", "glob", "mqtt"} & set(fields) else {"topic": "t", **fields}
        return await self.api.post("/v1/subscriptions", json={"url": url, **wanted})

    async def made(self, url: str, **fields: Any) -> dict[str, Any]:
        """The same, for one that is taken."""
        answer = await self.subscribe(url, **fields)
        assert answer.status_code in (200, 201), answer.text
        document: dict[str, Any] = answer.json()
        return document

    async def replace(self, url: str, *entries: dict[str, Any]) -> httpx.Response:
        """PUT /v1/subscriptions."""
        return await self.api.put("/v1/subscriptions", params={"url": url}, json={"subscriptions": list(entries)})

    async def listed(self) -> list[dict[str, Any]]:
        """The first page of all subscriptions."""
        page: list[dict[str, Any]] = (await self.api.get("/v1/subscriptions")).json()["subscriptions"]
        return page

    async def notify(self, content: bytes = b"x", topic: str = "t", **options: Any) -> dict[str, Any]:
        """The counts of one message that is taken."""
        answer = await self.api.post(f"/v1/notify?topic={topic}", content=content, **options)
        assert answer.status_code in (200, 202), answer.text
        counts: dict[str, Any] = answer.json()
        return counts

    async def deliveries(self, **query: str) -> list[dict[str, Any]]:
        """The first page of durable deliveries."""
        page: list[dict[str, Any]] = (await self.api.get("/v1/deliveries", params=query)).json()["deliveries"]
        return page

    async def settled(self, message_id: str) -> list[dict[str, Any]]:
        """The durable deliveries of a message, once all of them are over."""
        async with asyncio.timeout(10):
            while True:
                document = (await self.api.get(f"/v1/messages/{message_id}")).json()
                deliveries: list[dict[str, Any]] = document["deliveries"]
                if not {"pending", "waiting"} & {delivery["state"] for delivery in deliveries}:
                    return deliveries
                await asyncio.sleep(0.005)


class OpenDesk(Protocol):
    def __call__(self, *, secrets: Secrets = ..., given: dict[str, Any] = ..., **settings: Any) -> Awaitable[Desk]: ...


class Asked:
    """A callback that is asked for its consent, and answers as a test says; deliveries it takes."""

    def __init__(self) -> None:
        self.port = 0
        self.questions: list[dict[str, str]] = []
        """The parameters of each."""
        self.sizes: list[int] = []
        """Of each question, in bytes."""
        self.bodies: list[bytes] = []
        """What was delivered."""
        self.answer: Callable[[str], bytes | None] = echo
        """From the challenge to the bytes of an answer; None: nothing ever comes."""
        self._tasks: set[asyncio.Task[None]] = set()

    def url(self, path: str = "/hook") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    async def close(self) -> None:
        """End what is left."""
        while pending := [task for task in self._tasks if not task.done()]:
            for task in pending:
                task.cancel()
            await asyncio.wait(pending)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._serve(reader, writer)
        finally:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                lines = head.decode("latin-1").split("\r\n")
                method, target, _ = lines[0].split(" ")
                length = next((line for line in lines if line.lower().startswith("content-length: ")), "x: 0")
                body = await reader.readexactly(int(length.partition(": ")[2]))
                if method == "POST":
                    self.bodies.append(body)
                    writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
                    continue
                self.sizes.append(len(head) + len(body))
                self.questions.append(dict(parse_qsl(target.partition("?")[2])))
                answer = self.answer(self.questions[-1]["hub.challenge"])
                if answer is None:
                    await asyncio.Event().wait()
                writer.write(answer or b"")
                await writer.drain()


def echo(challenge: str) -> bytes:
    """Consent."""
    return answered(200, challenge.encode())


def answered(status: int, body: bytes, *headers: str) -> bytes:
    """An answer of HTTP."""
    lines = "".join(f"{header}\r\n" for header in (*headers, f"content-length: {len(body)}"))
    return f"HTTP/1.1 {status} x\r\n{lines}\r\n".encode() + body


@pytest.fixture
async def open_asked() -> AsyncIterator[Callable[[], Awaitable[Asked]]]:
    """Opens callbacks that are asked."""
    async with AsyncExitStack() as stack:

        async def opened() -> Asked:
            asked = Asked()
            server = await asyncio.start_server(asked.serve, "127.0.0.1", 0)
            stack.push_async_callback(server.wait_closed)
            stack.push_async_callback(asked.close)
            stack.callback(server.close)
            asked.port = server.sockets[0].getsockname()[1]
            return asked

        yield opened


OpenAsked = Callable[[], Awaitable[Asked]]


class OpenReceivers(Protocol):
    def __call__(self, *tempers: str) -> Awaitable[list[Receiver]]: ...


@pytest.fixture(scope="session")
def one_authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """To be trusted instead of a hundred and forty, which takes a while to load."""
    return Authority(tmp_path_factory.mktemp("one-authority")).file


@pytest.fixture
async def open_desk(tmp_path: Path, one_authority: Path) -> AsyncIterator[OpenDesk]:
    """Opens broadcasters over one database; `given` goes to the broadcaster beside its settings."""
    async with AsyncExitStack() as stack:

        async def opened(*, secrets: Secrets = NO_AUTH, given: dict[str, Any] | None = None, **settings: Any) -> Desk:
            settings.setdefault("shutdown_timeout_seconds", 0.1)
            settings.setdefault("callback_ca_file", one_authority)
            config = ServerConfig(db=f"sqlite:///{tmp_path}/pubsub.sqlite3", **settings)
            broadcaster = Broadcaster(config, secrets=secrets, **(given or {}))
            await stack.enter_async_context(broadcaster)
            app = FastAPI()
            app.include_router(broadcaster.router)
            api = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://broadcaster")
            return Desk(broadcaster, await stack.enter_async_context(api))

        yield opened


@pytest.fixture
async def hostile() -> AsyncIterator[OpenReceivers]:
    """Opens receivers of any temper (tests/e2e/receivers.py) on ports of their own."""
    async with AsyncExitStack() as stack:

        async def opened(*tempers: str) -> list[Receiver]:
            return await stack.enter_async_context(open_receivers(*tempers))

        yield opened


@pytest.fixture
def resolutions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that anybody has tried to resolve; none of them has an address."""
    asked: list[str] = []

    def getaddrinfo(host: Any, *_: Any, **__: Any) -> Any:
        asked.append(str(host))
        raise socket.gaierror(socket.EAI_NONAME, "no names here")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


def storage_key(directory: Path) -> Path:
    """A file with a key under which secrets of subscriptions are sealed."""
    file = directory / "storage-key"
    file.write_text(base64.b64encode(os.urandom(32)).decode() + "\n")
    file.chmod(0o600)
    canaries.plant_file(file)
    return file


async def until(condition: Callable[[], object]) -> None:
    """Wait until something is true; what never becomes true fails after ten seconds."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)
