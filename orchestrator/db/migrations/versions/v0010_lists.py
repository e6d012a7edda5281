"""Indexes by which lists are filtered; nodes that are paused; tasks that were run again."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    """Add them."""
    # SQLite adds no column that must have a value unless it has a default.
    op.add_column(
        "nodes", sa.Column("paused", sa.Boolean(), nullable=False, server_default=sa.false())
    )
    op.add_column("tasks", sa.Column("rerun_of", sa.String(36)))
    op.create_index("ix_nodes_listed", "nodes", ["registered_at", "id"])
    for name, column in (
        ("status", "status"),
        ("node", "assigned_node_id"),
        ("creator", "created_by"),
        ("time", "created_at"),
    ):
        op.create_index(f"ix_tasks_listed_{name}", "tasks", [column, "number"])
