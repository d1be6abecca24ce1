"""Errors in their one shape."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError
from starlette.responses import Response

from serving import problems
from serving.contract import InterveneRequest, PredictRequest
from sparsecbm.errors import (
    BundleError,
    InputError,
    NotFoundError,
    OverloadedError,
    SparseCBMError,
    TooLargeError,
    UnavailableError,
    UnsupportedError,
)


def body(response: Response) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(bytes(response.body))
    assert set(found) == {"error"} and set(found["error"]) == {"type", "message", "detail"}
    error: dict[str, Any] = found["error"]
    return error


def refused(model: type[BaseModel], content: object) -> InputError:
    text = content if isinstance(content, str | bytes) else json.dumps(content)
    with pytest.raises(ValidationError) as error:
        model.model_validate_json(text)
    return problems.from_validation(error.value.errors(include_url=False), "The body")


@pytest.mark.parametrize(
    ("error", "status", "type"),
    [
        (InputError("x"), 422, "invalid_input"),
        (TooLargeError("x"), 413, "too_large"),
        (NotFoundError("x"), 404, "not_found"),
        (UnsupportedError("x"), 501, "unsupported"),
        (UnavailableError("x"), 503, "unavailable"),
        (OverloadedError("x"), 429, "overloaded"),
    ],
)
def test_error_is_answered_with_its_status_and_type(error: SparseCBMError, status: int, type: str) -> None:
    response = problems.from_error(error)
    assert (response.status_code, body(response)["type"]) == (status, type)


def test_detail_is_passed_on() -> None:
    assert body(problems.from_error(InputError("x", {"input": 3})))["detail"] == {"input": 3}


def test_error_that_is_not_the_users_keeps_its_words_to_itself() -> None:
    response = problems.from_error(BundleError("/srv/secret can't be read", {"path": "/srv/secret"}))
    assert response.status_code == 500
    assert "secret" not in bytes(response.body).decode()


def test_overload_says_when_to_come_again() -> None:
    assert problems.from_error(OverloadedError("x", {"retry_after_s": 7})).headers["retry-after"] == "7"


def test_overload_without_a_time_says_one_second() -> None:
    assert problems.from_error(OverloadedError("x")).headers["retry-after"] == "1"


def test_what_is_no_json_is_said_to_be_none() -> None:
    assert refused(PredictRequest, "{inputs").message.startswith("The body is not JSON: ")


def test_missing_field_is_named() -> None:
    assert refused(PredictRequest, {}).message == "The body is wrong: inputs is required but missing."


def test_unknown_field_is_named() -> None:
    assert refused(PredictRequest, {"inputs": ["a"], "text": "b"}).message == (
        "The body is wrong: text is not a known field."
    )


def test_long_field_name_is_cut() -> None:
    error = refused(PredictRequest, {"inputs": ["a"], "x" * 10_000: 1})
    assert len(error.message) < 200 and len(str(error.detail)) < 200


def test_body_of_another_kind_is_told() -> None:
    assert refused(PredictRequest, []).message == "The body is wrong: it should be an object."


def test_input_of_no_form_is_told_once() -> None:
    error = refused(PredictRequest, {"inputs": ["a", 3]})
    assert error.detail == [
        {"at": "inputs.1", "problem": "should be a text, or an object with a text and perhaps an id"}
    ]


def test_mistake_in_an_inputs_object_is_told_where_it_is() -> None:
    error = refused(PredictRequest, {"inputs": [{"id": "a"}]})
    assert error.detail == [{"at": "inputs.0.text", "problem": "is required but missing"}]


def test_several_mistakes_are_counted() -> None:
    error = refused(PredictRequest, {"explain": "tokens", "text": "b"})
    assert error.message.endswith("2 more in detail.") and len(error.detail) == 3


def test_no_more_mistakes_are_listed_than_one_reads() -> None:
    error = refused(PredictRequest, {"inputs": ["a"], **{f"field{number}": 1 for number in range(100)}})
    assert len(error.detail) == 20


def test_wrong_values_are_not_repeated() -> None:
    secret = "my own words"
    for wrong in ({"text": [secret]}, {"text": "a", "corrections": secret}, {"text": "a", "level": secret}, secret):
        error = refused(InterveneRequest, {"inputs": [wrong], "record": secret})
        assert secret not in error.message + json.dumps(error.detail)
