"""Start a task's container exactly once, and recover one that an earlier runner started.

An engine that fails or does not answer may have started the container all the same: so it is
inspected each time before anything is believed.
"""

from __future__ import annotations

import logging
import os
from dataclasses import replace

from runner.api.address import url_to_hand_on
from runner.engine.base import (
    KEY_VARIABLE,
    LABEL_BOOT,
    LABEL_IMAGE,
    LABEL_KEY,
    LABEL_NODE,
    LABEL_ORCHESTRATOR,
    LABEL_RUNNER,
    LABEL_TASK,
    LABEL_TIMEOUT,
    OWN_KEY,
    Container,
    ContainerSpec,
    Phase,
)
from runner.env_file import engine_format, read_env_file
from runner.errors import (
    ConfigurationError,
    EngineError,
    EngineSilent,
    HomeUnusable,
    HostUnusable,
    ImageMissing,
    NameInUse,
    TaskError,
    Unstartable,
)
from runner.handles import open_below, write_below
from runner.log import fields
from runner.model import EndReason, Identity, PromptAs, TaskState
from runner.redaction import SECRETS_VARIABLE, is_redactable
from runner.settings import Settings
from runner.state_dir import cid_file, env_file
from runner.tasks.context import TaskContext
from runner.tasks.prepare import fetch_image
from runner.timing import retry, watch_call
from runner.workspace.download import CONTAINER_HOME, TASKS_IN_CONTAINER, folder_in_container
from runner.workspace.home import ARTIFACTS, home_of_task, task_folder

log = logging.getLogger(__name__)
_PROMPT_NAME = "prompt.txt"
_MOST_REFUSED_URLS = 100
"""So many are logged: an orchestrator could name a new one with each task."""


async def recover_container(task: TaskContext) -> Container | None:
    """Return the container of a task that an earlier runner may have started.

    None: the container of a starting task never ran; that of a running task is gone.

    Raises:
        TaskError: the task is lost.
    """
    container = await task.inspect()
    is_restarted = task.record.boot_id != task.runner.clock.boot_id
    if is_restarted and container is not None and container.phase is Phase.RUNNING:
        raise TaskError(
            "the host restarted, and something started its container again", EndReason.LOST
        )
    if task.record.state is TaskState.RUNNING:
        return container
    if container is None and _container_was_created(task):
        # A call that outlived the last runner may have created it since.
        container = await task.inspect()
        if container is None:
            raise TaskError("its container was removed before it was seen to run", EndReason.LOST)
    if container is None or container.phase is not Phase.CREATED:
        return container
    if is_restarted:
        raise TaskError("the host restarted while its container was being started", EndReason.LOST)
    return await _inspect_started(task)


async def recover_cancelled(task: TaskContext) -> Container | None:
    """Return the container to stop of a task that was cancelled while it was being started.

    Raises:
        TaskError: there is none; the task is cancelled.
    """
    await task.note_stop(EndReason.CANCELLED)
    container = None
    if task.record.state is not TaskState.ACCEPTED:
        container = await task.inspect()
    if container is None or container.phase is Phase.CREATED:
        raise TaskError("before it started", EndReason.CANCELLED)
    return container


async def start(task: TaskContext, *, may_be_half_made: bool) -> Container:
    """Start the container and return it, or the one that an earlier attempt started.

    An engine that does not answer is retried for `pull_timeout_s`. `may_be_half_made`: a call of an
    earlier runner may have been killed before it had made the whole of the container.

    Raises:
        Unstartable: it cannot be started.
        TaskError: it is lost.
    """
    identity = await task.identity()
    gives_up_at_s = task.runner.clock.uptime_s() + task.runner.timings.pull_timeout_s
    has_fetched_again, name_was_in_use = False, False
    while True:
        result = await _run(task, identity)
        if isinstance(result, Container):
            task.runner.problems.note_start()
            return result
        # A failure proves nothing: were a running container removed here and this runner killed
        # before the outcome is written down, the next runner would run the task again.
        container = await _inspect_started(task)
        if container is not None:
            return container
        if _container_was_created(task):
            raise TaskError("its container was removed before it was seen to run", EndReason.LOST)
        if isinstance(result, ImageMissing) and not has_fetched_again:
            # It was here a moment ago: somebody pruned images.
            has_fetched_again = True
            await fetch_image(task)
            continue
        if isinstance(result, NameInUse):
            await _check_name_holder(task)
        may_be_half_made |= isinstance(result, EngineSilent)
        may_pass = isinstance(result, EngineSilent | NameInUse)
        if not may_pass or task.runner.clock.uptime_s() >= gives_up_at_s:
            raise HostUnusable(str(result)) from result
        if isinstance(result, NameInUse) and name_was_in_use:
            if not may_be_half_made:
                raise Unstartable(
                    f"{result}, by something that {task.engine.kind} does not show and this runner "
                    "did not make; remove it, or run the task again under another id"
                ) from result
            await _remove_name_holder(task, result)
        name_was_in_use = isinstance(result, NameInUse)
        await task.reload()


