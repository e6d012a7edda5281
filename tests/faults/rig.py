"""A whole host with every instrument in place: orchestrator, proxy, engine, journal, runner.

with rigged(tmp_path, engine, image) as rig:
    rig.engine.plan("run", Act.KILL, When.AFTER)
    rig.start()
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias
from uuid import uuid4

from tests.engines import Engine
from tests.faults.engine import Act, FaultEngine, Planned, end_calls
from tests.harness.journal import JournalFaults
from tests.harness.launcher import DISK_VARIABLE, JOURNAL_VARIABLE
from tests.harness.proxy import FaultProxy
from tests.harness.runner_process import RunnerProcess, container_of, containers, process_on
from tests.system.recording import RecordingOrchestrator

SHORT_PAUSES = {
    "retry_first_s": 0.2,
    "retry_shortest_s": 0.1,
    "retry_ceiling_s": 0.5,
    "registration_pause_s": 0.2,
    "journal_retry_s": 0.2,
    "start_retry_first_s": 0.2,
    "start_retry_ceiling_s": 0.5,
    "engine_retry_s": 0.2,
    "outage_reminder_s": 0.01,  # each failure is logged
}
"""Pauses between attempts, so short that tests do not wait for them. No deadline is among them."""


@dataclass
class Rig:
    """One host's runner and everything that it can be broken with."""

    orchestrator: RecordingOrchestrator
    proxy: FaultProxy
    engine: FaultEngine
    journal: JournalFaults
    runner: RunnerProcess
    disks_hang: Path  # while this file is there, no disk shows the runner its free space

    def start(self, prompt: str = "[print-line done]") -> str:
        task_id = str(self.orchestrator.create_task(prompt)["id"])
        self.runner.start()
        return task_id

    def begin(self, prompt: str = "[wait-for go]") -> str:
        task_id = self.start(prompt)
        self.runner.wait_for_start_of(task_id)
        return task_id

    def wait_for_beat(self, status: str) -> None:
        """Wait for a heartbeat, from now on, with that status."""
        seen = len(self.orchestrator.calls)

        def has_come() -> bool:
            beats = [call for call in self.orchestrator.calls[seen:] if "heartbeat" in call.path]
            return any(beat.json()["status"] == status for beat in beats)

        self.runner.wait_for(has_come, f"no heartbeat is {status}")

    @contextmanager
    def image_to_pull(self, image: str) -> Iterator[None]:
        """Start the runner with an image of a registry that refuses, and that is here as well.

        The pull of the runner's start is over when this is entered: the next is for a task.
        """
        # What podman built itself is in no registry, and is not asked for.
        engine, name = self.runner.engine, f"127.0.0.1:1/victoria-{uuid4().hex[:12]}:1"
        engine.run("tag", image, name)
        try:
            self.runner.set_options(container_image=name, pull="newer")
            at_start = self.refuse_pull()
            self.runner.start()
            at_start.wait()
            yield
        finally:
            self.runner.clean()
            engine.run("rmi", name)

    def refuse_pull(self, *, always: bool = False) -> Planned:
        message = "Error: no registry answers"
        return self.engine.plan("pull", Act.FAIL, message=message, always=always)

    def check_ended_once(
        self, task_id: str, reason: str = "completed: ", *, starts: int = 1
    ) -> str:
        """Check that a task has ended for this reason: run and reported once, with nothing left.

        Return its message.
        """
        self.orchestrator.end_of(task_id)
        self.runner.wait_until_closed(task_id)
        assert self.runner.starts_of(task_id) == starts
        assert container_of(task_id) not in containers(self.runner.engine)
        # It may be reported again after a lost response, but never anything else.
        reports = self.orchestrator.reports_of(task_id, "success", "error")
        assert reports, self.runner.whole_log
        assert all(report == reports[0] for report in reports), reports
        message = str(reports[0]["message"])
        assert message.startswith(reason), f"{message}\n{self.runner.whole_log}"
        history = self.orchestrator.task(task_id)["history"]
        finals = [step for step in history if step["status"] in {"success", "error", "cancelled"}]
        assert len(finals) == 1, finals
        assert {"task_id": task_id} not in self.runner.rows("SELECT task_id FROM outbox")
        return message


RigOn: TypeAlias = Callable[[Engine], Rig]


@contextmanager
def rigged(folder: Path, engine: Engine, image: str) -> Iterator[Rig]:
    """Set everything up for an engine; end and remove it all afterwards."""
    with (
        RecordingOrchestrator(folder / "orchestrator", redelivery_after_s=0.5) as orchestrator,
        FaultProxy(orchestrator.url) as proxy,
    ):
        fault_engine = FaultEngine(folder / "fault-engine", engine.name)
        journal = JournalFaults(folder / "journal-faults")
        disks_hang = folder / "disks-hang"
        runner = process_on(engine, image, folder / "runner", orchestrator)
        runner.set_options(orchestrator_url=proxy.url)
        runner.set_timings(**SHORT_PAUSES)
        runner.environment |= {
            "PATH": fault_engine.search_path,
            JOURNAL_VARIABLE: str(journal.folder),
            DISK_VARIABLE: str(disks_hang),
        }
        try:
            yield Rig(orchestrator, proxy, fault_engine, journal, runner, disks_hang)
        finally:
            proxy.clear()
            fault_engine.clear()
            journal.clear()
            disks_hang.unlink(missing_ok=True)
            runner.kill()
            end_calls(folder)
            runner.clean()
