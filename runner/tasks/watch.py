"""A running container: watched until it exits, stopped when its time is up or it is cancelled."""

from __future__ import annotations

import logging

import anyio

from runner.engine.base import Container, Phase
from runner.errors import EngineError, EngineSilent
from runner.log import fields
from runner.model import EndReason, TaskState
from runner.outage import FailureLog
from runner.tasks.context import TaskContext
from runner.tasks.output import follow_output

log = logging.getLogger(__name__)

_STOP_ATTEMPTS = 3
"""A container that survives so many TERM and KILL is removed instead."""


async def watch(task: TaskContext, container: Container) -> Container | None:
    """Wait until the container no longer runs and return it; None when it is gone.

    It is stopped at the deadline, and when the task is cancelled.
    """
    clock, timings = task.runner.clock, task.runner.timings
    deadline_s = await _note_running(task, container)
    if container.phase is not Phase.RUNNING:
        return container
    async with anyio.create_task_group() as group:
        group.start_soon(_wait_for_exit, task, container.container_id)
        group.start_soon(follow_output, task, container)
        inspected: Container | None = container
        stops, failures = 0, task.runner.failure_log("stop a container", {"task_id": task.task_id})
        while inspected is not None and inspected.phase is Phase.RUNNING:
            changes = task.wake.count
            left_s = deadline_s - clock.uptime_s()
            if task.cancelled_by is None and left_s > 0:
                await task.wake.after_or(changes, min(left_s, timings.inspect_interval_s), clock)
            else:
                is_cancelled = task.cancelled_by is not None
                await task.note_stop(EndReason.CANCELLED if is_cancelled else EndReason.TIMED_OUT)
                stops += 1
                await _stop(task, container.container_id, stops, failures)
            inspected = await task.inspect()
        group.cancel_scope.cancel()
    return inspected


async def _note_running(task: TaskContext, container: Container) -> float:
    """Write down that the container runs, and return its deadline as an uptime in seconds."""
    deadline_s = task.record.deadline_uptime_s
    if task.record.state is TaskState.RUNNING and deadline_s is not None:
        log.info("task is adopted", extra=fields(task_id=task.task_id))
        return deadline_s
    clock = task.runner.clock
    now = clock.wall_s()
    started_at = container.started_at or now
    deadline_uptime_s = clock.uptime_s() - max(0.0, now - started_at) + task.assignment.timeout_s
    await task.persist(
        lambda: task.runner.journal.run(
            task.task_id, container.container_id, started_at, deadline_uptime_s
        )
    )
    await task.reload()
    log.info(
        "task is running",
        extra=fields(task_id=task.task_id, container=container.container_id[:12]),
    )
    return deadline_uptime_s


async def _wait_for_exit(task: TaskContext, container_id: str) -> None:
    """Have the container inspected whenever the engine says that it has exited.

    The next task may be asked for meanwhile: the inspection takes a third as long as a short task.
    """
    while True:
        try:
            if await task.engine.wait(container_id):
                task.runner.slots.free_slot(task.task_id)
        except EngineError as error:
            log.debug("cannot wait for a container: %s", error, extra=fields(task_id=task.task_id))
        task.wake.notify()
        await task.runner.clock.sleep(task.runner.timings.engine_retry_s)


async def _stop(task: TaskContext, container_id: str, attempt: int, failures: FailureLog) -> None:
    pause_s = min(attempt, task.runner.timings.engine_retry_s)
    try:
        if attempt <= _STOP_ATTEMPTS:
            await task.engine.stop(container_id)
        else:
            if attempt == _STOP_ATTEMPTS + 1:
                ids = fields(task_id=task.task_id)
                log.error("container does not stop; removing it", extra=ids)
            await task.engine.remove(container_id)
    except EngineSilent as error:
        await task.wait_for_engine(error)
    except EngineError as error:
        failures.note(error, pause_s)
        await task.runner.clock.sleep(pause_s)
