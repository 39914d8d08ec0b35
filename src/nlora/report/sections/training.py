"""The section about training: loss, penalty and learning rate over the steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from nlora.report.charts.axes import Axis, linear_axis, number, up_to
from nlora.report.charts.lines import Mark, Panel, Series, line_chart, small_multiples
from nlora.report.charts.palette import series_dash, series_role
from nlora.report.charts.scene import Point, Scene
from nlora.report.page_blocks import Block, Cell, Figure, Section, Table, Text, words
from nlora.report.run_files import RunFiles, StageFiles, Step
from nlora.report.series import BAND, banded, reach
from nlora.report.variants import Variant, runs_of
from nlora.report.wording import measured

_MOST_POINTS = 2400
"""Points of all curves on a page, at most 600 of them per curve: more would not be visible."""
Value = Callable[[Step], float | None]


def _loss_of(step: Step) -> float | None:
    return step.loss


def _penalty_of(step: Step) -> float | None:
    return step.penalty


def _rate_of(step: Step) -> float | None:
    return step.learning_rate


_MEASURES: Sequence[tuple[str, str, str, Value]] = (
    ("loss", "Training loss", "Penalty included.", _loss_of),
    (
        "penalty",
        "Penalty",
        "The term that the method adds to the loss, including its weight.",
        _penalty_of,
    ),
    ("learning-rate", "Learning rate", "", _rate_of),
)
"""Key, title, caption, and what a log line has of it."""


@dataclass(frozen=True, slots=True)
class _Curves:
    """One run's curves over the steps of all stages, and where each stage begins."""

    loss: tuple[Point, ...]
    penalty: tuple[Point, ...]
    rate: tuple[Point, ...]
    begins: tuple[Mark, ...]
    steps: int

    @property
    def breaks(self) -> tuple[float, ...]:
        """Where lines break: between tasks."""
        return tuple(mark.x for mark in self.begins)


def training(variants: Sequence[Variant]) -> Section:
    """Loss, penalty and learning rate: of one run over all steps, of several task by task."""
    runs = runs_of(variants)
    counted = "counted across all stages" if len(runs) == 1 else "counted from the beginning of each task"
    about = (
        f"Steps are optimizer steps, {counted}. The loss is the mean cross-entropy over answer tokens "
        "plus the penalty; each point is the mean over the steps since the previous point."
    )
    blocks: list[Block] = []
    if not any(stage.losses for run in runs for stage in run.stages):
        blocks.append(
            Text("There is no training log (trainer_state.json in each stage's folder).", tone="note")
        )
    elif len(runs) == 1:
        blocks += _of_one(runs[0])
    else:
        figures = [_by_task(variants, *measure) for measure in _MEASURES]
        blocks += [figure for figure in figures if figure is not None]
    return Section("training", "Training", about, blocks)


def _of_one(run: RunFiles) -> list[Block]:
    curve = _curves(run, 600)
    return [_loss(run, curve), *([_rate(curve)] if curve.rate else [])]


def _curves(run: RunFiles, most: int) -> _Curves:
    loss: list[Point] = []
    penalty: list[Point] = []
    rate: list[Point] = []
    begins: list[Mark] = []
    done = 0
    most = max(most // max(len(run.stages), 1), 2)
    for stage in run.stages:
        begins.append(Mark(float(done), f"{stage.number} {stage.task}"))
        for curve, value in ((loss, _loss_of), (penalty, _penalty_of), (rate, _rate_of)):
            known = [(float(done + step.step), y) for step in stage.losses if (y := value(step)) is not None]
            curve += thinned(without_straight(known) if curve is rate else known, most)
        done += stage.steps
    if not any(value for _, value in penalty):
        penalty = []
    return _Curves(tuple(loss), tuple(penalty), tuple(rate), tuple(begins), done)


def thinned(points: Sequence[Point], most: int) -> tuple[Point, ...]:
    """About `most` points: the lowest and the highest of each group of neighbors, so that spikes remain."""
    size = -(-len(points) // max(most // 2, 1))
    if size <= 2:
        return tuple(points)
    kept: set[Point] = {points[0], points[-1]}
    for at in range(0, len(points), size):
        part = points[at : at + size]
        kept |= {min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])}
    return tuple(sorted(kept))


def without_straight(points: Sequence[Point]) -> tuple[Point, ...]:
    """Without the points on the line between their neighbors, as most of a learning rate's are."""
    kept = list(points[:1])
    for point, after in pairwise(points[1:]):
        (x0, y0), (x1, y1), (x2, y2) = kept[-1], point, after
        if not math.isclose((y1 - y0) * (x2 - x0), (y2 - y0) * (x1 - x0), rel_tol=1e-6, abs_tol=1e-15):
            kept.append(point)
    return (*kept, *points[1:][-1:])


def _steps_axis(steps: int, label: str = "step") -> Axis:
    return up_to(linear_axis(label, [0.0, float(steps)], ticks=6), float(max(steps, 1)))


