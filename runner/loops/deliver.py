"""Deliver the outbox: every report until the orchestrator has it, or has refused it for good.

A task's log goes first, but one that keeps failing, or takes long, does not delay the status. Its
artifacts are uploaded before the status, or given up while the orchestrator responds to others. In
the end a log is given up, a status never. Ends by being cancelled; what is left is in the journal.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import anyio
from anyio.abc import TaskGroup

from runner.api.http import SLOWEST_UPLOAD_BYTES_PER_S
from runner.crush.log import hand_in_log
from runner.errors import JournalError, Refused, Unauthorised, Unavailable
from runner.log import fields
from runner.loops.output import send_chunk
from runner.model import ARTIFACTS, Identity, OutboxEntry
from runner.outage import FailureLog
from runner.tasks.artifacts import ArtifactUpload
from runner.tasks.context import RunnerContext

log = logging.getLogger(__name__)
_LOG_GOES_FIRST_ATTEMPTS = 2
_LOG_ATTEMPTS = 16
_ARTIFACT_ATTEMPTS = 16
"""While the orchestrator takes other calls: some ten minutes. An outage may last."""
_MAIN_LOOP = "deliver"
_BESIDE = {"logs": "deliver a log", ARTIFACTS: "deliver artifacts"}
"""What may take minutes is sent beside the statuses, one of each kind at a time; of output one
chunk of each task."""
_UNEXPLAINED_ATTEMPTS = 120
"""A 4xx without our JSON body probably comes from a reverse proxy during a deployment: retry it
this often, which takes about an hour. A 403 has been retried for `unexplained_refusal_s`."""
_FORBIDDEN = 403
_HAS_ITS_END = frozenset({409, 410})


async def deliver(runner: RunnerContext) -> None:
    """Deliver what is due, then wait for the next entry or the next attempt."""
    async with anyio.create_task_group() as group:
        delivery = _Delivery(runner, group)
        while True:
            seen = runner.outbox.count
            wait_s = runner.timings.outbox_interval_s
            try:
                wait_s = await delivery.deliver_due()
                delivery.journal_failures.end()
            except JournalError as error:
                delivery.journal_failures.note(error, wait_s, str(error), logging.ERROR)
            runner.watchdog.expect(
                _MAIN_LOOP, next_within_s=runner.timings.outbox_interval_s + wait_s
            )
            await runner.outbox.after_or(seen, wait_s, runner.clock)


class _Delivery:
    """Sends statuses one by one.

    Beside them, which may take minutes: one log, the artifacts of one task, and one chunk of each
    task's output.
    """

    def __init__(self, runner: RunnerContext, group: TaskGroup) -> None:
        self._runner = runner
        self._group = group
        self._under_way: set[str] = set()
        """The loops of `_loop_of`, as the watchdog knows them, that are sending something."""
        self.journal_failures = runner.failure_log("use the outbox")
        self._failures: dict[int, FailureLog] = {}
        """By row, of what is in the outbox."""

    async def deliver_due(self) -> float:
        """Deliver what is due; return the seconds until there is more to do.

        Raises:
            JournalError: it cannot be read or written.
        """
        runner = self._runner
        wait_s = runner.timings.outbox_interval_s
        entries = await runner.journal.entries()
        runner.problems.note_parked(sum(entry.parked is not None for entry in entries))
        waiting = _waiting(runner, entries)
        runner.uploading.clear()
        runner.uploading.update(entry.task_id for entry in waiting if entry.is_artifacts)
        self._failures = {entry.row: self._failures_of(entry) for entry in waiting}
        for entry in _next_of_each_task(self._runner, waiting):
            is_last = sum(other.task_id == entry.task_id for other in waiting) == 1
            due_in_s = _due_in_s(self._runner, entry)
            loop = _loop_of(entry)
            if due_in_s > 0:
                wait_s = min(wait_s, due_in_s)
            elif loop == _MAIN_LOOP:
                again_s = await self._attempt(loop, entry, is_last=is_last)
                wait_s = min(wait_s, again_s)
            elif loop not in self._under_way:
                self._under_way.add(loop)
                self._group.start_soon(partial(self._deliver_beside, loop, entry, is_last=is_last))
        return wait_s

    async def _deliver_beside(self, loop: str, entry: OutboxEntry, *, is_last: bool) -> None:
        try:
            await self._attempt(loop, entry, is_last=is_last)
        except JournalError as error:
            pause_s = self._runner.timings.outbox_interval_s
            self.journal_failures.note(error, pause_s, str(error), logging.ERROR)
            await self._runner.clock.sleep(pause_s)
        self._runner.watchdog.suspend(loop)
        self._under_way.discard(loop)
        self._runner.outbox.notify()

    async def _attempt(self, loop: str, entry: OutboxEntry, *, is_last: bool) -> float:
        failures = self._failures[entry.row]
        return await _attempt(self._runner, loop, entry, failures, is_last=is_last)

    def _failures_of(self, entry: OutboxEntry) -> FailureLog:
        ids = {"task_id": entry.task_id, "report": entry.path}
        new = self._runner.node.failure_log("deliver a report", ids)
        return self._failures.get(entry.row, new)


def _loop_of(entry: OutboxEntry) -> str:
    """Return the name, for the watchdog, of the loop that delivers an entry."""
    if entry.is_output:
        return f"deliver the output of {entry.task_id}"
    return _BESIDE.get(entry.path, _MAIN_LOOP)


def _waiting(runner: RunnerContext, entries: list[OutboxEntry]) -> list[OutboxEntry]:
    """Return what is to be delivered; no entry ever goes to another orchestrator."""
    return [
        entry
        for entry in entries
        if entry.parked is None
        and entry.orchestrator_url == runner.orchestrator.url
        and runner.node.can_deliver(entry.task_id)
    ]


def _next_of_each_task(runner: RunnerContext, waiting: list[OutboxEntry]) -> list[OutboxEntry]:
    """Return what may go now: a task's reports keep their order, and delay no other task."""
    chosen: list[OutboxEntry] = []
    waiting_tasks: set[str] = set()
    waiting_outputs: set[str] = set()
    for entry in waiting:
        if entry.task_id in waiting_tasks:
            continue
        if entry.is_output and entry.task_id in waiting_outputs:
            continue  # chunks keep their order, whatever overtakes them
        chosen.append(entry)
        if entry.is_output:
            waiting_outputs.add(entry.task_id)
        if not _can_be_overtaken(runner, entry):
            waiting_tasks.add(entry.task_id)
    return chosen


