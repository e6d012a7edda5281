"""Say that we live: on a beat of its own, and at once when something changes.

Ends when the registration is refused, or by being cancelled. A beat that fails is not repeated:
the next one says more.
"""

from __future__ import annotations

import logging

import anyio

from runner import timing
from runner.api.http import CALL_TIMEOUT_S
from runner.errors import JournalError, RegistrationRefused, Unauthorised, WireError
from runner.model import Identity
from runner.tasks.context import Parts

log = logging.getLogger(__name__)
_LAST_WORD_S = 1.0
_SHORTEST_PAUSE_S = 1.0


async def heartbeat(parts: Parts) -> None:
    """Send heartbeats and pass on the cancellations that come back."""
    failures = 0
    while True:
        seen = parts.workload.changes.count
        told: str | None = parts.workload.status
        parts.pulse.rest("heartbeat")
        try:
            current = await parts.node.identity()
        except RegistrationRefused:
            return
        interval_s = timing.jittered_s(parts.settings.heartbeat_interval_s)
        try:
            for identity, task_ids in (await _speakers(parts, current)).items():
                parts.pulse.beat("heartbeat", next_within_s=2 * CALL_TIMEOUT_S + interval_s)
                await _beat(parts, identity, task_ids)
        except Unauthorised:
            continue
        except WireError as error:
            failures += 1
            told = None
            level = logging.WARNING if failures == 1 else logging.DEBUG
            log.log(level, "cannot send a heartbeat: %s", error)
            # Changes come in bursts; an orchestrator in trouble is spared them.
            await parts.clock.sleep(_SHORTEST_PAUSE_S)
        else:
            if failures:
                log.info("heartbeats arrive again")
            failures = 0
        await parts.workload.changes.after_or(seen, interval_s, parts.clock)
        if parts.workload.changes.count > seen:
            await _let_tasks_follow(parts, told)


async def _let_tasks_follow(parts: Parts, told: str | None) -> None:
    """Give tasks a moment to follow one another: only a change of the status is told at once."""
    ends_at_s = parts.clock.awake_s() + _SHORTEST_PAUSE_S
    while parts.workload.status == told:
        left_s = ends_at_s - parts.clock.awake_s()
        if left_s <= 0:
            return
        await parts.workload.changes.after_or(parts.workload.changes.count, left_s, parts.clock)


async def say_offline(parts: Parts) -> None:
    """Tell the orchestrator, if it answers at once, that this node goes."""
    current = parts.node.known_identity
    if current is None:
        return
    with anyio.move_on_after(_LAST_WORD_S, shield=True):
        try:
            for identity, task_ids in (await _speakers(parts, current)).items():
                body = {**_body(parts, task_ids), "status": "offline"}
                await parts.orchestrator.heartbeat(identity, body)
        except WireError as error:
            log.debug("cannot say that this node goes offline: %s", error)


async def _speakers(parts: Parts, current: Identity) -> dict[Identity, list[str]]:
    """Give who is to speak for which tasks in hand; the current identity does in any case.

    A task taken on before the node was registered anew is known to be the earlier node's: only
    that is told of its cancellation, and were it silent, the task would be given up.
    """
    in_hand = parts.workload.task_ids
    try:
        found = await parts.journal.speakers(parts.orchestrator.url) if in_hand else {}
    except JournalError as error:
        log.debug("cannot look up who speaks for the tasks: %s", error)
        return {current: list(in_hand)}
    named: dict[Identity, list[str]] = {current: []}
    for task_id in in_hand:
        if task_id in found:
            named.setdefault(found[task_id], []).append(task_id)
    return named


async def _beat(parts: Parts, identity: Identity, task_ids: list[str]) -> None:
    try:
        cancelled = await parts.orchestrator.heartbeat(identity, _body(parts, task_ids))
    except Unauthorised:
        parts.pulse.rest("heartbeat")
        await parts.node.renew(identity)
        raise
    for task_id in cancelled:
        parts.workload.cancel(task_id, "the orchestrator")


def _body(parts: Parts, task_ids: list[str]) -> dict[str, object]:
    body: dict[str, object] = {
        "status": parts.workload.status,
        "current_task_id": task_ids[0] if task_ids else None,
    }
    if parts.settings.max_tasks > 1 or len(task_ids) > 1:
        body["task_ids"] = task_ids
    return body
