"""How fast a body has to come."""

from __future__ import annotations

import pytest

from httppubsubserver.http_requests import slowness

MIB = 1024 * 1024


@pytest.mark.parametrize(
    ("elapsed", "size", "fast_enough"),
    [
        (0, 0, True),
        (30, 1, True),
        (31, 1, False),  # a byte now and then
        (60, 32 * 1024, True),
        (600, 600 * 1024, True),  # a small one over a bad line
        (610, MIB, True),
        (700, MIB, False),
        (1500, 60 * MIB, True),
        (20_000, 1024 * MIB, False),
        (16_000, 1024 * MIB, True),
    ],
)
def test_a_body_comes_with_a_least_speed_and_with_more_when_it_takes_long(
    elapsed: float, size: int, fast_enough: bool
) -> None:
    assert (slowness(elapsed, size, 30) is None) == fast_enough
