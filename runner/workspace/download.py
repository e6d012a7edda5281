"""Download a task's files: a file gets its name only when it is complete and its checksum right."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import anyio
import anyio.to_thread

from runner.api.client import Download, OrchestratorClient
from runner.errors import (
    FileRefused,
    HomeUnusable,
    Refused,
    Unauthorised,
    Unavailable,
    Unstartable,
)
from runner.log import fields
from runner.model import Assignment, Identity, TaskFile
from runner.outage import FailureLog, Outage
from runner.timing import DEFAULT_TIMINGS, Clock, Retry, RetryPolicy, Timings
from runner.workspace.folders import Folder, PartialFile
from runner.workspace.home import TASKS, task_folder

log = logging.getLogger(__name__)
CONTAINER_HOME = "/workspace/Victoria"
"""The Victoria home inside a container."""
TASKS_IN_CONTAINER = f"{CONTAINER_HOME}/{TASKS}"
_PROXY_ATTEMPTS = 6
"""A 4xx without our JSON body probably comes from a reverse proxy during a deployment: retry it
this often."""


def files_folder(home: Path, task_id: str) -> Path:
    """Return the folder of a task's files on this host."""
    return task_folder(home, task_id) / "files"


def folder_in_container(task_id: str) -> str:
    """Return a task's own folder inside its container."""
    return f"{TASKS_IN_CONTAINER}/{task_id}"


async def fetch_files(  # noqa: PLR0913 - what to fetch, from whom, to where, in which time
    orchestrator: OrchestratorClient,
    identity: Identity,
    assignment: Assignment,
    home: Path,
    *,
    min_free_disk: int,
    clock: Clock,
    timings: Timings = DEFAULT_TIMINGS,
    outage: Outage | None = None,
) -> None:
    """Download every file of a task into its folder.

    A file with the right checksum that is there already is not downloaded again. At least
    `min_free_disk` bytes of the disk stay free.

    Raises:
        Unstartable: a file cannot be downloaded, or none could for `Timings.download_gives_up_s`.
        HomeUnusable: its folder cannot be written.
        FileRefused: the orchestrator refuses it.
        Unauthorised: the orchestrator does not know the identity.
    """
    if not assignment.files:
        return
    policy = timings.backoff(gives_up_after_s=timings.download_gives_up_s)
    progress = _Progress(assignment, clock, timings.download_report_interval_s)
    async with _open_folder(home, assignment.task_id, min_free_disk) as folder:
        with anyio.move_on_after(timings.download_timeout_s) as timeout:
            for file in assignment.files:
                ids = {"task_id": folder.task_id, "file": file.name}
                failures = FailureLog("fetch a file", clock, timings, ids, outage)
                attempts = _Attempts(clock, policy, failures.note, progress)
                with _as_unusable(f"write the file {file.name!r}"):
                    await _fetch(orchestrator, identity, file, folder, attempts)
                failures.end()
            progress.end()
        if timeout.cancelled_caught:
            raise Unstartable(
                f"cannot fetch the task's files: not done in {timings.download_timeout_s:g} s"
            )


class _Progress:
    """How much of a task's files has come, in the log."""

    def __init__(self, assignment: Assignment, clock: Clock, interval_s: float) -> None:
        self._ids = {"task_id": assignment.task_id, "files": len(assignment.files)}
        self._clock = clock
        self._interval_s = interval_s
        self._began_s = self._logged_at_s = clock.awake_s()
        self._bytes = 0
        log.info("fetching files", extra=fields(**self._ids))

    def add(self, size: int) -> None:
        """Note that so many bytes have come."""
        self._bytes += size
        if self._clock.awake_s() - self._logged_at_s >= self._interval_s:
            self._log("fetching files")

    def end(self) -> None:
        """Note that all is there, of which some may have been there before."""
        self._log("files fetched")

    def _log(self, event: str) -> None:
        now_s = self._logged_at_s = self._clock.awake_s()
        mib, duration_s = f"{self._bytes / (1 << 20):.1f}", round(now_s - self._began_s)
        log.info(event, extra=fields(**self._ids, fetched_mib=mib, duration_s=duration_s))


class _Attempts(Retry):
    """The attempts at one file."""

    def __init__(
        self,
        clock: Clock,
        policy: RetryPolicy,
        on_failure: Callable[[Exception, float], None],
        progress: _Progress,
    ) -> None:
        super().__init__(clock, policy, on_failure)
        self.progress = progress


async def _fetch(
    orchestrator: OrchestratorClient,
    identity: Identity,
    file: TaskFile,
    folder: Folder,
    attempts: _Attempts,
) -> None:
    """Download a file, once more if its checksum is wrong."""
    if file.sha256 and await _in_thread(folder.sha256_of, file.name) == file.sha256:
        return
    for _ in range(2):
        sha256 = await _download(orchestrator, identity, file, folder, attempts)
        if file.sha256 in {None, sha256}:
            return
        log.warning(
            "a file came with a wrong checksum",
            extra=fields(task_id=folder.task_id, file=file.name, sha256=sha256),
        )
    raise Unstartable(
        f"cannot use the file {file.name!r}: its SHA-256 is {sha256}, not {file.sha256}"
    )


async def _download(
    orchestrator: OrchestratorClient,
    identity: Identity,
    file: TaskFile,
    folder: Folder,
    attempts: _Attempts,
) -> str:
    """Download a file, retried through an outage; return its checksum."""
    while True:
        try:
            async with orchestrator.download(identity, file.name) as download:
                return await _write(download, file, folder, attempts.progress)
        except Unauthorised:
            raise
        except Refused as error:
            if error.detail is not None or attempts.failures + 1 >= _PROXY_ATTEMPTS:
                raise FileRefused(f"cannot fetch the file {file.name!r}: {error}") from error
            await attempts.wait_after(error)
        except Unavailable as error:
            try:
                await attempts.wait_after(error)
            except Unavailable:
                raise Unstartable(
                    f"cannot fetch the file {file.name!r}: {error} (attempt {attempts.failures})"
                ) from error


async def _write(download: Download, file: TaskFile, folder: Folder, progress: _Progress) -> str:
    """Write a file as it arrives, keep it if its checksum is right, and return its checksum.

    Raises:
        Unavailable: the body ended before its Content-Length.
    """
    if download.size is not None:
        await _in_thread(folder.check_free_disk, file.name, download.size)
    part = await _in_thread(PartialFile, folder, file.name)
    try:
        async for chunk in download.chunks:
            await _in_thread(part.write, chunk)
            progress.add(len(chunk))
        if file.sha256 in {None, part.sha256}:
            await _in_thread(part.keep)
        return part.sha256
    finally:
        with anyio.CancelScope(shield=True):
            await _in_thread(part.discard)


@asynccontextmanager
async def _open_folder(home: Path, task_id: str, min_free_disk: int) -> AsyncIterator[Folder]:
    """Open the folder of a task's files, created if need be, and clear what a crash left there."""
    with _as_unusable(f"open the folder {files_folder(home, task_id)}"):
        folder = await _in_thread(Folder, home, task_id, min_free_disk)
    try:
        with _as_unusable(f"clear the folder {folder.path}"):
            await _in_thread(folder.remove_parts)
        yield folder
    finally:
        folder.close()


@contextmanager
def _as_unusable(action: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise HomeUnusable(f"cannot {action}: {error.strerror or error}") from error


_in_thread = anyio.to_thread.run_sync
