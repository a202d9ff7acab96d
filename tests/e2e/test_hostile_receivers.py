"""Dead, slow, hanging and hostile receivers cost the others nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.processes import Process, Site, running

RECEIVERS = Path(__file__).with_name("receivers.py")


@asynccontextmanager
async def open_site(
    tmp_path: Path, *tempers: str, options: tuple[str, ...] = ()
) -> AsyncIterator[tuple[httpx.AsyncClient, Process, list[int], Process]]:
    """A broadcaster without authentication, and receivers of these tempers subscribed to `t`."""
    site = await Site.make(tmp_path / "site", "--to-broadcasters-auth", "none", "--to-subscribers-auth", "none")
    async with AsyncExitStack() as stack:
        receivers = await stack.enter_async_context(running(RECEIVERS, *tempers))
        seconds = ("--attempt-timeout-seconds", "3", "--notify-timeout-seconds", "5")
        broadcaster = await stack.enter_async_context(site.serve(*seconds, *options))
        ports = json.loads(await receivers.line())["ports"]
        api = await stack.enter_async_context(httpx.AsyncClient(base_url=await broadcaster.url(), timeout=30))
        for port in ports:
            answer = await api.post("/v1/subscriptions", json={"url": f"http://127.0.0.1:{port}/hook", "topic": "t"})
            assert answer.status_code == 201, answer.text
        yield api, broadcaster, ports, receivers


def requests(receivers: Process) -> list[dict[str, Any]]:
    return [json.loads(line) for line in receivers.lines[1:]]


async def test_of_200_subscribers_the_140_good_ones_receive_at_once(tmp_path: Path) -> None:
    tempers = ["hang"] * 20 + ["refuse"] * 20 + ["error"] * 20 + ["accept"] * 140
    async with open_site(tmp_path, *tempers) as (api, _, ports, receivers):
        good = set(ports[60:])
        for number in range(2):
            body = f"message {number}"
            before = len(receivers.lines)
            notify = asyncio.create_task(api.post("/v1/notify?topic=t", content=body.encode()))
            lines = await receivers.wait_lines(140, lambda line: json.loads(line)["port"] in good, after=before)
            assert not notify.done(), "the good ones have it while the hanging ones still hang"
            assert {json.loads(line)["port"] for line in lines} == good
            assert {json.loads(line)["body"] for line in lines} == {body}
            counts = (await notify).json()
            assert (counts["matched"], counts["notified"], counts["failed"]) == (200, 140, 60)


async def test_each_hostile_receiver_is_counted_for_what_it_did_and_memory_stays_flat(tmp_path: Path) -> None:
    outcomes = {
        "accept": 1,
        "endless": 1,  # 2xx decides; the endless body is not read
        "bomb": 1,
        "gzip-bomb": 1,  # nothing is unpacked
        "reset-after-head": 1,
        "cookies": 1,
        "error": 0,
        "gone": 0,
        "busy": 0,
        "redirect": 0,
        "refuse": 0,
        "reset": 0,
        "hang": 0,
        "deaf": 0,
        "drip": 0,
        "garbage": 0,
        "drip-body": 0,
        "interim": 0,
        "endless-error": 0,
        "endless-head": 0,
        "endless-line": 0,
        "reset-at-once": 0,
        "reset-after-body": 0,
        "ansi": 0,
        "two-framings": 0,
    }
    async with open_site(tmp_path, *outcomes) as (api, broadcaster, _, receivers):
        idle = broadcaster.resident_bytes()
        counts = (await api.post("/v1/notify?topic=t", content=b"x" * 100_000)).json()
        assert counts["matched"] == len(outcomes)
        assert counts["notified"] == sum(outcomes.values())
        assert counts["failed"] == len(outcomes) - sum(outcomes.values())
        assert broadcaster.resident_bytes() - idle < 50_000_000
        assert not any("followed_redirect" in request for request in requests(receivers))
        again = (await api.post("/v1/notify?topic=t", content=b"x")).json()
        assert again["matched"] == len(outcomes) - 1, "the one that answered 410 is forgotten"


async def test_a_large_message_does_not_wait_for_receivers_that_hang(tmp_path: Path) -> None:
    """Its own deadline is weeks away here: it ends because nobody may hang in one step for longer than a second."""
    tempers = {"accept": 1, "deaf": 0, "hang": 0, "drip": 0, "reset": 0}
    options = ("--min-bytes-per-second", "10", "--spool-bytes", "1000000", "--attempt-timeout-seconds", "1")
    async with open_site(tmp_path, *tempers, options=options) as (api, _, ports, receivers):
        notify = asyncio.create_task(api.post("/v1/notify?topic=t", content=bytes(30_000_000)))
        await receivers.wait_lines(1, lambda line: json.loads(line)["port"] == ports[0], after=1)
        small = (await api.post("/v1/notify?topic=none", content=b"x")).json()
        assert small["matched"] == 0
        counts = (await notify).json()
        assert (counts["matched"], counts["notified"], counts["failed"]) == (5, 1, 4)
