"""The output of tasks."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "task_output",
        sa.Column("task_number", _NUMBER, sa.ForeignKey("tasks.number"), primary_key=True),
        sa.Column("length", sa.BigInteger(), nullable=False),
        sa.Column("is_done", sa.Boolean(), nullable=False),
        sa.Column("watched_until", sa.DateTime()),
    )
    op.create_table(
        "task_output_parts",
        sa.Column("task_number", _NUMBER, sa.ForeignKey("tasks.number"), primary_key=True),
        sa.Column("start", sa.BigInteger(), primary_key=True),
        sa.Column("data", sa.LargeBinary(), nullable=False),
    )
