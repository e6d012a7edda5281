"""How a task ended: the judgement over a container that no longer runs, and the words for it."""

from __future__ import annotations

from collections.abc import Mapping

from runner.engine.base import SIGNALLED, Container, Phase
from runner.model import EndReason, Outcome, Report, Task, log_body, status_body

LAST_LINES = 20
# How podman says that nobody saw the exit code: after its own `--timeout`, and after an accident.
_UNRECORDED = -1
_EXIT_BY_SIGNAL = frozenset({_UNRECORDED, 137, 143, 255})


def decide_outcome(
    task: Task, container: Container | None, output: str = "", *, was_daemon_away: bool = False
) -> Outcome:
    """Say why a task ended whose container ran, or may have run, and runs no more.

    `output` is the last of what the container wrote, free of secrets. With `was_daemon_away` the
    engine's daemon was not there around the end: one that goes takes its containers along, by a
    signal, and later tells the exit code that this made.
    """
    asked = task.stop_reason
    if container is None or container.phase is not Phase.EXITED:
        if asked is not None:
            return Outcome(asked, _sentence(asked, "stopped, and its container is gone", ""))
        return Outcome(
            EndReason.LOST, _sentence(EndReason.LOST, "container is gone (host restarted?)", output)
        )
    reason = _reason(task, container)
    code = container.exit_code
    if reason is EndReason.FAILED and was_daemon_away and code in SIGNALLED:
        why = f"the engine's daemon was away as it ended by a signal (exit code {code})"
        return Outcome(EndReason.LOST, _sentence(EndReason.LOST, why, output), code)
    lasted = _lasted_s(container)
    after = f" after {lasted:.0f} s" if lasted is not None else ""
    limit = f" of {task.assignment.timeout_s:g} s" if task.assignment is not None else ""
    what = {
        EndReason.COMPLETED: f"exit code 0{after}",
        EndReason.FAILED: f"exit code {code}{after}",
        EndReason.TIMED_OUT: f"stopped{after}, its time limit{limit} was up",
        EndReason.CANCELLED: f"stopped{after}",
        EndReason.LOST: f"its end{after} was not recorded",
        EndReason.OUT_OF_MEMORY: f"the kernel ended it for want of memory{after}",
    }.get(reason, f"stopped{after}")
    return Outcome(reason, _sentence(reason, what, output), None if code == _UNRECORDED else code)


def _reason(task: Task, container: Container) -> EndReason:
    asked, asked_at = task.stop_reason, task.stop_asked_at
    ended_at = container.finished_at
    # What ended by itself before it was told to stop has its own reason.
    if asked is not None and (asked_at is None or ended_at is None or ended_at >= asked_at):
        return asked
    if container.exit_code == 0:
        return EndReason.COMPLETED
    if container.out_of_memory:
        return EndReason.OUT_OF_MEMORY
    lasted = _lasted_s(container)
    limit_s = task.assignment.timeout_s if task.assignment is not None else None
    is_over = lasted is not None and limit_s is not None and lasted >= limit_s
    # While no runner watched, the engine itself may have ended it (`run --timeout`).
    if is_over and container.exit_code in _EXIT_BY_SIGNAL:
        return EndReason.TIMED_OUT
    return EndReason.LOST if container.exit_code == _UNRECORDED else EndReason.FAILED


def _lasted_s(container: Container) -> float | None:
    if container.started_at is None or container.finished_at is None:
        return None
    return max(0.0, container.finished_at - container.started_at)


def _sentence(reason: EndReason, what: str, output: str) -> str:
    head = f"{reason.value}: {what}"
    return f"{head}\n{output}" if output else head


def outcome_without_container(reason: EndReason, why: object) -> Outcome:
    """Give the end of a task that never had a container."""
    return Outcome(reason, _sentence(reason, str(why), ""))


def final_report(task_id: str, end: Outcome, now: float, session_id: object = None) -> Report:
    """Give the report that closes the task at the orchestrator; it names the agent's session."""
    body = status_body(task_id, end.reason.status, end.message, now)
    if session_id is not None:
        body["crush_session_id"] = session_id
    if end.reason is EndReason.COMPLETED:
        body["progress"] = 100.0
    return Report("status", body)


def log_report(task_id: str, session: Mapping[str, object]) -> Report:
    """Give the report that hands in the agent's session."""
    return Report("logs", log_body(task_id, session))
