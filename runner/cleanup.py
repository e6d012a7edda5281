"""`python -m runner cleanup`: give back the disk that finished tasks hold.

It reads the journal and never writes it, so that it may be called beside a runner at work.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from runner.assignment import is_task_id
from runner.engine import Engine, find_engine
from runner.errors import EXIT_OK, EXIT_TRY_AGAIN, EngineError, NoContainerRuntime
from runner.journal import JOURNAL_NAME, Journal
from runner.marks import LABEL_RUNNER, container_name
from runner.settings import Settings

_DAY_S = 24 * 3600


@dataclass(frozen=True)
class Extent:
    """What to remove: task folders untouched for so many days; nothing at all in a rehearsal."""

    older_than_days: float
    is_rehearsal: bool


async def clean_up(settings: Settings, extent: Extent, tell: Callable[[str], None]) -> int:
    """Remove the containers and folders of tasks that are over; give the exit code."""
    engine: Engine | None
    try:
        engine = find_engine(settings.container_runtime)
        labelled = await _labelled(engine, settings)
    except (EngineError, NoContainerRuntime) as error:
        tell(f"containers are left alone: {error}")
        engine, labelled = None, []
    # Asked after the engine: whatever container it named was in the journal before it was made.
    open_ids = await _open_task_ids(settings)
    in_use = {container_name(task_id) for task_id in open_ids}
    went_well = engine is not None
    for name in sorted(set(labelled) - in_use):
        went_well &= engine is None or await _remove_container(engine, name, extent, tell)
    kept = open_ids | {name.removeprefix(container_name("")) for name in labelled}
    went_well &= _remove_folders(settings.victoria_home / "tasks", kept, extent, tell)
    return EXIT_OK if went_well else EXIT_TRY_AGAIN


async def _labelled(engine: Engine, settings: Settings) -> list[str]:
    path = settings.state_dir / "runner-id"
    if not path.is_file():
        return []
    return await engine.labelled(LABEL_RUNNER, path.read_text(encoding="ascii").strip())


async def _open_task_ids(settings: Settings) -> set[str]:
    path = settings.state_dir / JOURNAL_NAME
    if not path.exists():
        return set()
    journal = Journal(path, read_only=True)
    try:
        return {task.task_id for task in await journal.open_tasks()}
    finally:
        journal.close_file()


async def _remove_container(
    engine: Engine, name: str, extent: Extent, tell: Callable[[str], None]
) -> bool:
    if extent.is_rehearsal:
        tell(f"would remove container {name}")
        return True
    try:
        await engine.remove_stopped(name)
    except EngineError as error:
        tell(f"cannot remove container {name}: {error}")
        return False
    tell(f"removed container {name}")
    return True


def _remove_folders(
    tasks: Path, kept: set[str], extent: Extent, tell: Callable[[str], None]
) -> bool:
    if tasks.is_symlink() or not tasks.is_dir():
        return True
    went_well = True
    limit = time.time() - extent.older_than_days * _DAY_S
    for folder in sorted(tasks.iterdir()):
        is_ours = folder.is_dir() and not folder.is_symlink() and is_task_id(folder.name)
        if not is_ours or folder.name in kept:
            continue
        size, newest = _extent_of(folder)
        if newest > limit:
            continue
        if extent.is_rehearsal:
            tell(f"would remove {folder} ({size >> 20} MiB)")
            continue
        try:
            shutil.rmtree(folder)
        except OSError as error:
            tell(f"cannot remove {folder}: {error.strerror}")
            went_well = False
        else:
            tell(f"removed {folder} ({size >> 20} MiB)")
    return went_well


def _extent_of(folder: Path) -> tuple[int, float]:
    """Give a folder's size in bytes and the moment at which anything in it last changed."""
    size, newest = 0, folder.lstat().st_mtime
    for place, _, names in os.walk(folder):
        newest = max(newest, Path(place).lstat().st_mtime)
        for name in names:
            try:
                about = (Path(place) / name).lstat()
            except OSError:
                continue
            size += about.st_size
            newest = max(newest, about.st_mtime)
    return size, newest
