"""Send the outbox: every report until the orchestrator has it, or has refused it for good.

A task's log goes first, but one that keeps failing, or takes long, does not keep its status back;
in the end it is given up, and a status never is. Ends when the registration is refused, or by being
cancelled; what is left is in the journal.
"""

from __future__ import annotations

import logging
from functools import partial

import anyio
from anyio.abc import TaskGroup

from runner import timing
from runner.api.http import CALL_TIMEOUT_S, SLOWEST_UPLOAD_BYTES_PER_S
from runner.crush.log import hand_in_log
from runner.errors import JournalError, Refused, RegistrationRefused, Unauthorised, Unavailable
from runner.log import fields
from runner.model import Letter
from runner.tasks.context import Parts

log = logging.getLogger(__name__)
_QUIET_CHECK_S = 60.0
_LONGEST_CALL_S = 3 * CALL_TIMEOUT_S + (18 << 20) / SLOWEST_UPLOAD_BYTES_PER_S
"""Three for a log that is refused as too long: it is sent whole, then ever shorter."""
_LOG_GOES_FIRST_S = 600.0
_LOG_GOES_FIRST_ATTEMPTS = 2
_LOG_ATTEMPTS = 16
_LOG_CEILING_S = 3600.0
_UNEXPLAINED_ATTEMPTS = 120
"""About an hour: until then a refusal that has no word of the orchestrator's is taken for a page
of the proxy before it, as such show one while what is behind them is replaced."""
_HAS_ITS_END = frozenset({409, 410})


async def deliver(parts: Parts) -> None:
    """Deliver what is due, then wait for the next letter or the next attempt."""
    async with anyio.create_task_group() as group:
        delivery = _Delivery(parts, group)
        while True:
            seen = parts.outbox.count
            wait_s = _QUIET_CHECK_S
            try:
                wait_s = await delivery.deliver_due()
            except RegistrationRefused:
                delivery.end()
                return
            except JournalError as error:
                log.error(str(error))
            parts.pulse.beat("deliver", next_within_s=_QUIET_CHECK_S + wait_s)
            await parts.outbox.after_or(seen, wait_s, parts.clock)


class _Delivery:
    """The statuses one after the other, and one log at a time beside them: it may take minutes."""

    def __init__(self, parts: Parts, group: TaskGroup) -> None:
        self._parts = parts
        self._group = group
        self._is_log_under_way = False

    def end(self) -> None:
        """Deliver nothing more."""
        for name in ("deliver", "deliver a log"):
            self._parts.pulse.rest(name)
        self._group.cancel_scope.cancel()

    async def deliver_due(self) -> float:
        """Deliver what is due; give the seconds until there is more to do.

        Raises:
            RegistrationRefused: the orchestrator knows neither the node nor its token.
            JournalError: it cannot be read or written.
        """
        wait_s = _QUIET_CHECK_S
        waiting = _waiting(self._parts, await self._parts.journal.letters())
        for letter in _next_of_each_task(self._parts, waiting):
            is_last = sum(other.task_id == letter.task_id for other in waiting) == 1
            due_in_s = _due_in_s(self._parts, letter)
            if due_in_s > 0:
                wait_s = min(wait_s, due_in_s)
            elif not letter.is_log:
                again_s = await _attempt(self._parts, "deliver", letter, is_last=is_last)
                wait_s = min(wait_s, again_s)
            elif not self._is_log_under_way:
                self._is_log_under_way = True
                self._group.start_soon(partial(self._deliver_log, letter, is_last=is_last))
        return wait_s

    async def _deliver_log(self, letter: Letter, *, is_last: bool) -> None:
        try:
            await _attempt(self._parts, "deliver a log", letter, is_last=is_last)
        except RegistrationRefused:
            self.end()
        except JournalError as error:
            log.error(str(error))
            await self._parts.clock.sleep(_QUIET_CHECK_S)
        self._parts.pulse.rest("deliver a log")
        self._is_log_under_way = False
        self._parts.outbox.notify()


def _waiting(parts: Parts, letters: list[Letter]) -> list[Letter]:
    """Leave out what is parked, and what waits until a runner is started for its orchestrator."""
    return [
        letter
        for letter in letters
        if letter.parked is None and letter.orchestrator_url == parts.orchestrator.url
    ]


