"""The folder of one task's files, open: every step goes through its handle and follows no link.

An earlier task's container may have written anywhere below the Victoria home, so no path is
trusted there. Everything here blocks, and belongs into a worker thread.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

from runner.errors import Unstartable

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_BLOCK_BYTES = 1 << 20
_PART_PREFIX = ".victoria-part-"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
# A pipe that was planted in a file's place must not hold us up.
_OLD_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK


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


class Part:
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
