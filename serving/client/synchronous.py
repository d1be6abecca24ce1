"""The client for synchronous code."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Self, cast

import httpx

from serving.client import calls
from serving.client.errors import ClientError
from serving.client.exchange import Answer, Call, Pause, Retries, steps
from serving.contract import (
    CorrectionInput,
    Explain,
    InterveneResponse,
    InterventionPage,
    InterventionRecord,
    Level,
    ModelCard,
    PredictResponse,
    TextInput,
)


class Client:
    """A connection pool to one server. Close it, or use it as a context.

    Args:
        url: the server's address.
        api_key: sent as a bearer token, where the server asks for one.
        timeout: seconds for one call, with all its attempts; the server is told what is left of it.
        retries: how often a request is sent again, and after how long.
        transport: of httpx, in place of the network.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        timeout: float = 60.0,
        retries: Retries | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = httpx.Client(base_url=url, headers=headers, transport=transport)
        self._timeout = timeout
        self._retries = retries or Retries()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes all connections."""
        self._http.close()

    def predict(self, inputs: Sequence[str | TextInput], explain: Sequence[Explain] = ()) -> PredictResponse:
        """Concepts and label of each text, in order, and why.

        Args:
            inputs: texts, with or without an id.
            explain: which of ``tokens`` and ``subnetwork`` to add.

        Raises:
            AnswerError, NoAnswerError: as all calls do.
        """
        return self._call(calls.predict(inputs, explain))

    def intervene(
        self, inputs: Sequence[CorrectionInput], *, record: bool = True, idempotency_key: str | None = None
    ) -> InterveneResponse:
        """What changes where concepts are corrected.

        Args:
            inputs: texts with what their concepts should be.
            record: whether to keep the interventions in the ledger.
            idempotency_key: by which the server knows a request that it has had; by default one is made, which holds
                for this call's own attempts.
        """
        return self._call(calls.intervene(inputs, record, idempotency_key))

    def interventions(
        self,
        *,
        concept: str | None = None,
        level: Level | None = None,
        after: str | None = None,
        limit: int = 20,
    ) -> InterventionPage:
        """A page of the ledger, newest first; pass its ``next`` as ``after`` for the one that follows."""
        return self._call(calls.interventions(concept, level, after, limit))

    def intervention(self, id: str) -> InterventionRecord:
        """One intervention of the ledger."""
        return self._call(calls.intervention(id))

    def model(self) -> ModelCard:
        """The card of the model that is served."""
        return self._call(calls.model())

    def ready(self) -> bool:
        """Whether predictions are answered now."""
        try:
            self._call(calls.ready(), Retries(attempts=1))
        except ClientError:
            return False
        return True

    def _call(self, call: Call[Answer], retries: Retries | None = None) -> Answer:
        taken = steps(call, retries or self._retries, self._timeout)
        outcome: httpx.Response | httpx.TransportError | None = None
        try:
            while True:
                step = taken.send(outcome)
                if isinstance(step, Pause):
                    time.sleep(step.seconds)
                    outcome = None
                else:
                    outcome = self._send(call, step.timeout)
        except StopIteration as done:
            return cast("Answer", done.value)

    def _send(self, call: Call[Answer], timeout: float) -> httpx.Response | httpx.TransportError:
        try:
            return self._http.request(
                call.method,
                call.path,
                content=call.content,
                params=call.params,
                headers={**call.headers, "x-request-timeout": f"{timeout:.3f}"},
                timeout=timeout,
            )
        except httpx.TransportError as error:
            return error
