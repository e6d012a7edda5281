"""Say that we live: on a beat of its own, and at once when something changes.

Ends when the registration is refused, or by being cancelled. A beat that fails is not repeated:
the next one says more.
"""

from __future__ import annotations

import logging

import anyio

from runner.errors import JournalError, RegistrationRefused, Unauthorised, WireError
from runner.model import Identity
from runner.tasks.context import RunnerContext
from runner.timing import jittered_s

log = logging.getLogger(__name__)


async def heartbeat(runner: RunnerContext) -> None:
    """Send heartbeats and pass on the cancellations that come back."""
    failures = 0
    while True:
        seen = runner.workload.changes.count
        told: str | None = runner.workload.status
        runner.watchdog.suspend("heartbeat")
        try:
            current = await runner.node.identity()
        except RegistrationRefused:
            return
        interval_s = jittered_s(runner.settings.heartbeat_interval_s)
        try:
            for identity, task_ids in (await _speakers(runner, current)).items():
                runner.watchdog.expect(
                    "heartbeat", next_within_s=2 * runner.timings.call_timeout_s + interval_s
                )
                await _beat(runner, identity, task_ids)
        except Unauthorised:
            continue
        except WireError as error:
            failures += 1
            told = None
            level = logging.WARNING if failures == 1 else logging.DEBUG
            log.log(level, "cannot send a heartbeat: %s", error)
            # ChangeSignal come in bursts; an orchestrator in trouble is spared them.
            await runner.clock.sleep(runner.timings.debounce_s)
        else:
            if failures:
                log.info("heartbeats arrive again")
            failures = 0
        await runner.workload.changes.after_or(seen, interval_s, runner.clock)
        if runner.workload.changes.count > seen:
            await _debounce(runner, told)


async def _debounce(runner: RunnerContext, told: str | None) -> None:
    """Give tasks a moment to follow one another: only a change of the status is told at once."""
    ends_at_s = runner.clock.awake_s() + runner.timings.debounce_s
    while runner.workload.status == told:
        left_s = ends_at_s - runner.clock.awake_s()
        if left_s <= 0:
            return
        await runner.workload.changes.after_or(runner.workload.changes.count, left_s, runner.clock)


async def send_offline(runner: RunnerContext) -> None:
    """Tell the orchestrator, if it answers at once, that this node goes."""
    current = runner.node.known_identity
    if current is None:
        return
    with anyio.move_on_after(runner.timings.offline_timeout_s, shield=True):
        try:
            for identity, task_ids in (await _speakers(runner, current)).items():
                body = {**_body(runner, task_ids), "status": "offline"}
                await runner.orchestrator.heartbeat(identity, body)
        except WireError as error:
            log.debug("cannot say that this node goes offline: %s", error)


async def _speakers(runner: RunnerContext, current: Identity) -> dict[Identity, list[str]]:
    """Give who is to speak for which tasks in hand; the current identity does in any case.

    A task taken on before the node was registered anew is known to be the earlier node's: only
    that is told of its cancellation, and were it silent, the task would be given up.
    """
    in_hand = runner.workload.task_ids
    try:
        found = await runner.journal.speakers(runner.orchestrator.url) if in_hand else {}
    except JournalError as error:
        log.debug("cannot look up who speaks for the tasks: %s", error)
        return {current: list(in_hand)}
    named: dict[Identity, list[str]] = {current: []}
    for task_id in in_hand:
        if task_id in found:
            named.setdefault(found[task_id], []).append(task_id)
    return named


async def _beat(runner: RunnerContext, identity: Identity, task_ids: list[str]) -> None:
    try:
        cancelled = await runner.orchestrator.heartbeat(identity, _body(runner, task_ids))
    except Unauthorised:
        runner.watchdog.suspend("heartbeat")
        await runner.node.forget_identity(identity)
        raise
    for task_id in cancelled:
        runner.workload.cancel(task_id, "the orchestrator")


def _body(runner: RunnerContext, task_ids: list[str]) -> dict[str, object]:
    body: dict[str, object] = {
        "status": runner.workload.status,
        "current_task_id": task_ids[0] if task_ids else None,
    }
    if runner.settings.max_tasks > 1 or len(task_ids) > 1:
        body["task_ids"] = task_ids
    return body
