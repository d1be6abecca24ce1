"""The commands of the method: ``sparsecbm train`` and ``sparsecbm evaluate``."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from sparsecbm.recipe import Recipe, read_recipe

app = typer.Typer(no_args_is_help=True)


def _figures_line(figures: dict[str, Any]) -> str:
    return f"concept {figures['concept']['accuracy']:.3f}, label {figures['label']['accuracy']:.3f}"


def _option(name: str) -> Any:
    """A flag for a field of the recipe, which knows its meaning and its default."""
    field = Recipe.model_fields[name]
    return typer.Option(help=field.description, show_default=str(field.default))


@app.command()
def train(
    data: Annotated[str, typer.Option(help="'cebab' (from the hub), 'cebab:FOLDER', or a YAML of your own.")],
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint; replaced if it is one already.")],
    train_split: Annotated[str, typer.Option(help="Split to learn from.")] = "train_exclusive",
    dev_split: Annotated[str, typer.Option(help="Split that chooses the best epoch.")] = "dev",
    name: Annotated[str | None, typer.Option(help="The model's name; by default the data set's.")] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="YAML with any of the settings below, by name; a flag comes before it.")
    ] = None,
    backbone: Annotated[str | None, _option("backbone")] = None,
    trunk: Annotated[int | None, _option("trunk")] = None,
    width: Annotated[int | None, _option("width")] = None,
    max_tokens: Annotated[int | None, _option("max_tokens")] = None,
    dropout: Annotated[float | None, _option("dropout")] = None,
    vector_dropout: Annotated[float | None, _option("vector_dropout")] = None,
    epochs: Annotated[int | None, _option("epochs")] = None,
    batch_size: Annotated[int | None, _option("batch_size")] = None,
    learning_rate: Annotated[float | None, _option("learning_rate")] = None,
    head_learning_rate: Annotated[float | None, _option("head_learning_rate")] = None,
    weight_decay: Annotated[float | None, _option("weight_decay")] = None,
    warmup: Annotated[float | None, _option("warmup")] = None,
    density: Annotated[float | None, _option("density")] = None,
    prune_start: Annotated[float | None, _option("prune_start")] = None,
    prune_end: Annotated[float | None, _option("prune_end")] = None,
    prune_cuts: Annotated[int | None, _option("prune_cuts")] = None,
    correction_rate: Annotated[float | None, _option("correction_rate")] = None,
    label_weight: Annotated[float | None, _option("label_weight")] = None,
    vote_weight: Annotated[float | None, _option("vote_weight")] = None,
    average: Annotated[float | None, _option("average")] = None,
    precision: Annotated[str | None, _option("precision")] = None,
    seed: Annotated[int | None, _option("seed")] = None,
    threads: Annotated[int, typer.Option(min=0, help="Processor threads; 0 for all.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Train a SparseCBM and write its checkpoint."""
    given = {key: value for key, value in locals().items() if key in Recipe.model_fields}
    settings = read_recipe(recipe, **given)
    import torch
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bar

    from sparsecbm import checkpoint as checkpoints
    from sparsecbm import data as datasets
    from sparsecbm.backbone import load_backbone, locate
    from sparsecbm.errors import TrainingError
    from sparsecbm.folders import check_writable
    from sparsecbm.model import SparseCBM
    from sparsecbm.tokens import encode, tokenizer_from_text
    from sparsecbm.training import Progress, seed_everything
    from sparsecbm.training import train as run_training

    console = Console(stderr=True)
    if out.exists() and not (out / checkpoints.CONFIG).is_file():
        raise TrainingError(f"{out} exists and is not a checkpoint; name another folder with --out.")
    check_writable(out)
    if threads:
        torch.set_num_threads(threads)
    training = datasets.load(data, train_split)
    validation = datasets.load(data, dev_split)
    seed_everything(settings.seed)
    where = locate(settings.backbone)
    if where != settings.backbone:
        console.print(f"Backbone {settings.backbone} from the installed package at {where}", soft_wrap=True)
    base, tokenizer_text = load_backbone(settings.backbone)
    max_tokens = min(settings.max_tokens, base.config.max_tokens)
    model = SparseCBM(
        base,
        training.schema.concepts,
        training.schema.labels,
        settings.trunk,
        settings.width,
        settings.dropout,
        settings.vector_dropout,
    )
    tokenizer = tokenizer_from_text(tokenizer_text, max_tokens)
    encoded, validation_encoded = encode(tokenizer, training.texts), encode(tokenizer, validation.texts)
    console.print(
        f"{len(training)} texts to learn from, {len(validation)} to choose by; concepts "
        f"{', '.join(concept.name for concept in model.concepts)}; labels {', '.join(model.labels)}"
    )
    cut = sum(encoded.truncated) + sum(validation_encoded.truncated)
    if cut:
        console.print(f"{cut} texts are longer than {max_tokens} tokens and are truncated")
    bar = Bar(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )
    started = time.monotonic()
    with bar:
        task = bar.add_task("training")

        def report(progress: Progress) -> None:
            bar.update(
                task,
                total=progress.steps,
                completed=progress.step,
                description=f"epoch {progress.epoch + 1}/{settings.epochs} loss {progress.loss:.3f} "
                f"density {progress.density:.2f}",
            )
            if progress.figures is not None:
                bar.console.print(
                    f"epoch {progress.epoch + 1}: {dev_split} {_figures_line(progress.figures)}, "
                    f"density {progress.density:.3f}{' (best)' if progress.best else ''}"
                )

        figures = run_training(model, training, encoded.ids, validation, validation_encoded.ids, settings, report)
    seconds = round(time.monotonic() - started, 1)
    checkpoint = checkpoints.Checkpoint(
        checkpoints.CheckpointConfig(
            name=name or training.schema.name,
            backbone=base.config,
            concepts=model.concepts,
            labels=model.labels,
            trunk=settings.trunk,
            width=settings.width,
            max_tokens=max_tokens,
            training=settings.model_dump() | {"split": train_split, "texts": len(training), "seconds": seconds},
            evaluation={dev_split: figures},
        ),
        model,
        tokenizer_text,
    )
    checkpoints.save(checkpoint, out)
    if as_json:
        print(json.dumps({"checkpoint": str(out), "seconds": seconds, dev_split: figures}))
    else:
        console.print(
            f"[bold]{escape(str(out))}[/bold]: {dev_split} {_figures_line(figures)}, branch density "
            f"{model.masks.density():.3f}, {seconds:.0f} s. Next: sparsecbm export {escape(str(out))} BUNDLE",
            soft_wrap=True,  # so that the command can be copied
        )


