"""The HTTP interface's messages, as pydantic models: what a client sends and what it gets back.

A request is refused as a whole where its form is wrong, as the schema describes it. Where an input is of the right form
but can't be answered (an empty text, an unknown concept), it fails alone: in its place the answer has an error, and the
others are answered as if it weren't there.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, FailFast, Field, SerializeAsAny, StringConstraints

from sparsecbm.bundle import Backbone, Concept, Granularity, LayerDensity, Layout

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
        default=None, description="Echoed in the answer; by default the input's position.", examples=["review-17"]
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
        examples=["mask"],
    )
    note: Annotated[str, StringConstraints(max_length=2000)] | None = Field(
        default=None, description="Why, in the corrector's words.", examples=["They let us stay."]
    )


class InterveneRequest(Message):
    inputs: Annotated[list[CorrectionInput], FailFast()] = Field(
        min_length=1,
        description="Texts with what their concepts should be.",
        examples=[[{"text": "Great pasta, but the waiter was rude.", "corrections": {"service": "Positive"}}]],
    )
    record: bool = Field(default=True, description="Whether to keep the interventions in the ledger.", examples=[True])


class ErrorBody(BaseModel):
    """What was wrong, and what would be right."""

    type: str = Field(description="The kind of error, for programs.", examples=["invalid_input"])
    message: str = Field(
        description="A sentence for people; it repeats nothing of a text.",
        examples=["Input 0: the text is empty; send at least one character that is not a space."],
    )
    detail: Any = Field(default=None, description="Facts for programs, by type, or null.", examples=[{"limit": 256}])


class ErrorResponse(BaseModel):
    """The one shape of every error outside of /v2."""

    error: ErrorBody = Field(description="What was wrong.")


class LabelAnswer(BaseModel):
    """The most probable label."""

    value: str = Field(description="One of the model's labels.", examples=["3"])
    probability: float = Field(description="Its probability.", examples=[0.61])


class TokenScore(BaseModel):
    """A token of the text, and what it says of one concept."""

    text: str = Field(description="The token as it stands in the text.", examples=["rude"])
    start: int = Field(description="First character's offset in the text.", examples=[32])
    end: int = Field(description="Offset after the last character.", examples=[36])
    score: float = Field(
        description="How far the token speaks for (+) or against (-) the concept's value.", examples=[0.83]
    )


class UnitScore(BaseModel):
    """A unit of the backbone, and what it says of one concept."""

    layer: int = Field(description="Layer of the backbone, from 0.", examples=[4])
    kind: UnitKind = Field(description="Attention head or feed-forward neuron.", examples=["head"])
    index: int = Field(description="Position of the unit in its layer, from 0.", examples=[7])
    score: float = Field(
        description="How far the unit speaks for (+) or against (-) the concept's value.", examples=[0.12]
    )


class Subnetwork(BaseModel):
    """The part of the backbone that a concept's mask keeps."""

    density: float = Field(description="Share of branch units that the concept's mask keeps.", examples=[0.31])
    units: list[UnitScore] = Field(description="The units that carried the value most, strongest first.")


class ConceptAnswer(BaseModel):
    """What the model says of one concept, and what that says of the label."""

    name: str = Field(description="One of the model's concepts.", examples=["service"])
    value: str = Field(description="Its most probable value.", examples=["Negative"])
    probability: float = Field(description="That value's probability.", examples=[0.97])
    probabilities: dict[str, float] = Field(
        description="Every value's probability.", examples=[{"Negative": 0.97, "Positive": 0.02, "unknown": 0.01}]
    )
    contributions: dict[str, float] = Field(
        description="Share of each label's logit; summed over concepts, plus the bias, it is the logit.",
        examples=[{"1": 0.4, "5": -0.7}],
    )
    corrected: bool = Field(default=False, description="Whether a human set this concept's value.", examples=[False])
    tokens: list[TokenScore] | None = Field(
        default=None, description="The text's tokens in its order, with explain 'tokens'; null without."
    )
    subnetwork: Subnetwork | None = Field(
        default=None, description="What carried the value, with explain 'subnetwork'; null without."
    )


class AskNext(BaseModel):
    """A concept, and what asking a human for it is worth."""

    concept: str = Field(description="One of the model's concepts.", examples=["ambiance"])
    gain: float = Field(
        description="Expected change of the label's distribution (total variation) if a human set the concept.",
        examples=[0.08],
    )


