"""Data sets: CEBaB's published shape, tables with a YAML, and what each bad input is told."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sparsecbm import data
from sparsecbm.errors import DataError

ROWS = [
    {"review": "good pasta", "stars": "3", "taste": "Positive"},
    {"review": "cold soup", "stars": "1", "taste": "Negative"},
    {"review": "a room", "stars": "2", "taste": ""},
]
YAML = """\
name: mine
text: review
label: {column: stars, values: [1, 2, 3]}
concepts:
  food: {column: taste, values: [Negative, Positive, unknown], aliases: {bad: Negative}, missing: unknown}
files: {train: FILE}
"""


def published(stars: str = "4", text: str = "Lovely.", **aspects: str) -> dict[str, str]:
    """A row of CEBaB as published, with columns that nobody asks for."""
    row = {"id": "1", "original_id": "1", "description": text, "review_majority": stars}
    return row | {f"{name}_aspect_majority": aspects.get(name, "") for name in ("food", "ambiance", "service", "noise")}


def write_cebab(folder: Path, rows: list[dict[str, str]], split: str = "dev") -> str:
    (folder / f"{split}.json").write_text(json.dumps(rows), encoding="utf-8")
    return f"cebab:{folder}"


def write_table(folder: Path, rows: list[dict[str, Any]], ending: str) -> str:
    """Rows in a file of the given ending, and the YAML that describes it."""
    path = folder / f"rows{ending}"
    if ending in (".csv", ".tsv"):
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="," if ending == ".csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    elif ending == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif ending == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return describe(folder, path.name)


def describe(folder: Path, file: str, text: str = YAML) -> str:
    path = folder / "mine.yaml"
    path.write_text(text.replace("FILE", file), encoding="utf-8")
    return str(path)


@pytest.fixture
def refused() -> Callable[..., None]:
    """Checks that loading fails with a DataError that has all the given parts in its message."""

    def check(source: str, *parts: str, split: str = "train") -> None:
        with pytest.raises(DataError) as caught:
            data.load(source, split)
        for part in parts:
            assert part in caught.value.message

    return check


Refused = Callable[..., None]


def test_cebab_is_read_as_published(tmp_path: Path) -> None:
    loaded = data.load(write_cebab(tmp_path, [published("4", food="Positive", noise="Negative")]), "dev")
    assert loaded.texts == ("Lovely.",)
    assert loaded.labels.tolist() == [3]
    assert loaded.concepts.tolist() == [[1, 2, 2, 0]]
    assert [concept.name for concept in loaded.schema.concepts] == ["food", "ambiance", "service", "noise"]
    assert loaded.schema.labels == ("1", "2", "3", "4", "5")


def test_cebab_is_read_gzipped(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "dev.json.gz", "wt", encoding="utf-8") as file:
        json.dump([published(), published()], file)
    assert len(data.load(f"cebab:{tmp_path}", "dev")) == 2


@pytest.mark.parametrize("cell", ["", "no majority", "unknown"])
def test_cebab_says_unknown_in_three_ways(tmp_path: Path, cell: str) -> None:
    loaded = data.load(write_cebab(tmp_path, [published(service=cell)]), "dev")
    assert loaded.schema.concepts[2].values[loaded.concepts[0, 2]] == "unknown"


def test_cebab_rows_whose_label_has_no_majority_are_left_out(tmp_path: Path) -> None:
    loaded = data.load(write_cebab(tmp_path, [published("no majority", "Hm."), published("2", "Meh.")]), "dev")
    assert loaded.texts == ("Meh.",)


def test_cebab_without_the_split_says_which_files_there_are(tmp_path: Path, refused: Refused) -> None:
    refused(write_cebab(tmp_path, [published()]), "has no test.json or test.json.gz", "['dev.json']", split="test")


def test_cebab_without_the_folder_says_so(tmp_path: Path, refused: Refused) -> None:
    refused(f"cebab:{tmp_path / 'nowhere'}", "nowhere has no dev.json", "it has no JSON file", split="dev")


def test_cebab_with_no_usable_row_says_so(tmp_path: Path, refused: Refused) -> None:
    refused(write_cebab(tmp_path, [published("no majority")]), "dev.json has no usable row", split="dev")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str, str], Any]], None]:
    """Puts a function of repository and split in the place of the hub's loader."""

    def put(load: Callable[[str, str], Any]) -> None:
        loader = SimpleNamespace(load_dataset=lambda repository, split: load(repository, split))
        monkeypatch.setitem(sys.modules, "datasets", loader)

    return put


