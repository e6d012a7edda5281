"""Send the outbox: every report until the orchestrator has it, or has refused it for good.

Ends when the registration is refused, or by being cancelled; what is left is in the journal.
"""

from __future__ import annotations

import logging

from runner import backoff
from runner.errors import JournalError, Refused, RegistrationRefused, Unauthorised, Unavailable
from runner.journal import Letter
from runner.log import fields
from runner.parts import Parts
from runner.wire import CALL_TIMEOUT_S

log = logging.getLogger(__name__)

_QUIET_CHECK_S = 60.0


async def deliver(parts: Parts) -> None:
    """Deliver what is due, then wait for the next letter or the next attempt."""
    while True:
        seen = parts.outbox.count
        parts.pulse.beat("deliver", next_within_s=_QUIET_CHECK_S + 2 * CALL_TIMEOUT_S)
        wait_s = _QUIET_CHECK_S
        try:
            for letter in _next_of_each_task(parts, await parts.journal.letters()):
                wait_s = min(wait_s, await _attempt(parts, letter))
        except RegistrationRefused:
            parts.pulse.rest("deliver")
            return
        except JournalError as error:
            log.error(str(error))
        await parts.outbox.after_or(seen, wait_s, parts.clock)


def _next_of_each_task(parts: Parts, letters: list[Letter]) -> list[Letter]:
    """Choose what may go now: a task's reports keep their order, other tasks do not wait for it.

    What is for another orchestrator waits until a runner is started for that one.
    """
    first: dict[str, Letter] = {}
    for letter in letters:
        if letter.parked is None and letter.orchestrator_url == parts.orchestrator.url:
            first.setdefault(letter.task_id, letter)
    return list(first.values())


async def _attempt(parts: Parts, letter: Letter) -> float:
    """Try to deliver a letter if it is due; give the seconds until there is more to do."""
    due_in_s = letter.next_attempt_at - parts.clock.wall_s()
    # A wait longer than any that we choose means that the clock was set back.
    if 0 < due_in_s <= _longest_wait_s(parts):
        return due_in_s
    ids = fields(task_id=letter.task_id, report=letter.report.path)
    parts.pulse.beat("deliver", next_within_s=_QUIET_CHECK_S + 2 * CALL_TIMEOUT_S)
    try:
        await parts.orchestrator.report(letter.identity, letter.report.path, letter.report.body)
    except Unauthorised:
        parts.pulse.rest("deliver")
        await parts.node.renew(letter.identity)
        await parts.node.identity()
        return 0
    except Unavailable as error:
        wait_s = backoff.delay_s(
            letter.attempts + 1,
            ceiling_s=max(backoff.CEILING_S, parts.settings.poll_interval_s),
            at_least_s=error.retry_after_s or 0,
        )
        log.warning("cannot deliver a report, trying again in %.0f s: %s", wait_s, error, extra=ids)
        await parts.journal.postpone(letter.row, parts.clock.wall_s() + wait_s)
        return wait_s
    except Refused as error:
        log.error("the orchestrator refuses a report; it is parked: %s", error, extra=ids)
        await parts.journal.park(letter.row, str(error))
    else:
        log.info("report delivered", extra=ids)
        await parts.journal.delivered(letter.row)
    parts.outbox.notify()
    return 0


def _longest_wait_s(parts: Parts) -> float:
    return max(backoff.LONGEST_ASKED_S * 1.1, parts.settings.poll_interval_s)
