"""What comes after a task's container: its last words, its end written down, and its removal."""

from __future__ import annotations

import logging

from runner import backoff
from runner.container import SIGNALLED, Container, Phase
from runner.ending import LAST_LINES, judge, without_secrets
from runner.errors import EngineError
from runner.hand import Hand
from runner.journal import End
from runner.last_words import last_reports, secrets_of
from runner.log import fields
from runner.marks import cid_file

log = logging.getLogger(__name__)

_REMOVAL_S = 1.0
_JUST_BACK_S = 30.0


async def conclude(hand: Hand, container: Container | None) -> None:
    """Write down how the task ended, and what is to be told about it."""
    output = await _last_output(hand, container)
    if container is not None and _may_be_under_removal(hand, container):
        await hand.parts.clock.sleep(_REMOVAL_S)
        container = await hand.look()
    end = judge(hand.task, container, output, was_daemon_away=_was_daemon_away(hand))
    await write_end(hand, end, container)


def _was_daemon_away(hand: Hand) -> bool:
    """Tell whether docker's daemon has come back just now: it ends containers as it goes."""
    silent_at_s = hand.engine_silent_at_s
    if hand.engine.kind != "docker" or silent_at_s is None:
        return False
    return hand.parts.clock.uptime_s() - silent_at_s < _JUST_BACK_S


def _may_be_under_removal(hand: Hand, container: Container) -> bool:
    """Tell whether somebody may be about to remove it: a `rm --force` ends it by a signal first."""
    is_by_signal = container.exit_code in SIGNALLED and not container.out_of_memory
    return is_by_signal and hand.task.stop_reason is None


async def write_end(hand: Hand, end: End, container: Container | None = None) -> None:
    """Write down an end that is known, and what is to be told about it."""
    now = hand.parts.clock.wall_s()
    reports = await last_reports(hand.task, hand.parts, end, container)
    await hand.written(lambda: hand.parts.journal.end(hand.task_id, end, reports, now))
    hand.parts.outbox.notify()
    log.info(
        "task has ended",
        extra=fields(task_id=hand.task_id, reason=end.reason.value, exit_code=end.exit_code),
    )


async def close(hand: Hand) -> None:
    """Remove the container, and close the journal's page when every report is out."""
    await _remove(hand)
    cid_file(hand.parts.settings.state_dir, hand.task_id).unlink(missing_ok=True)
    while True:
        seen = hand.parts.outbox.count
        now = hand.parts.clock.wall_s()
        if await hand.written(lambda: hand.parts.journal.close(hand.task_id, now)):  # noqa: B023 - called before the next turn
            break
        await hand.parts.outbox.after(seen)
    hand.parts.outbox.notify()
    log.debug("task is closed", extra=fields(task_id=hand.task_id))


async def _last_output(hand: Hand, container: Container | None) -> str:
    if container is None or container.phase is Phase.CREATED:
        return ""
    try:
        output = await hand.engine.last_output(hand.container_name, LAST_LINES)
    except EngineError as error:
        return f"(its output cannot be read: {error})"
    return without_secrets(output, await secrets_of(hand.task_id, hand.parts, container))


async def _remove(hand: Hand) -> None:
    attempts = 0
    while True:
        try:
            await hand.engine.remove(hand.container_name)
        except EngineError as error:
            attempts += 1
            log.warning("cannot remove: %s", error, extra=fields(task_id=hand.task_id))
            await hand.parts.clock.sleep(backoff.delay_s(attempts))
        else:
            return
