"""A container that runs: waited for, and ended when its time is up or its task is cancelled."""

from __future__ import annotations

import logging

import anyio

from runner.engine.base import Container, Phase
from runner.errors import EngineError, EngineSilent
from runner.log import fields
from runner.model import EndReason, TaskState
from runner.tasks.context import TaskContext

log = logging.getLogger(__name__)
_STOP_ATTEMPTS = 3


async def watch(task: TaskContext, container: Container) -> Container | None:
    """Wait for the end, and bring it about when it is due; give the container as it then stands.

    None says that it is gone.
    """
    deadline_s = await _note_running(task, container)
    if container.phase is not Phase.RUNNING:
        return container
    async with anyio.create_task_group() as group:
        group.start_soon(_wait_for_end, task)
        found: Container | None = container
        stops = 0
        while found is not None and found.phase is Phase.RUNNING:
            task.runner.slots.keep_slot(task.task_id)
            seen = task.wake.count
            left_s = deadline_s - task.runner.clock.uptime_s()
            if task.cancelled_by is None and left_s > 0:
                pause_s = min(left_s, task.runner.timings.inspect_interval_s)
                await task.wake.after_or(seen, pause_s, task.runner.clock)
            else:
                is_cancelled = task.cancelled_by is not None
                await task.note_stop(EndReason.CANCELLED if is_cancelled else EndReason.TIMED_OUT)
                stops += 1
                await _stop(task, stops)
            found = await task.inspect()
        group.cancel_scope.cancel()
    return found


async def _note_running(task: TaskContext, container: Container) -> float:
    """Write down that the container runs; give the uptime at which its time is up."""
    deadline_s = task.record.deadline_uptime_s
    if task.record.state is TaskState.RUNNING and deadline_s is not None:
        log.info("task is adopted", extra=fields(task_id=task.task_id))
        return deadline_s
    now = task.runner.clock.wall_s()
    started_at = container.started_at or now
    deadline_s = (
        task.runner.clock.uptime_s() - max(0.0, now - started_at) + task.assignment.timeout_s
    )
    limit_s = deadline_s
    await task.persist(
        lambda: task.runner.journal.run(task.task_id, container.container_id, started_at, limit_s)
    )
    await task.reload()
    log.info(
        "task is running",
        extra=fields(task_id=task.task_id, container=container.container_id[:12]),
    )
    return deadline_s


async def _wait_for_end(task: TaskContext) -> None:
    """Wake the watch whenever the engine says that the container has ended.

    While this one's end is looked at, the next task may be asked for; it has the slot when it is
    sure that this container is over.
    """
    slots = task.runner.slots
    while True:
        try:
            await task.engine.wait(
                task.container_name, on_exit=lambda: slots.free_slot(task.task_id)
            )
            slots.expect_release(task.task_id)
        except EngineError as error:
            log.debug("cannot wait for a container: %s", error, extra=fields(task_id=task.task_id))
        task.wake.notify()
        await task.runner.clock.sleep(task.runner.timings.engine_retry_s)


async def _stop(task: TaskContext, attempt: int) -> None:
    try:
        if attempt <= _STOP_ATTEMPTS:
            await task.engine.stop(task.container_name)
        else:
            log.error("container does not stop; removing it", extra=fields(task_id=task.task_id))
            await task.engine.remove(task.container_name)
    except EngineSilent as error:
        await task.wait_for_engine(error)
    except EngineError as error:
        log.warning("cannot stop: %s", error, extra=fields(task_id=task.task_id))
        await task.runner.clock.sleep(min(attempt, task.runner.timings.engine_retry_s))
