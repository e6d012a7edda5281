"""One task's life, from assignment to closed journal; the same for a new task and an adopted one.

Each step is written down before the world is changed, so that whichever runner comes next can go
on from the journal and the engine alone. Cancelling stops the container and nothing else; the end
of this process (app.py cancels the task group) leaves the container alone.
"""

from __future__ import annotations

import logging

from runner import timing
from runner.engine.base import Container
from runner.errors import RegistrationRefused, TaskError
from runner.log import fields
from runner.model import EndReason, Task, TaskState
from runner.node import written
from runner.tasks.context import Elsewhere, Hand, NotOurs, Parts
from runner.tasks.finish import close, conclude, write_end
from runner.tasks.outcome import said_as
from runner.tasks.prepare import prepare
from runner.tasks.start import find, find_cancelled, start
from runner.tasks.watch import watch

log = logging.getLogger(__name__)
_DEFECTS_BORNE = 3


class TaskRun:
    """A task in hand."""

    def __init__(self, task: Task, parts: Parts) -> None:
        self._hand = Hand(task, parts)
        if task.stop_reason is EndReason.CANCELLED:
            self.cancel("the runner before this one")

    def cancel(self, who: str) -> None:
        """Have the task stopped, at whatever step it is."""
        self._hand.cancel(who)

    async def live(self) -> None:
        """Take the task from where the journal has it to its closing.

        Raises:
            RegistrationRefused: it cannot begin, and is left as it is for the next start.
        """
        hand = self._hand
        try:
            if hand.task.state is not TaskState.ENDED:
                await self._run_to_end()
        except NotOurs as error:
            log.warning("task is dropped: %s", error, extra=fields(task_id=hand.task_id))
            await hand.written(lambda: hand.parts.journal.forget(hand.task_id))
            hand.parts.workload.note_dropped(hand.task_id, hand.parts.clock.uptime_s())
            self._leave_slot()
            return
        except Elsewhere:
            # app.py has said that it waits for its orchestrator.
            self._leave_slot()
            return
        except RegistrationRefused:
            self._leave_slot()
            raise
        # After a defect the slot is kept: the container may be running.
        self._leave_slot()
        await close(hand)

    async def give_up(self, why: str) -> None:
        """End the task for a reason that lies in the runner itself."""
        if self._hand.task.state is not TaskState.ENDED:
            await write_end(self._hand, said_as(EndReason.UNSTARTABLE, why))
        self._leave_slot()
        await close(self._hand)

    def _leave_slot(self) -> None:
        self._hand.engine_answers()
        self._hand.engine_answers("run")
        self._hand.parts.workload.release(self._hand.task_id)

    async def _run_to_end(self) -> None:
        hand = self._hand
        try:
            container = await self._have_container()
            if container is not None:
                container = await watch(hand, container)
        except TaskError as error:
            await write_end(hand, said_as(error.reason, error))
            return
        # What is left to do needs no slot: the next task may come.
        hand.parts.workload.release(hand.task_id)
        await conclude(hand, container)

    async def _have_container(self) -> Container | None:
        """Find the task's container, or start it; None when it is gone."""
        hand, container = self._hand, None
        if hand.task.state is not TaskState.ACCEPTED:
            container = await find(hand)
        if container is not None or hand.task.state is TaskState.RUNNING:
            return container
        with hand.preparation:
            await prepare(hand)
            return await start(hand)
        return await find_cancelled(hand)


def take_in_hand(task: Task, parts: Parts) -> TaskRun:
    """Note that there is a task, if it still needs a slot, at once: the next poll looks at them."""
    run = TaskRun(task, parts)
    if task.state is not TaskState.ENDED:
        has_slot = task.state is not TaskState.ACCEPTED
        parts.workload.add(task.task_id, run, has_slot=has_slot)
    return run


async def live(run: TaskRun, task: Task, parts: Parts) -> None:
    """Live a task to its end, whatever happens: a defect of ours is one more restart for it."""
    why = ""
    for attempt in range(1, _DEFECTS_BORNE + 1):
        try:
            await run.live()
        except RegistrationRefused:
            return
        except Exception as error:
            log.exception("a defect met a task", extra=fields(task_id=task.task_id))
            why = f"a defect of the runner, see its log: {type(error).__name__}"
        else:
            return
        await parts.clock.sleep(timing.delay_s(attempt))
        standing = await written(
            lambda: parts.journal.task(task.task_id), parts.workload, parts.clock
        )
        if standing is None or standing.state is TaskState.CLOSED:
            parts.workload.release(task.task_id)
            return
        run = take_in_hand(standing, parts)
    try:
        await run.give_up(why)
    except Exception:
        log.exception(
            "a defect keeps a task open until the next start", extra=fields(task_id=task.task_id)
        )
        parts.workload.release(task.task_id)
