"""Tables of runs: the right numbers in the right places, within 80 columns."""

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType

from helpers import scores_of
from nlora.config.schema import Config
from nlora.report.terminal import accuracy_table, comparison_table, paths
from nlora.runs.summary import StageRecord, Summary, summary_of

LONG_ORDER = ["yelp", "amazon", "MNLI", "CB", "COPA", "QQP", "RTE", "IMDB", "SST-2", "dbpedia", "agnews",
"yahoo",
              "MultiRC", "BoolQA", "WiC"]  # fmt: skip


def summary(
    rows: list[list[float | None]], tasks: list[str], zero_shot: Any = None, **config: Any
) -> Summary:
    records = [
        StageRecord(
            stage=k,
            task=tasks[k - 1],
            scores=scores_of(tasks, row),
            train_seconds=90,
            evaluate_seconds=1,
            train_samples_per_second=1,
        )
        for k, row in enumerate(rows, start=1)
    ]
    return summary_of(
        Config.model_validate({"tasks": tasks, **config}),
        records,
        zero_shot=None if zero_shot is None else scores_of(tasks, zero_shot),
    )


def rendered(renderable: RenderableType, width: int = 80) -> str:
    console = Console(width=width, force_terminal=False, color_system=None)
    with console.capture() as captured:
        console.print(renderable)
    return captured.get()


def cells(line: str) -> list[str]:
    return line.split()


FOUR: list[list[float | None]] = [
    [98.71, None, None, None],
    [98.53, 57.76, None, None],
    [97.41, 57.41, 71.91, None],
    [97.74, 56.07, 71.04, 88.62],
]
ORDER = ["dbpedia", "amazon", "yahoo", "agnews"]


def test_the_matrix_and_its_averages() -> None:
    text = rendered(accuracy_table(summary(FOUR, ORDER, name="order 1", method="olora", model="t5", seed=3)))
    lines = text.splitlines()
    assert lines[0].strip() == "order 1: olora on t5, seed 3"
    assert cells(lines[1]) == ["after", "learning", *ORDER]
    assert cells(lines[2]) == ["1", "dbpedia", "98.7*"]
    assert cells(lines[3]) == ["2", "amazon", "98.5", "57.8*"]
    assert cells(lines[5]) == ["4", "agnews", "97.7", "56.1", "71.0", "88.6*"]
    assert "average accuracy 78.4  (mean over 4 tasks of the last row)" in text
    assert "backward transfer -1.2  (mean over 3 earlier tasks of last row - *)" in text
    assert "forgetting 1.2  (mean over 3 earlier tasks of best score before it - last row)" in text
    assert "forward transfer" not in text


def test_digits_align() -> None:
    lines = rendered(accuracy_table(summary(FOUR, ORDER))).splitlines()[2:6]
    assert {line.index(".", 10) for line in lines} == {lines[0].index(".", 10)}


def test_fifteen_tasks_fit_in_80_columns() -> None:
    rows: list[list[float | None]] = [
        [100.0 if k == i == 3 else 50.0 + i for i in range(k + 1)] + [None] * (14 - k) for k in range(15)
    ]
    text = rendered(accuracy_table(summary(rows, LONG_ORDER)))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert cells(lines[1])[-15:] == [str(number) for number in range(1, 16)]
    assert cells(lines[2 + 3]) == ["4", "CB", "50", "51", "52", "100*"]
    assert cells(lines[2 + 14]) == ["15", "WiC", *(str(50 + i) for i in range(14)), "64*"]
    assert all(any(cells(line)[1:2] == [task] for line in lines) for task in LONG_ORDER)


@pytest.mark.parametrize("tasks", [2, 6, 7, 15])
def test_long_names_stay_within_the_width(tasks: int) -> None:
    names = [f"{i}-the-name-of-a-task-that-does-not-end" for i in range(tasks)]
    rows: list[list[float | None]] = [[100.0] * tasks for _ in range(tasks)]
    text = rendered(accuracy_table(summary(rows, names, zero_shot=[0.0] * tasks, name="x" * 100)))
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("100") >= tasks * tasks  # no score was cut or folded


def test_zero_shot_is_a_row_of_its_own() -> None:
    text = rendered(accuracy_table(summary([[90, 30], [70, 80]], ["a", "b"], zero_shot=[10, 20])))
    assert ["no", "training", "10.0", "20.0"] in [cells(line) for line in text.splitlines()]
    assert "forward transfer +10.0  (mean over later tasks of row before * - no training)" in text
    assert "(mean over 1 earlier task of last row - *)" in text


def test_a_running_run_shows_its_progress() -> None:
    text = rendered(accuracy_table(summary([[90.0, None]], ["a", "b"])))
    assert "1 of 2 tasks learned; the averages need all of them" in text
    assert "average accuracy" not in text


