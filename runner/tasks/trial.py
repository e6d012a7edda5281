"""Whether this host can start containers: after one could not be started, tried without a task.

So a host on which none starts costs one task, however long it stays so.
"""

from __future__ import annotations

import logging

import anyio.to_thread

from runner.engine.architecture import check_architecture
from runner.engine.base import LABEL_RUNNER, ContainerSpec
from runner.engine.probe import try_start
from runner.env_file import read_env_file
from runner.errors import ConfigurationError, EngineError, HostUnusable
from runner.handles import check_free
from runner.settings import Settings
from runner.state_dir import check_writable
from runner.tasks.context import RunnerContext, TaskContext
from runner.timing import file_stamp
from runner.workspace.download import CONTAINER_HOME, TASKS_IN_CONTAINER
from runner.workspace.home import Tidying, check_home

log = logging.getLogger(__name__)


async def may_start(runner: RunnerContext) -> bool:
    """Fetch the image and, after a failed start and a wait, start a container of no task.

    Before that, check the files that a start reads and writes. Return whether a task's container
    may be started; if not, that is a problem of the host.
    """
    problems, clock = runner.problems, runner.clock
    async with runner.trial:
        if clock.uptime_s() < problems.next_start_at_s:
            return False
        try:
            await _try(runner)
        except (EngineError, ConfigurationError, HostUnusable) as error:
            problems.start_failed(str(error), clock.uptime_s())
            return False
    return True


async def _try(runner: RunnerContext) -> None:
    problems, settings = runner.problems, runner.settings
    await runner.image.fetch()
    image = await check_architecture(runner.engine, settings.container_image)
    if problems.START not in problems.sentences:
        return
    tidying = Tidying(file_stamp(runner.clock.wall_s()))
    try:
        await anyio.to_thread.run_sync(_check_files, settings, tidying)
    finally:
        for sentence in tidying.sentences:
            log.error(sentence)
    await try_start(runner.engine, _spec(runner))
    if problems.has_failed(image.image_id, runner.clock.uptime_s()):
        # Its shell can be executed and its own program cannot: only a task can show that.
        raise EngineError(
            f"cannot execute the program of the image {settings.container_image} here; use another "
            "image, for the architecture of this host"
        )
    problems.note_start()


def _check_files(settings: Settings, tidying: Tidying) -> None:
    """Check what is read and written before a task's container is started.

    Raises:
        ConfigurationError: the operator's env file cannot be used.
        HostUnusable: the Victoria home or the state folder cannot be written, or is full.
    """
    read_env_file(settings.env_file)
    check_home(settings.victoria_home, settings.home, tidying, thorough=True)
    folder = settings.victoria_home
    try:
        check_free(folder, settings.min_free_disk)
        folder = settings.state_dir
        check_free(folder, settings.min_free_disk)
        check_writable(folder)
    except OSError as error:
        raise HostUnusable(f"cannot use {folder}: {error.strerror}") from error


async def wait_for_host(task: TaskContext, gives_up_at_s: float) -> None:
    """Wait until containers start here, if one could not be started, but not after that uptime.

    With `--once` there is no wait: the task meets what it meets.
    """
    runner = task.runner
    problems, clock = runner.problems, runner.clock
    if not problems.is_proven:
        # Whether the image's program can be executed is known once the first has ended.
        await runner.slots.wait_for_confirmation(task.task_id)
    while problems.START in problems.sentences and not runner.settings.once:
        left_s = gives_up_at_s - clock.uptime_s()
        if left_s <= 0:
            return
        await clock.sleep(max(0.0, min(left_s, problems.next_start_at_s - clock.uptime_s())))
        await may_start(runner)


def _spec(runner: RunnerContext) -> ContainerSpec:
    """Return how to start a container of no task, with all that a task's has on this host."""
    settings = runner.settings
    return ContainerSpec(
        name=f"victoria-trial-{runner.runner_id}",
        image=settings.container_image,
        arguments=(),
        # What a killed runner leaves of it is an orphan, and is removed.
        labels={LABEL_RUNNER: runner.runner_id},
        volumes={settings.victoria_home: CONTAINER_HOME},
        covered=(TASKS_IN_CONTAINER,),
        limits=settings.limits,
        hardening=settings.hardening,
        run_args=settings.run_args,
    )
