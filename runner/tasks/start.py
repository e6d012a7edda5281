"""The start of a task's container: once, whatever the engine says, and whoever was killed.

An engine that refuses or is silent may have started it all the same: it is looked for, each time,
before anything is believed.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from runner.engine.base import (
    KEY_VARIABLE,
    LABEL_BOOT,
    LABEL_NODE,
    LABEL_ORCHESTRATOR,
    LABEL_RUNNER,
    LABEL_TASK,
    LABEL_TIMEOUT,
    SECRETS_VARIABLE,
    Container,
    ContainerSpec,
    Phase,
)
from runner.engine.inspect import just_started
from runner.errors import (
    ConfigurationError,
    EngineError,
    EngineSilent,
    ImageMissing,
    NameInUse,
    Unstartable,
)
from runner.log import fields
from runner.model import EndReason, Identity, TaskState
from runner.redaction import is_redactable, variables_in
from runner.settings import check_env_file
from runner.state_dir import cid_file, env_file, watcher_file
from runner.tasks.context import TaskContext, cancelled, lost
from runner.tasks.prepare import fetch_image
from runner.workspace.download import CONTAINER_HOME, files_folder_in_container

log = logging.getLogger(__name__)


async def recover_container(task: TaskContext) -> Container | None:
    """Look for the container of a task that an earlier runner may have started.

    None means for a starting task that it never ran, for a running one that it is lost.

    Raises:
        TaskError: it is lost.
    """
    container = await task.inspect()
    is_restarted = task.record.boot_id != task.runner.clock.boot_id
    if is_restarted and container is not None and container.phase is Phase.RUNNING:
        raise lost("the host restarted, and something started its container again")
    if task.record.state is TaskState.RUNNING:
        return container
    if container is None and _container_was_created(task):
        # By a call that outlived the last runner just now, or long ago.
        container = await task.inspect()
        if container is None:
            raise lost("its container was removed before it was seen to run")
    if container is None or container.phase is not Phase.CREATED:
        return container
    if is_restarted:
        raise lost("the host restarted while its container was being started")
    return await _find_started(task)


async def recover_cancelled(task: TaskContext) -> Container | None:
    """Say what there is to stop after the task was cancelled before its container was seen.

    Raises:
        TaskError: nothing; it is cancelled.
    """
    await task.note_stop(EndReason.CANCELLED)
    if task.record.state is TaskState.ACCEPTED:
        raise cancelled("before it started")
    container = await task.inspect()
    if container is None or container.phase is Phase.CREATED:
        raise cancelled("before it started")
    return container


async def start(task: TaskContext) -> Container:
    """Have the engine start the container, or find that it did so before.

    Raises:
        Unstartable: it cannot be started.
        TaskError: it is lost.
    """
    identity = await task.identity()
    patience_ends_s = task.runner.clock.uptime_s() + task.runner.timings.pull_timeout_s
    has_fetched_again, has_met_name = False, False
    while True:
        answer = await _ask(task, identity)
        if isinstance(answer, Container):
            task.runner.problems.note_start()
            return answer
        # A refusal is no evidence either: were a container that runs removed here, and we
        # killed before the end is written down, then the next runner would run it again.
        container = await _find_started(task)
        if container is not None:
            return container
        if _container_was_created(task):
            raise lost("its container was removed before it was seen to run")
        if isinstance(answer, ImageMissing) and not has_fetched_again:
            # It was here a moment ago: somebody made room.
            has_fetched_again = True
            await fetch_image(task)
            continue
        does_pass = isinstance(answer, EngineSilent | NameInUse)
        if not does_pass or task.runner.clock.uptime_s() >= patience_ends_s:
            # The next task would meet it as well.
            task.runner.problems.start_failed(str(answer), task.runner.clock.uptime_s())
            raise Unstartable(str(answer)) from answer
        if isinstance(answer, NameInUse) and has_met_name:
            await _remove_name_holder(task, answer)
        has_met_name = isinstance(answer, NameInUse)


async def _ask(task: TaskContext, identity: Identity) -> Container | EngineError:
    """Ask the engine once; give the container, or what the engine said instead."""
    state_dir = task.runner.settings.state_dir
    cid_file(state_dir, task.task_id).unlink(missing_ok=True)
    _write_env_file(task, identity)
    try:
        container_id = await task.engine.run(_spec(task, identity))
    except EngineError as error:
        if isinstance(error, EngineSilent):
            await task.wait_for_engine(error, "run")
        else:
            task.engine_answers("run")
        return error
    finally:
        env_file(state_dir, task.task_id).unlink(missing_ok=True)
    task.engine_answers("run")
    return just_started(container_id, task.container_name, task.runner.clock.wall_s())


async def _remove_name_holder(task: TaskContext, refusal: NameInUse) -> None:
    """Remove what has the container's name and yet cannot be seen: half a container."""
    log.debug("%s", refusal, extra=fields(task_id=task.task_id))
    try:
        await task.engine.remove(task.container_name)
    except EngineError as error:
        log.warning("cannot remove: %s", error, extra=fields(task_id=task.task_id))
    await task.wait_for_engine(refusal)


