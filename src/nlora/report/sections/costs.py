"""The sections about training: loss and penalty over the steps; time and memory by stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nlora.report.charts.axes import Axis, linear_axis, number, up_to
from nlora.report.charts.bars import Bar, bar_chart
from nlora.report.charts.lines import Mark, Series, line_chart
from nlora.report.charts.palette import series_dash, series_role
from nlora.report.charts.scene import Point, Scene
from nlora.report.formatting import duration
from nlora.report.page_blocks import Block, Cell, Figure, Section, Table, Text, words
from nlora.report.run_files import RunFiles, StageFiles, Step
from nlora.report.wording import measured, memory
from nlora.runs.summary import StageRecord

_MOST_POINTS = 2400
"""Points of all curves on a page, at most 600 of them per curve: more would not be visible."""


@dataclass(frozen=True, slots=True)
class _Curves:
    """One run's curves over the steps of all stages, and where each stage begins."""

    loss: tuple[Point, ...]
    penalty: tuple[Point, ...]
    begins: tuple[Mark, ...]
    steps: int

    @property
    def breaks(self) -> tuple[float, ...]:
        """Where lines break: between tasks."""
        return tuple(mark.x for mark in self.begins)


def training(runs: Sequence[RunFiles]) -> Section:
    """Loss and penalty."""
    curves = {run.label: _curves(run, min(600, _MOST_POINTS // len(runs))) for run in runs}
    about = (
        "Steps are optimizer steps, counted across all stages. The loss is the mean cross-entropy over answer tokens "
        "plus the penalty; each point is the mean over the steps since the previous point."
    )
    if not any(curve.loss for curve in curves.values()):
        text = Text("There is no training log (trainer_state.json in each stage's folder).", tone="note")
        return Section("training", "Training", about, (text,))
    blocks: list[Block] = (
        [_one(runs[0], curves[runs[0].label])]
        if len(runs) == 1
        else [_overlaid(runs, curves, "loss", "Training loss")]
    )
    if len(runs) > 1 and any(curve.penalty for curve in curves.values()):
        blocks.append(_overlaid(runs, curves, "penalty", "Penalty"))
    return Section("training", "Training", about, blocks)


def _curves(run: RunFiles, most: int) -> _Curves:
    loss: list[Point] = []
    penalty: list[Point] = []
    begins: list[Mark] = []
    done = 0
    most = max(most // max(len(run.stages), 1), 2)
    for stage in run.stages:
        begins.append(Mark(float(done), f"{stage.number} {stage.task}"))
        known = [(float(done + s.step), s.penalty) for s in stage.losses if s.penalty is not None]
        loss += thinned([(float(done + step.step), step.loss) for step in stage.losses], most)
        penalty += thinned(known, most)
        done += stage.steps
    if not any(value for _, value in penalty):
        penalty = []
    return _Curves(tuple(loss), tuple(penalty), tuple(begins), done)


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


def _steps_axis(steps: int) -> Axis:
    return up_to(linear_axis("step", [0.0, float(steps)], ticks=6), float(max(steps, 1)))


def _one(run: RunFiles, curve: _Curves) -> Figure:
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

    caption = "One line per task. Dotted lines mark where a new task begins."
    return Figure(
        "loss", "Training loss" + (" and penalty" if curve.penalty else ""), caption, draw, _losses([run])
    )


def _overlaid(runs: Sequence[RunFiles], curves: dict[str, _Curves], which: str, title: str) -> Figure:
    points: Callable[[_Curves], tuple[Point, ...]] = lambda c: c.loss if which == "loss" else c.penalty  # noqa: E731
    series = [
        Series(
            run.label,
            line,
            series_role(run.order),
            series_dash(run.order),
            dots=False,
            width=1.6,
            breaks=curves[run.label].breaks,
        )
        for run in runs
        if (line := points(curves[run.label]))
    ]
    x = _steps_axis(max(curve.steps for curve in curves.values()))
    y = linear_axis(which, [value for s in series for _, value in s.points], zero=True)
    marks = {curve.begins for curve in curves.values()}

    def draw(width: float) -> Scene:
        description = "; ".join(f"{s.name}: {s.points[0][1]:.3g} to {s.points[-1][1]:.3g}" for s in series)
        begins = next(iter(marks)) if len(marks) == 1 else ()
        return line_chart(title, description, series, x=x, y=y, width=width, marks=begins)

    caption = (
        "Penalty included."
        if which == "loss"
        else "The term that the method adds to the loss, including its weight."
    )
    return Figure(which, title, caption, draw, _losses(runs) if which == "loss" else None)


def _losses(runs: Sequence[RunFiles]) -> Table:
    rows = [
        words(_stage_name(run, stage, runs), stage.steps, *_ends(stage.losses))
        for run in runs
        for stage in run.stages
        if stage.losses
    ]
    columns = ("stage", "steps", "first loss", "last loss", "last penalty")
    return Table("First and last logged loss of each stage", columns, tuple(rows))


def _ends(losses: Sequence[Step]) -> tuple[str, ...]:
    return number(losses[0].loss), number(losses[-1].loss), measured(losses[-1].penalty)


def cost(runs: Sequence[RunFiles]) -> Section:
    """Time and memory."""
    about = "Wall-clock time on the machine that ran it. Memory is the peak of the process, or of the accelerator."
    if not any(trained(run) for run in runs):
        return Section(
            "cost", "Time and memory", about, (Text("No stage is finished yet.", tone="note"),), "Time"
        )
    replays = any(stage.record.replayed for run in runs for stage in trained(run))
    rows = [
        words(
            _stage_name(run, stage, runs),
            *([_replayed(stage.record)] if replays else []),
            duration(stage.record.train_seconds),
            duration(stage.record.evaluate_seconds),
            number(round(stage.record.train_samples_per_second, 2)),
            memory(stage.record.peak_memory_bytes),
        )
        for run in runs
        for stage in trained(run)
    ]
    replayed = ("examples of earlier tasks",) if replays else ()
    columns = ("stage", *replayed, "training", "scoring", "examples per second", "peak memory")
    table = Table("Each stage", columns, tuple(rows))
    blocks: list[Block] = [_time(runs), table]
    if len(runs) == 1:
        blocks.append(_total(runs[0]))
    return Section("cost", "Time and memory", about, blocks, "Time")


def _replayed(record: StageRecord) -> str:
    """What a stage trained on again: `16 of 2 tasks, each 1 time`."""
    tasks, passes = len(record.replayed), record.replay_passes or 0.0
    if not tasks:
        return "–"
    examples = f"{sum(record.replayed.values())} of {tasks} task{'s' if tasks > 1 else ''}"
    return f"{examples}, each {passes:.3g} time{'' if passes == 1 else 's'}"


def trained(run: RunFiles) -> list[StageFiles]:
    """The stages at which the method trained something (mtl, for one, trains at the last one only)."""
    return [stage for stage in run.stages if not stage.record.is_skipped]


def _time(runs: Sequence[RunFiles]) -> Figure:
    if len(runs) > 1:
        bars = [_bar(run.label, run.stages) for run in runs if trained(run)]
    else:
        bars = [_bar(f"{stage.number} {stage.task}", [stage]) for stage in trained(runs[0])]
    longest = max(bar.total for bar in bars)
    unit, divisor = ("minutes", 60.0) if longest >= 99.5 else ("seconds", 1.0)
    bars = [
        Bar(bar.name, tuple((name, length / divisor, role) for name, length, role in bar.parts), bar.text)
        for bar in bars
    ]
    axis = linear_axis(unit, [bar.total for bar in bars], zero=True)
    what = "of each run" if len(runs) > 1 else "of each stage"

    def draw(width: float) -> Scene:
        description = "; ".join(f"{bar.name}: {bar.text}" for bar in bars)
        return bar_chart(f"Time {what}", description, bars, axis=axis, width=width)

    return Figure(
        "time", f"Time {what}", "Scoring takes longer at later stages, where more tasks have been seen.", draw
    )


def _bar(name: str, stages: Sequence[StageFiles]) -> Bar:
    train = sum(stage.record.train_seconds for stage in stages)
    scoring = sum(stage.record.evaluate_seconds for stage in stages)
    parts = (("training", train, "accent"), ("scoring", scoring, "series4"))
    return Bar(name, parts, duration(train + scoring))


def _total(run: RunFiles) -> Text:
    train, scoring = sum(run.summary.train_seconds), sum(run.summary.evaluate_seconds)
    peak = memory(run.summary.peak_memory_bytes)
    return Text(
        f"In total: {duration(train)} of training, {duration(scoring)} of scoring, peak memory {peak}."
    )


def _stage_name(run: RunFiles, stage: StageFiles, runs: Sequence[RunFiles]) -> Cell:
    name = f"{stage.number} {stage.task}"
    return Cell(f"{run.label}, {name}" if len(runs) > 1 else name)
