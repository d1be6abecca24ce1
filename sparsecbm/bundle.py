"""The bundle: a folder that holds one exported model, checked before anything in it is used."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from reprlib import repr as short
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator, with_config
from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from sparsecbm.errors import BundleError

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"

Name = Annotated[str, Field(min_length=1, max_length=128)]
Count = Annotated[int, Field(ge=1, le=2**24)]
Share = Annotated[float, Field(ge=0, le=1)]
Precision = Literal["fp32", "int8", "fp16", "bf16"]
Format = Literal["onnx", "torchscript"]
Granularity = Literal["units", "weights"]

# Every file of a bundle but the manifest, and the precisions that its graphs can have.
FILES: dict[Format, tuple[str, ...]] = {
    "onnx": ("predict.onnx", "explain.onnx", "weights.bin", "masks.safetensors", "tokenizer.json"),
    "torchscript": ("predict.ts", "explain.ts", "masks.safetensors", "tokenizer.json"),
}
PRECISIONS: dict[Format, tuple[Precision, ...]] = {
    "onnx": ("int8", "fp32", "fp16"),
    "torchscript": ("fp32", "fp16", "bf16"),
}
# What the two graphs of any format take and give.
PREDICT_INPUTS = ("input_ids", "attention_mask")
PREDICT_OUTPUTS = ("logits", "vectors")
EXPLAIN_INPUTS = (*PREDICT_INPUTS, "head_gates", "neuron_gates", "value_weights")
EXPLAIN_OUTPUTS = (*PREDICT_OUTPUTS, "token_scores", "head_gradients", "neuron_gradients")
_MANIFEST_BYTES = 8 * 2**20  # a head of 400,000 weights; parsed, it takes some 200 MB at worst
_FILE_BYTES = 2**36
_DEPTH = 32


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Concept(_Part):
    """A human concept and the values that it can take, in the order of the model's outputs."""

    name: Name = Field(description="The concept's name.", examples=["service"])
    values: list[Name] = Field(
        min_length=2, description="The values that it can take.", examples=[["Negative", "Positive", "unknown"]]
    )


class Backbone(_Part):
    """The language model that the concepts share."""

    name: str = Field(description="Where it comes from.", examples=["sentence-transformers/all-MiniLM-L6-v2"])
    family: str = Field(description="Its architecture.", examples=["bert"])
    layers: Count = Field(description="Layers.", examples=[6])
    hidden: Count = Field(description="Width of a token's vector.", examples=[384])
    heads: Count = Field(description="Attention heads per layer.", examples=[12])
    neurons: Count = Field(description="Feed-forward neurons per layer.", examples=[1536])
    pad_id: int = Field(ge=0, lt=2**31, description="Id of the token that pads.", examples=[0])


class Layout(_Part):
    """Which layers are the shared trunk and which are masked branches; counts of units per layer."""

    trunk: int = Field(ge=0, le=2**24, description="Lower layers that all concepts share.", examples=[3])
    branch: Count = Field(description="Upper layers that each concept has its own mask over.", examples=[3])
    heads: Count = Field(description="Attention heads per layer.", examples=[12])
    neurons: Count = Field(description="Feed-forward neurons per layer.", examples=[1536])


class Head(_Part):
    """The linear label head over all concepts' activations.

    ``weight`` is [labels, concepts, width], ``bias`` is [labels]. Concept k contributes
    ``weight[label, k] @ activation[k]`` to a label's logit.
    """

    width: Count
    weight: list[list[list[float]]]
    bias: list[float]


class LayerDensity(_Part):
    """Shares that a concept's mask keeps of one layer.

    Where single weights are pruned, ``heads`` is of the attention's weights and ``neurons`` of the feed-forward
    network's.
    """

    layer: int = Field(description="Layer of the backbone, from 0.", examples=[4])
    heads: Share = Field(description="Share of the attention heads kept.", examples=[0.42])
    neurons: Share = Field(description="Share of the feed-forward neurons kept.", examples=[0.31])


@with_config(ConfigDict(extra="allow"))
class Accuracy(TypedDict):
    """What every evaluation says of the concepts or the label; it may say more."""

    accuracy: float


@with_config(ConfigDict(extra="allow"))
class Figures(TypedDict):
    """An evaluation on one split; it may say more."""

    texts: int
    concept: Accuracy
    label: Accuracy


class FileEntry(_Part):
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0, le=_FILE_BYTES)


