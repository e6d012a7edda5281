"""Keys of tasks and rotated keys of nodes, which are derived from a secret of the server."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add what keys are derived from, and what tells which of them are valid."""
    op.create_table(
        "server_secrets",
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("value", sa.String(64), nullable=False),
    )
    # SQLite adds no column that must have a value unless it has a default.
    for table, name in (("tasks", "assignment_number"), ("nodes", "key_rotation")):
        column = sa.Column(name, sa.Integer(), nullable=False, server_default="0")
        op.add_column(table, column)
    op.add_column("tasks", sa.Column("assigned_at", sa.DateTime()))
    for name in ("pending_key_hash", "previous_key_hash"):
        op.add_column("nodes", sa.Column(name, sa.String(64)))
        op.create_index(f"ix_nodes_{name}", "nodes", [name], unique=True)
    op.add_column("nodes", sa.Column("key_replaced_at", sa.DateTime()))
    tasks = sa.table(
        "tasks", sa.column("offered_at", sa.DateTime()), sa.column("assigned_at", sa.DateTime())
    )
    op.execute(tasks.update().values(assigned_at=tasks.c.offered_at))
