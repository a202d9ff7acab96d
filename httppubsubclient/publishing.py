"""Publishing: one notify, its headers, and calling off what was scheduled."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from httppubsubclient.broadcasters import Answer, Broadcasters
from httppubsubclient.config import HttpPubSubConfig
from httppubsubclient.outgoing import Publishable, SyncFile, open_outgoing
from httppubsubclient.protocol.errors import InvalidRequest
from httppubsubclient.protocol.messages import (
    MESSAGE_ID,
    NotifyResult,
    check_idempotency_key,
    content_type_or_default,
    format_time,
    parse_traceparent,
)
from httppubsubclient.protocol.moments import MomentHeader
from httppubsubclient.protocol.topics import check_topic, encode_topic

__all__ = ["Moment", "PublishOptions", "cancel_scheduled", "publish"]

Moment = datetime | timedelta | float
"""A moment with its time zone, or so long from now (in seconds)."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class PublishOptions(NamedTuple):
    """What a notify may ask for; see `HttpPubSubClient.notify`."""

    content_type: str | None = None
    idempotency_key: str | None = None
    wait: float | None = None
    respond_async: bool = False
    traceparent: str | None = None
    deliver_at: Moment | None = None
    expires: Moment | None = None
    hops: int | None = None
    """Through how many broadcasters that came which this message is published because of."""

    def headers(self) -> dict[str, str]:
        """The headers of the request. Raises `InvalidRequest`."""
        headers = {"content-type": content_type_or_default(self.content_type)}
        if self.idempotency_key is not None:
            headers["idempotency-key"] = check_idempotency_key(self.idempotency_key)
        preferences = ["respond-async"] if self.respond_async else []
        if self.wait is not None:
            if not 0 <= self.wait <= 86_400:
                raise InvalidRequest(f"wait is 0 to 86400 seconds; got {self.wait!r}")
            preferences.append(f"wait={math.ceil(self.wait)}")
        if preferences:
            headers["prefer"] = ", ".join(preferences)
        if self.traceparent is not None:
            if parse_traceparent(self.traceparent) is None:
                raise InvalidRequest("traceparent is not one (W3C Trace Context section 3.2)")
            headers["traceparent"] = self.traceparent
        if self.hops is not None:
            headers["pubsub-hops"] = str(self.hops)
        if self.deliver_at is not None:
            headers |= _moment_header("pubsub-deliver-at", self.deliver_at)
        if self.expires is not None:
            headers |= _moment_header("pubsub-expires", self.expires)
        return headers


async def publish(
    broadcasters: Broadcasters,
    config: HttpPubSubConfig,
    topic: bytes,
    data: Publishable | None,
    sync_file: SyncFile | None,
    options: PublishOptions,
) -> NotifyResult:
    """Publish one message; see `HttpPubSubClient.notify`."""
    config.broadcaster_urls()
    query = f"topic={encode_topic(check_topic(topic))}"
    headers = options.headers()
    body = await open_outgoing(
        data,
        sync_file,
        spool_bytes=config.spool_bytes,
        max_bytes=config.max_body_bytes,
        directory=config.spool_path,
    )
    try:
        deadline = config.notify_timeout_seconds + (options.wait or 0.0) + 2 * body.size / config.min_bytes_per_second
        answer = await broadcasters.call(
            "POST",
            "/v1/notify",
            query=query,
            headers=headers,
            body=body,
            repeatable=options.idempotency_key is not None,
            retry_seconds=config.request_timeout_seconds,
            deadline_seconds=deadline,
            attempt_seconds=deadline,
        )
    finally:
        body.close()
    try:
        return NotifyResult.from_json(answer.fields())
    except InvalidRequest as error:
        raise InvalidRequest(f"{answer.url}: {error.detail}") from None


async def cancel_scheduled(broadcasters: Broadcasters, config: HttpPubSubConfig, message_id: str) -> int:
    """Call off a scheduled message; see `HttpPubSubClient.cancel_scheduled`."""
    config.broadcaster_urls()
    if not isinstance(message_id, str) or not MESSAGE_ID.fullmatch(message_id):
        raise InvalidRequest(f"a message id has 1 to 64 letters, digits, '_' and '-'; got {message_id!r:.100}")
    answer = await broadcasters.call(
        "DELETE",
        f"/v1/messages/{message_id}",
        repeatable=True,
        retry_seconds=config.request_timeout_seconds,
        deadline_seconds=config.request_timeout_seconds,
    )
    return _count(answer, "cancelled")


def _count(answer: Answer, name: str) -> int:
    count = answer.fields().get(name)
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise InvalidRequest(f"{answer.url} answered {answer.status} without {name!r}")
    return count


def _moment_header(name: MomentHeader, moment: Any) -> dict[str, str]:
    """What crosses the wire; its bounds are the broadcaster's, by whose clock they are judged."""
    if isinstance(moment, datetime):
        if moment.utcoffset() is None:
            raise InvalidRequest(f"{name} has a time zone: datetime.now(UTC) + ...; got {moment!r}")
        return {name: format_time((moment - _EPOCH) // timedelta(microseconds=1))}
    seconds = moment.total_seconds() if isinstance(moment, timedelta) else moment
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds < 1e12:
        raise InvalidRequest(
            f"{name} is a moment, a timedelta or seconds from now, not before now; got {moment!r:.100}"
        )
    return {name: str(math.ceil(seconds))}
