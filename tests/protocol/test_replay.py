"""The replay window: nothing twice, whatever the memory and the clock do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from httppubsubclient.protocol.replay import ReplayWindow

TOLERANCE = 10


def offer(window: ReplayWindow, key: str, created: int, now: float) -> bool:
    return window.first_time(key, created=created, until=created + TOLERANCE, now=now)


def test_a_key_passes_once_until_its_end_and_never_after() -> None:
    window = ReplayWindow(100)
    assert [offer(window, "a", 0, now) for now in (0, 0, 5, 9.999, 10, 11, 1000)] == [True] + [False] * 6


def test_keys_that_have_ended_are_forgotten() -> None:
    window = ReplayWindow(100)
    for created in range(1000):
        assert offer(window, f"k{created}", created, created)
        assert len(window) <= TOLERANCE + 1


def test_a_full_window_forgets_its_oldest_second_and_refuses_whatever_is_as_old() -> None:
    window = ReplayWindow(3)
    assert offer(window, "a", 1, 5)
    assert offer(window, "b", 2, 5)
    assert offer(window, "c", 3, 5)
    assert offer(window, "d", 4, 5), "a is forgotten"
    assert not offer(window, "a", 1, 5), "not let in again"
    assert not offer(window, "new", 1, 5), "it might be one that was forgotten"
    assert not offer(window, "b", 2, 5)
    assert offer(window, "e", 5, 5)
    assert not offer(window, "late", 2, 5)


def test_a_full_window_refuses_what_is_older_than_everything_in_it() -> None:
    window = ReplayWindow(2)
    assert offer(window, "a", 5, 5)
    assert offer(window, "b", 6, 6)
    assert not offer(window, "c", 4, 6)
    assert not offer(window, "d", 5, 6)
    assert len(window) == 2


def test_a_clock_that_is_set_back_lets_nothing_in_again() -> None:
    window = ReplayWindow(100)
    assert offer(window, "a", 0, 0)
    assert offer(window, "b", 20, 20)
    assert len(window) == 1
    assert not offer(window, "a", 0, 5)
    assert offer(window, "c", 5, 5), "what is younger than the forgotten still passes"


def test_a_nonce_that_its_sender_dates_anew_is_still_the_same() -> None:
    window = ReplayWindow(100)
    assert offer(window, "a", 0, 0)
    assert not offer(window, "a", 5, 5)


@pytest.mark.parametrize("entries", [0, -1])
def test_a_window_remembers_at_least_one(entries: int) -> None:
    with pytest.raises(ValueError, match="at least one"):
        ReplayWindow(entries)


@given(
    st.integers(1, 5),
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 30), st.integers(0, 40)), max_size=30),
)
def test_nothing_ever_passes_twice(entries: int, offers: list[tuple[int, int, int]]) -> None:
    window = ReplayWindow(entries)
    passed = set()
    for number, created, now in offers:
        key = f"{number}@{created}"
        if offer(window, key, created, now):
            assert key not in passed
            assert now < created + TOLERANCE
            passed.add(key)
        assert len(window) <= entries


def test_what_is_remembered_later_is_known_from_then_on() -> None:
    window = ReplayWindow(2)
    assert window.seen("a", created=5, now=5) is False
    window.remember("a", created=5, until=100, now=6)
    assert window.seen("a", created=5, now=6) is True
    assert window.seen("a", created=9, now=6) is True
    window.remember("a", created=9, until=100, now=6)  # twice at the same time: nothing is forgotten for that
    assert window.seen("b", created=3, now=6) is False
    window.remember("b", created=8, until=100, now=6)
    # There is no room for what is older than all of them: from now on that may have been seen.
    window.remember("c", created=3, until=100, now=6)
    assert window.seen("c", created=3, now=6) is None
    assert window.seen("d", created=4, now=6) is False


@given(
    st.integers(1, 4),
    st.lists(
        st.tuples(st.sampled_from("abcdefgh"), st.integers(-TOLERANCE, TOLERANCE), st.integers(0, 5)), max_size=60
    ),
)
def test_nothing_is_taken_twice_with_the_same_timestamp(max_entries: int, steps: list[tuple[str, int, int]]) -> None:
    """As the client uses it: seen, then remembered once it was taken."""
    window, now = ReplayWindow(max_entries), 1000
    taken: set[tuple[str, int]] = set()
    for key, ahead, passed in steps:
        now += passed
        created = now + ahead
        for one in {(key, created), *taken}:
            if abs(now - one[1]) > TOLERANCE or window.seen(one[0], created=one[1], now=now) is not False:
                continue
            assert one not in taken
            window.remember(one[0], created=one[1], until=now + 2 * TOLERANCE + 1, now=now)
            taken.add(one)
