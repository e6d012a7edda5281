"""What the orchestrator is told of a task whose container has ended: its log, then its end.

The agent in the container may have told both by itself, through the status reporter, which leaves
a trace in the task's folder. Its final word is never contradicted: the runner repeats it, for it
cannot know that the orchestrator has it. A log that was handed in is not handed in again, unless
the agent went on without a final word.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

import anyio
import anyio.to_thread

from runner.blanking import blanked, forms_of
from runner.container import Container
from runner.crush import Wanted, session_of_task
from runner.crush_log import digest_of
from runner.crush_mark import session_mark
from runner.ending import final_report, log_report, secrets_to_blank
from runner.errors import RunnerError
from runner.log import fields
from runner.marks import KEY_VARIABLE
from runner.parts import Parts
from runner.records import End, Report, Task
from runner.settings import Secret
from runner.states import EndReason
from runner.trace import FinalWord, Trace, read_trace
from runner.workload import written

log = logging.getLogger(__name__)

_READING_DEADLINE_S = 60.0

T = TypeVar("T")


async def last_reports(
    task: Task, parts: Parts, end: End, container: Container | None
) -> list[Report]:
    """Give the reports that close a task, in the order in which they are to be delivered."""
    now = parts.clock.wall_s()
    if not _may_have_run(task, end, container):
        return [final_report(task.task_id, end, now)]
    secrets = await secrets_of(task.task_id, parts, container)
    home = parts.settings.victoria_home
    trace = await _read(task, partial(read_trace, home, task.task_id)) or Trace()
    session = await _session_to_hand_in(task, parts, container, trace, secrets)
    word = trace.final
    session_id = trace.log_session_id or (word and word.session_id)
    if session is not None:
        session_id = str(session["id"])
    report = final_report(task.task_id, end, now, session_id)
    if word is not None:
        report = _repeated(report, end, word, secrets)
    return [report] if session is None else [log_report(task.task_id, session), report]


async def secrets_of(task_id: str, parts: Parts, container: Container | None) -> list[str]:
    """Give the texts that nothing that is told of a task may carry."""
    settings = parts.settings
    identity = await written(
        lambda: parts.journal.identity_for(task_id), parts.workload, parts.clock
    )
    # The node may have another key by now than the container was given.
    given = Secret(container.variables.get(KEY_VARIABLE, "") if container is not None else "")
    return secrets_to_blank(
        settings.registration_token, identity.api_key, given, env_file=settings.env_file
    )


def _may_have_run(task: Task, end: End, container: Container | None) -> bool:
    """Say whether there can have been an agent; a trace from before one was planted."""
    return task.started_at is not None or container is not None or end.reason is EndReason.LOST


def _repeated(report: Report, end: End, word: FinalWord, secrets: list[str]) -> Report:
    """Say what the agent has said, and beside it what became of the container if that differs."""
    told = word.message and blanked(word.message, forms_of(secrets))
    if word.status != end.reason.status:
        told = f"{told or word.status}\n\nIts container, after that: {end.message}"
    body = {**report.body, "status": word.status, "message": told or end.message}
    body.pop("progress", None)
    if word.status == "success":
        body["progress"] = 100.0
    return Report(report.path, body)


async def _session_to_hand_in(
    task: Task, parts: Parts, container: Container | None, trace: Trace, secrets: list[str]
) -> Mapping[str, object] | None:
    """Read the session that the agent left, if it is not at the orchestrator already."""
    if trace.log_digest is not None and trace.final is not None:
        return None
    started_at = task.started_at
    if container is not None and container.started_at is not None:
        started_at = container.started_at
    if started_at is None or task.assignment is None:
        return None
    ended_at = parts.clock.wall_s()
    # An earlier end than the start is told when the clock was set back in between.
    if container is not None and (container.finished_at or 0) >= started_at:
        ended_at = container.finished_at or ended_at
    beside = await written(
        lambda: parts.journal.tasks_beside(task.task_id, started_at, ended_at),
        parts.workload,
        parts.clock,
    )
    wanted = Wanted(
        started_at,
        ended_at,
        # An adopted task's prompt is not known.
        task.assignment.prompt or None,
        session_mark(task.task_id),
        tuple((other.assignment and other.assignment.prompt) or None for other in beside),
    )
    database = parts.settings.victoria_home / ".crush" / "crush.db"
    session = await _read(task, partial(session_of_task, database, wanted, secrets))
    if session is not None and digest_of(session) == trace.log_digest:
        return None
    return session


async def _read(task: Task, read: Callable[[], T]) -> T | None:
    """Read what a container has left; None if that cannot be done: the end is known without."""
    try:
        # The agent owns that folder: a pipe in a file's place would never be opened.
        with anyio.fail_after(_READING_DEADLINE_S):
            return await anyio.to_thread.run_sync(read, abandon_on_cancel=True)
    except TimeoutError:
        log.warning(
            "cannot read what the agent left: not done in %g s",
            _READING_DEADLINE_S,
            extra=fields(task_id=task.task_id),
        )
    except RunnerError as error:
        log.warning("%s", error, extra=fields(task_id=task.task_id))
    except Exception:
        # How the task ended is known; what the agent left must not change that.
        log.exception("a defect met what an agent left", extra=fields(task_id=task.task_id))
    return None