Hub = Callable[[Callable[[str, str], Any]], None]


def test_the_hub_calls_dev_validation(hub: Hub) -> None:
    asked: list[tuple[str, str]] = []

    def load(repository: str, split: str) -> list[dict[str, str]]:
        asked.append((repository, split))
        return [published("5")]

    hub(load)
    assert data.load("cebab", "dev").labels.tolist() == [4]
    assert asked == [("CEBaB/CEBaB", "validation")]


def test_a_split_that_the_hub_lacks_is_named(hub: Hub, refused: Refused) -> None:
    def load(repository: str, split: str) -> None:
        raise ValueError(f"Unknown split {split!r}")

    hub(load)
    refused("cebab", "CEBaB/CEBaB has no split 'trian'", split="trian")


def test_without_the_hub_the_folder_is_advised(hub: Hub, refused: Refused) -> None:
    def load(repository: str, split: str) -> None:
        raise ConnectionError

    hub(load)
    refused("cebab", "can't be read from the Hugging Face hub (ConnectionError)", "--data cebab:FOLDER", split="dev")


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".json", ".parquet", ".pq"])
def test_a_table_is_read_in_every_format(tmp_path: Path, ending: str) -> None:
    loaded = data.load(write_table(tmp_path, ROWS, ending), "train")
    assert loaded.texts == ("good pasta", "cold soup", "a room")
    assert loaded.labels.tolist() == [2, 0, 1]
    assert loaded.concepts.tolist() == [[1], [0], [2]]


@pytest.mark.parametrize("stars", [3, "3", " 3 "])
def test_a_label_may_be_a_number_or_its_text(tmp_path: Path, stars: Any) -> None:
    loaded = data.load(write_table(tmp_path, [ROWS[0] | {"stars": stars}], ".jsonl"), "train")
    assert loaded.labels.tolist() == [2]


def test_an_alias_means_its_value(tmp_path: Path) -> None:
    loaded = data.load(write_table(tmp_path, [ROWS[0] | {"taste": "bad"}], ".csv"), "train")
    assert loaded.concepts.tolist() == [[0]]


def test_a_null_cell_is_the_missing_value(tmp_path: Path) -> None:
    loaded = data.load(write_table(tmp_path, [ROWS[0] | {"taste": None}], ".jsonl"), "train")
    assert loaded.concepts.tolist() == [[2]]


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    source = write_table(tmp_path, ROWS, ".csv")
    path = tmp_path / "rows.csv"
    path.write_text(path.read_text(encoding="utf-8"), encoding="utf-8-sig")
    assert len(data.load(source, "train")) == 3


def test_blank_lines_between_json_lines_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("\n\n".join(json.dumps(row) for row in ROWS) + "\n\n", encoding="utf-8")
    assert len(data.load(describe(tmp_path, "rows.jsonl"), "train")) == 3


def test_a_file_may_be_named_by_an_absolute_path(tmp_path: Path) -> None:
    write_table(tmp_path, ROWS, ".csv")
    (tmp_path / "elsewhere").mkdir()
    assert len(data.load(describe(tmp_path / "elsewhere", str(tmp_path / "rows.csv")), "train")) == 3


def test_a_file_may_be_named_by_a_url(tmp_path: Path) -> None:
    write_table(tmp_path, ROWS, ".csv")
    assert len(data.load(describe(tmp_path, (tmp_path / "rows.csv").as_uri()), "train")) == 3


def test_a_missing_file_is_named(tmp_path: Path, refused: Refused) -> None:
    refused(describe(tmp_path, "gone.csv"), "There is no data file at", "gone.csv")


def test_another_ending_says_which_are_right(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "rows.xlsx").write_bytes(b"PK")
    refused(
        describe(tmp_path, "rows.xlsx"), "rows.xlsx: can't tell its format", ".csv, .tsv, .jsonl, .json or .parquet"
    )


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".parquet"])
def test_a_file_that_is_not_what_its_ending_says(tmp_path: Path, refused: Refused, ending: str) -> None:
    (tmp_path / f"rows{ending}").write_text("stars: five\n", encoding="utf-8")
    refused(describe(tmp_path, f"rows{ending}"), f"rows{ending} can't be read as {ending}")


