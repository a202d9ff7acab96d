"""verification.py: one question over real sockets, to callbacks of every temper."""

from __future__ import annotations

import asyncio
import gzip
import logging
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import parse_qs

import pytest

from httppubsubclient.protocol.addresses import AddressPolicy
from httppubsubclient.protocol.callback_urls import CallbackUrl, parse_callback_url
from httppubsubclient.protocol.errors import (
    CallbackRefused,
    CallbackUnreachable,
    InvalidRequest,
    InvalidUrl,
    PubSubError,
    QuotaExceeded,
    Unavailable,
)
from httppubsubclient.protocol.intent import parse_verification
from httppubsubclient.protocol.patterns import Pattern
from httppubsubserver import question_limits
from httppubsubserver.delivery.egress import Egress
from httppubsubserver.delivery.resolving import Resolver
from httppubsubserver.question_limits import EVERYBODY, QuestionBudget
from httppubsubserver.verification import MAX_ANSWER_BYTES, MAX_QUESTIONS, Asker, Question
from tests.server.peers import LIMIT, Network, Temper, Wire, deaf_port

PATTERN = Pattern.glob("orders/*")
SHORT = 0.15
"""A time to answer that is meant to run out."""

Reply = Callable[[str], bytes]
"""The challenge to the bytes that are answered."""


def ok(body: bytes, status: int = 200, *headers: bytes) -> bytes:
    fields = b"".join(b"%b\r\n" % header for header in headers)
    return b"HTTP/1.1 %d Whatever\r\n%bcontent-length: %d\r\n\r\n%b" % (status, fields, len(body), body)


def challenge_of(head: str) -> str:
    return parse_verification(head.split(" ")[1].partition("?")[2]).challenge


def replying(*replies: Reply) -> Temper:
    """One to each connection, the last one to all further ones."""

    async def temper(wire: Wire, number: int) -> None:
        head, _ = await wire.request()
        await wire.send(replies[min(number, len(replies) - 1)](challenge_of(head)))
        await wire.closed()

    return temper


def echo(challenge: str) -> bytes:
    return ok(challenge.encode())


@dataclass
class Names:
    """A resolver: every name has these addresses; how often it was asked."""

    addresses: list[str]
    asked: int = 0

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked += 1
        return self.addresses


