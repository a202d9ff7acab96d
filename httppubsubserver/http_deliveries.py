"""The routes that look after deliveries: list them, show a message, call it off, send again, catch up.

docs/durable.md and docs/protocol.md describe them for users; operations.py does what they ask for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from httppubsubclient.protocol.errors import (
    DigestMismatch,
    Forbidden,
    Gone,
    InvalidRequest,
    NotFound,
    QuotaExceeded,
    Replayed,
    TooLarge,
    TooSlow,
    Unauthorized,
    Unavailable,
    UnsupportedMediaType,
)
from httppubsubclient.protocol.signatures import content_digest
from httppubsubserver.auth import Principal
from httppubsubserver.broadcaster import Broadcaster
from httppubsubserver.delivery_json import message_json, page_json, replay_json, sequence_page_json
from httppubsubserver.escaping import escaped
from httppubsubserver.http_delivery_schemas import (
    BODY_OPENAPI,
    CATCH_UP_OPENAPI,
    LIST_OPENAPI,
    MESSAGE_ID_OPENAPI,
    REPLAY_LOCATION,
    REPLAY_OPENAPI,
    SHOW_MESSAGE_OPENAPI,
    CancelAnswer,
    DeliveryPageAnswer,
    MessageAnswer,
    ReplayAnswer,
    ReplayFields,
    SequencePageAnswer,
)
from httppubsubserver.http_requests import Incoming
from httppubsubserver.http_schemas import SECURITY, json_body, problems
from httppubsubserver.operations import selection_of

__all__ = ["add_deliveries"]

_ALWAYS: Final = (InvalidRequest, Unauthorized, Replayed, Forbidden, Unavailable)
_MAX_REPLAY_BYTES: Final = 4096
_NUMBER = re.compile(r"[1-9][0-9]{0,17}", re.ASCII)
_WHOLE_NUMBER = re.compile(r"[0-9]{1,19}", re.ASCII)

# Bytes that a publisher chose, from the origin of this API: a browser must neither run nor guess them.
_UNTRUSTED_HEADERS: Final = {
    "content-disposition": "attachment",
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'; sandbox",
    "cache-control": "no-store",
}


def add_deliveries(router: APIRouter, broadcaster: Broadcaster) -> None:
    """Add all of these routes."""
    _add_list(router, broadcaster)
    _add_messages(router, broadcaster)
    _add_body(router, broadcaster)
    _add_replays(router, broadcaster)
    _add_catching_up(router, broadcaster)


def _add_list(router: APIRouter, broadcaster: Broadcaster) -> None:
    @router.get(
        "/deliveries",
        tags=["deliveries"],
        summary="List durable deliveries",
        response_model=DeliveryPageAnswer,
        responses=problems(*_ALWAYS),
        openapi_extra=LIST_OPENAPI | SECURITY,
    )
    async def list_deliveries(request: Request) -> Response:
        """What your subscriptions are owed, got, or what was given up, page by page: one subscription after another, of
        each the newest first. With `admin` the newest messages first, whose they ever are."""
        asked = await _authenticated(broadcaster, request, LIST_OPENAPI)
        selection = selection_of(
            state=asked.text("state"),
            subscription_id=asked.text("subscription"),
            message_id=asked.text("message"),
            accepted_from=asked.text("from"),
            accepted_until=asked.text("until"),
        )
        cursor, limit = asked.text("cursor"), asked.number("limit", 100, 1, 1000)
        page = await broadcaster.operations.deliveries(
            selection._replace(owner=asked.principal.scope), cursor=cursor, limit=limit
        )
        return JSONResponse(page_json(page))


def _add_messages(router: APIRouter, broadcaster: Broadcaster) -> None:
    @router.get(
        "/messages/{message_id}",
        tags=["deliveries"],
        summary="Show a message, its deliveries and their attempts",
        response_model=MessageAnswer,
        responses=problems(*_ALWAYS, NotFound),
        openapi_extra=SHOW_MESSAGE_OPENAPI | SECURITY,
    )
    async def show_message(request: Request) -> Response:
        """A message that was accepted for a durable subscription, without its body, and the deliveries to yours.

        Those who published it see it, and those to whom a subscription brings it.
        """
        asked = await _authenticated(broadcaster, request, SHOW_MESSAGE_OPENAPI)
        cursor, limit = asked.text("cursor"), asked.number("limit", 20, 1, 100)
        found = await broadcaster.operations.message(
            request.path_params["message_id"], cursor=cursor, limit=limit, owner=asked.principal.scope
        )
        return JSONResponse(message_json(found))

    @router.delete(
        "/messages/{message_id}",
        tags=["deliveries"],
        summary="Call off a scheduled message",
        response_model=CancelAnswer,
        responses=problems(*_ALWAYS, NotFound),
        openapi_extra=MESSAGE_ID_OPENAPI | SECURITY,
    )
    async def cancel_scheduled(request: Request) -> Response:
        """Cancel its deliveries of which no attempt was begun. Of a message that was not scheduled, there are none.

        Only its publisher may, with a key of the same owner.
        """
        asked = await _authenticated(broadcaster, request, MESSAGE_ID_OPENAPI)
        message_id = request.path_params["message_id"]
        cancelled = await broadcaster.operations.cancel_scheduled(
            message_id, by=asked.principal.by, owner=asked.principal.scope
        )
        return JSONResponse({"cancelled": cancelled})


def _add_body(router: APIRouter, broadcaster: Broadcaster) -> None:
    @router.get(
        "/messages/{message_id}/body",
        tags=["deliveries"],
        summary="The body of a message",
        response_class=Response,
        responses={200: BODY_OPENAPI, **problems(*_ALWAYS, NotFound, Gone)},
        openapi_extra=MESSAGE_ID_OPENAPI | SECURITY,
    )
    async def show_body(request: Request) -> Response:
        """What was published. To be saved, not shown: it comes as an attachment that must not be guessed at."""
        asked = await _authenticated(broadcaster, request, MESSAGE_ID_OPENAPI)
        stored = await broadcaster.operations.body(request.path_params["message_id"], owner=asked.principal.scope)
        notification = stored.message.notification
        headers = {
            **_UNTRUSTED_HEADERS,
            "content-type": notification.content_type,
            "content-length": str(notification.size),
            "content-digest": content_digest(notification.sha256),
        }
        return StreamingResponse(stored.chunks, headers=headers)


def _add_replays(router: APIRouter, broadcaster: Broadcaster) -> None:
    @router.post(
        "/deliveries/replay",
        tags=["deliveries"],
        summary="Send deliveries again",
        status_code=202,
        response_model=ReplayAnswer,
        responses={
            202: REPLAY_LOCATION,
            **problems(*_ALWAYS, TooSlow, TooLarge, UnsupportedMediaType, DigestMismatch, NotFound, QuotaExceeded),
        },
        openapi_extra=json_body(ReplayFields) | SECURITY,
    )
    async def replay(request: Request) -> Response:
        """Make deliveries of your subscriptions that are over pending again, with their schedule from the beginning.

        They are chosen by a message, a subscription, a range of time, or several of these. It goes on after this
        answer, and after a crash. At most 16 of yours may be unfinished.
        """
        asked = await _authenticated(broadcaster, request, {})
        if asked.principal.scope is not None and asked.principal.permissions.subscribe == ():
            raise Forbidden("this key may subscribe to nothing, so there is nothing of its own to send again")
        fields = await asked.incoming.json(ReplayFields, max_bytes=_MAX_REPLAY_BYTES)
        selection = fields.selection()._replace(owner=asked.principal.scope)
        begun = await broadcaster.operations.replay(selection, by=asked.principal.by)
        return JSONResponse(replay_json(begun), 202, {"location": f"replays/{begun.number}"})

    @router.get(
        "/deliveries/replays/{number}",
        tags=["deliveries"],
        summary="How far a replay has got",
        response_model=ReplayAnswer,
        responses=problems(*_ALWAYS, NotFound),
        openapi_extra=REPLAY_OPENAPI | SECURITY,
    )
    async def replay_progress(request: Request) -> Response:
        """The counts of a replay."""
        asked = await _authenticated(broadcaster, request, REPLAY_OPENAPI)
        number = request.path_params["number"]
        if not _NUMBER.fullmatch(number):
            raise NotFound("there is no replay with this number")
        progress = await broadcaster.operations.replay_progress(int(number), owner=asked.principal.scope)
        return JSONResponse(replay_json(progress))


def _add_catching_up(router: APIRouter, broadcaster: Broadcaster) -> None:
    @router.get(
        "/subscriptions/{subscription_id}/messages",
        tags=["deliveries"],
        summary="What a durable subscription got",
        response_model=SequencePageAnswer,
        responses=problems(*_ALWAYS, NotFound),
        openapi_extra=CATCH_UP_OPENAPI | SECURITY,
    )
    async def catch_up(request: Request) -> Response:
        """Its messages after a sequence, delivered or not, and whether any is missing. A page may be short."""
        asked = await _authenticated(broadcaster, request, CATCH_UP_OPENAPI)
        after, limit = asked.number("after", 0, 0, 10**18), asked.number("limit", 100, 1, 1000)
        subscription_id = request.path_params["subscription_id"]
        page = await broadcaster.operations.messages_after(
            subscription_id, after, limit=limit, owner=asked.principal.scope
        )
        return JSONResponse(sequence_page_json(page))


class _Asked(NamedTuple):
    """A request whose credentials hold."""

    incoming: Incoming
    query: Mapping[str, str]
    principal: Principal

    def text(self, name: str) -> str | None:
        return self.query.get(name)

    def number(self, name: str, default: int, least: int, most: int) -> int:
        """Raises `InvalidRequest`."""
        text = self.query.get(name)
        if text is None:
            return default
        if not _WHOLE_NUMBER.fullmatch(text) or not least <= int(text) <= most:
            raise InvalidRequest(f"{name} is a number from {least} to {most}; got '{escaped(text[:100])}'")
        return int(text)


async def _authenticated(broadcaster: Broadcaster, request: Request, openapi: Mapping[str, Any]) -> _Asked:
    """Check the credentials, then that the query has nothing but the parameters of this OpenAPI entry, each once: a
    misspelt filter would select everything. Raises `InvalidRequest`."""
    incoming = Incoming(broadcaster, request.scope, request.receive)
    principal = await incoming.authenticate()
    known = [each["name"] for each in openapi.get("parameters", ()) if each["in"] == "query"]
    query: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in known:
            there_are = f"there are {', '.join(known)}" if known else "it takes none"
            raise InvalidRequest(f"the query has no parameter '{escaped(name[:100])}' here; {there_are}")
        if name in query:
            raise InvalidRequest(f"the query names '{name}' more than once")
        query[name] = value
    return _Asked(incoming, query, principal)
