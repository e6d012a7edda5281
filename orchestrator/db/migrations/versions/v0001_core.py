"""Nodes, tasks, files, status history and logs."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make the tables of the first version."""
    op.create_table(
        "nodes",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("api_key_hash", sa.String(64), nullable=False, unique=True),
        sa.Column("hostname", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("os_type", sa.Text(), nullable=False),
        sa.Column("capabilities", sa.JSON(), nullable=False),
        sa.Column("tags", sa.JSON(), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("last_heartbeat", sa.DateTime(), nullable=False),
        sa.Column("current_task_id", sa.Text()),
        sa.Column("held_task_ids", sa.JSON(), nullable=False),
        sa.Column("registered_at", sa.DateTime(), nullable=False),
    )
    op.create_index("ix_nodes_last_heartbeat", "nodes", ["last_heartbeat"])
    op.create_table(
        "tasks",
        sa.Column("number", _NUMBER, primary_key=True, autoincrement=True),
        sa.Column("id", sa.String(36), nullable=False, unique=True),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.Column("target_node_id", sa.Text()),
        sa.Column("target_node_name", sa.Text()),
        sa.Column("target_tags", sa.JSON()),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("timeout_seconds", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("assigned_node_id", sa.String(36)),
        sa.Column("offered_at", sa.DateTime()),
        sa.Column("node_ended_at", sa.DateTime()),
        sa.Column("crush_session_id", sa.Text()),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.Column("started_at", sa.DateTime()),
        sa.Column("completed_at", sa.DateTime()),
        sa.Column("result", sa.Text()),
        sa.Column("error_message", sa.Text()),
        sa.Column("scheduled_for", sa.DateTime()),
        sa.Column("recurrence", sa.Text()),
        sa.Column("created_by", sa.Text(), nullable=False),
    )
    op.create_index("ix_tasks_queue", "tasks", ["status", "priority", "number"])
    op.create_index("ix_tasks_node", "tasks", ["assigned_node_id", "status"])
    op.create_table(
        "files",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("filename", sa.Text(), nullable=False, unique=True),
        sa.Column("original_name", sa.Text(), nullable=False),
        sa.Column("checksum", sa.String(64), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
    )
    op.create_table(
        "task_files",
        sa.Column("task_number", _NUMBER, sa.ForeignKey("tasks.number"), primary_key=True),
        sa.Column("position", sa.Integer(), primary_key=True),
        sa.Column("filename", sa.Text(), sa.ForeignKey("files.filename"), nullable=False),
    )
    op.create_index("ix_task_files_filename", "task_files", ["filename"])
    op.create_table(
        "status_history",
        sa.Column("number", _NUMBER, primary_key=True, autoincrement=True),
        sa.Column("task_number", _NUMBER, sa.ForeignKey("tasks.number"), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("message", sa.Text()),
        sa.Column("progress", sa.Float()),
        sa.Column("timestamp", sa.DateTime(), nullable=False),
    )
    op.create_index("ix_status_history_task_number", "status_history", ["task_number"])
    op.create_table(
        "logs",
        sa.Column("task_number", _NUMBER, sa.ForeignKey("tasks.number"), primary_key=True),
        sa.Column("session", sa.Text(), nullable=False),
        sa.Column("received_at", sa.DateTime(), nullable=False),
    )
