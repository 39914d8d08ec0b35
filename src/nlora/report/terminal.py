"""Runs as tables for a terminal of 80 columns, readable as plain text too.

Every average says what it is the mean of. No score is computed here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from nlora.report.comparison import shows_preparing
from nlora.report.formatting import change, duration, score
from nlora.runs.general_scores import harness_rows
from nlora.runs.summary import Score, Summary

MOST_NAMED_COLUMNS = 6
"""Up to this many tasks the columns carry names; beyond it, the numbers of the rows."""
_NAME_WIDTH = 19
"""Longest name of a row, in characters."""


def accuracy_table(summary: Summary) -> Table:
    """The accuracy matrix and its averages.

    A row holds the scores in percent after learning its task; a column is a task. The score on the task just learned
    is bold and marked *. Cells without a score are empty.
    """
    table = Table.grid()
    table.add_column()
    table.add_row(
        Text(f"{summary.name}: {summary.method_label} on {summary.model}, seed {summary.seed}", style="bold")
    )
    table.add_row(_matrix(summary))
    for line in _averages(summary):
        table.add_row(Text(line))
    for line in _general(summary):
        table.add_row(Text(line))
    if summary.routing is not None:
        table.add_row(Text(f"router: {summary.routing.words}"))
    for note in summary.notes:
        table.add_row(Text(f"note: {note}"))
    return table


def comparison_table(summaries: Sequence[Summary]) -> Table:
    """One row per run: its averages and its training time. The best average accuracy is marked *.

    Forward transfer has a column where a run has one. Where preparing takes long, its times are in a line below: 80
    columns have no place for another one.
    """
    transferred = any(s.forward_transfer is not None for s in summaries)
    known = [s.average_accuracy for s in summaries if s.average_accuracy is not None]
    best = score(max(known, default=None))  # as shown: equal numbers are marked alike
    runs = Table(box=box.SIMPLE, padding=(0, 1), show_edge=False)
    runs.add_column("run", overflow="fold")
    runs.add_column("method", overflow="fold")
    for heading in ("seed", "AA", "BWT", "forgetting", *(["FWT"] if transferred else []), "training"):
        runs.add_column(heading, justify="right", no_wrap=True)
    for summary in summaries:
        is_best = len(summaries) > 1 and score(summary.average_accuracy) == best != ""
        average = Text(f"{score(summary.average_accuracy)}*", style="bold") if is_best else None
        runs.add_row(
            Text(summary.name),
            Text(summary.method_label),
            str(summary.seed),
            average or Text(f"{score(summary.average_accuracy) or summary.status} "),
            change(summary.backward_transfer),
            score(summary.forgetting),
            *([change(summary.forward_transfer)] if transferred else []),
            duration(sum(summary.train_seconds)),
        )
    table = Table.grid()
    table.add_column()
    table.add_row(runs)
    table.add_row("AA: average accuracy, mean over all tasks after the last one.")
    table.add_row("BWT: backward transfer, mean change on the earlier tasks since each was learned.")
    if transferred:
        table.add_row("FWT: forward transfer, mean gain on the later tasks before each was learned.")
    if shows_preparing((sum(s.prepare_seconds), sum(s.train_seconds)) for s in summaries):
        each = ", ".join(f"{s.name} {duration(sum(s.prepare_seconds))}" for s in summaries)
        table.add_row(Text(f"training: without what the method does before and after it: {each}."))
    if len({summary.tasks for summary in summaries}) > 1:
        table.add_row(
            Text("These runs learned different tasks or orders; averages are not comparable.", style="bold")
        )
    return table


def paths(written: Mapping[str, Path]) -> Table:
    """The written files, one line each. Long paths are folded, never truncated."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for what, path in written.items():
        table.add_row(Text(what), Text(str(path)))
    return table


