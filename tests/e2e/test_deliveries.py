"""`httppubsubserver deliveries` beside a broadcaster that runs, and after it has ended."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.processes import DEADLINE_SECONDS, Site, running

PUBLIC = ("--to-broadcasters-auth", "none", "--to-subscribers-auth", "none")


class Subscriber:
    """Answers with `status`; the body of an error comes after its head. Remembers the ids of what it took."""

    def __init__(self) -> None:
        self.status = 500
        self.port = 0
        self.taken: list[str] = []
        self.changed = asyncio.Condition()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:-2])
        await reader.readexactly(int(headers["content-length"]))
        writer.write(b"HTTP/1.1 %d x\r\nconnection: close\r\n\r\n" % self.status)
        await writer.drain()
        if self.status >= 300:
            writer.write(b"<h1>\x1b[31mI am broken\x1b[0m</h1>\n")
        writer.close()
        async with self.changed:
            if self.status < 300:
                self.taken.append(headers["webhook-id"])
            self.changed.notify_all()

    async def took(self, count: int) -> None:
        async with asyncio.timeout(DEADLINE_SECONDS), self.changed:
            await self.changed.wait_for(lambda: len(self.taken) >= count)


@asynccontextmanager
async def subscriber() -> AsyncIterator[Subscriber]:
    receiver = Subscriber()
    async with await asyncio.start_server(receiver.serve, "127.0.0.1", 0) as server:
        receiver.port = server.sockets[0].getsockname()[1]
        yield receiver


async def deliveries(site: Site, *arguments: str) -> list[str]:
    """What the command prints."""
    database = f"sqlite:///{site.directory / 'httppubsub.sqlite3'}"
    async with running("-m", "httppubsubserver", "deliveries", *arguments, "--db", database) as command:
        assert await command.ended() == 0, command.output()
    return command.lines


async def listed(site: Site, *arguments: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in await deliveries(site, "list", "--json", *arguments)]


async def test_what_is_dead_is_looked_at_and_sent_again(tmp_path: Path) -> None:
    site = await Site.make(tmp_path / "site", *PUBLIC)
    async with subscriber() as receiver:
        async with site.serve() as broadcaster, httpx.AsyncClient(base_url=await broadcaster.url()) as api:
            fields = {
                "url": f"http://127.0.0.1:{receiver.port}/hook",
                "topic": "t",
                "delivery": "durable",
                "retry_schedule_seconds": [0],
            }
            subscription = (await api.post("/v1/subscriptions", json=fields)).json()
            message_id: str = (await api.post("/v1/notify?topic=t", content=b"data")).json()["message_id"]

            [dead] = await listed(site, "--state", "dead")
            assert (dead["message_id"], dead["subscription_id"]) == (message_id, subscription["id"])
            shown = await deliveries(site, "show", message_id)
            assert shown[-1].endswith(r"status 500  <h1>\x1b[31mI am broken\x1b[0m</h1>\n")

            # By a broadcaster that is running.
            receiver.status = 204
            assert "replay 1" in (await deliveries(site, "replay", message_id))[0]
            await receiver.took(1)
            assert await broadcaster.stop() == 0
        assert [each["state"] for each in await listed(site)] == ["delivered"]

        # By one that is started later.
        [line] = await deliveries(site, "replay", message_id, "--state", "delivered", "--wait")
        assert line == "replay 2: 1 are pending again, 0 could not be"
        assert [each["state"] for each in await listed(site)] == ["pending"]
        async with site.serve() as broadcaster:
            await receiver.took(2)
            assert await broadcaster.stop() == 0
    assert receiver.taken == [message_id] * 2
    assert [each["state"] for each in await listed(site)] == ["delivered"]


async def test_a_place_where_nothing_was_set_up_stays_empty(tmp_path: Path) -> None:
    async with running("-m", "httppubsubserver", "deliveries", "list", cwd=tmp_path) as command:
        assert await command.ended() == 1
    assert command.errors[0].startswith("httppubsubserver: there is no database")
    assert len(command.errors) == 1
    assert list(tmp_path.iterdir()) == []
