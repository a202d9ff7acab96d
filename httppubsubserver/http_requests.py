"""Reading requests: credentials first, then a bounded body; and every `PubSubError` as a problem document."""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, TypeVar
from urllib.parse import quote

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from httppubsubclient.bodies import Body, BodyWriter
from httppubsubclient.protocol.errors import (
    PROBLEM_CONTENT_TYPE,
    DigestMismatch,
    InvalidRequest,
    PreconditionFailed,
    PubSubError,
    TooLarge,
    TooSlow,
    Unauthorized,
    Unavailable,
    UnsupportedMediaType,
    problem,
    wire_of,
)
from httppubsubclient.protocol.signatures import parse_content_digest
from httppubsubserver.auth import Principal
from httppubsubserver.broadcaster import Broadcaster

__all__ = ["Prefer", "ProblemRoute", "RequestReader", "parse_prefer", "problem_response", "query_value"]

_LOG = logging.getLogger("httppubsub.server.http")

_DISCARD_SECONDS = 1.0
_DISCARD_BYTES = 64 * 1024 * 1024
_MAX_WAIT_SECONDS = 3600
_WAIT = re.compile(r'wait\s*=\s*"?([0-9]{1,9})"?', re.ASCII | re.IGNORECASE)

M = TypeVar("M", bound=BaseModel)


class ProblemRoute(APIRoute):
    """A route whose errors are problem documents, in whatever application it is mounted."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See APIRoute."""
        inner = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await inner(request)
            except PubSubError as error:
                return problem_response(error)
            except RequestValidationError as error:
                return problem_response(InvalidRequest(_described(error.errors())))
            except ClientDisconnect:
                return problem_response(InvalidRequest("the client went away before its request was complete"))

        return answer


def problem_response(error: PubSubError) -> JSONResponse:
    """An error as application/problem+json with the headers that belong to it."""
    headers: dict[str, str] = {}
    if isinstance(error, Unavailable) and error.retry_after_seconds is not None:
        headers["retry-after"] = str(ceil(error.retry_after_seconds))
    if isinstance(error, PreconditionFailed) and error.etag is not None:
        headers["etag"] = error.etag
    if isinstance(error, TooLarge | TooSlow):
        headers["connection"] = "close"  # there may be more of the body to come, which nobody will read
    if isinstance(error, Unauthorized) and error.challenge is not None:
        headers["www-authenticate"] = error.challenge
    return JSONResponse(problem(error), wire_of(error).status, headers, media_type=PROBLEM_CONTENT_TYPE)


class RequestReader:
    """Authenticates requests to one broadcaster and reads their bodies."""

    def __init__(self, broadcaster: Broadcaster) -> None:
        self._broadcaster = broadcaster

    async def authenticate(self, request: Request) -> Principal:
        """Check the credentials, from the headers alone. Raises `Unauthorized`, `Replayed`, `Unavailable`."""
        _ = self._broadcaster.store  # raises Unavailable when the broadcaster is not open
        raw_path = request.scope.get("raw_path") or quote(request.scope["path"]).encode("ascii")
        return await self._broadcaster.authenticator.authenticate(
            method=request.method,
            path=raw_path.decode("latin-1"),
            query=request.scope["query_string"].decode("latin-1"),
            headers=_single_headers(request),
            has_body="transfer-encoding" in request.headers or request.headers.get("content-length", "0") != "0",
        )

    async def body(self, request: Request, writer: BodyWriter) -> Body:
        """Read the whole body into `writer` and compare it with Content-Digest, if there is one.

        Raises `TooLarge`, `TooSlow`, `DigestMismatch`, `UnsupportedMediaType`.
        """
        _check_encoding(request)
        expected = _expected_digest(request)
        with writer:
            length = request.headers.get("content-length", "0")
            if not length.isdecimal() or int(length) > writer.max_bytes:
                raise TooLarge(f"the body is larger than {writer.max_bytes} bytes")
            chunks = self._chunks(request)
            try:
                async for chunk in chunks:
                    await writer.write(chunk)
            except TooLarge:
                await _discard(chunks)
                raise
            body = await writer.finish()
        if expected is not None and not hmac.compare_digest(expected, body.sha256):
            body.close()
            raise DigestMismatch("the body is not the one that Content-Digest names")
        return body

    async def json(self, request: Request, model: type[M], *, max_bytes: int) -> M:
        """Read a small JSON body strictly. Raises as `body` does, and `InvalidRequest`."""
        media_type = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
        if media_type != "application/json" and not media_type.endswith("+json"):
            raise UnsupportedMediaType(f"the body is application/json, not {media_type!r}")
        body = await self.body(request, BodyWriter(spool_bytes=max_bytes, max_bytes=max_bytes))
        try:
            return model.model_validate_json(body.data or b"")
        except ValidationError as error:
            raise InvalidRequest(_described(error.errors())) from None

    async def _chunks(self, request: Request) -> AsyncIterator[bytes]:
        seconds = self._broadcaster.config.body_idle_timeout_seconds
        stream = request.stream()
        while True:
            try:
                async with asyncio.timeout(seconds):
                    chunk = await anext(stream)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise TooSlow(f"nothing of the body arrived for {seconds:g} seconds") from None
            yield chunk


