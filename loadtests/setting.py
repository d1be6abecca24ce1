"""What is measured, on which texts and how; and the bundles that are made to measure with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from loadtests.clock import cut
from loadtests.passes import Reader
from serving.engine import Engine, EngineSettings
from sparsecbm.bundle import Manifest, Precision
from sparsecbm.tokens import TOKENIZER, encode, tokenizer_from_text

if TYPE_CHECKING:
    from sparsecbm.backbone import Backbone
    from sparsecbm.model import SparseCBM

_PARITY_TEXTS = 64
PRECISIONS: tuple[Precision, ...] = ("int8", "fp32")


@dataclass(frozen=True, slots=True)
class Setting:
    """One run of the benchmark.

    Attributes:
        bundle: folder of the bundle to measure.
        manifest: what it says of itself.
        texts: to measure on.
        batch: texts that everybody is given at once.
        rounds: of turns.
        threads: of everybody.
        work: folder for the bundles that are made on the way.
        checkpoint: what the bundle was exported from, if it is at hand.
    """

    bundle: Path
    manifest: Manifest
    texts: Sequence[str]
    batch: int
    rounds: int
    threads: int
    work: Path
    checkpoint: Path | None = None

    @property
    def batches(self) -> list[Sequence[str]]:
        return cut(self.texts, self.batch)

    @property
    def tokenizer(self) -> str:
        """The bundle's ``tokenizer.json``."""
        return (self.bundle / TOKENIZER).read_text(encoding="utf-8")

    def lengths(self) -> np.ndarray:
        """[texts] tokens that are read of each."""
        return encode(tokenizer_from_text(self.tokenizer, self.manifest.max_tokens), self.texts).lengths()

    def reader(self) -> Reader:
        """What sets texts side by side for the rivals."""
        tokenizer = tokenizer_from_text(self.tokenizer, self.manifest.max_tokens)
        return Reader(tokenizer, self.manifest.backbone.pad_id, EngineSettings().token_budget)

    def engine(self, folder: Path) -> Engine:
        """The engine as the server runs it."""
        return Engine.load(folder, EngineSettings(threads=self.threads))

    def backbone(self) -> Backbone:
        """The checkpoint's language model, or one of the bundle's sizes with random weights."""
        if self.checkpoint is not None:
            from sparsecbm import checkpoint as checkpoints

            return checkpoints.load(self.checkpoint).model.backbone
        from loadtests.synthetic import backbone_like, random_backbone

        return random_backbone(backbone_like(self.manifest, self.tokenizer))

    def export(self, model: SparseCBM, name: str, precision: Precision) -> Path:
        """A bundle of a model that nobody trained; one that was made before is taken again."""
        from loadtests.synthetic import export_model

        folder = self.work / f"{name}-{precision}"
        if not folder.exists():
            texts = self.texts[:_PARITY_TEXTS]
            export_model(model, self.tokenizer, self.manifest.max_tokens, folder, precision, texts)
        return folder

    def dense(self, backbone: Backbone, name: str = "dense") -> dict[Precision, Path]:
        """Bundles of a backbone's dense pass."""
        from loadtests.synthetic import dense_model

        return {precision: self.export(dense_model(backbone), name, precision) for precision in PRECISIONS}

    def bundles(self) -> dict[Precision, Path]:
        """The bundle, and its like in the other precision: of the checkpoint, or with random weights."""
        other: Precision = "fp32" if self.manifest.precision == "int8" else "int8"
        folder = self.work / f"ours-{other}"
        if self.checkpoint is None:
            from loadtests.synthetic import model_like

            self.export(model_like(self.bundle, self.manifest, self.backbone()), "ours", other)
        elif not folder.exists():
            from loadtests.synthetic import export_checkpoint
            from sparsecbm import checkpoint as checkpoints

            export_checkpoint(checkpoints.load(self.checkpoint), folder, other, self.texts[:_PARITY_TEXTS])
        return {self.manifest.precision: self.bundle, other: folder}
