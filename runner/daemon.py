"""The runner as a whole: start-up and recovery, the loops, the signals, the end.

start    lock the state folder, check that it belongs to this orchestrator and engine, open the
         journal, recover what an earlier runner left
run      poll, heartbeat, deliver and the watchdog beside one coroutine a task
end      TERM: at once, leaving containers to the next runner; INT or USR1: when the running tasks
         have ended; a second INT: when they were stopped; refused: when nothing runs
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from functools import partial

import anyio
from anyio.abc import TaskGroup

from runner import __version__
from runner.api.client import OrchestratorClient
from runner.engine.base import Engine, container_name
from runner.engine.processes import end_leftover_starts
from runner.errors import EXIT_OK, EXIT_TRY_AGAIN, ConfigurationError, JournalError
from runner.journal.journal import open_journal, read_unfinished_tasks
from runner.log import fields
from runner.loops.deliver import deliver
from runner.loops.heartbeat import BEATING, heartbeat, send_offline
from runner.loops.housekeeping import adopt_or_remove_orphans, prune_closed_tasks
from runner.loops.poll import POLLING, PollResult, check_host, poll
from runner.model import Task, TaskState
from runner.node import Node, Problems, Slots, belongs_here, can_be_drained, find_conflict
from runner.release import other_python
from runner.settings import Settings
from runner.state_dir import lock_state_dir, prepare_state_dir, run_folder
from runner.systemd import Notifier, Watchdog, feed_watchdog
from runner.tasks.context import RunnerContext
from runner.tasks.image import ImageFetcher
from runner.tasks.run import run_task, track
from runner.timing import (
    DEFAULT_TIMINGS,
    ChangeSignal,
    Clock,
    HostClock,
    Retry,
    RetryPolicy,
    Timings,
    file_stamp,
    retry,
)

log = logging.getLogger(__name__)
_REASONS = {
    PollResult.TASK: "the task of --once has ended",
    PollResult.HELD: "--once, and the orchestrator has no task for this node",
    PollResult.NOTHING: "--once, and the orchestrator has no task for this node",
    PollResult.FAILED: "--once, and no task could be requested",
}
"""Why `--once` exits."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


async def run(
    settings: Settings,
    engine: Engine,
    notifier: Notifier | None = None,
    clock: Clock | None = None,
    timings: Timings = DEFAULT_TIMINGS,
) -> int:
    """Run until a signal, a refusal or `--once` ends it; return the process's exit code.

    Raises:
        StateFolderInUse: another runner is at work with this state folder.
        JournalError: no journal can be kept there.
        ConfigurationError: the CA file holds no certificate, or unfinished tasks belong to
            another orchestrator or engine.
    """
    clock = clock or HostClock()
    with lock_state_dir(settings.state_dir):
        await _check_unfinished_tasks(settings, engine)
        runner_id = prepare_state_dir(settings.state_dir)
        stamp = file_stamp(clock.wall_s())
        journal, set_aside = open_journal(settings.state_dir, stamp, timings)
        if set_aside is not None:
            log.error(set_aside)
        watchdog, changes = Watchdog(clock), ChangeSignal()
        problems = Problems(changes, timings, clock)
        try:
            async with OrchestratorClient(
                settings.orchestrator_url, settings.ca_file, timings, clock
            ) as orchestrator:
                runner = RunnerContext(
                    settings=settings,
                    clock=clock,
                    engine=engine,
                    image=ImageFetcher(
                        engine, settings.container_image, settings.pull, problems, clock, timings
                    ),
                    orchestrator=orchestrator,
                    journal=journal,
                    node=Node(settings, orchestrator, journal, clock, watchdog, problems, timings),
                    slots=Slots(settings.max_tasks, changes, timings),
                    problems=problems,
                    changes=changes,
                    outbox=ChangeSignal(),
                    watchdog=watchdog,
                    timings=timings,
                    runner_id=runner_id,
                )
                exit_code = await Daemon(runner, notifier or Notifier()).run()
        finally:
            journal.close_file()
        # What belongs here is finished; what belongs elsewhere is next.
        await _check_unfinished_tasks(settings, engine)
        return exit_code


