"""Size costs time and no memory, and does not silence the heartbeat."""

from __future__ import annotations

import time
from itertools import pairwise

from tests.harness.runner_process import RunnerProcess
from tests.system.recording import LONGEST_TASK_S, MIB, RecordingOrchestrator

FILE_BYTES = 256 * MIB
MOST_GROWTH_KIB = 20 * 1024
LONGEST_SILENCE_S = 5
"""Between two heartbeats of half a second each, while two processes share the machine. Where others
do as well, everything takes longer: then half the time of the download is allowed."""


def test_file_of_256_mib_and_50_mb_of_output_cost_less_than_20_mib_and_heartbeats_go_on(
    any_runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    name = orchestrator.upload_zeros("large.bin", FILE_BYTES)
    any_runner.start()
    orchestrator.wait_for_call("GET", "/tasks/pending")
    before_kib = any_runner.memory_kib
    any_runner.forget_peak()
    began_at = time.monotonic()
    prompt = "[print 50000000] [print-line the end]"
    task_id = orchestrator.create_task(prompt, files=[name])["id"]
    arrived_at = orchestrator.wait_for_call("POST", "/status", deadline_s=LONGEST_TASK_S).at
    ended = orchestrator.end_of(task_id)
    growth_kib = any_runner.peak_memory_kib - before_kib
    print(  # noqa: T201 - pytest shows it with -rP
        f"measured: {time.monotonic() - began_at:.1f} s, resident {before_kib / 1024:.1f} MiB "
        f"before, {growth_kib / 1024:.1f} MiB more at most"
    )
    assert growth_kib < MOST_GROWTH_KIB
    assert ended["status"] == "success"
    assert ended["result"].endswith("the end")
    file = any_runner.task_folder(task_id) / "files" / name
    assert file.stat().st_size == FILE_BYTES
    file.unlink()
    beats = [call.at for call in orchestrator.calls_of("POST", "/nodes/heartbeat")]
    asked_at = orchestrator.calls_of("GET", f"/files/{name}")[0].at
    silence_s = max(later - earlier for earlier, later in pairwise(beats))
    assert silence_s < max(LONGEST_SILENCE_S, (arrived_at - asked_at) / 2)
