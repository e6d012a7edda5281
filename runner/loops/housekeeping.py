"""Orphaned containers are adopted or removed; old images and closed tasks are removed.

An orphan carries this runner's label and is not in its journal. One that has run is a task of a
journal that was set aside: the task is written again, from the container's labels and variables
and the identity file, and goes on as after a restart. An orphan that never ran, or lacks labels,
is removed after five minutes, in case its task is on its way.

Old images are those that a tag has left behind, where this runner's own journal has run them.

Orphans: ends after one round. Pruning: ends only by being cancelled.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import anyio
import anyio.to_thread

from runner.engine.base import (
    KEY_VARIABLE,
    LABEL_BOOT,
    LABEL_KEY,
    LABEL_NODE,
    LABEL_ORCHESTRATOR,
    LABEL_RUNNER,
    LABEL_TASK,
    LABEL_TIMEOUT,
    OWN_KEY,
    Container,
    Phase,
    container_name,
)
from runner.engine.images import old_images
from runner.errors import EngineError, JournalError
from runner.handles import free_disk
from runner.log import fields
from runner.model import Assignment, Identity, Task, TaskState, is_task_id
from runner.redaction import Secret
from runner.tasks.context import RunnerContext
from runner.timing import Retry, RetryPolicy, retry

log = logging.getLogger(__name__)
T = TypeVar("T")
_IMAGE_BYTES = 10 << 30
"""So much a new image may take: with less than that above its reserve, a disk is near it."""


async def adopt_or_remove_orphans(
    runner: RunnerContext, begin: Callable[[Task], None], looked: anyio.Event
) -> None:
    """Adopt the tasks that are not in the journal; remove the containers that are not a task.

    `looked` is set when all orphans were inspected, or engine or journal did not answer.
    """
    await runner.leftover_starts_ended.wait()
    orphans = await _retry(runner, looked, lambda: _orphans(runner))
    left = {
        name
        for name in orphans
        if not await _retry(runner, looked, partial(_adopt, runner, name, begin))
    }
    looked.set()
    if not left:
        return
    log.warning(
        "containers of this runner that its journal does not know are removed in 5 minutes",
        extra=fields(containers=",".join(sorted(left))),
    )
    await runner.clock.sleep(runner.timings.orphan_grace_s)
    for name in left & await _retry(runner, looked, lambda: _orphans(runner)):
        try:
            container = await runner.engine.inspect(name)
            if container is None or container.labels.get(LABEL_RUNNER) != runner.runner_id:
                continue
            await runner.engine.remove(container.container_id)
        except EngineError as error:
            log.warning("cannot remove a container: %s", error, extra=fields(container=name))
        else:
            log.warning("container removed", extra=fields(container=name))


async def _retry(runner: RunnerContext, looked: anyio.Event, call: Callable[[], Awaitable[T]]) -> T:
    """Retry until engine and journal answer; the first failure sets `looked`."""

    def note_failure(error: Exception, _wait_s: float) -> None:
        log.debug("cannot look for orphans: %s", error)
        looked.set()

    policy = RetryPolicy.every(runner.timings.orphan_retry_s)
    return await retry(call, (EngineError, JournalError), Retry(runner.clock, policy, note_failure))


async def _orphans(runner: RunnerContext) -> set[str]:
    # In this order: a container is in the journal before it is made.
    labelled = await runner.engine.labelled(LABEL_RUNNER, runner.runner_id)
    known = {container_name(task.task_id) for task in await runner.journal.open_tasks()}
    return set(labelled) - known


async def _adopt(runner: RunnerContext, name: str, begin: Callable[[Task], None]) -> bool:
    """Write the container's task and begin it; False if the container is to be removed."""
    container = await runner.engine.inspect(name)
    if container is None or container.labels.get(LABEL_RUNNER) != runner.runner_id:
        return True  # its task was closed a moment ago
    recovered = _task_of(container, runner)
    if recovered is None:
        return False
    task, identity = recovered
    ids = fields(task_id=task.task_id, container=container.container_id[:12])
    if task.orchestrator_url != runner.orchestrator.url:
        log.error(
            "cannot adopt a container: its task is of the orchestrator %s; it is left alone: to "
            "report it, start the runner once with `--orchestrator-url %s --once`",
            task.orchestrator_url,
            task.orchestrator_url,
            extra=ids,
        )
        return True
    # The container's own key is what is left if the identity file was lost as well: as the node's,
    # from the version before, it is an identity; as the task's, it still reports that task.
    known = await runner.journal.identity_of_node(identity.node_id, task.orchestrator_url)
    identity = known or identity
    if not await runner.journal.adopt(task, identity, runner.clock.wall_s()):
        return False
    log.warning("task is adopted from its container; the journal did not know it", extra=ids)
    runner.node.note_owner(task.task_id, identity)
    begin(task)
    return True


