"""Runs side by side: runs that differ only by their seed are one row, with the mean and the spread over seeds.

    comparison = compare(read_runs(["runs/five-tasks"]))
    for row in comparison.rows:
        print(row.label, row.values["average_accuracy"])       # inclora Spread(mean=61.8, deviation=3.2, count=3)

Everything comes from the runs' summary.json. What does not compare (other tasks, another model) is said in the notes,
and published numbers stand beside runs of a published order. How it is printed is in `compare_table`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from nlora.errors import InputErrors, Problem, RunError
from nlora.report.comparison_notes import notes_on, same_setting
from nlora.report.published import order_of, published_results
from nlora.runs.lock import is_held
from nlora.runs.summary import Summary, read_summary, run_folders


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and sample standard deviation over `count` seeds; of a single one there is no deviation."""

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
    "forgetting": lambda s: s.forgetting,
    "forward_transfer": lambda s: s.forward_transfer,
    "collision_rate": lambda s: None if s.collision is None else 100 * s.collision.average_rate,
    "trained_parameters": lambda s: s.trained_parameters,
    "train_seconds": lambda s: sum(s.train_seconds) if s.train_seconds else None,
    "peak_memory_bytes": lambda s: s.peak_memory_bytes,
}
"""What is compared: from a run's summary to a number. Scores, transfers and the collision rate are percentages."""


Status = Literal["complete", "running", "stopped", "published"]


