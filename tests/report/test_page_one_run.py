"""What the page of one run says beside the headline numbers: intervals, confusions, learning rate, files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from made_runs import TESTS, changed_summary, make_run, right_answers
from page_reader import page_of, table_of

from helpers import without_checksums
from nlora.evaluation.intervals import wilson
from nlora.evaluation.per_label import count_labels
from nlora.runs.released_files import label_results

TASKS = ("colors", "animals", "plants")


def between(right: int) -> str:
    low, high = wilson(right, TESTS)
    return f"{low:.1f} to {high:.1f}"


def test_each_score_has_wilsons_interval(folders: dict[str, Path], tmp_path: Path) -> None:
    root = page_of(tmp_path, folders["one"])
    right = [right_answers(task, 3, 3) for task in (1, 2, 3)]
    assert table_of(root, "Scores at the end") == [
        [task, f"{5 * count:.1f}", between(count), f"{TESTS} examples"]
        for task, count in zip(TASKS, right, strict=True)
    ]
    first = right_answers(1, 2, 3)  # after the second stage
    assert table_of(root, "Scores after each stage")[0][2] == f"{5 * first:.1f} ({between(first)})"
    cell = root.one("figure", id="matrix-1").one("tbody").all("tr")[1].all("td")[0]
    assert (
        cell.attributes["title"] == f"{5 * first:.2f}, 95 % interval {between(first)}, n = {TESTS} examples"
    )
    average = next(f for f in root.one("dl", class_="facts").all("div") if "average accuracy" in f.text)
    assert f"by a bootstrap of the {3 * TESTS} examples" in average.text


def test_free_text_has_exact_match_beside_rouge(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tasks=("notes", "colors"), label="a red fox", wrong="the fox")
    changed_summary(
        run,
        metrics={"notes": "rougeL", "colors": "exact_match"},
        decode={"notes": "generate", "colors": "labels"},
    )
    notes, colors = table_of(page_of(tmp_path, run), "Scores at the end")
    right = right_answers(1, 2, 2)
    rouge = 100 * (right + (TESTS - right) * 0.4) / TESTS  # one common word of three and two: F = 2/5
    assert notes[4:] == ["ROUGE-L", f"{100 * right / TESTS:.1f}", f"{rouge:.1f}"]
    assert colors[4:] == ["exact match", "", ""]


def test_labels_are_told_apart_from_their_confusions(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tasks=("colors", "plants"), label="Red", wrong="Blue")
    last = run / "outputs/2-plants/all_results.json"
    right = right_answers(1, 2, 2)
    pairs = [("Red", "Red")] * right + [("Red", "Blue")] * (TESTS - right)
    by_label = {"colors": label_results(count_labels(pairs, ["Red", "Blue"]), outside=0)}
    last.write_text(json.dumps({**json.loads(last.read_text()), "by_label": by_label}))
    root = page_of(tmp_path, run)
    assert table_of(root, "Confusion of colors") == [["Red", str(right), str(TESTS - right)]]


def test_many_labels_are_listed_by_their_most_frequent_confusions(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tasks=("colors",))
    without_checksums(run)
    names = [f"label {i}" for i in range(40)]
    file = run / "outputs/1-colors/predict_eval_predictions.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()][:1]
    lines = []
    for i, name in enumerate(names):
        instance = rows[0]["Instance"] | {"id": str(i), "label": name}
        lines.append({**rows[0], "Instance": instance, "Prediction": names[i // 2] if i < 39 else "label 39"})
    file.write_text(
        "".join(
            json.dumps(line) + "\n"
            for line in [*lines, lines[3] | {"Instance": lines[3]["Instance"] | {"id": "x"}}]
        )
    )
    found = label_results(count_labels([(name, name) for name in names]), outside=0)
    results = run / "outputs/1-colors/all_results.json"
    results.write_text(json.dumps({**json.loads(results.read_text()), "by_label": {"colors": found}}))
    shown = table_of(page_of(tmp_path, run), "The most frequent confusions of colors")
    assert shown[0] == ["label 3", "label 1", "2"]
    assert len(shown) == 20


def test_the_learning_rate_is_drawn(folders: dict[str, Path], tmp_path: Path) -> None:
    root = page_of(tmp_path, folders["one"])
    labels = [svg.attributes["aria-label"] for svg in root.one("figure", id="learning-rate").all("svg")]
    assert all("From 9.6e−4 at the first logged step to 5e−4 at the last." in label for label in labels)


def test_files_and_commands_are_named_by_relative_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path / "runs/mine", tasks=("colors", "my plants"))
    monkeypatch.chdir(tmp_path)
    section = page_of(tmp_path, run).one("section", id="files")
    rows = table_of(section, "In runs/mine")
    assert all((run / row[0]).exists() for row in rows)
    assert [rows[0][0], rows[-1][0]] == ["run.yaml", "outputs/2-my plants/stage.json"]
    commands = [code.text for code in section.all("code")]
    assert commands[0] == "nlora export runs/mine --as merged exports/mine"
    assert commands[1] == "nlora predict runs/mine --task colors --file new.csv"


@pytest.mark.parametrize(
    ("changes", "command"),
    [
        ({"method": "pertask"}, "nlora export run --as merged --task colors exports/run"),
        ({"method": "inclora", "serve": "pertask"}, "nlora export run --as merged --task colors exports/run"),
        ({"method": "progprompt"}, None),
        ({"method": "seqft"}, "nlora export run --as merged exports/run"),
        ({"method": "inclora", "quantize": "8bit"}, "nlora export run --as adapter exports/run"),
    ],
)
def test_the_command_of_the_export_is_one_that_the_method_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], command: str | None
) -> None:
    run = make_run(tmp_path / "run", **changes)
    monkeypatch.chdir(tmp_path)
    commands = [code.text for code in page_of(tmp_path, run).one("section", id="files").all("code")]
    exports = [code for code in commands if code.startswith("nlora export")]
    assert exports == ([] if command is None else [command])


def test_a_page_runs_no_code_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The method of someone else's run may be a file in its folder."""
    run = make_run(tmp_path / "run", method={"name": "./theirs.py", "weight": 2})
    told = tmp_path / "told"
    (run / "theirs.py").write_text(f"open({str(told)!r}, 'w')\n")
    monkeypatch.chdir(run)
    text = page_of(tmp_path, run).text
    assert "weight 2" in text
    assert not told.exists()


