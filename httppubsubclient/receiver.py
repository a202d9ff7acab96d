"""`POST /v1/receive`: what a broadcaster calls. Verify, deduplicate, offer to the subscriptions, answer at once.

The order matters. Nothing of the body is read before the headers are proven and somebody here wants it:

| step                                                        | else                                       |
|-------------------------------------------------------------|--------------------------------------------|
| identity Content-Encoding, declared length within the limit | 415, 413                                   |
| signature or token holds, its nonce is new                  | 401 unauthorized, replayed                 |
| or: the head of a webhook is well-formed and in time        | 400, 401                                   |
| the headers of a delivery are well-formed                   | 400, 422                                   |
| it is for this process (`Pubsub-Fragment`)                  | 503: behind one address, another one's turn |
| the subscription is ours                                    | 410; 503 if not certain (yet)              |
| durable: its name is here, and has entered the subscription | 503 + Retry-After; 409                     |
| it asks for this kind of proof                              | 401                                        |
| somebody has not got the message yet                        | 200, it is a duplicate                     |
| one of them has room                                        | 503 + Retry-After                          |
| the body arrives in time, within the limit                  | 408, 413                                   |
| it has the digest that was signed                           | 400 digest_mismatch                        |
| or: its webhook signature holds                             | 401                                        |
| it has the format that was asked for                        | 400                                        |
| everyone takes it                                           | 503 + Retry-After; the retry is for the rest |
| durable: everyone has acknowledged it, as `ack` says        | 503; the message stays, its next attempt waits on |

A durable delivery is never answered 410: its name may be away for a while, and what is pending waits for it.

A webhook signature covers the body, so that is read before it is proven: only for a subscription that is ours and has
a secret of its own, at most `max_webhook_bytes`, and counted apart, so that it takes no room from what is proven. Its
nonce is the message: once taken, it is remembered until no copy of it could be in time.

The route is plain ASGI, because it is the hot one; its OpenAPI entry stands beside it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.routing import Route

from httppubsubclient.bodies import Body, BodyWriter
from httppubsubclient.buffer import Limits, Room
from httppubsubclient.durable_name import DurableName
from httppubsubclient.durable_options import durable_name_of
from httppubsubclient.durable_registrations import DurableRegistrations
from httppubsubclient.inbox import Member
from httppubsubclient.incoming import check_topic_of, claims_own_proof, decoded, max_event_bytes, prove
from httppubsubclient.protocol.credentials import Credentials, verify_delivery
from httppubsubclient.protocol.errors import (
    PROBLEM_CONTENT_TYPE,
    DigestMismatch,
    Gone,
    InvalidRequest,
    PubSubError,
    Replayed,
    TooLarge,
    TooSlow,
    Unauthorized,
    Unavailable,
    UnsupportedMediaType,
    problem,
    wire_of,
)
from httppubsubclient.protocol.headers import parse_headers
from httppubsubclient.protocol.messages import RECEIVE_PATH, Delivery, parse_delivery
from httppubsubclient.protocol.patterns import Pattern
from httppubsubclient.protocol.replay import ReplayWindow
from httppubsubclient.protocol.signatures import content_digest, parse_content_digest
from httppubsubclient.protocol.standard_webhooks import WebhookHead, read_head
from httppubsubclient.receiver_document import DESCRIPTION, PARAMETERS, REQUEST_BODY, RESPONSES
from httppubsubclient.registrations import Registrations
from httppubsubclient.remembered import Remembered
from httppubsubclient.taken import Taken

__all__ = ["Receiver", "ReceiverLimits", "receiving_app", "receiving_router"]

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

_MIN_BYTES_PER_SECOND = 1024
"""A body that arrives more slowly is given up, however lively it drips."""

_RETRY_AFTER_SECONDS = 1
_STRUCTURED = "cloudevents-structured"

_WARN_EVERY_SECONDS = 10.0
"""Refused deliveries of one kind are warned about so often; the others are told at level INFO."""


class _Disconnected(Exception):
    """The other side went away before its request was complete."""


@dataclass(frozen=True, slots=True)
class ReceiverLimits:
    """What a `Receiver` is bound by; see config.py."""

    max_body_bytes: int
    spool_bytes: int
    spool_directory: str | None
    body_idle_timeout_seconds: float
    signature_tolerance_seconds: int
    max_remembered_nonces: int
    max_webhook_bytes: int
    ack_timeout_seconds: float
    buffer: Limits


class Receiver:
    """The ASGI application behind `/v1/receive`. `registrations` and `durable` are None while the client is not
    entered."""

    def __init__(
        self, credentials: Credentials, fragment: str | None, limits: ReceiverLimits, remembered: Remembered
    ) -> None:
        """`remembered`: messages of best effort that an earlier life took."""
        self.registrations: Registrations | None = None
        self.durable: DurableRegistrations | None = None
        self._credentials = credentials
        self._fragment = fragment
        self._limits = limits
        self._webhook_bytes = min(limits.max_webhook_bytes, limits.max_body_bytes)
        self._replays = ReplayWindow(limits.max_remembered_nonces)
        self._warned: dict[str, float] = {}
        # Bodies that are arriving: bounded like those that wait, because they are not yet counted there.
        self._arriving = Room(limits.buffer)
        self._unproven = Room(limits.buffer)
        self._taken = Taken(
            max_entries=limits.max_remembered_nonces,
            tolerance_seconds=limits.signature_tolerance_seconds,
            remembered=remembered,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            await self._receive(scope, receive)
        except _Disconnected:
            return
        except PubSubError as error:
            self._report(error)
            await _answer(send, error)
        except Exception:
            logger.exception("a delivery failed")
            await _answer(send, PubSubError("the receiver failed; its log says why"))
        else:
            await _answer(send, None)

    def _report(self, error: PubSubError) -> None:
        """Say why a delivery was refused: a wrong secret shows nowhere else. One warning of a kind now and then."""
        status, now = wire_of(error).status, time.monotonic()
        level = logging.INFO
        if status not in (409, 410, 503) and now - self._warned.get(error.code, -math.inf) > _WARN_EVERY_SECONDS:
            self._warned[error.code] = now
            level = logging.WARNING
        logger.log(level, "answered a delivery with %d: %s", status, error.detail)

    async def _receive(self, scope: Scope, receive: Receive) -> None:
        headers = parse_headers(scope["headers"])
        length = self._declared_length(headers)
        if headers.get("content-encoding", "identity").lower() not in ("", "identity"):
            raise UnsupportedMediaType("deliveries come without Content-Encoding, so that their digest can be verified")
        head: WebhookHead | None = None
        if claims_own_proof(headers):
            tolerance = self._limits.signature_tolerance_seconds
            head = read_head(headers, now=time.time(), tolerance_seconds=tolerance)
        else:
            self._authenticate(scope["method"], headers)
        delivery = parse_delivery(headers)
        if delivery.fragment != self._fragment:
            raise Unavailable(
                f"this process is {_shown_fragment(self._fragment)}; the delivery is for "
                f"{_shown_fragment(delivery.fragment)}",
                retry_after_seconds=0,
            )
        registry = self._registry(scope.get("query_string", b""))
        if head is not None:
            await self._receive_webhook(registry, head, headers, delivery, length, receive)
            return
        pattern, members = await _members(registry, delivery)
        registry.terms(pattern).check_shared()
        lacking = [member for member in members if not member.has(delivery.message_id)]
        if not lacking or self._taken.before(registry.name, pattern, delivery.message_id, None):
            await self._discard(receive)
            registry.arrived(delivery)
            await self._acknowledged(delivery.message_id, members, receive)
            return
        size = length if length is not None else self._limits.spool_bytes
        if not any(member.fits(size) for member in lacking):
            raise _full()
        form = registry.terms(pattern).format
        max_bytes = max_event_bytes(self._webhook_bytes) if form == _STRUCTURED else self._limits.max_body_bytes
        if not self._arriving.fits(size):
            raise _full()
        self._arriving.take(size)
        try:
            body = await self._body(receive, headers.get("content-digest"), max_bytes, length)
            if form != "raw":
                delivery, body = await decoded(headers, delivery, body, form, writer=self._decoded_writer)
        finally:
            self._arriving.give_back(size)
        await self._hand_over(registry, delivery, None, body, receive)

    async def _receive_webhook(
        self,
        registry: Registrations | DurableName,
        head: WebhookHead,
        headers: dict[str, str],
        delivery: Delivery,
        length: int | None,
        receive: Receive,
    ) -> None:
        if length is not None and length > max_event_bytes(self._webhook_bytes):
            raise TooLarge(f"a message that is verified as a whole has at most {self._webhook_bytes} bytes")
        size = length if length is not None else min(self._webhook_bytes, self._limits.spool_bytes)
        with _room_in(self._unproven, size):
            pattern, members = await _members(registry, delivery, proven=False)
            terms = registry.terms(pattern)
            terms.own_keys()  # or it is no proof
            check_topic_of(delivery, pattern)
            lacking = [member for member in members if not member.has(delivery.message_id)]
            if lacking and not any(member.fits(size) for member in lacking):
                raise _full()
            max_bytes = max_event_bytes(self._webhook_bytes) if terms.format == _STRUCTURED else self._webhook_bytes
            body = await self._body(receive, None, max_bytes, length)
            # With what is good now: a grace may have ended while it arrived.
            await prove(head, terms.own_keys(), body)
            if self._taken.before(registry.name, pattern, delivery.message_id, head):
                return
            delivery, body = await decoded(headers, delivery, body, terms.format, writer=self._decoded_writer)
        await self._hand_over(registry, delivery, head, body, receive)

    async def _hand_over(
        self,
        registry: Registrations | DurableName,
        delivery: Delivery,
        head: WebhookHead | None,
        body: Body,
        receive: Receive,
    ) -> None:
        # Asked again, because a while has passed.
        pattern, members = await _members(registry, delivery)
        accepted = [member.offer(delivery, pattern, body) for member in members]
        if not all(accepted):
            raise _full()
        registry.arrived(delivery)
        await self._acknowledged(delivery.message_id, members, receive)
        self._taken.add(registry.name, pattern, delivery.message_id, head)

    def _registry(self, query: bytes) -> Registrations | DurableName:
        """Who knows the subscription: each durable name has a callback URL of its own."""
        if self.registrations is None or self.durable is None:
            raise Unavailable("this client is not running", retry_after_seconds=_RETRY_AFTER_SECONDS)
        name = durable_name_of(query)
        return self.registrations if name is None else self.durable.entered(name)

    async def _acknowledged(self, message_id: str, members: Sequence[Member], receive: Receive) -> None:
        """Return when all have acknowledged the message, which is at once where nobody has to. Raises `Unavailable`
        when one has given it back, or after `ack_timeout_seconds`; the message stays where it is then, and its next
        attempt waits on."""
        waited_for = {one for member in members if (one := member.unacknowledged(message_id)) is not None}
        if not waited_for:
            return
        loop = asyncio.get_running_loop()
        end = loop.time() + self._limits.ack_timeout_seconds
        gone = asyncio.create_task(_gone(receive))
        try:
            while waited_for:
                left = max(0.0, end - loop.time())
                everything: set[asyncio.Future[bool]] = {gone, *waited_for}
                done, _ = await asyncio.wait(everything, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                if not done:
                    raise Unavailable("the message was not acknowledged yet", retry_after_seconds=_RETRY_AFTER_SECONDS)
                answered = waited_for & done
                if not all(one.result() for one in answered):
                    raise Unavailable("the message was given back")
                waited_for -= answered
                if waited_for and gone in done:
                    raise _Disconnected
        finally:
            gone.cancel()

    def _authenticate(self, method: str, headers: dict[str, str]) -> None:
        now = time.time()
        tolerance = self._limits.signature_tolerance_seconds
        try:
            proof = verify_delivery(
                self._credentials, method=method, headers=headers, now=now, tolerance_seconds=tolerance
            )
        except Unauthorized as error:
            error.challenge = "Bearer" if self._credentials.type == "token" else "Signature"
            raise
        if proof.nonce is None or proof.replay_until is None:
            return
        created = int(proof.replay_until) - tolerance
        if not self._replays.first_time(
            f"{proof.key_id}:{proof.nonce}", created=created, until=proof.replay_until, now=now
        ):
            raise Replayed("this signed request was received before; each attempt is signed anew")

    def _declared_length(self, headers: dict[str, str]) -> int | None:
        text = headers.get("content-length")
        if text is None:
            return None
        if not text.isascii() or not text.isdigit() or len(text) > 18:
            raise InvalidRequest("Content-Length is not a length")
        self._check_size(int(text))
        return int(text)

    def _check_size(self, size: int) -> None:
        if size > self._limits.max_body_bytes:
            raise TooLarge(f"the body is larger than {self._limits.max_body_bytes} bytes")

    def _writer(self, max_bytes: int) -> BodyWriter:
        limits = self._limits
        return BodyWriter(spool_bytes=limits.spool_bytes, max_bytes=max_bytes, directory=limits.spool_directory)

    def _decoded_writer(self) -> BodyWriter:
        return self._writer(self._webhook_bytes)

    async def _body(self, receive: Receive, expected: str | None, max_bytes: int, length: int | None) -> Body:
        """The body, if it is the one that `expected`, a Content-Digest, names."""
        sha256 = parse_content_digest(expected) if expected is not None else None
        with self._writer(max_bytes) as writer:
            writer.expect(length or 0)
            async for chunk in self._chunks(receive):
                await writer.write(chunk)
            body = await writer.finish()
        if sha256 is not None and sha256 != body.sha256:
            body.close()
            raise DigestMismatch(
                f"the body is not the one that Content-Digest names: {body.size} bytes came, whose digest is "
                f"{content_digest(body.sha256)}"
            )
        return body

    async def _discard(self, receive: Receive) -> None:
        """Read a duplicate to its end: cutting it off would look like a failure to the sender."""
        size = 0
        async for chunk in self._chunks(receive):
            size += len(chunk)
            self._check_size(size)

    async def _chunks(self, receive: Receive) -> AsyncIterator[bytes]:
        """The body as it arrives. Raises `TooSlow` when it stops or only drips."""
        loop = asyncio.get_running_loop()
        idle_seconds = self._limits.body_idle_timeout_seconds
        start = loop.time()
        size = 0
        while True:
            try:
                async with asyncio.timeout(idle_seconds):
                    event = await receive()
            except TimeoutError:
                raise TooSlow(f"nothing of the body arrived for {idle_seconds:g} s") from None
            if event["type"] == "http.disconnect":
                raise _Disconnected
            chunk = event.get("body", b"")
            if chunk:
                size += len(chunk)
                yield chunk
            if not event.get("more_body", False):
                return
            if loop.time() - start > idle_seconds + size / _MIN_BYTES_PER_SECOND:
                raise TooSlow(f"the body arrives more slowly than {_MIN_BYTES_PER_SECOND} bytes/s")


async def _members(
    registry: Registrations | DurableName, delivery: Delivery, *, proven: bool = True
) -> tuple[Pattern, Sequence[Member]]:
    """Who gets a delivery; a durable one is never answered 410."""
    try:
        return await registry.members(delivery.subscription_id, proven=proven)
    except Gone:
        if delivery.sequence is None:
            raise
        raise Unavailable(
            "a durable delivery for nobody came without the name in its query: does a proxy remove the query?"
        ) from None


@contextmanager
def _room_in(room: Room, size: int) -> Iterator[None]:
    """A body of this size in a room while it lasts. Raises `Unavailable`."""
    if not room.fits(size):
        raise _full()
    room.take(size)
    try:
        yield
    finally:
        room.give_back(size)


async def _gone(receive: Receive) -> bool:
    """Return when the other side has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
    return True


