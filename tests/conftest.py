"""A small world for the tests: a tiny backbone, synthetic reviews, a checkpoint and a bundle made of them."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.postgres import PostgreSQL, running

CONCEPTS = {
    "food": {"Negative": ["bland", "cold", "burnt"], "Positive": ["tasty", "fresh", "rich"]},
    "service": {"Negative": ["rude", "slow", "careless"], "Positive": ["kind", "quick", "attentive"]},
    "noise": {"Negative": ["loud", "deafening"], "Positive": ["quiet", "calm"]},
}
SUBJECTS = {"food": ["pasta", "soup", "fish"], "service": ["waiter", "staff"], "noise": ["room", "evening"]}
FILLERS = ["the", "was", "and", "but", "we", "came", "on", "friday", "again", "with", "friends", "very", ".", ","]
LABELS = ["1", "2", "3"]


def review(generator: random.Random) -> dict[str, str]:
    """One synthetic review with its concepts and label, whose words say all."""
    row: dict[str, str] = {}
    parts: list[str] = []
    total = 0
    for name, values in CONCEPTS.items():
        value = generator.choice(["Negative", "Positive", ""])
        row[name] = value
        if value:
            parts.append(f"the {generator.choice(SUBJECTS[name])} was {generator.choice(values[value])}")
            total += 1 if value == "Positive" else -1
    generator.shuffle(parts)
    parts = parts or ["we came on friday"]
    if generator.random() < 0.5:
        parts.append(generator.choice(["we came again with friends", "we came on friday"]))
    row["text"] = " , ".join(parts) + " ."
    row["stars"] = "1" if total < 0 else "3" if total > 0 else "2"
    return row


def write_csv(path: Path, rows: list[dict[str, str]]) -> None:
    import csv

    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=["text", "stars", *CONCEPTS])
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="session")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The YAML of a data set with the splits ``train`` (240 rows) and ``dev`` (80 rows)."""
    folder = tmp_path_factory.mktemp("reviews")
    generator = random.Random(7)
    for split, count in (("train", 240), ("dev", 80)):
        write_csv(folder / f"{split}.csv", [review(generator) for _ in range(count)])
    concepts = "".join(
        f"  {name}: {{column: {name}, values: [Negative, Positive, unknown], missing: unknown}}\n" for name in CONCEPTS
    )
    path = folder / "reviews.yaml"
    path.write_text(
        "name: tiny-reviews\ntext: text\n"
        f"label: {{column: stars, values: {json.dumps(LABELS)}}}\n"
        f"concepts:\n{concepts}files: {{train: train.csv, dev: dev.csv}}\n",
        encoding="utf-8",
    )
    return path


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a randomly initialised BERT of 3 layers, 4 heads, 48 neurons and a word tokeniser."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = [*FILLERS, *(word for group in SUBJECTS.values() for word in group)]
    words += [word for values in CONCEPTS.values() for group in values.values() for word in group]
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *dict.fromkeys(words)])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
        pad_token_id=0,
    )
    folder = tmp_path_factory.mktemp("backbone")
    BertModel(config).save_pretrained(folder)
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, reviews: Path, backbone: Path) -> Path:
    """A checkpoint trained on the synthetic reviews: a trunk of one layer, two masked layers at density 0.5."""
    import torch

    from sparsecbm import checkpoint as checkpoints
    from sparsecbm import data
    from sparsecbm.backbone import load_backbone
    from sparsecbm.model import SparseCBM
    from sparsecbm.recipe import Recipe
    from sparsecbm.tokens import encode, tokenizer_from_text
    from sparsecbm.training import seed_everything, train

    torch.set_num_threads(1)  # models this small gain nothing from more
    training, validation = data.load(str(reviews), "train"), data.load(str(reviews), "dev")
    seed_everything(0)
    base, tokenizer = load_backbone(str(backbone))
    model = SparseCBM(base, training.schema.concepts, training.schema.labels, trunk=1, width=4, strength_dropout=0.3)
    read = tokenizer_from_text(tokenizer, 64)
    recipe = Recipe(
        trunk=1,
        width=4,
        max_tokens=64,
        epochs=16,
        batch_size=16,
        learning_rate=3e-3,
        concept_learning_rate=1e-2,
        head_learning_rate=1e-2,
        density=0.5,
        prune_start=4,
        prune_end=10,
        precision="fp32",
    )
    ids, validation_ids = encode(read, training.texts).ids, encode(read, validation.texts).ids
    figures = train(model, training, ids, validation, validation_ids, recipe).figures
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    checkpoints.save(
        checkpoints.Checkpoint(
            checkpoints.CheckpointConfig(
                name="tiny-reviews",
                backbone=base.config,
                concepts=model.concepts,
                labels=model.labels,
                trunk=1,
                width=4,
                reach=model.reach,
                max_tokens=64,
                training=recipe.model_dump(),
                evaluation={"dev": figures},
            ),
            model,
            tokenizer,
        ),
        folder,
    )
    return folder


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, reviews: Path) -> Path:
    """The int8 bundle of the checkpoint."""
    from export.exporter import export_bundle
    from sparsecbm import checkpoint as checkpoints
    from sparsecbm import data

    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    export_bundle(checkpoints.load(checkpoint), folder, data.load(str(reviews), "dev"), "dev")
    return folder


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """A PostgreSQL that all tests share; whoever kills it starts one of their own."""
    with running() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty ledger of the test's own."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    server: PostgreSQL = request.getfixturevalue("postgresql")
    return server.create()


@pytest.fixture(scope="session")
def torch_bundle(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, reviews: Path) -> Path:
    """The fp32 TorchScript bundle of the checkpoint."""
    from export.exporter import export_bundle
    from sparsecbm import checkpoint as checkpoints
    from sparsecbm import data

    folder = tmp_path_factory.mktemp("bundles") / "torchscript"
    labelled = data.load(str(reviews), "dev")
    export_bundle(checkpoints.load(checkpoint), folder, labelled, "dev", "fp32", format="torchscript")
    return folder
