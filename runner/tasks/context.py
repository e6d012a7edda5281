"""What loops and tasks are passed: the runner's parts, and a task under way."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import anyio

from runner.api.client import OrchestratorClient
from runner.engine.base import Container, Engine, container_name
from runner.errors import EngineError, TaskError
from runner.journal.journal import Journal
from runner.log import fields
from runner.model import Assignment, EndReason, Identity, Task
from runner.node import Node, Workload, persist
from runner.settings import Settings
from runner.systemd import Watchdog
from runner.timing import ChangeSignal, Clock, Retry, RetryPolicy, Timings, retry

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class RunnerContext:
    """The parts of the runner, one of each."""

    settings: Settings
    clock: Clock
    engine: Engine
    other_engine: Callable[[str], Engine]
    """Gives the engine of that kind, for what was started on it by an earlier runner."""
    orchestrator: OrchestratorClient
    journal: Journal
    node: Node
    workload: Workload
    outbox: ChangeSignal
    """Notified of every entry that is put in, delivered or parked."""
    watchdog: Watchdog
    timings: Timings
    runner_id: str
    """The label that distinguishes this runner's containers from another's on the same engine."""


class TaskReassigned(Exception):
    """The orchestrator gave the task to another node, or has closed it, before it began."""


class Elsewhere(Exception):
    """The task cannot begin under this orchestrator; its page stays for a later start."""


class TaskContext:
    """A task under way, as its steps share it."""

    def __init__(self, task: Task, runner: RunnerContext) -> None:
        self.record = task
        self.runner = runner
        self.task_id = task.task_id
        self.container_name = container_name(task.task_id)
        self.wake = ChangeSignal()
        """Notified when the container should be inspected, or stopped, now."""
        self.cancelled_by: str | None = None
        self.engine_silent_at_s: float | None = None
        """The uptime at which the engine last failed to answer about the container."""
        self.preparation = anyio.CancelScope()
        """Cancelled with the task: what comes before its container is cut short."""

    def cancel(self, who: str) -> None:
        """Stop the task, at whatever step it is."""
        if self.cancelled_by is None:
            log.info("task is cancelled", extra=fields(task_id=self.task_id, by=who))
            self.cancelled_by = who
            self.preparation.cancel()
            self.wake.notify()

    @property
    def assignment(self) -> Assignment:
        """What the task is to do."""
        if self.record.assignment is None:
            raise AssertionError("only a closed task has lost its assignment")
        return self.record.assignment

    @property
    def engine(self) -> Engine:
        """The engine that the task was started on; for a new one the runner's."""
        kind = self.record.engine
        if kind is None or kind == self.runner.engine.kind:
            return self.runner.engine
        return self.runner.other_engine(kind)

    async def identity(self) -> Identity:
        """Return the identity that accepted the task while it is valid, else the newest."""
        return await self.persist(lambda: self.runner.journal.identity_for(self.task_id))

    async def inspect(self) -> Container | None:
        """Return what is true of the container, retried until the engine answers.

        An engine that does not answer is no evidence that the container is gone.
        """
        container = await retry(
            lambda: self.engine.inspect(self.container_name), EngineError, self.engine_retry()
        )
        self.engine_answers()
        return container

    def engine_retry(self, call: str = "", *, gives_up_after_s: float | None = None) -> Retry:
        """Return the attempts at a call of the engine, whose failures are a problem of the host.

        Pass `call` when only that call hangs; answers to other calls then do not clear the problem.
        """

        def note_failure(error: Exception, _wait_s: float) -> None:
            self.engine_silent_at_s = self.runner.clock.uptime_s()
            self.runner.workload.set_problem(
                f"engine/{self.task_id}/{call}",
                f"task {self.task_id} is unknown until {self.engine.kind} answers: {error}",
            )

        pause_s = self.runner.timings.engine_retry_s
        policy = RetryPolicy.every(pause_s, gives_up_after_s=gives_up_after_s)
        return Retry(self.runner.clock, policy, note_failure)

    async def wait_for_engine(self, error: EngineError, call: str = "") -> None:
        """Note that the engine does not answer, and wait until it may be called again."""
        await self.engine_retry(call).wait_after(error)

    def engine_answers(self, call: str = "") -> None:
        """Clear the problem that `engine_retry` noted."""
        self.runner.workload.clear_problem(f"engine/{self.task_id}/{call}")

    async def note_stop(self, reason: EndReason) -> None:
        """Write down why the container is about to be stopped; the first reason stands."""
        now = self.runner.clock.wall_s()
        await self.persist(lambda: self.runner.journal.ask_to_stop(self.task_id, reason, now))
        await self.reload()

    async def reload(self) -> None:
        """Read the task's record again."""
        record = await self.persist(lambda: self.runner.journal.task(self.task_id))
        if record is not None:
            self.record = record

    async def persist(self, write: Callable[[], Awaitable[T]]) -> T:
        """Return what a write to the journal returns; retried without end."""
        return await persist(write, self.runner.workload, self.runner.clock, self.runner.timings)


def lost(why: str) -> TaskError:
    """Return the error of a task whose end nobody saw."""
    error = TaskError(why)
    error.reason = EndReason.LOST
    return error


def cancelled(when: str) -> TaskError:
    """Return the error of a task that was cancelled and never ran."""
    error = TaskError(when)
    error.reason = EndReason.CANCELLED
    return error
