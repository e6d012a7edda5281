"""The stand-in program does what its prompt asks, and leaves files that tests can rely on."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[1] / "image" / "victoria_stand_in.py"
DEADLINE_S = 90


def run(home: Path, prompt: str, **environment: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-S", "-E", PROGRAM, "--accept-license", "--task", prompt],
        env={"VICTORIA_HOME": str(home), "JOB_ID": "task-1", **environment},
        capture_output=True,
        check=False,
        timeout=DEADLINE_S,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def test_plain_prompt_is_echoed_and_each_start_leaves_one_line(tmp_path: Path) -> None:
    for number in (1, 2):
        assert run(tmp_path, "hello [world]") == (0, "task: hello [world]\n", "")
        assert "outcome: success" in (tmp_path / "tasks/task-1/result.txt").read_text()
        assert len((tmp_path / "tasks/task-1/starts.log").read_text().splitlines()) == number


@pytest.mark.parametrize(
    "arguments",
    [["--task", "x"], ["--accept-license", "--task", " "], ["--accept-license"], []],
)
def test_missing_licence_or_prompt_is_refused(tmp_path: Path, arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, PROGRAM, *arguments],
        env={"VICTORIA_HOME": str(tmp_path)},
        capture_output=True,
        check=False,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(b"cannot start: ")


def test_files_are_listed_with_size_and_checksum(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "a b.txt").write_bytes(b"content")
    line = f"file: 7 {hashlib.sha256(b'content').hexdigest()} a b.txt"
    assert line in run(tmp_path, "look", TASK_FILES_DIR=str(folder))[1].splitlines()
    assert line in (tmp_path / "tasks/task-1/result.txt").read_text().splitlines()


def test_prints_exactly_the_bytes_asked_for(tmp_path: Path) -> None:
    for size in (0, 1, 100, 2_345_678):
        output = run(tmp_path, f"[print {size}]")[1]
        assert len(output) == size
        assert output.endswith("\n") == (size > 0)


def test_directives_are_obeyed_in_their_order(tmp_path: Path) -> None:
    prompt = "[print-line one][sleep 0.01] and [env NAME] [env NONE][stderr oh][fail 7][print 9]"
    assert run(tmp_path, prompt, NAME="value") == (7, "one\nNAME=value\nNONE is not set\n", "oh\n")
    assert "outcome: failed with 7" in (tmp_path / "tasks/task-1/result.txt").read_text()


def test_unknown_and_malformed_directives_are_text(tmp_path: Path) -> None:
    prompt = "[nope] [fail] [fail x] [sleep soon] [hang on] [print 1"
    assert run(tmp_path, prompt) == (0, f"task: {prompt}\n", "")


def test_writes_nothing_outside_the_victoria_home(tmp_path: Path) -> None:
    home = tmp_path / "home"
    code, _, errors = run(home, "[write ../outside text]")
    assert (code, errors) == (2, "cannot use '../outside': it is outside the Victoria home\n")
    assert not (tmp_path / "outside").exists()
