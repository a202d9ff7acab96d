"""serving.py: real processes that listen, drain, are replaced when they die, and leave nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from httppubsubclient.protocol.errors import ConfigurationError
from httppubsubserver.provision import set_up
from httppubsubserver.serving import _Announcement, _bound_socket, _Workers
from tests.e2e.processes import Process, Site, until

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Nobody has to prove anything."""
    set_up(tmp_path / "site", to_broadcasters="none", to_subscribers="none")
    return Site(tmp_path / "site")


class Holding:
    """A callback that answers when it is told to."""

    def __init__(self) -> None:
        self.called = asyncio.Event()
        self.release = asyncio.Event()
        self.url = ""

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            self.called.set()
            await self.release.wait()
            writer.write(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n")
            await writer.drain()
        writer.close()


@pytest.fixture
async def holding() -> AsyncIterator[Holding]:
    holding = Holding()
    async with await asyncio.start_server(holding, "127.0.0.1", 0) as server:
        holding.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook"
        yield holding
        holding.release.set()


@asynccontextmanager
async def notify_under_way(broadcaster: Process, holding: Holding) -> AsyncIterator[asyncio.Task[httpx.Response]]:
    """A notify whose one delivery waits for `holding.release`."""
    async with httpx.AsyncClient(base_url=await broadcaster.url()) as api:
        assert (await api.post("/v1/subscriptions", json={"url": holding.url, "topic": "t"})).status_code == 201
        notify = asyncio.create_task(api.post("/v1/notify?topic=t", content=b"x", timeout=30))
        await holding.called.wait()
        yield notify
        notify.cancel()
        await asyncio.wait({notify})


def children(process: Process) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    try:
        state = re.sub(r".*\) ", "", Path(f"/proc/{pid}/stat").read_text())
    except FileNotFoundError:
        return False
    return not state.startswith("Z")


async def said(process: Process, text: str, count: int = 1) -> None:
    """Wait until the log has so many lines with this text."""

    async def there() -> bool:
        return sum(text in line for line in process.errors) >= count

    await until(there)


# -- one process ------------------------------------------------------------------------------------------------------


async def test_the_first_line_says_where_and_it_is_served_there_until_sigterm(site: Site) -> None:
    async with site.serve() as broadcaster:
        url = await broadcaster.url()
        assert re.fullmatch(r"http://127\.0\.0\.1:[1-9][0-9]*", url)
        async with httpx.AsyncClient(base_url=url) as api:
            live = await api.get("/v1/health/live")
        assert live.status_code == 200
        assert "server" not in live.headers
        [limit] = re.findall(r"Max open files +(\d+)", Path(f"/proc/{broadcaster.pid}/limits").read_text())
        assert int(limit) == resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        assert await broadcaster.stop() == 0
        assert broadcaster.lines == [f"listening on {url}"]
        assert not any("/v1/health/live" in line for line in broadcaster.errors)


async def test_while_a_notify_is_finished_new_ones_are_refused_over_new_connections(
    site: Site, holding: Holding
) -> None:
    async with site.serve() as broadcaster, notify_under_way(broadcaster, holding) as notify:
        broadcaster.signal(signal.SIGINT)
        await said(broadcaster, "draining")
        async with httpx.AsyncClient(base_url=await broadcaster.url()) as another:
            refused = await another.post("/v1/notify?topic=t", content=b"y")
        assert refused.status_code == 503
        assert not notify.done()
        holding.release.set()
        assert (await notify).json()["notified"] == 1
        assert await broadcaster.ended() == 0


async def test_what_does_not_end_in_time_is_given_up_and_the_status_is_still_0(site: Site, holding: Holding) -> None:
    options = ("--shutdown-timeout-seconds", "0")
    async with site.serve(*options) as broadcaster, notify_under_way(broadcaster, holding) as notify:
        assert await broadcaster.stop() == 0
        assert (await notify).json()["failed"] == 1
        assert not any("Traceback" in line for line in broadcaster.errors)


async def test_a_second_signal_stops_at_once(site: Site, holding: Holding) -> None:
    async with site.serve() as broadcaster, notify_under_way(broadcaster, holding):
        broadcaster.signal(signal.SIGTERM)
        await said(broadcaster, "draining")

        async def ended() -> bool:
            if broadcaster.child.returncode is None:
                # Not through the process object, which would reap the child behind the event loop's back.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(broadcaster.pid, signal.SIGTERM)
            return broadcaster.child.returncode is not None

        await until(ended)
        assert await broadcaster.ended() == 128 + signal.SIGTERM


async def test_a_port_in_use_is_one_line_and_status_1(site: Site) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        async with site.serve("--port", str(taken.getsockname()[1])) as broadcaster:
            assert await broadcaster.ended() == 1
    [line] = broadcaster.errors
    assert "another process listens there" in line
    assert broadcaster.lines == []


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_what_is_wrong_is_said_before_anything_is_printed(site: Site, workers: str) -> None:
    async with site.serve("--db", "sqlite:////no/such/folder/x.db", "--workers", workers) as broadcaster:
        assert await broadcaster.ended() == 1
    [line] = broadcaster.errors
    assert "/no/such/folder" in line
    assert broadcaster.lines == []


@pytest.mark.parametrize(
    ("host", "line"), [("127.0.0.1", "http://127.0.0.1:"), ("::1", "http://[::1]:"), ("localhost", "http://")]
)
def test_the_announced_address_can_be_used_as_it_is(host: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with _bound_socket(host, 0) as listening:
        announce = _Announcement(listening)
        announce()
        announce()
        printed = capsys.readouterr().out
        assert printed.startswith(f"listening on {line}")
        assert printed.count("\n") == 1
        assert httpx.URL(printed.split()[-1]).port == listening.getsockname()[1]


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host", "300.1.1.1"])
def test_an_address_of_another_machine_is_refused(host: str) -> None:
    with pytest.raises(ConfigurationError, match="not an address of this machine"):
        _bound_socket(host, 0)


# -- several workers --------------------------------------------------------------------------------------------------


async def test_a_worker_that_is_killed_comes_back_and_all_stop_with_sigterm(site: Site) -> None:
    async with site.serve("--workers", "2") as broadcaster:
        url = await broadcaster.url()
        await said(broadcaster, "open with", 2)
        first = children(broadcaster)
        assert len(first) == 2
        os.kill(first[0], signal.SIGKILL)
        await said(broadcaster, "open with", 3)
        second = children(broadcaster)
        assert len(second) == 2
        assert first[0] not in second
        assert first[1] in second
        async with httpx.AsyncClient(base_url=url) as api:
            assert (await api.get("/v1/health/ready")).status_code == 200
        assert await broadcaster.stop() == 0
        assert not any(is_running(pid) for pid in [*first, *second])
        assert broadcaster.lines == [f"listening on {url}"]


async def test_workers_finish_what_is_under_way_although_everybody_was_signalled(site: Site, holding: Holding) -> None:
    async with (
        site.serve("--workers", "2") as broadcaster,
        notify_under_way(broadcaster, holding) as notify,
    ):
        await said(broadcaster, "open with", 2)
        for pid in [broadcaster.pid, *children(broadcaster)]:
            os.kill(pid, signal.SIGTERM)
        await said(broadcaster, "draining", 2)
        holding.release.set()
        assert (await notify).json()["notified"] == 1
        assert await broadcaster.ended() == 0


async def test_workers_end_when_their_parent_is_killed_and_give_the_port_back(site: Site) -> None:
    async with site.serve("--workers", "2") as broadcaster:
        url = await broadcaster.url()
        await said(broadcaster, "open with", 2)
        workers = children(broadcaster)
        broadcaster.signal(signal.SIGKILL)

        async def gone() -> bool:
            return not any(is_running(pid) for pid in workers)

        await until(gone)
        await broadcaster.ended()
        socket.create_server(("127.0.0.1", int(url.rpartition(":")[2]))).close()


# -- the supervision alone, with small programs as workers ------------------------------------------------------------

WORKER = """
import socket, sys
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
lifeline = socket.socket(fileno=int(flags["--lifeline"]))
"""


async def supervised(program: str, count: int, *, ready: asyncio.Event | None = None) -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        announce = ready.set if ready is not None else lambda: None
        return await _Workers([sys.executable, "-c", WORKER + program], listening, count, announce).run()


async def test_workers_that_cannot_start_are_given_up_before_anything_is_announced() -> None:
    ready = asyncio.Event()
    async with asyncio.timeout(20):
        assert await supervised("sys.exit(3)", 2, ready=ready) == 1
    assert not ready.is_set()


async def test_workers_that_can_start_no_more_are_given_up_after_some_attempts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("httppubsubserver.serving._RESTART_SECONDS", 0)
    started = tmp_path / "started"
    program = f"""
with open({str(started)!r}, "a") as file:
    file.write("x")
    if file.tell() == 1:
        lifeline.send(b"r")
"""
    async with asyncio.timeout(20):
        assert await supervised(program, 1) == 1
    assert started.read_text() == "x" * 6


async def test_workers_are_told_to_drain_and_waited_for() -> None:
    ready = asyncio.Event()
    program = 'lifeline.send(b"r"); sys.exit(0 if lifeline.recv(1) == b"d" else 1)'
    async with asyncio.timeout(20):
        workers = asyncio.create_task(supervised(program, 3, ready=ready))
        await ready.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        assert await workers == 0