def receiving_router(receiver: Receiver, lifespan: Callable[[Any], AbstractAsyncContextManager[None]]) -> APIRouter:
    """The router with `POST /v1/receive`. Dependencies given to `include_router` do not apply to it: its only guard is
    the authentication of the broadcasters."""
    router = APIRouter(lifespan=lifespan)
    # A class instance as endpoint is served as plain ASGI. FastAPI documents only its own kind of route, so that the
    # one below describes what this one does; it is never reached.
    router.routes.append(Route(RECEIVE_PATH, endpoint=receiver, methods=["POST"], name="receive_delivery"))
    router.add_api_route(
        RECEIVE_PATH,
        _documented,
        methods=["POST"],
        name="receive",
        summary="Receive a message from a broadcaster",
        description=DESCRIPTION,
        responses=RESPONSES,
        openapi_extra={"parameters": PARAMETERS, "requestBody": REQUEST_BODY},
        response_description="Accepted, now or before",
    )
    return router


def receiving_app(
    receiver: Receiver, router: APIRouter, path: str
) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """An application that serves the router at the root and, because a proxy may or may not remove it, under `path`."""
    app = FastAPI(openapi_url=None)
    app.include_router(router)
    if path:
        app.include_router(router, prefix=path)
    hot = {RECEIVE_PATH, path + RECEIVE_PATH}

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        # Deliveries go past the routing, which would take as long as everything else together.
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in hot:
            await receiver(scope, receive, send)
        else:
            await app(scope, receive, send)

    return serve


async def _documented() -> None:
    raise AssertionError("the ASGI route before this one answers")


def _shown_fragment(fragment: str | None) -> str:
    return "the one without fragment" if fragment is None else f"#{ascii(fragment[:40])[1:-1]}"


def _full() -> Unavailable:
    return Unavailable("a subscription's buffer is full", retry_after_seconds=_RETRY_AFTER_SECONDS)


async def _answer(send: Send, error: PubSubError | None) -> None:
    status = 200
    body = b""
    headers = []
    if error is not None:
        status = wire_of(error).status
        body = json.dumps(problem(error)).encode()
        headers.append((b"content-type", PROBLEM_CONTENT_TYPE.encode()))
        if isinstance(error, Unavailable) and error.retry_after_seconds is not None:
            headers.append((b"retry-after", b"%d" % round(error.retry_after_seconds)))
        if isinstance(error, Unauthorized):  # RFC 9110 section 15.5.2
            headers.append((b"www-authenticate", (error.challenge or "Signature").encode()))
    headers.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
