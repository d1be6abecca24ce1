"""One run of the benchmark: its sections, what was left out, and the machine that it ran on."""

from __future__ import annotations

import importlib.util
import os
import platform
from collections.abc import Callable, Collection
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from loadtests.process import measure
from loadtests.rivals import compare
from loadtests.scaling import base_size, by_concepts, by_density, by_length
from loadtests.setting import Setting
from sparsecbm.bundle import MANIFEST

_NEEDED = ("torch", "onnx", "transformers")  # for whatever is made to measure with
PROCESSES = 5


def _machine() -> dict[str, Any]:
    processor = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    packages = ("onnxruntime", *(name for name in _NEEDED if importlib.util.find_spec(name)))
    return {
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "load_before": os.getloadavg()[0],
    }


def run(setting: Setting, sections: Collection[str], tell: Callable[[str], None]) -> dict[str, Any]:
    """Measures.

    Args:
        setting: of the run.
        sections: names of those to measure; the command has them all.
        tell: told what is being done.

    Returns:
        JSON values: ``bundle``, ``setting``, ``machine`` (with the load that it had before and after), ``left_out``
        and ``notes`` (sentences), ``ratio_int8_to_dense_fp32`` (our int8 texts per second over those of the best dense
        fp32 pass; null where not measured), and each section's values under its name.
    """
    manifest, lengths = setting.manifest, setting.lengths()
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    files = {name: entry.bytes for name, entry in manifest.files.items()}
    files[MANIFEST] = (setting.bundle / MANIFEST).stat().st_size
    found: dict[str, Any] = {
        "bundle": {
            "name": manifest.name,
            "version": manifest.version,
            "precision": manifest.precision,
            "concepts": len(manifest.concepts),
            "density": manifest.branch_density,
            "bytes": sum(files.values()),
            "files": files,
        },
        "setting": {
            "texts": len(setting.texts),
            "tokens": {
                "median": float(np.median(lengths)),
                "p95": float(np.percentile(lengths, 95)),
                "max": int(lengths.max()),
            },
            "batch": setting.batch,
            "rounds": setting.rounds,
            "threads": setting.threads,
        },
        "machine": _machine(),
        "left_out": [],
        "notes": [],
    }
    if missing:
        found["left_out"].append(
            f"Left out: the passes that ours replaces, ours {setting.other}, and the sections concepts, density and "
            f"base. To make them takes {' and '.join(missing)}; install with: pip install 'sparsecbm[train]'"
        )
    elif setting.checkpoint is None:
        found["notes"].append(
            f"Without --checkpoint the dense backbone and ours {setting.other} have random weights of the bundle's "
            "shape, which take the same time; mask edits of them, which end when the value is reached, are left out."
        )
    else:
        found["notes"].append(f"The dense backbone and ours {setting.other} have the checkpoint's weights.")
    works: dict[str, Callable[[Callable[[str], None]], dict[str, Any]]] = {
        "rivals": lambda say: compare(setting, not missing, say),
        "process": lambda say: measure(setting.bundle, setting.threads, setting.texts, PROCESSES),
        "length": lambda say: by_length(setting, not missing, say),
    }
    if not missing:
        works |= {
            "concepts": lambda say: by_concepts(setting, say),
            "density": lambda say: by_density(setting, say),
            "base": lambda say: base_size(setting, say),
        }
    for name, work in works.items():
        if name in sections:
            tell(name)
            found[name] = work(lambda said, name=name: tell(f"{name}: {said}"))  # type: ignore[misc]
    ratios = found.get("rivals", {}).get("ratios", {})
    found["ratio_int8_to_dense_fp32"] = ratios.get("int8_to_dense_fp32", {}).get("value")
    found["machine"]["load_after"] = os.getloadavg()[0]
    return found
