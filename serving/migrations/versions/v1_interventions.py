"""Interventions and their corrections, as they were before Alembic kept the ledger's versions."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "1"
down_revision = None


def upgrade() -> None:
    """Makes the tables."""
    schema = op.create_table("ledger_schema", sa.Column("version", sa.Integer, primary_key=True))
    op.bulk_insert(schema, [{"version": 1}])
    op.create_table(
        "interventions",
        sa.Column("id", sa.String(36), primary_key=True),
        sa.Column("created_at", sa.DateTime, nullable=False),
        sa.Column("model", sa.String(128), nullable=False),
        sa.Column("version", sa.String(64), nullable=False),
        sa.Column("level", sa.String(16), nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("note", sa.Text),
        sa.Column("outcome", sa.Text, nullable=False),
    )
    op.create_table(
        "corrections",
        sa.Column("concept", sa.String(128), primary_key=True),
        sa.Column("intervention_id", sa.String(36), sa.ForeignKey("interventions.id"), primary_key=True),
        sa.Column("value", sa.String(128), nullable=False),
    )
