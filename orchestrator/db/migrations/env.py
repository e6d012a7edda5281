"""What Alembic runs: the steps that are due, on the connection that it was handed."""

from alembic import context

from orchestrator.db.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    # Whoever handed the connection over has begun the transaction and will end it.
    transactional_ddl=True,
)
context.run_migrations()
