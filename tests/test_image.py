"""The stand-in image runs as the real one does, on every engine."""

from __future__ import annotations

import subprocess
import time
import uuid
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.engines import Engine

RUN = ["run", "--rm", "--network", "host"]
START_TIMEOUT_S = 60


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


def test_task_runs_as_root_in_the_mounted_home(engine: Engine, image: str, tmp_path: Path) -> None:
    task_id = str(uuid.uuid4())
    mount = ["-v", f"{tmp_path}:/workspace/Victoria:z", "-e", f"JOB_ID={task_id}"]
    output = engine.run(*RUN, *mount, image, "--accept-license", "--task", "[env VICTORIA_HOME]")
    assert output == "VICTORIA_HOME=/workspace/Victoria\n"
    marks = (tmp_path / "tasks" / task_id / "starts.log").read_text().splitlines()
    assert len(marks) == 1
    assert " pid=1 " in marks[0]


def test_exit_code_of_the_task_is_the_containers(engine: Engine, image: str) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        engine.run(*RUN, image, "--accept-license", "--task", "[fail 3]")
    assert caught.value.returncode == 3


def test_hanging_container_ends_at_term(engine: Engine, image: str, tmp_path: Path) -> None:
    name = f"victoria-{uuid.uuid4()}"
    options = ["--network", "host", "--name", name, "-v", f"{tmp_path}:/workspace/Victoria:z"]
    engine.run("run", "--detach", *options, image, "--accept-license", "--task", "[hang]")
    try:
        wait_for(tmp_path / "tasks" / "unnamed" / "starts.log")
        engine.run("stop", "-t", "30", name)
        assert engine.inspect(name)["State"]["ExitCode"] == 143
    finally:
        engine.run("rm", "--force", name)
