"""Texts to token ids, padding, and batches of similar length."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from sparsecbm.errors import CheckpointError
from sparsecbm.tokens import batches, encode, openings, pad, tokenizer_from_text
from tests.sparsecbm.mutation import change_a_part


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


def test_a_tokenizer_that_fails_on_texts_is_refused(text: str) -> None:
    content = json.loads(text)
    content["post_processor"]["special_tokens"].pop("[CLS]")
    with pytest.raises(CheckpointError, match="is not a tokenizer file"):
        tokenizer_from_text(json.dumps(content), 64)


PARTS = st.sampled_from(
    [
        None,
        True,
        -1,
        2**31,
        1e300,
        "",
        "a",
        "[UNK]",
        [],
        {},
        ["a"],
        {"Regex": "("},
        {"type": "Sequence"},
        {"type": "BPE"},
    ]
)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_a_changed_tokenizer_reads_texts_or_is_refused(text: str, data: st.DataObject) -> None:
    content = json.loads(text)
    change_a_part(content, data, PARTS, within="vocab")
    try:
        tokenizer = tokenizer_from_text(json.dumps(content), 64)
    except CheckpointError:
        return
    encode(tokenizer, ["the soup was cold", "\x00 é 🍝"])


def test_only_the_beginning_of_a_long_text_is_given_to_the_tokenizer(text: str) -> None:
    tokenizer = tokenizer_from_text(text, 8)
    assert [len(opening) for opening in openings(tokenizer, ["soup", "s" * 10_000])] == [4, 256]


def test_a_text_whose_end_is_beyond_what_can_be_read_is_truncated(text: str) -> None:
    encoded = encode(tokenizer_from_text(text, 8), ["soup" + " " * 300 + "cold", "soup" + " " * 100 + "cold"])
    assert (encoded.lengths().tolist(), encoded.truncated) == ([3, 4], [True, False])


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
