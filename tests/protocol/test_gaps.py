"""What the numbers of deliveries tell: against a model that remembers everything, and with little memory."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from httppubsubclient.protocol.gaps import Arrival, Continuity, SeenNumbers

IN_ORDER = Arrival(Continuity.IN_ORDER)
DUPLICATE = Arrival(Continuity.DUPLICATE)
OUT_OF_ORDER = Arrival(Continuity.OUT_OF_ORDER)
RESTARTED = Arrival(Continuity.RESTARTED)

NUMBERS = st.lists(st.integers(1, 60), max_size=120)


def arrive(sequence: SeenNumbers, number: int, *, history: str = "m") -> Arrival:
    return sequence.arrived(number, f"{history}{number}", f"{history}{number - 1}" if number > 1 else None)


class Model:
    """Remembers every number."""

    def __init__(self) -> None:
        self.seen: set[int] = set()
        self.last = 0

    def arrived(self, number: int) -> Arrival:
        if number in self.seen:
            return DUPLICATE
        self.seen.add(number)
        if number < self.last:
            return OUT_OF_ORDER
        jumped = range(self.last + 1, number)
        self.last = number
        return Arrival(Continuity.GAP, jumped) if jumped else IN_ORDER

    @property
    def missing(self) -> set[int]:
        return set(range(1, self.last + 1)) - self.seen


def numbers_of(gaps: tuple[range, ...]) -> set[int]:
    return {number for gap in gaps for number in gap}


def assert_tidy(gaps: tuple[range, ...]) -> None:
    assert all(gaps), "no empty range"
    assert all(low.stop < high.start for low, high in pairwise(gaps))


@given(NUMBERS)
def test_it_says_what_a_model_with_endless_memory_says(numbers: list[int]) -> None:
    sequence, model = SeenNumbers(0), Model()
    for number in numbers:
        assert arrive(sequence, number) == model.arrived(number)
        assert sequence.last == model.last
        assert numbers_of(sequence.missing) == model.missing
        assert sequence.complete_to == min(model.missing, default=model.last + 1) - 1
        assert_tidy(sequence.missing)


@given(NUMBERS, st.integers(1, 5), st.integers(1, 5))
def test_with_little_memory_it_never_says_that_all_is_well_when_it_is_not(
    numbers: list[int], max_recent: int, max_gaps: int
) -> None:
    sequence, model = SeenNumbers(0, max_recent=max_recent, max_gaps=max_gaps), Model()
    for number in numbers:
        said, true = arrive(sequence, number), model.arrived(number)
        assert said == true or (said, true) == (OUT_OF_ORDER, DUPLICATE)
        assert numbers_of(sequence.missing) >= model.missing
        assert sequence.complete_to is not None
        assert sequence.complete_to < min(model.missing, default=model.last + 1)
        assert len(sequence.missing) <= max_gaps
        assert_tidy(sequence.missing)


@given(st.integers(1, 200), st.integers(1, 50))
def test_whoever_knows_nothing_begins_with_what_comes_first(first: int, more: int) -> None:
    sequence = SeenNumbers()
    assert sequence.last is None
    assert sequence.complete_to is None
    for number in range(first, first + more):
        assert arrive(sequence, number) == IN_ORDER
    assert sequence.missing == ()
    if first > 1:
        assert arrive(sequence, first - 1) == OUT_OF_ORDER


def test_after_a_restart_of_the_receiver_counting_goes_on() -> None:
    sequence = SeenNumbers(7, "m7")
    assert arrive(sequence, 7) == DUPLICATE
    assert arrive(sequence, 10) == Arrival(Continuity.GAP, range(8, 10))
    assert sequence.complete_to == 7


@given(NUMBERS, st.integers(0, 70))
def test_what_was_given_up_is_not_missing(numbers: list[int], through: int) -> None:
    sequence, model = SeenNumbers(0), Model()
    for number in numbers:
        arrive(sequence, number)
        model.arrived(number)
    sequence.give_up(through)
    assert numbers_of(sequence.missing) == {number for number in model.missing if number > through}
    assert_tidy(sequence.missing)


@pytest.mark.parametrize(
    ("number", "why"),
    [(3, "the number had another message"), (6, "the one before was another"), (4, "the one before was another")],
)
def test_numbers_of_another_history_begin_anew(number: int, why: str) -> None:
    sequence = SeenNumbers(0)
    for seen in (1, 2, 3, 5):
        arrive(sequence, seen)
    assert arrive(sequence, number, history="x") == RESTARTED, why
    assert (sequence.last, sequence.missing) == (number, ())
    assert arrive(sequence, number + 1, history="x") == IN_ORDER
    assert arrive(sequence, number, history="x") == DUPLICATE


def test_a_number_with_another_message_begins_anew_even_if_nothing_is_told_of_the_one_before() -> None:
    seen = SeenNumbers(0)
    assert seen.arrived(1, "m1", None) == IN_ORDER
    assert seen.arrived(1, "x1", None) == RESTARTED
    assert seen.arrived(2, "x2", "x1") == IN_ORDER


def test_a_broadcaster_that_does_not_tell_what_was_before_is_believed() -> None:
    sequence = SeenNumbers(0)
    assert [sequence.arrived(number, f"m{number}", None) for number in (1, 2, 2)] == [IN_ORDER, IN_ORDER, DUPLICATE]


def test_a_jump_over_nearly_all_numbers_costs_nothing() -> None:
    sequence = SeenNumbers(0)
    end = 10**18
    assert arrive(sequence, end) == Arrival(Continuity.GAP, range(1, end))
    assert arrive(sequence, end // 2) == OUT_OF_ORDER
    assert sequence.missing == (range(1, end // 2), range(end // 2 + 1, end))


def test_a_memory_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="remembers"):
        SeenNumbers(max_recent=0)
    with pytest.raises(ValueError, match="remembers"):
        SeenNumbers(max_gaps=0)
