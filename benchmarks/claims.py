"""How fast tasks are claimed from a long queue: by one process, and by eight from PostgreSQL."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from contextlib import ExitStack
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

from sqlalchemy import insert

from benchmarks.servers import POSTGRESQL_VARIABLE, new_database
from orchestrator.db.database import Database
from orchestrator.db.tables import Node, Task
from orchestrator.model import NodeStatus, TaskStatus, utc_now
from orchestrator.settings import Settings
from tests.orchestrator.claiming import claim_next

_QUEUED = 10_000
_SECONDS = 8.0
_MANY = 8
_READY_WITHIN_S = 60.0


def claims() -> None:
    """Print claims a second."""
    server = os.environ.get(POSTGRESQL_VARIABLE)
    print(f"claims: a queue of {_QUEUED}, {_SECONDS:.0f} s, {os.cpu_count()} cores; {time.ctime()}")
    print(f"  SQLite, one process           {_claims_per_s(None, 1):7.0f} a second", flush=True)
    if server is None:
        print(f"  {POSTGRESQL_VARIABLE} is not set: on SQLite only")
        return
    print(f"  PostgreSQL, one process       {_claims_per_s(server, 1):7.0f} a second", flush=True)
    print(f"  PostgreSQL, {_MANY} processes       {_claims_per_s(server, _MANY):7.0f} a second")


def _claims_per_s(server: str | None, count: int) -> float:
    spawning = multiprocessing.get_context("spawn")
    ready, counts = spawning.Barrier(count), spawning.Queue()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="victoria-bench-")))
        url = None if server is None else stack.enter_context(new_database(server))[0]
        _fill(folder, url, count)
        workers = [
            spawning.Process(target=_claim, args=(folder, url, _node_id(number), ready, counts))
            for number in range(count)
        ]
        for worker in workers:
            worker.start()
        claimed: list[int] = [counts.get(timeout=_READY_WITHIN_S + 2 * _SECONDS) for _ in workers]
        for worker in workers:
            worker.join()
    return sum(claimed) / _SECONDS


def _claim(folder: Path, url: str | None, node_id: str, ready: Barrier, counts: Queue[int]) -> None:
    settings = Settings(
        folder,
        admin_key="",
        registration_token=None,
        # No process reports on what it claims.
        redelivery_after_s=10**6,
        max_unreported=10**6,
    )
    database = Database(folder, url)
    ready.wait(_READY_WITHIN_S)
    until, claimed = time.monotonic() + _SECONDS, 0
    while time.monotonic() < until:
        claimed += claim_next(database, settings, node_id).task is not None
    database.close()
    counts.put(claimed)


def _fill(folder: Path, url: str | None, count: int) -> None:
    now = utc_now()
    node = {
        "hostname": "h",
        "name": "n",
        "os_type": "linux",
        "capabilities": [],
        "tags": {},
        "status": NodeStatus.IDLE,
        "held_task_ids": [],
        "last_heartbeat": now,
        "registered_at": now,
    }
    task = {
        "prompt": "p",
        "timeout_seconds": 60,
        "status": TaskStatus.PENDING,
        "created_at": now,
        "created_by": "admin",
    }
    nodes = [
        {**node, "id": _node_id(number), "api_key_hash": _node_id(number)}
        for number in range(count)
    ]
    tasks = [{**task, "id": f"task-{number}", "priority": number % 3} for number in range(_QUEUED)]
    database = Database(folder, url)
    with database.writing() as session:
        session.execute(insert(Node), nodes)
        session.execute(insert(Task), tasks)
    database.close()


def _node_id(number: int) -> str:
    return f"node-{number}"
