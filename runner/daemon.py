"""The runner as a whole: start-up and recovery, the loops, the signals, the end.

start    lock the state folder, open the journal, take over what an earlier runner left
run      poll, heartbeat, deliver and the watchdog beside one coroutine a task
end      TERM: at once, leaving containers to the next runner; INT or USR1: when what runs has
         ended; a second INT: when it has been stopped; refused: when nothing runs
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from runner.api.client import OrchestratorClient
from runner.engine.base import Engine, container_name
from runner.engine.cli import engine_of_kind
from runner.engine.processes import kill_leftover_starts
from runner.errors import EXIT_OK, EXIT_TRY_AGAIN, JournalError
from runner.journal.journal import open_journal
from runner.log import fields, log_retry
from runner.loops.deliver import deliver
from runner.loops.heartbeat import heartbeat, send_offline
from runner.loops.housekeeping import adopt_or_remove_orphans, prune_closed_tasks
from runner.loops.poll import PollResult, check_engine, poll
from runner.model import Task, TaskState
from runner.node import Node, Workload
from runner.settings import Settings
from runner.state_dir import lock_state_dir, prepare_state_dir, run_folder
from runner.systemd import Notifier, Watchdog, feed_watchdog
from runner.tasks.context import RunnerContext
from runner.tasks.run import run_task, track
from runner.timing import (
    DEFAULT_TIMINGS,
    ChangeSignal,
    Clock,
    HostClock,
    Retry,
    RetryPolicy,
    Timings,
    retry,
)

log = logging.getLogger(__name__)
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


async def run(  # noqa: PLR0913, PLR0917 - its seams: what tests replace
    settings: Settings,
    engine: Engine,
    notifier: Notifier,
    clock: Clock | None = None,
    timings: Timings = DEFAULT_TIMINGS,
    other_engine: Callable[[str], Engine] = engine_of_kind,
) -> int:
    """Run until a signal, a refusal or `--once` ends it; give the process's exit code.

    New tasks go to `engine`; what an earlier runner started on another is followed there.

    Raises:
        StateFolderInUse: another runner is at work with this state folder.
        JournalError: no journal can be kept there.
        ConfigurationError: the CA file holds no certificate.
    """
    clock = clock or HostClock()
    with lock_state_dir(settings.state_dir):
        runner_id = prepare_state_dir(settings.state_dir)
        journal, set_aside = open_journal(
            settings.state_dir, time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(clock.wall_s()))
        )
        if set_aside is not None:
            log.error(set_aside)
        watchdog, workload = Watchdog(clock), Workload(settings.max_tasks, timings)
        try:
            async with OrchestratorClient(
                settings.orchestrator_url, settings.ca_file, timings
            ) as orchestrator:
                runner = RunnerContext(
                    settings=settings,
                    clock=clock,
                    engine=engine,
                    other_engine=other_engine,
                    orchestrator=orchestrator,
                    journal=journal,
                    node=Node(settings, orchestrator, journal, clock, watchdog, workload, timings),
                    workload=workload,
                    outbox=ChangeSignal(),
                    watchdog=watchdog,
                    timings=timings,
                    runner_id=runner_id,
                )
                return await _Runner(runner, notifier).run()
        finally:
            journal.close_file()


class _Runner:
    """One run, from READY to the exit code."""

    def __init__(self, runner: RunnerContext, notifier: Notifier) -> None:
        self._runner = runner
        self._notifier = notifier
        self._polling = anyio.CancelScope()
        self._exit_code: int | None = None
        self._interrupts = 0

    async def run(self) -> int:
        """Live through all of it.

        Raises:
            JournalError: it cannot be read or written at the start.
        """
        tasks = await self._runner.journal.open_tasks()
        # Whoever starts a runner may have mended what held its reports up.
        await self._hurry()
        await self._end_left_calls(tasks)
        async with anyio.create_task_group() as group:
            with anyio.open_signal_receiver(*_SIGNALS) as signals:
                group.start_soon(self._obey, signals, group)
                self._begin(group, tasks)
                await self._poll(group)
                await self._drain()
                group.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            self._notifier.notify("STOPPING=1")
            await send_offline(self._runner)
        return EXIT_OK if self._exit_code is None else self._exit_code

    async def _end_left_calls(self, tasks: list[Task]) -> None:
        """See that no engine call of a runner that was killed starts anything from now on."""
        folder = run_folder(self._runner.settings.state_dir)
        names = {container_name(task.task_id) for task in tasks}
        pids = await anyio.to_thread.run_sync(
            kill_leftover_starts, folder, names, self._runner.timings.leftover_start_grace_s
        )
        if pids:
            log.warning("stuck calls of an earlier runner were killed", extra=fields(pids=pids))

    def _begin(self, group: TaskGroup, tasks: list[Task]) -> None:
        """Take over what is there, then start the loops."""
        runner = self._runner
        log.info(
            "runner starts",
            extra=fields(
                name=runner.settings.name,
                orchestrator=runner.settings.orchestrator_url,
                engine=runner.engine.kind,
                tasks_in_journal=len(tasks),
            ),
        )
        for task in tasks:
            if task.orchestrator_url != runner.orchestrator.url:
                log.warning(
                    "task belongs to another orchestrator; what is left of it waits until this "
                    "runner is started for that one again",
                    extra=fields(task_id=task.task_id, orchestrator=task.orchestrator_url),
                )
            log.info(
                "task is taken over", extra=fields(task_id=task.task_id, state=task.state.value)
            )
            self._start_task(group, task)
        group.start_soon(heartbeat, runner)
        group.start_soon(deliver, runner)
        group.start_soon(prune_closed_tasks, runner)
        group.start_soon(
            feed_watchdog, self._notifier, runner.watchdog, runner.clock, runner.timings
        )
        group.start_soon(self._tell_status)
        self._notifier.notify("READY=1")

    def _start_task(self, group: TaskGroup, task: Task) -> None:
        run = track(task, self._runner)
        group.start_soon(run_task, run, task, self._runner)

    async def _poll(self, group: TaskGroup) -> None:
        """Ask for work until draining begins, the registration is refused, or once is enough."""
        answer = None

        def begin(task: Task) -> None:
            self._start_task(group, task)

        with self._polling:
            looked = anyio.Event()
            group.start_soon(adopt_or_remove_orphans, self._runner, begin, looked)
            await check_engine(self._runner)
            # What runs already may need the slot that new work would be given.
            await looked.wait()
            answer = await poll(self._runner, begin)
        refusal = self._runner.node.refusal
        if refusal is not None:
            self._exit_code = refusal.exit_code
        elif answer is PollResult.FAILED:
            self._exit_code = EXIT_TRY_AGAIN

    async def _drain(self) -> None:
        """Wait for the tasks in hand, then for a while for their reports to be delivered."""
        runner = self._runner
        runner.watchdog.suspend("poll")
        while any(self._is_awaited(task) for task in await self._open_tasks()):
            await self._next_change()
        if runner.node.refusal is not None:
            return
        await self._hurry()
        ends_at_s = runner.clock.awake_s() + runner.timings.last_delivery_s
        while (waiting := await self._deliverable()) and runner.clock.awake_s() < ends_at_s:
            await self._next_change()
        if waiting:
            log.warning(
                "reports wait in the journal for the next start", extra=fields(tasks=len(waiting))
            )
            if runner.settings.once:
                self._exit_code = EXIT_TRY_AGAIN

    async def _hurry(self) -> None:
        """Have every report tried at once: its next attempt may be an hour away."""
        try:
            await self._runner.journal.retry_all_now()
        except JournalError as error:
            log.error(str(error))
        self._runner.outbox.notify()

    def _is_awaited(self, task: Task) -> bool:
        """Tell whether a task is to end first; one that can no longer begin will not."""
        if task.state in {TaskState.ENDED, TaskState.RUNNING}:
            return task.state is TaskState.RUNNING or task.is_log_pending
        can_begin = (
            self._runner.node.refusal is None
            and task.orchestrator_url == self._runner.orchestrator.url
        )
        return can_begin or task.task_id in self._runner.workload.task_ids

    async def _deliverable(self) -> list[Task]:
        """Give the open tasks whose reports can go out: not those of another orchestrator."""
        url = self._runner.orchestrator.url
        return [task for task in await self._open_tasks() if task.orchestrator_url == url]

    async def _open_tasks(self) -> list[Task]:
        runner = self._runner
        policy = RetryPolicy.every(runner.timings.journal_retry_s)
        attempts = Retry(runner.clock, policy, log_retry("cannot read the open tasks"))
        return await retry(runner.journal.open_tasks, JournalError, attempts)

    async def _next_change(self) -> None:
        """Return when something happened to a task or a report, and every few seconds."""
        seen = self._runner.outbox.count
        await self._runner.outbox.after_or(seen, 1, self._runner.clock)

    async def _obey(self, signals: object, group: TaskGroup) -> None:
        """Act on signals; see the head of this file."""
        async for number in signals:  # type: ignore[attr-defined]
            in_hand = self._runner.workload.task_ids
            if number == signal.SIGTERM or self._interrupts > 1:
                log.info(
                    "stopping at once; containers go on for the next runner",
                    extra=fields(tasks_left_running=len(in_hand)),
                )
                group.cancel_scope.cancel()
                return
            if number == signal.SIGINT:
                self._interrupts += 1
            # Not STOPPING=1: systemd would give a drain no longer than TimeoutStopSec.
            if self._interrupts > 1:
                log.info("stopping the tasks in hand", extra=fields(tasks=len(in_hand)))
                for task_id in in_hand:
                    self._runner.workload.cancel(task_id, "the operator")
            else:
                log.info(
                    "draining: no new task is taken; exit follows when those in hand have ended",
                    extra=fields(tasks=len(in_hand)),
                )
            self._polling.cancel()

    async def _tell_status(self) -> None:
        """Keep the line that `systemctl status` shows."""
        workload = self._runner.workload
        while True:
            seen = workload.changes.count
            problems = "; ".join(workload.problems.values())
            in_hand = f"{len(workload.task_ids)} of {self._runner.settings.max_tasks} tasks running"
            self._notifier.notify(f"STATUS={problems or in_hand}")
            await workload.changes.after(seen)
