"""How often the interval of a difference between two methods holds the truth, in simulated experiments.

    python benchmarks/coverage.py
    python benchmarks/coverage.py --of benchmarks/results/choosing_short.jsonl     # how far real runs spread

Two methods that are equally good learn three tasks of 100 test examples each, so the true difference is 0. Examples
differ in difficulty, and each run is a little better or worse than its method, by a normal spread. The interval is that
of `nlora compare --base` and of benchmarks/choosing.py. It should hold 0 in 95 % of the experiments.

How far real runs spread is estimated from the differences to `inclora` of methods with three seeds and more: the
variance of such a difference over the seeds, less what the choice of test examples explains, is twice that of a run.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from choosing_runs import Run, Runs, read_runs, same_examples
from nlora.errors import RunError
from nlora.runs.paired_bootstrap import Scores, bootstrap
from one_line import one_line_errors

TASKS, EXAMPLES = 3, 100
SEEDS = (1, 2, 3, 5)
SPREADS = (0.0, 2.0, 3.0, 5.0)
"""Standard deviation of a run's average accuracy around its method's, in points, with the same test examples."""
_PER_LOGIT = 17.0
"""Points of accuracy that one unit of a run's logit is worth, near 70 % and with these difficulties."""


def experiment(seeds: int, spread: float, fresh: bool, draw: np.random.Generator) -> bool:
    """Whether the interval holds 0. fresh: each seed is scored on test examples of its own."""
    hard = draw.normal(0, 1.5, (TASKS, EXAMPLES))
    pairs = []
    for seed in range(seeds):
        if fresh:
            hard = draw.normal(0, 1.5, (TASKS, EXAMPLES))
        name = str(seed) if fresh else ""
        pairs.append((run(hard, spread, name, draw), run(hard, spread, name, draw)))
    found = bootstrap(pairs)
    return found.low <= 0 <= found.high


def run(hard: NDArray[np.float64], spread: float, name: str, draw: np.random.Generator) -> Scores:
    """A run's answers, right or wrong."""
    logits = 1.2 + draw.normal(0, spread / _PER_LOGIT) - hard
    right = draw.random(hard.shape) < 1 / (1 + np.exp(-logits))
    return {
        str(task): {f"{name}-{i:05d}": float(is_right) for i, is_right in enumerate(of_task)}
        for task, of_task in enumerate(right)
    }


def spread_of(runs: Runs) -> float:
    """Of the runs of a sweep, over all methods. Raises RunError if none has three seeds.

    Of `inclora`'s seeds, a method has those that were scored on the same test examples.
    """
    reference = runs.get("inclora", {})
    excess, freedom = 0.0, 0
    for name, of_name in runs.items():
        both = [(of_name[seed], reference[seed]) for seed in of_name.keys() & reference.keys()]
        pairs = [(one, other) for one, other in both if one.last and same_examples(one.last, other.last)]
        if name != "inclora" and len(pairs) > 2:
            gains = [one.accuracy - other.accuracy for one, other in pairs]
            by_examples = statistics.mean(variance_by_examples(*pair) for pair in pairs)
            excess += (len(pairs) - 1) * (statistics.variance(gains) - by_examples)
            freedom += len(pairs) - 1
    if not freedom:
        raise RunError("no method has three seeds of inclora's, scored on the same test examples")
    return math.sqrt(max(excess, 0.0) / freedom / 2)


def variance_by_examples(one: Run, other: Run) -> float:
    """Of a difference in average accuracy, by the choice of test examples."""
    changes = [
        [one.last[task][key] - score for key, score in other.last[task].items()] for task in other.last
    ]
    return sum(1e4 * statistics.pvariance(of_task) / len(of_task) for of_task in changes) / len(changes) ** 2


@one_line_errors
def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table: of each number of seeds, the share of experiments whose interval holds the truth."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--experiments", type=int, default=400)
    parser.add_argument(
        "--of", type=Path, metavar="FILE", help="print how far the runs of a sweep spread instead"
    )
    options = parser.parse_args(arguments)
    if options.of:
        print(f"runs spread by {spread_of(read_runs(options.of)):.1f} points")
        return
    count = options.experiments
    draw = np.random.default_rng(1)
    print("| seeds | test examples | " + " | ".join(f"runs spread by {s:.0f} points" for s in SPREADS) + " |")
    print("| --- " * (2 + len(SPREADS)) + "|")
    for seeds in SEEDS:
        for fresh in (True, False) if seeds > 1 else (True,):
            shares = [
                sum(experiment(seeds, spread, fresh, draw) for _ in range(count)) / count
                for spread in SPREADS
            ]
            cells = [str(seeds), "their own" if fresh else "the same", *(f"{100 * s:.0f} %" for s in shares)]
            print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
