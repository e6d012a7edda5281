"""Folders below the Victoria home, where containers may have written anything.

Every step goes through an open handle (a file descriptor) and follows no link. Everything here
blocks: call it in a worker thread.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from runner.errors import Unstartable
from runner.handles import (
    BLOCK_BYTES,
    FOLDER,
    NEW_FILE,
    PART_PREFIX,
    free_disk,
    open_below,
    open_file,
)
from runner.model import is_task_id
from runner.workspace.home import HOMES, TASKS, task_folder

_MAX_MEASURED_DEPTH = 64
_MARK_PREFIX = ".victoria-cleanup-"


class Folder:
    """The open folder of a task's files; every step goes through `handle`."""

    def __init__(self, home: Path, task_id: str, min_free_disk: int) -> None:
        """Open the folder, created if need be; `min_free_disk` is in bytes.

        Raises:
            OSError: as `open_below`.
        """
        self.path = task_folder(home, task_id) / "files"
        self.task_id = task_id
        self.min_free_disk = min_free_disk
        self.handle = open_below(home, (TASKS, task_id, "files"), make=True)

    def close(self) -> None:
        """Close the handle."""
        os.close(self.handle)

    def check_free_disk(self, name: str, size: int) -> None:
        """Check that `size` bytes more leave `min_free_disk` free.

        Raises:
            Unstartable: they do not.
        """
        free = free_disk(self.handle)
        if free - size < self.min_free_disk:
            raise Unstartable(
                f"cannot fetch the file {name!r}: it takes {_mib(size)} more, {_mib(free)} are "
                f"free and --min-free-disk keeps {_mib(self.min_free_disk)}; "
                f"remove folders of old tasks from {self.path.parents[1]}"
            )

    def remove_parts(self) -> None:
        """Remove the partial files of a runner that was killed."""
        for name in os.listdir(self.handle):  # noqa: PTH208 - pathlib knows no handles
            if name.startswith(PART_PREFIX):
                with suppress(IsADirectoryError):
                    os.unlink(name, dir_fd=self.handle)

    def sha256_of(self, name: str) -> str | None:
        """Return the checksum of a file that is there already; None if it is not a regular file."""
        try:
            handle = open_file(self.handle, name)
        except OSError:
            return None
        with open(handle, "rb", buffering=0) as file:  # noqa: PTH123 - as above
            digest = hashlib.sha256()
            block = memoryview(bytearray(BLOCK_BYTES))
            while size := file.readinto(block):
                digest.update(block[:size])
        return digest.hexdigest()


class PartialFile:
    """A file under a temporary name until it is complete."""

    def __init__(self, folder: Folder, name: str) -> None:
        self._folder = folder
        self._name = name
        self._part_name = PART_PREFIX + secrets.token_hex(8)
        handle = os.open(self._part_name, NEW_FILE, 0o600, dir_fd=folder.handle)
        self._file = open(handle, "wb", buffering=0)  # noqa: PTH123, SIM115 - closed by discard
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """The SHA-256 of what was written so far, in lower-case hex."""
        return self._digest.hexdigest()

    def write(self, chunk: bytes) -> None:
        """Append a chunk.

        Raises:
            Unstartable: less than `min_free_disk` would stay free.
            OSError: the file cannot be written.
        """
        self._folder.check_free_disk(self._name, len(chunk))
        self._digest.update(chunk)
        unwritten = memoryview(chunk)
        while unwritten:
            unwritten = unwritten[self._file.write(unwritten) :]

    def keep(self) -> None:
        """Rename the file to its final name; a link of that name is replaced, not followed."""
        os.fchmod(self._file.fileno(), 0o644)
        os.fsync(self._file.fileno())
        os.rename(
            self._part_name,
            self._name,
            src_dir_fd=self._folder.handle,
            dst_dir_fd=self._folder.handle,
        )

    def discard(self) -> None:
        """Close the file, and remove it unless it was kept."""
        self._file.close()
        with suppress(FileNotFoundError):
            os.unlink(self._part_name, dir_fd=self._folder.handle)


def _mib(size: int) -> str:
    return f"{size / (1 << 20):,.0f} MiB"


class Extent(NamedTuple):
    """The size of a folder in bytes, and its newest change in seconds since the epoch."""

    size: int
    newest: float
    is_whole: bool = True
    """Whether all of it could be read."""


