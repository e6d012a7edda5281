"""Containers that carry this runner's label and that its journal does not know.

They are left alone for five minutes, should their task be on its way, then removed. Ends after
one round, or by being cancelled.
"""

from __future__ import annotations

import logging

from runner.errors import EngineError, JournalError
from runner.log import fields
from runner.parts import Parts
from runner.states import TaskState
from runner.task import LABEL_RUNNER, container_name

log = logging.getLogger(__name__)

_PATIENCE_S = 300.0
_NEXT_TRY_S = 60.0


async def remove_strays(parts: Parts) -> None:
    """Remove what an accident left behind."""
    strays = await _strays(parts)
    if not strays:
        return
    log.warning(
        "containers of this runner that its journal does not know are removed in 5 minutes",
        extra=fields(containers=",".join(sorted(strays))),
    )
    await parts.clock.sleep(_PATIENCE_S)
    for name in strays & await _strays(parts):
        try:
            await parts.engine.remove(name)
        except EngineError as error:
            log.warning("cannot remove a container: %s", error, extra=fields(container=name))
        else:
            log.warning("container removed", extra=fields(container=name))


async def _strays(parts: Parts) -> set[str]:
    while True:
        try:
            labelled = await parts.engine.labelled(LABEL_RUNNER, parts.runner_id)
            open_tasks = await parts.journal.open_tasks()
        except (EngineError, JournalError) as error:
            log.debug("cannot look for strays: %s", error)
            await parts.clock.sleep(_NEXT_TRY_S)
            continue
        known = {
            container_name(task.task_id)
            for task in open_tasks
            if task.state is not TaskState.CLOSED
        }
        return set(labelled) - known
