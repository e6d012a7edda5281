"""Whether the server is healthy, and the fleet in numbers."""

from collections import Counter
from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel
from sqlalchemy import func, select

from orchestrator import __version__
from orchestrator.auth import Caller, allowed_to
from orchestrator.db.tables import Node, Task
from orchestrator.model import NodeStatus, Permission, TaskStatus, utc_now
from orchestrator.schemas.bodies import Statistics
from orchestrator.schemas.problems import problems
from orchestrator.scope import nodes_of, tasks_of
from orchestrator.services import ServicesParam

router = APIRouter(tags=["system"])

_RUNNING = (TaskStatus.RUNNING, TaskStatus.ANALYZING)


class Health(BaseModel):
    """The server's health."""

    status: Literal["healthy"] = "healthy"
    version: str
    timestamp: datetime


@router.get("/health")
def get_health(services: ServicesParam) -> Health:
    """Return the server's version and time, if its database responds."""
    with services.database.reading() as session:
        session.execute(select(1))
    return Health(version=__version__, timestamp=utc_now())


@router.get("/dashboard/stats", responses=problems(401, 403, 429))
def get_statistics(
    services: ServicesParam,
    caller: Annotated[Caller, Depends(allowed_to(Permission.READ_STATISTICS))],
) -> Statistics:
    """Count the nodes and tasks that the key sees. A node is active unless it is offline."""
    now = utc_now()
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    is_there = Node.status != NodeStatus.OFFLINE
    is_heard = Node.offline_at >= now
    by_node = select(
        func.count(),
        func.count().filter(is_there, is_heard),
        func.count().filter(Node.status == NodeStatus.IDLE, is_heard),
    ).select_from(Node)
    counted = select(Task.status, func.count()).group_by(Task.status)
    by_status = counted.where(Task.status.in_([TaskStatus.PENDING, *_RUNNING]))
    ended_today = counted.where(Task.completed_at >= today)
    services.heartbeats.write()
    with services.database.reading() as session:
        nodes, tasks = nodes_of(session, caller), tasks_of(session, caller)
        total, active, idle = session.execute(by_node.where(nodes)).one()
        now_in = Counter({row[0]: row[1] for row in session.execute(by_status.where(tasks))})
        ended = Counter({row[0]: row[1] for row in session.execute(ended_today.where(tasks))})
    return Statistics(
        total_nodes=total,
        active_nodes=active,
        idle_nodes=idle,
        offline_nodes=total - active,
        pending_tasks=now_in[TaskStatus.PENDING],
        running_tasks=sum(now_in[status] for status in _RUNNING),
        completed_tasks_today=ended[TaskStatus.SUCCESS],
        failed_tasks_today=ended[TaskStatus.ERROR],
    )
