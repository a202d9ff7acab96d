"""Every parser that reads what strangers send, as a function of bytes that must not fail but as it says.

A target takes any bytes. It may raise what `refusals` names; anything else is a finding, and so is an assertion: what
two readers of the same bytes could take differently, what is not stable when it is read again. Time and memory are
watched by whoever runs it (run.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from httppubsubclient.protocol import cloudevents, intent, standard_webhooks
from httppubsubclient.protocol.addresses import AddressPolicy, address_kind, carried_ipv4, parse_address
from httppubsubclient.protocol.callback_urls import parse_callback_url, split_callback_url
from httppubsubclient.protocol.containment import containment
from httppubsubclient.protocol.credentials import Credentials, Key, secrets_from_json, verify_delivery, verify_request
from httppubsubclient.protocol.errors import (
    CallbackRefused,
    ConfigurationError,
    InvalidRequest,
    Unauthorized,
    UnsupportedMediaType,
    from_problem,
)
from httppubsubclient.protocol.explanations import explain_delivery, explain_request
from httppubsubclient.protocol.globs import parse_glob, parse_mqtt_filter
from httppubsubclient.protocol.headers import parse_headers
from httppubsubclient.protocol.messages import (
    NotifyResult,
    Subscription,
    check_idempotency_key,
    parse_delivery,
    parse_time,
    parse_traceparent,
)
from httppubsubclient.protocol.moments import message_moments, parse_moment
from httppubsubclient.protocol.patterns import Pattern
from httppubsubclient.protocol.permissions import permissions_from_json, permissions_to_json
from httppubsubclient.protocol.retry import retry_after_seconds
from httppubsubclient.protocol.signatures import parse_content_digest
from httppubsubclient.protocol.topic_index import TopicIndex
from httppubsubclient.protocol.topics import decode_topic, encode_topic
from httppubsubserver.delivery.answers import AnswerReader, BadAnswer
from httppubsubserver.delivery.whole_answers import WholeAnswerReader
from httppubsubserver.escaping import escaped
from httppubsubserver.http_requests import parse_prefer
from httppubsubserver.http_schemas import SubscribeFields, WholeSetFields

__all__ = ["TARGETS", "Target"]

NOW: Final = 1_795_000_000
VECTORS: Final = Path(__file__).parent.parent / "vectors"
HMAC: Final = Credentials("hmac", (Key("k", bytes(range(32))),))
TOKEN: Final = Credentials("token", (Key("k", b"0123456789abcdef0123456789abcdef"),))
POLICIES: Final = tuple(
    AddressPolicy(networks) for networks in ((), ("public",), ("loopback",), ("private",), ("10.0.0.0/8", "public"))
)


@dataclass(frozen=True, slots=True)
class Target:
    """One parser."""

    run: Callable[[bytes], object]
    refusals: tuple[type[Exception], ...] = ()
    """What it may raise."""
    seeds: tuple[bytes, ...] = ()
    """What it reads well, or nearly: where the search begins."""

    def __call__(self, data: bytes) -> None:
        """Raises for a finding only."""
        with suppress(*self.refusals):
            self.run(data)


def _vectors(name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((VECTORS / f"{name}.json").read_text())
    return document


def _texts(*values: object) -> tuple[bytes, ...]:
    """Every text in these values, however deep, once."""
    found: dict[bytes, None] = {}
    todo = list(values)
    while todo:
        value = todo.pop()
        if isinstance(value, str):
            found[value.encode("utf-8", "surrogatepass")] = None
        elif isinstance(value, Mapping):
            todo += value.values()
        elif isinstance(value, list | tuple):
            todo += value
    return tuple(found)


def _latin(data: bytes) -> str:
    return data.decode("latin-1")


def _utf8(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass") if _is_text(data) else data.decode("latin-1")


def _is_text(data: bytes) -> bool:
    try:
        data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return False
    return True


def _head(data: bytes) -> tuple[dict[str, str], bytes]:
    """Header lines, an empty line, a body: as on the wire, but read without judgement."""
    head, _, body = data.partition(b"\n\n")
    raw = [(name.strip(), value) for name, _, value in (line.partition(b":") for line in head.split(b"\n"))]
    return parse_headers(raw), body


def _lines(headers: Mapping[str, str], body: str = "") -> bytes:
    head = "\n".join(f"{name}: {value}" for name, value in headers.items())
    return f"{head}\n\n{body}".encode("utf-8", "surrogatepass")


def _json(data: bytes) -> Any:
    with suppress(ValueError, RecursionError):
        return json.loads(data)
    return None


# -- what is subscribed ---------------------------------------------------------------------------------------------


def callback_url(data: bytes) -> None:
    text = _utf8(data)
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
        IPv4Address(data) if len(data) == 4 else IPv6Address(data) if len(data) == 16 else parse_address(_latin(data))
    )
    text = _latin(data) if parsed is None else str(parsed)
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
    parsed = parse_glob(_utf8(pattern))
    _agrees(Pattern.glob(_utf8(pattern)), topic, parsed.matches(topic))


def mqtt_filter(data: bytes) -> None:
    pattern, _, topic = data.partition(b"\x01")
    parsed = parse_mqtt_filter(_utf8(pattern))
    _agrees(Pattern.mqtt(_utf8(pattern)), topic, parsed.matches(topic))


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
    outers = [Pattern.glob(_utf8(text)) for text in outer.split(b"\x01")[:4]]
    asked = Pattern.glob(_utf8(inner))
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
    decoded = decode_topic(_latin(data))
    assert decode_topic(encode_topic(decoded)) == decoded


def subscribe_json(data: bytes) -> None:
    fields = SubscribeFields.model_validate_json(data)
    fields.pattern()
    fields.options()


def whole_set_json(data: bytes) -> None:
    for entry in WholeSetFields.model_validate_json(data).subscriptions:
        entry.pattern()
        entry.options()


# -- what is published ----------------------------------------------------------------------------------------------


def notify_headers(data: bytes) -> None:
    headers, _ = _head(data)
    parse_prefer(headers.get("prefer"))
    parse_traceparent(headers.get("traceparent"))
    for read in (
        lambda: check_idempotency_key(headers.get("idempotency-key", "")),
        lambda: message_moments(headers, NOW),
    ):
        with suppress(InvalidRequest):
            read()


def signed_request(data: bytes) -> None:
    headers, body = _head(data)
    line, _, query = _latin(body).partition("?")
    asked: dict[str, Any] = {"method": "POST", "path": line, "query": query, "headers": headers}
    for credentials in (HMAC, TOKEN):
        steps = explain_request(credentials, **asked, has_body=True, now=NOW, tolerance_seconds=300)
        assert all(step.detail.isprintable() for step in steps)
    for credentials in (HMAC, TOKEN):
        verify_request(credentials, **asked, has_body=True, now=NOW, tolerance_seconds=300)


def digest(data: bytes) -> None:
    assert len(parse_content_digest(_latin(data))) == 32


def moment(data: bytes) -> None:
    text = _latin(data)
    with suppress(InvalidRequest):
        parse_moment("at", text)
    with suppress(ValueError):
        parse_time(text)
    seconds = retry_after_seconds(text, NOW)
    assert seconds is None or seconds >= 0


# -- what a receiver is sent ----------------------------------------------------------------------------------------


def delivery(data: bytes) -> None:
    headers, _ = _head(data)
    for credentials in (HMAC, TOKEN):
        explain_delivery(credentials, method="POST", headers=headers, now=NOW, tolerance_seconds=300)
    parse_delivery(headers)
    verify_delivery(HMAC, method="POST", headers=headers, now=NOW, tolerance_seconds=300)


def webhook(data: bytes) -> None:
    headers, body = _head(data)
    keys = (standard_webhooks.SharedSecret(bytes(range(32))), standard_webhooks.PrivateKey(bytes(range(32))).public())
    # The digits of the time are not ours to guess: every time is the present.
    timestamp = headers.get("webhook-timestamp", "")
    now = float(timestamp) if timestamp.isascii() and timestamp.isdigit() and len(timestamp) < 13 else NOW
    standard_webhooks.verify(keys, headers, body, now=now, tolerance_seconds=300)
    raise AssertionError("nobody can sign this without the key")


def webhook_key(data: bytes) -> None:
    key = standard_webhooks.parse_key(_latin(data))
    assert standard_webhooks.parse_key(key.text()) == key
    assert key.text() == _latin(data)


def cloud_event(data: bytes) -> None:
    headers, body = _head(data)
    event, content = cloudevents.read_event(headers, body)
    written = cloudevents.structured_body(event, content)
    again = cloudevents.read_event({"content-type": cloudevents.STRUCTURED_CONTENT_TYPE}, written)
    assert again.event == event
    cloudevents.binary_headers(event)


def consent(data: bytes) -> None:
    headers, body = _head(data)
    with suppress(InvalidRequest):
        asked = intent.parse_verification(_latin(body))
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


# -- what a receiver answers ----------------------------------------------------------------------------------------


def answer(data: bytes) -> None:
    """The first byte says how the rest is cut."""
    step, rest = (data[0] % 17) + 1 if data else 1, data[1:]
    outcomes = []
    for pieces in ([rest], [rest[at : at + step] for at in range(0, len(rest), step)]):
        reader = AnswerReader(max_bytes=1000)
        reader.expect()
        told = None
        bad = False
        try:
            for piece in pieces:
                told = reader.feed(piece) or told
        except BadAnswer:
            bad = True
        told = told or reader.interrupted()
        assert told is None or 200 <= told.status <= 999
        outcomes.append((bad, None if told is None else (told.status, told.retry_after)))
    assert outcomes[0] == outcomes[1] or any(bad for bad, _ in outcomes), outcomes


def whole_answer(data: bytes) -> None:
    flags, rest = data[:1], data[1:]
    reader = WholeAnswerReader(max_bytes=1000)
    reader.expect(of_head=flags == b"h", last=flags == b"l")
    told = None
    for at in range(0, len(rest), 7):
        told = reader.feed(rest[at : at + 7]) or told
    told = told or reader.ended()
    assert told is None or len(told.body) <= 1000


def broadcaster_json(data: bytes) -> None:
    document = _json(data)
    if isinstance(document, dict):
        from_problem(document.get("code"), "x")
        for read in (Subscription.from_json, NotifyResult.from_json):
            with suppress(InvalidRequest):
                read(document)


def shown(data: bytes) -> None:
    assert escaped(data).isprintable()
    assert escaped(_latin(data)).isprintable()


# -- what an operator writes ----------------------------------------------------------------------------------------


def secrets(data: bytes) -> None:
    secrets_from_json(_json(data))


def permissions(data: bytes) -> None:
    read = permissions_from_json(_json(data), "keys[0]")
    assert permissions_from_json(permissions_to_json(read), "keys[0]") == read


# -------------------------------------------------------------------------------------------------------------------

_WEBHOOKS: Final = _vectors("standard_webhooks")
_SIGNATURES: Final = _vectors("signatures")
_EVENTS: Final = _vectors("cloudevents")
_INTENT: Final = _vectors("intent")
_DELIVERY: Final = _lines(
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
_ANSWERS: Final = (
    b"\x02HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
    b"\x03HTTP/1.1 500 No\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    b"\x01HTTP/1.1 103 Early\r\nlink: x\r\n\r\nHTTP/1.1 429 Slow\r\nretry-after: 5\r\ncontent-length: 0\r\n\r\n",
    b"\x05HTTP/1.0 503 x\r\nretry-after: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\nbody",
    b"lHTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x\r\n\r\n1;a=b\r\nx\r\n0\r\nx: y\r\n\r\n",
)
_KEY: Final = json.dumps(
    {
        "id": "partner",
        "secret": "s",
        "publish": ["orders/eu/**"],
        "subscribe": ["orders/*", "[a-c]?"],
        "admin": False,
        "quotas": {"subscriptions": 20, "messages_per_second": 50.5, "bytes_per_second": 1},
        "valid_until": NOW,
    }
).encode()
_SECRETS: Final = json.dumps(
    {
        "version": 1,
        "broadcasters": ["http://127.0.0.1:3003"],
        "to_broadcasters": {
            "type": "hmac",
            "keys": [{"id": "a", "secret": "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="}],
        },
        "to_subscribers": {
            "type": "token",
            "keys": [{"id": "b", "secret": "0123456789abcdef0123456789abcdef", "use_after": 1}],
        },
    }
).encode()
_SUBSCRIBE: Final = (
    b'{"url": "http://127.0.0.1:1/x#y", "glob": "a/*", "lease_seconds": 60, "delivery": "durable", "ordered": true, '
    b'"retry_schedule_seconds": [0, 1.5], "resume": true}'
)
_INVALID: Final = (InvalidRequest,)
_SIGNED: Final = tuple(
    _lines(
        {**vector["headers"], "signature-input": vector["signature_input"], "signature": vector["signature"]},
        "/v1/notify?topic=a",
    )
    for vector in _SIGNATURES["accepted"]
)

TARGETS: Final[dict[str, Target]] = {
    "callback_url": Target(callback_url, _INVALID, _texts(_vectors("callback_urls"))),
    "address": Target(address, (), (*_texts(_vectors("addresses")), bytes(4), bytes(16))),
    "glob": Target(glob, _INVALID, tuple(text + b"\x00a/b" for text in _texts(_vectors("globs")))),
    "mqtt_filter": Target(mqtt_filter, _INVALID, tuple(text + b"\x01a/b" for text in _texts(_vectors("mqtt_filters")))),
    "containment": Target(contained, _INVALID, (b"a/*\x01b/**\x00a/[a-c]?", b"**\x00a/**/b", b"*a*b*\x00*aab*")),
    "topic": Target(topic, _INVALID, _texts(_vectors("topics"))),
    "subscribe_json": Target(subscribe_json, (*_INVALID, ValidationError), (_SUBSCRIBE,)),
    "whole_set_json": Target(
        whole_set_json, (*_INVALID, ValidationError), (b'{"subscriptions": [{"topic_b64": "AA=="}, {"mqtt": "+/#"}]}',)
    ),
    "notify_headers": Target(
        notify_headers,
        _INVALID,
        (
            b"prefer: respond-async, wait=5\nidempotency-key: k\npubsub-deliver-at: 5\n"
            b"pubsub-expires: 2027-01-01T00:00:00Z\n",
        ),
    ),
    "signed_request": Target(signed_request, (*_INVALID, Unauthorized), _SIGNED),
    "digest": Target(digest, (*_INVALID, Unauthorized), _texts(_SIGNATURES["content_digests"])),
    "moment": Target(moment, (), (b"2026-11-21T09:30:00.5+01:00", b"120", b"Sun, 06 Nov 1994 08:49:37 GMT")),
    "delivery": Target(delivery, (*_INVALID, Unauthorized), (_DELIVERY,)),
    "webhook": Target(
        webhook,
        (*_INVALID, Unauthorized),
        tuple(_lines(vector["headers"], vector["body"]) for vector in _WEBHOOKS["accepted"]),
    ),
    "webhook_key": Target(
        webhook_key, (ConfigurationError,), _texts(_WEBHOOKS["refused_keys"], [_WEBHOOKS["sign"][0]["key"]])
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
            *(b"\n\n" + text for text in _texts(_INTENT["also_read"], _INTENT["refused_queries"])),
        ),
    ),
    "answer": Target(answer, (), _ANSWERS),
    "whole_answer": Target(whole_answer, (BadAnswer,), _ANSWERS),
    "broadcaster_json": Target(
        broadcaster_json,
        (),
        (
            b'{"id": "sub_1", "url": "http://a/", "topic": "t", "lease_seconds": 5, "created_at": '
            b'"2026-11-21T09:30:00.000000Z", "expires_at": "2026-11-22T09:30:00.000000Z"}',
            b'{"message_id": "m", "matched": 1, "notified": 1, "pending": 0, "failed": 0, "code": "gone"}',
        ),
    ),
    "shown": Target(shown, (), ("\x1b[2J\x9b\u202e\\é\n".encode(),)),
    "secrets": Target(secrets, (ConfigurationError,), (_SECRETS,)),
    "permissions": Target(permissions, (ConfigurationError,), (_KEY,)),
}
"""Every target by its name."""
