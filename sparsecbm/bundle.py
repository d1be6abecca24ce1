"""The bundle: a folder that holds one exported model, checked before anything in it is used."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from sparsecbm.errors import BundleError

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"

Name = Annotated[str, Field(min_length=1, max_length=128)]
Precision = Literal["fp32", "int8"]
Granularity = Literal["units", "weights"]


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
    layers: int = Field(ge=1, description="Layers.", examples=[6])
    hidden: int = Field(ge=1, description="Width of a token's vector.", examples=[384])
    heads: int = Field(ge=1, description="Attention heads per layer.", examples=[12])
    neurons: int = Field(ge=1, description="Feed-forward neurons per layer.", examples=[1536])
    pad_id: int = Field(ge=0, description="Id of the token that pads.", examples=[0])


class Layout(_Part):
    """Which layers are the shared trunk and which are masked branches; counts of units per layer."""

    trunk: int = Field(ge=0, description="Lower layers that all concepts share.", examples=[3])
    branch: int = Field(ge=1, description="Upper layers that each concept has its own mask over.", examples=[3])
    heads: int = Field(ge=1, description="Attention heads per layer.", examples=[12])
    neurons: int = Field(ge=1, description="Feed-forward neurons per layer.", examples=[1536])


class Head(_Part):
    """The linear label head over all concepts' activations.

    ``weight`` is [labels, concepts, width], ``bias`` is [labels]. Concept k contributes
    ``weight[label, k] @ activation[k]`` to a label's logit.
    """

    width: int = Field(ge=1)
    weight: list[list[list[float]]]
    bias: list[float]


class LayerDensity(_Part):
    """Shares that a concept's mask keeps of one layer.

    Where single weights are pruned, ``heads`` is of the attention's weights and ``neurons`` of the feed-forward
    network's.
    """

    layer: int = Field(description="Layer of the backbone, from 0.", examples=[4])
    heads: float = Field(description="Share of the attention heads kept.", examples=[0.42])
    neurons: float = Field(description="Share of the feed-forward neurons kept.", examples=[0.31])


class FileEntry(_Part):
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class Manifest(_Part):
    """What a bundle says of itself; see the design of each field in ``docs/bundle.md``."""

    schema_version: Literal[1]
    name: Name
    version: str = Field(pattern=r"^[0-9a-f]{16}$")
    description: str = ""
    backbone: Backbone
    concepts: list[Concept] = Field(min_length=1)
    labels: list[Name] = Field(min_length=2)
    layout: Layout
    head: Head
    density: dict[str, list[LayerDensity]]
    concept_density: dict[str, float] = {}
    branch_density: float = Field(gt=0, le=1)
    trunk_density: float = Field(default=1, gt=0, le=1)
    granularity: Granularity = "units"
    notes: list[str] = []
    overlap: dict[str, dict[str, float]]
    precision: Precision
    max_tokens: int = Field(ge=4)
    evaluation: dict[str, Any] = {}
    calibration: dict[str, Any] = {}
    parity: dict[str, Any] = {}
    files: dict[str, FileEntry]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [concept.name for concept in self.concepts]
        if len(set(names)) != len(names):
            raise ValueError(f"concept names must differ, got {names}")
        for concept in self.concepts:
            if len(set(concept.values)) != len(concept.values):
                raise ValueError(f"values of concept {concept.name!r} must differ, got {concept.values}")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels must differ, got {self.labels}")
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
        if set(self.density) != set(names):
            raise ValueError("density must have exactly the concepts as keys")
        if self.granularity == "weights" and list(self.concept_density) != names:
            raise ValueError("concept_density must have exactly the concepts as keys, in their order")
        for file in self.files:
            path = PurePosixPath(file)
            if path.is_absolute() or ".." in path.parts or len(path.parts) != 1 or "\\" in file:
                raise ValueError(f"files must lie in the bundle's folder itself, got {file!r}")
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
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise BundleError(f"{path} is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise BundleError(f"{path} must hold a JSON object, not {type(content).__name__}.")
    if content.get("schema_version") != SCHEMA_VERSION:
        raise BundleError(
            f"{path} has schema version {content.get('schema_version')!r}; this program reads version "
            f"{SCHEMA_VERSION}. Export the checkpoint again with this program."
        )
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the manifest"
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


def verify_files(folder: Path, manifest: Manifest) -> None:
    """Compares every file of the bundle with the size and sha256 in its manifest.

    Raises:
        BundleError: a file is missing, is a link out of the folder, or differs by as little as a byte.
    """
    root = folder.resolve()
    for name, expected in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise BundleError(f"{folder} lacks {name}, which its manifest lists.")
        if path.resolve().parent != root:
            raise BundleError(f"{path} is a link to outside the bundle; copy the file itself there.")
        size = path.stat().st_size
        if size != expected.bytes:
            raise BundleError(f"{path} has {size} bytes, but the manifest says {expected.bytes}.")
        found = file_entry(path)
        if found.sha256 != expected.sha256:
            raise BundleError(
                f"{path} differs from the exported file: sha256 {found.sha256[:12]}… instead of "
                f"{expected.sha256[:12]}…. Copy the bundle again or export it again."
            )


def read_bundle(folder: Path | str) -> Manifest:
    """Reads a bundle's manifest and checks every file against it.

    Raises:
        BundleError: with the reason why the bundle is refused.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    verify_files(folder, manifest)
    return manifest


def write_manifest(folder: Path, fields: dict[str, Any]) -> Manifest:
    """Hashes the folder's files, derives the version, and writes the manifest.

    Args:
        folder: holds every file of the bundle but the manifest.
        fields: the manifest's fields, without ``schema_version``, ``version`` and ``files``.
    """
    files = {path.name: file_entry(path).model_dump() for path in sorted(folder.iterdir()) if path.name != MANIFEST}
    draft = Manifest.model_validate(
        {**fields, "schema_version": SCHEMA_VERSION, "version": "0" * 16, "files": files}
    ).model_dump(mode="json")
    draft["version"] = content_version(draft)
    (folder / MANIFEST).write_text(json.dumps(draft, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return Manifest.model_validate(draft)
