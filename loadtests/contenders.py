"""Who takes part: our engine, asked for more or less, and the passes that it replaces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from loadtests.clock import Contender, cut, interleave
from loadtests.passes import Pass, Reader, onnx_pass, repeated, torch_pass
from serving.engine import BatchStats, Engine, Intervention
from serving.graphs import PREDICT
from sparsecbm.bundle import Precision

if TYPE_CHECKING:
    from sparsecbm.backbone import Backbone

_PADDED_LENGTH, _PADDED_TEXTS = 512, 8  # of the paper's published code
_EDITED = 16  # texts of one batch of mask edits, each of which takes as long as many predictions
_BUDGETS = (256, 512, 1024, 2048)  # padded tokens of a batch, of which each rival takes the best
_TUNING_ROUNDS = 2


class Mode(NamedTuple):
    """A pass, and on how many threads batches of it run at a time."""

    run: Pass
    threads: int


@dataclass(frozen=True, slots=True)
class Rival:
    """A dense pass with its best settings.

    Attributes:
        name: of the pass.
        run: works on one padded batch.
        reader: with the budget and the threads that suit the pass best.
        precision: of its weights.
    """

    name: str
    run: Pass
    reader: Reader
    precision: Precision

    def contender(self, batches: Sequence[Sequence[str]], times: int = 1) -> Contender:
        """The pass over texts, once or several times."""
        name = self.name if times == 1 else f"{times} × {self.name}"
        return Contender(name, repeated(self.run, self.reader, times), batches)


def onnx_passes(bundles: Mapping[Precision, Path], threads: int, fusions: Sequence[bool]) -> dict[str, list[Mode]]:
    """Dense passes in ONNX Runtime by name, of dense bundles, with its slow fusion off, on or both.

    Threads share every batch, or each has batches of its own.
    """
    return {
        f"dense ONNX {precision}{' fused' if fusion else ''}": [
            Mode(onnx_pass(folder / PREDICT, threads, fusion), 1),
            *([Mode(onnx_pass(folder / PREDICT, 1, fusion), threads)] if threads > 1 else []),
        ]
        for precision, folder in bundles.items()
        for fusion in fusions
    }


def torch_passes(backbone: Backbone, threads: int) -> dict[str, list[Mode]]:
    """Dense passes in PyTorch by name: of our layers, and of the transformers library's BERT (fused attention).

    The library's has random weights of the same sizes, and is there for backbones of BERT's form alone.
    """
    import torch

    torch.set_num_threads(threads)
    config = backbone.config
    passes = {"dense PyTorch": [Mode(torch_pass(backbone.eval()), 1)]}
    if config.family in ("bert", "roberta", "distilbert"):
        from transformers import BertConfig, BertModel

        sizes = BertConfig(
            vocab_size=config.vocabulary,
            hidden_size=config.hidden,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=config.neurons,
            max_position_embeddings=config.max_tokens,
            pad_token_id=config.pad_id,
        )
        passes["dense transformers"] = [Mode(torch_pass(BertModel(sizes, add_pooling_layer=False).eval()), 1)]
    return passes


def tuned(passes: Mapping[str, Sequence[Mode]], reader: Reader, texts: Sequence[str]) -> list[Rival]:
    """Gives every pass the mode and the token budget at which it is fastest.

    Args:
        passes: by name.
        reader: whose budget is set.
        texts: one batch to tune on.

    Returns:
        The rivals, the fastest first.
    """
    rivals: dict[str, Rival] = {}
    for name, modes in passes.items():
        precision: Precision = "int8" if "int8" in name else "fp32"
        for mode, budget in product(modes, _BUDGETS):
            own = replace(reader, budget=budget, threads=mode.threads)
            rivals[f"{name} {mode.threads} {budget}"] = Rival(name, mode.run, own, precision)
    trials = [Contender(trial, repeated(rival.run, rival.reader), [texts]) for trial, rival in rivals.items()]
    rates = {trial: timing.median() for trial, timing in interleave(trials, _TUNING_ROUNDS).items()}
    best: dict[str, Rival] = {}
    for trial in sorted(rivals, key=lambda trial: -rates[trial]):
        best.setdefault(rivals[trial].name, rivals[trial])
    return list(best.values())


def padded(rival: Rival, times: int, longest: int, texts: Sequence[str]) -> tuple[Contender, float]:
    """The paper's way: all texts padded to one length, and several passes over them.

    Args:
        rival: a pass in PyTorch.
        times: how many passes, one a concept.
        longest: tokens that the backbone can read.
        texts: of which the first few are run.

    Returns:
        The contender, and the share of its tokens that is padding.
    """
    length = min(_PADDED_LENGTH, longest)
    reader = replace(rival.reader, length=length, budget=_PADDED_TEXTS * length)
    batches = [texts[:_PADDED_TEXTS]]
    contender = Contender(
        f"{times} × padded {rival.name.removeprefix('dense ')}", repeated(rival.run, reader, times), batches
    )
    return contender, reader.padding(batches)


def ours(name: str, engine: Engine, batches: Sequence[Sequence[str]], edits: bool) -> list[Contender]:
    """Our engine, asked for concepts only and for explanations; with ``edits`` also for mask-level interventions."""
    found = [
        Contender(name, engine.predict, batches),
        Contender(f"{name} + tokens", partial(engine.predict, explain={"tokens"}), batches),
        Contender(f"{name} + subnetwork", partial(engine.predict, explain={"subnetwork"}), batches),
        Contender(f"{name} + both", partial(engine.predict, explain={"tokens", "subnetwork"}), batches),
    ]
    if edits:
        asked = _corrections(engine, batches[0])
        found.append(
            Contender(
                f"{name} + mask edit",
                lambda texts: engine.intervene([asked[text] for text in texts]),
                cut(batches[0], _EDITED),
            )
        )
    return found


def _corrections(engine: Engine, texts: Sequence[str]) -> dict[str, Intervention]:
    """For each text a correction at mask level: one concept, to the value that comes second."""
    found = {}
    for place, (text, answer) in enumerate(zip(texts, engine.predict(texts), strict=True)):
        concept = answer.concepts[place % len(answer.concepts)]
        second = sorted(concept.probabilities, key=lambda value: -concept.probabilities[value])[1]
        found[text] = Intervention(text, {concept.name: second}, "mask")
    return found


def engine_padding(engine: Engine, batches: Sequence[Sequence[str]]) -> float:
    """Share of the tokens that an engine runs which is padding."""
    seen: list[BatchStats] = []
    before, engine.observe = engine.observe, seen.append
    for texts in batches:
        engine.predict(texts)
    engine.observe = before
    return 1 - sum(stats.tokens for stats in seen) / sum(stats.padded_tokens for stats in seen)
