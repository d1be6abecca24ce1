"""Unit masks: their numbering, reading and smallest edits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from serving.contract import Edit
from serving.masks import MASKS, Units, describe_edits, edit_units, read_masks
from sparsecbm.bundle import Layout, Manifest
from sparsecbm.errors import BundleError

UNITS = Units(Layout(trunk=3, branch=2, heads=2, neurons=3))


def test_units_are_numbered_layer_by_layer_heads_first() -> None:
    assert [UNITS.place(unit) for unit in range(10)] == [
        (3, "head", 0),
        (3, "head", 1),
        (3, "neuron", 0),
        (3, "neuron", 1),
        (3, "neuron", 2),
        (4, "head", 0),
        (4, "head", 1),
        (4, "neuron", 0),
        (4, "neuron", 1),
        (4, "neuron", 2),
    ]


def test_split_undoes_join() -> None:
    heads, neurons = np.arange(8).reshape(2, 2, 2), np.arange(12).reshape(2, 2, 3)
    split = UNITS.split(UNITS.join(heads, neurons))
    assert np.array_equal(split[0], heads) and np.array_equal(split[1], neurons)


def test_join_follows_the_numbering() -> None:
    heads, neurons = np.array([[0, 1], [5, 6]]), np.array([[2, 3, 4], [7, 8, 9]])
    assert UNITS.join(heads, neurons).tolist() == list(range(10))


def test_masks_are_of_the_manifests_shape(bundle: Path, manifest: Manifest) -> None:
    layout = manifest.layout
    shape = (len(manifest.concepts), layout.branch * (layout.heads + layout.neurons))
    assert read_masks(bundle, manifest).shape == shape


def test_masks_keep_what_the_manifest_says(bundle: Path, manifest: Manifest) -> None:
    assert read_masks(bundle, manifest).mean() == pytest.approx(manifest.branch_density, abs=1e-6)


def test_missing_masks_are_refused(tmp_path: Path, manifest: Manifest) -> None:
    with pytest.raises(BundleError, match=MASKS):
        read_masks(tmp_path, manifest)


def test_file_of_no_tensors_is_refused(tmp_path: Path, manifest: Manifest) -> None:
    (tmp_path / MASKS).write_bytes(b"\xff" * 64)
    with pytest.raises(BundleError, match="can't be read"):
        read_masks(tmp_path, manifest)


def test_masks_without_neurons_are_refused(tmp_path: Path, manifest: Manifest) -> None:
    save_file({"heads": np.zeros((3, 2, 1), np.uint8)}, tmp_path / MASKS)
    with pytest.raises(BundleError, match="neurons"):
        read_masks(tmp_path, manifest)


def test_masks_of_another_shape_are_refused(tmp_path: Path, manifest: Manifest) -> None:
    save_file({"heads": np.zeros((3, 2, 1), np.uint8), "neurons": np.zeros((3, 2, 7), np.uint8)}, tmp_path / MASKS)
    with pytest.raises(BundleError, match=r"neurons must be bytes of shape \[3, 2, 6\]"):
        read_masks(tmp_path, manifest)


def test_masks_of_another_type_are_refused(tmp_path: Path, manifest: Manifest) -> None:
    save_file({"heads": np.zeros((3, 2, 1)), "neurons": np.zeros((3, 2, 6))}, tmp_path / MASKS)
    with pytest.raises(BundleError, match="must be bytes"):
        read_masks(tmp_path, manifest)


BASE = np.array([True, True, False, False])


def test_edit_drops_the_unit_that_speaks_most_against() -> None:
    edited = edit_units(BASE, BASE, np.array([-2.0, -1.0, 1.5, 0.0]), 1)
    assert edited.tolist() == [False, True, False, False]


def test_edit_grows_the_unit_that_speaks_most_for() -> None:
    edited = edit_units(BASE, BASE, np.array([-1.0, 3.0, 1.5, 0.0]), 1)
    assert edited.tolist() == [True, True, True, False]


def test_edit_flips_as_many_as_it_may() -> None:
    edited = edit_units(BASE, BASE, np.array([-2.0, -1.0, 1.5, 0.5]), 3)
    assert edited.tolist() == [False, False, True, False]


def test_edit_leaves_units_that_promise_nothing() -> None:
    assert np.array_equal(edit_units(BASE, BASE, np.array([1.0, 0.0, -1.0, 0.0]), 4), BASE)


def test_edit_leaves_units_that_were_flipped_before() -> None:
    mask = np.array([False, True, False, False])
    assert np.array_equal(edit_units(mask, BASE, np.array([5.0, 1.0, -1.0, -1.0]), 2), mask)


def test_edit_leaves_its_argument_as_it_is() -> None:
    mask = BASE.copy()
    edit_units(mask, BASE, np.array([-2.0, -1.0, 1.5, 0.5]), 2)
    assert np.array_equal(mask, BASE)


def test_edits_are_what_differs() -> None:
    base = np.array([True, False] * 5)
    mask = base.copy()
    mask[[2, 5]] = ~mask[[2, 5]]
    assert describe_edits(UNITS, "food", base, mask) == [
        Edit(concept="food", layer=3, kind="neuron", index=0, change="dropped"),
        Edit(concept="food", layer=4, kind="head", index=0, change="grown"),
    ]
