"""How long a request may take: ``X-Request-Timeout`` in seconds, or the server's own default."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response

from serving.settings import Settings
from sparsecbm.errors import DeadlineError, InputError

HEADER = "x-request-timeout"


async def within(request: Request, settings: Settings, answer: Callable[[Request], Awaitable[Response]]) -> Response:
    """The answer to a request, unless its time is over first; what waits in a queue then leaves it.

    Raises:
        InputError: the header is no positive number.
        DeadlineError: the time is over.
    """
    seconds = min(_asked(request.headers.get(HEADER), settings.request_timeout), settings.max_request_timeout)
    try:
        async with asyncio.timeout(seconds) as timeout:
            request.state.timeout = timeout
            return await answer(request)
    except TimeoutError:
        if not timeout.expired():
            raise
        raise DeadlineError(
            f"There was no answer within {seconds:g} s. Allow more with X-Request-Timeout, or send fewer texts.",
            {"timeout_s": seconds},
        ) from None


def commit(request: Request) -> None:
    """Lifts the deadline, before what must not be left half known: from here on the answer says what was done."""
    request.state.timeout.reschedule(None)


def _asked(header: str | None, default: float) -> float:
    if header is None:
        return default
    try:
        seconds = float(header)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise InputError("X-Request-Timeout is wrong: it should be a number of seconds above 0.")
    return seconds
