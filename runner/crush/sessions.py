"""A task's session in Crush's database, read by a child process.

Crush is the agent in the container. What its database holds was written by an agent and may be
made to harm its reader. So it is read in a child process, which may take all the time and memory
that it is allowed, or crash: the caller gets a `CrushError`.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import anyio
import anyio.lowlevel
import anyio.to_thread

from runner.crush.messages import to_valid_unicode
from runner.errors import RunnerError
from runner.handles import free_disk
from runner.timing import DEFAULT_TIMINGS

LOG_LIMIT_BYTES = 10_000_000
COPY_LIMIT_BYTES = 1 << 30
"""Of the database, and of its write-ahead log."""
_MAX_ANSWER_BYTES = 11_000_000
_DISK_TEMP = "/var/tmp"  # noqa: S108 - a private folder is made in it
_AT_ONCE = anyio.CapacityLimiter(2)
"""Tasks may end all at once, and each child may take its limits and a copy of the database."""
_SOURCE = Path(__file__).parents[2]
_CANNOT = "cannot read the Crush database"


class CrushError(RunnerError):
    """The database is there and cannot be read: damaged, hostile, or not as Crush makes it."""


class CrushForbidden(CrushError):
    """The database belongs to another user, as a container left it, and may not be opened."""


class CrushBusy(CrushError):
    """Something else keeps writing the database."""


CopyOut = Callable[[str, Path, int], Awaitable[bool]]
"""Writes the file of this name beside the database to a tar file of at most so many bytes; returns
False if there is none. Raises a RunnerError."""
WAL_BEFORE, DATABASE, WAL, JOURNAL = "wal-before", "database", "wal", "journal"
_ARCHIVES = {WAL_BEFORE: "-wal", DATABASE: "", WAL: "-wal", JOURNAL: "-journal"}
"""The tar files that the child reads in place of the database, in the order of their writing, and
how the name of what is in each goes on after the database's."""


@dataclass(frozen=True)
class SessionQuery:
    """What is known of a task's session before it is found."""

    started_at: float
    """When the task's container started, in seconds since the epoch."""
    ended_at: float | None
    """When it ended; None while it runs."""
    prompt: str | None = None
    mark: str | None = None
    """See `session_mark`."""
    others: tuple[str | None, ...] = ()
    """The prompts of the tasks that ran beside it in the same home; None where not known."""
    digests: tuple[str, ...] = ()
    """The `prompt_digest` of each such task that was closed since."""


class Candidates(NamedTuple):
    """The sessions that can belong to a task, the newest first."""

    ids: list[str]
    certain: bool
    """Whether they do; if not, some may be another task's or a user's."""


@dataclass(frozen=True)
class ChildLimits:
    """What the child process may take; it gets no `Timings`, for it knows nothing but its request.

    It is ended by one of these if the database harms it; the caller itself waits for less.
    """

    memory_mib: int = 512
    cpu_s: int = 20
    wall_s: int = 60
    """Ends a child whose parent was killed."""
    copy_timeout_s: float = 5.0
    """For a moment in which nothing writes to the database."""
    tick_s: float = 0.01
    """Longer than the kernel's tick: a later write shows in the modification time."""


DEFAULT_LIMITS = ChildLimits()


@dataclass(frozen=True)
class Request:
    """What the child is asked: the candidates, and the log of one of them."""

    database: str
    query: SessionQuery | None = None
    """None if the session's id alone decides."""
    session_id: str | None = None
    """The session to read; None for the newest that certainly is the task's."""
    limit_bytes: int | None = None
    """The most bytes of the log on the wire; None if it is not wanted."""
    secrets: tuple[str, ...] = ()
    copy_dir: str = ""
    """An empty folder for the private copy."""
    archive_dir: str | None = None
    """The folder of `_ARCHIVES`, where this user may not open the database."""
    limits: ChildLimits = DEFAULT_LIMITS

    @classmethod
    def from_json(cls, text: bytes) -> Request:
        """Parse the fields, written as JSON."""
        raw = json.loads(text)
        query, limits = raw.pop("query"), ChildLimits(**raw.pop("limits"))
        return cls(**raw, query=None if query is None else SessionQuery(**query), limits=limits)


class _Answer(NamedTuple):
    candidates: Candidates
    session: dict[str, object] | None


_NOTHING = _Answer(Candidates([], certain=False), None)


def session_mark(task_id: str) -> str:
    """Return the text that is only in a task's own session: its reporter shows it to the agent."""
    return f"victoria-reporter/{task_id}"


def squeeze(text: str) -> str:
    """Return a prompt in the form in which prompts are compared: white space does not count."""
    return " ".join(to_valid_unicode(text).split())


def prompt_digest(prompt: str) -> str:
    """Return a digest that two prompts share if `squeeze` makes them equal."""
    return hashlib.sha256(squeeze(prompt).encode()).hexdigest()


async def find_sessions(database: Path, query: SessionQuery) -> Candidates:
    """Return the sessions that can belong to a task; `search.find` has the rules.

    Raises:
        CrushError: the database cannot be read.
    """
    return (await _ask(Request(str(database), query))).candidates


async def read_session(
    database: Path,
    session_id: str,
    *,
    secrets: Collection[str] = (),
    limit_bytes: int = LOG_LIMIT_BYTES,
    read_timeout_s: float = DEFAULT_TIMINGS.session_read_timeout_s,
) -> dict[str, object] | None:
    """Return a session as `POST /logs` takes it, or None when there is no such session.

    Posted to `/logs` it takes at most `limit_bytes`, which must be some 10,000 or more. Cuts are
    marked: by a first message of the role `system`, and at the head of a message's content. Secrets
    are redacted in all texts before these are cut. Sessions of sub-agents are left out; their
    answers are in the messages of their parent.

    Raises:
        CrushError: the database cannot be read.
    """
    request = Request(str(database), None, session_id, limit_bytes, tuple(secrets))
    return (await _ask(request, read_timeout_s)).session


