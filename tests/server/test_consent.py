"""consent.py: who is asked about what, over a real store, with scripted answers instead of callbacks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from httppubsubclient.protocol.callback_urls import parse_callback_url, split_callback_url
from httppubsubclient.protocol.credentials import Credentials, Secrets
from httppubsubclient.protocol.errors import (
    CallbackRefused,
    CallbackUnreachable,
    ConfigurationError,
    InvalidRequest,
    NotFound,
    PreconditionFailed,
    QuotaExceeded,
    Unavailable,
)
from httppubsubclient.protocol.intent import parse_verification
from httppubsubclient.protocol.messages import SubscribeRequest, Subscription
from httppubsubclient.protocol.patterns import Pattern
from httppubsubserver import consent as module
from httppubsubserver.broadcaster import Broadcaster
from httppubsubserver.config import ServerConfig
from httppubsubserver.consent import Consent, names_strangers
from httppubsubserver.delivery.egress import Egress
from httppubsubserver.stores.durable import DurableStore
from httppubsubserver.stores.sqlite import open_sqlite
from httppubsubserver.verification import Question
from tests.server.peers import Network, Wire

NOW = 1_800_000_000_000_000
SECOND = 1_000_000
PUBLIC = "http://partner.example/hook"
A, B = Pattern.exact(b"a"), Pattern.glob("b/*")

Answer = Callable[[Question], Awaitable[None]]


class Callbacks:
    """What all callbacks answer, and what they were asked."""

    def __init__(self) -> None:
        self.asked: list[Question] = []
        self.answer: Answer | None = None

    async def __call__(self, question: Question) -> None:
        self.asked.append(question)
        await asyncio.sleep(0)
        if self.answer is not None:
            await self.answer(question)

    def seen(self) -> list[tuple[str, str]]:
        """What they were asked since this was asked last."""
        seen: list[tuple[str, str]] = [(question.mode, str(question.pattern)) for question in self.asked]
        self.asked.clear()
        return seen


class Site:
    """What a broadcaster does with a `Consent` and its store."""

    def __init__(self, consent: Consent, store: DurableStore, callbacks: Callbacks) -> None:
        self.consent = consent
        self.store = store
        self.callbacks = callbacks

    async def subscribe(
        self, pattern: Pattern = A, *, url: str = PUBLIC, owner: str | None = None, **options: Any
    ) -> str:
        request = SubscribeRequest(url, pattern, 60, **options)
        renewals = await self.consent.to_subscribe(request, owner=owner, now=NOW)
        subscription, _ = await self.store.subscribe(request, now=NOW, owner=owner)
        await self.consent.check_renewed(renewals, [subscription], now=NOW)
        return subscription.id

    async def replace(
        self, *patterns: Pattern, url: str = PUBLIC, owner: str | None = None, if_match: str | None = None
    ) -> None:
        requests = [SubscribeRequest(url, pattern, 60) for pattern in patterns]
        renewals = await self.consent.to_replace(url, requests, if_match=if_match, owner=owner, now=NOW)
        kept, *_ = await self.store.replace(url, requests, if_match=if_match, now=NOW, owner=owner)
        await self.consent.check_renewed(renewals, kept, now=NOW)

    async def unsubscribe(self, subscription_id: str, *, owner: str | None = None) -> None:
        await self.consent.to_unsubscribe(subscription_id, owner=owner, now=NOW)
        if not await self.store.unsubscribe(subscription_id, now=NOW, owner=owner):
            raise NotFound("there is none")

    async def patterns(self, url: str = PUBLIC) -> list[str]:
        page = await self.store.subscriptions(url=url, cursor=None, limit=100, now=NOW)
        return sorted(str(subscription.pattern) for subscription in page.subscriptions)


async def resolve(host: str, port: int) -> list[str]:
    names = {"worker": ["10.0.0.7"], "mixed": ["10.0.0.7", "93.184.215.14"], "localhost": ["127.0.0.1", "::1"]}
    if host not in names:
        raise OSError("unknown")
    return names[host]


@asynccontextmanager
async def opened(path: Path, *, proven: bool = True, **settings: Any) -> AsyncIterator[Site]:
    settings = {"callback_networks": ("loopback", "private", "public"), "verification_timeout_seconds": 10} | settings
    callbacks = Callbacks()
    async with open_sqlite(f"sqlite:///{path}/consent.sqlite3") as store:
        consent = Consent(ServerConfig(**settings), store, Egress(resolver=resolve), callbacks, proven=proven)
        try:
            yield Site(consent, store, callbacks)
        finally:
            await consent.aclose()


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with opened(tmp_path) as site:
        yield site


def refusing(error: Exception) -> Answer:
    async def answer(_: Question) -> None:
        raise error

    return answer


# -- who -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        ("http://127.0.0.1:3002/", False),
        ("http://[::1]:3002/", False),
        ("http://10.1.2.3/", False),
        ("http://[fd00:1::1]/", False),
        ("http://100.64.0.1/", False),
        ("http://93.184.215.14/", True),
        ("http://[2606:2800:21f:cb07::1]/", True),
        ("http://[::ffff:10.0.0.1]/", False),
        ("http://[64:ff9b::10.0.0.1]/", True),
        ("http://169.254.169.254/", True),
        ("http://partner.example/", True),
        ("http://worker/", False),
        ("http://WORKER./", False),
        ("http://mixed/", True),
        ("http://localhost/", False),
        ("http://unknown/", True),
    ],
)
async def test_public_means_who_may_be_a_stranger(tmp_path: Path, url: str, asked: bool) -> None:
    async with opened(tmp_path, callback_hosts=("Worker", "mixed", "unknown", "localhost")) as site:
        await site.subscribe(url=parse_callback_url(url).name)
        assert bool(site.callbacks.asked) is asked


async def test_a_name_is_asked_whatever_it_is_called_today(site: Site) -> None:
    """It may be another address at the next delivery."""
    await site.subscribe(url="http://worker/")
    assert site.callbacks.asked


@pytest.mark.parametrize("policy", ["always", "public", "never"])
async def test_the_setting_decides(tmp_path: Path, policy: str) -> None:
    async with opened(tmp_path, verify_callbacks=policy) as site:
        await site.subscribe()
        await site.subscribe(url="http://127.0.0.1/")
    assert [question.callback.host for question in site.callbacks.asked] == {
        "always": ["partner.example", "127.0.0.1"],
        "public": ["partner.example"],
        "never": [],
    }[policy]


@pytest.mark.parametrize(
    ("networks", "strangers"),
    [
        ((), False),
        (("loopback", "private"), False),
        (("10.0.0.0/8", "127.0.0.1", "fd00::/8", "192.168.7.0/24"), False),
        (("loopback", "public"), True),
        (("0.0.0.0/0",), True),
        (("::/0",), True),
        (("8.0.0.0/5",), True),
        (("93.184.215.14/32",), True),
        (("169.254.0.0/16",), True),
    ],
)
async def test_where_only_own_networks_are_called_there_are_no_strangers(
    tmp_path: Path, networks: tuple[str, ...], strangers: bool
) -> None:
    assert names_strangers(networks) is strangers
    async with opened(tmp_path, callback_networks=networks) as site:
        await site.subscribe()
        assert bool(site.callbacks.asked) is strangers


# -- about what ------------------------------------------------------------------------------------------------------


async def test_what_is_new_is_asked_about_and_a_renewal_is_not(site: Site) -> None:
    await site.subscribe(A, owner="a")
    [question] = site.callbacks.asked
    assert (question.callback.name, question.mode, question.pattern, question.lease_seconds, question.owner) == (
        PUBLIC,
        "subscribe",
        A,
        60,
        "a",
    )
    await site.subscribe(A, owner="a")
    assert len(site.callbacks.asked) == 1
    await site.subscribe(B, owner="a")
    await site.subscribe(A, url=f"{PUBLIC}#2", owner="a")
    assert len(site.callbacks.asked) == 3


@pytest.mark.parametrize(
    "error", [CallbackRefused("no"), CallbackUnreachable("no"), QuotaExceeded("no"), Unavailable("no")]
)
async def test_without_consent_nothing_is_stored_and_everything_stays(site: Site, error: Exception) -> None:
    await site.subscribe(A)
    before = await site.store.version()
    site.callbacks.answer = refusing(error)
    with pytest.raises(type(error), match="no"):
        await site.subscribe(B)
    with pytest.raises(type(error), match="no"):
        await site.replace(B)
    assert await site.patterns() == [str(A)]
    assert await site.store.version() == before


async def test_a_whole_set_is_asked_about_what_is_new_of_it(site: Site) -> None:
    await site.replace(A, B, A)
    assert sorted(site.callbacks.seen()) == sorted([("subscribe", str(A)), ("subscribe", str(B))])
    await site.replace(A)
    await site.replace(A, B)
    assert site.callbacks.seen() == [("subscribe", str(B))]
    await site.replace()
    assert site.callbacks.seen() == []


async def test_one_pattern_that_is_not_agreed_to_refuses_the_set(site: Site) -> None:
    async def only_a(question: Question) -> None:
        if question.pattern != A:
            raise CallbackRefused("no")

    site.callbacks.answer = only_a
    with pytest.raises(CallbackRefused):
        await site.replace(A, *(Pattern.exact(b"%d" % number) for number in range(100)))
    assert await site.patterns() == []
    assert len(site.callbacks.asked) < 3 * module.AT_ONCE, "no more is asked when the answer is known"


async def test_a_set_that_will_not_be_taken_is_not_asked_about(site: Site) -> None:
    with pytest.raises(PreconditionFailed):
        await site.replace(A, if_match='"other"')
    assert site.callbacks.asked == []


async def test_a_permanent_one_names_no_lease(site: Site) -> None:
    await site.consent.to_subscribe(SubscribeRequest(PUBLIC, A, 0), owner=None, now=NOW)
    assert site.callbacks.asked[0].lease_seconds is None


async def test_a_handshake_is_about_all_patterns(site: Site) -> None:
    requests = [
        SubscribeRequest(PUBLIC, pattern, 60, format="cloudevents-binary", handshake="cloudevents")
        for pattern in (A, B)
    ]
    await site.consent.to_replace(PUBLIC, requests, if_match=None, owner=None, now=NOW)
    [question] = site.callbacks.asked
    assert (question.pattern, question.handshake) == (None, "cloudevents")


CHANGES: tuple[dict[str, Any], ...] = (
    {"delivery": "durable"},
    {"delivery": "durable", "ordered": True},
    {"delivery": "durable", "retry_schedule_seconds": (0.0, *[0.2] * 63)},
    {"format": "cloudevents-binary"},
    {"format": "cloudevents-structured"},
)


@pytest.mark.parametrize("options", CHANGES)
async def test_what_is_renewed_as_something_else_is_asked_about(site: Site, options: dict[str, Any]) -> None:
    """What was agreed to by a handshake, too: then the pattern is asked about at last."""
    shaken: dict[str, Any] = {"format": "cloudevents-binary", "handshake": "cloudevents"}
    for before in ({}, shaken):
        if {**before, **options} == {**before, "handshake": "cloudevents"}:
            continue
        subscription_id = await site.subscribe(A, owner="a", **before)
        site.callbacks.seen()
        version = await site.store.version()
        site.callbacks.answer = refusing(CallbackRefused("no"))
        for owner in ("a", None):
            with pytest.raises(CallbackRefused):
                await site.subscribe(A, owner=owner, **options)
            request = SubscribeRequest(PUBLIC, A, 60, **options)
            with pytest.raises(CallbackRefused):
                await site.consent.to_replace(PUBLIC, [request], if_match=None, owner=owner, now=NOW)
        assert site.callbacks.seen() == [("subscribe", str(A))] * 4
        assert await site.store.version() == version, "it stays as it was"
        assert await site.consent.to_subscribe(SubscribeRequest(PUBLIC, A, 60, **options), owner="b", now=NOW) == {}
        assert site.callbacks.seen() == [], "the store refuses somebody else, nobody is asked about that"
        site.callbacks.answer = None
        for _ in range(3):
            assert await site.subscribe(A, owner="a", **options) == subscription_id
        assert site.callbacks.seen() == [("subscribe", str(A))], "once"
        await site.store.unsubscribe(subscription_id, now=NOW)


async def test_a_renewal_by_another_handshake_is_one(site: Site) -> None:
    events = {"format": "cloudevents-binary"}
    await site.subscribe(A, owner="a", **events)
    assert site.callbacks.seen() == [("subscribe", str(A))]
    await site.subscribe(A, owner="a", handshake="cloudevents", **events)
    assert site.callbacks.seen() == [], "nothing changes"


# -- owners ----------------------------------------------------------------------------------------------------------


async def test_somebody_elses_is_no_renewal(site: Site) -> None:
    await site.subscribe(A, owner="a")
    site.callbacks.seen()
    # The store refuses it; nobody is bothered.
    assert await site.consent.to_subscribe(SubscribeRequest(PUBLIC, A, 60), owner="b", now=NOW) == {}
    assert site.callbacks.seen() == []
    await site.subscribe(A, owner=None)
    assert site.callbacks.seen() == [], "to whom everything belongs, it belongs"


async def test_what_nobody_owns_is_taken_over_with_consent(site: Site) -> None:
    await site.subscribe(A, owner=None)
    site.callbacks.seen()
    await site.subscribe(A, owner="a")
    assert site.callbacks.seen() == [("subscribe", str(A))]
    await site.subscribe(A, owner="a")
    assert site.callbacks.seen() == []


@pytest.mark.parametrize("as_a_set", [False, True])
async def test_what_ends_while_it_is_renewed_is_not_made_anew(
    site: Site, as_a_set: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A callback that answers 410 is rid of whoever renews without a pause."""
    await site.replace(A, B, owner="a")
    present = site.store.subscribed

    async def gone_since(url: str, patterns: Sequence[Pattern], *, now: int) -> tuple[Subscription | None, ...]:
        found = await present(url, patterns, now=now)
        assert found[0] is not None
        await site.store.unsubscribe(found[0].id, now=NOW)
        return found

    monkeypatch.setattr(site.store, "subscribed", gone_since)
    with pytest.raises(CallbackRefused):
        await (site.replace(A, B, owner="a") if as_a_set else site.subscribe(A, owner="a"))
    assert await site.patterns() == [str(B)]


