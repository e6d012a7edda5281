"""What the status reporter does for an agent: send its reports, submit its log, save its state.

Whatever goes wrong becomes an answer with one sentence in it. A final status is saved before it is
sent, so that it survives the end of the container at any moment. A task may have other reporters,
such as those of an agent's sub-agents: what one of them has saved stays, and goes first.
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
from runner.errors import Refused, RunnerError, Unauthorised, Unavailable
from runner.model import MOST_MESSAGE_CHARS, TaskStatus, log_body, status_body
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
    FinalStatus,
    HandoverError,
    ReporterState,
    read_reporter_state,
    update_reporter_state,
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
        self._state = _saved_state(job, ReporterState())
        """As this reporter last read or wrote it."""
        self._kept: FinalStatus | None = None
        """The final status that this reporter has saved and not sent."""
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
        self._state = await anyio.to_thread.run_sync(_saved_state, self._job, self._state)
        return {
            "job_id": self._job.task_id,
            "orchestrator_url": self._job.orchestrator_url,
            "has_api_key": bool(self._job.identity.api_key),
            "artifacts_dir": self._job.artifacts_dir,
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
        try:
            if status.is_final:
                await self._send_kept_by_another(deadline)
            standing = await self._send_status(final, progress, deadline)
        except RunnerError as error:
            later = "; it is kept, and delivered when this container has ended" if is_saved else ""
            if status.is_final and (other := self._kept_by_another()):
                later = f"; another reporter has reported {other.status.value!r}, which is kept"
            return _failure(f"cannot report {status.value!r}: {error}{later}")
        if status.is_final:
            await self._save(partial(_with_standing, final=final, standing=standing))
        return {
            "sent": True,
            "job_id": self._job.task_id,
            "status": status.value,
            **_conflict(status, standing),
            "reporter": session_mark(self._job.task_id),
        }

    async def _send_status(
        self, report: FinalStatus, progress: float | None, deadline: float
    ) -> TaskStatus | None:
        body = status_body(self._job.task_id, report.status, report.message, time.time())
        if progress is not None:
            body["progress"] = progress
        if report.session_id is not None:
            body["crush_session_id"] = report.session_id
        send = partial(self._orchestrator.send_status, self._job.identity, body)
        return await self._send(send, deadline)

    async def _save_final(self, final: FinalStatus) -> bool:
        """Save a final status that is not sent yet; return whether it did.

        One that was sent, or that another reporter has saved, stays.
        """

        def keep(state: ReporterState) -> ReporterState:
            is_free = state.final is None or state.final == self._kept
            return replace(state, final=final) if is_free else state

        is_written = await self._save(keep)
        if self._state.final != final:
            return False
        self._kept = final
        return is_written

    def _kept_by_another(self) -> FinalStatus | None:
        final = self._state.final
        return None if final is None or final.is_sent or final == self._kept else final

    async def _send_kept_by_another(self, deadline: float) -> None:
        """Send the final status that another reporter has saved: the task's first end stands."""
        kept = self._kept_by_another()
        if kept is None:
            return
        try:
            report = replace(kept, message=self._prepare_message(kept.message))
            standing = await self._send_status(report, None, deadline)
        except Refused as error:
            log.warning("cannot report what another reporter has kept: %s", error)
        else:
            await self._save(partial(_with_standing, final=kept, standing=standing))

    async def _save(self, change: Callable[[ReporterState], ReporterState]) -> bool:
        """Change the state for the runner; return whether it could be written."""
        home, task_id = self._job.home, self._job.task_id
        update = partial(
            update_reporter_state, home, task_id, change, known=self._state, timings=self._timings
        )
        try:
            self._state = await anyio.to_thread.run_sync(update)
        except OSError as error:
            log.error("cannot save the reporter's state for the runner: %s", error.strerror)
            self._state = change(self._state)
            return False
        return True

    # Log

    async def _hand_in(self, session_id: str | None, deadline: float) -> ToolAnswer:
        before: str | None = None

        def forget_log(state: ReporterState) -> ReporterState:
            nonlocal before
            before = state.log_digest
            return replace(state, log_digest=None)

        try:
            session = await self._session.read(session_id, deadline)
            digest = await anyio.to_thread.run_sync(digest_of, session)
            body = log_body(self._job.task_id, session)
            send = partial(hand_in_log, self._orchestrator, self._job.identity, body)
            # If the log is not taken now, the runner must see that it is missing.
            await self._save(forget_log)
            accepted = await self._send(send, deadline)
        except RunnerError as error:
            if isinstance(error, Refused):
                await self._save(
                    lambda state: replace(state, log_digest=state.log_digest or before)
                )
            return _failure(f"cannot submit the log: {error}")
        sent_id = str(session["id"])
        await self._save(lambda state: replace(state, log_digest=digest, log_session_id=sent_id))
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


def _saved_state(job: Job, otherwise: ReporterState) -> ReporterState:
    """Return the state that reporters of this task have saved."""
    try:
        return read_reporter_state(job.home, job.task_id)
    except HandoverError as error:
        log.warning("%s", error)
        return otherwise


def _with_standing(
    state: ReporterState, *, final: FinalStatus, standing: TaskStatus | None
) -> ReporterState:
    """Return the state with the final status that the orchestrator has after it took `final`."""
    status = final.status if standing in {None, TaskStatus.CANCELLED} else standing
    held = state.final
    if held is not None and held.status == status and (held.is_sent or status != final.status):
        return replace(state, final=replace(held, is_sent=True))
    if status == final.status:
        return replace(state, final=replace(final, is_sent=True))
    return replace(state, final=FinalStatus(status, None, final.session_id, is_sent=True))


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
