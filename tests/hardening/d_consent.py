"""D. Subscribing: whom nobody may subscribe but himself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from httppubsubclient.protocol import intent
from httppubsubclient.protocol.credentials import Credentials, Secrets
from httppubsubclient.protocol.intent import Verification, parse_verification
from httppubsubclient.protocol.keys import Key
from httppubsubserver.verification import MAX_ANSWER_BYTES
from tests.hardening.support import Desk, OpenDesk
from tests.server.peers import Peer, Wire

ASKING: dict[str, Any] = {"verify_callbacks": "always", "verification_timeout_seconds": 5}

Says = Callable[[Verification], bytes]


def ok(body: bytes, status: int = 200, head: bytes = b"") -> bytes:
    return b"HTTP/1.1 %d x\r\n%bcontent-length: %d\r\n\r\n%b" % (status, head, len(body), body)


class Callback:
    """Answers questions as `says` says and takes every delivery; remembers both."""

    def __init__(self, says: Says) -> None:
        self.says = says
        self.asked: list[Verification] = []
        self.delivered = 0

    async def __call__(self, wire: Wire, number: int) -> None:
        while True:
            head, _ = await wire.request()
            method, target, _ = head.split("\r\n")[0].split(" ")
            if method == "POST":
                self.delivered += 1
                await wire.send(ok(b""))
            else:
                self.asked.append(parse_verification(target.partition("?")[2]))
                await wire.send(self.says(self.asked[-1]))


@asynccontextmanager
async def callback(says: Says) -> AsyncIterator[tuple[Callback, str]]:
    """One that listens, and its URL."""
    answering = Callback(says)
    peer = Peer(answering, "127.0.0.1", "http")
    await peer.open(None)
    try:
        yield answering, peer.callback().request_url
    finally:
        await peer.close()


def agrees(question: Verification) -> bytes:
    return ok(question.challenge.encode())


def agrees_to(*topics: bytes) -> Says:
    """To subscribing these, and to nothing else."""
    return lambda question: (
        agrees(question) if question.mode == "subscribe" and question.pattern.value in topics else ok(b"", 404)
    )


async def test_38_who_never_agreed_is_never_sent_anything(open_desk: OpenDesk) -> None:
    desk = await open_desk(**ASKING)
    async with callback(lambda _: ok(b"OK")) as (victim, url):
        for options in ({}, {"delivery": "durable"}, {"delivery": "durable", "resume": True}):
            answer = await desk.subscribe(url, **options)
            assert (answer.status_code, answer.json()["code"]) == (422, "callback_refused")
        answer = await desk.replace(url, {"topic": "t"}, {"glob": "**"})
        assert (answer.status_code, answer.json()["code"]) == (422, "callback_refused")
        assert await desk.listed() == []
        assert (await desk.notify())["matched"] == 0
        assert victim.delivered == 0
        assert 4 <= len(victim.asked) <= 5, "one small question for each new pattern"


async def test_38_it_is_asked_so_often_an_hour_and_no_more(open_desk: OpenDesk) -> None:
    desk = await open_desk(**ASKING, verifications_per_hour=5)
    async with callback(lambda _: ok(b"", 404)) as (victim, url):
        spellings = [f"{url}/{number}?n={number}#{number}" for number in range(30)]
        answers = await asyncio.gather(*(desk.subscribe(each, topic=f"t/{each}") for each in spellings))
        assert len(victim.asked) == 5
        codes = [answer.json()["code"] for answer in answers]
        assert (codes.count("callback_refused"), codes.count("quota_exceeded")) == (5, 25)
        assert all(0 < int(answer.headers["retry-after"]) <= 3600 for answer in answers if answer.status_code == 429)


def keys(*names: str) -> Secrets:
    """Bearer tokens of so many owners; deliveries need no proof."""
    return Secrets(Credentials("token", tuple(Key(name, name.encode() * 8) for name in names)), Credentials.none(), ())


def acting_as(desk: Desk, name: str) -> None:
    """One of them, from here on."""
    desk.api.headers["authorization"] = f"Bearer {name * 8}"


async def test_38_who_has_a_host_asked_in_vain_locks_out_nobody_else(open_desk: OpenDesk) -> None:
    desk = await open_desk(**ASKING, verifications_per_hour=5, secrets=keys("alice", "bob"))
    async with callback(agrees_to(b"wanted")) as (host, url):
        acting_as(desk, "alice")
        answers = [await desk.subscribe(f"{url}/{number}", topic=f"t{number}") for number in range(10)]
        codes = [answer.json()["code"] for answer in answers]
        assert (codes.count("callback_refused"), codes.count("quota_exceeded"), len(host.asked)) == (5, 5, 5)
        acting_as(desk, "bob")
        await desk.made(f"{url}/bob", topic="wanted")
        acting_as(desk, "alice")
        assert (await desk.subscribe(f"{url}/alice", topic="wanted")).status_code == 429, "that is for her alone"


async def test_38_what_a_callback_agreed_to_does_not_become_something_else(open_desk: OpenDesk) -> None:
    desk = await open_desk(**ASKING, secrets=keys("alice"))
    acting_as(desk, "alice")
    async with callback(agrees) as (victim, url):
        made = await desk.made(url, format="cloudevents-binary")
        victim.says = lambda _: ok(b"", 404)
        before = await desk.listed()
        for options in (
            {},
            {"format": "cloudevents-structured"},
            {"format": "cloudevents-binary", "delivery": "durable"},
            {"delivery": "durable", "lease_seconds": 864_000, "retry_schedule_seconds": [0, *[0.2] * 63]},
        ):
            for answer in (
                await desk.subscribe(url, **options),
                await desk.replace(url, {"topic": "t", **options}),
            ):
                assert (answer.status_code, answer.json()["code"]) == (422, "callback_refused")
        assert await desk.listed() == before
        asked = len(victim.asked)
        renewed = await desk.made(url, format="cloudevents-binary", lease_seconds=60)
        assert (renewed["id"], len(victim.asked)) == (made["id"], asked), "a renewal asks nobody"


@pytest.mark.parametrize(
    "says",
    [
        lambda question: ok(b"x" + question.challenge.encode()),
        lambda question: ok(question.challenge.encode() + b"\n"),
        lambda question: ok(question.challenge.swapcase().encode()),
        lambda question: ok(b"created", 201),
        lambda question: ok(b"", 204),
        lambda question: ok(question.challenge.encode(), 302, b"location: /other\r\n"),
        lambda question: ok(question.challenge.encode(), 404),
        lambda question: ok(2 * question.challenge.encode()),
        lambda question: ok(question.challenge.encode().ljust(MAX_ANSWER_BYTES)),
    ],
)
async def test_39_what_is_not_the_challenge_is_no_consent(open_desk: OpenDesk, says: Says) -> None:
    desk = await open_desk(**ASKING)
    async with callback(says) as (_, url):
        answer = await desk.subscribe(url)
        assert (answer.status_code, answer.json()["code"]) == (422, "callback_refused")
        assert await desk.listed() == []


async def test_39_what_comes_too_late_is_no_consent(open_desk: OpenDesk) -> None:
    desk = await open_desk(verify_callbacks="always", verification_timeout_seconds=0.1)
    ended = asyncio.Event()

    async def late(wire: Wire, number: int) -> None:
        head, _ = await wire.request()
        await wire.closed()  # as the broadcaster does when the time is over
        ended.set()
        await wire.send(agrees(parse_verification(head.split(" ")[1].partition("?")[2])))

    peer = Peer(late, "127.0.0.1", "http")
    await peer.open(None)
    answer = await desk.subscribe(peer.callback().request_url)
    assert (answer.status_code, answer.json()["code"]) == (422, "callback_unreachable")
    async with asyncio.timeout(10):
        await ended.wait()
    await peer.close()
    assert await desk.listed() == []


async def test_39_a_challenge_is_good_once_and_for_one_question(open_desk: OpenDesk) -> None:
    desk = await open_desk(**ASKING)
    first: list[str] = []

    def again(question: Verification) -> bytes:
        first.append(question.challenge)
        return ok(first[0].encode())

    async with callback(again) as (answering, url):
        assert (await desk.subscribe(url)).status_code == 201
        for topic in ("t", "u"):
            answer = await desk.subscribe(f"{url}#other", topic=topic)
            assert answer.json()["code"] == "callback_refused"
        challenges = [question.challenge for question in answering.asked]
        assert len(set(challenges)) == len(challenges) == 3
        assert all(len(challenge) >= intent.MIN_CHALLENGE_LENGTH for challenge in challenges)


async def test_40_who_does_not_agree_to_it_stays_subscribed(open_desk: OpenDesk) -> None:
    """Where nothing has to be proven; with keys only the owner comes so far (see 46)."""
    desk = await open_desk(**ASKING)
    async with callback(agrees_to(b"t")) as (victim, url):
        made = await desk.made(url)
        before = await desk.listed()
        removed = await desk.api.delete(f"/v1/subscriptions/{made['id']}")
        for answer in (removed, await desk.replace(url), await desk.replace(url, {"topic": "u"})):
            assert (answer.status_code, answer.json()["code"]) == (422, "callback_refused")
        assert await desk.listed() == before
        assert (await desk.notify())["notified"] == victim.delivered == 1
        assert {question.mode for question in victim.asked} == {"subscribe", "unsubscribe"}
        victim.says = agrees
        assert (await desk.api.delete(f"/v1/subscriptions/{made['id']}")).status_code == 204
        assert await desk.listed() == []


async def test_31_a_410_to_a_question_changes_nothing(open_desk: OpenDesk) -> None:
    """A callback that never agreed has no subscription that its 410 could end; that of one that did ends it."""
    desk = await open_desk(**ASKING)
    async with callback(agrees_to(b"t")) as (answering, url):
        await desk.made(url)
        before = await desk.listed()
        answering.says = lambda _: ok(b"", 410)
        answer = await desk.subscribe(url, topic="u")
        assert (answer.status_code, answer.json()["code"]) == (422, "callback_refused")
        assert await desk.listed() == before
        assert (await desk.notify())["notified"] == 1
