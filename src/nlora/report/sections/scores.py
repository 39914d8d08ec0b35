"""The sections about scores: averages and the accuracy matrix, all from summary.json."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nlora.report.charts.heatmap import heat_map, scale_position
from nlora.report.charts.palette import heat_role
from nlora.report.charts.scene import Scene
from nlora.report.comparison_notes import scoring_notes
from nlora.report.formatting import duration
from nlora.report.page_blocks import Block, Cell, Facts, Figure, Section, Table, Text, side_by_side, words
from nlora.report.run_files import RunFiles
from nlora.report.wording import change, memory, score, share
from nlora.runs.summary import Summary


def results(runs: Sequence[RunFiles]) -> Section:
    """The averages with their definitions, as a table for several runs."""
    tasks = len(runs[0].tasks)
    if len(runs) > 1:
        blocks: list[Block] = [*_unlike(runs), _headline_table(runs)]
    elif runs[0].is_complete:
        blocks = [Facts(tuple(_facts(runs[0])))]
    else:
        done = len(runs[0].stages)
        text = f"{done} of {tasks} tasks learned. The averages follow when all are."
        blocks = [Text(text, tone="note")]
    return Section("results", "Results", _about(runs), [*blocks, *_odd(runs)])


def _odd(runs: Sequence[RunFiles]) -> list[Text]:
    """What is odd about the outcome of stages."""
    return [
        Text(f"{f'{run.label}: ' if len(runs) > 1 else ''}{note}.", tone="note")
        for run in runs
        for note in run.summary.notes
    ]


def _about(runs: Sequence[RunFiles]) -> str:
    """What a score is. ROUGE-L is not a share of the examples."""
    if all(metric == "exact_match" for run in runs for metric in run.summary.metrics.values()):
        return "Scores are the percentage of a task's test examples answered correctly."
    kinds = list(dict.fromkeys(run.summary.scoring for run in runs if run.summary.scoring))
    return f"Scores are in percent: {' | '.join(kinds)}."


def _facts(run: RunFiles) -> list[tuple[str, str, str]]:
    summary, tasks = run.summary, len(run.tasks)
    earlier = f"the {tasks - 1} earlier tasks" if tasks > 2 else "the earlier task"
    facts = [
        (
            score(summary.average_accuracy),
            "average accuracy",
            f"mean over all {tasks} tasks after the last stage",
        ),
        (
            change(summary.backward_transfer),
            "backward transfer",
            f"mean over {earlier}: score at the end − score when just learned",
        ),
        (
            score(summary.forgetting),
            "forgetting",
            f"mean over {earlier}: best score before the end − score at the end",
        ),
        (
            change(summary.forward_transfer),
            "forward transfer",
            f"mean over the {tasks - 1} later tasks: score just before learning − score before any training",
        ),
    ]
    if run.interference is not None and run.interference.average_collision_rate is not None:
        rate = share(run.interference.average_collision_rate)
        facts.append(
            (
                rate,
                "average collision rate",
                "mean over pairs of tasks: share of weights that both updates change by more than the threshold",
            )
        )
    if summary.perplexity_change is not None:
        meaning = "of plain text, from before the first to after the last task; higher is worse"
        facts.append((f"{change(summary.perplexity_change)}\u00a0%", "perplexity", meaning))
    return [fact for fact in facts if fact[0] != "–"]


def _headline_table(runs: Sequence[RunFiles]) -> Table:
    averages = [r.summary.average_accuracy for r in runs if r.summary.average_accuracy is not None]
    _, alike = scoring_notes(_labeled(runs))
    comparable = bool(averages) and len({frozenset(run.tasks) for run in runs}) == 1 and alike
    best = score(max(averages, default=None))  # as shown: equal numbers are marked alike
    with_rate = any(run.interference for run in runs)
    with_forward = any(run.summary.forward_transfer is not None for run in runs)
    columns = ["run", "method", "seed", "average accuracy", "backward transfer", "forgetting"]
    with_text = any(run.summary.perplexity_change is not None for run in runs)
    columns += ["forward transfer"] * with_forward + ["collision rate"] * with_rate
    columns += ["perplexity, %"] * with_text
    rows = []
    for run in runs:
        s = run.summary
        average = (
            score(s.average_accuracy) if run.is_complete else f"{len(run.stages)} of {len(run.tasks)} tasks"
        )
        cells = [Cell(run.label), Cell(s.method), Cell(str(s.seed))]
        cells.append(Cell(average, strong=comparable and average == best))
        cells += words(change(s.backward_transfer), score(s.forgetting))
        cells += words(change(s.forward_transfer)) if with_forward else ()
        if with_rate:
            cells += words(share(run.interference.average_collision_rate if run.interference else None))
        cells += words(change(s.perplexity_change)) if with_text else ()
        cells += words(
            _count(s.trained_parameters), duration(sum(s.train_seconds)), memory(s.peak_memory_bytes)
        )
        rows.append(tuple(cells))
    note = (
        "Average accuracy: mean over all tasks after the last stage. Backward transfer: mean over the earlier tasks of "
        "score at the end − score when just learned. Forgetting: mean over the earlier tasks of best score before the "
        "end − score at the end."
    )
    if comparable:
        note += " Bold: the best average accuracy."
    if with_rate:
        note += " Collision rate: mean over pairs of tasks of the share of weights that both updates change by more "
        note += "than the run's threshold, which the section on collisions lists."
    if with_text:
        note += (
            " Perplexity: change on plain text from before the first to after the last task; higher is worse."
        )
    return Table(
        "The runs side by side",
        (*columns, "trained parameters", "training", "peak memory"),
        tuple(rows),
        note,
        frozenset({0, 1}),
    )


def _count(number: int | None) -> str:
    return "–" if number is None else f"{number:,}"


def _unlike(runs: Sequence[RunFiles]) -> list[Block]:
    """Differences between the runs that make a comparison misleading."""
    texts = []
    if len({frozenset(run.tasks) for run in runs}) > 1:
        texts.append("These runs learned different tasks; averages are not comparable.")
    elif len({run.tasks for run in runs}) > 1:
        texts.append("These runs learned the same tasks in different orders.")
    if len({run.summary.model for run in runs}) > 1:
        texts.append("They use different models.")
    if len({run.summary.protocol == "released" for run in runs}) > 1:
        texts.append("They followed different protocols, which score and truncate differently.")
    decodes = {stage.decode for run in runs for stage in run.stages if stage.decode}
    if len(decodes) > 1:
        texts.append(
            f"They were scored in different ways ({', '.join(sorted(decodes))}), which are not comparable."
        )
    notes, _ = scoring_notes(_labeled(runs))
    texts += [f"{heading} {'; '.join(lines)}{'.' if lines else ''}".rstrip() for heading, lines in notes]
    return [Text(" ".join(texts), tone="note")] if texts else []


def _labeled(runs: Sequence[RunFiles]) -> list[tuple[str, list[Summary]]]:
    return [(run.label, [run.summary]) for run in runs]


def matrices(runs: Sequence[RunFiles]) -> Section:
    """Each run's R as a heat map, with one color scale for all."""
    low, high = _range(runs)
    figures = matrices_figures(runs)
    about = (
        "Each row holds the scores after learning that row's task; each column is a task. The task just learned is "
        f"outlined. Read down a column to see a task being forgotten. Colors range from {low:g} to {high:g}."
    )
    return Section("matrix", "Accuracy matrix", about, side_by_side(figures), "Matrix")