def test_a_csv_that_is_not_utf8(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "rows.csv").write_bytes("review,stars,taste\ncafé,3,Positive\n".encode("latin-1"))
    refused(describe(tmp_path, "rows.csv"), "rows.csv can't be read as .csv", "utf-8")


def test_a_csv_with_an_open_quote(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "rows.csv").write_text('review,stars,taste\n"cold soup,3,Positive\n', encoding="utf-8")
    refused(describe(tmp_path, "rows.csv"), "rows.csv can't be read as .csv")


@pytest.mark.parametrize("content", ["5", "null", '{"review": "good"}', '"good"'])
def test_json_that_is_no_list_of_rows(tmp_path: Path, refused: Refused, content: str) -> None:
    (tmp_path / "rows.json").write_text(content, encoding="utf-8")
    refused(describe(tmp_path, "rows.json"), "rows.json", "list of objects")


def test_a_row_that_is_no_object(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "rows.jsonl").write_text('["good pasta", 3]\n', encoding="utf-8")
    refused(describe(tmp_path, "rows.jsonl"), "rows.jsonl, row 1: must be an object with columns, not list")


@pytest.mark.parametrize("damage", ["cut", "changed", "plain"])
@pytest.mark.parametrize("ending", [".gz", ".bz2", ".xz"])
def test_a_damaged_compressed_file(tmp_path: Path, refused: Refused, ending: str, damage: str) -> None:
    compress: dict[str, Callable[[bytes], bytes]] = {
        ".gz": gzip.compress,
        ".bz2": bz2.compress,
        ".xz": lzma.compress,
    }
    whole = compress[ending](json.dumps([random.Random(0).randbytes(2000).hex()]).encode())
    half = len(whole) // 2
    content = {"cut": whole[:half], "changed": whole[:half] + bytes(64) + whole[half + 64 :], "plain": b"[]"}[damage]
    (tmp_path / f"rows.json{ending}").write_bytes(content)
    refused(describe(tmp_path, f"rows.json{ending}"), f"rows.json{ending} can't be read as .json")


def test_a_deflate_stream_with_an_invalid_block(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "rows.json.gz").write_bytes(gzip.compress(b"[]")[:10] + b"\xff" * 20)
    refused(describe(tmp_path, "rows.json.gz"), "rows.json.gz can't be read as .json")


def test_a_missing_column_says_which_there_are(tmp_path: Path, refused: Refused) -> None:
    refused(
        write_table(tmp_path, [{"review": "good", "stars": "3"}], ".csv"),
        "rows.csv, row 1: lacks the column(s) ['taste']; it has ['review', 'stars']",
    )


@pytest.mark.parametrize("text", ["", "  ", None, 5])
def test_a_row_without_a_text_is_named(tmp_path: Path, refused: Refused, text: Any) -> None:
    source = write_table(tmp_path, [ROWS[0], ROWS[1] | {"review": text}], ".jsonl")
    refused(source, "rows.jsonl, row 2: column 'review' must hold a text that isn't empty")


@pytest.mark.parametrize(
    ("column", "value", "allowed"),
    [("stars", "6", "['1', '2', '3']"), ("taste", "great", "['Negative', 'Positive', 'unknown']")],
)
def test_an_undeclared_value_says_which_are_allowed(
    tmp_path: Path, refused: Refused, column: str, value: str, allowed: str
) -> None:
    source = write_table(tmp_path, [ROWS[0] | {column: value}], ".csv")
    refused(source, f"row 1: column {column!r} holds {value!r}; allowed are {allowed}", "give an alias")


def test_an_empty_label_is_not_the_missing_value(tmp_path: Path, refused: Refused) -> None:
    refused(write_table(tmp_path, [ROWS[0] | {"stars": ""}], ".csv"), "column 'stars' holds ''; allowed are")


def test_a_file_without_rows(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "rows.csv").write_text("review,stars,taste\n", encoding="utf-8")
    refused(describe(tmp_path, "rows.csv"), "rows.csv has no usable row")


