"""The queue's index in the order in which tasks are given out."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Make it anew: the highest priority first, and the oldest within it."""
    op.drop_index("ix_tasks_queue", "tasks")
    op.create_index("ix_tasks_queue", "tasks", ["status", sa.text("priority DESC"), "number"])
