"""Texts to token ids, padding, and batches of similar length."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from sparsecbm.errors import CheckpointError
from sparsecbm.tokens import batches, encode, pad, tokenizer_from_text


@pytest.fixture(scope="module")
def text(backbone: Path) -> str:
    return (backbone / "tokenizer.json").read_text(encoding="utf-8")


def test_ids_are_the_tokenizers_and_not_padded(text: str) -> None:
    tokenizer = tokenizer_from_text(text, 64)
    encoded = encode(tokenizer, ["the soup", "the soup was cold ."])
    wanted = [["[CLS]", "the", "soup", "[SEP]"], ["[CLS]", "the", "soup", "was", "cold", ".", "[SEP]"]]
    assert [[tokenizer.id_to_token(int(token)) for token in ids] for ids in encoded.ids] == wanted
    assert encoded.lengths().tolist() == [4, 7]


def test_a_tokenizer_that_pads_no_longer_pads(text: str) -> None:
    padding = Tokenizer.from_str(text)
    padding.enable_padding(length=32)
    assert encode(tokenizer_from_text(padding.to_str(), 64), ["soup"]).lengths().tolist() == [3]


def test_a_longer_text_is_cut_and_keeps_its_end_token(text: str) -> None:
    tokenizer = tokenizer_from_text(text, 5)
    ids = encode(tokenizer, ["the soup was cold and the room was loud"]).ids[0]
    assert len(ids) == 5
    assert tokenizer.id_to_token(int(ids[-1])) == "[SEP]"


def test_only_texts_over_the_limit_are_called_truncated(text: str) -> None:
    encoded = encode(tokenizer_from_text(text, 5), ["the cold soup", "the cold soup was", "soup"])
    assert encoded.truncated == [False, True, False]


@pytest.mark.parametrize("damaged", ["", "{}", "not JSON", '{"model": 5}'])
def test_text_that_is_no_tokenizer_is_refused(damaged: str) -> None:
    with pytest.raises(CheckpointError, match=r"^tokenizer\.json is not a tokenizer file: "):
        tokenizer_from_text(damaged, 64)


def test_padding_fills_up_to_the_longest_and_is_masked() -> None:
    padded, mask = pad([np.array([5, 6, 7]), np.array([8])], pad_id=9)
    assert padded.tolist() == [[5, 6, 7], [8, 9, 9]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_batches_hold_every_text_once() -> None:
    lengths = np.random.default_rng(0).integers(1, 30, 50)
    for generator in (None, np.random.default_rng(1)):
        chosen = list(batches(lengths, 8, generator))
        assert sorted(np.concatenate(chosen).tolist()) == list(range(50))
        assert sorted(map(len, chosen)) == [2, *[8] * 6]


def test_batches_are_ordered_by_length() -> None:
    lengths = np.array([5, 1, 4, 2, 3])
    assert [chosen.tolist() for chosen in batches(lengths, 2)] == [[1, 3], [4, 2], [0]]


def test_random_batches_hold_texts_of_similar_length() -> None:
    lengths = np.repeat([5, 50, 100], 8)
    for chosen in batches(lengths, 8, np.random.default_rng(0)):
        assert len(set(lengths[chosen].tolist())) == 1


def test_random_batches_differ_between_epochs_and_repeat_with_the_seed() -> None:
    lengths = np.full(32, 9)

    def two_epochs() -> list[list[list[int]]]:
        generator = np.random.default_rng(3)
        return [[chosen.tolist() for chosen in batches(lengths, 8, generator)] for _ in range(2)]

    first, second = two_epochs()
    assert first != second
    assert two_epochs() == [first, second]
