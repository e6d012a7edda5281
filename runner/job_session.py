"""The session of the agent that a reporter works for, found in a database that tasks share."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

import anyio
import anyio.to_thread

from runner.crush import Found, Wanted, find_sessions, read_session
from runner.crush_database import CrushError
from runner.crush_mark import session_mark
from runner.errors import RunnerError, Unavailable
from runner.job import Job

log = logging.getLogger(__name__)

_LOOK_PATIENCE_S = 2.0

T = TypeVar("T")


class NothingToHandIn(RunnerError):
    """There is no session, or none that is certainly this task's."""


class JobSession:
    """Looked for whenever it is needed, until it is known."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._wanted = Wanted(job.started_at, None, job.prompt, session_mark(job.task_id))
        self._id: str | None = None

    async def known_id(self) -> str | None:
        """Give its id if that is known now, or soon: a report goes out without it as well."""
        if self._id is None:
            look = partial(
                find_sessions, self._job.database, self._wanted, busy_timeout_s=_LOOK_PATIENCE_S
            )
            try:
                found = await _within(anyio.current_time() + _LOOK_PATIENCE_S, look)
            except CrushError as error:
                log.warning("%s", error)
                return None
            except Unavailable:
                return None
            self._id = found.ids[0] if found.are_ours else None
        return self._id

    async def read(self, session_id: str | None, until: float) -> Mapping[str, object]:
        """Read the task's latest session, or the one that is named, as `POST /logs` takes it.

        Raises:
            NothingToHandIn: there is none that may be handed in.
            CrushError: the database cannot be read.
            Unavailable: that takes longer than `until`, a moment on the event loop's clock.
        """
        return await _within(until, partial(self._read, session_id))

    def _read(self, session_id: str | None) -> Mapping[str, object]:
        found = find_sessions(self._job.database, self._wanted)
        if session_id is None:
            session_id = self._latest(found)
        if session_id not in found.ids:
            raise NothingToHandIn(f"this task has no session {session_id[:80]!r}")
        session = read_session(self._job.database, session_id, secrets=self._job.secrets)
        if session is None:
            raise NothingToHandIn(f"the session {session_id!r} is gone")
        return session

    def _latest(self, found: Found) -> str:
        if not found.ids:
            raise NothingToHandIn(f"{self._job.database} has no session of this task")
        if not found.are_ours:
            raise NothingToHandIn(
                f"{len(found.ids)} sessions could be this task's; now that you have read "
                f"{session_mark(self._job.task_id)}, call this tool again"
            )
        return found.ids[0]


async def _within(until: float, read: Callable[[], T]) -> T:
    """Read something in a worker thread, which is left alone when the time is up."""
    try:
        with anyio.fail_after(max(0.0, until - anyio.current_time())):
            return await anyio.to_thread.run_sync(read, abandon_on_cancel=True)
    except TimeoutError:
        raise Unavailable("reading the Crush database takes too long") from None
