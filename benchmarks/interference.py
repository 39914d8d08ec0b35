"""Interference next to accuracy and forgetting, for every run of a sweep: collisions, orthogonality, nuclear norm.

    python benchmarks/interference.py runs/five-tasks                       # the table of docs/results.md
    python benchmarks/interference.py runs/five-tasks --threshold 1e-4

Two tasks collide at an entry where both |ΔW| exceed a threshold. A run's own threshold (0.1 x the root mean square of
its entries) hides that a penalized update is smaller, and a threshold common to all runs shows little else. So both
are printed; the common one is that of the first seed of `--reference`. Rows are means over the seeds.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from nlora.analysis.forgetting import correlation
from nlora.analysis.of_run import analyze_run
from nlora.errors import RunError
from nlora.runs.interference_file import Interference
from nlora.runs.summary import Summary, read_summary
from one_line import one_line_errors

Run = tuple[Summary, Interference, Interference]
"""A run's summary, and its interference at its own threshold and at the common one."""


def read_runs(folder: Path, reference: str, threshold: float | None) -> tuple[float, dict[str, list[Run]]]:
    """The common threshold, and the finished runs that hold adapters of several tasks, by name.

    Raises RunError if there are none, or none of the reference's name to take the threshold from.
    """
    own: dict[Path, tuple[Summary, Interference]] = {}
    for path in sorted(path.parent for path in folder.glob("*/summary.json")):
        try:
            found = analyze_run(path)
        except RunError:  # no adapters, or none yet
            continue
        summary = read_summary(path)
        if found.pairs and summary.status == "complete":
            own[path] = summary, found
    if not own:
        raise RunError(
            f"{folder}: no finished run with adapters of several tasks in it; give a sweep's folder"
        )
    if threshold is None:
        firsts = [found.threshold for summary, found in own.values() if summary.name == reference]
        if not firsts:
            raise RunError(f"no finished run is called {reference}; give --threshold or another --reference")
        threshold = firsts[0]
    runs: dict[str, list[Run]] = {}
    for path, (summary, found) in own.items():
        runs.setdefault(summary.name, []).append((summary, found, analyze_run(path, threshold)))
    return threshold, runs


def mean_of(values: Iterable[float | None]) -> float | None:
    """The mean over pairs or adapters; None if one of them is undefined."""
    values = list(values)
    known = [value for value in values if value is not None]
    return statistics.mean(known) if len(known) == len(values) else None


def just_learned(summary: Summary) -> float | None:
    """The mean over tasks of the score right after learning, the diagonal of R."""
    return mean_of(summary.R[k][k] for k in range(len(summary.tasks)))


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
        over([common.average_collision_rate for _, _, common in runs], 2, 100),
        over([own.average_collision_rate for _, own, _ in runs], 1, 100),
        over([mean_of(p.overlap_energy for p in own.pairs.values()) for _, own, _ in runs], 3),
        over([mean_of(p.orthogonality for p in own.pairs.values()) for _, own, _ in runs], 3),
        over([mean_of(p.update_orthogonality for p in own.pairs.values()) for _, own, _ in runs], 3),
        over([mean_of(a.nuclear_norm for a in own.adapters.values()) for _, own, _ in runs], 2),
    ]


@one_line_errors
def main() -> None:
    """Prints the table, then the correlations of interference and forgetting over all runs."""
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
    # With the task known or guessed, a model uses one update at a time: updates of such a run cannot interfere.
    sequences = [
        run for group in runs.values() for run in group if run[0].method != "pertask" and run[0].serve is None
    ]
    drops = [drop for _, _, common in sequences if common.forgetting for drop in common.forgetting.pairs]
    lost = [drop.drop for drop in drops]
    cost = "against the points that a stage cost an earlier task, over all pairs of all runs"
    show(f"collision rate (common threshold) {cost}", [drop.collision_rate for drop in drops], lost)
    show(f"overlap energy {cost}", [drop.overlap_energy for drop in drops], lost)
    show(
        "average collision rate (common threshold) against forgetting, over runs",
        [common.average_collision_rate for _, _, common in sequences],
        [summary.forgetting for summary, _, _ in sequences],
    )


def show(what: str, x: Sequence[float | None], y: Sequence[float | None]) -> None:
    """One line about a correlation, if there is one."""
    found = correlation(x, y)
    if found is not None and found.pearson_interval_95 is not None:
        low, high = found.pearson_interval_95
        print(f"{what}: r = {found.pearson:+.2f} ({low:+.2f} to {high:+.2f}), n = {found.n}")


if __name__ == "__main__":
    main()
