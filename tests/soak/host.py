"""One host under soak: the orchestrator, the proxy, the engine and the runner, wired together."""

from __future__ import annotations

import hashlib
import os
import random
import signal
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runner.timing import Timings
from tests.faults.certificates import Certificates, make_certificates
from tests.faults.engine import FaultEngine
from tests.harness.journal import JournalFaults
from tests.harness.launcher import JOURNAL_VARIABLE
from tests.harness.proxy import FaultProxy
from tests.harness.runner_process import RunnerProcess, process_on
from tests.soak.orchestrator import OrchestratorProcess
from tests.soak.program import Program
from tests.soak.schedule import FILE_SIZES, Schedule

if TYPE_CHECKING:
    from tests.engines import Engine

MEMORY = "100m"
MAX_TASKS = 6
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
class StoredFile:
    """A file that tasks carry."""

    name: str
    seen_as: str
    """How the container's own record shows it when it is whole."""


@dataclass
class Host:
    """Everything that runs."""

    engine: Engine
    orchestrator: OrchestratorProcess
    certificates: Certificates
    proxy: FaultProxy
    faults: FaultEngine
    journal: JournalFaults
    place: RunnerProcess
    """The folders and options of the runner, which `runner` starts."""
    runner: Program
    files: list[StoredFile]

    def calm(self) -> None:
        """Take back every fault."""
        self.proxy.present(self.certificates.trusted)
        self.proxy.accept()
        self.proxy.clear()
        self.proxy.release()
        self.faults.clear()
        self.journal.clear()
        if not self.orchestrator.program.is_alive:
            self.orchestrator.start()

    def containers(self, task_ids: list[str]) -> set[str]:
        """Ask the engine for the containers of these tasks, and of this runner."""
        ours = {f"victoria-{task_id}" for task_id in task_ids}
        rows = self.engine.run("ps", "--all", "--format", "{{.Names}}\t{{.Labels}}").splitlines()
        runner_id_file = self.place.state_dir / "runner-id"
        runner_id = runner_id_file.read_text().strip() if runner_id_file.exists() else "none"
        return {
            row.partition("\t")[0]
            for row in rows
            if row.partition("\t")[0] in ours or runner_id in row.partition("\t")[2]
        }

    def remove(self, names: set[str]) -> None:
        """Remove containers, at once."""
        for name in names:
            for arguments in (["kill", name], ["rm", "--force", name]):
                with suppress(Exception):  # it may go by itself
                    self.engine.run(*arguments)

    def end(self, task_ids: list[str]) -> None:
        """End everything that was started, and remove every container."""
        self.faults.clear()
        self.runner.end()
        self._end_hung_calls()
        self.remove(self.containers(task_ids))
        self.proxy.stop()
        self.orchestrator.end()

    def _end_hung_calls(self) -> None:
        for met in (self.faults.folder / "met").iterdir():
            for line in met.read_text().splitlines():
                with suppress(OSError, ValueError):
                    command = Path(f"/proc/{line}/cmdline").read_bytes().split(b"\0")
                    if str(self.faults.folder).encode() in command:
                        os.kill(int(line), signal.SIGKILL)


def prepare(schedule: Schedule, engine: Engine, image: str, folder: Path) -> Host:
    """Set everything up and start the orchestrator and the proxy; the runner is not started."""
    folder.mkdir(parents=True, exist_ok=True)
    certificates = make_certificates(folder / "certificates")
    orchestrator = OrchestratorProcess(folder / "orchestrator")
    proxy = FaultProxy(orchestrator.url, certificates.trusted)
    faults = FaultEngine(folder / "engine", engine.name)
    journal = JournalFaults(folder / "journal-faults")
    orchestrator.start()
    try:
        proxy.start()
        place = process_on(engine, image, folder / "runner", orchestrator)
        place.set_options(
            orchestrator_url=proxy.url,
            ca_file=certificates.ca_file,
            name="soak",
            max_tasks=MAX_TASKS,
            memory=MEMORY if schedule.has_memory_limit else None,
            pull="missing",
            heartbeat_interval=1,
        )
        place.set_timings(**asdict(IMPATIENT))
        place.environment |= {"PATH": faults.search_path, JOURNAL_VARIABLE: str(journal.folder)}
        command = [*place.command, *place.options]
        runner = Program(folder / "runner" / "log", command, place.full_environment)
        files = [_store(orchestrator, schedule.seed, size) for size in FILE_SIZES]
    except BaseException:
        proxy.stop()
        orchestrator.end()
        raise
    return Host(engine, orchestrator, certificates, proxy, faults, journal, place, runner, files)


def _store(orchestrator: OrchestratorProcess, seed: int, size: int) -> StoredFile:
    content = random.Random(f"file {seed} {size}").randbytes(size)  # noqa: S311 - to be the same again
    name = orchestrator.upload(f"{size}.bin", content)
    return StoredFile(name, f"file: {size} {hashlib.sha256(content).hexdigest()} {name}")
