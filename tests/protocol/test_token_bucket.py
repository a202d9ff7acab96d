"""The token bucket: how much goes through, how long the rest waits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from httppubsubclient.protocol.errors import ConfigurationError
from httppubsubclient.protocol.token_bucket import FULL, MAX_DEBT_SECONDS, Rate, Taken, take

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "permissions.json").read_text())["buckets"]
SECOND = 1_000_000
rates = st.builds(Rate, st.integers(1, 1000) | st.floats(0.5, 1000), st.integers(1, 1000))


@pytest.mark.parametrize("row", VECTORS, ids=lambda row: f"{row['burst']} at once, {row['per_second']}/s")
def test_so_much_goes_through_and_so_long_the_rest_waits(row: dict[str, Any]) -> None:
    rate, state = Rate(row["per_second"], row["burst"]), FULL
    for now, amount, wait in row["steps"]:
        taken = take(rate, state, now, amount)
        assert (taken.wait_microseconds, taken.allowed) == (wait, wait == 0), (now, amount)
        state = taken.state


@pytest.mark.parametrize(
    ("per_second", "burst"),
    [(0, 1), (-1, 1), (1, 0), (float("nan"), 1), (1, float("inf")), (True, 1), ("1", 1), (1, 10**13), (1, 3601)],
)
def test_a_wrong_rate_is_refused(per_second: Any, burst: Any) -> None:
    with pytest.raises(ConfigurationError):
        Rate(per_second, burst)


@given(rates, st.integers(0, 10**16), st.integers(0, 10**7), st.integers(0, 5000))
def test_what_waits_as_long_as_it_is_told_goes_through(rate: Rate, now: int, ahead: int, amount: int) -> None:
    first = take(rate, now + ahead, now, amount)
    if not first.allowed:
        after = now + first.wait_microseconds
        assert not take(rate, first.state, after - 1, amount).allowed
        assert take(rate, first.state, after, amount).allowed
        assert first.wait_microseconds <= rate.filling + MAX_DEBT_SECONDS * SECOND


@given(rates, st.lists(st.tuples(st.integers(0, 3 * SECOND), st.integers(0, 50)), min_size=1, max_size=40))
def test_the_rate_holds_over_any_time(rate: Rate, asked: list[tuple[int, int]]) -> None:
    """What goes through is at most the bucket, what has come since, and one amount on credit."""
    now, state, through = 10**15, FULL, []
    for after, amount in asked:
        now += after
        taken = take(rate, state, now, amount)
        state = taken.state
        if taken.allowed:
            through.append((now, amount))
    for start in range(len(through)):
        for end in range(start, len(through)):
            seconds = (through[end][0] - through[start][0]) / SECOND
            total = sum(amount for _, amount in through[start : end + 1])
            on_credit = max(amount for _, amount in through)
            assert total <= rate.burst + rate.per_second * seconds + on_credit + 1e-3


@given(rates, st.integers(0, 10**16), st.integers(0, 10**16), st.integers(0, 5000))
def test_nobody_waits_longer_than_the_bound_whatever_the_state(rate: Rate, state: int, now: int, amount: int) -> None:
    taken = take(rate, state, now, amount)
    assert 0 <= taken.wait_microseconds <= rate.filling + MAX_DEBT_SECONDS * SECOND
    assert taken.state >= now
    assert take(rate, state, now, amount) == taken


def test_a_bucket_that_nothing_was_taken_from_is_full_at_any_moment() -> None:
    assert take(Rate(1, 5), FULL, 10**15, 5) == Taken(10**15 + 5 * SECOND, 0)
    assert take(Rate(1, 5), FULL, 0, 5).allowed
