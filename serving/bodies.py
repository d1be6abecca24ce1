"""A request's body: read as JSON within its limits, and refused while it is read where it goes beyond them."""

from __future__ import annotations

import numpy as np
from starlette.requests import Request

from serving import problems
from sparsecbm.errors import InputError, TooLargeError

JSON = "application/json"


class UnsupportedMediaError(InputError):
    """A body not declared as JSON. A page elsewhere can't send one so declared unasked, so this stops CSRF too."""

    type, status = problems.TYPES[415], 415


async def read(request: Request, most_bytes: int, most_depth: int, *, must_declare: bool = True) -> bytes:
    """The whole body.

    Args:
        request: whose body it is.
        most_bytes: largest body; of a larger one no more than this is read.
        most_depth: deepest nesting of objects and lists.
        must_declare: whether a body without a Content-Type is refused.

    Raises:
        UnsupportedMediaError: it is not declared as JSON, or compressed.
        TooLargeError: it is larger, or more deeply nested.
    """
    kind = request.headers.get("content-type", "" if must_declare else JSON).partition(";")[0].strip().lower()
    if kind != JSON or "content-encoding" in request.headers:
        raise UnsupportedMediaError(
            "The body must be uncompressed JSON: send it with 'Content-Type: application/json'."
        )
    if "inference-header-content-length" in request.headers:
        raise UnsupportedMediaError(
            "Tensors in binary are not supported: send their data as JSON (in tritonclient, binary_data=False)."
        )
    too_large = TooLargeError(
        f"The body is over {most_bytes} bytes. Send fewer or shorter texts at once.", {"limit": most_bytes}
    )
    declared = request.headers.get("content-length", "")
    # Python refuses to read a number of thousands of digits.
    if declared.isdecimal() and (len(declared) > 18 or int(declared) > most_bytes):
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most_bytes:
            raise too_large
    content = bytes(body)
    if content.count(b"{") + content.count(b"[") > most_depth and depth(content) > most_depth:
        raise TooLargeError(f"The body's JSON is nested more than {most_depth} deep.", {"limit": most_depth})
    return content


def depth(body: bytes) -> int:
    """How deeply the objects and lists of a JSON text are nested; of no JSON, any number.

    It takes the same few milliseconds per megabyte whatever the text is.
    """
    characters = np.frombuffer(body.replace(rb"\\", b"").replace(rb"\"", b""), dtype=np.uint8)
    outside = np.logical_not(np.logical_xor.accumulate(characters == ord('"')))
    opening = np.isin(characters, (ord("{"), ord("["))) & outside
    closing = np.isin(characters, (ord("}"), ord("]"))) & outside
    return int(np.cumsum(opening.astype(np.int8) - closing.astype(np.int8), dtype=np.int64).max(initial=0))
