"""The Open Inference Protocol's messages (version 2, REST): texts as a tensor in, answers as tensors out.

The protocol: https://github.com/kserve/open-inference-protocol. Its binary tensor data extension is not part of this.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, FailFast, Field, StringConstraints

from serving.contract import Answer, Message
from sparsecbm.bundle import Manifest
from sparsecbm.errors import InputError

OutputName = Literal["label", "probabilities", "concepts", "concept_probabilities"]
Parameters = dict[str, bool | int | float | str]

_PARAMETERS = Field(default=None, description="The protocol's parameters; none is known here.", examples=[{}])


class ProtocolError(BaseModel):
    """An error in the protocol's shape."""

    error: str = Field(
        description="A sentence that says what was wrong, and what would be right.",
        examples=["Input 0: the text is empty; send at least one character that is not a space."],
    )


class InputTensor(Message):
    """The texts to classify."""

    name: Literal["text"] = Field(description="The one input's name.", examples=["text"])
    shape: Annotated[list[Annotated[int, Field(ge=1)]], FailFast()] = Field(
        min_length=1, max_length=2, description="[texts] or [texts, 1].", examples=[[1]]
    )
    datatype: Literal["BYTES"] = Field(description="Of texts.", examples=["BYTES"])
    parameters: Parameters | None = _PARAMETERS
    data: Annotated[list[str | tuple[str]], FailFast()] = Field(
        min_length=1,
        description="The texts, in a list or, as the shape has it, in lists of one.",
        examples=[["Great pasta, but the waiter was rude."]],
    )

    def texts(self) -> list[str]:
        """The texts, one after another.

        Raises:
            InputError: they are not of the tensor's shape.
        """
        texts = [item for item in self.data if isinstance(item, str)]
        rows = [item[0] for item in self.data if not isinstance(item, str)]
        if self.shape == [len(texts)] and not rows:
            return texts
        if self.shape == [len(texts or rows), 1] and not (texts and rows):
            return texts or rows
        raise InputError(
            f"The data of tensor 'text' are not of its shape {self.shape}: give one text for each of its places."
        )


class RequestedOutput(Message):
    """An output to answer with."""

    name: OutputName = Field(description="Its name.", examples=["label"])
    parameters: Parameters | None = _PARAMETERS


class InferRequest(Message):
    """Texts to classify, and what to say of them."""

    id: Annotated[str, StringConstraints(max_length=128)] | None = Field(
        default=None, description="Echoed in the answer.", examples=["42"]
    )
    parameters: Parameters | None = _PARAMETERS
    inputs: Annotated[list[InputTensor], FailFast()] = Field(
        min_length=1, max_length=1, description="The one input, 'text'."
    )
    outputs: Annotated[list[RequestedOutput], FailFast()] = Field(
        default=[], description="The outputs to answer with, in their order; all by default."
    )


class OutputTensor(BaseModel):
    """One output, for all texts of the request."""

    name: OutputName = Field(description="Its name.", examples=["label"])
    shape: list[int] = Field(description="Texts first.", examples=[[1]])
    datatype: Literal["BYTES", "FP32"] = Field(description="Of its data.", examples=["BYTES"])
    data: list[str] | list[float] = Field(description="Flat, in row-major order.", examples=[["3"]])


class InferResponse(BaseModel):
    """What the model says of the texts."""

    model_name: str = Field(description="Name of the model that answered.", examples=["restaurant-reviews"])
    model_version: str = Field(description="Its version.", examples=["3f9c0a51d2e47b86"])
    id: str | None = Field(default=None, description="The request's id, if it has one.", examples=["42"])
    outputs: list[OutputTensor] = Field(description="The outputs that were asked for.")


