"""The circuit of one endpoint: it opens, it probes, it closes, and the clock cannot confuse it."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from httppubsubclient.protocol.circuit import (
    NEW_CIRCUIT,
    NEXT_PHASE,
    Circuit,
    CircuitRules,
    Event,
    Phase,
    after_failure,
    after_success,
    allowed,
    next_moment,
    phase,
)
from httppubsubclient.protocol.retry import MAX_RETRY_AFTER_SECONDS

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "circuit.json").read_text())
HOUR = 3600.0
NOW = 1.8e9
PAUSES = (Phase.OPEN, Phase.SLOWED)

RANDOM = st.floats(0, 1, exclude_max=True)
RULES = st.builds(
    lambda limit, failures, shortest, factor: CircuitRules(limit, failures, shortest, min(shortest * factor, 86_400.0)),
    st.integers(1, 1000),
    st.integers(1, 10),
    st.floats(0.01, 60),
    st.floats(1, 1000),
)
STEPS = st.lists(
    st.tuples(
        st.floats(-2 * HOUR, 2 * HOUR) | st.floats(0, 10),
        st.sampled_from(Event),
        RANDOM,
        st.floats(0, 1e6),
    ),
    max_size=30,
)
"""How far the clock goes, back too, and what happens then."""


def after(
    state: Circuit, event: Event, now: float, rules: CircuitRules, random: float = 0.5, retry_after: float = 10
) -> Circuit:
    if event is Event.SUCCESS:
        return after_success(state, now, rules)
    wait = retry_after if event is Event.TOLD_TO_WAIT else None
    return after_failure(state, now, rules, random=random, retry_after=wait)


def lived_through(steps: list[tuple[float, Event, float, float]], rules: CircuitRules) -> tuple[Circuit, float]:
    state, now = NEW_CIRCUIT, NOW
    for passed, event, random, retry_after in steps:
        now += passed
        state = after(state, event, now, rules, random, retry_after)
    return state, now


@pytest.mark.parametrize("story", VECTORS["stories"], ids=lambda story: str(story["name"]))
def test_a_circuit_goes_this_way(story: dict[str, Any]) -> None:
    rules = CircuitRules(**VECTORS["rules"])
    state = NEW_CIRCUIT
    for number, (now, event, random, retry_after, expected, may_run, following) in enumerate(story["steps"]):
        if event == "success":
            state = after_success(state, now, rules)
        elif event == "failure":
            state = after_failure(state, now, rules, random=random, retry_after=retry_after)
        assert phase(state, now) is Phase(expected), number
        assert allowed(state, now, rules) == may_run, number
        assert next_moment(state, now) == pytest.approx(following), number


def test_the_table_has_every_phase_and_event() -> None:
    assert set(NEXT_PHASE) == set(product(Phase, Event))


@given(RULES, STEPS, st.sampled_from(Event), st.floats(-HOUR, HOUR))
def test_every_step_is_one_of_the_table(
    rules: CircuitRules, steps: list[tuple[float, Event, float, float]], event: Event, passed: float
) -> None:
    state, now = lived_through(steps, rules)
    now += passed
    before = phase(state, now)
    following = phase(after(state, event, now, rules), now)
    expected = {NEXT_PHASE[before, event]}
    if (before, event) == (Phase.CLOSED, Event.FAILURE):
        expected.add(Phase.OPEN)
    elif Phase.CLOSING in expected:
        expected.add(Phase.CLOSED)
    assert following in expected


@given(RULES, STEPS)
def test_time_and_successes_close_it_from_wherever_it_is(
    rules: CircuitRules, steps: list[tuple[float, Event, float, float]]
) -> None:
    state, now = lived_through(steps, rules)
    for _ in range(2 + rules.limit.bit_length()):
        if phase(state, now) is Phase.CLOSED:
            break
        now = next_moment(state, now)
        assert allowed(state, now, rules) >= 1
        state = after_success(state, now, rules)
    assert phase(state, now) is Phase.CLOSED
    assert allowed(state, now, rules) == rules.limit


@given(RULES, STEPS, st.floats(-HOUR, HOUR))
def test_a_pause_has_bounds_and_only_pauses_stop_everything(
    rules: CircuitRules, steps: list[tuple[float, Event, float, float]], passed: float
) -> None:
    state, now = lived_through(steps, rules)
    now += passed
    longest = MAX_RETRY_AFTER_SECONDS if state.stored is Phase.SLOWED else rules.longest_pause_seconds
    assert 0 <= next_moment(state, now) - now <= longest + 1e-6
    assert (allowed(state, now, rules) == 0) is (phase(state, now) in PAUSES)
    assert 0 <= allowed(state, now, rules) <= rules.limit


@given(RULES, st.lists(RANDOM, min_size=1, max_size=80))
def test_failed_probes_make_longer_pauses_up_to_the_longest(rules: CircuitRules, randoms: list[float]) -> None:
    state, now = NEW_CIRCUIT, 0.0
    for _ in range(rules.failures_to_open - 1):
        state = after(state, Event.FAILURE, now, rules)
    for number, random in enumerate(randoms):
        state = after_failure(state, now, rules, random=random, retry_after=None)
        full = min(rules.shortest_pause_seconds * 2.0**number, rules.longest_pause_seconds)
        pause = next_moment(state, now) - now
        assert full * 0.8 - 1e-6 <= pause <= full + 1e-6
        now = next_moment(state, now)
        assert phase(state, now) is Phase.PROBING


@given(RULES, st.lists(RANDOM, max_size=200))
def test_many_failures_at_once_make_one_pause(rules: CircuitRules, randoms: list[float]) -> None:
    state = NEW_CIRCUIT
    for _ in range(rules.failures_to_open):
        state = after(state, Event.FAILURE, NOW, rules)
    opened = state
    for random in randoms:
        state = after_failure(state, NOW, rules, random=random, retry_after=None)
    assert state == opened


@given(RULES, STEPS, st.lists(RANDOM, min_size=3, max_size=3))
def test_what_was_asked_for_is_waited_for(
    rules: CircuitRules, steps: list[tuple[float, Event, float, float]], randoms: list[float]
) -> None:
    state, now = lived_through(steps, rules)
    for random, retry_after in zip(randoms, (100.0, 7.0, 50.0), strict=True):
        state = after_failure(state, now, rules, random=random, retry_after=retry_after)
        state = after_success(state, now, rules)
    assert phase(state, now) is Phase.SLOWED
    assert next_moment(state, now) >= now + 100


@given(RULES, STEPS, st.floats(0, 2 * HOUR), st.lists(RANDOM, min_size=1, max_size=200))
def test_a_clock_set_back_makes_neither_a_storm_nor_a_standstill(
    rules: CircuitRules, steps: list[tuple[float, Event, float, float]], back: float, randoms: list[float]
) -> None:
    """An endpoint that is paused and stays down: one probe more at the most, then the pauses go on as before."""
    state, now = lived_through(steps, rules)
    if phase(state, now) not in PAUSES:
        return
    length = state.paused_until - state.paused_at
    now -= back
    assert next_moment(state, now) - now <= length
    assert allowed(state, now, rules) <= 1
    for random in randoms:
        now = next_moment(state, now)
        assert allowed(state, now, rules) == 1
        state = after_failure(state, now, rules, random=random, retry_after=None)
        pause = next_moment(state, now) - now
        assert 0.8 * rules.shortest_pause_seconds - 1e-6 <= pause <= rules.longest_pause_seconds + 1e-6


def test_a_failing_endpoint_with_a_clock_that_jumps_gets_few_attempts() -> None:
    """Ten hours, the clock set by an hour, back or forth, every half: the pauses of 5 minutes hold."""
    rules = CircuitRules(limit=64)
    state, lived, offset, attempts = NEW_CIRCUIT, 0.0, 0.0, 0
    while lived < 10 * HOUR:
        offset = -HOUR if int(lived / (HOUR / 2)) % 2 else 0.0
        now = NOW + lived + offset
        if allowed(state, now, rules):
            attempts += 1
            state = after_failure(state, now, rules, random=0.5, retry_after=None)
        else:
            lived += 1
    assert 100 <= attempts <= 5 + 10 + 10 * 14 + 20


@pytest.mark.parametrize(
    "wrong",
    [
        {"limit": 0},
        {"limit": 1, "failures_to_open": 0},
        {"limit": 1, "shortest_pause_seconds": 0},
        {"limit": 1, "shortest_pause_seconds": float("nan")},
        {"limit": 1, "shortest_pause_seconds": 301},
        {"limit": 1, "longest_pause_seconds": 86_401},
    ],
)
def test_rules_that_would_never_let_anything_through_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="circuit"):
        CircuitRules(**wrong)