async def _find_started(task: TaskContext) -> Container | None:
    """Look for the container once more; one that never ran is removed, and so is None."""
    while True:
        container = await task.inspect()
        if container is None or container.phase is not Phase.CREATED:
            return container
        cid_file(task.runner.settings.state_dir, task.task_id).unlink(missing_ok=True)
        try:
            # Only one that does not run can be removed so: a start under way wins.
            await task.engine.remove_stopped(task.container_name)
        except EngineError as error:
            await task.wait_for_engine(error)


def _container_was_created(task: TaskContext) -> bool:
    """Tell whether the engine made a container: docker makes its cid file before that, empty."""
    try:
        return cid_file(task.runner.settings.state_dir, task.task_id).stat().st_size > 0
    except OSError:
        return False


def _spec(task: TaskContext, identity: Identity) -> ContainerSpec:
    settings, assignment = task.runner.settings, task.assignment
    env_files = (settings.env_file, env_file(settings.state_dir, task.task_id))
    return ContainerSpec(
        name=task.container_name,
        image=settings.container_image,
        arguments=("--accept-license", "--task", assignment.prompt),
        labels={
            LABEL_TASK: task.task_id,
            LABEL_NODE: identity.node_id,
            LABEL_RUNNER: task.runner.runner_id,
            LABEL_ORCHESTRATOR: task.record.orchestrator_url,
            LABEL_TIMEOUT: f"{assignment.timeout_s:g}",
            LABEL_BOOT: task.runner.clock.boot_id,
        },
        env_files=tuple(path for path in env_files if path is not None),
        volumes={settings.victoria_home: CONTAINER_HOME},
        timeout_s=assignment.timeout_s + task.runner.timings.engine_timeout_grace_s,
        limits=settings.limits,
        run_args=settings.run_args,
        cid_file=cid_file(settings.state_dir, task.task_id),
        watcher_file=watcher_file(settings.state_dir, task.task_id),
    )


def _write_env_file(task: TaskContext, identity: Identity) -> None:
    """Write what the container is told, for the engine to read once."""
    variables = {
        "ORCHESTRATOR_URL": task.assignment.orchestrator_url,
        "JOB_ID": task.task_id,
        "TASK_ID": task.task_id,
        KEY_VARIABLE: identity.api_key.reveal(),
    }
    if task.assignment.files:
        variables["TASK_FILES_DIR"] = files_folder_in_container(task.task_id)
    # Those that are so short are blanked nowhere; none at all leaves the variable out.
    secrets = [
        name for name, value in variables_in(task.runner.settings.env_file) if is_redactable(value)
    ]
    if secrets:
        variables[SECRETS_VARIABLE] = " ".join(secrets)
    text = "".join(f"{name}={value}\n" for name, value in variables.items())
    settings = task.runner.settings
    path: Path = env_file(settings.state_dir, task.task_id)
    try:
        if settings.env_file is not None:
            check_env_file(settings.env_file)
        path.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(path, flags, mode=0o600), "w") as file:
            file.write(text)
    except (OSError, ConfigurationError) as error:
        raise Unstartable(f"cannot prepare the container's variables: {error}") from error
