"""Molecule's command line."""

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
END_S = 20
SHOWN = 60


def run(action: str, scenario: str, *options: str, inventory: str) -> None:
    """Run an action of a scenario; its output is in a file, and the cause in the failure.

    `inventory` is a file in molecule/inventory, without its ending.
    """
    log = Path(os.environ["VICTORIA_ROLLOUT_FOLDER"]) / f"{scenario}-{action}.log"
    with log.open("wb") as output:
        molecule = subprocess.Popen(
            ["molecule", action, f"--scenario-name={scenario}", *options],
            cwd=ROOT,
            env={**os.environ, "VICTORIA_ROLLOUT_INVENTORY": inventory},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        with ending_with_all_it_started(molecule):
            code = molecule.wait(SCENARIO_TIMEOUT_S)
    if code != 0:
        cause = essence(log.read_text(errors="replace"))
        pytest.fail(f"molecule {action} {scenario} failed, see {log}\n{cause}", pytrace=False)


@contextmanager
def ending_with_all_it_started(
    program: subprocess.Popen[bytes], patience_s: float = END_S
) -> Iterator[None]:
    """End the plays that Molecule runs, too, if the block is interrupted."""
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


def essence(output: str) -> str:
    """Return the lines around the first failure in Ansible's output."""
    lines = output.splitlines()
    first = next((at for at, line in enumerate(lines) if re.match(r"fatal|\[ERROR\]", line)), 0)
    return "\n".join(line[:2000] for line in lines[max(0, first - 10) : first + SHOWN])
