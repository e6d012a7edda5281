"""The simulated fleet of the benchmarks: at one server, and at two workers, one of them killed."""

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import cast

import anyio
import pytest

from benchmarks.connection import Connection
from benchmarks.fleet import Measured, measure
from benchmarks.output import measure as measure_output
from benchmarks.servers import Servers, allow_open_files, served
from benchmarks.simulated_fleet import Fleet
from benchmarks.system import children_of
from tests.orchestrator.serving import DEADLINE_S, Json


def _fleet(servers: Servers, size: int) -> Fleet:
    return Fleet(size, servers.urls, servers.token, servers.admin_key)


async def _measured(servers: Servers) -> Measured:
    fleet = _fleet(servers, 50)
    await fleet.register()
    async with fleet.at_work():
        return await measure(fleet, servers, rate=10, seconds=3)


def test_every_task_arrives_at_one_node_and_no_call_fails(tmp_path: Path) -> None:
    with served(tmp_path, None) as servers:
        measured = asyncio.run(_measured(servers))
    tasks = (measured.lost, measured.twice, len(measured.latencies_s))
    assert (measured.failures, tasks) == ([], (0, 0, 30))


@pytest.mark.long
def test_output_of_every_task_is_stored_whole_and_seen_by_who_watches(tmp_path: Path) -> None:
    with served(tmp_path, None) as servers:
        measuring = measure_output(tmp_path, servers, size=10, watchers=2, seconds=6)
        measured = asyncio.run(measuring)
    assert (measured.failures, measured.not_whole) == ([], 0)
    assert min(map(len, measured.times_ms.values())) > 0


def test_too_few_open_files_are_one_sentence() -> None:
    with pytest.raises(SystemExit, match=r"cannot simulate 10{10} nodes: they need \d+ open"):
        allow_open_files(10**10)


def _is_replaced(servers: Servers) -> bool:
    workers = children_of(servers.pids[0])
    return len(workers) == len(servers.pids) - 1 and servers.pids[-1] not in workers


async def _claim_while_one_is_killed(servers: Servers) -> list[Json]:
    fleet = _fleet(servers, 20)
    tally = fleet.tally
    await fleet.register()
    await fleet.create_tasks(per_s=100, seconds=2)
    assert tally.failures == []
    admin = Connection(servers.urls, 0, {"X-API-Key": servers.admin_key})
    async with fleet.at_work():
        with anyio.fail_after(DEADLINE_S):
            while len(tally.nodes) < len(tally.created_at) // 4:
                tally.changed.clear()
                await tally.changed.wait()
        os.kill(servers.pids[-1], signal.SIGKILL)
        assert tally.missing
        with anyio.fail_after(DEADLINE_S):
            while not _is_replaced(servers):  # noqa: ASYNC110
                await anyio.sleep(0.05)
        # Some are for nodes that were at the killed worker: they go to the other.
        for node in fleet.nodes[::2]:
            prompt = f"afterwards {node.id}"
            tally.created_at[prompt] = time.monotonic()
            await admin.call("POST", "/tasks", {"prompt": prompt, "target_node_id": node.id})
        assert await fleet.await_ends(DEADLINE_S)
    assert tally.failures
    assert tally.doubles == set()
    listed = cast("list[Json]", await admin.call("GET", "/tasks"))
    tasks = [cast("Json", await admin.call("GET", f"/tasks/{task['id']}")) for task in listed]
    admin.close()
    assert {task["prompt"]: {task["assigned_node_id"]} for task in tasks} == tally.nodes
    return tasks


@pytest.mark.long
def test_killed_worker_loses_and_doubles_no_task(tmp_path: Path, postgresql_server: str) -> None:
    with served(tmp_path, postgresql_server, "--workers=2") as servers:
        tasks = asyncio.run(_claim_while_one_is_killed(servers))
    assert len(tasks) == 210
    for task in tasks:
        steps = [step["status"] for step in task["history"]]
        assert steps[:2] == ["pending", "assigned"]
        # A report may have been stored though its response was lost; then it was sent again.
        assert set(steps[2:]) == {"running", "success"}
        assert steps.count("success") == 1
        assert task["status"] == "success"
