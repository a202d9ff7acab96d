"""Keys with permissions, their rotation and tokens of an issuer, with real broadcasters and the real client."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import time
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest

from httppubsubclient.client import HttpPubSubClient
from httppubsubclient.protocol.credentials import secrets_from_json, sign_request
from httppubsubclient.protocol.errors import Forbidden, PubSubError, QuotaExceeded, Unauthorized
from httppubsubclient.protocol.signatures import content_digest
from tests.e2e.conftest import open_client
from tests.e2e.processes import Site, running
from tests.server.issuer import AUDIENCE, ISSUER, jwk, jwks, token

PARTNER: dict[str, Any] = {
    "id": "partner",
    "publish": ["partner/**"],
    "subscribe": ["orders/eu/*", "partner/**"],
    "quotas": {"subscriptions": 2, "messages_per_second": 0.5},
}


def add_partner(site: Site, **members: Any) -> str:
    """To the broadcaster's file, and to one of his own, `partner/subscriber-secrets.json`; his secret."""
    secret = b64encode(secrets.token_bytes(32)).decode()
    path = site.directory / "broadcaster-secrets.json"
    document = json.loads(path.read_text())
    document["to_broadcasters"]["keys"].insert(0, {**PARTNER, "secret": secret, **members})
    path.write_text(json.dumps(document))
    document["to_broadcasters"]["keys"] = document["to_broadcasters"]["keys"][:1]
    write_partner(site, document)
    return secret


def write_partner(site: Site, document: dict[str, Any]) -> None:
    folder = site.directory / "partner"
    folder.mkdir(exist_ok=True)
    (folder / "subscriber-secrets.json").write_text(json.dumps(document))
    (folder / "subscriber-secrets.json").chmod(0o600)


@asynccontextmanager
async def open_partner(site: Site, url: str) -> AsyncIterator[HttpPubSubClient]:
    async with open_client(Site(site.directory / "partner"), url) as client:
        yield client


async def test_a_partner_does_what_he_may_and_sees_what_is_his(site: Site) -> None:
    add_partner(site)
    async with site.serve() as broadcaster:
        url = await broadcaster.url()
        async with (
            open_client(site, url) as ours,
            open_partner(site, url) as partner,
            ours.subscribe_glob("**") as everything,
            partner.subscribe_glob("orders/eu/*") as orders,
        ):
            await ours.notify(topic=b"orders/eu/1", data=b"for both")
            assert (await anext(orders)).text() == (await anext(everything)).text() == "for both"
            await partner.notify(topic=b"partner/1", data=b"hello")
            assert (await anext(everything)).text() == "hello"
            with pytest.raises(Forbidden, match="may not publish to the topic orders/eu/1"):
                await partner.notify(topic=b"orders/eu/1", data=b"forged")
            for glob in ("**", "orders/**", "orders/eu/**"):
                with pytest.raises(Forbidden, match="may not subscribe to the glob"):
                    async with partner.subscribe_glob(glob):
                        pass
            async with partner.subscribe_glob("partner/*"):
                with pytest.raises(QuotaExceeded):
                    async with partner.subscribe_exact(b"partner/x"):
                        pass
            target = "/v1/notify?topic=partner/1"
            folder = site.directory / "partner"
            answers = await asyncio.gather(*(call(folder, url, "POST", target) for _ in range(10)))
            refused = [answer for answer in answers if answer.status_code == 429]
            assert refused
            assert all(answer.headers["retry-after"] in ("1", "2") for answer in refused)
            # The client waits as long as it is told to.
            assert (await partner.notify(topic=b"partner/1", data=b"more")).matched == 1
        assert await broadcaster.stop() == 0
    for secret in all_secrets(site):
        assert secret not in broadcaster.output()
    assert '"by": "partner"' in broadcaster.output()


def all_secrets(site: Site) -> list[str]:
    document = json.loads((site.directory / "broadcaster-secrets.json").read_text())
    return [key["secret"] for name in ("to_broadcasters", "to_subscribers") for key in document[name]["keys"]]