class TensorMetadata(BaseModel):
    """A tensor that the model takes or gives."""

    name: str = Field(description="Its name.", examples=["probabilities"])
    datatype: str = Field(description="Of its data.", examples=["FP32"])
    shape: list[int] = Field(description="-1 stands for the number of texts.", examples=[[-1, 5]])
    parameters: dict[str, str] | None = Field(
        default=None,
        description="What its places stand for, as JSON: 'labels', 'concepts' and 'values' by concept.",
        examples=[{"labels": '["1", "2", "3", "4", "5"]'}],
    )


class ModelMetadata(BaseModel):
    """The model, in the protocol's words."""

    name: str = Field(description="Its name.", examples=["restaurant-reviews"])
    versions: list[str] = Field(description="The versions that are served.", examples=[["3f9c0a51d2e47b86"]])
    platform: str = Field(description="What its graphs are written in.", examples=["onnx_onnxv1"])
    inputs: list[TensorMetadata] = Field(description="What it takes.")
    outputs: list[TensorMetadata] = Field(description="What it gives.")


class ServerMetadata(BaseModel):
    """The server, in the protocol's words."""

    name: str = Field(description="The server's name.", examples=["sparsecbm"])
    version: str = Field(description="Its version.", examples=["0.1.0"])
    extensions: list[str] = Field(description="Extensions of the protocol that it has.", examples=[[]])


class Live(BaseModel):
    """Whether the server lives."""

    live: Literal[True] = Field(description="It does, or it would not answer.", examples=[True])


class Ready(BaseModel):
    """Whether inference is answered."""

    ready: Literal[True] = Field(description="It is; an error says that it isn't.", examples=[True])


class ModelReady(Ready):
    """Whether a model answers."""

    name: str = Field(description="The model's name.", examples=["restaurant-reviews"])


@dataclass(frozen=True, slots=True)
class Output:
    """An output as the model gives it: its row's shape, and how to read a row off an answer."""

    datatype: Literal["BYTES", "FP32"]
    shape: list[int]
    parameters: dict[str, str] | None
    row: Callable[[Answer], Sequence[Any]]


class Outputs:
    """The outputs of one model, by name.

    A concept with fewer values than another has probabilities of 0 in the places left over.
    """

    def __init__(self, manifest: Manifest) -> None:
        concepts = [concept.name for concept in manifest.concepts]
        most = max(len(concept.values) for concept in manifest.concepts)
        labels = {"labels": json.dumps(manifest.labels)}
        names = {"concepts": json.dumps(concepts)}
        values = {"values": json.dumps({concept.name: concept.values for concept in manifest.concepts})}
        padding = {concept.name: [0.0] * (most - len(concept.values)) for concept in manifest.concepts}
        self._outputs: dict[OutputName, Output] = {
            "label": Output("BYTES", [], None, lambda answer: [answer.label.value]),
            "probabilities": Output(
                "FP32", [len(manifest.labels)], labels, lambda answer: [*answer.probabilities.values()]
            ),
            "concepts": Output(
                "BYTES", [len(concepts)], names, lambda answer: [concept.value for concept in answer.concepts]
            ),
            "concept_probabilities": Output(
                "FP32",
                [len(concepts), most],
                names | values,
                lambda answer: [
                    probability
                    for concept in answer.concepts
                    for probability in (*concept.probabilities.values(), *padding[concept.name])
                ],
            ),
        }

    def tensors(self, answers: Sequence[Answer], asked: Sequence[RequestedOutput]) -> list[OutputTensor]:
        """Answers as tensors: those asked for, or all."""
        names = [output.name for output in asked] or [*self._outputs]
        return [
            OutputTensor.model_construct(
                name=name,
                shape=[len(answers), *self._outputs[name].shape],
                datatype=self._outputs[name].datatype,
                data=[value for answer in answers for value in self._outputs[name].row(answer)],
            )
            for name in names
        ]

    def metadata(self) -> list[TensorMetadata]:
        """The outputs, described."""
        return [
            TensorMetadata(name=name, datatype=output.datatype, shape=[-1, *output.shape], parameters=output.parameters)
            for name, output in self._outputs.items()
        ]
