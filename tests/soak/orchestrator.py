"""The reference orchestrator as a real process, and what an administrator asks it."""

from __future__ import annotations

import os
import secrets
import signal
import sys
from pathlib import Path
from typing import Any

import httpx

from orchestrator.db.database import DATABASE_NAME
from tests.harness.journal import read_rows
from tests.harness.ports import kept_port
from tests.orchestrator.serving import wait_for
from tests.soak.program import DEADLINE_S, Program


class OrchestratorProcess:
    """The reference orchestrator, on one port over all its starts."""

    def __init__(self, folder: Path) -> None:
        """Prepare it; nothing runs yet."""
        folder.mkdir(parents=True)
        self.registration_token = secrets.token_hex(16)
        self.task_ids: list[str] = []
        self._admin_key = secrets.token_hex(16)
        self._data_dir = folder / "data"
        self._keeper, port = kept_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "orchestrator", f"--port={port}"]
        command += [f"--data-dir={self._data_dir}", "--redelivery-after=1"]
        command += ["--heartbeat-timeout=5", "--log-level=warning"]
        secret = {
            "REGISTRATION_TOKEN": self.registration_token,
            "ADMIN_API_KEY": self._admin_key,
        }
        self.program = Program(folder / "log", command, {**os.environ, **secret})
        self._http = httpx.Client(
            base_url=self.url,
            headers={"X-API-Key": self._admin_key},
            timeout=DEADLINE_S,
            trust_env=False,
        )

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.program.start()
        wait_for(self._answers, DEADLINE_S)

    def _answers(self) -> bool:
        assert self.program.is_alive, (
            f"the orchestrator does not start, see {self.program.log_path}"
        )
        try:
            return self._http.get("/nodes").is_success
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        """Do to it what a crash does."""
        self.program.signal(signal.SIGKILL)
        self.program.wait()

    def end(self) -> None:
        """End it for good."""
        self.program.end()
        self._http.close()
        self._keeper.close()

    def upload(self, name: str, content: bytes) -> str:
        """Store a file; return the name that tasks call it by."""
        answer = self._http.post("/upload", files={"file": (name, content)})
        return str(answer.raise_for_status().json()["filename"])

    def create_task(self, **fields: object) -> str:
        """Queue a task; return its id."""
        task_id = str(self._http.post("/tasks", json=fields).raise_for_status().json()["id"])
        self.task_ids.append(task_id)
        return task_id

    def cancel(self, task_id: str) -> bool:
        """Cancel a task; False when it had ended already."""
        answer = self._http.delete(f"/tasks/{task_id}")
        if answer.status_code == httpx.codes.CONFLICT:
            return False
        answer.raise_for_status()
        return True

    def rows(self, query: str) -> list[dict[str, Any]]:
        """Read its database, without asking it."""
        return read_rows(self._data_dir / DATABASE_NAME, query)
