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
from sparsecbm.errors import CheckpointError
from sparsecbm.tokens import TOKENIZER, encode, tokenizer_from_text

if TYPE_CHECKING:
    from sparsecbm.backbone import Backbone
    from sparsecbm.checkpoint import Checkpoint
    from sparsecbm.model import SparseCBM

_PARITY_TEXTS = 64
_BUDGET = 2048  # padded tokens of a rival's batch where it isn't tuned
_SIZES = ("layers", "hidden", "heads", "neurons")
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

    Raises:
        CheckpointError: the bundle can't be an export of the checkpoint.
    """

    bundle: Path
    manifest: Manifest
    texts: Sequence[str]
    batch: int
    rounds: int
    threads: int
    work: Path
    checkpoint: Checkpoint | None = None

    def __post_init__(self) -> None:
        if self.checkpoint is None:
            return
        manifest, config = self.manifest, self.checkpoint.config
        for name, mine, its in (
            ("concepts", manifest.concepts, config.concepts),
            ("labels", manifest.labels, config.labels),
            ("shared layers", manifest.layout.trunk, config.trunk),
            *((name, getattr(manifest.backbone, name), getattr(config.backbone, name)) for name in _SIZES),
        ):
            if mine != its:
                raise CheckpointError(
                    f"The bundle is no export of this checkpoint: {name} are {mine} in the bundle and {its} in the "
                    "checkpoint. Name the one that it was exported from, or leave --checkpoint out."
                )

    @property
    def other(self) -> Precision:
        """The precision that the bundle doesn't have."""
        return "fp32" if self.manifest.precision == "int8" else "int8"

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
        return Reader(tokenizer, self.manifest.backbone.pad_id, _BUDGET)

    def engine(self, folder: Path) -> Engine:
        """The engine as the server runs it."""
        return Engine.load(folder, EngineSettings(threads=self.threads))

    def backbone(self) -> Backbone:
        """The checkpoint's language model, or one of the bundle's sizes with random weights."""
        if self.checkpoint is not None:
            return self.checkpoint.model.backbone
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

    def like(self) -> Path:
        """The bundle in its other precision: exported from the checkpoint, or with random weights."""
        if self.checkpoint is None:
            from loadtests.synthetic import model_like

            return self.export(model_like(self.bundle, self.manifest, self.backbone()), "ours", self.other)
        from loadtests.synthetic import export_checkpoint

        folder = self.work / f"trained-{self.other}"
        if not folder.exists():
            export_checkpoint(self.checkpoint, folder, self.other, self.texts[:_PARITY_TEXTS])
        return folder
