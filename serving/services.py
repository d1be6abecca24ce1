"""What the routes answer with: the parts of a replica, and inputs checked and answered one by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import structlog

from serving.batcher import Batcher, Model
from serving.contract import Answer, Explain, Outcome
from serving.engine import Intervention
from serving.ledger import Ledger
from serving.metrics import Metrics
from serving.settings import Settings
from sparsecbm.bundle import Manifest
from sparsecbm.errors import InputError, TooLargeError

_log = structlog.get_logger()
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class CheckedModel(Model, Protocol):
    """An engine as the routes see it."""

    manifest: Manifest

    def check_text(self, text: str) -> None: ...

    def check_corrections(self, corrections: Mapping[str, str]) -> None: ...


@dataclass(frozen=True, slots=True)
class Services:
    """What the routes answer with."""

    settings: Settings
    engine: CheckedModel
    batcher: Batcher
    ledger: Ledger
    metrics: Metrics

    async def predict(self, texts: Sequence[str], explain: Sequence[Explain]) -> list[Answer | InputError]:
        """Answers texts in their order; in the place of one that can't be answered is its error.

        Raises:
            TooLargeError: there are too many of them.
            OverloadedError: too many texts wait already.
        """
        refused = self._refused(texts, self._check_text)
        self._log_texts(texts)
        asked = [text for text, error in zip(texts, refused, strict=True) if error is None]
        answers = self._fill(refused, await self.batcher.predict(asked, explain) if asked else [])
        self.metrics.predictions(answer for answer in answers if not isinstance(answer, InputError))
        return answers

    async def intervene(self, requests: Sequence[Intervention]) -> list[Outcome | InputError]:
        """Applies interventions in their order; in the place of one that can't be applied is its error.

        Raises:
            TooLargeError, OverloadedError: as `predict`.
        """
        refused = self._refused(requests, self._check_intervention)
        self._log_texts([request.text for request in requests])
        asked = [request for request, error in zip(requests, refused, strict=True) if error is None]
        return self._fill(refused, await self.batcher.intervene(asked) if asked else [])

    def _refused(self, items: Sequence[_Item], check: Callable[[_Item], None]) -> list[InputError | None]:
        if len(items) > self.settings.max_inputs:
            raise TooLargeError(
                f"The request has {len(items)} inputs; send at most {self.settings.max_inputs} at once.",
                {"inputs": len(items), "limit": self.settings.max_inputs},
            )
        return [_refusal(check, item) for item in items]

    def _check_text(self, text: str) -> None:
        limit = self.settings.max_text_chars
        if len(text) > limit:
            raise TooLargeError(
                f"the text has {len(text)} characters; it may have at most {limit}.",
                {"characters": len(text), "limit": limit},
            )
        self.engine.check_text(text)

    def _check_intervention(self, request: Intervention) -> None:
        self._check_text(request.text)
        self.engine.check_corrections(request.corrections)

    def _fill(self, refused: Sequence[InputError | None], results: Sequence[_Result]) -> list[_Result | InputError]:
        """Results in the places that hold no error."""
        left = iter(results)
        filled = [next(left) if error is None else error for error in refused]
        for result in filled:
            if isinstance(result, InputError):
                self.metrics.failed_input(result)
        return filled

    def _log_texts(self, texts: Sequence[str]) -> None:
        if self.settings.log_texts:
            _log.info("texts", texts=texts)


def _refusal(check: Callable[[_Item], None], item: _Item) -> InputError | None:
    try:
        check(item)
    except InputError as error:
        return error
    return None
