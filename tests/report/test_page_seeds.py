"""The page of several seeds: one series per variant, whose numbers are those of the runs' files."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from pathlib import Path

import pytest
from made_runs import TESTS, make_run, matrix, right_answers
from page_reader import Element, page_of, table_of

from nlora.errors import InputErrors, MissingExtraError
from nlora.report.charts import pdf
from nlora.report.charts.scene import Area
from nlora.report.comparison import compare, read_runs
from nlora.report.comparison_formats import written
from nlora.report.paper_figures import write_figures
from nlora.report.run_files import load_runs
from nlora.report.sections.stages import seen_average
from nlora.report.variants import variants_of
from nlora.report.write import write_report

TASKS = ("colors", "animals", "plants")
FEWER = {"inclora": (0, 2, 3), "nlora": (1, 1, 1), "olora": (4, 2, 0)}
"""By variant and seed: right answers of each task that the run has less."""
T2 = 4.302653
"""Student's t of two degrees of freedom."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three variants of three seeds."""
    root = tmp_path_factory.mktemp("seeds")
    return [
        make_run(root / f"{name}-seed{seed}", name=name, method=name, seed=seed, fewer=fewer, analyzed=True)
        for name, each in FEWER.items()
        for seed, fewer in enumerate(each, start=1)
    ]


