"""The Victoria home as tasks use it: `tasks/ID` for each, and for some a home of their own.

`tasks/ID` belongs to one task, whichever home its container has. `tasks/.homes/ID` is the copy that
a task was given with `--home task`; that it is there tells which home the task has. What is in the
way of one of these folders is moved aside under a dated name. Everything here blocks.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from runner.errors import HomeUnusable
from runner.handles import BLOCK_BYTES, FOLDER, NEW_FILE, PART_PREFIX, PLACE, open_below, open_file
from runner.model import HomeMode

TASKS = "tasks"
ARTIFACTS = "artifacts"
"""In a task's folder, for the files that it makes."""
HOMES = ".homes"
"""No task has this id: an id begins with a letter or a digit."""
MAX_HOME_BYTES = 100_000_000
_CRUSH = ".crush"
_MAX_HOME_DEPTH = 64
_ENTRY_BYTES = 4096
"""What each entry of a home counts at least, so that their number is limited too."""
_UNUSABLE = ".unusable"
_PROBE = ".victoria-probe"
_OTHERS_MAY_WRITE = stat.S_IWOTH | stat.S_IXOTH


@dataclass
class Tidying:
    """What is done about obstacles: they get names with this stamp; None changes nothing."""

    stamp: str | None
    owner: int = -1
    """The user id of the home's owner, once the home is open."""
    sentences: list[str] = field(default_factory=list)
    """One about each obstacle that was moved."""


def task_folder(home: Path, task_id: str) -> Path:
    """Return the path of a task's own folder."""
    return home / TASKS / task_id


def home_of_task(home: Path, task_id: str) -> Path:
    """Return the home that a task was given: one of its own, or the Victoria home."""
    try:
        homes = open_below(home, (TASKS, HOMES), make=False)
    except OSError:
        return home
    try:
        # Not opened: the task may have closed it to all but itself.
        status = os.stat(task_id, dir_fd=homes, follow_symlinks=False)
    except OSError:
        return home
    finally:
        os.close(homes)
    return home / TASKS / HOMES / task_id if stat.S_ISDIR(status.st_mode) else home


def may_write(home: os.stat_result, user: str, *, is_rootless: bool) -> bool | None:
    """Return whether an image's USER may write in the home; None if only a container can tell."""
    name = user.partition(":")[0]
    if name in {"", "0", "root"} or home.st_mode & _OTHERS_MAY_WRITE == _OTHERS_MAY_WRITE:
        return True
    # A rootless engine gives the users of a container other ids on the host. An access list shows
    # in the mode of the group.
    if not name.isdecimal() or home.st_mode & stat.S_IWGRP:
        return None
    return not is_rootless and int(name) == home.st_uid and bool(home.st_mode & stat.S_IWUSR)


def check_home(home: Path, mode: HomeMode, tidying: Tidying, *, thorough: bool) -> None:
    """Check that a task's folders can be made; with `thorough` also that the home can be copied.

    Raises:
        HomeUnusable: they cannot.
    """
    with _opened(home, mode, tidying) as root:
        if tidying.stamp is not None or _is_there(root, TASKS):
            with _folder(root, TASKS, home / TASKS, tidying) as tasks:
                # `doctor` may do the same at this moment.
                with suppress(FileExistsError):
                    os.mkdir(_PROBE, 0o700, dir_fd=tasks)
                with suppress(FileNotFoundError):
                    os.rmdir(_PROBE, dir_fd=tasks)
        if thorough and mode is HomeMode.TASK:
            _Copy(home).copy(root, None)


def make_task_folder(  # noqa: PLR0913 - what to make, where, and how
    home: Path, task_id: str, mode: HomeMode, tidying: Tidying, *, with_files: bool, is_new: bool
) -> None:
    """Make a task's folder, and a home of its own if it is to have one.

    A task that is not new may have been given its home already, and keeps it.

    Raises:
        HomeUnusable: they cannot be made, or the home is too large to be copied.
    """
    path = task_folder(home, task_id)
    with _opened(home, mode, tidying) as root, _folder(root, TASKS, home / TASKS, tidying) as tasks:
        with _folder(tasks, task_id, path, tidying) as own:
            _match_home(own, os.fstat(root))
            with _folder(own, ARTIFACTS, path / ARTIFACTS, tidying) as artifacts:
                _match_home(artifacts, os.fstat(root))
            if with_files:
                with _folder(own, "files", path / "files", tidying):
                    pass
        if is_new and _is_there(tasks, HOMES):
            with _folder(tasks, HOMES, home / TASKS / HOMES, tidying) as homes:
                _remove_leftover(homes, task_id, home / TASKS / HOMES / task_id, tidying)
        if mode is HomeMode.TASK and home_of_task(home, task_id) == home:
            with _folder(tasks, HOMES, home / TASKS / HOMES, tidying) as homes:
                _make_home(home, root, homes, task_id)


