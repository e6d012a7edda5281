"""Many processes claim from one PostgreSQL: each task goes to one, also when some are killed."""

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

import pytest
from sqlalchemy import insert, select

from orchestrator.db.database import Database
from orchestrator.db.tables import Node, Task
from orchestrator.model import NodeStatus, TaskStatus, utc_now
from tests.orchestrator.serving import Json

PROCESSES = 8
KILLED = 2
# These take seconds; VICTORIA_TEST_CLAIMS=10000 takes minutes.
TASKS = int(os.environ.get("VICTORIA_TEST_CLAIMS", "400"))
ROOT = Path(__file__).parents[2]


@pytest.fixture
def database(tmp_path: Path, postgresql_url: str) -> Iterator[Database]:
    """Yield a database with a full queue and a node for each process."""
    database = Database(tmp_path, postgresql_url)
    node: Json = {"hostname": "h", "name": "n", "os_type": "linux", "capabilities": [], "tags": {}}
    node |= {"status": NodeStatus.IDLE, "held_task_ids": []}
    node |= dict.fromkeys(("last_heartbeat", "registered_at"), utc_now())
    task: Json = {"prompt": "p", "timeout_seconds": 60, "created_by": "admin"}
    task |= {"status": TaskStatus.PENDING, "created_at": utc_now()}
    with database.writing() as session:
        numbers = range(PROCESSES)
        nodes = [{"id": f"node-{n}", "api_key_hash": str(n), **node} for n in numbers]
        session.execute(insert(Node), nodes)
        tasks = [{"id": f"task-{n}", "priority": n % 3, **task} for n in range(TASKS)]
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


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def test_each_task_is_claimed_once_though_processes_are_killed(
    tmp_path: Path, postgresql_url: str, database: Database
) -> None:
    with ExitStack() as stack:
        processes = [
            stack.enter_context(_claiming(tmp_path, postgresql_url, number))
            for number in range(PROCESSES)
        ]
        outputs = [_pipe(process.stdout) for process in processes]
        assert [output.readline() for output in outputs] == ["ready\n"] * PROCESSES
        for process in processes:
            _pipe(process.stdin).write("go\n")
            _pipe(process.stdin).flush()
        for output, process in zip(outputs[:KILLED], processes[:KILLED], strict=True):
            # In the middle: it has claimed some, and is about to claim the next.
            for _ in range(TASKS // PROCESSES // 10):
                assert output.readline()
            process.kill()
        claimed = [output.read().split() for output in outputs[KILLED:]]
        codes = [process.wait() for process in processes[KILLED:]]
    assert codes == [0] * (PROCESSES - KILLED)
    with database.reading() as session:
        tasks = session.scalars(select(Task)).all()
        steps = Counter(len(task.history) for task in tasks)
    assert {task.status for task in tasks} == {TaskStatus.ASSIGNED}
    assert steps == {1: TASKS}
    by_node = Counter(task.assigned_node_id for task in tasks)
    for number, task_ids in enumerate(claimed, start=KILLED):
        assert len(set(task_ids)) == len(task_ids) == by_node[f"node-{number}"]
