"""The section about time and memory by stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nlora.report.charts.axes import linear_axis, number
from nlora.report.charts.bars import Bar, bar_chart
from nlora.report.charts.scene import Scene
from nlora.report.comparison import Spread
from nlora.report.formatting import duration
from nlora.report.page_blocks import Block, Figure, Section, Table, Text, words
from nlora.report.run_files import RunFiles, StageFiles
from nlora.report.variants import Variant
from nlora.report.wording import memory
from nlora.runs.summary import StageRecord


def cost(variants: Sequence[Variant]) -> Section:
    """Time and memory; means over the seeds."""
    about = "Wall-clock time on the machine that ran it. Memory is the peak of the process, or of the accelerator."
    has_seeds = any(variant.has_seeds for variant in variants)
    if has_seeds:
        about += (
            " Of several seeds: means; the thin lines reach one sample standard deviation to either side."
        )
    if not any(trained(variant.first) for variant in variants):
        gone = any(variant.first.learned for variant in variants)
        text = Text(
            f"{'The stages are not in the folder any more' if gone else 'No stage is finished yet'}.",
            tone="note",
        )
        return Section("cost", "Time and memory", about, (text,), "Time")
    blocks: list[Block] = [_time(variants), _stages(variants)]
    if len(variants) == 1 and not has_seeds:
        blocks.append(_total(variants[0].first))
    return Section("cost", "Time and memory", about, blocks, "Time")


def trained(run: RunFiles) -> list[StageFiles]:
    """The stages at which the method trained something (mtl, for one, trains at the last one only)."""
    return [stage for stage in run.stages if not stage.record.is_skipped]


def _stages(variants: Sequence[Variant]) -> Table:
    many = len(variants) > 1
    replays = any(stage.record.replayed for variant in variants for stage in trained(variant.first))
    prepares = any(stage.record.prepare_seconds for variant in variants for stage in trained(variant.first))
    rows = []
    for variant in variants:
        for stage in trained(variant.first):
            records = [run.stages[stage.number - 1].record for run in _with(stage, variant)]
            mean = _mean_of(records)
            name = f"{stage.number} {stage.task}"
            rows.append(
                words(
                    f"{variant.label}, {name}" if many else name,
                    *([_replayed(stage.record)] if replays else []),
                    duration(mean(lambda r: r.train_seconds) or 0.0),
                    *([duration(mean(lambda r: r.prepare_seconds) or 0.0)] if prepares else []),
                    duration(mean(lambda r: r.evaluate_seconds) or 0.0),
                    number(round(mean(lambda r: r.train_samples_per_second) or 0.0, 2)),
                    memory(
                        round(peak) if (peak := mean(lambda r: r.peak_memory_bytes)) is not None else None
                    ),
                )
            )
    replayed = ("examples of earlier tasks",) if replays else ()
    prepared = ("preparing",) if prepares else ()  # not in files of older versions
    columns = (
        "stage", *replayed, "training", *prepared, "scoring", "examples per second", "peak memory"
    )  # fmt: skip
    return Table("Each stage", columns, tuple(rows))


def _with(stage: StageFiles, variant: Variant) -> list[RunFiles]:
    """The runs whose folders still have this stage."""
    return [run for run in variant.runs if len(run.stages) >= stage.number]


def _mean_of(
    records: Sequence[StageRecord],
) -> Callable[[Callable[[StageRecord], float | None]], float | None]:
    def mean(value: Callable[[StageRecord], float | None]) -> float | None:
        known = [each for record in records if (each := value(record)) is not None]
        return Spread.of(known).mean if known else None

    return mean


def _replayed(record: StageRecord) -> str:
    """What a stage trained on again: `16 of 2 tasks, each 1 time`."""
    tasks, passes = len(record.replayed), record.replay_passes or 0.0
    if not tasks:
        return "–"
    examples = f"{sum(record.replayed.values())} of {tasks} task{'s' if tasks > 1 else ''}"
    return f"{examples}, each {passes:.3g} time{'' if passes == 1 else 's'}"


def _time(variants: Sequence[Variant]) -> Figure:
    if len(variants) > 1:
        bars = [
            _bar(v.label, [run.stages for run in _with(v.first.stages[-1], v)])
            for v in variants
            if trained(v.first)
        ]
    else:
        bars = [
            _bar(
                f"{stage.number} {stage.task}",
                [[run.stages[stage.number - 1]] for run in _with(stage, variants[0])],
            )
            for stage in trained(variants[0].first)
        ]
    longest = max(bar.total for bar in bars)
    unit, divisor = ("minutes", 60.0) if longest >= 99.5 else ("seconds", 1.0)
    bars = [
        Bar(
            bar.name,
            tuple((name, length / divisor, role) for name, length, role in bar.parts),
            bar.text,
            None if bar.spread is None else bar.spread / divisor,
        )
        for bar in bars
    ]
    axis = linear_axis(unit, [bar.total + (bar.spread or 0.0) for bar in bars], zero=True)
    what = "of each run" if len(variants) > 1 else "of each stage"

    def draw(width: float) -> Scene:
        description = "; ".join(f"{bar.name}: {bar.text}" for bar in bars)
        return bar_chart(f"Time {what}", description, bars, axis=axis, width=width)

    return Figure(
        "time", f"Time {what}", "Scoring takes longer at later stages, where more tasks have been seen.", draw
    )


def _bar(name: str, seeds: Sequence[Sequence[StageFiles]]) -> Bar:
    """seeds: the stages of each seed."""
    records = [[stage.record for stage in stages] for stages in seeds]
    kinds = {
        "training": ([sum(r.train_seconds for r in some) for some in records], "accent"),
        "preparing": ([sum(r.prepare_seconds for r in some) for some in records], "series2"),
        "scoring": ([sum(r.evaluate_seconds for r in some) for some in records], "series4"),
    }
    parts = tuple(
        (kind, Spread.of(seconds).mean, role)
        for kind, (seconds, role) in kinds.items()
        if kind != "preparing" or any(seconds)
    )
    total = Spread.of([sum(each) for each in zip(*(seconds for seconds, _ in kinds.values()), strict=True)])
    return Bar(name, parts, duration(total.mean), total.deviation)


def _total(run: RunFiles) -> Text:
    summary, preparing = run.summary, sum(run.summary.prepare_seconds)
    between = f" {duration(preparing)} of preparing," if preparing else ""
    return Text(
        f"In total: {duration(sum(summary.train_seconds))} of training,{between} "
        f"{duration(sum(summary.evaluate_seconds))} of scoring, peak memory {memory(summary.peak_memory_bytes)}."
    )
