"""The parsers of the broadcaster: what it is asked, what receivers answer it, what its operator writes."""

from __future__ import annotations

import asyncio
import atexit
import json
from contextlib import suppress
from functools import cache
from typing import Any, Final

import uvicorn
from pydantic import ValidationError
from uvicorn.server import ServerState

from httppubsubclient.protocol.credentials import secrets_from_json
from httppubsubclient.protocol.errors import (
    ConfigurationError,
    Forbidden,
    InvalidRequest,
    Unauthorized,
    from_problem,
)
from httppubsubclient.protocol.messages import NotifyResult, Subscription
from httppubsubclient.protocol.permissions import permissions_from_json, permissions_to_json
from httppubsubclient.request_heads import bounded_http_protocol
from httppubsubserver.delivery.answers import AnswerReader, BadAnswer
from httppubsubserver.delivery.proxy import parse_proxy_url
from httppubsubserver.delivery.whole_answers import WholeAnswerReader
from httppubsubserver.escaping import escaped
from httppubsubserver.http_schemas import SubscribeFields, WholeSetFields
from httppubsubserver.jwt_keys import IssuerKeys, read_jwks
from httppubsubserver.jwt_tokens import JwtTokens
from httppubsubserver.vault import parse_storage_keys
from tests.fuzz.target import NOW, Target, json_of, latin
from tests.server.issuer import AUDIENCE, ISSUER, jwk, jwks, raw_token, token

__all__ = ["SERVER_TARGETS"]

# -- what it is asked -----------------------------------------------------------------------------------------------


def subscribe_json(data: bytes) -> None:
    fields = SubscribeFields.model_validate_json(data)
    fields.pattern()
    fields.options()


def whole_set_json(data: bytes) -> None:
    for entry in WholeSetFields.model_validate_json(data).subscriptions:
        entry.pattern()
        entry.options()


class _Transport(asyncio.Transport):
    """The other side of a connection that takes everything."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.written = bytearray()
        self.closed = False

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    resume_reading = pause_reading


async def _answers_nothing(scope: Any, receive: Any, send: Any) -> None:
    assert scope["path"].isascii() or scope["raw_path"]
    while (event := await receive()).get("more_body"):
        pass
    if event["type"] == "http.request":
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """One for all inputs: making one takes longer than reading any of them."""
    loop = asyncio.new_event_loop()
    atexit.register(loop.close)
    return loop


def request(data: bytes) -> None:
    """The first byte says which parser reads it, and how it is cut."""
    loop = _loop()
    failures: list[Any] = []
    loop.set_exception_handler(lambda _, context: failures.append(context))
    flags, rest = (data[0], data[1:]) if data else (0, b"")
    step = (flags >> 1) % 61 + 1
    protocol = bounded_http_protocol("h11" if flags & 1 else "httptools")
    config = uvicorn.Config(_answers_nothing, lifespan="off", ws="none", log_config=None, access_log=False)
    if not config.loaded:
        config.load()
    connection = protocol(config=config, server_state=ServerState(), app_state={}, _loop=loop)
    transport = _Transport()

    async def talk() -> None:
        connection.connection_made(transport)
        for at in range(0, len(rest), step):
            if not transport.closed:
                connection.data_received(rest[at : at + step])
                await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
        connection.connection_lost(None)
        for _ in range(5):
            await asyncio.sleep(0)

    loop.run_until_complete(talk())
    assert not failures, failures
    answer = bytes(transport.written)
    assert not answer or answer.startswith(b"HTTP/1.1 "), answer[:100]
    assert b"HTTP/1.1 500 " not in answer


def bearer(data: bytes) -> None:
    holder = _loop().run_until_complete(_TOKENS.holder(latin(data)))
    assert holder.owner.startswith("jwt:")
    raise AssertionError("nobody can sign this without the key")


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
    document = json_of(data)
    if isinstance(document, dict):
        from_problem(document.get("code"), "x")
        for read in (Subscription.from_json, NotifyResult.from_json):
            with suppress(InvalidRequest):
                read(document)


def shown(data: bytes) -> None:
    assert escaped(data).isprintable()
    assert escaped(latin(data)).isprintable()


# -- what an operator writes ----------------------------------------------------------------------------------------


def secrets(data: bytes) -> None:
    secrets_from_json(json_of(data))


def permissions(data: bytes) -> None:
    read = permissions_from_json(json_of(data), "keys[0]")
    assert permissions_from_json(permissions_to_json(read), "keys[0]") == read


def storage_keys(data: bytes) -> None:
    assert all(len(key) == 32 for key in parse_storage_keys(latin(data), "the file"))


def proxy_url(data: bytes) -> None:
    parse_proxy_url(latin(data))


def jwks_document(data: bytes) -> None:
    for key in read_jwks(data):
        assert key.algorithms
        assert not any(name.startswith("HS") or name == "none" for name in key.algorithms)


# -------------------------------------------------------------------------------------------------------------------


async def _no_keys() -> Any:
    raise ConfigurationError("there are none")


_TOKENS: Final = JwtTokens(
    issuer=ISSUER,
    audience=AUDIENCE,
    keys=IssuerKeys(_no_keys, read_jwks(jwks(jwk("P-256", "k1"))), clock=lambda: 0.0),
    clock=lambda: float(NOW),
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
_REQUEST: Final = (
    b"POST /v1/notify?topic=t HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nhelloGET / HTTP/1.1\r\nhost: x\r\n\r\n",
    b"POST /a HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n3;a=b\r\nabc\r\n0\r\nx: y\r\n\r\n",
    b"GET http://x/ HTTP/1.0\r\nconnection: keep-alive, upgrade\r\nupgrade: h2c\r\n\r\n",
)

SERVER_TARGETS: Final[dict[str, Target]] = {
    "subscribe_json": Target(subscribe_json, (InvalidRequest, ValidationError), (_SUBSCRIBE,)),
    "whole_set_json": Target(
        whole_set_json,
        (InvalidRequest, ValidationError),
        (b'{"subscriptions": [{"topic_b64": "AA=="}, {"mqtt": "+/#"}]}',),
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
    "request": Target(request, (), tuple(bytes([flag]) + one for one in _REQUEST for flag in (0, 1, 120, 121))),
    "bearer": Target(
        bearer,
        (Unauthorized, Forbidden),
        (
            raw_token(b'{"alg": "ES256", "kid": "k1", "typ": "JWT"}', b'{"sub": "a"}').encode(),
            raw_token(b'{"alg": "none"}', signature=b"").encode(),
            token(kid="k2").encode(),
        ),
    ),
    "storage_keys": Target(storage_keys, (ConfigurationError,), (b"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n",)),
    "proxy_url": Target(
        proxy_url, (ConfigurationError,), (b"http://user:pass%40word@127.0.0.1:3128", b"http://[::1]:1")
    ),
    "jwks_document": Target(jwks_document, (ConfigurationError,), (jwks(jwk("P-256", "k1"), jwk("Ed25519", "k2")),)),
}
"""Every target by its name."""