async def test_who_proved_to_be_the_owner_may_unsubscribe(site: Site) -> None:
    subscription_id = await site.subscribe(A, owner="a")
    site.callbacks.answer = refusing(CallbackRefused("no"))
    await site.unsubscribe(subscription_id, owner="a")
    assert await site.patterns() == []


async def test_where_nothing_is_proven_the_callback_is_asked_about_everything(tmp_path: Path) -> None:
    async with opened(tmp_path, proven=False) as site:
        subscription_id = await site.subscribe(A)
        await site.subscribe(A)
        assert site.callbacks.seen() == [("subscribe", str(A))] * 2, "a renewal, too"
        before = await site.store.version()
        site.callbacks.answer = refusing(CallbackRefused("no"))
        with pytest.raises(CallbackRefused):
            await site.unsubscribe(subscription_id)
        with pytest.raises(CallbackRefused):
            await site.replace()
        assert site.callbacks.seen() == [("unsubscribe", str(A))] * 2
        assert await site.store.version() == before
        site.callbacks.answer = None
        await site.replace(B)
        assert sorted(site.callbacks.seen()) == [("subscribe", str(B)), ("unsubscribe", str(A))]
        [subscription] = (await site.store.subscriptions(url=PUBLIC, cursor=None, limit=9, now=NOW)).subscriptions
        await site.unsubscribe(subscription.id)
        assert site.callbacks.seen() == [("unsubscribe", str(B))]
        with pytest.raises(NotFound):
            await site.unsubscribe("sub_unknown")
        own = await site.subscribe(A, url="http://127.0.0.1/")
        await site.unsubscribe(own)
        assert site.callbacks.seen() == []


