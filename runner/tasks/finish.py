"""After a task's container: its final reports, its outcome written down, and its removal.

The agent in the container may have reported both log and end by itself, through the status
reporter, which leaves its state in the task's folder. Its final status is never contradicted: the
runner repeats it, for it cannot know that the orchestrator has it. A log that was sent is not
sent again, unless the agent went on without a final status.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread

from runner.crush.log import digest_of
from runner.crush.sessions import SessionQuery, prompt_digest, session_mark, session_of_task
from runner.engine.base import LABEL_IMAGE, SIGNALLED, Container, Engine, Phase
from runner.errors import EngineError, RunnerError
from runner.log import fields
from runner.model import (
    ARTIFACTS,
    EndReason,
    Outcome,
    OutputProgress,
    Report,
    Task,
    TaskStatus,
    log_body,
)
from runner.redaction import encoded_forms, plain_text, redact, redact_output
from runner.state_dir import cid_file
from runner.tasks.artifacts import find_artifacts, unread_artifacts
from runner.tasks.context import RunnerContext, TaskContext
from runner.tasks.outcome import (
    LAST_LINES,
    cannot_execute,
    decide_outcome,
    duration_of,
    final_report,
    outcome_without_container,
)
from runner.tasks.output import rest_of_output, secrets_of
from runner.timing import Retry, retry
from runner.workspace.download import CONTAINER_HOME
from runner.workspace.handover import FinalStatus, ReporterState, read_reporter_state
from runner.workspace.home import home_of_task

log = logging.getLogger(__name__)
T = TypeVar("T")


async def finish(task: TaskContext, container: Container | None) -> None:
    """Decide the outcome and write it down, then report it."""
    output = await _last_output(task, container)
    if container is not None and _may_be_under_removal(task, container):
        await task.runner.clock.sleep(task.runner.timings.removal_grace_s)
        container = await task.inspect()
    outcome = decide_outcome(task.record, container, output, was_daemon_away=_was_daemon_away(task))
    if cannot_execute(container, output):
        # The next task's would end like that too.
        sentence = (
            f"cannot run the image {task.runner.settings.container_image} here: {output}; use an "
            "image for the architecture of this host"
        )
        await _note_failed_image(task, sentence)
        outcome = outcome_without_container(EndReason.UNSTARTABLE, sentence)
    elif container is not None:
        task.runner.problems.note_run()
    # The rest needs no slot: the next task may come.
    named_from_s = task.runner.clock.uptime_s() + task.runner.timings.finish_s
    task.runner.finishing[task.task_id] = named_from_s
    task.runner.slots.release(task.task_id)
    await write_end(task, outcome, container)


async def _note_failed_image(task: TaskContext, sentence: str) -> None:
    image_id = ""
    with suppress(EngineError):
        image = await task.engine.inspect_image(task.runner.settings.container_image)
        image_id = image.image_id
    task.runner.problems.image_failed(sentence, image_id, task.runner.clock.uptime_s())


def _was_daemon_away(task: TaskContext) -> bool:
    """Return whether docker's daemon has just come back: it kills containers as it stops."""
    silent_at_s = task.engine_silent_at_s
    if task.engine.kind != "docker" or silent_at_s is None:
        return False
    return task.runner.clock.uptime_s() - silent_at_s < task.runner.timings.daemon_return_s


def _may_be_under_removal(task: TaskContext, container: Container) -> bool:
    """Return whether somebody may be removing it: `rm --force` kills a container first."""
    was_killed = container.exit_code in SIGNALLED and not container.out_of_memory
    return was_killed and task.record.stop_reason is None


async def write_end(task: TaskContext, end: Outcome, container: Container | None = None) -> None:
    """Write down an outcome, then report it; of a container that ran, with its agent's log.

    These are two transactions: nothing that the agent left may keep its outcome from being known.
    """
    now = task.runner.clock.wall_s()
    has_run = _may_have_run(task.record, end, container)
    reports = [] if has_run else [final_report(task.task_id, end, now)]
    await task.persist(
        lambda: task.runner.journal.end(
            task.task_id, end, reports, now, is_log_pending=has_run, image=_image_of(container)
        )
    )
    task.runner.outbox.notify()
    _log_end(task.task_id, end, duration_of(container))
    if not has_run:
        task.runner.finishing.pop(task.task_id, None)
    else:
        await task.reload()
        until = anyio.current_time() + task.runner.timings.final_log_timeout_s
        await _report(task, container, await _reporter_state(task, until), until)


