"""Send a chunk of a task's output, which is in the outbox; `deliver` calls it.

An orchestrator that holds another length than the chunk's offset is believed: the chunk is moved
there. One that does not take a task's output, although all else was delivered, gets no more of it.
A chunk that is too long for it, or for a proxy, is sent in halves, which may be halved again. If
one of them fails, the chunk is repeated from its beginning: what is held of it changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from runner.errors import Refused, Unauthorised, Unavailable
from runner.log import fields
from runner.model import OUTPUT, Identity, OutboxEntry, TaskState
from runner.tasks.context import RunnerContext

log = logging.getLogger(__name__)
_CONFLICT, _FORBIDDEN, _TOO_LARGE = 409, 403, 413
_MOST_ATTEMPTS = 16
_MOST_MOVES = 5
_SHORTEST_CHUNK = 1024
"""In characters: shorter ones are not halved."""
MISSING = "\n[… output is missing here: the orchestrator has lost it …]\n"


async def send_chunk(
    runner: RunnerContext,
    identity: Identity,
    entry: OutboxEntry,
    body: Mapping[str, object],
    expect_call: Callable[[], None],
) -> None:
    """Send a chunk, or give up the output of its task; `expect_call` is called before each request.

    Raises:
        Refused: maybe by a proxy: to be tried again.
        Unavailable: the orchestrator did not respond, or the chunk was moved: likewise.
    """
    if runner.node.lacks(OUTPUT):
        await _give_up(runner, entry, "the orchestrator does not take output any more")
        return
    try:
        interval_s = await _send(runner, identity, entry.task_id, body, expect_call)
    except Unauthorised:
        raise
    except Refused as error:
        await _move(runner, entry, body, error)
        may_be_a_proxy = error.detail is None and error.status != _FORBIDDEN
        if may_be_a_proxy and entry.attempts + 1 < _MOST_ATTEMPTS:
            raise
        await _give_up(runner, entry, str(error))
    except Unavailable as error:
        if entry.attempts + 1 < _MOST_ATTEMPTS or not await _is_all_that_is_left(runner, entry):
            raise
        # The status was taken: it is the output that this orchestrator cannot take.
        await _give_up(runner, entry, f"after {entry.attempts + 1} attempts: {error}")
    else:
        runner.moved_outputs.pop(entry.task_id, None)
        _note_interval(runner, entry.task_id, interval_s)


async def _send(
    runner: RunnerContext,
    identity: Identity,
    task_id: str,
    body: Mapping[str, object],
    expect_call: Callable[[], None],
) -> float | None:
    """Send a chunk, in halves if it is too long; return the interval that is asked for.

    Raises:
        Refused: the chunk, or a part of it.
        Unavailable: the orchestrator did not respond to all of it.
    """
    expect_call()
    try:
        return await runner.orchestrator.send_output(identity, task_id, body)
    except (Refused, Unavailable) as error:
        if error.status != _TOO_LARGE or len(str(body["text"])) < 2 * _SHORTEST_CHUNK:
            raise
    first, second = _halves(body)
    await _send(runner, identity, task_id, first, expect_call)
    return await _send(runner, identity, task_id, second, expect_call)


def _halves(body: Mapping[str, object]) -> tuple[Mapping[str, object], Mapping[str, object]]:
    """Return the two chunks that are a chunk; only the second may end the output."""
    offset, text = int(str(body["offset"])), str(body["text"])
    middle = len(text) // 2
    first = {"offset": offset, "text": text[:middle]}
    second = {**body, "offset": offset + len(text[:middle].encode()), "text": text[middle:]}
    return first, second


def _note_interval(runner: RunnerContext, task_id: str, interval_s: float | None) -> None:
    if interval_s is not None and task_id in runner.output_intervals_s:
        timings = runner.timings
        runner.output_intervals_s[task_id] = min(
            max(interval_s, timings.shortest_output_interval_s), timings.longest_output_interval_s
        )


async def _move(
    runner: RunnerContext, entry: OutboxEntry, body: Mapping[str, object], error: Refused
) -> None:
    """Have a chunk begin at the length that the orchestrator holds, if that is why it is refused.

    One that names other lengths without end is not believed for ever.

    Raises:
        Unavailable: it was moved, and is to be sent again.
    """
    moves = runner.moved_outputs.get(entry.task_id, 0)
    if error.status != _CONFLICT or error.length is None or moves >= _MOST_MOVES:
        return
    runner.moved_outputs[entry.task_id] = moves + 1
    if await runner.journal.move_output(entry.row, error.length, MISSING):
        ids = fields(task_id=entry.task_id, offset=body.get("offset"), length=error.length)
        log.warning("the orchestrator holds another length of a task's output", extra=ids)
        raise Unavailable("it holds another length of the output") from error


async def _give_up(runner: RunnerContext, entry: OutboxEntry, why: str) -> None:
    ids = fields(task_id=entry.task_id)
    log.warning("no more of a task's output is sent: %s", why, extra=ids)
    runner.moved_outputs.pop(entry.task_id, None)
    await runner.journal.drop_output(entry.task_id)


async def _is_all_that_is_left(runner: RunnerContext, entry: OutboxEntry) -> bool:
    """Return whether a task has ended, and all its other reports are delivered or parked."""
    task = await runner.journal.task(entry.task_id)
    entries = [other for other in await runner.journal.entries() if other.task_id == entry.task_id]
    has_ended = task is None or (task.state is TaskState.ENDED and not task.is_log_pending)
    return has_ended and all(other.is_output or other.parked is not None for other in entries)
