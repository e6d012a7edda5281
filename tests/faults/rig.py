"""A whole host with every instrument in place: orchestrator, proxy, engine, journal, runner.

with rigged(tmp_path, engine, image) as rig:
    rig.engine.plan("run", Act.KILL, When.AFTER)
    rig.runner.start()
"""

from __future__ import annotations

import json
import os
import signal
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from runner.timing import Timings
from tests.faults.engine import Act, FaultEngine, Planned
from tests.harness.journal import JournalFaults
from tests.harness.launcher import DISK_VARIABLE, JOURNAL_VARIABLE, LAUNCHER, TIMINGS_VARIABLE
from tests.harness.proxy import FaultProxy
from tests.harness.runner_process import (
    DEADLINE_S,
    RunnerProcess,
    container_of,
    containers,
    process_on,
)
from tests.orchestrator.serving import wait_for
from tests.system.recording import RecordingOrchestrator

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.engines import Engine

IMPATIENT = Timings(
    retry_first_s=0.2,
    retry_shortest_s=0.1,
    retry_ceiling_s=0.5,
    registration_pause_s=0.2,
    journal_retry_s=0.2,
    start_retry_first_s=0.2,
    start_retry_ceiling_s=0.5,
    engine_retry_s=0.2,
)
"""Pauses between attempts, so short that tests do not wait for them. No deadline is among them."""


@dataclass
class Rig:
    """One host's runner and everything that it can be broken with."""

    orchestrator: RecordingOrchestrator
    proxy: FaultProxy
    engine: FaultEngine
    journal: JournalFaults
    runner: RunnerProcess
    disks_hang: Path
    """While this file is there, no disk shows the runner its free space."""

    def set_timings(self, **timings: float) -> None:
        """Start the runner with these fields of `Timings` the next time."""
        self.runner.set_timings(**timings)

    def begin(self, prompt: str = "[wait-for go]") -> str:
        """Start the runner and a task; return the task's id when the journal has it as running."""
        task_id = str(self.orchestrator.create_task(prompt)["id"])
        self.runner.start()
        self.runner.wait_for_start_of(task_id)
        return task_id

    def wait_for_beat(self, status: str) -> None:
        """Wait for a heartbeat, from now on, with that status."""
        seen = len(self.orchestrator.calls)

        def has_come() -> bool:
            beats = [call for call in self.orchestrator.calls[seen:] if "heartbeat" in call.path]
            return any(beat.json()["status"] == status for beat in beats)

        try:
            wait_for(has_come, DEADLINE_S)
        except TimeoutError:
            raise AssertionError(f"no heartbeat is {status}:\n{self.runner.log}") from None

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
        """Have the registry refuse at once, as nobody listens there."""
        says = "Error: no registry answers"
        return self.engine.plan("pull", Act.FAIL, says=says, always=always)

    def clear(self) -> None:
        """Take back what is planned."""
        self.proxy.clear()
        self.engine.clear()
        self.journal.clear()
        self.disks_hang.unlink(missing_ok=True)

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
        waiting = {row["task_id"] for row in self.runner.rows("SELECT task_id FROM outbox")}
        assert task_id not in waiting
        return message


@contextmanager
def rigged(folder: Path, engine: Engine, image: str, timings: Timings = IMPATIENT) -> Iterator[Rig]:
    """Set everything up for an engine; end and remove it all afterwards."""
    with (
        RecordingOrchestrator(folder / "orchestrator", redelivery_after_s=0.5) as orchestrator,
        FaultProxy(orchestrator.url) as proxy,
    ):
        fault_engine = FaultEngine(folder / "fault-engine", engine.name)
        faults = JournalFaults(folder / "journal-faults")
        runner = process_on(engine, image, folder / "runner", orchestrator)
        runner.command = LAUNCHER
        runner.environment |= {
            "PATH": fault_engine.search_path,
            JOURNAL_VARIABLE: str(faults.folder),
            DISK_VARIABLE: str(folder / "disks-hang"),
            TIMINGS_VARIABLE: json.dumps(asdict(timings)),
        }
        rig = Rig(orchestrator, proxy, fault_engine, faults, runner, folder / "disks-hang")
        runner.set_options(orchestrator_url=proxy.url)
        try:
            yield rig
        finally:
            rig.clear()
            runner.kill()
            _end_calls(folder)
            runner.clean()


def _end_calls(folder: Path) -> None:
    """Wait for engine calls that outlive the runner: they may still make a container."""

    def under_way() -> list[int]:
        paths = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                if f"{folder}/".encode() in path.read_bytes():
                    paths.append(path)
        for path in paths:
            with suppress(OSError):
                if b"engine_call.py" in path.read_bytes():
                    os.kill(int(path.parent.name), signal.SIGKILL)
        return [int(path.parent.name) for path in paths]

    wait_for(lambda: not under_way(), DEADLINE_S)
