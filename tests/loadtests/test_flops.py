"""Operations of matrix products, counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from loadtests.flops import bundle_flops, dense_flops
from loadtests.setting import Setting
from loadtests.synthetic import random_model
from sparsecbm.bundle import read_manifest


def test_a_dense_pass_is_counted_product_by_product(setting: Setting) -> None:
    sizes = setting.manifest.backbone
    length = 11
    projections = 4 * 2 * length * sizes.hidden * sizes.hidden
    attention = 2 * 2 * length * length * sizes.hidden
    feed_forward = 2 * 2 * length * sizes.hidden * sizes.neurons
    expected = sizes.layers * (projections + attention + feed_forward)
    assert dense_flops(sizes, np.array([length])) == expected


def test_texts_of_several_lengths_are_averaged(setting: Setting) -> None:
    sizes = setting.manifest.backbone
    one, other = (dense_flops(sizes, np.array([length])) for length in (5, 20))
    assert dense_flops(sizes, np.array([5, 20])) == pytest.approx((one + other) / 2)


def made(setting: Setting, name: str, concepts: int, density: float) -> float:
    model = random_model(setting.backbone(), concepts, trunk=1, density=density)
    folder: Path = setting.export(model, name, "fp32")
    return bundle_flops(folder, read_manifest(folder), np.array([9]))


def test_branches_are_counted_once_per_concept_and_the_trunk_once(setting: Setting) -> None:
    sizes = setting.manifest.backbone
    layer = dense_flops(sizes, np.array([9])) / sizes.layers
    assert made(setting, "dense", 2, density=1.0) == pytest.approx(layer * (1 + 2 * (sizes.layers - 1)))


def test_only_kept_units_are_counted(setting: Setting) -> None:
    sizes = setting.manifest.backbone
    layer = dense_flops(sizes, np.array([9])) / sizes.layers
    assert made(setting, "half", 2, density=0.5) == pytest.approx(layer * (1 + 2 * (sizes.layers - 1) / 2))
