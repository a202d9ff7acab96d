"""Every parser that reads what strangers send, as a function of bytes that must not fail but as it says.

A target takes any bytes. It may raise what `refusals` names; anything else is a finding, and so is an assertion: what
two readers of the same bytes could take differently, what is not stable when it is read again. Time and memory are
watched by whoever runs it (run.py).
"""

from __future__ import annotations

from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Final

from httppubsubclient.protocol import cloudevents, intent, standard_webhooks
from httppubsubclient.protocol.addresses import AddressPolicy, address_kind, carried_ipv4, parse_address
from httppubsubclient.protocol.callback_urls import parse_callback_url, split_callback_url
from httppubsubclient.protocol.containment import containment
from httppubsubclient.protocol.credentials import Credentials, Key, verify_delivery, verify_request
from httppubsubclient.protocol.errors import (
    CallbackRefused,
    ConfigurationError,
    InvalidRequest,
    Unauthorized,
    UnsupportedMediaType,
)
from httppubsubclient.protocol.explanations import explain_delivery, explain_request
from httppubsubclient.protocol.globs import parse_glob, parse_mqtt_filter
from httppubsubclient.protocol.messages import (
    check_idempotency_key,
    parse_delivery,
    parse_time,
    parse_traceparent,
)
from httppubsubclient.protocol.moments import message_moments, parse_moment
from httppubsubclient.protocol.patterns import Pattern
from httppubsubclient.protocol.retry import retry_after_seconds
from httppubsubclient.protocol.signatures import parse_content_digest
from httppubsubclient.protocol.topic_index import TopicIndex
from httppubsubclient.protocol.topics import decode_topic, encode_topic
from httppubsubserver.http_requests import parse_prefer
from tests.fuzz.server_targets import SERVER_TARGETS
from tests.fuzz.target import NOW, Target, head_of, latin, lines_of, text_of, texts, vectors

__all__ = ["TARGETS"]

HMAC: Final = Credentials("hmac", (Key("k", bytes(range(32))),))
TOKEN: Final = Credentials("token", (Key("k", b"0123456789abcdef0123456789abcdef"),))
POLICIES: Final = tuple(
    AddressPolicy(networks) for networks in ((), ("public",), ("loopback",), ("private",), ("10.0.0.0/8", "public"))
)


# -- what is subscribed ---------------------------------------------------------------------------------------------


def callback_url(data: bytes) -> None:
    text = text_of(data)
    url = parse_callback_url(text)
    assert parse_callback_url(url.name) == url == split_callback_url(url.name)
    assert url.name.isascii()
    assert not set(url.name) & set(' \t\r\n\\"<>^`{|}@') - {"@"}
    assert "@" not in url.origin
    assert 1 <= url.port <= 65535
    # What stands in a request line and a Host header ends neither.
    assert url.target.startswith("/")
    assert url.target.isprintable()
    # A host that getaddrinfo could take for an address is one that the policy sees as such.
    last = url.host.rpartition(".")[2]
    if last.isdigit() or last.startswith("0x"):
        assert str(IPv4Address(url.host)) == url.host


def address(data: bytes) -> None:
    parsed = (
        IPv4Address(data) if len(data) == 4 else IPv6Address(data) if len(data) == 16 else parse_address(latin(data))
    )
    text = latin(data) if parsed is None else str(parsed)
    for policy in POLICIES:
        allowed = policy.allows(text, 443)
        if parsed is None:
            assert not allowed
            continue
        mapped = f"::ffff:{parsed}" if isinstance(parsed, IPv4Address) else text
        assert policy.allows(mapped, 443) == allowed
        if allowed:
            # Whatever somebody on the way could take out of it is allowed as well.
            plain = parse_address(text)
            assert plain is not None
            assert all(policy.allows(carried, 443) for carried in carried_ipv4(plain))
    assert (address_kind(text) is None) == (parse_address(text) is None)


def glob(data: bytes) -> None:
    pattern, _, topic = data.partition(b"\x00")
    parsed = parse_glob(text_of(pattern))
    _agrees(Pattern.glob(text_of(pattern)), topic, parsed.matches(topic))


def mqtt_filter(data: bytes) -> None:
    pattern, _, topic = data.partition(b"\x01")
    parsed = parse_mqtt_filter(text_of(pattern))
    _agrees(Pattern.mqtt(text_of(pattern)), topic, parsed.matches(topic))


def _agrees(pattern: Pattern, topic: bytes, matches: bool) -> None:
    index: TopicIndex[int] = TopicIndex()
    index.add(pattern, 1)
    if topic:
        assert index.match(topic) == ([1] if matches else [])
    # Whatever is matched is contained where the pattern is.
    if matches and topic and len(pattern.value) < 200:
        assert containment([pattern], Pattern.exact(topic)).holds


