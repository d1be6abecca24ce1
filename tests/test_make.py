"""The frame: ``make`` and its scripts on machines that lack something."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def call(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if "MAKE" not in name} | environment,
        check=False,
    )


def script(folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    path.chmod(0o755)


def test_make_alone_lists_the_targets_for_people() -> None:
    shown = call("make")
    assert shown.returncode == 0
    assert set(re.findall(r"^  make ([a-z]+)", shown.stdout, re.M)) == {
        "clean", "format", "help", "install", "lint", "lock", "serve", "test"
    }  # fmt: skip


def test_the_running_python_is_accepted() -> None:
    found = call("scripts/python", PYTHON=sys.executable)
    assert (found.returncode, found.stdout) == (0, f"{sys.executable}\n")


def test_a_missing_python_is_named() -> None:
    found = call("scripts/python", PYTHON="/nowhere/python")
    assert found.returncode == 1
    assert found.stderr.startswith("error: SparseCBM needs Python 3.11 or newer; found: none.")


def test_an_old_python_is_named_with_its_version(tmp_path: Path) -> None:
    script(tmp_path, "python", 'case "$2" in *platform*) echo 3.9.2;; *) exit 1;; esac')
    found = call("scripts/python", PYTHON=str(tmp_path / "python"))
    assert found.returncode == 1
    assert f"found: {tmp_path}/python (3.9.2)." in found.stderr


def test_a_python_without_venv_says_which_package_has_it(tmp_path: Path) -> None:
    script(tmp_path, "python", 'case "$2" in *platform*) echo 3.11.2;; *ensurepip*) exit 1;; esac')
    found = call("scripts/python", PYTHON=str(tmp_path / "python"))
    assert found.returncode == 1
    assert "apt-get install python3-venv" in found.stderr


def test_serve_without_a_bundle_names_it(tmp_path: Path) -> None:
    done = call("make", "serve", f"BUNDLE={tmp_path}")
    assert done.returncode != 0
    assert f"error: {tmp_path} is no bundle" in done.stderr


def test_serve_on_a_taken_port_names_it(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = call("make", "serve", f"BUNDLE={tmp_path}", f"PORT={port}", f"PYTHON={sys.executable}")
    assert done.returncode != 0
    assert f"error: can't listen on 127.0.0.1:{port}" in done.stderr


def test_the_pinned_versions_fit_any_build() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert pins and all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9._!]+", pin) for pin in pins)
