"""Models that nobody trained, as bundles."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from loadtests.contenders import engine_padding, ours
from loadtests.setting import Setting
from loadtests.synthetic import backbone_like, base_sized, model_like, random_backbone, random_model
from serving.masks import read_masks
from sparsecbm.bundle import Granularity, read_bundle


@pytest.mark.parametrize("density", [0.25, 0.5, 1.0])
def test_every_concept_keeps_the_share_asked_for(setting: Setting, density: float) -> None:
    model = random_model(setting.backbone(), 3, trunk=1, density=density)
    assert model.densities() == [density] * 3


def test_concepts_keep_different_units(setting: Setting) -> None:
    masks = random_model(setting.backbone(), 2, trunk=1, density=0.5).masks
    assert not torch.equal(masks.neurons[0], masks.neurons[1])


def test_a_density_of_almost_nothing_keeps_a_unit_of_each_kind(setting: Setting) -> None:
    masks = random_model(setting.backbone(), 2, trunk=1, density=0.001).masks
    assert (masks.heads.sum(-1) == 1).all() and (masks.neurons.sum(-1) == 1).all()


@pytest.mark.parametrize("granularity", ["units", "weights"])
def test_a_made_bundle_passes_parity_and_answers(setting: Setting, granularity: Granularity) -> None:
    model = random_model(setting.backbone(), 2, trunk=1, density=0.5, granularity=granularity)
    folder = setting.export(model, "made", "int8")
    assert read_bundle(folder).granularity == granularity
    answers = setting.engine(folder).predict(setting.texts, {"tokens", "subnetwork"})
    assert [len(answer.concepts) for answer in answers] == [2] * len(setting.texts)


def test_a_like_model_has_the_bundles_masks(setting: Setting) -> None:
    model = model_like(setting.bundle, setting.manifest, setting.backbone())
    folder = setting.export(model, "like", "fp32")
    like = read_bundle(folder)
    assert (like.layout, like.branch_density) == (setting.manifest.layout, setting.manifest.branch_density)
    np.testing.assert_array_equal(read_masks(folder, like), read_masks(setting.bundle, setting.manifest))


def test_a_backbone_like_the_bundles_has_its_sizes(setting: Setting) -> None:
    sizes, config = setting.manifest.backbone, backbone_like(setting.manifest, setting.tokenizer)
    assert (config.layers, config.hidden, config.heads, config.neurons) == (
        sizes.layers, sizes.hidden, sizes.heads, sizes.neurons
    )  # fmt: skip


def test_base_sizes_keep_the_tokens(setting: Setting) -> None:
    config = backbone_like(setting.manifest, setting.tokenizer)
    base = base_sized(config)
    assert (base.layers, base.hidden, base.heads, base.neurons) == (12, 768, 12, 3072)
    assert (base.vocabulary, base.pad_id) == (config.vocabulary, config.pad_id)


def test_random_backbones_are_always_the_same(setting: Setting) -> None:
    one, other = (random_backbone(backbone_like(setting.manifest, setting.tokenizer)) for _ in range(2))
    assert torch.equal(one.layers[0].qkv, other.layers[0].qkv)


def test_mask_edits_ask_for_values_that_the_engine_does_not_read(setting: Setting) -> None:
    engine = setting.engine(setting.bundle)
    edits = ours("ours", engine, setting.batches, edits=True)[-1]
    outcomes = edits.run(setting.batches[0])
    assert isinstance(outcomes, list) and len(outcomes) == len(setting.batches[0])
    assert all(outcome.level == "mask" for outcome in outcomes)
    for outcome in outcomes:
        (name, value), *others = outcome.corrections.items()
        read = next(concept.value for concept in outcome.before.concepts if concept.name == name)
        assert not others and value != read


def test_an_engines_padding_is_observed_and_the_observer_put_back(setting: Setting) -> None:
    engine = setting.engine(setting.bundle)
    assert engine_padding(engine, [[text] for text in setting.texts]) == 0
    assert engine.observe is None
