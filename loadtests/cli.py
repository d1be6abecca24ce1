"""The command ``sparsecbm bench``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True)

_FILE_WIDTH = 120  # columns where no terminal says how many there are
SECTIONS = ("rivals", "process", "length", "concepts", "density", "base")


@app.command()
def bench(
    bundle: Annotated[Path, typer.Argument(help="Folder of the bundle to measure.")] = Path(
        "models/restaurant-reviews"
    ),
    section: Annotated[
        list[str] | None,
        typer.Option(
            help=f"What to measure, of {', '.join(SECTIONS)}; may be repeated. By default all.", show_default=False
        ),
    ] = None,
    texts: Annotated[
        Path | None, typer.Option(help="UTF-8 file with a text a line; by default made-up restaurant reviews.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="How many reviews to make up.")] = 256,
    batch: Annotated[int, typer.Option(min=1, help="Texts that everybody is given at once.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds in which all take turns.")] = 5,
    threads: Annotated[int, typer.Option(min=1, help="Processor threads of everybody.")] = 2,
    checkpoint: Annotated[
        Path | None, typer.Option(help="The checkpoint that the bundle was exported from; by default random weights.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Folder to write the figures and plots to.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Measure how fast a bundle answers, beside the dense passes and the paper's way that it replaces.

    All take turns in one run, with the same texts and threads. The rivals are made on the way, which needs PyTorch;
    without it the bundle is measured alone.
    """
    import tempfile

    from rich.console import Console
    from rich.markup import escape

    from loadtests.bench import run
    from loadtests.report import check_folder, write
    from loadtests.setting import Setting
    from loadtests.tables import tables
    from loadtests.texts import read_texts, sample
    from sparsecbm.bundle import read_bundle
    from sparsecbm.errors import SetupError

    wanted = section or list(SECTIONS)
    for name in wanted:
        if name not in SECTIONS:
            raise SetupError(f"--section must be one of {', '.join(SECTIONS)}, not {name!r}.")
    if report is not None:
        check_folder(report)
    manifest = read_bundle(bundle)
    trained = None
    if checkpoint is not None:
        from sparsecbm import checkpoint as checkpoints

        trained = checkpoints.load(checkpoint)
    read = read_texts(texts) if texts is not None else sample(count)
    errors = Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="sparsecbm-bench-") as work, errors.status("measuring") as status:
        setting = Setting(bundle, manifest, read, batch, rounds, threads, Path(work), trained)
        found = run(setting, wanted, lambda said: status.update(escape(said)))
    if report is not None:
        write(found, report)
    if as_json:
        print(json.dumps(found, allow_nan=False))
        return
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    for table in tables(found):
        console.print(table)
