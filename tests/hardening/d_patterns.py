"""Line 44, for those who read and compare patterns: however many are sent, others get their turn meanwhile."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from httppubsubclient.protocol.errors import QuotaExceeded
from httppubsubclient.protocol.globs import Shape
from httppubsubclient.protocol.keys import Credentials, Key, Secrets
from httppubsubclient.protocol.messages import SubscribeRequest
from httppubsubclient.protocol.patterns import Pattern
from httppubsubclient.protocol.permissions import Permissions, Quotas
from httppubsubclient.protocol.topic_index import TopicIndex
from httppubsubserver import http_requests, whole_sets
from httppubsubserver.auth import Principal
from httppubsubserver.subscribe_checks import SubscribeChecks
from tests.hardening.support import CALLBACK, Desk, OpenDesk

__all__ = [
    "parsed",
    "test_44_a_fault_ends_the_reading_of_a_set_and_is_told_in_a_line",
    "test_44_a_key_that_may_have_few_or_nothing_is_refused_before_its_set_is_read",
    "test_44_a_set_of_many_intricate_patterns_is_read_in_slices_one_at_a_time",
    "test_44_an_intricate_owner_does_not_hold_up_the_permissions_of_others",
    "test_44_many_new_patterns_hold_up_only_topics_that_they_could_match",
    "test_44_patterns_are_compiled_beside_the_event_loop",
    "test_44_reading_has_its_price",
    "test_44_what_a_set_may_look_like",
    "test_44_what_was_made_under_a_larger_quota_can_be_renewed",
]

MANY = 100_000
FEW = Key("few", b"few-token-" + bytes(range(48, 80)), 0, None, "", Permissions(quotas=Quotas(subscriptions=3)))
PLAIN = Key("plain", b"plain-token-" + bytes(range(48, 80)), 0, None, "", Permissions())
NOTHING = Key("nothing", b"nothing-token-" + bytes(range(48, 80)), 0, None, "", Permissions(subscribe=()))


def intricate(number: int) -> dict[str, str]:
    return {"glob": "a/" + "/".join([f"*a*b*c*{number}*"] * 20)}


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the entries that were parsed."""
    sizes: list[int] = []
    original = http_requests.parsed_json

    def parse(model: Any, text: str, **given: Any) -> Any:
        sizes.append(len(text))
        return original(model, text, **given)

    monkeypatch.setattr(whole_sets, "parsed_json", parse)
    return sizes


async def put(desk: Desk, content: bytes, **headers: str) -> httpx.Response:
    headers["content-type"] = "application/json"
    return await desk.api.put("/v1/subscriptions", params={"url": CALLBACK}, content=content, headers=headers)


@pytest.mark.parametrize(
    ("document", "parses"),
    [
        (b"{" + b",".join(b'"%x":1' % number for number in range(MANY)) + b"}", 0),
        (b'{"subscriptions":[{' + b",".join(b'"%x":1' % number for number in range(MANY)) + b"}]}", 0),
        (b'{"subscriptions":[{' + b",".join(b'"%x":1' % number for number in range(5000)) + b"}]}", 1),
        (b'{"subscriptions":[' + b",".join([b'{"glob":"a"}'] * MANY) + b"]}", 10_000),
        (b'{"subscriptions":[' + b",".join([b'{"glob":1}'] * MANY) + b"]}", 1),
        (b'{"subscriptions":[{"topic":"a","retry_schedule_seconds":[' + b",".join([b'""'] * 20_000) + b"]}]}", 1),
        (b'{"subscriptions":[' + b",".join([b"1"] * MANY) + b"]}", 0),
        (b"[" * MANY, 0),
        (b'{"subscriptions":' + b"[" * MANY, 0),
        (b'{"subscriptions":[' + b'{"glob":' * MANY, 0),
        (b'{"subscriptions":[{"glob":' + b"[" * MANY, 0),
        (b'{"subscriptions":[{"glob":' + b"9" * MANY + b"}]}", 0),
        (b'{"subscriptions":"' + b"\\u0061" * MANY + b'"}', 0),
        (b'{"subscriptions":[],' + b'"subscriptions":[],' * MANY + b'"x":1}', 0),
        (b'{"' + b"\\u001b[31m" * MANY + b'":1}', 0),
        (b'{"' + b"\\u001b[31m" * 1000 + b'":1}', 0),
        (b'{"subscriptions":[{"' + b"\\u001b[31m" * 1000 + b'":1}]}', 1),
        (b'{"subscriptions":[{"' + b"\\u202e" * 9 + b'":1}]}', 1),
        (b'{"subscriptions":[{"glob":"\\ud800"}]}', 1),
        (b'{"subscriptions":[{"glob":"\xff"}]}', 0),
        (b"\xef\xbb\xbf{}", 0),
        (b" " * MANY, 0),
        (b"", 0),
        (b"{}", 0),
        (b'{"subscriptions":null}', 0),
        (b'{"subscriptions":[}', 0),
        (b'{"subscriptions":[{"topic":"a"},]}', 1),
        (b'{"subscriptions":[{"topic":"a"}{"topic":"b"}]}', 1),
        (b'{"subscriptions":[{"topic":"a"}', 1),
        (b'{"subscriptions":[]', 0),
        (b'{"subscriptions":[]}{}', 0),
    ],
    ids=lambda value: ascii(value[:24]) if isinstance(value, bytes) else "",
)
async def test_44_a_fault_ends_the_reading_of_a_set_and_is_told_in_a_line(
    open_desk: OpenDesk, parsed: list[int], document: bytes, parses: int
) -> None:
    desk = await open_desk()
    answer = await put(desk, document)
    assert (answer.status_code, answer.json()["code"]) in ((400, "invalid_request"), (400, "invalid_glob")), answer.text
    assert len(answer.json()["detail"]) < 500
    assert answer.json()["detail"].isprintable()
    assert len(parsed) == parses
    assert await desk.listed() == []
    # The same of a single one, whose members are told alike.
    if document.startswith(b'{"') and len(document) < 64 * 1024:
        detail = (await desk.api.post("/v1/subscriptions", content=document)).json()["detail"]
        assert len(detail) < 500
        assert detail.isprintable()


