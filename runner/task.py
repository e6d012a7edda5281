"""One task's life, from assignment to closed journal; the same for a new task and an adopted one.

Each step is written down before the world is changed, so that whichever runner comes next can go
on from the journal and the engine alone. Cancelling stops the container and nothing else; the end
of this process (app.py cancels the task group) leaves the container alone.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread

from runner import backoff
from runner.api import Identity
from runner.assignment import Assignment
from runner.bodies import status_body
from runner.container import Container, ContainerSpec, Phase, just_started
from runner.ending import (
    LAST_LINES,
    judge,
    said_as,
    secrets_to_blank,
    without_secrets,
)
from runner.engine import PULL_DEADLINE_S
from runner.errors import (
    ConfigurationError,
    EngineError,
    EngineSilent,
    NameInUse,
    Refused,
    RegistrationRefused,
    TaskError,
    Unauthorised,
    Unavailable,
    Unstartable,
)
from runner.files import CONTAINER_HOME, fetch_files, files_folder_in_container
from runner.journal import End, Task
from runner.last_words import last_reports
from runner.log import fields
from runner.parts import Parts
from runner.settings import check_env_file
from runner.states import EndReason, TaskState
from runner.workload import Changes, written

log = logging.getLogger(__name__)

LABEL_TASK = "victoria-runner.task-id"
LABEL_NODE = "victoria-runner.node-id"
LABEL_RUNNER = "victoria-runner.runner-id"
LABEL_ORCHESTRATOR = "victoria-runner.orchestrator-url"
LABEL_TIMEOUT = "victoria-runner.timeout-s"
LABEL_BOOT = "victoria-runner.boot-id"
KEY_VARIABLE = "NODE_API_KEY"
"""These and the name are what a task is known by when the journal is gone; see strays.py."""

_LOOK_INTERVAL_S = 30.0
_WAIT_AGAIN_S = 5.0
_ENGINE_GRACE_S = 60.0
_STOP_ATTEMPTS = 3
_DEFECTS_BORNE = 3
_NOT_OURS = frozenset({403, 404, 409, 410})
_FINAL = frozenset({"success", "error", "cancelled"})

T = TypeVar("T")


def container_name(task_id: str) -> str:
    """Give the one name that a task's container can have on an engine."""
    return f"victoria-{task_id}"


def run_folder(state_dir: Path) -> Path:
    """Give the folder for what lives only while a container is started."""
    return state_dir / "run"


class _NotOurs(Exception):
    """The orchestrator gave the task to another node, or has closed it, before it began."""


