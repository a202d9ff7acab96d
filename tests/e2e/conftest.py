"""Fixtures over real processes; see processes.py."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from httppubsubclient.client import HttpPubSubClient
from httppubsubclient.config import HttpPubSubConfig, get_auth_config_from_file
from tests.e2e.processes import Process, Site

OpenClient = Callable[..., AbstractAsyncContextManager[HttpPubSubClient]]


@pytest.fixture
async def site(tmp_path: Path) -> Site:
    """Made by --setup with its defaults: hmac both ways."""
    return await Site.make(tmp_path / "site")


@pytest.fixture
async def broadcaster(site: Site) -> AsyncIterator[Process]:
    """One broadcaster process of `site`."""
    async with site.serve() as process:
        await process.url()
        yield process


@asynccontextmanager
async def open_client(
    site: Site, *urls: str, fragment: str = "", transport: httpx.AsyncBaseTransport | None = None, **settings: Any
) -> AsyncIterator[HttpPubSubClient]:
    """A client in this process, with a listener of its own on a free port."""
    send_auth, receive_auth = get_auth_config_from_file(str(site.directory / "subscriber-secrets.json"))
    config = HttpPubSubConfig(
        bind={"type": "uvicorn", "address": "127.0.0.1", "port": 0},
        host=f"http://127.0.0.1:0{fragment}",
        send_auth=send_auth,
        receive_auth=receive_auth,
        broadcasters=list(urls),
        **settings,
    )
    async with HttpPubSubClient(config, transport=transport) as client:
        yield client


@pytest.fixture
def port() -> Iterator[int]:
    """A port that stays free for whoever listens there again and again: bound here, but not listened at."""
    with socket.socket() as reservation:
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reservation.bind(("127.0.0.1", 0))
        yield reservation.getsockname()[1]


@asynccontextmanager
async def subscriber(site: Site, url: str, port: int, **settings: Any) -> AsyncIterator[HttpPubSubClient]:
    """A client that is at the same address in each of its lives."""
    send_auth, receive_auth = get_auth_config_from_file(str(site.directory / "subscriber-secrets.json"))
    config = HttpPubSubConfig(
        bind={"type": "uvicorn", "address": "127.0.0.1", "port": port},
        host=f"http://127.0.0.1:{port}",
        send_auth=send_auth,
        receive_auth=receive_auth,
        broadcasters=[url],
        **settings,
    )
    async with HttpPubSubClient(config) as client:
        yield client
