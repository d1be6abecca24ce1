"""Plots as inline SVG: no library, no script; colours are the page's own, so that they follow light and dark."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

SERIES = 5  # colours that the page's style has
_WIDTH, _HEIGHT = 440, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 12, 44


def percent(value: float) -> str:
    """0.678 as "67.8 %"."""
    return f"{100 * value:.1f} %"


def plain(value: float) -> str:
    """0.6784 as "0.678", with a real minus sign."""
    return f"{value:.3f}".replace("-", "−")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart.

    Attributes:
        name: in the legend.
        points: (x, y) from left to right.
        intervals: [low, high] of each y; drawn as a whisker.
        level: whether it is one dashed level over the whole width, at its first point's height.
    """

    name: str
    points: Sequence[tuple[float, float]]
    intervals: Sequence[Sequence[float]] = ()
    level: bool = False


@dataclass(frozen=True, slots=True)
class Dot:
    """One row of a dot chart: a value with its interval, and perhaps where it came from."""

    name: str
    value: float
    interval: Sequence[float]
    start: float | None = None


def _svg(width: float, height: float, title: str, body: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(body)}</svg>"
    )


def _text(x: float, y: float, text: str, anchor: str = "middle", kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def _ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers between two, at most so many."""
    step = 10.0**-4
    while (high - low) / step > most - 1:
        step *= 2.5 if f"{step:e}".startswith("2") else 2
    first = int(low / step) - 1
    return [
        at * step for at in range(first, int(high / step) + 2) if low - step * 1e-6 <= at * step <= high + step * 1e-6
    ]


def span(values: Sequence[float], least: float = 0.02) -> tuple[float, float]:
    """The range of values with a margin, not narrower than ``least``."""
    low, high = min(values), max(values)
    margin = max((high - low) * 0.08, (least - (high - low)) / 2)
    return low - margin, high + margin


def legend(names: Sequence[str]) -> str:
    """What the colours of a chart's lines mean."""
    items = (f'<span><i class="key s{at % SERIES}"></i>{escape(name)}</span>' for at, name in enumerate(names))
    return f'<p class="legend">{"".join(items)}</p>'


def line_chart(
    title: str,
    lines: Sequence[Line],
    x_label: str,
    x_ticks: Sequence[tuple[float, str]],
    show: Callable[[float], str] = percent,
) -> str:
    """Lines with whiskers, and a legend where there are several.

    Args:
        title: read out in place of the picture.
        lines: at least one with a point.
        x_label: below.
        x_ticks: where and what; they also span the width.
        show: writes a y.
    """
    xs = [x for x, _ in x_ticks]
    ys = [y for line in lines for _, y in line.points] + [y for line in lines for ends in line.intervals for y in ends]
    low, high = span(ys)
    wide = (max(xs) - min(xs)) or 1.0
    left, right = min(xs) - wide * 0.05, max(xs) + wide * 0.05

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            _LEFT + (x - left) / (right - left) * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - (y - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM),
        )

    body = []
    for tick in _ticks(low, high):
        _, y = at(left, tick)
        body += [_line(_LEFT, y, _WIDTH - _RIGHT, y, "grid"), _text(_LEFT - 6, y + 4, show(tick), "end")]
    for x, name in x_ticks:
        body.append(_text(at(x, low)[0], _HEIGHT - _BOTTOM + 18, name))
    body.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 6, x_label, kind="soft"))
    shift = (len(lines) - 1) / 2
    for number, line in enumerate(lines):
        kind = f"s{number % SERIES}"
        if line.level:
            y = at(left, line.points[0][1])[1]
            body.append(_line(_LEFT, y, _WIDTH - _RIGHT, y, f"line level {kind}"))
            continue
        places = [at(x, y) for x, y in line.points]
        places = [(x + (number - shift) * 3, y) for x, y in places]  # so that whiskers don't hide each other
        for (x, _), ends in zip(places, line.intervals, strict=False):
            body.append(_line(x, at(left, ends[0])[1], x, at(left, ends[1])[1], f"whisker {kind}"))
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        body.append(f'<polyline points="{path}" class="line {kind}"/>')
        for (x, y), (_, value) in zip(places, line.points, strict=True):
            tip = escape(f"{line.name}: {show(value)}")
            body.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" class="dot {kind}"><title>{tip}</title></circle>')
    names = legend([line.name for line in lines]) if len(lines) > 1 else ""
    return _svg(_WIDTH, _HEIGHT, title, body) + names