class TaskRun:
    """A task in hand."""

    def __init__(self, task: Task, parts: Parts) -> None:
        self._task = task
        self._parts = parts
        self._id = task.task_id
        self._name = container_name(task.task_id)
        self._wake = Changes()
        self._cancelled_by: str | None = None
        self._preparation = anyio.CancelScope()
        if task.stop_reason is EndReason.CANCELLED:
            self.cancel("the runner before this one")

    def cancel(self, who: str) -> None:
        """Have the task stopped, at whatever step it is."""
        if self._cancelled_by is None:
            log.info("task is cancelled", extra=fields(task_id=self._id, by=who))
            self._cancelled_by = who
            self._preparation.cancel()
            self._wake.notify()

    async def live(self) -> None:
        """Take the task from where the journal has it to its closing.

        Raises:
            RegistrationRefused: it cannot begin, and is left as it is for the next start.
        """
        try:
            if self._task.state is not TaskState.ENDED:
                await self._run_to_end()
        except _NotOurs as error:
            log.warning("task is dropped: %s", error, extra=fields(task_id=self._id))
            await self._written(lambda: self._parts.journal.forget(self._id))
            self._leave_slot()
            return
        except RegistrationRefused:
            self._leave_slot()
            raise
        # After a defect the slot is kept: the container may be running.
        self._leave_slot()
        await self._close()

    async def give_up(self, why: str) -> None:
        """End the task for a reason that lies in the runner itself."""
        if self._task.state is not TaskState.ENDED:
            await self._end(said_as(EndReason.UNSTARTABLE, why))
        self._leave_slot()
        await self._close()

    def _leave_slot(self) -> None:
        self._parts.workload.clear_trouble(f"engine/{self._id}")
        self._parts.workload.release(self._id)

    async def _run_to_end(self) -> None:
        try:
            container = await self._find() if self._task.state is not TaskState.ACCEPTED else None
            if container is None and self._task.state is not TaskState.RUNNING:
                with self._preparation:
                    container = await self._prepare_and_start()
            if self._preparation.cancelled_caught:
                container = await self._find_cancelled()
            if container is not None:
                container = await self._watch(container)
        except TaskError as error:
            await self._end(said_as(error.reason, error))
            return
        # What is left to do needs no slot: the next task may come.
        self._parts.workload.release(self._id)
        end = judge(self._task, container, await self._last_output(container))
        await self._end(end, container)

    # Before the container runs

    async def _find(self) -> Container | None:
        """Look for the container of a task that an earlier runner may have started.

        None means for a starting task that it never ran, for a running one that it is lost.
        """
        container = await self._look()
        is_restarted = self._task.boot_id != self._parts.clock.boot_id
        if is_restarted and container is not None and container.phase is Phase.RUNNING:
            raise _lost("the host restarted, and something started its container again")
        if self._task.state is TaskState.RUNNING:
            return container
        if container is None and _has_text(self._cid_file):
            # It was made: by a call that outlived the last runner just now, or long ago.
            container = await self._look()
            if container is None:
                raise _lost("its container was removed before it was seen to run")
        if container is None or container.phase is not Phase.CREATED:
            return container
        if is_restarted:
            raise _lost("the host restarted while its container was being started")
        return await self._find_started()

    async def _find_cancelled(self) -> Container | None:
        """Say what there is to stop after the preparation was cut short."""
        await self._note_stop(EndReason.CANCELLED)
        if self._task.state is TaskState.ACCEPTED:
            raise _cancelled("before it started")
        container = await self._look()
        if container is None or container.phase is Phase.CREATED:
            raise _cancelled("before it started")
        return container

    async def _prepare_and_start(self) -> Container:
        if self._task.orchestrator_url != self._parts.orchestrator.url:
            raise _NotOurs(f"it was accepted from {self._task.orchestrator_url}")
        assignment = self._assignment
        if assignment.files:
            await self._download(assignment)
        await self._fetch_image()
        await self._claim()
        if self._task.state is TaskState.ACCEPTED:
            await self._written(
                lambda: self._parts.journal.start(self._id, self._parts.clock.boot_id)
            )
            await self._reload()
        return await self._start(assignment, await self._identity())

    async def _download(self, assignment: Assignment) -> None:
        while True:
            identity = await self._identity()
            try:
                await fetch_files(
                    self._parts.orchestrator,
                    identity,
                    assignment,
                    self._parts.settings.victoria_home,
                    min_free_disk=self._parts.settings.min_free_disk,
                )
            except Unauthorised:
                await self._renew(identity)
            except Unavailable as error:
                raise Unstartable(f"cannot fetch its files: {error}") from error
            else:
                return

    async def _fetch_image(self) -> None:
        settings = self._parts.settings
        patience_ends_s = self._parts.clock.uptime_s() + PULL_DEADLINE_S
        while True:
            try:
                await self._parts.engine.fetch_image(settings.container_image, settings.pull)
            except EngineSilent as error:
                if self._parts.clock.uptime_s() >= patience_ends_s:
                    raise Unstartable(str(error)) from error
                await self._engine_is_silent(error)
            except EngineError as error:
                raise Unstartable(str(error)) from error
            else:
                self._parts.workload.clear_trouble(f"engine/{self._id}")
                return

    async def _claim(self) -> None:
        """Have the orchestrator confirm that the task is still ours, before it can do anything.

        This is what keeps a task from running twice when it was given to another node meanwhile.
        """
        attempts = 0
        while True:
            identity = await self._identity()
            body = status_body(
                self._id, "running", "container is starting", self._parts.clock.wall_s()
            )
            try:
                standing = await self._parts.orchestrator.report(identity, "status", body)
            except Unauthorised:
                await self._renew(identity)
            except Refused as error:
                if error.status in _NOT_OURS:
                    raise _NotOurs(str(error)) from error
                log.warning("cannot report a start: %s", error, extra=fields(task_id=self._id))
                return
            except Unavailable as error:
                attempts += 1
                wait_s = backoff.delay_s(attempts, at_least_s=error.retry_after_s or 0)
                log.warning(
                    "cannot report a start, trying again in %.0f s: %s",
                    wait_s,
                    error,
                    extra=fields(task_id=self._id),
                )
                await self._parts.clock.sleep(wait_s)
            else:
                if standing == "cancelled":
                    self.cancel("the orchestrator")
                    await anyio.lowlevel.checkpoint()
                if standing in _FINAL:
                    raise _NotOurs(f"the orchestrator has it as {standing}")
                return

    async def _renew(self, identity: Identity) -> None:
        await self._parts.node.renew(identity)
        await self._parts.node.identity()

    async def _identity(self) -> Identity:
        """Give the identity that took the task on while it holds, else the newest."""
        return await self._written(lambda: self._parts.journal.identity_for(self._id))

    async def _start(self, assignment: Assignment, identity: Identity) -> Container:
        """Have the engine start the container, or find that it did so before."""
        while True:
            refusal: EngineError | None = None
            self._cid_file.unlink(missing_ok=True)
            self._write_env_file(assignment, identity)
            try:
                container_id = await self._parts.engine.run(self._spec(assignment, identity))
                return just_started(container_id, self._name, self._parts.clock.wall_s())
            except NameInUse:
                log.debug("container is there already", extra=fields(task_id=self._id))
            except EngineSilent as error:
                await self._engine_is_silent(error)
            except EngineError as error:
                refusal = error
            finally:
                self._env_file.unlink(missing_ok=True)
            # A refusal is no evidence either: were a container that runs removed here, and we
            # killed before the end is written down, then the next runner would run it again.
            container = await self._find_started()
            if container is not None:
                return container
            if _has_text(self._cid_file):
                raise _lost("its container was removed before it was seen to run")
            if refusal is not None:
                raise Unstartable(str(refusal)) from refusal

    async def _find_started(self) -> Container | None:
        """Look for the container once more; one that never ran is removed, and so is None."""
        while True:
            container = await self._look()
            if container is None or container.phase is not Phase.CREATED:
                return container
            self._cid_file.unlink(missing_ok=True)
            try:
                # Only one that does not run can be removed so: a start under way wins.
                await self._parts.engine.remove_stopped(self._name)
            except EngineError as error:
                await self._engine_is_silent(error)

    def _spec(self, assignment: Assignment, identity: Identity) -> ContainerSpec:
        settings = self._parts.settings
        env_files = (settings.env_file, self._env_file)
        return ContainerSpec(
            name=self._name,
            image=settings.container_image,
            arguments=("--accept-license", "--task", assignment.prompt),
            labels={
                LABEL_TASK: self._id,
                LABEL_NODE: identity.node_id,
                LABEL_RUNNER: self._parts.runner_id,
                LABEL_ORCHESTRATOR: self._task.orchestrator_url,
                LABEL_TIMEOUT: f"{assignment.timeout_s:g}",
                LABEL_BOOT: self._parts.clock.boot_id,
            },
            env_files=tuple(path for path in env_files if path is not None),
            volumes={settings.victoria_home: CONTAINER_HOME},
            timeout_s=assignment.timeout_s + _ENGINE_GRACE_S,
            limits=settings.limits,
            run_args=settings.run_args,
            cid_file=self._cid_file,
        )

    def _write_env_file(self, assignment: Assignment, identity: Identity) -> None:
        """Write what the container is told, for the engine to read once."""
        variables = {
            "ORCHESTRATOR_URL": assignment.orchestrator_url,
            "JOB_ID": self._id,
            "TASK_ID": self._id,
            KEY_VARIABLE: identity.api_key.reveal(),
        }
        if assignment.files:
            variables["TASK_FILES_DIR"] = files_folder_in_container(self._id)
        text = "".join(f"{name}={value}\n" for name, value in variables.items())
        settings = self._parts.settings
        try:
            if settings.env_file is not None:
                check_env_file(settings.env_file)
            self._env_file.unlink(missing_ok=True)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(self._env_file, flags, mode=0o600), "w") as file:
                file.write(text)
        except (OSError, ConfigurationError) as error:
            raise Unstartable(f"cannot prepare the container's variables: {error}") from error

    # While it runs

    async def _watch(self, container: Container) -> Container | None:
        """Wait for the end, and bring it about when the time is up or the task is cancelled."""
        deadline_s = await self._note_running(container)
        if container.phase is not Phase.RUNNING:
            return container
        async with anyio.create_task_group() as group:
            group.start_soon(self._wait_for_engine)
            found: Container | None = container
            stops = 0
            while found is not None and found.phase is Phase.RUNNING:
                seen = self._wake.count
                left_s = deadline_s - self._parts.clock.uptime_s()
                if self._cancelled_by is None and left_s > 0:
                    pause_s = min(left_s, _LOOK_INTERVAL_S)
                    await self._wake.after_or(seen, pause_s, self._parts.clock)
                else:
                    is_cancelled = self._cancelled_by is not None
                    await self._note_stop(
                        EndReason.CANCELLED if is_cancelled else EndReason.TIMED_OUT
                    )
                    stops += 1
                    await self._stop(stops)
                found = await self._look()
            group.cancel_scope.cancel()
        return found

    async def _note_running(self, container: Container) -> float:
        """Write down that the container runs; give the uptime at which its time is up."""
        deadline_s = self._task.deadline_uptime_s
        if self._task.state is TaskState.RUNNING and deadline_s is not None:
            log.info("task is adopted", extra=fields(task_id=self._id))
            return deadline_s
        now = self._parts.clock.wall_s()
        started_at = container.started_at or now
        deadline_s = (
            self._parts.clock.uptime_s() - max(0.0, now - started_at) + self._assignment.timeout_s
        )
        limit_s = deadline_s
        await self._written(
            lambda: self._parts.journal.run(self._id, container.container_id, started_at, limit_s)
        )
        await self._reload()
        log.info(
            "task is running",
            extra=fields(task_id=self._id, container=container.container_id[:12]),
        )
        return deadline_s

    async def _wait_for_engine(self) -> None:
        """Wake the watch whenever the engine says that the container has ended."""
        while True:
            try:
                await self._parts.engine.wait(self._name)
            except EngineError as error:
                log.debug("cannot wait for a container: %s", error, extra=fields(task_id=self._id))
            self._wake.notify()
            await self._parts.clock.sleep(_WAIT_AGAIN_S)

    async def _stop(self, attempt: int) -> None:
        try:
            if attempt <= _STOP_ATTEMPTS:
                await self._parts.engine.stop(self._name)
            else:
                log.error("container does not stop; removing it", extra=fields(task_id=self._id))
                await self._parts.engine.remove(self._name)
        except EngineSilent as error:
            await self._engine_is_silent(error)
        except EngineError as error:
            log.warning("cannot stop: %s", error, extra=fields(task_id=self._id))
            await self._parts.clock.sleep(min(attempt, _WAIT_AGAIN_S))

    async def _look(self) -> Container | None:
        """Ask the engine for the container until it answers: a silent engine is no evidence."""
        while True:
            try:
                container = await self._parts.engine.inspect(self._name)
            except EngineError as error:
                await self._engine_is_silent(error)
            else:
                self._parts.workload.clear_trouble(f"engine/{self._id}")
                return container

    async def _engine_is_silent(self, error: EngineError) -> None:
        self._parts.workload.set_trouble(
            f"engine/{self._id}",
            f"task {self._id} is unknown until {self._parts.engine.kind} answers: {error}",
        )
        await self._parts.clock.sleep(_WAIT_AGAIN_S)

    # After it

    async def _last_output(self, container: Container | None) -> str:
        if container is None or container.phase is Phase.CREATED:
            return ""
        try:
            output = await self._parts.engine.last_output(self._name, LAST_LINES)
        except EngineError as error:
            return f"(its output cannot be read: {error})"
        settings = self._parts.settings
        identity = await self._identity()
        known = secrets_to_blank(
            settings.registration_token, identity.api_key, env_file=settings.env_file
        )
        return without_secrets(output, known)

    async def _end(self, end: End, container: Container | None = None) -> None:
        now = self._parts.clock.wall_s()
        reports = await last_reports(self._task, self._parts, end, container)
        await self._written(lambda: self._parts.journal.end(self._id, end, reports, now))
        self._parts.outbox.notify()
        log.info(
            "task has ended",
            extra=fields(task_id=self._id, reason=end.reason.value, exit_code=end.exit_code),
        )

    async def _close(self) -> None:
        """Remove the container, and close the journal's page when every report is out."""
        await self._remove()
        self._cid_file.unlink(missing_ok=True)
        while True:
            seen = self._parts.outbox.count
            now = self._parts.clock.wall_s()
            if await self._written(lambda: self._parts.journal.close(self._id, now)):  # noqa: B023 - called before the next turn
                break
            await self._parts.outbox.after(seen)
        self._parts.outbox.notify()
        log.debug("task is closed", extra=fields(task_id=self._id))

    async def _remove(self) -> None:
        attempts = 0
        while True:
            try:
                await self._parts.engine.remove(self._name)
            except EngineError as error:
                attempts += 1
                log.warning("cannot remove: %s", error, extra=fields(task_id=self._id))
                await self._parts.clock.sleep(backoff.delay_s(attempts))
            else:
                return

    # What the steps share

    @property
    def _assignment(self) -> Assignment:
        if self._task.assignment is None:
            raise AssertionError("only a closed task has lost its assignment")
        return self._task.assignment

    @property
    def _cid_file(self) -> Path:
        return run_folder(self._parts.settings.state_dir) / f"{self._id}.cid"

    @property
    def _env_file(self) -> Path:
        return run_folder(self._parts.settings.state_dir) / f"{self._id}.env"

    async def _note_stop(self, reason: EndReason) -> None:
        now = self._parts.clock.wall_s()
        await self._written(lambda: self._parts.journal.ask_to_stop(self._id, reason, now))
        await self._reload()

    async def _reload(self) -> None:
        task = await self._written(lambda: self._parts.journal.task(self._id))
        if task is not None:
            self._task = task

    async def _written(self, write: Callable[[], Awaitable[T]]) -> T:
        return await written(write, self._parts.workload, self._parts.clock)


def _has_text(path: Path) -> bool:
    """Tell whether a file has something in it: docker makes its cid file before the container."""
    try:
        return path.stat().st_size > 0
    except OSError:
        return False


def _lost(why: str) -> TaskError:
    error = TaskError(why)
    error.reason = EndReason.LOST
    return error


def _cancelled(when: str) -> TaskError:
    error = TaskError(when)
    error.reason = EndReason.CANCELLED
    return error


def take_in_hand(task: Task, parts: Parts) -> TaskRun:
    """Give a task its slot, if it still needs one, at once: the next poll looks at the slots."""
    run = TaskRun(task, parts)
    if task.state is not TaskState.ENDED:
        parts.workload.add(task.task_id, run)
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
        await parts.clock.sleep(backoff.delay_s(attempt))
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
