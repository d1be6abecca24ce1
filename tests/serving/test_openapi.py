"""Schemathesis against the application: what the description says is what the routes do."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PROGRAM = Path(sys.executable).parent / "schemathesis"
EXAMPLES = 60  # a route and kind of data
CONFIG = """
# An unknown header or query parameter is no mistake in HTTP.
[generation]
allow-extra-parameters = false

[checks]
# It asks for answers within next to no time, and gets 504 as described.
# A body that is too large is refused with 413, which Schemathesis doesn't count as a refusal by itself.
not_a_server_error.expected-statuses = ["2xx", "4xx", "504"]
negative_data_rejection.expected-statuses = ["400", "403", "404", "405", "413", "415", "422", "504"]

[[operations]]
include-path-regex = "/infer$"
# JSON Schema can't say that a tensor's data are as many as its shape has places.
checks.positive_data_acceptance.expected-statuses = ["2xx", "404", "422", "504"]
"""


def test_routes_do_as_described(url: str, tmp_path: Path) -> None:
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG)
    command: list[str | Path] = [PROGRAM, "--config-file", config, "run", f"{url}/openapi.json"]
    command += ["--checks=all", "--mode=all", f"--max-examples={EXAMPLES}", "--seed=1"]
    command += ["--generation-database=none", "--no-color"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr
    [cases] = re.findall(r"Test cases:\s+(\d+) generated", done.stdout.replace(",", ""))
    assert int(cases) > 2000
