"""Say that we live: on a beat of its own, and at once when something changes.

Ends when the registration is refused, or by being cancelled. A beat that fails is not repeated:
the next one says more.
"""

from __future__ import annotations

import logging

import anyio

from runner import backoff
from runner.errors import RegistrationRefused, Unauthorised, WireError
from runner.parts import Parts
from runner.wire import CALL_TIMEOUT_S

log = logging.getLogger(__name__)

_LAST_WORD_S = 1.0
_SHORTEST_PAUSE_S = 1.0


async def heartbeat(parts: Parts) -> None:
    """Send heartbeats and pass on the cancellations that come back."""
    failures = 0
    while True:
        seen = parts.workload.changes.count
        parts.pulse.rest("heartbeat")
        try:
            identity = await parts.node.identity()
        except RegistrationRefused:
            return
        interval_s = backoff.jittered_s(parts.settings.heartbeat_interval_s)
        parts.pulse.beat("heartbeat", next_within_s=2 * CALL_TIMEOUT_S + interval_s)
        try:
            cancelled = await parts.orchestrator.heartbeat(identity, _body(parts))
        except Unauthorised:
            parts.pulse.rest("heartbeat")
            await parts.node.renew(identity)
            continue
        except WireError as error:
            failures += 1
            level = logging.WARNING if failures == 1 else logging.DEBUG
            log.log(level, "cannot send a heartbeat: %s", error)
            # Changes come in bursts; an orchestrator in trouble is spared them.
            await parts.clock.sleep(_SHORTEST_PAUSE_S)
        else:
            if failures:
                log.info("heartbeats arrive again")
            failures = 0
            for task_id in cancelled:
                parts.workload.cancel(task_id, "the orchestrator")
        await parts.workload.changes.after_or(seen, interval_s, parts.clock)


async def say_offline(parts: Parts) -> None:
    """Tell the orchestrator, if it answers at once, that this node goes."""
    identity = parts.node.known_identity
    if identity is None:
        return
    with anyio.move_on_after(_LAST_WORD_S, shield=True):
        try:
            await parts.orchestrator.heartbeat(identity, {**_body(parts), "status": "offline"})
        except WireError as error:
            log.debug("cannot say that this node goes offline: %s", error)


def _body(parts: Parts) -> dict[str, object]:
    task_ids = parts.workload.task_ids
    body: dict[str, object] = {
        "status": parts.workload.status,
        "current_task_id": task_ids[0] if task_ids else None,
    }
    if parts.settings.max_tasks > 1:
        body["task_ids"] = list(task_ids)
    return body
