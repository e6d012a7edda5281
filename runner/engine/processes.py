"""Processes as this host's kernel shows them: a container's, and engine calls that start one.

Only for engines whose containers run on this host.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import anyio
import anyio.to_thread

from runner.timing import Clock, Timings

_PROGRAMS = frozenset({"podman", "docker", "podman-remote"})


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


async def end_leftover_starts(
    cid_folder: Path, names: Collection[str], clock: Clock, timings: Timings
) -> list[int]:
    """Wait for the engine calls with which a killed runner was starting containers, then kill them.

    Where no service manager ends them, they live on. A stuck one could start its container again
    after this runner has started, reported and removed it. A call is a process of this user's and
    of this host's (not of a container's) that runs an engine's program, and has as arguments a cid
    file in `cid_folder`, or `start` and one of `names` or of the ids in the cid files. Return the
    ids of the killed ones. Until this returns, this runner itself must start nothing.
    """
    killed: set[int] = set()
    began_at_s = clock.awake_s()
    kills_at_s = began_at_s + timings.leftover_start_grace_s
    while starts := await anyio.to_thread.run_sync(_starts, cid_folder, frozenset(names)):
        now_s = clock.awake_s()
        if now_s > kills_at_s + timings.leftover_start_kill_timeout_s:
            break
        if now_s >= kills_at_s:
            for pid in starts - killed:
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            killed |= starts
        wait_s = timings.leftover_start_check_interval_s
        if not killed:
            # Most end at once; one that takes minutes is not looked for twenty times a second.
            wait_s = min(max(wait_s, (now_s - began_at_s) / 5), kills_at_s - now_s)
        await clock.sleep(wait_s)
    return sorted(killed)


def _starts(cid_folder: Path, names: Collection[str]) -> set[int]:
    names = {*names, *_written_ids(cid_folder)}
    return set(_find_starts(cid_folder, names))


def _find_starts(cid_folder: Path, names: Collection[str]) -> Iterator[int]:
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().split(b"\0")[:-1]
        except OSError:
            continue
        arguments = [os.fsdecode(argument) for argument in command]
        # The program comes first, or second or third as the script of an interpreter.
        if _PROGRAMS.isdisjoint(Path(argument).name for argument in arguments[:3]):
            continue
        is_start = any(
            (before == "--cidfile" and Path(after).parent == cid_folder)
            or (before == "start" and after in names)
            for before, after in pairwise(arguments)
        )
        if is_start and _is_ours(folder):
            yield int(folder.name)


def _is_ours(folder: Path) -> bool:
    """Return whether a process is this user's, and in the namespace of process ids of this one.

    A rootless container's processes are this user's too, but have a second id, inside.
    """
    try:
        lines = (folder / "status").read_text(errors="replace").splitlines()
    except OSError:
        return False
    status = dict(line.partition(":")[::2] for line in lines)
    user_ids, process_ids = status.get("Uid", "").split(), status.get("NSpid", "").split()
    return user_ids[:1] == [str(os.getuid())] and len(process_ids) <= 1


def _written_ids(cid_folder: Path) -> set[str]:
    ids = set()
    for path in cid_folder.glob("*.cid"):
        with suppress(OSError):
            ids.add(path.read_text(errors="replace").strip())
    return ids - {""}


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