def test_the_score_of_the_only_task_has_one_interval(tmp_path: Path) -> None:
    root = page_of(tmp_path, make_run(tmp_path / "run", tasks=("colors",)))
    (average,) = (f for f in root.one("dl", class_="facts").all("div") if "average accuracy" in f.text)
    assert "of the only task after the last stage" in average.text
    assert f"95 % interval {between(right_answers(1, 1, 1))}" in average.text
    assert "bootstrap" not in average.text


@pytest.mark.parametrize(("score", "range_"), [(0.0, "0 to 10"), (100.0, "90 to 100"), (40.0, "40 to 50")])
def test_the_colors_of_equal_scores_stay_within_percentages(
    tmp_path: Path, score: float, range_: str
) -> None:
    run = make_run(tmp_path / "run", tasks=("colors", "animals"))
    changed_summary(run, R=[[score, None], [score, score]])
    assert f"Colors range from {range_}." in page_of(tmp_path, run).one("section", id="matrix").text


def test_examples_per_task_are_those_of_the_task_without_replayed_ones(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tasks=("colors", "animals"))
    own = {
        "train": {"sha256": "t", "count": 96},
        "test": {"sha256": "s", "count": TESTS},
        "prompt_sha256": "p",
    }
    changed_summary(run, digests={"colors": own, "animals": own})
    header = page_of(tmp_path, run).one("header", id="top").text
    assert "96 per task" in header
    assert "160" not in header  # what a stage's training had in all
