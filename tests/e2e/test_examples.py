"""The code that users read runs as it stands: the promise of the first days, the README, the examples."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.e2e.conftest import open_client
from tests.e2e.processes import Process, Site, running, until

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = ROOT / "examples"
README = (ROOT / "README.md").read_text()


def point_at(site: Site, url: str) -> None:
    """Write the broadcaster's real address into the subscribers' file: port 0 was not known at --setup."""
    path = site.directory / "subscriber-secrets.json"
    path.write_text(json.dumps(site.secrets | {"broadcasters": [url]}))


async def started(server: Process) -> str:
    """The address of a uvicorn that was started with port 0."""
    async with asyncio.timeout(30):
        while True:
            for line in server.errors:
                if match := re.search(r"running on (http://\S+)", line):
                    return match[1]
            if server.child.returncode is not None:
                raise AssertionError(server.output())
            await asyncio.sleep(0.01)


async def test_the_seed_example_runs_as_it_stands(site: Site, broadcaster: Process) -> None:
    url = await broadcaster.url()
    point_at(site, url)
    (site.directory / "hello.txt").write_text("Hello from a file!")
    example = Path(__file__).with_name("seed_example.py")
    async with (
        open_client(site, url) as client,
        running(example, "0", "http://127.0.0.1:0", cwd=site.directory) as program,
    ):

        async def publish() -> None:
            number = 0
            while True:
                number += 1
                await client.notify(topic=b"foo/bar", data=f"message {number}".encode())
                await asyncio.sleep(0.02)

        publishing = asyncio.create_task(publish())
        await program.line(lambda line: "simple timeout behavior" in line)
        publishing.cancel()
        async with client.subscribe_exact(b"foo/baz") as subscription:
            assert await program.ended() == 0, program.output()
            bodies = [(await anext(subscription)).data.read() for _ in range(2)]
    assert bodies == [b"Hello, world!", b"Hello from a file!"]
    received = [line for line in program.lines if line.startswith("Received message on b'foo/bar': message ")]
    assert len(received) >= 4
    assert program.lines[-1] == "Notified 1 subscribers to foo/baz"


async def test_the_application_of_the_readme_receives(site: Site, broadcaster: Process) -> None:
    url = await broadcaster.url()
    point_at(site, url)
    [block] = [block for block in blocks() if "@client.on" in block]
    with_port = free_port()
    (site.directory / "app.py").write_text(block.replace("127.0.0.1:8000", f"127.0.0.1:{with_port}"))
    command = ("-m", "uvicorn", "app:app", "--port", str(with_port), "--no-access-log")
    async with running(*command, cwd=site.directory) as app, open_client(site, url) as publisher:
        await started(app)
        assert (await publisher.notify(topic=b"foo/bar", data=b"hello")).notified == 1
        assert await app.line() == "b'foo/bar' hello"
        assert await app.stop() in (0, -15)
        assert (await publisher.notify(topic=b"foo/bar", data=b"hello")).matched == 0, "it unsubscribed"


async def test_the_iterator_of_the_readme_receives(site: Site, broadcaster: Process) -> None:
    point_at(site, await broadcaster.url())
    [block] = [block for block in blocks() if "async def main" in block and "durable" not in block]
    program = block.replace('"port": 3002', '"port": 0').replace("127.0.0.1:3002", "127.0.0.1:0")
    (site.directory / "iterate.py").write_text(program.replace("0.0.0.0", "127.0.0.1"))
    async with running("iterate.py", cwd=site.directory) as program_process:
        assert await program_process.ended() == 0, program_process.output()
        assert program_process.lines == ["notified 1 of 1", "b'foo/bar' b'hello'"]


async def test_the_durable_subscriber_of_the_readme_misses_nothing(site: Site, broadcaster: Process) -> None:
    url = await broadcaster.url()
    point_at(site, url)
    [block] = [block for block in blocks() if "remember_file" in block]
    (site.directory / "durable.py").write_text(block.replace("3012", str(free_port())))
    async with open_client(site, url) as publisher:
        async with running("durable.py", cwd=site.directory) as first_life:

            async def is_subscribed() -> bool:
                return (await publisher.notify(topic=b"orders/1", data=b"one")).matched == 1

            await until(is_subscribed)
            assert await first_life.line() == "b'orders/1' one"
            first_life.signal(signal.SIGKILL)
            await first_life.ended()
        await publisher.notify(topic=b"orders/2", data=b"two", wait=0)
        async with running("durable.py", cwd=site.directory) as second_life:
            assert await second_life.line() == "b'orders/2' two"


async def test_a_partner_agrees_verifies_and_takes(site: Site) -> None:
    port = free_port()
    hook = f"http://127.0.0.1:{port}/hook"
    command = ("-m", "uvicorn", "--app-dir", EXAMPLES, "partner:app", "--port", str(port), "--no-access-log")
    async with site.serve("--verify-callbacks", "always") as broadcaster:
        url = await broadcaster.url()
        point_at(site, url)
        async with open_client(site, url) as publisher:

            async def subscribe(**fields: str) -> httpx.Response:
                text = json.dumps({"url": hook, **fields})
                target = f"{url}/v1/subscriptions"
                async with site.client(url, "sign", target, "--data", text) as signing:
                    assert await signing.ended() == 0, signing.output()
                headers = dict(line.split(": ", 1) for line in signing.lines) | {"Content-Type": "application/json"}
                async with httpx.AsyncClient() as web:
                    return await web.post(target, content=text, headers=headers)

            async with running(*command) as first:
                await started(first)
                unwanted = await subscribe(glob="invoices/*", secret="generate")
                assert (unwanted.status_code, unwanted.json()["code"]) == (422, "callback_refused")
                secret = (await subscribe(glob="orders/*", secret="generate")).json()["secret"]
            async with running(*command, environment={"WEBHOOK_SECRET": secret}) as partner:
                await started(partner)
                result = await publisher.notify(topic=b"orders/1", data=b"hello")
                assert (result.matched, result.notified) == (1, 1)
                assert await partner.line() == "orders/1 b'hello'"
                async with httpx.AsyncClient() as stranger:
                    assert (await stranger.post(hook, content=b"hello")).status_code == 401


async def test_the_mounted_application_forgets_what_is_published(site: Site, broadcaster: Process) -> None:
    url = await broadcaster.url()
    point_at(site, url)
    port = free_port()
    environment = {
        "PUBSUB_SECRETS": str(site.directory / "subscriber-secrets.json"),
        "PUBSUB_HOST": f"http://127.0.0.1:{port}",
    }
    command = ("-m", "uvicorn", "--app-dir", EXAMPLES, "mounted_app:app", "--port", str(port), "--no-access-log")
    async with running(*command, environment=environment) as app, open_client(site, url) as publisher:
        base = await started(app)
        async with httpx.AsyncClient(base_url=base) as user:
            assert (await user.get("/entries/a")).json()["cached"] is False
            assert (await user.get("/entries/a")).json()["cached"] is True
            assert (await publisher.notify(topic=b"cache/a", data=b"")).notified == 1
            async with asyncio.timeout(30):
                while (await user.get("/entries/a")).json()["cached"]:
                    await publisher.notify(topic=b"cache/a", data=b"")


async def test_the_mounted_broadcaster_publishes_without_http(site: Site) -> None:
    environment = {
        "PUBSUB_SECRETS": str(site.directory / "broadcaster-secrets.json"),
        "PUBSUB_DB": f"sqlite:///{site.directory / 'mounted.sqlite3'}",
    }
    command = ("-m", "uvicorn", "--app-dir", EXAMPLES, "mounted_broadcaster:app", "--port", "0", "--no-access-log")
    async with running(*command, environment=environment) as app:
        base = await started(app)
        async with (
            open_client(site, f"{base}/pubsub") as client,
            client.subscribe_glob("orders/*/paid") as subscription,
            httpx.AsyncClient(base_url=base) as user,
        ):
            assert (await user.post("/orders/17/paid")).json() == {"notified": 1}
            assert (await anext(subscription)).topic == b"orders/17/paid"


async def test_the_own_listener_and_the_publisher_talk(site: Site, broadcaster: Process) -> None:
    url = await broadcaster.url()
    point_at(site, url)
    secrets = site.directory / "subscriber-secrets.json"
    async with running(EXAMPLES / "own_listener.py", secrets, "foo/*") as listener:
        assert await listener.line() == "subscribed"
        async with running(EXAMPLES / "publish.py", secrets, url, "foo/bar", "hello") as publisher:
            assert await publisher.ended() == 0, publisher.output()
            assert publisher.lines == ["notified 1 of 1 subscribers"]
        assert await listener.line(after=1) == "b'foo/bar': hello"


@pytest.mark.parametrize("with_curl", [shutil.which("curl") is not None])
def test_the_demo_shows_all_three_ways_and_leaves_nothing_behind(with_curl: bool, tmp_path: Path) -> None:
    path = str(Path(shutil.which("curl") or "").parent) if with_curl else str(tmp_path / "nothing-here")
    done = subprocess.run(
        [sys.executable, EXAMPLES / "demo.py"],
        env={"PATH": path, "TMPDIR": str(tmp_path)},
        text=True,
        capture_output=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "broadcaster stopped with status 0" in done.stdout
    assert "Traceback" not in done.stdout
    assert list(tmp_path.iterdir()) == []


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def free_port() -> int:
    """For programs that must know their own address before they listen; nobody else asks for ports here."""
    import socket

    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port: int = unused.getsockname()[1]
        return port
