"""What one replica costs: a fresh process that answers, its start-up and its memory.

Run as a program (``python -m loadtests.process BUNDLE THREADS STARTED``, texts as a JSON list on stdin), it is that
process.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparsecbm.errors import SetupError


def _resident() -> int:
    """Bytes of memory that this process holds."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise SetupError("/proc/self/status has no VmRSS; memory can be measured on Linux only.")


def _answer(bundle: str, threads: int, born: float, texts: Sequence[str]) -> dict[str, float]:
    """Loads a bundle and answers, one text first and then all; by name, seconds and bytes.

    ``born`` is when the process was started, on the clock that all processes of the machine share.
    """
    started = time.monotonic()
    from serving.engine import Engine, EngineSettings

    engine = Engine.load(bundle, EngineSettings(threads=threads))
    engine.predict(texts[:1])
    answered = time.monotonic()
    found: dict[str, float] = {"start_to_answer_s": answered - born, "import_to_answer_s": answered - started}
    found["first_prediction_bytes"] = _resident()
    engine.predict(texts)
    found["predictions_bytes"] = _resident()
    started = time.monotonic()
    engine.predict(texts[:1], {"tokens", "subnetwork"})
    found |= {"first_explanation_s": time.monotonic() - started, "first_explanation_bytes": _resident()}
    engine.predict(texts, {"tokens", "subnetwork"})
    return found | {"explanations_bytes": _resident()}


def measure(bundle: Path, threads: int, texts: Sequence[str], repeats: int) -> dict[str, Any]:
    """Medians over fresh processes.

    Args:
        bundle: a folder.
        threads: of the engine.
        texts: what it answers; the first one first.
        repeats: how many processes, one after another.

    Returns:
        JSON values: ``start_to_answer_s`` (from the start of the process to its first answer), ``import_to_answer_s``
        (the same without Python's own start), ``first_explanation_s``, and resident memory in bytes after the first
        prediction, all predictions, the first explanation and all explanations.

    Raises:
        SetupError: the process failed; says what it printed.
    """
    sent = json.dumps(list(texts))
    runs: list[dict[str, float]] = []
    for _ in range(repeats):
        command = [sys.executable, "-m", "loadtests.process", str(bundle), str(threads), str(time.monotonic())]
        done = subprocess.run(command, input=sent, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SetupError(f"The process to measure failed: {done.stderr.strip()}")
        runs.append(json.loads(done.stdout))
    return {name: sorted(run[name] for run in runs)[repeats // 2] for name in runs[0]}


if __name__ == "__main__":
    print(json.dumps(_answer(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), json.load(sys.stdin))))
