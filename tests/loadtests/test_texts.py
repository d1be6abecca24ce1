"""Texts that are as long as real ones, and always the same."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from loadtests.texts import SHORTEST, read_texts, sample, text_of
from sparsecbm.errors import DataError
from sparsecbm.tokens import encode, tokenizer_from_text

BUNDLE = Path(__file__).parents[2] / "models" / "restaurant-reviews"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """BERT's uncased one, of the default bundle."""
    return tokenizer_from_text((BUNDLE / "tokenizer.json").read_text(encoding="utf-8"), 512)


def test_lengths_are_distributed_as_cebabs(tokenizer: Tokenizer) -> None:
    lengths = encode(tokenizer, sample(1000)).lengths()
    assert abs(np.median(lengths) - 27) <= 1
    assert 45 <= np.percentile(lengths, 95) < 51
    assert lengths.max() <= 94 and lengths.min() >= SHORTEST


@given(tokens=st.integers(SHORTEST, 512), seed=st.integers())
def test_a_text_has_the_length_asked_for(tokenizer: Tokenizer, tokens: int, seed: int) -> None:
    assert encode(tokenizer, [text_of(tokens, random.Random(seed))]).lengths() == [tokens]


def test_a_sample_depends_on_its_seed_alone() -> None:
    assert sample(20, 1) == sample(20, 1)
    assert sample(20, 1) != sample(20, 2)


def test_lengths_are_mixed(tokenizer: Tokenizer) -> None:
    lengths = encode(tokenizer, sample(1000)).lengths()
    assert abs(np.corrcoef(np.arange(1000), lengths)[0, 1]) < 0.1


def test_a_file_has_a_text_a_line(tmp_path: Path) -> None:
    (tmp_path / "texts").write_text("good soup\n\n  \nslow waiter\n", encoding="utf-8")
    assert read_texts(tmp_path / "texts") == ["good soup", "slow waiter"]


@pytest.mark.parametrize("content", [b"\n \n", b"\xff\xfe"], ids=["empty", "not UTF-8"])
def test_a_file_without_texts_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "texts").write_bytes(content)
    with pytest.raises(DataError, match="texts"):
        read_texts(tmp_path / "texts")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        read_texts(tmp_path / "nowhere")
