"""The full report of a tiny checkpoint, from the command line to the page."""

from __future__ import annotations

import copy
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sparsecbm.errors import SetupError
from sparsecbm.report import JSON, PAGE, check_folder, page, write
from tests.program import Ran, sparsecbm

SECTIONS = ["Accuracy", "Sparsity against accuracy", "Corrections of concepts", "Edits of masks", "Calibration"]
SECTIONS += ["Faithfulness of token scores", "Leakage", "Counterfactual pairs", "Subnetworks"]


class Reported(NamedTuple):
    folder: Path
    ran: Ran
    found: dict[str, Any]


@pytest.fixture(scope="module")
def reported(checkpoint: Path, reviews: Path, tmp_path_factory: pytest.TempPathFactory) -> Reported:
    folder = tmp_path_factory.mktemp("reports") / "report"
    ran = sparsecbm(
        *("evaluate", str(checkpoint), "--data", str(reviews), "--report", str(folder), "--limit", "60"),
        *("--compare", str(checkpoint), "--json"),
    )
    assert ran.code == 0, ran.err
    return Reported(folder, ran, json.loads((folder / JSON).read_text()))


class Page(HTMLParser):
    """What a page loads, says as headings, and whether its tags match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.headings: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.loads += [str(value) for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


def test_the_report_is_json_and_one_page(reported: Reported) -> None:
    assert sorted(path.name for path in reported.folder.iterdir()) == [PAGE, JSON]
    assert f"Report: {reported.folder / PAGE}" in reported.ran.err


def test_the_figures_are_printed_all_the_same(reported: Reported) -> None:
    assert json.loads(reported.ran.out)["dev"]["texts"] == 60
    label = json.loads(reported.ran.out)["dev"]["label"]["accuracy"]
    assert reported.found["accuracy"]["label"]["accuracy"]["value"] == label


def test_the_page_has_every_section_and_loads_nothing(reported: Reported) -> None:
    seen = Page((reported.folder / PAGE).read_text())
    assert seen.headings == SECTIONS
    assert seen.loads == [] and not seen.tags & {"script", "link", "img", "iframe", "object"}
    assert seen.open == []


def test_the_pages_figures_are_the_jsons(reported: Reported) -> None:
    assert page(reported.found) == (reported.folder / PAGE).read_text()


def test_intervals_are_around_their_values(reported: Reported) -> None:
    def visit(part: Any) -> int:
        if isinstance(part, dict):
            if "interval" in part:
                assert part["interval"][0] <= part["value"] + 1e-9 and part["value"] <= part["interval"][1] + 1e-9
                return 1
            return sum(visit(value) for value in part.values())
        return sum(visit(value) for value in part) if isinstance(part, list) else 0

    assert visit(reported.found["accuracy"]) == 18
    assert visit(reported.found["corrections"]) > 10


def test_curves_start_at_the_models_accuracy(reported: Reported) -> None:
    label = reported.found["accuracy"]["label"]["accuracy"]["value"]
    corrected = reported.found["accuracy"]["label_corrected"]["accuracy"]["value"]
    for kind in ("mistaken", "all"):
        for curve in reported.found["corrections"][kind]["curves"].values():
            assert curve[0]["value"] == pytest.approx(label)
            assert len(curve) == 4
    assert reported.found["corrections"]["mistaken"]["curves"]["random"][-1]["value"] == pytest.approx(corrected)


def test_a_checkpoint_beside_itself_differs_by_nothing(reported: Reported) -> None:
    _, same = reported.found["comparison"]
    assert same["label_difference"]["value"] == 0 and same["concept_difference"]["value"] == 0
    assert same["sparsity"] == pytest.approx(0.5, abs=0.02)


def test_data_without_pairs_says_so(reported: Reported) -> None:
    assert "known of CEBaB alone" in reported.found["counterfactuals"]["note"]
    assert "Not measured: " in (reported.folder / PAGE).read_text()


def test_every_attribution_is_judged_on_all_of_few_texts(reported: Reported) -> None:
    assert reported.found["faithfulness"]["texts"] == 60
    assert set(reported.found["faithfulness"]["methods"]) == {
        "conservative propagation",
        "gradient × input",
        "integrated gradients",
        "leave one out",
        "random",
    }


def test_names_are_escaped(reported: Reported) -> None:
    nasty = '<img src=x onerror="alert(1)">'
    found = copy.deepcopy(reported.found)
    found["model"]["name"] = found["data"]["split"] = found["counterfactuals"]["note"] = nasty
    found["comparison"][0]["name"] = nasty
    for part in (found["accuracy"], found["calibration"], found["leakage"], found["masks"]):
        part["concepts"] = {nasty + name: row for name, row in part["concepts"].items()}
    text = page(found)
    assert "<img" not in text
    assert Page(text).loads == []


def test_a_report_replaces_a_report(reported: Reported, tmp_path: Path) -> None:
    write(reported.found, tmp_path / "again")
    check_folder(tmp_path / "again")
    write(reported.found, tmp_path / "again")
    assert (tmp_path / "again" / PAGE).read_text() == (reported.folder / PAGE).read_text()


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path, checkpoint: Path, reviews: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(SetupError, match="exists and is not a report"):
        check_folder(tmp_path)
    ran = sparsecbm("evaluate", str(checkpoint), "--data", str(reviews), "--report", str(tmp_path))
    assert ran.code == 2
    assert ran.err == f"error: {tmp_path} exists and is not a report; name another folder with --report.\n"


def test_comparing_without_a_report_is_refused(checkpoint: Path, reviews: Path) -> None:
    ran = sparsecbm("evaluate", str(checkpoint), "--data", str(reviews), "--compare", str(checkpoint))
    assert ran.code == 2
    assert "--compare is a part of the report" in ran.err


def test_the_limit_holds_without_a_report(checkpoint: Path, reviews: Path) -> None:
    ran = sparsecbm("evaluate", str(checkpoint), "--data", str(reviews), "--limit", "7", "--json")
    assert json.loads(ran.out)["dev"]["texts"] == 7


def test_a_sweep_is_one_line_and_dense_checkpoints_are_levels(reported: Reported) -> None:
    found = copy.deepcopy(reported.found)
    row = found["comparison"][0]
    found["comparison"] = [
        row | {"name": name, "sparsity": sparsity, "density": 1 - sparsity}
        for name, sparsity in (("a", 0.5), ("b", 0.75), ("c", 0.9), ("d", 0.0))
    ]
    text = page(found)
    assert text.count("sparse</span>") == 2 and text.count("dense: d</span>") == 2
    assert text.count('class="line level') >= 2


def test_a_classifier_has_a_level_for_the_label_alone(reported: Reported) -> None:
    found = copy.deepcopy(reported.found)
    found["comparison"][1] |= {"name": "classifier", "sparsity": 0.0, "density": 1.0}
    for key in ("concept", "concept_difference"):
        del found["comparison"][1][key]
    assert page(found).count("dense: classifier</span>") == 1
