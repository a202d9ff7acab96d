"""Small bodies go a short way; it has the bounds of the long one, whatever the server in front makes of the framing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from httppubsubclient.protocol.keys import Credentials, Secrets
from httppubsubserver.broadcaster import Broadcaster
from httppubsubserver.config import ServerConfig
from httppubsubserver.http_notify import NotifyEndpoint

OPEN = Secrets(Credentials.none(), Credentials.none(), ())


async def answer(headers: dict[str, str], pieces: Sequence[bytes], **settings: Any) -> tuple[int, dict[str, Any], int]:
    """Status, body, and how many pieces were read."""
    unread = list(pieces)
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": unread.pop(0), "more_body": bool(unread)}

    async def send(event: Any) -> None:
        sent.append(event)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/notify",
        "raw_path": b"/v1/notify",
        "query_string": b"topic=t",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    config = ServerConfig(db="sqlite:///:memory:", **settings)
    async with Broadcaster(config, secrets=OPEN) as broadcaster:
        await NotifyEndpoint(broadcaster)(scope, receive, send)
    return sent[0]["status"], json.loads(sent[1]["body"]), len(pieces) - len(unread)


@pytest.mark.parametrize("pieces", [[b"hello"], [b"he", b"llo"], [b"", b"hello", b""]])
async def test_a_small_body_in_pieces(pieces: list[bytes]) -> None:
    status, result, _ = await answer({"content-length": "5"}, pieces)
    assert (status, result["matched"]) == (200, 0)


async def test_a_body_that_is_longer_than_it_says_is_refused_without_reading_on() -> None:
    status, problem, read = await answer({"content-length": "5"}, [b"x" * 5] * 100)
    assert (status, problem["code"]) == (400, "invalid_request")
    assert read == 2


async def test_chunks_count_whatever_content_length_says() -> None:
    headers = {"content-length": "5", "transfer-encoding": "chunked"}
    status, problem, _ = await answer(headers, [b"x" * 1000] * 10, max_body_bytes=5000)
    assert (status, problem["code"]) == (413, "too_large")
    status, _, _ = await answer(headers, [b"x" * 1000] * 5, max_body_bytes=5000)
    assert status == 200
