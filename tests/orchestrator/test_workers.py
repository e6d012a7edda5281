"""`--workers N`: several processes on one address, watched by one."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.orchestrator.serving import DEADLINE_S, REGISTRATION_TOKEN, ok, wait_for

WORKERS = 2
ADMIN_KEY = "an-admin-key-that-is-long-enough"


@dataclass(frozen=True)
class Group:
    """Workers that listen, and the process that watches them."""

    process: subprocess.Popen[str]
    url: str

    @property
    def workers(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(child) for child in children.split()]


def _command(data_dir: Path, url: str | None, *options: str) -> tuple[list[str], dict[str, str]]:
    environment = {**os.environ, "REGISTRATION_TOKEN": REGISTRATION_TOKEN}
    environment["ADMIN_API_KEY"] = ADMIN_KEY
    if url is not None:
        environment["VICTORIA_ORCHESTRATOR_DATABASE_URL"] = url
    arguments = [f"--data-dir={data_dir}", f"--workers={WORKERS}", *options]
    return [sys.executable, "-m", "orchestrator", *arguments], environment


def _end(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )


@contextmanager
def _running(data_dir: Path, url: str, *options: str) -> Iterator[Group]:
    command, environment = _command(data_dir, url, "--port=0", *options)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    try:
        lines = iter(process.stdout.readline, "")
        listening = next(line for line in lines if line.startswith("listening on "))
        yield Group(process, listening.split()[-1])
    finally:
        process.terminate()
        process.wait(DEADLINE_S)
        process.stdout.close()


def _client(url: str, **headers: str) -> httpx.Client:
    # A connection for each call: the kernel chooses a worker for each.
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Client(
        base_url=url,
        headers={**headers, "Connection": "close"},
        trust_env=False,
        timeout=DEADLINE_S,
    )


def _is_alive(pid: int) -> bool:
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def test_what_one_worker_knows_the_others_know_within_a_second(
    tmp_path: Path, postgresql_url: str
) -> None:
    with _running(tmp_path, postgresql_url) as group:
        assert len(group.workers) == WORKERS
        body = {"hostname": "h", "os_type": "linux", "name": "node"}
        node = ok(
            _client(group.url, X_Registration_Token=REGISTRATION_TOKEN).post("/register", json=body)
        )
        own, admin = (
            _client(group.url, X_API_Key=node["api_key"]),
            _client(group.url, X_API_Key=ADMIN_KEY),
        )
        task_id = ok(admin.post("/tasks", json={"prompt": "p"}))["id"]
        # Held at one worker, and created at any.
        assert ok(own.get("/tasks/pending", headers={"Prefer": "wait=30"}))["task_id"] == task_id
        ok(own.post("/status", json={"task_id": task_id, "status": "running"}))
        beat = {"node_id": node["id"], "status": "busy", "current_task_id": task_id}
        ok(own.post("/nodes/heartbeat", json=beat))
        wait_for(lambda: ok(admin.get(f"/nodes/{node['id']}"))["status"] == "busy")
        ok(admin.delete(f"/tasks/{task_id}"))
        wait_for(
            lambda: all(
                ok(own.post("/nodes/heartbeat", json=beat))["cancelled_task_ids"] == [task_id]
                for _ in range(8)
            )
        )
        ok(admin.delete(f"/nodes/{node['id']}"))
        wait_for(
            lambda: all(
                own.post("/nodes/heartbeat", json=beat).status_code == 401 for _ in range(8)
            )
        )


def test_worker_that_dies_is_started_again_and_all_end_with_the_first(
    tmp_path: Path, postgresql_url: str
) -> None:
    with _running(tmp_path, postgresql_url) as group:
        killed, other = group.workers
        os.kill(killed, signal.SIGKILL)
        wait_for(lambda: len(group.workers) == WORKERS and killed not in group.workers)
        assert other in group.workers
        wait_for(lambda: _client(group.url).get("/health").status_code == 200)
        workers = group.workers
        group.process.send_signal(signal.SIGTERM)
        assert group.process.wait(DEADLINE_S) == 0
        assert not any(map(_is_alive, workers))


def test_workers_end_when_the_process_that_watches_them_is_killed(
    tmp_path: Path, postgresql_url: str
) -> None:
    with _running(tmp_path, postgresql_url) as group:
        workers = group.workers
        group.process.kill()
        wait_for(lambda: not any(map(_is_alive, workers)))


@pytest.mark.parametrize("is_taken", [True, False])
def test_workers_that_cannot_start_are_refused_in_one_sentence(
    tmp_path: Path, *, is_taken: bool
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        url = "postgresql://nobody@127.0.0.1:1/none" if is_taken else None
        command, environment = _command(tmp_path, url, f"--port={port}")
        ended = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
    sentence = (
        f"cannot listen on 127.0.0.1 port {port}: address already in use"
        if is_taken
        else "cannot start several workers on SQLite: set --database-url, or --workers 1"
    )
    assert (ended.returncode, ended.stderr.strip()) == (78, f"Error: {sentence}")


def test_worker_that_cannot_start_ends_all(tmp_path: Path) -> None:
    command, environment = _command(tmp_path, "postgresql://nobody@127.0.0.1:1/none", "--port=0")
    ended = _end(command, environment)
    assert ended.returncode == 75
    assert "cannot open database postgresql://nobody@127.0.0.1:1/none" in ended.stderr
    assert "Traceback" not in ended.stderr
