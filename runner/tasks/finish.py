"""After a task's container: its final reports, its outcome written down, and its removal.

The agent in the container may have reported both log and end by itself, through the status
reporter, which leaves its state in the task's folder. Its final status is never contradicted: the
runner repeats it, for it cannot know that the orchestrator has it. A log that was sent is not
sent again, unless the agent went on without a final status.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

import anyio
import anyio.to_thread

from runner import timing
from runner.crush.log import digest_of
from runner.crush.sessions import Wanted, session_mark, session_of_task
from runner.engine.base import KEY_VARIABLE, SIGNALLED, Container, Phase
from runner.errors import EngineError, RunnerError
from runner.log import fields
from runner.model import End, EndReason, Report, Task
from runner.node import written
from runner.redaction import Secret, blanked, forms_of, secrets_to_blank, without_secrets
from runner.state_dir import cid_file
from runner.tasks.context import Hand, Parts
from runner.tasks.outcome import LAST_LINES, final_report, judge, log_report
from runner.workspace.handover import FinalWord, Trace, read_trace

log = logging.getLogger(__name__)
_REMOVAL_S = 1.0
_JUST_BACK_S = 30.0
_READING_DEADLINE_S = 60.0
T = TypeVar("T")


async def conclude(hand: Hand, container: Container | None) -> None:
    """Write down how the task ended, and what is to be told about it."""
    output = await _last_output(hand, container)
    if container is not None and _may_be_under_removal(hand, container):
        await hand.parts.clock.sleep(_REMOVAL_S)
        container = await hand.look()
    end = judge(hand.task, container, output, was_daemon_away=_was_daemon_away(hand))
    await write_end(hand, end, container)


def _was_daemon_away(hand: Hand) -> bool:
    """Tell whether docker's daemon has come back just now: it ends containers as it goes."""
    silent_at_s = hand.engine_silent_at_s
    if hand.engine.kind != "docker" or silent_at_s is None:
        return False
    return hand.parts.clock.uptime_s() - silent_at_s < _JUST_BACK_S


def _may_be_under_removal(hand: Hand, container: Container) -> bool:
    """Tell whether somebody may be about to remove it: a `rm --force` ends it by a signal first."""
    is_by_signal = container.exit_code in SIGNALLED and not container.out_of_memory
    return is_by_signal and hand.task.stop_reason is None


async def write_end(hand: Hand, end: End, container: Container | None = None) -> None:
    """Write down an end that is known, and what is to be told about it."""
    now = hand.parts.clock.wall_s()
    reports = await last_reports(hand.task, hand.parts, end, container)
    await hand.written(lambda: hand.parts.journal.end(hand.task_id, end, reports, now))
    hand.parts.outbox.notify()
    log.info(
        "task has ended",
        extra=fields(task_id=hand.task_id, reason=end.reason.value, exit_code=end.exit_code),
    )


async def close(hand: Hand) -> None:
    """Remove the container, and close the journal's page when every report is out."""
    await _remove(hand)
    cid_file(hand.parts.settings.state_dir, hand.task_id).unlink(missing_ok=True)
    while True:
        seen = hand.parts.outbox.count
        now = hand.parts.clock.wall_s()
        if await hand.written(lambda: hand.parts.journal.close(hand.task_id, now)):  # noqa: B023 - called before the next turn
            break
        await hand.parts.outbox.after(seen)
    hand.parts.outbox.notify()
    log.debug("task is closed", extra=fields(task_id=hand.task_id))


async def _last_output(hand: Hand, container: Container | None) -> str:
    if container is None or container.phase is Phase.CREATED:
        return ""
    try:
        output = await hand.engine.last_output(hand.container_name, LAST_LINES)
    except EngineError as error:
        return f"(its output cannot be read: {error})"
    return without_secrets(output, await secrets_of(hand.task_id, hand.parts, container))


async def _remove(hand: Hand) -> None:
    attempts = 0
    while True:
        try:
            await hand.engine.remove(hand.container_name)
        except EngineError as error:
            attempts += 1
            log.warning("cannot remove: %s", error, extra=fields(task_id=hand.task_id))
            await hand.parts.clock.sleep(timing.delay_s(attempts))
        else:
            return


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
