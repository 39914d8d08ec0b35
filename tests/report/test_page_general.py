"""What the model knew before, on the page, in the printed table, and in comparisons."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from made_runs import make_run
from page_reader import page_of, table_of
from rich.console import Console

from nlora.report.comparison import compare, read_runs
from nlora.report.comparison_formats import written
from nlora.report.terminal import accuracy_table
from nlora.runs.general_scores import GeneralScores
from nlora.runs.summary import read_summary

TASKS = ("colors", "plants")


def measured(folder: Path, last: float, *, name: str = "kept", harness: bool = True) -> Path:
    """A run whose perplexity went from 20 over 24 to `last`, and whose accuracy on a task fell from 0.6 to 0.45."""
    run = make_run(folder, name=name, tasks=TASKS)
    scores = [
        GeneralScores(
            text="default",
            text_sha256="ab",
            tokens=4300,
            perplexity=perplexity,
            bits_per_byte=perplexity / 20,
            harness={"arc_easy": {"acc": acc, "acc_stderr": 0.05}} if harness else {},
        )
        for perplexity, acc in ((20.0, 0.6), (24.0, 0.5), (last, 0.45))
    ]
    values = json.loads((run / "summary.json").read_text())
    added = {"general": [s.model_dump(mode="json") for s in scores], "perplexity_change": 5 * (last - 20)}
    (run / "summary.json").write_text(json.dumps({**values, **added}))
    return run


def test_the_page_of_a_run(tmp_path: Path) -> None:
    root = page_of(tmp_path, measured(tmp_path / "run", 26.0))
    assert table_of(root, "Perplexity") == [["kept", "20.00", "24.00", "26.00", "+30.0"]]
    assert table_of(root, "Perplexity and bits per byte") == [
        ["kept", "20.00", "26.00", "+30.0", "1.000", "1.300"]
    ]
    assert table_of(root, "Tasks of lm-evaluation-harness") == [
        ["arc_easy", "acc", "0.600", "0.500", "0.450"]
    ]
    assert (
        "Perplexity of the text that comes with nlora (4,300 tokens)."
        in root.one("section", id="general").text
    )
    assert "perplexity+30.0 %" in root.one("section", id="results").text


def test_the_page_of_several_runs(tmp_path: Path) -> None:
    one, other = measured(tmp_path / "a", 26.0), measured(tmp_path / "b", 19.0, name="grown", harness=False)
    root = page_of(tmp_path, one, other, make_run(tmp_path / "c", name="plain", tasks=TASKS))
    assert [row[0] for row in table_of(root, "Perplexity")] == ["kept", "grown"]
    assert [row[:2] for row in table_of(root, "Tasks of lm-evaluation-harness")] == [
        ["kept, arc_easy", "acc"]
    ]
    assert [row[-3] for row in table_of(root, "The runs side by side")] == ["+30.0", "−5.0", "–"]


def test_of_several_seeds_the_first_that_measured_it_is_shown(tmp_path: Path) -> None:
    plain = make_run(tmp_path / "1", name="kept", tasks=TASKS, seed=0)
    root = page_of(tmp_path, plain, measured(tmp_path / "2", 26.0))
    assert table_of(root, "Perplexity") == [["kept", "20.00", "24.00", "26.00", "+30.0"]]
    assert "Of several seeds, one is shown (seed 1)" in root.one("section", id="general").text


def test_runs_that_measured_nothing_have_no_such_section(tmp_path: Path) -> None:
    root = page_of(tmp_path, make_run(tmp_path / "plain", name="plain", tasks=TASKS))
    assert root.all("section", id="general") == []
    assert "perplexity" not in root.text.lower()


def test_the_printed_table(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=80)
    console.print(accuracy_table(read_summary(measured(tmp_path / "run", 26.0))))
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]
    assert [line.split()[-1] for line in lines[1:5]] == ["perplexity", "24.00", "26.00", "20.00"]
    assert lines[4].startswith("no training")
    assert "perplexity +30.0 %  (last row - no training, of that)" in lines
    assert "arc_easy acc 0.600 -> 0.450  (no training -> last stage)" in lines


def test_the_ends_are_those_of_the_run_and_no_other_stages(tmp_path: Path) -> None:
    """arc was left out, and boolq and the text came in, when the last task was appended."""
    run = measured(tmp_path / "run", 26.0, harness=False)
    path = run / "summary.json"
    scores = [
        GeneralScores(harness={"arc": {"acc": 0.5}}),
        GeneralScores(harness={"arc": {"acc": 0.45}}),
        GeneralScores(
            text="default",
            text_sha256="ab",
            perplexity=26,
            bits_per_byte=1.3,
            harness={"boolq": {"acc": 0.61}},
        ),
    ]
    added = {"general": [s.model_dump(mode="json") for s in scores], "perplexity_change": None}
    path.write_text(json.dumps(json.loads(path.read_text()) | added))
    console = Console(file=io.StringIO(), width=80)
    console.print(accuracy_table(read_summary(run)))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "arc acc 0.500 -> –  (no training -> last stage)" in text
    assert "boolq acc – -> 0.610  (no training -> last stage)" in text
    root = page_of(tmp_path, run)
    assert table_of(root, "Perplexity and bits per byte") == [["kept", "–", "26.00", "–", "–", "1.300"]]


def test_comparisons_have_the_change(tmp_path: Path) -> None:
    runs = [measured(tmp_path / "a", 26.0), make_run(tmp_path / "b", name="plain", tasks=TASKS)]
    comparison = compare(read_runs(runs))
    assert "| +30.0 % |" in written(comparison, "markdown")
    assert "perplexity: change on plain text" in written(comparison, "table")
    rows = list(csv.DictReader(io.StringIO(written(comparison, "csv"))))
    assert [row["perplexity_change_mean"] for row in rows] == ["30.0", ""]
    assert "perplexity" not in written(compare(read_runs(runs[1:])), "table")
