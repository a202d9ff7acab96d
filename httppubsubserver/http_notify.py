"""`POST /v1/notify`, the hot route: plain ASGI, because routing a request through FastAPI costs more than the rest.

Its OpenAPI entry stands in http_api.py.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial

from starlette.types import Receive, Scope, Send

from httppubsubclient.protocol.errors import InvalidTopic, PubSubError
from httppubsubclient.protocol.messages import NotifyResult, parse_hops
from httppubsubclient.protocol.moments import NO_MOMENTS, MessageMoments, message_moments
from httppubsubclient.protocol.topics import decode_topic
from httppubsubserver.auth import Principal
from httppubsubserver.broadcaster import Broadcaster
from httppubsubserver.http_requests import Disconnected, Incoming, Prefer, parse_prefer, problem_response
from httppubsubserver.quotas import Charge

__all__ = ["NotifyEndpoint"]

_LOG = logging.getLogger("httppubsub.server.http")


_SMALL_BYTES = 64 * 1024
"""A body up to this is held in memory however full that is."""

_RESULT = b'{"message_id": "%b", "matched": %d, "notified": %d, "pending": %d, "failed": %d}'
"""NotifyResult.to_json, made by hand: nothing in it needs to be escaped."""


class NotifyEndpoint:
    """The ASGI application behind `/v1/notify`."""

    def __init__(self, broadcaster: Broadcaster) -> None:
        self._broadcaster = broadcaster
        config = broadcaster.config
        self._small_bytes = min(_SMALL_BYTES, config.spool_bytes, config.max_body_bytes)

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
        principal = await incoming.authenticate()
        text = incoming.query_value("topic")
        if text is None:
            raise InvalidTopic("the query has no topic: POST /v1/notify?topic=foo/bar")
        topic = decode_topic(text)
        if not principal.publishes_freely:
            principal.permissions.check_publish(topic)
        headers = incoming.headers
        prefer = parse_prefer(headers.get("prefer"))
        self._broadcaster.check_accepting()
        notify = partial(
            self._broadcaster.notify,
            topic,
            content_type=headers.get("content-type", ""),
            traceparent=headers.get("traceparent"),
            wait_seconds=prefer.wait_seconds,
            idempotency_key=headers.get("idempotency-key"),
            moments=self._moments(headers),
            hops=self._hops(headers),
            owner=principal.owner,
        )
        length = incoming.declared_length()
        charge = None if principal.publishes_freely else self._begin(principal, length)
        if length is not None and length <= self._small_bytes:
            return await notify(await incoming.small_body(length)), prefer
        with self._broadcaster.body_writer(length) as writer:
            return await notify(await incoming.body(writer, charge)), prefer

    def _begin(self, principal: Principal, length: int | None) -> Charge | None:
        """Take the message out of the quotas of its publisher, before its body is read."""
        if length is not None and length > self._broadcaster.config.max_body_bytes:
            length = 0  # it will be refused: a slip must not cost an hour of quota
        return self._broadcaster.quotas.begin(principal.owner or "", principal.permissions.quotas, length)

    def _hops(self, headers: Mapping[str, str]) -> int:
        if "pubsub-hops" not in headers:
            return 0
        hops = parse_hops(headers)
        self._broadcaster.check_hops(hops)  # before the body is read
        return hops

    def _moments(self, headers: Mapping[str, str]) -> MessageMoments:
        if "pubsub-deliver-at" in headers or "pubsub-expires" in headers:
            return message_moments(headers, self._broadcaster.now())
        return NO_MOMENTS


async def _answer(send: Send, result: NotifyResult, prefer: Prefer) -> None:
    message_id = result.message_id.encode("ascii")
    body = _RESULT % (message_id, result.matched, result.notified, result.pending, result.failed)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if prefer.applied is not None:
        headers.append((b"preference-applied", prefer.applied.encode("ascii")))
    await send({"type": "http.response.start", "status": 202 if result.pending else 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
