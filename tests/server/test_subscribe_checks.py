"""subscribe_checks.py: what a key may subscribe to is decided beside the event loop, within a budget of each owner."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator

import pytest

from httppubsubclient.protocol.errors import Forbidden, QuotaExceeded, Unavailable
from httppubsubclient.protocol.messages import SubscribeRequest
from httppubsubclient.protocol.patterns import Pattern
from httppubsubclient.protocol.permissions import Permissions
from httppubsubserver.auth import NOBODY, Principal
from httppubsubserver.subscribe_checks import SubscribeChecks

ORDERS = Permissions(subscribe=("orders/**",))
URL = "http://127.0.0.1:1/"


def who(owner: str = "partner", permissions: Permissions = ORDERS) -> Principal:
    return Principal(owner, owner, permissions)


def wanted(*patterns: str | bytes, lease_seconds: int = 60) -> list[SubscribeRequest]:
    made = [Pattern.glob(each) if isinstance(each, str) else Pattern.exact(each) for each in patterns]
    return [SubscribeRequest(URL, pattern, lease_seconds) for pattern in made]


class Thoughts:
    """A clock for the thread: each pattern takes `each` seconds; it can be held."""

    def __init__(self, each: float = 0) -> None:
        self.each = each
        self.now = 0.0
        self.gate = threading.Event()
        self.gate.set()
        self.asked = 0

    def __call__(self) -> float:
        self.gate.wait()
        self.asked += 1
        self.now += self.each
        return self.now


@pytest.fixture
def thoughts() -> Thoughts:
    return Thoughts()


@pytest.fixture
async def checks(thoughts: Thoughts) -> AsyncIterator[SubscribeChecks]:
    moments = itertools.repeat(10**12)
    made = SubscribeChecks(clock=lambda: next(moments), seconds=thoughts)
    yield made
    thoughts.gate.set()
    made.close()


async def test_what_is_contained_is_permitted_and_what_is_too_much_is_named(checks: SubscribeChecks) -> None:
    await checks.check(who(), wanted("orders/*", "orders/a/**", b"orders/x"))
    with pytest.raises(Forbidden, match=r"glob 'order\*'"):
        await checks.check(who(), wanted("orders/*", "order*"))
    with pytest.raises(Forbidden, match="topic secret"):
        await checks.check(who(), wanted(b"secret"))
    await checks.check(who(permissions=Permissions()), wanted("**"))
    await checks.check(NOBODY, wanted("**", lease_seconds=0))


async def test_lasting_for_ever_is_for_admins(checks: SubscribeChecks) -> None:
    for permissions in (Permissions(), ORDERS):
        with pytest.raises(Forbidden, match="admin"):
            await checks.check(who(permissions=permissions), wanted("orders/a", b"x", lease_seconds=0))
    await checks.check(who(permissions=Permissions(admin=True)), wanted("orders/*", lease_seconds=0))
    with pytest.raises(Forbidden, match="subscribe to the glob"):
        await checks.check(who(permissions=Permissions(subscribe=(), admin=True)), wanted("a*", lease_seconds=0))


async def test_exact_topics_and_what_was_permitted_before_need_no_thought(
    checks: SubscribeChecks, thoughts: Thoughts
) -> None:
    await checks.check(who(), wanted(b"orders/1", b"orders/2"))
    assert thoughts.asked == 0
    await checks.check(who(), wanted("orders/*", "orders/a*"))
    asked = thoughts.asked
    assert asked > 0
    await checks.check(who("another"), wanted("orders/*", "orders/a*", b"orders/1"))
    assert thoughts.asked == asked
    # Of the same patterns, but with other permissions.
    with pytest.raises(Forbidden):
        await checks.check(who(permissions=Permissions(subscribe=("x",))), wanted("orders/*"))


async def test_the_event_loop_goes_on_meanwhile(checks: SubscribeChecks, thoughts: Thoughts) -> None:
    thoughts.gate.clear()
    checking = asyncio.create_task(checks.check(who(), wanted("orders/*")))
    await asyncio.sleep(0)
    await checks.check(who(), wanted(b"orders/1"))
    assert not checking.done()
    thoughts.gate.set()
    await checking


async def test_one_request_may_not_take_for_ever(checks: SubscribeChecks, thoughts: Thoughts) -> None:
    thoughts.each = 1
    with pytest.raises(QuotaExceeded, match="fewer at a time"):
        await checks.check(who(), wanted(*(f"orders/{number}/*" for number in range(100))))
    assert thoughts.asked < 20


async def test_an_owner_that_has_used_up_its_time_waits_and_others_do_not(
    checks: SubscribeChecks, thoughts: Thoughts
) -> None:
    thoughts.each = 1

    async def go_on() -> None:
        for number in range(10):
            await checks.check(who(), wanted(f"orders/{number}/*"))

    with pytest.raises(QuotaExceeded, match="simpler") as caught:
        await go_on()
    assert caught.value.retry_after_seconds is not None
    await checks.check(who("another"), wanted("orders/a/*"))
    await checks.check(who(), wanted(b"orders/1"))


async def test_the_line_is_bounded_for_each_owner_and_in_all_also_when_nobody_waits_any_more(
    checks: SubscribeChecks, thoughts: Thoughts
) -> None:
    thoughts.gate.clear()
    patterns = (f"orders/{number}/*" for number in itertools.count())
    waiting = []

    async def line_up(owner: str) -> None:
        waiting.append(asyncio.create_task(checks.check(who(owner), wanted(next(patterns)))))
        await asyncio.sleep(0)

    for number in range(32):
        await line_up(f"partner-{number // 4}")
    for task in waiting[:8]:
        task.cancel()
    await asyncio.sleep(0)
    with pytest.raises(QuotaExceeded, match="under way"):
        await checks.check(who("partner-0"), wanted(next(patterns)))
    with pytest.raises(Unavailable, match="too many"):
        await checks.check(who("another"), wanted(next(patterns)))
    thoughts.gate.set()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [result for result in results[8:] if result is not None] == []
    async with asyncio.timeout(10):
        while True:
            try:
                await checks.check(who("another"), wanted(next(patterns)))
            except Unavailable:
                await asyncio.sleep(0)
            else:
                break


async def test_it_can_be_closed_and_used_again(checks: SubscribeChecks) -> None:
    await checks.check(who(), wanted("orders/*"))
    checks.close()
    await checks.check(who(), wanted("orders/b*"))