async def _discard(chunks: AsyncIterator[bytes]) -> None:
    """Read on for a moment: closing on a sender in mid-sentence resets the connection, and it never sees why."""
    count = 0
    try:
        async with asyncio.timeout(_DISCARD_SECONDS):
            async for chunk in chunks:
                count += len(chunk)
                if count > _DISCARD_BYTES:
                    return
    except (TimeoutError, PubSubError):
        return


def query_value(request: Request, name: str) -> str | None:
    """A parameter of the query, still percent-encoded: its bytes need not be UTF-8. Raises when given twice."""
    query = request.scope["query_string"].decode("latin-1")
    values = [value for key, _, value in (part.partition("=") for part in query.split("&")) if key == name]
    if len(values) > 1:
        raise InvalidRequest(f"the query names {name!r} more than once")
    return values[0] if values else None


@dataclass(frozen=True, slots=True)
class Prefer:
    """What a publisher prefers (RFC 7240), as far as it is honoured."""

    wait_seconds: float | None
    """None: until everything is settled. 0: respond-async."""
    applied: str | None
    """The value of Preference-Applied."""


def parse_prefer(values: Sequence[str]) -> Prefer:
    """`respond-async` (section 4.1) or `wait=SECONDS` (section 4.3); with both, wait is the limit."""
    tokens = [token.partition(";")[0].strip() for value in values for token in value.split(",")]
    for token in tokens:
        if (match := _WAIT.fullmatch(token)) is not None:
            seconds = min(int(match[1]), _MAX_WAIT_SECONDS)
            return Prefer(float(seconds), f"wait={seconds}")
    if any(token.lower() == "respond-async" for token in tokens):
        return Prefer(0.0, "respond-async")
    return Prefer(None, None)


def _single_headers(request: Request) -> dict[str, str]:
    """Headers as a dict; what came more than once is joined with ", " (RFC 9110 section 5.3, RFC 9421 section 2.1)."""
    headers: dict[str, str] = {}
    for name, value in request.headers.items():
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _check_encoding(request: Request) -> None:
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise UnsupportedMediaType(f"Content-Encoding {encoding!r} is not taken: send the body as it is")


def _expected_digest(request: Request) -> bytes | None:
    header = request.headers.get("content-digest")
    return None if header is None else parse_content_digest(header)


def _described(errors: Sequence[Any]) -> str:
    """pydantic's findings in one line, without the input, which may be long or secret."""
    parts = []
    for error in errors[:5]:
        place = ".".join(str(part) for part in error["loc"] if part not in ("body", "query")) or "body"
        parts.append(f"{place}: {error['msg']}")
    return "; ".join(parts)