async def test_44_what_a_set_may_look_like(open_desk: OpenDesk) -> None:
    desk = await open_desk()
    text = ' {\n"\\u0073ubscriptions" :\t[ {"topic" : "}],{" , "ordered":false}\r\n,{"glob":"\\ud83d\\ude00/*é"} ] } '
    patterns = [
        entry.get("topic", entry.get("glob")) for entry in (await put(desk, text.encode())).json()["subscriptions"]
    ]
    assert patterns == ["}],{", "\U0001f600/*é"]
    entries = [{"topic": f"{number}/" + "x" * (number % 4000)} for number in range(500)]
    answer = await put(desk, json.dumps({"subscriptions": entries}).encode())
    assert [each["topic"] for each in answer.json()["subscriptions"]] == [entry["topic"] for entry in entries]
    assert (await put(desk, b'{"subscriptions":[]}')).json()["subscriptions"] == []


async def test_44_a_set_of_many_intricate_patterns_is_read_in_slices_one_at_a_time(
    open_desk: OpenDesk, parsed: list[int]
) -> None:
    desk = await open_desk()
    at_turn: Counter[int] = Counter()
    seen = 0
    done = False

    async def watch() -> None:
        nonlocal seen
        for turn in itertools.count():
            at_turn[turn] = sum(parsed[seen:])
            seen = len(parsed)
            if done:
                return
            await asyncio.sleep(0)

    watching = asyncio.create_task(watch())
    sets = [json.dumps({"subscriptions": [intricate(number) for number in range(100)]}).encode()] * 4
    answers = await asyncio.gather(*(put(desk, each) for each in sets))
    done = True
    await watching
    assert {answer.status_code for answer in answers} == {200}
    assert sum(at_turn.values()) == sum(parsed)
    # A slice of each at its beginning; from then on one of all.
    assert max(at_turn.values()) <= 4 * 1400
    assert len([size for size in at_turn.values() if size > 1400]) <= 4


async def test_44_a_key_that_may_have_few_or_nothing_is_refused_before_its_set_is_read(
    open_desk: OpenDesk, parsed: list[int]
) -> None:
    keys = Secrets(Credentials("token", (FEW, NOTHING)), Credentials.none(), ())
    desk = await open_desk(secrets=keys)
    few, nothing = (f"Bearer {key.secret.decode()}" for key in (FEW, NOTHING))
    large = json.dumps({"subscriptions": [intricate(number) for number in range(2000)]}).encode()
    answer = await put(desk, large, authorization=few)
    assert (answer.status_code, answer.json()["code"]) == (429, "quota_exceeded")
    assert len(parsed) <= 8
    # The same pattern often is one.
    twice = json.dumps({"subscriptions": [{"topic": "a"}, {"topic": "b"}, {"topic": "c"}] * 20}).encode()
    assert len((await put(desk, twice, authorization=few)).json()["subscriptions"]) == 3
    parsed.clear()
    answer = await put(desk, large, authorization=nothing)
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    assert parsed == []
    answer = await put(desk, b'{"subscriptions":[{"topic":"a"}]}', authorization=nothing)
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert (await put(desk, b'{"subscriptions":[]}', authorization=nothing)).status_code == 200


async def test_44_reading_has_its_price() -> None:
    moments = itertools.repeat(10**12)
    seconds = itertools.count()
    checks = SubscribeChecks(clock=lambda: next(moments), seconds=lambda: float(next(seconds)))
    alice, bob = (Principal(name, name, Permissions()) for name in ("alice", "bob"))
    steps = iter([600] * 100)
    with pytest.raises(QuotaExceeded) as caught:
        await checks.go_through(alice, steps)
    assert caught.value.retry_after_seconds
    assert len(list(steps)) > 80
    await checks.go_through(bob, iter([600] * 4))


