"""Reading requests: credentials first, then a bounded body; and every `PubSubError` as a problem document."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import re
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import ceil
from typing import Any, TypeVar, get_args
from urllib.parse import quote

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from pydantic_core import InitErrorDetails
from starlette.types import Message, Receive, Scope

from httppubsubclient.bodies import Body, BodyWriter
from httppubsubclient.protocol.errors import (
    PROBLEM_CONTENT_TYPE,
    DigestMismatch,
    InvalidRequest,
    PreconditionFailed,
    PubSubError,
    QuotaExceeded,
    TooLarge,
    TooSlow,
    Unauthorized,
    Unavailable,
    UnsupportedMediaType,
    problem,
    wire_of,
)
from httppubsubclient.protocol.headers import parse_headers
from httppubsubclient.protocol.signatures import content_digest, parse_content_digest
from httppubsubclient.waiting import within
from httppubsubserver.auth import Principal
from httppubsubserver.broadcaster import Broadcaster
from httppubsubserver.config import nearest
from httppubsubserver.quotas import Charge

__all__ = [
    "Disconnected",
    "Incoming",
    "Prefer",
    "ProblemRoute",
    "no_such_member",
    "parse_prefer",
    "parsed_json",
    "problem_response",
    "slowness",
]

_LOG = logging.getLogger("httppubsub.server.http")

_DISCARD_SECONDS = 10.0

_LOOK_SECONDS = 0.5
"""How soon a request that waits for its body notices that the broadcaster stops."""

_MIN_BYTES_PER_SECOND = 1024
"""A body that arrives more slowly is given up, however lively it drips."""
_LONG_SECONDS = 600.0
_MIN_BYTES_PER_SECOND_FOR_LONG = 64 * 1024
"""What comes for longer than that comes with so much on average, or a place would be held for days."""
_MAX_WAIT_SECONDS = 3600
_LARGE_JSON = 4096
_MAX_NAME = 40
"""Characters that are shown of a member that does not exist."""
_WAIT = re.compile(r'wait\s*=\s*"?([0-9]{1,9})"?', re.ASCII | re.IGNORECASE)

M = TypeVar("M", bound=BaseModel)


class Disconnected(Exception):
    """The client went away before its request was complete."""


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
            except Disconnected:
                return Response(status_code=400)  # nobody will read it

        return answer


def problem_response(error: PubSubError) -> JSONResponse:
    """An error as application/problem+json with the headers that belong to it."""
    headers: dict[str, str] = {}
    if isinstance(error, Unavailable | QuotaExceeded) and error.retry_after_seconds is not None:
        headers["retry-after"] = str(ceil(error.retry_after_seconds))
    if isinstance(error, PreconditionFailed) and error.etag is not None:
        headers["etag"] = error.etag
    if isinstance(error, TooLarge | TooSlow):
        headers["connection"] = "close"  # there may be more of the body to come, which nobody will read
    if isinstance(error, Unauthorized) and error.challenge is not None:
        headers["www-authenticate"] = error.challenge
    return JSONResponse(problem(error), wire_of(error).status, headers, media_type=PROBLEM_CONTENT_TYPE)


class Incoming:
    """One request as the server hands it over (ASGI): its headers once, its credentials, then its body."""

    __slots__ = ("_began", "_broadcaster", "_complete", "_read", "_receive", "headers", "method", "path", "query")

    def __init__(self, broadcaster: Broadcaster, scope: Scope, receive: Receive) -> None:
        self._broadcaster = broadcaster
        self._receive = receive
        self._complete = False
        self._began = 0.0
        self._read = 0
        self.method: str = scope["method"]
        raw_path: bytes | None = scope.get("raw_path")
        self.path = quote(scope["path"]) if raw_path is None else raw_path.decode("latin-1")
        self.query: str = scope["query_string"].decode("latin-1")
        self.headers = parse_headers(scope["headers"])

    async def authenticate(self) -> Principal:
        """Check the credentials, from the headers alone. Raises `Unauthorized`, `Replayed`, `Unavailable`,
        with a token of an issuer also `Forbidden`."""
        _ = self._broadcaster.store  # raises Unavailable when the broadcaster is not open
        headers = self.headers
        return await self._broadcaster.authenticator.authenticate(
            method=self.method,
            path=self.path,
            query=self.query,
            headers=headers,
            has_body="transfer-encoding" in headers or headers.get("content-length", "0") != "0",
        )

    def query_value(self, name: str) -> str | None:
        """A parameter of the query, still percent-encoded: its bytes need not be UTF-8. Raises when given twice."""
        values = [value for key, _, value in (part.partition("=") for part in self.query.split("&")) if key == name]
        if len(values) > 1:
            raise InvalidRequest(f"the query names {name!r} more than once")
        return values[0] if values else None

    def declared_length(self) -> int | None:
        """Content-Length; None when the body comes in chunks (RFC 9112 section 6.3). Raises `InvalidRequest`."""
        text = self.headers.get("content-length")
        if text is None or "transfer-encoding" in self.headers:
            return None
        if not text.isascii() or not text.isdecimal() or len(text) > 18:
            raise InvalidRequest("Content-Length is not a length")
        return int(text)

    async def body(self, writer: BodyWriter, charge: Charge | None = None) -> Body:
        """Read the whole body into `writer` and compare it with Content-Digest, if there is one.

        `charge` is told of what arrives, and may refuse it. Raises `TooLarge`, `TooSlow`, `DigestMismatch`,
        `UnsupportedMediaType`, `Disconnected`.
        """
        expected = self._expected_digest()
        with writer:
            try:
                writer.expect(self.declared_length() or 0)
                while (chunk := await self._chunk()) is not None:
                    if charge is not None:
                        charge(len(chunk))
                    await writer.write(chunk)
            except (TooLarge, Unavailable, QuotaExceeded):
                await self._discard()
                raise
            body = await writer.finish()
        return _checked(body, expected)

    async def small_body(self, length: int) -> Body:
        """As `body`, for one of this declared length, which is small enough to be held in memory in any case."""
        expected = self._expected_digest()
        data = await self._chunk() or b""
        if not self._complete:
            pieces, size = [data], len(data)
            while size <= length and (chunk := await self._chunk()) is not None:
                pieces.append(chunk)
                size += len(chunk)
            data = b"".join(pieces)
        if len(data) > length:
            raise InvalidRequest("the body is longer than Content-Length says")
        return _checked(Body.of(data), expected)

    async def json(self, model: type[M], *, max_bytes: int) -> M:
        """Read a small JSON body strictly. Raises as `body` does, and `InvalidRequest`."""
        return parsed_json(model, await self.json_document(max_bytes=max_bytes))

    async def json_document(self, *, max_bytes: int) -> bytes:
        """Read a JSON body without looking into it. Raises as `body` does."""
        media_type = self.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
        if media_type != "application/json" and not media_type.endswith("+json"):
            raise UnsupportedMediaType(
                f"a body has to be sent here with Content-Type: application/json; this one says {media_type!r}"
            )
        body = await self.body(BodyWriter(spool_bytes=max_bytes, max_bytes=max_bytes))
        return body.data or b""

    def _expected_digest(self) -> bytes | None:
        headers = self.headers
        encoding = headers.get("content-encoding", "identity").lower()
        if encoding != "identity":
            raise UnsupportedMediaType(f"Content-Encoding {encoding!r} is not taken: send the body as it is")
        digest = headers.get("content-digest")
        return None if digest is None else parse_content_digest(digest)

    async def _chunk(self) -> bytes | None:
        """The next piece of the body, None at its end."""
        if self._complete:
            return None
        seconds = self._broadcaster.config.body_idle_timeout_seconds
        event = await self._event(seconds)
        if event["type"] == "http.disconnect":
            raise Disconnected
        self._complete = not event.get("more_body", False)
        chunk: bytes = event.get("body", b"")
        if not self._complete:
            self._check_pace(len(chunk), seconds)
        return chunk

    async def _event(self, seconds: float) -> Message:
        """What the server has next, waited for in steps: a broadcaster that stops does not wait for bodies."""
        left = seconds
        while True:
            step = min(left, _LOOK_SECONDS)
            try:
                return await within(step, self._receive())
            except TimeoutError:
                left -= step
            self._check_not_stopping()
            if left <= 0:
                raise TooSlow(f"nothing of the body arrived for {seconds:g} seconds")

    def _check_not_stopping(self) -> None:
        """What is there already is still taken."""
        if self._broadcaster.draining:
            raise Unavailable("the broadcaster is shutting down", retry_after_seconds=1)

    def _check_pace(self, size: int, seconds: float) -> None:
        self._check_not_stopping()
        now = time.monotonic()
        self._began = self._began or now
        self._read += size
        too_slow = slowness(now - self._began, self._read, seconds)
        if too_slow is not None:
            raise TooSlow(too_slow)

    async def _discard(self) -> None:
        """Read on for a while: closing on a sender in mid-sentence resets the connection, and it never sees why.

        Not for one that waits to be told to go on (RFC 9110 section 10.1.1): it sends nothing after this.
        """
        if "expect" in self.headers:
            return
        with suppress(TimeoutError, PubSubError, Disconnected):
            async with asyncio.timeout(_DISCARD_SECONDS):
                while await self._chunk() is not None:
                    pass


def slowness(elapsed: float, size: int, grace_seconds: float) -> str | None:
    """What to say of a body of which so many bytes have come in so many seconds; None: it is fast enough."""
    if elapsed > grace_seconds + size / _MIN_BYTES_PER_SECOND:
        return f"the body arrives more slowly than {_MIN_BYTES_PER_SECOND} bytes/s"
    if elapsed > _LONG_SECONDS + size / _MIN_BYTES_PER_SECOND_FOR_LONG:
        return (
            f"the body takes longer than {_LONG_SECONDS:.0f} s and arrives more slowly than "
            f"{_MIN_BYTES_PER_SECOND_FOR_LONG} bytes/s"
        )
    return None


@dataclass(frozen=True, slots=True)
class Prefer:
    """What a publisher prefers (RFC 7240), as far as it is honoured."""

    wait_seconds: float | None
    """None: until everything is settled. 0: respond-async."""
    applied: str | None
    """The value of Preference-Applied."""


_PREFER_NOTHING = Prefer(None, None)


def parse_prefer(header: str | None) -> Prefer:
    """`respond-async` (section 4.1) or `wait=SECONDS` (section 4.3); with both, wait is the limit."""
    if header is None:
        return _PREFER_NOTHING
    tokens = [token.partition(";")[0].strip() for token in header.split(",")]
    for token in tokens:
        if (match := _WAIT.fullmatch(token)) is not None:
            seconds = min(int(match[1]), _MAX_WAIT_SECONDS)
            return Prefer(float(seconds), f"wait={seconds}")
    if any(token.lower() == "respond-async" for token in tokens):
        return Prefer(0.0, "respond-async")
    return _PREFER_NOTHING


def parsed_json(model: type[M], text: bytes | str, *, place: str | None = None) -> M:
    """`text` as `model`, strictly; `place` tells where it stands. Raises `InvalidRequest`.

    For small ones: nothing else is done meanwhile.
    """
    try:
        if len(text) > _LARGE_JSON:
            _check_members(model, text)
        return model.model_validate_json(text)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False, include_input=False)
        raise InvalidRequest(_described(errors, _members(model), place)) from None


def no_such_member(name: str, members: Sequence[str]) -> str:
    """What is said of a member that does not exist, at its place."""
    hint = nearest(_shown(name), members) or f"; known are {', '.join(members)}"
    return f"{_shown(name)}: no such member{hint}"


def _check_members(model: type[BaseModel], text: bytes | str) -> None:
    """Raises `ValidationError` for the first member that `model` does not know: pydantic would tell of all of them, of
    ten thousand at a hundred times the cost of reading them. What is wrong otherwise is for others to find."""
    try:
        members = json.loads(text)
    except (ValueError, RecursionError):
        return
    for name in members if isinstance(members, dict) else ():
        if name not in model.model_fields:
            error = InitErrorDetails(type="extra_forbidden", loc=(name,), input=None)
            raise ValidationError.from_exception_data(model.__name__, [error])


def _checked(body: Body, expected: bytes | None) -> Body:
    if expected is not None and not hmac.compare_digest(expected, body.sha256):
        body.close()
        raise DigestMismatch(
            f"the body is not the one that Content-Digest names: {body.size} bytes came, whose digest is "
            f"{content_digest(body.sha256)}"
        )
    return body


def _described(errors: Sequence[Any], members: Sequence[str] = (), within_place: str | None = None) -> str:
    """pydantic's findings in one line, without the input, which may be long or secret. `members` are those that
    exist: of a name that is none of them the nearest one is told."""
    parts = []
    for error in errors[:5]:
        names = [] if within_place is None else [within_place]
        names += [_shown(part) for part in error["loc"] if part not in ("body", "query")]
        if error["type"] == "extra_forbidden":
            what = no_such_member(str(error["loc"][-1]), members)
            parts.append(".".join([*names[:-1], what]))
        else:
            parts.append(f"{'.'.join(names) or 'body'}: {error['msg']}")
    return "; ".join(parts)


def _members(model: type[BaseModel]) -> list[str]:
    """The names of what a JSON document of this form may have, those of the objects in its lists included."""
    names = list(model.model_fields)
    for field in model.model_fields.values():
        for inner in get_args(field.annotation):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                names += inner.model_fields
    return names


def _shown(part: int | str) -> str:
    """A part of a place: an index, or a name, which may be anything that was sent."""
    text = ascii(str(part))[1:-1]
    return text if len(text) <= _MAX_NAME else f"{text[:_MAX_NAME]}..."
