"""The variants of a page side by side: figures and a table, best first, and on demand the single runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from nlora.report.comparison import MEASURES, Spread, shows_preparing
from nlora.report.comparison_table import seeds_in_short
from nlora.report.estimates import Estimate, ends
from nlora.report.formatting import duration
from nlora.report.page_blocks import Block, Cell, Fold, Table, words
from nlora.report.run_files import RunFiles
from nlora.report.sections.compared import Compared, comparison_figures, difference_words
from nlora.report.variants import Variant, runs_of
from nlora.report.wording import change, memory, score, share
from nlora.runs.paired_bootstrap import Difference

_NOTE = (
    "Average accuracy: mean over all tasks after the last stage. Backward transfer: mean over the earlier tasks of "
    "score at the end − score when just learned. Forgetting: mean over the earlier tasks of best score before the "
    "end − score at the end."
)


def side_by_side(found: Compared) -> list[Block]:
    """What is said of several runs."""
    blocks: list[Block] = [*comparison_figures(found), _table(found)]
    if any(variant.has_seeds for variant in found.variants):
        blocks.append(Fold("The single runs", (_single_runs(runs_of(found.variants)),)))
    return blocks


def _minus(found: Difference | None, variant: Variant) -> str:
    return "–" if found is None else difference_words(found) + _fewer(len(found.seeds), variant)


def _fewer(count: int, variant: Variant) -> str:
    """Marks a mean over fewer seeds than the variant has."""
    return f" (n={count})" if count < len(variant.runs) else ""


def _table(found: Compared) -> Table:
    variants, estimates, comparable = found.variants, found.estimates, found.comparable
    place = {label: i for i, label in enumerate(estimates)}
    ordered = sorted(variants, key=lambda variant: place.get(variant.label, len(place)))
    best = max((score(e.mean) for e in estimates.values()), key=float, default="")  # as shown
    columns: list[tuple[str, Callable[[Variant], Cell]]] = [
        ("run", lambda v: Cell(v.label)),
        ("seeds", lambda v: Cell(seeds_in_short([summary.seed for summary in v.summaries]))),
        ("average accuracy", lambda v: _average_cell(v, estimates, best if comparable else "")),
        ("95 % interval", lambda v: Cell(ends(e.interval) if (e := estimates.get(v.label)) else "–")),
    ]
    if found.differences:
        columns.append((f"minus {found.base}", lambda v: Cell(_minus(found.differences.get(v.label), v))))
    summaries = [run.summary for run in runs_of(variants)]
    prepares = shows_preparing((sum(s.prepare_seconds), sum(s.train_seconds)) for s in summaries)
    columns += [
        (name, partial(_averaged, measure, text))
        for name, measure, text in _MEASURES
        if prepares or name != "preparing"
    ]
    rows = [tuple(cell(variant) for _, cell in columns) for variant in ordered]
    kept = [i for i in range(len(columns)) if i < 3 or any(row[i].text != "–" for row in rows)]
    note = f"{_NOTE} 95 % interval: as in the figure."
    if any(variant.has_seeds for variant in variants):
        note += " ±: sample standard deviation over the seeds."
    if comparable and len(estimates) > 1:
        note += " Bold: the best average accuracy."
    if any(variant.first.interference for variant in variants):
        note += " Collision rate: mean over pairs of tasks of the share of weights that both updates change by more "
        note += "than the run's threshold."
    if any(variant.first.summary.perplexity_change is not None for variant in variants):
        note += (
            " Perplexity: change on plain text from before the first to after the last task; higher is worse."
        )
    if prepares:
        note += " Preparing: what the method does before and after training, which training leaves out."
    return Table(
        "The runs side by side",
        tuple(columns[i][0] for i in kept),
        tuple(tuple(row[i] for i in kept) for row in rows),
        note,
    )


def _average_cell(variant: Variant, estimates: Mapping[str, Estimate], best: str) -> Cell:
    found = estimates.get(variant.label)
    if found is None:
        run = variant.first
        return Cell("–" if run.is_complete else f"{len(run.stages)} of {len(run.tasks)} tasks")
    return Cell(score(found.mean) + _deviation(found.spread), strong=score(found.mean) == best)


def _deviation(spread: Spread) -> str:
    return "" if spread.deviation is None else f" ± {spread.deviation:.1f}"


Measure = Callable[[RunFiles], float | None]


def _rate(run: RunFiles) -> float | None:
    return None if run.interference is None else run.interference.average_collision_rate


_MEASURES: Sequence[tuple[str, Measure, Callable[[Spread], str]]] = (
    ("backward transfer", lambda r: r.summary.backward_transfer, lambda s: change(s.mean) + _deviation(s)),
    ("forgetting", lambda r: r.summary.forgetting, lambda s: score(s.mean) + _deviation(s)),
    ("forward transfer", lambda r: r.summary.forward_transfer, lambda s: change(s.mean) + _deviation(s)),
    ("collision rate", _rate, lambda s: share(s.mean)),
    ("perplexity, %", lambda r: r.summary.perplexity_change, lambda s: change(s.mean) + _deviation(s)),
    ("trained parameters", lambda r: r.summary.trained_parameters, lambda s: f"{s.mean:,.0f}"),
    ("training", lambda r: sum(r.summary.train_seconds), lambda s: duration(s.mean)),
    ("preparing", lambda r: MEASURES["prepare_seconds"](r.summary), lambda s: duration(s.mean)),
    ("peak memory", lambda r: r.summary.peak_memory_bytes, lambda s: memory(round(s.mean))),
)
"""The other columns of averages."""


def _averaged(measure: Measure, text: Callable[[Spread], str], variant: Variant) -> Cell:
    values = [value for run in variant.runs if (value := measure(run)) is not None]
    return Cell(text(Spread.of(values)) + _fewer(len(values), variant) if values else "–")


def _single_runs(runs: Sequence[RunFiles]) -> Table:
    """Each run's averages and its scores at the end."""
    same = len({run.tasks for run in runs}) == 1
    tasks = runs[0].tasks if same else ()
    rows = tuple(
        words(
            run.label,
            score(run.summary.average_accuracy),
            change(run.summary.backward_transfer),
            *(score(value) for value in run.summary.R[-1][: len(tasks)]),
        )
        for run in runs
    )
    columns = ("run", "average accuracy", "backward transfer", *(f"{task} at the end" for task in tasks))
    return Table("The single runs", columns, rows)
