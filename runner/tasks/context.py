"""What loops and tasks are passed: the runner's parts, and a task under way."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import anyio

from runner.api.client import OrchestratorClient
from runner.engine.base import (
    LABEL_RUNNER,
    LABEL_TASK,
    Container,
    Engine,
    Phase,
    container_name,
)
from runner.errors import EngineError
from runner.journal.journal import Journal
from runner.log import fields
from runner.model import Assignment, EndReason, Identity, Task
from runner.node import Node, Problems, Slots, persist
from runner.outage import FailureLog
from runner.settings import Settings
from runner.state_dir import cid_file, read_cid_file
from runner.systemd import Watchdog
from runner.tasks.image import ImageFetcher
from runner.timing import ChangeSignal, Clock, Retry, RetryPolicy, Timings, retry

log = logging.getLogger(__name__)
T = TypeVar("T")
_MOST_HELD = 1000
"""In a heartbeat, as the reference orchestrator takes them."""


@dataclass
class ImageCheck:
    """The last search for old images."""

    ran: tuple[str, ...] = ()
    """The ids of the images that had been run then."""
    next_at_s: float = 0.0
    """The uptime in seconds before which these are not searched again."""


@dataclass(frozen=True)
class RunnerContext:
    """The parts of the runner, one of each."""

    settings: Settings
    clock: Clock
    engine: Engine
    image: ImageFetcher
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
    """The label that distinguishes this runner's containers from another's on the same engine."""
    image_check: ImageCheck = field(default_factory=ImageCheck)
    trial: anyio.Lock = field(default_factory=anyio.Lock)
    """Held while it is tried whether containers start here."""
    refused_urls: set[str] = field(default_factory=set)
    """What assignments named as orchestrator_url and no container was given; logged once each."""
    failed_uploads: dict[int, int] = field(default_factory=dict)
    """By row of the outbox, how often artifacts failed while the orchestrator took other calls."""
    moved_outputs: dict[str, int] = field(default_factory=dict)
    """By task, how often its output was moved and not taken then."""
    finishing: dict[str, float] = field(default_factory=dict)
    """The tasks that have ended, while what they left is read; heartbeats name them from this
    uptime on."""
    uploading: set[str] = field(default_factory=set)
    """The ids of the tasks whose final status waits for the upload of their artifacts."""
    leftover_starts_ended: anyio.Event = field(default_factory=anyio.Event)
    """Set once no call of an earlier runner can start a container any more."""
    output_intervals_s: dict[str, float] = field(default_factory=dict)
    """By the id of a task whose output is followed, how often the orchestrator wants its output."""

    def failure_log(self, what: str, ids: Mapping[str, object] | None = None) -> FailureLog:
        """Return the log of a call that is retried and does not go to the orchestrator."""
        return FailureLog(what, self.clock, self.timings, ids)

    @property
    def held_task_ids(self) -> tuple[str, ...]:
        """The ids of the running tasks, and then of those whose final status takes its time.

        An orchestrator takes a task for lost that its node does not name, once its time is over.
        """
        now_s = self.clock.uptime_s()
        finishing = {task_id for task_id, from_s in self.finishing.items() if from_s <= now_s}
        ended = sorted(finishing | self.uploading)
        return tuple(dict.fromkeys([*self.slots.task_ids, *ended]))[:_MOST_HELD]

    async def persist(self, write: Callable[[], Awaitable[T]]) -> T:
        """Return what a write to the journal returns; retried without end."""
        return await persist(write, self.problems, self.clock, self.timings)

    @property
    def status(self) -> str:
        """The node's status for a heartbeat."""
        if self.problems.sentences:
            return "error"
        return "busy" if self.slots.task_ids else "idle"


class TaskReassigned(Exception):
    """The orchestrator gave the task to another node, or has closed it, before it began."""


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
        self.removals = runner.failure_log("remove a container", {"task_id": task.task_id})
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
        """The runner's engine: all open tasks have the same."""
        return self.runner.engine

    async def identity(self) -> Identity:
        """Return the identity to report the task with.

        Raises:
            RegistrationRefused: the one that accepted it was refused, and there is no other.
        """
        return await self.runner.node.identity_of(self.task_id)

    @property
    def container_id(self) -> str | None:
        """The container's id, once the engine has written it to the cid file."""
        path = cid_file(self.runner.settings.state_dir, self.task_id)
        return self.record.container_id or read_cid_file(path)

    def owns(self, container: Container) -> bool:
        """Return whether a container is this task's: by its id, until that is known by its labels.

        Anybody may give a container the name of a task's.
        """
        if self.container_id is not None:
            return container.container_id == self.container_id
        labels = (container.labels.get(LABEL_TASK), container.labels.get(LABEL_RUNNER))
        return labels == (self.task_id, self.runner.runner_id)

    async def inspect(self) -> Container | None:
        """Return what is true of the task's own container, retried until the engine answers.

        An engine that does not answer does not prove that the container is gone.
        """
        container = await retry(self.inspect_once, EngineError, self.engine_retry())
        self.engine_answers()
        return container

    async def inspect_once(self) -> Container | None:
        """Inspect the task's own container; what a killed removal left of it is removed: None.

        Raises:
            EngineError: the engine does not answer.
        """
        container = await self.engine.inspect(self.container_id or self.container_name)
        if container is None or not self.owns(container):
            return None
        if container.phase is Phase.HALF_REMOVED:
            await self.engine.remove(container.container_id)
            return None
        return container

    def engine_retry(self, call: str = "", *, gives_up_after_s: float | None = None) -> Retry:
        """Return the attempts at a call of the engine, whose failures are a problem of the host.

        Pass `call` when only that call hangs; answers to other calls then do not clear the problem.
        """

        def note_failure(error: Exception, _wait_s: float) -> None:
            self.engine_silent_at_s = self.runner.clock.uptime_s()
            self.runner.problems.set(
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
        self.runner.problems.clear(f"engine/{self.task_id}/{call}")

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
        """Persist as `RunnerContext.persist` does."""
        return await self.runner.persist(write)
