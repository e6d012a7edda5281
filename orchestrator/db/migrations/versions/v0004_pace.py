"""When each node is offline, since their intervals differ; and an index of cancellations."""

from datetime import datetime, timedelta, timezone

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_GRACE = timedelta(minutes=5)
"""The heartbeat timeout is not known here; until then every node has sent another heartbeat."""


def upgrade() -> None:
    """Add the column; nodes that were heard lately are online for some minutes."""
    nodes = sa.table(
        "nodes", sa.column("last_heartbeat", sa.DateTime()), sa.column("offline_at", sa.DateTime())
    )
    # SQLite adds no column that must have a value unless it has a default.
    column = sa.Column(
        "offline_at", sa.DateTime(), nullable=False, server_default="1970-01-01 00:00:00"
    )
    op.add_column("nodes", column)
    now = datetime.now(timezone.utc).replace(tzinfo=None)
    op.execute(nodes.update().values(offline_at=nodes.c.last_heartbeat))
    recent = nodes.c.last_heartbeat > now - _GRACE
    op.execute(nodes.update().where(recent).values(offline_at=now + _GRACE))
    op.create_index("ix_nodes_offline_at", "nodes", ["offline_at"])
    op.create_index("ix_tasks_unconfirmed", "tasks", ["status", "node_ended_at", "completed_at"])
