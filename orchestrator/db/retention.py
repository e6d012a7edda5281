"""Retention: deletes old tasks that have ended, with all that belongs to them, and unused files."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TypeVar

from sqlalchemy import ColumnElement, and_, delete, exists, not_, select
from sqlalchemy.orm import Session

from orchestrator.db.tables import (
    Artifact,
    File,
    Log,
    Node,
    OutputPart,
    StatusEntry,
    Task,
    TaskFile,
    TaskOutput,
)
from orchestrator.model import TaskStatus

T = TypeVar("T")

_AT_ONCE = 500
"""Rows in one statement."""
_ENDED = [status for status in TaskStatus if status.is_final]
_MAY_RUN = and_(
    Task.status == TaskStatus.CANCELLED,
    Task.node_ended_at.is_(None),
    exists().where(Node.id == Task.assigned_node_id),
)
"""Cancelled, and its node has not reported the end: from the task's row it learns to stop it."""


def delete_old_tasks(
    session: Session, before: datetime, condition: ColumnElement[bool]
) -> tuple[int, list[str]]:
    """Delete tasks on this condition that ended before that moment, unless one may still run.

    Return their number, and the ids of their artifacts, whose bytes go once this is committed.
    """
    is_old = (Task.status.in_(_ENDED), Task.completed_at < before, not_(_MAY_RUN))
    ended = select(Task.number).where(*is_old, condition)
    # Locked, and by number from here on: a report may come in for one of them meanwhile.
    numbers = session.scalars(ended.order_by(Task.number).with_for_update()).all()
    return len(numbers), delete_tasks(session, numbers)


def delete_tasks(session: Session, numbers: Sequence[int]) -> list[str]:
    """Delete tasks, whose rows are locked, with all that belongs to them.

    Return the ids of their artifacts, whose bytes go once this is committed.
    """
    artifacts: list[str] = []
    for some in _parts(numbers):
        deletion = delete(Artifact).where(Artifact.task_number.in_(some)).returning(Artifact.id)
        artifacts += session.scalars(deletion)
        for table in (Log, OutputPart, StatusEntry, TaskFile, TaskOutput):
            session.execute(delete(table).where(table.task_number.in_(some)))
        session.execute(delete(Task).where(Task.number.in_(some)))
    return artifacts


def delete_unused_files(
    session: Session, before: datetime, created_by: str | None = None
) -> list[str]:
    """Delete files from before that moment that no task names; return their ids.

    With `created_by`, only those that were uploaded with this key.
    """
    is_unused = ~exists().where(TaskFile.filename == File.filename)
    unused = select(File.id).where(File.created_at < before, is_unused)
    if created_by is not None:
        unused = unused.where(File.created_by == created_by)
    ids = session.scalars(unused.order_by(File.id).with_for_update()).all()
    deleted: list[str] = []
    for some in _parts(ids):
        # Asked again: a task may have taken one just before it was locked.
        deletion = delete(File).where(File.id.in_(some), is_unused).returning(File.id)
        deleted += session.scalars(deletion)
    return deleted


def unknown_ids(
    session: Session, table: type[File] | type[Artifact], ids: Sequence[str]
) -> set[str]:
    """Return those of the ids that no file, or no artifact, has."""
    known: set[str] = set()
    for some in _parts(ids):
        known.update(session.scalars(select(table.id).where(table.id.in_(some))))
    return set(ids) - known


def _parts(things: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(things), _AT_ONCE):
        yield things[start : start + _AT_ONCE]
