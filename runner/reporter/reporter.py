"""What the status reporter does for an agent: send its reports, submit its log, save its state.

Whatever goes wrong becomes an answer with one sentence in it. A final status is saved before it is
sent, so that it survives the end of the container at any moment.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import TypeVar

import anyio
import anyio.to_thread

from runner.api.client import OrchestratorClient
from runner.crush.log import digest_of, hand_in_log
from runner.crush.messages import to_valid_unicode
from runner.crush.sessions import session_mark
from runner.errors import RunnerError, Unauthorised, Unavailable
from runner.model import TaskStatus, log_body, status_body
from runner.redaction import encoded_forms, plain_text, redact
from runner.reporter.job import Job, JobSession
from runner.timing import (
    DEFAULT_REPORTER_TIMINGS,
    HostClock,
    ReporterTimings,
    Retry,
    RetryPolicy,
    retry,
)
from runner.workspace.handover import (
    MOST_MESSAGE_CHARS,
    FinalStatus,
    HandoverError,
    ReporterState,
    read_reporter_state,
    write_reporter_state,
)

log = logging.getLogger(__name__)
ToolAnswer = dict[str, object]
"""A tool's answer as JSON: `sent`, and with it `error` if that is false, or what was sent."""
T = TypeVar("T")


class Reporter:
    """The reporter of one task; handles an agent's calls one after another."""

    def __init__(
        self,
        job: Job,
        orchestrator: OrchestratorClient,
        timings: ReporterTimings = DEFAULT_REPORTER_TIMINGS,
    ) -> None:
        self._job = job
        self._orchestrator = orchestrator
        self._timings = timings
        self._clock = HostClock()
        self._lock = anyio.Lock()
        self._state = _saved_state(job)
        self._session = JobSession(job, timings)
        self._secret_forms = encoded_forms(job.secrets)

    async def report(self, status: str, message: str | None, progress: float | None) -> ToolAnswer:
        """Report the task's status, one that `TaskStatus` has; `success` and `error` are final."""
        deadline = self._deadline()
        message = self._prepare_message(message)
        async with self._lock:
            return await self._report(TaskStatus(status), message, progress, deadline)

    async def finish(self, status: str, message: str | None, *, submit_logs: bool) -> ToolAnswer:
        """Hand in the log, if that is asked for, then report the final status."""
        deadline = self._deadline()
        end, message = TaskStatus(status), self._prepare_message(message)
        async with self._lock:
            session_id = await self._session.known_id()
            # Before the log: the container may be gone before that has been taken.
            await self._save_final(FinalStatus(end, message, session_id, is_sent=False))
            logs: ToolAnswer = {}
            if submit_logs:
                # Half of the time, so that the status can be sent when the log is not taken.
                logs = {
                    "logs": await self._hand_in(None, deadline - self._timings.call_timeout_s / 2)
                }
            progress = 100.0 if end is TaskStatus.SUCCESS else None
            return {**await self._report(end, message, progress, deadline), **logs}

    async def hand_in(self, session_id: str | None) -> ToolAnswer:
        """Hand in a session as the task's log: the latest, or the one that is named."""
        deadline = self._deadline()
        async with self._lock:
            return await self._hand_in(session_id, deadline)

    async def job_info(self) -> ToolAnswer:
        """Return what the reporter knows of its job, without the key."""
        return {
            "job_id": self._job.task_id,
            "orchestrator_url": self._job.orchestrator_url,
            "has_api_key": bool(self._job.identity.api_key),
            "crush_database": str(self._job.database),
            "logs_submitted": self._state.log_digest is not None,
            "final_status": self._state.final and self._state.final.status,
            "reporter": session_mark(self._job.task_id),
        }

    def _deadline(self) -> float:
        return anyio.current_time() + self._timings.call_timeout_s

    def _prepare_message(self, message: str | None) -> str | None:
        """Redact a message, and replace or truncate what the orchestrator would not take."""
        if message is None:
            return None
        message = redact(plain_text(to_valid_unicode(message)), self._secret_forms)
        mark = " [… cut]"
        too_long = len(message) > MOST_MESSAGE_CHARS
        return message[: MOST_MESSAGE_CHARS - len(mark)] + mark if too_long else message

    # Status

    async def _report(
        self, status: TaskStatus, message: str | None, progress: float | None, deadline: float
    ) -> ToolAnswer:
        session_id = await self._session.known_id()
        final = FinalStatus(status, message, session_id, is_sent=False)
        is_saved = status.is_final and await self._save_final(final)
        body = status_body(self._job.task_id, status, message, time.time())
        if progress is not None:
            body["progress"] = progress
        if session_id is not None:
            body["crush_session_id"] = session_id
        try:
            send = partial(self._orchestrator.send_status, self._job.identity, body)
            standing = await self._send(send, deadline)
        except RunnerError as error:
            later = "; it is kept, and delivered when this container has ended" if is_saved else ""
            return _failure(f"cannot report {status.value!r}: {error}{later}")
        if status.is_final:
            await self._save(replace(self._state, final=self._standing_final(final, standing)))
        return {
            "sent": True,
            "job_id": self._job.task_id,
            "status": status.value,
            **_conflict(status, standing),
            "reporter": session_mark(self._job.task_id),
        }

    async def _save_final(self, final: FinalStatus) -> bool:
        """Save a final status that is not sent yet, unless one was sent; return whether it did."""
        if self._state.final is not None and self._state.final.is_sent:
            return False
        return await self._save(replace(self._state, final=final))

    def _standing_final(self, final: FinalStatus, standing: TaskStatus | None) -> FinalStatus:
        """Return the final status that the orchestrator has after it has answered `final`."""
        if standing in {None, final.status, TaskStatus.CANCELLED}:
            return replace(final, is_sent=True)
        before = self._state.final
        if before is not None and before.status == standing:
            return before
        return FinalStatus(standing, None, final.session_id, is_sent=True)

    async def _save(self, state: ReporterState) -> bool:
        self._state = state
        write = partial(write_reporter_state, self._job.home, self._job.task_id, state)
        try:
            await anyio.to_thread.run_sync(write)
        except OSError as error:
            log.error("cannot save the reporter's state for the runner: %s", error.strerror)
            return False
        return True

    # Log

    async def _hand_in(self, session_id: str | None, deadline: float) -> ToolAnswer:
        # If the log is not taken now, the runner must see that it is missing.
        await self._save(replace(self._state, log_digest=None))
        try:
            session = await self._session.read(session_id, deadline)
            digest = await anyio.to_thread.run_sync(digest_of, session)
            body = log_body(self._job.task_id, session)
            send = partial(hand_in_log, self._orchestrator, self._job.identity, body)
            accepted = await self._send(send, deadline)
        except RunnerError as error:
            return _failure(f"cannot submit the log: {error}")
        sent_id = str(session["id"])
        await self._save(replace(self._state, log_digest=digest, log_session_id=sent_id))
        messages = accepted["messages"]
        return {
            "sent": True,
            "job_id": self._job.task_id,
            "session_id": sent_id,
            "message_count": len(messages) if isinstance(messages, list) else 0,
            "reporter": session_mark(self._job.task_id),
        }

    # Delivery

    async def _send(self, call: Callable[[], Awaitable[T]], deadline: float) -> T:
        """Call the orchestrator, and retry with backoff until it answers; return its answer.

        Raises:
            RunnerError: it refused, or it was unavailable until `deadline`.
        """
        if not self._job.identity.api_key:
            raise Unauthorised("NODE_API_KEY is not set")
        failure: Exception = Unavailable("no answer in time")

        def note_failure(error: Exception, wait_s: float) -> None:
            nonlocal failure
            failure = error
            if anyio.current_time() + wait_s >= deadline:
                raise error

        policy = RetryPolicy(ceiling_s=self._timings.retry_ceiling_s)
        try:
            with anyio.fail_after(max(0.0, deadline - anyio.current_time())):
                return await retry(call, Unavailable, Retry(self._clock, policy, note_failure))
        except TimeoutError:
            raise failure from None


def _saved_state(job: Job) -> ReporterState:
    """Return the state that an earlier reporter of this task has saved."""
    try:
        return read_reporter_state(job.home, job.task_id)
    except HandoverError as error:
        log.warning("%s", error)
        return ReporterState()


def _conflict(status: TaskStatus, standing: TaskStatus | None) -> ToolAnswer:
    """Return a note if the orchestrator has the task at another status than the reported one."""
    if standing in {None, status}:
        return {}
    note = (
        "the task was cancelled: stop working on it"
        if standing is TaskStatus.CANCELLED
        else f"the task had ended as {standing} before; this report has changed nothing"
    )
    return {"task_status": standing, "note": note}


def _failure(sentence: str) -> ToolAnswer:
    return {"sent": False, "error": sentence}
