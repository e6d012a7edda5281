"""The server follows its contract for any request."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.orchestrator.serving import RunningOrchestrator

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "schemathesis.cli", "run")
OPTIONS = (
    "--max-examples=5",
    "--seed=1",
    "--no-shrink",
    "--continue-on-failure",
    "--warnings=off",
    "--suppress-health-check=all",
    "--request-timeout=120",  # by default ten seconds without a response are a fault of the server
)
# DELETE cancels a task, which can be read afterwards.
# "cleanup" and "audit" are ids of nothing.
# In a multipart body any value is a file, and so is any body of a PUT.
# A request may have headers that the contract does not name.
EXCEPTIONS = """
[[operations]]
include-path = "/tasks/{task_id}"
checks.use_after_free.enabled = false

[[operations]]
include-path = "/tasks/cleanup"
checks.unsupported_method.enabled = false

[[operations]]
include-path = "/keys/audit"
checks.unsupported_method.enabled = false

[[operations]]
include-path = "/upload"
checks.negative_data_rejection.enabled = false

[[operations]]
include-name = "GET /tasks/{task_id}/output"
checks.negative_data_rejection.enabled = false

[[operations]]
include-path = "/tasks/{task_id}/artifacts/{path}"
checks.negative_data_rejection.enabled = false
"""


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.both_databases
@pytest.mark.settings(failures_per_minute=10**6)
def test_schemathesis_finds_nothing(orchestrator: RunningOrchestrator, tmp_path: Path) -> None:
    variables = {
        "VICTORIA_CHECKED_URL": orchestrator.url,
        "VICTORIA_CHECKED_ADMIN_KEY": orchestrator.admin_key,
        "VICTORIA_CHECKED_TOKEN": str(orchestrator.registration_token),
        "SCHEMATHESIS_HOOKS": "tests.orchestrator.schemathesis_hooks",
        "PYTHONPATH": str(ROOT),
    }
    (tmp_path / "schemathesis.toml").write_text(EXCEPTIONS)
    done = subprocess.run(
        [*COMMAND, f"{orchestrator.url}/openapi.json", *OPTIONS],
        cwd=tmp_path,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for phase in ("Examples", "Coverage", "Fuzzing", "Stateful"):
        assert f"✅ {phase}" in done.stdout