class Answer(BaseModel):
    """What the model says of one text."""

    label: LabelAnswer = Field(description="What the text is classified as.")
    probabilities: dict[str, float] = Field(description="Every label's probability.", examples=[{"1": 0.02, "3": 0.61}])
    concepts: list[ConceptAnswer] = Field(description="Every concept, in the model's order.")
    ask_next: list[AskNext] = Field(description="Concepts ranked by what asking a human is expected to change.")
    truncated: bool = Field(description="Whether the text was longer than the model reads.", examples=[False])


class _Identified(BaseModel):
    id: str = Field(description="The input's id, or its position in the request.", examples=["0"])


class Prediction(Answer, _Identified):  # the id comes first in JSON
    """The answer to one input."""


class PredictionFailure(_Identified):
    """In place of a prediction: why this input has none. The request's other inputs are answered."""

    error: ErrorBody = Field(description="What was wrong with the input.")


class _Served(BaseModel):
    model: str = Field(description="Name of the model that answered.", examples=["restaurant-reviews"])
    version: str = Field(description="The bundle's version: a hash of its content.", examples=["3f9c0a51d2e47b86"])


class PredictResponse(_Served):
    """One answer or failure per input, in the inputs' order."""

    # As any, since a union is serialised twice: once to find its member.
    predictions: list[SerializeAsAny[Prediction | PredictionFailure]] = Field(
        description="By input, in the request's order: its prediction, or its error."
    )


class Flipped(BaseModel):
    """What an intervention changed."""

    label: bool = Field(description="Whether the label differs after the intervention.", examples=[True])
    concepts: list[str] = Field(
        description="Concepts whose value differs after the intervention.", examples=[["service"]]
    )


class Edit(BaseModel):
    """One unit that was dropped from or grown into a concept's mask."""

    concept: str = Field(description="The concept whose mask was edited.", examples=["service"])
    layer: int = Field(description="Layer of the backbone, from 0.", examples=[4])
    kind: UnitKind = Field(description="Attention head or feed-forward neuron.", examples=["neuron"])
    index: int = Field(description="Position of the unit in its layer, from 0.", examples=[911])
    change: Literal["dropped", "grown"] = Field(description="What became of the unit.", examples=["dropped"])


class Outcome(BaseModel):
    """One intervention, before and after, as the engine computes it."""

    level: Level = Field(description="The level that it was made at.", examples=["mask"])
    corrections: dict[str, str] = Field(
        description="What each concept should be: concept name to value.", examples=[{"service": "Positive"}]
    )
    reached: bool = Field(
        description="Whether every corrected concept has the value asked for afterwards.", examples=[True]
    )
    before: Answer = Field(description="What the model said of the text.")
    after: Answer = Field(description="What it says with the correction.")
    flipped: Flipped = Field(description="What the correction changed.")
    edits: list[Edit] = Field(description="Units dropped from and grown into masks; empty at level 'concept'.")


class _Recorded(BaseModel):
    id: str | None = Field(
        description="Id in the ledger, or null if it was not recorded.",
        examples=["01a211e4-5645-7156-a2ab-59359c51ea5e"],
    )
    input_id: str = Field(description="The input's id, or its position in the request.", examples=["0"])


class InterventionAnswer(Outcome, _Recorded):
    """The answer to one correction."""


class InterventionFailure(BaseModel):
    """In place of an intervention: why this input has none. The request's other inputs are answered and recorded."""

    input_id: str = Field(description="The input's id, or its position in the request.", examples=["0"])
    error: ErrorBody = Field(description="What was wrong with the input.")


class InterveneResponse(_Served):
    """One answer or failure per input, in the inputs' order."""

    # As any, as in PredictResponse.
    interventions: list[SerializeAsAny[InterventionAnswer | InterventionFailure]] = Field(
        description="By input, in the request's order: its intervention, or its error."
    )


class InterventionRecord(_Served):
    """An intervention as the ledger keeps it."""

    id: str = Field(description="Its id, which sorts by time.", examples=["01a211e4-5645-7156-a2ab-59359c51ea5e"])
    created_at: datetime = Field(description="When it was recorded, in UTC.", examples=["2026-01-31T12:00:00Z"])
    who: str = Field(description="Name of the corrector's key, or 'anonymous'.", examples=["ada"])
    mask_version: str = Field(description="Version of the masks that answered.", examples=["3f9c0a51d2e47b86"])
    text: str | None = Field(
        description="The text that was corrected; null where the server keeps no texts.",
        examples=["Great pasta, but the waiter was rude."],
    )
    text_sha256: str = Field(
        description="SHA-256 of the text in UTF-8, in hex.",
        examples=["ac6ca5c5a0db8e0eaca8039779316a556465c67bedd656eea2a711780ee4ef82"],
    )
    note: str | None = Field(description="Why, in the corrector's words.", examples=["They let us stay."])
    outcome: Outcome = Field(description="Before and after.")