def _can_be_overtaken(runner: RunnerContext, entry: OutboxEntry) -> bool:
    age_s = abs(runner.clock.wall_s() - entry.created_at)
    is_tried = entry.attempts >= _LOG_GOES_FIRST_ATTEMPTS or age_s >= runner.timings.log_first_s
    return (entry.is_log or entry.is_output) and is_tried


def _due_in_s(runner: RunnerContext, entry: OutboxEntry) -> float:
    due_in_s = entry.next_attempt_at - runner.clock.wall_s()
    # A longer wait than any of ours means that the clock was set back.
    longest_s = max(
        runner.timings.backoff().retry_after_limit_s * 1.1, runner.settings.poll_interval_s
    )
    return due_in_s if due_in_s <= longest_s else 0


async def _attempt(
    runner: RunnerContext, loop: str, entry: OutboxEntry, failures: FailureLog, *, is_last: bool
) -> float:
    """Try to deliver an entry; return the seconds until there is more to do."""
    ids = fields(task_id=entry.task_id, report=entry.path)
    body = await runner.journal.body(entry.row)
    if body is None:
        log.error("cannot read a report: its text in the journal is damaged; parked", extra=ids)
        await runner.journal.park(entry.row, "its text in the journal is damaged")
        runner.outbox.notify()
        return 0
    runner.watchdog.suspend(loop)
    identity = await runner.node.identity_to_deliver(entry.task_id)
    if identity is None:
        return runner.timings.outbox_interval_s
    if identity.is_task_key and (entry.is_output or entry.is_artifacts):
        # A task's key sends its statuses and its log, and nothing else.
        identity = runner.node.known_identity or identity
    _expect_call(runner, loop)
    if entry.is_artifacts:
        return await _upload(runner, loop, entry, failures, identity, body)
    return await _send(runner, loop, entry, failures, identity, body, is_last=is_last)


async def _send(  # noqa: PLR0913, PLR0917 - what is known of the attempt
    runner: RunnerContext,
    loop: str,
    entry: OutboxEntry,
    failures: FailureLog,
    identity: Identity,
    body: Mapping[str, object],
    *,
    is_last: bool,
) -> float:
    """Try to send a report; return the seconds until there is more to do."""
    ids = fields(task_id=entry.task_id, report=entry.path)
    try:
        if entry.is_output:
            await send_chunk(runner, identity, entry, body, partial(_expect_call, runner, loop))
        elif entry.is_log:
            await hand_in_log(runner.orchestrator, identity, body)
        else:
            await runner.orchestrator.send_status(identity, body)
    except Unauthorised as error:
        return await _replace_identity(runner, loop, entry, failures, identity, error)
    except Unavailable as error:
        if not entry.is_log or entry.attempts + 1 < _LOG_ATTEMPTS or not is_last:
            return await _postpone(runner, entry, failures, error)
        # The status was taken: it is the log that this orchestrator cannot take.
        why = f"given up after {entry.attempts + 1} attempts: {error}"
        log.error("cannot deliver a log, %s", why, extra=ids)
        await runner.journal.park(entry.row, why)
    except Refused as error:
        return await _handle_refusal(runner, entry, failures, error)
    else:
        failures.end()
        log.log(logging.DEBUG if entry.is_output else logging.INFO, "report delivered", extra=ids)
        await runner.journal.delivered(entry.row)
    runner.outbox.notify()
    return 0


