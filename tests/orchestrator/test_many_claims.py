"""Many processes claim from one PostgreSQL: each task goes to one, also when some are killed."""

import multiprocessing
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from sqlalchemy import insert, select

from orchestrator.db.database import Database
from orchestrator.db.tables import Node, Task
from orchestrator.model import NodeStatus, TaskStatus, utc_now
from tests.orchestrator.claiming import claim_all
from tests.orchestrator.serving import Json

PROCESSES = 8
KILLED = 2
# These take seconds; VICTORIA_TEST_CLAIMS=10000 takes minutes.
TASKS = int(os.environ.get("VICTORIA_TEST_CLAIMS", "400"))
SPAWNING = multiprocessing.get_context("spawn")


@pytest.fixture
def database(tmp_path: Path, postgresql_url: str) -> Iterator[Database]:
    """Yield a database with a full queue and a node for each process."""
    node: Json = {"hostname": "h", "name": "n", "os_type": "linux", "capabilities": [], "tags": {}}
    node |= {"status": NodeStatus.IDLE, "held_task_ids": []}
    node |= dict.fromkeys(("last_heartbeat", "registered_at"), utc_now())
    task: Json = {"prompt": "p", "timeout_seconds": 60, "created_by": "admin"}
    task |= {"status": TaskStatus.PENDING, "created_at": utc_now()}
    nodes = [{"id": f"node-{n}", "api_key_hash": str(n), **node} for n in range(PROCESSES)]
    tasks = [{"id": f"task-{n}", "priority": n % 3, **task} for n in range(TASKS)]
    with closing(Database(tmp_path, postgresql_url)) as database:
        with database.writing() as session:
            session.execute(insert(Node), nodes)
            session.execute(insert(Task), tasks)
        yield database


def _received(connection: Connection) -> Iterator[str]:
    try:
        while True:
            yield connection.recv()
    except EOFError:
        return


@pytest.mark.long
def test_each_task_is_claimed_once(tmp_path: Path, postgresql_url: str, database: Database) -> None:
    processes, connections = [], []
    for number in range(PROCESSES):
        connection, child = SPAWNING.Pipe()
        arguments = (tmp_path, postgresql_url, f"node-{number}", child)
        processes.append(SPAWNING.Process(target=claim_all, args=arguments, daemon=True))
        connections.append(connection)
        processes[-1].start()
        child.close()
    assert [connection.recv() for connection in connections] == ["ready"] * PROCESSES
    for connection in connections:
        connection.send("go")
    for process, connection in zip(processes[:KILLED], connections, strict=False):
        # In the middle: it has claimed some, and is about to claim the next.
        for _ in range(TASKS // PROCESSES // 10):
            assert connection.recv()
        process.kill()
    claimed = [list(_received(connection)) for connection in connections[KILLED:]]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes[KILLED:]] == [0] * (PROCESSES - KILLED)
    with database.reading() as session:
        tasks = session.scalars(select(Task)).all()
        steps = Counter(len(task.history) for task in tasks)
    assert {task.status for task in tasks} == {TaskStatus.ASSIGNED}
    assert steps == {1: TASKS}
    by_node = Counter(task.assigned_node_id for task in tasks)
    for number, task_ids in enumerate(claimed, start=KILLED):
        assert len(set(task_ids)) == len(task_ids) == by_node[f"node-{number}"]