def _make_home(home: Path, root: int, homes: int, task_id: str) -> None:
    os.mkdir(task_id, 0o700, dir_fd=homes)
    own_home = os.open(task_id, FOLDER, dir_fd=homes)
    try:
        _Copy(home).copy(root, own_home)
        os.mkdir(TASKS, 0o755, dir_fd=own_home)  # where the task's own folder is mounted
    except BaseException:
        shutil.rmtree(f"/proc/self/fd/{homes}/{task_id}", ignore_errors=True)
        raise
    finally:
        os.close(own_home)


def _remove_leftover(homes: int, task_id: str, path: Path, tidying: Tidying) -> None:
    """Remove the home of an earlier task of this id, or of an attempt that was killed."""
    if not _is_there(homes, task_id):
        return
    try:
        shutil.rmtree(f"/proc/self/fd/{homes}/{task_id}")
    except (OSError, RecursionError):
        _move_aside(homes, task_id, path, tidying, "it cannot be removed")


# Folders and what is in their way


@contextmanager
def _opened(home: Path, mode: HomeMode, tidying: Tidying) -> Iterator[int]:
    """Open the Victoria home; what is in the way of the agent's `.crush` is moved aside.

    Raises:
        HomeUnusable: the home, or a folder that the block makes, cannot be used.
    """
    try:
        status = home.stat()
        if tidying.stamp and not _owner_may_all(status):
            with suppress(PermissionError):  # a task in a shared home may have changed the mode
                home.chmod(stat.S_IMODE(status.st_mode) | stat.S_IRWXU)
        root = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
        tidying.owner = status.st_uid
        try:
            if mode is HomeMode.SHARED and _is_there(root, _CRUSH):
                _clear_crush(root, home / _CRUSH, tidying)
            yield root
        finally:
            os.close(root)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise HomeUnusable(
            f"cannot make folders of tasks in {home}: {reason}; check its owner, mode and disk"
        ) from error


@contextmanager
def _folder(parent: int, name: str, path: Path, tidying: Tidying) -> Iterator[int]:
    """Open a folder that only this user or the home's owner can change, made if need be."""
    handle = None
    while handle is None:
        if not _is_there(parent, name):
            with suppress(FileExistsError):
                os.mkdir(name, 0o755, dir_fd=parent)
        handle = _open_usable(parent, name, path, tidying)
    try:
        yield handle
    finally:
        os.close(handle)


def _open_usable(parent: int, name: str, path: Path, tidying: Tidying) -> int | None:
    """Open a folder; None if something else was in its place and is now moved aside."""
    place = os.open(name, PLACE, dir_fd=parent)
    try:
        obstacle = _obstacle(place, tidying)
        if obstacle is None:
            return os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_DIRECTORY)
    finally:
        os.close(place)
    _move_aside(parent, name, path, tidying, obstacle)
    return None


def _obstacle(place: int, tidying: Tidying) -> str | None:
    """Return what is wrong with a folder, by a handle that opens nothing; None if it can be used.

    Its mode is mended where this user may do that.
    """
    status = os.fstat(place)
    if not stat.S_ISDIR(status.st_mode):
        return "it is not a folder"
    if status.st_uid not in {os.geteuid(), tidying.owner}:
        return f"it belongs to the user id {status.st_uid}"
    _mend_mode(place, tidying)
    path = f"/proc/self/fd/{place}"
    if os.statvfs(path).f_flag & os.ST_RDONLY:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))
    is_usable = os.access(path, os.R_OK | os.W_OK | os.X_OK, effective_ids=True)
    return None if is_usable else "this user may not write in it"


def _mend_mode(place: int, tidying: Tidying) -> None:
    status = os.fstat(place)
    if tidying.stamp and not _owner_may_all(status):
        with suppress(PermissionError):
            os.chmod(f"/proc/self/fd/{place}", stat.S_IMODE(status.st_mode) | stat.S_IRWXU)  # noqa: PTH101 - a handle


def _owner_may_all(status: os.stat_result) -> bool:
    return status.st_mode & stat.S_IRWXU == stat.S_IRWXU


def _clear_crush(root: int, path: Path, tidying: Tidying) -> None:
    """Move aside what is in the way of the agent's folder; its owner is the image's business."""
    place = os.open(_CRUSH, PLACE, dir_fd=root)
    try:
        obstacle: str | None = "it is not a folder"
        if stat.S_ISDIR(os.fstat(place).st_mode):
            _mend_mode(place, tidying)
            obstacle = None if _owner_may_all(os.fstat(place)) else "its owner may not use it"
    finally:
        os.close(place)
    if obstacle is not None:
        _move_aside(root, _CRUSH, path, tidying, obstacle)


