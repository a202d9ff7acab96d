"""Durable delivery under torture: processes die, nothing that was acknowledged is lost. See torture/conductor.py."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path

import pytest

from tests.e2e.torture.bugs import BUGS
from tests.e2e.torture.conductor import Outcome, torture
from tests.e2e.torture.plans import buggy_plan, short_plan, soak_plan
from tests.e2e.torture.points import POINTS

SOAK_MINUTES = 3.0


def fresh_seed() -> str:
    """Shown when the test fails; `python -m tests.e2e.torture.conductor --seed SEED` does the same again."""
    seed = secrets.token_hex(4)
    print(f"seed {seed}")
    return seed


async def test_nothing_acknowledged_is_lost_whatever_dies(tmp_path: Path) -> None:
    outcome = await torture(short_plan(fresh_seed()), tmp_path)
    assert outcome.right, outcome.text
    assert not outcome.troubles
    assert outcome.reached == set(POINTS)
    # A death between a POST and its settlement leaves no choice but to send it again.
    assert outcome.verdict["counts"]["deliveries taken again"] > 0


async def test_the_checker_finds_a_broadcaster_with_a_bug(tmp_path: Path) -> None:
    async def run(bug: str) -> Outcome:
        folder = tmp_path / bug
        folder.mkdir()
        return await torture(buggy_plan(fresh_seed(), bug), folder)

    for bug, outcome in zip(BUGS, await asyncio.gather(*map(run, BUGS)), strict=True):
        assert not outcome.right, bug
        assert "lost" in outcome.verdict["breaches"], (bug, outcome.text)


@pytest.mark.soak
@pytest.mark.timeout((SOAK_MINUTES + 8) * 60)
async def test_nothing_acknowledged_is_lost_in_minutes(tmp_path: Path) -> None:
    outcome = await torture(soak_plan(fresh_seed(), SOAK_MINUTES), tmp_path)
    print(outcome.text)
    assert outcome.right, outcome.text
    assert not outcome.troubles
    assert outcome.reached == set(POINTS)
