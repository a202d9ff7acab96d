"""delivery/webhooks.py, parcel by parcel: what cannot be made, what gives up, and the room that large ones wait for."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

from httppubsubclient.bodies import Body
from httppubsubclient.protocol.callback_urls import split_callback_url
from httppubsubclient.protocol.credentials import Credentials
from httppubsubclient.protocol.errors import ConfigurationError
from httppubsubclient.protocol.keys import Key
from httppubsubclient.protocol.messages import Notification
from httppubsubclient.protocol.options import DeliveryFormat
from httppubsubclient.protocol.standard_webhooks import SharedSecret
from httppubsubserver.delivery import webhook_bodies, webhooks
from httppubsubserver.delivery.outbound import Answer
from httppubsubserver.delivery.webhook_bodies import DataMembers, Room
from httppubsubserver.delivery.webhook_heads import NotMade, Parcel
from tests.server.conftest import OpenBroadcaster, ScriptedOutbound
from tests.server.webhooks import (
    FORMATS,
    HMAC,
    KEY,
    TOKEN,
    URL,
    OpenWithVault,
    attempt,
    bench,
    body_of,
    check_digest,
    of_shared,
    subscribe,
    verified,
    with_vault,
)


@pytest.fixture
def open_with_vault(open_broadcaster: OpenBroadcaster, tmp_path: Path) -> OpenWithVault:
    return with_vault(open_broadcaster, tmp_path)


# -- one by one -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [HMAC, TOKEN])
async def test_when_no_shared_key_may_be_used_nothing_is_sent(shared: Credentials) -> None:
    [key] = shared.keys
    ended = Credentials(shared.type, (Key(key.id, key.secret, valid_until=1),), ())
    outbound = ScriptedOutbound()
    made = bench(outbound, ended)
    cases: list[tuple[DeliveryFormat, int]] = [
        ("cloudevents-binary", 10),
        ("cloudevents-structured", 10),
        ("cloudevents-structured", 100_000),
    ]
    for form, size in cases:
        outcome = await attempt(made, bytes(size), form=form, secret=None)
        assert isinstance(outcome, NotMade)
        assert outcome.reason == ConfigurationError.code
        assert not outcome.for_good
    assert isinstance(await attempt(made, b"", secret=KEY), Answer), "with a secret of its own it needs none of them"
    assert made.bytes_in_memory == made.members.bytes_in_memory


@pytest.mark.parametrize("form", FORMATS)
async def test_the_head_of_a_second_try_is_as_good_as_the_first(form: DeliveryFormat) -> None:
    """A kept connection may be closed by its peer with the request on its way: the nonce may have been seen."""
    heads: list[bytes] = []

    class Again(ScriptedOutbound):
        def post(self, *arguments: Any, **options: Any) -> asyncio.Task[None]:
            heads.append(arguments[1])
            if options["head_again"]() == arguments[1]:
                heads.append(arguments[1])
            else:
                arguments = (arguments[0], options["head_again"](), *arguments[2:])
            return super().post(*arguments, **options)

    outbound = Again()
    made = bench(outbound)
    for secret in (None, KEY):
        if secret is None and form == "raw":
            continue
        heads.clear()
        await attempt(made, b"data", form=form, secret=secret)
        post = outbound.posts[-1]
        check_digest(post)
        assert len(heads) == (1 if secret is None else 2)
        if secret is None:
            of_shared(post)
        else:
            verified(post, KEY)


class Lost(Body):
    """A body in a file that cannot be read any more."""

    def share(self) -> Body:
        raise OSError(24, "Too many open files")


@pytest.mark.parametrize(("form", "secret"), [("raw", KEY), ("cloudevents-structured", None)])
async def test_a_body_that_cannot_be_read_is_not_the_receivers_fault(
    form: DeliveryFormat, secret: SharedSecret | None
) -> None:
    made = bench(ScriptedOutbound())
    outcome = await attempt(made, Lost(None, None, 70_000, bytes(32)), form=form, secret=secret)
    assert isinstance(outcome, NotMade)
    assert outcome.reason == "body_unreadable"
    assert isinstance(outcome.__cause__, OSError)
    assert made.bytes_in_memory == 0


async def test_a_fault_of_ours_is_logged_and_holds_nothing(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> bytes:
        raise RuntimeError("a bug")

    monkeypatch.setattr(webhooks, "head_lines", broken)
    made = bench(ScriptedOutbound())
    outcome = await attempt(made, bytes(70_000))
    assert isinstance(outcome, NotMade)
    assert outcome.reason == "internal_error"
    assert "could not be made" in caplog.text
    assert made.bytes_in_memory == 0


async def test_large_ones_wait_for_room_and_not_beyond_their_deadline(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    made = bench(ScriptedOutbound())
    taken = made.room._size
    await made.room.take(taken)
    outcome = await attempt(made, bytes(70_000), seconds=0.02)
    assert isinstance(outcome, NotMade)
    assert outcome.reason == "not_in_time"
    waiting = asyncio.create_task(attempt(made, bytes(70_000)))
    while not made.room._waiting:
        await asyncio.sleep(0)
    made.room.give_back(taken)
    assert isinstance(await waiting, Answer)
    assert made.bytes_in_memory == 0


@pytest.mark.parametrize("form", ["raw", "cloudevents-structured"])
async def test_a_large_event_keeps_its_room_as_long_as_it_is_sent(form: DeliveryFormat) -> None:
    outbound = ScriptedOutbound()
    release = asyncio.Event()
    outbound.hangs(URL, release)
    made = bench(outbound)
    running = asyncio.create_task(attempt(made, bytes(70_000), form=form))
    await outbound.until(lambda: outbound.in_flight == 1)
    assert made.room.taken == (len(outbound.posts[0].body) if form == "cloudevents-structured" else 0)
    release.set()
    await running
    assert made.room.taken == 0


@pytest.mark.parametrize("form", ["raw", "cloudevents-structured"])
@pytest.mark.parametrize("turns", [0, 1, 2, 5, 10, 1000])
@pytest.mark.parametrize("size", [10, 70_000])
async def test_giving_up_at_any_moment_leaves_nothing_behind(form: DeliveryFormat, turns: int, size: int) -> None:
    outbound = ScriptedOutbound()
    outbound.hangs(URL)
    made = bench(outbound)
    body = Body.of(bytes(size))
    change = made._secrets.change("generate")
    assert change is not None
    notification = Notification("msg_a", b"t", "text/plain", body.sha256, body.size)
    parcel = Parcel(notification, "sub_a", None, 1, form, change("sub_a", None).blob, 0)
    told: list[object] = []
    deadline = asyncio.get_running_loop().time() + 10
    post = made.post(parcel, split_callback_url(URL), body, deadline=deadline, done=told.append)
    for _ in range(turns):
        await asyncio.sleep(0)
    post.cancel()
    post.cancel()
    body.close()
    await made.close()
    assert not told
    assert made.room.taken == 0
    assert not made._tasks


async def test_a_notify_that_gives_up_leaves_nothing_behind(
    open_with_vault: OpenWithVault, outbound: ScriptedOutbound
) -> None:
    broadcaster = await open_with_vault(notify_timeout_seconds=0.1)
    await subscribe(broadcaster, KEY.text(), "cloudevents-structured")
    outbound.hangs(URL)
    result = await broadcaster.notify(b"t", await body_of(bytes(300_000)))
    assert (result.notified, result.failed) == (0, 1)
    made = broadcaster._publishing._webhooks
    assert made.room.taken == 0


# -- room and members -------------------------------------------------------------------------------------------------


async def test_room_is_given_in_the_order_of_asking_and_to_the_greatest_alone() -> None:
    room = Room(100)
    got: list[str] = []

    async def take(name: str, count: int) -> None:
        await room.take(count)
        got.append(name)

    await take("a", 60)
    waiting = [asyncio.create_task(take(name, count)) for name, count in (("b", 1000), ("c", 10), ("d", 40))]
    await asyncio.sleep(0)
    assert got == ["a"]
    room.give_back(60)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert got == ["a", "b"]
    room.give_back(1000)
    await asyncio.gather(*waiting)
    assert got == ["a", "b", "c", "d"]
    assert room.taken == 50


async def test_who_stops_waiting_for_room_is_in_nobodys_way() -> None:
    room = Room(100)
    await room.take(100)
    first, second = asyncio.create_task(room.take(90)), asyncio.create_task(room.take(10))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    room.give_back(100)
    await second
    assert room.taken == 10
    third = asyncio.create_task(room.take(100))
    await asyncio.sleep(0)
    room.give_back(10)
    third.cancel()  # with its turn already there
    with pytest.raises(asyncio.CancelledError):
        await third
    assert room.taken == 0


async def test_what_is_kept_of_messages_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook_bodies, "_KEPT_BYTES", 1000)
    monkeypatch.setattr(webhook_bodies, "_KEPT", 5)
    members = DataMembers()
    for number in range(20):
        body = Body.of(bytes(30 if number < 10 else 300))
        notification = Notification(f"msg_{number}", b"t", "image/png", body.sha256, body.size)
        first = members.of(notification, body.data or b"")
        assert await members.of_large(notification, body) == first
        assert members.bytes_in_memory == sum(map(len, members._kept.values())) <= 1000
        assert len(members._kept) <= 5
    assert not members._making
