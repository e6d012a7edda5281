"""A task's files, streamed and verified: a file has its name only when it is whole and right."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread

from runner.api.client import Download, OrchestratorClient
from runner.errors import FileRefused, Refused, Unauthorised, Unavailable, Unstartable
from runner.log import fields, log_retry
from runner.model import Assignment, Identity, TaskFile
from runner.timing import DEFAULT_TIMINGS, Clock, Retry, Timings
from runner.workspace.folders import Folder, PartialFile

log = logging.getLogger(__name__)
CONTAINER_HOME = "/workspace/Victoria"
"""Where a container sees the Victoria home."""
_UNEXPLAINED_ATTEMPTS = 6
"""Until then a refusal that has no word of the orchestrator's is taken for a page of the proxy
before it, as such show one while what is behind them is replaced."""
_BLOCK_BYTES = 1 << 20


def files_folder(home: Path, task_id: str) -> Path:
    """Give the folder of a task's files on this host."""
    return home / "tasks" / task_id / "files"


def files_folder_in_container(task_id: str) -> str:
    """Give the folder of a task's files as its container sees it."""
    return f"{CONTAINER_HOME}/tasks/{task_id}/files"


@dataclass(frozen=True)
class Source:
    """Where files come from, as whom they are asked for, and by which clock."""

    orchestrator: OrchestratorClient
    identity: Identity
    clock: Clock
    timings: Timings = DEFAULT_TIMINGS


async def fetch_files(
    source: Source, assignment: Assignment, home: Path, *, min_free_disk: int
) -> None:
    """Bring every file of a task into its folder, or none of what is not whole and right.

    An orchestrator that does not answer is asked again for about an hour. A file that is there
    already with the right checksum is kept. `min_free_disk` bytes stay free.

    Raises:
        Unstartable: a file cannot be had; the message says why, and what an operator can do.
        FileRefused: the orchestrator will not give it.
        Unauthorised: the orchestrator does not know the identity.

    """
    if not assignment.files:
        return
    async with _opened(home, assignment.task_id, min_free_disk) as folder:
        with anyio.move_on_after(source.timings.download_timeout_s) as limit:
            for file in assignment.files:
                await _fetch(source, file, folder)
        if limit.cancelled_caught:
            limit_s = source.timings.download_timeout_s
            raise Unstartable(f"cannot fetch the task's files: not done in {limit_s:g} s")


async def _fetch(source: Source, file: TaskFile, folder: Folder) -> None:
    with _unstartable(f"write the file {file.name!r}"):
        if file.sha256 and await _in_thread(folder.sha256_of, file.name) == file.sha256:
            return
        for _ in range(2):
            found = await _fetch_patiently(source, file, folder)
            if file.sha256 in {None, found}:
                return
            log.warning(
                "a file came with a wrong checksum",
                extra=fields(task_id=folder.task_id, file=file.name, sha256=found),
            )
    raise Unstartable(
        f"cannot use the file {file.name!r}: its SHA-256 is {found}, not {file.sha256}"
    )


async def _fetch_patiently(source: Source, file: TaskFile, folder: Folder) -> str:
    """Fetch a file, retried through an outage, and return its checksum."""
    policy = source.timings.backoff(gives_up_after_s=source.timings.download_gives_up_s)
    log_failure = log_retry("cannot fetch a file", task_id=folder.task_id, file=file.name)
    attempts = Retry(source.clock, policy, log_failure)
    while True:
        try:
            async with source.orchestrator.download(source.identity, file.name) as download:
                return await _write(download, file, folder)
        except Unauthorised:
            raise
        except Refused as error:
            if error.detail is None and attempts.failures + 1 < _UNEXPLAINED_ATTEMPTS:
                await attempts.wait_after(error)
                continue
            raise FileRefused(f"cannot fetch the file {file.name!r}: {error}") from error
        except Unavailable as error:
            try:
                await attempts.wait_after(error)
            except Unavailable:
                raise Unstartable(
                    f"cannot fetch the file {file.name!r}: {error} (attempt {attempts.failures})"
                ) from error


async def _write(download: Download, file: TaskFile, folder: Folder) -> str:
    """Write a file as it comes in and keep it if it is right; give its checksum.

    A body that ends before its promised length is Unavailable: the wire sees to that.
    """
    if download.size is not None:
        await _in_thread(folder.check_room, file.name, download.size)
    part = await _in_thread(PartialFile, folder, file.name)
    try:
        async with aclosing(_blocks(download.chunks)) as blocks:
            async for block in blocks:
                await _in_thread(part.write, block)
        if file.sha256 in {None, part.sha256}:
            await _in_thread(part.keep)
        return part.sha256
    finally:
        with anyio.CancelScope(shield=True):
            await _in_thread(part.discard)


async def _blocks(chunks: AsyncIterator[bytes]) -> AsyncGenerator[list[bytes], None]:
    """Gather chunks until they are worth a worker thread's while."""
    block: list[bytes] = []
    size = 0
    async for chunk in chunks:
        block.append(chunk)
        size += len(chunk)
        if size >= _BLOCK_BYTES:
            yield block
            block, size = [], 0
    if block:
        yield block


@asynccontextmanager
async def _opened(home: Path, task_id: str, min_free_disk: int) -> AsyncIterator[Folder]:
    """Open the folder of a task's files, made if need be, rid of what was left half done."""
    with _unstartable(f"open the folder {files_folder(home, task_id)}"):
        folder = await _in_thread(Folder, home, task_id, min_free_disk)
    try:
        with _unstartable(f"clear the folder {folder.path}"):
            await _in_thread(folder.remove_parts)
        yield folder
    finally:
        folder.close()


@contextmanager
def _unstartable(doing: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Unstartable(f"cannot {doing}: {error.strerror or error}") from error


_in_thread = anyio.to_thread.run_sync
