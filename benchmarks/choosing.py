"""Which method keeps the tasks? The tables of a sweep in which all methods have the same data, steps and seeds.

    python benchmarks/choosing.py benchmarks/results/choosing_short.jsonl    # the runs of docs/results.md
    python benchmarks/choosing.py runs/choosing/short                        # those that one made oneself
    python benchmarks/choosing.py runs/choosing/claim                  # the same for each length of training
    python benchmarks/choosing.py FILE --seeds 1                       # of single seeds
    python benchmarks/choosing.py FILE --base replay --only ewc lwf    # of these methods, minus another one
    python benchmarks/choosing.py FILE --routing                       # how often tasks were guessed rightly
    python benchmarks/choosing.py runs/choosing/tuning --choose        # the best value of each method's option
    python benchmarks/choosing.py runs/choosing/costs --costs          # time and memory beside no protection
    python benchmarks/choosing.py runs/choosing/short --keep FILE      # what the tables need of the runs, as a file

How a difference and its interval are computed: `nlora.runs.paired_bootstrap`.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from choosing_names import WORDS
from choosing_runs import Run, Runs, read_runs, same_examples, write_runs
from nlora.errors import RunError
from nlora.report.formatting import change, score
from nlora.runs.layout import OUTPUTS
from nlora.runs.paired_bootstrap import Scores, bootstrap, difference
from nlora.runs.summary import Summary, read_summary
from one_line import one_line_errors

REFERENCE = "inclora"
GRID = "-epochs="
"""In the name of a run, the number of epochs follows this."""


def of_seeds(runs: Runs, seeds: Sequence[int]) -> Runs:
    """The runs of these seeds. Raises RunError if there are none."""
    chosen = {name: {k: run for k, run in of_name.items() if k in seeds} for name, of_name in runs.items()}
    if not any(chosen.values()):
        raise RunError(f"--seeds {' '.join(map(str, seeds))}: no run has one of them")
    return {name: of_name for name, of_name in chosen.items() if of_name}


def of_methods(runs: Runs, names: Sequence[str]) -> Runs:
    """The runs of these methods, trained for however long. Raises RunError for one that has none."""
    known = {name.partition(GRID)[0] for name in runs}
    for name in names:
        if name not in known:
            raise RunError(f"no run is called {name}; there are {', '.join(sorted(known))}")
    return {name: of_name for name, of_name in runs.items() if name.partition(GRID)[0] in names}


def just_learned(summary: Summary) -> float | None:
    """The mean over tasks of the score right after learning, the diagonal of R."""
    diagonal = [summary.R[k][k] for k in range(len(summary.tasks))]
    known = [score for score in diagonal if score is not None]
    return statistics.mean(known) if len(known) == len(diagonal) else None


def described(values: Sequence[float | None]) -> str:
    """Mean and sample standard deviation."""
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known:
        return "-"
    spread = f" ± {statistics.stdev(known):.1f}" if len(known) > 1 else ""
    return f"{score(statistics.mean(known))}{spread}"


def kept(runs: Mapping[int, Run], others: Mapping[int, Run]) -> str:
    """How much higher the backward transfer is than that of the others, with the seeds that both have.

    `-` where a pair was not scored on the same test examples, or the seeds have other earlier tasks.
    """
    pairs = [(runs[seed].changes, others[seed].changes) for seed in sorted(runs.keys() & others.keys())]
    known = [(mine, theirs) for mine, theirs in pairs if mine and theirs and same_examples(mine, theirs)]
    if len(known) < len(pairs) or len({frozenset(mine) for mine, _ in known}) != 1:
        return "-"
    gains = [_average(mine) - _average(theirs) for mine, theirs in known]
    interval = bootstrap(known)
    return f"{change(statistics.mean(gains))} ({change(interval.low)} to {change(interval.high)})"


def _average(scores: Scores) -> float:
    """The mean over tasks of the mean over examples, in percent."""
    return 100 * statistics.mean(statistics.mean(of_task.values()) for of_task in scores.values())


def row(name: str, runs: Mapping[int, Run], reference: Mapping[int, Run] | None) -> list[str]:
    """One method's line. reference: None for the method that the others are compared with."""
    summaries = [run.summary for run in runs.values()]
    others = reference or {}
    found = difference([run.scored for run in runs.values()], [run.scored for run in others.values()])
    shown = "-" if found is None else change(found.mean)
    if found is not None and found.interval is not None:
        shown += f" ({change(found.interval.low)} to {change(found.interval.high)})"
    words = WORDS.get(name.partition(GRID)[0])
    return [
        f"`{name}`" + (f", {words}" if words else ""),
        str(len(runs)),
        described([s.average_accuracy for s in summaries]),
        shown,
        described([s.backward_transfer for s in summaries]),
        kept(runs, others),
        described([just_learned(s) for s in summaries]),
        described([run.update for run in runs.values()]),
        described([run.collisions for run in runs.values()]),
    ]


def print_table(runs: Runs, base: str = REFERENCE, only: Sequence[str] = ()) -> None:
    """The methods by length of training, the best first. base: what the others are compared with. only: empty for all.

    Raises RunError if there are no runs of one that is named.
    """
    shown = of_methods(runs, only) if only else runs
    if base != REFERENCE:
        of_methods(runs, [base])
    print(
        f"| method | seeds | average accuracy | minus {base} (95 %) | backward transfer "
        f"| minus {base} (95 %) | just learned | update | collisions |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    means = {
        name: statistics.mean(run.accuracy for run in of_name.values()) for name, of_name in shown.items()
    }
    for name in sorted(means, key=lambda name: (int(name.partition(GRID)[2] or 0), -means[name])):
        reference = base + "".join(name.partition(GRID)[1:])  # trained as long
        others = runs.get(reference) if name != reference else None
        print("| " + " | ".join(row(name, runs[name], others)) + " |")