def contained(data: bytes) -> None:
    outer, _, inner = data.partition(b"\x00")
    outers = [Pattern.glob(text_of(text)) for text in outer.split(b"\x01")[:4]]
    asked = Pattern.glob(text_of(inner))
    holds, counterexample = containment(outers, asked)
    if counterexample is not None:
        assert not holds
        assert _matches(asked, counterexample)
        assert not any(_matches(one, counterexample) for one in outers)


def _matches(pattern: Pattern, topic: bytes) -> bool:
    matcher = pattern.matcher()
    return pattern.value == topic if matcher is None else matcher.matches(topic)


def topic(data: bytes) -> None:
    if 1 <= len(data) <= 4096:
        assert decode_topic(encode_topic(data)) == data
    decoded = decode_topic(latin(data))
    assert decode_topic(encode_topic(decoded)) == decoded


# -- what is published ----------------------------------------------------------------------------------------------


def notify_headers(data: bytes) -> None:
    headers, _ = head_of(data)
    parse_prefer(headers.get("prefer"))
    parse_traceparent(headers.get("traceparent"))
    for read in (
        lambda: check_idempotency_key(headers.get("idempotency-key", "")),
        lambda: message_moments(headers, NOW),
    ):
        with suppress(InvalidRequest):
            read()


def signed_request(data: bytes) -> None:
    headers, body = head_of(data)
    line, _, query = latin(body).partition("?")
    asked: dict[str, Any] = {"method": "POST", "path": line, "query": query, "headers": headers}
    for credentials in (HMAC, TOKEN):
        steps = explain_request(credentials, **asked, has_body=True, now=NOW, tolerance_seconds=300)
        assert all(step.detail.isprintable() for step in steps)
    for credentials in (HMAC, TOKEN):
        verify_request(credentials, **asked, has_body=True, now=NOW, tolerance_seconds=300)


def digest(data: bytes) -> None:
    assert len(parse_content_digest(latin(data))) == 32


def moment(data: bytes) -> None:
    text = latin(data)
    with suppress(InvalidRequest):
        parse_moment("at", text)
    with suppress(ValueError):
        parse_time(text)
    seconds = retry_after_seconds(text, NOW)
    assert seconds is None or seconds >= 0


# -- what a receiver is sent ----------------------------------------------------------------------------------------


def delivery(data: bytes) -> None:
    headers, _ = head_of(data)
    for credentials in (HMAC, TOKEN):
        explain_delivery(credentials, method="POST", headers=headers, now=NOW, tolerance_seconds=300)
    parse_delivery(headers)
    verify_delivery(HMAC, method="POST", headers=headers, now=NOW, tolerance_seconds=300)


def webhook(data: bytes) -> None:
    headers, body = head_of(data)
    keys = (standard_webhooks.SharedSecret(bytes(range(32))), standard_webhooks.PrivateKey(bytes(range(32))).public())
    # The digits of the time are not ours to guess: every time is the present.
    timestamp = headers.get("webhook-timestamp", "")
    now = float(timestamp) if timestamp.isascii() and timestamp.isdigit() and len(timestamp) < 13 else NOW
    standard_webhooks.verify(keys, headers, body, now=now, tolerance_seconds=300)
    raise AssertionError("nobody can sign this without the key")


def webhook_key(data: bytes) -> None:
    key = standard_webhooks.parse_key(latin(data))
    assert standard_webhooks.parse_key(key.text()) == key
    assert key.text() == latin(data)


def cloud_event(data: bytes) -> None:
    headers, body = head_of(data)
    event, content = cloudevents.read_event(headers, body)
    written = cloudevents.structured_body(event, content)
    again = cloudevents.read_event({"content-type": cloudevents.STRUCTURED_CONTENT_TYPE}, written)
    assert again.event == event
    cloudevents.binary_headers(event)


def consent(data: bytes) -> None:
    headers, body = head_of(data)
    with suppress(InvalidRequest):
        asked = intent.parse_verification(latin(body))
        assert intent.answer_verification(asked, wanted=True).body == asked.challenge.encode("ascii")
    with suppress(InvalidRequest):
        request = intent.parse_handshake(headers)
        assert "\n" not in str(intent.answer_handshake(request, allowed_origins={request.origin}).headers)
    challenge = intent.Verification("subscribe", Pattern.exact(b"t"), "c" * 22)
    with suppress(CallbackRefused):
        intent.check_verification(challenge, 200, body)
        assert body == b"c" * 22
    rate = intent.check_handshake("broadcaster.example", 60, 200, headers)
    assert headers["webhook-allowed-origin"].strip(" \t").lower() in ("*", "broadcaster.example")
    assert rate is None or rate > 0