async def test_subscriptions_survive_the_rotation_of_their_key_and_belong_to_nobody_else(site: Site) -> None:
    add_partner(site)
    async with site.serve() as broadcaster:
        url = await broadcaster.url()
        body = {"url": "http://127.0.0.1:19999/hook", "glob": "orders/eu/*"}
        made = (await call(site.directory / "partner", url, "POST", "/v1/subscriptions", body)).json()["id"]
        assert await broadcaster.stop() == 0
    before = set(all_secrets(site))
    rotate = ("-m", "httppubsubserver", "--rotate", "--directory", site.directory, "--grace-seconds", "0")
    async with running(*rotate) as rotating:
        assert await rotating.ended() == 0, rotating.output()
        assert "of partner" in rotating.output()
        for secret in [*before, *all_secrets(site)]:
            assert secret not in rotating.output()
    assert not before & set(all_secrets(site))
    theirs = json.dumps(site.secrets)
    document = json.loads((site.directory / "broadcaster-secrets.json").read_text())
    [key] = [key for key in document["to_broadcasters"]["keys"] if key["owner"] == "partner"]
    assert {name: key[name] for name in PARTNER if name != "id"} == {n: PARTNER[n] for n in PARTNER if n != "id"}
    assert key["secret"] not in theirs
    async with site.serve() as broadcaster:
        url = await broadcaster.url()
        async with open_partner(site, url) as partner:
            with pytest.raises(PubSubError, match=r"not valid any more|not known"):
                await partner.notify(topic=b"partner/1", data=b"with the old key")
        document["to_broadcasters"]["keys"] = [key]
        write_partner(site, document)
        assert await ids(site.directory / "partner", url) == {made}
        assert await ids(site.directory, url) == set()
        assert await broadcaster.stop() == 0


async def call(folder: Path, url: str, method: str, path: str, body: Any = None) -> httpx.Response:
    """A request that is signed with the subscribers' file of this folder."""
    credentials = secrets_from_json(json.loads((folder / "subscriber-secrets.json").read_text())).to_broadcasters
    content = b"" if body is None else json.dumps(body).encode()
    headers = {} if body is None else {"content-digest": content_digest(sha256(content).digest())}
    headers |= sign_request(
        credentials,
        method=method,
        path=path.partition("?")[0],
        query=path.partition("?")[2],
        headers=headers,
        now=int(time.time()),
        nonce=os.urandom(16).hex(),
    )
    headers["content-type"] = "application/json"
    async with httpx.AsyncClient(trust_env=False) as http:
        return await http.request(method, f"{url}{path}", content=content, headers=headers)


async def ids(folder: Path, url: str) -> set[str]:
    answer = await call(folder, url, "GET", "/v1/subscriptions")
    return {each["id"] for each in answer.json()["subscriptions"]}


