"""The host's own word on processes: a container's, and those that start one. Calls no engine.

What is said of a container's processes holds for an engine whose containers are on this host.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import anyio

_END_DEADLINE_S = 2.0
_LOOK_AGAIN_S = 0.05


def any_exists(pids: Iterable[int], container_id: str) -> bool:
    """Tell whether one of the ids is a process of this container: ids are used again."""
    return any(_belongs(pid, container_id) for pid in pids)


async def wait_for_all(pids: Iterable[int], container_id: str) -> bool:
    """Return when none of these processes of the container lives any more.

    False says that this host cannot tell, and that not all were waited for.
    """
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except OSError as error:
            if error.errno == errno.ESRCH:
                continue
            return False
        try:
            # Looked at while it is held, so that the id cannot change hands in between.
            if _belongs(pid, container_id):
                await anyio.wait_readable(descriptor)
        finally:
            os.close(descriptor)
    return True


async def wait_for_watched(watcher: int, container_id: str) -> bool:
    """Return when the process that watches the container has lost the one that it watches.

    False says that this host cannot tell, and that nothing was waited for.
    """
    if not _belongs(watcher, container_id):
        return False
    for pid in _children(watcher):
        try:
            descriptor = os.pidfd_open(pid)
        except OSError:
            continue
        try:
            # Looked at while it is held, so that the id cannot change hands in between.
            if pid in _children(watcher):
                await anyio.wait_readable(descriptor)
                return True
        finally:
            os.close(descriptor)
    return False


def kill_leftover_starts(cid_folder: Path, names: Collection[str], grace_s: float) -> list[int]:
    """See that no engine call by which a killed runner was starting a container is under way.

    Where no service manager ends it, such a call lives on. If it got stuck, it would start the
    container once more after the next runner has started, reported and removed it. It is waited
    for, then killed. Calls are known by a cid file in that folder, or by `start` and one of these
    names. Give the ids of those that were killed.
    """
    killed: set[int] = set()
    patience_ends_at = time.monotonic() + grace_s
    while found := set(_starts(cid_folder, names)):
        if time.monotonic() > patience_ends_at + _END_DEADLINE_S:
            break
        if time.monotonic() > patience_ends_at:
            for pid in found - killed:
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            killed |= found
        time.sleep(_LOOK_AGAIN_S)
    return sorted(killed)


def _starts(cid_folder: Path, names: Collection[str]) -> Iterator[int]:
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().split(b"\0")[:-1]
        except OSError:
            continue
        arguments = [os.fsdecode(argument) for argument in command]
        if any(
            (before == "--cidfile" and Path(after).parent == cid_folder)
            or (before == "start" and after in names)
            for before, after in pairwise(arguments)
        ):
            yield int(folder.name)


def _children(pid: int) -> list[int]:
    """Give the processes that one has started, where the kernel tells."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    except OSError:
        return []
    return [int(child) for child in text.split()]


def _belongs(pid: int, container_id: str) -> bool:
    """Look for the container's id: conmon has it as an argument, the others in their cgroup.

    A zombie is none of its processes any more: where nothing reaps it, it stays for ever.
    """
    folder = Path(f"/proc/{pid}")
    try:
        state = (folder / "stat").read_bytes().rpartition(b") ")[2][:1]
        named_in = [(folder / name).read_bytes() for name in ("cgroup", "cmdline")]
    except OSError:
        return False
    return state not in b"ZX" and any(container_id.encode() in text for text in named_in)
