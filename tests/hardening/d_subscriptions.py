"""D. Subscribing: consent, leases, quotas, secrets, patterns."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
from itertools import count
from pathlib import Path
from typing import Any

from httppubsubclient.protocol.credentials import Credentials, Key, Secrets
from httppubsubclient.protocol.globs import parse_glob
from httppubsubclient.protocol.patterns import Pattern
from httppubsubclient.protocol.permissions import Permissions, Quotas
from httppubsubclient.protocol.standard_webhooks import PrivateKey
from httppubsubclient.protocol.topic_index import TopicIndex
from tests.hardening.support import CALLBACK, Asked, OpenAsked, OpenDesk, answered, echo, storage_key


def question_of(asked: Asked) -> dict[str, str]:
    return asked.questions[-1]


async def test_38_who_did_not_agree_is_sent_nothing_and_asked_only_so_often(
    open_desk: OpenDesk, open_asked: OpenAsked
) -> None:
    desk = await open_desk(verify_callbacks="always", verifications_per_hour=4)
    asked = await open_asked()
    asked.answer = lambda _: answered(404, b"no")
    answers = [await desk.subscribe(asked.url(f"/{number}"), topic=f"t{number}") for number in range(20)]
    codes = [(answer.status_code, answer.json()["code"]) for answer in answers]
    assert set(codes) == {(422, "callback_refused"), (429, "quota_exceeded")}
    assert len(asked.questions) == codes.count((422, "callback_refused")) <= 4
    assert int(answers[-1].headers["retry-after"]) > 0
    came_in = min(
        len(answer.request.content) + sum(len(name) + len(value) + 4 for name, value in answer.request.headers.raw)
        for answer in answers
    )
    assert max(asked.sizes) <= came_in + 300, "a question is hardly larger than what caused it, and has no body"
    asked_again = await desk.replace(asked.url(), *({"topic": f"u{number}"} for number in range(50)))
    assert asked_again.status_code == 429
    assert len(asked.questions) <= 4
    for number in range(20):
        assert (await desk.notify(topic=f"t{number}"))["matched"] == 0
    assert (await desk.listed(), asked.bodies) == ([], [])
    asked.answer = echo
    other = await open_desk(verify_callbacks="always")
    await other.made(asked.url(), glob="a/*", lease_seconds=60)
    question = question_of(asked)
    assert question["hub.mode"] == "subscribe"
    assert (question["hub.topic"], question["pubsub.kind"], question["hub.lease_seconds"]) == ("a/*", "glob", "60")
    assert (await other.notify(topic="a/b"))["notified"] == 1


NO_CONSENT: dict[str, Any] = {
    "prefix": lambda challenge: answered(200, b"x" + challenge.encode()),
    "suffix": lambda challenge: answered(200, challenge.encode() + b"x"),
    "newline": lambda challenge: answered(200, challenge.encode() + b"\n"),
    "other case": lambda challenge: answered(200, challenge.swapcase().encode()),
    "half": lambda challenge: answered(200, challenge[:-1].encode()),
    "quoted": lambda challenge: answered(200, f'"{challenge}"'.encode(), "content-type: application/json"),
    "doubled": lambda challenge: answered(200, 2 * challenge.encode()),
    "empty": lambda _: answered(200, b""),
    "no content": lambda _: b"HTTP/1.1 204 No Content\r\n\r\n",
    "in a header": lambda challenge: answered(200, b"", f"hub.challenge: {challenge}"),
    "201 and another body": lambda _: answered(201, b"created"),
    "404 and the challenge": lambda challenge: answered(404, challenge.encode()),
    "500 and the challenge": lambda challenge: answered(500, challenge.encode()),
    "redirect": lambda challenge: answered(302, challenge.encode(), "location: /elsewhere"),
    "redirect 308": lambda challenge: answered(308, challenge.encode(), "location: /elsewhere"),
    "gzip": lambda challenge: answered(200, gzip.compress(challenge.encode()), "content-encoding: gzip"),
    "utf-16": lambda challenge: answered(200, challenge.encode("utf-16"), "content-type: text/plain; charset=utf-16"),
    "not HTTP": lambda challenge: challenge.encode() + b"\r\n\r\n",
    "one that was used": lambda _: answered(200, b"A" * 32),
    "never": lambda _: None,
    "a long body": lambda challenge: answered(200, challenge.encode() + b" " * 100_000),
    "not all of it": lambda challenge: b"HTTP/1.1 200 x\r\ncontent-length: 99\r\n\r\n" + challenge.encode(),
}


async def test_39_only_the_challenge_itself_is_consent(open_desk: OpenDesk, open_asked: OpenAsked) -> None:
    desk = await open_desk(verify_callbacks="always", verification_timeout_seconds=0.6, verifications_per_hour=1000)
    asked = await open_asked()
    kept = await desk.made(asked.url(), topic="kept", lease_seconds=3600)
    [used] = [question["hub.challenge"] for question in asked.questions]
    for name, answer in NO_CONSENT.items():
        asked.answer = answer if name != "one that was used" else lambda _: answered(200, used.encode())
        before = len(asked.questions)
        refused = await desk.subscribe(asked.url(), topic="kept", lease_seconds=7200)
        assert refused.status_code == 422, name
        assert refused.json()["code"] in ("callback_refused", "callback_unreachable"), name
        assert used not in refused.text
        assert len(asked.questions) == before + 1, "a redirect is not followed, and nobody is asked twice"
        replaced = await desk.replace(asked.url(), {"topic": "kept"}, {"glob": f"{before}/*"})
        assert replaced.status_code == 422, name
    assert await desk.listed() == [kept], "what was there is as it was"
    challenges = [question["hub.challenge"] for question in asked.questions]
    assert len(set(challenges)) == len(challenges)
    assert min(map(len, challenges)) >= 22
    asked.answer = lambda challenge: answered(299, challenge.encode())
    assert (await desk.subscribe(asked.url(), topic="kept", lease_seconds=7200)).status_code == 200


async def test_40_nobody_unsubscribes_somebody_else(open_desk: OpenDesk, open_asked: OpenAsked) -> None:
    victim, thief = (Key(name, name.encode() * 8) for name in ("victim", "thief"))
    desk = await open_desk(secrets=Secrets(Credentials("token", (victim, thief)), Credentials.none(), ()))
    desk.api.headers["authorization"] = f"Bearer {victim.secret.decode()}"
    made = await desk.made(CALLBACK)
    desk.api.headers["authorization"] = f"Bearer {thief.secret.decode()}"
    path = f"/v1/subscriptions/{made['id']}"
    assert [(await desk.api.request(method, path)).status_code for method in ("GET", "DELETE")] == [404, 404]
    assert (await desk.replace(CALLBACK)).status_code == 200, "an empty set of his own"
    taken = await desk.subscribe(CALLBACK)
    assert (taken.status_code, taken.json()["code"]) == (403, "forbidden")
    del desk.api.headers["authorization"]
    assert (await desk.api.delete(path)).status_code == 401
    desk.api.headers["authorization"] = f"Bearer {victim.secret.decode()}"
    assert await desk.listed() == [made]


async def test_40_where_nobody_proves_anything_the_callback_is_asked(
    open_desk: OpenDesk, open_asked: OpenAsked
) -> None:
    desk = await open_desk(verify_callbacks="always")
    asked = await open_asked()
    made = await desk.made(asked.url())
    asked.answer = lambda _: answered(404, b"I want to keep it")
    for refused in (await desk.api.delete(f"/v1/subscriptions/{made['id']}"), await desk.replace(asked.url())):
        assert (refused.status_code, refused.json()["code"]) == (422, "callback_refused")
        assert question_of(asked)["hub.mode"] == "unsubscribe"
    assert await desk.listed() == [made]
    asked.answer = echo
    assert (await desk.api.delete(f"/v1/subscriptions/{made['id']}")).status_code == 204
    assert await desk.listed() == []


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


async def test_42_beyond_its_quota_a_key_gets_429_however_it_asks(open_desk: OpenDesk) -> None:
    few = Key("few", b"few-" * 8, permissions=Permissions(quotas=Quotas(subscriptions=5)))
    many = Key("many", b"many" * 8)
    desk = await open_desk(
        secrets=Secrets(Credentials("token", (few, many)), Credentials.none(), ()), max_subscriptions_per_key=7
    )
    for key, limit in ((few, 5), (many, 7)):
        desk.api.headers["authorization"] = f"Bearer {key.secret.decode()}"
        base = f"http://127.0.0.1:2000/{key.id}"
        answers = await asyncio.gather(*(desk.subscribe(base, topic=f"t{number}") for number in range(30)))
        statuses = [answer.status_code for answer in answers]
        assert (statuses.count(201), statuses.count(429)) == (limit, 30 - limit)
        assert {answer.json()["code"] for answer in answers if answer.status_code == 429} == {"quota_exceeded"}
        kept = {one["topic"] for one in await desk.listed()}
        assert len(kept) == limit
        assert (await desk.subscribe(base, topic=min(kept))).status_code == 200, "renewing needs no room"
        whole = await desk.replace(f"{base}/set", *({"topic": f"u{number}"} for number in range(limit + 1)))
        assert (whole.status_code, whole.json()["code"]) == (429, "quota_exceeded")
        assert {one["topic"] for one in await desk.listed()} == kept, "all of a set or none"
        too_many = await desk.replace(base, *({"topic": f"u{number}"} for number in range(10_001)))
        assert (too_many.status_code, too_many.json()["code"]) == (429, "quota_exceeded")


def whsec(raw: bytes) -> str:
    return f"whsec_{base64.b64encode(raw).decode()}"


GOOD_BYTES = bytes(range(64))
NO_SECRETS = [
    "",
    "x",
    "whsec_",
    "secret",
    whsec(GOOD_BYTES[:23]),
    whsec(GOOD_BYTES + b"x"),
    whsec(bytes(32)),
    whsec(b"\xff" * 32),
    whsec(b"a" * 32),
    whsec(GOOD_BYTES[:32])[:-1],
    whsec(GOOD_BYTES[:32]) + "=",
    whsec(GOOD_BYTES[:32]) + "\n",
    " " + whsec(GOOD_BYTES[:32]),
    whsec(GOOD_BYTES[:32]).upper(),
    whsec(GOOD_BYTES[:32]).replace("whsec_", ""),
    whsec(GOOD_BYTES[:32]).replace("whsec_", "whpk_"),
    PrivateKey(GOOD_BYTES[:32]).public().text(),
    PrivateKey(GOOD_BYTES[:32]).text()[:-8],
    f"whsk_{base64.b64encode(GOOD_BYTES).decode()}",  # its halves do not belong together
    f"whsk_{base64.b64encode(bytes(64)).decode()}",
    "whsec_" + "A" * 100_000,
    "GENERATE",
    "generate-v2",
]


async def test_43_a_secret_that_is_none_is_refused_and_never_repeated(open_desk: OpenDesk, tmp_path: Path) -> None:
    desk = await open_desk(storage_key_file=storage_key(tmp_path))
    for text in NO_SECRETS:
        for answer in (
            await desk.subscribe(CALLBACK, secret=text),
            await desk.replace(CALLBACK, {"topic": "t", "secret": text}),
        ):
            assert answer.status_code >= 400, text[:40]
            expected = [(422, "invalid_secret"), (400, "invalid_request"), (413, "too_large")]
            assert (answer.status_code, answer.json()["code"]) in expected[: 1 if len(text) <= 512 else 3], text[:40]
            assert len(text) < 16 or text.strip()[6:40] not in answer.text
    for wrong in (1, True, ["whsec_x"], {"a": 1}):
        assert (await desk.subscribe(CALLBACK, secret=wrong)).status_code == 400
    assert await desk.listed() == []
    answer = await desk.subscribe(f"{CALLBACK}/1", secret="generate")
    secret = answer.json()["secret"]
    assert len(base64.b64decode(secret.removeprefix("whsec_"))) >= 24
    for later in (
        await desk.api.get(f"/v1/subscriptions/{answer.json()['id']}"),
        await desk.api.get("/v1/subscriptions"),
        await desk.subscribe(f"{CALLBACK}/1"),
        await desk.subscribe(f"{CALLBACK}/1", secret=secret),
    ):
        assert secret[6:] not in later.text, "shown once"
    asymmetric = await desk.subscribe(f"{CALLBACK}/2", secret="generate-v1a")
    assert "secret" not in asymmetric.json()
    assert asymmetric.json()["public_key"].startswith("whpk_")
    given = whsec(GOOD_BYTES[:24])
    assert given not in (await desk.subscribe(CALLBACK, secret=given)).text


async def test_43_without_a_storage_key_there_are_no_secrets(open_desk: OpenDesk) -> None:
    desk = await open_desk()
    answer = await desk.subscribe(CALLBACK, secret="generate")
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    assert "storage" in answer.json()["detail"]
    assert await desk.listed() == []


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