def _move_aside(parent: int, name: str, path: Path, tidying: Tidying, obstacle: str) -> None:
    if tidying.stamp is None:
        raise HomeUnusable(
            f"cannot use {path}: {obstacle}; the runner moves it aside before the next task, or "
            "move it away yourself"
        )
    new_name = f"{name}.{tidying.stamp}{_UNUSABLE}"
    try:
        os.rename(name, new_name, src_dir_fd=parent, dst_dir_fd=parent)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise HomeUnusable(
            f"cannot use {path}: {obstacle}, and it cannot be moved aside: {reason}; move it away"
        ) from error
    advice = "; later tasks can read it there: move it away" if name == TASKS else ""
    tidying.sentences.append(
        f"cannot use {path}: {obstacle}; it was moved aside as {new_name}{advice}"
    )


def _is_there(parent: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _match_home(folder: int, home: os.stat_result) -> None:
    """Have a task's folder belong to those who may write in the home: the image may need that."""
    _own(folder, home, 0o755 | home.st_mode & 0o777)


# The copy of a home


class _Copy:
    """A copy of the Victoria home for one task: links as they are, no device, pipe or socket."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._left = MAX_HOME_BYTES

    def copy(self, source: int, target: int | None) -> None:
        """Copy the open home into an open folder; None only measures it.

        Raises:
            HomeUnusable: it is too large or nested too deep.
            OSError: something in it cannot be read, or the copy not be written.
        """
        names = [name for name in _names_in(source) if not _is_left_out(name)]
        self._entries(source, names, target, _MAX_HOME_DEPTH)
        if target is not None:
            _keep_status(target, os.fstat(source))

    def _entries(self, source: int, names: list[str], target: int | None, depth: int) -> None:
        for name in names:
            try:
                self._entry(source, name, target, depth)
            except FileNotFoundError:
                continue  # removed meanwhile
            except OSError as error:
                reason = (error.strerror or str(error)).lower()
                raise HomeUnusable(
                    f"cannot copy {self._home} for a task: {name}: {reason}; make it readable, or "
                    "use --home shared"
                ) from error

    def _entry(self, source: int, name: str, target: int | None, depth: int) -> None:
        status = os.stat(name, dir_fd=source, follow_symlinks=False)
        self._count(max(_ENTRY_BYTES, status.st_size if stat.S_ISREG(status.st_mode) else 0))
        if stat.S_ISDIR(status.st_mode):
            self._folder(source, name, target, depth)
        elif target is None:
            return
        elif stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
        elif stat.S_ISREG(status.st_mode):
            self._file(source, name, target)

    def _folder(self, source: int, name: str, target: int | None, depth: int) -> None:
        if not depth:
            raise HomeUnusable(
                f"cannot copy {self._home} for a task: its folders are nested more than "
                f"{_MAX_HOME_DEPTH} deep; make them flatter, or use --home shared"
            )
        below = os.open(name, FOLDER, dir_fd=source)
        try:
            if target is None:
                self._entries(below, _names_in(below), None, depth - 1)
                return
            os.mkdir(name, 0o700, dir_fd=target)
            copy = os.open(name, FOLDER, dir_fd=target)
            try:
                self._entries(below, _names_in(below), copy, depth - 1)
                _keep_status(copy, os.fstat(below))
            finally:
                os.close(copy)
        finally:
            os.close(below)

    def _file(self, source: int, name: str, target: int) -> None:
        original = open_file(source, name)
        try:
            status = os.fstat(original)
            left = status.st_size
            with open(os.open(name, NEW_FILE, 0o600, dir_fd=target), "wb") as copy:  # noqa: PTH123 - pathlib knows no handles
                while left > 0 and (block := os.read(original, min(left, BLOCK_BYTES))):
                    copy.write(block)
                    left -= len(block)
                copy.flush()
                _keep_status(copy.fileno(), status)
        finally:
            os.close(original)

    def _count(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise HomeUnusable(
                f"cannot copy {self._home} for a task: it has more than "
                f"{MAX_HOME_BYTES // 1_000_000} MB beside {TASKS}/ and {_CRUSH}/, with "
                f"{_ENTRY_BYTES // 1024} kB for each entry at least; move something out of it, or "
                "use --home shared"
            )


def _is_left_out(name: str) -> bool:
    return name in {TASKS, _CRUSH} or name.startswith(PART_PREFIX) or name.endswith(_UNUSABLE)


def _names_in(folder: int) -> list[str]:
    return sorted(os.listdir(folder))


def _keep_status(copy: int, original: os.stat_result) -> None:
    """Keep owner, mode and times; a mode that changes the user is not kept."""
    is_folder = stat.S_ISDIR(original.st_mode)  # one without the right to write is not removable
    _own(copy, original, original.st_mode & 0o777 | (stat.S_IRWXU if is_folder else 0))
    os.utime(copy, ns=(original.st_atime_ns, original.st_mtime_ns))


def _own(handle: int, like: os.stat_result, mode: int) -> None:
    """Set owner and mode, as far as the file system and this user's rights allow it."""
    with suppress(PermissionError):
        if os.geteuid() == 0:
            os.fchown(handle, like.st_uid, like.st_gid)
    with suppress(PermissionError):
        os.fchmod(handle, mode)
