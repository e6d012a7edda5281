"""Molecule's command line."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCENARIO_TIMEOUT_S = 1500
PATIENCE_S = 20
SHOWN = 60


def run(action: str, scenario: str, *options: str) -> None:
    """Run an action of a scenario; what it said is in a file, and the last of it in the failure."""
    log = Path(os.environ["VICTORIA_ROLLOUT_FOLDER"]) / f"{scenario}-{action}.log"
    with log.open("wb") as output:
        molecule = subprocess.Popen(
            ["molecule", action, f"--scenario-name={scenario}", *options],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        with ending_with_all_it_started(molecule):
            code = molecule.wait(SCENARIO_TIMEOUT_S)
    said = log.read_text(errors="replace")
    for step, seconds in durations(said):
        print(f"{scenario} {step}: {seconds} s")
    if code != 0:
        pytest.fail(
            f"molecule {action} {scenario} failed, see {log}\n{essence(said)}", pytrace=False
        )


@contextmanager
def ending_with_all_it_started(
    program: subprocess.Popen[bytes], patience_s: float = PATIENCE_S
) -> Iterator[None]:
    """Wherever the wait for it is broken off, end the plays that Molecule runs as well."""
    try:
        yield
    except BaseException:
        with suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                program.wait(patience_s)
            os.killpg(program.pid, signal.SIGKILL)
        program.wait()
        raise


def durations(said: str) -> list[tuple[str, int]]:
    """Give the steps of a scenario and how long each took, from the clock that each task shows."""
    steps = []
    for part in re.split(r"^INFO +\[", said, flags=re.MULTILINE):
        name = re.match(r"[\w-]+ > (\w+)\] Executing", part)
        clock = re.findall(r"\) +(\d+):(\d+):(\d+)\.\d+ \*", part)
        if name and clock:
            hours, minutes, seconds = (int(number) for number in clock[-1])
            steps.append((name[1], hours * 3600 + minutes * 60 + seconds))
    return steps


def essence(said: str) -> str:
    """Give the lines that matter of what Ansible said."""
    lines = said.splitlines()
    first = next((at for at, line in enumerate(lines) if re.match(r"fatal|\[ERROR\]", line)), 0)
    return "\n".join(line[:2000] for line in lines[max(0, first - 10) : first + SHOWN])