async def _run(task: TaskContext, identity: Identity) -> Container | EngineError:
    """Call `run` once and return the container, or the engine's error."""
    state_dir = task.runner.settings.state_dir
    _write_env_file(task, identity)
    try:
        spec, timings = _spec(task, identity), task.runner.timings
        container_id = await watch_call(
            lambda: task.engine.run(spec),
            lambda elapsed_s: _log_slow_start(task, elapsed_s),
            timings.slow_start_interval_s,
            task.runner.clock,
        )
    except EngineError as error:
        if isinstance(error, EngineSilent):
            await task.wait_for_engine(error, "run")
        else:
            task.engine_answers("run")
        return error
    finally:
        env_file(state_dir, task.task_id).unlink(missing_ok=True)
    task.engine_answers("run")
    now = task.runner.clock.wall_s()
    return Container(container_id, task.container_name, Phase.RUNNING, started_at=now)


def _log_slow_start(task: TaskContext, elapsed_s: float) -> None:
    log.warning(
        "%s is still starting the container; the disk may be slow, or a large Victoria home is "
        "being relabelled for SELinux",
        task.engine.kind,
        extra=fields(task_id=task.task_id, elapsed_s=round(elapsed_s)),
    )


async def _check_name_holder(task: TaskContext) -> None:
    """Check that the container's name is not held by a container of somebody else.

    Raises:
        Unstartable: it is; that container is neither read nor touched.
    """
    holder = await retry(
        lambda: task.engine.inspect(task.container_name), EngineError, task.engine_retry()
    )
    if holder is not None and not task.owns(holder):
        raise Unstartable(
            f"cannot start the container: the name {task.container_name} belongs to a container "
            "that this runner did not start for this task; remove or rename that one, or run the "
            "task again under another id"
        )


async def _remove_name_holder(task: TaskContext, refusal: NameInUse) -> None:
    """Remove half a container, which holds the name and cannot be inspected."""
    log.debug("%s", refusal, extra=fields(task_id=task.task_id))
    try:
        await task.engine.remove(task.container_name)
    except EngineError as error:
        task.removals.note(error, task.runner.timings.engine_retry_s)
    await task.wait_for_engine(refusal)


async def _inspect_started(task: TaskContext) -> Container | None:
    """Return the container as it is now; one that never ran is removed: None."""
    while True:
        container = await task.inspect()
        if container is None or container.phase is not Phase.CREATED:
            return container
        cid_file(task.runner.settings.state_dir, task.task_id).unlink(missing_ok=True)
        try:
            # Fails for a running one: a start that is still under way wins.
            await task.engine.remove_stopped(container.container_id)
        except EngineError as error:
            await task.wait_for_engine(error)


def _container_was_created(task: TaskContext) -> bool:
    """Return whether the engine created a container; docker's cid file is empty before that."""
    try:
        return cid_file(task.runner.settings.state_dir, task.task_id).stat().st_size > 0
    except OSError:
        return False


def common_spec(settings: Settings, task_id: str, *, with_files: bool) -> ContainerSpec:
    """Return what the container of any task has, and that of `doctor --run`: mounts and rights."""
    own = task_folder(settings.victoria_home, task_id)
    own_inside = folder_in_container(task_id)
    return ContainerSpec(
        name="",
        image=settings.container_image,
        arguments=(),
        # Of `tasks` a container sees its own folder alone, whichever home it has.
        volumes={
            home_of_task(settings.victoria_home, task_id): CONTAINER_HOME,
            own: own_inside,
        },
        read_only={own / "files": f"{own_inside}/files"} if with_files else {},
        covered=(TASKS_IN_CONTAINER,),
        limits=settings.limits,
        hardening=settings.hardening,
        run_args=settings.run_args,
    )


