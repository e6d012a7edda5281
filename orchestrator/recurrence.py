"""Repeated tasks: each occurrence is a task of its own, and its end queues the next.

So occurrences of one series never overlap, times that nobody was there for are not made up for,
and cancelling the one that waits ends the series. Cron expressions are in UTC.
"""

import uuid
from datetime import datetime

from cronsim import CronSim, CronSimError

from orchestrator.schema import Task, TaskFile


def check_expression(expression: str) -> None:
    """Raise ValueError, with a sentence, for what is no cron expression."""
    try:
        CronSim(expression, datetime(2000, 1, 1))  # noqa: DTZ001 - see `next_time`
    except CronSimError as error:
        raise ValueError(f"cannot be read as a cron expression: {error}".lower()) from error


def next_time(expression: str, after: datetime) -> datetime | None:
    """Give the next moment of a cron expression, or None if there is none."""
    # Without a zone there is no daylight saving to go wrong.
    naive = after.replace(tzinfo=None)
    try:
        found: datetime = next(CronSim(expression, naive))
    except (StopIteration, OverflowError):
        return None
    return found.replace(tzinfo=after.tzinfo)


def successor(task: Task, now: datetime) -> Task | None:
    """Give the next occurrence of a task that has just ended, not yet in the queue."""
    due = next_time(task.recurrence, now) if task.recurrence else None
    if due is None:
        return None
    return Task(
        id=str(uuid.uuid4()),
        prompt=task.prompt,
        target_node_id=task.target_node_id,
        target_node_name=task.target_node_name,
        target_tags=task.target_tags,
        priority=task.priority,
        timeout_seconds=task.timeout_seconds,
        scheduled_for=due,
        recurrence=task.recurrence,
        created_at=now,
        created_by=task.created_by,
        file_links=[
            TaskFile(position=link.position, filename=link.filename) for link in task.file_links
        ],
    )
