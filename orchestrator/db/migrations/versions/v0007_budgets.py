"""Indexes by which the budgets of a scoped key are counted."""

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add them."""
    op.create_index("ix_tasks_creator", "tasks", ["created_by", "status"])
    op.create_index("ix_files_creator", "files", ["created_by", "size"])
