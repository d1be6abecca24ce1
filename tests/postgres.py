"""A real PostgreSQL of the tests' own, on a Unix socket in a folder of its own."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
import pytest

MISSING = "no PostgreSQL server here: install Debian's package postgresql"
_START_S = 60


def _programs() -> Path | None:
    """The folder of the newest server that Debian's packages, or the PATH, have."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    on_path = shutil.which("postgres")
    return Path(on_path).resolve().parent if on_path else None


class PostgreSQL:
    """One server. It doesn't run as root, so the tests' root runs it as `postgres` or `nobody`."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs = programs
        self._folder = folder
        self._data = folder / "data"
        self._process: subprocess.Popen[bytes] | None = None
        self._user: str | None = None
        if os.getuid() == 0:
            names = {entry.pw_name for entry in pwd.getpwall()}
            self._user = "postgres" if "postgres" in names else "nobody"
            shutil.chown(folder, self._user)
        make: list[str | Path] = [
            programs / "initdb",
            "-D",
            self._data,
            "-U",
            "sparsecbm",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--no-sync",
        ]
        subprocess.run(
            make, user=self._user, cwd=folder, check=True, stdout=subprocess.DEVNULL, env={"PATH": "/usr/bin:/bin"}
        )

    def create(self) -> str:
        """Makes an empty place for a ledger; gives its URL. It is a schema, which costs less than a database."""
        name = f"t{uuid.uuid4().hex}"
        with self.connect() as connection:
            connection.execute(f"CREATE SCHEMA {name}".encode())
        return f"postgresql://sparsecbm@/postgres?host={self._folder}&options=-csearch_path%3D{name}"

    def connect(self) -> psycopg.Connection:
        return psycopg.connect(f"host={self._folder} user=sparsecbm dbname=postgres", autocommit=True)

    def start(self) -> None:
        """Starts it, and waits until it takes connections."""
        assert self._process is None
        command: list[str | Path] = [
            self._programs / "postgres",
            "-D",
            self._data,
            "-k",
            self._folder,
            "-c",
            "listen_addresses=",
        ]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, user=self._user, cwd=self._folder, stdout=log, stderr=log, start_new_session=True, env={}
            )
        deadline = time.monotonic() + _START_S
        while True:
            try:
                self.connect().close()
                return
            except psycopg.OperationalError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    pytest.fail(f"PostgreSQL did not start: {(self._folder / 'log').read_text()}")
                time.sleep(0.05)

    def kill(self) -> None:
        """`kill -9` of all its processes at once."""
        if self._process is not None:
            self.signal(signal.SIGKILL)
            self._process.wait(10)
            self._process = None

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to all its processes, each of which leads a group of its own."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        for pid in (self._process.pid, *map(int, children)):
            with suppress(ProcessLookupError):
                os.kill(pid, number)


@contextmanager
def running() -> Iterator[PostgreSQL]:
    """A server that has started; the test is skipped where there is no program for it."""
    programs = _programs()
    if programs is None:
        pytest.skip(MISSING)
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # a socket's path must be short
    try:
        server = PostgreSQL(programs, folder)
        try:
            server.start()
            yield server
        finally:
            server.kill()
    finally:
        shutil.rmtree(folder)
