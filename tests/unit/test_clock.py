"""Deadlines are kept on a clock that nobody can set."""

from __future__ import annotations

from pathlib import Path

from runner.timing import HostClock


def told_by_the_kernel() -> float:
    """Give the seconds since the boot, suspended ones included, to a hundredth (proc(5))."""
    return float(Path("/proc/uptime").read_text().split()[0])


def test_uptime_is_the_kernels_time_since_the_boot() -> None:
    before = told_by_the_kernel()
    uptime_s = HostClock().uptime_s()

    assert before <= uptime_s <= told_by_the_kernel() + 0.01


def test_boot_has_one_id_for_every_runner_of_it() -> None:
    assert HostClock().boot_id == HostClock().boot_id
    assert len(HostClock().boot_id) == 36