class TaskFolders:
    """The folders of tasks in a Victoria home, and the homes of their own; close it after use."""

    def __init__(self, home: Path) -> None:
        """Open the folder.

        Raises:
            FileNotFoundError: there is none yet.
            OSError: as `open_below`.
        """
        self.path = home / TASKS
        self._handles = [open_below(home, (TASKS,), make=False)]
        with suppress(OSError):
            self._handles.append(open_below(home, (TASKS, HOMES), make=False))

    def close(self) -> None:
        """Close the handles."""
        for handle in self._handles:
            os.close(handle)

    def task_ids(self) -> list[str]:
        """Return the tasks that have a folder; links and files are left out."""
        return sorted(
            {
                name
                for handle in self._handles
                for name in os.listdir(handle)  # noqa: PTH208 - pathlib knows no handles
                if is_task_id(name) and _is_folder(handle, name)
            }
        )

    def extent_of(self, task_id: str) -> Extent:
        """Measure a task's folder and home, down to 64 levels and where this user may read.

        Raises:
            OSError: they cannot be read.
        """
        extents = [
            _measure(handle, task_id, _MAX_MEASURED_DEPTH)
            for handle in self._handles
            if _is_folder(handle, task_id)
        ]
        return Extent(
            sum(extent.size for extent in extents),
            max((extent.newest for extent in extents), default=0.0),
            all(extent.is_whole for extent in extents),
        )

    def paths_of(self, task_id: str) -> list[str]:
        """Return the task's folder and home, as far as they are there, relative to `path`."""
        places = zip(self._handles, (task_id, f"{HOMES}/{task_id}"), strict=False)
        return [path for handle, path in places if _is_folder(handle, task_id)]

    @contextmanager
    def marked(self) -> Iterator[str]:
        """Yield the name of an empty folder that is there meanwhile, to recognise this one by.

        Raises:
            OSError: it cannot be made.
        """
        name = f"{_MARK_PREFIX}{secrets.token_hex(8)}"
        os.mkdir(name, 0o700, dir_fd=self._handles[0])
        try:
            yield name
        finally:
            os.rmdir(name, dir_fd=self._handles[0])

    def remove(self, task_id: str) -> None:
        """Remove a task's folder and home with everything in them.

        Raises:
            PermissionError: something in them belongs to another user.
            OSError: something in them cannot be removed.
        """
        # Through /proc, since rmtree takes no dir_fd before Python 3.11. It follows no link itself.
        try:
            for handle in self._handles:
                with suppress(FileNotFoundError):
                    shutil.rmtree(f"/proc/self/fd/{handle}/{task_id}")
        except RecursionError:  # before Python 3.13, from about 1,000 levels
            reason = "its folders are nested too deep; remove it with rm -r"
            raise OSError(errno.ENAMETOOLONG, reason) from None


def _is_folder(parent: int, name: str) -> bool:
    try:
        status = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(status.st_mode)


def _measure(parent: int, name: str, depth: int) -> Extent:
    try:
        folder = os.open(name, FOLDER, dir_fd=parent)
    except PermissionError:
        status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        return Extent(0, _changed_at(status), is_whole=False)
    try:
        size, newest, is_whole = 0, _changed_at(os.fstat(folder)), True
        for entry in os.listdir(folder):  # noqa: PTH208 - as above
            with suppress(FileNotFoundError):
                try:
                    status = os.stat(entry, dir_fd=folder, follow_symlinks=False)
                except PermissionError:
                    is_whole = False
                    continue
                newest = max(newest, _changed_at(status))
                if not stat.S_ISDIR(status.st_mode):
                    size += status.st_size
                elif depth:
                    below = _measure(folder, entry, depth - 1)
                    size, newest = size + below.size, max(newest, below.newest)
                    is_whole &= below.is_whole
    finally:
        os.close(folder)
    return Extent(size, newest, is_whole)


def _changed_at(status: os.stat_result) -> float:
    """Return the time of the last change: a task may have set the usual one to lie in the future.

    The other one is the kernel's; it also changes when a backup is restored or a label is set.
    """
    return status.st_mtime if status.st_mtime <= time.time() else status.st_ctime
