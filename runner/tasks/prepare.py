"""What comes before a task's container: its files, its image, and the claim.

Cancelling the task cuts it short.
"""

from __future__ import annotations

import logging
from functools import partial

import anyio.lowlevel
import anyio.to_thread

from runner.errors import (
    BadAssignment,
    EngineError,
    EngineSilent,
    FileRefused,
    HostUnusable,
    Refused,
    Unauthorised,
    Unavailable,
    Unstartable,
)
from runner.log import fields
from runner.model import Assignment, Identity, TaskState, TaskStatus
from runner.settings import Settings
from runner.tasks.context import TaskContext, TaskReassigned
from runner.timing import Retry, file_stamp, retry
from runner.workspace.download import fetch_files
from runner.workspace.home import Tidying, make_task_folder

log = logging.getLogger(__name__)

_REASSIGNED = frozenset({403, 404, 409, 410})
"""Status codes of a refused claim by which the task is not this node's."""


async def prepare(task: TaskContext) -> None:
    """Fetch files and image and claim the task, then write down that its container may start.

    Raises:
        TaskReassigned: the task is another node's, or has ended.
        Unstartable: its files or image cannot be fetched.
        BadAssignment: it has no key, and this host requires one.
    """
    await _make_folder(task)
    if task.assignment.files:
        await _download(task)
    await fetch_image(task)
    await _claim(task, "container is starting")
    if task.record.state is TaskState.ACCEPTED:
        boot_id, kind = task.runner.clock.boot_id, task.runner.engine.kind
        await task.persist(lambda: task.runner.journal.start(task.task_id, boot_id, kind))
    # An offer that was repeated meanwhile may have brought a newer key.
    await task.reload()
    # Accepted before the option was given. Only after the claim is it certain that it is ours.
    check_task_key(task.assignment, task.runner.settings)


def check_task_key(assignment: Assignment, settings: Settings) -> None:
    """Raise BadAssignment if this host requires that a task has a key, and it has none."""
    if settings.require_task_key and assignment.task_key is None:
        raise BadAssignment(
            "cannot run the task: the orchestrator sent no task_api_key, which --require-task-key "
            "asks for; use an orchestrator with the extension task-key, or leave the option out",
            assignment.task_id,
        )


async def _make_folder(task: TaskContext) -> None:
    """Make the task's folder in the Victoria home, and its own home if it is to have one.

    Raises:
        HomeUnusable: they cannot be made.
    """
    settings = task.runner.settings
    tidying = Tidying(file_stamp(task.runner.clock.wall_s()))
    make = partial(
        make_task_folder,
        settings.victoria_home,
        task.task_id,
        settings.home,
        tidying,
        with_files=bool(task.assignment.files),
        # The container of one that is not new may come late, from a call that timed out.
        is_new=task.record.state is TaskState.ACCEPTED,
    )
    try:
        await anyio.to_thread.run_sync(make)
    finally:
        for sentence in tidying.sentences:
            log.error(sentence)


async def _download(task: TaskContext) -> None:
    is_claimed = False
    while True:
        identity = await task.identity()
        try:
            await fetch_files(
                task.runner.orchestrator,
                identity,
                task.assignment,
                task.runner.settings.victoria_home,
                min_free_disk=task.runner.settings.min_free_disk,
                clock=task.runner.clock,
                timings=task.runner.timings,
                outage=task.runner.node.outage,
            )
        except Unauthorised:
            await _register_again(task, identity)
        except FileRefused:
            if is_claimed:
                raise
            # Only the node that holds the task gets its files: it may have been given to another
            # one, and back to this one since. An outcome reported now would then end that run.
            await _claim(task, "its files are being fetched")
            is_claimed = True
        except Unavailable as error:
            raise Unstartable(f"cannot fetch its files: {error}") from error
        else:
            return


async def fetch_image(task: TaskContext) -> None:
    """Have the image on this host.

    An engine that does not answer is retried for `pull_timeout_s`.

    Raises:
        HostUnusable: it cannot be fetched.
    """
    attempts = task.engine_retry(gives_up_after_s=task.runner.timings.pull_timeout_s)
    try:
        await retry(task.runner.image.fetch, EngineSilent, attempts)
    except EngineError as error:
        raise HostUnusable(str(error)) from error
    task.engine_answers()


async def _claim(task: TaskContext, message: str) -> None:
    """Have the orchestrator confirm that the task is still this node's; retried without end.

    This keeps a task from running twice that was given to another node meanwhile.

    Raises:
        TaskReassigned: it is not.
    """
    failures = task.runner.node.failure_log("report a start", {"task_id": task.task_id})
    attempts = Retry(task.runner.clock, task.runner.timings.backoff(), failures.note)
    while True:
        identity = await task.identity()
        now = task.runner.clock.wall_s()
        try:
            status = await task.runner.orchestrator.claim(identity, task.task_id, message, now)
        except Unauthorised:
            await _register_again(task, identity)
        except Refused as error:
            if error.status in _REASSIGNED:
                raise TaskReassigned(str(error)) from error
            log.warning("cannot report a start: %s", error, extra=fields(task_id=task.task_id))
            return
        except Unavailable as error:
            await attempts.wait_after(error)
        else:
            failures.end()
            if status is TaskStatus.CANCELLED:
                task.cancel("the orchestrator")
                await anyio.lowlevel.checkpoint()
            if status is not None:
                raise TaskReassigned(f"the orchestrator has it as {status.value}")
            return


async def _register_again(task: TaskContext, identity: Identity) -> None:
    await task.runner.node.forget_identity(identity)
    await task.runner.node.identity()
