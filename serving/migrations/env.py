"""What Alembic runs: the migrations, over the connection that ``serving.migrations`` opened."""

from __future__ import annotations

from alembic import context

from serving.tables import REVISION_TABLE

context.configure(connection=context.config.attributes["connection"], version_table=REVISION_TABLE)
context.run_migrations()
