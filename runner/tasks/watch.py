"""A container that runs: waited for, and ended when its time is up or its task is cancelled."""

from __future__ import annotations

import logging

import anyio

from runner.engine.base import Container, Phase
from runner.errors import EngineError, EngineSilent
from runner.log import fields
from runner.model import EndReason, TaskState
from runner.tasks.context import WAIT_AGAIN_S, Hand

log = logging.getLogger(__name__)
_LOOK_INTERVAL_S = 30.0
_STOP_ATTEMPTS = 3


async def watch(hand: Hand, container: Container) -> Container | None:
    """Wait for the end, and bring it about when it is due; give the container as it then stands.

    None says that it is gone.
    """
    deadline_s = await _note_running(hand, container)
    if container.phase is not Phase.RUNNING:
        return container
    async with anyio.create_task_group() as group:
        group.start_soon(_wait_for_end, hand)
        found: Container | None = container
        stops = 0
        while found is not None and found.phase is Phase.RUNNING:
            hand.parts.workload.keep_slot(hand.task_id)
            seen = hand.wake.count
            left_s = deadline_s - hand.parts.clock.uptime_s()
            if hand.cancelled_by is None and left_s > 0:
                pause_s = min(left_s, _LOOK_INTERVAL_S)
                await hand.wake.after_or(seen, pause_s, hand.parts.clock)
            else:
                is_cancelled = hand.cancelled_by is not None
                await hand.note_stop(EndReason.CANCELLED if is_cancelled else EndReason.TIMED_OUT)
                stops += 1
                await _stop(hand, stops)
            found = await hand.look()
        group.cancel_scope.cancel()
    return found


async def _note_running(hand: Hand, container: Container) -> float:
    """Write down that the container runs; give the uptime at which its time is up."""
    deadline_s = hand.task.deadline_uptime_s
    if hand.task.state is TaskState.RUNNING and deadline_s is not None:
        log.info("task is adopted", extra=fields(task_id=hand.task_id))
        return deadline_s
    now = hand.parts.clock.wall_s()
    started_at = container.started_at or now
    deadline_s = (
        hand.parts.clock.uptime_s() - max(0.0, now - started_at) + hand.assignment.timeout_s
    )
    limit_s = deadline_s
    await hand.written(
        lambda: hand.parts.journal.run(hand.task_id, container.container_id, started_at, limit_s)
    )
    await hand.reload()
    log.info(
        "task is running",
        extra=fields(task_id=hand.task_id, container=container.container_id[:12]),
    )
    return deadline_s


async def _wait_for_end(hand: Hand) -> None:
    """Wake the watch whenever the engine says that the container has ended.

    While this one's end is looked at, the next task may be asked for; it has the slot when it is
    sure that this container is over.
    """
    workload = hand.parts.workload
    while True:
        try:
            await hand.engine.wait(
                hand.container_name, on_exit=lambda: workload.free_slot(hand.task_id)
            )
            workload.expect_release(hand.task_id)
        except EngineError as error:
            log.debug("cannot wait for a container: %s", error, extra=fields(task_id=hand.task_id))
        hand.wake.notify()
        await hand.parts.clock.sleep(WAIT_AGAIN_S)


async def _stop(hand: Hand, attempt: int) -> None:
    try:
        if attempt <= _STOP_ATTEMPTS:
            await hand.engine.stop(hand.container_name)
        else:
            log.error("container does not stop; removing it", extra=fields(task_id=hand.task_id))
            await hand.engine.remove(hand.container_name)
    except EngineSilent as error:
        await hand.wait_for_engine(error)
    except EngineError as error:
        log.warning("cannot stop: %s", error, extra=fields(task_id=hand.task_id))
        await hand.parts.clock.sleep(min(attempt, WAIT_AGAIN_S))