def _task_of(container: Container, runner: RunnerContext) -> tuple[Task, Identity] | None:
    """Return the task and the identity that a container's labels and variables describe.

    The prompt is not needed any more, and the key is the one that the container was given: its
    task's or, with an orchestrator that has none for tasks, the node's.
    """
    labels, key = container.labels, container.variables.get(KEY_VARIABLE, "")
    task_id, node_id = labels.get(LABEL_TASK, ""), labels.get(LABEL_NODE, "")
    orchestrator_url = labels.get(LABEL_ORCHESTRATOR, "")
    try:
        timeout_s = float(labels.get(LABEL_TIMEOUT, ""))
    except ValueError:
        return None
    has_run = container.phase not in {Phase.CREATED, Phase.HALF_REMOVED}
    if not has_run or container.name != container_name(task_id):
        return None
    is_readable = all(text.isascii() and text.isprintable() for text in (key, node_id))
    if not (is_task_id(task_id) and key and node_id and orchestrator_url and is_readable):
        return None
    now = runner.clock.wall_s()
    started_at = container.started_at or now
    task = Task(
        task_id=task_id,
        state=TaskState.RUNNING,
        orchestrator_url=orchestrator_url,
        assignment=Assignment(task_id, "", orchestrator_url, timeout_s),
        accepted_at=started_at,
        boot_id=labels.get(LABEL_BOOT),
        engine=runner.engine.kind,
        container_id=container.container_id,
        started_at=started_at,
        deadline_uptime_s=runner.clock.uptime_s() - max(0.0, now - started_at) + timeout_s,
    )
    return task, Identity(node_id, Secret(key), labels.get(LABEL_KEY) == OWN_KEY)


async def remove_old_images(runner: RunnerContext) -> None:
    """Remove old images if the disk that they are on is near its reserve; part of the poll loop."""
    name, check, now = runner.settings.container_image, runner.image_check, runner.clock.uptime_s()
    try:
        if not await _is_near_reserve(runner):
            return
        ran = tuple(await runner.journal.images(name, runner.engine.kind))
        if ran == check.ran and now < check.next_at_s:
            return
        check.ran, check.next_at_s = ran, now + runner.timings.image_check_interval_s
        for image_id in await old_images(runner.engine, ran):
            runner.watchdog.expect("poll", next_within_s=runner.timings.host_check_timeout_s)
            if await runner.engine.remove_image(image_id):
                log.info("old image removed", extra=fields(image=name, image_id=image_id[:12]))
    except (EngineError, JournalError) as error:
        log.warning("cannot remove old images: %s", error)


async def _is_near_reserve(runner: RunnerContext) -> bool:
    """Return whether a new image may not fit on the disk of the engine's images."""
    facts = runner.engine.known_facts
    if facts is None or facts.storage is None:
        return False
    try:
        free = await anyio.to_thread.run_sync(free_disk, facts.storage)
    except OSError:  # it is closed to this user, or in another mount namespace
        return False
    return free < runner.settings.min_free_disk + _IMAGE_BYTES


async def prune_closed_tasks(runner: RunnerContext) -> None:
    """Delete tasks that were closed a month ago; until then a late offer is recognised."""
    while True:
        try:
            count = await runner.journal.prune_closed(
                runner.clock.wall_s() - runner.timings.prune_after_s
            )
        except JournalError as error:
            log.warning("cannot prune closed tasks: %s", error)
        else:
            log.debug("closed tasks are pruned", extra=fields(tasks=count))
        await runner.clock.sleep(runner.timings.prune_interval_s)
