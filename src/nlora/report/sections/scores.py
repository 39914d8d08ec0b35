"""The section about the accuracy matrix, from summary.json."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nlora.report.charts.heatmap import Cells, heat_map, scale_position
from nlora.report.charts.palette import heat_role
from nlora.report.charts.scene import Scene
from nlora.report.estimates import PageAnswers, ends, task_estimate
from nlora.report.page_blocks import Cell, Figure, Section, Table, side_by_side
from nlora.report.variants import Variant, mean_of
from nlora.report.wording import change


def matrices(variants: Sequence[Variant], answers: PageAnswers) -> Section:
    """Each variant's R as a heat map, with one color scale for all."""
    low, high = _range(variants)
    figures = matrices_figures(variants, answers)
    about = (
        "Each row holds the scores after learning that row's task; each column is a task. The task just learned is "
        f"outlined. Read down a column to see a task being forgotten. Colors range from {low:g} to {high:g}."
    )
    if any(variant.has_seeds for variant in variants):
        about += " Scores are means over the seeds."
    about += (
        " A cell's 95 % interval is shown on hover; the table of numbers below Scores by stage has them all."
    )
    return Section("matrix", "Accuracy matrix", about, side_by_side(figures), "Matrix")


def matrices_figures(variants: Sequence[Variant], answers: PageAnswers) -> tuple[Figure, ...]:
    """Each variant's matrix, on one color scale."""
    low, high = _range(variants)
    return tuple(_matrix(v, i, low, high, answers, many=len(variants) > 1) for i, v in enumerate(variants))


def _range(variants: Sequence[Variant]) -> tuple[float, float]:
    known = [
        value for variant in variants for row in variant.mean_matrix() for value in row if value is not None
    ]
    if not known:
        return 0.0, 100.0
    low = min(10 * math.floor(min(known) / 10), 90)
    return float(low), float(max(10 * math.ceil(max(known) / 10), low + 10))


def _matrix(
    variant: Variant, index: int, low: float, high: float, answers: PageAnswers, *, many: bool
) -> Figure:
    tasks, R = variant.tasks, variant.mean_matrix()
    names = [f"{k} {task}" for k, task in enumerate(tasks, start=1)]
    digits = 1 if len(tasks) <= 8 else 0
    rows = [
        _row(name, row, low, high, digits, diagonal=k, titles=_titles(variant, k, answers))
        for k, (name, row) in enumerate(zip(names, R, strict=True))
    ]
    cells: Cells = R
    before = _before(variant)
    if before is not None:
        rows.insert(0, _row("before any training", before, low, high, digits, diagonal=None))
        names, cells = ["before any training", *names], [before, *R]
    offset = len(names) - len(tasks)
    title = f"Accuracy of {variant.label}" if many else "Accuracy on each task after each stage"

    def draw(width: float) -> Scene:
        return heat_map(
            title,
            _description(variant),
            rows=names,
            columns=tasks,
            cells=cells,
            low=low,
            high=high,
            text=lambda value: f"{value:.{digits}f}",
            width=width,
            framed=lambda row, column: row - offset == column,
        )

    shown = Table(title, ("after learning", *tasks), tuple(rows), kind="heat")
    return Figure(f"matrix-{index + 1}", title, "", draw, shown=shown)


def _before(variant: Variant) -> tuple[float | None, ...] | None:
    """The mean scores before any training; None if a run has none."""
    known = [s.zero_shot for s in variant.summaries if s.zero_shot is not None]
    if len(known) < len(variant.runs):
        return None
    columns = [[value for value in column if value is not None] for column in zip(*known, strict=True)]
    return tuple(mean_of(column) if len(column) == len(known) else None for column in columns)


def _titles(variant: Variant, stage: int, answers: PageAnswers) -> list[str]:
    """What a row's cells say on hover."""
    found = [task_estimate(variant, stage, task, answers) for task in range(len(variant.tasks))]
    return [
        "" if e is None else f"{e.mean:.2f}, 95 % interval {ends(e.interval)}, n = {e.count}" for e in found
    ]


def _row(
    name: str,
    row: Sequence[float | None],
    low: float,
    high: float,
    digits: int,
    *,
    diagonal: int | None,
    titles: Sequence[str] = (),
) -> tuple[Cell, ...]:
    cells = [Cell(name)]
    for column, value in enumerate(row):
        if value is None:
            cells.append(Cell(""))
        else:
            role = heat_role(scale_position(value, low, high))
            title = titles[column] if titles else f"{value:.2f}"
            cells.append(Cell(f"{value:.{digits}f}", heat=role, marked=column == diagonal, title=title))
    return tuple(cells)


def _description(variant: Variant) -> str:
    """The matrix in a sentence, for screen readers."""
    R = variant.mean_matrix()
    last = len(variant.runs[0].stages) - 1
    lost = [
        (now - then, task)
        for k, task in enumerate(variant.tasks[: max(last, 0)])
        if (then := R[k][k]) is not None and (now := R[last][k]) is not None
    ]
    if not lost:
        return "Each row is a stage, each column a task."
    worst = max(lost, key=lambda change_of: abs(change_of[0]))
    return f"The largest change since a task was learned: {worst[1]}, {change(worst[0])} points."