# -- at the same time, and slowly ------------------------------------------------------------------------------------


async def test_the_same_from_fifty_connections_is_one_question_and_one_row(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, agrees, waiting = asyncio.Event(), site.consent._agrees, 0

    async def counted(question: Question) -> bool:
        nonlocal waiting
        waiting += 1
        return await agrees(question)

    monkeypatch.setattr(site.consent, "_agrees", counted)
    site.callbacks.answer = lambda _: wait_for(gate)
    tasks = [asyncio.create_task(site.subscribe(A, owner="a")) for _ in range(50)]
    while waiting < 50:
        await asyncio.sleep(0)
    gate.set()
    assert len(set(await asyncio.gather(*tasks))) == 1
    assert len(site.callbacks.asked) == 1


async def wait_for(gate: asyncio.Event) -> None:
    await gate.wait()


async def test_everybody_who_waits_gets_the_refusal(site: Site) -> None:
    gate = asyncio.Event()

    async def refuse_at_last(_: Question) -> None:
        await gate.wait()
        raise QuotaExceeded("no", retry_after_seconds=7)

    site.callbacks.answer = refuse_at_last
    [question], _ = await site.consent._new(*_of(SubscribeRequest(PUBLIC, A, 60)))
    waiting = [asyncio.create_task(site.consent._agrees(question)) for _ in range(5)]
    while not site.callbacks.asked:
        await asyncio.sleep(0)
    gate.set()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(one) for one in outcomes] == [QuotaExceeded] * 5
    assert {getattr(one, "retry_after_seconds", None) for one in outcomes} == {7}
    assert len({id(one) for one in outcomes}) == 5
    assert len(site.callbacks.asked) == 1


