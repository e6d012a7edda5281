"""Scoped keys and their audit; when tasks are overdue, and what the sweeper asks by."""

from datetime import timedelta

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make the tables for keys; note when running tasks are overdue; change the indexes."""
    # Every heartbeat had to write it, and nothing asked by it.
    op.drop_index("ix_nodes_last_heartbeat", "nodes")
    op.add_column("tasks", sa.Column("overdue_at", sa.DateTime()))
    _fill_overdue_at()
    op.create_index("ix_tasks_overdue", "tasks", ["status", "overdue_at"])
    op.create_index("ix_tasks_due", "tasks", ["status", "scheduled_for"])
    op.create_index("ix_tasks_completed", "tasks", ["completed_at"])
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("prefix", sa.String(16), nullable=False),
        sa.Column("key_hash", sa.String(64), nullable=False, unique=True),
        sa.Column("previous_hash", sa.String(64), unique=True),
        sa.Column("previous_until", sa.DateTime()),
        sa.Column("allowed_node_patterns", sa.JSON(), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("rate_limit", sa.Integer()),
        sa.Column("paid_until", sa.DateTime()),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.Column("rotated_at", sa.DateTime()),
        sa.Column("expires_at", sa.DateTime()),
        sa.Column("enabled", sa.Boolean(), nullable=False),
    )
    op.create_table(
        "key_audit",
        sa.Column("number", _NUMBER, primary_key=True, autoincrement=True),
        sa.Column("timestamp", sa.DateTime(), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("client", sa.Text(), nullable=False),
    )
    op.create_index("ix_key_audit_timestamp", "key_audit", ["timestamp"])


def _fill_overdue_at() -> None:
    tasks = sa.table(
        "tasks",
        sa.column("number", sa.BigInteger()),
        sa.column("started_at", sa.DateTime()),
        sa.column("timeout_seconds", sa.Integer()),
        sa.column("overdue_at", sa.DateTime()),
    )
    started = sa.select(tasks.c.number, tasks.c.started_at, tasks.c.timeout_seconds).where(
        tasks.c.started_at.is_not(None)
    )
    for number, started_at, timeout_s in op.get_bind().execute(started).all():
        overdue_at = started_at + timedelta(seconds=timeout_s)
        op.execute(tasks.update().where(tasks.c.number == number).values(overdue_at=overdue_at))
