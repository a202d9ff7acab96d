"""D. Subscribing: consent, leases, quotas, secrets, patterns."""

from __future__ import annotations

import asyncio
import json
from itertools import count
from typing import Any

from httppubsubclient.protocol.globs import parse_glob
from httppubsubclient.protocol.patterns import Pattern
from httppubsubclient.protocol.topic_index import TopicIndex
from tests.hardening.support import CALLBACK, OpenDesk

NO_LEASES: list[Any] = [0, -1, 10**9, 864_001, 2**63, 1.5, 10.0, " 10", "10", "NaN", True, [60], {}]


async def test_41_a_lease_is_a_whole_number_of_seconds_within_its_bounds(open_desk: OpenDesk) -> None:
    desk = await open_desk()
    for lease in NO_LEASES:
        for answer in (
            await desk.subscribe(CALLBACK, lease_seconds=lease),
            await desk.replace(CALLBACK, {"topic": "t", "lease_seconds": lease}),
        ):
            assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request"), lease
    for literal in ("NaN", "Infinity", "-Infinity", "1e400", "1e9", "0x10", "010", "1_0", "10.", "9" * 5000):
        body = f'{{"url": "{CALLBACK}", "topic": "t", "lease_seconds": {literal}}}'
        answer = await desk.api.post(
            "/v1/subscriptions", content=body.encode(), headers={"content-type": "application/json"}
        )
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request"), literal[:20]
    assert await desk.listed() == []
    assert (await desk.made(CALLBACK))["lease_seconds"] == 86_400, "one that is not named is 24 hours"
    assert (await desk.made(CALLBACK, lease_seconds=None))["lease_seconds"] == 86_400
    for lease in (1, 864_000):
        assert (await desk.made(CALLBACK, lease_seconds=lease))["lease_seconds"] == lease


async def test_41_a_lease_ends_whatever_the_clock_does(open_desk: OpenDesk) -> None:
    now = 1_795_000_000.0
    desk = await open_desk(given={"clock": lambda: now})
    await desk.made(CALLBACK, lease_seconds=3600)
    await desk.made(CALLBACK, topic="u", lease_seconds=172_800)

    async def matched(topic: str) -> int:
        counts = await desk.notify(topic=topic, headers={"prefer": "respond-async"})
        number: int = counts["matched"]
        return number

    assert (await matched("t"), await matched("u")) == (1, 1)
    now += 3599
    assert await matched("t") == 1
    now += 1
    assert (await matched("t"), await matched("u")) == (0, 1)
    assert [one["topic"] for one in await desk.listed()] == ["u"]
    now += 86_400
    assert await matched("u") == 1
    now -= 2 * 86_400
    assert await matched("u") == 1
    now += 4 * 86_400
    assert (await matched("u"), await desk.listed()) == (0, [])


async def test_42_the_same_subscription_from_everywhere_at_once_is_one_row(open_desk: OpenDesk) -> None:
    desks = [await open_desk() for _ in range(3)]
    answers = await asyncio.gather(*(desks[number % 3].subscribe(CALLBACK, glob="a/*") for number in range(50)))
    assert sorted(answer.status_code for answer in answers) == [200] * 49 + [201]
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len(await desks[0].listed()) == 1


NO_GLOBS = [
    "[",
    "[]",
    "[!]",
    "[^]",
    "a[b",
    "[a/b]",
    "[z-a]",
    "[[:alpha:]]",
    "\\",
    "a\\",
    "",
    "x" * 1025,
    "x" * 65_536,
    "/".join("x" * 65),
    "a/**/" * 9 + "a",
    "[ab]" * 65,
    "\ud800",
]


async def test_44_a_glob_follows_its_grammar_and_its_bounds(open_desk: OpenDesk) -> None:
    desk = await open_desk()
    for text in NO_GLOBS:
        body = json.dumps({"url": CALLBACK, "glob": text}).encode()
        answer = await desk.api.post("/v1/subscriptions", content=body, headers={"content-type": "application/json"})
        assert answer.status_code in (400, 413, 422), (text[:50], answer.text)
        if answer.status_code == 422:
            assert answer.json()["code"] == "invalid_glob"
    assert await desk.listed() == []


BOMBS = [
    "*a" * 500 + "*b",
    "*a*a*a*a*b",
    "?" * 1000,
    "*" * 1000,
    "*?" * 500,
    "**/a/" * 8 + "b",
    "/".join(["*a*a*a*b"] * 60),
    "[!-~]" * 60 + "*b",
    "[a-z]*" * 64 + "!",
    "**a" * 300 + "!",
]


async def test_44_a_glob_that_would_explode_costs_as_much_as_any_other() -> None:
    """Counted in characters that are looked at, not in seconds: were it exponential, this would never end."""
    topics = [b"a" * 4096, b"a/" * 2048, (b"a" * 60 + b"/") * 60, b"/" * 4096, bytes(range(1, 256)) * 16]
    index: TopicIndex[int] = TopicIndex()
    for number, text in zip(count(), BOMBS, strict=False):
        glob = parse_glob(text)
        index.add(Pattern.glob(text), number)
        for topic in topics:
            assert glob.matches(topic) == (number in index.match(topic)), text[:40]


async def test_44_what_sql_takes_for_a_wildcard_is_an_ordinary_character(open_desk: OpenDesk) -> None:
    desk = await open_desk()
    for glob in ("100%", "a_b", "%", "_", "a'; DROP TABLE subscriptions; --", "*\x00*"):
        await desk.made(CALLBACK, glob=glob)
    at_once = {"prefer": "respond-async"}
    for topic, matched in (
        ("100%25", 1),
        ("100x", 0),
        ("a_b", 1),
        ("axb", 0),
        ("x", 0),
        ("%25", 1),
        ("_", 1),
        ("a%27%3B%20DROP%20TABLE%20subscriptions%3B%20--", 1),
        ("x%00y", 1),
        ("%FF%FE", 0),
    ):
        assert (await desk.notify(topic=topic, headers=at_once))["matched"] == matched, topic
    assert len(await desk.listed()) == 6


async def test_44_topics_are_bytes(open_desk: OpenDesk) -> None:
    desk = await open_desk()
    await desk.made(CALLBACK, topic_b64="//79")
    await desk.made(CALLBACK, glob="**")
    await desk.made(CALLBACK, mqtt="#")
    assert (await desk.notify(topic="%FF%FE%FD", headers={"prefer": "respond-async"}))["matched"] == 1
    for topic in ("", "%00" * 4097, "%", "%f", "%zz", "a+b", "a%"):
        answer = await desk.api.post(f"/v1/notify?topic={topic}")
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_topic"), topic[:10]
