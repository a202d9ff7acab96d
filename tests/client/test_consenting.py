"""consenting.py: what a client consents to when a broadcaster, or a stranger, asks."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import httpx
import pytest
from fastapi import Depends, FastAPI

from httppubsubclient.client import HttpPubSubClient
from httppubsubclient.consenting import origins_of
from httppubsubclient.protocol.errors import CallbackUnreachable, InvalidRequest
from httppubsubclient.protocol.intent import IntentMode, Verification, handshake_headers, verification_target
from httppubsubclient.protocol.patterns import Pattern
from tests.client.conftest import HOST, FakeBroadcaster, Wire, config, refuse, until

EXACT = Pattern.exact(b"foo/bar")
OTHER = Pattern.exact(b"foo/baz")
CHALLENGE = "c" * 32


async def ask(
    wire: Wire,
    pattern: Pattern,
    mode: IntentMode = "subscribe",
    *,
    durable: str | None = None,
    fragment: str | None = None,
) -> httpx.Response:
    """The question as a broadcaster of ours asks it."""
    target = verification_target(
        "/v1/receive" if durable is None else f"/v1/receive?durable={durable}",
        Verification(mode, pattern, CHALLENGE, 600 if mode == "subscribe" else None),
    )
    headers = {} if fragment is None else {"pubsub-fragment": fragment}
    return await wire.http.get(target, headers=headers)


def agreed(answer: httpx.Response) -> bool:
    """Consent, or a refusal as it has to be."""
    if answer.status_code == 404:
        assert CHALLENGE not in answer.text
        return False
    assert (answer.status_code, answer.text) == (200, CHALLENGE)
    assert answer.headers["content-type"].startswith("text/plain")
    assert answer.headers["x-content-type-options"] == "nosniff"
    return True


class Asking:
    """Lets a broadcaster ask before it processes the next request, and keeps what it was told."""

    def __init__(self, wire: Wire, pattern: Pattern, mode: IntentMode, *, durable: str | None = None) -> None:
        self.answers: list[bool] = []
        self._question = (wire, pattern, mode, durable)
        wire.broadcaster.next.append(self._behave)

    async def _behave(self, _: httpx.Request) -> httpx.Response | None:
        wire, pattern, mode, durable = self._question
        self.answers.append(agreed(await ask(wire, pattern, mode, durable=durable)))
        return None


@pytest.mark.parametrize(
    "pattern", [EXACT, Pattern.exact(b"\xff/ +&="), Pattern.glob("a/**/[!x]"), Pattern.mqtt("+/#")]
)
async def test_what_is_being_subscribed_is_agreed_to_while_the_broadcaster_processes_it(
    client: HttpPubSubClient, wire: Wire, pattern: Pattern
) -> None:
    asked = Asking(wire, pattern, "subscribe")
    async with client.subscribe_multi() as subscription:
        match pattern.kind:
            case "exact":
                await subscription.subscribe_exact(pattern.value)
            case "glob":
                await subscription.subscribe_glob(pattern.value.decode())
            case "mqtt":
                await subscription.subscribe_mqtt(pattern.value.decode())
        assert asked.answers == [True]
        assert agreed(await ask(wire, pattern)), "it stays wanted"


async def test_what_nobody_here_wants_is_not_agreed_to(client: HttpPubSubClient, wire: Wire) -> None:
    assert not agreed(await ask(wire, EXACT))
    async with client.subscribe_exact(b"foo/bar"):
        for pattern in (OTHER, Pattern.glob("foo/bar"), Pattern.glob("foo/*"), Pattern.mqtt("foo/bar")):
            assert not agreed(await ask(wire, pattern)), pattern
        assert not agreed(await ask(wire, EXACT, durable="worker-1")), "another callback URL"
    assert not agreed(await ask(wire, EXACT))


async def test_unsubscribing_is_agreed_to_when_nobody_here_has_it(client: HttpPubSubClient, wire: Wire) -> None:
    async with client.subscribe_exact(b"foo/bar"):
        assert not agreed(await ask(wire, EXACT, "unsubscribe"))
        assert agreed(await ask(wire, OTHER, "unsubscribe"))
        asked = Asking(wire, EXACT, "unsubscribe")
    assert asked.answers == [True]


async def test_leaving_the_client_still_agrees_to_unsubscribing(broadcaster: FakeBroadcaster) -> None:
    client = HttpPubSubClient(config())
    wire = Wire(client, broadcaster)
    async with wire.http, client:
        await client.subscribe_exact(b"foo/bar").__aenter__()
        asked = Asking(wire, EXACT, "unsubscribe")
        await client.__aexit__(None, None, None)
        assert asked.answers == [True]
        assert (await ask(wire, EXACT)).status_code == 503
        await client.__aenter__()


async def test_a_durable_name_agrees_to_its_own_patterns_alone(client: HttpPubSubClient, wire: Wire) -> None:
    asked = Asking(wire, EXACT, "subscribe", durable="worker-1")
    async with client.subscribe_exact(b"foo/bar", durable="worker-1") as subscription:
        assert asked.answers == [True]
        assert not agreed(await ask(wire, OTHER, durable="worker-1"))
        assert not agreed(await ask(wire, EXACT, durable="worker-2"))
        assert not agreed(await ask(wire, EXACT))
        # Its backlog would go with it: nothing but a removal of our own gives it up.
        assert not agreed(await ask(wire, EXACT, "unsubscribe", durable="worker-1"))
        removed = Asking(wire, EXACT, "unsubscribe", durable="worker-1")
        await subscription.unsubscribe_exact(b"foo/bar")
        assert removed.answers == [True]
        assert not agreed(await ask(wire, EXACT, "unsubscribe", durable="worker-1"))
    assert not agreed(await ask(wire, EXACT, "unsubscribe", durable="worker-1"))


async def test_forgetting_a_durable_name_agrees_to_unsubscribing_all_of_it(
    client: HttpPubSubClient, wire: Wire
) -> None:
    async with client.subscribe_exact(b"foo/bar", durable="worker-1"):
        pass
    asked = Asking(wire, EXACT, "unsubscribe", durable="worker-1")
    await client.forget_durable("worker-1")
    assert asked.answers == [True]
    assert not agreed(await ask(wire, EXACT, "unsubscribe", durable="worker-1"))


async def test_a_question_for_another_process_behind_the_address_is_put_again(broadcaster: FakeBroadcaster) -> None:
    async with HttpPubSubClient(config(host=f"{HOST}#1")) as client, client.subscribe_exact(b"foo/bar"):
        wire = Wire(client, broadcaster)
        async with wire.http:
            assert agreed(await ask(wire, EXACT, fragment="1"))
            for fragment in (None, "2"):
                answer = await ask(wire, EXACT, fragment=fragment)
                assert (answer.status_code, answer.headers["retry-after"]) == (503, "0")


async def test_a_client_that_is_not_running_agrees_to_nothing(broadcaster: FakeBroadcaster) -> None:
    wire = Wire(HttpPubSubClient(config()), broadcaster)
    async with wire.http:
        assert (await ask(wire, EXACT)).status_code == 503
        options = await wire.http.options("/v1/receive", headers=handshake_headers("broadcaster.test"))
        assert options.status_code == 503


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("", 400),
        ("hub.mode=subscribe", 400),
        ("hub.mode=denied&hub.topic=foo/bar&hub.challenge=x", 400),
        ("hub.mode=subscribe&hub.topic=foo/bar", 400),
        ("hub.mode=subscribe&hub.topic=foo/bar&hub.challenge=", 400),
        (f"hub.mode=subscribe&hub.topic=foo/bar&hub.challenge={'x' * 257}", 400),
        ("hub.mode=subscribe&hub.topic=foo/bar&hub.challenge=%3Cscript%3E%0A", 400),
        ("hub.mode=subscribe&hub.topic=foo/bar&hub.challenge=x&hub.challenge=y", 400),
        ("hub.mode=subscribe&hub.topic=foo/bar&hub.topic=foo/baz&hub.challenge=x", 400),
        ("hub.mode=subscribe&hub.topic=foo/bar&hub.challenge=x&hub.lease_seconds=nan", 400),
        ("hub.mode=subscribe&hub.topic=foo/bar&hub.challenge=x&pubsub.kind=regex", 400),
        ("hub.mode=subscribe&hub.topic=%ZZ&hub.challenge=x", 400),
        ("hub.mode=subscribe&hub.topic=&hub.challenge=x", 422),
        ("hub.mode=subscribe&hub.topic=%5B&hub.challenge=x&pubsub.kind=glob", 422),
        ("hub.mode=subscribe&hub.topic=%FF&hub.challenge=x&pubsub.kind=glob", 400),
        ("hub.mode=subscribe&hub.topic=foo/bar&hub.challenge=x&durable=a&durable=b", 400),
        (f"hub.mode=subscribe&hub.topic={'a' * 20_000}&hub.challenge=x", 400),
    ],
)
async def test_what_is_no_question_is_told_so(client: HttpPubSubClient, wire: Wire, query: str, status: int) -> None:
    async with client.subscribe_exact(b"foo/bar"):
        answer = await wire.http.get(f"/v1/receive?{query}")
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"


async def test_the_question_of_another_hub_is_answered_too(client: HttpPubSubClient, wire: Wire) -> None:
    """WebSub knows topics only, and some hubs write the query as a form."""
    async with client.subscribe_exact(b"a b"):
        answer = await wire.http.get("/v1/receive?hub.topic=a+b&hub.challenge=%3Cb%3E&hub.mode=subscribe")
    assert (answer.status_code, answer.text) == (200, "<b>")
    assert answer.headers["content-security-policy"] == "default-src 'none'"


async def shake(wire: Wire, origin: str = "broadcaster.test", query: str = "") -> httpx.Response:
    """The question of CloudEvents."""
    return await wire.http.options(f"/v1/receive{query}", headers=handshake_headers(origin, 120))


def shaking(wire: Wire, *questions: tuple[str, str]) -> list[int]:
    """Lets a broadcaster ask these (origin, query) while it processes the next request; what it is answered."""
    statuses: list[int] = []

    async def behave(_: httpx.Request) -> None:
        statuses.extend([(await shake(wire, *question)).status_code for question in questions])

    wire.broadcaster.next.append(behave)
    return statuses


BINARY: dict[str, Any] = {"format": "cloudevents-binary"}
SHAKING: dict[str, Any] = {"format": "cloudevents-binary", "handshake": "cloudevents"}
QUESTIONS = tuple(
    (origin, query)
    for origin in ("broadcaster.test", "broadcaster.example")
    for query in ("", "?durable=worker-1", "?durable=worker-2")
)


@pytest.mark.parametrize("options", [{}, BINARY, {"secret": "generate"}])
async def test_a_handshake_that_nobody_here_asked_for_is_no_way_in(
    client: HttpPubSubClient, wire: Wire, options: dict[str, Any]
) -> None:
    """It names no pattern: whoever had it answered would be sent whatever somebody else subscribes for us."""
    asked = [shaking(wire, *QUESTIONS) for _ in range(2)]
    async with (
        client.subscribe_exact(b"foo/bar", **options),
        client.subscribe_exact(b"foo/bar", durable="worker-1", **options),
    ):
        answers = [await shake(wire, *question) for question in QUESTIONS]
    assert asked == [[405] * 6] * 2
    for answer in answers:
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
        assert "webhook-allowed-origin" not in answer.headers
    assert (await wire.http.options("/v1/receive")).status_code == 400


async def test_a_handshake_that_was_asked_for_is_agreed_to_while_it_is_expected(
    client: HttpPubSubClient, wire: Wire
) -> None:
    asked = [shaking(wire, *QUESTIONS) for _ in range(2)]
    async with (
        client.subscribe_exact(b"foo/bar", **SHAKING),
        client.subscribe_exact(b"foo/bar", durable="worker-1", **SHAKING),
    ):
        assert asked == [[200, 405, 405, 405, 405, 405], [405, 200, 405, 405, 405, 405]]
        bodies = [json.loads(request.content) for request in wire.broadcaster.requests]
        entries = [entry for body in bodies for entry in body.get("subscriptions", [body])]
        assert [(entry["format"], entry["handshake"]) for entry in entries] == [
            ("cloudevents-binary", "cloudevents")
        ] * 2
        assert {(await shake(wire, *question)).status_code for question in QUESTIONS} == {405}
    with_it, hanging = client.subscribe_multi(**SHAKING), asyncio.Event()

    async def hang(_: httpx.Request) -> None:
        await hanging.wait()

    async with with_it:
        wire.broadcaster.next.append(hang)
        subscribing = asyncio.create_task(with_it.subscribe_glob("foo/*"))
        await until(lambda: wire.broadcaster.requests[-1].content.count(b"foo/*"))
        answer = await shake(wire)
        assert (answer.status_code, answer.headers["webhook-allowed-rate"]) == (200, "*")
        assert answer.headers["webhook-allowed-origin"] == "broadcaster.test"
        hanging.set()
        await subscribing
    again = shaking(wire, *QUESTIONS)
    async with client.subscribe_exact(b"foo/bar"):
        assert again == [405] * 6, "nobody has asked for it any more"


async def test_a_rotation_keeps_the_handshake(client: HttpPubSubClient, wire: Wire) -> None:
    async with client.subscribe_exact(b"foo/bar", secret="generate", **SHAKING) as subscription:
        await subscription.rotate_secret()
        asked = shaking(wire, QUESTIONS[0])
        await subscription.rotate_secret()
    assert asked == [200]


@pytest.mark.parametrize("handshake", ["", "websub ", "CLOUDEVENTS", None, 5, ["cloudevents"]])
async def test_a_handshake_that_is_none_is_refused(client: HttpPubSubClient, handshake: Any) -> None:
    with pytest.raises(InvalidRequest, match="handshake is one of"):
        client.subscribe_exact(b"foo/bar", format="cloudevents-binary", handshake=handshake)


async def test_a_handshake_of_cloudevents_goes_with_its_formats(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster
) -> None:
    with pytest.raises(InvalidRequest, match="formats of CloudEvents"):
        client.subscribe_exact(b"foo/bar", handshake="cloudevents")
    async with client.subscribe_exact(b"foo/bar", **BINARY):
        with pytest.raises(InvalidRequest, match="`handshake`"):
            await client.subscribe_exact(b"foo/bar", **SHAKING).__aenter__()
    assert broadcaster.requests[0].content.count(b"handshake") == 0


def test_origins_are_the_hosts_of_the_broadcasters() -> None:
    assert origins_of(["https://Pubsub.Example:3003/a", "http://10.0.0.1:3003"]) == {"pubsub.example", "10.0.0.1"}


async def test_other_methods_are_still_no_way_in(client: HttpPubSubClient, wire: Wire) -> None:
    for method in ("HEAD", "PUT", "DELETE", "PATCH"):
        assert (await wire.http.request(method, "/v1/receive")).status_code == 405


async def test_an_application_that_guards_its_routes_is_asked_all_the_same(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster
) -> None:
    def guard() -> None:
        raise AssertionError("deliveries and questions are guarded by themselves")

    app = FastAPI(dependencies=[Depends(guard)])
    app.include_router(client.router, prefix="/pubsub", dependencies=[Depends(guard)])
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url=HOST) as http, client.subscribe_exact(b"foo/bar"):
        target = verification_target("/pubsub/v1/receive", Verification("subscribe", EXACT, CHALLENGE))
        assert agreed(await http.get(target))
        options = await http.options("/pubsub/v1/receive", headers=handshake_headers("broadcaster.test"))
        assert (options.status_code, options.headers["allow"]) == (405, "POST")


async def test_both_routes_are_described(client: HttpPubSubClient) -> None:
    app = FastAPI()
    app.include_router(client.router, prefix="/pubsub")
    described = app.openapi()["paths"]["/pubsub/v1/receive"]
    assert set(described) == {"get", "options", "post"}


async def test_an_application_starts_although_nobody_can_ask_it_yet(
    broadcaster: FakeBroadcaster, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its server listens only when it has started; until then its callbacks cannot be asked."""
    monkeypatch.setattr("httppubsubclient.callbacks._MAX_PAUSE_SECONDS", 0.01)
    listens = False
    unreachable = refuse(CallbackUnreachable("the callback did not answer"))

    def behave(request: httpx.Request) -> Any:
        return None if listens or request.method == "DELETE" else unreachable(request)

    broadcaster.always = behave
    client = HttpPubSubClient(config())
    client.on("foo/*", lambda message: None)
    async with client:
        assert broadcaster.patterns() == []
        with caplog.at_level(logging.WARNING):
            listens = True
            await until(lambda: broadcaster.patterns() == ["glob='foo/*'"])
    assert "is subscribed now" in caplog.text


async def test_whoever_waits_for_a_callback_is_told_that_nobody_can_ask(
    client: HttpPubSubClient, broadcaster: FakeBroadcaster
) -> None:
    broadcaster.always = refuse(CallbackUnreachable("the callback did not answer"))
    with pytest.raises(CallbackUnreachable):
        await client.on("foo/*", lambda message: None)
    broadcaster.always = None


async def test_the_question_is_answered_while_other_calls_hang(client: HttpPubSubClient, wire: Wire) -> None:
    """Our own call is under way the whole time, and holds the lock."""
    asked = asyncio.Event()
    answered = asyncio.Event()

    async def hang(_: httpx.Request) -> httpx.Response | None:
        asked.set()
        await answered.wait()
        return None

    wire.broadcaster.next.append(hang)
    subscribing = asyncio.create_task(client.subscribe_exact(b"foo/bar").__aenter__())
    await asked.wait()
    assert agreed(await ask(wire, EXACT))
    answered.set()
    await subscribing
