"""The routes: parse, authorise, ask the broadcaster, answer. docs/protocol.md describes them for users.

Credentials are checked on the headers alone, before a byte of the body is read; a body is then read within its bounds
and compared with the digest that the signature covers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import takewhile
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Query, Request, Response
from fastapi.responses import JSONResponse
from starlette.routing import Route

from httppubsubclient.protocol.callback_urls import parse_callback_url
from httppubsubclient.protocol.errors import (
    CallbackRefused,
    CallbackUnreachable,
    Conflict,
    DigestMismatch,
    Forbidden,
    InvalidGlob,
    InvalidRequest,
    InvalidSecret,
    InvalidTopic,
    InvalidUrl,
    NotFound,
    PreconditionFailed,
    QuotaExceeded,
    Replayed,
    TooLarge,
    TooSlow,
    Unauthorized,
    Unavailable,
    UnsupportedMediaType,
)
from httppubsubclient.protocol.messages import SubscribeRequest, Subscription
from httppubsubserver.auth import Principal
from httppubsubserver.broadcaster import Broadcaster
from httppubsubserver.http_deliveries import add_deliveries
from httppubsubserver.http_notify import NotifyEndpoint
from httppubsubserver.http_requests import Incoming, ProblemRoute
from httppubsubserver.http_schemas import (
    APPLIED_HEADERS,
    LIST_HEADERS,
    NOTIFY_OPENAPI,
    PRECONDITION_OPENAPI,
    SECURITY,
    SUBSCRIPTION_ID_OPENAPI,
    HealthAnswer,
    NotifyAnswer,
    PatternFields,
    SubscribeFields,
    SubscriptionAnswer,
    SubscriptionPage,
    SubscriptionSet,
    WholeSetFields,
    json_body,
    problems,
)
from httppubsubserver.subscription_secrets import Change
from httppubsubserver.whole_sets import WholeSet

__all__ = ["create_router"]

_ALWAYS = (InvalidRequest, Unauthorized, Replayed, Forbidden, Unavailable)
_CONSENT = (CallbackRefused, CallbackUnreachable, QuotaExceeded)
_WITH_BODY = (TooSlow, TooLarge, UnsupportedMediaType)
_MAX_SUBSCRIBE_BYTES = 64 * 1024
_MAX_WHOLE_SET_BYTES = 16 * 1024 * 1024
_COUNTED = 1000
"""A smaller quota is looked at before a set has been read to its end."""
_FEW = 100
"""Subscriptions up to this number are turned into JSON at once, more in a thread."""

CallbackUrlQuery = Annotated[
    str, Query(description="The callback URL, percent-encoded (a fragment too: %23).", max_length=8192)
]


def create_router(broadcaster: Broadcaster) -> APIRouter:
    """All routes of `broadcaster` under `/v1`; the router's lifespan enters and leaves the broadcaster."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with broadcaster:
            yield

    router = APIRouter(prefix="/v1", route_class=ProblemRoute, lifespan=lifespan)
    _add_notify(router, broadcaster)
    _add_subscriptions(router, broadcaster)
    _add_whole_set(router, broadcaster)
    add_deliveries(router, broadcaster)
    _add_health(router, broadcaster)
    return router


def _add_notify(router: APIRouter, broadcaster: Broadcaster) -> None:
    # A class instance as endpoint is served as plain ASGI. FastAPI documents only its own kind of route, so that the
    # one below describes what this one does; it is never reached.
    endpoint = NotifyEndpoint(broadcaster)
    router.routes.append(Route("/v1/notify", endpoint=endpoint, methods=["POST"], name="notify_endpoint"))
    router.add_api_route(
        "/notify",
        _documented,
        methods=["POST"],
        tags=["notify"],
        name="notify",
        summary="Publish a message",
        description=(
            "Deliver the raw body to every subscription that the topic matches, and count what became of it. "
            "Without `Prefer`, the answer comes when every delivery is confirmed or given up."
        ),
        response_model=NotifyAnswer,
        responses={
            200: APPLIED_HEADERS,
            202: {
                "model": NotifyAnswer,
                "description": "Taken; what is `pending` goes on after this answer.",
                **APPLIED_HEADERS,
            },
            **problems(*_ALWAYS, *_WITH_BODY, DigestMismatch, InvalidTopic, Conflict, QuotaExceeded),
        },
        openapi_extra=NOTIFY_OPENAPI | SECURITY,
    )


