"""The section about the stages: each task's score, and the average over the tasks seen so far."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from nlora.report.charts.axes import index_axis, linear_axis, stage_axis
from nlora.report.charts.lines import Panel, Series, line_chart, small_multiples
from nlora.report.charts.palette import series_dash, series_role
from nlora.report.charts.scene import Scene
from nlora.report.estimates import PageAnswers, task_estimate
from nlora.report.page_blocks import Block, Cell, Figure, Fold, Section, Table, Text, words
from nlora.report.series import BAND, banded, reach
from nlora.report.variants import Variant
from nlora.report.wording import joined, score

MOST_LINES = 6
"""Up to this many tasks share one chart; beyond it, each gets a small one."""


def scores_by_stage(variants: Sequence[Variant], answers: PageAnswers) -> Section:
    """Each task's score and the average over the seen tasks, by stage."""
    about = (
        "The score of every task while the others are learned, and the average over the tasks seen so far."
    )
    blocks: list[Block] = []
    if any(variant.first.learned for variant in variants):
        blocks = [task_scores(variants, answers), seen_average(variants)]
        if any(variant.has_seeds for variant in variants):
            blocks.append(Fold("Single seeds", (_single_seeds(variants),)))
    else:
        blocks = [Text("No stage is finished yet.", tone="note")]
    return Section("stages", "Scores by stage", about, blocks, "Stages")


def task_scores(variants: Sequence[Variant], answers: PageAnswers) -> Figure:
    """One line per task; a small chart per task for several variants or many tasks."""
    stages = _longest(variants)
    lines = _task_lines(variants)
    y = linear_axis("score, %", reach([series for panel in lines.values() for series in panel]))
    many = len(variants) > 1 or len(stages) > MOST_LINES

    def draw(width: float) -> Scene:
        title = "Score of each task by stage"
        description = "Each line begins at the stage where its task is learned." + _order(variants)
        if not many:
            series = _colored(lines)
            return line_chart(title, description, series, x=stage_axis(stages, width), y=y, width=width)
        panels = _panels(lines) if len(variants) > 1 else _over_the_others(lines)
        x = index_axis("stage", [str(k) for k in range(1, len(stages) + 1)])
        return small_multiples(title, description, panels, x=x, y=y, width=width, names=_keys(variants))

    caption = "Each line begins where its task is learned; any drop after that is forgetting."
    if any(variant.has_seeds for variant in variants):
        caption += f" {BAND}"
    return Figure(
        "task-scores", "Score of each task", caption + _order(variants), draw, _numbers(variants, answers)
    )


def _longest(variants: Sequence[Variant]) -> tuple[str, ...]:
    return max((variant.tasks for variant in variants), key=len)


def _order(variants: Sequence[Variant]) -> str:
    """The stages by name, if all variants have the same."""
    if len({variant.tasks for variant in variants}) > 1:
        return ""
    return f" The stages: {joined(f'{k} {task}' for k, task in enumerate(variants[0].tasks, start=1))}."


def _task_lines(variants: Sequence[Variant]) -> dict[str, list[Series]]:
    """The lines of each task, one per variant that has scores. What it scored before it was learned is left out."""
    found: dict[str, list[Series]] = {}
    for variant in variants:
        for i, task in enumerate(variant.tasks):
            values = {float(k + 1): variant.scores(k, i) for k in range(i, len(variant.tasks))}
            line = banded(variant, {k: v for k, v in values.items() if v}, dots=len(variants) < 5, high=100.0)
            found.setdefault(task, []).extend([line] if line.points else [])
    return found


def _colored(lines: Mapping[str, Sequence[Series]]) -> list[Series]:
    """One variant's lines, with a color for each task."""
    return [
        Series(task, s.points, series_role(i), series_dash(i), band=s.band)
        for i, (task, of_task) in enumerate(lines.items())
        for s in of_task
    ]


def _panels(lines: Mapping[str, Sequence[Series]]) -> list[Panel]:
    return [Panel(task, tuple(of_task)) for task, of_task in lines.items()]


def _over_the_others(lines: Mapping[str, Sequence[Series]]) -> list[Panel]:
    every = tuple(Series(task, s.points, "rule") for task, of_task in lines.items() for s in of_task)
    return [
        Panel(task, (Series(task, s.points, "accent", band=s.band),), every)
        for task, of_task in lines.items()
        for s in of_task
    ]


