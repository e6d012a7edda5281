"""What happens though nobody calls: leases end, and tasks come due.

Ends by being cancelled. A sweep that fails is logged, and the next one does its work.
"""

import logging
from datetime import datetime, timedelta

import anyio
from anyio import to_thread
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from orchestrator.db.audit import prune
from orchestrator.db.tables import Task
from orchestrator.model import TaskStatus, utc_now
from orchestrator.scheduling.leases import end_leases, has_ended
from orchestrator.scheduling.waiting import WorkAvailable
from orchestrator.services import Services

_FORGET_EVERY = timedelta(hours=1)
_CALLS_AT_ONCE = 1000

log = logging.getLogger(__name__)


async def sweep(services: Services) -> None:
    """Sweep for as long as the server lives."""
    seen_until = utc_now()
    forgotten_at = seen_until
    while True:
        await anyio.sleep(services.settings.sweep_every_s)
        now = utc_now()
        try:
            await to_thread.run_sync(_end_leases, services, now)
            for call in await to_thread.run_sync(_due_between, services, seen_until, now):
                services.waiters.wake(call)
            seen_until = now
            if now - forgotten_at > _FORGET_EVERY:
                await to_thread.run_sync(_forget_old, services, now)
                forgotten_at = now
        except SQLAlchemyError as error:
            log.warning("cannot sweep, trying again: %s", getattr(error, "orig", error))
        except Exception:
            # One whole sweep: a defect in it, or a row that makes no sense, must not be the last.
            log.exception("a sweep failed, trying again")


def _end_leases(services: Services, now: datetime) -> None:
    with services.database.reading() as session:
        if not has_ended(session, services.settings, now):
            return
    with services.database.writing() as session:
        returned, lost = end_leases(session, services.settings, now)
        for task in returned:
            services.announcer.announce(session, WorkAvailable(task.id, task.target))
    log.warning("tasks of silent nodes: returned=%d lost=%d", len(returned), lost)


def _due_between(services: Services, since: datetime, now: datetime) -> list[WorkAvailable]:
    due = (
        select(Task)
        .where(
            Task.status == TaskStatus.PENDING, Task.scheduled_for > since, Task.scheduled_for <= now
        )
        .order_by(Task.priority.desc(), Task.number)
        .limit(_CALLS_AT_ONCE)
    )
    with services.database.reading() as session:
        return [WorkAvailable(task.id, task.target) for task in session.scalars(due)]


def _forget_old(services: Services, now: datetime) -> None:
    with services.database.writing() as session:
        prune(session, now)
