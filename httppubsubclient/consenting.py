"""A broadcaster asks whether this client wants to be called: the answers, given without being told to.

Before the first delivery a broadcaster may ask a callback for its consent (protocol/intent.py): by a `GET` with a
challenge, or by `OPTIONS`. It asks while it processes our own call, so what counts is what is wanted here at this
moment, not what has been confirmed. Whoever asks proves nothing, hence the rules:

| asked                     | consent when                                                                            |
|---------------------------|-----------------------------------------------------------------------------------------|
| to subscribe a pattern    | somebody here has entered it, or is entering it                                         |
| to unsubscribe a pattern  | nobody here has it; of a durable name, whose backlog would go, only while it is removed |
| `OPTIONS`                 | something is entered with `handshake="cloudevents"`, a call of ours is under way, and   |
|                           | the origin is the host of one of our broadcasters                                       |

An `OPTIONS` names no pattern, so whoever agrees does so to whatever anybody has made that broadcaster send here. Unless
the application has asked for that handshake, it is answered 405, as if there were no such method.

A question for another process behind the same address (`Pubsub-Fragment`), or that comes while the client is not
running, is answered 503, like a delivery.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from starlette.routing import Route

from httppubsubclient.durable_options import durable_name_of
from httppubsubclient.durable_registrations import DurableRegistrations
from httppubsubclient.protocol.callback_urls import parse_callback_url
from httppubsubclient.protocol.errors import PROBLEM_CONTENT_TYPE, PubSubError, Unavailable, problem, wire_of
from httppubsubclient.protocol.headers import parse_headers
from httppubsubclient.protocol.intent import (
    Answer,
    answer_handshake,
    answer_verification,
    parse_handshake,
    parse_verification,
)
from httppubsubclient.protocol.messages import RECEIVE_PATH
from httppubsubclient.registrations import Registrations

__all__ = ["Consenting", "add_consent", "origins_of"]

logger = logging.getLogger(__name__)

_AnswerTo = Callable[[bytes, dict[str, str]], Answer]
Registries = Callable[[], tuple[Registrations | None, DurableRegistrations | None]]

_RETRY_AFTER_SECONDS = 1


class Consenting:
    """Answers for one client. `registries` gives what is registered; None while the client is not entered."""

    def __init__(self, registries: Registries, *, fragment: str | None, origins: Collection[str]) -> None:
        """`origins`: the hosts of the broadcasters, in lower case."""
        self._registries = registries
        self._fragment = fragment
        self._origins = frozenset(origins)

    def verification(self, query: bytes, headers: dict[str, str]) -> Answer:
        """The answer to a `GET`. Raises `InvalidRequest` and `InvalidGlob` for no question, `Unavailable`."""
        verification = parse_verification(query.decode("latin-1"))
        registrations, durable = self._registered(headers)
        name, pattern = durable_name_of(query), verification.pattern
        if verification.mode == "subscribe":
            wanted = registrations.wants(pattern) if name is None else durable.wants(name, pattern)
        else:
            wanted = not registrations.wants(pattern) if name is None else durable.gives_up(name, pattern)
        logger.info(
            "asked to %s %s%s: %s",
            verification.mode,
            pattern,
            "" if name is None else f" of {name!r}",
            "yes" if wanted else "no, that is not what this client does",
        )
        return answer_verification(verification, wanted=wanted)

    def handshake(self, query: bytes, headers: dict[str, str]) -> Answer:
        """The answer to an `OPTIONS`. Raises `InvalidRequest` for no question, `Unavailable`."""
        question = parse_handshake(headers)
        registrations, durable = self._registered(headers)
        name = durable_name_of(query)
        expected = registrations.expects_handshake() if name is None else durable.expects_handshake(name)
        logger.info(
            "asked by OPTIONS: %s", "yes, if it is our broadcaster" if expected else "no, nobody here wants that"
        )
        return answer_handshake(question, allowed_origins=self._origins if expected else ())

    def _registered(self, headers: dict[str, str]) -> tuple[Registrations, DurableRegistrations]:
        if headers.get("pubsub-fragment") != self._fragment:
            raise Unavailable("this question is for another process behind this address", retry_after_seconds=0)
        registrations, durable = self._registries()
        if registrations is None or durable is None:
            raise Unavailable("this client is not running", retry_after_seconds=_RETRY_AFTER_SECONDS)
        return registrations, durable


def origins_of(broadcaster_urls: Collection[str]) -> frozenset[str]:
    """The hosts of broadcasters, as they name themselves in a handshake."""
    return frozenset(parse_callback_url(url).host for url in broadcaster_urls)


def add_consent(router: APIRouter, consenting: Consenting) -> None:
    """Add `GET` and `OPTIONS /v1/receive`. They need no proof: a stranger learns whether a topic is wanted here.

    Dependencies given to `include_router` do not apply to them either.
    """
    for method, name, answer_to in (
        ("GET", "verify_intent", consenting.verification),
        ("OPTIONS", "handshake", consenting.handshake),
    ):
        endpoint = partial(_answered, answer_to)
        router.routes.append(Route(RECEIVE_PATH, endpoint=endpoint, methods=[method], name=f"answer_{name}"))
    # FastAPI documents only its own kind of route: these describe what those above do, and are never reached.
    router.add_api_route(
        RECEIVE_PATH,
        _documented,
        methods=["GET"],
        name="verify_intent",
        summary="Does this client want this subscription?",
        description=(
            "W3C WebSub, verification of intent: the value of `hub.challenge` is the answer when this client wants "
            "what `hub.mode`, `hub.topic` and `pubsub.kind` say, 404 when it does not."
        ),
        response_class=Response,
        responses=_RESPONSES | {404: {"description": "It is not wanted here"}},
        openapi_extra={"parameters": _QUERY},
        response_description="It is wanted: the challenge, as text/plain",
    )
    router.add_api_route(
        RECEIVE_PATH,
        _documented,
        methods=["OPTIONS"],
        name="handshake",
        summary="May this broadcaster send here?",
        description="CloudEvents 1.0.2 webhooks, abuse protection.",
        response_class=Response,
        responses=_RESPONSES | {405: {"description": "Not this origin, or this handshake was not asked for"}},
        openapi_extra={"parameters": _HEADERS},
        response_description="It may: `WebHook-Allowed-Origin`, `WebHook-Allowed-Rate`",
    )


async def _documented() -> None:
    raise AssertionError("the ASGI route before this one answers")


async def _answered(answer_to: _AnswerTo, request: Request) -> Response:
    if request.method == "HEAD":  # comes with GET, and would be a question without an answer
        return Response(status_code=405, headers={"allow": "GET, OPTIONS, POST"})
    try:
        answer = answer_to(request.scope.get("query_string", b""), parse_headers(request.scope["headers"]))
    except PubSubError as error:
        logger.info("a question for consent was answered %d: %s", wire_of(error).status, error.detail)
        response = JSONResponse(problem(error), wire_of(error).status, media_type=PROBLEM_CONTENT_TYPE)
        if isinstance(error, Unavailable) and error.retry_after_seconds is not None:
            response.headers["retry-after"] = str(round(error.retry_after_seconds))
        return response
    return Response(answer.body, answer.status, answer.headers)


def _parameter(place: str, name: str, description: str, example: str, *, required: bool = True) -> dict[str, Any]:
    schema = {"type": "string"}
    return {"name": name, "in": place, "required": required, "description": description} | {
        "schema": schema,
        "example": example,
    }


_FRAGMENT = _parameter("header", "Pubsub-Fragment", "The fragment of the subscribed URL", "1", required=False)
_QUERY = [
    _parameter("query", "hub.mode", "subscribe or unsubscribe", "subscribe"),
    _parameter("query", "hub.topic", "The topic or pattern", "orders/*"),
    _parameter("query", "hub.challenge", "1 to 256 visible ASCII characters", "0h9m2Zt4cQ7hJw3xkYb5Dg"),
    _parameter("query", "hub.lease_seconds", "How long it would last", "600", required=False),
    _parameter("query", "pubsub.kind", "exact (if it is not there), glob or mqtt", "glob", required=False),
    _FRAGMENT,
]
_HEADERS = [
    _parameter("header", "WebHook-Request-Origin", "The host name of the broadcaster", "broadcaster.example"),
    _parameter("header", "WebHook-Request-Rate", "Requests per minute", "120", required=False),
    _FRAGMENT,
]
_PROBLEM = {PROBLEM_CONTENT_TYPE: {"schema": {"type": "object"}}}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    400: {"description": "It is no question", "content": _PROBLEM},
    422: {"description": "The pattern is malformed", "content": _PROBLEM},
    503: {"description": "For another process of this address, or this client is not running", "content": _PROBLEM},
}