async def _replace_identity(  # noqa: PLR0913, PLR0917 - as above
    runner: RunnerContext,
    loop: str,
    entry: OutboxEntry,
    failures: FailureLog,
    identity: Identity,
    error: Unauthorised,
) -> float:
    runner.watchdog.suspend(loop)
    has_other_key = await runner.node.replace_identity(identity)
    # After a first failure the other key is tried at once.
    is_at_once = has_other_key and entry.attempts == 0
    wait_s = await _postpone(runner, entry, failures, error, is_at_once=is_at_once)
    runner.outbox.notify()  # a drain may wait for this report, which may now be undeliverable
    return wait_s


async def _upload(  # noqa: PLR0913, PLR0917 - as above
    runner: RunnerContext,
    loop: str,
    entry: OutboxEntry,
    failures: FailureLog,
    identity: Identity,
    body: Mapping[str, object],
) -> float:
    """Try to upload what is left of a task's artifacts; return the seconds until there is more."""
    parked = None
    try:
        upload = ArtifactUpload(runner, entry, body, partial(_expect_call, runner, loop))
        try:
            await upload.run(identity)
        except (Refused, Unavailable) as error:
            if upload.has_progressed:
                entry = replace(entry, attempts=0)
                runner.failed_uploads.pop(entry.row, None)
            if isinstance(error, Unauthorised):
                return await _replace_identity(runner, loop, entry, failures, identity, error)
            parked = _reason_to_give_up(runner, entry, error)
            if parked is None:
                return await _postpone(runner, entry, failures, error)
            await upload.end(parked)
    except JournalError:
        raise
    except Exception:
        # The status waits for this entry, and must not wait for ever.
        log.exception("a defect of the runner keeps artifacts", extra=fields(task_id=entry.task_id))
        parked = "a defect of the runner, see its log"
        await runner.journal.end_upload(entry.row, f"artifacts: {parked}", parked=parked)
    if parked is None:
        failures.end()
    runner.failed_uploads.pop(entry.row, None)
    runner.outbox.notify()
    return 0


def _reason_to_give_up(
    runner: RunnerContext, entry: OutboxEntry, error: Refused | Unavailable
) -> str | None:
    """Return why a task's artifacts are not tried again; None if they are."""
    if isinstance(error, Refused) and error.detail is not None:
        return f"the orchestrator refuses them: {error}"
    if runner.node.outage.sentence is not None:
        return None
    attempts = runner.failed_uploads[entry.row] = runner.failed_uploads.get(entry.row, 0) + 1
    return (
        f"given up after {attempts} attempts: {error}" if attempts >= _ARTIFACT_ATTEMPTS else None
    )


async def _handle_refusal(
    runner: RunnerContext, entry: OutboxEntry, failures: FailureLog, error: Refused
) -> float:
    """Drop or park a report, or postpone it; return the seconds until there is more to do."""
    ids = fields(task_id=entry.task_id, report=entry.path)
    may_be_a_proxy = error.detail is None and error.status != _FORBIDDEN
    most_attempts = _LOG_ATTEMPTS if entry.is_log else _UNEXPLAINED_ATTEMPTS
    if error.status in _HAS_ITS_END:
        log.info("the task has a final status; dropping a report: %s", error, extra=ids)
        await runner.journal.delivered(entry.row)
    elif may_be_a_proxy and entry.attempts + 1 < most_attempts:
        return await _postpone(runner, entry, failures, error)
    else:
        log.error("the orchestrator refuses a report; it is parked: %s", error, extra=ids)
        await runner.journal.park(entry.row, str(error))
    runner.outbox.notify()
    return 0


def _expect_call(runner: RunnerContext, loop: str, more_s: float = 0.0) -> None:
    """Have the watchdog expect the end of a request, which may take so much longer than others."""
    within_s = runner.timings.outbox_interval_s + _longest_call_s(runner) + more_s
    runner.watchdog.expect(loop, next_within_s=within_s)


def _longest_call_s(runner: RunnerContext) -> float:
    """Return the longest time of a delivery: a log that is too long is sent twice."""
    return 2 * runner.timings.call_timeout_s + (12 << 20) / SLOWEST_UPLOAD_BYTES_PER_S


async def _postpone(
    runner: RunnerContext,
    entry: OutboxEntry,
    failures: FailureLog,
    error: Refused | Unavailable,
    *,
    is_at_once: bool = False,
) -> float:
    """Write when the next attempt is due; return the seconds until then."""
    attempts = entry.attempts + 1
    ceiling_s = runner.settings.poll_interval_s
    if entry.is_log:
        ceiling_s = max(ceiling_s, runner.timings.log_retry_ceiling_s)
    retry_after_s = error.retry_after_s if isinstance(error, Unavailable) else None
    if entry.is_artifacts and retry_after_s is not None:
        retry_after_s = min(retry_after_s, runner.timings.outbox_interval_s)  # the status waits
    wait_s = runner.timings.backoff(ceiling_s=ceiling_s).wait_s(attempts, retry_after_s)
    if is_at_once:
        wait_s = 0.0
    failures.note(error, wait_s)
    await runner.journal.postpone(entry.row, runner.clock.wall_s() + wait_s)
    return wait_s
