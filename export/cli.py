"""The commands of the export: ``sparsecbm export`` and ``sparsecbm inspect``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True)


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="Folder that 'sparsecbm train' wrote.")],
    bundle: Annotated[Path, typer.Argument(help="Folder for the bundle; a bundle that is there is replaced.")],
    data: Annotated[
        str, typer.Option(help="Labelled texts to check the export on: 'cebab', 'cebab:FOLDER', or a YAML.")
    ],
    split: Annotated[str, typer.Option(help="Split of the data.")] = "dev",
    format: Annotated[str, typer.Option(help="onnx or torchscript, which needs torch to be served.")] = "onnx",
    precision: Annotated[
        str | None,
        typer.Option(help="int8 (of onnx; its default), fp32 (torchscript's default), or for GPUs fp16, bf16."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The model's name; by default the checkpoint's.")] = None,
    description: Annotated[str, typer.Option(help="One sentence for the model's card.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the parity figures as JSON.")] = False,
) -> None:
    """Export a checkpoint to a bundle, and check that it answers as the checkpoint does."""
    from rich.console import Console
    from rich.text import Text

    from export.exporter import export_bundle
    from sparsecbm import checkpoint as checkpoints
    from sparsecbm import data as datasets
    from sparsecbm.bundle import PRECISIONS
    from sparsecbm.errors import BundleError

    if format not in PRECISIONS:
        raise BundleError(f"format must be onnx or torchscript, not {format!r}.")
    precision = precision or PRECISIONS[format][0]
    console = Console(stderr=True, markup=False, emoji=False)
    with console.status("exporting and checking"):
        manifest = export_bundle(
            checkpoints.load(checkpoint),
            bundle,
            datasets.load(data, split),
            split,
            precision,  # type: ignore[arg-type]
            name,
            description,
            format,
        )
    parity = manifest.parity[split]
    size = sum(entry.bytes for entry in manifest.files.values())
    if as_json:
        print(json.dumps({"bundle": str(bundle), "version": manifest.version, "bytes": size, "parity": parity}))
        return
    told = (
        f": {manifest.name} {manifest.version}, {precision}, {size / 1e6:.1f} MB; on "
        f"{parity['texts']} texts {parity['value_agreement']:.1%} of concept values and "
        f"{parity['label_agreement']:.1%} of labels are the checkpoint's; concept accuracy "
        f"{parity['concept_accuracy']['checkpoint']:.3f} → {parity['concept_accuracy']['export']:.3f}, label "
        f"{parity['label_accuracy']['checkpoint']:.3f} → {parity['label_accuracy']['export']:.3f}. "
        f"Next: sparsecbm serve {bundle}"
    )
    console.print(Text.assemble((str(bundle), "bold"), told))
    for note in manifest.notes:
        console.print(note)


@app.command()
def inspect(
    bundle: Annotated[Path, typer.Argument(help="A bundle's folder.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole manifest.")] = False,
) -> None:
    """Check a bundle's files and show its card: concepts, densities, overlaps, figures, sizes."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from sparsecbm.bundle import read_bundle

    manifest = read_bundle(bundle)
    if as_json:
        print(manifest.model_dump_json())
        return
    console = Console(markup=False, emoji=False)  # names may hold brackets
    told = (
        f" {manifest.version}, {manifest.format}, {manifest.precision}; {manifest.backbone.name}, "
        f"{manifest.layout.trunk} shared and {manifest.layout.branch} masked layers, branch density "
        f"{manifest.branch_density:.3f} of {manifest.granularity}, trunk density {manifest.trunk_density:.3f}; "
        f"labels {', '.join(manifest.labels)}; reads {manifest.max_tokens} tokens"
    )
    console.print(Text.assemble((manifest.name, "bold"), told))
    if manifest.description:
        console.print(manifest.description)
    for note in manifest.notes:
        console.print(note)
    over = ("heads", "neurons") if manifest.granularity == "units" else ("attention", "feed-forward")
    kept = (f"{part} kept" for part in over)
    concepts = Table("concept", "values", *kept, *manifest.density, title="Subnetworks")
    for concept in manifest.concepts:
        layers = manifest.density[concept.name]
        concepts.add_row(
            concept.name,
            ", ".join(concept.values),
            " ".join(f"{layer.heads:.2f}" for layer in layers),
            " ".join(f"{layer.neurons:.2f}" for layer in layers),
            *(f"{manifest.overlap[concept.name][other]:.2f}" for other in manifest.density),
        )
    concepts.caption = "kept shares per masked layer; right: overlap with the other concepts' masks (Jaccard)"
    console.print(concepts)
    for split, figures in manifest.evaluation.items():
        console.print(
            f"{split} ({figures['texts']} texts): concept accuracy {figures['concept']['accuracy']:.3f}, label "
            f"accuracy {figures['label']['accuracy']:.3f}"
        )
    files = Table("file", "bytes", "sha256", title="Files")
    for file, entry in manifest.files.items():
        files.add_row(file, f"{entry.bytes:,}", entry.sha256[:16])
    console.print(files)
