"""The complete application: a broadcaster, its routes, and problem documents for what no route takes."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from httppubsubclient import __version__
from httppubsubclient.protocol.errors import PROBLEM_CONTENT_TYPE, NotFound, PubSubError, problem
from httppubsubserver.broadcaster import Broadcaster
from httppubsubserver.config import ServerConfig
from httppubsubserver.http_notify import NotifyEndpoint
from httppubsubserver.http_requests import problem_response
from httppubsubserver.http_schemas import SECURITY_SCHEMES

__all__ = ["create_app"]

_LOG = logging.getLogger("httppubsub.server")


def create_app(config: ServerConfig) -> FastAPI:
    """An ASGI application that is a broadcaster; it is `app.state.broadcaster`.

    Raises `ConfigurationError` when the configuration or the secrets file is wrong.
    """
    broadcaster = Broadcaster(config)
    app = _BroadcasterApp(
        NotifyEndpoint(broadcaster),
        # Pages that load scripts from elsewhere have no place here; /openapi.json is what they show.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # a redirect would be made from the Host header, and a signed request cannot follow it
        title="httppubsub broadcaster",
        version=__version__,
        description="Publish/subscribe over plain HTTP: messages are POSTed, signed, to the URLs that subscribed.",
    )
    app.state.broadcaster = broadcaster
    app.openapi = partial(_openapi, app)  # type: ignore[method-assign]
    app.include_router(broadcaster.router)
    app.add_exception_handler(HTTPException, _no_such_route)
    app.add_exception_handler(Exception, _unexpected)
    return app


def _openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's document with the security schemes that the routes name: they are no dependencies of FastAPI's."""
    document = FastAPI.openapi(app)
    document.setdefault("components", {})["securitySchemes"] = SECURITY_SCHEMES
    return document


class _BroadcasterApp(FastAPI):
    """FastAPI with a way past it: a notify goes to its endpoint before middleware and routing have a look at it."""

    def __init__(self, notify: NotifyEndpoint, **options: Any) -> None:
        super().__init__(**options)
        self._notify = notify

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == "/v1/notify" and scope["method"] == "POST":
            await self._notify(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


async def _no_such_route(_: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException) and error.status_code != 404:
        document = {
            "type": "about:blank",
            "status": error.status_code,
            "title": error.detail,
            "detail": "see /openapi.json for what there is",
            "code": "invalid_request",
        }
        return JSONResponse(document, error.status_code, error.headers, media_type=PROBLEM_CONTENT_TYPE)
    return problem_response(NotFound("there is no such path; see /openapi.json for what there is"))


async def _unexpected(_: Request, error: Exception) -> Response:
    _LOG.error("a request failed unexpectedly", exc_info=error)
    document = problem(PubSubError("an unexpected error; the log of the broadcaster says more"))
    return JSONResponse(document, 500, media_type=PROBLEM_CONTENT_TYPE)
