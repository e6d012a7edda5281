"""A scenario that is interrupted leaves no process."""

from __future__ import annotations

import subprocess

import pytest

from tests.rollout.molecule import ending_with_all_it_started

STUBBORN = "trap '' TERM; sleep 1000 & echo begun; wait"


def test_plays_end_with_the_scenario_that_is_interrupted() -> None:
    with subprocess.Popen(
        ["sh", "-c", STUBBORN], stdout=subprocess.PIPE, start_new_session=True
    ) as molecule:
        assert molecule.stdout is not None
        assert molecule.stdout.readline() == b"begun\n"
        with pytest.raises(KeyboardInterrupt), ending_with_all_it_started(molecule, patience_s=1):
            raise KeyboardInterrupt
        # Its output ends when every process that it started has.
        assert molecule.stdout.read() == b""