def _spec(task: TaskContext, identity: Identity) -> ContainerSpec:
    settings, assignment = task.runner.settings, task.assignment
    prompt: tuple[str, ...] = ()
    if settings.prompt_as is PromptAs.ARGUMENT:
        # As an argument of its own, what begins with a dash would be taken for an option.
        is_like_option = assignment.prompt.startswith("-")
        task_option = f"--task={assignment.prompt}"
        prompt = (task_option,) if is_like_option else ("--task", assignment.prompt)
    return replace(
        common_spec(settings, task.task_id, with_files=bool(assignment.files)),
        name=task.container_name,
        arguments=("--accept-license", *prompt),
        labels={
            LABEL_TASK: task.task_id,
            LABEL_NODE: identity.node_id,
            LABEL_RUNNER: task.runner.runner_id,
            LABEL_ORCHESTRATOR: task.record.orchestrator_url,
            LABEL_TIMEOUT: f"{assignment.timeout_s:g}",
            LABEL_BOOT: task.runner.clock.boot_id,
            LABEL_IMAGE: settings.container_image,
            **({} if assignment.task_key is None else {LABEL_KEY: OWN_KEY}),
        },
        env_files=(env_file(settings.state_dir, task.task_id),),
        timeout_s=assignment.timeout_s + task.runner.timings.engine_timeout_grace_s,
        cid_file=cid_file(settings.state_dir, task.task_id),
    )


def _url_for_reports(task: TaskContext) -> str:
    """Return the orchestrator's URL for the container, which sends its key there."""
    settings, named = task.runner.settings, task.assignment.orchestrator_url
    own = settings.orchestrator_url
    url = url_to_hand_on(named, own, trusts_others=settings.trust_assignment_url)
    warned = task.runner.refused_urls
    if url != named.rstrip("/") and named not in warned and len(warned) < _MOST_REFUSED_URLS:
        warned.add(named)
        log.warning(
            "an assignment names an orchestrator_url that is less safe than --orchestrator-url, or "
            "at another origin: containers get --orchestrator-url; set the orchestrator's public "
            "URL to that, or give --trust-assignment-url for another https origin",
            extra=fields(task_id=task.task_id, named=named[:200], used=own),
        )
    return url


def _write_prompt(task: TaskContext) -> None:
    """Write the prompt to a file in the task's folder.

    Raises:
        HomeUnusable: it cannot be written.
    """
    home = task.runner.settings.victoria_home
    try:
        folder = open_below(home, ("tasks", task.task_id), make=True)
        try:
            content = task.assignment.prompt.encode()
            write_below(folder, _PROMPT_NAME, content, os.fstat(folder))
        finally:
            os.close(folder)
    except OSError as error:
        raise HomeUnusable(f"cannot write the prompt's file: {error.strerror}") from error


def _write_env_file(task: TaskContext, identity: Identity) -> None:
    """Write the container's variables to a file that exists only while the engine starts it.

    Raises:
        HostUnusable: it cannot be written, or the operator's own env file not be used.
    """
    settings = task.runner.settings
    key = task.assignment.task_key
    if key is None:
        task.runner.node.note_task_without_key()
        key = identity.api_key
    variables = {
        "ORCHESTRATOR_URL": _url_for_reports(task),
        "JOB_ID": task.task_id,
        "TASK_ID": task.task_id,
        KEY_VARIABLE: key.reveal(),
    }
    variables["TASK_ARTIFACTS_DIR"] = f"{folder_in_container(task.task_id)}/{ARTIFACTS}"
    if task.assignment.files:
        variables["TASK_FILES_DIR"] = f"{folder_in_container(task.task_id)}/files"
    if settings.prompt_as is PromptAs.FILE:
        variables["TASK_PROMPT_FILE"] = f"{folder_in_container(task.task_id)}/{_PROMPT_NAME}"
        _write_prompt(task)
    path = env_file(settings.state_dir, task.task_id)
    try:
        operators = read_env_file(settings.env_file).variables
        # Shorter values are redacted nowhere.
        secrets = [
            name
            for name, value in operators.items()
            if name not in variables and is_redactable(value)
        ]
        if secrets:
            variables[SECRETS_VARIABLE] = " ".join(secrets)
        text = engine_format({**operators, **variables})
        for leftover in (path, cid_file(settings.state_dir, task.task_id)):
            leftover.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(path, flags, mode=0o600), "w", encoding="utf-8") as file:
            file.write(text)
    except (OSError, ConfigurationError) as error:
        raise HostUnusable(f"cannot prepare the container's variables: {error}") from error