async def test_who_goes_away_does_not_take_the_answer_from_the_others(site: Site) -> None:
    gate = asyncio.Event()
    site.callbacks.answer = lambda _: wait_for(gate)
    first, second = (asyncio.create_task(site.subscribe(A)) for _ in range(2))
    while not site.callbacks.asked:
        await asyncio.sleep(0)
    first.cancel()
    gate.set()
    assert await second
    assert len(site.callbacks.asked) == 1


async def test_questions_of_one_call_are_few_at_a_time(site: Site) -> None:
    most = now = 0

    async def count(_: Question) -> None:
        nonlocal most, now
        now += 1
        most = max(most, now)
        await asyncio.sleep(0)
        now -= 1

    site.callbacks.answer = count
    await site.replace(*(Pattern.exact(b"%d" % number) for number in range(500)))
    assert most == module.AT_ONCE
    assert len(await site.patterns()) == 100


async def test_a_large_set_goes_on_where_it_was(tmp_path: Path) -> None:
    """What takes longer than one question may is done in several calls, and no question is put twice."""
    patterns = [Pattern.exact(b"%03d" % number) for number in range(40)]
    async with opened(tmp_path, verification_timeout_seconds=0.05) as site:
        site.callbacks.answer = lambda _: asyncio.sleep(0.02)
        calls = 1
        while True:
            try:
                await site.replace(*patterns)
                break
            except Unavailable as error:
                if error.retry_after_seconds != 1:
                    raise
                calls += 1
        assert calls > 1
        assert len(site.callbacks.asked) == len({question.pattern for question in site.callbacks.asked}) == 40
        assert not site.consent._remembered, "the subscriptions are what remembers"
        await site.replace()
        with pytest.raises(Unavailable):
            await site.replace(*patterns)


