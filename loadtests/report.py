"""A folder with what the benchmark found: JSON, and plots that are files of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sparsecbm.errors import SetupError
from sparsecbm.folders import atomic_folder, check_writable
from sparsecbm.plots import Dot, Line, dot_chart, line_chart

JSON = "bench.json"
_STYLE = """
svg{background:#fff;font:12px system-ui,"Segoe UI",Roboto,sans-serif}
text{fill:#1b2129}.soft{fill:#5a626c}.name{font-weight:600}
.grid{stroke:#dededa}.line{fill:none;stroke-width:2;stroke:#2469c8}.whisker{stroke-width:1.5;stroke:#2469c8;opacity:.55}
.dot{fill:#2469c8}
@media(prefers-color-scheme:dark){svg{background:#1a2027}text{fill:#e7eaee}.soft{fill:#a5afba}.grid{stroke:#303943}
.line,.whisker{stroke:#6ea4ee}.dot{fill:#6ea4ee}}
"""


def _file(chart: str) -> str:
    """A chart of one series, with its style, as a file that a page can show as a picture."""
    opened, rest = chart.split(">", 1)
    return f'{opened} xmlns="http://www.w3.org/2000/svg"><style>{_STYLE}</style>{rest}\n'


def _count(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.3g}"


def _times(value: float) -> str:
    return f"{value:.2f} ×"


def _ends(figure: dict[str, float]) -> list[float]:
    return [figure["low"], figure["high"]]


def _rates(contenders: list[dict[str, Any]], title: str) -> str:
    dots = [Dot(row["name"], row["texts_per_second"]["value"], _ends(row["texts_per_second"])) for row in contenders]
    return dot_chart(title, dots, _count, zero=True)


def _sweep(rows: list[dict[str, Any]], key: str, title: str, label: str) -> str:
    """Texts per second by what is varied, at even distances."""
    rates = [row["texts_per_second"] for row in rows]
    points = [(float(place), rate["value"]) for place, rate in enumerate(rates)]
    ticks = [(place, str(row[key])) for place, row in enumerate(rows)]
    return line_chart(title, [Line("texts/s", points, [_ends(rate) for rate in rates])], label, ticks, _count)


def _advantage(rows: list[dict[str, Any]]) -> str:
    ratios = [row["to_dense_fp32"] for row in rows]
    points = [(float(place), ratio["value"]) for place, ratio in enumerate(ratios)]
    ticks = [(place, str(row["tokens"])) for place, row in enumerate(rows)]
    title = "Ours / a dense fp32 pass by length of the texts"
    line = Line("ours / dense fp32", points, [_ends(ratio) for ratio in ratios])
    return line_chart(title, [line], "tokens of each text", ticks, _times)


def plots(found: dict[str, Any]) -> dict[str, str]:
    """SVG by file name, of the sections that were measured."""
    charts = {}
    if "rivals" in found:
        charts["rivals.svg"] = _rates(found["rivals"]["contenders"], "Texts per second")
    if "length" in found and "to_dense_fp32" in found["length"]["rows"][0]:
        charts["length.svg"] = _advantage(found["length"]["rows"])
    if "concepts" in found:
        title = "Texts per second by number of concepts"
        charts["concepts.svg"] = _sweep(found["concepts"]["rows"], "concepts", title, "concepts")
    if "density" in found:
        title = "Texts per second by density"
        charts["density.svg"] = _sweep(found["density"]["rows"], "density", title, "share of units kept")
    if "base" in found:
        charts["base.svg"] = _rates(found["base"]["contenders"], "Texts per second with BERT-base's sizes")
    return {name: _file(chart) for name, chart in charts.items()}


def check_folder(folder: Path) -> None:
    """Finds out before the long work whether a report can be written to a folder.

    Raises:
        SetupError: it holds something that isn't such a report, or nothing can be written there.
    """
    if folder.exists() and not (folder / JSON).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise SetupError(f"{folder} exists and is not a benchmark's report; name another folder with --report.")
    check_writable(folder)


def write(found: dict[str, Any], folder: Path) -> None:
    """Writes what ``bench.run`` gave as JSON and plots, replacing a report that is there."""
    with atomic_folder(folder) as new:
        (new / JSON).write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        for name, chart in plots(found).items():
            (new / name).write_text(chart, encoding="utf-8")