def _loss(run: RunFiles, curve: _Curves) -> Figure:
    values = [value for _, value in (*curve.loss, *curve.penalty)]
    x, y = _steps_axis(curve.steps), linear_axis("loss", values, zero=True)
    name = "loss, penalty included" if curve.penalty else "loss"
    series = [Series(name, curve.loss, "accent", dots=False, breaks=curve.breaks)]
    if curve.penalty:
        series.append(Series("penalty", curve.penalty, "series1", "6 3", dots=False, breaks=curve.breaks))

    def draw(width: float) -> Scene:
        ends = "; ".join(
            f"{stage.task}: {stage.losses[0].loss:.3g} to {stage.losses[-1].loss:.3g}"
            for stage in run.stages
            if stage.losses
        )
        description = (
            f"The loss over {curve.steps} steps, from each task's first logged step to its last: {ends}."
        )
        return line_chart("Training loss", description, series, x=x, y=y, width=width, marks=curve.begins)

    caption = "One line per task, which ends where the task ends. Dotted lines mark where a new task begins."
    title = "Training loss" + (" and penalty" if curve.penalty else "")
    return Figure("loss", title, caption, draw, _losses([run]))


def _rate(curve: _Curves) -> Figure:
    x = _steps_axis(curve.steps)
    y = linear_axis("learning rate", [value for _, value in curve.rate], zero=True, ticks=3)
    series = [Series("learning rate", curve.rate, "series4", dots=False, breaks=curve.breaks)]

    def draw(width: float) -> Scene:
        first, last = curve.rate[0][1], curve.rate[-1][1]
        description = f"From {number(first)} at the first logged step to {number(last)} at the last."
        return line_chart(
            "Learning rate", description, series, x=x, y=y, width=width, height=200, marks=curve.begins
        )

    return Figure("learning-rate", "Learning rate", "", draw)


def _by_task(variants: Sequence[Variant], key: str, title: str, caption: str, value: Value) -> Figure | None:
    """A small chart for each stage, with a line per variant that ends where the task ends."""
    runs = runs_of(variants)
    stages = {stage.number: stage.task for run in runs for stage in run.stages}
    same = len({run.tasks for run in runs}) == 1
    most = max(min(600, _MOST_POINTS // len(variants)) // max(len(stages), 1), 8)
    known = [
        v for v in variants if any(value(step) for run in v.runs for s in run.stages for step in s.losses)
    ]
    lines = {n: [_line(variant, n, value, most) for variant in known] for n in sorted(stages)}
    alike = len(known) == len(variants) and all(
        line.points == of_stage[0].points for of_stage in lines.values() for line in of_stage
    )
    if alike:  # such as the learning rate, most often
        lines = {n: [replace(of_stage[0], name="all runs")] for n, of_stage in lines.items() if of_stage}
    panels = [
        Panel(f"{n} {stages[n]}" if same else f"stage {n}", tuple(line for line in of_stage if line.points))
        for n, of_stage in lines.items()
    ]
    drawn = [line for panel in panels for line in panel.series]
    if not drawn:
        return None
    x = _steps_axis(max(stage.steps for run in runs for stage in run.stages), "step of the task")
    y = linear_axis(title.lower(), reach(drawn), zero=True)
    named = {line.name for line in drawn}
    names = [
        Series(v.label, (), series_role(v.order), series_dash(v.order)) for v in variants if v.label in named
    ]

    def draw(width: float) -> Scene:
        description = "; ".join(
            f"{panel.title}, {s.name}: {s.points[0][1]:.3g} to {s.points[-1][1]:.3g}"
            for panel in panels
            for s in panel.series
        )
        return small_multiples(title, description, panels, x=x, y=y, width=width, names=names)

    whose = "The same for all runs." if alike and len(variants) > 1 else ""
    if len(known) == 1 < len(variants):
        whose = f"Only {known[0].label} has one."
    notes = [
        caption,
        whose,
        "A line ends where its task ends.",
        BAND if any(s.band for s in drawn) else "",
    ]
    text = " ".join(filter(None, notes))
    return Figure(key, title, text, draw, _losses(runs) if key == "loss" else None)


def _line(variant: Variant, number: int, value: Value, most: int) -> Series:
    """The mean over the seeds at the steps that all of them logged."""
    logs = [
        {float(step.step): y for step in stage.losses if (y := value(step)) is not None}
        for run in variant.runs
        for stage in run.stages
        if stage.number == number
    ]
    common = sorted(set(logs[0]).intersection(*logs)) if logs else []
    line = banded(variant, {x: [log[x] for log in logs] for x in common}, dots=False, width=1.6)
    shown = line.points if line.band else without_straight(line.points)
    kept = {x for x, _ in thinned(shown, most)}
    return Series(
        line.name,
        tuple(point for point in line.points if point[0] in kept),
        line.role,
        line.dash,
        dots=False,
        width=line.width,
        band=tuple(part for part in line.band if part[0] in kept),
    )


def _losses(runs: Sequence[RunFiles]) -> Table:
    rows = [
        words(stage_name(run, stage, many=len(runs) > 1), stage.steps, *_ends(stage.losses))
        for run in runs
        for stage in run.stages
        if stage.losses
    ]
    columns = ("stage", "steps", "first loss", "last loss", "last penalty")
    return Table("First and last logged loss of each stage", columns, tuple(rows))


def _ends(losses: Sequence[Step]) -> tuple[str, ...]:
    return number(losses[0].loss), number(losses[-1].loss), measured(losses[-1].penalty)


def stage_name(run: RunFiles, stage: StageFiles, *, many: bool) -> Cell:
    """`1 agnews`, or with the run's label before it."""
    name = f"{stage.number} {stage.task}"
    return Cell(f"{run.label}, {name}" if many else name)
