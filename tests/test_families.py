"""Every family of backbones on its whole way: train, prune, export, serve; tiny, with random weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from serving.contract import Answer
from serving.engine import Engine, EngineSettings, Intervention
from sparsecbm import checkpoint as checkpoints
from sparsecbm.backbone import FAMILIES
from tests.conftest import CONCEPTS, FILLERS, SUBJECTS
from tests.program import sparsecbm

TEXT = "the pasta was tasty , the waiter was rude ."
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WORDS = [*SPECIAL, *dict.fromkeys([*FILLERS, *(word for group in SUBJECTS.values() for word in group)])]
WORDS += [word for values in CONCEPTS.values() for group in values.values() for word in group]
LIKE_BERT: dict[str, Any] = {
    "vocab_size": len(WORDS),
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 66,
    "pad_token_id": 0,
    "initializer_range": 0.05,  # at the default of 0.02, a model this small learns slowly
    "init_std": 0.05,
}


def bert() -> Any:
    return transformers.BertModel(transformers.BertConfig(**LIKE_BERT, intermediate_size=48))


def roberta() -> Any:
    return transformers.RobertaModel(transformers.RobertaConfig(**LIKE_BERT, intermediate_size=48))


def distilbert() -> Any:
    sizes: dict[str, Any] = {"vocab_size": len(WORDS), "dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48}
    rest: dict[str, Any] = {"max_position_embeddings": 64, "pad_token_id": 0, "initializer_range": 0.05}
    return transformers.DistilBertModel(transformers.DistilBertConfig(**sizes, **rest))


def mpnet() -> Any:
    return transformers.MPNetModel(transformers.MPNetConfig(**LIKE_BERT, intermediate_size=48))


def gpt2() -> Any:
    sizes: dict[str, Any] = {"vocab_size": len(WORDS), "n_embd": 32, "n_layer": 3, "n_head": 4, "n_inner": 48}
    rest: dict[str, Any] = {"n_positions": 64, "bos_token_id": 3, "eos_token_id": 3, "initializer_range": 0.05}
    return transformers.GPT2Model(transformers.GPT2Config(**sizes, **rest))


def opt() -> Any:
    return transformers.OPTModel(transformers.OPTConfig(**LIKE_BERT, ffn_dim=48))


MAKE: dict[str, Callable[[], Any]] = {
    "bert": bert,
    "roberta": roberta,
    "distilbert": distilbert,
    "mpnet": mpnet,
    "gpt2": gpt2,
    "opt": opt,
}
# What a family's tokeniser puts around a text; GPT-2's adds nothing and knows no padding.
AROUND = {"gpt2": "$A", "opt": "[CLS] $A"}


def save_tiny(family: str, folder: Path) -> None:
    """Writes a model of 3 layers, 4 heads and 48 neurons with random weights and a tokeniser of words."""
    torch.manual_seed(3)
    MAKE[family]().save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=AROUND.get(family, "[CLS] $A [SEP]"), special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"unk_token": "[UNK]", "eos_token": "[SEP]"} | ({} if family == "gpt2" else {"pad_token": "[PAD]"})
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


class Served(NamedTuple):
    """A family's way to its end."""

    family: str
    checkpoint: Path
    engine: Engine

    def answer(self) -> Answer:
        [answer] = self.engine.predict([TEXT], {"tokens", "subnetwork"})
        return answer


@pytest.fixture(scope="module", params=MAKE)
def served(request: pytest.FixtureRequest, reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Trains four epochs, cuts every mask to a density of 0.5 in the second, and exports in int8."""
    family, folder = request.param, tmp_path_factory.mktemp("family")
    threads = torch.get_num_threads()
    save_tiny(family, folder / "backbone")
    trained = sparsecbm(
        *("train", "--data", str(reviews), "--train-split", "train", "--backbone", str(folder / "backbone")),
        *("--out", str(folder / "checkpoint"), "--trunk", "1", "--width", "4", "--epochs", "4", "--density", "0.5"),
        *("--prune-start", "1", "--prune-end", "2", "--precision", "fp32", "--batch-size", "4", "--threads", "1"),
        *("--learning-rate", "2e-3", "--head-learning-rate", "1e-2", "--average", "0.9"),
    )
    assert trained.code == 0, trained.err
    exported = sparsecbm(
        *("export", str(folder / "checkpoint"), str(folder / "bundle"), "--data", str(reviews), "--split", "train"),
    )
    assert exported.code == 0, exported.err
    torch.set_num_threads(threads)
    settings = EngineSettings(threads=1, edit_budget=0.3, edit_step=0.05)
    yield Served(family, folder / "checkpoint", Engine.load(folder / "bundle", settings))


def test_every_family_is_here() -> None:
    assert MAKE.keys() == FAMILIES.keys()


def test_half_of_the_units_are_pruned(served: Served) -> None:
    loaded = checkpoints.load(served.checkpoint)
    assert (loaded.config.backbone.family, loaded.model.masks.density()) == (served.family, 0.5)


def test_training_learns(served: Served) -> None:
    """Guessing every concept's commonest value gives about 0.4."""
    assert checkpoints.load(served.checkpoint).config.evaluation["dev"]["concept"]["accuracy"] > 0.5


def test_an_answer_scores_every_word(served: Served) -> None:
    for concept in served.answer().concepts:
        tokens = concept.tokens or []
        assert [token.text for token in tokens] == TEXT.split()
        assert any(token.score for token in tokens)


def test_an_answer_names_the_units_that_carried_a_concept(served: Served) -> None:
    for concept in served.answer().concepts:
        assert concept.subnetwork is not None and concept.subnetwork.density == 0.5
        assert {unit.layer for unit in concept.subnetwork.units} <= {1, 2} and concept.subnetwork.units


def test_a_correction_edits_the_corrected_concepts_mask_alone(served: Served) -> None:
    food = served.answer().concepts[0]
    other = min(food.probabilities, key=food.probabilities.__getitem__)
    [outcome] = served.engine.intervene([Intervention(TEXT, {"food": other}, "mask")])
    assert {edit.concept for edit in outcome.edits} == {"food"}
    before, after = (answer.concepts[0].probabilities[other] for answer in (outcome.before, outcome.after))
    assert after > before
    assert outcome.after.concepts[1:] == outcome.before.concepts[1:]
