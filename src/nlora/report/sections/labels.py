"""The section about single labels: precision, recall and F1 at the end, from the last stage's predict_results.json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nlora.errors import RunError
from nlora.report.page_blocks import Cell, Section, Table
from nlora.report.run_files import RunFiles
from nlora.report.wording import score

_COLUMNS = ("task", "label", "examples", "answers", "precision", "recall", "F1")


def scores_by_label(runs: Sequence[RunFiles]) -> list[Section]:
    """A table for each run with labels, folded; no section if there is none."""
    tables = [_table(run, many=len(runs) > 1) for run in runs if run.stages and run.stages[-1].by_label]
    if not tables:
        return []
    about = (
        "How each label is answered after the last finished stage, in percent. Precision: share of the answers with a "
        "label that are right. Recall: share of the label's examples that are answered so. F1: their harmonic mean."
    )
    return [Section("labels", "Scores by label", about, tables, "Labels")]


def _table(run: RunFiles, *, many: bool) -> Table:
    last = run.stages[-1]
    try:
        known = {task: last.by_label[task] for task in run.tasks if task in last.by_label}
        rows = [
            (Cell(task), Cell(label), *map(Cell, _numbers(values)))
            for task, found in known.items()
            for label, values in found["labels"].items()
        ]
        outside = {task: int(found["outside"]) for task, found in known.items() if found["outside"]}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        file = last.folder / "all_results.json"
        raise RunError(
            f"{file}: by_label is broken; delete the file to leave it out of the report"
        ) from error
    note = "–: a share of nothing."
    if outside:
        counts = ", ".join(f"{count} in {task}" for task, count in outside.items())
        note += f" Answers that are none of the task's labels are wrong, and not listed: {counts}."
    caption = f"Scores by label of {run.label}" if many else "Scores by label"
    return Table(caption, _COLUMNS, tuple(rows), note, frozenset({0, 1}), is_aside=True)


def _numbers(values: dict[str, Any]) -> tuple[str, ...]:
    shares = (score(values[key]) for key in ("precision", "recall", "f1"))
    return (str(values["support"]), str(values["answered"]), *shares)
