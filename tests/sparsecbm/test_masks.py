"""Masks: indices, density, overlap, and packing into bits."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparsecbm.masks import UnitMasks, WeightMasks, pack_bits, unpack_bits


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
    assert masks().densities() == [3 / 5, 3 / 5]


def test_overlap_is_the_jaccard_index() -> None:
    torch.testing.assert_close(masks().overlap(), torch.tensor([[1.0, 0.5], [0.5, 1.0]]))


def test_a_clone_has_its_own_memory() -> None:
    original = masks()
    copy = original.clone()
    copy.heads[:] = False
    copy.neurons[:] = False
    assert original.flat().sum() == 6


def test_masks_over_no_layer_are_dense() -> None:
    assert UnitMasks.dense(1, 0, 4, 5).density() == 1


def weight_masks() -> WeightMasks:
    """Two concepts, one layer of a 2 × 2 and a 1 × 3 matrix, that keep 3 and 4 of 7 weights, 2 of them both."""
    return WeightMasks(
        {
            "up": torch.tensor([[[[True, False], [True, False]]], [[[True, True], [False, False]]]]),
            "down": torch.tensor([[[[True, False, False]]], [[[True, True, False]]]]),
        }
    )


def test_dense_weight_masks_keep_all() -> None:
    dense = WeightMasks.dense(2, 3, {"up": (4, 5), "down": (5, 4)})
    assert {name: tuple(mask.shape) for name, mask in dense.matrices.items()} == {
        "up": (2, 3, 4, 5),
        "down": (2, 3, 5, 4),
    }
    assert dense.density() == 1


def test_the_density_of_weight_masks_counts_weights() -> None:
    assert weight_masks().density() == pytest.approx(7 / 14)
    assert weight_masks().densities() == [3 / 7, 4 / 7]


def test_the_overlap_of_weight_masks_is_the_jaccard_index() -> None:
    torch.testing.assert_close(weight_masks().overlap(), torch.tensor([[1.0, 2 / 5], [2 / 5, 1.0]]))


def test_a_concepts_weight_masks_share_memory_with_all() -> None:
    masks = weight_masks()
    masks.of(1, 0)["down"][:] = False
    assert masks.matrices["down"].flatten().tolist() == [True, False, False, False, False, False]


def test_a_clone_of_weight_masks_has_its_own_memory() -> None:
    original = weight_masks()
    original.clone().matrices["up"][:] = False
    assert original.density() == pytest.approx(7 / 14)


@pytest.mark.parametrize("shape", [(3, 2, 8), (3, 2, 13), (2, 1, 1), (1, 0, 4)])
def test_bits_are_packed_as_numpy_packs_them(shape: tuple[int, ...]) -> None:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.5
    assert np.array_equal(pack_bits(mask).numpy(), np.packbits(mask.numpy(), axis=-1))


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_packed_bits_come_back(dimensions: int) -> None:
    mask = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(0)) < 0.5
    packed = pack_bits(mask, dimensions)
    assert packed.shape == (*mask.shape[: 4 - dimensions], -(-mask.shape[4 - dimensions :].numel() // 8))
    assert torch.equal(unpack_bits(packed, mask.shape), mask)