def _matrix(summary: Summary) -> Table:
    named = len(summary.tasks) <= MOST_NAMED_COLUMNS
    digits = 1 if named else 0
    matrix = Table(box=None, padding=(0, 0, 0, 1), pad_edge=False)
    # In a narrow terminal numbers stay whole: row names are shortened, or, if columns carry names, these are folded.
    matrix.add_column(Text("after learning", no_wrap=True, overflow="ellipsis"), no_wrap=named)
    for number, task in enumerate(summary.tasks, start=1):
        heading = Text(task) if named else Text(f"{number:>2}")
        matrix.add_column(heading, overflow="fold", no_wrap=not named)
    untouched, *perplexities = _perplexities(summary)
    if has_text := untouched or any(perplexities):
        matrix.add_column(Text("perplexity"), justify="right", no_wrap=True)
    for k, (task, row) in enumerate(zip(summary.tasks, summary.R, strict=True)):
        cells = [_cell(value, is_new=i == k, digits=digits) for i, value in enumerate(row)]
        matrix.add_row(_row_name(f"{k + 1} {task}"), *cells, *(perplexities[k : k + 1] if has_text else ()))
    if summary.zero_shot is not None or has_text:
        zeros = summary.zero_shot or [None] * len(summary.tasks)
        shown = [_cell(value, is_new=False, digits=digits) for value in zeros]
        matrix.add_row(_row_name("no training"), *shown, *([untouched] if has_text else []))
    return matrix


def _perplexities(summary: Summary) -> list[str]:
    """Of the untouched model, then of each stage; empty texts for what is not known."""
    known = [None if scores is None else scores.perplexity for scores in summary.general]
    shown = ["" if value is None else f"{value:.2f}" for value in known]
    return [*shown, *[""] * (len(summary.tasks) + 1 - len(shown))]


def _general(summary: Summary) -> list[str]:
    """What became of what the model knew before."""
    lines = []
    if summary.perplexity_change is not None:
        lines.append(f"perplexity {change(summary.perplexity_change)} %  (last row - no training, of that)")
    for (task, metric), row in harness_rows(summary.general).items():
        ends = ("–" if value is None else f"{value:.3f}" for value in (row[0], row[-1]))
        lines.append(f"{task} {metric} {' -> '.join(dict.fromkeys(ends))}  (no training -> last stage)")
    return lines


def _cell(value: Score, *, is_new: bool, digits: int) -> Text:
    """A score, padded so that digits align with or without a marker after them."""
    if value is None:
        return Text("")
    text = f"{value:>{digits + 4}.{digits}f}" if digits else f"{value:>2.0f}"
    return Text(f"{text}{'*' if is_new else ''}", style="bold" if is_new else "")


def _row_name(text: str) -> Text:
    shortened = text if len(text) <= _NAME_WIDTH else f"{text[: _NAME_WIDTH - 1]}…"
    return Text(shortened, no_wrap=True, overflow="ellipsis")


def _averages(summary: Summary) -> list[str]:
    """The known averages, each with what it is the mean of."""
    tasks, learned_first = len(summary.scored), [i for i in summary.scored if i < len(summary.tasks) - 1]
    kinds = ["* just learned", *([f"scores in percent: {summary.scoring}"] if summary.scoring else [])]
    if summary.status == "running":
        done = len(summary.train_seconds)
        return [*kinds, f"{done} of {len(summary.tasks)} tasks learned; the averages need all of them"]
    earlier = f"{len(learned_first)} earlier task{'s' if len(learned_first) > 1 else ''}"
    lines = [
        ("average accuracy", score(summary.average_accuracy), f"mean over {tasks} tasks of the last row"),
        ("backward transfer", change(summary.backward_transfer), f"mean over {earlier} of last row - *"),
        (
            "backward transfer over T",
            change(summary.backward_transfer_over_all),
            f"the same sum divided by all {tasks} tasks, as in SAPT",
        ),
        ("forgetting", score(summary.forgetting), f"mean over {earlier} of best score before it - last row"),
        (
            "forward transfer",
            change(summary.forward_transfer),
            "mean over later tasks of row before * - no training",
        ),
    ]
    return [*kinds, *(f"{name} {value}  ({meaning})" for name, value, meaning in lines if value)]