def matrices_figures(runs: Sequence[RunFiles]) -> tuple[Figure, ...]:
    """Each run's matrix, on one color scale."""
    low, high = _range(runs)
    return tuple(_matrix(run, index, low, high, many=len(runs) > 1) for index, run in enumerate(runs))


def _range(runs: Sequence[RunFiles]) -> tuple[float, float]:
    known = [value for run in runs for row in run.summary.R for value in row if value is not None]
    if not known:
        return 0.0, 100.0
    low, high = 10 * math.floor(min(known) / 10), 10 * math.ceil(max(known) / 10)
    return float(min(low, high - 10)), float(high)


def _matrix(run: RunFiles, index: int, low: float, high: float, *, many: bool) -> Figure:
    tasks, R = run.tasks, run.summary.R
    names = [f"{k} {task}" for k, task in enumerate(tasks, start=1)]
    digits = 1 if len(tasks) <= 8 else 0
    rows = [
        _row(name, row, low, high, digits, diagonal=k)
        for k, (name, row) in enumerate(zip(names, R, strict=True))
    ]
    cells = list(R)
    if run.summary.zero_shot is not None:
        rows.insert(0, _row("before any training", run.summary.zero_shot, low, high, digits, diagonal=None))
        names, cells = ["before any training", *names], [run.summary.zero_shot, *cells]
    offset = len(names) - len(tasks)
    title = f"Accuracy of {run.label}" if many else "Accuracy on each task after each stage"

    def draw(width: float) -> Scene:
        return heat_map(
            title,
            _description(run),
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


def _row(
    name: str, row: Sequence[float | None], low: float, high: float, digits: int, *, diagonal: int | None
) -> tuple[Cell, ...]:
    cells = [Cell(name)]
    for column, value in enumerate(row):
        if value is None:
            cells.append(Cell(""))
        else:
            marked = column == diagonal
            role = heat_role(scale_position(value, low, high))
            cells.append(Cell(f"{value:.{digits}f}", heat=role, marked=marked, title=f"{value:.2f}"))
    return tuple(cells)


def _description(run: RunFiles) -> str:
    """The matrix in a sentence, for screen readers."""
    lost = [
        (R_last - R_then, task)
        for k, (task, R_then, R_last) in enumerate(
            zip(
                run.tasks,
                _diagonal(run),
                run.summary.R[len(run.stages) - 1] if run.stages else (),
                strict=False,
            )
        )
        if R_then is not None and R_last is not None and k < len(run.stages) - 1
    ]
    if not lost:
        return "Each row is a stage, each column a task."
    worst = min(lost)
    return f"The largest change since a task was learned: {worst[1]}, {change(worst[0])} points."


def _diagonal(run: RunFiles) -> list[float | None]:
    return [row[k] for k, row in enumerate(run.summary.R)]
