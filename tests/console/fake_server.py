"""A stand-in for the server: contract-valid answers from a word list, to see and test the console with.

To look at it, in the repository's root: ``python -m uvicorn --factory tests.console.fake_server:create_app``.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse

import serving
from serving.contract import (
    Answer,
    AskNext,
    ConceptAnswer,
    CorrectionInput,
    Edit,
    ErrorBody,
    ErrorResponse,
    Flipped,
    InterveneRequest,
    InterveneResponse,
    InterventionAnswer,
    InterventionFailure,
    InterventionPage,
    InterventionRecord,
    LabelAnswer,
    Outcome,
    Prediction,
    PredictionFailure,
    PredictRequest,
    PredictResponse,
    Subnetwork,
    TextInput,
    TokenScore,
    UnitKind,
    UnitScore,
)

CONSOLE = Path(serving.__file__).parent / "console"
MODEL, VERSION = "restaurant-reviews", "3f9c0a51d2e47b86"
VALUES = ["Negative", "Positive", "unknown"]
LABELS = ["1", "2", "3", "4", "5"]
WEIGHTS = {"food": 1.3, "ambiance": 0.7, "service": 0.9, "noise": 0.4}
WORDS = {
    "food": {
        "rich": 1.4,
        "perfectly": 1.2,
        "cooked": 0.5,
        "risotto": 0.4,
        "bland": -2.2,
        "small": -0.8,
        "tasty": 2.0,
    },
    "ambiance": {"candles": 1.2, "soft": 0.8, "lovely": 1.9, "old": 0.4, "room": 0.3, "shout": -1.2},
    "service": {"rude": -2.6, "forgot": -1.3, "waiter": -0.2, "kinder": 2.1, "quickly": 1.2, "staff": 0.3},
    "noise": {"shout": -2.0, "evening": -0.2, "music": 0.4, "soft": 1.0},
}
STRONG = 4.0  # logit of a value that a human set
TRUNCATED_FROM = 2000
POLICY = (  # as strict as the server's own
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def softmax(logits: list[float]) -> list[float]:
    largest = max(logits)
    powers = [math.exp(logit - largest) for logit in logits]
    return [power / sum(powers) for power in powers]


@dataclass
class Switches:
    """What a test may turn while the server runs."""

    failures: list[tuple[int, Any]] = field(default_factory=list)
    delays: list[float] = field(default_factory=list)
    reached: bool = True
    key: str | None = None  # that is needed, if any
    requests: list[tuple[str, Any]] = field(default_factory=list)
    ledger: list[InterventionRecord] = field(default_factory=list)


def tokens_of(text: str, concept: str) -> list[TokenScore]:
    """Words and single other characters, with offsets in code points."""
    return [
        TokenScore(
            text=found.group(),
            start=found.start(),
            end=found.end(),
            score=WORDS[concept].get(found.group().lower(), 0.02),
        )
        for found in re.finditer(r"\w+|[^\w\s]", text)
    ]


def units_of(concept: str, shift: float) -> list[UnitScore]:
    seed = sum(map(ord, concept))
    kinds: list[UnitKind] = ["neuron", "head", "neuron", "neuron", "head", "neuron"]
    return [
        UnitScore(
            layer=3 + (seed + at) % 3,
            kind=kind,
            index=(seed * (at + 3)) % (12 if kind == "head" else 1536),
            score=round((0.31 - 0.045 * at + 0.01 * shift) * (-1 if at == 4 else 1), 3),
        )
        for at, kind in enumerate(kinds)
    ]


def answer(text: str, corrections: dict[str, str], explain: list[str]) -> Answer:
    concepts: list[ConceptAnswer] = []
    logits = [-0.6, -0.1, 0.2, 0.2, -0.2]
    for name, weight in WEIGHTS.items():
        tokens = tokens_of(text, name)
        evidence = sum(token.score for token in tokens if abs(token.score) > 0.1)
        values = [-evidence, evidence, 0.9 - 0.2 * abs(evidence)]
        if name in corrections:
            values = [STRONG if value == corrections[name] else 0.0 for value in VALUES]
        probabilities = softmax(values)
        best = max(range(len(VALUES)), key=probabilities.__getitem__)
        direction = probabilities[1] - probabilities[0]
        contributions = [weight * (0.9 - 0.6 * abs(at - 2 - 2.4 * direction)) for at in range(len(LABELS))]
        logits = [logit + part for logit, part in zip(logits, contributions, strict=True)]
        sign = -1 if best == 0 else 1
        concepts.append(
            ConceptAnswer(
                name=name,
                value=VALUES[best],
                probability=probabilities[best],
                probabilities=dict(zip(VALUES, probabilities, strict=True)),
                contributions=dict(zip(LABELS, contributions, strict=True)),
                corrected=name in corrections,
                tokens=[token.model_copy(update={"score": sign * token.score}) for token in tokens]
                if "tokens" in explain
                else None,
                subnetwork=Subnetwork(density=0.31, units=units_of(name, evidence))
                if "subnetwork" in explain
                else None,
            )
        )
    shares = softmax(logits)
    top = max(range(len(LABELS)), key=shares.__getitem__)
    doubts = {concept.name: (1 - concept.probability) * WEIGHTS[concept.name] / 3 for concept in concepts}
    return Answer(
        label=LabelAnswer(value=LABELS[top], probability=shares[top]),
        probabilities=dict(zip(LABELS, shares, strict=True)),
        concepts=concepts,
        ask_next=[AskNext(concept=name, gain=doubts[name]) for name in sorted(doubts, key=lambda n: -doubts[n])],
        truncated=len(text) > TRUNCATED_FROM,
    )


def intervene(item: CorrectionInput, reached: bool) -> Outcome:
    before = answer(item.text, {}, [])
    after = answer(item.text, item.corrections if reached else {}, [])
    edits: list[Edit] = []
    if item.level == "mask":
        for concept in item.corrections:
            seed = sum(map(ord, concept))
            for layer in (3, 4, 5):
                for at in range(2 + (seed + layer) % 5):
                    index = (seed * 7 + layer * 131 + at * 211) % 1536
                    change = "grown" if at % 3 == 2 else "dropped"
                    edits.append(
                        Edit.model_validate(
                            {
                                "concept": concept,
                                "layer": layer,
                                "kind": "neuron",
                                "index": index,
                                "change": change,
                            }
                        )
                    )
            edits.append(Edit(concept=concept, layer=5, kind="head", index=seed % 12, change="dropped"))
    turned = [new.name for old, new in zip(before.concepts, after.concepts, strict=True) if old.value != new.value]
    return Outcome(
        level=item.level,
        corrections=item.corrections,
        reached=reached or item.level == "concept",
        before=before,
        after=after,
        flipped=Flipped(label=before.label.value != after.label.value, concepts=turned),
        edits=edits,
    )


def refusal(status: int, message: str, detail: object = None) -> JSONResponse:
    body = ErrorResponse(error=ErrorBody(type="invalid_input", message=message, detail=detail))
    return JSONResponse(body.model_dump(mode="json"), status)


def create_app(switches: Switches | None = None) -> FastAPI:
    """The stand-in, with the routes that the console uses and the server's content security policy."""
    turn = switches if switches is not None else Switches()
    app = FastAPI()

    @app.middleware("http")
    async def policy(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        given = request.headers.get("authorization")
        if turn.key is not None and given != f"Bearer {turn.key}" and request.url.path.startswith("/v1/"):
            return refusal(401, "This needs a key." if given is None else "The key is not known.")
        if request.method == "POST":
            if turn.delays:
                await asyncio.sleep(turn.delays.pop(0))
            if turn.failures:
                status, body = turn.failures.pop(0)
                return body if isinstance(body, Response) else JSONResponse(body, status)
        response = await call_next(request)
        if request.url.path != "/docs":
            response.headers["content-security-policy"] = POLICY
        return response

    @app.get("/")
    def page() -> FileResponse:
        return FileResponse(CONSOLE / "index.html")

    @app.get("/console/{name}")
    def file(name: str) -> FileResponse:
        return FileResponse(CONSOLE / name)

    @app.get("/v1/model")
    def model() -> dict[str, Any]:
        return {
            "name": MODEL,
            "version": VERSION,
            "description": "Stars of a restaurant review from four concepts.",
            "backbone": {"name": "sentence-transformers/all-MiniLM-L6-v2"},
            "concepts": [{"name": name, "values": VALUES} for name in WEIGHTS],
            "labels": LABELS,
            "branch_density": 0.31,
            "precision": "int8",
            "max_tokens": 512,
            "evaluation": {"dev": {"concept": {"accuracy": 0.881}, "label": {"accuracy": 0.684}}},
        }

    @app.post("/v1/predict")
    def predict(request: PredictRequest) -> Response:
        turn.requests.append(("predict", request.model_dump()))
        predictions: list[Prediction | PredictionFailure] = []
        for at, item in enumerate(request.inputs):
            text = item.text if isinstance(item, TextInput) else item
            if not text.strip():
                empty = ErrorBody(type="invalid_input", message=f"Input {at}: the text is empty; send a word.")
                predictions.append(PredictionFailure(id=str(at), error=empty))
                continue
            said = answer(text, {}, list(request.explain))
            predictions.append(Prediction(id=str(at), **dict(said)))
        body = PredictResponse(model=MODEL, version=VERSION, predictions=predictions)
        return JSONResponse(body.model_dump(mode="json"))

    @app.post("/v1/intervene")
    def correct(request: InterveneRequest) -> Response:
        turn.requests.append(("intervene", request.model_dump()))
        answers: list[InterventionAnswer | InterventionFailure] = []
        for at, item in enumerate(request.inputs):
            outcome = intervene(item, turn.reached)
            number = len(turn.ledger) + 1
            made = f"019b8e3c-7a10-7c4e-9d52-{number:012d}"
            turn.ledger.append(
                InterventionRecord(
                    id=made,
                    created_at=datetime(2026, 1, 5, 12, tzinfo=UTC) + timedelta(minutes=number),
                    who="anonymous",
                    model=MODEL,
                    version=VERSION,
                    mask_version=VERSION,
                    text=item.text,
                    text_sha256=hashlib.sha256(item.text.encode()).hexdigest(),
                    note=item.note,
                    outcome=outcome,
                )
            )
            answers.append(InterventionAnswer(id=made, input_id=str(at), **dict(outcome)))
        body = InterveneResponse(model=MODEL, version=VERSION, interventions=answers)
        return JSONResponse(body.model_dump(mode="json"))

    @app.get("/v1/interventions")
    def interventions(after: str | None = None, limit: int = 50) -> InterventionPage:
        newest = sorted(turn.ledger, key=lambda record: record.id, reverse=True)
        rest = [record for record in newest if after is None or record.id < after]
        page = rest[:limit]
        return InterventionPage(interventions=page, next=page[-1].id if len(rest) > limit else None)

    return app