@asynccontextmanager
async def issuer_at(*documents: bytes) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that answers these in turn, the last one again and again; its URL, and the requests that it got."""
    requests: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.readuntil(b"\r\n\r\n"))
        body = documents[min(len(requests), len(documents)) - 1]
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/jwks", requests


async def test_tokens_of_an_issuer_are_taken_beside_keys(site: Site) -> None:
    settings = ("--jwt-issuer", ISSUER, "--jwt-audience", AUDIENCE)
    claims: Any = {"exp": int(time.time()) + 600}
    async with issuer_at(jwks(jwk("P-256", "k1")), jwks(jwk("P-256", "k1"), jwk("Ed25519", "k2"))) as (jwks_url, asked):
        async with (
            site.serve(*settings, "--jwks-url", jwks_url) as broadcaster,
            httpx.AsyncClient(trust_env=False) as http,
        ):
            url = await broadcaster.url()

            async def status(text: str, path: str = "/v1/notify?topic=a/b", method: str = "POST") -> int:
                headers = {"authorization": f"Bearer {text}"}
                return (await http.request(method, f"{url}{path}", headers=headers)).status_code

            assert len(asked) == 1
            good, newer = token(**claims), token("Ed25519", "EdDSA", kid="k2", **claims)
            assert await status(good) == 200
            assert await status(token("P-256/2", **claims)) == 401
            assert await status(token(httppubsub={"publish": ["x"]}, **claims)) == 403
            assert await status(token(exp=int(time.time()) - 1)) == 401
            assert len(asked) == 1
            assert await status(newer) == 401, "the issuer was asked a moment ago"
            assert len(asked) == 1
            assert await broadcaster.stop() == 0
        for text in (good, newer):
            assert text.split(".")[2] not in broadcaster.output()


async def test_a_client_comes_with_tokens_of_an_issuer_alone(site: Site, tmp_path: Path) -> None:
    (tmp_path / "jwks.json").write_bytes(jwks(jwk("P-256", "k1")))
    document = json.loads((site.directory / "subscriber-secrets.json").read_text())
    write_partner(site, {**document, "to_broadcasters": {"type": "none"}})
    partner = Site(site.directory / "partner")
    settings = ("--jwt-issuer", ISSUER, "--jwt-audience", AUDIENCE, "--jwks-file", str(tmp_path / "jwks.json"))
    given: list[str] = []

    async def get() -> str:
        claim = {"publish": ["orders/*"], "subscribe": ["orders/*"]}
        given.append(token(exp=int(time.time()) + 60, jti=str(len(given)), httppubsub=claim))
        return given[-1]

    async with site.serve(*settings) as broadcaster:
        url = await broadcaster.url()
        async with open_client(partner, url, bearer_token=get) as client:
            async with client.subscribe_glob("orders/*") as messages:
                assert (await client.notify(topic=b"orders/1", data=b"x")).notified == 1
                assert (await anext(messages)).data.read() == b"x"
            with pytest.raises(Forbidden, match="this token may not publish to the topic bills"):
                await client.notify(topic=b"bills", data=b"x")
        assert len(given) >= 4
        path = tmp_path / "token"
        path.write_text("garbage")
        async with open_client(partner, url, bearer_token=path) as client:
            with pytest.raises(Unauthorized, match="none of the issuer"):
                await client.notify(topic=b"orders/1", data=b"x")
            path.write_text(f"{await get()}\n")
            assert (await client.notify(topic=b"orders/1", data=b"x")).matched == 0
        command = ("-m", "httppubsubclient", "notify", "orders/1", "--data", "x", "--broadcaster", url)
        secrets_file = str(partner.directory / "subscriber-secrets.json")
        async with running(*command, "--secrets", secrets_file, "--token-file", str(path)) as process:
            assert await process.ended() == 0, process.output()
        assert await broadcaster.stop() == 0


async def test_a_broadcaster_that_cannot_know_its_issuer_says_so_and_lets_in_keys(site: Site) -> None:
    settings = ("--jwt-issuer", ISSUER, "--jwt-audience", AUDIENCE)
    async with site.serve(*settings) as process:
        assert await process.ended() == 1
        assert "jwks_file and jwks_url" in process.output()
        assert "Traceback" not in process.output()
    async with site.serve(*settings, "--jwks-url", "http://127.0.0.1:1/jwks") as process:
        url = await process.url()
        async with httpx.AsyncClient(trust_env=False) as http:
            headers = {"authorization": f"Bearer {token(exp=int(time.time()) + 60)}"}
            answer = await http.get(f"{url}/v1/subscriptions", headers=headers)
        assert answer.status_code == 503
        assert (await call(site.directory, url, "GET", "/v1/subscriptions")).status_code == 200
        assert "jwks_url (http://127.0.0.1:1) could not be fetched" in process.output()


async def test_a_token_in_the_query_lets_nobody_in_and_is_not_written_down(tmp_path: Path) -> None:
    site = await Site.make(tmp_path / "site", "--to-broadcasters-auth", "token")
    secret = site.secrets["to_broadcasters"]["keys"][0]["secret"]
    async with site.serve("--log-level", "debug") as process, httpx.AsyncClient(trust_env=False) as http:
        url = await process.url()
        for path in ("/v1/subscriptions", "/v1/deliveries", "/v1/messages/x", "/nowhere"):
            for name in ("access_token", "token", "authorization"):
                answer = await http.get(f"{url}{path}?{name}={secret}")
                assert answer.status_code == (404 if path == "/nowhere" else 401)
                assert secret not in answer.text
        answer = await http.post(f"{url}/v1/notify?topic=t&access_token={secret}")
        assert answer.status_code == 401
        headers = {"authorization": f"Bearer {secret}"}
        assert (await http.get(f"{url}/v1/subscriptions", headers=headers)).status_code == 200
        assert await process.stop() == 0
        assert secret not in process.output()


async def test_a_misspelt_restriction_keeps_the_broadcaster_from_starting(site: Site) -> None:
    secret = add_partner(site, publsh=[])
    async with site.serve() as process:
        assert await process.ended() == 1
        assert "keys[0] has the member 'publsh'" in process.output()
        assert secret not in process.output()


async def test_fifty_at_once_in_two_processes_make_as_many_subscriptions_as_are_allowed(site: Site) -> None:
    add_partner(site)
    async with site.serve("--workers", "2") as process:
        url = await process.url()
        bodies = [{"url": "http://127.0.0.1:19999/hook", "topic": f"partner/{number % 7}"} for number in range(50)]
        folder = site.directory / "partner"
        answers = await asyncio.gather(*(call(folder, url, "POST", "/v1/subscriptions", body) for body in bodies))
        assert {answer.status_code for answer in answers} == {200, 201, 429}
        assert len(await ids(folder, url)) == 2
