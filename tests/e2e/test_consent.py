"""Nobody is called who has not agreed: real broadcasters that ask, our client that answers, callbacks that do not."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from httppubsubclient.broadcasters import Answer
from httppubsubclient.client import HttpPubSubClient
from httppubsubclient.config import HttpPubSubConfig, get_auth_config_from_file
from httppubsubclient.listener import bound_socket, listening
from httppubsubclient.protocol.errors import CallbackRefused
from httppubsubclient.protocol.intent import parse_verification
from tests.e2e.conftest import open_client
from tests.e2e.processes import Site, running, until
from tests.e2e.test_examples import free_port, point_at, started
from tests.server.peers import Peer, Temper, Wire

ASKING = ("--verify-callbacks", "always", "--verification-timeout-seconds", "5")
NO_PROOF = ("--to-broadcasters-auth", "none", "--to-subscribers-auth", "none")


@pytest.fixture
async def open_site(tmp_path: Path) -> Site:
    """Nothing needs to be proven there."""
    return await Site.make(tmp_path / "open", *NO_PROOF)


@asynccontextmanager
async def stranger(temper: Temper, host: str = "127.0.0.1") -> AsyncIterator[tuple[Peer, list[str]]]:
    """A server that somebody else might subscribe, and the first line of every request that it got."""
    lines: list[str] = []

    async def recorded(wire: Wire, number: int) -> None:
        request = wire.request

        async def and_recorded() -> tuple[str, bytes]:
            head, body = await request()
            lines.append(head.split("\r\n")[0])
            return head, body

        wire.request = and_recorded  # type: ignore[method-assign]
        await temper(wire, number)

    peer = Peer(recorded, host, "http")
    await peer.open(None)
    try:
        yield peer, lines
    finally:
        await peer.close()


def saying(answer: bytes) -> Temper:
    async def temper(wire: Wire, number: int) -> None:
        while True:
            await wire.request()
            await wire.send(answer)

    return temper


POLITE = saying(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nOK")
"""A server that takes everything for a request of its own, as many do."""


async def silent(wire: Wire, number: int) -> None:
    await wire.request()
    await wire.closed()


async def subscribe(url: str, callback: str, **fields: Any) -> httpx.Response:
    async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
        document = {"url": callback, "glob": "a/*", "lease_seconds": 60, **fields}
        return await http.post(f"{url}/v1/subscriptions", json=document)


async def notify(url: str, topic: str) -> dict[str, Any]:
    async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
        answer = await http.post(f"{url}/v1/notify?topic={topic}", content=b"x")
        counts: dict[str, Any] = answer.json()
        return counts


async def test_our_client_agrees_by_itself(site: Site) -> None:
    async with site.serve(*ASKING) as broadcaster, open_client(site, await broadcaster.url()) as client:
        async with (
            client.subscribe_exact(b"\xff/ one?&=") as exact,
            client.subscribe_glob("two/**/[!x]*") as glob,
            client.subscribe_mqtt("three/+/#") as mqtt,
            client.subscribe(exact=[b"four"], glob=["five/*"]) as several,
            client.subscribe_exact(b"six", durable="worker-1") as durable,
            client.subscribe_exact(b"\xff" * 4096) as longest,
        ):
            for topic, subscription in [
                (b"\xff/ one?&=", exact),
                (b"two/a/b", glob),
                (b"three/a", mqtt),
                (b"four", several),
                (b"five/a", several),
                (b"six", durable),
                (b"\xff" * 4096, longest),
            ]:
                result = await client.notify(topic=topic, data=b"x")
                assert (result.matched, result.notified) == (1, 1), topic
                assert (await anext(subscription)).topic == topic
        await client.forget_durable("worker-1")
        assert (await client.notify(topic=b"six", data=b"x")).matched == 0


async def test_our_client_agrees_to_hundreds_at_once(site: Site) -> None:
    topics = [b"topic/%d" % number for number in range(300)]
    async with (
        site.serve(*ASKING) as broadcaster,
        open_client(site, await broadcaster.url()) as client,
        client.subscribe(exact=topics) as subscription,
    ):
        assert (await client.notify(topic=topics[-1], data=b"x")).notified == 1
        assert (await anext(subscription)).topic == topics[-1]


async def test_where_nothing_is_proven_our_client_agrees_to_leaving_too(open_site: Site) -> None:
    async with open_site.serve(*ASKING) as broadcaster:
        url = await broadcaster.url()
        async with open_client(open_site, url) as client:
            async with client.subscribe_multi() as subscription:
                await subscription.subscribe_exact(b"a")
                await subscription.subscribe_exact(b"b")
                await subscription.unsubscribe_exact(b"a")
                assert (await notify(url, "a"))["matched"] == 0
                assert (await notify(url, "b"))["notified"] == 1
            assert (await notify(url, "b"))["matched"] == 0
            await client.subscribe_exact(b"c").__aenter__()
        assert (await notify(url, "c"))["matched"] == 0, "leaving the client unsubscribes"


async def test_listen_agrees_by_itself(site: Site) -> None:
    async with site.serve(*ASKING) as broadcaster:
        url = await broadcaster.url()
        async with (
            site.client(url, "listen", "foo/*", "--bind", "127.0.0.1:0") as listener,
            open_client(site, url) as publisher,
        ):

            async def matched() -> bool:
                return (await publisher.notify(topic=b"foo/bar", data=b"hello")).notified == 1

            await until(matched)
            await listener.line(lambda line: "hello" in line)


async def test_an_application_agrees_once_it_listens(site: Site) -> None:
    """Its own server answers nobody while its lifespan starts."""
    async with site.serve(*ASKING) as broadcaster:
        url = await broadcaster.url()
        point_at(site, url)
        port = free_port()
        (site.directory / "app.py").write_text(APPLICATION.format(port=port))
        command = ("-m", "uvicorn", "app:app", "--port", str(port), "--no-access-log")
        async with running(*command, cwd=site.directory) as app, open_client(site, url) as publisher:
            await started(app)

            async def arrives() -> bool:
                return (await publisher.notify(topic=b"foo/bar", data=b"hello")).notified == 1

            await until(arrives)
            assert await app.line() == "hello"


APPLICATION = """
from fastapi import FastAPI
from httppubsubclient.broadcasters import Answer
from httppubsubclient.client import HttpPubSubClient
from httppubsubclient.config import HttpPubSubConfig, get_auth_config_from_file