class Manifest(_Part):
    """What a bundle says of itself; see the design of each field in ``docs/bundle.md``."""

    schema_version: Literal[1]
    name: Name
    version: str = Field(pattern=r"^[0-9a-f]{16}$")
    description: str = ""
    format: Format = "onnx"
    backbone: Backbone
    concepts: list[Concept] = Field(min_length=1)
    labels: list[Name] = Field(min_length=2)
    layout: Layout
    head: Head
    density: dict[str, list[LayerDensity]]
    concept_density: dict[str, Share] = {}
    branch_density: float = Field(gt=0, le=1)
    trunk_density: float = Field(default=1, gt=0, le=1)
    granularity: Granularity = "units"
    notes: list[str] = []
    overlap: dict[str, dict[str, Share]]
    precision: Precision
    max_tokens: int = Field(ge=4, le=2**20)
    evaluation: dict[str, Figures] = {}
    calibration: dict[str, Any] = {}
    parity: dict[str, Any] = {}
    files: dict[str, FileEntry]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [concept.name for concept in self.concepts]
        if len(set(names)) != len(names):
            raise ValueError(f"concept names must differ, got {short(names)}")
        for concept in self.concepts:
            if len(set(concept.values)) != len(concept.values):
                raise ValueError(f"values of concept {concept.name!r} must differ, got {short(concept.values)}")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels must differ, got {short(self.labels)}")
        shape = (len(self.labels), len(self.concepts), self.head.width)
        rows = self.head.weight
        if len(rows) != shape[0] or any(
            len(row) != shape[1] or any(len(cell) != shape[2] for cell in row) for row in rows
        ):
            raise ValueError(f"head.weight must be [labels, concepts, width] = {list(shape)}")
        if len(self.head.bias) != shape[0]:
            raise ValueError(f"head.bias must have one value per label ({shape[0]}), got {len(self.head.bias)}")
        if self.layout.trunk + self.layout.branch != self.backbone.layers:
            raise ValueError("layout.trunk + layout.branch must be backbone.layers")
        if (self.layout.heads, self.layout.neurons) != (self.backbone.heads, self.backbone.neurons):
            raise ValueError("layout.heads and layout.neurons must be the backbone's")
        if set(self.density) != set(names):
            raise ValueError("density must have exactly the concepts as keys")
        if set(self.overlap) != set(names) or any(set(row) != set(names) for row in self.overlap.values()):
            raise ValueError("overlap must have exactly the concepts as keys, and so must each of its rows")
        if self.granularity == "weights" and list(self.concept_density) != names:
            raise ValueError("concept_density must have exactly the concepts as keys, in their order")
        if self.precision not in PRECISIONS[self.format]:
            raise ValueError(
                f"precision must be one of {', '.join(PRECISIONS[self.format])} in the format {self.format}, "
                f"got {self.precision}"
            )
        # Where units are pruned, a graph that leaves them out may explain.
        optional = {"attribute.onnx"} if (self.format, self.granularity) == ("onnx", "units") else set()
        if not set(FILES[self.format]) <= set(self.files) <= optional | set(FILES[self.format]):
            raise ValueError(
                f"files must be exactly {', '.join(FILES[self.format])} in the format {self.format}, "
                f"got {short(sorted(self.files))}"
            )
        return self


