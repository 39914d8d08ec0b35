"""Collisions, orthogonality and nuclear norm beside accuracy and forgetting, for every run of a sweep.

    python benchmarks/microscope.py runs/five-tasks                       # the table of docs/results.md
    python benchmarks/microscope.py runs/five-tasks --threshold 1e-4

Two tasks collide at an entry where both |ΔW| exceed a threshold. A run's own threshold (0.1 x the root mean square of
its entries) hides that a penalized update is smaller; one threshold for all runs shows little else. So both are
printed: the common one is that of the first seed of `--reference`. Rows are means over the seeds.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nlora.analysis.forgetting import correlation
from nlora.cli.analyze import analyze_run
from nlora.errors import RunError
from nlora.runs.summary import Summary, read_summary

Run = tuple[Summary, dict[str, Any], dict[str, Any]]
"""A run's summary, and its analysis at its own threshold and at the common one."""


def read_runs(folder: Path, reference: str, threshold: float | None) -> tuple[float, dict[str, list[Run]]]:
    """The common threshold, and the finished runs that hold adapters of several tasks, by name."""
    own: dict[Path, dict[str, Any]] = {}
    for path in sorted(path.parent for path in folder.glob("*/summary.json")):
        try:
            values = analyze_run(path)
        except RunError:  # no adapters, or none yet
            continue
        if values["pairs"] and values["run"]["status"] == "complete":
            own[path] = values
    if threshold is None:
        firsts = [v["threshold"] for path, v in own.items() if v["run"]["name"] == reference]
        if not firsts:
            raise SystemExit(
                f"no finished run is called {reference}; give --threshold or another --reference"
            )
        threshold = firsts[0]
    runs: dict[str, list[Run]] = {}
    for path, values in own.items():
        run = (read_summary(path), values, analyze_run(path, threshold))
        runs.setdefault(values["run"]["name"], []).append(run)
    return threshold, runs


def mean_of(values: Mapping[str, Mapping[str, Any]], key: str) -> float | None:
    """The mean over pairs or adapters of one measure; None where one of them has none."""
    known = [own[key] for own in values.values()]
    return None if any(value is None for value in known) else statistics.mean(known)


def just_learned(summary: Summary) -> float | None:
    """The mean over tasks of the score right after learning: of the diagonal of R."""
    known = [summary.R[k][k] for k in range(len(summary.tasks))]
    scores = [score for score in known if score is not None]
    return statistics.mean(scores) if len(scores) == len(known) else None


def row(name: str, runs: Sequence[Run]) -> list[str]:
    """One method's line: means over its seeds."""

    def over(values: Sequence[float | None], digits: int, factor: float = 1.0) -> str:
        known = [value * factor for value in values if value is not None]
        if len(known) < len(values):
            return "-"
        return f"{statistics.mean(known):.{digits}f}"

    return [
        name,
        str(len(runs)),
        over([s.average_accuracy for s, _, _ in runs], 1),
        over([s.forgetting for s, _, _ in runs], 1),
        over([just_learned(s) for s, _, _ in runs], 1),
        over([common["average_collision_rate"] for _, _, common in runs], 2, 100),
        over([own["average_collision_rate"] for _, own, _ in runs], 1, 100),
        over([mean_of(own["pairs"], "overlap_energy") for _, own, _ in runs], 3),
        over([mean_of(own["pairs"], "orthogonality") for _, own, _ in runs], 3),
        over([mean_of(own["pairs"], "update_orthogonality") for _, own, _ in runs], 3),
        over([mean_of(own["adapters"], "nuclear_norm") for _, own, _ in runs], 2),
    ]


def main() -> None:
    """The table, then whether pairs that collide more forget more, within all runs together."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="a sweep's folder")
    parser.add_argument("--reference", default="inclora", help="name of the run that sets the threshold")
    parser.add_argument("--threshold", type=float, help="the common one; left out: by --reference")
    options = parser.parse_args()
    threshold, runs = read_runs(options.folder, options.reference, options.threshold)
    print(f"common threshold {threshold:.3g}")
    print(
        "| run | seeds | average accuracy | forgetting | just learned | collisions, common threshold, % "
        "| own threshold, % | overlap energy | orthogonality of A | of the updates | nuclear norm |"
    )
    print("| --- " * 11 + "|")
    for name, group in runs.items():
        print(f"| {' | '.join(row(name, group))} |")
    # With the task's name given, no update meets another one: such a run says nothing of forgetting.
    sequences = [run for group in runs.values() for run in group if run[0].method != "pertask"]
    pairs = [p for _, _, common in sequences for p in common["forgetting"]["pairs"]]
    drops = [p["drop"] for p in pairs]
    for measure in ("collision_rate", "overlap_energy"):
        found = correlation([p[measure] for p in pairs], drops)
        if found:
            low, high = found["pearson_interval_95"]
            print(
                f"{measure} (common threshold) against what a stage cost an earlier task, over all pairs of all runs: "
                f"r = {found['pearson']:+.2f} ({low:+.2f} to {high:+.2f}), n = {found['n']}"
            )
    rates = [common["average_collision_rate"] for _, _, common in sequences]
    found = correlation(rates, [summary.forgetting for summary, _, _ in sequences])
    if found:
        low, high = found["pearson_interval_95"]
        print(
            f"average collision rate (common threshold) against forgetting, over runs: r = {found['pearson']:+.2f} "
            f"({low:+.2f} to {high:+.2f}), n = {found['n']}"
        )


if __name__ == "__main__":
    main()