def print_routing(runs: Runs) -> None:
    """For each method that guesses tasks, the share of test texts whose task was guessed rightly; mean over seeds.

    Raises RunError if there is none.
    """
    if not any(run.summary.routing for of_name in runs.values() for run in of_name.values()):
        raise RunError("--routing: no run guesses its tasks")
    print("| method | seeds | guessed rightly, % | task by task |")
    print("| --- | --- | --- | --- |")
    for name, of_name in runs.items():
        found = [run.summary.routing for run in of_name.values() if run.summary.routing is not None]
        if not found:
            continue
        tasks = found[0].tasks
        shares = [[100 * row[i] / sum(row) for i, row in enumerate(of_seed.counts)] for of_seed in found]
        means = [statistics.mean(of_task) for of_task in zip(*shares, strict=True)]
        by_task = ", ".join(f"{task} {score(share)}" for task, share in zip(tasks, means, strict=True))
        print(
            f"| `{name}` | {len(found)} | {described([of_seed.accuracy for of_seed in found])} | {by_task} |"
        )


def print_choices(runs: Runs) -> None:
    """For each method, the average accuracy with each value, and the value that won.

    Raises RunError if no method has several values, or one of them is no number.
    """
    methods: dict[str, dict[str, float]] = defaultdict(dict)
    for name, of_name in runs.items():
        method, _, value = name.partition("-")
        methods[method][value] = statistics.mean(run.accuracy for run in of_name.values())
    methods = {method: scores for method, scores in sorted(methods.items()) if len(scores) > 1}
    if not methods or not all(_is_number(value) for scores in methods.values() for value in scores):
        raise RunError(
            "--choose: needs runs called METHOD-VALUE, as nlora-1.0e-4, with several values of a method"
        )
    print("| method | average accuracy with each value | chosen |")
    print("| --- | --- | --- |")
    for method, scores in methods.items():
        values = sorted(scores, key=float)
        tried = ", ".join(f"{value}: {scores[value]:.1f}" for value in values)
        print(f"| `{method}` | {tried} | {max(values, key=scores.__getitem__)} |")


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def print_costs(folder: Path) -> None:
    """What each method's last task cost beside that of no protection, means over seeds.

    with preparing: also what a method does before and after training. files: the weights that are kept of it.
    Raises RunError if there are no finished runs, or none of no protection.
    """
    runs: dict[str, list[tuple[Path, Summary]]] = defaultdict(list)
    for path in sorted(path.parent for path in folder.glob("*/summary.json")):
        summary = read_summary(path)
        if summary.status == "complete":
            runs[summary.name].append((path, summary))
    if REFERENCE not in runs:
        found = f"there are {', '.join(sorted(runs))}" if runs else "give the output_dir of a sweep"
        raise RunError(f"{folder}: --costs finds no finished run called {REFERENCE} in it; {found}")
    seconds = {
        name: statistics.mean(s.train_seconds[-1] for _, s in of_name) for name, of_name in runs.items()
    }
    whole = {
        name: seconds[name] + statistics.mean(s.prepare_seconds[-1] for _, s in of_name)
        for name, of_name in runs.items()
    }
    peaks = {
        name: statistics.mean(s.peak_memory_bytes or 0 for _, s in of_name) for name, of_name in runs.items()
    }
    print(
        "| method | training time | with preparing | peak of memory | trained parameters | files, MiB | old examples |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in sorted(seconds, key=seconds.__getitem__):
        path, summary = runs[name][0]
        last = max((path / OUTPUTS).iterdir(), key=lambda stage: int(stage.name.partition("-")[0]))
        kept = sum(file.stat().st_size for file in last.rglob("*.safetensors"))
        cells = [
            f"`{name}`",
            f"{seconds[name] / seconds[REFERENCE]:.2f}",
            f"{whole[name] / whole[REFERENCE]:.2f}",
            f"{peaks[name] / peaks[REFERENCE]:.2f}",
            f"{summary.trained_parameters or 0:,}",
            f"{kept / 2**20:.1f}",
            str(sum(summary.replayed_examples[-1:])),
        ]
        print("| " + " | ".join(cells) + " |")


@one_line_errors
def main() -> None:
    """Prints the table, the choices or the costs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="the output_dir of a sweep, or a file of --keep")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--choose", action="store_true", help="the best value of each option, by average accuracy"
    )
    instead.add_argument("--routing", action="store_true", help="how often tasks were guessed rightly")
    parser.add_argument("--seeds", type=int, nargs="+", help="only runs of these seeds")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="only these methods")
    parser.add_argument(
        "--base", default=REFERENCE, metavar="NAME", help="the method that the others are compared with"
    )
    instead.add_argument(
        "--costs", action="store_true", help="time and memory of the last task beside those of no protection"
    )
    instead.add_argument("--keep", type=Path, metavar="FILE", help="write the runs into a file instead")
    options = parser.parse_args()
    other = options.choose or options.routing or options.costs or options.keep
    if other and (options.only or options.base != REFERENCE):
        parser.error(
            "--only and --base are of the table, which --choose, --routing, --costs and --keep replace"
        )
    if options.costs and options.seeds:
        parser.error("--seeds: --costs takes all seeds; leave one of the two out")
    if options.costs:
        print_costs(options.folder)
        return
    runs = read_runs(options.folder)
    if options.seeds:
        runs = of_seeds(runs, options.seeds)
    if options.keep:
        write_runs(runs, options.keep)
    elif options.choose:
        print_choices(runs)
    elif options.routing:
        print_routing(runs)
    else:
        print_table(runs, options.base, options.only)


if __name__ == "__main__":
    main()