@dataclass(frozen=True, slots=True)
class Row:
    """Runs of one name, method, model and sequence of tasks; or what was published of a method.

    values: by the keys of MEASURES; a key is missing where no run has the value.
    learned: the number of tasks that an unfinished run has learned.
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


@dataclass(frozen=True, slots=True)
class Comparison:
    """Rows of runs, rows of published numbers (each with a note of its own), and what has to be said of the runs.

    compares: whether all runs are of the same tasks in the same order on the same model, scored alike on the same
        test examples.
    """

    rows: tuple[Row, ...]
    published: tuple[Row, ...]
    notes: tuple[str, ...]
    compares: bool

    @property
    def sources(self) -> tuple[str, ...]:
        """The notes of the published rows, each once."""
        return tuple(dict.fromkeys(row.note for row in self.published))

    def __str__(self) -> str:
        """The table that `nlora compare` prints."""
        from nlora.report.comparison_formats import written

        return written(self, "table")


def read_runs(paths: Iterable[str | Path]) -> list[tuple[Path, Summary]]:
    """The runs' folders and summaries, each run once. A folder that is no run but holds runs stands for these.

    Raises InputErrors with every path that is no run.
    """
    problems: list[Problem] = []
    runs: dict[Path, tuple[Path, Summary]] = {}
    for folder in run_folders(paths):
        try:
            runs.setdefault(folder.resolve(), (folder, read_summary(folder)))
        except RunError as error:
            problems.append(Problem("", str(error)))
    if problems:
        raise InputErrors(problems)
    return list(runs.values())


def compare(
    runs: Iterable[tuple[Path, Summary]], *, published: Literal["methods", "all"] = "methods"
) -> Comparison:
    """The runs as rows, in the order in which they first appear.

    published: which numbers of the runs' orders stand beside them. methods: those of the methods in the table, for
        T5-large, and for LLaMA-7B where a run's model is a LLaMA; all: everything that is known.
    """
    groups = _groups(runs)
    rows = _told_apart([(_row(group), group[0][0]) for group in groups])
    beside = _published(rows, everything=published == "all")
    labeled = [(row.label, [s for _, s in group]) for row, group in zip(rows, groups, strict=True)]
    told, compares = notes_on(labeled)
    notes = (*_repeated(groups, rows), *told, *_thresholds(groups))
    return Comparison(tuple(rows), tuple(beside), notes, compares)


def _groups(runs: Iterable[tuple[Path, Summary]]) -> list[list[tuple[Path, Summary]]]:
    """Runs that make up one row. An unfinished one stands alone, and so does a second run of the same seed."""
    groups: list[list[tuple[Path, Summary]]] = []
    for folder, summary in runs:
        for group in groups:
            first = group[0][1]
            if (
                first.status == summary.status == "complete"
                and _identity(first) == _identity(summary)
                and summary.seed not in {other.seed for _, other in group}
                and all(same_setting(other, summary) for _, other in group)
            ):
                group.append((folder, summary))
                break
        else:
            groups.append([(folder, summary)])
    return groups


def _identity(summary: Summary) -> tuple[object, ...]:
    # An older nlora did not say the protocol; it was none but the repaired one.
    released = summary.protocol == "released"
    return (summary.name, summary.method, summary.model, summary.tasks, released)


def _row(group: Sequence[tuple[Path, Summary]]) -> Row:
    summaries = [summary for _, summary in group]
    first = summaries[0]
    values = {}
    for key, measure in MEASURES.items():
        known = [value for value in map(measure, summaries) if value is not None]
        if known:
            values[key] = Spread.of(known)
    return Row(
        label=first.name if first.name == first.method else f"{first.name} ({first.method})",
        name=first.name,
        method=first.method,
        model=first.model,
        tasks=first.tasks,
        seeds=tuple(sorted(summary.seed for summary in summaries)),
        status=_status(*group[0]),
        values=values,
        learned=len(first.train_seconds),
    )


def _status(folder: Path, summary: Summary) -> Status:
    """Whether an unfinished run goes on now, or was stopped: what its summary says is of its last stage."""
    if summary.status == "complete":
        return "complete"
    return "stopped" if is_held(folder) is False else "running"


def _told_apart(rows: Sequence[tuple[Row, Path]]) -> list[Row]:
    """The rows, with the folder in the labels of finished ones that would read the same."""
    labels = [row.label for row, _ in rows if row.status == "complete"]
    return [
        replace(row, label=f"{row.label} in {folder}")
        if row.status == "complete" and labels.count(row.label) > 1
        else row
        for row, folder in rows
    ]


def _repeated(groups: Sequence[Sequence[tuple[Path, Summary]]], rows: Sequence[Row]) -> list[str]:
    """Which rows are runs of the same name and seed: they differ in what no summary says."""
    first: dict[tuple[object, ...], Row] = {}
    notes = []
    for group, row in zip(groups, rows, strict=True):
        for _, summary in group:
            other = first.setdefault((*_identity(summary), summary.seed, summary.status), row)
            if other is not row:
                notes.append(
                    f"{row.label}: seed {summary.seed} is in another row too; the two runs were set up differently, or "
                    "one repeats the other."
                )
    return notes


def _thresholds(groups: Sequence[Sequence[tuple[Path, Summary]]]) -> list[str]:
    """The threshold belongs to every collision rate."""
    found = {summary.collision.threshold for group in groups for _, summary in group if summary.collision}
    if not found:
        return []
    if len(found) > 1:
        return [
            f"The collision rates are at different thresholds, {min(found):.2g} to {max(found):.2g}: by default each "
            "run's follows the size of its own updates. One for all: nlora analyze RUN --threshold T."
        ]
    return [f"collision: share of entries that two tasks' updates both change by more than {found.pop():g}, "
            "mean over pairs of tasks, in percent."]  # fmt: skip


def _published(rows: Sequence[Row], *, everything: bool) -> list[Row]:
    """Rows of published numbers for the orders of the runs."""
    methods = {row.method for row in rows}
    families = {"T5-large"} | {"LLaMA-7B" for row in rows if "llama" in row.model.casefold()}
    orders = {row.tasks: order for row in rows if (order := order_of(row.tasks)) is not None}
    beside = []
    for tasks, order in orders.items():
        for result in published_results(order):
            table = result.table
            if not everything and (result.method not in methods or table.model not in families):
                continue
            values = {
                "average_accuracy": result.average_accuracy,
                "backward_transfer": result.backward_transfer,
            }
            beside.append(
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
    return beside
