"""The stand-in image runs as the real one does; its exit code and TERM are in tests/contract."""

import uuid
from pathlib import Path

from tests.engines import Engine


def test_task_runs_as_root_in_the_mounted_home(engine: Engine, image: str, tmp_path: Path) -> None:
    task_id = str(uuid.uuid4())
    mount = ["-v", f"{tmp_path}:/workspace/Victoria:z", "-e", f"JOB_ID={task_id}"]
    run = ["run", "--rm", "--network", "host", *mount]
    output = engine.run(*run, image, "--accept-license", "--task", "[env VICTORIA_HOME]")
    assert output == "VICTORIA_HOME=/workspace/Victoria\n"
    marks = (tmp_path / "tasks" / task_id / "starts.log").read_text().splitlines()
    assert len(marks) == 1
    assert " pid=1 " in marks[0]
