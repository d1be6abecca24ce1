"""SVG that is well formed, escaped and where it should be."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from sparsecbm.plots import (
    Dot,
    Line,
    dot_chart,
    heat_map,
    legend,
    line_chart,
    percent,
    plain,
    reliability_diagram,
    span,
)

NASTY = '<script>"&'
TICKS = [(0, "0"), (1, "1")]


def circles(svg: str) -> list[tuple[float, float]]:
    root = ElementTree.fromstring(svg[: svg.index("</svg>") + 6])
    return [(float(item.attrib["cx"]), float(item.attrib["cy"])) for item in root.iter("circle")]


@pytest.mark.parametrize(
    "picture",
    [
        line_chart(
            NASTY,
            [Line(NASTY, [(0, 0.1), (1, 0.2)], [[0, 0.2], [0.1, 0.3]]), Line("b", [(0, 0.3)], level=True)],
            NASTY,
            TICKS,
        ),
        dot_chart(NASTY, [Dot(NASTY, 0.5, [0.4, 0.6], 0.1)]),
        reliability_diagram(NASTY, [{"texts": 3, "confidence": 0.9, "accuracy": 0.5}]),
        heat_map(NASTY, [NASTY], [NASTY, "b"], [[0.2, 1.0]]),
    ],
    ids=["lines", "dots", "reliability", "heat"],
)
def test_names_are_escaped_and_the_picture_is_well_formed(picture: str) -> None:
    assert "<script" not in picture
    ElementTree.fromstring(f"<div>{picture}</div>")


def test_higher_values_are_drawn_higher_and_later_ones_to_the_right() -> None:
    (x1, y1), (x2, y2) = circles(line_chart("t", [Line("a", [(0, 0.1), (1, 0.4)])], "x", TICKS))
    assert x1 < x2 and y1 > y2


def test_a_dot_lies_right_of_where_it_came_from() -> None:
    (start, _), (end, _) = circles(dot_chart("t", [Dot("a", 0.5, [0.4, 0.6], 0.1)]))
    assert start < end


def test_a_long_name_has_room_beside_its_dot() -> None:
    (short, _), (long, _) = (circles(dot_chart("t", [Dot(name * 40, 0, [0, 1])]))[0] for name in ("", "n"))
    assert short < 200 and long > 300


def test_values_that_are_all_equal_can_be_drawn() -> None:
    places = circles(line_chart("t", [Line("a", [(0, 0.5), (1, 0.5)], [[0.5, 0.5], [0.5, 0.5]])], "x", TICKS))
    assert places[0][1] == places[1][1]


def test_a_single_tick_can_be_drawn() -> None:
    assert len(circles(line_chart("t", [Line("a", [(0, 0.5)])], "x", [(0, "0")]))) == 1


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.652, 0.705), (-0.04, 0.52), (0.8801, 0.8803)])
def test_axes_have_a_few_ticks_within_their_range(low: float, high: float) -> None:
    svg = line_chart("t", [Line("a", [(0, low), (1, high)])], "x", TICKS)
    ys = [float(y) for y in re.findall(r'y1="([-\d.]+)" x2="[\d.]+" y2="[\d.]+" class="grid"', svg)]
    assert 1 <= len(ys) <= 7
    assert all(0 <= y <= 270 for y in ys)


def test_numbers_are_written_for_people() -> None:
    assert (percent(0.678), plain(-0.0194)) == ("67.8 %", "−0.019")


def test_a_range_has_a_margin() -> None:
    low, high = span([1.0, 2.0])
    assert low < 1 and high > 2


def test_a_legend_has_a_colour_for_each_name() -> None:
    assert re.findall(r'key (s\d)"></i>(\w)', legend(["a", "b"])) == [("s0", "a"), ("s1", "b")]