@asynccontextmanager
async def asking(
    network: Network,
    *,
    networks: tuple[str, ...] = ("loopback",),
    resolver: Resolver | None = None,
    seconds: float = LIMIT,
    per_hour: int = 1000,
    origin: str | None = "broadcaster.example",
) -> AsyncIterator[Asker]:
    egress = Egress(AddressPolicy(networks), resolver=resolver)
    asker = Asker(
        egress,
        lambda: ssl.create_default_context(cafile=network.authority.file),
        budget=QuestionBudget(per_hour, now=lambda: time.monotonic_ns() // 1000),
        timeout_seconds=seconds,
        origin=origin,
    )
    try:
        yield asker
    finally:
        await asker.aclose()
        egress.close()


def question(callback: CallbackUrl, *, owner: str | None = None, pattern: Pattern | None = PATTERN) -> Question:
    return Question(callback, "subscribe", pattern, 600 if pattern is not None else None, owner)


async def test_who_echoes_the_challenge_agrees(network: Network) -> None:
    heads: list[str] = []

    async def temper(wire: Wire, number: int) -> None:
        head, body = await wire.request()
        assert body == b""
        heads.append(head)
        await wire.send(echo(challenge_of(head)))

    peer = await network.peer(temper)
    async with asking(network) as asker:
        await asker.ask(question(peer.callback("/hook?token=%2F1")))
        await asker.ask(question(peer.callback("/hook?token=%2F1")))
    line, *fields = heads[0].split("\r\n")
    method, target, version = line.split(" ")
    assert (method, version) == ("GET", "HTTP/1.1")
    path, _, query = target.partition("?")
    assert (path, query.split("&")[0]) == ("/hook", "token=%2F1"), "its own parameters stay as they are"
    asked = parse_qs(query)
    assert asked["hub.mode"] == ["subscribe"]
    assert asked["hub.topic"] == ["orders/*"]
    assert asked["hub.lease_seconds"] == ["600"]
    assert asked["pubsub.kind"] == ["glob"]
    assert "accept-encoding: identity" in fields
    assert f"host: 127.0.0.1:{peer.port}" in [field.lower() for field in fields]
    assert not any(field.lower().startswith(("authorization", "signature", "cookie")) for field in fields)
    assert challenge_of(heads[0]) != challenge_of(heads[1]), "each question has its own"


@pytest.mark.parametrize(
    "reply",
    [
        lambda challenge: ok(b""),
        lambda challenge: ok(b" " + challenge.encode()),
        lambda challenge: ok(challenge.encode() + b"\n"),
        lambda challenge: ok(challenge.swapcase().encode()),
        lambda challenge: ok(challenge[:-1].encode()),
        lambda challenge: ok(b'"' + challenge.encode() + b'"'),
        lambda challenge: ok(2 * challenge.encode()),
        lambda challenge: ok(b"OK", 201),
        lambda challenge: ok(gzip.compress(challenge.encode()), 200, b"content-encoding: gzip"),
        lambda challenge: ok(b"x" * MAX_ANSWER_BYTES),
        lambda challenge: ok(challenge.encode(), 404),
        lambda challenge: ok(challenge.encode(), 410),
        lambda challenge: ok(challenge.encode(), 400),
        lambda challenge: b"HTTP/1.1 204 No Content\r\n\r\n",
        lambda challenge: b"HTTP/1.1 304 Not Modified\r\n\r\n",
        lambda challenge: ok(challenge.encode(), 302, b"location: /hook"),
    ],
)
async def test_anything_else_is_no_consent(network: Network, reply: Reply) -> None:
    peer = await network.peer(replying(reply))
    async with asking(network) as asker:
        with pytest.raises(CallbackRefused) as refused:
            await asker.ask(question(peer.callback()))
    assert refused.value.detail == (
        "the callback did not agree: it is to answer the GET with 2xx and exactly the value of hub.challenge"
    )


async def test_any_2xx_will_do(network: Network) -> None:
    peer = await network.peer(replying(lambda challenge: ok(challenge.encode(), 201, b"content-type: text/html")))
    async with asking(network) as asker:
        await asker.ask(question(peer.callback()))


async def test_the_challenge_of_another_question_is_none(network: Network) -> None:
    """Whoever keeps one cannot use it again, nor for another pattern."""
    seen: list[str] = []

    async def temper(wire: Wire, number: int) -> None:
        head, _ = await wire.request()
        seen.append(challenge_of(head))
        await wire.send(ok(seen[0].encode()))

    peer = await network.peer(temper)
    async with asking(network) as asker:
        await asker.ask(question(peer.callback()))
        for pattern in (PATTERN, Pattern.exact(b"other")):
            with pytest.raises(CallbackRefused):
                await asker.ask(question(peer.callback(), pattern=pattern))


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_never_followed(network: Network, status: int) -> None:
    target = await network.peer(replying(echo))
    location = f"location: {target.callback().request_url}".encode()
    peer = await network.peer(replying(lambda challenge: ok(b"", status, location)))
    async with asking(network) as asker:
        with pytest.raises(CallbackRefused):
            await asker.ask(question(peer.callback()))
    assert target.connections == 0


async def silent(wire: Wire, number: int) -> None:
    await wire.closed()


async def dripping_head(wire: Wire, number: int) -> None:
    await wire.request()
    await wire.send(b"HTTP/1.1 200 OK\r\nx: ")
    while True:
        await wire.send(b"x")
        await asyncio.sleep(0.01)


async def dripping_body(wire: Wire, number: int) -> None:
    await wire.request()
    await wire.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n")
    while True:
        await wire.send(b"x")
        await asyncio.sleep(0.01)


async def interim_answers(wire: Wire, number: int) -> None:
    await wire.request()
    while True:
        await wire.send(b"HTTP/1.1 103 Early Hints\r\n\r\n")


async def endless_body(wire: Wire, number: int) -> None:
    await wire.request()
    await wire.send(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        await wire.send(b"x" * 65_536)


async def late_echo(wire: Wire, number: int) -> None:
    head, _ = await wire.request()
    await asyncio.sleep(2 * SHORT)
    await wire.send(echo(challenge_of(head)))


async def reset(wire: Wire, number: int) -> None:
    await wire.request()
    wire.reset()


async def garbage(wire: Wire, number: int) -> None:
    await wire.request()
    await wire.send(b"SSH-2.0-OpenSSH_9.7\r\n")
    await wire.closed()


HOSTILE = [silent, dripping_head, dripping_body, interim_answers, endless_body, late_echo, reset, garbage]


async def outcome(asker: Asker, callback: CallbackUrl) -> PubSubError:
    with pytest.raises(PubSubError) as failure:
        await asker.ask(question(callback))
    return failure.value


async def test_every_kind_of_no_answer_is_the_same(network: Network, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody learns about hosts and ports by asking for them; the operator does."""
    texts: set[str] = set()
    caplog.set_level(logging.INFO, "httppubsub.server.consent")
    async with asking(network, seconds=SHORT) as asker:
        for temper in HOSTILE:
            peer = await network.peer(temper)
            error = await outcome(asker, peer.callback())
            assert isinstance(error, CallbackUnreachable), temper
            texts.add(error.detail)
        for status in (408, 429, 500, 502, 503, 504):
            peer = await network.peer(replying(lambda challenge, status=status: ok(challenge.encode(), status)))  # type: ignore[misc]
            error = await outcome(asker, peer.callback())
            assert isinstance(error, CallbackUnreachable), status
            texts.add(error.detail)
        peer = await network.peer(replying(echo), tls=network.authority.server("other.example"))
        texts.add((await outcome(asker, peer.callback())).detail)
        await peer.close()
        texts.add((await outcome(asker, peer.callback())).detail)  # nobody listens
        async with deaf_port() as port:
            texts.add((await outcome(asker, parse_callback_url(f"http://127.0.0.1:{port}/"))).detail)
    for networks in (("private",), ("public",), ()):
        names = Names(["127.0.0.1", "10.0.0.1"])
        listener = await network.peer(echo_temper)
        async with asking(network, networks=networks, resolver=names) as asker:
            texts.add((await outcome(asker, listener.callback())).detail)
            texts.add((await outcome(asker, listener.callback(host="name.example"))).detail)
        assert listener.connections == 0
    assert len(texts) == 1
    assert "it answered 502" in caplog.text
    assert "blocked_address" in caplog.text


echo_temper = replying(echo)


async def test_a_name_is_resolved_once_and_that_is_dialled(network: Network) -> None:
    peer = await network.peer(echo_temper)
    names = Names(["127.0.0.1"])
    async with asking(network, resolver=names) as asker:
        await asker.ask(question(peer.callback(host="name.example")))
        assert names.asked == 1
        names.addresses = ["127.0.0.1", "169.254.169.254"]
        assert isinstance(await outcome(asker, peer.callback(host="name.example")), CallbackUnreachable)
    assert peer.connections == 1


@pytest.mark.parametrize(
    "host", ["_hooks.example", "xn--a.example", "xn--zzzzzzzzz99999.example", "xn--ls8h.la", "a--b.example", "a" * 63]
)
async def test_any_name_that_a_url_may_have_is_asked(network: Network, host: str) -> None:
    """Also one that is no good in IDNA, and that httpx would not take."""
    hosts: list[str] = []

    async def temper(wire: Wire, number: int) -> None:
        head, _ = await wire.request()
        hosts.extend(line for line in head.lower().split("\r\n") if line.startswith("host: "))
        await wire.send(echo(challenge_of(head)))

    peer = await network.peer(temper)
    async with asking(network, resolver=Names(["127.0.0.1"])) as asker:
        await asker.ask(question(peer.callback(host=host)))
    assert hosts == [f"host: {host}:{peer.port}"]


async def test_over_tls_the_name_is_verified(network: Network) -> None:
    peer = await network.peer(echo_temper, tls=network.authority.server("name.example"))
    async with asking(network, resolver=Names(["127.0.0.1"])) as asker:
        await asker.ask(question(peer.callback(host="name.example")))
        assert isinstance(await outcome(asker, peer.callback(host="other.example")), CallbackUnreachable)


async def test_a_hanging_callback_holds_only_its_own_question(network: Network) -> None:
    hanging, prompt = await network.peer(silent, host="127.0.0.2"), await network.peer(echo_temper)
    async with asking(network) as asker:
        waiting = [asyncio.create_task(asker.ask(question(hanging.callback(f"/{n}")))) for n in range(20)]
        async with asyncio.timeout(LIMIT):
            while hanging.connections < 8:
                await asyncio.sleep(0)
        await asker.ask(question(prompt.callback()))
        assert hanging.connections == 8, "the places of one host are few"
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


# -- several processes behind one address ----------------------------------------------------------------------------


async def test_with_a_fragment_other_processes_are_asked_until_it_is_the_right_one(network: Network) -> None:
    fragments: list[str] = []

    async def temper(wire: Wire, number: int) -> None:
        head, _ = await wire.request()
        fragments.extend(line for line in head.split("\r\n") if line.startswith("pubsub-fragment"))
        await wire.send(echo(challenge_of(head)) if number == 3 else ok(b"", 503, b"retry-after: 0"))

    peer = await network.peer(temper)
    async with asking(network) as asker:
        await asker.ask(question(peer.callback("/hook#worker-1")))
    assert fragments == ["pubsub-fragment: worker-1"] * 4


async def test_that_has_an_end(network: Network) -> None:
    peer = await network.peer(replying(lambda challenge: ok(b"", 503)))
    async with asking(network) as asker:
        assert isinstance(await outcome(asker, peer.callback("/hook#worker-1")), CallbackUnreachable)
        assert peer.connections == MAX_QUESTIONS
        assert isinstance(await outcome(asker, peer.callback("/hook")), CallbackUnreachable)
        assert peer.connections == MAX_QUESTIONS + 1


# -- the other handshake ---------------------------------------------------------------------------------------------


async def test_the_handshake_of_cloudevents(network: Network) -> None:
    heads: list[str] = []

    async def temper(wire: Wire, number: int) -> None:
        heads.append((await wire.request())[0])
        answers = [b"webhook-allowed-origin: broadcaster.example", b"WebHook-Allowed-Origin: *"]
        await wire.send(ok(b"whatever", 200, answers[number], b"webhook-allowed-rate: 120"))

    peer = await network.peer(temper)
    async with asking(network) as asker:
        await asker.ask(question(peer.callback("/hook?a=1"), pattern=None))
        await asker.ask(question(peer.callback("/hook"), pattern=None))
    assert heads[0].startswith("OPTIONS /hook?a=1 HTTP/1.1\r\n")
    assert "webhook-request-origin: broadcaster.example\r\n" in heads[0]


@pytest.mark.parametrize(
    "headers",
    [
        (),
        (b"webhook-allowed-origin: other.example",),
        (b"webhook-allowed-origin: broadcaster.example, other.example",),
        (b"webhook-allowed-origin: broadcaster.example", b"webhook-allowed-origin: broadcaster.example"),
        (b"webhook-allowed-origin: broadcaster.example", b"webhook-allowed-rate: 0"),
        (b"allow: OPTIONS, POST",),
    ],
)
async def test_a_200_alone_is_no_consent_to_it(network: Network, headers: tuple[bytes, ...]) -> None:
    async def temper(wire: Wire, number: int) -> None:
        await wire.request()
        await wire.send(ok(b"", 200, *headers))

    peer = await network.peer(temper)
    async with asking(network) as asker:
        with pytest.raises(CallbackRefused):
            await asker.ask(question(peer.callback(), pattern=None))


async def test_without_a_name_of_its_own_a_broadcaster_makes_no_handshake(network: Network) -> None:
    peer = await network.peer(echo_temper)
    async with asking(network, origin=None) as asker:
        with pytest.raises(InvalidRequest, match="webhook_origin"):
            await asker.ask(question(peer.callback(), pattern=None))
        await asker.ask(question(peer.callback()))
    assert peer.connections == 1


# -- floods ----------------------------------------------------------------------------------------------------------


async def until_refused(asker: Asker, callback: Callable[[int], CallbackUrl], owner: Callable[[int], str]) -> int:
    """How many questions go out before somebody cannot pay."""
    for number in range(1000):
        try:
            await asker.ask(question(callback(number), owner=owner(number)))
        except QuotaExceeded as error:
            if not error.retry_after_seconds:
                raise
            return number
        except (CallbackRefused, CallbackUnreachable):
            pass
    raise AssertionError("there is no bound")


async def test_a_host_that_does_not_agree_is_left_alone(network: Network) -> None:
    peer = await network.peer(replying(lambda challenge: ok(b"", 404)))
    async with asking(network, per_hour=10) as asker:
        sent = await until_refused(asker, lambda n: peer.callback(f"/{n}#{n}"), lambda n: "a")
        assert sent == peer.connections == 10
        # Whoever he is: three more have as much, and then it is enough.
        sent = await until_refused(asker, lambda n: peer.callback(f"/{n}#{n}"), lambda n: f"owner {n}")
        assert (sent, peer.connections) == (30, 40)


async def test_nobody_locks_others_out_of_a_host(network: Network) -> None:
    """Neither by paths of it that refuse, nor by names of his own for its address, nor by both."""

    async def temper(wire: Wire, number: int) -> None:
        head, _ = await wire.request()
        await wire.send(echo(challenge_of(head)) if head.startswith("GET /good") else ok(b"", 404))

    peer = await network.peer(temper)
    async with asking(network, per_hour=10, resolver=Names(["127.0.0.1"])) as asker:
        hosts = ["shared.example", "127.0.0.1", *(f"n{number}.attacker.example" for number in range(200))]
        refused = 0
        for number in range(10 * len(hosts)):
            try:
                await asker.ask(question(peer.callback(f"/bad{number}", host=hosts[number // 10]), owner="alice"))
            except QuotaExceeded:
                refused += 1
            except CallbackRefused:
                pass
        assert refused == 10 * len(hosts) - 10
        for host in ("shared.example", "127.0.0.1"):
            await asker.ask(question(peer.callback("/good", host=host), owner="bob"))
            with pytest.raises(QuotaExceeded):
                await asker.ask(question(peer.callback("/good", host=host), owner="alice"))


async def test_names_and_owners_without_end_do_not_help(network: Network) -> None:
    """The address pays, too, whatever it is called."""
    peer = await network.peer(replying(lambda challenge: ok(b"", 404)))
    async with asking(network, per_hour=10, resolver=Names(["127.0.0.1"])) as asker:
        sent = await until_refused(asker, lambda n: peer.callback(host=f"n{n}.example"), str)
        assert sent == peer.connections == 40
        # A literal is the same address.
        with pytest.raises(QuotaExceeded):
            await asker.ask(question(peer.callback(), owner="another"))
        assert peer.connections == 40


async def test_one_owner_does_not_use_up_what_others_have(network: Network) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        number = int(host[1:].split(".")[0])
        return [f"127.{number >> 16}.{number >> 8 & 255}.{number & 255}"]

    # Nobody listens at these addresses.
    free = await network.peer(echo_temper, host="127.0.0.1")
    async with asking(network, per_hour=10, resolver=resolve) as asker:
        sent = await until_refused(asker, lambda n: free.callback(host=f"n{n + 2}.example"), lambda n: "greedy")
        assert sent == 80
        await asker.ask(question(free.callback(), owner="another"))


async def test_everybody_together_has_a_bound(network: Network) -> None:
    async def resolve(host: str, port: int) -> list[str]:
        number = int(host[1:].split(".")[0])
        return [f"127.{number >> 16}.{number >> 8 & 255}.{number & 255}"]

    free = await network.peer(echo_temper, host="127.0.0.1")
    async with asking(network, per_hour=2, resolver=resolve) as asker:
        sent = await until_refused(asker, lambda n: free.callback(host=f"n{n + 2}.example"), str)
        assert sent == 128


async def test_who_agrees_is_asked_as_often_as_there_is_something_to_ask(network: Network) -> None:
    peer = await network.peer(echo_temper)
    async with asking(network, per_hour=2, resolver=Names(["127.0.0.1"])) as asker:
        for number in range(100):
            await asker.ask(question(peer.callback(f"/{number}", host="name.example"), owner="a"))
    assert peer.connections == 100


async def test_a_question_that_does_not_exist_costs_nothing(network: Network) -> None:
    peer = await network.peer(echo_temper)
    async with asking(network, per_hour=2) as asker:
        for _ in range(10):
            with pytest.raises(InvalidUrl):
                await asker.ask(question(peer.callback("/hook?hub.challenge=x")))
        await asker.ask(question(peer.callback()))


async def test_who_does_not_get_a_turn_is_told_to_come_again(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(question_limits._AT_ONCE, "all", 1)
    peer = await network.peer(echo_temper)
    async with asking(network, seconds=SHORT) as asker, asker._turns.turn([EVERYBODY]):
        assert isinstance(await outcome(asker, peer.callback()), Unavailable)
    assert peer.connections == 0


async def test_a_policy_that_changes_counts_for_questions_too(network: Network) -> None:
    peer = await network.peer(echo_temper)
    egress = Egress(AddressPolicy(("loopback",)))
    asker = Asker(
        egress,
        ssl.create_default_context,
        budget=QuestionBudget(100, now=lambda: 0),
        timeout_seconds=LIMIT,
        origin=None,
    )
    await asker.ask(question(peer.callback()))
    egress.set_policy(AddressPolicy(("public",)))
    assert isinstance(await outcome(asker, peer.callback()), CallbackUnreachable)
    await asker.aclose()
    egress.set_policy(None)
    egress.close()
    assert peer.connections == 1