def test_an_unknown_split_says_which_there_are(tmp_path: Path, refused: Refused) -> None:
    refused(write_table(tmp_path, ROWS, ".csv"), "names no file for split 'test'; it has ['train']", split="test")


def test_a_source_that_is_no_yaml_says_what_is_right(refused: Refused) -> None:
    refused("reviews.csv", "--data must be 'cebab', 'cebab:FOLDER' or a .yaml", "'reviews.csv'")


def test_a_missing_yaml_is_named(tmp_path: Path, refused: Refused) -> None:
    refused(str(tmp_path / "gone.yaml"), "There is no data description at", "gone.yaml")


def test_a_folder_in_the_yamls_place(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "mine.yaml").mkdir()
    refused(str(tmp_path / "mine.yaml"), "mine.yaml can't be read")


def test_text_that_is_not_yaml(tmp_path: Path, refused: Refused) -> None:
    refused(describe(tmp_path, "rows.csv", "name: [mine"), "mine.yaml is not YAML")


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        ("name: mine\n", "", "name: Field required"),
        ("text: review", "texts: review", "text: Field required"),
        ("[Negative, Positive, unknown]", "[Negative]", "concepts.food.values"),
        ("[1, 2, 3]", "[1, 1, 3]", "label: Value error, values must differ"),
        ("missing: unknown", "missing: unknwon", "concepts.food: Value error, missing must be one of the values"),
        ("bad: Negative", "bad: Negativ", "concepts.food: Value error, aliases must be of values"),
        ("files: {train: FILE}", "files: {}", "files"),
    ],
)
def test_a_yaml_that_breaks_the_format_says_where(
    tmp_path: Path, refused: Refused, old: str, new: str, where: str
) -> None:
    assert old in YAML
    refused(describe(tmp_path, "rows.csv", YAML.replace(old, new)), "mine.yaml, at ", where)


def test_an_empty_yaml_says_that_the_top_level_is_wrong(tmp_path: Path, refused: Refused) -> None:
    refused(describe(tmp_path, "rows.csv", ""), "mine.yaml, at the top level")


def test_value_counts_are_by_concept_and_value(tmp_path: Path) -> None:
    loaded = data.load(write_table(tmp_path, [*ROWS, ROWS[0]], ".csv"), "train")
    assert data.value_counts(loaded) == {"food": {"Positive": 2, "Negative": 1, "unknown": 1}}


def test_a_split_with_all_values_teaches_all(tmp_path: Path) -> None:
    assert data.check_varied(data.load(write_table(tmp_path, ROWS, ".csv"), "train"), "train") == []


def test_values_that_never_occur_are_named(tmp_path: Path) -> None:
    loaded = data.load(write_table(tmp_path, ROWS[:2], ".csv"), "train")
    assert data.check_varied(loaded, "train") == [
        "In split 'train', concept food is never 'unknown'.",
        "In split 'train', the label is never '2'.",
    ]


def test_concepts_and_labels_with_one_value_are_refused_by_name(tmp_path: Path) -> None:
    loaded = data.load(write_table(tmp_path, ROWS[:1] * 3, ".csv"), "train")
    with pytest.raises(DataError) as caught:
        data.check_varied(loaded, "train")
    assert caught.value.message == (
        "Nothing can be learned in split 'train' where concept food is always 'Positive', the label is always '3': "
        "give texts with other values, or leave the concept out of the description of the data."
    )


def real_cebab() -> Path:
    """The published files, or a skip that says where they would be."""
    root = Path(__file__).parents[2]
    folder = Path(os.environ.get("SPARSECBM_DATA") or root / "../shared/data") / "cebab"
    if not list(folder.glob("*.json*")):
        pytest.skip("no published CEBaB: neither SPARSECBM_DATA nor ../shared/data has cebab/*.json")
    return folder


@pytest.mark.parametrize(("split", "rows"), [("train_exclusive", 1463), ("train_inclusive", 9848), ("dev", 1673)])
def test_the_real_cebab_has_all_values_of_all_concepts(split: str, rows: int) -> None:
    loaded = data.load(f"cebab:{real_cebab()}", split)
    assert set(loaded.labels.tolist()) == set(range(5))
    assert all(set(counts) == {"Negative", "Positive", "unknown"} for counts in data.value_counts(loaded).values())
    assert len(loaded) == rows


