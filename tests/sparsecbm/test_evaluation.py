"""Scores against numbers worked out by hand, and what is judged of a model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from sparsecbm.backbone import Backbone
from sparsecbm.bundle import Concept
from sparsecbm.data import Dataset, Schema
from sparsecbm.evaluation import Outputs, calibration_error, confusion, evaluate, judge, run, scores
from sparsecbm.model import SparseCBM

TRUTH, PREDICTED = np.array([0, 0, 1, 2]), np.array([0, 1, 1, 1])


def test_confusion_counts_truth_by_row() -> None:
    assert confusion(TRUTH, PREDICTED, 3).tolist() == [[1, 1, 0], [0, 1, 0], [0, 1, 0]]


def test_accuracy_is_the_share_that_is_right() -> None:
    assert scores(TRUTH, PREDICTED, 3)["accuracy"] == 0.5


def test_macro_f1_is_the_mean_of_each_classs_f1() -> None:
    assert scores(TRUTH, PREDICTED, 3)["macro_f1"] == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)


def test_one_vs_rest_f1_also_counts_the_rest() -> None:
    by_class = [(2 / 3 + 4 / 5) / 2, (1 / 2 + 1 / 2) / 2, (0 + 6 / 7) / 2]
    assert scores(TRUTH, PREDICTED, 3)["one_vs_rest_f1"] == pytest.approx(sum(by_class) / 3)


def test_a_class_that_never_occurs_counts_for_nothing() -> None:
    assert scores(TRUTH, PREDICTED, 5) == scores(TRUTH, PREDICTED, 3)


def test_a_class_that_is_only_predicted_counts() -> None:
    assert scores(np.array([0, 0]), np.array([0, 1]), 3)["macro_f1"] == pytest.approx((2 / 3 + 0) / 2)


def test_all_right_scores_one() -> None:
    assert set(scores(TRUTH, TRUTH, 3).values()) == {1.0}


def test_calibration_error_is_worked_out_by_bin() -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.62, 0.38], [0.3, 0.7]])
    # Bin of 0.9: one right of two, so |1.8 - 1|; 0.62 and 0.7 lie in bins of their own and are right.
    error = calibration_error(probabilities, np.array([0, 1, 0, 1]))
    assert error == pytest.approx((0.8 + 0.38 + 0.3) / 4)


def test_errors_on_both_sides_cancel_within_a_bin_only() -> None:
    probabilities = np.array([[0.5, 0.5], [0.5, 0.5]])
    assert calibration_error(probabilities, np.array([0, 1])) == 0


def test_certainty_that_is_right_has_no_calibration_error() -> None:
    assert calibration_error(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0, 1])) == 0


def test_run_gives_each_texts_output_in_the_texts_order(model: SparseCBM, texts: Any) -> None:
    output = run(model, texts.ids, batch=7)
    for index in (0, 5, 47):
        ids = torch.from_numpy(texts.ids[index])[None]
        with torch.no_grad():
            alone = model(ids, torch.ones_like(ids))
        torch.testing.assert_close(output.logits[index], alone.logits[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(output.vectors[index], alone.vectors[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_run_leaves_the_models_mode_as_it_was(model: SparseCBM, texts: Any, training: bool) -> None:
    model.train(training)
    run(model, texts.ids[:3])
    assert model.training is training


def test_run_has_no_dropout_in_training_mode(model: SparseCBM, texts: Any) -> None:
    wanted = run(model, texts.ids).logits
    assert torch.equal(run(model.train(), texts.ids).logits, wanted)


@pytest.fixture
def judged(model: SparseCBM) -> dict[str, Any]:
    """Figures on four texts of a concept with 3 values and one with 2, where the label is the first concept's value.

    The first concept is mistaken on texts 2 and 3, the second one on text 0.
    """
    concepts = (Concept(name="food", values=["a", "b", "c"]), Concept(name="noise", values=["no", "yes"]))
    small = SparseCBM(Backbone(model.backbone.config), concepts, ("1", "2", "3"), trunk=1, width=3)
    with torch.no_grad():
        small.head_weight.zero_()
        small.head_weight[:, 0] = torch.eye(3)
    gold = np.array([[0, 1], [1, 1], [2, 0], [2, 0]])
    said = np.array([[0, 0], [1, 1], [1, 0], [0, 0]])
    logits = torch.full((4, 2, 3), -20.0)
    logits[:, 1, 2] = -torch.inf
    for text, values in enumerate(said):
        for concept, value in enumerate(values):
            logits[text, concept, value] = 20
    vectors = 9 * torch.eye(3).expand(4, 2, 3, 3)
    labels = gold[:, 0].copy()
    shares = np.eye(3, dtype=np.float32)
    data = Dataset(Schema("s", concepts, ("1", "2", "3")), tuple("abcd"), labels, gold, shares[labels], shares[gold])
    return judge(small, data, Outputs(logits, vectors))


def test_judge_scores_the_label(judged: dict[str, Any]) -> None:
    assert judged["label"]["accuracy"] == 0.5
    assert judged["label"]["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 0) / 3)


def test_judge_scores_every_concept(judged: dict[str, Any]) -> None:
    assert {name: figures["accuracy"] for name, figures in judged["concepts"].items()} == {"food": 0.5, "noise": 0.75}


def test_judge_averages_over_concepts(judged: dict[str, Any]) -> None:
    for key, value in judged["concept"].items():
        assert value == pytest.approx((judged["concepts"]["food"][key] + judged["concepts"]["noise"][key]) / 2)


def test_judge_corrects_the_mistaken_concepts(judged: dict[str, Any]) -> None:
    assert judged["label_corrected"]["accuracy"] == 1


def test_judge_measures_calibration(judged: dict[str, Any]) -> None:
    assert judged["concepts"]["food"]["calibration_error"] == pytest.approx(0.5, abs=1e-6)
    assert judged["concepts"]["noise"]["calibration_error"] == pytest.approx(0.25, abs=1e-6)


def test_judge_counts_the_texts(judged: dict[str, Any]) -> None:
    assert judged["texts"] == 4


def test_evaluate_judges_what_the_model_says(model: SparseCBM, texts: Any) -> None:
    assert evaluate(model, texts.data, texts.ids) == judge(model, texts.data, run(model, texts.ids))
