"""Runs that were scored on different test examples are neither compared nor kept in one file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nlora.errors import RunError
from nlora.runs.summary import Summary

COUNTS = [{"inclora": 4, "nlora": 2}, {"inclora": 2, "nlora": 4}]


def runs_of(choosing_runs: Any, counts: dict[str, int], seeds: tuple[int, ...] = (1,)) -> Any:
    """By name and seed: runs of two tasks, each with this number of test examples, the first of which is forgotten."""

    def run(name: str, seed: int, count: int) -> Any:
        learned = dict.fromkeys(map(str, range(count)), 1.0)
        last = 100 * (count - 1) / count
        summary = Summary(
            schema=1, status="complete", name=name, method=name, model="tiny", seed=seed, tasks=("a", "b"),
            R=((100, None), (last, 100)), average_accuracy=(last + 100) / 2, backward_transfer=last - 100,
        )  # fmt: skip
        scores = {"a": learned | {"0": 0.0}, "b": learned}
        return choosing_runs.Run(summary, scores, {"a": learned, "b": learned}, 1.0, 2.0)

    return {name: {seed: run(name, seed, count) for seed in seeds} for name, count in counts.items()}


@pytest.mark.parametrize("counts", COUNTS)
def test_other_test_examples_are_not_compared(
    script: Callable[[str], Any], capsys: pytest.CaptureFixture[str], counts: dict[str, int]
) -> None:
    script("choosing").print_table(runs_of(script("choosing_runs"), counts))
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()[2:]]
    assert sorted(row[0].split("`")[1] for row in rows) == ["inclora", "nlora"]
    for row in rows:
        count = counts[row[0].split("`")[1]]
        assert row[4] == f"{-100 / count:.1f}"  # of its own
        assert (row[3], row[5]) == ("-", "-")  # minus inclora


@pytest.mark.parametrize("counts", COUNTS)
def test_other_test_examples_are_not_kept_in_one_file(
    script: Callable[[str], Any], tmp_path: Path, counts: dict[str, int]
) -> None:
    choosing_runs = script("choosing_runs")
    with pytest.raises(RunError, match=r"^nlora: scored on other test examples .* of seed 1; .*$"):
        choosing_runs.write_runs(runs_of(choosing_runs, counts), tmp_path / "kept.jsonl")
    assert not list(tmp_path.iterdir())
    alike = runs_of(choosing_runs, {"inclora": 2, "nlora": 2})
    choosing_runs.write_runs(alike, tmp_path / "kept.jsonl")
    (back,) = choosing_runs.read_runs(tmp_path / "kept.jsonl")["nlora"].values()
    assert (back.last, back.learned) == (alike["nlora"][1].last, alike["nlora"][1].learned)


@pytest.mark.parametrize("counts", COUNTS)
def test_the_spread_of_real_runs_is_of_the_same_examples(
    script: Callable[[str], Any], counts: dict[str, int]
) -> None:
    coverage, choosing_runs = script("coverage"), script("choosing_runs")
    seeds = (1, 2, 3)
    assert coverage.spread_of(runs_of(choosing_runs, {"inclora": 4, "nlora": 4}, seeds)) == 0
    for refused in (runs_of(choosing_runs, counts, seeds), runs_of(choosing_runs, {"nlora": 4}, seeds)):
        with pytest.raises(RunError, match="no method has three seeds of inclora's"):
            coverage.spread_of(refused)
