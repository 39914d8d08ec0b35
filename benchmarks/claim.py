"""Do updates that collide more forget more, and do larger ones? Over the methods of a sweep, and a picture of them.

    python benchmarks/claim.py benchmarks/results/choosing_claim.jsonl     # the table of docs/claim.md
    python benchmarks/claim.py benchmarks/results/choosing_short.jsonl     # the same over the field's methods
    python benchmarks/claim.py FILE --draw docs/images/claim.png           # the picture (needs matplotlib)

A method counts if it is one model of adapters that keeps no old data: what replay or a router keeps has nothing to do
with how updates meet. A point is a method, the mean over its seeds; in the last column, a run less its method's mean.
Intervals: a bootstrap over methods. `size` is the logarithm of the norm of a task's update, so that halving it counts
the same everywhere.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from choosing import GRID, REFERENCE
from choosing_runs import Run, read_runs
from nlora.analysis.forgetting import Floats, pearson
from one_line import one_line_errors

ROUNDS = 9999
FEWEST = 5
"""Methods that a correlation needs."""


@dataclass(frozen=True, slots=True)
class Point:
    """A run, or the mean of a method's runs. collisions: in percent. size: of an update. forgotten: in points."""

    name: str
    collisions: float
    size: float
    forgotten: float


def points_of(name: str, runs: Mapping[int, Run]) -> list[Point]:
    """One for each seed; none if old data or a task's name keeps the tasks, or no adapter learns them."""
    found = []
    for run in runs.values():
        summary = run.summary
        if summary.replay or summary.method == "replay" or summary.serve or summary.method == "pertask":
            return []
        if run.update is None or run.collisions is None or summary.backward_transfer is None:
            return []
        found.append(Point(name, run.collisions, run.update, -summary.backward_transfer))
    return found


def mean_of(points: Sequence[Point]) -> Point:
    """A method's point."""
    means = [statistics.mean(getattr(p, key) for p in points) for key in ("collisions", "size", "forgotten")]
    return Point(points[0].name, *means)


def partial(x: Floats, y: Floats, z: Floats) -> Floats:
    """The correlation of x and y that is left once each is explained by z, linearly."""
    xy, xz, yz = pearson(x, y), pearson(x, z), pearson(y, z)
    made: Floats = (xy - xz * yz) / np.sqrt(np.maximum((1 - xz**2) * (1 - yz**2), 1e-12))
    return made


def drawn(count: int) -> NDArray[np.int64]:
    """The numbers of the methods that a bootstrap draws, (ROUNDS, count)."""
    return np.random.default_rng(0).integers(count, size=(ROUNDS, count))


def shown(x: Floats, y: Floats, z: Floats | None = None) -> str:
    """The correlation over methods, without what z explains, and its interval."""
    if len(x) < FEWEST:
        return "-"
    which = drawn(len(x))
    if z is None:
        return told(pearson(x, y), pearson(x[which], y[which]))
    return told(partial(x, y, z), partial(x[which], y[which], z[which]))


def shown_between_seeds(of_methods: Sequence[Sequence[Point]]) -> str:
    """The correlation of collisions and forgetting over the runs, less their method's mean, and its interval.

    Whole methods are drawn: the deviations of one method's runs add up to 0, so they are no independent points.
    """
    points = [
        np.array([[p.collisions - mean.collisions, p.forgotten - mean.forgotten] for p in runs])
        for runs, mean in ((runs, mean_of(runs)) for runs in of_methods if len(runs) > 1)
    ]
    if len(points) < FEWEST:
        return "-"
    draws = [pearson(*np.concatenate([points[i] for i in which]).T) for which in drawn(len(points))]
    return told(pearson(*np.concatenate(points).T), np.array(draws))


def told(r: Floats, draws: Floats) -> str:
    """A correlation with the middle 95 % of what was drawn."""
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return f"{r:+.2f} ({low:+.2f} to {high:+.2f})"


def row(what: str, of_methods: Sequence[Sequence[Point]]) -> str:
    """The correlations over these methods. of_methods: each one's runs."""
    means = [mean_of(points) for points in of_methods]
    collisions = np.array([p.collisions for p in means])
    size = np.array([math.log(p.size) for p in means])
    forgotten = np.array([p.forgotten for p in means])
    cells = [
        what,
        str(len(means)),
        shown(collisions, forgotten),
        shown(size, forgotten),
        shown(collisions, forgotten, size),
        shown(size, forgotten, collisions),
        shown_between_seeds(of_methods),
    ]
    return "| " + " | ".join(cells) + " |"


