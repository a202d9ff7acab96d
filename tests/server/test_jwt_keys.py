"""jwt_keys.py: an issuer's keys are read strictly, fetched within bounds, and looked for again when one is missing."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

from httppubsubclient.protocol.errors import ConfigurationError, PubSubError, Unavailable
from httppubsubserver.jwt_keys import (
    MAX_JWKS_BYTES,
    IssuerKeys,
    PublicKey,
    fetch_jwks,
    read_jwks,
    read_jwks_file,
    why_not_fetched,
)
from tests.server.issuer import jwk, jwks, private_key

ONE = jwks(jwk("P-256", "k1"))
TWO = jwks(jwk("P-256", "k1"), jwk("P-256/2", "k2"))


def test_keys_that_cannot_verify_are_passed_over() -> None:
    useless: list[Any] = [
        {"kty": "oct", "k": "c2VjcmV0", "kid": "k", "alg": "HS256"},
        {"kty": "oct", "crv": "P-256", "k": "c2VjcmV0"},
        jwk("RSA-1024", "weak"),
        jwk("P-256", "enc", use="enc"),
        jwk("P-256", "ops", key_ops=["encrypt"]),
        jwk("P-256", alg="none"),
        jwk("P-256", alg="HS256"),
        jwk("P-256", alg="RS256"),
        {**jwk("P-256"), "kid": 5},
        {**jwk("P-256"), "crv": "secp256k1"},
        {**jwk("P-256"), "crv": ["P-256"]},
        {**jwk("P-256"), "x": "AAAA"},
        {**jwk("RSA-2048"), "n": "!"},
        {"kty": "RSA"},
        {},
        5,
        None,
    ]
    with pytest.raises(ConfigurationError, match=f"none of its {len(useless)} keys"):
        read_jwks(jwks(*useless))
    [key] = read_jwks(jwks(*useless, jwk("P-256", "k1", use="sig", key_ops=["verify"])))
    assert key[:2] == ("k1", frozenset({"ES256"}))


def test_nothing_private_is_kept() -> None:
    numbers = private_key("P-256").private_numbers()
    [key] = read_jwks(jwks({**jwk("P-256", "k1"), "d": hex(numbers.private_value)}))
    assert isinstance(key.key, EllipticCurvePublicKey)


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"{}", b'{"keys": {}}', b'{"keys": []}', b"[" * 10_000, b"\xff", jwks(*[jwk("P-256")] * 101)]
)
def test_what_is_no_jwks_is_refused(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    path.write_bytes(text)
    with pytest.raises(ConfigurationError, match=r"jwks\.json"):
        read_jwks_file(path)


def test_a_file_that_is_not_there_or_too_large_is_named(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    with pytest.raises(ConfigurationError, match=r"jwks_file .*jwks\.json' cannot be read: No such file"):
        read_jwks_file(path)
    path.write_bytes(b" " * MAX_JWKS_BYTES + ONE)
    with pytest.raises(ConfigurationError, match="more than"):
        read_jwks_file(path)


# -- fetching ---------------------------------------------------------------------------------------------------------

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def answering(answer: bytes | Answer) -> AsyncIterator[str]:
    """A server on a free port; its URL."""

    connections: set[asyncio.Task[Any]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        try:
            await reader.readuntil(b"\r\n\r\n")
            if callable(answer):
                await answer(reader, writer)
            else:
                writer.write(answer)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        async with server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/jwks"
    finally:
        # Whoever asked has hung up.
        for task in connections:
            task.cancel()
        if connections:
            await asyncio.wait(connections, timeout=10)


def http(body: bytes, *lines: str, status: str = "200 OK") -> bytes:
    head = "\r\n".join([f"HTTP/1.1 {status}", f"content-length: {len(body)}", "connection: close", *lines])
    return head.encode() + b"\r\n\r\n" + body


async def test_the_keys_are_fetched() -> None:
    async with answering(http(ONE)) as url:
        assert [key.kid for key in await fetch_jwks(url)] == ["k1"]


async def test_no_redirect_is_followed() -> None:
    asked = asyncio.Event()

    async def elsewhere(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()

    async with answering(elsewhere) as target:
        for status in ("301 Moved", "302 Found", "307 Temporary", "308 Permanent"):
            async with answering(http(b"", f"location: {target}", status=status)) as url:
                with pytest.raises(ConfigurationError, match="was answered 30"):
                    await fetch_jwks(url)
    assert not asked.is_set()


@pytest.mark.parametrize(
    "answer",
    [
        http(b"nonsense"),
        http(ONE, status="404 Not Found"),
        http(ONE, "content-encoding: gzip"),
        http(b" " * MAX_JWKS_BYTES + ONE),
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"garbage",
        b"",
    ],
)
async def test_a_bad_answer_is_an_error_of_ours_that_does_not_show_the_url(answer: bytes) -> None:
    async with answering(answer) as url:
        with pytest.raises(PubSubError) as caught:
            await fetch_jwks(f"{url}?token=hunter2")
        assert "hunter2" not in str(caught.value)


async def test_an_answer_that_never_ends_and_one_that_never_begins_are_given_up() -> None:
    async def endless(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(b" " * 65536)
            await writer.drain()

    async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async with answering(endless) as url:
        with pytest.raises(ConfigurationError, match="more than"):
            await fetch_jwks(url)
    async with answering(silent) as url:
        with pytest.raises(Unavailable, match=r"jwks_url \(http://127\.0\.0\.1:\d+\) could not .* no answer within"):
            await fetch_jwks(url, seconds=0.05)


async def test_an_issuer_that_cannot_be_reached_is_told_with_its_place_and_the_reason() -> None:
    async with answering(http(ONE)) as url:
        pass
    with pytest.raises(
        Unavailable, match=r"jwks_url \(http://127.*:\d+\) could not be fetched: Connection refused$"
    ) as caught:
        await fetch_jwks(f"{url}?token=hunter2")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("cause", "text"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "Name or service not known"),
        (ExceptionGroup("all", [ConnectionRefusedError(111, "Connect call failed ('x?token=t', 1)")]), "refused"),
        (ssl.SSLError(1, "[SSL: X] x?token=t"), "TLS: no handshake"),
        (ValueError("x?token=t"), "ConnectError"),
        (None, "ConnectError"),
    ],
)
def test_the_reason_is_what_the_system_says(cause: Exception | None, text: str) -> None:
    error = httpx.ConnectError("x?token=t")
    error.__cause__ = cause
    told = why_not_fetched(error, 5)
    assert text in told
    assert "token" not in told


async def test_variables_of_the_environment_play_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with answering(http(ONE)) as url:
        assert await fetch_jwks(url)


# -- remembering ------------------------------------------------------------------------------------------------------


class Issuer:
    """Answers with `now`, an error or keys; counts."""

    def __init__(self, present: bytes | PubSubError) -> None:
        self.present: bytes | PubSubError | Exception = present
        self.asked = 0
        self.now = 1000.0
        self.gate = asyncio.Event()
        self.gate.set()
        self.keys = IssuerKeys(self.look, clock=lambda: self.now)

    async def look(self) -> tuple[PublicKey, ...]:
        self.asked += 1
        await self.gate.wait()
        if isinstance(self.present, Exception):
            raise self.present
        return read_jwks(self.present)

    async def has(self, kid: str | None) -> bool:
        return bool(await self.keys.find(kid, "ES256"))


async def test_an_unknown_key_is_looked_for_at_most_once_a_minute() -> None:
    issuer = Issuer(ONE)
    await issuer.keys.refresh()
    assert await issuer.has("k1")
    assert not await issuer.has("k2")
    assert issuer.asked == 1
    issuer.now += 59
    issuer.present = TWO
    assert not await issuer.has("k2")
    issuer.now += 1
    assert await issuer.has("k2")
    for number in range(100):
        assert not await issuer.has(f"unknown-{number}")
    assert issuer.asked == 2


async def test_all_who_wait_share_one_look_and_others_do_not_wait() -> None:
    issuer = Issuer(ONE)
    await issuer.keys.refresh()
    issuer.now += 60
    issuer.present = TWO
    issuer.gate.clear()
    waiting = [asyncio.create_task(issuer.has("k2")) for _ in range(50)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    assert await issuer.has("k1")
    issuer.gate.set()
    assert await asyncio.gather(*waiting[1:]) == [True] * 49
    assert issuer.asked == 2


async def test_known_keys_stay_while_the_issuer_is_away_and_go_when_it_withdraws_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    issuer = Issuer(TWO)
    await issuer.keys.refresh()
    issuer.now += 601
    issuer.present = Unavailable("jwks_url could not be fetched: ConnectError")
    for _ in range(3):
        assert await issuer.has("k2")
        await asyncio.sleep(0)
    assert issuer.asked == 2
    assert "2 keys stay known" in caplog.text
    issuer.now += 60
    issuer.present = ONE
    await issuer.has("k2")
    for _ in range(5):
        await asyncio.sleep(0)
    assert not await issuer.has("k2")
    assert await issuer.has("k1")


async def test_before_any_key_is_known_nobody_is_told_that_his_token_is_bad(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    issuer = Issuer(ConfigurationError("what jwks_url answered: it is not JSON"))
    await issuer.keys.refresh()
    with pytest.raises(Unavailable):
        await issuer.has("k1")
    issuer.now += 60
    issuer.present = ValueError("http://user:hunter2@issuer")
    with pytest.raises(Unavailable):
        await issuer.has("k1")
    assert "hunter2" not in caplog.text
    issuer.now += 60
    issuer.present = ONE
    assert await issuer.has("k1")


async def test_closing_ends_what_is_under_way() -> None:
    issuer = Issuer(ONE)
    issuer.gate.clear()
    waiting = asyncio.create_task(issuer.has("k1"))
    await asyncio.sleep(0)
    await issuer.keys.close()
    with pytest.raises((asyncio.CancelledError, Unavailable)):
        await waiting


def test_the_algorithms_of_a_key_are_those_it_names() -> None:
    [key] = read_jwks(json.dumps({"keys": [jwk("RSA-2048", "r", alg="PS384")]}).encode())
    assert key.algorithms == {"PS384"}
