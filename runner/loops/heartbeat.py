"""Send heartbeats: one each interval, and one at once when the node's status changes.

Ends when the registration is refused, or by being cancelled. A heartbeat that fails is not
repeated: the next one carries newer facts. The orchestrator may set the interval of a node without
a task (extension `pace`); one with a task goes by its heartbeats to learn of a cancellation.
"""

from __future__ import annotations

import logging

import anyio

from runner.api.client import PARKED_REPORTS
from runner.errors import RegistrationRefused, Unauthorised, WireError
from runner.model import Identity
from runner.settings import DEFAULT_HEARTBEAT_INTERVAL_S
from runner.tasks.context import RunnerContext
from runner.timing import jittered_s

log = logging.getLogger(__name__)
BEATING = "send a heartbeat"
"""What the outage's log calls it."""

SHORTEST_PACE_S, LONGEST_PACE_S = 5.0, 300.0
"""Within these the orchestrator is obeyed."""


async def heartbeat(runner: RunnerContext) -> None:
    """Send heartbeats and obey the cancellations that come back."""
    failure_log, failures = runner.node.failure_log(BEATING, is_vital=True), 0
    log_from_s = 0.0
    paced_s: float | None = None
    while True:
        seen = runner.changes.count
        status: str | None = runner.status
        runner.watchdog.suspend("heartbeat")
        try:
            current = await runner.node.identity()
        except RegistrationRefused:
            return
        try:
            paced_s = await _send(runner, current, _interval_s(runner, paced_s))
        except Unauthorised:
            continue
        except WireError as error:
            failures += 1
            status = paced_s = None
            if failures == 1:
                log_from_s = runner.clock.awake_s() + runner.timings.outage_left_to_poll_s
            is_left_to_poll = runner.slots.has_room and runner.clock.awake_s() < log_from_s
            level = logging.DEBUG if is_left_to_poll else logging.WARNING
            interval_s = _interval_s(runner, paced_s)
            failure_log.note(error, interval_s, f"cannot send a heartbeat: {error}", level)
            # Changes come in bursts; an orchestrator in trouble is spared them.
            await runner.clock.sleep(runner.timings.debounce_s)
        else:
            failure_log.end()
            failures = 0
        interval_s = jittered_s(_interval_s(runner, paced_s))
        runner.watchdog.expect(
            "heartbeat", next_within_s=2 * runner.timings.call_timeout_s + interval_s
        )
        await runner.changes.after_or(seen, interval_s, runner.clock)
        if runner.changes.count > seen:
            await _debounce(runner, status)


def _interval_s(runner: RunnerContext, paced_s: float | None) -> float:
    """Return the time until the next heartbeat; `paced_s` is what the orchestrator asked for."""
    if runner.settings.heartbeat_interval_s is not None:
        return runner.settings.heartbeat_interval_s
    if paced_s is None:
        return DEFAULT_HEARTBEAT_INTERVAL_S
    longest_s = DEFAULT_HEARTBEAT_INTERVAL_S if runner.held_task_ids else LONGEST_PACE_S
    return min(max(paced_s, SHORTEST_PACE_S), longest_s)


async def _send(runner: RunnerContext, current: Identity, interval_s: float) -> float | None:
    """Send the heartbeats that are due: one, unless a journal holds tasks of an older identity.

    Return the interval that the orchestrator asks for, in seconds.
    """
    paced_s = None
    by_identity = runner.node.by_identity(current, runner.held_task_ids)
    for identity, task_ids in by_identity.items():
        runner.watchdog.expect(
            "heartbeat", next_within_s=2 * runner.timings.call_timeout_s + interval_s
        )
        try:
            response = await runner.orchestrator.heartbeat(identity, _body(runner, task_ids))
        except Unauthorised:
            runner.watchdog.suspend("heartbeat")
            await runner.node.forget_identity(identity)
            raise
        for task_id in response.cancelled:
            runner.slots.cancel(task_id, "the orchestrator")
        if await runner.node.note_extensions(identity, response.extensions):
            # New tasks may wait for one of them.
            runner.outbox.notify()
        if response.new_api_key is not None:
            runner.watchdog.suspend("heartbeat")  # a registration may be under way, or a full disk
            await runner.node.rotate_key(identity, response.new_api_key)
        paced_s = response.interval_s
    return paced_s


async def _debounce(runner: RunnerContext, status: str | None) -> None:
    """Wait while tasks follow one another; return at once when the node's status changes."""
    ends_at_s = runner.clock.awake_s() + runner.timings.debounce_s
    while runner.status == status:
        left_s = ends_at_s - runner.clock.awake_s()
        if left_s <= 0:
            return
        await runner.changes.after_or(runner.changes.count, left_s, runner.clock)


async def send_offline(runner: RunnerContext) -> None:
    """Send a last heartbeat, unless the orchestrator takes longer to answer than a stop may."""
    current = runner.node.known_identity
    if current is None:
        return
    by_identity = runner.node.by_identity(current, runner.held_task_ids)
    with anyio.move_on_after(runner.timings.offline_timeout_s, shield=True):
        try:
            for identity, task_ids in by_identity.items():
                body = {**_body(runner, task_ids), "status": "offline"}
                await runner.orchestrator.heartbeat(identity, body)
        except WireError as error:
            log.debug("cannot send that this node goes offline: %s", error)


def _body(runner: RunnerContext, task_ids: list[str]) -> dict[str, object]:
    body: dict[str, object] = {
        "status": runner.status,
        "current_task_id": task_ids[0] if task_ids else None,
    }
    if runner.problems.parked_reports and runner.node.offers(PARKED_REPORTS):
        body["parked_reports"] = runner.problems.parked_reports
    if runner.settings.max_tasks > 1 or len(task_ids) > 1:
        body["task_ids"] = task_ids
    return body
