"""`python -m runner cleanup`: remove old images, and containers and folders of finished tasks.

It reads the journal and never writes it, so a runner may be active meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from runner.engine.base import LABEL_RUNNER, ContainerSpec, Engine, container_name
from runner.engine.cli import find_engine
from runner.engine.images import old_images
from runner.engine.script import run_script, unique_name
from runner.errors import (
    EXIT_OK,
    EXIT_TRY_AGAIN,
    ConfigurationError,
    EngineError,
    NoContainerRuntime,
)
from runner.journal.journal import JOURNAL_NAME, Journal
from runner.log import printable
from runner.node import runtime_to_use
from runner.settings import Settings
from runner.state_dir import RUNNER_ID_NAME, known_runner_id
from runner.workspace.folders import TaskFolders
from runner.workspace.home import TASKS

_DAY_S = 24 * 3600
_FOLDERS_AT_ONCE = 100
_REMOVAL_TIMEOUT_S = 600.0
_TASKS_INSIDE = "/victoria-tasks"
_SCRIPT = """\
cd "$1" && [ -d "$2" ] || { echo "the folder of tasks is another one now"; exit 3; }
shift 2
exec rm -rf -- "$@"
"""
"""rm follows no link."""


@dataclass(frozen=True)
class Scope:
    """What to remove: folders of tasks that finished so many days ago; a dry run removes nothing.

    A task that the journal no longer knows finished when something in its folder changed last.
    """

    older_than_days: float
    dry_run: bool


async def clean_up(settings: Settings, scope: Scope, echo: Callable[[str], None]) -> int:
    """Remove the containers and folders of finished tasks; return the exit code.

    Raises:
        ConfigurationError: no runner has used this state folder, so what is in use is unknown.
        JournalError: the journal cannot be read.
    """
    lines: list[str] = []

    def print_line(line: str) -> None:
        lines.append(line)
        echo(line)

    exit_code = await _clean_up(settings, scope, print_line)
    if not lines:
        echo(
            "nothing to remove: no container of a finished task, no old image, and no folder of a "
            f"task that finished more than {scope.older_than_days:g} days ago"
        )
    return exit_code


async def _clean_up(settings: Settings, scope: Scope, echo: Callable[[str], None]) -> int:
    _check_state_dir(settings.state_dir)
    runner_id = known_runner_id(settings.state_dir)
    if runner_id is None:
        raise ConfigurationError(
            f"cannot read {settings.state_dir / RUNNER_ID_NAME}, which identifies this "
            "runner's containers: it is damaged; start the runner once, which makes a new one"
        )
    engine: Engine | None
    try:
        engine = find_engine(await runtime_to_use(settings), inherited=settings.engine_env)
        labelled = await engine.labelled(LABEL_RUNNER, runner_id)
    except (EngineError, NoContainerRuntime) as error:
        echo(f"containers are left alone: {error}")
        engine, labelled = None, []
    # Only after the engine's list: a task is in the journal before its container is created, so
    # no container of a task that has just begun is taken for a leftover.
    open_ids, closed_at = await _tasks_in_journal(settings)
    in_use = {container_name(task_id) for task_id in open_ids}
    succeeded = engine is not None
    if engine is not None:
        for name in sorted(set(labelled) - in_use):
            succeeded &= await _remove_container(engine, name, runner_id, scope, echo)
        succeeded &= await _remove_images(engine, settings, scope, echo)
    excluded_ids = open_ids | {name.removeprefix(container_name("")) for name in labelled}
    try:
        folders = TaskFolders(settings.victoria_home)
    except FileNotFoundError:
        return EXIT_OK if succeeded else EXIT_TRY_AGAIN
    except OSError as error:
        echo(f"cannot clean up {settings.victoria_home / TASKS}: {error.strerror}")
        return EXIT_TRY_AGAIN
    with closing(folders):
        forbidden: list[_OldFolder] = []
        for task_id in folders.task_ids():
            if task_id not in excluded_ids:
                succeeded &= _remove_folder(
                    folders, task_id, closed_at.get(task_id), scope, echo, forbidden
                )
        for start in range(0, len(forbidden), _FOLDERS_AT_ONCE):
            batch = forbidden[start : start + _FOLDERS_AT_ONCE]
            succeeded &= await _remove_by_engine(engine, settings, folders, batch, echo)
    return EXIT_OK if succeeded else EXIT_TRY_AGAIN


def _check_state_dir(state_dir: Path) -> None:
    """Check that a runner has used this folder: any other would claim that nothing is in use."""
    for name in (RUNNER_ID_NAME, JOURNAL_NAME):
        try:
            (state_dir / name).open("rb").close()
        except OSError as error:
            raise ConfigurationError(
                f"cannot read {state_dir / name}, which tells what is in use: "
                f"{(error.strerror or str(error)).lower()}; give the --state-dir of the runner, "
                "and run as its user"
            ) from error


async def _tasks_in_journal(settings: Settings) -> tuple[set[str], dict[str, float]]:
    """Return the open tasks, and when each of the others was closed."""
    journal = Journal(settings.state_dir / JOURNAL_NAME, read_only=True)
    try:
        return {task.task_id for task in await journal.open_tasks()}, await journal.closed_at()
    finally:
        journal.close_file()


async def _remove_container(
    engine: Engine, name: str, runner_id: str, scope: Scope, echo: Callable[[str], None]
) -> bool:
    if scope.dry_run:
        echo(f"would remove container {name}")
        return True
    try:
        container = await engine.inspect(name)
        if container is None or container.labels.get(LABEL_RUNNER) != runner_id:
            return True  # it was removed meanwhile
        await engine.remove_stopped(container.container_id)
    except EngineError as error:
        echo(f"cannot remove container {name}: {error}")
        return False
    echo(f"removed container {name}")
    return True


async def _remove_images(
    engine: Engine, settings: Settings, scope: Scope, echo: Callable[[str], None]
) -> bool:
    """Remove the images that a tag has left behind, once this runner had run them."""
    journal = Journal(settings.state_dir / JOURNAL_NAME, read_only=True)
    try:
        ran = await journal.images(settings.container_image, engine.kind)
    finally:
        journal.close_file()
    try:
        for image_id in await old_images(engine, ran):
            if scope.dry_run:
                echo(f"would remove image {image_id[:12]}, unless a container uses it")
            elif await engine.remove_image(image_id):
                echo(f"removed image {image_id[:12]}")
    except EngineError as error:
        echo(f"cannot remove old images: {error}")
        return False
    return True


@dataclass(frozen=True)
class _OldFolder:
    """A task's folder that is to be removed, and its size for people."""

    task_id: str
    path: Path
    size: str


