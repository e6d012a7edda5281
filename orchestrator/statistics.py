"""The fleet in numbers."""

from collections import Counter

from fastapi import APIRouter, Depends
from sqlalchemy import func, select

from orchestrator.auth import allowed_to
from orchestrator.clock import utc_now
from orchestrator.leases import silent_before
from orchestrator.problems import problems
from orchestrator.roles import Permission
from orchestrator.schema import Node, Task
from orchestrator.services import ServicesParam
from orchestrator.states import NodeStatus, TaskStatus
from orchestrator.wire import Statistics

router = APIRouter(tags=["system"])

_RUNNING = (TaskStatus.RUNNING, TaskStatus.ANALYZING)


@router.get(
    "/dashboard/stats",
    dependencies=[Depends(allowed_to(Permission.READ_STATISTICS))],
    responses=problems(401, 403, 429),
)
def get_statistics(services: ServicesParam) -> Statistics:
    """Count nodes and tasks; a node is active as long as it is not offline."""
    now = utc_now()
    today = now.replace(hour=0, minute=0, second=0, microsecond=0)
    is_there = Node.status != NodeStatus.OFFLINE
    is_heard = Node.last_heartbeat >= silent_before(services.settings, now)
    by_node = select(
        func.count(),
        func.count().filter(is_there, is_heard),
        func.count().filter(Node.status == NodeStatus.IDLE, is_heard),
    ).select_from(Node)
    counted = select(Task.status, func.count()).group_by(Task.status)
    by_status = counted.where(Task.status.in_([TaskStatus.PENDING, *_RUNNING]))
    ended_today = counted.where(Task.completed_at >= today)
    with services.database.reading() as session:
        total, active, idle = session.execute(by_node).one()
        now_in = Counter({row[0]: row[1] for row in session.execute(by_status)})
        ended = Counter({row[0]: row[1] for row in session.execute(ended_today)})
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