async def _documented() -> None:
    raise AssertionError("the route before this one answers")


def _add_subscriptions(router: APIRouter, broadcaster: Broadcaster) -> None:
    @router.post(
        "/subscriptions",
        tags=["subscriptions"],
        summary="Subscribe a callback URL",
        status_code=201,
        response_model=SubscriptionAnswer,
        responses={
            200: {
                "model": SubscriptionAnswer,
                "description": "It was there already; its lease is renewed.",
                **LIST_HEADERS,
            },
            201: LIST_HEADERS,
            **problems(
                *_ALWAYS,
                *_WITH_BODY,
                DigestMismatch,
                InvalidUrl,
                *_CONSENT,
                InvalidTopic,
                InvalidGlob,
                InvalidSecret,
            ),
        },
        openapi_extra=json_body(SubscribeFields) | SECURITY,
    )
    async def subscribe(request: Request) -> Response:
        """Have every message whose topic matches POSTed to `url`, until the lease ends or this is removed.

        (url, pattern) names one subscription: the same again renews it and keeps its id.
        """
        incoming, principal = await _authenticated(broadcaster, request)
        fields = await incoming.json(SubscribeFields, max_bytes=_MAX_SUBSCRIBE_BYTES)
        callback = parse_callback_url(fields.url)
        broadcaster.callbacks.check(callback)
        wanted = _subscribe_request(broadcaster, callback.name, fields)
        await broadcaster.subscribe_checks.check(principal, [wanted])
        secret = _secret(broadcaster, fields)
        subscription, created = await broadcaster.subscribe(
            wanted,
            resume=fields.resume,
            owner=principal.owner,
            max_subscriptions=_at_most(broadcaster, principal),
            secrets=secret,
            by=principal.by,
        )
        etag = await broadcaster.etag(wanted.url, owner=principal.owner)
        return JSONResponse(_with_secret(subscription, secret), 201 if created else 200, {"etag": etag})

    @router.get(
        "/subscriptions",
        tags=["subscriptions"],
        summary="List subscriptions",
        response_model=SubscriptionPage,
        responses={200: LIST_HEADERS, **problems(*_ALWAYS, InvalidUrl)},
        openapi_extra=SECURITY,
    )
    async def list_subscriptions(
        request: Request,
        url: Annotated[str | None, Query(description="Only those of this callback URL.", max_length=8192)] = None,
        cursor: Annotated[str | None, Query(description="The `cursor` of the page before.", max_length=256)] = None,
        limit: Annotated[int, Query(description="At most so many.", ge=1, le=1000)] = 100,
    ) -> Response:
        """Your subscriptions in the order of their ids, page by page; with `url` an `ETag` of your whole set of it.

        Yours are those that were made with your key, or another one of its owner; everybody's for a key with `admin`.
        """
        _, principal = await _authenticated(broadcaster, request)
        name = None if url is None else parse_callback_url(url).name
        # The tag first: if the set changes in between, a PUT with this tag fails, which is the safe side.
        headers = None if name is None else {"etag": await broadcaster.etag(name, owner=principal.owner)}
        page = await broadcaster.subscriptions(url=name, cursor=cursor, limit=limit, owner=principal.scope)
        subscriptions = [subscription.to_json() for subscription in page.subscriptions]
        return JSONResponse({"subscriptions": subscriptions, "cursor": page.cursor}, 200, headers)

    @router.get(
        "/subscriptions/{subscription_id}",
        tags=["subscriptions"],
        summary="Show one subscription",
        response_model=SubscriptionAnswer,
        responses=problems(*_ALWAYS, NotFound),
        openapi_extra=SUBSCRIPTION_ID_OPENAPI | SECURITY,
    )
    async def show_subscription(request: Request) -> Response:
        """One subscription by its id."""
        _, principal = await _authenticated(broadcaster, request)
        subscription_id = request.path_params["subscription_id"]
        return JSONResponse((await broadcaster.subscription(subscription_id, owner=principal.scope)).to_json())

    @router.delete(
        "/subscriptions/{subscription_id}",
        tags=["subscriptions"],
        summary="Unsubscribe",
        status_code=204,
        response_class=Response,
        responses=problems(*_ALWAYS, NotFound, *_CONSENT),
        openapi_extra=SUBSCRIPTION_ID_OPENAPI | SECURITY,
    )
    async def unsubscribe(request: Request) -> Response:
        """Remove one subscription. Deliveries that are under way may still arrive."""
        _, principal = await _authenticated(broadcaster, request)
        await broadcaster.unsubscribe(request.path_params["subscription_id"], owner=principal.scope, by=principal.by)
        return Response(status_code=204)


