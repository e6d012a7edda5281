"""The hand-over from the status reporter in a task's container to the runner: one JSON file.

The reporter writes it before and after it sends, the runner reads it when the container has exited.
So a final status survives an outage of the orchestrator, and the runner does not contradict it.
A task may have several reporters at once, such as one of each sub-agent: they share the file.
Anything in the container may have written the file. That could send the same reports itself, since
it has its task's key, so the content is checked and limited in size and needs no further trust.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from runner.errors import RunnerError
from runner.handles import open_below, read_below, write_below
from runner.model import MOST_MESSAGE_CHARS, TaskStatus
from runner.timing import DEFAULT_REPORTER_TIMINGS, ReporterTimings

_NAME = "reporter.json"
_VERSION = 1
_MAX_BYTES = 2 << 20  # more than the longest message takes, with every character escaped
_MAX_ID_CHARS = 200


class HandoverError(RunnerError):
    """The reporter's state cannot be read, or was not written by the reporter."""


@dataclass(frozen=True)
class FinalStatus:
    """The final status that the agent reported."""

    status: TaskStatus
    """Success or error."""
    message: str | None
    session_id: str | None
    is_sent: bool
    """Whether the orchestrator has accepted it."""


@dataclass(frozen=True)
class ReporterState:
    """What the reporter of a task has done, as far as the runner must know it."""

    log_digest: str | None = None
    """The `digest_of` the session that was sent as the log; None if none was."""
    log_session_id: str | None = None
    final: FinalStatus | None = None


def update_reporter_state(
    home: Path,
    task_id: str,
    change: Callable[[ReporterState], ReporterState],
    *,
    known: ReporterState | None = None,
    timings: ReporterTimings = DEFAULT_REPORTER_TIMINGS,
) -> ReporterState:
    """Change the state in the task's folder while no other reporter does; return the new one.

    The folder is created if need be. `known` stands for a state that is missing or unreadable.

    Raises:
        OSError: it cannot be written.
    """
    folder = open_below(home, ("tasks", task_id), make=True)
    try:
        # Closing the folder releases the lock, as does the end of this process, however it comes.
        _lock(folder, timings)
        try:
            state = _read(folder)
        except HandoverError:
            state = None
        state = change(state or known or ReporterState())
        content = json.dumps({"version": _VERSION, **asdict(state)}).encode()
        # The owner of the home is the host's user; this process may be root in a container.
        write_below(folder, _NAME, content, home.stat())
    finally:
        os.close(folder)
    return state


def _lock(folder: int, timings: ReporterTimings) -> None:
    """Lock an open folder. Without a lock the worst is that one reporter's state is lost."""
    gives_up_at_s = time.monotonic() + timings.lock_timeout_s
    while time.monotonic() < gives_up_at_s:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(timings.lock_retry_s)
        except OSError:
            return  # a file system without locks, such as some networks have
        else:
            return


def read_reporter_state(home: Path, task_id: str) -> ReporterState:
    """Read what the reporter wrote; an empty state if it wrote nothing.

    Raises:
        HandoverError: the file was not written by the reporter.
    """
    try:
        folder = open_below(home, ("tasks", task_id), make=False)
    except FileNotFoundError:
        return ReporterState()
    except OSError as error:
        raise HandoverError(f"cannot read the reporter's state: {error.strerror}") from error
    try:
        return _read(folder) or ReporterState()
    finally:
        os.close(folder)


def _read(folder: int) -> ReporterState | None:
    """Return the state in an open folder; None if there is none."""
    try:
        content = read_below(folder, _NAME, _MAX_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise HandoverError(f"cannot read the reporter's state: {error.strerror}") from error
    try:
        return _parse_state(json.loads(content))
    except (ValueError, RecursionError) as error:
        raise HandoverError(f"cannot read the reporter's state: {error}") from error


def _parse_state(raw: object) -> ReporterState:
    if not isinstance(raw, dict) or raw.get("version") != _VERSION:
        raise ValueError("it is not of this version")
    return ReporterState(
        log_digest=_parse_text(raw.get("log_digest"), _MAX_ID_CHARS),
        log_session_id=_parse_text(raw.get("log_session_id"), _MAX_ID_CHARS),
        final=None if raw.get("final") is None else _parse_final(raw["final"]),
    )


def _parse_final(raw: object) -> FinalStatus:
    if not isinstance(raw, dict):
        raise ValueError("its final status is not an object")  # noqa: TRY004 - wrong content, as below
    status, is_sent = raw.get("status"), raw.get("is_sent")
    if status not in (TaskStatus.SUCCESS, TaskStatus.ERROR) or not isinstance(is_sent, bool):
        raise ValueError("its final status is neither success nor error")
    return FinalStatus(
        status=TaskStatus(status),
        message=_parse_text(raw.get("message"), MOST_MESSAGE_CHARS),
        session_id=_parse_text(raw.get("session_id"), _MAX_ID_CHARS),
        is_sent=is_sent,
    )


def _parse_text(value: object, max_chars: int) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > max_chars or "\x00" in value:
        raise ValueError("a text in it is too long or not text")
    value.encode()  # a lone surrogate could not be sent
    return value