def by_length(runs: Mapping[str, Mapping[int, Run]]) -> dict[str, list[list[Point]]]:
    """The methods that count, by the number of epochs; '' where the runs differ in nothing but the method."""
    lengths: dict[str, list[list[Point]]] = defaultdict(list)
    for name, of_name in runs.items():
        points = points_of(name.partition(GRID)[0], of_name)
        if points:
            lengths[name.partition(GRID)[2]].append(points)
    return dict(sorted(lengths.items(), key=lambda item: int(item[0] or 0)))


def print_table(lengths: Mapping[str, list[list[Point]]]) -> None:
    """A line for each length of training."""
    print(
        "| epochs | methods | collisions and forgetting | size and forgetting | collisions, at equal size "
        "| size, at equal collisions | collisions, between seeds of a method |"
    )
    print("| --- " * 7 + "|")
    for epochs, of_methods in lengths.items():
        print(row(epochs or "all", of_methods))


KINDS = {
    # what a method's name begins with: (color, marker, words)
    "inclora_rescaled": ("series2", "v", "multiplied (small, dense)"),
    "nlora_l2": ("series1", "^", "L2 penalty (small, dense)"),
    "nlora": ("series0", "o", "L1 penalty (sparse)"),
    "lori": ("series3", "D", "whole rows at zero (sparse)"),
    "disjoint": ("series4", "s", "no collisions at all (sparse)"),
    REFERENCE: ("ink", "*", "no protection"),
    "": ("muted", "o", "other methods"),
}


def draw(lengths: Mapping[str, list[list[Point]]], target: Path) -> None:
    """What is forgotten, against collisions and against size; a row for each length of training.

    A bar is the standard error over a method's seeds.
    """
    import matplotlib.pyplot as plt

    from nlora.report.charts.palette import LIGHT

    paper, height = LIGHT["paper"], 0.9 + 2.7 * len(lengths)
    figure, grid = plt.subplots(
        len(lengths), 2, figsize=(8.4, height), sharey=True, squeeze=False, facecolor=paper
    )
    marks = {}
    for axes, (epochs, of_methods) in zip(grid, lengths.items(), strict=True):
        for points in of_methods:
            mean, lost = mean_of(points), [point.forgotten for point in points]
            error = statistics.stdev(lost) / math.sqrt(len(lost)) if len(lost) > 1 else 0
            color, marker, words = next(of for name, of in KINDS.items() if mean.name.startswith(name))
            style = {"color": LIGHT[color], "marker": marker, "markersize": 11 if marker == "*" else 6}
            for ax, x in zip(axes, (mean.collisions, mean.size), strict=True):
                marks[words] = ax.errorbar(x, mean.forgotten, error, elinewidth=0.8, linestyle="", **style)
        axes[0].set_ylabel(f"{epochs} epochs: points forgotten" if epochs else "points forgotten")
        axes[1].set_xscale("log")
        axes[1].set_xticks(ticks := [0.5, 1, 2, 5, 10], [str(tick) for tick in ticks])
        axes[1].minorticks_off()
        for ax in axes:
            ax.set_facecolor(paper)
            ax.grid(color=LIGHT["faint"])
            ax.set_axisbelow(True)
            ax.spines[["top", "right"]].set_visible(False)
    grid[0][0].set_ylim(bottom=-2)  # of all; here, because it ends the scaling
    grid[-1][0].set_xlabel("collisions, % of the entries that both tasks change")
    grid[-1][1].set_xlabel("size of a task's update (Frobenius norm)")
    order = [words for _, _, words in KINDS.values() if words in marks]
    figure.legend([marks[words] for words in order], order, loc="upper center", ncols=3, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.62 / height))
    figure.savefig(target, dpi=150, facecolor=paper, metadata={"Software": None})
    plt.close(figure)


@one_line_errors
def main() -> None:
    """Prints the table, or draws the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folder", type=Path, help="the output_dir of a sweep, or a file of choosing.py --keep"
    )
    parser.add_argument("--draw", type=Path, metavar="FILE", help="draw the picture instead, as PNG")
    options = parser.parse_args()
    lengths = by_length(read_runs(options.folder))
    if options.draw:
        draw(lengths, options.draw)
    else:
        print_table(lengths)


if __name__ == "__main__":
    main()
