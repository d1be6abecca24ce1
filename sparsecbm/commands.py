"""The commands of the method: ``sparsecbm train`` and ``sparsecbm evaluate``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sparsecbm.recipe import Recipe, read_recipe

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bar

    from sparsecbm.checkpoint import Checkpoint, CheckpointConfig
    from sparsecbm.data import Dataset

app = typer.Typer(no_args_is_help=True)


def _figures_line(figures: dict[str, Any]) -> str:
    """Accuracies; without the label's while the label head isn't trained."""
    return ", ".join(f"{key} {figures[key]['accuracy']:.3f}" for key in ("concept", "label") if key in figures)


def _progress_bar(console: Console) -> Bar:
    """A bar with the time taken and the time left."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )


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
    corrections: Annotated[
        str | None,
        typer.Option(help="File of 'sparsecbm correct --export': further texts to learn from, of some concepts each."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The model's name; by default the data set's.")] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="YAML with any of the settings below, by name; a flag comes before it.")
    ] = None,
    backbone: Annotated[str | None, _option("backbone")] = None,
    trunk: Annotated[int | None, _option("trunk")] = None,
    width: Annotated[int | None, _option("width")] = None,
    bottleneck: Annotated[str | None, _option("bottleneck")] = None,
    max_tokens: Annotated[int | None, _option("max_tokens")] = None,
    dropout: Annotated[float | None, _option("dropout")] = None,
    strength_dropout: Annotated[float | None, _option("strength_dropout")] = None,
    mode: Annotated[str | None, _option("mode")] = None,
    epochs: Annotated[int | None, _option("epochs")] = None,
    patience: Annotated[int | None, _option("patience")] = None,
    batch_size: Annotated[int | None, _option("batch_size")] = None,
    accumulate: Annotated[int | None, _option("accumulate")] = None,
    learning_rate: Annotated[float | None, _option("learning_rate")] = None,
    concept_learning_rate: Annotated[float | None, _option("concept_learning_rate")] = None,
    head_learning_rate: Annotated[float | None, _option("head_learning_rate")] = None,
    weight_decay: Annotated[float | None, _option("weight_decay")] = None,
    warmup: Annotated[float | None, _option("warmup")] = None,
    granularity: Annotated[str | None, _option("granularity")] = None,
    density: Annotated[float | None, _option("density")] = None,
    trunk_density: Annotated[float | None, _option("trunk_density")] = None,
    importance: Annotated[str | None, _option("importance")] = None,
    threshold: Annotated[str | None, _option("threshold")] = None,
    schedule: Annotated[str | None, _option("schedule")] = None,
    fisher_block: Annotated[int | None, _option("fisher_block")] = None,
    fisher_memory: Annotated[float | None, _option("fisher_memory")] = None,
    prune_start: Annotated[float | None, _option("prune_start")] = None,
    prune_end: Annotated[float | None, _option("prune_end")] = None,
    prune_cuts: Annotated[int | None, _option("prune_cuts")] = None,
    correction_rate: Annotated[float | None, _option("correction_rate")] = None,
    label_weight: Annotated[float | None, _option("label_weight")] = None,
    concept_weight: Annotated[float | None, _option("concept_weight")] = None,
    class_weights: Annotated[str | None, _option("class_weights")] = None,
    vote_weight: Annotated[float | None, _option("vote_weight")] = None,
    average: Annotated[float | None, _option("average")] = None,
    temperature: Annotated[bool | None, _option("temperature")] = None,
    precision: Annotated[str | None, _option("precision")] = None,
    seed: Annotated[int | None, _option("seed")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the unfinished run in OUT.partial; where there is none, begin.")
    ] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Delete the unfinished run in OUT.partial first.")] = False,
    log_dir: Annotated[Path | None, typer.Option(help="Folder for scalars that TensorBoard shows.")] = None,
    device: Annotated[str, typer.Option(help="'cpu', 'cuda', or 'auto': a GPU where there is one.")] = "auto",
    threads: Annotated[int, typer.Option(min=0, help="Processor threads; 0 for all.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Train a SparseCBM and write its checkpoint.

    Its state is kept in OUT.partial after every epoch, until the checkpoint is written.
    """
    given = {key: value for key, value in locals().items() if key in Recipe.model_fields}
    settings = read_recipe(recipe, **given)
    import torch
    from rich.console import Console
    from rich.markup import escape

    from sparsecbm import checkpoint as checkpoints
    from sparsecbm import data as datasets
    from sparsecbm import state as states
    from sparsecbm.backbone import load_backbone, locate
    from sparsecbm.device import pick_device
    from sparsecbm.errors import TrainingError
    from sparsecbm.feedback import read_feedback
    from sparsecbm.folders import check_writable
    from sparsecbm.model import SparseCBM
    from sparsecbm.scalars import Scalars
    from sparsecbm.tokens import encode, tokenizer_from_text
    from sparsecbm.training import Progress, seed_everything
    from sparsecbm.training import train as run_training

    console = Console(stderr=True)
    finished = (out / checkpoints.CONFIG).is_file()
    if out.exists() and not finished:
        raise TrainingError(f"{out} exists and is not a checkpoint; name another folder with --out.")
    check_writable(out)
    computer = pick_device(device)
    partial = states.partial_folder(out)
    goes_on = states.check_start(partial, finished, resume, restart)
    scalars = Scalars(log_dir, dev_split) if log_dir is not None else None
    if threads:
        torch.set_num_threads(threads)
    training = datasets.load(data, train_split)
    validation = datasets.load(data, dev_split)
    feedback = None
    if corrections is not None:
        feedback = read_feedback(corrections, training.schema, validation.texts)
        training = training.extended(feedback.data)
    gaps = datasets.check_varied(training, train_split)
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
        settings.strength_dropout,
        settings.granularity,
        settings.bottleneck,
    )
    tokenizer = tokenizer_from_text(tokenizer_text, max_tokens)
    encoded, validation_encoded = encode(tokenizer, training.texts), encode(tokenizer, validation.texts)
    console.print(
        f"{len(training)} texts to learn from, {len(validation)} to choose by; concepts "
        f"{', '.join(concept.name for concept in model.concepts)}; labels {', '.join(model.labels)}"
    )
    if feedback is not None:
        console.print(
            f"{len(feedback.data)} of the texts to learn from are corrections from {corrections}; left out are "
            f"{feedback.held_out} of texts in {dev_split} and {feedback.silent} that say nothing of these concepts",
            markup=False,
            soft_wrap=True,
        )
    for gap in gaps:
        console.print(f"Warning: {gap} It can't be learned.", markup=False, soft_wrap=True)
    cut = sum(encoded.truncated) + sum(validation_encoded.truncated)
    if cut:
        console.print(f"{cut} texts are longer than {max_tokens} tokens and are truncated")
    if restart:
        states.remove(partial)
    elif resume:
        console.print(
            f"The run in {partial} goes on" if goes_on else f"There is no unfinished run in {partial}; one begins",
            markup=False,
            soft_wrap=True,
        )
    bar = _progress_bar(console)
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
            if scalars is not None:
                scalars.write(progress)

        try:
            trained = run_training(
                model,
                training,
                encoded.ids,
                validation,
                validation_encoded.ids,
                settings,
                report,
                partial,
                computer,
            )
        except KeyboardInterrupt:
            bar.console.print(f"Interrupted. {states.kept(partial)}", markup=False, soft_wrap=True)
            raise
        finally:
            if scalars is not None:
                scalars.close()
    figures, seconds = trained.figures, round(trained.seconds, 1)
    checkpoint = checkpoints.Checkpoint(
        checkpoints.CheckpointConfig(
            name=name or training.schema.name,
            backbone=base.config,
            concepts=model.concepts,
            labels=model.labels,
            trunk=settings.trunk,
            width=model.width,
            bottleneck=model.bottleneck,
            reach=model.reach,
            max_tokens=max_tokens,
            training=settings.model_dump()
            | {"split": train_split, "texts": len(training), "seconds": seconds, "history": trained.history}
            | {"corrections": len(feedback.data) if feedback is not None else 0}
            | {"temperatures": trained.temperatures},
            evaluation={dev_split: figures},
        ),
        model,
        tokenizer_text,
    )
    checkpoints.save(checkpoint, out)
    states.remove(partial)
    if as_json:
        print(json.dumps({"checkpoint": str(out), "seconds": seconds, dev_split: figures}))
    else:
        console.print(
            f"[bold]{escape(str(out))}[/bold]: {dev_split} {_figures_line(figures)}, branch density "
            f"{model.density():.3f}, {seconds:.0f} s. Next: sparsecbm export {escape(str(out))} BUNDLE",
            soft_wrap=True,  # so that the command can be copied
        )


@app.command()
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="Folder that 'sparsecbm train' wrote.")],
    data: Annotated[str, typer.Option(help="'cebab' (from the hub), 'cebab:FOLDER', or a YAML of your own.")],
    split: Annotated[str, typer.Option(help="Split to judge on.")] = "dev",
    report: Annotated[
        Path | None, typer.Option(help="Folder for a full report, report.json and report.html; takes minutes.")
    ] = None,
    compare: Annotated[
        list[Path] | None, typer.Option(help="Further checkpoint to set beside this one in the report; repeatable.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Judge on the first texts alone, for a quick look.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Judge a checkpoint: accuracy, macro-F1 and the paper's one-vs-rest F1, for the label and every concept."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from sparsecbm import checkpoint as checkpoints
    from sparsecbm import data as datasets
    from sparsecbm.errors import SetupError
    from sparsecbm.evaluation import evaluate as evaluate_model
    from sparsecbm.report import PAGE, check_folder
    from sparsecbm.tokens import encode, tokenizer_from_text

    if compare and report is None:
        raise SetupError("--compare is a part of the report; name the report's folder with --report.")
    if report is not None:
        check_folder(report)
    every = [checkpoints.load(folder) for folder in (checkpoint, *(compare or ()))]
    loaded = every[0]
    judged = datasets.load(data, split)
    for folder, other in zip((checkpoint, *(compare or ())), every, strict=True):
        _check_same_task(other.config, folder, judged, data)
    whole, judged = judged, judged if limit is None else judged.head(limit)
    encoded = encode(tokenizer_from_text(loaded.tokenizer, loaded.config.max_tokens), judged.texts)
    figures = evaluate_model(loaded.model, judged, encoded.ids)
    if report is not None:
        _write_report(report, every, [checkpoint, *(compare or ())], data, split, whole, len(judged))
        Console(stderr=True).print(f"Report: {escape(str(report / PAGE))}", soft_wrap=True)
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


def _kinds(arguments: list[str]) -> dict[str, list[Path]]:
    """Checkpoints by kind, of arguments such as 'ours=runs/a,runs/b'."""
    from sparsecbm.errors import SetupError

    kinds: dict[str, list[Path]] = {}
    for argument in arguments:
        name, equals, folders = argument.partition("=")
        paths = [Path(folder) for folder in folders.split(",") if folder]
        if not name or not equals or not paths:
            raise SetupError(f"{argument!r} must name a kind and its checkpoints, such as 'ours=runs/a,runs/b'.")
        if name in kinds:
            raise SetupError(f"The kind {name!r} is given twice; list its checkpoints in one, with commas.")
        kinds[name] = paths
    return kinds


@app.command()
def compare(
    kinds: Annotated[
        list[str],
        typer.Argument(
            help="KIND=CHECKPOINT,CHECKPOINT…: runs that differ in their seeds; the first kind "
            "is the one that others are compared with."
        ),
    ],
    data: Annotated[str, typer.Option(help="'cebab' (from the hub), 'cebab:FOLDER', or a YAML of your own.")],
    split: Annotated[str, typer.Option(help="Split to judge on.")] = "dev",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Set kinds of checkpoints side by side over several seeds, with paired tests and correction curves."""
    from functools import partial

    from rich.console import Console

    from sparsecbm import checkpoint as checkpoints
    from sparsecbm import data as datasets
    from sparsecbm.assessment import Subject, read
    from sparsecbm.comparison import compare as compare_kinds
    from sparsecbm.counterfactuals import load_counterfactuals
    from sparsecbm.errors import DataError

    every = _kinds(kinds)
    judged = datasets.load(data, split)
    for folder in (folder for folders in every.values() for folder in folders):
        _check_same_task(checkpoints.read_config(folder), folder, judged, data)
    try:
        groups = load_counterfactuals(data, split, judged).groups
    except DataError:  # only CEBaB says which texts belong together
        groups = None

    def one(folder: Path) -> Subject:
        return read(checkpoints.load(folder), judged, groups)

    with _progress_bar(Console(stderr=True)) as bar:
        task = bar.add_task("reading", total=100)
        found = compare_kinds(
            {name: [partial(one, folder) for folder in folders] for name, folders in every.items()},
            lambda done: bar.update(task, completed=round(100 * done)),
        )
    if as_json:
        print(json.dumps({split: found}))
        return
    _print_comparison(found, f"{judged.schema.name}, {split} ({len(judged)} texts)")


def _print_comparison(found: dict[str, Any], title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    def change(found: dict[str, Any], scale: float = 100, digits: int = 1) -> str:
        low, high = (scale * end for end in found["interval"])
        return f"{scale * found['value']:+.{digits}f} [{low:.{digits}f}, {high:.{digits}f}] p {found['p']:.3f}"

    console = Console()
    table = Table(title=title)
    for column in ("", "runs", "density", "concept", "concept, to the first", "label", "label, to the first"):
        table.add_column(column, justify="left" if not column else "right")
    for name, row in found.items():
        first = row is next(iter(found.values()))
        table.add_row(
            name,
            str(row["runs"]),
            f"{row['density']:.3f}",
            f"{row['concept']['value']:.3f}" if "concept" in row else "",
            change(row["concept_difference"]) if "concept_difference" in row and not first else "",
            f"{row['label']['value']:.3f}",
            change(row["label_difference"]) if not first else "",
        )
    console.print(table)
    for which in ("mistaken", "all"):
        rows = {name: row[f"corrected_{which}"] for name, row in found.items() if f"corrected_{which}" in row}
        if not rows:
            continue
        losses = {name: row["log_loss"] for name, row in rows.items()}
        for figure, parts, scale, digits in (("accuracy", rows, 100, 1), ("log loss", losses, 1, 4)):
            steps = len(next(iter(parts.values()))["curves"]["random"])
            table = Table(title=f"label's {figure} after so many corrections of {which} concepts")
            for column in ("", "order", *map(str, range(steps)), "all over none", "ask_next over random"):
                table.add_column(column, justify="left" if column in ("", "order") else "right")
            for name, part in parts.items():
                moved = [change(part["gain"], scale, digits), change(part["ask_next_over_random"], scale, digits)]
                for (order, curve), last in zip(part["curves"].items(), ((moved[0], ""), ("", moved[1])), strict=True):
                    table.add_row(name, order, *(f"{step['value']:.4f}" for step in curve), *last)
            console.print(table)


def _check_same_task(config: CheckpointConfig, folder: Path, data: Dataset, source: str) -> None:
    """Refuses to judge a checkpoint on data of other concepts or labels."""
    from sparsecbm.errors import DataError

    if not config.has_task_of(data.schema):
        raise DataError(
            f"{source} has other concepts or labels than {folder} was trained on "
            f"({[concept.name for concept in config.concepts]}, {config.labels})."
        )


def _write_report(
    target: Path,
    every: list[Checkpoint],
    folders: list[Path],
    source: str,
    split: str,
    data: Dataset,
    count: int,
) -> None:
    """Writes the report of the first checkpoint, set beside the others, on the first texts of a split."""
    from rich.console import Console

    from sparsecbm.assessment import assess
    from sparsecbm.counterfactuals import Counterfactuals, load_counterfactuals
    from sparsecbm.errors import DataError
    from sparsecbm.report import write

    pairs: Counterfactuals | str
    try:
        pairs = load_counterfactuals(source, split, data).head(count)
    except DataError as error:
        pairs = error.message
    names = [folder.name or str(folder) for folder in folders]
    others = list(zip(names[1:], every[1:], strict=True))
    with _progress_bar(Console(stderr=True)) as bar:
        task = bar.add_task("report", total=100)

        def advance(section: str, done: float) -> None:
            bar.update(task, description=section, completed=round(100 * done))

        found = assess(every[0], data.head(count), split, pairs, others, names[0], advance=advance)
    write(found, target)
