"""How long a page of a list takes, with many tasks on SQLite."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
import uuid
from datetime import timedelta
from pathlib import Path

import httpx
from sqlalchemy import insert

from benchmarks.servers import served
from benchmarks.system import spent
from orchestrator.db.database import Database
from orchestrator.db.tables import Task
from orchestrator.model import TaskStatus, utc_now

_TASKS = 100_000
_PAGE = 100
_PROMPT = "Compare the sales of week {} with those of the week before. " + 8 * "And so on. "
_NODES = 50


def lists(rounds: int) -> None:
    """Print the median time of a page, and the server's CPU time, by filter."""
    now = utc_now()
    with tempfile.TemporaryDirectory(prefix="victoria-bench-") as name:
        folder = Path(name)
        _fill(folder / "data")
        with (
            served(folder, None) as servers,
            httpx.Client(
                base_url=servers.urls[0],
                headers={"X-API-Key": servers.admin_key},
                timeout=60,
                trust_env=False,
            ) as client,
        ):
            print(
                f"lists: {_TASKS} tasks on SQLite, a page of {_PAGE}; median of {rounds} rounds;"
                f" load {os.getloadavg()[0]:.1f} before; {time.ctime()}"
            )
            for what, filters in {
                "all": {},
                "the last page": {"cursor": "WzEwMV0"},  # [101]
                "a common status": {"status_filter": "success"},
                "a rare status": {"status_filter": "error"},
                "a node": {"node": _node_id(7)},
                "a key": {"created_by": _node_id(8)},
                "a key and a status": {"created_by": _node_id(8), "status_filter": "error"},
                "the last hour": {"created_after": (now - timedelta(hours=1)).isoformat()},
                "before the last month": {"created_before": (now - timedelta(30)).isoformat()},
                "a common tag": {"tag": "env=production"},
                "a rare tag": {"tag": "week=99999"},
                "a common text": {"text": "Sales"},
                "a text of no task": {"text": "no task has this"},
            }.items():
                before = spent(servers.pids[0]).cpu_s
                median_ms = _median_ms(client, filters, rounds)
                cpu_ms = (spent(servers.pids[0]).cpu_s - before) * 1000 / rounds
                print(f"  {what:<24} {median_ms:6.1f} ms   CPU {cpu_ms:4.0f} ms", flush=True)


def _median_ms(client: httpx.Client, filters: dict[str, str], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        client.get("/tasks", params={"limit": _PAGE, **filters}).raise_for_status()
        times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times)


def _fill(data_dir: Path) -> None:
    data_dir.mkdir()
    now = utc_now()
    tasks = [
        {
            "id": str(uuid.UUID(int=number)),
            "prompt": _PROMPT.format(number),
            "timeout_seconds": 60,
            "priority": 0,
            "status": TaskStatus.SUCCESS if number % 50 else TaskStatus.ERROR,
            "created_at": now - timedelta(minutes=_TASKS - number),
            "completed_at": now,
            "created_by": "admin" if number % 10 else _node_id(8),
            "assigned_node_id": _node_id(number % _NODES),
            "target_tags": {"env": "production", "week": str(number)},
        }
        for number in range(_TASKS)
    ]
    database = Database(data_dir)
    with database.writing() as session:
        session.execute(insert(Task), tasks)
    database.close()


def _node_id(number: int) -> str:
    return str(uuid.UUID(int=number))
