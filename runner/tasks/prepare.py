"""What comes before a task's container: its files, its image, and the orchestrator's word.

Cut short when the task is cancelled.
"""

from __future__ import annotations

import logging

import anyio.lowlevel

from runner import timing
from runner.engine.cli import PULL_DEADLINE_S
from runner.errors import (
    EngineError,
    EngineSilent,
    FileRefused,
    Refused,
    Unauthorised,
    Unavailable,
    Unstartable,
)
from runner.log import fields
from runner.model import Identity, TaskState
from runner.tasks.context import Elsewhere, Hand, NotOurs
from runner.workspace.download import Source, fetch_files

log = logging.getLogger(__name__)
_NOT_OURS = frozenset({403, 404, 409, 410})
_STARTING = "container is starting"
_CLAIM_HOLDS_S = 5.0
_FINAL = frozenset({"success", "error", "cancelled"})


async def prepare(hand: Hand) -> None:
    """Bring the task to where its container can be started, and write that down.

    Raises:
        NotOurs: the orchestrator has no more use for it.
        Elsewhere: it was accepted from another orchestrator than this runner's.
        Unstartable: its files or image cannot be had.
    """
    if hand.task.orchestrator_url != hand.parts.orchestrator.url:
        raise Elsewhere(hand.task.orchestrator_url)
    if hand.assignment.files:
        await _download(hand)
    await fetch_image(hand)
    await _claim(hand, _STARTING)
    await _have_slot(hand)
    if hand.task.state is TaskState.ACCEPTED:
        boot_id, kind = hand.parts.clock.boot_id, hand.parts.engine.kind
        await hand.written(lambda: hand.parts.journal.start(hand.task_id, boot_id, kind))
        await hand.reload()


async def _have_slot(hand: Hand) -> None:
    """Wait for the slot of a task that was asked for when the last one's end was near.

    Mostly it is free by now. If not, the claim is made anew when it is.
    """
    asked_at_s = hand.parts.clock.uptime_s()
    await hand.parts.workload.wait_for_slot(hand.task_id)
    if hand.parts.clock.uptime_s() - asked_at_s > _CLAIM_HOLDS_S:
        await _claim(hand, _STARTING)


async def _download(hand: Hand) -> None:
    has_claimed = False
    while True:
        identity = await hand.identity()
        try:
            await fetch_files(
                Source(hand.parts.orchestrator, identity, hand.parts.clock),
                hand.assignment,
                hand.parts.settings.victoria_home,
                min_free_disk=hand.parts.settings.min_free_disk,
            )
        except Unauthorised:
            await _renew(hand, identity)
        except FileRefused:
            if has_claimed:
                raise
            # Files are for the node that holds the task. Had it been taken away, and were it given
            # to this node again meanwhile, an end told now would be taken for its end.
            await _claim(hand, "its files are being fetched")
            has_claimed = True
        except Unavailable as error:
            raise Unstartable(f"cannot fetch its files: {error}") from error
        else:
            return


async def fetch_image(hand: Hand) -> None:
    """See that the image is on this host; what is wrong with it is wrong for the next task too.

    Raises:
        Unstartable: it cannot be had.
    """
    settings = hand.parts.settings
    patience_ends_s = hand.parts.clock.uptime_s() + PULL_DEADLINE_S
    while True:
        try:
            await hand.engine.fetch_image(settings.container_image, settings.pull)
        except EngineError as error:
            if isinstance(error, EngineSilent) and hand.parts.clock.uptime_s() < patience_ends_s:
                await hand.wait_for_engine(error)
                continue
            hand.parts.workload.note_refused_start(str(error), hand.parts.clock.uptime_s())
            raise Unstartable(str(error)) from error
        hand.engine_answers()
        return


async def _claim(hand: Hand, message: str) -> None:
    """Have the orchestrator confirm that the task is still ours, before it can do anything.

    This is what keeps a task from running twice when it was given to another node meanwhile.
    """
    attempts = 0
    while True:
        identity = await hand.identity()
        body = hand.status("running", message)
        try:
            standing = await hand.parts.orchestrator.report(identity, "status", body)
        except Unauthorised:
            await _renew(hand, identity)
        except Refused as error:
            if error.status in _NOT_OURS:
                raise NotOurs(str(error)) from error
            log.warning("cannot report a start: %s", error, extra=fields(task_id=hand.task_id))
            return
        except Unavailable as error:
            attempts += 1
            wait_s = timing.delay_s(attempts, at_least_s=error.retry_after_s or 0)
            log.warning(
                "cannot report a start, trying again in %.0f s: %s",
                wait_s,
                error,
                extra=fields(task_id=hand.task_id),
            )
            await hand.parts.clock.sleep(wait_s)
        else:
            if standing == "cancelled":
                hand.cancel("the orchestrator")
                await anyio.lowlevel.checkpoint()
            if standing in _FINAL:
                raise NotOurs(f"the orchestrator has it as {standing}")
            return


async def _renew(hand: Hand, identity: Identity) -> None:
    await hand.parts.node.renew(identity)
    await hand.parts.node.identity()