def test_runs_side_by_side() -> None:
    good = summary([[90, 30], [70, 80]], ["a", "b"], name="penalty", method="nlora")
    bad = summary([[90, 30], [50, 80]], ["a", "b"], name="plain", method="inclora", seed=7)
    running = summary([[90.0, None]], ["a", "b"], name="third")
    text = rendered(comparison_table([good, bad, running]))
    rows = {cells(line)[0]: cells(line) for line in text.splitlines() if cells(line)}
    assert rows["penalty"] == ["penalty", "nlora", "42", "75.0*", "-20.0", "20.0", "3.0", "min"]
    assert rows["plain"] == ["plain", "inclora", "7", "65.0", "-40.0", "40.0", "3.0", "min"]
    assert rows["third"] == ["third", "nlora", "42", "running", "90", "s"]
    assert "not comparable" not in text
    assert "FWT" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_forward_transfer_has_a_column_where_a_run_has_one() -> None:
    known = summary([[90, 30], [70, 80]], ["a", "b"], zero_shot=[10, 20], name="known")
    unknown = summary([[90, 30], [70, 80]], ["a", "b"], name="unknown")
    text = rendered(comparison_table([known, unknown]))
    rows = {cells(line)[0]: cells(line) for line in text.splitlines() if cells(line)}
    assert rows["known"][-3:] == ["+10.0", "3.0", "min"]
    assert rows["unknown"][-3:] == ["20.0", "3.0", "min"]
    assert "FWT: forward transfer" in text
    assert max(map(len, text.splitlines())) <= 80


def test_preparing_is_said_where_it_takes_long() -> None:
    plain = summary([[90, 30], [50, 80]], ["a", "b"], name="plain")
    found = summary([[90, 30], [70, 80]], ["a", "b"], name="penalty")
    short = found.model_copy(update={"prepare_seconds": (8, 9)})  # of 180
    assert "training:" not in rendered(comparison_table([plain, short]))
    text = rendered(comparison_table([plain, found.model_copy(update={"prepare_seconds": (9, 9)})]))
    said = "training: without what the method does before and after it: plain 0.0 s, penalty 18 s."
    assert said in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 80


def test_a_comparison_of_other_tasks_has_a_warning() -> None:
    one = summary([[90, 30], [70, 80]], ["a", "b"])
    other = summary([[90, 30], [70, 80]], ["b", "a"])
    assert "These runs learned different tasks or orders" in rendered(comparison_table([one, other]))


def test_paths_are_never_truncated() -> None:
    long = Path("runs") / ("x" * 100) / "report.html"
    text = rendered(paths({"summary": Path("runs/summary.json"), "report": long}))
    assert "runs/summary.json" in text
    assert str(long) in "".join(line.removeprefix("report").strip() for line in text.splitlines())


def test_markup_in_names_is_literal() -> None:
    text = rendered(accuracy_table(summary([[90.0]], ["[bold]a"], name="[red]n")))
    assert "1 [bold]a" in text
    assert "[red]n: nlora" in text
    assert "[red]n" in rendered(comparison_table([summary([[90.0]], ["a"], name="[red]n")]))


def test_the_kinds_of_scores_are_named() -> None:
    done = summary([[50, None], [40, 60]], ["replies", "tickets"])
    assert "scores in percent" not in rendered(
        accuracy_table(done)
    )  # of an older version, which does not say it
    decode = {"replies": "generate", "tickets": "labels"}
    alike = done.model_copy(update={"decode": {"replies": "labels", "tickets": "labels"}})
    text = rendered(accuracy_table(alike))
    assert "scores in percent: exact match of the likeliest label " in text
    assert "(mean over 2 tasks of the last row)" in text
    mixed = done.model_copy(
        update={"decode": decode, "metrics": {"replies": "rougeL", "tickets": "exact_match"}}
    )
    text = " ".join(rendered(accuracy_table(mixed)).split())
    assert (
        "scores in percent: ROUGE-L of the generated answer for replies; exact match of the likeliest label for "
        "tickets; averages are over both kinds"
    ) in text
    assert "average accuracy 50.0 (mean over 2 tasks of the last row)" in text


def test_all_runs_that_tie_for_the_best_are_marked() -> None:
    runs = [summary([[50, None], row], ["a", "b"], name=name) for name, row in
            (("r1", [20, 80]), ("r2", [49.96, 50]), ("r3", [10, 20]))]  # fmt: skip
    lines = rendered(comparison_table(runs)).splitlines()
    assert [("*" in line) for line in lines if line.split()[:1] in (["r1"], ["r2"], ["r3"])] == [
        True,
        True,
        False,
    ]
