"""The tasks that wait, in the order in which they are given out."""

from collections.abc import Iterator, Sequence
from datetime import datetime

from sqlalchemy import and_, bindparam, or_, select
from sqlalchemy.orm import Session

from orchestrator.schema import Task
from orchestrator.states import TaskStatus
from orchestrator.targeting import Target

_FIRST_LOOK = 20
_LONGEST_LOOK = 5000
"""How many tasks of the queue are looked at at once; most nodes find theirs among the first."""

# Made once: to make a statement costs more than to run it.
_QUEUE = (
    select(
        Task.priority,
        Task.number,
        Task.target_node_id,
        Task.target_node_name,
        Task.target_tags,
    )
    .where(
        Task.status == TaskStatus.PENDING,
        or_(
            Task.target_node_id.is_(None),
            Task.target_node_id.in_(bindparam("node_ids", expanding=True)),
        ),
        or_(Task.scheduled_for.is_(None), Task.scheduled_for <= bindparam("now")),
    )
    .order_by(Task.priority.desc(), Task.number)
    .limit(bindparam("length"))
)
_LATER = _QUEUE.where(
    or_(
        Task.priority < bindparam("priority"),
        and_(Task.priority == bindparam("priority"), Task.number > bindparam("number")),
    )
)


def pages(
    session: Session, node_ids: Sequence[str], now: datetime
) -> Iterator[list[tuple[int, Target]]]:
    """Yield number and target of the tasks that are due, a growing page at a time.

    Tasks that are for one node by its id are there if it is one of these.
    """
    asked: dict[str, object] = {"node_ids": node_ids, "now": now, "length": _FIRST_LOOK}
    length = _FIRST_LOOK
    rows = session.execute(_QUEUE, asked).all()
    while rows:
        yield [
            (number, Target(node_id, node_name, tags))
            for _, number, node_id, node_name, tags in rows
        ]
        if len(rows) < length:
            return
        priority, number = rows[-1][:2]
        length = min(4 * length, _LONGEST_LOOK)
        place = {"length": length, "priority": priority, "number": number}
        rows = session.execute(_LATER, {**asked, **place}).all()
