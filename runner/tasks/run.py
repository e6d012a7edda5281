"""One task, from its record in the journal to its closing; the same for a new and an adopted one.

Each step is written down before the world is changed, so that the next runner can go on from the
journal and the engine alone. Cancelling a task stops its container. The end of this process, which
cancels the task group, leaves the container running.
"""

from __future__ import annotations

import logging

from runner.engine.base import Container
from runner.errors import HostUnusable, RegistrationRefused, TaskError
from runner.log import fields
from runner.model import EndReason, Task, TaskState
from runner.tasks.context import RunnerContext, TaskContext, TaskReassigned
from runner.tasks.finish import close, finish, recover_report, release_without_log, write_end
from runner.tasks.outcome import outcome_without_container
from runner.tasks.prepare import prepare
from runner.tasks.start import recover_cancelled, recover_container, start
from runner.tasks.trial import wait_for_host
from runner.tasks.watch import watch
from runner.timing import Retry

log = logging.getLogger(__name__)
_MOST_DEFECTS = 3
"""A task that meets a defect of the runner is retried, as after a restart, then given up."""


class TaskRun:
    """A task under way."""

    def __init__(self, task: Task, runner: RunnerContext) -> None:
        self._task = TaskContext(task, runner)
        if task.stop_reason is EndReason.CANCELLED:
            self.cancel("the runner before this one")

    def cancel(self, who: str) -> None:
        """Stop the task, at whatever step it is."""
        self._task.cancel(who)

    async def run(self) -> None:
        """Go on from where the journal has the task until it is closed.

        Raises:
            RegistrationRefused: it cannot start; its record stays for the next runner.
        """
        task = self._task
        try:
            if task.record.state is not TaskState.ENDED:
                await self._run_to_end()
            elif task.record.is_log_pending:
                await recover_report(task)
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
        """End the task because of a defect of the runner."""
        if self._task.record.state is not TaskState.ENDED:
            await write_end(self._task, outcome_without_container(EndReason.UNSTARTABLE, why))
        elif self._task.record.is_log_pending:
            await release_without_log(self._task)
        self._leave_slot()
        await close(self._task)

    def _leave_slot(self) -> None:
        self._task.engine_answers()
        self._task.engine_answers("run")
        self._task.runner.slots.release(self._task.task_id)

    async def _run_to_end(self) -> None:
        task = self._task
        try:
            container = await self._have_container_in_time()
            if container is not None:
                container = await watch(task, container)
        except TaskError as error:
            await write_end(task, outcome_without_container(error.reason, error))
            return
        await finish(task, container)

    async def _have_container_in_time(self) -> Container | None:
        """Return the task's container as `_have_container` does, on a host that may be broken.

        The first task that meets a problem of the host ends with it; others wait, up to an hour.
        """
        runner = self._task.runner
        problems, clock = runner.problems, runner.clock
        gives_up_at_s = clock.uptime_s() + runner.timings.pull_timeout_s
        while True:
            try:
                return await self._have_container(gives_up_at_s)
            except HostUnusable as error:
                if problems.START not in problems.sentences:
                    problems.start_failed(str(error), clock.uptime_s())
                    raise
                if clock.uptime_s() >= gives_up_at_s or runner.settings.once:
                    raise
            await self._task.reload()

    async def _have_container(self, gives_up_at_s: float) -> Container | None:
        """Return the task's container, recovered or started; None when it is gone."""
        task, container = self._task, None
        if task.record.state is not TaskState.RUNNING:
            await task.runner.leftover_starts_ended.wait()
        if task.record.state is not TaskState.ACCEPTED:
            container = await recover_container(task)
        if container is not None or task.record.state is TaskState.RUNNING:
            return container
        may_be_half_made = task.record.state is TaskState.STARTING
        with task.preparation:
            await wait_for_host(task, gives_up_at_s)
            await prepare(task)
            return await start(task, may_be_half_made=may_be_half_made)
        return await recover_cancelled(task)


def track(task: Task, runner: RunnerContext) -> TaskRun:
    """Return the run of a task; one that has not ended takes its slot before the next poll.

    The next heartbeat names it, whatever is left to do; see `RunnerContext.held_task_ids`.
    """
    run = TaskRun(task, runner)
    if task.state is not TaskState.ENDED:
        runner.slots.add(task.task_id, run)
    elif task.is_log_pending:
        runner.finishing[task.task_id] = runner.clock.uptime_s()
    else:
        runner.uploading.add(task.task_id)
    return run


async def run_task(run: TaskRun, task: Task, runner: RunnerContext) -> None:
    """Run a task until it is closed; a defect of the runner is retried like a restart."""
    policy = runner.timings.backoff(gives_up_after_failures=_MOST_DEFECTS)
    attempts = Retry(runner.clock, policy, lambda _error, _wait_s: None)
    while True:
        try:
            await run.run()
        except RegistrationRefused:
            return
        except Exception as error:
            log.exception(
                "a defect of the runner interrupts a task", extra=fields(task_id=task.task_id)
            )
            defect = error
        else:
            return
        try:
            await attempts.wait_after(defect)
        except Exception:  # noqa: BLE001 - the defect itself: it was retried often enough
            break
        record = await runner.persist(lambda: runner.journal.task(task.task_id))
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
