"""Run by Alembic for every command: hands it our connection and our tables."""

from __future__ import annotations

from alembic import context

from collectors.schema import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    # Alembic believes that SQLite cannot roll a CREATE TABLE back. It can, once Python's own
    # transaction handling is off, as it is in collectors.store: a migration is whole or not there.
    transactional_ddl=True,
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
