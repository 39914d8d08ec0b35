"""The section about what the model knew before: the perplexity of a text, and tasks of lm-evaluation-harness."""

from __future__ import annotations

from collections.abc import Sequence

from nlora.config.general_options import text_in_words
from nlora.report.charts.axes import index_axis, linear_axis
from nlora.report.charts.lines import Series, line_chart
from nlora.report.charts.palette import series_dash, series_role
from nlora.report.charts.scene import Scene
from nlora.report.page_blocks import Block, Cell, Figure, Section, Table, words
from nlora.report.run_files import RunFiles
from nlora.report.wording import change
from nlora.runs.general_scores import harness_rows, perplexity_change

_BEFORE = "before"
"""The name of the untouched model among the stages."""
_DIGITS = 2


def general(runs: Sequence[RunFiles]) -> list[Section]:
    """Perplexity by stage, and a table of the harness; no section if no run measured anything."""
    measured = [run for run in runs if run.summary.general]
    if not measured:
        return []
    blocks: list[Block] = []
    if any(scores is not None and scores.text for run in measured for scores in run.summary.general):
        blocks += [_perplexity(measured), _bits(measured)]
    if rows := _harness(measured):
        blocks.append(rows)
    about = (
        "What the model could do before its first task, and what is left of it. The perplexity of a text it does not "
        "learn says how surprised it is by plain language; lower is better. Each stage's model is the one that answers "
        "the stage's own task."
    )
    return [Section("general", "What it knew before", about, blocks, "Before")]


def _perplexity(runs: Sequence[RunFiles]) -> Figure:
    several = len(runs) > 1
    lines = {run.label: _line(run) for run in runs}
    longest = max(runs, key=lambda run: len(run.tasks)).tasks
    same = len({run.tasks for run in runs}) == 1
    names = [_BEFORE, *(longest if same else map(str, range(1, len(longest) + 1)))]
    y = linear_axis("perplexity", [value for line in lines.values() for _, value in line])
    title = "Perplexity after each stage"
    description = "; ".join(
        f"{label}: "
        + ", ".join(f"{names[int(at) - 1]} {value:.{_DIGITS}f}" for at, value in (line[0], line[-1]))
        for label, line in lines.items()
        if line
    )

    def draw(width: float) -> Scene:
        series = [
            Series(run.label, line, series_role(run.order) if several else "accent", series_dash(run.order))
            for run in runs
            if (line := lines[run.label])
        ]
        fits = width > 500 and 8 * max(map(len, names)) * len(names) < width
        shown = names if fits else [_BEFORE, *map(str, range(1, len(names)))]
        return line_chart(
            title, description, series, x=index_axis("stage", shown), y=y, width=width, height=300
        )

    caption = f"Perplexity of {_texts(runs)}. A rise after a stage is language forgotten there."
    return Figure("perplexity", title, caption, draw, _numbers(runs))


def _line(run: RunFiles) -> tuple[tuple[float, float], ...]:
    """The places of the axis, from 1 for the untouched model, with their perplexity."""
    return tuple(
        (float(place), scores.perplexity)
        for place, scores in enumerate(run.summary.general, start=1)
        if scores is not None and scores.perplexity is not None
    )


def _texts(runs: Sequence[RunFiles]) -> str:
    """The texts by name, each once, with the number of predicted tokens."""
    every = (scores for run in runs for scores in run.summary.general if scores is not None)
    found = [f"{text_in_words(s.text)} ({s.tokens:,} tokens)" for s in every if s.text is not None]
    return ", ".join(dict.fromkeys(found))


def _numbers(runs: Sequence[RunFiles]) -> Table:
    stages = max(len(run.tasks) for run in runs)
    rows = []
    for run in runs:
        found = dict(_line(run))
        values = [f"{found[k]:.{_DIGITS}f}" if k in found else "" for k in map(float, range(1, stages + 2))]
        rows.append(words(run.label, *values, change(run.summary.perplexity_change)))
    columns = ("run", _BEFORE, *(f"stage {k}" for k in range(1, stages + 1)), "change, %")
    return Table("Perplexity", columns, tuple(rows))


def _bits(runs: Sequence[RunFiles]) -> Table:
    """The untouched model and the last stage: perplexity, and bits per byte, which other tokenizers share."""
    rows = []
    for run in runs:
        ends = run.summary.general[0], run.summary.general[-1]
        if not any(s is not None and s.text for s in ends):
            continue
        rows.append(
            words(
                run.label,
                *("–" if s is None or s.perplexity is None else f"{s.perplexity:.{_DIGITS}f}" for s in ends),
                change(perplexity_change(run.summary.general)),
                *("–" if s is None or s.bits_per_byte is None else f"{s.bits_per_byte:.3f}" for s in ends),
            )
        )
    columns = ("run", "perplexity at first", "at last", "change, %", "bits per byte at first", "at last")
    note = (
        "Perplexity is exp of the mean loss per token, and compares models with the same tokenizer. Bits per byte "
        "compare all models on the same text."
    )
    return Table("Perplexity and bits per byte", columns, tuple(rows), note)


def _harness(runs: Sequence[RunFiles]) -> Table | None:
    stages = max(len(run.tasks) for run in runs)
    rows = []
    for run in runs:
        for (task, metric), values in harness_rows(run.summary.general).items():
            shown = ["" if value is None else f"{value:.3f}" for value in values]
            label = f"{run.label}, {task}" if len(runs) > 1 else task
            rows.append((Cell(label), Cell(metric), *words(*shown, *[""] * (stages + 1 - len(shown)))))
    if not rows:
        return None
    columns = ("run, task" if len(runs) > 1 else "task", "metric", _BEFORE)
    note = "Metrics as lm-evaluation-harness names and scales them: accuracies are shares from 0 to 1."
    return Table(
        "Tasks of lm-evaluation-harness",
        (*columns, *(f"stage {k}" for k in range(1, stages + 1))),
        tuple(rows),
        note,
        frozenset({0, 1}),
    )
