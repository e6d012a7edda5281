"""`python -m runner` as a process of its own, with its folders, to be started again and again."""

import json
import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tests.engines import Engine
from tests.harness.journal import read_rows
from tests.harness.launcher import LAUNCHER, TIMINGS_VARIABLE
from tests.orchestrator.serving import wait_for
from tests.system.recording import LONGEST_TASK_S

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "runner")
DEADLINE_S = 120
"""How long a process may take for what it does at once, on a machine with other work."""


@dataclass(frozen=True)
class Completed:
    """A command that ended by itself."""

    exit_code: int
    output: str
    log: str


class _Orchestrator(Protocol):
    """What a runner needs of an orchestrator."""

    url: str
    task_ids: list[str]

    @property
    def registration_token(self) -> str | None: ...


@dataclass
class RunnerProcess:
    """One host's runner: its folders stay, its process comes and goes."""

    folder: Path
    engine: Engine
    orchestrator: _Orchestrator
    options: list[str]  # the arguments of every start, before the start's own
    environment: dict[str, str] = field(default_factory=dict)  # beside what this process has
    command: tuple[str, ...] = COMMAND  # what is started: the runner, or a launcher that breaks it
    _process: subprocess.Popen[bytes] | None = None
    _log_start: int = 0

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def state_dir(self) -> Path:
        return self.folder / "state"

    @property
    def pid(self) -> int:
        return self._started.pid

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def _started(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "it was never started"
        return self._process

    def start(self, *arguments: str, terminal: int | None = None) -> None:
        """Start the process, spared by Ctrl-C; its output goes to the log, or to a terminal."""
        assert not self.is_alive, "it runs already"
        with self._log_path.open("ab") as log:
            self._log_start = log.tell()
            output = log if terminal is None else terminal
            self._process = subprocess.Popen(
                [*self.command, *self.options, *arguments],
                cwd=ROOT,
                env=self.full_environment,
                stdin=subprocess.DEVNULL if terminal is None else terminal,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def set_timings(self, **timings: float) -> None:
        """Start the runner with these fields of `Timings` the next time."""
        self.command = LAUNCHER
        known = json.loads(self.environment.get(TIMINGS_VARIABLE, "{}"))
        self.environment[TIMINGS_VARIABLE] = json.dumps({**known, **timings})

    def set_options(self, **options: object) -> None:
        """Start the runner with other values of these options; None leaves one out."""
        for name, value in options.items():
            option = f"--{name.replace('_', '-')}"
            self.options[:] = [text for text in self.options if not text.startswith(f"{option}=")]
            if value is not None:
                self.options.append(f"{option}={value}")

    def run(self, *arguments: str, environment: Mapping[str, str] | None = None) -> Completed:
        """Run to the end, beside the process that was started or instead of it."""
        done = subprocess.run(
            [*self.command, *self.options, *arguments],
            cwd=ROOT,
            env={**self.full_environment, **(environment or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        return Completed(done.returncode, done.stdout, done.stderr)

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def exit_code(self, deadline_s: float = DEADLINE_S) -> int:
        return self._started.wait(deadline_s)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(DEADLINE_S)

    def clean(self) -> None:
        """End the process, and remove the containers of this orchestrator's tasks."""
        starting = [] if self._process is None else _starting_containers(self._process.pid)
        self.kill()
        wait_for(lambda: not any(process.exists() for process in starting), DEADLINE_S)
        ours = {container_of(task_id) for task_id in self.orchestrator.task_ids}
        wait_for(lambda: not self.remove(ours & set(containers(self.engine))), DEADLINE_S)

    def remove(self, names: set[str]) -> set[str]:
        """Try to remove containers, as others may do meanwhile; return what was there."""
        for name in names:
            # Two steps: `rm --force` alone gives podman's containers ten seconds to end.
            for arguments in (["kill", name], ["rm", "--force", name]):
                subprocess.run([self.engine.name, *arguments], check=False, capture_output=True)
        return names

    @property
    def full_environment(self) -> dict[str, str]:
        hidden = re.compile("VICTORIA_|STATE_DIRECTORY$")
        ours = {name: text for name, text in os.environ.items() if not hidden.match(name)}
        return {**ours, **self.environment}

    @property
    def _log_path(self) -> Path:
        return self.folder / "runner.log"

    @property
    def whole_log(self) -> str:
        return self._log_path.read_text(encoding="utf-8") if self._log_path.exists() else ""

    @property
    def log(self) -> str:
        with self._log_path.open("rb") as file:
            file.seek(self._log_start)
            return file.read().decode()

    def wait_for_log(self, text: str) -> None:
        """Wait until a text is in the log of the last start; the log is shown if it never is."""

        def is_there() -> bool:
            has_ended = not self.is_alive
            if text not in self.log and has_ended:
                raise TimeoutError
            return text in self.log

        self.wait_for(is_there, f"{text!r} is not in the log")

    def wait_for(
        self, condition: Callable[[], object], failure: str, deadline_s: float = DEADLINE_S
    ) -> None:
        try:
            wait_for(condition, deadline_s)
        except TimeoutError:
            raise AssertionError(f"{failure}:\n{self.log}") from None

    def rows(self, query: str) -> list[dict[str, Any]]:
        """Read the journal as it stands."""
        path = self.state_dir / "journal.sqlite3"
        if not path.exists():
            return []
        # Of one that is being made there is nothing to read yet.
        (made,) = read_rows(path, "PRAGMA user_version")
        return read_rows(path, query) if made["user_version"] else []

    @property
    def node_key(self) -> str:
        return str(self.rows("SELECT api_key FROM identities ORDER BY id DESC")[0]["api_key"])

    @property
    def node_id(self) -> str:
        return str(self.rows("SELECT node_id FROM identities ORDER BY id DESC")[0]["node_id"])

    def task_folder(self, task_id: str) -> Path:
        return self.home / "tasks" / task_id

    def starts_of(self, task_id: str) -> int:
        log = self.task_folder(task_id) / "starts.log"
        return len(log.read_text().splitlines()) if log.exists() else 0

    def wait_for_start_of(self, task_id: str) -> None:
        """Wait until a task's container works and the journal knows it."""
        self.wait_for(
            lambda: self.starts_of(task_id) and self.state_of(task_id) == "running",
            f"task {task_id} does not start",
        )

    def state_of(self, task_id: str) -> str | None:
        rows = self.rows(f"SELECT state FROM tasks WHERE task_id = '{task_id}'")  # noqa: S608 - ours
        return rows[0]["state"] if rows else None

    def wait_until_closed(self, task_id: str) -> None:
        """Wait until everything is done for a task, its container's removal included."""
        self.wait_for(
            lambda: self.state_of(task_id) == "closed",
            f"task {task_id} is not closed",
            LONGEST_TASK_S,
        )

    def let_go(self, name: str) -> None:
        (self.home / name).touch()

    @property
    def peak_memory_kib(self) -> int:
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0])


def process_on(
    engine: Engine, image: str, folder: Path, orchestrator: _Orchestrator
) -> RunnerProcess:
    """Prepare a runner for an engine and an orchestrator, with short intervals."""
    folder.mkdir(parents=True, exist_ok=True)
    token_file = folder / "token"
    token_file.touch(mode=0o600)
    token_file.write_text(f"{orchestrator.registration_token or secrets.token_hex()}\n")
    options = [
        f"--orchestrator-url={orchestrator.url}",
        f"--registration-token-file={token_file}",
        "--name=system-test",
        f"--victoria-home={folder / 'home'}",
        f"--state-dir={folder / 'state'}",
        f"--container-runtime={engine.name}",
        f"--container-image={image}",
        "--pull=never",
        # Not every machine that tests run on may make networks.
        "--run-arg=--network=host",
        "--poll-interval=0.2",
        "--heartbeat-interval=0.5",
        "--min-free-disk=1M",
    ]
    return RunnerProcess(folder, engine, orchestrator, options)


def _starting_containers(pid: int) -> list[Path]:
    """Return the engine's processes that are starting a container, and outlive the runner."""
    command = ["ps", "-o", "pid=,args=", "--ppid", str(pid)]
    children = subprocess.run(command, check=False, capture_output=True, text=True)
    rows = [line.split() for line in children.stdout.splitlines()]
    return [Path(f"/proc/{row[0]}") for row in rows if "run" in row[2:4]]


def container_of(task_id: str) -> str:
    return f"victoria-{task_id}"


def containers(engine: Engine) -> list[str]:
    return engine.run("ps", "--all", "--format", "{{.Names}}").split()


def is_running(engine: Engine, task_id: str) -> bool:
    return bool(engine.inspect(container_of(task_id))["State"]["Running"])