def dot_chart(title: str, dots: Sequence[Dot], show: Callable[[float], str] = percent, zero: bool = False) -> str:
    """A row for each value: a dot, its interval as a whisker, and a hollow dot where it came from.

    Args:
        title: read out in place of the picture.
        dots: at least one.
        show: writes a value.
        zero: whether the axis begins at 0.
    """
    row, right = 27, 64
    left = max(140.0, 7.5 * max(len(dot.name) for dot in dots) + 10)
    values = [value for dot in dots for value in (*dot.interval, dot.value)]
    values += [dot.start for dot in dots if dot.start is not None]
    low, high = span([*values, 0.0] if zero else values)
    low = 0.0 if zero and min(values) >= 0 else low
    height = row * len(dots) + 32

    def at(value: float) -> float:
        return left + (value - low) / (high - low) * (_WIDTH - left - right)

    body = []
    for tick in _ticks(low, high, 5):
        body += [_line(at(tick), 4, at(tick), height - 24, "grid"), _text(at(tick), height - 8, show(tick))]
    for number, dot in enumerate(dots):
        y = row * number + 20
        body += [
            _text(left - 10, y + 4, dot.name, "end", "name"),
            _line(at(dot.interval[0]), y, at(dot.interval[1]), y, "whisker s0"),
        ]
        if dot.start is not None:
            body += [
                _line(at(dot.start), y, at(dot.value), y, "line s0"),
                f'<circle cx="{at(dot.start):.1f}" cy="{y}" r="4" class="hollow s0"/>',
            ]
        body += [
            f'<circle cx="{at(dot.value):.1f}" cy="{y}" r="4.5" class="dot s0"/>',
            _text(_WIDTH - 4, y + 4, show(dot.value), "end"),
        ]
    return _svg(_WIDTH, height, title, body)


def reliability_diagram(title: str, bins: Sequence[dict[str, float]]) -> str:
    """Accuracy by confidence against the diagonal; a dot's area is its share of the texts."""
    size, left, bottom = 240, 40, 36
    inner = size - left - 10

    def at(confidence: float, accuracy: float) -> tuple[float, float]:
        return left + confidence * inner, size - bottom - accuracy * (size - bottom - 10)

    texts = sum(found["texts"] for found in bins)
    body = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        (x, y), name = at(tick, tick), f"{100 * tick:.0f}"
        body += [_line(left, y, size - 10, y, "grid"), _text(left - 5, y + 4, name, "end")]
        body.append(_text(x, size - bottom + 15, name))
    body.append(_line(*at(0, 0), *at(1, 1), "diagonal"))
    body.append(_text((left + size - 10) / 2, size - 4, "confidence, %", kind="soft"))
    for found in bins:
        x, y = at(found["confidence"], found["accuracy"])
        radius = 3 + 11 * (found["texts"] / texts) ** 0.5
        tip = f"{found['texts']} texts: confidence {percent(found['confidence'])}, right {percent(found['accuracy'])}"
        body += [
            _line(x, y, x, at(0, found["confidence"])[1], "gap"),
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" class="bubble s0">',
            f"<title>{escape(tip)}</title></circle>",
        ]
    return _svg(size, size, title, body)


def heat_map(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float]],
    show: Callable[[float], str] = percent,
) -> str:
    """A table of shares in [0, 1], the fuller the darker."""
    left, top, cell_height = 110, 26, 34
    cell = (_WIDTH - left - 4) / len(columns)
    body = [
        _text(left + cell * (number + 0.5), 16, name if len(name) * 7 < cell else f"{name[: int(cell / 7)]}…")
        for number, name in enumerate(columns)
    ]
    for number, (name, shares) in enumerate(zip(rows, values, strict=True)):
        y = top + cell_height * number
        body.append(_text(left - 10, y + cell_height / 2 + 4, name, "end", "name"))
        for column, share in enumerate(shares):
            x = left + cell * column
            body += [
                f'<rect x="{x:.1f}" y="{y}" width="{cell - 2:.1f}" height="{cell_height - 2}" rx="3" class="cell" '
                f'style="fill-opacity:{min(max(share, 0), 1):.3f}"/>',
                _text(x + cell / 2 - 1, y + cell_height / 2 + 4, show(share), kind="on" if share > 0.55 else ""),
            ]
    return _svg(_WIDTH, top + cell_height * len(rows) + 4, title, body)
