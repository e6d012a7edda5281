"""What the steps of a task share: the runner's parts, and the task itself."""

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
from runner.model import Assignment, EndReason, Identity, Task, status_body
from runner.node import Node, Problems, Slots, persist
from runner.settings import Settings
from runner.systemd import Watchdog
from runner.timing import ChangeSignal, Clock, Timings

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class RunnerContext:
    """The parts of a runner, one of each."""

    settings: Settings
    clock: Clock
    engine: Engine
    orchestrator: OrchestratorClient
    journal: Journal
    node: Node
    slots: Slots
    problems: Problems
    changes: ChangeSignal
    """Notified of every change of slots and problems."""
    outbox: ChangeSignal
    """Notified of every entry that is put in, delivered or parked, and of every closed task."""
    watchdog: Watchdog
    timings: Timings
    runner_id: str
    """The label of this runner's containers, among those of others on the same engine."""

    @property
    def status(self) -> str:
        """The node's status for a heartbeat."""
        if self.problems.sentences:
            return "error"
        return "busy" if self.slots.task_ids else "idle"


class TaskReassigned(Exception):
    """The orchestrator gave the task to another node, or has closed it, before it began."""


class TaskContext:
    """What the steps of one task's life share."""

    def __init__(self, task: Task, runner: RunnerContext) -> None:
        self.record = task
        self.runner = runner
        self.task_id = task.task_id
        self.container_name = container_name(task.task_id)
        self.wake = ChangeSignal()
        """Notified when the container should be inspected, or stopped, now."""
        self.cancelled_by: str | None = None
        self.engine_silent_at_s: float | None = None
        """The uptime at which the engine last did not answer about the container."""
        self.preparation = anyio.CancelScope()
        """The scope of what comes before the container; cancelling the task cancels it."""

    def cancel(self, who: str) -> None:
        """Have the task stopped, at whatever step it is."""
        if self.cancelled_by is None:
            log.info("task is cancelled", extra=fields(task_id=self.task_id, by=who))
            self.cancelled_by = who
            self.preparation.cancel()
            self.wake.notify()

    @property
    def assignment(self) -> Assignment:
        """What is to be done."""
        if self.record.assignment is None:
            raise AssertionError("only a closed task has lost its assignment")
        return self.record.assignment

    @property
    def engine(self) -> Engine:
        """The runner's engine: all open tasks have the same."""
        return self.runner.engine

    async def identity(self) -> Identity:
        """Return the identity to report the task with.

        Raises:
            RegistrationRefused: it was refused, and there is no other.
        """
        return await self.runner.node.identity_of(self.task_id)

    async def inspect(self) -> Container | None:
        """Return the container, once the engine answers: a silent engine proves nothing."""
        while True:
            try:
                container = await self.engine.inspect(self.container_name)
            except EngineError as error:
                await self.wait_for_engine(error)
                self.engine_silent_at_s = self.runner.clock.uptime_s()
            else:
                self.engine_answers()
                return container

    async def wait_for_engine(self, error: EngineError, call: str = "") -> None:
        """Note that nothing is known of the task, and wait a little.

        Pass `call` when only that call hangs; answers to other calls then do not clear the problem.
        """
        self.runner.problems.set(
            f"engine/{self.task_id}/{call}",
            f"task {self.task_id} is unknown until {self.engine.kind} answers: {error}",
        )
        await self.runner.clock.sleep(self.runner.timings.engine_retry_s)

    def engine_answers(self, call: str = "") -> None:
        """Note that the engine has answered, or answered this call."""
        self.runner.problems.clear(f"engine/{self.task_id}/{call}")

    def status(self, status: str, message: str) -> dict[str, object]:
        """Return the body of a status report made now."""
        return status_body(self.task_id, status, message, self.runner.clock.wall_s())

    async def note_stop(self, reason: EndReason) -> None:
        """Write why the container is about to be stopped."""
        now = self.runner.clock.wall_s()
        await self.persist(lambda: self.runner.journal.ask_to_stop(self.task_id, reason, now))
        await self.reload()

    async def reload(self) -> None:
        """Read the task from the journal again."""
        task = await self.persist(lambda: self.runner.journal.task(self.task_id))
        if task is not None:
            self.record = task

    async def persist(self, write: Callable[[], Awaitable[T]]) -> T:
        """Return what a write to the journal returns, retried without end."""
        return await persist(write, self.runner.problems, self.runner.clock, self.runner.timings)


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
