"""Which method keeps the tasks? The tables of a sweep in which all methods have the same data, steps and seeds.

    python benchmarks/choosing.py runs/choosing/short                  # every method, and its difference to inclora
    python benchmarks/choosing.py runs/choosing/tuning --choose        # the best value of each method's option

A difference is paired: the same seeds, and in each of them the same test examples. Its interval covers 95 % of a
bootstrap that draws seeds and test examples (2,000 draws). An example that several seeds are scored on is drawn for all
of them at once.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nlora.runs.answers import ExampleKey, read_answers
from nlora.runs.layout import OUTPUTS, stage_name
from nlora.runs.summary import Summary, read_summary

REFERENCE = "inclora"
DRAWS = 2000


@dataclass(frozen=True)
class Run:
    """A finished run: its summary, and whether each test example of each task was answered correctly at the end."""

    summary: Summary
    correct: Mapping[str, Mapping[ExampleKey, bool]]

    @property
    def just_learned(self) -> float | None:
        """The mean over tasks of the score right after learning, the diagonal of R."""
        diagonal = [self.summary.R[k][k] for k in range(len(self.summary.tasks))]
        known = [score for score in diagonal if score is not None]
        return statistics.mean(known) if len(known) == len(diagonal) else None


def read_runs(folder: Path) -> dict[str, dict[int, Run]]:
    """The finished runs of a sweep, by name and seed."""
    runs: dict[str, dict[int, Run]] = defaultdict(dict)
    for path in sorted(path.parent for path in folder.glob("*/summary.json")):
        summary = read_summary(path)
        if summary.status != "complete":
            continue
        last = path / OUTPUTS / stage_name(len(summary.tasks), summary.tasks[-1])
        answers = read_answers(last / "predict_eval_predictions.jsonl", summary.tasks)
        runs[summary.name][summary.seed] = Run(
            summary,
            {
                task: {key: answer.is_right for key, answer in found.items()}
                for task, found in answers.items()
            },
        )
    return runs


def interval(runs: Mapping[int, Run], others: Mapping[int, Run], seeds: Sequence[int]) -> tuple[float, float]:
    """The 2.5 % and 97.5 % points of the difference in average accuracy, in points of percent."""
    draw = np.random.default_rng(0)
    total = np.zeros((DRAWS, len(seeds)))
    for task in runs[seeds[0]].correct:
        keys = sorted({key for seed in seeds for key in runs[seed].correct[task]})
        weights = draw.poisson(1.0, (DRAWS, len(keys)))  # how often each example is drawn
        place = {key: i for i, key in enumerate(keys)}
        for column, seed in enumerate(seeds):
            one, other = runs[seed].correct[task], others[seed].correct[task]
            change = np.array([float(one[key]) - float(other[key]) for key in one])
            drawn = weights[:, [place[key] for key in one]]
            total[:, column] += drawn @ change / np.maximum(drawn.sum(axis=1), 1)
    which = draw.integers(len(seeds), size=(DRAWS, len(seeds)))
    means: NDArray[np.float64] = np.take_along_axis(total, which, axis=1).mean(axis=1)
    low, high = np.percentile(100 * means / len(runs[seeds[0]].correct), [2.5, 97.5])
    return float(low), float(high)


def described(values: Sequence[float | None]) -> str:
    """Mean and sample standard deviation."""
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known:
        return "-"
    spread = f" ± {statistics.stdev(known):.1f}" if len(known) > 1 else ""
    return f"{statistics.mean(known):.1f}{spread}"


def row(name: str, runs: Mapping[int, Run], reference: Mapping[int, Run]) -> list[str]:
    """One method's line."""
    summaries = [run.summary for run in runs.values()]
    seeds = sorted(runs.keys() & reference.keys())
    difference = "-"
    if seeds and name != REFERENCE:
        gains = [_accuracy(runs[seed]) - _accuracy(reference[seed]) for seed in seeds]
        low, high = interval(runs, reference, seeds)
        difference = f"{statistics.mean(gains):+.1f} ({low:+.1f} to {high:+.1f})"
    return [
        f"`{name}`",
        str(len(runs)),
        described([s.average_accuracy for s in summaries]),
        difference,
        described([s.backward_transfer for s in summaries]),
        described([run.just_learned for run in runs.values()]),
    ]


def _accuracy(run: Run) -> float:
    assert run.summary.average_accuracy is not None
    return run.summary.average_accuracy


def print_table(runs: Mapping[str, Mapping[int, Run]]) -> None:
    """All methods, the best first."""
    reference = runs.get(REFERENCE, {})
    print(
        f"| method | seeds | average accuracy | minus {REFERENCE} (95 %) | backward transfer | just learned |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    means = {
        name: statistics.mean(_accuracy(run) for run in of_name.values()) for name, of_name in runs.items()
    }
    for name in sorted(means, key=lambda name: -means[name]):
        print("| " + " | ".join(row(name, runs[name], reference)) + " |")


def print_choices(runs: Mapping[str, Mapping[int, Run]]) -> None:
    """For each method, the average accuracy with each value, and the value that won."""
    methods: dict[str, dict[str, float]] = defaultdict(dict)
    for name, of_name in runs.items():
        method, _, value = name.partition("-")
        methods[method][value] = statistics.mean(_accuracy(run) for run in of_name.values())
    print("| method | average accuracy with each value | chosen |")
    print("| --- | --- | --- |")
    for method, scores in sorted(methods.items()):
        if len(scores) > 1:
            tried = ", ".join(f"{value}: {score:.1f}" for value, score in scores.items())
            print(f"| `{method}` | {tried} | {max(scores, key=scores.__getitem__)} |")


def main() -> None:
    """Prints the table, or the choices."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--choose", action="store_true", help="the best value of each option, by average accuracy"
    )
    options = parser.parse_args()
    runs = read_runs(options.folder)
    (print_choices if options.choose else print_table)(runs)


if __name__ == "__main__":
    main()
