"""What the steps of a task share: the runner's runner, and the task itself."""

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
from runner.timing import ChangeSignal, Clock, Timings

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class RunnerContext:
    """One of each."""

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
    """Told of every letter that is put in, delivered or parked."""
    watchdog: Watchdog
    timings: Timings
    runner_id: str
    """Tells this runner's containers from those of another on the same engine."""


class TaskReassigned(Exception):
    """The orchestrator gave the task to another node, or has closed it, before it began."""


class Elsewhere(Exception):
    """The task cannot begin under this orchestrator; its page stays for a later start."""


class TaskContext:
    """What the steps of one task's life share."""

    def __init__(self, task: Task, runner: RunnerContext) -> None:
        self.record = task
        self.runner = runner
        self.task_id = task.task_id
        self.container_name = container_name(task.task_id)
        self.wake = ChangeSignal()
        """Told when the container should be looked at, or stopped, now."""
        self.cancelled_by: str | None = None
        self.engine_silent_at_s: float | None = None
        """The uptime at which the engine last did not answer about the container."""
        self.preparation = anyio.CancelScope()
        """What comes before the container; cancelling the task cuts it short."""

    def cancel(self, who: str) -> None:
        """Have the task stopped, at whatever step it is."""
        if self.cancelled_by is None:
            log.info("task is cancelled", extra=fields(task_id=self.task_id, by=who))
            self.cancelled_by = who
            self.preparation.cancel()
            self.wake.notify()

    @property
    def assignment(self) -> Assignment:
        """Give what is to be done."""
        if self.record.assignment is None:
            raise AssertionError("only a closed task has lost its assignment")
        return self.record.assignment

    @property
    def engine(self) -> Engine:
        """Give the engine that the task was started on; for a new one that is the runner's."""
        kind = self.record.engine
        if kind is None or kind == self.runner.engine.kind:
            return self.runner.engine
        return self.runner.other_engine(kind)

    async def identity(self) -> Identity:
        """Give the identity that took the task on while it holds, else the newest."""
        return await self.persist(lambda: self.runner.journal.identity_for(self.task_id))

    async def inspect(self) -> Container | None:
        """Ask the engine for the container until it answers: a silent engine is no evidence."""
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

        A call named is one that is silent by itself: that other calls are answered is no news.
        """
        self.runner.workload.set_problem(
            f"engine/{self.task_id}/{call}",
            f"task {self.task_id} is unknown until {self.engine.kind} answers: {error}",
        )
        await self.runner.clock.sleep(self.runner.timings.engine_retry_s)

    def engine_answers(self, call: str = "") -> None:
        """Note that the engine has answered, or that this call was."""
        self.runner.workload.clear_problem(f"engine/{self.task_id}/{call}")

    async def note_stop(self, reason: EndReason) -> None:
        """Write down why the container is about to be stopped."""
        now = self.runner.clock.wall_s()
        await self.persist(lambda: self.runner.journal.ask_to_stop(self.task_id, reason, now))
        await self.reload()

    async def reload(self) -> None:
        """Read the task's page anew."""
        task = await self.persist(lambda: self.runner.journal.task(self.task_id))
        if task is not None:
            self.record = task

    async def persist(self, write: Callable[[], Awaitable[T]]) -> T:
        """Write to the journal, however long that takes."""
        return await persist(write, self.runner.workload, self.runner.clock, self.runner.timings)


def lost(why: str) -> TaskError:
    """Say that nobody saw how the task ended."""
    error = TaskError(why)
    error.reason = EndReason.LOST
    return error


def cancelled(when: str) -> TaskError:
    """Say that the task was cancelled and never ran."""
    error = TaskError(when)
    error.reason = EndReason.CANCELLED
    return error
