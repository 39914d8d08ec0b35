"""The section about the scores of single tasks at the end, each with its interval and the number of examples."""

from __future__ import annotations

from collections.abc import Sequence

from nlora.evaluation.answer import percent
from nlora.evaluation.choices import metric_name
from nlora.report.charts.axes import linear_axis
from nlora.report.charts.intervals import IntervalRow, interval_chart
from nlora.report.charts.palette import series_role
from nlora.report.charts.scene import Scene
from nlora.report.comparison import Spread
from nlora.report.estimates import Estimate, PageAnswers, about_intervals, ends, task_estimate
from nlora.report.page_blocks import Block, Figure, Section, Table, Text, words
from nlora.report.variants import Variant
from nlora.report.wording import score

_MOST_ROWS = 45
"""Of the figure: with more, the table alone is shown."""
Row = tuple[str, Variant, Estimate]
"""Task, variant, and the score."""


def scores_at_the_end(variants: Sequence[Variant], answers: PageAnswers) -> Section:
    """A figure with error bars, and a table; free text has exact match beside ROUGE-L."""
    about = f"Each task's score after the last finished stage. {about_intervals(variants)}"
    tasks = list(dict.fromkeys(task for variant in variants for task in variant.tasks))
    rows = [
        (task, variant, found)
        for task in tasks
        for variant in variants
        if task in variant.tasks and (found := _at_the_end(variant, task, answers)) is not None
    ]
    blocks: list[Block] = []
    if not rows:
        blocks.append(Text("No stage is finished yet.", tone="note"))
    elif len(rows) <= _MOST_ROWS:
        blocks.append(_figure(rows, many=len(variants) > 1))
    if rows:
        blocks.append(_table(rows, answers, many=len(variants) > 1))
    return Section("tasks", "Scores at the end", about, blocks, "Tasks")


def _at_the_end(variant: Variant, task: str, answers: PageAnswers) -> Estimate | None:
    learned = min(run.learned for run in variant.runs)
    return task_estimate(variant, learned - 1, variant.tasks.index(task), answers) if learned else None


def _figure(rows: Sequence[Row], *, many: bool) -> Figure:
    shown = [
        IntervalRow(
            variant.label if many else task,
            found.mean,
            found.interval,
            found.text,
            series_role(variant.order) if many else "accent",
            found.values if len(found.values) > 1 else (),
            task if many else "",
        )
        for task, variant, found in rows
    ]
    axis = linear_axis(
        "score, %", [v for row in shown for v in (row.value, *(row.interval or ()), *row.single)]
    )

    def draw(width: float) -> Scene:
        description = "; ".join(f"{row.group} {row.name}: {row.text}".lstrip() for row in shown)
        return interval_chart("Scores at the end", description, shown, axis=axis, width=width)

    dots = "Small dots are single seeds." if any(row.single for row in shown) else ""
    return Figure("task-scores-at-the-end", "Score of each task at the end", dots, draw)


def _table(rows: Sequence[Row], answers: PageAnswers, *, many: bool) -> Table:
    measures = [_both_measures(row, answers) for row in rows]
    is_free = any(rouge for _, rouge in measures)
    metrics = {metric_name(variant.first.summary.metric_of(task)) for task, variant, _ in rows}
    columns = ["task", *(["run"] if many else []), "score", "95 % interval", "n"]
    columns += ["measure"] if len(metrics) > 1 else []
    columns += ["exact match", "ROUGE-L"] if is_free else []
    cells = tuple(
        words(
            task,
            *([variant.label] if many else []),
            score(found.mean)
            + ("" if found.spread.deviation is None else f" ± {found.spread.deviation:.1f}"),
            ends(found.interval),
            ", ".join(filter(None, [_seeds(found), _examples(found)])) or "–",
            *([metric_name(variant.first.summary.metric_of(task))] if len(metrics) > 1 else []),
            *((exact, rouge) if is_free else ()),
        )
        for (task, variant, found), (exact, rouge) in zip(rows, measures, strict=True)
    )
    note = "n: what the interval is over."
    if any(found.spread.deviation is not None for _, _, found in rows):
        note = (
            "n: the interval is over the seeds; the test examples are those of one. ±: sample standard deviation over "
            "the seeds."
        )
    words_at = {i for i, name in enumerate(columns) if name in ("task", "run", "measure")}
    return Table("Scores at the end", tuple(columns), cells, note, frozenset(words_at))


def _seeds(found: Estimate) -> str:
    return f"{len(found.values)} seeds" if len(found.values) > 1 else ""


def _examples(found: Estimate) -> str:
    return "" if found.examples is None else f"{found.examples:,} examples"


def _both_measures(row: Row, answers: PageAnswers) -> tuple[str, str]:
    """Exact match and ROUGE-L of free text, exact match of labels scored otherwise; means over the seeds."""
    task, variant, _ = row
    summary, last = variant.first.summary, variant.first.last
    if last is None:
        return "", ""
    metric = summary.metric_of(task)
    is_free = metric == "rougeL" or (summary.decode.get(task) == "generate" and task not in last.by_label)
    found = [list(answers.last(run).get(task, {}).values()) for run in variant.runs]
    if not all(found) or not (is_free or metric != "exact_match"):
        return "", ""
    exact, rouge = (Spread.of([percent(each, m) for each in found]).mean for m in ("exact_match", "rougeL"))
    return score(exact), score(rouge) if is_free else ""