class InterventionPage(BaseModel):
    """A page of the ledger, newest first."""

    interventions: list[InterventionRecord] = Field(description="At most as many as were asked for.")
    next: str | None = Field(
        description="Pass as 'after' to get the next page; null on the last.", examples=["AaIR5FZFcVaiq1k1nFHqXg"]
    )


class Limits(BaseModel):
    """What one request may hold."""

    inputs: int = Field(description="Most inputs.", examples=[256])
    text_chars: int = Field(description="Longest text, in characters; a longer one fails alone.", examples=[20000])
    body_bytes: int = Field(description="Largest body, in bytes.", examples=[4194304])
    json_depth: int = Field(description="Deepest nesting of objects and lists in the body.", examples=[16])
    timeout_s: float = Field(description="Longest time that X-Request-Timeout may ask for, in seconds.", examples=[600])


class ModelCard(BaseModel):
    """What the served bundle says of itself."""

    name: str = Field(description="The model's name.", examples=["restaurant-reviews"])
    version: str = Field(description="The bundle's version: a hash of its content.", examples=["3f9c0a51d2e47b86"])
    description: str = Field(description="What the model is for.", examples=["Reads a restaurant review."])
    backbone: Backbone = Field(description="What it was trained from.")
    concepts: list[Concept] = Field(description="The concepts, in the order of every answer.")
    labels: list[str] = Field(description="The labels.", examples=[["1", "2", "3", "4", "5"]])
    label_bias: dict[str, float] = Field(
        description="Each label's logit before any concept contributes.", examples=[{"1": -0.2, "5": 0.1}]
    )
    layout: Layout = Field(description="How the layers are split into trunk and branches.")
    density: dict[str, list[LayerDensity]] = Field(
        description="Share of units kept, by concept and layer.",
        examples=[{"service": [{"layer": 3, "heads": 0.42, "neurons": 0.31}]}],
    )
    concept_density: dict[str, float] = Field(
        description="Share of branch units, or weights, kept by each concept.", examples=[{"service": 0.31}]
    )
    branch_density: float = Field(description="Share of branch units kept, over all concepts.", examples=[0.31])
    trunk_density: float = Field(description="Share of the shared layers' units that is kept.", examples=[1.0])
    granularity: Granularity = Field(description="Whether masks are over units or single weights.", examples=["units"])
    notes: list[str] = Field(description="What a reader of the figures should know.", examples=[[]])
    overlap: dict[str, dict[str, float]] = Field(
        description="How far two concepts' masks keep the same units (Jaccard index).",
        examples=[{"food": {"service": 0.21}}],
    )
    precision: str = Field(description="Of the graphs: int8 or fp32.", examples=["int8"])
    max_tokens: int = Field(description="Tokens that the model reads of a text.", examples=[128])
    evaluation: dict[str, Any] = Field(
        description="Figures of the exported graph, by split.", examples=[{"dev": {"label": {"accuracy": 0.7567}}}]
    )
    calibration: dict[str, Any] = Field(
        description="Expected calibration error of label and concepts, by split.", examples=[{"dev": {"label": 0.032}}]
    )
    parity: dict[str, Any] = Field(
        description="How far the export answers as its checkpoint does, by split.",
        examples=[{"dev": {"label_agreement": 0.9761}}],
    )
    bytes: int = Field(description="Size of the bundle.", examples=[24500000])
    files: dict[str, int] = Field(description="Size of each file, in bytes.", examples=[{"predict.onnx": 24000000}])
    limits: Limits = Field(description="The limits of one request.")


class Health(BaseModel):
    """Whether the server lives, or is ready."""

    status: Literal["alive", "ready"] = Field(description="What it was asked for.", examples=["ready"])


class Readiness(Health):
    """Whether the server is ready, and its ledger."""

    ledger: Literal["up", "away"] = Field(
        description="Whether corrections can be recorded; predictions are answered either way.", examples=["up"]
    )
