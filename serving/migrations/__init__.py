"""Brings a ledger that an older program wrote to today's tables, by Alembic.

A migration is a file in ``versions``, named after its revision, a whole number.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, inspect, text

from serving.tables import REVISION, REVISION_TABLE
from sparsecbm.errors import SetupError

_FOLDER = Path(__file__).parent


def upgrade(connection: Connection) -> None:
    """Makes the tables where there are none, and upgrades older ones.

    Args:
        connection: in a transaction that keeps every other program from doing the same.

    Raises:
        SetupError: a newer program wrote the ledger; nothing was changed.
    """
    found, noted = _revision(connection)
    if found > int(REVISION):
        raise SetupError(
            f"The ledger has schema version {found}, and this program knows versions up to {REVISION}: a newer "
            "SparseCBM wrote it. Serve with that one, or choose another ledger with --ledger."
        )
    if found == int(REVISION):
        return
    # Only now: a replica that finds the ledger as it should be needs no Alembic.
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    if found and not noted:
        command.stamp(config, str(found))
    command.upgrade(config, REVISION)


def _revision(connection: Connection) -> tuple[int, bool]:
    """A ledger's revision, 0 where there is none, and whether it is noted where Alembic looks."""
    tables = inspect(connection).get_table_names()
    if REVISION_TABLE in tables:
        return int(connection.execute(text(f"SELECT version_num FROM {REVISION_TABLE}")).scalar_one()), True
    if "ledger_schema" in tables:  # written before Alembic
        return int(connection.execute(text("SELECT max(version) FROM ledger_schema")).scalar_one()), False
    return 0, False