async def test_a_set_of_which_nothing_is_answered_is_unreachable(tmp_path: Path) -> None:
    async with opened(tmp_path, verification_timeout_seconds=0.05) as site:
        site.callbacks.answer = lambda _: asyncio.sleep(3600)
        with pytest.raises(CallbackUnreachable):
            await site.replace(A, B)


async def test_what_is_remembered_is_bounded_and_runs_out(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_REMEMBERED", 3)
    for number in range(10):
        request = SubscribeRequest(PUBLIC, Pattern.exact(b"%d" % number), 60)
        [question], _ = await site.consent._new(*_of(request))
        await site.consent._agrees(question)
        assert len(site.consent._remembered) <= 3
    assert not await site.consent._agrees(question)
    monkeypatch.setattr(module, "REMEMBERED_SECONDS", -1.0)
    site.consent._remembered.clear()
    await site.consent._agrees(question)
    assert await site.consent._agrees(question)


def _of(request: SubscribeRequest) -> Any:
    return split_callback_url(request.url), [request], None, NOW


async def test_a_stop_tells_who_waits_to_come_again(tmp_path: Path) -> None:
    async with opened(tmp_path) as site:
        site.callbacks.answer = lambda _: asyncio.sleep(3600)
        one = asyncio.create_task(site.subscribe(A))
        several = asyncio.create_task(site.replace(A, B))
        while len(site.callbacks.asked) < 2:
            await asyncio.sleep(0)
        await site.consent.aclose()
        for task in (one, several):
            with pytest.raises(Unavailable):
                await task


# -- in a broadcaster ------------------------------------------------------------------------------------------------


@dataclass
class Names:
    """A resolver: every name has these addresses."""

    addresses: list[str]

    async def __call__(self, host: str, port: int) -> list[str]:
        return self.addresses


@asynccontextmanager
async def broadcasting(path: Path, names: Names, **settings: Any) -> AsyncIterator[Broadcaster]:
    config = ServerConfig(
        db=f"sqlite:///{path}/pubsub.sqlite3",
        callback_networks=("loopback", "public"),
        callback_ports=("all",),
        shutdown_timeout_seconds=0.1,
        **settings,
    )
    secrets = Secrets(Credentials.none(), Credentials.none(), ("http://[::1]:3003",))
    async with Broadcaster(config, secrets=secrets, resolver=names) as broadcaster:
        yield broadcaster


async def echoing(wire: Wire, number: int) -> None:
    while True:
        head, _ = await wire.request()
        method, target, _ = head.split("\r\n")[0].split(" ")
        echo = b"" if method == "POST" else parse_verification(target.partition("?")[2]).challenge.encode()
        await wire.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(echo), echo))


