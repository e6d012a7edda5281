"""`python -m runner cleanup`: give back the disk that finished tasks hold.

It reads the journal and never writes it, so that it may be called beside a runner at work.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from runner.engine.base import LABEL_RUNNER, Engine, container_name
from runner.engine.cli import find_engine
from runner.errors import (
    EXIT_OK,
    EXIT_TRY_AGAIN,
    ConfigurationError,
    EngineError,
    NoContainerRuntime,
)
from runner.journal.journal import JOURNAL_NAME, Journal
from runner.node import runtime_to_use
from runner.settings import Settings
from runner.state_dir import RUNNER_ID_NAME, known_runner_id
from runner.workspace.folders import TaskFolders

_DAY_S = 24 * 3600


@dataclass(frozen=True)
class Scope:
    """What to remove: task folders untouched for so many days; nothing at all in a rehearsal."""

    older_than_days: float
    dry_run: bool


async def clean_up(settings: Settings, scope: Scope, tell: Callable[[str], None]) -> int:
    """Remove the containers and folders of tasks that are over; give the exit code.

    Raises:
        ConfigurationError: this is no runner's state folder, so that nobody knows what is in use.
        JournalError: the journal cannot be read.
    """
    _check_state_dir(settings.state_dir)
    engine: Engine | None
    runner_id = known_runner_id(settings.state_dir)
    if runner_id is None:
        raise ConfigurationError(
            f"cannot read {settings.state_dir / RUNNER_ID_NAME}, which says whose the containers "
            "are: it is damaged; start the runner once, which makes a new one"
        )
    try:
        engine = find_engine(await runtime_to_use(settings))
        labelled = await engine.labelled(LABEL_RUNNER, runner_id)
    except (EngineError, NoContainerRuntime) as error:
        tell(f"containers are left alone: {error}")
        engine, labelled = None, []
    # Asked after the engine: whatever container it named was in the journal before it was made.
    open_ids = await _open_task_ids(settings)
    in_use = {container_name(task_id) for task_id in open_ids}
    went_well = engine is not None
    for name in sorted(set(labelled) - in_use):
        went_well &= engine is None or await _remove_container(engine, name, scope, tell)
    kept = open_ids | {name.removeprefix(container_name("")) for name in labelled}
    went_well &= _remove_folders(settings.victoria_home, kept, scope, tell)
    return EXIT_OK if went_well else EXIT_TRY_AGAIN


def _check_state_dir(state_dir: Path) -> None:
    """See that a runner has been at work with it: another one would say that nothing is in use."""
    for name in (RUNNER_ID_NAME, JOURNAL_NAME):
        try:
            (state_dir / name).open("rb").close()
        except OSError as error:
            raise ConfigurationError(
                f"cannot read {state_dir / name}, which says what is in use: "
                f"{(error.strerror or str(error)).lower()}; give the --state-dir of the runner, "
                "and run as its user"
            ) from error


async def _open_task_ids(settings: Settings) -> set[str]:
    journal = Journal(settings.state_dir / JOURNAL_NAME, read_only=True)
    try:
        return {task.task_id for task in await journal.open_tasks()}
    finally:
        journal.close_file()


async def _remove_container(
    engine: Engine, name: str, scope: Scope, tell: Callable[[str], None]
) -> bool:
    if scope.dry_run:
        tell(f"would remove container {name}")
        return True
    try:
        await engine.remove_stopped(name)
    except EngineError as error:
        tell(f"cannot remove container {name}: {error}")
        return False
    tell(f"removed container {name}")
    return True


def _remove_folders(home: Path, kept: set[str], scope: Scope, tell: Callable[[str], None]) -> bool:
    try:
        folders = TaskFolders(home)
    except FileNotFoundError:
        return True
    except OSError as error:
        tell(f"cannot clean up {home / 'tasks'}: {error.strerror}")
        return False
    with closing(folders):
        results = [
            _remove_folder(folders, task_id, scope, tell)
            for task_id in folders.task_ids()
            if task_id not in kept
        ]
    return all(results)


def _remove_folder(
    folders: TaskFolders, task_id: str, scope: Scope, tell: Callable[[str], None]
) -> bool:
    path = folders.path / task_id
    try:
        size, newest = folders.extent_of(task_id)
        if newest > time.time() - scope.older_than_days * _DAY_S:
            return True
        if not scope.dry_run:
            folders.remove(task_id)
    except OSError as error:
        tell(f"cannot remove {path}: {error.strerror}")
        return False
    tell(f"{'would remove' if scope.dry_run else 'removed'} {path} ({size >> 20} MiB)")
    return True
