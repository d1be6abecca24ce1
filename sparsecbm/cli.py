"""The ``sparsecbm`` command: every room's commands under one name, and every error as one sentence.

The rooms register their Typer apps in the entry-point group ``sparsecbm.commands`` (see ``pyproject.toml``),
so this package imports none of them. Commands import what is heavy inside their functions: ``sparsecbm
--help`` loads neither torch nor ray.
"""

from __future__ import annotations

import os
import sys
import traceback
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any

import typer

from sparsecbm import __version__
from sparsecbm.errors import SetupError, SparseCBMError

GROUP = "sparsecbm.commands"

# Top-level modules that come with an extra, and the extra.
_EXTRAS = {
    "datasets": "train",
    "onnx": "train",
    "onnxscript": "train",
    "pyarrow": "train",
    "tensorboard": "tensorboard",
    "torch": "train",
    "transformers": "train",
    "yaml": "train",
}


def _explain(error: ImportError) -> str | None:
    """What to install, where the import failed for lack of an extra."""
    module = (error.name or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or module not in _EXTRAS:
        return None
    return f"{module} is not installed; install it with: pip install 'sparsecbm[{_EXTRAS[module]}]'"


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sparsecbm {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """SparseCBM: train, export and serve models that predict through human concepts."""


def _load(app: typer.Typer, commands: EntryPoint) -> str | None:
    """Adds a room's commands to the app; returns why it could not, if it could not."""
    try:
        room: typer.Typer = commands.load()
    except ImportError as error:
        return f"{commands.value.partition(':')[0]}: {_explain(error) or error}"
    app.registered_commands += room.registered_commands
    app.registered_groups += room.registered_groups
    return None


def build() -> typer.Typer:
    """The whole command-line program. A room that can't be imported is left out.

    Calling a command that is in none of the others then raises SetupError, which says what is missing.
    """
    app = typer.Typer(name="sparsecbm", no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich")
    reasons = [_load(app, commands) for commands in sorted(entry_points(group=GROUP), key=lambda e: e.name)]
    missing = [reason for reason in reasons if reason is not None]

    class Commands(typer.core.TyperGroup):
        def get_command(self, ctx: Any, cmd_name: str) -> Any:
            command = super().get_command(ctx, cmd_name)
            if command is None and missing:
                raise SetupError(f"no command {cmd_name!r} here; not loaded: {'; '.join(missing)}")
            return command

    app.callback(cls=Commands)(_root)
    return app


def main() -> None:
    """Entry point of the ``sparsecbm`` command.

    Exits with 2 and one sentence on stderr for every error that a user can cause (after a traceback, with
    ``SPARSECBM_DEBUG=1``), and with 130 when interrupted.
    """
    try:
        build()()
    except (SparseCBMError, ModuleNotFoundError) as error:
        message = error.message if isinstance(error, SparseCBMError) else _explain(error)
        if message is None:
            raise
        if os.environ.get("SPARSECBM_DEBUG", "0") not in ("", "0"):
            traceback.print_exc()
        typer.echo(f"error: {message}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