async def test_the_question_goes_where_deliveries_go_and_nowhere_else(network: Network, tmp_path: Path) -> None:
    """A name that leads elsewhere by and by: what its first address agreed to is no way to another one."""
    peer, names = await network.peer(echoing), Names(["127.0.0.1"])
    async with broadcasting(tmp_path, names) as broadcaster:
        url = peer.callback(host="name.example").name
        await broadcaster.subscribe(SubscribeRequest(url, A, 60))
        assert (await broadcaster.notify(b"a", b"x")).notified == 1
        reached = peer.connections
        for addresses in (["10.0.0.1"], ["127.0.0.1", "169.254.169.254"], ["::ffff:10.0.0.1"], []):
            names.addresses = addresses
            with pytest.raises(CallbackUnreachable):
                await broadcaster.subscribe(SubscribeRequest(url, B, 60))
        assert peer.connections == reached
        page = await broadcaster.subscriptions(url=url)
        assert [subscription.pattern for subscription in page.subscriptions] == [A]
        names.addresses = ["127.0.0.1"]
        await broadcaster.subscribe(SubscribeRequest(url, B, 60))


async def test_without_a_host_name_there_is_no_handshake(network: Network, tmp_path: Path) -> None:
    peer = await network.peer(echoing)
    async with broadcasting(tmp_path, Names(["127.0.0.1"])) as broadcaster:
        url = peer.callback(host="name.example").name
        request = SubscribeRequest(url, A, 60, format="cloudevents-binary", handshake="cloudevents")
        with pytest.raises(InvalidRequest, match="webhook_origin"):
            await broadcaster.subscribe(request)
    assert peer.connections == 0


@pytest.mark.parametrize(
    "origin", ["", "https://broadcaster.example", "Broadcaster.example", "a b", "broadcaster:3003"]
)
async def test_an_origin_that_is_no_host_name_is_a_fault_of_the_settings(tmp_path: Path, origin: str) -> None:
    with pytest.raises(ConfigurationError, match="webhook_origin"):
        async with broadcasting(tmp_path, Names([]), webhook_origin=origin):
            pass