def _add_whole_set(router: APIRouter, broadcaster: Broadcaster) -> None:
    @router.put(
        "/subscriptions",
        tags=["subscriptions"],
        summary="Replace all subscriptions of a callback URL",
        response_model=SubscriptionSet,
        responses={
            200: LIST_HEADERS,
            **problems(
                *_ALWAYS,
                *_WITH_BODY,
                DigestMismatch,
                PreconditionFailed,
                InvalidUrl,
                *_CONSENT,
                InvalidTopic,
                InvalidGlob,
                InvalidSecret,
            ),
        },
        openapi_extra=json_body(WholeSetFields) | PRECONDITION_OPENAPI | SECURITY,
    )
    async def replace_subscriptions(request: Request, url: CallbackUrlQuery) -> Response:
        """Make the given set your whole set of `url`, at once: what is missing is removed, what stays keeps its id.

        With `If-Match`, only if the set is still the one that this ETag was given for.
        """
        incoming, principal = await _authenticated(broadcaster, request)
        incoming.query_value("url")  # raises when it is there twice
        callback = parse_callback_url(url)
        name = callback.name
        # Whoever may subscribe to nothing can only send an empty one.
        most = _MAX_SUBSCRIBE_BYTES if principal.permissions.subscribe == () else _MAX_WHOLE_SET_BYTES
        document = await incoming.json_document(max_bytes=most)
        whole = WholeSet(document, lambda entry: _subscribe_request(broadcaster, name, entry))
        del document
        await _read(broadcaster, principal, whole, name)
        wanted = whole.requests
        if wanted:  # what is not allowed any more can still be removed
            broadcaster.callbacks.check(callback)
        await broadcaster.subscribe_checks.check(principal, wanted)
        # In a thread: ten thousand keys take a second.
        given = await asyncio.to_thread(lambda: [_secret(broadcaster, entry) for entry in whole.fields])
        secrets = {request.pattern: secret for request, secret in zip(wanted, given, strict=True) if secret is not None}
        subscriptions, etag = await broadcaster.replace_subscriptions(
            name,
            wanted,
            if_match=_if_match(incoming.headers.get("if-match")),
            owner=principal.owner,
            max_subscriptions=_at_most(broadcaster, principal),
            secrets=secrets,
            by=principal.by,
        )

        def answer() -> Response:
            shown = [_with_secret(subscription, secrets.get(subscription.pattern)) for subscription in subscriptions]
            return JSONResponse({"url": name, "subscriptions": shown}, 200, {"etag": etag})

        return answer() if len(subscriptions) <= _FEW else await asyncio.to_thread(answer)


