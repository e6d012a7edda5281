"""Folders below the Victoria home, where containers may have written anything.

Every step goes through an open handle and follows no link. Everything here blocks, and belongs
into a worker thread.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from runner.errors import Unstartable
from runner.model import is_task_id

_BLOCK_BYTES = 1 << 20
_PART_PREFIX = ".victoria-part-"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
# A pipe that was planted in a file's place must not hold us up.
_OLD_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
_DEEPEST_LOOK = 64


def free_disk(place: Path | int) -> int:
    """Give the bytes that an unprivileged user may still write where a path or handle is."""
    told = os.statvfs(place)
    return told.f_bavail * told.f_frsize


def open_below(home: Path, names: Iterable[str], *, make: bool) -> int:
    """Open a folder below the Victoria home, which alone may be a link; give the handle.

    Raises:
        OSError: a folder on the way is a link or anything but a folder, or is missing and cannot
            or shall not be made.
    """
    handle = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for name in names:
            if make:
                with suppress(FileExistsError):
                    os.mkdir(name, 0o755, dir_fd=handle)
            below = os.open(name, _FOLDER, dir_fd=handle)
            os.close(handle)
            handle = below
    except OSError:
        os.close(handle)
        raise
    return handle


def read_below(folder: int, name: str, most_bytes: int) -> bytes:
    """Read a file in an open folder, which whoever wrote there may have put anything into.

    Raises:
        OSError: there is none, it is no ordinary file, or it is longer than `most_bytes`.
    """
    handle = os.open(name, _OLD_FILE, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is no file")
    with open(handle, "rb", buffering=0) as file:  # noqa: PTH123 - pathlib knows no handles
        found = bytearray()
        while len(found) <= most_bytes and (block := file.read(_BLOCK_BYTES)):
            found += block
    if len(found) > most_bytes:
        raise OSError(errno.EFBIG, f"it is longer than {most_bytes} bytes")
    return bytes(found)


def write_below(folder: int, name: str, content: bytes, owner: os.stat_result) -> None:
    """Write a file for its owner's eyes in an open folder; it is seen whole or not at all.

    A root in a container shuts nobody out: the file goes to the owner that is given. Where that
    may not be done, everybody may read it.

    Raises:
        OSError: it cannot be written.
    """
    part_name = _PART_PREFIX + secrets.token_hex(8)
    handle = os.open(part_name, _NEW_FILE, 0o600, dir_fd=folder)
    try:
        with open(handle, "wb") as file:  # noqa: PTH123 - as above
            if os.geteuid() != owner.st_uid:
                _give(handle, owner)
            file.write(content)
            file.flush()
            os.fsync(handle)
        os.rename(part_name, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        with suppress(FileNotFoundError):
            os.unlink(part_name, dir_fd=folder)
        raise


def _give(handle: int, owner: os.stat_result) -> None:
    try:
        os.fchown(handle, owner.st_uid, owner.st_gid)
    except PermissionError:
        os.fchmod(handle, 0o644)


class Folder:
    """An open folder of a task's files; `handle` is what every step goes through."""

    def __init__(self, home: Path, task_id: str, min_free_disk: int) -> None:
        """Open the folder, made if need be; the Victoria home alone may be a link.

        Raises:
            OSError: a folder on the way cannot be made, or is a link or anything but a folder.

        """
        self.path = home / "tasks" / task_id / "files"
        self.task_id = task_id
        self.min_free_disk = min_free_disk
        self.handle = open_below(home, ("tasks", task_id, "files"), make=True)

    def close(self) -> None:
        """Let go of the folder."""
        os.close(self.handle)

    def check_room(self, name: str, size: int) -> None:
        """See that `size` bytes more leave enough disk free.

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
        """Remove what an interrupted runner has left half done."""
        for name in os.listdir(self.handle):  # noqa: PTH208 - pathlib knows no handles
            if name.startswith(_PART_PREFIX):
                with suppress(IsADirectoryError):
                    os.unlink(name, dir_fd=self.handle)

    def sha256_of(self, name: str) -> str | None:
        """Give the checksum of a file that is there already; None for anything but a file."""
        try:
            handle = os.open(name, _OLD_FILE, dir_fd=self.handle)
        except OSError:
            return None
        with open(handle, "rb", buffering=0) as file:  # noqa: PTH123 - as above
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                return None
            digest = hashlib.sha256()
            block = memoryview(bytearray(_BLOCK_BYTES))
            while size := file.readinto(block):
                digest.update(block[:size])
        return digest.hexdigest()


class PartialFile:
    """A file that is being written under a temporary name; only worker threads touch it."""

    def __init__(self, folder: Folder, name: str) -> None:
        self._folder = folder
        self._name = name
        self._part_name = _PART_PREFIX + secrets.token_hex(8)
        handle = os.open(self._part_name, _NEW_FILE, 0o600, dir_fd=folder.handle)
        self._file = open(handle, "wb", buffering=0)  # noqa: PTH123, SIM115 - closed by discard
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """The checksum of what was written so far, in lower-case hex."""
        return self._digest.hexdigest()

    def write(self, chunks: list[bytes]) -> None:
        """Add the chunks to the file.

        Raises:
            Unstartable: the disk would be too full after it.
            OSError: it cannot be written.

        """
        block = memoryview(b"".join(chunks))
        self._folder.check_room(self._name, len(block))
        self._digest.update(block)
        while block:
            block = block[self._file.write(block) :]

    def keep(self) -> None:
        """Give the file its name; a link of that name is replaced and not followed."""
        os.fchmod(self._file.fileno(), 0o644)
        os.fsync(self._file.fileno())
        os.rename(
            self._part_name,
            self._name,
            src_dir_fd=self._folder.handle,
            dst_dir_fd=self._folder.handle,
        )

    def discard(self) -> None:
        """Let go of the file and, unless it was kept, remove it."""
        self._file.close()
        with suppress(FileNotFoundError):
            os.unlink(self._part_name, dir_fd=self._folder.handle)


def _mib(size: int) -> str:
    return f"{size / (1 << 20):,.0f} MiB"


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
