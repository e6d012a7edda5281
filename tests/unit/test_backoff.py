"""Waits grow, are spread, keep to their bounds, and grant what the other side asks for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.timing import CEILING_S, SHORTEST_S, delay_s, jittered_s

attempts = st.integers(1, 10**9)


@given(attempts)
def test_wait_keeps_to_its_bounds(failures: int) -> None:
    assert SHORTEST_S <= delay_s(failures) <= CEILING_S


@given(attempts, st.floats(SHORTEST_S, 3600))
def test_wait_keeps_to_a_ceiling_of_the_caller_s(failures: int, ceiling_s: float) -> None:
    assert SHORTEST_S <= delay_s(failures, ceiling_s=ceiling_s) <= ceiling_s


@given(attempts, st.floats(0, SHORTEST_S))
def test_ceiling_below_the_shortest_wait_gives_the_shortest_wait(
    failures: int, ceiling_s: float
) -> None:
    assert delay_s(failures, ceiling_s=ceiling_s) == SHORTEST_S


@pytest.mark.parametrize(("failures", "widest"), [(1, 2), (2, 4), (3, 8), (5, 32)])
def test_early_waits_are_short(failures: int, widest: float) -> None:
    assert max(delay_s(failures) for _ in range(200)) <= widest


def test_a_fleet_does_not_come_back_at_once() -> None:
    waits = [delay_s(10) for _ in range(1000)]

    assert min(waits) < 6
    assert max(waits) > 54


@given(attempts, st.floats(0.1, 3600))
def test_wait_that_was_asked_for_is_granted(failures: int, asked_s: float) -> None:
    granted = delay_s(failures, at_least_s=asked_s)

    assert asked_s <= granted <= max(asked_s * 1.1, CEILING_S)


@given(attempts, st.floats(3600, allow_nan=False))
def test_wait_of_more_than_an_hour_is_not_granted(failures: int, asked_s: float) -> None:
    assert 3600 <= delay_s(failures, at_least_s=asked_s) <= 3960


@given(st.floats(0.001, 1e6))
def test_regular_wait_is_spread_by_a_tenth(interval_s: float) -> None:
    assert interval_s * 0.9 <= jittered_s(interval_s) <= interval_s * 1.1