def _remove_folder(  # noqa: PLR0913, PLR0917 - what to remove, when, and how to say so
    folders: TaskFolders,
    task_id: str,
    closed_at: float | None,
    scope: Scope,
    echo: Callable[[str], None],
    forbidden: list[_OldFolder],
) -> bool:
    """Remove a task's folder if it is old; add it to `forbidden` if that takes another user."""
    path, size = folders.path / task_id, "of unknown size"
    try:
        extent = folders.extent_of(task_id)
        # What is in the folder has the times that the task gave it.
        finished_at = extent.newest if closed_at is None else closed_at
        if finished_at > time.time() - scope.older_than_days * _DAY_S:
            return True
        size = f"{'' if extent.is_whole else 'at least '}{extent.size >> 20} MiB"
        if not scope.dry_run:
            folders.remove(task_id)
    except PermissionError:
        forbidden.append(_OldFolder(task_id, path, size))
        return True
    except OSError as error:
        echo(f"cannot remove {path}: {error.strerror or error}")
        return False
    echo(f"{'would remove' if scope.dry_run else 'removed'} {path} ({size})")
    return True


async def _remove_by_engine(
    engine: Engine | None,
    settings: Settings,
    folders: TaskFolders,
    batch: Sequence[_OldFolder],
    echo: Callable[[str], None],
) -> bool:
    """Remove folders with what belongs to another user, by a container as root of the engine."""
    reason = "it has files of another user, and no engine answers; remove it as root"
    if engine is not None:
        paths = [path for folder in batch for path in folders.paths_of(folder.task_id)]
        try:
            reason = await _run_removal(engine, settings, folders, paths)
        except EngineError as error:
            reason = str(error)
        except OSError as error:
            reason = error.strerror or str(error)
    succeeded = True
    for folder in batch:
        if folders.paths_of(folder.task_id):
            echo(printable(f"cannot remove {folder.path}: {reason}"))
            succeeded = False
        else:
            echo(f"removed {folder.path} ({folder.size})")
    return succeeded


async def _run_removal(
    engine: Engine, settings: Settings, folders: TaskFolders, paths: Sequence[str]
) -> str:
    """Remove paths in a container that sees only the folder of tasks, so links lead nowhere else.

    It removes nothing unless that folder is the one that is open here. Return its last line.

    Raises:
        EngineError: the container cannot be started, or does not end.
        OSError: the mark of the folder cannot be made.
    """
    spec = ContainerSpec(
        name=unique_name("victoria-cleanup"),
        image=settings.container_image,
        arguments=(),
        volumes={folders.path.parent.resolve() / TASKS: _TASKS_INSIDE},
        run_args=("--network", "none", "--user", "0:0"),
    )
    with folders.marked() as mark:
        arguments = (_TASKS_INSIDE, mark, *paths)
        result = await run_script(engine, spec, _SCRIPT, arguments, _REMOVAL_TIMEOUT_S)
    lines = result.output.strip().splitlines() or [f"exit code {result.exit_code}"]
    return f"by {engine.kind}: {lines[-1]}"
