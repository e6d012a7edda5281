"""The short soak, which `./dev test` runs: nothing lost, nothing run twice, under 200 faults."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from tests.soak.run import run_soak

if TYPE_CHECKING:
    from pathlib import Path

    from tests.engines import Engine

SEED_VARIABLE = "VICTORIA_SOAK_SEED"
SEED = 1
TASKS = 300
FEWEST_FAULTS = 200
STUCK_S = 3600
"""Ten minutes are enough on two cores with nothing else to do; it is not what is tested."""


@pytest.mark.timeout(STUCK_S)
def test_no_task_is_lost_and_none_runs_twice_under_random_faults(
    engines: list[Engine], image: str, tmp_path: Path
) -> None:
    began = time.monotonic()
    seed = int(os.environ.get(SEED_VARIABLE, SEED))
    outcome = run_soak(seed, TASKS, engines[0], image, tmp_path / "soak", print)
    table = outcome.table(minutes=(time.monotonic() - began) / 60)
    print(table)
    assert outcome.is_clean, table
    assert sum(outcome.faults.values()) >= FEWEST_FAULTS, table
