"""Runs in one table: runs that differ only in their seed share a row, with the mean and the spread over seeds.

Everything comes from the runs' summary.json, but for differences to a base, which need the answers, and whether a run
is in progress, which its lock says. Notes name what makes averages incomparable (other tasks, another model). Published
numbers are added for runs of a published order. Printing is in `comparison_table` and `comparison_formats`.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from nlora.errors import InputErrors, Problem, RunError, did_you_mean
from nlora.report.comparison_notes import notes_on, same_options, threshold_note
from nlora.report.grouping import grouped, identity_of
from nlora.report.published import order_of, published_results
from nlora.runs.lock import is_held
from nlora.runs.paired_bootstrap import Difference, difference, last_answers, scored
from nlora.runs.run_yaml import run_folders
from nlora.runs.summary import Summary, read_summary


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and sample standard deviation over `count` seeds; a single one has no deviation."""

    mean: float
    deviation: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """values: one or more, one for each seed."""
        deviation = statistics.stdev(values) if len(values) > 1 else None
        return cls(math.fsum(values) / len(values), deviation, len(values))


MEASURES: Mapping[str, Callable[[Summary], float | None]] = {
    "average_accuracy": lambda s: s.average_accuracy,
    "backward_transfer": lambda s: s.backward_transfer,
    "backward_transfer_over_all": lambda s: s.backward_transfer_over_all,
    "forgetting": lambda s: s.forgetting,
    "forward_transfer": lambda s: s.forward_transfer,
    "collision_rate": lambda s: None if s.collision is None else 100 * s.collision.average_rate,
    "perplexity_change": lambda s: s.perplexity_change,
    "trained_parameters": lambda s: s.trained_parameters,
    "train_seconds": lambda s: sum(s.train_seconds) if s.train_seconds else None,
    "prepare_seconds": lambda s: sum(s.prepare_seconds) if s.prepare_seconds else None,
    "peak_memory_bytes": lambda s: s.peak_memory_bytes,
}
"""Functions from a run's summary to a number. Scores, transfers, the collision rate and the change of the perplexity
are percentages."""


Status = Literal["complete", "running", "stopped", "published"]


