"""Messages: what a request may hold."""

from __future__ import annotations

import json
import time

import pytest
from pydantic import ValidationError

from serving.contract import InterveneRequest, PredictRequest, TextInput

CORRECTION = {"text": "rude", "corrections": {"service": "Negative"}}


def predict(**fields: object) -> PredictRequest:
    return PredictRequest.model_validate_json(json.dumps({"inputs": ["rude"], **fields}))


def intervene(**fields: object) -> InterveneRequest:
    return InterveneRequest.model_validate_json(json.dumps({"inputs": [{**CORRECTION, **fields}]}))


def test_input_is_a_text_or_an_object() -> None:
    assert predict(inputs=["rude", {"text": "kind"}, {"id": "7", "text": "slow"}]).inputs == [
        "rude",
        TextInput(text="kind"),
        TextInput(id="7", text="slow"),
    ]


def test_only_concepts_are_explained_by_default() -> None:
    assert predict().explain == ["concepts"]


def test_interventions_are_at_concept_level_and_recorded_by_default() -> None:
    request = intervene()
    assert request.record and request.inputs[0].level == "concept" and request.inputs[0].note is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"inputs": []},
        {"inputs": "rude"},
        {"inputs": None},
        {"inputs": [7]},
        {"inputs": [["rude"]]},
        {"inputs": [{"text": 7}]},
        {"inputs": [{"id": 7, "text": "rude"}]},
        {"inputs": [{"id": "", "text": "rude"}]},
        {"inputs": [{"id": "x" * 129, "text": "rude"}]},
        {"inputs": [{"text": "rude", "label": "1"}]},
        {"explain": ["everything"]},
        {"explain": "tokens"},
        {"record": True},
    ],
)
def test_wrong_prediction_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        predict(**wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"corrections": {}},
        {"corrections": {"service": None}},
        {"corrections": {"service": ["Negative"]}},
        {"corrections": ["service"]},
        {"level": "weight"},
        {"note": "x" * 2001},
        {"note": 7},
    ],
)
def test_wrong_intervention_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        intervene(**wrong)


@pytest.mark.parametrize("record", ["true", 1, None])
def test_record_is_true_or_false_and_nothing_like_it(record: object) -> None:
    with pytest.raises(ValidationError):
        InterveneRequest.model_validate_json(json.dumps({"inputs": [CORRECTION], "record": record}))


def test_unpaired_surrogate_is_refused() -> None:
    with pytest.raises(ValidationError):
        PredictRequest.model_validate_json(b'{"inputs": ["\\ud800"]}')


MANY = 300_000


@pytest.mark.parametrize(
    "body",
    [
        '{"inputs": [' + "1," * MANY + "1]}",
        '{"inputs": ["a"], "explain": [' + "1," * MANY + "1]}",
    ],
    ids=["inputs", "explain"],
)
def test_body_of_mistakes_alone_costs_little(body: str) -> None:
    started = time.process_time()
    with pytest.raises(ValidationError) as refused:
        PredictRequest.model_validate_json(body)
    assert refused.value.error_count() <= 2
    assert time.process_time() - started < 0.5


def test_corrections_of_mistakes_alone_cost_little() -> None:
    corrections = ",".join(f'"{number}":1' for number in range(MANY))
    with pytest.raises(ValidationError) as refused:
        InterveneRequest.model_validate_json('{"inputs": [{"text": "a", "corrections": {' + corrections + "}}]}")
    assert refused.value.error_count() == 1
