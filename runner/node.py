"""What the orchestrator knows of this host: its identity, its tasks and slots, and its problems."""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol, TypeVar

import anyio

from runner.api.client import OrchestratorClient
from runner.errors import (
    JournalError,
    Refused,
    RegistrationPostponed,
    RegistrationRefused,
    Unauthorised,
    Unavailable,
)
from runner.journal.journal import Journal
from runner.log import fields
from runner.model import Identity
from runner.settings import Settings
from runner.systemd import Watchdog
from runner.timing import (
    DEFAULT_TIMINGS,
    ChangeSignal,
    Clock,
    Retry,
    RetryPolicy,
    Timings,
    retry,
)

log = logging.getLogger(__name__)
INVALID_TOKEN = "Registration failed - invalid registration token"  # noqa: S105 - what users read
DISABLED = "Registration failed - orchestrator has registration disabled"
_SERVICE_UNAVAILABLE = 503
_NOT_ALLOWED = frozenset({401, 403})
_CHECK_ADDRESS, _CHECK_NODE = "check --orchestrator-url", "check --name, --tag and --capability"
_ADVICE = {404: _CHECK_ADDRESS, 405: _CHECK_ADDRESS, 400: _CHECK_NODE, 422: _CHECK_NODE}
_ASK = "ask the orchestrator's administrator"
START = "start"
"""The trouble that containers cannot be started here."""
T = TypeVar("T")


class Node:
    """The host's identity, for whoever needs it."""

    def __init__(  # noqa: PLR0913, PLR0917 - the parts that it is put together from
        self,
        settings: Settings,
        orchestrator: OrchestratorClient,
        journal: Journal,
        clock: Clock,
        watchdog: Watchdog,
        workload: Workload,
        timings: Timings = DEFAULT_TIMINGS,
    ) -> None:
        self.refusal: RegistrationRefused | None = None
        """Why there is no identity and will be none: nothing more can be asked for."""
        self._settings = settings
        self._orchestrator = orchestrator
        self._journal = journal
        self._clock = clock
        self._watchdog = watchdog
        self._workload = workload
        self._timings = timings
        self._description = node_description(settings)
        self._identity: Identity | None = None
        self._lock = anyio.Lock()
        self._registrations = 0

    @property
    def known_identity(self) -> Identity | None:
        """Give the identity if there is one now; nothing is asked for."""
        return self._identity

    async def identity(self) -> Identity:
        """Give the identity, registering first if there is none; waits through any outage.

        Raises:
            RegistrationRefused: the orchestrator does not take the registration token, or, with
                `--once`, does not answer.
        """
        async with self._lock:
            if self.refusal is not None:
                raise self.refusal
            if self._identity is None:
                self._identity = await persist(
                    lambda: self._journal.identity(self._orchestrator.url, self._description),
                    self._workload,
                    self._clock,
                    self._timings,
                )
            if self._identity is None:
                self._identity = await self._register()
            return self._identity

    async def forget_identity(self, refused: Identity) -> None:
        """Note that the orchestrator no longer knows this identity; the next call registers."""
        async with self._lock:
            await self._written(lambda: self._journal.refuse_identity(refused))
            if self._identity == refused:
                log.warning(
                    "the orchestrator no longer knows this node; registering anew",
                    extra=fields(node_id=refused.node_id),
                )
                self._identity = None

    async def _register(self) -> Identity:
        timings = self._timings
        if self._registrations:
            # One that is refused as soon as it is given must not turn into a flood.
            wait_s = timings.registration_pause_s + timings.backoff().wait_s(self._registrations)
            self._watchdog.expect("register", next_within_s=wait_s + timings.registration_timeout_s)
            await self._clock.sleep(wait_s if self._registrations > 1 else 0)
        self._registrations += 1
        try:
            identity = await self._ask_for_identity()
        except RegistrationRefused as refusal:
            self.refusal = refusal
            raise
        finally:
            self._watchdog.suspend("register")
        now = self._clock.wall_s()
        await self._written(
            lambda: self._journal.store_identity(
                identity, self._orchestrator.url, self._description, now
            )
        )
        log.info(
            "registered",
            extra=fields(node_id=identity.node_id, name=self._settings.name),
        )
        return identity

    async def _written(self, write: Callable[[], Awaitable[None]]) -> None:
        self._watchdog.suspend("register")
        await persist(write, self._workload, self._clock, self._timings)

    async def _ask_for_identity(self) -> Identity:
        timings = self._timings
        policy = timings.backoff(retry_after_limit_s=timings.registration_retry_after_limit_s)
        attempts = Retry(self._clock, policy, self._log_failure)
        while True:
            self._watchdog.expect("register", next_within_s=timings.registration_timeout_s)
            try:
                return await self._orchestrator.register(
                    self._settings.registration_token, self._description
                )
            except (Refused, Unavailable) as error:
                if isinstance(error, Refused) and error.status in _NOT_ALLOWED:
                    self._log_failure(error, 0)
                    raise RegistrationRefused(str(error)) from error
                if self._settings.once:
                    self._log_failure(error, 0)
                    raise RegistrationPostponed(f"cannot register: {error}") from error
                await attempts.wait_after(error)

    def _log_failure(self, error: Exception, wait_s: float) -> None:
        """Log why there is no registration, and what an operator can do where that is known."""
        self._watchdog.expect(
            "register", next_within_s=wait_s + self._timings.registration_timeout_s
        )
        if isinstance(error, Unauthorised):
            log.error(INVALID_TOKEN)
        elif isinstance(error, Refused) and error.status in _NOT_ALLOWED:
            log.error("Registration failed - %s", error)
        elif isinstance(error, Refused):
            log.error("cannot register: %s; %s", error, _ADVICE.get(error.status, _ASK))
        elif (
            isinstance(error, Unavailable)
            and error.status == _SERVICE_UNAVAILABLE
            and error.detail is not None
        ):
            log.error(DISABLED)
        else:
            log.warning("cannot register: %s", error)


