"""Where the runner of a soak works: its folders, its options, its shortened deadlines."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from runner.timing import Timings
from tests.harness.launcher import JOURNAL_VARIABLE, LAUNCHER, TIMINGS_VARIABLE
from tests.soak.program import Program, read_rows

IMPATIENT = Timings(
    call_timeout_s=4.0,
    connect_timeout_s=4.0,
    stall_timeout_s=4.0,
    retry_first_s=0.2,
    retry_shortest_s=0.1,
    retry_ceiling_s=0.5,
    engine_timeout_s=6.0,
    engine_run_timeout_s=10.0,
    stop_grace_s=2,
    engine_start_grace_s=8.0,
    long_poll_s=4,
    leftover_start_grace_s=6.0,
    registration_pause_s=0.2,
    orphan_grace_s=8.0,
    inspect_interval_s=5.0,
    engine_retry_s=0.5,
    start_retry_first_s=0.2,
    start_retry_ceiling_s=0.5,
    journal_retry_s=0.2,
)
"""The runner's deadlines and pauses, shortened so that thousands of tasks fit into an hour."""


@dataclass(frozen=True)
class RunnerPlace:
    """Where a runner works, and with which options."""

    folder: Path
    engine_name: str
    engine_path: str
    image: str
    orchestrator_url: str
    registration_token: str
    ca_file: Path
    journal_faults: Path
    memory: str | None
    max_tasks: int

    @property
    def home(self) -> Path:
        """The Victoria home."""
        return self.folder / "home"

    @property
    def state_dir(self) -> Path:
        """The state folder."""
        return self.folder / "state"

    def program(self) -> Program:
        """Prepare the runner's process."""
        self.folder.mkdir(parents=True)
        token_file = self.folder / "token"
        token_file.touch(mode=0o600)
        token_file.write_text(f"{self.registration_token}\n")
        options = {
            "--orchestrator-url": self.orchestrator_url,
            "--registration-token-file": str(token_file),
            "--ca-file": str(self.ca_file),
            "--name": "soak",
            "--victoria-home": str(self.home),
            "--state-dir": str(self.state_dir),
            "--container-runtime": self.engine_name,
            "--container-image": self.image,
            "--max-tasks": str(self.max_tasks),
            "--pull": "missing",
            # Not every machine that tests run on may make networks.
            "--run-arg": "--network=host",
            "--poll-interval": "0.2",
            "--heartbeat-interval": "1",
            "--min-free-disk": "1M",
        }
        if self.memory is not None:
            options["--memory"] = self.memory
        kept = {
            name: text
            for name, text in os.environ.items()
            if not name.startswith("VICTORIA_") and name != "STATE_DIRECTORY"
        }
        return Program(
            self.folder / "log",
            [*LAUNCHER, *(f"{name}={text}" for name, text in options.items())],
            {
                **kept,
                "PATH": self.engine_path,
                JOURNAL_VARIABLE: str(self.journal_faults),
                TIMINGS_VARIABLE: json.dumps(asdict(IMPATIENT)),
            },
        )

    def journal(self, query: str) -> list[dict[str, Any]]:
        """Read the journal as it stands."""
        path = self.state_dir / "journal.sqlite3"
        return read_rows(path, query) if path.exists() else []

    def starts(self, task_id: str) -> list[str]:
        """Return the start marks that a task's containers have left."""
        log = self.home / "tasks" / task_id / "starts.log"
        return log.read_text().splitlines() if log.exists() else []

    def result(self, task_id: str) -> list[str]:
        """Return what the last container of a task wrote down at its end."""
        path = self.home / "tasks" / task_id / "result.txt"
        return path.read_text().splitlines() if path.exists() else []
