"""Size costs time and no memory, and does not silence the heartbeat."""

from __future__ import annotations

import time
from itertools import pairwise

from tests.harness.runner_process import RunnerProcess
from tests.system.recording import LONGEST_TASK_S, MIB, RecordingOrchestrator

MOST_GROWTH_KIB = 20 * 1024
LONGEST_SILENCE_S = 5
"""Between two heartbeats of half a second each, while two processes share the machine. Where others
do as well, everything takes longer: half the time that the file took is no silence either."""


def test_task_that_prints_200_mb_finishes_and_the_runner_does_not_grow_by_20_mib(
    any_runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    runner = any_runner
    runner.start()
    orchestrator.wait_for_call("GET", "/tasks/pending")
    before_kib = runner.memory_kib
    runner.forget_peak()
    began_at = time.monotonic()
    task_id = orchestrator.create_task("[print 200000000] [print-line the end]")["id"]
    ended = orchestrator.end_of(task_id)
    assert ended["status"] == "success"
    assert ended["result"].endswith("the end")
    show("200 MB of output", began_at, before_kib, runner)
    assert runner.peak_memory_kib - before_kib < MOST_GROWTH_KIB


def test_file_of_1_gib_is_streamed_without_growing_by_20_mib_and_heartbeats_go_on(
    any_runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    name = orchestrator.upload_zeros("large.bin", 1024 * MIB)
    any_runner.start()
    orchestrator.wait_for_call("GET", "/tasks/pending")
    before_kib = any_runner.memory_kib
    any_runner.forget_peak()
    began_at = time.monotonic()
    task_id = orchestrator.create_task("[print-line it is here]", files=[name])["id"]
    arrived_at = orchestrator.wait_for_call("POST", "/status", deadline_s=LONGEST_TASK_S).at
    show("1 GiB file", began_at, before_kib, any_runner)
    arrived = any_runner.task_folder(task_id) / "files" / name
    assert arrived.stat().st_size == 1024 * MIB
    arrived.unlink()
    assert any_runner.peak_memory_kib - before_kib < MOST_GROWTH_KIB
    beats = [call.at for call in orchestrator.calls_of("POST", "/nodes/heartbeat")]
    asked_at = orchestrator.calls_of("GET", f"/files/{name}")[0].at
    silence_s = max(later - earlier for earlier, later in pairwise(beats))
    assert silence_s < max(LONGEST_SILENCE_S, (arrived_at - asked_at) / 2)


def show(what: str, began_at: float, before_kib: int, runner: RunnerProcess) -> None:
    """Print the figures, which pytest shows with -rP."""
    growth_kib = runner.peak_memory_kib - before_kib
    print(  # noqa: T201 - that is its purpose
        f"measured: {what}: {time.monotonic() - began_at:.1f} s, "
        f"resident {before_kib / 1024:.1f} MiB before, {growth_kib / 1024:.1f} MiB more at most"
    )
