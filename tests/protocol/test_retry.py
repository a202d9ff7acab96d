"""What an answer means, and when the next attempt is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from httppubsubclient.protocol.retry import (
    MAX_RETRY_AFTER_SECONDS,
    QUICK_RETRY_SECONDS,
    Verdict,
    backoff_delay,
    quick_retry_delay,
    retry_after_seconds,
    verdict,
)

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "retry.json").read_text())
RANDOM = st.floats(0, 1, exclude_max=True)


@pytest.mark.parametrize(("status", "meaning"), VECTORS["verdicts"].items())
def test_an_answer_has_one_meaning(status: str, meaning: str) -> None:
    assert verdict(int(status)) is Verdict(meaning)


@pytest.mark.parametrize(("header", "seconds"), VECTORS["retry_after"])
def test_retry_after_is_read_strictly_and_clamped(header: str | None, seconds: float | None) -> None:
    assert retry_after_seconds(header, VECTORS["now"]) == seconds


@given(st.text(max_size=70), st.integers(0, 2**32))
def test_a_random_retry_after_is_none_or_within_bounds(header: str, now: int) -> None:
    seconds = retry_after_seconds(header, now)
    assert seconds is None or 0 <= seconds <= MAX_RETRY_AFTER_SECONDS


@pytest.mark.parametrize(("attempt", "random", "retry_after", "seconds"), VECTORS["quick_retry"])
def test_best_effort_waits_so_long(
    attempt: int, random: float, retry_after: float | None, seconds: float | None
) -> None:
    assert quick_retry_delay(attempt, random, retry_after) == (None if seconds is None else pytest.approx(seconds))


@given(st.integers(1, len(QUICK_RETRY_SECONDS)), RANDOM, st.none() | st.floats(0, 10))
def test_a_quick_retry_never_comes_before_retry_after(attempt: int, random: float, retry_after: float | None) -> None:
    delay = quick_retry_delay(attempt, random, retry_after)
    assert delay is not None
    assert delay >= (retry_after or 0)
    assert delay >= QUICK_RETRY_SECONDS[attempt - 1] / 2


@pytest.mark.parametrize(("attempt", "random", "base", "maximum", "seconds"), VECTORS["backoff"])
def test_the_back_off_doubles_up_to_its_maximum(
    attempt: int, random: float, base: float, maximum: float, seconds: float
) -> None:
    assert backoff_delay(attempt, random, base_seconds=base, max_seconds=maximum) == pytest.approx(seconds)


@given(st.integers(), RANDOM, st.floats(0, 1e6), st.floats(0, 1e6))
def test_a_back_off_is_never_negative_nor_beyond_its_maximum(
    attempt: int, random: float, base: float, maximum: float
) -> None:
    assert 0 <= backoff_delay(attempt, random, base_seconds=base, max_seconds=maximum) <= maximum
