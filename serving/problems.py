"""Whatever goes wrong, as the one shape of error: ``{"error": {"type", "message", "detail"}}``.

Under ``/v2`` an error has the Open Inference Protocol's shape instead, which is the message alone: ``{"error": "…"}``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serving.contract import ErrorBody, ErrorResponse
from serving.tensors import ProtocolError
from sparsecbm.errors import InputError, OverloadedError, SparseCBMError, UnauthorizedError, UnavailableError

INTERNAL = "The server failed at this request; its log says why, under the request id."
# Types of error by status, where no class of sparsecbm.errors stands for it.
TYPES = {
    400: "bad_request",
    403: "unknown_host",
    404: "not_found",
    405: "method_not_allowed",
    415: "unsupported_media_type",
    500: "internal",
}
_LISTED = 20
_LONGEST_NAME = 64
_BRANCHES = ("str", "TextInput")  # pydantic's names for the two forms of an input
_WORDS = {"missing": "is required but missing", "extra_forbidden": "is not a known field"}


class Problem(Response):
    """An error as a response, in the shape that its request's path asks for."""

    def __init__(self, status: int, error: ErrorBody, headers: Mapping[str, str] | None = None) -> None:
        self._message = error.message
        self._given = headers
        super().__init__(ErrorResponse(error=error).model_dump_json(), status, headers, "application/json")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if f"{scope['path']}/".startswith("/v2/"):
            body = ProtocolError(error=self._message).model_dump_json()
            await Response(body, self.status_code, self._given, self.media_type)(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def problem(
    status: int, type: str, message: str, detail: Any = None, headers: Mapping[str, str] | None = None
) -> Response:
    """An error as a response."""
    return Problem(status, ErrorBody(type=type, message=message, detail=detail), headers)


def from_error(error: SparseCBMError) -> Response:
    """One of our errors as a response with its status; 429 and 503 say when to come again, 401 how to send a key."""
    if error.status == 500:
        return problem(500, TYPES[500], INTERNAL)
    headers = {}
    if isinstance(error, OverloadedError | UnavailableError):
        headers["retry-after"] = str((error.detail or {}).get("retry_after_s", 1))
    if isinstance(error, UnauthorizedError):
        headers["www-authenticate"] = "Bearer"
    return problem(error.status, error.type, error.message, error.detail, headers)


def from_validation(errors: Iterable[Mapping[str, Any]], what: str) -> InputError:
    """What pydantic found wrong, without the values that it found: those may be a user's text.

    Args:
        errors: pydantic's errors.
        what: what was read, to begin a sentence with: 'The body'.
    """
    errors = list(errors)
    if errors[0]["type"] == "json_invalid":
        reason = str(errors[0]["msg"]).removeprefix("Invalid JSON: ")
        return InputError(f"{what} is not JSON: {reason}. Send a JSON object in UTF-8.")
    found = _readable(errors)
    first, more = found[0], len(found) - 1
    message = f"{what} is wrong: {first['at'] or 'it'} {first['problem']}."
    return InputError(message + (f" {more} more in detail." if more else ""), found[:_LISTED])


def _readable(errors: list[Mapping[str, Any]]) -> list[dict[str, str]]:
    found: dict[tuple[str, ...], str] = {}
    for error in errors:
        place = tuple(str(part)[:_LONGEST_NAME] for part in error["loc"])
        words = _WORDS.get(error["type"]) or _sentence(str(error["msg"]))
        if place[:1] == ("inputs",) and len(place) > 2 and place[2] in _BRANCHES:
            # An input may be a string or an object: pydantic tells what each form lacks, we tell one of them.
            if place[2] == "str" or error["type"] == "model_type":
                words = "should be a text, or an object with a text and perhaps an id"
            place = place[:2] + place[3:]
            if len(place) > 2:
                found.pop(place[:2], None)
        found.setdefault(place, words)
    return [{"at": ".".join(place), "problem": words} for place, words in found.items()]


def _sentence(message: str) -> str:
    subject, _, rest = message.partition(" should ")
    return f"should {rest}" if rest and " " not in subject else f"is wrong ({message})"
