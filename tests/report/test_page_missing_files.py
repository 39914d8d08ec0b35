"""Pages of runs whose stages' folders are gone, and of runs whose scores or names make them look alike."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from made_runs import changed_summary, make_run, matrix
from page_reader import page_of, table_of

from nlora.evaluation.per_label import count_labels
from nlora.report.charts.axes import linear_axis
from nlora.report.comparison import Spread
from nlora.report.paper_figures import write_figures
from nlora.report.run_files import load_runs
from nlora.runs.released_files import label_results

TASKS = ("colors", "animals", "plants")
NONE = "No stage is finished yet"


def test_an_axis_of_a_score_and_the_mean_of_equal_seeds() -> None:
    """The mean of three equal numbers may be another one, by its last bit."""
    differ = 0
    for right in range(141):
        value = 100 * right / 140
        for seeds in (3, 5, 6, 7, 10):
            mean = Spread.of([value] * seeds).mean
            differ += mean != value
            axis = linear_axis("", [value, mean])
            texts = [text for _, text in axis.ticks]
            assert len(set(texts)) == len(texts) > 1
            assert 0 <= axis.place(value) <= 1
    assert differ


def test_a_page_of_seeds_that_score_alike(tmp_path: Path) -> None:
    score = 100 * 82 / 140
    runs = [make_run(tmp_path / str(seed), tasks=("colors",), seed=seed) for seed in (1, 2, 3)]
    for run in runs:
        changed_summary(run, R=[[score]], average_accuracy=score)
    assert "58.6" in page_of(tmp_path, *runs).text


def test_an_unfinished_run_in_a_folder_of_the_name_of_finished_seeds(tmp_path: Path) -> None:
    half = make_run(tmp_path / "x", name="x", tasks=TASKS, seed=1, stages=1)
    seeds = [make_run(tmp_path / f"x-{seed}", name="x", tasks=TASKS, seed=seed) for seed in (1, 2)]
    rows = table_of(page_of(tmp_path, half, *seeds), "The runs side by side")
    assert len({row[0] for row in rows}) == 2
    assert sorted(row[2] for row in rows)[0] == "1 of 3 tasks"


def test_seeds_whose_stages_are_gone_are_left_out_of_times_and_labels(tmp_path: Path) -> None:
    by_label = {
        "colors": label_results(count_labels([("red", "red"), ("red", "blue")], ["red", "blue"]), outside=0)
    }
    runs = [make_run(tmp_path / str(seed), tasks=TASKS, seed=seed) for seed in (1, 2)]
    other = make_run(tmp_path / "other", name="other", tasks=TASKS)
    for run in (*runs, other):
        file = run / "outputs/3-plants/all_results.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "by_label": by_label}))
    whole = page_of(tmp_path, *runs, other)
    shutil.rmtree(runs[1] / "outputs")
    page = page_of(tmp_path, *runs, other)
    times = [re.findall(r"[\d.]+ (?:s|min)", p.one("figure", id="time").text) for p in (whole, page)]
    assert times[0] == times[1] != []


def test_a_finished_run_without_its_stages_has_the_scores_of_its_summary(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", tasks=TASKS)
    shutil.rmtree(run / "outputs")
    page = page_of(tmp_path, run)
    assert NONE not in page.text
    assert "The stages are not in the folder any more" in page.text
    last = [f"{value:.1f}" for value in matrix(3)[-1] if value is not None]
    assert [row[1] for row in table_of(page, "Scores at the end")] == last
    assert len(table_of(page, "Scores after each stage")) == 3
    drawn = {
        path.stem for path in write_figures(load_runs([run]), tmp_path / "figures") if path.suffix == ".svg"
    }
    assert {"accuracy", "average_accuracy"} <= drawn
    unfinished = page_of(tmp_path, make_run(tmp_path / "new", tasks=TASKS, stages=0))
    assert NONE in unfinished.text


def test_figures_of_the_first_seed_say_so(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / str(seed), tasks=TASKS, seed=seed, analyzed=True) for seed in (4, 5)]
    other = make_run(tmp_path / "other", name="other", tasks=TASKS, analyzed=True)
    write_figures(load_runs([*runs, other]), tmp_path / "figures")
    drawn = (tmp_path / "figures/collision.svg").read_text()
    assert "made, seed 4" in drawn
    assert "other" in drawn
    assert "other, seed" not in drawn
