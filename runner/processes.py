"""The host's own word on a container's processes: whether they are there, and when they end.

For an engine whose containers are processes of this host. Nothing here calls an engine.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path

import anyio


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
