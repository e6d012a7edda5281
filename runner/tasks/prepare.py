"""What comes before a task's container: its files, its image, and the orchestrator's word.

Cut short when the task is cancelled.
"""

from __future__ import annotations

import logging

import anyio.lowlevel

from runner.errors import (
    EngineError,
    EngineSilent,
    FileRefused,
    Refused,
    Unauthorised,
    Unavailable,
    Unstartable,
)
from runner.log import fields, log_retry
from runner.model import Identity, TaskState
from runner.tasks.context import TaskContext, TaskReassigned
from runner.timing import Retry
from runner.workspace.download import Source, fetch_files

log = logging.getLogger(__name__)
_NOT_OURS = frozenset({403, 404, 409, 410})
_STARTING = "container is starting"
_CLAIM_HOLDS_S = 5.0
_FINAL = frozenset({"success", "error", "cancelled"})


async def prepare(task: TaskContext) -> None:
    """Bring the task to where its container can be started, and write that down.

    Raises:
        TaskReassigned: the orchestrator has no more use for it.
        Unstartable: its files or image cannot be had.
    """
    if task.assignment.files:
        await _download(task)
    await fetch_image(task)
    await _claim(task, _STARTING)
    await _have_slot(task)
    if task.record.state is TaskState.ACCEPTED:
        boot_id, kind = task.runner.clock.boot_id, task.runner.engine.kind
        await task.persist(lambda: task.runner.journal.start(task.task_id, boot_id, kind))
        await task.reload()


async def _have_slot(task: TaskContext) -> None:
    """Wait for the slot of a task that was asked for when the last one's end was near.

    Mostly it is free by now. If not, the claim is made anew when it is.
    """
    asked_at_s = task.runner.clock.uptime_s()
    await task.runner.slots.wait_for_slot(task.task_id)
    if task.runner.clock.uptime_s() - asked_at_s > _CLAIM_HOLDS_S:
        await _claim(task, _STARTING)


async def _download(task: TaskContext) -> None:
    has_claimed = False
    while True:
        identity = await task.identity()
        try:
            await fetch_files(
                Source(task.runner.orchestrator, identity, task.runner.clock, task.runner.timings),
                task.assignment,
                task.runner.settings.victoria_home,
                min_free_disk=task.runner.settings.min_free_disk,
            )
        except Unauthorised:
            await _renew(task, identity)
        except FileRefused:
            if has_claimed:
                raise
            # Files are for the node that holds the task. Had it been taken away, and were it given
            # to this node again meanwhile, an end told now would be taken for its end.
            await _claim(task, "its files are being fetched")
            has_claimed = True
        except Unavailable as error:
            raise Unstartable(f"cannot fetch its files: {error}") from error
        else:
            return


async def fetch_image(task: TaskContext) -> None:
    """See that the image is on this host; what is wrong with it is wrong for the next task too.

    Raises:
        Unstartable: it cannot be had.
    """
    settings = task.runner.settings
    patience_ends_s = task.runner.clock.uptime_s() + task.runner.timings.pull_timeout_s
    while True:
        try:
            await task.engine.fetch_image(settings.container_image, settings.pull)
        except EngineError as error:
            if isinstance(error, EngineSilent) and task.runner.clock.uptime_s() < patience_ends_s:
                await task.wait_for_engine(error)
                continue
            task.runner.problems.start_failed(str(error), task.runner.clock.uptime_s())
            raise Unstartable(str(error)) from error
        task.engine_answers()
        return


async def _claim(task: TaskContext, message: str) -> None:
    """Have the orchestrator confirm that the task is still ours, before it can do anything.

    This is what keeps a task from running twice when it was given to another node meanwhile.
    """
    log_failure = log_retry("cannot report a start", task_id=task.task_id)
    attempts = Retry(task.runner.clock, task.runner.timings.backoff(), log_failure)
    while True:
        identity = await task.identity()
        body = task.status("running", message)
        try:
            standing = await task.runner.orchestrator.report(identity, "status", body)
        except Unauthorised:
            await _renew(task, identity)
        except Refused as error:
            if error.status in _NOT_OURS:
                raise TaskReassigned(str(error)) from error
            log.warning("cannot report a start: %s", error, extra=fields(task_id=task.task_id))
            return
        except Unavailable as error:
            await attempts.wait_after(error)
        else:
            if standing == "cancelled":
                task.cancel("the orchestrator")
                await anyio.lowlevel.checkpoint()
            if standing in _FINAL:
                raise TaskReassigned(f"the orchestrator has it as {standing}")
            return


async def _renew(task: TaskContext, identity: Identity) -> None:
    await task.runner.node.forget_identity(identity)
    await task.runner.node.identity()