def _keys(variants: Sequence[Variant]) -> list[Series]:
    """The legend."""
    if len(variants) == 1:
        return []
    return [Series(v.label, (), series_role(v.order), series_dash(v.order)) for v in variants]


def _numbers(variants: Sequence[Variant], answers: PageAnswers) -> Table:
    stages, many = len(_longest(variants)), len(variants) > 1
    rows = []
    for variant in variants:
        for i, task in enumerate(variant.tasks):
            found = [task_estimate(variant, k, i, answers) for k in range(len(variant.tasks))]
            texts = ["" if e is None else e.text for e in found] + [""] * (stages - len(found))
            rows.append((Cell(joined([variant.label, task]) if many else task), *words(*texts)))
    columns = ("run, task" if many else "task", *(f"stage {k}" for k in range(1, stages + 1)))
    note = "In brackets: the 95 % interval; what it is over stands under Scores at the end."
    return Table("Scores after each stage", columns, tuple(rows), note)


def seen_average(variants: Sequence[Variant]) -> Figure:
    """After each stage, the mean over the tasks learned so far."""
    found = [(variant, _seen(variant)) for variant in variants]
    lines = [banded(variant, values, high=100.0) for variant, values in found if values]
    stages = len(_longest(variants))
    same = len({variant.tasks for variant in variants}) == 1
    names = variants[0].tasks if same else tuple(str(k) for k in range(1, stages + 1))
    y = linear_axis("mean score, %", reach(lines))
    series = lines if len(variants) > 1 else [Series(s.name, s.points, "accent", band=s.band) for s in lines]

    def draw(width: float) -> Scene:
        description = "; ".join(
            f"{s.name}: {s.points[0][1]:.1f} after stage {s.points[0][0]:g}, {s.points[-1][1]:.1f} at the end"
            for s in series
        )
        x = stage_axis(names, width)
        return line_chart(
            "Average accuracy over seen tasks", description, series, x=x, y=y, width=width, height=300
        )

    means = {line.name: dict(line.points) for line in lines}
    numbers = Table(
        "Average over seen tasks",
        ("run", *(f"stage {k}" for k in range(1, stages + 1))),
        tuple(
            words(v.label, *(score(means.get(v.label, {}).get(float(k))) for k in range(1, stages + 1)))
            for v in variants
        ),
    )
    caption = "After stage k: the mean over the k tasks learned so far."
    if any(variant.has_seeds for variant in variants):
        caption += f" {BAND}"
    return Figure("seen-average", "Average accuracy over seen tasks", caption, draw, numbers)


def _seen(variant: Variant) -> dict[float, list[float]]:
    """The averages by stage, one for each seed. Tasks without a score at any stage are left out, as in the others."""
    found = {}
    for k in range(len(variant.tasks)):
        columns = [variant.scores(k, i) for i in variant.first.summary.scored if i <= k]
        if columns and all(columns):
            found[float(k + 1)] = [math.fsum(row) / len(row) for row in zip(*columns, strict=True)]
    return found


def _single_seeds(variants: Sequence[Variant]) -> Figure:
    """Each task's score by stage, a thin line for each seed."""
    panels: dict[str, list[Series]] = {}
    for variant in variants:
        for run in variant.runs:
            for i, task in enumerate(variant.tasks):
                column = enumerate((row[i] for row in run.summary.R), start=1)
                points = tuple((float(k), y) for k, y in column if y is not None)
                role, dash = series_role(variant.order), series_dash(variant.order)
                line = Series(run.label, points, role, dash, dots=False, width=1.2)
                panels.setdefault(task, []).extend([line] if points else [])
    stages = len(_longest(variants))
    y = linear_axis("score, %", reach([s for of_task in panels.values() for s in of_task]))

    def draw(width: float) -> Scene:
        return small_multiples(
            "Score of each task by stage and seed",
            "One line for each seed; the colors are the variants.",
            _panels(panels),
            x=index_axis("stage", [str(k) for k in range(1, stages + 1)]),
            y=y,
            width=width,
            names=_keys(variants),
        )

    return Figure("single-seeds", "Score of each task, seed by seed", "One line for each seed.", draw)
