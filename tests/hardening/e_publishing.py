"""E. Publishing: proofs, idempotency, bodies, headers, ids."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from httppubsubclient.protocol.credentials import Credentials, Key, Secrets, sign_request
from httppubsubclient.protocol.messages import MESSAGE_ID, SubscribeRequest
from httppubsubclient.protocol.patterns import Pattern
from httppubsubclient.protocol.permissions import Permissions
from httppubsubclient.protocol.signatures import content_digest
from tests.e2e.processes import Process, Site
from tests.e2e.test_raw_connections import connected, everything
from tests.hardening.support import OpenDesk, OpenReceivers, until

NOBODY = Credentials.none()
GOOD, OLD, LATER = (base64.b64encode(hashlib.sha256(name).digest()) for name in (b"good", b"old", b"later"))


def tokens(now: float) -> Secrets:
    keys = (Key("good", GOOD), Key("old", OLD, valid_until=now - 1))
    return Secrets(Credentials("token", keys), NOBODY, ())


async def test_46_without_a_proof_that_holds_nothing_is_published_and_no_token_is_logged(
    open_desk: OpenDesk, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "httppubsub")
    desk = await open_desk(secrets=tokens(time.time()))
    good, old = GOOD.decode(), OLD.decode()
    attempts: list[tuple[str, dict[str, str]]] = [
        ("", {}),
        ("", {"authorization": f"Bearer {old}"}),
        ("", {"authorization": f"Bearer {LATER.decode()}"}),
        ("", {"authorization": "Bearer "}),
        ("", {"authorization": "Bearer"}),
        ("", {"authorization": good}),
        ("", {"authorization": f"Basic {good}"}),
        ("", {"authorization": f"Token {good}"}),
        ("", {"authorization": f"Bearer {good}, Bearer {good}"}),
        ("", {"authorization": f"Bearer {good} x"}),
        ("", {"authorization": f"Bearer {good[:-1]}"}),
        ("", {"authorization": f"Bearer {good.lower()}"}),
        ("", {"proxy-authorization": f"Bearer {good}"}),
        ("", {"x-api-key": good, "cookie": f"token={good}; access_token={good}"}),
        (f"&access_token={good}", {}),
        (f"&token={good}", {}),
        (f"&authorization=Bearer%20{good}", {}),
    ]
    for query, headers in attempts:
        for method, path in (
            ("POST", f"/v1/notify?topic=t{query}"),
            ("GET", f"/v1/subscriptions?limit=1{query}"),
            ("POST", f"/v1/subscriptions?x{query}"),
            ("PUT", f"/v1/subscriptions?url=http://127.0.0.1:2000/{query}"),
            ("GET", f"/v1/subscriptions/sub_1?x{query}"),
            ("DELETE", f"/v1/subscriptions/sub_1?x{query}"),
            ("GET", f"/v1/deliveries?x{query}"),
            ("GET", f"/v1/messages/msg_1?x{query}"),
            ("GET", f"/v1/messages/msg_1/body?x{query}"),
            ("DELETE", f"/v1/messages/msg_1?x{query}"),
            ("POST", f"/v1/deliveries/replay?x{query}"),
            ("GET", f"/v1/deliveries/replays/1?x{query}"),
            ("GET", f"/v1/subscriptions/sub_1/messages?after=0{query}"),
        ):
            answer = await desk.api.request(method, path, headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized"), (method, path, headers)
            assert answer.headers["www-authenticate"].startswith("Bearer")
            assert good not in answer.text
    told = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("httppubsub"))
    assert good not in told
    assert old not in told
    answer = await desk.api.post("/v1/notify?topic=t", headers={"authorization": f"bEaReR  {good}"})
    assert answer.status_code == 200


async def test_46_a_signature_is_of_one_request_of_now_by_a_key_of_this_direction(open_desk: OpenDesk) -> None:
    now = int(time.time())
    ours, theirs = Key("to-broadcasters", b"b" * 16 + b"x" * 16), Key("to-subscribers", b"s" * 16 + b"y" * 16)
    desk = await open_desk(secrets=Secrets(Credentials("hmac", (ours,)), Credentials("hmac", (theirs,)), ()))

    def signed(key: Key = ours, at: int = now, body: bytes = b"x", **options: Any) -> dict[str, str]:
        nonce = base64.urlsafe_b64encode(hashlib.sha256(repr((key.id, at, options)).encode()).digest()[:18]).decode()
        digest = {"content-digest": content_digest(hashlib.sha256(body).digest())}
        asked = {"method": "POST", "path": "/v1/notify", "query": "topic=t", "nonce": nonce, **options}
        return digest | sign_request(Credentials("hmac", (key,)), headers=digest, now=at, **asked)

    refused = [
        signed(theirs),
        signed(Key("to-broadcasters", theirs.secret)),
        signed(Key("nobody", ours.secret)),
        signed(at=now - 400),
        signed(at=now + 400),
        signed(query="topic=u"),
        signed(path="/v1/notify/"),
        signed(path="/v1/subscriptions"),
        signed(method="PUT"),
        {**signed(nonce="a" * 22), "content-digest": content_digest(hashlib.sha256(b"y").digest())},
        {name: value for name, value in signed(nonce="b" * 22).items() if name != "content-digest"},
    ]
    for headers in refused:
        answer = await desk.api.post("/v1/notify?topic=t", content=b"x", headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized"), headers
    good = signed(nonce="c" * 22)
    answers = await asyncio.gather(
        *(desk.api.post("/v1/notify?topic=t", content=b"x", headers=good) for _ in range(20))
    )
    assert sorted(answer.status_code for answer in answers) == [200] + [401] * 19


async def test_46_a_key_publishes_where_it_may_and_the_refusal_names_the_topic(open_desk: OpenDesk) -> None:
    partner = Key("partner", GOOD, permissions=Permissions(publish=("orders/eu/**",), subscribe=("status",)))
    desk = await open_desk(secrets=Secrets(Credentials("token", (partner,)), NOBODY, ()))
    desk.api.headers["authorization"] = f"Bearer {GOOD.decode()}"
    read = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal read
        read += 1
        yield b"x"

    for topic in ("orders", "orders/us/1", "status", "%FF", "orders/eu%00", "Orders/eu/1", "orders/eu/../us"):
        answer = await desk.api.post(f"/v1/notify?topic={topic}", content=body())
        if topic == "orders/eu/../us":
            assert answer.status_code == 200, "topics have no dot segments"
            continue
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden"), topic
        assert topic.split("%")[0] in answer.json()["detail"]
    assert read == 1, "before a byte of the body is read"
    for glob in ("**", "*", "stat?s", "status/**", "[s]tatu[st]"):
        answer = await desk.subscribe("http://127.0.0.1:2000/", glob=glob)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden"), glob
    assert (await desk.subscribe("http://127.0.0.1:2000/", glob="status")).status_code == 201
    permanent = await desk.subscribe("http://127.0.0.1:2000/", topic="status", permanent=True)
    assert (permanent.status_code, permanent.json()["code"]) == (403, "forbidden")


async def test_46_a_token_in_the_query_is_not_written_to_the_log_of_requests(tmp_path: Path) -> None:
    async with serving(tmp_path, "--log-level", "debug") as url, connected(url) as (reader, writer):
        request = "GET /v1/health/live?access_token=canary-token-7f3a9b2c HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
        writer.write(request.encode() + b"authorization: Bearer canary-token-7f3a9b2c\r\n\r\n")
        assert (await everything(reader)).startswith(b"HTTP/1.1 200 ")
    process = LAST[-1]
    assert any("/v1/health/live" in line for line in process.errors), "requests are logged at this level"
    assert "canary-token" not in process.output()


async def test_47_one_key_is_one_message_and_another_message_is_a_conflict(
    open_desk: OpenDesk, hostile: OpenReceivers
) -> None:
    desks = [await open_desk(), await open_desk()]
    [receiver] = await hostile("accept")
    await desks[0].made(f"http://127.0.0.1:{receiver.port}/")
    key = {"idempotency-key": "order-17"}
    answers = await asyncio.gather(
        *(desks[number % 2].api.post("/v1/notify?topic=t", content=b"x", headers=key) for number in range(50))
    )
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) == 1
    assert len(receiver.requests) == 1
    for other in (
        desks[0].api.post("/v1/notify?topic=t", content=b"y", headers=key),
        desks[1].api.post("/v1/notify?topic=u", content=b"x", headers=key),
        desks[0].api.post("/v1/notify?topic=t", content=b"x", headers={**key, "content-type": "a/b"}),
    ):
        answer = await other
        assert (answer.status_code, answer.json()["code"]) == (422, "conflict")
    assert len(receiver.requests) == 1
    for bad in ("", " ", "a b", "x" * 256, "a\tb", "\u00e9"):
        answer = await desks[0].api.post("/v1/notify?topic=t", headers={b"idempotency-key": bad.encode()})
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request"), bad


async def test_48_a_body_beyond_the_limit_is_refused_while_it_arrives(open_desk: OpenDesk) -> None:
    desk = await open_desk(max_body_bytes=1000, spool_bytes=100)
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        while read < 50_000_000:
            read += 1000
            yield bytes(1000)

    assert (await desk.api.post("/v1/notify?topic=t", content=bytes(1000))).status_code == 200
    for content in (bytes(1001), endless()):
        answer = await desk.api.post("/v1/notify?topic=t", content=content)
        assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    for encoding in ("gzip", "br", "zstd", "deflate", "gzip, identity", "x"):
        answer = await desk.api.post("/v1/notify?topic=t", content=b"x", headers={"content-encoding": encoding})
        assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")
    large = await desk.api.post("/v1/subscriptions", content=b" " * 100_000)
    assert (large.status_code, large.json()["code"]) == (413, "too_large")


@asynccontextmanager
async def serving(tmp_path: Path, *options: str) -> AsyncIterator[str]:
    """A broadcaster process without authentication: nothing but the form of a request is in its way."""
    site = await Site.make(tmp_path / "site", "--to-broadcasters-auth", "none", "--to-subscribers-auth", "none")
    async with site.serve(*options) as process:
        LAST[:] = [process]
        yield await process.url()


LAST: list[Process] = []
"""The process that was started last."""


async def test_49_too_many_headers_and_too_long_ones_are_refused_before_anything_else(tmp_path: Path) -> None:
    heads = {
        "200 headers": "".join(f"x-{number}: y\r\n" for number in range(200)),
        "100 kB": f"x: {'y' * 100_000}\r\n",
        "100 kB of a name": f"{'y' * 100_000}: x\r\n",
        "many large ones": "".join(f"x-{number}: {'y' * 5000}\r\n" for number in range(20)),
    }
    async with serving(tmp_path) as url:
        for name, head in heads.items():
            async with connected(url) as (reader, writer):
                with suppress(ConnectionError):
                    writer.write(f"POST /v1/notify?topic=t HTTP/1.1\r\nhost: x\r\n{head}\r\n".encode())
                    await writer.drain()
                answer = await everything(reader)
            assert answer.startswith(b"HTTP/1.1 431 "), (name, answer[:200])
            assert b"application/problem+json" in answer
        async with connected(url) as (reader, writer):
            writer.write(b"POST /v1/notify?topic=" + b"t" * 30_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await everything(reader)).startswith(b"HTTP/1.1 414 ")


FRAMINGS = [
    "content-length: -1",
    "content-length: +1",
    "content-length: 0x1",
    "content-length: 1, 2",
    "content-length: 1\r\ncontent-length: 2",
    "content-length: 99999999999999999999",
    "content-length: 1\r\ntransfer-encoding: chunked",
    "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
    "transfer-encoding: gzip, chunked",
    "transfer-encoding: xchunked",
    "transfer-encoding: chunked, identity",
    "transfer-encoding : chunked",
    "content-length : 1",
    "x: a\r\n content-length: 1",
    "x: a\x00b",
    "\x00: a",
    "no colon",
    ": empty",
]


async def test_48_odd_framings_are_refused_and_nothing_behind_them_is_read(tmp_path: Path) -> None:
    smuggled = b"GET /v1/health/live HTTP/1.1\r\nhost: x\r\n\r\n"
    async with serving(tmp_path) as url:
        for framing in FRAMINGS:
            async with connected(url) as (reader, writer):
                head = f"POST /v1/notify?topic=t HTTP/1.1\r\nhost: x\r\n{framing}\r\n\r\n".encode("latin-1")
                writer.write(head + b"0\r\n\r\n" + smuggled)
                writer.write_eof()
                answer = await everything(reader)
            assert answer == b"" or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 501 ")), (framing, answer)
            assert b'"live"' not in answer, framing
            assert answer == b"" or b"application/problem+json" in answer, framing


HEADERS_OF_OTHERS = {
    "webhook-id": "msg_mine",
    "webhook-timestamp": "1",
    "webhook-signature": "v1,AAAA",
    "host": "elsewhere.example",
    "connection": "x-hop",
    "x-hop": "1",
    "authorization": "Bearer other",
    "proxy-authorization": "Basic x",
    "proxy-connection": "keep-alive",
    "x-amz-date": "1",
    "x-goog-meta": "1",
    "cookie": "a=b",
    "pubsub-topic": "other",
    "pubsub-subscription": "sub_other",
    "pubsub-attempt": "7",
    "pubsub-sequence": "7",
    "pubsub-previous": "msg_other",
    "pubsub-fragment": "other",
    "signature": "sig1=:AAAA:",
    "signature-input": "sig1=()",
    "x-forwarded-for": "10.0.0.1",
    "forwarded": "for=10.0.0.1",
    "user-agent": "mine",
    "ce-id": "1",
    "transfer-encoding-x": "1",
    "expect-x": "1",
}


async def test_49_headers_of_a_publisher_go_nowhere_but_the_three_that_are_meant_to(
    open_desk: OpenDesk, hostile: OpenReceivers
) -> None:
    desk = await open_desk()
    [receiver] = await hostile("accept")
    await desk.made(f"http://127.0.0.1:{receiver.port}/")
    counts = await desk.notify(headers=HEADERS_OF_OTHERS)
    [request] = receiver.requests
    assert set(request["headers"]) <= {
        *("host", "user-agent", "accept", "accept-encoding", "content-type", "content-length", "content-digest"),
        *("webhook-id", "webhook-timestamp", "pubsub-topic", "pubsub-subscription", "pubsub-attempt", "pubsub-hops"),
    }
    assert request["headers"]["webhook-id"] == counts["message_id"]
    for name, value in HEADERS_OF_OTHERS.items():
        assert request["headers"].get(name) != value, name


async def test_49_a_content_type_that_is_no_header_is_refused(open_desk: OpenDesk) -> None:
    desk = await open_desk()
    bad = ["a/b\r\nx: y", "a/b\nx", "a/b\x00", "a/b\u00e9", "a/b\x7f", "a\tb", "a" * 257]
    for value in bad:
        answer = await desk.api.post("/v1/notify?topic=t", headers={b"content-type": value.encode()})
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request"), ascii(value)


async def test_51_ids_are_made_here_and_have_no_dot(open_desk: OpenDesk, hostile: OpenReceivers) -> None:
    desk = await open_desk()
    [receiver] = await hostile("accept")
    await desk.made(f"http://127.0.0.1:{receiver.port}/")
    asked = ("a.b", "a\tb", "x" * 300, "msg_1", "")
    ids = [(await desk.notify(headers={"webhook-id": wanted, "message-id": wanted}))["message_id"] for wanted in asked]
    assert len(set(ids)) == len(asked)
    assert all(MESSAGE_ID.fullmatch(message_id) and message_id not in asked for message_id in ids)
    assert [request["headers"]["webhook-id"] for request in receiver.requests] == ids


async def test_52_a_message_for_very_many_is_owed_to_all_or_to_none(open_desk: OpenDesk, tmp_path: Path) -> None:
    """1200 durable subscriptions in one publish; at the 1000th row the database fails."""
    desk = await open_desk(max_durable_in_flight=1)
    many = 1200
    for start in range(0, many, 400):
        await asyncio.gather(
            *(
                desk.broadcaster.subscribe(
                    SubscribeRequest(f"http://127.0.0.1:9000/{number}", Pattern.exact(b"t"), 3600, "durable")
                )
                for number in range(start, start + 400)
            )
        )
    trigger = (
        "CREATE TRIGGER trouble BEFORE INSERT ON deliveries WHEN "
        "(SELECT count(*) FROM deliveries) >= 1000 BEGIN SELECT RAISE(ABORT, 'trouble'); END"
    )
    database = sqlite3.connect(tmp_path / "pubsub.sqlite3")
    database.execute(trigger)
    database.commit()
    answer = await desk.api.post("/v1/notify?topic=t", content=b"x", headers={"prefer": "respond-async"})
    assert answer.status_code >= 500
    assert database.execute("SELECT count(*) FROM deliveries").fetchone() == (0,)
    database.execute("DROP TRIGGER trouble")
    database.commit()
    counts = await desk.notify(headers={"prefer": "respond-async"})
    assert counts["matched"] == many
    assert database.execute("SELECT count(*) FROM deliveries").fetchone() == (many,)
    database.close()


async def test_52_best_effort_to_very_many_keeps_within_its_bounds(open_desk: OpenDesk, hostile: OpenReceivers) -> None:
    desk = await open_desk(max_in_flight=20, max_in_flight_per_host=20)
    [receiver] = await hostile("accept")
    for number in range(150):
        await desk.made(f"http://127.0.0.1:{receiver.port}/{number}")
    assert (await desk.notify())["notified"] == 150
    assert receiver.connections <= 20
    await until(lambda: len(receiver.requests) == 150)