async def test_44_an_intricate_owner_does_not_hold_up_the_permissions_of_others() -> None:
    """Each pattern takes a second of the thread: alice's 4 requests are 16, of which one or two are before bob's."""
    permissions = Permissions(subscribe=("a/**",))
    gate = threading.Event()
    clock = itertools.count()

    def seconds() -> float:
        gate.wait()
        return next(clock) / 10

    checks = SubscribeChecks(clock=lambda: 10**12, seconds=seconds)
    order: list[str] = []

    def asking(owner: str, count: int) -> Callable[[], Any]:
        wanted = [SubscribeRequest(CALLBACK, Pattern.glob(f"a/{owner}/{number}/*"), 60) for number in range(count)]

        async def ask() -> None:
            await checks.check(Principal(owner, owner, permissions), wanted)
            order.append(owner)

        return ask

    try:
        async with asyncio.TaskGroup() as group:
            for number in range(4):
                group.create_task(asking(f"alice{number // 4}", 4)())
            await asyncio.sleep(0)
            group.create_task(asking("bob", 1)())
            await asyncio.sleep(0)
            gate.set()
    finally:
        gate.set()
        checks.close()
    assert order[0] == "bob"


async def test_44_many_new_patterns_hold_up_only_topics_that_they_could_match(
    open_desk: OpenDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = await open_desk()
    placed: list[bytes] = []
    original: Any = TopicIndex.add

    def add(self: Any, pattern: Pattern, key: Any) -> None:
        placed.append(pattern.value)
        original(self, pattern, key)

    monkeypatch.setattr(TopicIndex, "add", add)
    entries = [{**intricate(number), "delivery": "durable"} for number in range(400)]
    for each in range(2):  # new ones, then renewed ones
        assert (await put(desk, json.dumps({"subscriptions": entries}).encode())).status_code == 200
        placed.clear()
        await desk.notify(topic="b/1")
        await desk.notify(topic="ab/1")
        assert placed == []
        at_turn: list[int] = []
        done = asyncio.Event()

        async def watch(at_turn: list[int] = at_turn, done: asyncio.Event = done) -> None:
            seen = 0
            while not done.is_set():
                at_turn.append(sum(map(len, placed[seen:])))
                seen = len(placed)
                await asyncio.sleep(0)

        watching = asyncio.create_task(watch())
        await asyncio.gather(*(desk.notify(topic=f"a/{number}") for number in range(8)))
        done.set()
        await watching
        assert len(placed) == 400, each
        assert max(at_turn) <= 2048
    matching = {"glob": "a/" + "/".join(["*a*b*c*7*"] * 20)}
    assert (await put(desk, json.dumps({"subscriptions": [*entries, matching]}).encode())).status_code == 200
    assert (await desk.notify(topic="a/" + "/".join(["abc7"] * 20), headers={"prefer": "respond-async"}))[
        "matched"
    ] == 1


async def test_44_patterns_are_compiled_beside_the_event_loop(
    open_desk: OpenDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each `[!a]` that spans Unicode takes milliseconds: a glob of 60 of them a third of a second."""
    desk = await open_desk()
    threads: list[int] = []
    original = Shape.compile

    def compile_(self: Shape) -> Any:
        threads.append(threading.get_ident())
        return original(self)

    monkeypatch.setattr(Shape, "compile", compile_)
    entries = [{"glob": f"*[!{chr(0x4E00 + number)}]*?", "delivery": "durable"} for number in range(50)]
    assert (await put(desk, json.dumps({"subscriptions": entries}).encode())).status_code == 200
    counts = await asyncio.gather(*(desk.notify(topic="xy", headers={"prefer": "respond-async"}) for _ in range(3)))
    assert [each["matched"] for each in counts] == [50] * 3
    assert threading.get_ident() not in threads
    assert len(threads) >= 50


async def test_44_what_was_made_under_a_larger_quota_can_be_renewed(open_desk: OpenDesk) -> None:
    keys = Secrets(Credentials("token", (PLAIN,)), Credentials.none(), ())
    token = f"Bearer {PLAIN.secret.decode()}"
    entries = [{"topic": f"a/{number}"} for number in range(10)]
    made = json.dumps({"subscriptions": entries}).encode()
    more = json.dumps({"subscriptions": [*entries, {"topic": "b"}]}).encode()
    before = await open_desk(secrets=keys)
    after = await open_desk(secrets=keys, max_subscriptions_per_key=3)
    assert (await put(after, made, authorization=token)).status_code == 429
    assert (await put(before, made, authorization=token)).status_code == 200
    assert (await put(after, made, authorization=token)).status_code == 200
    answer = await put(after, more, authorization=token)
    assert (answer.status_code, answer.json()["code"]) == (429, "quota_exceeded")
