"""Whatever a task leaves in the place of Crush's database, it ends, and the runner goes on."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

from tests.fakes.hostile_crush import SCHEMAS, hostile_crush
from tests.harness.runner_process import RunnerProcess
from tests.orchestrator.serving import wait_for
from tests.system.recording import MIB, RecordingOrchestrator

TERM_DEADLINE_S = 25


def readers() -> list[Path]:
    """Return the child processes, of any runner here, that read a database now."""
    return [path for path in Path("/proc").glob("[0-9]*/cmdline") if is_reader(path)]


def is_reader(path: Path) -> bool:
    try:
        return b"\0runner.crush\0" in path.read_bytes()
    except OSError:
        return False


def test_hostile_databases_keep_neither_a_task_from_its_end_nor_the_runner_from_its_work(
    any_runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    # One is never readable, and would be waited for a minute.
    any_runner.set_timings(final_log_timeout_s=10)
    any_runner.start()
    for kind in SCHEMAS:
        with hostile_crush(any_runner.home / ".crush" / "crush.db", kind):
            task_id = orchestrator.create_task("[print-line done]")["id"]
            any_runner.wait_until_closed(task_id)
        assert orchestrator.end_of(task_id)["status"] == "success"
        shutil.rmtree(any_runner.home / ".crush")

    assert any_runner.peak_memory_kib < 100 * MIB // 1024
    wait_for(lambda: not readers())
    any_runner.send(signal.SIGTERM)
    assert any_runner.exit_code(TERM_DEADLINE_S) == 0


def test_term_during_the_reading_leaves_no_child_and_the_next_runner_reports_the_end(
    any_runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    task_id = orchestrator.create_task("[print-line done]")["id"]
    with hostile_crush(any_runner.home / ".crush" / "crush.db", "unfinished"):
        any_runner.start()
        wait_for(readers)
        any_runner.send(signal.SIGTERM)
        assert any_runner.exit_code(TERM_DEADLINE_S) == 0
        assert not readers()
    assert any_runner.rows("SELECT state, log_pending FROM tasks") == [
        {"state": "ended", "log_pending": 1}
    ]

    any_runner.start()
    assert orchestrator.end_of(task_id)["status"] == "success"
    any_runner.wait_until_closed(task_id)
