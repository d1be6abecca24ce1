"""A client of the server, sync and async, that needs httpx and pydantic and nothing of the server's.

    with Client("http://127.0.0.1:8000") as client:
        [answer] = client.predict(["Great pasta, but the waiter was rude."]).predictions

Answers are the contract's models. Where an input failed alone, its place holds a `PredictionFailure` or an
`InterventionFailure`; where the whole request did, an `AnswerError` is raised, or a `NoAnswerError` if none came.
"""

from serving.client.asynchronous import AsyncClient
from serving.client.errors import AnswerError, ClientError, NoAnswerError
from serving.client.exchange import Retries
from serving.client.synchronous import Client
from serving.contract import (
    CorrectionInput,
    InterveneResponse,
    InterventionAnswer,
    InterventionFailure,
    InterventionPage,
    InterventionRecord,
    ModelCard,
    Prediction,
    PredictionFailure,
    PredictResponse,
    TextInput,
)

__all__ = [
    "AnswerError",
    "AsyncClient",
    "Client",
    "ClientError",
    "CorrectionInput",
    "InterveneResponse",
    "InterventionAnswer",
    "InterventionFailure",
    "InterventionPage",
    "InterventionRecord",
    "ModelCard",
    "NoAnswerError",
    "PredictResponse",
    "Prediction",
    "PredictionFailure",
    "Retries",
    "TextInput",
]
