"""The main job with real processes: messages published in every way reach those who subscribed, signed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path

import httpx
import pytest

from httppubsubclient.protocol.credentials import secrets_from_json, sign_request
from httppubsubclient.protocol.signatures import content_digest
from tests.e2e.conftest import open_client
from tests.e2e.processes import Process, Site, running

AUTH_TYPES = ["hmac", "token", "none"]


async def test_library_command_and_signed_request_reach_a_listener_and_an_iterator(
    site: Site, broadcaster: Process, tmp_path: Path
) -> None:
    url = await broadcaster.url()
    async with (
        site.client(url, "listen", "foo/*", "--json") as listener,
        open_client(site, url) as client,
        client.subscribe_glob("foo/*") as subscription,
    ):
        await subscribed(listener)
        assert (await client.notify(topic=b"foo/library", data=b"1")).notified == 2

        async with site.client(url, "notify", "foo/command", "--data", "2") as command:
            assert await command.ended() == 0, command.output()
            assert "matched 2, notified 2, pending 0, failed 0" in command.output()

        (tmp_path / "body").write_bytes(b"3")
        async with site.client(url, "notify", "foo/file", "--file", tmp_path / "body", "--json") as command:
            assert await command.ended() == 0, command.output()
            assert json.loads(command.lines[0])["notified"] == 2

        assert (await signed_post(site, url, "topic=foo/request", b"4")).json()["notified"] == 2

        lines = [json.loads(line) for line in await listener.wait_lines(4)]
        assert [(line["topic"], line["data"]) for line in lines] == [
            ("foo/library", "1"),
            ("foo/command", "2"),
            ("foo/file", "3"),
            ("foo/request", "4"),
        ]
        received = [await anext(subscription) for _ in range(4)]
        assert [message.data.read() for message in received] == [b"1", b"2", b"3", b"4"]
        assert [message.message_id for message in received] == [line["message_id"] for line in lines]


async def test_a_signed_request_of_the_command_line_is_taken_from_curl_or_anyone(
    site: Site, broadcaster: Process
) -> None:
    url = await broadcaster.url() + "/v1/notify?topic=a/b"
    async with site.client(url, "sign", url, "--data", "hello") as sign:
        assert await sign.ended() == 0, sign.output()
    headers = dict(line.split(": ", 1) for line in sign.lines)
    async with httpx.AsyncClient() as anyone:
        assert (await anyone.post(url, content=b"hello", headers=headers)).status_code == 200
        assert (await anyone.post(url, content=b"hello", headers=headers)).json()["code"] == "replayed"


@pytest.mark.parametrize("to_subscribers", AUTH_TYPES)
@pytest.mark.parametrize("to_broadcasters", AUTH_TYPES)
async def test_every_combination_of_authentication_works_and_refuses_strangers(
    tmp_path: Path, to_broadcasters: str, to_subscribers: str
) -> None:
    site = await Site.make(
        tmp_path / "site", "--to-broadcasters-auth", to_broadcasters, "--to-subscribers-auth", to_subscribers
    )
    async with site.serve() as broadcaster:
        url = await broadcaster.url()
        async with open_client(site, url) as client, client.subscribe_exact(b"t") as subscription:
            assert (await client.notify(topic=b"t", data=b"x")).notified == 1
            message = await anext(subscription)
            assert (message.topic, message.data.read()) == (b"t", b"x")
            async with httpx.AsyncClient() as stranger:
                published = await stranger.post(f"{url}/v1/notify?topic=u", content=b"y")
                assert published.status_code == (200 if to_broadcasters == "none" else 401)
                delivered = await stranger.post(client.callback_url, content=b"y")
                assert delivered.status_code == (400 if to_subscribers == "none" else 401)
        assert await broadcaster.stop() == 0


async def test_uvicorn_main_app_works_in_the_folder_that_setup_made(tmp_path: Path) -> None:
    site = await Site.make(tmp_path / "site")
    command = ("-m", "uvicorn", "main:app", "--port", "0", "--no-access-log")
    async with running(*command, cwd=site.directory) as server:
        async with asyncio.timeout(30):
            while not any("running on" in line for line in server.errors):
                await asyncio.sleep(0.01)
        [line] = [line for line in server.errors if "running on" in line]
        url = line.split("running on ")[1].split()[0]
        async with open_client(site, url) as client, client.subscribe_exact(b"t") as subscription:
            await client.notify(topic=b"t", data=b"x")
            assert (await anext(subscription)).text() == "x"


async def test_listen_ends_cleanly_on_ctrl_c_and_is_unsubscribed(site: Site, broadcaster: Process) -> None:
    url = await broadcaster.url()
    async with open_client(site, url) as client:
        async with site.client(url, "listen", "foo/*") as listener:
            await subscribed(listener)
            assert (await client.notify(topic=b"foo/bar", data=b"\x1b[2Jx")).notified == 1
            assert await listener.line() == r"foo/bar: \x1b[2Jx"
            listener.signal(signal.SIGINT)
            assert await listener.ended() == 0
            assert "Traceback" not in listener.output()
        assert (await client.notify(topic=b"foo/bar", data=b"x")).matched == 0


async def test_a_failed_delivery_is_exit_status_1(site: Site, broadcaster: Process) -> None:
    url = await broadcaster.url()
    receivers = Path(__file__).with_name("receivers.py")
    async with running(receivers, "error") as failing, open_client(site, url) as client:
        [port] = json.loads(await failing.line())["ports"]
        answer = await signed_post(
            site,
            url,
            "",
            json.dumps({"url": f"http://127.0.0.1:{port}/hook", "topic": "t"}).encode(),
            path="/v1/subscriptions",
        )
        assert answer.status_code == 201, answer.text
        async with site.client(url, "notify", "t", "--data", "x") as command:
            assert await command.ended() == 1
            assert "failed 1" in command.output()
        del client


async def test_an_unreachable_broadcaster_is_named_in_the_error(site: Site) -> None:
    async with site.client("http://127.0.0.1:1", "notify", "t", "--data", "x", "--timeout", "1") as command:
        assert await command.ended() == 1
        assert "http://127.0.0.1:1" in command.output()
        assert "Traceback" not in command.output()


async def subscribed(listener: Process) -> None:
    """Wait until `listen` says that the broadcaster has confirmed it."""
    async with asyncio.timeout(30):
        while not any(line.startswith("subscribed") for line in listener.errors):
            if listener.child.returncode is not None:
                raise AssertionError(listener.output())
            await asyncio.sleep(0.01)


async def signed_post(site: Site, url: str, query: str, body: bytes, *, path: str = "/v1/notify") -> httpx.Response:
    """What any client in any language would send."""
    import hashlib
    import time

    headers = {"content-digest": content_digest(hashlib.sha256(body).digest())}
    credentials = secrets_from_json(site.secrets).to_broadcasters
    headers |= sign_request(
        credentials,
        method="POST",
        path=path,
        query=query,
        headers=headers,
        now=int(time.time()),
        nonce=os.urandom(16).hex(),
    )
    async with httpx.AsyncClient() as client:
        return await client.post(url + path + (f"?{query}" if query else ""), content=body, headers=headers)
