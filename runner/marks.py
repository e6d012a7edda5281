"""What a task's container is known by when the journal is gone: its name and its labels.

Beside them, the files that live only while it is started.
"""

from __future__ import annotations

from pathlib import Path

LABEL_TASK = "victoria-runner.task-id"
LABEL_NODE = "victoria-runner.node-id"
LABEL_RUNNER = "victoria-runner.runner-id"
LABEL_ORCHESTRATOR = "victoria-runner.orchestrator-url"
LABEL_TIMEOUT = "victoria-runner.timeout-s"
LABEL_BOOT = "victoria-runner.boot-id"
KEY_VARIABLE = "NODE_API_KEY"
SECRETS_VARIABLE = "VICTORIA_SECRETS"
"""Names the variables of the operator's env file whose values the reporter blanks as we do."""


def container_name(task_id: str) -> str:
    """Give the one name that a task's container can have on an engine."""
    return f"victoria-{task_id}"


def run_folder(state_dir: Path) -> Path:
    """Give the folder for what lives only while a container is started."""
    return state_dir / "run"


def env_file(state_dir: Path, task_id: str) -> Path:
    """Give the file with what the container is told, its key among it; gone when it runs."""
    return run_folder(state_dir) / f"{task_id}.env"


def cid_file(state_dir: Path, task_id: str) -> Path:
    """Give the file in which the engine writes the container's id before it starts it."""
    return run_folder(state_dir) / f"{task_id}.cid"


def watcher_file(state_dir: Path, task_id: str) -> Path:
    """Give the file in which podman writes who watches the container; gone when it runs."""
    return run_folder(state_dir) / f"{task_id}.watcher"