def _add_health(router: APIRouter, broadcaster: Broadcaster) -> None:
    @router.get("/health/live", tags=["health"], summary="Is the process alive?", response_model=HealthAnswer)
    async def live() -> dict[str, str]:
        """200 as long as the process answers at all. Needs no credentials."""
        return {"status": "live"}

    @router.get(
        "/health/ready",
        tags=["health"],
        summary="Can it take notifies?",
        response_model=HealthAnswer,
        responses=problems(Unavailable),
    )
    async def ready() -> dict[str, str]:
        """200 while notifies are taken and the database answers, 503 otherwise. Needs no credentials."""
        await broadcaster.check_ready()
        return {"status": "ready"}


async def _authenticated(broadcaster: Broadcaster, request: Request) -> tuple[Incoming, Principal]:
    """The request and who made it, once its credentials hold; nothing of its body has been read."""
    incoming = Incoming(broadcaster, request.scope, request.receive)
    principal = await incoming.authenticate()
    arrived_at = request.scope.get("server")
    if arrived_at is not None and arrived_at[1] is not None:
        # `uvicorn main:app --port 3004` and port 0 are nothing that the settings know.
        broadcaster.callbacks.listens_at(*arrived_at)
    return incoming, principal


def _at_most(broadcaster: Broadcaster, principal: Principal) -> int | None:
    """How many subscriptions he may have."""
    return (
        None if principal.owner is None else principal.max_subscriptions(broadcaster.config.max_subscriptions_per_key)
    )


async def _read(broadcaster: Broadcaster, principal: Principal, whole: WholeSet, url: str) -> None:
    """Read a whole set. It ends where it is clear that this is more than he may have: nothing that he could get
    follows."""
    most = _at_most(broadcaster, principal)
    steps = whole.steps()
    if most is not None and most < _COUNTED:
        await broadcaster.subscribe_checks.go_through(
            principal, takewhile(lambda _: len(whole.patterns) <= most, steps)
        )
        if len(whole.patterns) <= most:
            return
        # He may have more of them than he may make now, and renew these.
        page = await broadcaster.subscriptions(url=url, limit=most + 1, owner=principal.owner)
        if len(page.subscriptions) <= most:
            raise QuotaExceeded(f"this key may have {most} subscriptions, and asks for more with this set alone")
    await broadcaster.subscribe_checks.go_through(principal, steps)


def _subscribe_request(broadcaster: Broadcaster, url: str, fields: PatternFields) -> SubscribeRequest:
    longest = broadcaster.config.max_lease_seconds
    lease = fields.lease_seconds
    if fields.permanent:
        if lease is not None:
            raise InvalidRequest("a permanent subscription has no lease_seconds")
        lease = 0
    elif lease is None:
        lease = broadcaster.config.default_lease_seconds
    elif not 1 <= lease <= longest:
        raise InvalidRequest(f"lease_seconds is 1 to {longest}; got {lease}")
    return SubscribeRequest(url, fields.pattern(), lease, *fields.options(), handshake=fields.handshake)


def _secret(broadcaster: Broadcaster, fields: PatternFields) -> Change | None:
    """What the request wants of the subscription's secrets. Raises `InvalidSecret`, `InvalidRequest`."""
    return broadcaster.subscription_secrets.change(
        fields.secret, grace_seconds=fields.secret_grace_seconds, allow_downgrade=fields.allow_downgrade
    )


def _with_secret(subscription: Subscription, change: Change | None) -> dict[str, Any]:
    """The subscription as JSON, with the secret that was generated for it: this once."""
    fields = subscription.to_json()
    if change is not None and change.generated is not None:
        fields["secret"] = change.generated
    return fields


def _if_match(header: str | None) -> str | None:
    """RFC 9110 section 13.1.1; one strong tag. `*` (any present set) is always true: every URL has a set."""
    if header is None or header.strip() == "*":
        return None
    return header.strip()