send_auth, receive_auth = get_auth_config_from_file("subscriber-secrets.json")
client = HttpPubSubClient(
    HttpPubSubConfig(host="http://127.0.0.1:{port}/pubsub", send_auth=send_auth, receive_auth=receive_auth)
)
app = FastAPI()
app.include_router(client.router, prefix="/pubsub")


@client.on("foo/*")
async def received(message):
    print(message.text(), flush=True)
"""


async def test_processes_behind_one_address_answer_for_themselves(site: Site) -> None:
    """Who balances the load does not know which of them is meant."""
    send_auth, receive_auth = get_auth_config_from_file(str(site.directory / "subscriber-secrets.json"))
    async with site.serve(*ASKING) as broadcaster:
        url = await broadcaster.url()
        sock = bound_socket("127.0.0.1", 0)
        host = f"http://127.0.0.1:{sock.getsockname()[1]}"

        def config(fragment: str) -> HttpPubSubConfig:
            return HttpPubSubConfig(
                host=f"{host}#{fragment}", send_auth=send_auth, receive_auth=receive_auth, broadcasters=[url]
            )

        one, other = HttpPubSubClient(config("1")), HttpPubSubClient(config("2"))
        apps = [FastAPI(), FastAPI()]
        for app, client in zip(apps, (one, other), strict=True):
            app.include_router(client.router)
        turns = itertools.cycle(apps)

        async def in_turns(scope: Any, receive: Any, send: Any) -> None:
            await next(turns)(scope, receive, send)

        async with (
            listening(in_turns, sock),
            one,
            other,
            one.subscribe_exact(b"a") as first,
            other.subscribe_exact(b"a") as second,
        ):
            assert (await one.notify(topic=b"a", data=b"x")).notified == 2
            assert (await anext(first)).data.read() == (await anext(second)).data.read() == b"x"


@pytest.mark.parametrize(
    ("temper", "code"),
    [
        (POLITE, "callback_refused"),
        (saying(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"), "callback_refused"),
        (saying(b"HTTP/1.1 410 Gone\r\ncontent-length: 0\r\n\r\n"), "callback_refused"),
        (saying(b"HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n"), "callback_unreachable"),
        (saying(b"\x00\xff this is not HTTP\r\n\r\n"), "callback_unreachable"),
    ],
)
async def test_who_does_not_agree_is_never_sent_anything(open_site: Site, temper: Temper, code: str) -> None:
    async with open_site.serve(*ASKING) as broadcaster, stranger(temper) as (peer, lines):
        url, callback = await broadcaster.url(), peer.callback().request_url
        refused = await subscribe(url, callback)
        assert (refused.status_code, refused.json()["code"]) == (422, code)
        async with httpx.AsyncClient(trust_env=False) as http:
            whole = await http.put(
                f"{url}/v1/subscriptions", params={"url": callback}, json={"subscriptions": [{"glob": "a/*"}]}
            )
            assert (whole.status_code, whole.json()["code"]) == (422, code)
            listed = await http.get(f"{url}/v1/subscriptions")
            assert listed.json()["subscriptions"] == []
        assert (await notify(url, "a/b"))["matched"] == 0
        assert [line.split(" ")[0] for line in lines] == ["GET", "GET"]


async def test_a_flood_of_questions_ends_soon(open_site: Site) -> None:
    options = (*ASKING, "--verifications-per-hour", "6")
    async with open_site.serve(*options) as broadcaster, stranger(POLITE) as (peer, lines):
        url = await broadcaster.url()
        answers = await asyncio.gather(
            *(subscribe(url, f"{peer.callback().request_url}/{number}#{number}") for number in range(40))
        )
        assert len(lines) == 6
        assert sorted({answer.status_code for answer in answers}) == [422, 429]
        refused = [answer for answer in answers if answer.status_code == 429]
        assert len(refused) == 34
        assert {answer.json()["code"] for answer in refused} == {"quota_exceeded"}
        assert all(int(answer.headers["retry-after"]) > 0 for answer in refused)


async def test_a_redirect_leads_nowhere(open_site: Site) -> None:
    async with stranger(POLITE) as (target, lines):
        location = target.callback().request_url.encode()
        redirect = b"HTTP/1.1 302 Found\r\nlocation: %b\r\ncontent-length: 0\r\n\r\n" % location
        async with open_site.serve(*ASKING) as broadcaster, stranger(saying(redirect)) as (peer, _):
            refused = await subscribe(await broadcaster.url(), peer.callback().request_url)
            assert refused.json()["code"] == "callback_refused"
        assert (target.connections, lines) == (0, [])


async def test_callbacks_that_hang_keep_nobody_else(site: Site, open_site: Site) -> None:
    options = ("--verify-callbacks", "always", "--verification-timeout-seconds", "1")
    async with open_site.serve(*options) as broadcaster, stranger(silent, "127.0.0.2") as (peer, _):
        url = await broadcaster.url()
        hanging = [asyncio.create_task(subscribe(url, peer.callback(f"/{number}").request_url)) for number in range(30)]
        async with open_client(open_site, url) as client:
            for number in range(20):
                async with client.subscribe_exact(b"%d" % number):
                    assert (await client.notify(topic=b"%d" % number, data=b"x")).notified == 1
        answers = await asyncio.gather(*hanging)
        assert {answer.status_code for answer in answers} <= {422, 503, 429}
        assert "callback_unreachable" in {answer.json()["code"] for answer in answers}


async def test_an_attacker_does_not_unsubscribe_a_victim(open_site: Site) -> None:
    async with open_site.serve(*ASKING) as broadcaster:
        url = await broadcaster.url()
        async with (
            open_client(open_site, url) as victim,
            victim.subscribe_exact(b"a") as subscription,
            httpx.AsyncClient(trust_env=False, base_url=url) as attacker,
        ):
            [kept] = (await attacker.get("/v1/subscriptions")).json()["subscriptions"]
            removed = await attacker.delete(f"/v1/subscriptions/{kept['id']}")
            emptied = await attacker.put(
                "/v1/subscriptions", params={"url": victim.callback_url}, json={"subscriptions": []}
            )
            replaced = await attacker.put(
                "/v1/subscriptions", params={"url": victim.callback_url}, json={"subscriptions": [{"topic": "b"}]}
            )
            for answer in (removed, emptied, replaced):
                assert (answer.status_code, answer.json()["code"]) == (422, "callback_refused")
            other = await subscribe(url, victim.callback_url, glob="**")
            assert (other.status_code, other.json()["code"]) == (422, "callback_refused")
            assert (await attacker.get("/v1/subscriptions")).json()["subscriptions"] == [kept]
            assert (await victim.notify(topic=b"a", data=b"x")).notified == 1
            assert (await anext(subscription)).topic == b"a"


SHAKING: dict[str, Any] = {"handshake": "cloudevents", "format": "cloudevents-binary"}


async def test_our_client_agrees_to_the_handshake_of_cloudevents_that_it_asked_for(site: Site) -> None:
    async with (
        site.serve(*ASKING, "--webhook-origin", "127.0.0.1") as broadcaster,
        open_client(site, await broadcaster.url()) as client,
        client.subscribe(exact=[b"a"], glob=["b/*"], **SHAKING) as one,
        client.subscribe_exact(b"c", durable="worker-1", **SHAKING) as other,
    ):
        for topic, subscription in ((b"a", one), (b"b/1", one), (b"c", other)):
            assert (await client.notify(topic=topic, data=b"x")).notified == 1
            assert (await anext(subscription)).topic == topic


async def test_nobody_subscribes_our_client_by_a_handshake_that_it_never_asked_for(open_site: Site) -> None:
    async with open_site.serve(*ASKING, "--webhook-origin", "127.0.0.1") as broadcaster:
        url = await broadcaster.url()
        async with (
            open_client(open_site, url) as victim,
            victim.subscribe_exact(b"a") as plain,
            victim.subscribe_exact(b"b", durable="worker-1") as durable,
            victim.subscribe_exact(b"c", **SHAKING) as shaken,
        ):
            before = await listed(url)
            for callback in (victim.callback_url, f"{victim.callback_url}?durable=worker-1"):
                for more in ({}, {"delivery": "durable"}, {"glob": "a"}, {"lease_seconds": 864_000}):
                    answer = await subscribe(url, callback, **SHAKING, **more)
                    assert (answer.status_code, answer.json()["code"]) == (422, "callback_refused")
            assert await listed(url) == before
            for topic, subscription in ((b"a", plain), (b"b", durable), (b"c", shaken)):
                assert (await victim.notify(topic=topic, data=b"x")).matched == 1
                assert (await anext(subscription)).topic == topic
            raw = await subscribe(url, victim.callback_url, handshake="cloudevents")
            assert (raw.status_code, raw.json()["code"]) == (400, "invalid_request")


async def listed(url: str) -> list[dict[str, Any]]:
    async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
        found: list[dict[str, Any]] = (await http.get(f"{url}/v1/subscriptions")).json()["subscriptions"]
        return found


async def test_by_default_own_networks_are_not_asked(open_site: Site) -> None:
    async with open_site.serve() as broadcaster, stranger(POLITE) as (peer, lines):
        url = await broadcaster.url()
        assert (await subscribe(url, peer.callback().request_url)).status_code == 201
        assert (await notify(url, "a/b"))["notified"] == 1
        assert [line.split(" ")[0] for line in lines] == ["POST"]


async def test_a_renewal_asks_nobody_and_410_is_the_end(site: Site) -> None:
    """The callback agrees to the first question and to nothing else; its 410 is heard."""
    methods: list[str] = []

    async def temper(wire: Wire, number: int) -> None:
        head, _ = await wire.request()
        method, target, _ = head.split("\r\n")[0].split(" ")
        methods.append(method)
        if methods == ["GET"]:
            challenge = parse_verification(target.partition("?")[2]).challenge.encode()
            await wire.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(challenge), challenge))
        else:
            await wire.send(b"HTTP/1.1 410 Gone\r\ncontent-length: 0\r\n\r\n")

    async with site.serve(*ASKING) as broadcaster, stranger(temper) as (peer, _):
        url, callback = await broadcaster.url(), peer.callback().request_url
        async with open_client(site, url) as publisher:
            calls = publisher._running_registrations()._broadcasters

            async def subscribed() -> Answer:
                return await calls.call(
                    "POST",
                    "/v1/subscriptions",
                    fields={"url": callback, "topic": "a", "lease_seconds": 60},
                    repeatable=True,
                    retry_seconds=10,
                    deadline_seconds=10,
                )

            assert (await subscribed()).status == 201
            assert [(await subscribed()).status for _ in range(3)] == [200, 200, 200]
            assert methods == ["GET"]
            assert (await publisher.notify(topic=b"a", data=b"x")).failed == 1

            async def removed() -> bool:
                return (await publisher.notify(topic=b"a", data=b"x")).matched == 0

            await until(removed)
            with pytest.raises(CallbackRefused):
                await subscribed()