async def _check_unfinished_tasks(settings: Settings, engine: Engine) -> None:
    """Check that the unfinished tasks belong to this orchestrator and engine.

    Some may belong elsewhere, in a journal from before this check: those that belong here are
    finished first.

    Raises:
        ConfigurationError: they do not.
    """
    tasks = await read_unfinished_tasks(settings.state_dir)
    conflict = find_conflict(tasks, settings, engine.kind)
    if conflict and not can_be_drained(tasks, settings, engine.kind):
        raise ConfigurationError(conflict)


class Daemon:
    """One run, from READY to the exit code."""

    def __init__(self, runner: RunnerContext, notifier: Notifier) -> None:
        self._runner = runner
        self._notifier = notifier
        self._polling = anyio.CancelScope()
        self._exit_code: int | None = None
        self._exit_reason = "the tasks of this orchestrator and engine have ended"
        self._began_s = runner.clock.awake_s()
        self._interrupts = 0
        self._shown = ""
        """The status line that systemd has."""
        self._reads = runner.failure_log("read the unfinished tasks")

    async def run(self) -> int:
        """Run from the recovery to the last heartbeat; return the exit code.

        Raises:
            JournalError: it cannot be read or written at the start.
        """
        tasks = await self._runner.journal.unfinished_tasks()
        await self._runner.node.recover()
        own = [task for task in tasks if self._is_own(task)]
        # A start may mean that somebody has removed what made deliveries fail.
        await self._retry_now()
        async with anyio.create_task_group() as group:
            with anyio.open_signal_receiver(*_SIGNALS) as signals:
                group.start_soon(self._handle_signals, signals, group)
                self._begin(group, own)
                group.start_soon(self._end_leftover_starts, tasks)
                orphans_adopted = anyio.Event()
                begin = partial(self._start_task, group)
                group.start_soon(adopt_or_remove_orphans, self._runner, begin, orphans_adopted)
                group.start_soon(self._start_loops, group, orphans_adopted)
                if len(own) == len(tasks):
                    await self._poll(begin, orphans_adopted)
                else:
                    log.error(
                        "no new task is taken: the journal has tasks of another orchestrator or "
                        "engine; the runner ends when its own are reported",
                        extra=fields(tasks=len(own), other_tasks=len(tasks) - len(own)),
                    )
                await self.drain()
                group.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            self._notifier.notify("STOPPING=1")
            await send_offline(self._runner)
        exit_code = EXIT_OK if self._exit_code is None else self._exit_code
        ran_s = round(self._runner.clock.awake_s() - self._began_s)
        level = logging.INFO if exit_code == EXIT_OK else logging.ERROR
        facts = fields(exit_code=exit_code, ran_s=ran_s)
        log.log(level, "exiting: %s", self._exit_reason, extra=facts)
        return exit_code

    def _is_own(self, task: Task) -> bool:
        """Check the orchestrator and the engine; only an older version's journal holds others."""
        return belongs_here(task, self._runner.settings, self._runner.engine.kind)

    async def _end_leftover_starts(self, tasks: list[Task]) -> None:
        """Wait for the engine calls of a killed runner, which could still start a container."""
        runner = self._runner
        folder = run_folder(runner.settings.state_dir)
        names = {container_name(task.task_id) for task in tasks}
        pids = await end_leftover_starts(folder, names, runner.clock, runner.timings)
        if pids:
            log.warning("stuck calls of an earlier runner were killed", extra=fields(pids=pids))
        runner.leftover_starts_ended.set()

    def _begin(self, group: TaskGroup, tasks: list[Task]) -> None:
        """Recover the tasks, then start what needs neither the engine nor the orchestrator."""
        runner = self._runner
        identity = runner.node.known_identity
        log.info(
            "starting",
            extra=fields(
                version=__version__,
                name=runner.settings.name,
                node_id="none yet" if identity is None else identity.node_id,
                orchestrator=runner.settings.orchestrator_url,
                engine=runner.engine.kind,
                tasks_in_journal=len(tasks),
            ),
        )
        if sentence := other_python():
            log.error(sentence)
        for task in tasks:
            runner.node.note_owner(task.task_id, task.identity)
            if task.state is TaskState.CLOSED:
                continue  # only its report is left
            log.info(
                "task is taken over", extra=fields(task_id=task.task_id, state=task.state.value)
            )
            self._start_task(group, task)
        group.start_soon(prune_closed_tasks, runner)
        group.start_soon(runner.image.check_on_request)
        group.start_soon(
            feed_watchdog, self._notifier, runner.watchdog, runner.clock, runner.timings
        )
        for changes in (runner.changes, runner.node.outage.changes):
            group.start_soon(self._show_status, changes)
        if runner.node.known_identity is not None:
            self._notifier.notify("READY=1")
        else:
            group.start_soon(self._notify_when_registered)

    def _start_task(self, group: TaskGroup, task: Task) -> None:
        run = track(task, self._runner)
        group.start_soon(run_task, run, task, self._runner)

    async def _start_loops(self, group: TaskGroup, orphans_adopted: anyio.Event) -> None:
        """Start the loops that need an identity."""
        if not await self._runner.node.is_registered():
            # The journal may have been lost; then a container has the identity.
            await orphans_adopted.wait()
        group.start_soon(self._beat)
        group.start_soon(deliver, self._runner)

    async def _beat(self) -> None:
        await heartbeat(self._runner)
        self._runner.node.outage.drop(BEATING)
        # The registration is refused: an image that is being fetched is of no use.
        self._polling.cancel()

    async def _poll(self, begin: Callable[[Task], None], orphans_adopted: anyio.Event) -> None:
        """Ask for work until draining begins, the registration is refused, or once is enough."""
        result = None
        with self._polling:
            await check_host(self._runner)
            # An orphan may need the slot that a new task would be given.
            await orphans_adopted.wait()
            result = await poll(self._runner, begin)
        self._runner.node.outage.drop(POLLING)
        refusal = self._runner.node.refusal
        if refusal is not None:
            self._exit_code = refusal.exit_code
            self._exit_reason = f"the registration was refused: {refusal}"
            return
        if result is PollResult.FAILED:
            self._exit_code = EXIT_TRY_AGAIN
        if result is not None:
            self._exit_reason = _REASONS[result]

    async def drain(self) -> None:
        """Wait for the running tasks, then for a while for their reports to be delivered."""
        runner = self._runner
        runner.watchdog.suspend("poll")
        # The poll has broken off: the orchestrator learns at once that the node has not.
        runner.changes.notify()
        while any(self._is_awaited(task) for task in await self._own_tasks()):
            await self._wait_for_change(runner.outbox.count)
        await self._retry_now()
        ends_at_s = runner.clock.awake_s() + runner.timings.last_delivery_s
        while True:
            seen = runner.outbox.count
            ended = {TaskState.ENDED, TaskState.CLOSED}
            waiting = [task for task in await self._own_tasks() if task.state in ended]
            can_deliver = any(runner.node.can_deliver(task.task_id) for task in waiting)
            if not can_deliver or runner.clock.awake_s() >= ends_at_s:
                break
            await self._wait_for_change(seen)
        if waiting:
            log.warning(
                "undelivered reports wait in the journal for the next start",
                extra=fields(tasks=len(waiting)),
            )
            if runner.settings.once:
                self._exit_code = EXIT_TRY_AGAIN

    async def _retry_now(self) -> None:
        """Make every report due: its next attempt may be an hour away."""
        try:
            await self._runner.journal.retry_all_now()
        except JournalError as error:
            log.error(str(error))
        self._runner.outbox.notify()

    def _is_awaited(self, task: Task) -> bool:
        """Check whether a drain waits for the end of a task; one that cannot begin has none."""
        if task.state not in {TaskState.ACCEPTED, TaskState.STARTING}:
            return task.state is TaskState.RUNNING or task.is_log_pending
        runner = self._runner
        return not runner.node.is_refused or task.task_id in runner.slots.task_ids

    async def _own_tasks(self) -> list[Task]:
        """Return this runner's unfinished tasks, once the journal can be read."""
        runner = self._runner
        policy = RetryPolicy.every(runner.timings.journal_retry_s)
        attempts = Retry(runner.clock, policy, self._reads.note)
        tasks = await retry(runner.journal.unfinished_tasks, JournalError, attempts)
        self._reads.end()
        return [task for task in tasks if self._is_own(task)]

    async def _wait_for_change(self, seen: int) -> None:
        """Wait for a change of a task or a report after the first `seen`, at most a second."""
        interval_s = self._runner.timings.drain_check_interval_s
        await self._runner.outbox.after_or(seen, interval_s, self._runner.clock)

    async def _handle_signals(self, signals: object, group: TaskGroup) -> None:
        """Act on signals, as the head of this file says."""
        async for number in signals:  # type: ignore[attr-defined]
            task_ids = self._runner.slots.task_ids
            name = signal.Signals(number).name
            if number == signal.SIGTERM or self._interrupts > 1:
                self._exit_reason = name
                log.info(
                    "stopping; containers keep running for the next runner",
                    extra=fields(tasks_left_running=len(task_ids)),
                )
                group.cancel_scope.cancel()
                return
            if number == signal.SIGINT:
                self._interrupts += 1
            # Not STOPPING=1: systemd would give a drain no longer than TimeoutStopSec.
            if self._interrupts > 1:
                log.info(
                    "stopping the running tasks; a third Ctrl-C leaves them to the next runner",
                    extra=fields(tasks=len(task_ids)),
                )
                for task_id in task_ids:
                    self._runner.slots.cancel(task_id, "the operator")
            else:
                advice = "; a second Ctrl-C stops them" if self._interrupts else ""
                log.info(
                    "draining: no new task is taken; exiting when the running ones have ended%s",
                    advice,
                    extra=fields(tasks=len(task_ids)),
                )
            self._exit_reason = f"drained after {name}"
            self._polling.cancel()

    async def _notify_when_registered(self) -> None:
        """Notify systemd of readiness, once it is clear how the first registration goes.

        If it has to be retried, the start is over too, and the status line has the reason: an
        orchestrator that is away must not fail or hold up `systemctl start`. If it is refused, the
        runner exits before, and the start fails.
        """
        runner, node = self._runner, self._runner.node
        ends_at_s = runner.clock.awake_s() + runner.timings.ready_timeout_s
        while node.known_identity is None and node.registration_error is None:
            left_s = ends_at_s - runner.clock.awake_s()
            if left_s <= 0:
                break
            await node.outage.changes.after_or(node.outage.changes.count, left_s, runner.clock)
        self._notifier.notify("READY=1")

    async def _show_status(self, changes: ChangeSignal) -> None:
        """Keep the line that `systemctl status` shows."""
        while True:
            seen = changes.count
            line = self._status_line()
            if line != self._shown:
                self._shown = line
                self._notifier.notify(f"STATUS={line}")
            await changes.after(seen)

    def _status_line(self) -> str:
        """Return what keeps new tasks away, and how many are running."""
        runner, node = self._runner, self._runner.node
        reasons = list(runner.problems.sentences.values())
        if node.is_refused:
            reasons.append(f"the registration is refused: {node.refusal}")
        elif node.known_identity is None:
            why = None if node.outage.sentence else node.registration_error
            reasons.append("waiting to be registered" + ("" if why is None else f": {why}"))
        if node.outage.sentence is not None:
            reasons.append(node.outage.sentence)
        if runner.problems.parked_reports:
            count = runner.problems.parked_reports
            reasons.append(f"parked reports: {count}, see `victoria-runner outbox list`")
        if self._polling.cancel_called:
            reasons.append("draining: no new task is taken")
        running = f"{len(runner.slots.task_ids)} of {runner.settings.max_tasks} tasks running"
        return "; ".join([*reasons, running])
