"""Where a broadcaster goes, and where it never does: real processes, names of a test's own, listeners on 127.0.0.x."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.processes import Process, Site, running, until

NAMED_SERVE = Path(__file__).with_name("named_serve.py")
OUTSIDE, INSIDE = "127.0.0.1", "127.0.0.2"
"""The one address that may be called back, and one that may not."""

Answers = dict[str, list[list[str]]]


class Listener:
    """Answers POSTs with what it was told, and remembers them; `contacts` counts connections."""

    def __init__(self, answer: str) -> None:
        self._answer = f"HTTP/1.1 {answer}content-length: 0\r\nconnection: close\r\n\r\n".encode()
        self.contacts = 0
        self.heads: list[str] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.contacts += 1
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            [length] = [line for line in head.split("\r\n") if line.startswith("content-length: ")]
            await reader.readexactly(int(length[16:]))
            self.heads.append(head)
            writer.write(self._answer)
            await writer.drain()
        writer.close()

    async def ended(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)


@asynccontextmanager
async def listening(host: str, port: int = 0, answer: str = "200 OK\r\n") -> AsyncIterator[tuple[Listener, int]]:
    listener = Listener(answer)
    server = await asyncio.start_server(listener.serve, host, port)
    try:
        yield listener, server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()
        await listener.ended()


@asynccontextmanager
async def open_site(
    tmp_path: Path, names: Answers, *options: str, environment: dict[str, str] | None = None
) -> AsyncIterator[tuple[httpx.AsyncClient, Process]]:
    """A broadcaster without authentication that may call back `OUTSIDE` alone."""
    site = await Site.make(tmp_path / "site", "--to-broadcasters-auth", "none", "--to-subscribers-auth", "none")
    (tmp_path / "names.json").write_text(json.dumps(names))
    variables = {"TEST_NAMES": str(tmp_path / "names.json"), **(environment or {})}
    settings = ("--db", f"sqlite:///{tmp_path}/db.sqlite3", "--secrets", site.directory / "broadcaster-secrets.json")
    policy = ("--callback-networks", f"{OUTSIDE}/32", "--verify-callbacks", "never", "--port", "0")
    async with AsyncExitStack() as stack:
        serve = running(NAMED_SERVE, "serve", *settings, *policy, *options, environment=variables)
        broadcaster = await stack.enter_async_context(serve)
        url = await broadcaster.url()
        api = await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=30, trust_env=False))
        yield api, broadcaster


async def subscribe(api: httpx.AsyncClient, url: str, topic: str, **options: Any) -> str:
    answer = await api.post("/v1/subscriptions", json={"url": url, "topic": topic, **options})
    assert answer.status_code == 201, answer.text
    subscription_id: str = answer.json()["id"]
    return subscription_id


async def notify(api: httpx.AsyncClient, topic: str) -> tuple[int, int, int]:
    """Matched, notified, failed."""
    counts = (await api.post("/v1/notify", params={"topic": topic}, content=b"data")).json()
    return counts["matched"], counts["notified"], counts["failed"]


async def delivery_to(api: httpx.AsyncClient, subscription_id: str) -> dict[str, Any]:
    """The one durable delivery to it, with its `failed_attempts`."""
    [listed] = (await api.get("/v1/deliveries", params={"subscription": subscription_id})).json()["deliveries"]
    message = (await api.get(f"/v1/messages/{listed['message_id']}")).json()
    delivery: dict[str, Any]
    [delivery] = [each for each in message["deliveries"] if each["subscription_id"] == subscription_id]
    return delivery


async def failed_attempt(api: httpx.AsyncClient, subscription_id: str) -> dict[str, Any]:
    """The one failed attempt of it; waits until it is written down, which nobody else needs to."""
    found: list[dict[str, Any]] = []

    async def written() -> bool:
        found[:] = (await delivery_to(api, subscription_id))["failed_attempts"]
        return bool(found)

    await until(written)
    [attempt] = found
    return attempt


async def test_rebinding_and_mixed_records_reach_nobody_inside(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        outside, port = await stack.enter_async_context(listening(OUTSIDE))
        inside, _ = await stack.enter_async_context(listening(INSIDE, port))
        names = {
            "good.example": [[OUTSIDE]],
            "rebinding.example": [[OUTSIDE], [INSIDE], [OUTSIDE], [INSIDE]],
            "mixed.example": [[OUTSIDE, INSIDE]],
            "mixed-too.example": [[INSIDE, OUTSIDE]],
            "inside.example": [[INSIDE]],
            "mapped.example": [[f"::ffff:{INSIDE}"]],
            "zero.example": [["0.0.0.0"]],
            "169.254.169.254.nip.io": [["169.254.169.254"]],
        }
        api, broadcaster = await stack.enter_async_context(open_site(tmp_path, names))
        for name in names:
            await subscribe(api, f"http://{name}:{port}/", name.split(".", maxsplit=1)[0])
        assert await notify(api, "good") == (1, 1, 0)
        # One answer serves the check and the connection: a second question would lead inside, and does, next time.
        assert await notify(api, "rebinding") == (1, 1, 0)
        assert await notify(api, "rebinding") == (1, 0, 1)
        assert await notify(api, "rebinding") == (1, 1, 0)
        for topic in ("mixed", "mixed-too", "inside", "mapped", "zero", "169"):
            assert await notify(api, topic) == (1, 0, 1), topic
        assert inside.contacts == 0
        assert outside.contacts == 3
        assert [head.split("\r\n")[1].split(":")[1] for head in outside.heads] == [
            " good.example", " rebinding.example", " rebinding.example"
        ]  # fmt: skip
        failures = [line for line in broadcaster.errors if " failed at attempt " in line]
        assert len(failures) == 7
        assert {line.rpartition(": ")[2] for line in failures} == {"blocked_address"}


async def test_literals_that_were_subscribed_before_the_policy_are_blocked(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        inside, port = await stack.enter_async_context(listening(INSIDE))
        async with open_site(tmp_path, {}, "--callback-networks", "loopback") as (api, _):
            await subscribe(api, f"http://{INSIDE}:{port}/", "t")
            assert await notify(api, "t") == (1, 1, 0)
        assert inside.contacts == 1
        (tmp_path / "site").rename(tmp_path / "before")
        async with open_site(tmp_path, {}) as (api, _):
            assert await notify(api, "t") == (1, 0, 1)
            answer = await api.post("/v1/subscriptions", json={"url": f"http://{INSIDE}:{port}/", "topic": "t"})
            assert (answer.status_code, answer.json()["code"]) == (422, "callback_refused")
        assert inside.contacts == 1


async def test_a_redirect_leads_nowhere(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        inside, port = await stack.enter_async_context(listening(INSIDE))
        api, _ = await stack.enter_async_context(open_site(tmp_path, {}))
        for status in (301, 302, 303, 307, 308):
            redirect = f"{status} Go\r\nlocation: http://{INSIDE}:{port}/\r\n"
            outside, outside_port = await stack.enter_async_context(listening(OUTSIDE, answer=redirect))
            url = f"http://{OUTSIDE}:{outside_port}/"
            durable = await subscribe(api, url, f"d{status}", delivery="durable")
            await subscribe(api, url, f"t{status}")
            assert await notify(api, f"t{status}") == (1, 0, 1)
            await notify(api, f"d{status}")
            assert (await failed_attempt(api, durable))["status"] == status
            assert outside.contacts == 2
        assert inside.contacts == 0


async def test_a_durable_attempt_that_is_blocked_is_told_as_every_other_block(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        inside, port = await stack.enter_async_context(listening(INSIDE))
        names = {"inside.example": [[INSIDE]], "metadata.example": [["169.254.169.254"]], "v6.example": [["fe80::1"]]}
        api, _ = await stack.enter_async_context(open_site(tmp_path, names))
        told = []
        for name in names:
            subscription = await subscribe(api, f"http://{name}:{port}/", name, delivery="durable")
            await notify(api, name)
            attempt = await failed_attempt(api, subscription)
            told.append({key: value for key, value in attempt.items() if not key.endswith("_at")})
        assert told[0]["error"] == "blocked_address"
        assert told == [told[0]] * 3
        assert inside.contacts == 0


async def test_nothing_of_the_environment_is_a_way_out(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        outside, port = await stack.enter_async_context(listening(OUTSIDE))
        proxy, proxy_port = await stack.enter_async_context(listening(INSIDE))
        (tmp_path / ".netrc").write_text("machine good.example login partner password sesame\n")
        url = f"http://{INSIDE}:{proxy_port}"
        names = ("http_proxy", "https_proxy", "all_proxy")
        environment = {name: url for each in names for name in (each, each.upper())}
        environment |= {"NO_PROXY": "", "HOME": str(tmp_path), "NETRC": str(tmp_path / ".netrc")}
        site = open_site(tmp_path, {"good.example": [[OUTSIDE]]}, environment=environment)
        api, _ = await stack.enter_async_context(site)
        await subscribe(api, f"http://good.example:{port}/", "t")
        assert await notify(api, "t") == (1, 1, 0)
        assert proxy.contacts == 0
        assert "authorization" not in outside.heads[0].lower()


async def test_a_proxy_that_is_down_costs_no_attempt(tmp_path: Path) -> None:
    """And the credentials for it are nowhere to be seen."""

    async def tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        with suppress(ConnectionError, asyncio.CancelledError):
            asked.append((await reader.readuntil(b"\r\n\r\n")).decode())
            target, sink = await asyncio.open_connection(*asked[-1].split(" ")[1].split(":"))
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            sink.write(await reader.readuntil(b"data"))
            writer.write(await target.readuntil(b"\r\n\r\n"))
            await writer.drain()
            sink.close()
        writer.close()

    asked: list[str] = []
    tasks: set[asyncio.Task[Any] | None] = set()
    async with AsyncExitStack() as stack:
        outside, port = await stack.enter_async_context(listening(OUTSIDE))
        # Bound and not listening: connections are refused, and nobody else is given the port.
        bound = stack.enter_context(socket.socket())
        bound.bind((INSIDE, 0))
        proxy_port = bound.getsockname()[1]
        names = {"good.example": [[OUTSIDE]], "inside.example": [[INSIDE]]}
        proxy = f"http://partner:sesame@{INSIDE}:{proxy_port}"
        setting = ("--egress-proxy", proxy, "--notify-timeout-seconds", "1")
        api, broadcaster = await stack.enter_async_context(open_site(tmp_path, names, *setting))
        durable = await subscribe(api, f"http://good.example:{port}/", "d", delivery="durable")
        await subscribe(api, f"http://good.example:{port}/", "t")
        await subscribe(api, f"http://inside.example:{port}/", "i")
        assert await notify(api, "t") == (1, 0, 1)
        await notify(api, "d")
        owed = await delivery_to(api, durable)
        assert (owed["state"], owed["failed_attempts"]) == ("pending", [])
        server = await asyncio.start_server(tunnel, sock=bound)
        stack.push_async_callback(server.wait_closed)
        stack.callback(server.close)

        async def delivered() -> bool:
            return str((await delivery_to(api, durable))["state"]) == "delivered"

        await until(delivered)
        assert await notify(api, "i") == (1, 0, 1)
        assert {head.split(" ")[1] for head in asked} == {f"{OUTSIDE}:{port}"}
        assert "\r\npubsub-attempt: 1\r\n" in outside.heads[0]
        assert not any("sesame" in line or "cGFydG5lcjpzZXNhbWU" in line for line in broadcaster.errors)
    for task in tasks:
        assert task is not None
        task.cancel()