def shares(folder: Path, row: dict[str, Any], votes: Any) -> list[float]:
    """The shares that one row's votes on food give, in a JSON lines table."""
    text = YAML.replace("missing: unknown", "missing: unknown, votes: ballot")
    (folder / "rows.jsonl").write_text(json.dumps(row | {"ballot": votes}) + "\n", encoding="utf-8")
    loaded = data.load(describe(folder, "rows.jsonl", text), "train")
    row_shares: list[float] = loaded.concept_votes[0, 0].tolist()
    return row_shares


def test_votes_become_shares(tmp_path: Path) -> None:
    assert shares(tmp_path, ROWS[0], {"Positive": 3, "Negative": 1}) == [0.25, 0.75, 0]


def test_votes_may_be_json_text(tmp_path: Path) -> None:
    assert shares(tmp_path, ROWS[0], '{"Positive": 3, "unknown": 1}') == [0, 0.75, 0.25]


def test_votes_for_an_alias_or_for_nothing_count_for_their_values(tmp_path: Path) -> None:
    assert shares(tmp_path, ROWS[0], {"Positive": 2, "bad": 1, "": 1}) == [0.25, 0.5, 0.25]


def test_a_null_count_is_no_vote(tmp_path: Path) -> None:
    assert shares(tmp_path, ROWS[0], {"Positive": 2, "Negative": None}) == [0, 1, 0]


@pytest.mark.parametrize("votes", [None, "", {}, {"great": 3}, {"Positive": 0}])
def test_without_votes_the_cells_value_has_them_all(tmp_path: Path, votes: Any) -> None:
    assert shares(tmp_path, ROWS[0], votes) == [0, 1, 0]


def test_votes_that_elect_another_value_do_not_count(tmp_path: Path) -> None:
    assert shares(tmp_path, ROWS[0], {"Positive": 1, "Negative": 3}) == [0, 1, 0]


def test_votes_may_be_a_dictionary_as_python_prints_it(tmp_path: Path) -> None:
    assert shares(tmp_path, ROWS[0], "{'Positive': 3, 'Negative': 1}") == [0.25, 0.75, 0]


@pytest.mark.parametrize(
    "votes",
    ["most", "print()", {"Positive": -1}, '{"Positive": NaN}', "[1, 2]", 5, {"Positive": "many"}, {"Positive": [1]}],
)
def test_votes_that_are_no_counts_say_what_is_right(tmp_path: Path, votes: Any) -> None:
    with pytest.raises(DataError, match=r"row 1: column 'ballot' must hold a JSON object of counts, such as"):
        shares(tmp_path, ROWS[0], votes)


def test_cebabs_label_votes_are_read(tmp_path: Path) -> None:
    row: dict[str, Any] = published("4") | {"review_label_distribution": {"4": 3, "5": 1}}
    loaded = data.load(write_cebab(tmp_path, [row]), "dev")
    assert loaded.label_votes.tolist() == [[0, 0, 0, 0.75, 0.25]]


@pytest.mark.parametrize(
    ("name", "texts", "concepts", "labels"),
    [("cebab-10", 1463, 10, 5), ("imdb-c", 2000, 8, 2)],
    ids=["cebab-10", "imdb"],
)
def test_the_papers_data_sets_are_described(tmp_path: Path, name: str, texts: int, concepts: int, labels: int) -> None:
    root = Path(__file__).parents[2]
    description = root / "docs/data" / f"{name}.yaml"
    assert len(data.read_spec(description).concepts) == concepts
    folder = Path(os.environ.get("SPARSECBM_DATA") or root / "../shared/data") / name
    if not folder.is_dir():
        pytest.skip(f"no {name}: neither SPARSECBM_DATA nor ../shared/data has {name}/*.csv.gz")
    (tmp_path / description.name).write_bytes(description.read_bytes())
    for split in ("train", "dev"):
        (tmp_path / f"{split}.csv.gz").symlink_to((folder / f"{split}.csv.gz").resolve())
    found = data.load(str(tmp_path / description.name), "train")
    assert (len(found), len(found.schema.labels)) == (texts, labels)
    assert data.check_varied(found, "train") == []
