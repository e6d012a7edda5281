"""Waits grow, are spread, keep to their bounds, and grant what the other side asks for."""

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.timing import HostClock, Retry, RetryPolicy, Timings, jittered_s, retry
from tests.harness.clock import PassingClock

POLICY = RetryPolicy()
attempts = st.integers(1, 10**9)


class Lost(Exception):
    """A failure whose other side asks for a wait."""

    def __init__(self, retry_after_s: float | None = None) -> None:
        self.retry_after_s = retry_after_s


@given(attempts, st.floats(0, 3600))
def test_wait_keeps_to_its_ceiling_and_shortest(failures: int, ceiling_s: float) -> None:
    for policy in (POLICY, RetryPolicy(ceiling_s=ceiling_s)):
        longest_s = max(policy.ceiling_s, policy.shortest_s)
        assert policy.shortest_s <= policy.wait_s(failures) <= longest_s


@pytest.mark.parametrize(("failures", "widest"), [(1, 2), (5, 32), (10, 60)])
def test_waits_are_short_at_first_and_spread(failures: int, widest: float) -> None:
    waits = [POLICY.wait_s(failures) for _ in range(1000)]
    assert widest * 0.9 < max(waits) <= widest
    assert min(waits) < max(widest * 0.1, POLICY.shortest_s * 1.1)


@given(attempts, st.floats(0.1, allow_nan=False))
def test_wait_that_was_asked_for_is_granted_up_to_an_hour(failures: int, asked_s: float) -> None:
    shortest_s = min(asked_s, 3600)
    longest_s = max(shortest_s * 1.1, POLICY.ceiling_s)
    assert shortest_s <= POLICY.wait_s(failures, asked_s) <= longest_s


@given(st.floats(0.001, 1e6))
def test_regular_wait_is_spread_by_a_tenth(interval_s: float) -> None:
    assert interval_s * 0.9 <= jittered_s(interval_s) <= interval_s * 1.1


def test_every_deadline_and_pause_is_more_than_nothing() -> None:
    assert all(value > 0 for value in dataclasses.asdict(Timings()).values())


def test_uptime_is_the_kernel_s_time_since_the_boot_which_has_one_id() -> None:
    def kernel_s() -> float:  # suspended seconds included, to a hundredth (proc(5))
        return float(Path("/proc/uptime").read_text().split()[0])

    before = kernel_s()
    assert before <= HostClock().uptime_s() <= kernel_s() + 0.01
    assert HostClock().boot_id == HostClock().boot_id
    assert len(HostClock().boot_id) == 36


async def waits_of(failures: int, error: Exception, policy: RetryPolicy) -> list[float]:
    clock, waits_s, left = PassingClock(), list[float](), [error] * failures
    began_s = clock.awake_s()

    async def call() -> None:
        if left:
            raise left.pop()

    try:
        await retry(call, Lost, Retry(clock, policy, lambda _, wait_s: waits_s.append(wait_s)))
    finally:
        assert clock.awake_s() - began_s == pytest.approx(sum(waits_s))
    return waits_s


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("policy", "waits_s"),
    [
        (RetryPolicy.every(5), [5, 5, 5]),
        (RetryPolicy.every(40, gives_up_after_s=100), [40, 40, 20]),
    ],
    ids=["without end", "cut to the time that is left"],
)
async def test_call_is_retried_until_it_returns(policy: RetryPolicy, waits_s: list[float]) -> None:
    assert await waits_of(3, Lost(), policy) == waits_s
    (asked_s,) = await waits_of(1, Lost(retry_after_s=120), RetryPolicy())
    assert 120 <= asked_s <= 132


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("policy", "failures"),
    [(RetryPolicy.every(40, gives_up_after_s=100), 3), (RetryPolicy(gives_up_after_failures=3), 2)],
    ids=["after its time", "after so many failures"],
)
async def test_retry_gives_up_with_the_last_error(policy: RetryPolicy, failures: int) -> None:
    await waits_of(failures, Lost(), policy)
    with pytest.raises(Lost):
        await waits_of(failures + 1, Lost(), policy)
    with pytest.raises(ValueError, match="not retried"):
        await waits_of(1, ValueError("not retried"), policy)
