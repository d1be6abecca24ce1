"""Ours beside the passes that it replaces."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtests.clock import Contender, Timing, interleave, ratio
from loadtests.contenders import Rival, engine_padding, onnx_passes, ours, padded, torch_passes, tuned
from loadtests.flops import bundle_flops, dense_flops
from loadtests.setting import Setting
from sparsecbm.bundle import Precision, read_manifest

# Figures by name: how many times as many texts per second the first kind does as the fastest of the second.
_RATIOS = {
    "int8_to_dense_fp32": ("ours int8", "dense fp32"),
    "int8_to_dense_int8": ("ours int8", "dense int8"),
    "fp32_to_dense_fp32": ("ours fp32", "dense fp32"),
    "int8_to_k_dense_fp32": ("ours int8", "dense fp32 per concept"),
    "int8_to_k_dense_int8": ("ours int8", "dense int8 per concept"),
    "int8_to_padded": ("ours int8", "padded"),
    "plain_to_explained_int8": ("ours int8", "ours int8 + both"),
    "plain_to_explained_fp32": ("ours fp32", "ours fp32 + both"),
}


@dataclass(frozen=True, slots=True)
class _Entry:
    """A contender, with what its figures are set beside.

    Attributes:
        contender: to time.
        kind: the fastest of a kind stands for all of it.
        precision: of its weights.
        flops: operations of a text's matrix products, if they are counted.
        padding: share of the tokens it runs, if it is known.
        budget: padded tokens of a batch that it was tuned to, if it was.
    """

    contender: Contender
    kind: str
    precision: Precision
    flops: float | None = None
    padding: float | None = None
    budget: int | None = None


def _ours(setting: Setting, folder: Path, precision: Precision, edits: bool) -> list[_Entry]:
    """Our engine's entries; the first is of predictions without explanations."""
    engine = setting.engine(folder)
    plain, *explained = ours(f"ours {precision}", engine, setting.batches, edits)
    flops = bundle_flops(folder, read_manifest(folder), setting.lengths())
    first = _Entry(plain, plain.name, precision, flops, engine_padding(engine, setting.batches))
    return [first, *(_Entry(contender, contender.name, precision) for contender in explained)]


def _dense(setting: Setting, tell: Callable[[str], None]) -> list[_Entry]:
    """Dense passes once and once per concept, and the paper's way, with their best settings."""
    tell("making the rivals")
    batches, concepts = setting.batches, len(setting.manifest.concepts)
    flops = dense_flops(setting.manifest.backbone, setting.lengths())
    backbone = setting.backbone()
    in_torch = torch_passes(backbone, setting.threads)
    in_onnx = onnx_passes(setting.dense(backbone), setting.threads, fusions=(False, True))
    tell("tuning the rivals")
    field = tuned(in_onnx | in_torch, setting.reader(), batches[0])

    def entry(rival: Rival, kind: str, times: int = 1) -> _Entry:
        share, budget = rival.reader.padding(batches), rival.reader.budget
        return _Entry(rival.contender(batches, times), kind, rival.precision, times * flops, share, budget)

    def fastest(names: Collection[str], precision: Precision) -> Rival:
        return next(rival for rival in field if rival.name in names and rival.precision == precision)

    entries = [entry(rival, f"dense {rival.precision}") for rival in field]
    slow = fastest(in_torch, "fp32")
    for rival in (slow, fastest(in_onnx, "fp32"), fastest(in_onnx, "int8")) if concepts > 1 else ():
        entries.append(entry(rival, f"dense {rival.precision} per concept", concepts))
    contender, share = padded(slow, concepts, backbone.config.max_tokens, setting.texts)
    return [*entries, _Entry(contender, "padded", "fp32", concepts * flops, share)]


def _ratios(entries: Sequence[_Entry], timings: dict[str, Timing]) -> dict[str, dict[str, float]]:
    best: dict[str, Timing] = {}
    for entry in entries:
        timing = timings[entry.contender.name]
        if entry.kind not in best or timing.median() > best[entry.kind].median():
            best[entry.kind] = timing
    return {
        name: ratio(best[one], best[other]) for name, (one, other) in _RATIOS.items() if {one, other} <= best.keys()
    }


def compare(setting: Setting, with_rivals: bool, tell: Callable[[str], None]) -> dict[str, Any]:
    """Times ours in turns with the passes that it replaces.

    Args:
        setting: of the run.
        with_rivals: whether to make rivals and our other precision, which takes PyTorch; without, ours runs alone.
        tell: told what is being done.

    Returns:
        JSON values: ``contenders`` with their figures; ``ratios`` of texts per second by name; and, with rivals,
        ``peak``, the machine's fastest matrix products in GFLOP/s by precision, before and after.
    """
    entries = _ours(setting, setting.bundle, setting.manifest.precision, edits=True)
    peak: dict[str, float] = {}
    if with_rivals:
        from loadtests.peak import product_peaks

        entries += _ours(setting, setting.like(), setting.other, edits=setting.checkpoint is not None)
        entries = _dense(setting, tell) + entries
        peak = product_peaks(setting.threads)
    contenders = [entry.contender for entry in entries]
    timings = interleave(contenders, setting.rounds, lambda done: tell(f"round {done} of {setting.rounds}"))
    if with_rivals:
        peak = {precision: max(found, peak[precision]) for precision, found in product_peaks(setting.threads).items()}
    rows = []
    for entry in entries:
        timing = timings[entry.contender.name]
        gflops = None if entry.flops is None else entry.flops * timing.median() / 1e9
        rows.append(
            {
                "name": entry.contender.name,
                "precision": entry.precision,
                **timing.figures(),
                "padding": entry.padding,
                "token_budget": entry.budget,
                "gflops": gflops,
                "share_of_peak": None if gflops is None or not peak else gflops / peak[entry.precision],
            }
        )
    return {"contenders": rows, "ratios": _ratios(entries, timings), "peak": peak}
