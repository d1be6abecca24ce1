"""Unit masks: indices, density and overlap."""

from __future__ import annotations

import pytest
import torch

from sparsecbm.masks import UnitMasks


def masks() -> UnitMasks:
    """Two concepts, one layer of 2 heads and 3 neurons: {h0, n0, n2} and {h0, h1, n2}."""
    return UnitMasks(
        torch.tensor([[[True, False]], [[True, True]]]), torch.tensor([[[True, False, True]], [[False, False, True]]])
    )


def test_dense_masks_keep_all() -> None:
    dense = UnitMasks.dense(3, 2, 4, 5)
    assert dense.heads.shape == (3, 2, 4) and dense.neurons.shape == (3, 2, 5)
    assert dense.density() == 1


def test_kept_gives_the_indices_of_kept_units() -> None:
    heads, neurons = masks().kept(0, 0)
    assert (heads.tolist(), neurons.tolist()) == ([0], [0, 2])


def test_flat_has_the_heads_before_the_neurons() -> None:
    assert masks().flat().int().tolist() == [[1, 0, 1, 0, 1], [1, 1, 0, 0, 1]]


def test_density_counts_heads_and_neurons_alike() -> None:
    assert masks().density() == pytest.approx(0.6)


def test_overlap_is_the_jaccard_index() -> None:
    torch.testing.assert_close(masks().overlap(), torch.tensor([[1.0, 0.5], [0.5, 1.0]]))


def test_a_clone_has_its_own_memory() -> None:
    original = masks()
    copy = original.clone()
    copy.heads[:] = False
    copy.neurons[:] = False
    assert original.flat().sum() == 6
