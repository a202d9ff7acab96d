"""question_limits.py: how often somebody may be asked, and how many at once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from httppubsubclient.protocol.errors import QuotaExceeded, Unavailable
from httppubsubserver import question_limits
from httppubsubserver.question_limits import (
    EVERYBODY,
    Charge,
    QuestionBudget,
    Turns,
    address_charges,
    question_charges,
)

HOUR = 3_600_000_000
VICTIM = Charge("owner at host", "victim.example a")


class Clock:
    now = 0

    def __call__(self) -> int:
        return self.now


def spent(budget: QuestionBudget, charges: Iterable[Charge], tries: int) -> int:
    """How many of so many questions in one go are paid."""
    paid = 0
    charges = list(charges)
    for _ in range(tries):
        try:
            budget.spend(charges)
        except QuotaExceeded as error:
            if not error.retry_after_seconds:
                raise
            return paid
        paid += 1
    return paid


@pytest.mark.parametrize("per_hour", [1, 2, 3, 7, 60, 1000])
def test_no_hour_has_more_questions_for_a_host(per_hour: int) -> None:
    clock = Clock()
    budget = QuestionBudget(per_hour, now=clock)
    asked: list[int] = []
    for clock.now in range(0, 5 * HOUR, HOUR // 50):
        asked += [clock.now] * spent(budget, [VICTIM], per_hour + 1)
    assert len(asked) == 5 * per_hour
    for start in asked:
        assert sum(start <= moment < start + HOUR for moment in asked) <= per_hour


@given(st.lists(st.tuples(st.integers(0, HOUR), st.integers(1, 40)), max_size=30), st.integers(1, 100))
def test_no_pattern_of_asking_gets_more_through(steps: list[tuple[int, int]], per_hour: int) -> None:
    clock = Clock()
    budget = QuestionBudget(per_hour, now=clock)
    asked: list[int] = []
    for pause, tries in steps:
        clock.now += pause
        asked += [clock.now] * spent(budget, [VICTIM], tries)
    for start in asked:
        assert sum(start <= moment < start + HOUR for moment in asked) <= per_hour


def test_after_the_time_that_was_said_it_goes_through() -> None:
    clock = Clock()
    budget = QuestionBudget(60, now=clock)
    assert spent(budget, [VICTIM], 100) == 60
    with pytest.raises(QuotaExceeded) as refused:
        budget.spend([VICTIM])
    wait = refused.value.retry_after_seconds
    assert wait is not None
    clock.now += int(wait) * 1_000_000
    budget.spend([VICTIM])


def test_what_was_welcome_costs_nothing() -> None:
    budget = QuestionBudget(10, now=Clock())
    for _ in range(10_000):
        budget.spend([VICTIM, EVERYBODY])
        budget.give_back([VICTIM, EVERYBODY])
    assert spent(budget, [VICTIM], 100) == 10


def test_giving_back_more_than_was_spent_gives_nothing() -> None:
    budget = QuestionBudget(10, now=Clock())
    budget.give_back([VICTIM] * 100)
    assert spent(budget, [VICTIM], 100) == 10


def test_who_cannot_pay_costs_the_others_nothing() -> None:
    budget = QuestionBudget(10, now=Clock())
    assert spent(budget, [VICTIM], 100) == 10
    for _ in range(1000):
        with pytest.raises(QuotaExceeded):
            budget.spend([Charge("owner", "a"), EVERYBODY, VICTIM])
    assert spent(budget, [Charge("owner", "a")], 1000) == 80
    assert spent(budget, [EVERYBODY], 1000) == 640


def test_who_cannot_pay_is_not_remembered() -> None:
    budget = QuestionBudget(1, now=Clock())
    assert spent(budget, [EVERYBODY], 100) == 64
    for number in range(1000):
        assert spent(budget, [Charge("host", str(number)), EVERYBODY], 1) == 0
    assert len(budget._spent) == 1


def test_other_hosts_and_owners_have_their_own() -> None:
    budget = QuestionBudget(10, now=Clock())
    for name in ("a", "b"):
        assert spent(budget, [Charge("host", name)], 100) == 40
        assert spent(budget, [Charge("owner", name)], 100) == 80


def test_one_owner_cannot_use_up_a_host_nor_an_address() -> None:
    budget = QuestionBudget(10, now=Clock())
    assert spent(budget, question_charges("shared.example", "alice"), 100) == 10
    assert spent(budget, question_charges("other.example", "alice"), 100) == 10
    assert spent(budget, address_charges("192.0.2.1", "alice"), 100) == 10
    for owner in ("bob", None, "alice shared.example"):
        assert spent(budget, question_charges("shared.example", owner), 100) == 10
        assert spent(budget, address_charges("192.0.2.1", owner), 100) == 10
    assert spent(budget, question_charges("shared.example", "carol"), 100) == 0, "all together have a bound"
    assert spent(budget, address_charges("192.0.2.1", "carol"), 100) == 0


def test_names_of_owners_do_not_run_into_hosts() -> None:
    names = [
        question_charges(host, owner)[0].name for host, owner in (("a", "b c"), ("a", "b"), ("a", None), ("b", ""))
    ]
    assert len(set(names)) == 4


def test_who_has_not_paid_for_long_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(question_limits, "MAX_KEPT", 100)
    clock = Clock()
    budget = QuestionBudget(10, now=clock)
    for number in range(10_000):
        clock.now += HOUR // 100
        budget.spend([Charge("host", str(number))])
        assert len(budget._spent) <= 200


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:0DB8:0::2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%1", "fe80::2%1", True),
    ],
)
def test_whose_address_it_is(one: str, other: str, same: bool) -> None:
    for owner in (None, "a"):
        assert (address_charges(one, owner) == address_charges(other, owner)) is same
    assert address_charges(one, "a")[1] == address_charges(one, "b")[1]
    assert address_charges(one, "a")[0] != address_charges(one, "b")[0]


class Asking:
    """Questions that last until they are told to end."""

    def __init__(self) -> None:
        self.turns = Turns()
        self.begun: list[str] = []
        self._ends: dict[str, asyncio.Event] = {}

    def start(self, name: str, host: str, owner: str) -> asyncio.Task[None]:
        self._ends[name] = asyncio.Event()
        return asyncio.create_task(self._ask(name, question_charges(host, owner)))

    async def _ask(self, name: str, charges: list[Charge]) -> None:
        async with self.turns.turn(charges):
            self.begun.append(name)
            await self._ends[name].wait()

    def end(self, name: str) -> None:
        self._ends[name].set()


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_one_host_is_asked_few_questions_at_once_and_keeps_nobody_else() -> None:
    asking = Asking()
    tasks = [asking.start(f"slow {number}", "slow.example", "a") for number in range(20)]
    await settled()
    assert len(asking.begun) == 8
    tasks.append(asking.start("other", "other.example", "a"))
    await settled()
    assert asking.begun[-1] == "other"
    asking.end("slow 3")
    await settled()
    assert asking.begun[-1] == "slow 8"
    for number in range(20):
        asking.end(f"slow {number}")
    asking.end("other")
    await asyncio.gather(*tasks)
    assert not asking.turns._under_way
    assert not asking.turns._waiting


async def test_who_gives_up_waiting_leaves_the_line() -> None:
    asking = Asking()
    tasks = [asking.start(str(number), "slow.example", "a") for number in range(10)]
    await settled()
    tasks[8].cancel()
    tasks[0].cancel()
    await settled()
    assert asking.begun == ["0", "1", "2", "3", "4", "5", "6", "7", "9"]
    # A turn that comes at the very moment it is given up goes to the next.
    last = asking.start("last", "slow.example", "a")
    given_up = asking.start("given up", "slow.example", "a")
    await settled()
    asking.end("1")
    asking.end("2")
    await asyncio.wait({tasks[1], tasks[2]})
    given_up.cancel()
    await settled()
    assert "last" in asking.begun
    for task in (*tasks, last, given_up):
        task.cancel()
    await asyncio.gather(*tasks, last, given_up, return_exceptions=True)
    assert not asking.turns._under_way
    assert not asking.turns._waiting


async def test_the_line_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(question_limits, "MAX_WAITING", 3)
    asking = Asking()
    tasks = [asking.start(str(number), "slow.example", "a") for number in range(12)]
    await settled()
    with pytest.raises(Unavailable):
        await tasks[11]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_one_owner_does_not_hold_up_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at a host that hangs, and not by a line that he has filled."""
    monkeypatch.setattr(question_limits, "MAX_WAITING_OF_OWNER", 20)
    asking = Asking()
    tasks = [asking.start(f"{number}", "slow.example", "alice") for number in range(40)]
    await settled()
    assert len(asking.begun) == 8
    refused = [task for task in tasks if task.done()]
    assert [type(task.exception()) for task in refused] == [Unavailable] * 12
    tasks += [asking.start(f"bob {number}", "slow.example", "bob") for number in range(8)]
    await settled()
    assert len(asking.begun) == 16, "as many as if alice were not there"
    tasks += [
        asking.start(f"{number} {host}", f"{host}.example", "alice") for host in "abcdefgh" for number in range(8)
    ]
    await settled()
    assert len(asking.begun) == 16 + 56, "more than 64 alice does not get"
    monkeypatch.setattr(question_limits, "MAX_WAITING", len(asking.turns._waiting))
    tasks.append(asking.start("carol", "slow.example", "carol"))
    await settled()
    assert asking.begun[-1] == "carol", "who need not wait is not stopped by a line that is full"
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert not asking.turns._under_way
    assert not asking.turns._waiting
