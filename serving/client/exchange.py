"""One call to the server, as steps that a client takes: send, read, wait, send again. It does no I/O itself."""

from __future__ import annotations

import random
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from serving.client.errors import AnswerError, ClientError, NoAnswerError

Answer = TypeVar("Answer", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Retries:
    """How often a request is sent again, and after how long.

    Only what is safe to send twice is: a prediction and a reading always, an intervention by its Idempotency-Key.

    Attributes:
        attempts: how often a request is sent at most.
        base: seconds; the n-th wait is a random one of up to base · 2ⁿ⁻¹, after the server's Retry-After if it has one.
        longest: longest wait, in seconds; where the server asks for more, its error is raised.
    """

    attempts: int = 4
    base: float = 0.25
    longest: float = 30.0

    def pause(self, attempt: int, error: ClientError) -> float | None:
        """Seconds to wait after the attempt of this number, from 1, that ended so; None if it was the last."""
        if not error.transient or attempt >= self.attempts:
            return None
        pause = (error.retry_after or 0.0) + random.uniform(0, min(self.longest, self.base * 2 ** (attempt - 1)))
        return pause if pause <= self.longest or error.retry_after is None else None


@dataclass(frozen=True, slots=True)
class Call(Generic[Answer]):
    """What to send, and the type of its answer."""

    method: str
    path: str
    answer: type[Answer]
    content: bytes | None = None
    params: Mapping[str, str | int] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Send:
    """The step of sending the call, and reading its answer within so many seconds."""

    timeout: float


@dataclass(frozen=True, slots=True)
class Pause:
    """The step of waiting for so many seconds."""

    seconds: float


Steps = Generator[Send | Pause, httpx.Response | httpx.TransportError | None, Answer]


def steps(call: Call[Answer], retries: Retries, timeout: float) -> Steps[Answer]:
    """The steps of a call. A client sends the outcome of each one back, and gets the answer as the last value.

    Args:
        call: what to send.
        retries: how often, and after how long.
        timeout: seconds for all of it.

    Raises:
        AnswerError: the server answered with an error.
        NoAnswerError: no answer came.
    """
    end = time.monotonic() + timeout
    attempt = 0
    while True:
        attempt += 1
        outcome = yield Send(max(end - time.monotonic(), 0.001))
        assert outcome is not None
        if isinstance(outcome, httpx.Response) and outcome.is_success:
            return _read(call, outcome)
        error = (
            AnswerError(outcome)
            if isinstance(outcome, httpx.Response)
            else NoAnswerError(f"No answer came from the server: {str(outcome) or type(outcome).__name__}.")
        )
        pause = retries.pause(attempt, error)
        if pause is None or time.monotonic() + pause >= end:
            raise error from outcome if isinstance(outcome, httpx.TransportError) else None
        yield Pause(pause)


def _read(call: Call[Answer], response: httpx.Response) -> Answer:
    try:
        return call.answer.model_validate_json(response.content)
    except ValidationError:
        raise AnswerError(response) from None
