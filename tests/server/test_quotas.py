"""quotas.py: what each owner publishes, told before a body is read or while it arrives, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from httppubsubclient.protocol.errors import QuotaExceeded
from httppubsubclient.protocol.permissions import Quotas
from httppubsubclient.protocol.token_bucket import MAX_DEBT_SECONDS, Rate
from httppubsubserver.quotas import Buckets, PublishQuotas

SECOND = 1_000_000


class Clock:
    def __init__(self) -> None:
        self.now = 10**12

    def __call__(self) -> int:
        return self.now

    def pass_seconds(self, seconds: float) -> None:
        self.now += int(seconds * SECOND)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def quotas(clock: Clock) -> PublishQuotas:
    return PublishQuotas(clock)


MESSAGES = Quotas(messages_per_second=2)
BYTES = Quotas(bytes_per_second=1000)


def refused(begin: Callable[[], object]) -> float:
    with pytest.raises(QuotaExceeded) as caught:
        begin()
    assert caught.value.retry_after_seconds is not None
    return caught.value.retry_after_seconds


def test_two_seconds_of_messages_may_come_at_once_and_then_as_many_as_are_allowed(
    quotas: PublishQuotas, clock: Clock
) -> None:
    for _ in range(4):
        quotas.begin("a", MESSAGES, 1)
    assert refused(lambda: quotas.begin("a", MESSAGES, 1)) == pytest.approx(0.5)
    quotas.begin("b", MESSAGES, 1)
    clock.pass_seconds(0.5)
    quotas.begin("a", MESSAGES, 1)
    refused(lambda: quotas.begin("a", MESSAGES, 1))


def test_a_message_is_taken_with_its_bytes_or_not_at_all(quotas: PublishQuotas, clock: Clock) -> None:
    both = Quotas(messages_per_second=1, bytes_per_second=1000)
    quotas.begin("a", both, 2000)
    for _ in range(10):
        assert refused(lambda: quotas.begin("a", both, 1000)) == pytest.approx(1)
    clock.pass_seconds(1)
    quotas.begin("a", both, 1000)
    quotas.begin("b", both, 0)
    quotas.begin("b", both, 0)
    # The bytes of one that is refused for its message are not taken either.
    refused(lambda: quotas.begin("b", both, 2000))
    clock.pass_seconds(1)
    quotas.begin("b", both, 2000)


def test_a_message_larger_than_the_quota_waits_for_a_full_bucket_and_leaves_a_debt(
    quotas: PublishQuotas, clock: Clock
) -> None:
    quotas.begin("a", BYTES, 10_000)
    assert refused(lambda: quotas.begin("a", BYTES, 1)) == pytest.approx(8, abs=0.01)
    clock.pass_seconds(8.5)
    quotas.begin("a", BYTES, 500)
    refused(lambda: quotas.begin("a", BYTES, 10_000))


def test_what_comes_without_a_length_is_counted_while_it_arrives(quotas: PublishQuotas, clock: Clock) -> None:
    quotas.begin("a", BYTES, 1)
    charge = quotas.begin("a", BYTES, None)
    assert charge is not None
    charge(0)
    charge(1000)
    charge(900)
    refused(lambda: charge(500))
    refused(lambda: quotas.begin("a", BYTES, 500))
    clock.pass_seconds(0.5)
    charge(500)


def test_it_goes_through_whole_when_the_bucket_is_full_as_if_its_length_had_been_said(
    quotas: PublishQuotas, clock: Clock
) -> None:
    charge, other = quotas.begin("a", BYTES, None), quotas.begin("a", BYTES, None)
    assert charge is not None
    assert other is not None
    for _ in range(10):
        charge(1000)
    # One of several that began at once.
    refused(lambda: other(1))
    assert refused(lambda: quotas.begin("a", BYTES, None)) == pytest.approx(8, abs=0.01)


def test_a_debt_has_an_end_however_much_arrives(quotas: PublishQuotas) -> None:
    charge = quotas.begin("a", BYTES, None)
    assert charge is not None
    for _ in range(100):
        charge(10**9)
    assert refused(lambda: quotas.begin("a", BYTES, 1)) <= MAX_DEBT_SECONDS + 1


def test_without_quotas_nothing_is_counted(quotas: PublishQuotas) -> None:
    for _ in range(1000):
        assert quotas.begin("a", Quotas(subscriptions=1), None) is None


def test_the_owners_that_are_remembered_are_bounded_and_those_that_owe_most_stay(clock: Clock) -> None:
    buckets, rate = Buckets(clock, max_owners=100), Rate(1, 10)
    for number in range(10_000):
        buckets.charge(f"owner-{number % 1000}", rate, 1)
        buckets.charge("greedy", rate, 1)
        assert len(buckets) <= 100
    assert not buckets.ask("greedy", rate, 1).allowed
    clock.pass_seconds(MAX_DEBT_SECONDS + 10)
    for number in range(200):
        buckets.charge(f"later-{number}", rate, 1)
    assert len(buckets) <= 100
    assert buckets.is_full("greedy")
