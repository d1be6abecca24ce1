"""Pruning: what is watched, what is cut, and that exactly the density stays."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch

from sparsecbm.bundle import Granularity
from sparsecbm.errors import TrainingError
from sparsecbm.importance import BlockFisher, WoodburyFisher
from sparsecbm.masks import WeightMasks
from sparsecbm.model import SparseCBM, matrices
from sparsecbm.pruning import Pruner, _Group, _Place, cut, lowest, unit_norms
from sparsecbm.recipe import Importance, Threshold

Batch = tuple[torch.Tensor, torch.Tensor]
MakeModel = Callable[..., SparseCBM]

GRANULARITIES = pytest.mark.parametrize("granularity", ["units", "weights"])
IMPORTANCES = pytest.mark.parametrize("importance", ["obs", "first_order", "magnitude"])
THRESHOLDS = pytest.mark.parametrize("threshold", ["layer", "global"])


def weight_masks(model: SparseCBM) -> WeightMasks:
    assert model.weight_masks is not None
    return model.weight_masks


def group(pruner: Pruner, concept: int, layer: int, kind: str, room: str = "branch") -> _Group:
    return pruner._groups[_Place(room, concept, layer, kind)]


def observe(model: SparseCBM, batch: Batch, pruner: Pruner) -> None:
    model.zero_grad()
    logits, vectors = model(*batch, pruner.probe(len(batch[0])))
    (vectors.square().mean() + logits[:, 0].square().mean()).backward()
    pruner.observe()


def cut_to(model: SparseCBM, batch: Batch, *densities: float, **settings: Any) -> SparseCBM:
    pruner = Pruner(model, block=5, **settings)
    for density in densities:
        observe(model, batch, pruner)
        pruner.prune(density, density)
    return model


def all_masks(model: SparseCBM) -> torch.Tensor:
    """Every mask of a model, flat."""
    return torch.cat([tensor.flatten() for tensor in model.mask_tensors().values()])


@pytest.mark.parametrize(
    ("count", "chosen"), [(0, []), (-1, []), (1, [3]), (2, [1, 3]), (3, [0, 1, 3]), (4, [0, 1, 2, 3]), (5, range(5))]
)
def test_the_lowest_are_chosen_and_of_equal_ones_the_first(count: int, chosen: Iterable[int]) -> None:
    assert lowest(torch.tensor([2.0, 1.0, 2.0, 0.0, torch.inf]), count).nonzero()[:, 0].tolist() == list(chosen)


def masks(*rows: list[int]) -> list[torch.Tensor]:
    return [torch.tensor(row, dtype=torch.bool) for row in rows]


def test_masks_that_are_cut_together_keep_the_best_of_all() -> None:
    found = masks([1, 1, 1], [1, 1, 1])
    cut(found, [torch.tensor([9.0, 8, 7]), torch.tensor([6.0, 5, 4])], 0.67)
    assert [mask.int().tolist() for mask in found] == [[1, 1, 1], [1, 0, 0]]


def test_masks_that_are_cut_together_each_keep_their_best() -> None:
    found = masks([1, 1, 1], [1, 1, 1])
    cut(found, [torch.tensor([9.0, 8, 7]), torch.tensor([4.0, 6, 5])], 0.34)
    assert [mask.int().tolist() for mask in found] == [[1, 0, 0], [0, 1, 0]]


def test_what_is_cut_stays_cut_whatever_its_score() -> None:
    found = masks([0, 1, 1, 1])
    cut(found, [torch.tensor([9.0, 1, 2, 3])], 0.5)
    assert found[0].int().tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(("density", "kept"), [(1.0, 10), (0.99, 9), (0.7, 7), (0.69, 6), (0.05, 1), (1e-9, 1)])
def test_the_number_kept_is_rounded_down_but_never_to_none(density: float, kept: int) -> None:
    found = masks([1] * 10)
    cut(found, [torch.arange(10.0)], density)
    assert int(found[0].sum()) == kept


def test_a_mask_below_the_density_does_not_grow() -> None:
    found = masks([1, 0, 0, 0])
    cut(found, [torch.zeros(4)], 0.9)
    assert found[0].int().tolist() == [1, 0, 0, 0]


def test_equal_scores_still_leave_exactly_the_density() -> None:
    found = masks([1] * 10, [1] * 10)
    cut(found, [torch.zeros(10), torch.zeros(10)], 0.35)
    assert sum(int(mask.sum()) for mask in found) == 7


@IMPORTANCES
@pytest.mark.parametrize(("density", "heads", "neurons"), [(0.75, 3, 9), (0.5, 2, 6), (0.32, 1, 3), (0.001, 1, 1)])
def test_every_layer_of_every_concept_keeps_the_density_of_units(
    model: SparseCBM, batch: Batch, importance: Importance, density: float, heads: int, neurons: int
) -> None:
    cut_to(model, batch, 0.9, density, importance=importance)
    assert model.masks.heads.sum(-1).flatten().tolist() == [heads] * 4
    assert model.masks.neurons.sum(-1).flatten().tolist() == [neurons] * 4


@IMPORTANCES
@pytest.mark.parametrize("density", [0.75, 0.32, 0.1])
def test_every_concept_keeps_the_density_of_units_over_its_layers(
    model: SparseCBM, batch: Batch, importance: Importance, density: float
) -> None:
    cut_to(model, batch, 0.9, density, importance=importance, threshold="global")
    for mask, units in ((model.masks.heads, 4), (model.masks.neurons, 12)):
        assert mask.sum((1, 2)).tolist() == [max(2, int(density * 2 * units))] * 2
        assert (mask.sum(-1) >= 1).all()


@IMPORTANCES
@pytest.mark.parametrize("density", [0.75, 0.25, 0.001])
def test_every_layer_of_every_concept_keeps_the_density_of_weights(
    make_model: MakeModel, batch: Batch, importance: Importance, density: float
) -> None:
    model = cut_to(make_model(granularity="weights"), batch, 0.9, density, importance=importance)
    weights = 4 * 16 * 16 + 2 * 16 * 12
    for concept in range(2):
        for layer in range(2):
            kept = [int(mask.sum()) for mask in weight_masks(model).of(concept, layer).values()]
            assert sum(kept) == max(4, int(density * weights)) and min(kept) >= 1


@IMPORTANCES
def test_every_concept_keeps_the_density_of_weights_over_its_layers(
    make_model: MakeModel, batch: Batch, importance: Importance
) -> None:
    model = cut_to(make_model(granularity="weights"), batch, 0.6, 0.3, importance=importance, threshold="global")
    weights = 2 * (4 * 16 * 16 + 2 * 16 * 12)
    for concept in range(2):
        assert sum(int(mask[concept].sum()) for mask in weight_masks(model).matrices.values()) == int(0.3 * weights)


def test_a_global_threshold_lets_layers_differ(make_model: MakeModel, batch: Batch) -> None:
    model = make_model()
    with torch.no_grad():
        for parameter in model.backbone.layers[2].parameters():
            parameter.mul_(0.1)
    cut_to(model, batch, 0.5, importance="magnitude", threshold="global")
    assert model.masks.neurons.sum(-1).tolist() == [[11, 1]] * 2


@GRANULARITIES
def test_a_density_of_one_cuts_nothing(make_model: MakeModel, batch: Batch, granularity: Granularity) -> None:
    assert cut_to(make_model(granularity=granularity), batch, 1.0).density() == 1


@GRANULARITIES
@THRESHOLDS
def test_what_is_cut_stays_cut(
    make_model: MakeModel, batch: Batch, granularity: Granularity, threshold: Threshold
) -> None:
    model = cut_to(make_model(granularity=granularity), batch, 0.5, threshold=threshold)
    earlier = [mask.clone() for mask in _bools(model)]
    cut_to(model, batch, 0.9, 0.25, threshold=threshold)
    assert not any((late & ~early).any() for late, early in zip(_bools(model), earlier, strict=True))


def _bools(model: SparseCBM) -> list[torch.Tensor]:
    if model.weight_masks is not None:
        return list(model.weight_masks.matrices.values())
    return [model.masks.heads, model.masks.neurons]


@GRANULARITIES
@IMPORTANCES
def test_the_same_gradients_cut_the_same(
    make_model: MakeModel, batch: Batch, granularity: Granularity, importance: Importance
) -> None:
    first, second = (
        all_masks(cut_to(make_model(granularity=granularity), batch, 0.7, 0.4, importance=importance)) for _ in range(2)
    )
    assert torch.equal(first, second)


@GRANULARITIES
def test_concepts_keep_what_matters_to_them(make_model: MakeModel, batch: Batch, granularity: Granularity) -> None:
    model = cut_to(make_model(granularity=granularity), batch, 0.5)
    overlap = float(model.overlap()[0, 1])
    assert 0 < overlap < 1


def test_by_magnitude_all_concepts_keep_the_same(make_model: MakeModel, batch: Batch) -> None:
    model = cut_to(make_model(granularity="weights"), batch, 0.5, importance="magnitude")
    assert model.overlap()[0, 1] == 1


@pytest.mark.parametrize("importance", ["obs", "first_order"])
@GRANULARITIES
def test_nothing_is_cut_before_anything_is_observed(
    make_model: MakeModel, granularity: Granularity, importance: Importance
) -> None:
    model = make_model(granularity=granularity)
    Pruner(model, importance).prune(0.5)
    assert model.density() == 1


@IMPORTANCES
@GRANULARITIES
def test_the_least_important_are_cut(
    make_model: MakeModel, batch: Batch, granularity: Granularity, importance: Importance
) -> None:
    model = make_model(granularity=granularity)
    pruner = Pruner(model, importance)
    observe(model, batch, pruner)
    kinds = ["neurons"] if granularity == "units" else ["qkv", "out", "up", "down"]
    groups = [group(pruner, 1, 0, kind) for kind in kinds]
    scores = torch.cat([group.scores() for group in groups])
    pruner.prune(0.5)
    kept = torch.cat([group.mask for group in groups])
    assert scores[kept].min() >= scores[~kept].max()


def test_the_magnitude_of_a_unit_is_the_norm_of_its_weights(model: SparseCBM) -> None:
    layer = model.backbone.layers[1]
    norms = unit_norms(layer.weights())
    head = torch.cat([layer.qkv[:, 2].flatten(), layer.out[2].flatten()])
    neuron = torch.cat([layer.up[7], layer.down[7]])
    torch.testing.assert_close(norms["heads"][2], head.norm())
    torch.testing.assert_close(norms["neurons"][7], neuron.norm())


def test_observed_gate_gradients_are_those_of_single_texts(model: SparseCBM, batch: Batch) -> None:
    """A mean over a batch gives each text's gate gradient divided by the batch's size."""

    def fisher(ids: torch.Tensor, mask: torch.Tensor, pruner: Pruner) -> None:
        model(ids, mask, pruner.probe(len(ids))).vectors.square().mean().backward()
        pruner.observe()

    together, alone = Pruner(model), Pruner(model)
    fisher(*batch, together)
    for text in range(3):
        fisher(batch[0][text : text + 1], batch[1][text : text + 1], alone)
    for concept in range(2):
        for kind in ("heads", "neurons"):
            found, wanted = (group(pruner, concept, 1, kind).measure for pruner in (together, alone))
            assert isinstance(found, BlockFisher) and isinstance(wanted, BlockFisher)
            torch.testing.assert_close(found.products, wanted.products, rtol=1e-3, atol=1e-6)


def test_a_gate_of_a_unit_gathers_gradient_times_weight_over_its_weights(model: SparseCBM, batch: Batch) -> None:
    """So its score is the group's: the gate's gradient is Σ g w over what the unit writes."""
    pruner = Pruner(model, "first_order")
    ids, mask = batch[0][:1], batch[1][:1]
    model(ids, mask, pruner.probe(1)).vectors[:, 1].square().sum().backward()
    pruner.observe()
    down = model.backbone.layers[2].down
    assert down.grad is not None
    found = group(pruner, 1, 1, "neurons").scores()
    torch.testing.assert_close(found, (down.grad * down).sum(1).abs().detach(), rtol=1e-4, atol=1e-5)


def test_observed_weight_gradients_are_each_concepts_own(make_model: MakeModel, batch: Batch) -> None:
    """With dense masks, what both concepts' passes give is the shared weight's gradient."""
    model = make_model(granularity="weights")
    seen: dict[int, torch.Tensor] = {}
    for concept in range(2):
        model.zero_grad()
        model(*batch).vectors[:, concept].square().mean().backward()
        gradient = matrices(model.backbone.layers[1].weights())["up"].grad
        assert gradient is not None
        seen[concept] = gradient.flatten().clone()
    pruner = Pruner(model, "first_order")
    output = model(*batch, pruner.probe(3))
    (output.vectors[:, 0].square().mean() + output.vectors[:, 1].square().mean()).backward()
    pruner.observe()
    weights = model.backbone.layers[1].up.detach().flatten()
    for concept in range(2):
        wanted = (weights * seen[concept]).abs()
        torch.testing.assert_close(group(pruner, concept, 0, "up").scores(), wanted, rtol=1e-4, atol=1e-7)


def test_pruned_weights_have_no_part_in_the_fisher_matrix(weight_pruned: SparseCBM, batch: Batch) -> None:
    pruner = Pruner(weight_pruned, block=2)
    observe(weight_pruned, batch, pruner)
    part = group(pruner, 0, 0, "down")
    assert isinstance(part.measure, WoodburyFisher)
    diagonal = part.measure.inverse.diagonal(dim1=1, dim2=2).flatten()
    torch.testing.assert_close(diagonal[~part.mask], torch.full_like(diagonal[~part.mask], 1 / part.measure.ridge))
    assert (diagonal[part.mask] < 1 / part.measure.ridge).any()


@GRANULARITIES
def test_a_pass_that_is_part_of_a_step_is_observed_as_if_alone(
    make_model: MakeModel, batch: Batch, granularity: Granularity
) -> None:
    model = make_model(granularity=granularity)
    alone, part = Pruner(model), Pruner(model)
    for pruner, share in ((alone, 1.0), (part, 0.25)):
        loss = model(*batch, pruner.probe(3, share)).vectors.square().mean()
        (share * loss).backward()
        pruner.observe()
    kind = "heads" if granularity == "units" else "qkv"
    torch.testing.assert_close(group(part, 0, 0, kind).scores(), group(alone, 0, 0, kind).scores(), rtol=1e-3, atol=0)


@IMPORTANCES
@THRESHOLDS
@GRANULARITIES
def test_the_trunk_is_cut_to_its_own_density(
    make_model: MakeModel, batch: Batch, granularity: Granularity, threshold: Threshold, importance: Importance
) -> None:
    model = make_model(trunk=2, granularity=granularity)
    pruner = Pruner(model, importance, threshold, trunk=True)
    observe(model, batch, pruner)
    pruner.prune(0.5, 0.75)
    assert int(model.trunk_masks.heads.sum()) == 6 and int(model.trunk_masks.neurons.sum()) == 18
    if threshold == "layer":
        assert model.trunk_masks.heads.sum(-1).tolist() == [[3, 3]]
    assert model.density() == 0.5


def test_the_trunk_alone_can_be_cut(make_model: MakeModel, batch: Batch) -> None:
    model = make_model(trunk=2)
    pruner = Pruner(model, branch=False, trunk=True)
    observe(model, batch, pruner)
    pruner.prune(0.5, 0.5)
    assert model.density() == 1 and model.trunk_masks.density() == 0.5


def test_the_trunk_is_left_alone_unless_asked(model: SparseCBM, batch: Batch) -> None:
    cut_to(model, batch, 0.5)
    assert model.trunk_masks.density() == 1


@GRANULARITIES
@IMPORTANCES
def test_a_pruner_goes_on_from_its_state(
    make_model: MakeModel, batch: Batch, granularity: Granularity, importance: Importance
) -> None:
    def begin() -> tuple[SparseCBM, Pruner]:
        model = make_model(granularity=granularity)
        pruner = Pruner(model, importance, trunk=True)
        observe(model, batch, pruner)
        pruner.prune(0.7, 0.7)
        observe(model, batch, pruner)
        return model, pruner

    def finish(model: SparseCBM, pruner: Pruner) -> torch.Tensor:
        observe(model, (batch[0][1:], batch[1][1:]), pruner)
        pruner.prune(0.4, 0.4)
        return all_masks(model)

    model, pruner = begin()
    other = make_model(granularity=granularity)
    other.load_masks(model.mask_tensors())
    resumed = Pruner(other, importance, trunk=True)
    resumed.load_state({name: tensor.clone() for name, tensor in pruner.state().items()})
    assert torch.equal(finish(other, resumed), finish(model, pruner))


def test_a_pruner_that_saw_nothing_since_its_last_cut_has_no_state(model: SparseCBM, batch: Batch) -> None:
    pruner = Pruner(model)
    observe(model, batch, pruner)
    assert pruner.state()
    pruner.prune(0.5)
    assert pruner.state() == {}
    pruner.load_state({})


def test_a_state_of_other_settings_is_refused(model: SparseCBM, batch: Batch) -> None:
    pruner = Pruner(model)
    observe(model, batch, pruner)
    with pytest.raises(TrainingError, match=r"doesn't fit the model's masks at branch\.0\.0\.heads|parts that this"):
        Pruner(model, "first_order").load_state(pruner.state())


def test_a_state_of_other_masks_is_refused(model: SparseCBM, batch: Batch) -> None:
    pruner = Pruner(model)
    observe(model, batch, pruner)
    state = pruner.state()
    pruner.prune(0.5)
    with pytest.raises(TrainingError, match=r"^The pruning state doesn't fit the model's masks at branch\.0\.0\.heads"):
        pruner.load_state(state)


def test_a_fisher_matrix_over_the_limit_is_refused_with_its_size(make_model: MakeModel) -> None:
    model = make_model(granularity="weights")
    with pytest.raises(TrainingError) as caught:
        Pruner(model, block=50, memory=0.001)
    assert caught.value.message == (
        "Scoring 5,632 weights of all concepts by obs with Fisher blocks of 50 takes 0.00113 GB, over fisher_memory "
        "of 0.001 GB: lower fisher_block, raise fisher_memory, or prune by magnitude."
    )


@pytest.mark.parametrize("settings", [{"importance": "magnitude"}, {"block": 1}, {"branch": False, "trunk": True}])
def test_what_needs_less_memory_is_not_refused(make_model: MakeModel, settings: dict[str, Any]) -> None:
    Pruner(make_model(granularity="weights"), memory=0.0001, **settings)
