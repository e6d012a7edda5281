"""Whatever a task leaves in the place of Crush's database, it ends, and the runner goes on."""

import shutil
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from tests.fakes.hostile_crush import SCHEMAS, hostile_crush
from tests.harness.runner_process import RunnerProcess
from tests.orchestrator.serving import wait_for
from tests.system.recording import RecordingOrchestrator


def has_readers() -> bool:
    """Return whether child processes, of any runner here, read a database now."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if b"\0runner.crush\0" in path.read_bytes():
                return True
    return False


@pytest.mark.long
def test_hostile_databases_keep_neither_a_task_from_its_end_nor_the_runner_from_its_work(
    runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    # One is never readable, and would be waited for a minute.
    runner.set_timings(final_log_timeout_s=10)
    runner.start()
    for kind in SCHEMAS:
        with hostile_crush(runner.home / ".crush" / "crush.db", kind):
            task_id = orchestrator.create_task("[print-line done]")["id"]
            runner.wait_until_closed(task_id)
        assert orchestrator.end_of(task_id)["status"] == "success"
        shutil.rmtree(runner.home / ".crush")

    assert runner.peak_memory_kib < 100 * 1024
    wait_for(lambda: not has_readers())
    runner.send(signal.SIGTERM)
    assert runner.exit_code() == 0
