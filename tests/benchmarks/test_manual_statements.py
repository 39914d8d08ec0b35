"""What the manual says in words about the kept runs, computed from them."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8").replace("−", "-")


def test_every_best_value_at_an_end_is_told(script: Callable[[str], Any]) -> None:
    scores: dict[str, dict[float, float]] = {}
    for name, runs in script("choosing_runs").read_runs(RESULTS / "choosing_tuning.jsonl").items():
        method, _, value = name.partition("-")
        if value:
            accuracy = statistics.mean(run.accuracy for run in runs.values())
            scores.setdefault(method, {})[float(value)] = accuracy
    told = page("results.md").partition("may lie beyond:")[2].partition("\n\n`seqft`")[0]
    at_an_end = {
        method
        for method, of_values in scores.items()
        if max(of_values, key=of_values.__getitem__) in (min(of_values), max(of_values))
    }
    assert {"osf", "ella", "clora_64"} <= at_an_end
    assert at_an_end <= set(re.findall(r"`(\w+)`", told))


def test_the_spread_of_real_runs_is_what_the_manual_says(
    script: Callable[[str], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    script("coverage").main(["--of", str(RESULTS / "choosing_short.jsonl")])
    (number,) = re.findall(r"spread by (\d\.\d) points", capsys.readouterr().out)
    sweeps = " ".join(page("sweeps.md").split())
    assert f"# real runs: {number}" in sweeps
    assert f"spread by {number} points." in sweeps


def test_collisions_at_a_runs_own_threshold_are_those_of_the_seeds_that_the_manual_names(
    script: Callable[[str], Any],
) -> None:
    section = page("claim.md").partition("## At one threshold")[2].partition("\n## ")[0]
    first, last = map(int, re.findall(r"seeds (\d) to (\d)", section)[0])
    runs = script("choosing_runs").read_runs(RESULTS / "choosing_short.jsonl")
    rows = re.findall(r"^\| `(\w+)`.*\| (\d+\.\d) \|$", section, re.MULTILINE)
    assert len(rows) == 6
    for name, own in rows:
        found = [runs[name][seed].collisions for seed in range(first, last + 1)]
        assert own == f"{statistics.mean(found):.1f}", name
