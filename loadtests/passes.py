"""The passes that ours replace: a dense backbone in ONNX Runtime or PyTorch, once, once per concept, or padded."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer

from serving.packing import pack
from sparsecbm.tokens import encode, pad

if TYPE_CHECKING:
    from torch import nn

Pass = Callable[[np.ndarray, np.ndarray], object]  # of ids and mask, each [batch, length]
SLOW_FUSION = "SkipLayerNormFusion"  # of ONNX Runtime: often slower on processors than what it fuses


@dataclass(frozen=True, slots=True)
class Reader:
    """Tokenises texts and sets them side by side, by our engine's own rule.

    Attributes:
        tokenizer: that never pads.
        pad_id: to fill up with.
        budget: padded tokens of a batch, whose texts are of similar length.
        length: pad every text to this length instead, in batches of ``budget`` tokens.
        threads: on which batches run at a time.
    """

    tokenizer: Tokenizer
    pad_id: int
    budget: int
    length: int | None = None
    threads: int = 1

    def batches(self, texts: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Ids and mask of each batch, [batch, length] int64."""
        ids = encode(self.tokenizer, texts).ids
        lengths = [self.length or len(row) for row in ids]
        for rows in pack(lengths, self.budget, self.threads):
            padded, mask = pad([ids[row] for row in rows], self.pad_id)
            if self.length is not None:
                missing = ((0, 0), (0, self.length - padded.shape[1]))
                padded, mask = np.pad(padded, missing, constant_values=self.pad_id), np.pad(mask, missing)
            yield padded, mask

    def padding(self, batches: Sequence[Sequence[str]]) -> float:
        """Share of the tokens run that is padding."""
        masks = [mask for texts in batches for _, mask in self.batches(texts)]
        return 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.size for mask in masks)


def repeated(run: Pass, reader: Reader, times: int = 1) -> Callable[[Sequence[str]], object]:
    """Works on texts as often as there are concepts, each batch being tokenised once; batches run on all threads."""

    def one(batch: tuple[np.ndarray, np.ndarray]) -> None:
        for _ in range(times):
            run(*batch)

    if reader.threads == 1:
        return lambda texts: deque(map(one, reader.batches(texts)), maxlen=0)
    pool = ThreadPoolExecutor(reader.threads)
    # The longest texts first, as our engine does.
    return lambda texts: deque(pool.map(one, reversed(list(reader.batches(texts)))), maxlen=0)


def onnx_pass(path: Path, threads: int, fusion: bool) -> Pass:
    """A graph in ONNX Runtime, with the settings that the server uses, and its slow fusion on or off."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(
        str(path),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=[] if fusion else [SLOW_FUSION],
    )
    return lambda ids, mask: session.run(None, {"input_ids": ids, "attention_mask": mask})


def torch_pass(model: nn.Module) -> Pass:
    """A PyTorch model that takes ids and mask."""
    import torch

    @torch.inference_mode()
    def run(ids: np.ndarray, mask: np.ndarray) -> Any:
        return model(torch.from_numpy(ids), torch.from_numpy(mask))

    return run
