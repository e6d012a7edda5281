"""`--workers N`: several processes on one address, watched by one."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.orchestrator.program import ADMIN_KEY, DATABASE_URL, SECRETS, UNREACHABLE, Program
from tests.orchestrator.serving import ok, sha256, wait_for

WORKERS = 2


@pytest.fixture
def group(tmp_path: Path, postgresql_url: str) -> Iterator[Program]:
    """Start workers that listen, and the process that watches them."""
    environment = {**SECRETS, DATABASE_URL: postgresql_url}
    with Program(tmp_path / "data", environment, f"--workers={WORKERS}") as program:
        yield program


def _workers(group: Program) -> list[int]:
    pid = group.process.pid
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _client(group: Program, key: str) -> httpx.Client:
    # A connection for each call: the kernel chooses a worker for each.
    return group.client(key, Connection="close")


def _is_alive(pid: int) -> bool:
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def test_what_one_worker_knows_the_others_know_within_a_second(group: Program) -> None:
    assert len(_workers(group)) == WORKERS
    node = ok(group.register())
    own, admin = _client(group, node["api_key"]), _client(group, ADMIN_KEY)
    task_id = ok(admin.post("/tasks", json={"prompt": "p"}))["id"]
    # Held at one worker, and created at any.
    assert ok(own.get("/tasks/pending", headers={"Prefer": "wait=30"}))["task_id"] == task_id
    ok(own.post("/status", json={"task_id": task_id, "status": "running"}))
    beat = {"node_id": node["id"], "status": "busy", "current_task_id": task_id}

    def beats() -> list[httpx.Response]:
        return [own.post("/nodes/heartbeat", json=beat) for _ in range(8)]

    ok(beats()[0])
    wait_for(lambda: ok(admin.get(f"/nodes/{node['id']}"))["status"] == "busy")
    ok(admin.delete(f"/tasks/{task_id}"))
    wait_for(lambda: all(ok(one)["cancelled_task_ids"] == [task_id] for one in beats()))
    ok(admin.delete(f"/nodes/{node['id']}"))
    wait_for(lambda: all(one.status_code == 401 for one in beats()))


def test_output_is_watched_at_one_worker_and_sent_to_any(group: Program) -> None:
    node = ok(group.register())
    own, admin = _client(group, node["api_key"]), _client(group, ADMIN_KEY)
    path = f"/tasks/{ok(admin.post('/tasks', json={'prompt': 'p'}))['id']}/output"
    ok(own.get("/tasks/pending", headers={"Prefer": "wait=30"}))

    def send(offset: int) -> dict[str, int]:
        return ok(own.post(path, json={"offset": offset, "text": "x"}))

    with admin.stream("GET", path, headers={"Accept": "text/event-stream"}) as response:
        lines = (line for line in response.iter_lines() if line.startswith("data: "))
        for offset in range(6):  # with a connection each, so to both
            assert send(offset)["length"] == offset + 1
            assert json.loads(next(lines)[6:]) == {"offset": offset, "text": "x"}
        wait_for(lambda: send(0)["interval_seconds"] == 2)
        assert {send(0)["interval_seconds"] for _ in range(6)} == {2}


def test_artifact_is_put_at_one_worker_and_got_at_any(group: Program, tmp_path: Path) -> None:
    node = ok(group.register())
    own, admin = _client(group, node["api_key"]), _client(group, ADMIN_KEY)
    task_id = ok(admin.post("/tasks", json={"prompt": "p"}))["id"]
    ok(own.get("/tasks/pending", headers={"Prefer": "wait=30"}))
    ok(own.post("/status", json={"task_id": task_id, "status": "running"}))
    headers = {"X-Checksum-SHA256": sha256(b"content")}
    for _ in range(6):
        path = f"/tasks/{task_id}/artifacts/a.txt"
        ok(own.put(path, content=b"content", headers=headers))
        assert admin.get(path).content == b"content"
    stored = (tmp_path / "data" / "artifacts").iterdir()
    assert [file.read_bytes() for file in stored] == [b"content"]


def test_worker_that_dies_is_started_again_and_all_end_with_the_first(group: Program) -> None:
    killed, other = _workers(group)
    os.kill(killed, signal.SIGKILL)
    wait_for(lambda: len(_workers(group)) == WORKERS and killed not in _workers(group))
    assert other in _workers(group)
    wait_for(lambda: _client(group, ADMIN_KEY).get("/health").status_code == 200)
    workers = _workers(group)
    assert group.end()[0] == 0
    assert not any(map(_is_alive, workers))


def test_workers_end_when_the_process_that_watches_them_is_killed(group: Program) -> None:
    workers = _workers(group)
    group.end(signal.SIGKILL)
    wait_for(lambda: not any(map(_is_alive, workers)))


def test_worker_that_cannot_start_ends_all(tmp_path: Path) -> None:
    environment = {**SECRETS, DATABASE_URL: UNREACHABLE}
    with Program(tmp_path / "data", environment, f"--workers={WORKERS}") as program:
        code, log = program.wait()
    assert code == 75
    assert "cannot open database postgresql://user:***@127.0.0.1:1/name" in log
    assert "Traceback" not in log
