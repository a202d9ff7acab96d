"""Broadcasters in this process, with a scripted outbound instead of sockets where that is what a test is about."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import httpx
import pytest
from fastapi import FastAPI

from httppubsubclient.bodies import Body
from httppubsubclient.protocol.callback_urls import CallbackUrl
from httppubsubclient.protocol.credentials import Credentials, Secrets
from httppubsubclient.protocol.messages import SubscribeRequest, Subscription
from httppubsubclient.protocol.patterns import Pattern
from httppubsubserver.broadcaster import Broadcaster
from httppubsubserver.config import ServerConfig
from httppubsubserver.delivery.outbound import Answer, AttemptFailed
from tests.server.peers import Authority, Network, open_network

NO_AUTH = Secrets(Credentials.none(), Credentials.none(), ())

Reply = int | Answer | AttemptFailed
Script = Callable[["Post"], Awaitable[Reply]]


@dataclass
class Post:
    """One attempt as the outbound was asked to make it."""

    url: str
    headers: dict[str, str]
    body: bytes


@dataclass
class ScriptedOutbound:
    """Answers by callback URL; 200 where nothing is scripted. Remembers every attempt and how many ran at once."""

    scripts: dict[str, Script] = field(default_factory=dict)
    posts: list[Post] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def post(
        self,
        callback: CallbackUrl,
        head: bytes,
        body: Body,
        *,
        deadline: float,
        done: Callable[[Answer | AttemptFailed], None],
        head_again: Callable[[], bytes] | None = None,
    ) -> asyncio.Task[None]:
        headers = dict(line.split(": ", 1) for line in head.decode("ascii").split("\r\n")[:-1])
        return asyncio.create_task(self._attempt(callback, headers, body, done))

    async def _attempt(
        self, callback: CallbackUrl, headers: dict[str, str], body: Body, done: Callable[[Answer | AttemptFailed], None]
    ) -> None:
        post = Post(callback.request_url, headers, b"".join([chunk async for chunk in body.chunks()]))
        self.posts.append(post)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        self.changed.set()
        try:
            script = self.scripts.get(callback.request_url)
            reply: Reply = 200 if script is None else await script(post)
        finally:
            self.in_flight -= 1
            self.changed.set()
        done(Answer(reply, None) if isinstance(reply, int) else reply)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until `condition` holds; it is looked at after every change here."""
        async with asyncio.timeout(10):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    def replies(self, url: str, *replies: Reply) -> None:
        """Answer these, in turn; the last one again and again."""
        remaining = list(replies)

        async def script(_: Post) -> Reply:
            return remaining.pop(0) if len(remaining) > 1 else remaining[0]

        self.scripts[url] = script

    def hangs(self, url: str, release: asyncio.Event | None = None) -> None:
        """Answer 200, but only after `release`."""
        gate = release or asyncio.Event()

        async def script(_: Post) -> Reply:
            await gate.wait()
            return 200

        self.scripts[url] = script


class OpenBroadcaster(Protocol):
    def __call__(
        self, *, secrets: Secrets = ..., outbound: ScriptedOutbound | None = ..., **settings: Any
    ) -> Awaitable[Broadcaster]: ...


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """A module that names `LOOP_FACTORIES` has its tests run under each of them."""
    module = item.getparent(pytest.Module)
    return getattr(module and module.obj, "LOOP_FACTORIES", {"asyncio": asyncio.new_event_loop})


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
async def network(authority: Authority) -> AsyncIterator[Network]:
    async with open_network(authority) as network:
        yield network


@pytest.fixture
def outbound() -> ScriptedOutbound:
    return ScriptedOutbound()


@pytest.fixture
async def open_broadcaster(tmp_path: Path, outbound: ScriptedOutbound) -> AsyncIterator[OpenBroadcaster]:
    """Opens broadcasters over one database file; without jitter."""
    scripted = outbound
    async with AsyncExitStack() as stack:

        async def open_one(
            *, secrets: Secrets = NO_AUTH, outbound: ScriptedOutbound | None = None, **settings: Any
        ) -> Broadcaster:
            settings.setdefault("shutdown_timeout_seconds", 0.1)  # what hangs in a test need not be waited for
            config = ServerConfig(db=f"sqlite:///{tmp_path}/pubsub.sqlite3", **settings)
            broadcaster = Broadcaster(config, secrets=secrets, outbound=outbound or scripted, uniform=lambda: 0.0)
            return await stack.enter_async_context(broadcaster)

        yield open_one


@pytest.fixture
async def broadcaster(open_broadcaster: OpenBroadcaster) -> Broadcaster:
    return await open_broadcaster()


@pytest.fixture
async def api(broadcaster: Broadcaster) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client of `broadcaster`."""
    async with api_of(broadcaster) as client:
        yield client


def api_of(broadcaster: Broadcaster) -> httpx.AsyncClient:
    """An HTTP client of any open broadcaster, without sockets."""
    app = FastAPI()
    app.include_router(broadcaster.router)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://broadcaster")


async def subscribe(broadcaster: Broadcaster, url: str, pattern: Pattern | bytes | str) -> Subscription:
    """Bytes are an exact topic, text is a glob."""
    if isinstance(pattern, bytes):
        pattern = Pattern.exact(pattern)
    elif isinstance(pattern, str):
        pattern = Pattern.glob(pattern)
    subscription, _ = await broadcaster.subscribe(SubscribeRequest(url, pattern, 3600))
    return subscription


@pytest.fixture
def now() -> float:
    """Unix seconds: signatures must be of the present."""
    return time.time()
