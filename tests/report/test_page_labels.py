"""The page's table of precision, recall and F1 by label."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from made_runs import make_run
from page_reader import page_of, table_of

from nlora.errors import RunError
from nlora.evaluation.per_label import count_labels
from nlora.report.run_files import load_run
from nlora.report.write import write_report
from nlora.runs.released_files import label_results

PAIRS = [("red", "red"), ("red", "blue"), ("red", "red"), ("blue", "blue"), ("blue", None)]


def with_labels(folder: Path, by_label: Any) -> Path:
    """A run whose last stage's results have this."""
    run = make_run(folder, name=folder.name, tasks=("colors", "plants"))
    file = run / "outputs/2-plants/all_results.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "by_label": by_label}))
    return run


def test_labels_have_a_folded_table(tmp_path: Path) -> None:
    found = label_results(count_labels(PAIRS, ["red", "blue", "none"]), outside=1)
    run = with_labels(tmp_path / "run", {"colors": found})
    root = page_of(tmp_path, run)
    assert table_of(root, "Scores by label") == [
        ["colors", "red", "3", "2", "100.0", "66.7", "80.0"],
        ["colors", "blue", "2", "2", "50.0", "50.0", "50.0"],
        ["colors", "none", "0", "0", "–", "–", "–"],
    ]
    section = root.one("section", id="labels")
    assert section.one("summary").text == "Scores by label (3 rows)"
    assert (
        "none of the task's labels are wrong, and not listed: 1 in colors."
        in section.one("p", class_="foot").text
    )
    assert [a.text for a in root.all("a", href="#labels")] == ["Labels"]


def test_runs_without_the_numbers_have_no_such_section(folders: dict[str, Path], tmp_path: Path) -> None:
    assert page_of(tmp_path, folders["one"]).all("section", id="labels") == []
    assert load_run(folders["half"]).stages[0].by_label == {}


def test_each_run_has_its_own_table(tmp_path: Path) -> None:
    found = label_results(count_labels(PAIRS), outside=0)
    runs = [with_labels(tmp_path / name, {"colors": found}) for name in ("a", "b")]
    root = page_of(tmp_path, *runs)
    for name in ("a", "b"):
        assert len(table_of(root, f"Scores by label of {name}")) == 2


@pytest.mark.parametrize(
    "value", [["colors"], 1, {"colors": 1}, {"colors": {"labels": {"red": {}}, "outside": 0}}]
)
def test_what_is_broken_is_named(tmp_path: Path, value: Any) -> None:
    run = with_labels(tmp_path / "run", value)
    with pytest.raises(RunError, match=r"all_results\.json: by_label is broken; delete the file"):
        write_report([run], tmp_path / "page.html")
