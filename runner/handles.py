"""Files and folders that a container may have touched, opened by handles and not by paths.

No link is followed but the Victoria home itself. Everything here blocks: call it in a thread.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

BLOCK_BYTES = 1 << 20
PART_PREFIX = ".victoria-part-"
"""Of a file that is being written; it is renamed when it is whole."""
_LEAST_FREE = 1 << 20
"""With less than this nothing can be written."""
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
PLACE = os.O_PATH | os.O_NOFOLLOW
"""Opens nothing: the handle names whatever is there, a link included."""
NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW


def free_disk(place: Path | int) -> int:
    """Return the bytes that an unprivileged user can still write at a path or handle."""
    filesystem = os.statvfs(place)
    return filesystem.f_bavail * filesystem.f_frsize


def readable_size(size: int) -> str:
    """Return a number of bytes for people: 512 MiB, 68.7 GiB."""
    value, units = float(size), ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while value >= 1024 and len(units) > 1:  # noqa: PLR2004 - a unit is so many of the one before
        value /= 1024
        units.pop(0)
    return f"{value:.1f}".removesuffix(".0") + f" {units[0]}"


def check_free(folder: Path, min_free: int) -> None:
    """Check that `min_free` bytes of a folder's disk are free, and that it can take new files.

    Raises:
        OSError: that is not so (ENOSPC; its `strerror` says what the folder has), or unknown.
    """
    filesystem = os.statvfs(folder)
    free = filesystem.f_bavail * filesystem.f_frsize
    min_free = max(min_free, _LEAST_FREE)
    if free < min_free:
        sizes = f"{readable_size(free)} free and {readable_size(min_free)} must stay free"
        raise OSError(errno.ENOSPC, sizes)
    # Some file systems have no fixed number of files, and say that it is 0.
    if filesystem.f_files and not filesystem.f_favail:
        raise OSError(errno.ENOSPC, "no inodes free, and each file needs one")


def open_below(home: Path, names: Iterable[str], *, make: bool) -> int:
    """Open a folder below the Victoria home and return its handle; only the home may be a link.

    With `make`, folders that are missing are created. They belong to the home's owner where this
    process may give them away, as root in a container may.

    Raises:
        OSError: a name on the way is a link, not a folder, or missing.
    """
    handle = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
    owner = os.fstat(handle)
    try:
        for name in names:
            is_new = make and _make_folder(handle, name)
            below = os.open(name, FOLDER, dir_fd=handle)
            if is_new and os.geteuid() != owner.st_uid:
                with suppress(PermissionError):
                    os.fchown(below, owner.st_uid, owner.st_gid)
            os.close(handle)
            handle = below
    except OSError:
        os.close(handle)
        raise
    return handle


def _make_folder(parent: int, name: str) -> bool:
    """Make a folder; return False if there was something of that name."""
    try:
        os.mkdir(name, 0o755, dir_fd=parent)
    except FileExistsError:
        return False
    return True


def open_file(folder: int, name: str) -> int:
    """Open a regular file in an open folder, without trust in what it is.

    Raises:
        OSError: it is missing, a link, or not a regular file.
    """
    # Opening a device can act on it, and opening a pipe can block or wake its other end. O_PATH
    # opens neither, and what it names stays the same when it is opened for reading.
    place = os.open(name, PLACE, dir_fd=folder)
    try:
        if not stat.S_ISREG(os.fstat(place).st_mode):
            raise OSError(errno.EINVAL, f"{name} is not a regular file")
        return os.open(f"/proc/self/fd/{place}", os.O_RDONLY)
    finally:
        os.close(place)


def read_below(folder: int, name: str, max_bytes: int) -> bytes:
    """Read a file in an open folder, as `open_file` opens it.

    Raises:
        OSError: it cannot be opened, or is longer than `max_bytes`.
    """
    handle = open_file(folder, name)
    with open(handle, "rb", buffering=0) as file:  # noqa: PTH123 - pathlib knows no handles
        content = bytearray()
        while len(content) <= max_bytes and (block := file.read(BLOCK_BYTES)):
            content += block
    if len(content) > max_bytes:
        raise OSError(errno.EFBIG, f"it is longer than {max_bytes} bytes")
    return bytes(content)


def write_below(folder: int, name: str, content: bytes, owner: os.stat_result) -> None:
    """Write a file in an open folder atomically, readable by its owner only.

    The file is given to `owner` where this process is another user, as root in a container is. If
    that is not permitted, the file is readable by everybody.

    Raises:
        OSError: it cannot be written.
    """
    part_name = PART_PREFIX + secrets.token_hex(8)
    handle = os.open(part_name, NEW_FILE, 0o600, dir_fd=folder)
    try:
        with open(handle, "wb") as file:  # noqa: PTH123 - as above
            if os.geteuid() != owner.st_uid:
                try:
                    os.fchown(handle, owner.st_uid, owner.st_gid)
                except PermissionError:
                    os.fchmod(handle, 0o644)
            file.write(content)
            file.flush()
            os.fsync(handle)
        os.rename(part_name, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        with suppress(FileNotFoundError):
            os.unlink(part_name, dir_fd=folder)
        raise