# -------------------------------------------------------------------------------------------------------------------

_WEBHOOKS: Final = vectors("standard_webhooks")
_SIGNATURES: Final = vectors("signatures")
_EVENTS: Final = vectors("cloudevents")
_INTENT: Final = vectors("intent")
_DELIVERY: Final = lines_of(
    {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(NOW),
        "pubsub-topic": "foo/b%20r",
        "pubsub-subscription": "sub_1",
        "pubsub-attempt": "1",
        "pubsub-sequence": "2",
        "pubsub-previous": "msg_0",
        "pubsub-fragment": "a",
        "content-digest": "sha-256=:" + "A" * 43 + "=:",
        "content-type": "text/plain; charset=utf-8",
        "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "signature-input": f'sig1=("@method" "content-digest");created={NOW};nonce="nnnnnnnnnnnnnnnnnnnnnn";keyid="k";'
        'alg="hmac-sha256"',
        "signature": "sig1=:" + "A" * 43 + "=:",
        "authorization": "Bearer 0123456789abcdef",
        "pubsub-hops": "1",
    }
)
_INVALID: Final = (InvalidRequest,)
_SIGNED: Final = tuple(
    lines_of(
        {**vector["headers"], "signature-input": vector["signature_input"], "signature": vector["signature"]},
        "/v1/notify?topic=a",
    )
    for vector in _SIGNATURES["accepted"]
)

TARGETS: Final[dict[str, Target]] = {
    "callback_url": Target(callback_url, _INVALID, texts(vectors("callback_urls"))),
    "address": Target(address, (), (*texts(vectors("addresses")), bytes(4), bytes(16))),
    "glob": Target(glob, _INVALID, tuple(text + b"\x00a/b" for text in texts(vectors("globs")))),
    "mqtt_filter": Target(mqtt_filter, _INVALID, tuple(text + b"\x01a/b" for text in texts(vectors("mqtt_filters")))),
    "containment": Target(contained, _INVALID, (b"a/*\x01b/**\x00a/[a-c]?", b"**\x00a/**/b", b"*a*b*\x00*aab*")),
    "topic": Target(topic, _INVALID, texts(vectors("topics"))),
    "notify_headers": Target(
        notify_headers,
        _INVALID,
        (
            b"prefer: respond-async, wait=5\nidempotency-key: k\npubsub-deliver-at: 5\n"
            b"pubsub-expires: 2027-01-01T00:00:00Z\n",
        ),
    ),
    "signed_request": Target(signed_request, (*_INVALID, Unauthorized), _SIGNED),
    "digest": Target(digest, (*_INVALID, Unauthorized), texts(_SIGNATURES["content_digests"])),
    "moment": Target(moment, (), (b"2026-11-21T09:30:00.5+01:00", b"120", b"Sun, 06 Nov 1994 08:49:37 GMT")),
    "delivery": Target(delivery, (*_INVALID, Unauthorized), (_DELIVERY,)),
    "webhook": Target(
        webhook,
        (*_INVALID, Unauthorized),
        tuple(lines_of(vector["headers"], vector["body"]) for vector in _WEBHOOKS["accepted"]),
    ),
    "webhook_key": Target(
        webhook_key, (ConfigurationError,), texts(_WEBHOOKS["refused_keys"], [_WEBHOOKS["sign"][0]["key"]])
    ),
    "cloud_event": Target(
        cloud_event,
        (*_INVALID, UnsupportedMediaType),
        (
            b'content-type: application/cloudevents+json\n\n{"specversion": "1.0", "id": "1", '
            b'"source": "/a", "type": "t", "subject": "x", "datacontenttype": "application/json", '
            b'"data": {"a": [1, 2.5, null]}}',
            b"ce-specversion: 1.0\nce-id: 1\nce-source: /a\nce-type: t\nce-subject: %C3%A9\n"
            b"content-type: text/plain\n\nhello",
        ),
    ),
    "consent": Target(
        consent,
        (*_INVALID, CallbackRefused),
        (
            b"webhook-request-origin: a.example\nwebhook-allowed-origin: *\nwebhook-allowed-rate: 5\n\n"
            b"hub.mode=subscribe&hub.topic=a%2Fb&hub.challenge=cccccccccccccccccccccc&hub.lease_seconds=5&pubsub.kind=glob",
            *(b"\n\n" + text for text in texts(_INTENT["also_read"], _INTENT["refused_queries"])),
        ),
    ),
    **SERVER_TARGETS,
}
"""Every target by its name."""
