"""What the status reporter leaves in a task's folder: the log handed in, the agent's final word.

The reporter writes it in the container, before and after it sends; the runner reads it when the
container has ended. So a final word survives an orchestrator that is away, and the runner does
not contradict it. What the runner finds there may have been written by anybody in the container:
who could write it has the node key as well, and could say the same to the orchestrator. It is
bounded and checked, and no more than that is needed.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from runner.errors import RunnerError
from runner.workspace.folders import open_below, read_below, write_below

MOST_MESSAGE_CHARS = 100_000
_NAME = "reporter.json"
_VERSION = 1
_MOST_BYTES = 2 << 20  # more than the longest message takes, with every character escaped
_MOST_ID_CHARS = 200
_WORDS = frozenset({"success", "error"})


class HandoverError(RunnerError):
    """The trace cannot be read, or is none of the reporter's."""


@dataclass(frozen=True)
class FinalStatus:
    """How the agent said that its task ended."""

    status: str
    """`success` or `error`."""
    message: str | None
    session_id: str | None
    is_sent: bool
    """Whether the orchestrator has taken it."""


@dataclass(frozen=True)
class ReporterState:
    """All that the reporter has done for a task that the runner must know."""

    log_digest: str | None = None
    """What `digest_of` gives for the session that was handed in; None if none was."""
    log_session_id: str | None = None
    final: FinalStatus | None = None


def write_reporter_state(home: Path, task_id: str, trace: ReporterState) -> None:
    """Leave the trace in the task's folder, which is made if need be; for the owner's eyes.

    Raises:
        OSError: it cannot be written.
    """
    folder = open_below(home, ("tasks", task_id), make=True)
    try:
        content = json.dumps({"version": _VERSION, **asdict(trace)}).encode()
        # The home is the host's; the folder may have been made by a root in this container.
        write_below(folder, _NAME, content, home.stat())
    finally:
        os.close(folder)


def read_reporter_state(home: Path, task_id: str) -> ReporterState:
    """Read what the reporter has left; an empty trace if it left none.

    Raises:
        HandoverError: there is something that the reporter did not write.
    """
    try:
        folder = open_below(home, ("tasks", task_id), make=False)
        try:
            content = read_below(folder, _NAME, _MOST_BYTES)
        finally:
            os.close(folder)
    except FileNotFoundError:
        return ReporterState()
    except OSError as error:
        raise HandoverError(f"cannot read the reporter's trace: {error.strerror}") from error
    try:
        return _trace_in(json.loads(content))
    except (ValueError, RecursionError) as error:
        raise HandoverError(f"cannot read the reporter's trace: {error}") from error


def _trace_in(raw: object) -> ReporterState:
    if not isinstance(raw, dict) or raw.get("version") != _VERSION:
        raise ValueError("it is not of this version")
    return ReporterState(
        log_digest=_text(raw.get("log_digest"), _MOST_ID_CHARS),
        log_session_id=_text(raw.get("log_session_id"), _MOST_ID_CHARS),
        final=None if raw.get("final") is None else _final_in(raw["final"]),
    )


def _final_in(raw: object) -> FinalStatus:
    if not isinstance(raw, dict):
        raise ValueError("its final word is no object")  # noqa: TRY004 - wrong content, as below
    status, is_sent = raw.get("status"), raw.get("is_sent")
    if not isinstance(status, str) or status not in _WORDS or not isinstance(is_sent, bool):
        raise ValueError("its final word is neither success nor error")
    return FinalStatus(
        status=status,
        message=_text(raw.get("message"), MOST_MESSAGE_CHARS),
        session_id=_text(raw.get("session_id"), _MOST_ID_CHARS),
        is_sent=is_sent,
    )


def _text(value: object, most_chars: int) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > most_chars or "\x00" in value:
        raise ValueError("a text in it is too long, or none")
    value.encode()  # half a character could not be sent
    return value
