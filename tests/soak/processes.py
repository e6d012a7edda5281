"""Processes that are killed and started again: the orchestrator, and the runner with its watch."""

import os
import random
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from orchestrator.db.database import DATABASE_NAME
from tests.harness.journal import read_rows
from tests.harness.ports import kept_port
from tests.harness.runner_process import ROOT, RunnerProcess
from tests.orchestrator.serving import stored_artifacts, stored_output, wait_for

DEADLINE_S = 60.0
TERM_DEADLINE_S = 60.0
LONGEST_PAUSE_S = 0.8


class OrchestratorProcess:
    """The reference orchestrator on one port over all its starts, and an administrator's calls."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._log_path, self._data_dir = folder / "log", folder / "data"
        self._process: subprocess.Popen[bytes] | None = None
        self.registration_token, admin_key = secrets.token_hex(16), secrets.token_hex(16)
        self.task_ids: list[str] = []
        self._keeper, port = kept_port()
        self.url = f"http://127.0.0.1:{port}"
        self._command = [
            *(sys.executable, "-m", "orchestrator", f"--port={port}"),
            *(f"--data-dir={self._data_dir}", "--redelivery-after=1"),
            *("--heartbeat-timeout=5", "--log-level=warning"),
        ]
        secret = {"REGISTRATION_TOKEN": self.registration_token, "ADMIN_API_KEY": admin_key}
        self._environment = {**os.environ, **secret}
        self._http = httpx.Client(
            base_url=self.url, headers={"X-API-Key": admin_key}, timeout=DEADLINE_S, trust_env=False
        )

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it, in a session of its own so that Ctrl-C spares it."""
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_for(self._answers, DEADLINE_S)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(DEADLINE_S)

    def _answers(self) -> bool:
        assert self.is_alive, f"the orchestrator does not start, see {self._log_path}"
        try:
            return self._http.get("/nodes").is_success
        except httpx.TransportError:
            return False

    def end(self) -> None:
        self.kill()
        self._http.close()
        self._keeper.close()

    def upload(self, name: str, content: bytes) -> str:
        response = self._http.post("/upload", files={"file": (name, content)})
        return str(response.raise_for_status().json()["filename"])

    def create_task(self, **fields: object) -> str:
        task_id = str(self._http.post("/tasks", json=fields).raise_for_status().json()["id"])
        self.task_ids.append(task_id)
        return task_id

    def cancel(self, task_id: str) -> bool:
        response = self._http.delete(f"/tasks/{task_id}")
        had_ended = response.status_code == httpx.codes.CONFLICT
        return not had_ended and response.raise_for_status().is_success

    def output_of(self, task_id: str) -> tuple[str, bool]:
        """Return what is stored of a task's output, and whether that is all of it."""
        return stored_output(self._http, task_id)

    def artifacts_of(self, task_id: str) -> dict[str, bytes]:
        return stored_artifacts(self._http, task_id)

    def rows(self, query: str) -> list[dict[str, Any]]:
        return read_rows(self._data_dir / DATABASE_NAME, query)


class RunnerWatch:
    """Keeps one runner going over all its ends."""

    def __init__(self, runner: RunnerProcess, seed: int) -> None:
        """Watch a runner that was not started yet; pauses between its starts follow the seed."""
        self.ends: Counter[str] = Counter()
        self.own_ends: list[str] = []  # those that nobody brought about, and TERM without an end
        self._runner = runner
        self._dice = random.Random(f"restarts {seed}")  # noqa: S311 - to be the same again
        self._starts_at: float | None = 0.0
        self._term_at: float | None = None
        self._is_killed_by_us = False

    def kill(self) -> None:
        if self._runner.is_alive:
            self._is_killed_by_us = True
            self._runner.send(signal.SIGKILL)

    def terminate(self) -> None:
        if self._runner.is_alive:
            self._term_at = time.monotonic()
            self._runner.send(signal.SIGTERM)

    def look(self) -> None:
        """Note an end, and start it again when it is time."""
        now = time.monotonic()
        if self._runner.is_alive:
            if self._term_at is not None and now > self._term_at + TERM_DEADLINE_S:
                self.own_ends.append(f"it had to be killed {TERM_DEADLINE_S:g} s after TERM")
                self._runner.send(signal.SIGKILL)
        elif self._starts_at is None:
            self._note_end()
            self._starts_at = now + self._dice.uniform(0.05, LONGEST_PAUSE_S)
        elif now >= self._starts_at:
            self._starts_at = None
            self._runner.start()

    def _note_end(self) -> None:
        code = self._runner.exit_code()
        if code == -signal.SIGKILL and self._is_killed_by_us:
            self.ends["kill -9"] += 1
        elif code == -signal.SIGKILL:
            self.ends["kill -9 at an engine call or a commit"] += 1
        # It may not have listened for signals yet.
        elif code in {0, -signal.SIGTERM} and self._term_at is not None:
            self.ends["TERM"] += 1
        else:
            self.own_ends.append(f"exit code {code}")
        self._term_at, self._is_killed_by_us = None, False