@dataclass(frozen=True, slots=True)
class Row:
    """Runs of one name, method, model and sequence of tasks; or a method's published numbers.

    values: by the keys of MEASURES, without those that no run has.
    learned: the number of tasks that an unfinished run has learned.
    minus_base: how much better its average accuracy is than that of the comparison's base.
    """

    label: str
    name: str
    method: str
    model: str
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    status: Status
    values: Mapping[str, Spread]
    learned: int = 0
    note: str = ""
    minus_base: Difference | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Rows of runs, rows of published numbers (each with its own note), and notes on the runs.

    compares: whether all runs learned the same tasks in the same order with the same model, and were scored alike on
        the same test examples.
    base: the label of the row that differences are to; None: there are none.
    """

    rows: tuple[Row, ...]
    published: tuple[Row, ...]
    notes: tuple[str, ...]
    compares: bool
    base: str | None = None

    @property
    def sources(self) -> tuple[str, ...]:
        """The notes of the published rows, each once."""
        return tuple(dict.fromkeys(row.note for row in self.published))

    def __str__(self) -> str:
        """The table that `nlora compare` prints."""
        from nlora.report.comparison_formats import written

        return written(self, "table")


def shows_preparing(seconds: Iterable[tuple[float, float]]) -> bool:
    """Whether a table has a column for preparing: in any run it took at least a tenth of the time of training.

    seconds: of preparing and of training, of each run.
    """
    return any(preparing > 0 and 10 * preparing >= training for preparing, training in seconds)


def read_runs(paths: Iterable[str | Path]) -> list[tuple[Path, Summary]]:
    """The runs' folders and summaries, each run once. A path may also be a folder that holds runs.

    Raises InputErrors with every path that is not a run.
    """
    problems: list[Problem] = []
    runs: dict[Path, tuple[Path, Summary]] = {}
    for folder in run_folders(paths):
        try:
            summary = read_summary(folder)
            runs.setdefault(folder.resolve(), (folder, summary))
        except RunError as error:
            problems.append(Problem("", str(error)))
    if problems:
        raise InputErrors(problems)
    return list(runs.values())


def compare(
    runs: Iterable[tuple[Path, Summary]],
    *,
    published: Literal["methods", "all"] = "methods",
    base: str | None = None,
) -> Comparison:
    """The runs as rows, in the order in which they first appear.

    published: which published numbers of the runs' orders to add. methods: those of the methods in the table, for
        T5-large, and for LLaMA-7B if a run's model is a LLaMA. all: all of them.
    base: the name of the runs to which the others' differences are computed, from the answers to the test examples.

    Raises InputErrors if no finished runs, or several rows of them, have the base's name.
    """
    groups = grouped(runs)
    rows = _with_unique_labels([(_row(group), group[0][0]) for group in groups])
    chosen = None if base is None else _base(rows, base)
    if chosen is not None:
        rows = _with_differences(rows, groups, chosen)
    added = _published(rows, everything=published == "all")
    labeled = [(row.label, [s for _, s in group]) for row, group in zip(rows, groups, strict=True)]
    differences, compares = notes_on(labeled)
    summaries = [summary for group in groups for _, summary in group]
    notes = (*_repeated(groups, rows), *differences, *threshold_note(summaries))
    if published == "all" and not added:
        notes = (*notes, "No numbers are published for these sequences of tasks.")
    label = None if chosen is None else rows[chosen].label
    return Comparison(tuple(rows), tuple(added), notes, compares, label)


def _base(rows: Sequence[Row], name: str) -> int:
    """The index of the base."""
    finished = [(i, row) for i, row in enumerate(rows) if row.status == "complete"]
    found = [i for i, row in finished if name == row.label] or [i for i, row in finished if name == row.name]
    if len(found) == 1:
        return found[0]
    labels = [row.label for _, row in finished] or ["none"]
    what = "is the name of several rows" if found else "no finished run has this name"
    hint = "" if found else did_you_mean(name, labels)
    raise InputErrors([Problem(f"--base {name}", f"{what}; choose one of {', '.join(labels)}{hint}")])


def _with_differences(
    rows: Sequence[Row], groups: Sequence[Sequence[tuple[Path, Summary]]], base: int
) -> list[Row]:
    runs = [
        [scored(summary, last_answers(folder, summary)) for folder, summary in group]
        if row.status == "complete"
        else []
        for row, group in zip(rows, groups, strict=True)
    ]
    return [
        row if i == base else replace(row, minus_base=difference(runs[i], runs[base]))
        for i, row in enumerate(rows)
    ]


def _row(group: Sequence[tuple[Path, Summary]]) -> Row:
    summaries = [summary for _, summary in group]
    first = summaries[0]
    label = first.method_label
    values = {}
    for key, measure in MEASURES.items():
        known = [value for value in map(measure, summaries) if value is not None]
        if known:
            values[key] = Spread.of(known)
    return Row(
        label=first.name if first.name == label else f"{first.name} ({label})",
        name=first.name,
        method=first.method_label,
        model=first.model,
        tasks=first.tasks,
        seeds=tuple(sorted(summary.seed for summary in summaries)),
        status=_status(*group[0]),
        values=values,
        learned=len(first.train_seconds),
    )


def _status(folder: Path, summary: Summary) -> Status:
    """Tells a stopped run from one in progress, which summary.json, written after each stage, does not."""
    if summary.status == "complete":
        return "complete"
    return "stopped" if is_held(folder) is False else "running"


def _with_unique_labels(rows: Sequence[tuple[Row, Path]]) -> list[Row]:
    """The rows, with the folder added to the labels of finished ones that would be the same."""
    labels = Counter(row.label for row, _ in rows if row.status == "complete")
    return [
        replace(row, label=f"{row.label} in {folder}")
        if row.status == "complete" and labels[row.label] > 1
        else row
        for row, folder in rows
    ]


def _repeated(groups: Sequence[Sequence[tuple[Path, Summary]]], rows: Sequence[Row]) -> list[str]:
    """Notes on rows of the same name: they have other options, or a run of the same seed."""
    first: dict[tuple[object, ...], Row] = {}
    named: dict[tuple[object, ...], tuple[Row, Summary]] = {}
    notes = []
    for group, row in zip(groups, rows, strict=True):
        summary = group[0][1]
        namesake, its = named.setdefault((*identity_of(summary), summary.status), (row, summary))
        if not same_options(its, summary):
            notes.append(
                f"{row.label}: has other options than {namesake.label}, so the two are not averaged."
            )
            continue
        for _, summary in group:
            other = first.setdefault((*identity_of(summary), summary.seed, summary.status), row)
            if other is not row:
                notes.append(
                    f"{row.label}: seed {summary.seed} is also in another row; the runs have different settings, or "
                    "one repeats the other."
                )
    return notes


def _published_as(method: str) -> str:
    """What papers call a method: kept examples are a method of their own there."""
    return "replay" if method == "inclora + replay" else method


def _published(rows: Sequence[Row], *, everything: bool) -> list[Row]:
    """Rows of published numbers for the orders of the runs."""
    methods = {_published_as(row.method) for row in rows}
    families = {"T5-large"} | {"LLaMA-7B" for row in rows if "llama" in row.model.casefold()}
    orders = {row.tasks: order for row in rows if (order := order_of(row.tasks)) is not None}
    added = []
    for tasks, order in orders.items():
        for result in published_results(order):
            table = result.table
            if not everything and (result.method not in methods or table.model not in families):
                continue
            values = {
                "average_accuracy": result.average_accuracy,
                "backward_transfer": result.backward_transfer,
            }
            added.append(
                Row(
                    label=f"{result.name}, {table.label} ({table.model}"
                    + (f", {order})" if len(orders) > 1 else ")"),
                    name=result.name,
                    method=result.method,
                    model=table.model,
                    tasks=tasks,
                    seeds=(),
                    status="published",
                    values={k: Spread(v, None, 1) for k, v in values.items() if v is not None},
                    note=table.note,
                )
            )
    return added
