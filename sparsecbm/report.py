"""The page made of an evaluation's JSON: one HTML file without scripts, fonts or pictures from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from sparsecbm.errors import SetupError
from sparsecbm.faithfulness import SERVED
from sparsecbm.folders import atomic_folder, check_writable
from sparsecbm.plots import Dot, Line, dot_chart, heat_map, line_chart, percent, plain, reliability_diagram

JSON = "report.json"
PAGE = "report.html"
_NOISE = 0.05  # p from which a difference counts as noise

_STYLE = """
:root{color-scheme:light dark;--page:#f5f5f2;--panel:#fff;--line:#dededa;--ink:#1b2129;--soft:#5a626c;--cell:#2469c8;
--on:#fff;--s0:#2469c8;--s1:#c2571a;--s2:#2f855a;--s3:#8a5cc4;--s4:#a3324a}
@media(prefers-color-scheme:dark){:root{--page:#12161b;--panel:#1a2027;--line:#303943;--ink:#e7eaee;--soft:#a5afba;
--cell:#6ea4ee;--on:#0e1318;--s0:#6ea4ee;--s1:#ee9a5f;--s2:#68c594;--s3:#bd9bea;--s4:#ec8298}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.55 system-ui,"Segoe UI",Roboto,sans-serif}
main{max-width:1040px;margin:0 auto;padding:40px 20px 64px}
h1{font-size:30px;line-height:1.2;margin:0 0 4px}
h2{font-size:20px;margin:0 0 6px}
h3{font-size:14px;margin:0 0 6px;color:var(--soft);font-weight:600}
p{margin:0 0 12px;max-width:76ch}
.soft{color:var(--soft)}
section{background:var(--panel);border:1px solid var(--line);border-radius:10px;padding:22px 24px;margin-top:18px}
.finding{font-size:16px;font-weight:600}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(170px,1fr));gap:12px;margin-top:22px}
.tile{background:var(--panel);border:1px solid var(--line);border-radius:10px;padding:14px 16px}
.tile b{display:block;font-size:28px;line-height:1.2;font-variant-numeric:tabular-nums}
.tile span{color:var(--soft);font-size:13px}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(400px,100%),1fr));gap:22px;margin:14px 0}
.small{display:grid;grid-template-columns:repeat(auto-fit,minmax(170px,1fr));gap:16px;margin:14px 0}
.wide{overflow-x:auto}
figure{margin:0;min-width:0}
svg{display:block;width:100%;height:auto;overflow:visible}
svg text{font-size:12px;fill:var(--ink);font-variant-numeric:tabular-nums}
svg text.soft{fill:var(--soft)}
svg text.name{font-weight:600}
svg text.on{fill:var(--on)}
.grid line.grid,.small line.grid,line.grid{stroke:var(--line);stroke-width:1}
.diagonal{stroke:var(--soft);stroke-dasharray:4 4}
.gap{stroke:var(--s1);stroke-width:1.5}
.line{fill:none;stroke-width:2}.level{stroke-dasharray:6 4}.whisker{stroke-width:1.5;opacity:.55}
.dot{stroke:var(--panel);stroke-width:1}.hollow{fill:var(--panel);stroke-width:2}
.bubble{fill-opacity:.55;stroke-width:1}
.cell{fill:var(--cell)}
line.s0,polyline.s0,.hollow.s0,.bubble.s0{stroke:var(--s0)}line.s1,polyline.s1{stroke:var(--s1)}
line.s2,polyline.s2{stroke:var(--s2)}line.s3,polyline.s3{stroke:var(--s3)}line.s4,polyline.s4{stroke:var(--s4)}
.dot.s0,.bubble.s0{fill:var(--s0)}.dot.s1{fill:var(--s1)}.dot.s2{fill:var(--s2)}.dot.s3{fill:var(--s3)}
.dot.s4{fill:var(--s4)}
.legend{display:flex;flex-wrap:wrap;gap:4px 16px;font-size:13px;margin:6px 0 0}
.key{display:inline-block;width:12px;height:12px;border-radius:50%;margin-right:6px;vertical-align:-1px}
.key.s0{background:var(--s0)}.key.s1{background:var(--s1)}.key.s2{background:var(--s2)}.key.s3{background:var(--s3)}
.key.s4{background:var(--s4)}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:14px;margin:8px 0}
th,td{padding:6px 10px;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th{font-weight:600;color:var(--soft);font-size:13px;white-space:normal;vertical-align:bottom}
th:first-child,td:first-child{text-align:left}
td small{color:var(--soft);margin-left:6px}
footer{color:var(--soft);font-size:13px;margin-top:24px}
@media print{body{background:#fff}section,.tile{break-inside:avoid}}
"""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are HTML already."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _with_interval(figure: dict[str, Any], show: Callable[[float], str] = percent) -> str:
    low, high = figure["interval"]
    ends = f"{show(low).removesuffix(' %')} to {show(high).removesuffix(' %')}"
    return f"{show(figure['value'])}<small>{ends}</small>"


def _maybe(value: float | None, show: Callable[[float], str] = percent) -> str:
    return "–" if value is None else show(value)


def _points(value: float) -> str:
    """A difference of shares as "+1.2" percentage points."""
    return f"{100 * value:+.1f}".replace("-", "−")


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", "−")


def _moved(found: dict[str, Any]) -> str:
    """A paired difference in words."""
    low, high = found["interval"]
    verdict = "within noise" if found["p"] >= _NOISE else "beyond noise"
    return (
        f"{_points(found['value'])} points (95 %: {_points(low)} to {_points(high)}; p = {found['p']:.3f}), {verdict}"
    )


def _difference(found: dict[str, Any]) -> tuple[str, str]:
    """A paired difference's cells: percentage points with their interval, and p."""
    return _with_interval(found, _points), f"{found['p']:.3f}"


def _figure(title: str, picture: str) -> str:
    return f"<figure><h3>{escape(title)}</h3>{picture}</figure>"


def _section(title: str, finding: str, about: str, *parts: str) -> str:
    """``finding`` and ``about`` are text; the parts are HTML."""
    said = f'<p class="finding">{escape(finding)}</p>' if finding else ""
    return f'<section><h2>{escape(title)}</h2>{said}<p class="soft">{escape(about)}</p>{"".join(parts)}</section>'


def _tiles(report: dict[str, Any]) -> str:
    label, concept = report["accuracy"]["label"]["accuracy"], report["accuracy"]["concept"]["accuracy"]
    masks = report["masks"]
    facts = [
        (percent(label["value"]), "label accuracy"),
        (percent(concept["value"]), "concept accuracy (mean)"),
        (percent(masks["sparsity"]), f"of the branches' {masks['granularity']} pruned"),
        (percent(report["calibration"]["label"]["calibration_error"]), "label calibration error"),
    ]
    tiles = (f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for value, name in facts)
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _accuracy(report: dict[str, Any]) -> str:
    found = report["accuracy"]
    rows = {"Label": found["label"], "Label, mistakes corrected": found["label_corrected"]}
    rows |= {"Concepts (mean)": found["concept"]} | found["concepts"]
    keys = ("accuracy", "macro_f1", "one_vs_rest_f1")
    dots = [
        Dot(name if len(name) < 20 else "Label, corrected", row["accuracy"]["value"], row["accuracy"]["interval"])
        for name, row in rows.items()
    ]
    groups, texts = report["data"]["groups"], report["data"]["texts"]
    grouped = (
        f"Resamples draw the {groups} originals with all their edits, since edits of one text aren't independent. "
        if groups < texts
        else ""
    )
    return _section(
        "Accuracy",
        "",
        f"With 95 % bootstrap intervals ({report['intervals']['resamples']} resamples). {grouped}Macro-F1 is the mean "
        "of each class's F1; one-vs-rest F1 averages it with the F1 of “it isn't this class”, as the SparseCBM paper's "
        "tables do, and is not comparable with other papers' macro-F1.",
        f'<div class="grid">{_figure("Accuracy", dot_chart("Accuracy of label and concepts", dots))}</div>',
        _table(
            ("", "accuracy", "macro-F1", "one-vs-rest F1"),
            ([escape(name), *(_with_interval(row[key]) for key in keys)] for name, row in rows.items()),
        ),
    )


def _calibration(report: dict[str, Any]) -> str:
    found = report["calibration"]
    rows = {"Label": found["label"]} | found["concepts"]
    pictures = (_figure(name, reliability_diagram(f"Reliability of {name}", row["bins"])) for name, row in rows.items())
    return _section(
        "Calibration",
        f"The confidence in a label misses how often it is right by {percent(found['label']['calibration_error'])} on "
        "average.",
        "How often the most probable value is right (upwards), by how probable the model says it is. On the diagonal, "
        "probabilities mean what they say; below it, the model is too sure. A dot's area is its share of the texts. "
        "The temperature is fitted on one half of these texts and judged on the other, and the other way round; it is "
        "a proposal and not part of the model.",
        f'<div class="small">{"".join(pictures)}</div>',
        _table(
            ("", "calibration error", "with a temperature", "log loss", "with a temperature", "temperatures"),
            (
                [
                    escape(name),
                    percent(row["calibration_error"]),
                    percent(row["with_temperature"]["calibration_error"]),
                    plain(row["log_loss"]),
                    plain(row["with_temperature"]["log_loss"]),
                    ", ".join(f"{value:.2f}" for value in row["temperatures"]) or "–",
                ]
                for name, row in rows.items()
            ),
        ),
    )


def _corrections(report: dict[str, Any]) -> str:
    pictures = []
    names = {"random": "random order", "ask_next": "order of ask_next"}
    for kind, title in (("mistaken", "Only mistaken concepts are set"), ("all", "All concepts are set")):
        curves = report["corrections"][kind]["curves"]
        steps = len(curves["random"])
        lines = [
            Line(
                names[order],
                [(at, step["value"]) for at, step in enumerate(curve)],
                [step["interval"] for step in curve],
            )
            for order, curve in curves.items()
        ]
        ticks = [(at, str(at)) for at in range(steps)]
        pictures.append(_figure(title, line_chart(title, lines, "concepts set to their true value", ticks)))
    rows = []
    for kind, title in (("mistaken", "every mistaken concept"), ("all", "every concept")):
        test = report["corrections"][kind]["none_to_all"]
        counts = test["mcnemar"]
        rows.append(
            [
                title,
                *_difference(test["difference"]),
                f"{counts['gained']} / {counts['lost']}",
                f"{counts['p']:.3f}",
                _with_interval(test["log_loss"], _signed),
                f"{test['log_loss']['p']:.3f}",
            ]
        )
    return _section(
        "Corrections of concepts",
        "Correcting every mistaken concept moves label accuracy by "
        f"{_moved(report['corrections']['mistaken']['none_to_all']['difference'])}.",
        "Label accuracy once concepts are set to their true value and the label head runs again. ask_next asks for the "
        "concept whose answer is expected to move the label's distribution furthest, and looks again after each.",
        f'<div class="grid">{"".join(pictures)}</div>',
        _table(
            [
                "set",
                "label accuracy, points",
                "p, bootstrap",
                "texts gained / lost",
                "p, McNemar",
                "label's log loss, nats",
                "p, bootstrap",
            ],
            rows,
        ),
    )


def _mask_edits(report: dict[str, Any]) -> str:
    found = report["mask_edits"]
    budgets = found["budgets"]
    if not budgets[0]["mistaken"]:
        return _section("Edits of masks", "", "No concept is mistaken, so there is nothing to edit.")
    ticks = [(at, f"{100 * row['budget']:g} %") for at, row in enumerate(budgets)]
    lines = [
        Line(name, [(at, row["concepts"][name]["reached"]) for at, row in enumerate(budgets)])
        for name in budgets[0]["concepts"]
    ]
    rows = (
        [
            f"{100 * row['budget']:g} %",
            percent(row["reached"]),
            percent(row["changed"]),
            percent(row["label_before"]["value"]),
            _with_interval(row["label_after"]),
            *_difference(row["difference"]),
            f"{_maybe(row['affected']['label_before'])} → {_maybe(row['affected']['label_after'])}",
        ]
        for row in budgets
    )
    return _section(
        "Edits of masks",
        f"With {100 * budgets[0]['budget']:g} % of a concept's units, {percent(budgets[0]['reached'])} of the "
        f"{budgets[0]['mistaken']} mistaken concepts reach their true value.",
        "Units are dropped from and grown into a mistaken concept's mask by gradient, in steps of "
        f"{100 * found['step']:g} % of its kept units, until it says its true value or the budget is spent; no weight "
        "is trained. Other concepts' logits move by at most "
        f"{found['largest_change_of_other_logits']:.0e} (rounding is about 1e-05).",
        '<div class="grid">',
        _figure("Mistakes that reach their true value", line_chart("Reached by budget", lines, "budget", ticks)),
        _figure(
            "Label accuracy",
            line_chart(
                "Label accuracy by budget",
                [
                    Line("before", [(0, budgets[0]["label_before"]["value"])], level=True),
                    Line(
                        "after",
                        [(at, row["label_after"]["value"]) for at, row in enumerate(budgets)],
                        [row["label_after"]["interval"] for row in budgets],
                    ),
                ],
                "budget",
                ticks,
            ),
        ),
        "</div>",
        _table(
            ("budget", "reached", "units changed", "label before", "label after", "points", "p", "texts with mistakes"),
            rows,
        ),
    )


def _faithfulness(report: dict[str, Any]) -> str:
    found = report["faithfulness"]
    ticks = [(at, f"{100 * share:g} %") for at, share in enumerate(found["shares"])]
    pictures = []
    for measured, title in (
        ("comprehensiveness", "Comprehensiveness: more is better"),
        ("sufficiency", "Sufficiency: less is better"),
    ):
        lines = [
            Line(
                name,
                [(at, step["value"]) for at, step in enumerate(row[measured]["shares"])],
                [step["interval"] for step in row[measured]["shares"]],
            )
            for name, row in found["methods"].items()
        ]
        pictures.append(_figure(title, line_chart(title, lines, "tokens removed, or kept alone", ticks, plain)))
    rows = (
        [
            escape(name),
            _with_interval(row["comprehensiveness"]["mean"], plain),
            _with_interval(row["sufficiency"]["mean"], plain),
            f"{row['forward_passes']:.0f}",
            f"{row['backward_passes']:.0f}",
        ]
        for name, row in found["methods"].items()
    )

    def reach(name: str) -> float:
        value: float = found["methods"][name]["comprehensiveness"]["mean"]["value"]
        return value

    best = max((name for name in found["methods"] if name != SERVED), key=reach)
    return _section(
        "Faithfulness of token scores",
        f"Comprehensiveness of {best} is {plain(reach(best))}, of {SERVED}, which the server gives, "
        f"{plain(reach(SERVED))}, and of random scores {plain(reach('random'))}.",
        "By how much the probability of a concept's predicted value falls without its highest-scored tokens "
        "(comprehensiveness) and with these alone (sufficiency), after ERASER (DeYoung et al. 2020); mean over the "
        f"concepts of {found['texts']} texts drawn at random. Removed tokens are hidden from attention and pooling. "
        "Passes are per text, for all concepts.",
        f'<div class="grid">{"".join(pictures)}</div>',
        _table(("method", "comprehensiveness", "sufficiency", "forward passes", "backward passes"), rows),
    )


def _leakage(report: dict[str, Any]) -> str:
    found = report["leakage"]
    if "note" in found:
        return _section("Leakage", "", f"Not measured: {found['note']}")
    rows = {"All concepts": found["all"]} | found["concepts"]

    def dots(low: str, high: str) -> list[Dot]:
        return [
            Dot(name, row[high]["accuracy"]["value"], row[high]["accuracy"]["interval"], row[low]["accuracy"]["value"])
            for name, row in rows.items()
        ]

    most = max(found["concepts"], key=lambda name: float(found["concepts"][name]["leaked"]["bits"]["value"]))
    kinds = ("true value", "predicted value", "probabilities", "activation", "corrected activation")
    return _section(
        "Leakage",
        f"From {most}'s activation alone a linear probe reads the label in "
        f"{percent(rows[most]['activation']['accuracy']['value'])} of texts, from its value in "
        f"{percent(rows[most]['predicted value']['accuracy']['value'])}. From all activations it does "
        f"{_points(found['all']['leaked']['accuracy']['value'])} points better than from all values.",
        "What an activation tells of the label beyond its concept's value (Mahinpei et al. 2021): accuracy of a linear "
        "probe on the hard value (hollow) and on the activation (full), fitted on one half of the texts and judged on "
        "the other. In bits, the gap is usable information (Xu et al. 2020). Leakage isn't all bad: it is also the "
        "strength that four values can't carry; but what leaks can't be read off the concepts.",
        '<div class="grid">',
        _figure("Predicted value → activation", dot_chart("Leakage", dots("predicted value", "activation"))),
        _figure(
            "True value → activation once corrected",
            dot_chart("Leakage when corrected", dots("true value", "corrected activation")),
        ),
        "</div>",
        _table(
            ("label read from", *kinds, "leaked, bits", "when corrected, bits"),
            (
                [
                    escape(name),
                    *(percent(row[kind]["accuracy"]["value"]) for kind in kinds),
                    _with_interval(row["leaked"]["bits"], plain),
                    _with_interval(row["leaked_when_corrected"]["bits"], plain),
                ]
                for name, row in rows.items()
            ),
        ),
    )


def _counterfactuals(report: dict[str, Any]) -> str:
    found = report["counterfactuals"]
    title = "Counterfactual pairs"
    if "note" in found:
        return _section(title, "", f"Not measured: {found['note']}")
    names = {"intervention": "intervention", "contrast": "contrast", "zero": "predict zero", "random": "random"}
    keys = {"l2": "L2", "cosine": "cosine", "norm": "norm difference"}
    pictures = (
        _figure(
            f"{shown} error: less is better",
            dot_chart(
                f"{shown} error",
                [
                    Dot(names[name], row[key]["value"], row[key]["interval"])
                    for name, row in found["explanations"].items()
                ],
                plain,
                zero=True,
            ),
        )
        for key, shown in keys.items()
    )
    ours, zero = (found["explanations"][name]["l2"]["value"] for name in ("intervention", "zero"))
    return _section(
        title,
        f"Setting the concept foretells the effect of an edit with an L2 error of {plain(ours)}, against {plain(zero)} "
        "for predicting none.",
        f"ICaCE error (Abraham et al. 2022) on {found['pairs']} pairs of versions of a review that differ in one "
        f"concept, {found['pairs_from_original']} of them from original to edit. Observed: how the model's label "
        "probabilities change between the two. Predicted from the first version alone: the change when the concept is "
        "set to its new value (intervention), or against it set to its old value (contrast).",
        f'<div class="grid">{"".join(pictures)}</div>',
        _table(
            ("explanation", *keys.values(), "L2, from original", "cosine, from original", "norm, from original"),
            (
                [
                    escape(names[name]),
                    *(_with_interval(row[key], plain) for key in keys),
                    *(_maybe(row["from_original"][key], plain) for key in keys),
                ]
                for name, row in found["explanations"].items()
            ),
        ),
    )


def _masks(report: dict[str, Any]) -> str:
    found = report["masks"]
    names = list(found["concepts"])
    layers = [f"layer {layer + 1}" for layer in found["layers"]]
    trunk = f" The {found['trunk']} lower layers are shared" if found["trunk"] else " No layer is shared"
    if found["trunk"] and found["trunk_density"] < 1:
        trunk += f" and keep {percent(found['trunk_density'])} of their units"
    return _section(
        "Subnetworks",
        f"Each concept keeps {percent(found['density'])} of the branches' {found['granularity']} on average.",
        "Left, the share that a concept keeps in each branch layer. Right, the overlap of two concepts' subnetworks: "
        f"what both keep, as a share of what either keeps (Jaccard index).{trunk}.",
        '<div class="grid">',
        _figure(
            "Density by layer",
            heat_map("Density by layer", names, layers, [row["by_layer"] for row in found["concepts"].values()]),
        ),
        _figure("Overlap", heat_map("Overlap between concepts", names, names, found["overlap"])),
        "</div>",
    )


def _comparison(report: dict[str, Any]) -> str:
    rows = sorted(report["comparison"], key=lambda row: row["sparsity"])
    if not rows:
        return ""
    ticks = [(at / 4, f"{25 * at} %") for at in range(5)]
    pictures = []
    for key, title in (("label", "Label accuracy"), ("concept", "Concept accuracy")):
        told = [row for row in rows if key in row]  # a classifier knows no concepts
        sparse = [row for row in told if row["density"] < 1]
        lines = [
            Line(f"dense: {row['name']}", [(0, row[key]["value"])], level=True) for row in told if row not in sparse
        ]
        points = [Line(row["name"], [(row["sparsity"], row[key]["value"])], [row[key]["interval"]]) for row in sparse]
        if len({round(row["sparsity"], 3) for row in sparse}) == len(sparse) > 1:  # a sweep
            joined = (
                [point for line in points for point in line.points],
                [ends for line in points for ends in line.intervals],
            )
            points = [Line("sparse", *joined)]
        lines = points + lines
        pictures.append(_figure(title, line_chart(f"{title} by sparsity", lines, "sparsity of the branches", ticks)))
    return _section(
        "Sparsity against accuracy",
        "",
        "Differences are from the checkpoint that this report is about, paired on the same texts.",
        f'<div class="grid">{"".join(pictures)}</div>',
        _table(
            ("checkpoint", "sparsity", "label", "concepts", "label, points", "p", "concepts, points", "p"),
            (
                [
                    escape(row["name"]),
                    percent(row["sparsity"]),
                    *(_with_interval(row[key]) if key in row else "–" for key in ("label", "concept")),
                    *(
                        cell
                        for key in ("label_difference", "concept_difference")
                        for cell in (
                            _difference(row[key]) if key in row and row is not report["comparison"][0] else "––"
                        )
                    ),
                ]
                for row in rows
            ),
        ),
    )


def page(report: dict[str, Any]) -> str:
    """The HTML page of what ``assess`` found; names and values in it are escaped."""
    model, data = report["model"], report["data"]
    facts = (
        f"{data['texts']} texts of {data['name']}, split {data['split']}. Backbone {model['backbone']}. Concepts: "
        f"{', '.join(model['concepts'])}. Labels: {', '.join(model['labels'])}."
    )
    if data["truncated"]:
        facts += f" {data['truncated']} texts were cut at {model['max_tokens']} tokens."
    sections: list[Callable[[dict[str, Any]], str]] = [
        _accuracy,
        _comparison,
        _corrections,
        _mask_edits,
        _calibration,
        _faithfulness,
        _leakage,
        _counterfactuals,
        _masks,
    ]
    title = f"{model['name']} on {data['split']}"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width,initial-scale=1"><meta name="color-scheme" '
        f'content="light dark"><title>{escape(title)}</title><style>{_STYLE}</style></head><body><main>'
        f'<h1>{escape(title)}</h1><p class="soft">{escape(facts)}</p>{_tiles(report)}'
        f"{''.join(section(report) for section in sections)}"
        f"<footer>All random draws use seed {report['intervals']['seed']}. The same figures as JSON are in report.json."
        "</footer>"
        "</main></body></html>\n"
    )


def check_folder(folder: Path) -> None:
    """Finds out before the long work whether a report can be written to a folder.

    Raises:
        SetupError: it holds something that isn't a report, or nothing can be written there.
    """
    if folder.exists() and not (folder / JSON).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise SetupError(f"{folder} exists and is not a report; name another folder with --report.")
    check_writable(folder)


def write(report: dict[str, Any], folder: Path) -> None:
    """Writes what ``assess`` found as JSON and as a page, replacing a report that is there."""
    with atomic_folder(folder) as new:
        (new / JSON).write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        (new / PAGE).write_text(page(report), encoding="utf-8")
