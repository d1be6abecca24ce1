"""The command ``sparsecbm correct``."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer


def correct(
    export: Annotated[str, typer.Option(help="CSV, TSV, JSONL, JSON or Parquet file to write all corrections to.")],
    ledger: Annotated[str | None, typer.Option(help="Database URL of the ledger; by default the server's.")] = None,
    state_dir: Annotated[Path | None, typer.Option(help="State folder of the server, where its ledger is.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Name of the corrected model, where the ledger knows several.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Export the ledger's corrections as training data, for 'sparsecbm train --corrections'.

    Each row has a text, an empty label, and the corrected concepts; where a text was corrected several times, the
    newest value of each concept.
    """
    from serving.export import export as export_corrections
    from serving.ledger import open_ledger
    from serving.settings import read_settings
    from sparsecbm.errors import SetupError, UnavailableError

    opened = open_ledger(read_settings(ledger=ledger, state_dir=state_dir))
    try:
        file = opened.database.file
        if file is not None and not file.exists():
            raise SetupError(f"There is no ledger at {file}: name it with --ledger, or its folder with --state-dir.")
        done = export_corrections(opened, model, export)
    except UnavailableError as error:
        raise SetupError(f"The ledger can't be read: {error.__cause__}") from error
    finally:
        opened.close()
    if as_json:
        typer.echo(json.dumps({"file": export, **dataclasses.asdict(done)}))
        return
    typer.echo(f"{export}: {done.texts} texts, of {done.corrections} corrections")
    if done.left_out:
        typer.echo(
            f"{done.left_out} more corrections are left out: of their texts only hashes are kept (--no-store-texts)",
            err=True,
        )
