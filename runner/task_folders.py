"""The folders of all tasks in the Victoria home, open: measured and removed by handles alone.

A container may have put a link, or a tree of any depth, in the place of anything there, and may do
so while this is at work.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from runner.assignment import is_task_id

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_DEEPEST_LOOK = 64


class Extent(NamedTuple):
    """What a folder takes, and when anything in it was last changed."""

    size: int
    newest: float


class TaskFolders:
    """The folder `tasks` of a Victoria home; close it after use."""

    def __init__(self, home: Path) -> None:
        """Open the folder; the Victoria home alone may be a link.

        Raises:
            FileNotFoundError: there is none yet.
            OSError: it cannot be opened, or is a link or anything but a folder.
        """
        self.path = home / "tasks"
        with _opened(home, os.O_RDONLY | os.O_DIRECTORY) as handle:
            self._handle = os.open("tasks", _FOLDER, dir_fd=handle)

    def close(self) -> None:
        """Let go of the folder."""
        os.close(self._handle)

    def task_ids(self) -> list[str]:
        """Name the tasks that have a folder; links and whatever else is there are left out."""
        names = os.listdir(self._handle)  # noqa: PTH208 - pathlib knows no handles
        return sorted(name for name in names if is_task_id(name) and self._is_folder(name))

    def extent_of(self, task_id: str) -> Extent:
        """Measure a task's folder, as far as 64 folders deep.

        Raises:
            OSError: it cannot be looked into.
        """
        with _opened(task_id, _FOLDER, self._handle) as handle:
            return _measured(handle, _DEEPEST_LOOK)

    def remove(self, task_id: str) -> None:
        """Remove a task's folder with all that is in it.

        Raises:
            OSError: something in it cannot be removed.
        """
        with _opened(task_id, _FOLDER, self._handle) as handle:
            while names := os.listdir(handle):  # noqa: PTH208 - as above
                for name in names:
                    _remove(handle, name)
        os.rmdir(task_id, dir_fd=self._handle)

    def _is_folder(self, name: str) -> bool:
        try:
            about = os.stat(name, dir_fd=self._handle, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return stat.S_ISDIR(about.st_mode)


def _measured(handle: int, depth: int) -> Extent:
    size, newest = 0, os.fstat(handle).st_mtime
    for name in os.listdir(handle):
        with suppress(FileNotFoundError):
            about = os.stat(name, dir_fd=handle, follow_symlinks=False)
            newest = max(newest, about.st_mtime)
            if not stat.S_ISDIR(about.st_mode):
                size += about.st_size
            elif depth:
                with _opened(name, _FOLDER, handle) as below:
                    found = _measured(below, depth - 1)
                size, newest = size + found.size, max(newest, found.newest)
    return Extent(size, newest)


def _remove(top: int, name: str) -> None:
    """Remove what is in an open folder; the folders in it move up, so that no depth is too deep."""
    with suppress(FileNotFoundError):
        if not stat.S_ISDIR(os.stat(name, dir_fd=top, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=top)
            return
        with _opened(name, _FOLDER, top) as handle:
            for below in os.listdir(handle):  # noqa: PTH208 - as above
                if stat.S_ISDIR(os.stat(below, dir_fd=handle, follow_symlinks=False).st_mode):
                    os.rename(below, secrets.token_hex(16), src_dir_fd=handle, dst_dir_fd=top)
                else:
                    os.unlink(below, dir_fd=handle)
        os.rmdir(name, dir_fd=top)


@contextmanager
def _opened(name: str | Path, flags: int, folder: int | None = None) -> Iterator[int]:
    handle = os.open(name, flags, dir_fd=folder)
    try:
        yield handle
    finally:
        os.close(handle)
