"""One task's life, from assignment to closed journal; the same for a new task and an adopted one.

Each step is written down before the world is changed, so that whichever runner comes next can go
on from the journal and the engine alone. Cancelling stops the container and nothing else; the end
of this process (app.py cancels the task group) leaves the container alone.
"""

from __future__ import annotations

import logging

from runner.engine.base import Container
from runner.errors import RegistrationRefused, TaskError
from runner.log import fields
from runner.model import EndReason, Task, TaskState
from runner.node import persist
from runner.tasks.context import RunnerContext, TaskContext, TaskReassigned
from runner.tasks.finish import close, finish, write_end
from runner.tasks.outcome import outcome_without_container
from runner.tasks.prepare import prepare
from runner.tasks.start import recover_cancelled, recover_container, start
from runner.tasks.watch import watch
from runner.timing import Retry

log = logging.getLogger(__name__)
_DEFECTS_BORNE = 3


class TaskRun:
    """A task in hand."""

    def __init__(self, task: Task, runner: RunnerContext) -> None:
        self._task = TaskContext(task, runner)
        if task.stop_reason is EndReason.CANCELLED:
            self.cancel("the runner before this one")

    def cancel(self, who: str) -> None:
        """Have the task stopped, at whatever step it is."""
        self._task.cancel(who)

    async def run(self) -> None:
        """Take the task from where the journal has it to its closing.

        Raises:
            RegistrationRefused: it cannot begin, and is left as it is for the next start.
        """
        task = self._task
        try:
            if task.record.state is not TaskState.ENDED:
                await self._run_to_end()
        except TaskReassigned as error:
            log.warning("task is dropped: %s", error, extra=fields(task_id=task.task_id))
            await task.persist(lambda: task.runner.journal.drop(task.task_id))
            task.runner.slots.note_dropped(task.task_id, task.runner.clock.uptime_s())
            self._leave_slot()
            return
        except RegistrationRefused:
            self._leave_slot()
            raise
        # After a defect the slot is kept: the container may be running.
        self._leave_slot()
        await close(task)

    async def give_up(self, why: str) -> None:
        """End the task for a reason that lies in the runner itself."""
        if self._task.record.state is not TaskState.ENDED:
            await write_end(self._task, outcome_without_container(EndReason.UNSTARTABLE, why))
        self._leave_slot()
        await close(self._task)

    def _leave_slot(self) -> None:
        self._task.engine_answers()
        self._task.engine_answers("run")
        self._task.runner.slots.release(self._task.task_id)

    async def _run_to_end(self) -> None:
        task = self._task
        try:
            container = await self._have_container()
            if container is not None:
                container = await watch(task, container)
        except TaskError as error:
            await write_end(task, outcome_without_container(error.reason, error))
            return
        # What is left to do needs no slot: the next task may come.
        task.runner.slots.release(task.task_id)
        await finish(task, container)

    async def _have_container(self) -> Container | None:
        """Find the task's container, or start it; None when it is gone."""
        task, container = self._task, None
        if task.record.state is not TaskState.ACCEPTED:
            container = await recover_container(task)
        if container is not None or task.record.state is TaskState.RUNNING:
            return container
        with task.preparation:
            await prepare(task)
            return await start(task)
        return await recover_cancelled(task)


def track(task: Task, runner: RunnerContext) -> TaskRun:
    """Note that there is a task, if it still needs a slot, at once: the next poll looks at them."""
    run = TaskRun(task, runner)
    if task.state is not TaskState.ENDED:
        has_slot = task.state is not TaskState.ACCEPTED
        runner.slots.add(task.task_id, run, has_slot=has_slot)
    return run


async def run_task(run: TaskRun, task: Task, runner: RunnerContext) -> None:
    """Live a task to its end, whatever happens: a defect of ours is one more restart for it."""
    policy = runner.timings.backoff(gives_up_after_failures=_DEFECTS_BORNE)
    attempts = Retry(runner.clock, policy, lambda _error, _wait_s: None)
    while True:
        try:
            await run.run()
        except RegistrationRefused:
            return
        except Exception as error:
            log.exception("a defect met a task", extra=fields(task_id=task.task_id))
            defect = error
        else:
            return
        try:
            await attempts.wait_after(defect)
        except Exception:  # noqa: BLE001 - the defect itself: it was retried often enough
            break
        record = await persist(
            lambda: runner.journal.task(task.task_id),
            runner.problems,
            runner.clock,
            runner.timings,
        )
        if record is None or record.state is TaskState.CLOSED:
            runner.slots.release(task.task_id)
            return
        run = track(record, runner)
    try:
        await run.give_up(f"a defect of the runner, see its log: {type(defect).__name__}")
    except Exception:
        log.exception(
            "a defect keeps a task open until the next start", extra=fields(task_id=task.task_id)
        )
        runner.slots.release(task.task_id)
