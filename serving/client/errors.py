"""What a client raises.

ClientError
├── AnswerError      the server answered with an error
└── NoAnswerError    no answer came: it could not be reached, or not in time
"""

from __future__ import annotations

from typing import Any

import httpx
from pydantic import ValidationError

from serving.contract import ErrorResponse

_TRANSIENT = {429, 502, 503}


class ClientError(Exception):
    """Base of a client's errors.

    Attributes:
        transient: whether the same request may fare better later.
        retry_after: seconds after which the server asked to come again, if it did.
    """

    transient = True
    retry_after: float | None = None


class AnswerError(ClientError):
    """The server answered with an error.

    Attributes:
        status: of the HTTP answer.
        type: the kind of error, as in the contract.
        message: what was wrong, and what would be right.
        detail: facts for programs, or None.
        request_id: of the request, to be found in the server's log.
    """

    def __init__(self, response: httpx.Response) -> None:
        self.status = response.status_code
        self.request_id: str | None = response.headers.get("x-request-id")
        self.type, self.message, self.detail = _read(response)
        self.transient = self.status in _TRANSIENT
        after = response.headers.get("retry-after", "")
        self.retry_after = float(after) if after.isdecimal() else None
        super().__init__(f"{self.message} (status {self.status}, request {self.request_id})")


class NoAnswerError(ClientError):
    """No answer came: the server could not be reached, or did not answer in time."""


def _read(response: httpx.Response) -> tuple[str, str, Any]:
    try:
        error = ErrorResponse.model_validate_json(response.content).error
    except ValidationError:
        return "unreadable", "The answer is not of the server's form; something else may have answered.", None
    return error.type, error.message, error.detail
