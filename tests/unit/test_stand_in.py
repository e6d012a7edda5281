"""The stand-in program does what its prompt asks, and leaves files that tests can rely on."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[1] / "image" / "victoria_stand_in.py"
TASK = ("--accept-license", "--task")
UNKNOWN = "[nope] [fail] [fail x] [sleep soon] [hang on] [print 1"
IN_ORDER = "[print-line one][sleep 0.01] and [env NAME] [env NONE][stderr oh][fail 7][print 9]"


def run(home: Path, *arguments: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-S", "-E", PROGRAM, *arguments],
        env={"VICTORIA_HOME": str(home), "JOB_ID": "task-1", "NAME": "value"},
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("prompt", "done", "outcome"),
    [
        (UNKNOWN, (0, f"task: {UNKNOWN}\n", ""), "success"),
        (IN_ORDER, (7, "one\nNAME=value\nNONE is not set\n", "oh\n"), "failed with 7"),
    ],
    ids=["unknown directives are text", "directives are obeyed in their order"],
)
def test_prompt_is_obeyed_and_each_start_leaves_one_line(
    tmp_path: Path, prompt: str, done: tuple[int, str, str], outcome: str
) -> None:
    for number in (1, 2):
        assert run(tmp_path, *TASK, prompt) == done
        assert f"outcome: {outcome}" in (tmp_path / "tasks/task-1/result.txt").read_text()
        assert len((tmp_path / "tasks/task-1/starts.log").read_text().splitlines()) == number


def test_missing_licence_is_refused(tmp_path: Path) -> None:
    assert run(tmp_path, "--task", "x")[0] == 2
