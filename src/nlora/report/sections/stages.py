"""The section about the stages: each task's score, and the average over the tasks seen so far."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nlora.report.charts.axes import index_axis, linear_axis, stage_axis
from nlora.report.charts.lines import Panel, Series, line_chart, small_multiples
from nlora.report.charts.palette import series_dash, series_role
from nlora.report.charts.scene import Scene
from nlora.report.page_blocks import Block, Cell, Figure, Section, Table, Text, words
from nlora.report.run_files import RunFiles
from nlora.report.wording import score

MOST_LINES = 6
"""Up to this many tasks share one chart; beyond it, each gets a small one."""


def scores_by_stage(runs: Sequence[RunFiles]) -> Section:
    """Each task's score and the average over the seen tasks, by stage."""
    about = (
        "The score of every task while the others are learned, and the average over the tasks seen so far."
    )
    blocks: list[Block] = []
    if any(run.stages for run in runs):
        blocks = [task_scores(runs), seen_average(runs)]
    else:
        blocks = [Text("No stage is finished yet.", tone="note")]
    return Section("stages", "Scores by stage", about, blocks, "Stages")


def task_scores(runs: Sequence[RunFiles]) -> Figure:
    """One line per task; a small chart per task for several runs or many tasks."""
    stages = max(runs, key=lambda run: len(run.tasks)).tasks
    same = len({run.tasks for run in runs}) == 1
    across = [str(k) for k in range(1, len(stages) + 1)]
    scores = {run.label: _by_task(run) for run in runs}
    y = linear_axis("score, %", [v for lines in scores.values() for line in lines.values() for _, v in line])
    many = len(runs) > 1 or len(stages) > MOST_LINES
    order = (
        f" The stages: {', '.join(f'{k} {task}' for k, task in enumerate(stages, start=1))}." if same else ""
    )

    def draw(width: float) -> Scene:
        title = "Score of each task by stage"
        description = "Each line begins at the stage where its task is learned." + order
        if not many:
            series = _lines(scores[runs[0].label])
            return line_chart(title, description, series, x=stage_axis(stages, width), y=y, width=width)
        x = index_axis("stage", across)
        return small_multiples(
            title, description, _panels(runs, scores), x=x, y=y, width=width, names=_run_keys(runs)
        )

    numbers = Table(
        "Scores after each stage",
        ("run, task" if len(runs) > 1 else "task", *(f"stage {k}" for k in across)),
        tuple(
            (Cell(f"{run.label}, {task}" if len(runs) > 1 else task), *_padded(run, i, len(stages)))
            for run in runs
            for i, task in enumerate(run.tasks)
        ),
    )
    caption = "Each line begins where its task is learned; any drop after that is forgetting." + order
    return Figure("task-scores", "Score of each task", caption, draw, numbers)


def _padded(run: RunFiles, column: int, stages: int) -> tuple[Cell, ...]:
    texts = [score(row[column]) if row[column] is not None else "" for row in run.summary.R]
    return words(*texts, *[""] * (stages - len(texts)))


def _by_task(run: RunFiles) -> dict[str, tuple[tuple[float, float], ...]]:
    found = {}
    for i, task in enumerate(run.tasks):
        points = [(float(k), row[i]) for k, row in enumerate(run.summary.R, start=1)]
        found[task] = tuple((k, value) for k, value in points if value is not None)
    return found


def _lines(scores: dict[str, tuple[tuple[float, float], ...]]) -> list[Series]:
    return [
        Series(task, points, series_role(i), series_dash(i))
        for i, (task, points) in enumerate(scores.items())
        if points
    ]


def _panels(
    runs: Sequence[RunFiles], scores: dict[str, dict[str, tuple[tuple[float, float], ...]]]
) -> list[Panel]:
    tasks = dict.fromkeys(task for run in runs for task in run.tasks)
    if len(runs) > 1:
        return [
            Panel(
                task,
                tuple(
                    Series(
                        run.label, scores[run.label][task], series_role(i), series_dash(i), dots=len(runs) < 5
                    )
                    for i, run in enumerate(runs)
                    if scores[run.label].get(task)
                ),
            )
            for task in tasks
        ]
    lines = scores[runs[0].label]
    every = tuple(Series(task, points, "rule") for task, points in lines.items() if points)
    return [Panel(task, (Series(task, lines[task], "accent"),), every) for task in tasks if lines[task]]


def _run_keys(runs: Sequence[RunFiles]) -> list[Series]:
    if len(runs) == 1:
        return []
    return [Series(run.label, (), series_role(i), series_dash(i)) for i, run in enumerate(runs)]


def seen_average(runs: Sequence[RunFiles]) -> Figure:
    """After each stage, the mean over the tasks learned so far."""
    lines = {run.label: _seen(run) for run in runs}
    stages = max(len(run.tasks) for run in runs)
    same = len({run.tasks for run in runs}) == 1
    names = runs[0].tasks if same else tuple(str(k) for k in range(1, stages + 1))
    y = linear_axis("mean score, %", [value for line in lines.values() for _, value in line])

    def draw(width: float) -> Scene:
        series = [
            Series(label, line, series_role(i) if len(runs) > 1 else "accent", series_dash(i))
            for i, (label, line) in enumerate(lines.items())
            if line
        ]
        description = "; ".join(
            f"{s.name}: {s.points[0][1]:.1f} after stage 1, {s.points[-1][1]:.1f} at the end" for s in series
        )
        x = stage_axis(names, width)
        return line_chart(
            "Average accuracy over seen tasks", description, series, x=x, y=y, width=width, height=300
        )

    by_stage = {label: dict(line) for label, line in lines.items()}
    numbers = Table(
        "Average over seen tasks",
        ("run", *(f"stage {k}" for k in range(1, stages + 1))),
        tuple(
            words(label, *(score(line.get(float(k))) for k in range(1, stages + 1)))
            for label, line in by_stage.items()
        ),
    )
    caption = "After stage k: the mean over the k tasks learned so far."
    return Figure("seen-average", "Average accuracy over seen tasks", caption, draw, numbers)


def _seen(run: RunFiles) -> tuple[tuple[float, float], ...]:
    points = []
    for k, row in enumerate(run.summary.R, start=1):
        known = [value for value in row[:k] if value is not None]
        if len(known) == k:
            points.append((float(k), math.fsum(known) / k))
    return tuple(points)
