"""Interventions to record, and processes that record them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from serving.contract import Answer, Flipped, LabelAnswer, Level, Outcome
from serving.ledger import Entry, Ledger, Origin

ROOT = Path(__file__).parents[2]
ORIGIN = Origin("anonymous", "tiny", "0", "0")
WRITER = """
import sys
sys.path.insert(0, {root!r})
from serving.ledger import Ledger
from tests.serving.entries import ORIGIN, entry
ledger = Ledger({url!r})
print("ready", flush=True)
sys.stdin.readline()
for number in range({count}):
    [id] = ledger.record([entry(f"text {{number}}", food="Positive", noise="Negative")], ORIGIN)
    print(id, flush=True)
"""


def entry(
    text: str = "rude", level: Level = "concept", note: str | None = None, flips: bool = False, **corrections: str
) -> Entry:
    answer = Answer(
        label=LabelAnswer(value="1", probability=0.75),
        probabilities={"1": 0.75, "2": 0.25},
        concepts=[],
        ask_next=[],
        truncated=False,
    )
    outcome = Outcome(
        level=level,
        corrections=corrections or {"service": "Negative"},
        reached=True,
        before=answer,
        after=answer,
        flipped=Flipped(label=flips, concepts=["service"]),
        edits=[],
    )
    return Entry(text, note, outcome)


def writer(url: str, count: int) -> subprocess.Popen[str]:
    """A process that is ready to record entries and to print the id of each that was acknowledged."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER.format(root=str(ROOT), url=url, count=count)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def acknowledged(process: subprocess.Popen[str]) -> list[str]:
    """The ids that a writer printed whole until it ended."""
    assert process.stdout is not None
    with process:
        out = process.stdout.read()  # communicate() would miss what readline() has read ahead
    return [line.strip() for line in out.splitlines(keepends=True) if line.endswith("\n")]


def all_ids(ledger: Ledger) -> list[str]:
    ids: list[str] = []
    after = None
    while True:
        page = ledger.page(100, after)
        ids += [record.id for record in page.interventions]
        after = page.next
        if after is None:
            return ids