@pytest.fixture(scope="module")
def page(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Element:
    return page_of(tmp_path_factory.mktemp("page"), *runs)


def averages(runs: list[Path], name: str) -> list[float]:
    """From the files."""
    summaries = [json.loads((run / "summary.json").read_text()) for run in runs]
    return [summary["average_accuracy"] for summary in summaries if summary["name"] == name]


def test_variants_are_side_by_side_best_first(runs: list[Path], page: Element) -> None:
    rows = table_of(page, "The runs side by side")
    means = {name: statistics.mean(averages(runs, name)) for name in FEWER}
    assert [row[0] for row in rows] == sorted(means, key=lambda name: -means[name])
    for row in rows:
        values = averages(runs, row[0])
        mean, deviation = statistics.mean(values), statistics.stdev(values)
        half = T2 * deviation / math.sqrt(3)
        assert row[1:3] == ["1-3", f"{mean:.1f} ± {deviation:.1f}"]
        ends = f"{mean - half:.1f} to {mean + half:.1f}"
        assert row[3] == (ends if half else "–")  # without width where all seeds score alike
    assert "9 runs: 3 variants, each with 3 seeds" in page.text
    assert page.one("h1").text == "inclora, nlora and olora"


def test_differences_are_those_of_nlora_compare(runs: list[Path], page: Element) -> None:
    comparison = compare(read_runs(runs), base="inclora")
    found = {row["run"]: row for row in csv.DictReader(io.StringIO(written(comparison, "csv")))}
    rows = {row[0]: row[1:] for row in table_of(page, "Difference to inclora")}
    assert rows.keys() == {"nlora", "olora"}
    for name, (mean, interval, seeds, better) in rows.items():
        pairs = list(zip(averages(runs, name), averages(runs, "inclora"), strict=True))
        assert mean.replace("−", "-") == f"{statistics.mean(a - b for a, b in pairs):+.1f}"
        ends = [float(found[name][f"difference_{end}"]) for end in ("low", "high")]
        assert interval.replace("−", "-") == f"{ends[0]:+.1f} to {ends[1]:+.1f}"
        assert (seeds, better) == ("3", f"{sum(a > b for a, b in pairs)} of 3 seeds")


def test_matrices_are_means_over_the_seeds(page: Element) -> None:
    assert len(page.one("section", id="matrix").all("table")) == 3
    mean = statistics.mean(FEWER["inclora"])
    row = table_of(page, "Accuracy of inclora")[2]
    assert row[1:3] == [
        f"{score - 100 * mean / TESTS:.1f}" for score in matrix(3)[2][:2] if score is not None
    ]


def test_each_task_has_its_interval_and_n(page: Element) -> None:
    rows = table_of(page, "Scores at the end")
    assert [row[:2] for row in rows[:4]] == [["colors", name] for name in FEWER] + [["animals", "inclora"]]
    values = [100 * (right_answers(1, 3, 3) - fewer) / TESTS for fewer in FEWER["olora"]]
    half = T2 * statistics.stdev(values) / math.sqrt(3)
    mean = statistics.mean(values)
    assert rows[2][2:] == [
        f"{mean:.1f} ± {statistics.stdev(values):.1f}",
        f"{mean - half:.1f} to {min(mean + half, 100):.1f}",
        f"3 seeds, {TESTS} examples",
    ]


def test_single_seeds_are_there_on_demand(runs: list[Path], page: Element) -> None:
    rows = table_of(page, "The single runs")
    assert [row[0] for row in rows] == [f"{name}, seed {seed}" for name in FEWER for seed in (1, 2, 3)]
    assert [row[1] for row in rows[:3]] == [f"{value:.1f}" for value in averages(runs, "inclora")]
    folded = [details for details in page.all("details") if details.all("figure", id="single-seeds")]
    assert len(folded) == 1


def test_lines_have_a_band_of_one_standard_deviation(runs: list[Path]) -> None:
    variants = variants_of(load_runs(runs))
    areas = [s for s in seen_average(variants).draw(800.0).flat() if isinstance(s, Area)]
    assert [area.fill for area in areas] == ["series0", "series2"]  # the seeds of nlora are alike
    heights = [abs(area.points[0][1] - area.points[-1][1]) for area in areas]
    spreads = [statistics.stdev(FEWER[name]) for name in ("inclora", "olora")]
    assert heights[0] / heights[1] == pytest.approx(spreads[0] / spreads[1])


def test_training_is_shown_task_by_task_with_the_learning_rate_once(page: Element) -> None:
    section = page.one("section", id="training")
    assert [figure.attributes["id"] for figure in section.all("figure")] == [
        "loss",
        "penalty",
        "learning-rate",
    ]
    assert "The same for all runs." in section.one("figure", id="learning-rate").text


def test_what_is_shown_of_one_seed_says_so(page: Element) -> None:
    about = page.one("section", id="collisions").one("p", class_="about").text
    assert about.endswith("Of several seeds, one is shown (seed 1).")


def test_the_base_is_chosen_by_name(runs: list[Path], tmp_path: Path) -> None:
    path = write_report(runs, tmp_path / "page.html", base="olora")
    assert "minus olora" in path.read_text()
    with pytest.raises(
        InputErrors, match="--base lora: no finished run on the page has this name; there are: inc"
    ):
        write_report(runs, tmp_path / "other.html", base="lora")
    assert not (tmp_path / "other.html").exists()


def test_a_page_of_many_runs_is_small(runs: list[Path], tmp_path: Path) -> None:
    one = write_report(runs[:1], tmp_path / "one.html").stat().st_size
    assert write_report(runs, tmp_path / "all.html").stat().st_size < 3 * one


def test_figures_for_a_paper_show_variants(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pdf, "find_spec", lambda _name: None)  # only SVG
    with pytest.raises(MissingExtraError):
        write_figures(load_runs(runs), tmp_path / "figures")
    names = {path.stem for path in (tmp_path / "figures").iterdir()}
    assert {"final_average_accuracy", "difference", "average_accuracy", "matrix_3"} <= names
    assert "matrix_4" not in names


def test_seeds_of_a_single_variant_have_a_page_too(runs: list[Path], tmp_path: Path) -> None:
    root = page_of(tmp_path, *runs[:3])
    assert "3 runs that differ only in their seed" in root.text
    assert table_of(root, "The runs side by side")[0][1] == "1-3"
    assert [row[0] for row in table_of(root, "Each stage")] == ["1 colors", "2 animals", "3 plants"]


def test_seeds_that_score_alike_have_no_interval(tmp_path: Path) -> None:
    """It would have no width, though other test examples would give another score."""
    runs = [make_run(tmp_path / str(seed), tasks=TASKS, seed=seed) for seed in (1, 2)]
    root = page_of(tmp_path, *runs)
    ((_, mean, interval, count),) = table_of(root, "Average accuracy with its interval")
    assert (mean, interval, count) == (f"{averages(runs, 'made')[0]:.1f}", "–", "2 seeds")
    scores = table_of(root, "Scores after each stage")
    assert not any(" to " in cell for row in scores for cell in row)