def node_description(settings: Settings) -> dict[str, object]:
    """Describe this host in the fields that `POST /register` takes."""
    return {
        "hostname": socket.gethostname(),
        "name": settings.name,
        "os_type": os_type(),
        "capabilities": list(settings.capabilities),
        "tags": dict(settings.tags),
    }


def os_type(os_release: Path = Path("/etc/os-release")) -> str:
    """Give the distribution's ID, such as fedora or ubuntu (os-release(5)); linux if unknown."""
    try:
        lines = os_release.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "linux"
    for line in lines:
        name, _, text = line.partition("=")
        if name == "ID":
            return text.strip().strip("\"'") or "linux"
    return "linux"


class Cancellable(Protocol):
    """A task in hand, as far as the workload knows it."""

    def cancel(self, who: str) -> None:
        """Have it stopped; `who` is named in its final message."""


class Workload:
    """The tasks in hand, the slots that they occupy, and the problems that keep new ones away."""

    def __init__(self, max_tasks: int, timings: Timings = DEFAULT_TIMINGS) -> None:
        self._timings = timings
        self.changes = ChangeSignal()
        """Of what heartbeats and systemd are told."""
        self._slots = ChangeSignal()
        self._max_tasks = max_tasks
        self._tasks: dict[str, Cancellable] = {}
        self._exited: set[str] = set()
        self._problems: dict[str, str] = {}
        self._dropped_at_s: dict[str, float] = {}
        self._refused_starts = 0
        self.next_start_at_s = 0.0
        """The uptime in seconds before which no container is started after refusals."""

    @property
    def task_ids(self) -> tuple[str, ...]:
        """Give the ids of the tasks in hand, oldest first."""
        return tuple(self._tasks)

    @property
    def status(self) -> str:
        """Give the word for a heartbeat: idle, busy or error."""
        if self._problems:
            return "error"
        return "busy" if self._tasks else "idle"

    @property
    def problems(self) -> dict[str, str]:
        """Give what is wrong: a sentence by the name of each trouble."""
        return dict(self._problems)

    def add(self, task_id: str, task: Cancellable) -> None:
        """Track a task, which takes a slot."""
        self._tasks[task_id] = task
        self._notify()

    def release(self, task_id: str) -> None:
        """Let go of the task, and free its slot; that may have been done before."""
        self._exited.discard(task_id)
        if self._tasks.pop(task_id, None) is not None:
            self._notify()

    def free_slot(self, task_id: str) -> None:
        """Free the slot of a task whose container has exited, while its outcome is confirmed."""
        if task_id in self._tasks:
            self._exited.add(task_id)
            self._slots.notify()

    def cancel(self, task_id: str, who: str) -> None:
        """Have a task stopped, if it is in hand."""
        task = self._tasks.get(task_id)
        if task is not None:
            task.cancel(who)

    def set_problem(self, name: str, sentence: str) -> None:
        """Note what is wrong and log it, once until it changes."""
        before = self._problems.get(name)
        self._problems[name] = sentence
        if before is None:
            log.error(sentence)
            self.changes.notify()

    def clear_problem(self, name: str) -> None:
        """Note that it is over."""
        if self._problems.pop(name, None) is not None:
            log.info("trouble is over", extra=fields(trouble=name))
            self.changes.notify()

    def start_failed(self, sentence: str, uptime_s: float) -> None:
        """Note that a container could not be started for what the next would meet as well.

        Each time in a row doubles the wait before the next task: a broken host does not eat up
        the queue.
        """
        self._refused_starts += 1
        doubled_s = self._timings.start_retry_first_s * 2.0 ** min(self._refused_starts - 1, 30)
        self.next_start_at_s = uptime_s + min(doubled_s, self._timings.start_retry_ceiling_s)
        self.set_problem(START, f"few new tasks are taken until a container starts: {sentence}")

    def note_dropped(self, task_id: str, uptime_s: float) -> None:
        """Note that a task was dropped, for the orchestrator did not want it to begin."""
        self._dropped_at_s[task_id] = uptime_s

    def was_just_dropped(self, task_id: str, uptime_s: float) -> bool:
        """Say whether a task was dropped a moment ago: taken at once it would be so again."""
        self._dropped_at_s = {
            dropped: at_s
            for dropped, at_s in self._dropped_at_s.items()
            if uptime_s - at_s < self._timings.reoffer_pause_s
        }
        return task_id in self._dropped_at_s

    def note_start(self) -> None:
        """Note that containers do start here."""
        self._refused_starts = 0
        self.next_start_at_s = 0.0
        self.clear_problem(START)

    async def wait_for_room(self) -> None:
        """Wait until one more task may be asked for: max-tasks is enforced here."""
        # An engine that does not answer how containers ended is not given more and more of them.
        while len(self._tasks) - min(len(self._exited), self._max_tasks) >= self._max_tasks:
            await self._slots.after(self._slots.count)

    def _notify(self) -> None:
        self.changes.notify()
        self._slots.notify()


async def persist(
    write: Callable[[], Awaitable[T]], workload: Workload, clock: Clock, timings: Timings
) -> T:
    """Return what a write to the journal returns; retried without end, for a full disk may pass.

    Failures are a problem of the host until a write succeeds.
    """

    def note_failure(error: Exception, _wait_s: float) -> None:
        workload.set_problem("journal", str(error))

    attempts = Retry(clock, RetryPolicy.every(timings.journal_retry_s), note_failure)
    result = await retry(write, JournalError, attempts)
    workload.clear_problem("journal")
    return result
