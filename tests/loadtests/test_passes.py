"""How rivals read and run texts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from loadtests.contenders import torch_passes
from loadtests.passes import Reader, onnx_pass, repeated
from loadtests.setting import Setting
from loadtests.synthetic import dense_model
from serving.graphs import PREDICT
from sparsecbm.model import mean_over_tokens
from sparsecbm.tokens import encode


def test_every_text_is_run_once_within_the_budget(setting: Setting) -> None:
    reader = setting.reader()
    batches = list(Reader(reader.tokenizer, reader.pad_id, budget=64).batches(setting.texts))
    assert all(ids.size <= 64 or len(ids) == 1 for ids, _ in batches)
    run = [row[: int(kept.sum())].tolist() for ids, mask in batches for row, kept in zip(ids, mask, strict=True)]
    assert sorted(run) == sorted(ids.tolist() for ids in encode(reader.tokenizer, setting.texts).ids)


def test_texts_of_a_batch_are_of_similar_length(setting: Setting) -> None:
    reader = setting.reader()
    longest = [ids.shape[1] for ids, _ in Reader(reader.tokenizer, reader.pad_id, budget=64).batches(setting.texts)]
    assert longest == sorted(longest)


def test_the_papers_way_pads_every_text_to_one_length(setting: Setting) -> None:
    reader = Reader(setting.reader().tokenizer, 7, budget=300, length=100)
    batches = list(reader.batches(setting.texts))
    assert [ids.shape for ids, _ in batches] == [(3, 100), (3, 100), (2, 100)]
    assert all((ids[mask == 0] == 7).all() for ids, mask in batches)
    assert reader.padding([setting.texts]) == pytest.approx(1 - setting.lengths().mean() / 100)


def test_texts_are_run_as_often_as_asked(setting: Setting) -> None:
    seen: list[np.ndarray] = []
    repeated(lambda ids, mask: seen.append(ids), setting.reader(), times=3)(setting.texts)
    batches = len(list(setting.reader().batches(setting.texts)))
    assert len(seen) == 3 * batches and seen[0] is seen[1] is seen[2]


def test_batches_on_several_threads_are_the_same_work(setting: Setting) -> None:
    seen: list[int] = []
    reader = replace(setting.reader(), threads=2)
    repeated(lambda ids, mask: seen.append(int(mask.sum())), reader, times=2)(setting.texts)
    assert sum(seen) == 2 * setting.lengths().sum()


def test_dense_passes_do_the_same_work(setting: Setting) -> None:
    """What ONNX Runtime runs is PyTorch's pass with a classifier on top."""
    backbone = setting.backbone()
    ids, mask = next(iter(setting.reader().batches(setting.texts)))
    hidden = torch_passes(backbone, threads=1)["dense PyTorch"][0].run(ids, mask)
    assert isinstance(hidden, torch.Tensor)
    pooled = mean_over_tokens(hidden, torch.from_numpy(mask))
    expected = dense_model(backbone).read_concepts(pooled[:, None]).logits
    found = onnx_pass(setting.dense(backbone)["fp32"] / PREDICT, 1, fusion=False)(ids, mask)
    assert isinstance(found, list)
    np.testing.assert_allclose(found[0], expected.detach().numpy(), atol=1e-4)


def test_a_fused_pass_answers_as_an_unfused_one(setting: Setting) -> None:
    graph = setting.dense(setting.backbone())["fp32"] / PREDICT
    ids, mask = next(iter(setting.reader().batches(setting.texts)))
    plain, fused = (onnx_pass(graph, 1, fusion)(ids, mask) for fusion in (False, True))
    assert isinstance(plain, list) and isinstance(fused, list)
    np.testing.assert_allclose(plain[0], fused[0], atol=1e-4)
