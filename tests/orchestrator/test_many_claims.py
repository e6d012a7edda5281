"""Many processes claim from one PostgreSQL: each task goes to one, whoever is killed."""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import insert, select

from orchestrator.db.database import Database
from orchestrator.db.tables import Node, Task
from orchestrator.model import NodeStatus, TaskStatus, utc_now

PROCESSES = 8
# As many as take seconds; VICTORIA_TEST_CLAIMS=10000 is for those who have minutes.
TASKS = int(os.environ.get("VICTORIA_TEST_CLAIMS", "400"))
ROOT = Path(__file__).parents[2]


@pytest.fixture
def database(tmp_path: Path, postgresql_url: str) -> Iterator[Database]:
    """Give a database with a full queue and a node for each process."""
    database = Database(tmp_path, postgresql_url)
    now = utc_now()
    nodes = [
        {
            "id": f"node-{number}",
            "api_key_hash": str(number),
            "hostname": "h",
            "name": "n",
            "os_type": "linux",
            "capabilities": [],
            "tags": {},
            "status": NodeStatus.IDLE,
            "last_heartbeat": now,
            "held_task_ids": [],
            "registered_at": now,
        }
        for number in range(PROCESSES)
    ]
    tasks = [
        {
            "id": f"task-{number}",
            "prompt": "p",
            "priority": number % 3,
            "timeout_seconds": 60,
            "status": TaskStatus.PENDING,
            "created_at": now,
            "created_by": "admin",
        }
        for number in range(TASKS)
    ]
    with database.writing() as session:
        session.execute(insert(Node), nodes)
        session.execute(insert(Task), tasks)
    yield database
    database.close()


@contextmanager
def _claiming(tmp_path: Path, url: str, number: int) -> Iterator[subprocess.Popen[str]]:
    arguments = ["tests.orchestrator.claiming", str(tmp_path), url, f"node-{number}"]
    with subprocess.Popen(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _say(process: subprocess.Popen[str]) -> None:
    if process.stdin is None:
        raise AssertionError("stdin is a pipe")
    process.stdin.write("go\n")
    process.stdin.flush()


def _lines(process: subprocess.Popen[str]) -> Iterator[str]:
    if process.stdout is None:
        raise AssertionError("stdout is a pipe")
    return (line.strip() for line in process.stdout)


@pytest.mark.parametrize("killed", [0, 2])
def test_each_task_is_claimed_once(
    tmp_path: Path, postgresql_url: str, database: Database, killed: int
) -> None:
    with ExitStack() as stack:
        processes = [
            stack.enter_context(_claiming(tmp_path, postgresql_url, number))
            for number in range(PROCESSES)
        ]
        lines = [_lines(process) for process in processes]
        assert [next(said) for said in lines] == ["ready"] * PROCESSES
        for process in processes:
            _say(process)
        for victim in range(killed):
            # In the middle: it has claimed some, and is about to claim the next.
            for _ in range(TASKS // PROCESSES // 10):
                next(lines[victim])
            processes[victim].kill()
        claimed = [list(said) for said in lines[killed:]]
        codes = [process.wait() for process in processes[killed:]]
    assert codes == [0] * (PROCESSES - killed)
    with database.reading() as session:
        tasks = session.scalars(select(Task)).all()
        steps = Counter(len(task.history) for task in tasks)
    assert len(tasks) == TASKS
    assert {task.status for task in tasks} == {TaskStatus.ASSIGNED}
    assert steps == {1: TASKS}
    by_node = Counter(task.assigned_node_id for task in tasks)
    for number, told in enumerate(claimed, start=killed):
        assert len(set(told)) == len(told) == by_node[f"node-{number}"]
