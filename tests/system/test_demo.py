"""`./dev demo`, a newcomer's first command: what it shows, its commands, and nothing left."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.engines import Engine
from tests.harness.runner_process import ROOT, container_of, containers

DEADLINE_S = 280
TASK = re.compile(r"^\$ victoria-orchestrator task watch (\S+)$", re.MULTILINE)
READY = "Ctrl-C here"


@contextmanager
def demo(
    engine: Engine, image: str, folder: Path, *arguments: str
) -> Iterator[subprocess.Popen[str]]:
    variables = {"VICTORIA_DEMO_ENGINE": engine.name, "VICTORIA_DEMO_IMAGE": image}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.demo", *arguments],
        cwd=ROOT,
        env={**os.environ, **variables, "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=DEADLINE_S)


def test_demo_shows_output_and_result_of_a_task_and_leaves_nothing_behind(
    engines: list[Engine], image: str, tmp_path: Path
) -> None:
    with demo(engines[0], image, tmp_path) as process:
        shown, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, shown
    (task_id,) = TASK.findall(shown)
    steps = ["running", "reading sales figures.csv", "south 30, west 3", "success after"]
    steps += [f"task download {task_id}", "results/total.txt", "52 units in 4 regions", "--keep"]
    assert [step for step in steps if step in shown] == steps
    places = [shown.rindex(step) for step in steps]
    assert places == sorted(places), shown
    assert list(tmp_path.iterdir()) == []
    assert container_of(task_id) not in containers(engines[0])


@pytest.mark.long
def test_commands_that_the_demo_prints_can_be_pasted(
    engines: list[Engine], image: str, tmp_path: Path
) -> None:
    folder, home = tmp_path / "demo", tmp_path / "home"
    folder.mkdir()
    home.mkdir()
    with demo(engines[0], image, folder, "--keep") as process:
        assert process.stdout is not None
        lines: list[str] = []
        while not lines or not lines[-1].startswith(READY):
            lines.append(process.stdout.readline())
            assert lines[-1], lines
        commands = [
            line for line in lines if line.startswith(("  victoria-", "  export ", "  task="))
        ]
        pasted = subprocess.run(
            ["bash", "-e"],
            input="".join(commands),
            cwd=home,
            env={"HOME": str(home), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert pasted.returncode == 0, pasted.stdout + pasted.stderr
        assert "one\ntwo\nthree\n" in pasted.stdout
        assert (home / "results" / "count.txt").read_text() == "one, two, three"
        assert [path.name for path in home.iterdir()] == ["results"]
        exports = [line for line in commands if line.startswith("  export ")]
        assert _is_shown_before_the_end("".join(exports), folder)
        (task_id,) = TASK.findall("".join(lines))
        assert any(line.endswith(f"/dashboard/tasks/{task_id}\n") for line in lines)
    assert process.returncode == 0
    assert list(folder.iterdir()) == []


def _is_shown_before_the_end(exports: str, folder: Path) -> bool:
    """Return whether a task's output is shown while it waits for a file, which is made then."""
    prompt = "[print-line live] [wait-for OWN/go] [print-line afterwards]"
    command = f"victoria-orchestrator task create --watch '{prompt}'"
    with subprocess.Popen(
        ["bash", "-ec", exports + command], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        task_id = process.stdout.readline().strip()
        is_live = process.stdout.readline() == "live\n"
        (home,) = folder.glob("*/Victoria")
        (home / "tasks" / task_id / "go").touch()
        rest, _ = process.communicate(timeout=DEADLINE_S)
    return is_live and (rest, process.returncode) == ("afterwards\n", 0)
