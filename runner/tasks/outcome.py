"""Why a task ended: decided from its container, and written as its final report."""

from __future__ import annotations

import re

from runner.engine.base import SIGNALLED, Container, Phase
from runner.model import EndReason, Outcome, Report, Task, status_body

LAST_LINES = 20
_SOON_S = 10.0
# As runc, its predecessor and crun put it, in the container's own output.
_CANNOT_EXECUTE = re.compile(
    r"(?:exec[ :]|standard_init_linux\.go:\d+: exec |\{\"msg\":\"exec ).*exec format error.*",
    re.IGNORECASE,
)
_UNRECORDED = -1
"""podman's exit code when nobody saw one: after its own `--timeout`, and after an accident."""
_EXIT_BY_SIGNAL = frozenset({_UNRECORDED, 137, 143, 255})


def decide_outcome(
    task: Task, container: Container | None, output: str = "", *, was_daemon_away: bool = False
) -> Outcome:
    """Return the outcome of a task whose container ran, or may have run, and runs no more.

    `output` is the container's last output, redacted. `was_daemon_away`: docker's daemon was down
    around the end. A daemon that stops kills its containers, and reports their exit codes later.
    """
    stop_reason = task.stop_reason
    if container is None or container.phase is not Phase.EXITED:
        if stop_reason is not None:
            return Outcome(
                stop_reason, _sentence(stop_reason, "stopped, and its container is gone", "")
            )
        return Outcome(
            EndReason.LOST, _sentence(EndReason.LOST, "container is gone (host restarted?)", output)
        )
    reason = _reason(task, container)
    code = container.exit_code
    if reason is EndReason.FAILED and was_daemon_away and code in SIGNALLED:
        why = f"the engine's daemon was away as it ended by a signal (exit code {code})"
        return Outcome(EndReason.LOST, _sentence(EndReason.LOST, why, output), code)
    duration_s = duration_of(container)
    after = f" after {duration_s:.0f} s" if duration_s is not None else ""
    limit = f" of {task.assignment.timeout_s:g} s" if task.assignment is not None else ""
    text = {
        EndReason.COMPLETED: f"exit code 0{after}",
        EndReason.FAILED: f"exit code {code}{after}",
        EndReason.TIMED_OUT: f"stopped{after}, its time limit{limit} was up",
        EndReason.CANCELLED: f"stopped{after}",
        EndReason.LOST: f"its end{after} was not recorded",
        EndReason.OUT_OF_MEMORY: f"the kernel killed it because it was out of memory{after}",
    }.get(reason, f"stopped{after}")
    return Outcome(reason, _sentence(reason, text, output), None if code == _UNRECORDED else code)


def cannot_execute(container: Container | None, output: str) -> bool:
    """Return whether a container ended because this host cannot execute the image's program.

    Then the engine's runtime printed that, and nothing else was printed.
    """
    if container is None or container.phase is not Phase.EXITED or not container.exit_code:
        return False
    is_soon = (duration_of(container) or 0.0) < _SOON_S
    return is_soon and _CANNOT_EXECUTE.fullmatch(output.strip()) is not None


def _reason(task: Task, container: Container) -> EndReason:
    stop_reason, asked_at = task.stop_reason, task.stop_asked_at
    ended_at = container.finished_at
    # A container that ended before the stop was asked for has its own reason.
    if stop_reason is not None and (asked_at is None or ended_at is None or ended_at >= asked_at):
        return stop_reason
    if container.exit_code == 0:
        return EndReason.COMPLETED
    # 137 is KILL: the engine notes whether the kernel sent it because memory ran out.
    if container.out_of_memory:
        return EndReason.OUT_OF_MEMORY
    duration_s = duration_of(container)
    limit_s = task.assignment.timeout_s if task.assignment is not None else None
    is_overtime = duration_s is not None and limit_s is not None and duration_s >= limit_s
    # While no runner watched, the engine itself may have stopped it (`run --timeout`).
    if is_overtime and container.exit_code in _EXIT_BY_SIGNAL:
        return EndReason.TIMED_OUT
    return EndReason.LOST if container.exit_code == _UNRECORDED else EndReason.FAILED


def duration_of(container: Container | None) -> float | None:
    """Return for how many seconds a container ran; None if that is not recorded."""
    if container is None or container.started_at is None or container.finished_at is None:
        return None
    return max(0.0, container.finished_at - container.started_at)


def _sentence(reason: EndReason, text: str, output: str) -> str:
    head = f"{reason.value}: {text}"
    return f"{head}\n{output}" if output else head


def outcome_without_container(reason: EndReason, why: object) -> Outcome:
    """Return the outcome of a task that never had a container."""
    return Outcome(reason, _sentence(reason, str(why), ""))


def final_report(task_id: str, outcome: Outcome, now: float, session_id: object = None) -> Report:
    """Return the final status; `session_id` names the agent's session in its log."""
    body = status_body(task_id, outcome.reason.status, outcome.message, now)
    if session_id is not None:
        body["crush_session_id"] = session_id
    if outcome.reason is EndReason.COMPLETED:
        body["progress"] = 100.0
    return Report("status", body)
