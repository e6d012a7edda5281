"""What the status reporter does for an agent: send its reports, hand in its log, leave a trace.

Whatever goes wrong becomes an answer with one sentence in it. A final word is written down before
it is sent, so that it survives the end of the container at any moment.
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
from runner.model import log_body, status_body
from runner.redaction import encoded_forms, redact
from runner.reporter.job import Job, JobSession
from runner.timing import RetryPolicy
from runner.workspace.handover import (
    MOST_MESSAGE_CHARS,
    FinalStatus,
    HandoverError,
    ReporterState,
    read_reporter_state,
    write_reporter_state,
)

log = logging.getLogger(__name__)
PATIENCE_S = 30.0
"""How long an agent can bear to wait for one answer."""
_RETRY = RetryPolicy(ceiling_s=5.0)
_FINAL = frozenset({"success", "error"})
Answer = dict[str, object]
T = TypeVar("T")


class Reporter:
    """The reporter of one task; an agent's calls are taken one after another."""

    def __init__(
        self, job: Job, orchestrator: OrchestratorClient, *, patience_s: float = PATIENCE_S
    ) -> None:
        self._job = job
        self._orchestrator = orchestrator
        self._patience_s = patience_s
        self._turn = anyio.Lock()
        self._trace = _trace_of(job)
        self._session = JobSession(job)
        self._forms = encoded_forms(job.secrets)

    async def report(self, status: str, message: str | None, progress: float | None) -> Answer:
        """Tell how the task stands; a `success` or `error` is its end."""
        until = self._until()
        async with self._turn:
            return await self._report(status, self._prepare_message(message), progress, until)

    async def finish(self, status: str, message: str | None, *, submit_logs: bool) -> Answer:
        """Hand in the log, if that is query, then tell the end."""
        until = self._until()
        message = self._prepare_message(message)
        async with self._turn:
            session_id = await self._session.known_id()
            # Before the log: the container may be gone before that has been taken.
            await self._expect(FinalStatus(status, message, session_id, is_sent=False))
            logs: Answer = {}
            if submit_logs:
                # Half of the time, so that the end can be told when the log is not taken.
                logs = {"logs": await self._hand_in(None, until - self._patience_s / 2)}
            progress = 100.0 if status == "success" else None
            return {**await self._report(status, message, progress, until), **logs}

    async def hand_in(self, session_id: str | None) -> Answer:
        """Hand in a session as the task's log: the latest, or the one that is named."""
        until = self._until()
        async with self._turn:
            return await self._hand_in(session_id, until)

    async def job_info(self) -> Answer:
        """Say what the reporter knows of its job, without the key."""
        return {
            "job_id": self._job.task_id,
            "orchestrator_url": self._job.orchestrator_url,
            "has_api_key": bool(self._job.identity.api_key),
            "crush_database": str(self._job.database),
            "logs_submitted": self._trace.log_digest is not None,
            "final_status": self._trace.final and self._trace.final.status,
            "reporter": session_mark(self._job.task_id),
        }

    def _until(self) -> float:
        return anyio.current_time() + self._patience_s

    def _prepare_message(self, message: str | None) -> str | None:
        """Give a message without what must not or cannot be sent."""
        if message is None:
            return None
        message = redact(to_valid_unicode(message), self._forms)
        cut = " [… cut]"
        too_long = len(message) > MOST_MESSAGE_CHARS
        return message[: MOST_MESSAGE_CHARS - len(cut)] + cut if too_long else message

    # Status

    async def _report(
        self, status: str, message: str | None, progress: float | None, until: float
    ) -> Answer:
        session_id = await self._session.known_id()
        word = FinalStatus(status, message, session_id, is_sent=False) if status in _FINAL else None
        is_kept = word is not None and await self._expect(word)
        body = status_body(self._job.task_id, status, message, time.time())
        told = {"progress": progress, "crush_session_id": session_id}
        body.update((name, value) for name, value in told.items() if value is not None)
        try:
            report = partial(self._orchestrator.send_status, self._job.identity, body)
            standing = await self._send(report, until)
        except RunnerError as error:
            later = "; it is kept, and delivered when this container has ended" if is_kept else ""
            return _failure(f"cannot report {status!r}: {error}{later}")
        if word is not None:
            await self._leave(replace(self._trace, final=self._stands(word, standing)))
        return {
            "sent": True,
            "job_id": self._job.task_id,
            "status": status,
            **_standing(status, standing),
            "reporter": session_mark(self._job.task_id),
        }

    async def _expect(self, word: FinalStatus) -> bool:
        """Write down a final word that is about to be sent, unless one stands; say if it is."""
        if self._trace.final is not None and self._trace.final.is_sent:
            return False
        return await self._leave(replace(self._trace, final=word))

    def _stands(self, word: FinalStatus, standing: str | None) -> FinalStatus:
        """Give the final word that stands at the orchestrator after it has taken this one."""
        if standing in {None, word.status} or standing not in _FINAL:
            return replace(word, is_sent=True)
        before = self._trace.final
        if before is not None and before.status == standing:
            return before
        return FinalStatus(standing, None, word.session_id, is_sent=True)

    async def _leave(self, trace: ReporterState) -> bool:
        self._trace = trace
        write = partial(write_reporter_state, self._job.home, self._job.task_id, trace)
        try:
            await anyio.to_thread.run_sync(write)
        except OSError as error:
            log.error("cannot leave a trace for the runner: %s", error.strerror)
            return False
        return True

    # Log

    async def _hand_in(self, session_id: str | None, until: float) -> Answer:
        # Should it not be taken now, then the runner has to see to it.
        await self._leave(replace(self._trace, log_digest=None))
        try:
            session = await self._session.read(session_id, until)
            digest = await anyio.to_thread.run_sync(digest_of, session)
            body = log_body(self._job.task_id, session)
            taken = await self._send(
                partial(hand_in_log, self._orchestrator, self._job.identity, body), until
            )
        except RunnerError as error:
            return _failure(f"cannot submit the log: {error}")
        sent_id = str(session["id"])
        await self._leave(replace(self._trace, log_digest=digest, log_session_id=sent_id))
        messages = taken["messages"]
        return {
            "sent": True,
            "job_id": self._job.task_id,
            "session_id": sent_id,
            "message_count": len(messages) if isinstance(messages, list) else 0,
            "reporter": session_mark(self._job.task_id),
        }

    # The wire

    async def _send(self, call: Callable[[], Awaitable[T]], until: float) -> T:
        """Call the orchestrator, again and again until the time is up; give its answer."""
        if not self._job.identity.api_key:
            raise Unauthorised("NODE_API_KEY is not set")
        attempts = 0
        failure = Unavailable("no time was left for it")
        while (left_s := until - anyio.current_time()) > 0:
            try:
                with anyio.fail_after(left_s):
                    return await call()
            except TimeoutError:
                raise failure if attempts else Unavailable("no answer in time") from None
            except Unavailable as error:
                failure = error
            attempts += 1
            pause_s = _RETRY.wait_s(attempts, failure.retry_after_s)
            if anyio.current_time() + pause_s >= until:
                break
            await anyio.sleep(pause_s)
        raise failure


def _trace_of(job: Job) -> ReporterState:
    """Go on from what an earlier reporter of this task has left."""
    try:
        return read_reporter_state(job.home, job.task_id)
    except HandoverError as error:
        log.warning("%s", error)
        return ReporterState()


def _standing(status: str, standing: str | None) -> Answer:
    """Say where the task stands, if the orchestrator said so and it is not where it was put."""
    if standing in {None, status}:
        return {}
    note = (
        "the task was cancelled: stop working on it"
        if standing == "cancelled"
        else f"the task had ended as {standing} before; this report has changed nothing"
    )
    return {"task_status": standing, "note": note}


def _failure(sentence: str) -> Answer:
    return {"sent": False, "error": sentence}
