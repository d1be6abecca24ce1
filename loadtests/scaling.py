"""What the time of an answer depends on: concepts, lengths, density, and the backbone's size."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from loadtests.clock import Contender, Timing, interleave, ratio
from loadtests.contenders import Mode, onnx_passes, torch_passes, tuned
from loadtests.setting import PRECISIONS, Setting
from loadtests.texts import text_of

Tell = Callable[[str], None]

CONCEPTS = (1, 2, 4, 8, 16)
DENSITIES = (0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
LENGTHS = (8, 16, 32, 64, 128, 256)
_BASE_TEXTS = 32
_LENGTH_TOKENS, _LENGTH_TEXTS = 4096, 64  # what a batch of texts of one length holds at most


def _timed(setting: Setting, contenders: list[Contender], tell: Tell) -> dict[str, Timing]:
    return interleave(contenders, setting.rounds, lambda done: tell(f"round {done} of {setting.rounds}"))


def by_concepts(setting: Setting, tell: Tell) -> dict[str, Any]:
    """Texts per second against the number of concepts, over a backbone with random weights.

    Returns:
        JSON values: ``rows``, and ``cost_4_to_8``, how many times as long 8 concepts take as 4.
    """
    from loadtests.synthetic import backbone_like, random_backbone, random_model

    manifest = setting.manifest
    backbone = random_backbone(backbone_like(manifest, setting.tokenizer))
    contenders = []
    for count in CONCEPTS:
        tell(f"making {count} concepts")
        model = random_model(backbone, count, manifest.layout.trunk, manifest.head.width, manifest.branch_density)
        engine = setting.engine(setting.export(model, f"concepts-{count}", manifest.precision))
        contenders.append(Contender(str(count), engine.predict, setting.batches))
    timings = _timed(setting, contenders, tell)
    rows = [{"concepts": count, **timings[str(count)].figures()} for count in CONCEPTS]
    return {"rows": rows, "cost_4_to_8": ratio(timings["4"], timings["8"])}


def by_density(setting: Setting, tell: Tell) -> dict[str, Any]:
    """Texts per second against the share of units that every concept keeps, over a backbone with random weights."""
    from loadtests.synthetic import backbone_like, random_backbone, random_model

    manifest = setting.manifest
    backbone = random_backbone(backbone_like(manifest, setting.tokenizer))
    concepts, trunk, width = len(manifest.concepts), manifest.layout.trunk, manifest.head.width
    contenders = []
    for density in DENSITIES:
        tell(f"making density {density}")
        model = random_model(backbone, concepts, trunk, width, density)
        engine = setting.engine(setting.export(model, f"density-{density}", manifest.precision))
        contenders.append(Contender(str(density), engine.predict, setting.batches))
    timings = _timed(setting, contenders, tell)
    return {"rows": [{"density": density, **timings[str(density)].figures()} for density in DENSITIES]}


def by_length(setting: Setting, with_rivals: bool, tell: Tell) -> dict[str, Any]:
    """Texts per second against the length of texts, of the bundle and of dense passes in ONNX Runtime.

    Returns:
        JSON values: ``rows``, of which each has ``tokens`` and the ``contenders`` at that length, and, with rivals,
        ``to_dense_fp32`` and ``to_dense_int8``: how many times as many texts per second the bundle does.
    """
    name = f"ours {setting.manifest.precision}"
    engine = setting.engine(setting.bundle)
    passes: dict[str, list[Mode]] = {}
    if with_rivals:
        tell("making the rivals")
        passes = onnx_passes(setting.dense(setting.backbone()), setting.threads, fusions=(False,))
    rows = []
    for tokens in (length for length in LENGTHS if length <= setting.manifest.max_tokens):
        generator = Random(tokens)
        count = max(1, min(_LENGTH_TEXTS, _LENGTH_TOKENS // tokens))
        texts = [text_of(tokens, generator) for _ in range(count)]
        tell(f"{tokens} tokens")
        contenders = [Contender(name, engine.predict, [texts])]
        if with_rivals:
            contenders += [rival.contender([texts]) for rival in tuned(passes, setting.reader(), texts)]
        timings = interleave(contenders, setting.rounds)
        row: dict[str, Any] = {"tokens": tokens}
        row["contenders"] = [{"name": label, **timings[label].figures()} for label in (name, *passes)]
        if with_rivals:
            row |= {f"to_dense_{it}": ratio(timings[name], timings[f"dense ONNX {it}"]) for it in PRECISIONS}
        rows.append(row)
    return {"rows": rows}


def base_size(setting: Setting, tell: Tell) -> dict[str, Any]:
    """A backbone of BERT-base's sizes with random weights, half of it shared: ours beside its dense pass.

    Only the first few texts are run.

    Returns:
        JSON values: ``contenders`` with their figures, and ``ratios`` as in the rivals' section.
    """
    from loadtests.synthetic import backbone_like, base_sized, random_backbone, random_model

    manifest = setting.manifest
    tell("making BERT-base")
    backbone = random_backbone(base_sized(backbone_like(manifest, setting.tokenizer)))
    trunk = backbone.config.layers // 2
    model = random_model(backbone, len(manifest.concepts), trunk, manifest.head.width, density=manifest.branch_density)
    passes = onnx_passes(setting.dense(backbone, "base-dense"), setting.threads, fusions=(False, True))
    passes |= torch_passes(backbone, setting.threads)
    texts = setting.texts[:_BASE_TEXTS]
    tell("tuning the rivals")
    contenders = [rival.contender([texts]) for rival in tuned(passes, setting.reader(), texts)]
    for precision in PRECISIONS:
        engine = setting.engine(setting.export(model, "base-ours", precision))
        contenders.append(Contender(f"ours {precision}", engine.predict, [texts]))
    timings = _timed(setting, contenders, tell)

    def best(precision: str) -> Timing:
        names = [name for name in passes if ("int8" in name) == (precision == "int8")]
        return max((timings[name] for name in names), key=Timing.median)

    return {
        "contenders": [{"name": name, **timing.figures()} for name, timing in timings.items()],
        "ratios": {
            f"{one}_to_dense_{other}": ratio(timings[f"ours {one}"], best(other))
            for one, other in (("int8", "fp32"), ("int8", "int8"), ("fp32", "fp32"))
        },
    }
