"""Whether this host can start containers: after one could not be started, tried without a task.

So a host on which none starts costs one task, however long it stays so.
"""

from __future__ import annotations

from runner.engine.architecture import check_architecture
from runner.engine.base import LABEL_RUNNER, ContainerSpec
from runner.engine.probe import try_start
from runner.errors import EngineError
from runner.tasks.context import RunnerContext, TaskContext
from runner.workspace.download import CONTAINER_HOME, TASKS_IN_CONTAINER


async def may_start(runner: RunnerContext) -> bool:
    """Fetch the image and, after a failed start and a wait, start a container of no task.

    Return whether a task's may be started; if not, that is a problem of the host.
    """
    problems, clock = runner.problems, runner.clock
    async with runner.trial:
        if clock.uptime_s() < problems.next_start_at_s:
            return False
        try:
            await _try(runner)
        except EngineError as error:
            problems.start_failed(str(error), clock.uptime_s())
            return False
    return True


async def _try(runner: RunnerContext) -> None:
    problems, settings = runner.problems, runner.settings
    await runner.image.fetch()
    image = await check_architecture(runner.engine, settings.container_image)
    if problems.START not in problems.sentences:
        return
    await try_start(runner.engine, _spec(runner))
    if problems.has_failed(image.image_id, runner.clock.uptime_s()):
        # Its shell can be executed and its own program cannot: only a task can show that.
        raise EngineError(
            f"cannot execute the program of the image {settings.container_image} here; use another "
            "image, for the architecture of this host"
        )
    problems.note_start()


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
