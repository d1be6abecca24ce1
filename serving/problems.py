"""Whatever goes wrong, as the one shape of error: ``{"error": {"type", "message", "detail"}}``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from starlette.responses import Response

from serving.contract import ErrorBody, ErrorResponse
from sparsecbm.errors import InputError, OverloadedError, SparseCBMError, UnauthorizedError

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


def problem(
    status: int, type: str, message: str, detail: Any = None, headers: Mapping[str, str] | None = None
) -> Response:
    """An error as a response."""
    body = ErrorResponse(error=ErrorBody(type=type, message=message, detail=detail))
    return Response(body.model_dump_json(), status, headers, "application/json")


def from_error(error: SparseCBMError) -> Response:
    """One of our own errors as a response with its status; 429 says when to come again, 401 how to say who one is."""
    if error.status == 500:
        return problem(500, TYPES[500], INTERNAL)
    headers = {}
    if isinstance(error, OverloadedError):
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
