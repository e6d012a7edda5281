"""The texts that the seed's troubleshooting explains, word for word.

That of a refused connection is in tests/faults/test_lost_answers.py.
"""

from __future__ import annotations

from pathlib import Path

from tests.harness.runner_process import RunnerProcess
from tests.system.recording import RecordingOrchestrator


def test_container_runtime_not_found(runner: RunnerProcess, tmp_path: Path) -> None:
    done = runner.run("--container-runtime=auto", environment={"PATH": str(tmp_path)})
    assert done.exit_code == 69
    sentence = "RuntimeError: No container runtime found. Install podman or docker."
    assert sentence in done.log.splitlines()


def test_registration_failed_by_an_invalid_token(
    runner: RunnerProcess, orchestrator: RecordingOrchestrator
) -> None:
    (runner.folder / "token").write_text("a-wrong-token")
    done = runner.run()
    assert done.exit_code == 77
    assert "Registration failed - invalid registration token" in done.log
    assert "a-wrong-token" not in done.log
    assert orchestrator.nodes() == []
