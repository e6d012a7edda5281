"""`./dev demo`, a newcomer's first command: one task, its outcome on the screen, nothing left."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.engines import Engine
from tests.harness.runner_process import ROOT, container_of, containers

DEADLINE_S = 280


def test_demo_shows_a_task_that_succeeds_and_leaves_nothing_behind(
    engines: list[Engine], image: str, tmp_path: Path
) -> None:
    variables = {"VICTORIA_DEMO_ENGINE": engines[0].name, "VICTORIA_DEMO_IMAGE": image}
    done = subprocess.run(
        [sys.executable, "-m", "tests.demo"],
        cwd=ROOT,
        env={**os.environ, **variables, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for text in ("running", "success", "it has 3 lines", "--keep"):
        assert text in done.stdout
    assert list(tmp_path.iterdir()) == []
    (task_id,) = re.findall(r"^task +(\S+)", done.stdout, re.MULTILINE)
    assert container_of(task_id) not in containers(engines[0])