async def session_of_task(
    database: Path,
    query: SessionQuery,
    secrets: Collection[str] = (),
    *,
    copy_out: CopyOut | None = None,
    read_timeout_s: float = DEFAULT_TIMINGS.session_read_timeout_s,
) -> dict[str, object] | None:
    """Return the newest session that certainly is the task's, as `read_session` does.

    `copy_out` is used if this user may not open the database.

    Raises:
        CrushError: the database cannot be read.
        RunnerError: `copy_out` has raised it.
    """
    request = Request(str(database), query, None, LOG_LIMIT_BYTES, tuple(secrets))
    return (await _ask(request, read_timeout_s, copy_out)).session


async def _ask(
    request: Request,
    timeout_s: float = DEFAULT_TIMINGS.session_read_timeout_s,
    copy_out: CopyOut | None = None,
) -> _Answer:
    """Ask a child process; it is gone when this returns, whichever way.

    Raises:
        CrushError: it cannot be started, or cannot read the database within its limits.
    """
    try:
        if not await anyio.to_thread.run_sync(_is_there, request.database):
            return _NOTHING
        async with _AT_ONCE:
            with _temporary_dir() as copy_dir:
                return await _run_child(replace(request, copy_dir=copy_dir), timeout_s)
    except CrushForbidden:
        if copy_out is None:
            raise
    except OSError as error:
        raise CrushError(f"{_CANNOT}: {error.strerror or error}") from error
    try:
        async with _AT_ONCE:
            return await _ask_about_archives(request, timeout_s, copy_out)
    except OSError as error:
        raise CrushError(f"{_CANNOT}: {error.strerror or error}") from error


def _is_there(path: str) -> bool:
    try:
        os.lstat(path)
    except PermissionError as error:
        raise CrushForbidden(f"{_CANNOT}: permission denied") from error
    except OSError:
        return False
    return True


def _temporary_dir() -> tempfile.TemporaryDirectory[str]:
    # A copy belongs on a disk; /tmp may be memory.
    parent_dir = _DISK_TEMP if os.access(_DISK_TEMP, os.W_OK | os.X_OK) else None
    return tempfile.TemporaryDirectory(prefix="victoria-crush-", dir=parent_dir)


async def _ask_about_archives(request: Request, timeout_s: float, copy_out: CopyOut) -> _Answer:
    """Have the database archived, until nothing was written meanwhile, and ask a child about that.

    Raises:
        CrushError: as `_ask`.
        RunnerError: `copy_out` has raised it.
    """
    ends_at_s = anyio.current_time() + request.limits.copy_timeout_s
    name = Path(request.database).name
    while True:
        with _temporary_dir() as archive_dir, _temporary_dir() as copy_dir:
            # The archives, and then the copies.
            max_bytes = min(COPY_LIMIT_BYTES, free_disk(Path(archive_dir)) // 4)
            for archive, suffix in _ARCHIVES.items():
                path = Path(archive_dir, archive)
                if not await copy_out(f"{name}{suffix}", path, max_bytes) and not suffix:
                    return _NOTHING
            request = replace(request, archive_dir=archive_dir, copy_dir=copy_dir)
            try:
                return await _run_child(request, timeout_s)
            except CrushBusy:
                if anyio.current_time() > ends_at_s:
                    raise


async def _run_child(request: Request, timeout_s: float) -> _Answer:
    with subprocess.Popen(  # noqa: ASYNC220 - our own program; vfork takes a millisecond
        [sys.executable, "-X", "utf8", "-m", "runner.crush"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=_SOURCE,  # the first entry of its sys.path: never a folder of the agent's
        start_new_session=True,  # an operator's Ctrl-C drains, and must not end it
    ) as child:
        with anyio.move_on_after(timeout_s) as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(_kill_when_cancelled, child)
                answer = await anyio.to_thread.run_sync(_talk, child, request)
                group.cancel_scope.cancel()
    await anyio.lowlevel.checkpoint_if_cancelled()
    if scope.cancel_called:
        raise CrushError(f"{_CANNOT}: it takes longer than {timeout_s:g} s")
    if isinstance(answer, CrushError):
        raise answer
    return answer


async def _kill_when_cancelled(child: subprocess.Popen[bytes]) -> None:
    try:
        await anyio.sleep_forever()
    finally:
        child.kill()  # which ends the thread that talks to it


def _talk(child: subprocess.Popen[bytes], request: Request) -> _Answer | CrushError:
    if child.stdin is None or child.stdout is None:
        raise AssertionError("both are pipes")
    with suppress(BrokenPipeError), child.stdin:
        path = str(Path(request.database).absolute())  # it works in another folder
        child.stdin.write(json.dumps({**asdict(request), "database": path}).encode())
    lines, size = [], 0
    # Line by line, so that one wide character does not widen all of the log in memory.
    while (line := child.stdout.readline(_MAX_ANSWER_BYTES)).endswith(b"\n"):
        size += len(line)
        if size > _MAX_ANSWER_BYTES:
            break
        lines.append(json.loads(line))
    if line:
        child.kill()
        return CrushError(f"{_CANNOT}: it has too many sessions")
    if code := child.wait():
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return CrushError(f"{_CANNOT}: the process that reads it ended by {how}")
    head, *messages = lines
    if "error" in head:
        kinds = {kind.__name__: kind for kind in (CrushForbidden, CrushBusy)}
        return kinds.get(head["kind"], CrushError)(head["error"])
    if head["session"] is not None:
        head["session"]["messages"] = messages
    return _Answer(Candidates(head["ids"], head["certain"]), head["session"])
