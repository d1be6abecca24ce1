"""The ``Idempotency-Key`` header, by which a request that is sent again is known."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from starlette.requests import Request

from serving.contract import Message
from serving.ledger import Claim
from sparsecbm.errors import InputError

HEADER = "Idempotency-Key"
_KEY = re.compile(r"[\x21-\x7e]{1,255}")

PARAMETER: dict[str, Any] = {
    "name": HEADER,
    "in": "header",
    "required": False,
    "description": "A name for this request, new for each, of 1 to 255 visible ASCII characters. Sent again with the "
    "same body, the request gets the first answer and records nothing more, so that a correction whose answer was "
    "lost can be sent again; with another body it gets 409. Keys are their caller's own, and are kept with the ledger. "
    "Without effect where nothing is recorded.",
    "schema": {
        "type": "string",
        "minLength": 1,
        "maxLength": 255,
        "pattern": "^[!-~]+$",
        "examples": ["01a211e4-5645-7156-a2ab-59359c51ea5e"],
    },
}
"""The header in OpenAPI."""


def claim(request: Request, message: Message) -> Claim | None:
    """What a request is known by, or None where it has no key.

    Raises:
        InputError: the key is none.
    """
    key = request.headers.get(HEADER)
    if key is None:
        return None
    if not _KEY.fullmatch(key):
        raise InputError(f"{HEADER} is wrong: it should be 1 to 255 visible ASCII characters, such as those of a UUID.")
    # What was left out says the same when a later version knows more fields.
    body = message.model_dump_json(exclude_unset=True).encode()
    return Claim(key, hashlib.sha256(body).hexdigest())