def _log_end(task_id: str, end: Outcome, duration_s: float | None) -> None:
    ids: dict[str, object] = {"task_id": task_id, "reason": end.reason.value}
    if end.exit_code is not None:
        ids["exit_code"] = end.exit_code
    if duration_s is not None:
        ids["duration_s"] = round(duration_s)
    if end.reason is not EndReason.COMPLETED:
        # The first line is the runner's own; the container's output follows it.
        ids["outcome"] = end.message.partition("\n")[0]
    log.info("task has ended", extra=fields(**ids))


def _image_of(container: Container | None) -> tuple[str, str] | None:
    """Return the name and the id of a container's image; None where either is not known."""
    if container is None or not container.image_id or LABEL_IMAGE not in container.labels:
        return None
    return container.labels[LABEL_IMAGE], container.image_id


async def recover_report(task: TaskContext) -> None:
    """Report an outcome that an earlier runner, or attempt, wrote down and did not report."""
    until = anyio.current_time() + task.runner.timings.final_log_timeout_s
    # First, so that a silent engine does not cost the agent's final status.
    state = await _reporter_state(task, until)
    container = None
    with anyio.move_on_after(task.runner.timings.final_output_timeout_s):
        container = await task.inspect()
    until = anyio.current_time() + task.runner.timings.final_log_timeout_s
    await _report(task, container, state, until)


async def release_without_log(task: TaskContext) -> None:
    """Report an outcome alone."""
    await _release(task, [final_report(task.task_id, _outcome(task), task.runner.clock.wall_s())])


async def close(task: TaskContext) -> None:
    """Remove the container, and close the task when every report is delivered or parked."""
    await _remove(task)
    # What cannot be removed is in nobody's way: the next start of this task would remove it.
    with suppress(OSError):
        cid_file(task.runner.settings.state_dir, task.task_id).unlink()
    prompt = _prompt(task.record)
    digest = None if prompt is None else prompt_digest(prompt)
    while True:
        changes = task.runner.outbox.count
        now = task.runner.clock.wall_s()
        if await task.persist(lambda: task.runner.journal.close(task.task_id, now, digest)):  # noqa: B023 - called before the next iteration
            break
        await task.runner.outbox.after(changes)
    task.runner.outbox.notify()
    log.debug("task is closed", extra=fields(task_id=task.task_id))


async def _last_output(task: TaskContext, container: Container | None) -> str:
    if container is None or container.phase is Phase.CREATED:
        return ""
    try:
        output = await task.engine.last_output(container.container_id, LAST_LINES)
    except EngineError as error:
        return f"(its output cannot be read: {error})"
    return redact_output(output, await secrets_of(task.runner, task.record, container))


async def _remove(task: TaskContext) -> None:
    """Remove the task's own container; retried without end, for a silent engine may come back."""

    async def remove() -> None:
        container_id = task.container_id
        if container_id is None:
            container = await task.inspect_once()
            container_id = None if container is None else container.container_id
        if container_id is not None:
            await task.engine.remove(container_id)

    attempts = Retry(task.runner.clock, task.runner.timings.backoff(), task.removals.note)
    await retry(remove, EngineError, attempts)
    task.removals.end()


async def _report(
    task: TaskContext, container: Container | None, state: ReporterState, until: float
) -> None:
    """Look for the agent's log until that moment on the event loop's clock, then report."""
    secrets = await secrets_of(task.runner, task.record, container)
    session = await _read(
        task.task_id,
        lambda: _find_log(task.record, task.runner, container, state, secrets),
        until,
    )
    final = state.final
    session_id = state.log_session_id or (final and final.session_id)
    if session is not None:
        session_id = str(session["id"])
    outcome = _outcome(task)
    report = final_report(task.task_id, outcome, task.runner.clock.wall_s(), session_id)
    if final is not None:
        report = _repeat_agent_status(report, outcome, final, secrets)
    logs = [] if session is None else [Report("logs", log_body(task.task_id, session))]
    output_by = anyio.current_time() + task.runner.timings.final_output_timeout_s
    output = await rest_of_output(task, container, output_by)
    copied_by = anyio.current_time() + task.runner.timings.artifact_copy_timeout_s
    artifacts = await _read(task.task_id, lambda: find_artifacts(task, container), copied_by)
    logs += [unread_artifacts(task.task_id)] if artifacts is None else artifacts
    if output is None:
        await _release(task, [*logs, report])
    else:
        chunk, progress = output
        await _release(task, [chunk, *logs, report], progress)


