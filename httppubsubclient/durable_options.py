"""What a subscription with a durable name asks for, and the callback URL of such a name.

    client.subscribe_exact(b"orders", durable="worker-1", ordered=True, ack="processed")

A name is its own callback URL, the client's with the query `?durable=worker-1`: so it is its own endpoint at the
broadcaster, with its own backlog and its own pace, and what is subscribed under it stays when the client goes.

| `ack`         | a delivery is answered 2xx when                                                                   |
|---------------|---------------------------------------------------------------------------------------------------|
| `"accepted"`  | the message is in the buffer; what is in the buffer when the process dies is lost                 |
| `"processed"` | the application took the message off the iterator, or its callback returned                       |
| `"explicit"`  | the application called `message.ack()`                                                            |
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple, TypedDict, get_args
from urllib.parse import parse_qsl

from httppubsubclient.protocol.errors import InvalidRequest
from httppubsubclient.protocol.intent import Handshake
from httppubsubclient.protocol.options import DeliveryFormat, DeliveryOptions
from httppubsubclient.protocol.retry import check_retry_schedule
from httppubsubclient.webhooks import WebhookOptions, check_webhook_options

__all__ = [
    "Ack",
    "DurableKeywords",
    "DurableOptions",
    "SubscribeKeywords",
    "check_durable_name",
    "durable_name_of",
    "durable_options",
    "durable_url",
    "subscribe_options",
]

Ack = Literal["accepted", "processed", "explicit"]

_ACKS: Final[tuple[Ack, ...]] = get_args(Ack)
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)
_PARAMETER: Final = "durable"


class DurableOptions(NamedTuple):
    """One name, and how its messages come."""

    name: str
    delivery: DeliveryOptions
    """What the broadcaster is told."""
    ack: Ack = "accepted"


class DurableKeywords(TypedDict, total=False):
    """The keyword arguments of every way to subscribe."""

    durable: str | None
    """The name, 1 to 64 letters, digits, `_`, `.` and `-`. None: best effort, and nothing of the following."""
    ordered: bool
    """One message at a time, in the order of acceptance."""
    retry_schedule_seconds: Sequence[float] | None
    """The waits before attempt 1, 2, ...; None: the usual ones of the broadcaster."""
    ack: Ack
    """When a message counts as received; see above."""


class SubscribeKeywords(DurableKeywords, total=False):
    """And those of webhooks.py."""

    secret: str | None
    """Deliveries are signed with a secret of this subscription alone: `"generate"`, `"generate-v1a"` or a key."""
    format: DeliveryFormat
    """What deliveries look like on the wire; the messages are the same."""
    handshake: Handshake
    """How the broadcaster asks whether we agree: `"websub"`, about each pattern, or, with a format of CloudEvents,
    `"cloudevents"`, which is agreed to for whatever it sends."""


def subscribe_options(
    *,
    secret: str | None = None,
    format: DeliveryFormat = "raw",  # noqa: A002 - it is what the keyword is called
    handshake: Handshake = "websub",
    durable: str | None = None,
    ordered: bool = False,
    retry_schedule_seconds: Sequence[float] | None = None,
    ack: Ack = "accepted",
) -> tuple[DurableOptions | None, WebhookOptions]:
    """All options of a subscription as they were given. Raises `InvalidRequest`."""
    durability = durable_options(
        durable=durable, ordered=ordered, retry_schedule_seconds=retry_schedule_seconds, ack=ack
    )
    return durability, check_webhook_options(format, secret, handshake)


def durable_options(
    *,
    durable: str | None = None,
    ordered: bool = False,
    retry_schedule_seconds: Sequence[float] | None = None,
    ack: Ack = "accepted",
) -> DurableOptions | None:
    """The options of a subscription as they were given; None without a name. Raises `InvalidRequest`."""
    if ack not in _ACKS:
        raise InvalidRequest(f"ack is one of {', '.join(map(repr, _ACKS))}; got {ack!r}")
    if durable is None:
        given = (ordered, "ordered"), (retry_schedule_seconds is not None, "retry_schedule_seconds")
        for is_given, name in (*given, (ack != "accepted", "ack")):
            if is_given:
                raise InvalidRequest(f"{name} needs a durable subscription: durable='a-name'")
        return None
    if not isinstance(ordered, bool):
        raise InvalidRequest(f"ordered is True or False; got {ordered!r}")
    schedule = None if retry_schedule_seconds is None else check_retry_schedule(retry_schedule_seconds)
    return DurableOptions(check_durable_name(durable), DeliveryOptions("durable", ordered, schedule), ack)


def check_durable_name(name: str) -> str:
    """1 to 64 letters, digits, `_`, `.` and `-`. Raises `InvalidRequest`."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidRequest(f"a durable name has 1 to 64 letters, digits, '_', '.' and '-'; got {name!r:.100}")
    return name


def durable_url(callback_url: str, name: str) -> str:
    """The callback URL of a name, with the fragment of the client's."""
    base, hash_sign, fragment = callback_url.partition("#")
    return f"{base}?{_PARAMETER}={name}{hash_sign}{fragment}"


def durable_name_of(query: bytes) -> str | None:
    """The name in the query of a request line; None when there is none. Raises `InvalidRequest`."""
    if not query:
        return None
    names = [value for key, value in parse_qsl(query.decode("latin-1"), keep_blank_values=True) if key == _PARAMETER]
    if len(names) > 1:
        raise InvalidRequest(f"the query has {_PARAMETER} more than once")
    return check_durable_name(names[0]) if names else None
