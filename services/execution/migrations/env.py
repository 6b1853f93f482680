"""What alembic runs: migrations over the connection that ``upgrade`` was given."""

from __future__ import annotations

from alembic import context

from services.execution.migrations import VERSION_TABLE, adopt, mark

connection = context.config.attributes["connection"]
adopt(connection)
context.configure(connection=connection, render_as_batch=True, version_table=VERSION_TABLE)
with context.begin_transaction():
    context.run_migrations()
mark(connection)
