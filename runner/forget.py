"""Forget what is long over: at the start, and then once a day.

Ends only by being cancelled. What cannot be forgotten today is no reason not to work.
"""

from __future__ import annotations

import logging

from runner.errors import JournalError
from runner.log import fields
from runner.parts import Parts

log = logging.getLogger(__name__)

_DAY_S = 24 * 3600.0
_REMEMBERED_S = 30 * _DAY_S


async def forget(parts: Parts) -> None:
    """Drop the pages of tasks that were closed a month ago; until then a late offer is known."""
    while True:
        try:
            count = await parts.journal.forget_closed(parts.clock.wall_s() - _REMEMBERED_S)
        except JournalError as error:
            log.warning("cannot forget what is long over: %s", error)
        else:
            log.debug("what is long over is forgotten", extra=fields(tasks=count))
        await parts.clock.sleep(_DAY_S)
