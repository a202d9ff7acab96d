"""G. What is kept: crashes, two broadcasters, secrets, what is signed."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
import signal
import sqlite3
import time
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest

from httppubsubclient.protocol.credentials import Credentials, Key, Secrets, sign_request, verify_delivery
from httppubsubclient.protocol.errors import ConfigurationError, Unauthorized
from httppubsubclient.protocol.signatures import content_digest
from httppubsubclient.protocol.standard_webhooks import SharedSecret, parse_key, verify
from httppubsubserver.provision import rotate, set_up
from httppubsubserver.stores import open_store
from tests.e2e.processes import Site
from tests.e2e.receivers import open_receivers
from tests.hardening.support import Desk, OpenDesk, OpenReceivers, storage_key
from tests.stores.conftest import NOW
from tests.stores.durable_stores import (
    LEASE,
    accept_all,
    again,
    claim,
    dead,
    delivered,
    durable,
    gone,
    settle,
    states,
)


async def test_65_what_was_accepted_before_a_kill_arrives_after_it(tmp_path: Path) -> None:
    """One kill right after the answers, one within the attempts; `scripts/soak torture` kills at every point."""
    site = await Site.make(tmp_path / "site", "--to-broadcasters-auth", "none", "--to-subscribers-auth", "none")
    lease = ("--attempt-timeout-seconds", "1", "--delivery-lease-seconds", "11")
    async with open_receivers("hang", "accept") as (hanging, good):
        ids = []
        async with site.serve(*lease) as process, httpx.AsyncClient(base_url=await process.url()) as api:
            for receiver in (hanging, good):
                wanted = {
                    "url": f"http://127.0.0.1:{receiver.port}/",
                    "topic": f"t{receiver.port}",
                    "delivery": "durable",
                }
                assert (await api.post("/v1/subscriptions", json=wanted)).status_code == 201
            at_once = {"prefer": "respond-async"}
            for number in range(20):
                topic = f"t{(hanging, good)[number % 2].port}"
                answer = await api.post(f"/v1/notify?topic={topic}", content=b"%d" % number, headers=at_once)
                assert answer.status_code in (200, 202)
                ids.append(answer.json()["message_id"])
            process.signal(signal.SIGKILL)
            await process.ended()
        async with site.serve(*lease) as process, httpx.AsyncClient(base_url=await process.url()) as api:
            documents = [(await api.get(f"/v1/messages/{message_id}")).json() for message_id in ids]
            states = [document["deliveries"][0]["state"] for document in documents]
            assert set(states) <= {"pending", "delivered"}, "none is lost"
            await good.until(lambda: set(ids[1::2]) <= {one["headers"]["webhook-id"] for one in good.requests})
        bodies = {(one["headers"]["webhook-id"], one["body"]) for one in good.requests}
        assert len(bodies) == 10, "what comes twice comes with the same id"


async def test_68_the_result_of_a_lease_that_is_over_does_not_count(tmp_path: Path) -> None:
    """Two holders of one database; the second claims when the lease of the first has ended."""
    url = f"sqlite:///{tmp_path}/pubsub.sqlite3"
    async with open_store(url) as first, open_store(url) as second:
        await accept_all(first, ["m"], [await durable(first)])
        [slow] = await claim(first, holder="first")
        assert await claim(second, holder="second", now=NOW + LEASE - 1) == ()
        [quick] = await claim(second, holder="second", now=NOW + LEASE)
        assert [claimed.attempt for claimed in (slow, quick)] == [1, 2], "at most one more"
        for late in (delivered(slow), again(slow), dead(slow), gone(slow)):
            assert await settle(first, late, now=NOW + LEASE + 1) == [False]
        assert await settle(second, delivered(quick), now=NOW + LEASE + 2) == [True]
        assert [state for state, _ in (await states(first)).values()] == ["delivered"]


async def test_70_an_old_key_counts_until_its_end_and_not_a_second_longer() -> None:
    now = 1_795_000_000
    old, new = (
        Key("old", b"o" * 16 + b"1" * 16, valid_until=now + 10),
        Key("new", b"n" * 16 + b"2" * 16, use_after=now + 5),
    )
    both = Credentials("hmac", (old, new))
    assert [both.signing_key(now + late).id for late in (0, 4, 5, 60)] == ["old", "old", "new", "new"]


def test_70_rotating_again_and_again_ends_with_a_clear_error_and_files_that_work(tmp_path: Path) -> None:
    set_up(tmp_path)
    files = [tmp_path / f"{side}-secrets.json" for side in ("broadcaster", "subscriber")]

    def again_and_again() -> None:
        for _ in range(20):
            rotate(tmp_path, grace_seconds=3600)

    with pytest.raises(ConfigurationError, match="rotate again after that"):
        again_and_again()
    before = [file.read_text() for file in files]
    document = json.loads(before[0])
    keys = [key for direction in ("to_broadcasters", "to_subscribers") for key in document[direction]["keys"]]
    assert len({key["id"] for key in keys}) == len({key["secret"] for key in keys}) == len(keys)
    with pytest.raises(ConfigurationError):
        rotate(tmp_path, grace_seconds=3600)
    assert [file.read_text() for file in files] == before
    rotate(tmp_path, grace_seconds=0)
    assert len(json.loads(files[0].read_text())["to_broadcasters"]["keys"]) == 1


def holds(request: dict[str, Any], *secrets: str) -> list[bool]:
    """Whether a delivery is signed with each of these, as far as it is no older than a day."""
    found = []
    for secret in secrets:
        key = parse_key(secret)
        assert isinstance(key, SharedSecret)
        try:
            verify([key], request["headers"], request["body"].encode(), now=time.time(), tolerance_seconds=10**9)
        except Unauthorized:
            found.append(False)
        else:
            found.append(True)
    return found


async def test_59_the_token_of_all_goes_to_no_stranger_who_was_there_before(
    open_desk: OpenDesk, hostile: OpenReceivers, tmp_path: Path
) -> None:
    """Settings that were others when he subscribed change nothing about it."""

    async def resolve(host: str, port: int) -> list[str]:
        return ["127.0.0.1"]

    [receiver] = await hostile("accept")
    url = f"http://partner.example:{receiver.port}/"
    key = Key("shared", b"shared-token-" + bytes(range(48, 80)))
    settings: dict[str, Any] = {
        "given": {"resolver": resolve},
        "callback_ports": ("all",),
        "verify_callbacks": "never",
        "storage_key_file": storage_key(tmp_path),
    }

    async def desk_with(proof: Literal["hmac", "token"], *networks: str) -> Desk:
        secrets = Secrets(Credentials.none(), Credentials(proof, (key,)), ())
        return await open_desk(secrets=secrets, callback_networks=networks, **settings)

    for before in (await desk_with("hmac", "loopback", "public"), await desk_with("token", "loopback")):
        for form in ("raw", "cloudevents-binary"):
            await before.made(url, topic=f"{form}/{id(before)}", format=form)
    public = await desk_with("token", "loopback", "public")
    topics = [each["topic"] for each in await public.listed()]
    assert len(topics) == 4
    for topic in topics:
        assert (await public.notify(topic=topic))["failed"] == 1
    assert not receiver.requests
    for topic in topics:
        form = topic.partition("/")[0]
        await public.made(url, topic=topic, format=form, secret="generate")
        assert (await public.notify(topic=topic))["notified"] == 1
        assert "authorization" not in receiver.requests[-1]["headers"]


async def test_70_an_old_secret_signs_until_its_grace_is_over(
    open_desk: OpenDesk, hostile: OpenReceivers, tmp_path: Path
) -> None:
    now = time.time()
    desk = await open_desk(storage_key_file=storage_key(tmp_path), given={"clock": lambda: now})
    [receiver] = await hostile("accept")
    url = f"http://127.0.0.1:{receiver.port}/"
    old = (await desk.made(url, secret="generate"))["secret"]
    new = (await desk.made(url, secret="generate", secret_grace_seconds=60))["secret"]
    for later, expected in ((0, [True, True]), (59, [True, True]), (2, [False, True]), (86_000, [False, True])):
        now += later
        assert (await desk.notify())["notified"] == 1
        assert holds(receiver.requests[-1], old, new) == expected, later
    assert not {"signature", "signature-input", "authorization"} & set(receiver.requests[-1]["headers"])


async def test_70_rotating_a_secret_again_and_again_ends_with_429_and_one_that_works(
    open_desk: OpenDesk, hostile: OpenReceivers, tmp_path: Path
) -> None:
    desk = await open_desk(storage_key_file=storage_key(tmp_path))
    [receiver] = await hostile("accept")
    url = f"http://127.0.0.1:{receiver.port}/"
    answers = [await desk.subscribe(url, secret="generate", secret_grace_seconds=600) for _ in range(20)]
    good = [answer.json()["secret"] for answer in answers if answer.status_code < 300]
    assert [answer.status_code for answer in answers[len(good) :]] == [429] * (20 - len(good))
    assert answers[-1].json()["code"] == "quota_exceeded"
    assert 0 < int(answers[-1].headers["retry-after"]) <= 600
    assert (await desk.notify())["notified"] == 1
    assert holds(receiver.requests[-1], *good) == [True] * len(good)
    assert len(receiver.requests[-1]["headers"]["webhook-signature"].split(" ")) == len(good) <= 10
    ended = await desk.made(url, secret="generate", secret_grace_seconds=0)
    await desk.notify()
    assert holds(receiver.requests[-1], *good, ended["secret"]) == [False] * len(good) + [True]


async def test_70_there_is_no_way_down_from_v1a_without_saying_so(open_desk: OpenDesk, tmp_path: Path) -> None:
    desk = await open_desk(storage_key_file=storage_key(tmp_path))
    url = "http://127.0.0.1:2000/"
    made = await desk.made(url, secret="generate-v1a")
    refused = await desk.subscribe(url, secret="generate")
    assert 400 <= refused.status_code < 500, refused.text
    [kept] = await desk.listed()
    assert (kept["signature"], kept["public_key"]) == ("v1a", made["public_key"])
    assert (await desk.made(url, secret="generate", allow_downgrade=True))["signature"] == "v1"


async def test_70_secrets_are_sealed_where_they_are_kept(
    open_desk: OpenDesk, hostile: OpenReceivers, tmp_path: Path
) -> None:
    desk = await open_desk(storage_key_file=storage_key(tmp_path))
    [receiver] = await hostile("accept")
    made = [
        await desk.made(f"http://127.0.0.1:{receiver.port}/{number}", secret="generate", topic=f"t{number}")
        for number in range(2)
    ]
    await desk.notify(topic="t0")
    forms = []
    for one in made:
        raw = base64.b64decode(one["secret"].removeprefix("whsec_"))
        forms += [raw, one["secret"][6:].encode(), raw.hex().encode(), raw[:16]]
    files = [file for file in tmp_path.iterdir() if file.name.startswith("pubsub.sqlite3")]
    assert files
    for file in files:
        content = file.read_bytes()
        assert not any(form in content for form in forms), file.name
    # What was sealed for one subscription opens nothing of another.
    database = sqlite3.connect(tmp_path / "pubsub.sqlite3")
    [(sealed,)] = database.execute("SELECT sealed FROM subscriptions WHERE id = ?", (made[1]["id"],))
    database.execute("UPDATE subscriptions SET sealed = ? WHERE id = ?", (sealed, made[0]["id"]))
    database.commit()
    database.close()
    before = len(receiver.requests)
    other = await open_desk(storage_key_file=tmp_path / "storage-key")
    assert (await other.notify(topic="t0"))["failed"] == 1
    assert len(receiver.requests) == before, "rather nothing than something signed with the wrong key"


async def test_72_a_publisher_chooses_nothing_of_what_a_delivery_is_signed_over_but_topic_and_body(
    open_desk: OpenDesk, hostile: OpenReceivers
) -> None:
    to_broadcasters, to_subscribers = Key("a", b"a" * 16 + b"1" * 16), Key("b", b"b" * 16 + b"2" * 16)
    desk = await open_desk(
        secrets=Secrets(Credentials("hmac", (to_broadcasters,)), Credentials("hmac", (to_subscribers,)), ())
    )
    now = int(time.time())
    counter = itertools.count()

    async def call(method: str, path: str, query: str, body: bytes, **headers: str) -> httpx.Response:
        digest = {"content-digest": content_digest(hashlib.sha256(body).digest())} if body else {}
        nonce = f"{next(counter):022d}"
        proof = sign_request(
            Credentials("hmac", (to_broadcasters,)),
            method=method,
            path=path,
            query=query,
            headers=digest,
            now=now,
            nonce=nonce,
        )
        url = f"{path}?{query}" if query else path
        return await desk.api.request(method, url, content=body, headers={**headers, **digest, **proof})

    [receiver] = await hostile("accept")
    wanted = json.dumps({"url": f"http://127.0.0.1:{receiver.port}/", "topic": "t"}).encode()
    assert (
        await call("POST", "/v1/subscriptions", "", wanted, **{"content-type": "application/json"})
    ).status_code == 201
    chosen = {
        "webhook-id": "msg_chosen",
        "webhook-timestamp": "1",
        "pubsub-attempt": "9",
        "pubsub-subscription": "sub_chosen",
        "signature-input-x": "1",
    }
    for _ in range(2):
        assert (await call("POST", "/v1/notify", "topic=t", b"x", **chosen)).status_code == 200
    nonces = set()
    for request in receiver.requests:
        headers = request["headers"]
        proof = verify_delivery(
            Credentials("hmac", (to_subscribers,)),
            method="POST",
            headers=headers,
            now=time.time(),
            tolerance_seconds=300,
        )
        nonces.add(proof.nonce)
        assert headers["pubsub-attempt"] == "1"
        assert not [name for name, value in chosen.items() if headers.get(name) == value]
        assert re.search(r";created=(\d+);", headers["signature-input"])
    assert len(nonces) == 2
    # What is signed towards the broadcaster is signed with another key, over other components: none can be used as one.
    assert base64.b64encode(to_broadcasters.secret) != base64.b64encode(to_subscribers.secret)
