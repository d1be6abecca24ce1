"""Folders that appear whole or not at all."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sparsecbm.errors import SetupError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Gives an empty folder to fill, which then takes the target's place; on an error nothing changes.

    A folder that is already at the target is replaced. Everything is on disk before the names change.
    """
    target = target.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        new = work / "new"
        new.mkdir()
        yield new
        for path in new.iterdir():
            path.chmod(0o644)  # some writers keep their files private
            _sync(path)
        _sync(new)
        if not target.exists():
            new.rename(target)
        elif not _exchange(new, target):
            target.rename(work / "old")
            new.rename(target)
        _sync(target.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def sweep(target: Path) -> None:
    """Removes what an ``atomic_folder`` of this target left beside it when it was killed."""
    target = target.resolve()
    if not target.parent.is_dir():
        return
    work = re.compile(rf"\.{re.escape(target.name)}\.[a-z0-9_]{{8}}")  # as mkdtemp names it
    for path in target.parent.iterdir():
        if work.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


def check_writable(target: Path) -> None:
    """Finds out before long work whether its result can be written to a folder.

    Raises:
        SetupError: nothing can be written there.
    """
    place = target.absolute()
    while not place.exists():
        place = place.parent
    try:
        with tempfile.TemporaryDirectory(
            prefix=".sparsecbm-", dir=place if place != target.absolute() else place.parent
        ):
            pass
    except OSError as error:
        raise SetupError(f"{target} can't be written ({error.strerror}); name another folder.") from error


def _exchange(left: Path, right: Path) -> bool:
    """Swaps two folders' names in one step; gives False where this system or file system can't."""
    swap = getattr(ctypes.CDLL(None), "renameat2", None)
    if swap is None:
        return False
    return bool(swap(_AT_FDCWD, os.fsencode(left), _AT_FDCWD, os.fsencode(right), _RENAME_EXCHANGE) == 0)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