def content_version(manifest: dict[str, Any]) -> str:
    """First 16 hex digits of the sha256 over the manifest (version left out) with its files' hashes."""
    content = {key: value for key, value in manifest.items() if key != "version"}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def file_entry(path: Path) -> FileEntry:
    """Size and sha256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return FileEntry(sha256=digest, bytes=path.stat().st_size)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for key, value in pairs:
        if key in content:
            raise ValueError(f"the key {short(key)} stands twice in one object")
        content[key] = value
    return content


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{short(digits)} is not a finite number")
    return number


def _small(digits: str) -> int:
    if len(digits) > 18:
        raise ValueError(f"{short(digits)} is too large a number")
    return int(digits)


def _parse(path: Path) -> Any:
    """JSON of a bounded size and depth, whose keys are unique and whose numbers are finite."""
    if path.stat().st_size > _MANIFEST_BYTES:
        raise BundleError(f"{path} has {path.stat().st_size:,} bytes; a manifest has at most {_MANIFEST_BYTES:,}.")
    try:
        content = json.loads(
            path.read_text(encoding="utf-8"),
            object_pairs_hook=_unique,
            parse_float=_finite,
            parse_int=_small,
            parse_constant=_finite,
        )
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not JSON: {error}.") from error
    parts = [content]
    for _ in range(_DEPTH):
        groups = [part.values() if isinstance(part, dict) else part for part in parts if isinstance(part, dict | list)]
        parts = [part for group in groups for part in group]
    if parts:
        raise BundleError(f"{path} is nested more than {_DEPTH} levels deep.")
    return content


def read_manifest(folder: Path) -> Manifest:
    """Reads a bundle's manifest without looking at its other files.

    Raises:
        BundleError: no manifest there, or one that breaks the schema; says which field and why.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleError(
            f"{folder} is not a bundle: it has no {MANIFEST}. Make one with 'sparsecbm export CHECKPOINT {folder}'."
        )
    _refuse_link(path)
    content = _parse(path)
    if not isinstance(content, dict):
        raise BundleError(f"{path} must hold a JSON object, not {type(content).__name__}.")
    if content.get("schema_version") != SCHEMA_VERSION:
        raise BundleError(
            f"{path} has schema version {short(content.get('schema_version'))}; this program reads version "
            f"{SCHEMA_VERSION}. Export the checkpoint again with this program."
        )
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])[:200] or "the manifest"
        raise BundleError(f"{path} breaks the bundle's schema at {where}: {first['msg']}.") from error
    try:
        version = content_version(content)
    except UnicodeEncodeError as error:  # half a surrogate pair, which JSON can escape
        raise BundleError(f"{path} holds text that is not Unicode: {error}.") from error
    if version != manifest.version:
        raise BundleError(
            f"{path} was changed after its export: its content hashes to {version}, "
            f"but it says version {manifest.version}. Export the checkpoint again."
        )
    return manifest


def _refuse_link(path: Path) -> None:
    if path.resolve().parent != path.parent.resolve():
        raise BundleError(f"{path} is a link to outside the bundle; copy the file itself there.")


def verify_files(folder: Path, manifest: Manifest) -> None:
    """Compares every file of the bundle with the size and sha256 in its manifest.

    Raises:
        BundleError: a file is missing, is a link out of the folder, or differs by as little as a byte.
    """
    for name, expected in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise BundleError(f"{folder} lacks {name}, which its manifest lists.")
        _refuse_link(path)
        size = path.stat().st_size
        if size != expected.bytes:
            raise BundleError(f"{path} has {size} bytes, but the manifest says {expected.bytes}.")
    for name, expected in manifest.files.items():
        found = file_entry(folder / name)
        if found.sha256 != expected.sha256:
            raise BundleError(
                f"{folder / name} differs from the exported file: sha256 {found.sha256[:12]}… instead of "
                f"{expected.sha256[:12]}…. Copy the bundle again or export it again."
            )


def read_bundle(folder: Path | str) -> Manifest:
    """Reads a bundle's manifest and checks every file against it, and its graphs for what they hold.

    Raises:
        BundleError: with the reason why the bundle is refused.
    """
    folder = Path(folder)
    from sparsecbm.graph_check import check_archive, check_graph  # the schema alone needs no protobuf

    manifest = read_manifest(folder)
    verify_files(folder, manifest)
    for name in manifest.files:
        if name.endswith(".onnx"):
            check_graph(folder / name, folder / "weights.bin")
        elif name.endswith(".ts"):
            check_archive(folder / name)
    return manifest


def write_manifest(folder: Path, fields: dict[str, Any]) -> Manifest:
    """Hashes the folder's files, derives the version, and writes the manifest.

    Args:
        folder: holds every file of the bundle but the manifest.
        fields: the manifest's fields, without ``schema_version``, ``version`` and ``files``.

    Raises:
        ValidationError: the fields break the schema.
        BundleError: the manifest would be larger than one that can be read.
    """
    files = {path.name: file_entry(path).model_dump() for path in sorted(folder.iterdir()) if path.name != MANIFEST}
    draft = Manifest.model_validate(
        {**fields, "schema_version": SCHEMA_VERSION, "version": "0" * 16, "files": files}
    ).model_dump(mode="json")
    draft["version"] = content_version(draft)
    text = (json.dumps(draft, indent=1, ensure_ascii=False) + "\n").encode()
    if len(text) > _MANIFEST_BYTES:
        raise BundleError(f"The manifest would have {len(text):,} bytes; one has at most {_MANIFEST_BYTES:,}.")
    (folder / MANIFEST).write_bytes(text)
    return Manifest.model_validate(draft)
