"""One host under soak: the orchestrator, the proxy, the engine and the runner, wired together."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CalledProcessError

from tests.engines import Engine
from tests.faults.certificates import Certificates, make_certificates
from tests.faults.engine import FaultEngine, end_calls
from tests.faults.rig import SHORT_PAUSES
from tests.harness.journal import JournalFaults
from tests.harness.launcher import JOURNAL_VARIABLE
from tests.harness.proxy import FaultProxy
from tests.harness.runner_process import RunnerProcess, container_of, process_on
from tests.soak.processes import OrchestratorProcess
from tests.soak.schedule import FILE_SIZES, PROGRAMS, Schedule

MEMORY = "100m"
MAX_TASKS = 6
IMPATIENT = {
    **SHORT_PAUSES,
    "call_timeout_s": 4.0,
    "connect_timeout_s": 4.0,
    "stall_timeout_s": 4.0,
    "engine_timeout_s": 6.0,
    "engine_run_timeout_s": 10.0,
    "stop_grace_s": 2,
    "engine_start_grace_s": 8.0,
    "long_poll_s": 4,
    "longest_long_poll_s": 4,  # each request may meet a fault
    "leftover_start_grace_s": 6.0,
    "orphan_grace_s": 8.0,
    "inspect_interval_s": 5.0,
    "engine_retry_s": 0.5,
    "final_output_timeout_s": 30.0,
    "final_log_timeout_s": 4.0,  # hostile tasks leave databases that cannot be read
}
"""The runner's deadlines and pauses, shortened so that thousands of tasks fit into an hour."""


@dataclass
class Host:
    """Everything that runs."""

    engine: Engine
    image: str
    orchestrator: OrchestratorProcess
    certificates: Certificates
    proxy: FaultProxy
    faults: FaultEngine
    journal: JournalFaults
    runner: RunnerProcess
    files: list[tuple[str, str]]
    """Names, each with the line by which containers show that the file is whole."""
    programs: dict[str, tuple[str, str]]
    """The same for the programs of hostile tasks, by their own names."""
    strangers: dict[str, str] = field(default_factory=dict)
    """Containers that have the names of tasks' and are somebody else's: names to states."""

    def calm(self) -> None:
        """Take back every fault."""
        self.proxy.present(self.certificates.trusted)
        self.proxy.accept()
        self.proxy.clear()
        self.proxy.release()
        self.faults.clear()
        self.journal.clear()
        if not self.orchestrator.is_alive:
            self.orchestrator.start()

    def containers(self) -> set[str]:
        """Ask the engine for the containers of all tasks, and of this runner."""
        ours = set(map(container_of, self.orchestrator.task_ids))
        runner_id_file = self.runner.state_dir / "runner-id"
        runner_id = runner_id_file.read_text().strip() if runner_id_file.exists() else "none"
        listed = self.engine.run("ps", "--all", "--format", "{{.Names}}\t{{.Labels}}")
        rows = [line.partition("\t") for line in listed.splitlines()]
        names = {name for name, _, labels in rows if name in ours or runner_id in labels}
        return names - self.strangers.keys()

    def take_name(self, container: str) -> None:
        """Have somebody else's container take this name, unless it is taken."""
        with suppress(CalledProcessError):
            command = ("run", "--detach", f"--name={container}", "--network=host", "--pull=never")
            program = ("--accept-license", "--task", "[print-line secret][hang]")
            self.engine.run(*command, self.image, *program)
            self.strangers[container] = self.state_of(container)

    def state_of(self, container: str) -> str:
        """Return by what it can be seen whether a container was stopped or replaced."""
        with suppress(CalledProcessError):
            shown = self.engine.inspect(container)
            return " ".join(str(shown["State"][name]) for name in ("Pid", "Status", "StartedAt"))
        return "gone"

    def end(self) -> None:
        """End the runner with its engine calls, and remove every container at once."""
        self.faults.clear()
        self.runner.kill()
        for folder in (self.faults.folder, self.runner.state_dir):
            end_calls(folder)
        self.runner.remove(self.containers() | self.strangers.keys())


@contextmanager
def running_host(schedule: Schedule, engine: Engine, image: str, folder: Path) -> Iterator[Host]:
    """Set everything up and start the orchestrator and the proxy; the runner is not started."""
    folder.mkdir(parents=True, exist_ok=True)
    certificates = make_certificates(folder / "certificates")
    orchestrator = OrchestratorProcess(folder / "orchestrator")
    faults = FaultEngine(folder / "engine", engine.name)
    journal = JournalFaults(folder / "journal-faults")
    with ExitStack() as stack:
        stack.callback(orchestrator.end)
        orchestrator.start()
        proxy = stack.enter_context(FaultProxy(orchestrator.url, certificates.trusted))
        runner = process_on(engine, image, folder / "runner", orchestrator)
        runner.set_options(
            orchestrator_url=proxy.url,
            ca_file=certificates.ca_file,
            name="soak",
            max_tasks=MAX_TASKS,
            memory=MEMORY if schedule.has_memory_limit else None,
            pull="missing",
            heartbeat_interval=1,
        )
        runner.set_timings(**IMPATIENT)
        runner.environment |= {"PATH": faults.search_path, JOURNAL_VARIABLE: str(journal.folder)}
        files = [_store_bytes(orchestrator, schedule.seed, size) for size in FILE_SIZES]
        programs = {
            path.name: _store(orchestrator, path.name, path.read_bytes()) for path in PROGRAMS
        }
        host = Host(
            *(engine, image, orchestrator, certificates, proxy, faults, journal, runner),
            files,
            programs,
        )
        stack.callback(host.end)
        yield host


def _store_bytes(orchestrator: OrchestratorProcess, seed: int, size: int) -> tuple[str, str]:
    content = random.Random(f"file {seed} {size}").randbytes(size)  # noqa: S311 - to be the same again
    return _store(orchestrator, f"{size}.bin", content)


def _store(orchestrator: OrchestratorProcess, name: str, content: bytes) -> tuple[str, str]:
    line = f"file: {len(content)} {hashlib.sha256(content).hexdigest()} {name}"
    return orchestrator.upload(name, content), line