async def _release(
    task: TaskContext, reports: list[Report], output: OutputProgress | None = None
) -> None:
    now = task.runner.clock.wall_s()
    await task.persist(lambda: task.runner.journal.release(task.task_id, reports, now, output))
    if any(report.path == ARTIFACTS for report in reports):
        # A heartbeat names it at once: its time limit may be over.
        task.runner.uploading.add(task.task_id)
        task.runner.changes.notify()
    task.runner.finishing.pop(task.task_id, None)
    task.runner.outbox.notify()


def _outcome(task: TaskContext) -> Outcome:
    if task.record.outcome is None:
        raise AssertionError("it is written down first")
    return task.record.outcome


async def _reporter_state(task: TaskContext, until: float) -> ReporterState:
    read = partial(read_reporter_state, task.runner.settings.victoria_home, task.task_id)
    state = await _read(
        task.task_id, lambda: anyio.to_thread.run_sync(read, abandon_on_cancel=True), until
    )
    return state or ReporterState()


def _may_have_run(task: Task, outcome: Outcome, container: Container | None) -> bool:
    """Return whether an agent may have run; if not, state in the task's folder was planted."""
    return task.started_at is not None or container is not None or outcome.reason is EndReason.LOST


def _repeat_agent_status(
    report: Report, outcome: Outcome, final: FinalStatus, secrets: list[str]
) -> Report:
    """Return the agent's final status; where the outcome differs, its message follows."""
    message = final.message and redact(plain_text(final.message), encoded_forms(secrets))
    if final.status != outcome.reason.status:
        message = f"{message or final.status}\n\nIts container, after that: {outcome.message}"
    body = {**report.body, "status": final.status.value, "message": message or outcome.message}
    body.pop("progress", None)
    if final.status is TaskStatus.SUCCESS:
        body["progress"] = 100.0
    return Report(report.path, body)


async def _find_log(
    task: Task,
    runner: RunnerContext,
    container: Container | None,
    state: ReporterState,
    secrets: list[str],
) -> Mapping[str, object] | None:
    """Return the session that the agent left, unless the orchestrator has it already."""
    if state.log_digest is not None and state.final is not None:
        return None
    started_at = task.started_at
    if container is not None and container.started_at is not None:
        started_at = container.started_at
    if started_at is None or task.assignment is None:
        return None
    ended_at = task.ended_at or runner.clock.wall_s()
    # The end is earlier than the start when the clock was set back in between.
    if container is not None and (container.finished_at or 0) >= started_at:
        ended_at = container.finished_at or ended_at
    beside = await runner.persist(
        # Crush keeps whole seconds.
        lambda: runner.journal.tasks_beside(
            task.task_id, math.floor(started_at), math.ceil(ended_at)
        )
    )
    query = SessionQuery(
        started_at,
        ended_at,
        _prompt(task),
        session_mark(task.task_id),
        tuple(_prompt(other) for other in beside if other.prompt_digest is None),
        tuple(other.prompt_digest for other in beside if other.prompt_digest is not None),
    )
    victoria_home = runner.settings.victoria_home
    home = await anyio.to_thread.run_sync(home_of_task, victoria_home, task.task_id)
    if home != victoria_home:
        query = replace(query, others=(), digests=())  # nobody else was in this home
    session = await session_of_task(
        home / ".crush" / "crush.db",
        query,
        secrets,
        copy_out=None if container is None else partial(_copy_out, runner.engine, container),
        read_timeout_s=runner.timings.session_read_timeout_s,
    )
    if session is not None and digest_of(session) == state.log_digest:
        return None
    return session


async def _copy_out(
    engine: Engine, container: Container, name: str, archive: Path, max_bytes: int
) -> bool:
    """Have the engine archive a file of the agent's: with docker as root, it belongs to root."""
    path = f"{CONTAINER_HOME}/.crush/{name}"
    return await engine.copy_out(container.container_id, path, archive, max_bytes)


def _prompt(task: Task) -> str | None:
    """Return the task's prompt; None where it is not known, as with an adopted task."""
    return (task.assignment and task.assignment.prompt) or None


async def _read(task_id: str, read: Callable[[], Awaitable[T]], until: float) -> T | None:
    """Return what `read` returns of what the agent left; None if it cannot be read in time."""
    try:
        with anyio.fail_after(max(0.0, until - anyio.current_time())):
            return await read()
    except TimeoutError:
        log.warning(
            "cannot read what the agent left: it takes too long", extra=fields(task_id=task_id)
        )
    except RunnerError as error:
        log.warning("%s", error, extra=fields(task_id=task_id))
    except Exception:
        # The outcome is known; what the agent left must not change that.
        log.exception(
            "a defect of the runner meets what an agent left", extra=fields(task_id=task_id)
        )
    return None
