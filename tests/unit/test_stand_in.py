"""The stand-in program does what its prompt asks, and leaves files that tests can rely on."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[1] / "image" / "victoria_stand_in.py"
UNKNOWN = "[nope] [fail] [fail x] [sleep soon] [hang on] [print 1"
IN_ORDER = "[print-line one][sleep 0.01] and [env NAME] [env NONE][stderr oh][fail 7][print 9]"


def run_with(arguments: list[str], home: Path, **environment: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-S", "-E", PROGRAM, *arguments],
        env={"VICTORIA_HOME": str(home), "JOB_ID": "task-1", "NAME": "value", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )
    return done.returncode, done.stdout, done.stderr


def run(home: Path, prompt: str, **environment: str) -> tuple[int, str, str]:
    return run_with(["--accept-license", "--task", prompt], home, **environment)


@pytest.mark.parametrize(
    ("prompt", "done", "outcome"),
    [
        ("hello [world]", (0, "task: hello [world]\n", ""), "success"),
        (UNKNOWN, (0, f"task: {UNKNOWN}\n", ""), "success"),
        (IN_ORDER, (7, "one\nNAME=value\nNONE is not set\n", "oh\n"), "failed with 7"),
    ],
    ids=["plain text", "unknown directives are text", "directives are obeyed in their order"],
)
def test_prompt_is_obeyed_and_each_start_leaves_one_line(
    tmp_path: Path, prompt: str, done: tuple[int, str, str], outcome: str
) -> None:
    for number in (1, 2):
        assert run(tmp_path, prompt) == done
        assert f"outcome: {outcome}" in (tmp_path / "tasks/task-1/result.txt").read_text()
        assert len((tmp_path / "tasks/task-1/starts.log").read_text().splitlines()) == number


@pytest.mark.parametrize(
    "arguments", [["--task", "x"], ["--accept-license", "--task", " "], ["--accept-license"], []]
)
def test_missing_licence_or_prompt_is_refused(tmp_path: Path, arguments: list[str]) -> None:
    code, _, errors = run_with(arguments, tmp_path)
    assert code == 2
    assert errors.startswith("cannot start: ")


def test_files_are_listed_with_size_and_checksum(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a b.txt").write_bytes(b"content")
    line = f"file: 7 {hashlib.sha256(b'content').hexdigest()} a b.txt"
    assert line in run(tmp_path, "look", TASK_FILES_DIR=f"{tmp_path}/files")[1].splitlines()
    assert line in (tmp_path / "tasks/task-1/result.txt").read_text().splitlines()


def test_writes_nothing_outside_the_victoria_home(tmp_path: Path) -> None:
    code, _, errors = run(tmp_path / "home", "[write ../outside text]")
    assert (code, errors) == (2, "cannot use '../outside': it is outside the Victoria home\n")
    assert not (tmp_path / "outside").exists()
