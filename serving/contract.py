"""The HTTP interface's messages, as pydantic models: what a client sends and what it gets back."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, FailFast, Field, StringConstraints

from sparsecbm.bundle import Backbone, Concept, LayerDensity, Layout

Explain = Literal["concepts", "tokens", "subnetwork"]
Level = Literal["concept", "mask"]
UnitKind = Literal["head", "neuron"]


class Message(BaseModel):
    """Base of requests: an unknown field is an error, never ignored.

    Lists and dicts fail at their first mistake: a body of millions of them would cost seconds and gigabytes.
    """

    model_config = ConfigDict(extra="forbid", strict=True)


class TextInput(Message):
    id: Annotated[str, StringConstraints(min_length=1, max_length=128)] | None = Field(
        default=None, description="Echoed in the answer; by default the input's position."
    )
    text: str = Field(description="The text to classify.", examples=["Great pasta, but the waiter was rude."])


class PredictRequest(Message):
    inputs: Annotated[list[str | TextInput], FailFast()] = Field(
        min_length=1,
        description="Texts, or objects with an id and a text.",
        examples=[["Great pasta, but the waiter was rude."]],
    )
    explain: Annotated[list[Explain], FailFast()] = Field(
        default=["concepts"],
        description="Levels of explanation; 'concepts' is always given.",
        examples=[["concepts", "tokens", "subnetwork"]],
    )


class CorrectionInput(TextInput):
    corrections: Annotated[dict[str, str], FailFast()] = Field(
        min_length=1,
        description="What each concept should be: concept name to value.",
        examples=[{"service": "Negative"}],
    )
    level: Level = Field(
        default="concept",
        description="'concept' replaces the activation; 'mask' edits the concept's subnetwork.",
    )
    note: Annotated[str, StringConstraints(max_length=2000)] | None = Field(
        default=None, description="Why, in the corrector's words."
    )


class InterveneRequest(Message):
    inputs: Annotated[list[CorrectionInput], FailFast()] = Field(min_length=1)
    record: bool = Field(default=True, description="Whether to keep the interventions in the ledger.")


class LabelAnswer(BaseModel):
    value: str = Field(examples=["3"])
    probability: float = Field(examples=[0.61])


class TokenScore(BaseModel):
    text: str = Field(description="The token as it stands in the text.", examples=["rude"])
    start: int = Field(description="First character's offset in the text.", examples=[32])
    end: int = Field(description="Offset after the last character.", examples=[36])
    score: float = Field(
        description="How far the token speaks for (+) or against (-) the concept's value.", examples=[0.83]
    )


class UnitScore(BaseModel):
    layer: int = Field(description="Layer of the backbone, from 0.", examples=[4])
    kind: UnitKind = Field(description="Attention head or feed-forward neuron.", examples=["head"])
    index: int = Field(description="Position of the unit in its layer, from 0.", examples=[7])
    score: float = Field(
        description="How far the unit speaks for (+) or against (-) the concept's value.", examples=[0.12]
    )


class Subnetwork(BaseModel):
    density: float = Field(description="Share of branch units that the concept's mask keeps.", examples=[0.31])
    units: list[UnitScore] = Field(description="The units that carried the value most, strongest first.")


class ConceptAnswer(BaseModel):
    name: str = Field(examples=["service"])
    value: str = Field(examples=["Negative"])
    probability: float = Field(examples=[0.97])
    probabilities: dict[str, float] = Field(examples=[{"Negative": 0.97, "Positive": 0.02, "unknown": 0.01}])
    contributions: dict[str, float] = Field(
        description="Share of each label's logit; summed over concepts, plus the bias, it is the logit.",
        examples=[{"1": 0.4, "5": -0.7}],
    )
    corrected: bool = Field(default=False, description="Whether a human set this concept's value.")
    tokens: list[TokenScore] | None = Field(default=None, description="With explain 'tokens'.")
    subnetwork: Subnetwork | None = Field(default=None, description="With explain 'subnetwork'.")


class AskNext(BaseModel):
    concept: str = Field(examples=["ambiance"])
    gain: float = Field(
        description="Expected change of the label's distribution (total variation) if a human set the concept.",
        examples=[0.08],
    )


class Answer(BaseModel):
    """What the model says of one text."""

    label: LabelAnswer
    probabilities: dict[str, float] = Field(examples=[{"1": 0.02, "3": 0.61}])
    concepts: list[ConceptAnswer]
    ask_next: list[AskNext] = Field(description="Concepts ranked by what asking a human is expected to change.")
    truncated: bool = Field(description="Whether the text was longer than the model reads.")


class _Identified(BaseModel):
    id: str = Field(description="The input's id, or its position in the request.", examples=["0"])


class Prediction(Answer, _Identified):  # the id comes first in JSON
    pass


class PredictResponse(BaseModel):
    model: str = Field(examples=["restaurant-reviews"])
    version: str = Field(description="The bundle's version: a hash of its content.", examples=["3f9c0a51d2e47b86"])
    predictions: list[Prediction]


class Flipped(BaseModel):
    label: bool
    concepts: list[str] = Field(description="Concepts whose value differs after the intervention.")


class Edit(BaseModel):
    concept: str
    layer: int
    kind: UnitKind
    index: int
    change: Literal["dropped", "grown"]


class Outcome(BaseModel):
    """One intervention, before and after, as the engine computes it."""

    level: Level
    corrections: dict[str, str]
    reached: bool = Field(description="Whether every corrected concept has the value asked for afterwards.")
    before: Answer
    after: Answer
    flipped: Flipped
    edits: list[Edit] = Field(description="Units dropped from and grown into masks; empty at level 'concept'.")


class _Recorded(BaseModel):
    id: str | None = Field(description="Id in the ledger, or null if it was not recorded.")
    input_id: str = Field(description="The input's id, or its position in the request.")


class InterventionAnswer(Outcome, _Recorded):
    pass


class InterveneResponse(BaseModel):
    model: str
    version: str
    interventions: list[InterventionAnswer]


class InterventionRecord(BaseModel):
    """An intervention as the ledger keeps it."""

    id: str
    created_at: datetime = Field(description="When it was recorded, in UTC.")
    who: str = Field(description="Name of the corrector's key, or 'anonymous'.", examples=["anonymous"])
    model: str
    version: str
    mask_version: str = Field(description="Version of the masks that answered.", examples=["3f9c0a51d2e47b86"])
    text: str | None = Field(description="The text, or null where the server keeps no texts (store_texts).")
    text_sha256: str = Field(description="SHA-256 of the text in UTF-8, in hex.")
    note: str | None
    outcome: Outcome


class InterventionPage(BaseModel):
    interventions: list[InterventionRecord]
    next: str | None = Field(description="Pass as 'after' to get the next page; null on the last.")


class ErrorBody(BaseModel):
    type: str = Field(examples=["invalid_input"])
    message: str = Field(examples=["Input 0: the text is empty; send at least one character that is not a space."])
    detail: Any = None


class ErrorResponse(BaseModel):
    error: ErrorBody


class Limits(BaseModel):
    """What one request may hold."""

    inputs: int
    text_chars: int
    body_bytes: int


class ModelCard(BaseModel):
    """What the served bundle says of itself."""

    name: str = Field(examples=["restaurant-reviews"])
    version: str = Field(examples=["3f9c0a51d2e47b86"])
    description: str
    backbone: Backbone
    concepts: list[Concept]
    labels: list[str] = Field(examples=[["1", "2", "3", "4", "5"]])
    label_bias: dict[str, float] = Field(
        description="Each label's logit before any concept contributes.", examples=[{"1": -0.2, "5": 0.1}]
    )
    layout: Layout
    density: dict[str, list[LayerDensity]] = Field(description="Share of units kept, by concept and layer.")
    branch_density: float = Field(description="Share of branch units kept, over all concepts.", examples=[0.31])
    overlap: dict[str, dict[str, float]] = Field(description="How far two concepts' masks keep the same units.")
    precision: str = Field(examples=["int8"])
    max_tokens: int = Field(description="Tokens that the model reads of a text.", examples=[128])
    evaluation: dict[str, Any]
    calibration: dict[str, Any]
    parity: dict[str, Any]
    bytes: int = Field(description="Size of the bundle.")
    files: dict[str, int] = Field(description="Size of each file, in bytes.")
    limits: Limits


class Health(BaseModel):
    status: Literal["alive", "ready"]


class Readiness(Health):
    ledger: Literal["up", "away"] = Field(
        description="Whether corrections can be recorded; predictions are answered either way."
    )
