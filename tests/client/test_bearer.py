"""bearer.py: a token for the broadcasters is asked for anew with each request, and is never shown."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from httppubsubclient.bearer import BearerSource, bearer_headers
from httppubsubclient.broadcasters import Broadcasters
from httppubsubclient.cli import main
from httppubsubclient.protocol.errors import ConfigurationError, PubSubError, Unauthorized, Unavailable
from tests.client.conftest import SEND_AUTH, config

URLS = ("http://one.test:3003", "http://two.test:3003")


async def refusal(source: BearerSource, seconds: float = 5) -> str:
    with pytest.raises((ConfigurationError, Unavailable)) as caught:
        await bearer_headers(source, seconds=seconds)
    assert "hunter2" not in str(caught.value)
    return str(caught.value)


async def asked(source: BearerSource, answers: list[int]) -> list[str | None]:
    """Makes a call that is answered like this; the Authorization of each attempt."""
    seen: list[str | None] = []

    async def body() -> AsyncIterator[bytes]:
        yield b"{}"

    def answer(request: httpx.Request) -> httpx.Response:
        assert "signature" not in request.headers
        seen.append(request.headers.get("authorization"))
        return httpx.Response(answers[len(seen) - 1], content=body())

    async with Broadcasters(
        URLS, SEND_AUTH, connect_timeout_seconds=1, bearer_token=source, transport=httpx.MockTransport(answer)
    ) as broadcasters:
        await broadcasters.call("GET", "/v1/x", repeatable=True, retry_seconds=5, deadline_seconds=5)
    return seen


async def test_each_attempt_has_the_token_of_now_and_no_signature() -> None:
    tokens = iter(["first", "second"])
    assert await asked(lambda: next(tokens), [503, 200]) == ["Bearer first", "Bearer second"]


async def test_a_function_may_have_to_be_awaited() -> None:
    async def token() -> str:
        await asyncio.sleep(0)
        return "awaited"

    assert await asked(token, [200]) == ["Bearer awaited"]


async def test_a_file_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("  eyJ.one.x\n")
    assert await asked(path, [200]) == ["Bearer eyJ.one.x"]
    path.write_text("eyJ.two.x")
    assert await asked(path, [200]) == ["Bearer eyJ.two.x"]


async def test_a_refused_token_is_the_error_of_the_broadcaster() -> None:
    with pytest.raises(PubSubError, match="answered 401"):
        await asked(lambda: "stale", [401])


@pytest.mark.parametrize("token", ["", "Bearer x", "hunter2\r\nx: y", "hunter2 ", "é", "x" * 16_385, b"hunter2", None])
async def test_what_is_no_token_is_not_sent(token: Any) -> None:
    assert "what bearer_token gave is no bearer token" in await refusal(lambda: token)


async def test_a_function_that_fails_or_hangs_is_told_without_what_it_said() -> None:
    def fails() -> str:
        raise KeyError("hunter2")

    def knows() -> str:
        raise Unauthorized("sign in first")

    assert await refusal(fails) == "bearer_token gave no token: it raised KeyError"
    assert "within 0.01 s" in await refusal(lambda: asyncio.Event().wait(), 0.01)  # type: ignore[arg-type,return-value]
    with pytest.raises(Unauthorized, match="sign in first"):
        await bearer_headers(knows, seconds=5)


async def test_who_is_cancelled_while_he_waits_for_a_token_is_cancelled() -> None:
    began = asyncio.Event()

    async def never() -> str:
        began.set()
        await asyncio.Event().wait()
        return "x"

    waiting = asyncio.create_task(bearer_headers(never, seconds=60))
    await began.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda path: None, "cannot be read: No such file"),
        (lambda path: path.mkdir(), "is not a regular file"),
        (os.mkfifo, "is not a regular file"),
        (lambda path: path.write_bytes(b""), "is no bearer token"),
        (lambda path: path.write_bytes(b"hunter2 hunter2"), "is no bearer token"),
        (lambda path: path.write_bytes(b"\xff"), "is no bearer token"),
        (lambda path: path.write_bytes(b"x" * 100_000), "is no bearer token"),
    ],
)
async def test_a_file_without_a_token_is_named(make: Callable[[Path], object], text: str, tmp_path: Path) -> None:
    path = tmp_path / "token"
    make(path)
    told = await refusal(path)
    assert text in told
    assert repr(str(path)) in told


def test_the_setting_is_a_function_or_a_path() -> None:
    for wrong in ("token", b"token", 5, ["x"]):
        with pytest.raises(ConfigurationError, match="bearer_token is a function"):
            config(bearer_token=wrong)

    class Getter:
        def __repr__(self) -> str:
            return "hunter2"

        def __call__(self) -> str | Awaitable[str]:
            return "x"

    assert "hunter2" not in repr(config(bearer_token=Getter()))


def test_sign_prints_the_token_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secrets, token = tmp_path / "secrets.json", tmp_path / "token"
    secrets.write_text('{"version": 1, "to_broadcasters": {"type": "none"}, "to_subscribers": {"type": "none"}}')
    secrets.chmod(0o600)
    token.write_text("abc\n")
    assert main(["sign", "http://x/v1/y", "--secrets", str(secrets), "--token-file", str(token)]) == 0
    assert "authorization: Bearer abc" in capsys.readouterr().out