def _next_of_each_task(parts: Parts, waiting: list[Letter]) -> list[Letter]:
    """Choose what may go now: a task's reports keep their order, other tasks do not wait for it."""
    chosen: list[Letter] = []
    held_up: set[str] = set()
    for letter in waiting:
        if letter.task_id in held_up:
            continue
        chosen.append(letter)
        if not _may_be_passed(parts, letter):
            held_up.add(letter.task_id)
    return chosen


def _may_be_passed(parts: Parts, letter: Letter) -> bool:
    age_s = abs(parts.clock.wall_s() - letter.created_at)
    is_tried = letter.attempts >= _LOG_GOES_FIRST_ATTEMPTS or age_s >= _LOG_GOES_FIRST_S
    return letter.is_log and is_tried


def _due_in_s(parts: Parts, letter: Letter) -> float:
    due_in_s = letter.next_attempt_at - parts.clock.wall_s()
    # A wait longer than any that we choose means that the clock was set back.
    longest_s = max(timing.LONGEST_ASKED_S * 1.1, parts.settings.poll_interval_s)
    return due_in_s if due_in_s <= longest_s else 0


async def _attempt(parts: Parts, loop: str, letter: Letter, *, is_last: bool) -> float:
    """Try to deliver a letter; give the seconds until there is more to do."""
    ids = fields(task_id=letter.task_id, report=letter.path)
    body = await parts.journal.body(letter.row)
    if body is None:
        log.error("cannot read a report: the journal is damaged there; it is parked", extra=ids)
        await parts.journal.park(letter.row, "its text in the journal is damaged")
        parts.outbox.notify()
        return 0
    parts.pulse.beat(loop, next_within_s=_QUIET_CHECK_S + _LONGEST_CALL_S)
    try:
        if letter.is_log:
            await hand_in_log(parts.orchestrator, letter.identity, body)
        else:
            await parts.orchestrator.hand_in(letter.identity, letter.path, body)
    except Unauthorised as error:
        parts.pulse.rest(loop)
        await parts.node.renew(letter.identity)
        await parts.node.identity()
        # There is another key now: the first time that is reason enough to try it at once.
        return await _postpone(parts, letter, error, is_at_once=letter.attempts == 0)
    except Unavailable as error:
        if not letter.is_log or letter.attempts + 1 < _LOG_ATTEMPTS or not is_last:
            return await _postpone(parts, letter, error)
        # The status was taken: it is the log that this orchestrator cannot take.
        why = f"given up after {letter.attempts + 1} attempts: {error}"
        log.error("cannot deliver a log, %s", why, extra=ids)
        await parts.journal.park(letter.row, why)
    except Refused as error:
        if error.status in _HAS_ITS_END:
            log.info("the task has its end already; a report is dropped: %s", error, extra=ids)
            await parts.journal.delivered(letter.row)
        elif error.detail is None and letter.attempts + 1 < _most_unexplained(letter):
            return await _postpone(parts, letter, error)
        else:
            log.error("the orchestrator refuses a report; it is parked: %s", error, extra=ids)
            await parts.journal.park(letter.row, str(error))
    else:
        log.info("report delivered", extra=ids)
        await parts.journal.delivered(letter.row)
    parts.outbox.notify()
    return 0


def _most_unexplained(letter: Letter) -> int:
    return _LOG_ATTEMPTS if letter.is_log else _UNEXPLAINED_ATTEMPTS


async def _postpone(
    parts: Parts, letter: Letter, error: Refused | Unavailable, *, is_at_once: bool = False
) -> float:
    """Set the next attempt; give the seconds until then."""
    attempts = letter.attempts + 1
    widest_s = _LOG_CEILING_S if letter.is_log else timing.CEILING_S
    wait_s = timing.delay_s(
        attempts,
        ceiling_s=max(widest_s, parts.settings.poll_interval_s),
        at_least_s=(error.retry_after_s or 0) if isinstance(error, Unavailable) else 0,
    )
    if is_at_once:
        wait_s = 0.0
    log.warning(
        "cannot deliver a report, trying again in %.0f s: %s",
        wait_s,
        error,
        extra=fields(task_id=letter.task_id, report=letter.path),
    )
    await parts.journal.postpone(letter.row, parts.clock.wall_s() + wait_s)
    return wait_s
