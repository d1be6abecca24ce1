"""A branch by itself against the whole model."""

from __future__ import annotations

import pytest
import torch

from sparsecbm.branches import read_branch, read_trunk
from sparsecbm.intervention import join_units, split_units
from sparsecbm.model import SparseCBM

Batch = tuple[torch.Tensor, torch.Tensor]


@pytest.mark.parametrize("concept", [0, 1])
@torch.no_grad()
def test_a_branch_says_what_the_whole_model_says(pruned: SparseCBM, batch: Batch, concept: int) -> None:
    whole = pruned(*batch)
    alone = read_branch(pruned, read_trunk(pruned, *batch), batch[1], concept)
    torch.testing.assert_close(alone.logits, whole.logits[:, concept])
    torch.testing.assert_close(alone.vectors, whole.vectors[:, concept])


@pytest.mark.parametrize("concept", [0, 1])
@torch.no_grad()
def test_gates_of_the_mask_say_what_the_mask_says(pruned: SparseCBM, batch: Batch, concept: int) -> None:
    units = join_units(pruned.masks.heads, pruned.masks.neurons)[concept].float().repeat(3, 1)
    gates = split_units(units, pruned.branch_layers, 4)
    gated = read_branch(pruned, read_trunk(pruned, *batch), batch[1], concept, gates)
    torch.testing.assert_close(gated.logits, pruned(*batch).logits[:, concept], rtol=1e-4, atol=1e-5)


def test_units_are_split_as_they_were_joined(pruned: SparseCBM) -> None:
    units = join_units(pruned.masks.heads, pruned.masks.neurons)
    assert units.shape == (2, 2 * (4 + 12))
    gates = split_units(units, 2, 4)
    assert torch.equal(torch.stack([gate.heads for gate in gates], 1), pruned.masks.heads)
    assert torch.equal(torch.stack([gate.neurons for gate in gates], 1), pruned.masks.neurons)
