"""TLS between real processes, with what --setup --tls makes: certificates both ways, or nobody is let in."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from httppubsubclient.client import BroadcastersUnavailable, HttpPubSubClient
from httppubsubclient.config import HttpPubSubConfig, get_auth_config_from_file
from httppubsubserver import FastTransport
from httppubsubserver.certificates import Pair, new_authority, signed
from tests.e2e.processes import DEADLINE_SECONDS, Process, Site

NOW = datetime.now(UTC)
DAY = timedelta(days=1)
FOR_EVER = 3600.0


class TlsSite(Site):
    """Made by --setup --tls."""

    def flags(self, *, mutual: bool = True) -> list[str]:
        flags = {
            "ssl-certfile": "broadcaster.pem",
            "ssl-keyfile": "broadcaster-key.pem",
            "callback-ca-file": "ca.pem",
            "callback-client-certfile": "broadcaster.pem",
            "callback-client-keyfile": "broadcaster-key.pem",
        }
        if mutual:
            flags["ssl-ca-certs"] = "ca.pem"
        return [text for name, file in flags.items() for text in (f"--{name}", str(self.directory / file))]

    def context(self, *, certificate: bool = True) -> ssl.SSLContext:
        """Of a client that knows the authority."""
        context = ssl.create_default_context(cafile=self.directory / "ca.pem")
        if certificate:
            context.load_cert_chain(self.directory / "subscriber.pem", self.directory / "subscriber-key.pem")
        return context

    def config(self, url: str, **settings: Any) -> HttpPubSubConfig:
        send_auth, receive_auth = get_auth_config_from_file(self.directory / "subscriber-secrets.json")
        own = {"ssl_certfile": self.directory / "subscriber.pem", "ssl_keyfile": self.directory / "subscriber-key.pem"}
        settings = {
            "bind": {
                "type": "uvicorn", "address": "127.0.0.1", "port": 0, **own, "ssl_ca_certs": self.directory / "ca.pem",
            },
            "host": "https://127.0.0.1:0",
            "broadcaster_ca_file": self.directory / "ca.pem",
            "broadcaster_client_certfile": own["ssl_certfile"],
            "broadcaster_client_keyfile": own["ssl_keyfile"],
            **settings,
        }  # fmt: skip
        return HttpPubSubConfig(send_auth=send_auth, receive_auth=receive_auth, broadcasters=[url], **settings)

    def put(self, name: str, pair: Pair) -> None:
        (self.directory / f"{name}-key.pem").write_bytes(pair.key)
        (self.directory / f"{name}.pem").write_bytes(pair.certificate)


@pytest.fixture
async def site(tmp_path: Path) -> TlsSite:
    return TlsSite((await Site.make(tmp_path / "site", "--tls")).directory)


@pytest.fixture
async def broadcaster(site: TlsSite) -> AsyncIterator[Process]:
    """Asks for certificates, and shows its own."""
    async with site.serve(*site.flags()) as process:
        await process.url()
        yield process


@asynccontextmanager
async def api(process: Process, context: ssl.SSLContext) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=await process.url(), verify=context, trust_env=False) as client:
        yield client


async def test_both_ways_with_certificates_of_both_sides(site: TlsSite, broadcaster: Process) -> None:
    url = await broadcaster.url()
    assert url.startswith("https://127.0.0.1:")
    async with HttpPubSubClient(site.config(url)) as client, client.subscribe_glob("foo/*") as subscription:
        assert client.callback_url.startswith("https://127.0.0.1:")
        result = await client.notify(topic=b"foo/bar", data=b"x" * 3_000_000)
        assert (result.matched, result.notified) == (1, 1)
        assert (await subscription.messages().__anext__()).size == 3_000_000


async def test_the_commands_take_the_folder_that_setup_made(site: TlsSite, broadcaster: Process) -> None:
    url = await broadcaster.url()
    async with site.client(url, "listen", "foo/*", "--tls", site.directory, "--count", "1") as listener:
        await _said(listener, "subscribed, called back at https://127.0.0.1:")
        async with site.client(url, "notify", "foo/bar", "--data", "hello", "--tls", site.directory) as notify:
            assert await notify.ended() == 0, notify.output()
        assert await listener.line() == "foo/bar: hello"
        assert await listener.ended() == 0


async def _said(process: Process, text: str) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not any(text in line for line in process.errors):
            await asyncio.sleep(0.01)


async def test_plain_http_where_the_secrets_say_https_is_warned_about(site: TlsSite) -> None:
    async with site.serve() as broadcaster:
        await _said(broadcaster, "this port speaks http, but ")
        [line] = [line for line in broadcaster.errors if "WARNING" in line]
        assert line.endswith(f"{site.directory / 'broadcaster.pem'} lies there")


async def test_several_workers_serve_it_too(site: TlsSite) -> None:
    async with site.serve(*site.flags(), "--workers", "2") as broadcaster:
        for _ in range(4):
            async with api(broadcaster, site.context()) as client:
                assert (await client.get("/v1/health/ready")).status_code == 200
        assert await broadcaster.stop() == 0


async def test_a_callback_whose_certificate_does_not_convince_gets_no_message(tmp_path: Path) -> None:
    """Hardening, line 34: there is no way down from https, and nothing to switch the verification off."""
    site = TlsSite((await Site.make(tmp_path / "site", "--tls", "--to-broadcasters-auth", "none")).directory)
    strange = new_authority(NOW - 400 * DAY)
    ours = Pair((site.directory / "ca.pem").read_bytes(), (site.directory / "ca-key.pem").read_bytes())
    shown = {
        "expired": signed(strange, "x", ["127.0.0.1"], NOW - 399 * DAY),
        "of another authority": signed(new_authority(), "x", ["127.0.0.1"]),
        "for another name": signed(ours, "x", ["elsewhere.example"]),
        "for another address": signed(ours, "x", ["127.0.0.2"]),
    }
    received: list[bytes] = []

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.read(1000))
        writer.close()

    async with site.serve(*site.flags()) as broadcaster, api(broadcaster, site.context()) as client:
        for number, pair in enumerate(shown.values()):
            site.put("shown", pair)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(site.directory / "shown.pem", site.directory / "shown-key.pem")
            async with await asyncio.start_server(note, "127.0.0.1", 0, ssl=context) as server:
                url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook"
                subscription = {"url": url, "topic": f"t{number}"}
                assert (await client.post("/v1/subscriptions", json=subscription)).status_code == 201
                answer = await client.post(f"/v1/notify?topic=t{number}", content=b"secret")
                assert answer.json()["failed"] == 1
        assert await broadcaster.stop() == 0
    assert all(b"secret" not in data for data in received)
    assert sum("tls_error" in line for line in broadcaster.errors) == len(shown)


# -- who is not let in ------------------------------------------------------------------------------------------------


async def test_whoever_shows_no_certificate_or_a_stranger_s_is_not_let_in(site: TlsSite, broadcaster: Process) -> None:
    strange = site.context(certificate=False)
    authority = new_authority()
    site.put("strange", signed(authority, "subscriber", ["localhost"]))
    strange.load_cert_chain(site.directory / "strange.pem", site.directory / "strange-key.pem")
    for context in (site.context(certificate=False), strange):
        async with api(broadcaster, context) as client:
            with pytest.raises((httpx.ReadError, httpx.ConnectError, httpx.RemoteProtocolError)):
                await client.get("/v1/health/live")
    async with api(broadcaster, site.context()) as client:
        assert (await client.get("/v1/health/live")).status_code == 200
    assert not any("Traceback" in line for line in broadcaster.errors)


async def test_without_an_authority_nobody_needs_a_certificate(site: TlsSite) -> None:
    async with (
        site.serve(*site.flags(mutual=False)) as broadcaster,
        api(broadcaster, site.context(certificate=False)) as client,
    ):
        assert (await client.get("/v1/health/live")).status_code == 200


async def test_old_versions_of_tls_are_refused(site: TlsSite, broadcaster: Process) -> None:
    context = site.context()
    context.set_ciphers("DEFAULT@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        context.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    async with api(broadcaster, context) as client:
        with pytest.raises((httpx.ConnectError, httpx.ReadError)):
            await client.get("/v1/health/live")


async def test_a_client_trusts_no_other_authority_and_no_other_name(site: TlsSite, tmp_path: Path) -> None:
    other = await Site.make(tmp_path / "other", "--tls")
    pair = Pair((site.directory / "ca.pem").read_bytes(), (site.directory / "ca-key.pem").read_bytes())
    site.put("named", signed(pair, "broadcaster", ["elsewhere.example"]))
    bad_name = ["--ssl-certfile", str(site.directory / "named.pem"), "--ssl-keyfile"]
    bad_name.append(str(site.directory / "named-key.pem"))
    async with site.serve(*site.flags()) as good, site.serve(*bad_name) as misnamed:
        for url, settings, told in (
            (await good.url(), {"broadcaster_ca_file": other.directory / "ca.pem"}, "of nobody that we trust"),
            (await good.url(), {"broadcaster_ca_file": None}, "broadcaster_ca_file, or --ca-file, or --tls, says"),
            (await misnamed.url(), {}, "IP address mismatch, certificate is not valid for '127.0.0.1'"),
        ):
            config = site.config(url, host=None, bind=None, request_timeout_seconds=FOR_EVER, **settings)
            async with HttpPubSubClient(config) as client:
                with pytest.raises(BroadcastersUnavailable, match=told) as caught:
                    await client.notify(topic=b"t", data=b"x", wait=0)
                assert caught.value.settings_at_fault
                assert not caught.value.maybe_processed


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("size", [1, 3_000_000])
async def test_what_may_be_wrong_with_tls_is_told_by_the_names_of_settings(
    site: TlsSite, broadcaster: Process, fast: bool, size: int
) -> None:
    async with site.serve() as plain:
        tls_url, plain_url = await broadcaster.url(), await plain.url()
        for url, told, hopeless in (
            (tls_url, "wants a certificate of ours (broadcaster_client_certfile, or --tls, says", False),
            (tls_url.replace("https:", "http:"), "perhaps it speaks TLS there and its URL begins with https:", False),
            (plain_url.replace("http:", "https:"), "does not speak TLS there; perhaps its URL begins with http:", True),
        ):
            settings: dict[str, Any] = {"host": None, "bind": None, "request_timeout_seconds": FOR_EVER}
            settings |= {"broadcaster_client_certfile": None, "broadcaster_client_keyfile": None}
            transport = None
            if fast:
                transport = FastTransport(tls=site.context(certificate=False))
                settings["broadcaster_ca_file"] = None
            async with HttpPubSubClient(site.config(url, **settings), transport=transport) as client:
                with pytest.raises(BroadcastersUnavailable) as caught:
                    await client.notify(topic=b"t", data=b"x" * size, wait=0)
            if transport is not None:
                await transport.aclose()
            [answer] = caught.value.answers.values()
            # What OpenSSL says of it, where it still can, names the same setting.
            assert told in answer or ("broadcaster_client_certfile" in told and "CERTIFICATE" in answer), answer
            assert caught.value.settings_at_fault == hopeless
    for said in ("it shows no certificate, and one is asked for (ssl_ca_certs)", "it speaks http, not https"):
        assert sum(f"no TLS with 127.0.0.1: {said}" in line for line in broadcaster.errors) == 1, broadcaster.output()


async def test_another_broadcaster_is_asked_when_one_has_no_good_certificate(
    site: TlsSite, broadcaster: Process
) -> None:
    """And of those that cannot be used, none is asked twice."""
    async with site.serve() as plain:
        bad = (await plain.url()).replace("http:", "https:")
        config = site.config(bad, host=None, bind=None, request_timeout_seconds=FOR_EVER)
        async with HttpPubSubClient(replace(config, broadcasters=[bad, await broadcaster.url()])) as client:
            for _ in range(4):
                assert (await client.notify(topic=b"t", data=b"x")).matched == 0


async def test_a_listener_lets_in_nobody_but_its_broadcasters(site: TlsSite, broadcaster: Process) -> None:
    async with HttpPubSubClient(site.config(await broadcaster.url())) as client, client.subscribe_exact(b"t"):
        async with httpx.AsyncClient(verify=site.context(certificate=False), trust_env=False) as stranger:
            with pytest.raises((httpx.ReadError, httpx.ConnectError, httpx.RemoteProtocolError)):
                await stranger.post(client.callback_url)
        async with httpx.AsyncClient(verify=site.context(), trust_env=False) as known:
            assert (await known.post(client.callback_url)).status_code == 401


async def test_plain_http_to_a_tls_port_and_a_silent_handshake_hold_nobody_up(
    site: TlsSite, broadcaster: Process
) -> None:
    parts = urlsplit(await broadcaster.url())
    silent = [await asyncio.open_connection(parts.hostname, parts.port) for _ in range(50)]
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            answer = await reader.read()
    except ConnectionError:
        answer = b""
    assert b"HTTP/1.1" not in answer
    async with api(broadcaster, site.context()) as client:
        assert (await client.get("/v1/health/live")).status_code == 200
    for _, other in (*silent, (reader, writer)):
        other.close()
    assert not any("Traceback" in line for line in broadcaster.errors)


async def test_silent_handshakes_give_way_to_those_who_speak(site: TlsSite) -> None:
    async with site.serve(*site.flags(), "--max-connections", "3") as broadcaster:
        parts = urlsplit(await broadcaster.url())
        silent = [await asyncio.open_connection(parts.hostname, parts.port) for _ in range(10)]
        for _ in range(3):
            async with api(broadcaster, site.context()) as client:
                assert (await client.get("/v1/health/live")).status_code == 200
        for _, writer in silent:
            writer.close()


# -- at the start -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_an_expired_certificate_is_one_clear_line_and_nothing_listens(site: TlsSite, workers: str) -> None:
    site.put("broadcaster", signed(new_authority(NOW - 500 * DAY), "x", ["127.0.0.1"], NOW - 450 * DAY))
    async with site.serve(*site.flags(), "--workers", workers) as broadcaster:
        assert await broadcaster.ended() == 1
        assert broadcaster.lines == []
        [line] = broadcaster.errors
        assert line.startswith("httppubsubserver: ssl_certfile: the certificate ")
        assert " expired on " in line


async def test_an_expired_certificate_for_callbacks_is_told_too(site: TlsSite) -> None:
    site.put("old", signed(new_authority(NOW - 500 * DAY), "x", ["127.0.0.1"], NOW - 450 * DAY))
    old = [str(site.directory / name) for name in ("old.pem", "old-key.pem")]
    async with site.serve("--callback-client-certfile", old[0], "--callback-client-keyfile", old[1]) as broadcaster:
        assert await broadcaster.ended() == 1
        [line] = broadcaster.errors
        assert line.startswith(f"httppubsubserver: callback_client_certfile: the certificate {old[0]} expired on ")


async def test_one_near_its_end_is_warned_about(site: TlsSite) -> None:
    site.put("broadcaster", signed(new_authority(NOW - 390 * DAY), "x", ["127.0.0.1"], NOW - 390 * DAY))
    async with site.serve(*site.flags()) as broadcaster:
        await broadcaster.url()
        assert any("WARNING httppubsub.tls: ssl_certfile: the certificate " in line for line in broadcaster.errors)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--ssl-keyfile", "broadcaster-key.pem"], "ssl_keyfile is the key of a certificate: set ssl_certfile, too"),
        (["--ssl-ca-certs", "ca.pem"], "ssl_ca_certs asks clients for certificates, which needs TLS"),
        (["--ssl-certfile", "nothing.pem"], "ssl_certfile: .*nothing.pem cannot be read"),
        (["--ssl-certfile", "broadcaster.pem"], "set ssl_keyfile"),
        (["--ssl-certfile", "broadcaster.pem", "--ssl-keyfile", "subscriber-key.pem"], "is not the key of"),
    ],
)
async def test_what_is_wrong_is_told_before_anything_is_printed(site: TlsSite, flags: list[str], told: str) -> None:
    given = [flag if flag.startswith("--") else os.fspath(site.directory / flag) for flag in flags]
    async with site.serve(*given) as broadcaster:
        assert await broadcaster.ended() == 1
        assert broadcaster.lines == []
        [line] = broadcaster.errors
        assert told.split(".*")[-1] in line
