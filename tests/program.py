"""Runs the program ``sparsecbm`` in the tests' own process."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from typing import NamedTuple

import pytest

from sparsecbm.cli import main


class Ran(NamedTuple):
    """How a run ended, and what it printed."""

    code: int
    out: str
    err: str


def sparsecbm(*arguments: str) -> Ran:
    """Runs a command to its end."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["sparsecbm", *arguments])
        patch.setattr(sys, "excepthook", sys.excepthook)  # Typer replaces it
        patch.setenv("COLUMNS", "200")
        with pytest.raises(SystemExit) as exit:
            main()
    assert isinstance(exit.value.code, int)
    return Ran(exit.value.code, out.getvalue(), err.getvalue())
