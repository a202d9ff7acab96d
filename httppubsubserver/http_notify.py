"""`POST /v1/notify`, the hot route: plain ASGI, because routing a request through FastAPI costs more than the rest.

Its OpenAPI entry stands in http_api.py.
"""

from __future__ import annotations

import json
import logging

from starlette.types import Receive, Scope, Send

from httppubsubclient.protocol.errors import InvalidTopic, PubSubError
from httppubsubclient.protocol.messages import NotifyResult
from httppubsubclient.protocol.topics import decode_topic
from httppubsubserver.broadcaster import Broadcaster
from httppubsubserver.http_requests import Disconnected, Incoming, Prefer, parse_prefer, problem_response

__all__ = ["NotifyEndpoint"]

_LOG = logging.getLogger("httppubsub.server.http")


class NotifyEndpoint:
    """The ASGI application behind `/v1/notify`."""

    def __init__(self, broadcaster: Broadcaster) -> None:
        self._broadcaster = broadcaster

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            result, prefer = await self._notify(scope, receive)
        except PubSubError as error:
            await problem_response(error)(scope, receive, send)
        except Disconnected:
            return
        except Exception:
            _LOG.exception("a notify failed unexpectedly")
            unexpected = PubSubError("an unexpected error; the log of the broadcaster says more")
            await problem_response(unexpected)(scope, receive, send)
        else:
            await _answer(send, result, prefer)

    async def _notify(self, scope: Scope, receive: Receive) -> tuple[NotifyResult, Prefer]:
        incoming = Incoming(self._broadcaster, scope, receive)
        await incoming.authenticate()
        text = incoming.query_value("topic")
        if text is None:
            raise InvalidTopic("the query has no topic: POST /v1/notify?topic=foo/bar")
        topic = decode_topic(text)
        headers = incoming.headers
        prefer = parse_prefer(headers.get("prefer"))
        self._broadcaster.check_accepting()
        with self._broadcaster.body_writer(incoming.declared_length()) as writer:
            result = await self._broadcaster.notify(
                topic,
                await incoming.body(writer),
                content_type=headers.get("content-type", ""),
                traceparent=headers.get("traceparent"),
                wait_seconds=prefer.wait_seconds,
                idempotency_key=headers.get("idempotency-key"),
            )
        return result, prefer


async def _answer(send: Send, result: NotifyResult, prefer: Prefer) -> None:
    body = json.dumps(result.to_json()).encode("ascii")
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if prefer.applied is not None:
        headers.append((b"preference-applied", prefer.applied.encode("ascii")))
    await send({"type": "http.response.start", "status": 202 if result.pending else 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
