"""Who corrected, on which masks, texts that may be hashes alone, and idempotency keys."""

from __future__ import annotations

import hashlib
import json

import sqlalchemy as sa
from alembic import op

revision = "2"
down_revision = "1"

_AT_ONCE = 1000
_interventions = sa.table(
    "interventions",
    sa.column("id", sa.String),
    sa.column("version", sa.String),
    sa.column("text", sa.Text),
    sa.column("outcome", sa.Text),
    sa.column("who", sa.String),
    sa.column("mask_version", sa.String),
    sa.column("text_sha256", sa.String),
    sa.column("label_flipped", sa.Boolean),
)


def upgrade() -> None:
    """Adds the columns, fills them for what there is, and makes the table of keys."""
    for name, kind in (
        ("who", sa.String(128)),
        ("mask_version", sa.String(64)),
        ("text_sha256", sa.String(64)),
        ("label_flipped", sa.Boolean()),
    ):
        op.add_column("interventions", sa.Column(name, kind))
    _fill(op.get_bind())
    with op.batch_alter_table("interventions") as table:
        table.alter_column("text", existing_type=sa.Text, nullable=True)
        table.alter_column("who", existing_type=sa.String(128), nullable=False)
        table.alter_column("mask_version", existing_type=sa.String(64), nullable=False)
        table.alter_column("text_sha256", existing_type=sa.String(64), nullable=False)
        table.alter_column("label_flipped", existing_type=sa.Boolean, nullable=False)
    op.create_index("ix_interventions_created_at", "interventions", ["created_at"])
    op.create_index("ix_interventions_text_sha256", "interventions", ["text_sha256"])
    op.create_table(
        "idempotency_keys",
        sa.Column("who", sa.String(128), primary_key=True),
        sa.Column("key", sa.String(255), primary_key=True),
        sa.Column("created_at", sa.DateTime, nullable=False),
        sa.Column("body_sha256", sa.String(64), nullable=False),
        sa.Column("answer", sa.LargeBinary, nullable=False),
    )
    # The program before Alembic then refuses this ledger as newer.
    op.execute("UPDATE ledger_schema SET version = 2")


def _fill(connection: sa.Connection) -> None:
    # Until now nobody was named, and the masks were the bundle's own.
    connection.execute(sa.update(_interventions).values(who="anonymous", mask_version=_interventions.c.version))
    change = (
        sa.update(_interventions)
        .where(_interventions.c.id == sa.bindparam("at"))
        .values(text_sha256=sa.bindparam("hash"), label_flipped=sa.bindparam("flipped"))
    )
    columns = (_interventions.c.id, _interventions.c.text, _interventions.c.outcome)
    last = ""
    while rows := connection.execute(
        sa.select(*columns).where(_interventions.c.id > last).order_by(_interventions.c.id).limit(_AT_ONCE)
    ).all():
        connection.execute(
            change,
            [
                {
                    "at": row.id,
                    "hash": hashlib.sha256(row.text.encode()).hexdigest(),
                    "flipped": json.loads(row.outcome)["flipped"]["label"],
                }
                for row in rows
            ],
        )
        last = rows[-1].id
