"""Processes as this host's kernel shows them: a container's, and engine calls that start one.

Only for engines whose containers run on this host.
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

from runner.timing import Timings


def any_exists(pids: Iterable[int], container_id: str) -> bool:
    """Return whether one of the ids is a process of this container: ids are reused."""
    return any(_belongs(pid, container_id) for pid in pids)


async def wait_for_all(pids: Iterable[int], container_id: str) -> bool:
    """Wait until none of these processes of the container is alive.

    Return False if this kernel does not support it: then not all were waited for.
    """
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except OSError as error:
            if error.errno == errno.ESRCH:
                continue
            return False
        try:
            # Checked while the pidfd is held, so that the id cannot be reused in between.
            if _belongs(pid, container_id):
                await anyio.wait_readable(descriptor)
        finally:
            os.close(descriptor)
    return True


def kill_leftover_starts(cid_folder: Path, names: Collection[str], timings: Timings) -> list[int]:
    """Wait for the engine calls with which a killed runner was starting containers, then kill them.

    Where no service manager ends them, they live on. A stuck one could start its container again
    after this runner has started, reported and removed it. A call is recognised by a cid file in
    `cid_folder`, or by `start` and one of `names`. Return the ids of the killed ones.
    """
    killed: set[int] = set()
    grace_ends_at_s = time.monotonic() + timings.leftover_start_grace_s
    while starts := set(_starts(cid_folder, names)):
        if time.monotonic() > grace_ends_at_s + timings.leftover_start_kill_timeout_s:
            break
        if time.monotonic() > grace_ends_at_s:
            for pid in starts - killed:
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            killed |= starts
        time.sleep(timings.leftover_start_check_interval_s)
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


def _belongs(pid: int, container_id: str) -> bool:
    """Return whether a process carries the container's id: an argument of conmon, else its cgroup.

    A zombie does not count: where nothing reaps it, it stays for ever.
    """
    folder = Path(f"/proc/{pid}")
    try:
        state = (folder / "stat").read_bytes().rpartition(b") ")[2][:1]
        texts = [(folder / name).read_bytes() for name in ("cgroup", "cmdline")]
    except OSError:
        return False
    return state not in b"ZX" and any(container_id.encode() in text for text in texts)
