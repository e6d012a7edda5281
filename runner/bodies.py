"""What is posted to `/status` and `/logs`; old orchestrators ask for job_id, new for task_id."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone


def status_body(task_id: str, status: str, message: str | None, now: float) -> dict[str, object]:
    """Give what `POST /status` takes; `now` is in seconds since the epoch."""
    return {
        "job_id": task_id,
        "task_id": task_id,
        "status": status,
        "message": message,
        "timestamp": datetime.fromtimestamp(now, timezone.utc).isoformat(),
    }


def log_body(task_id: str, session: Mapping[str, object]) -> dict[str, object]:
    """Give what `POST /logs` takes."""
    return {"job_id": task_id, "task_id": task_id, "session": session}