@app.command()
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="Folder that 'sparsecbm train' wrote.")],
    data: Annotated[str, typer.Option(help="'cebab' (from the hub), 'cebab:FOLDER', or a YAML of your own.")],
    split: Annotated[str, typer.Option(help="Split to judge on.")] = "dev",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Judge a checkpoint: accuracy, macro-F1 and the paper's one-vs-rest F1, for the label and every concept."""
    from rich.console import Console
    from rich.table import Table

    from sparsecbm import checkpoint as checkpoints
    from sparsecbm import data as datasets
    from sparsecbm.errors import DataError
    from sparsecbm.evaluation import evaluate as evaluate_model
    from sparsecbm.tokens import encode, tokenizer_from_text

    loaded = checkpoints.load(checkpoint)
    judged = datasets.load(data, split)
    if (list(judged.schema.concepts), list(judged.schema.labels)) != (
        loaded.config.concepts,
        loaded.config.labels,
    ):
        raise DataError(
            f"{data} has other concepts or labels than {checkpoint} was trained on "
            f"({[concept.name for concept in loaded.config.concepts]}, {loaded.config.labels})."
        )
    encoded = encode(tokenizer_from_text(loaded.tokenizer, loaded.config.max_tokens), judged.texts)
    figures = evaluate_model(loaded.model, judged, encoded.ids)
    if as_json:
        print(json.dumps({split: figures}))
        return
    table = Table(title=f"{loaded.config.name} on {split} ({figures['texts']} texts)")
    for column in ("", "accuracy", "macro-F1", "one-vs-rest F1", "calibration error"):
        table.add_column(column, justify="left" if not column else "right")
    rows = {"label": figures["label"], "label, mistakes corrected": figures["label_corrected"]}
    rows |= {"concepts (mean)": figures["concept"]} | {f"  {key}": row for key, row in figures["concepts"].items()}
    for title, row in rows.items():
        keys = ("accuracy", "macro_f1", "one_vs_rest_f1", "calibration_error")
        table.add_row(title, *(f"{row[key]:.3f}" if key in row else "" for key in keys))
    Console().print(table)
    if any(encoded.truncated):
        Console(stderr=True).print(
            f"{sum(encoded.truncated)} texts were truncated to {loaded.config.max_tokens} tokens"
        )
