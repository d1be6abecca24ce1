"""What the benchmark found, as tables for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import RenderableType
from rich.table import Table

_RATIOS = {
    "int8_to_dense_fp32": "ours int8 / best dense fp32 pass",
    "int8_to_dense_int8": "ours int8 / best dense int8 pass",
    "fp32_to_dense_fp32": "ours fp32 / best dense fp32 pass",
    "int8_to_k_dense_fp32": "ours int8 / a dense fp32 pass per concept",
    "int8_to_k_dense_int8": "ours int8 / a dense int8 pass per concept",
    "int8_to_padded": "ours int8 / the paper's way",
    "plain_to_explained_int8": "ours int8 / ours int8 + both",
    "plain_to_explained_fp32": "ours fp32 / ours fp32 + both",
}
_MEMORY = {
    "first_prediction_bytes": "memory after the first prediction",
    "predictions_bytes": "memory after predictions of all texts",
    "first_explanation_bytes": "memory after the first explanation",
    "explanations_bytes": "memory after explanations of all texts",
}
_SECONDS = {
    "start_to_answer_s": "start of the process to the first answer",
    "import_to_answer_s": "import of the engine to the first answer",
    "first_explanation_s": "first explanation, its graph loaded for it",
}


def _number(value: float) -> str:
    """Three digits that count."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _spread(figure: dict[str, float], unit: str = "") -> str:
    return f"{_number(figure['value'])}{unit} ({_number(figure['low'])}–{_number(figure['high'])})"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left", no_wrap=place == 0)
    return table


def _timed(title: str, first: str, rows: list[dict[str, Any]], key: str) -> Table:
    """What every section has: texts per second and a batch's time, by what is varied."""
    table = _table(title, first, "texts/s (range)", "texts a batch", "p50 ms", "p99 ms")
    for row in rows:
        table.add_row(
            str(row[key]),
            _spread(row["texts_per_second"]),
            str(row["batch_texts"]),
            _number(row["p50_ms"]),
            _number(row["p99_ms"]),
        )
    return table


def _contenders(found: dict[str, Any]) -> Table:
    columns = ("texts/s (range)", "texts a batch", "p50 ms", "p99 ms", "padding", "GFLOP/s", "of peak")
    table = _table("Ours and the passes that it replaces", "", *columns)
    for row in found["contenders"]:
        table.add_row(
            row["name"],
            _spread(row["texts_per_second"]),
            str(row["batch_texts"]),
            _number(row["p50_ms"]),
            _number(row["p99_ms"]),
            _share(row["padding"]),
            "" if row["gflops"] is None else _number(row["gflops"]),
            _share(row["share_of_peak"]),
        )
    if found["peak"]:
        peaks = ", ".join(f"{precision} {_number(gflops)} GFLOP/s" for precision, gflops in found["peak"].items())
        table.caption = f"peak, the fastest large matrix product: {peaks}"
    return table


def _ratios(title: str, found: dict[str, dict[str, float]]) -> Table:
    table = _table(title, "texts/s of", "ratio (range over rounds)")
    for name, figure in found.items():
        table.add_row(_RATIOS[name], _spread(figure, " ×"))
    return table


def _process(found: dict[str, float], size: int) -> Table:
    table = _table("One replica, a fresh process", "", "")
    for name, told in _SECONDS.items():
        table.add_row(told, f"{found[name]:.2f} s")
    for name, told in _MEMORY.items():
        table.add_row(told, f"{found[name] / 1e6:.0f} MB")
    table.add_row("bundle on disk", f"{size / 1e6:.1f} MB")
    return table


def _lengths(rows: list[dict[str, Any]]) -> Table:
    names = [row["name"] for row in rows[0]["contenders"]]
    ratios = [name for name in ("to_dense_fp32", "to_dense_int8") if name in rows[0]]
    titles = [f"ours / {name.removeprefix('to_').replace('_', ' ')}" for name in ratios]
    table = _table("Length of the texts", "tokens", *(f"{name}, texts/s" for name in names), *titles)
    for row in rows:
        rates = (_spread(contender["texts_per_second"]) for contender in row["contenders"])
        table.add_row(str(row["tokens"]), *rates, *(_spread(row[name], " ×") for name in ratios))
    return table


def tables(found: dict[str, Any]) -> Iterator[RenderableType]:
    """The tables of what ``bench.run`` gave, in order, with a line about the setting first and what to know last."""
    bundle, setting, machine = found["bundle"], found["setting"], found["machine"]
    tokens = setting["tokens"]
    yield (
        f"{bundle['name']} {bundle['version']}, {bundle['precision']}, {bundle['concepts']} concepts; "
        f"{setting['texts']} texts of {tokens['median']:.0f} tokens (median; 95 %: {tokens['p95']:.0f}, at most "
        f"{tokens['max']}), {setting['batch']} a batch, {setting['rounds']} rounds, {setting['threads']} threads on "
        f"{machine['cores']} cores of {machine['processor']}; load {machine['load_before']:.1f} → "
        f"{machine['load_after']:.1f}"
    )
    if "rivals" in found:
        yield _contenders(found["rivals"])
        yield _ratios("Times as many texts per second", found["rivals"]["ratios"])
    if "process" in found:
        yield _process(found["process"], bundle["bytes"])
    if "length" in found:
        yield _lengths(found["length"]["rows"])
    if "concepts" in found:
        yield _timed("Number of concepts", "concepts", found["concepts"]["rows"], "concepts")
        yield f"8 concepts take {_spread(found['concepts']['cost_4_to_8'], ' ×')} the time of 4."
    if "density" in found:
        yield _timed("Share of units that every concept keeps", "density", found["density"]["rows"], "density")
    if "base" in found:
        yield _timed("A backbone of BERT-base's sizes", "", found["base"]["contenders"], "name")
        yield _ratios("Times as many texts per second", found["base"]["ratios"])
    yield from found["left_out"]
    yield from found["notes"]
